"""The layout of Pascal VOC: an XML file with the objects of each picture, and lists or folders for the splits."""

import collections
import itertools
import pathlib
import xml.etree.ElementTree

import defusedxml
import defusedxml.ElementTree
import numpy as np

from common import coco_values, files, media, splits
from common.detection import Annotation, Source, divide
from common.detection_coco import few
from common.errors import UserError

_KINDS = media.PICTURES | splits.UNREAD_PICTURES
_PICTURES = ("jpegimages", "images")  # folders of pictures, in any case
_OTHER = ("imagesets", "segmentationclass", "segmentationobject")  # that hold nothing for detection, or lists


def voc(folder, name="voc", labels=None):
    """The Source of a folder with Annotations/*.xml, JPEGImages/ and ImageSets/Main/{train,val,test}.txt.

    XML files may lie beside their pictures, and splits may be folders, each such a folder; where none is for training,
    `folder` itself is. VOC counts pixels from 1 and its maxima belong to the box: left = xmin - 1, right = xmax, so
    that a box is xmax - xmin + 1 wide. One with xmax = xmin or ymax = ymin is nevertheless dropped as one without
    area: annotation tools write it for a click without a drag. Maxima below minima are swapped. With trainval alone,
    that is train; with neither lists nor folders, see `divide`. labels: class names, None those that are found. Raises
    UserError.
    """
    folder = pathlib.Path(folder)
    parts, pictures, left_out = _find(folder)
    parts, notes = divide(parts, key=lambda path: path.relative_to(folder).as_posix())
    items = list(itertools.chain(*parts.values()))
    if not items:
        raise UserError(f"{folder / 'Annotations'} must hold XML files, and holds none.")
    coco_values.refuse_fractions(itertools.chain.from_iterable(_corners(items)), folder, "boxes")
    if labels is None:
        labels = sorted({label for path in items for label in _names(path)})
        if not labels:
            raise UserError(f"{folder / 'Annotations'} must hold objects, and not one XML file has any.")
    ids = {label: i for i, label in enumerate(labels)}
    return Source(name, list(labels), parts, lambda path: _load(path, pictures.get(path, []), ids),
                  f"VOC layout, {folder.name}", left_out, notes)


def annotations_of(folder):
    """The folder of the XML files in a folder of this layout: its Annotations, itself if they lie there, or None."""
    for path in splits.entries(folder):
        if path.is_dir() and (path.name == "Annotations" or path.name.lower() == "annotations" and _has_xml(path)):
            return path
    return folder if _has_xml(folder) else None


def _has_xml(folder):
    return any(path.suffix.lower() == ".xml" for path in splits.entries(folder))


def _find(folder):
    """({split: XML files}, {XML file: its pictures}, {reason: what is left out}) of a folder in VOC layout.

    None is the split of those of which nothing says one.
    """
    parts, pictures, left_out = {}, {}, collections.defaultdict(list)
    given, others = splits.folders(folder)
    for split, place in given.items():
        found = _read_place(place, left_out)
        if found:
            parts[split] = list(found)
            pictures |= found
        else:
            left_out["folders of splits without XML files"].append(place)
    if "train" in parts:
        left_out["files or folders beside the folders of splits"] += others
        return parts, pictures, left_out
    found = _read_place(folder, left_out, given.values())
    pictures |= found
    listed = _lists(folder, {path.stem: path for path in found}, left_out) if found and not parts else {}
    if listed:
        named = set(itertools.chain(*listed.values()))
        left_out["XML files that no list in ImageSets/Main names"] += [path for path in found if path not in named]
        return listed, pictures, left_out
    return ({None: list(found), **parts} if found else parts), pictures, left_out


def _read_place(folder, left_out, known=()):
    """{XML file: pictures of its name} in one folder; what else there is goes to `left_out`, but for folders `known`.

    Pictures of kinds that are not read are in it too, so that their XML files are errors.
    """
    place = annotations_of(folder)
    if place is None:
        return {}
    places = [path for path in splits.entries(folder) if path.is_dir() and path.name.lower() in _PICTURES]
    places = [place, *sorted(places, key=lambda path: _PICTURES.index(path.name.lower())), folder]
    xmls, rest = {}, []
    for path in itertools.chain(*map(splits.entries, dict.fromkeys(places))):
        if path.is_dir():
            if path not in [*places, *known] and path.name.lower() not in _OTHER:
                left_out["folders beside XML files and pictures"].append(path)
        elif path.parent == place and path.suffix.lower() == ".xml" and path.stem not in xmls:
            xmls[path.stem] = path
        else:
            rest.append(path)
    pictures, unused = {path: [] for path in xmls.values()}, []
    for path in rest:
        found = pictures[xmls[path.stem]] if path.suffix.lower() in _KINDS and path.stem in xmls else None
        if found is None:
            unused.append(path)
        elif found and found[0].parent != path.parent:
            left_out["pictures of a name that one in another folder has"].append(path)
        else:
            found.append(path)
    unused, others = splits.of_kinds(unused, media.PICTURES)
    left_out["pictures without an XML file"] += unused
    for reason, paths in others.items():
        left_out[reason] += paths
    return pictures


def _lists(folder, xmls, left_out):
    """{split: paths of XML files} in the order of the lists in ImageSets/Main; {} without lists. xmls: {stem: path}."""
    place = folder / "ImageSets" / "Main"
    texts = [path for path in splits.entries(place) if path.suffix.lower() == ".txt"] if place.is_dir() else []
    found = {}
    for path in texts:
        split = "trainval" if path.stem.lower() == "trainval" else splits.of_folder(path.stem)
        if split in found:
            raise UserError(f"{place} must have one list for a split, and has {found[split].name} and {path.name} for "
                            f"{split}. Move one away.")
        if split:
            found[split] = path
    names = {split: _listed(path, xmls, left_out) for split, path in found.items()}
    both, val = names.pop("trainval", []), set(names.get("val", []))
    names.setdefault("train", [stem for stem in both if stem not in val])
    if "test" in names and not any(stem in xmls for stem in names["test"]):  # VOC2012's has pictures alone
        left_out["names of test.txt without an XML file"] += names.pop("test")
    parts = {split: [xmls.get(stem, folder / "Annotations" / f"{stem}.xml") for stem in names[split]]
             for split in splits.SPLITS if names.get(split)}
    if texts and not parts:
        raise UserError(f"{place} must hold train.txt, val.txt or test.txt with names in them, and does not. "
                        "Write them, or remove the folder to have a tenth of the pictures for validation.")
    return parts


def _listed(path, xmls, left_out):
    """The names in a list, each once. Raises UserError."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be a list of names, and cannot be read ({files.reason(error)}).") from None
    names = collections.Counter(line.strip() if line.strip() in xmls else line.split()[0]
                                for line in lines if line.strip())
    for name in names:
        if name not in xmls and pathlib.PurePath(name).name != name:
            raise UserError(f"{path} must list names without folders, and has {name}.")
    left_out[f"names that {path.name} has more than once"] += [name for name, times in names.items() if times > 1]
    return list(names)


def _root(path):
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


def _names(path):
    """Class names in one XML file; none where it cannot be read, which `_load` will tell."""
    try:
        return [(name.text or "").strip() for name in _root(path).findall("object/name") if name.text]
    except UserError:
        return []


def _corners(paths):
    """The boxes (xmin, ymin, xmax, ymax) of XML files, one after the other; without what is no box."""
    for path in paths:
        try:
            objects = _root(path).findall("object/bndbox")
            yield from [[float(box.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax")] for box in objects]
        except (UserError, TypeError, ValueError):
            continue


def _load(path, candidates, ids):
    root = _root(path)
    named = [picture for picture in candidates if picture.name == (root.findtext("filename") or "").strip()]
    found = candidates if len(candidates) < 2 else named
    if len(found) == 1:
        return _annotation(root, path, found[0], ids)
    if candidates:
        raise UserError(f"{path} must have one picture, or name it in <filename>, and there are "
                        f"{', '.join(picture.name for picture in candidates)}. Remove what it does not belong to.")
    folder = path.parent.parent / "JPEGImages" if path.parent.name.lower() == "annotations" else path.parent
    raise UserError(f"{path} must have its picture {folder / path.stem}.jpg, and there is none. Put it there or "
                    "remove the XML file.")


def _annotation(root, path, picture, ids):
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
            raise UserError(f"{path} must use the classes {few(ids)}, and object {i} is "
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
        difficult.append(coco_values.flag(item.findtext("difficult")))
        if difficult[-1] is None:
            raise UserError(f"{path} must have 0 or 1 in <difficult> of object {i}, and it is "
                            f"{item.findtext('difficult').strip()[:20]!r}. Correct it.")
    size = None
    if root.find("size") is not None:
        size = tuple(round(number(root.find("size"), tag, "<size>")) for tag in ("width", "height"))
    if size is None or min(size) < 1:
        repairs.append("annotation without the size of its picture")
        size = None
    return Annotation(picture, picture.name, np.reshape(boxes_xyxy, [-1, 4]), labels, size, difficult,
                      repairs=tuple(repairs))
