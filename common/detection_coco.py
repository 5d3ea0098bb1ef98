"""The COCO layout: JSON files with the objects of each split, and the folders of their pictures."""

import collections
import itertools
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from common import coco_values, media, splits
from common.detection import Annotation, Source, divide
from common.errors import UserError

def coco(parts, name="coco", labels=None, left_out=None):
    """The Source of COCO JSON files: `parts` maps a split to (JSON file, folder of pictures), see `find_parts`.

    Category ids become 0, 1, ... in their order. Crowd objects are kept and marked. An object that is listed
    twice is taken once. The file under None is of no split, see `divide`. left_out: {reason: paths} to which
    pictures that no file names are added. A UserError names the file and the id: at once for missing keys, unknown or
    repeated image ids, repeated ids and pictures, and boxes that are all fractions; when the picture is loaded for
    boxes that are not four finite numbers or have a negative side, and for sizes and flags that are none.
    """
    sets = {split: _CocoFile(file, images) for split, (file, images) in parts.items()}
    if labels is None:
        categories = {}
        for part in sets.values():
            for number, label in part.categories.items():
                if categories.setdefault(number, label) != label:
                    raise UserError(f"{part.path} must have the categories of the other splits, and calls "
                                    f"{number} {label!r} instead of {categories[number]!r}. Correct it.")
        labels = [categories[number] for number in sorted(categories, key=_id_order)]
    if len(set(labels)) < len(labels):
        files = ", ".join(str(part.path) for part in sets.values())
        raise UserError(f"Classes must have different names, and {files} or --labels repeat one. Rename it.")
    ids = {label: i for i, label in enumerate(labels)}
    divided = {split: [_CocoItem(part, image) for image in part.images] for split, part in sets.items()}
    notes = [line for split, part in sets.items() if (line := part.crowd_line(split or "train"))]
    divided, dealt = divide(divided, key=lambda item: item.image[1])
    origin = ", ".join(part.path.name for part in sets.values())
    return Source(name, list(labels), divided, lambda item: item.part.annotation(item.image, ids),
                  f"COCO layout, {origin}", _unnamed(sets.values(), left_out or {}), notes + dealt)


def find_parts(source, prefix="instances_"):
    """({split: (JSON file, folder of pictures)}, {reason: what else there is}) of a folder.

    Files with that prefix come before others. The split is a word of the file's name, or of its folder's. A file
    without one is for training where none is named so, and stands under None: nothing says what is val. Raises
    UserError where there are two for one split.
    """
    places = [source, *(path for path in splits.entries(source) if path.is_dir())]
    files = [path for place in places for path in splits.entries(place) if path.suffix.lower() == ".json"]
    wanted = [path for path in files if path.name.startswith(prefix)] or files
    parts, left_out = collections.defaultdict(list), {}
    for file in wanted:
        above = splits.of_folder(source.name) if file.parent == source else splits.of_name(file.parent.name)
        parts[splits.of_name(file.stem) or above].append(file)
    undivided = parts.pop(None, [])
    if "train" not in parts:
        parts[None] = [file for file in undivided if _is_coco(file)]
    for split, found in parts.items():
        if len(found) > 1:
            raise UserError(f"--source must hold one JSON file per split, and {source} has "
                            f"{' and '.join(file.name for file in found)} for {split or 'training, or for no split'}. "
                            "Move one away, or name them by their splits: train.json, val.json.")
    parts = {split: (found[0], _folder_of_pictures(source, split, found[0]))
             for split in (*splits.SPLITS, None) for found in [parts.get(split)] if found}
    if not parts:
        return {}, {}
    taken = [file for file, _ in parts.values()]
    other = [file for file in files if file not in taken]
    left_out["JSON files that are of no split, or not COCO's objects"] = other
    kinds = media.PICTURES | splits.UNREAD_PICTURES | {".xml", ".json"}
    beside = splits.beside(source, [*files, *(folder for _, folder in parts.values())])
    left_out["folders and pictures beside those of the splits"] = [
        path for path in beside if path.is_dir() or path.suffix.lower() in kinds]
    return parts, left_out


def _is_coco(file):
    """Whether a JSON file has pictures and objects; what names a split in vain is no more than a guess."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"images", "annotations"} <= set(content)


def _folder_of_pictures(source, split, file):
    year = file.stem.split("_")[-1]  # instances_val2017 -> val2017
    images = [path for path in splits.entries(source) if path.is_dir() and path.name.lower() == "images"]
    places = [place / year for place in (source, *images)]
    places += [given[split] for given in (splits.folders(place)[0] for place in (source, *images)) if split in given]
    places += [file.parent, *images, source]
    return next((place for place in places if _has_pictures(place)), source / year)


def _has_pictures(folder):
    return folder.is_dir() and any(path.suffix.lower() in media.PICTURES for path in splits.entries(folder))


def _unnamed(sets, left_out):
    """`left_out` and what is in the folders of pictures and in no JSON file."""
    left_out = collections.defaultdict(list, {reason: list(paths) for reason, paths in left_out.items()})
    named = {part.folder / image[1] for part in sets for image in part.images}
    used = named | {part.path for part in sets} | {path for paths in left_out.values() for path in paths}
    found = {path for part in sets if part.folder.is_dir() for path in splits.walk(part.folder)}
    pictures, others = splits.of_kinds(sorted(found - used), media.PICTURES)
    left_out["pictures that no JSON file names"] += pictures
    for reason, paths in others.items():
        left_out[reason] += paths
    return dict(left_out)


class _CocoItem(NamedTuple):
    """An image of a JSON file; its text is what messages and the list of skipped files call it."""

    part: Any
    image: Any

    def __str__(self):
        return self.image[1]


class _CocoFile:
    """One JSON file: `images` [(id, file name, size)], `categories` {id: name}, the objects of each image."""

    def __init__(self, path, folder):
        self.path, self.folder = pathlib.Path(path), pathlib.Path(folder)
        try:
            content = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} must be a COCO JSON file, and cannot be read ({error}).") from None
        content = content if isinstance(content, dict) else {}
        self.categories = self._by_id(content, "categories", lambda item: str(item["name"]).strip())
        images = self._by_id(content, "images", self._image)
        self.images = [(number, *rest) for number, rest in images.items()]
        self._require_one_image_each()
        self.objects, self.repeated = collections.defaultdict(list), collections.Counter()
        seen = {}
        for item in self._entries(content, "annotations"):
            try:
                fields = (item["image_id"], item["category_id"], item.get("bbox"), item.get("iscrowd"),
                          item.get("area"))
                number = item.get("id")
                hash((number, *fields[:2]))
            except (KeyError, TypeError, AttributeError) as error:
                raise self._broken("annotations", item, error) from None
            if fields[0] not in images:
                raise UserError(f"{path} must list the image of every annotation, and annotation {number} is "
                                f"of image {fields[0]}, which it does not list. Correct it.")
            if number is not None and number in seen:
                if repr(seen[number]) != repr(fields):
                    raise UserError(f"{path} must have annotation ids that differ, and repeats {number}. "
                                    "Correct it.")
                self.repeated[fields[0]] += 1
                continue
            seen[number] = fields
            self.objects[fields[0]].append((number, *fields[1:]))
        bboxes = (bbox for objects in self.objects.values() for _, _, bbox, _, _ in objects if _is_box(bbox))
        coco_values.refuse_fractions(itertools.chain.from_iterable(bboxes), path, "boxes")

    def crowd_line(self, split):
        """A sentence where most objects are crowds, else None."""
        flags = [coco_values.flag(crowd) for objects in self.objects.values() for *_, crowd, _ in objects]
        return coco_values.crowd_line(split, flags.count(True), len(flags))

    def annotation(self, image, ids):
        number, filename, sides = image
        boxes_xyxy, labels, is_crowd, areas = [], [], [], []
        for object_id, category, bbox, crowd, area in self.objects[number]:
            label = self.categories.get(category, category)
            if label not in ids:
                raise UserError(f"{self.path} must use the categories {few(ids)}, and annotation {object_id} "
                                f"of {filename} is {label!r}. Correct it, or name the class in --labels.")
            if not _is_box(bbox):
                raise UserError(f"{self.path} must have boxes [left, top, width, height] of finite numbers, "
                                f"none negative in size, and annotation {object_id} of {filename} has "
                                f"{str(bbox)[:60]}. Correct it.")
            if coco_values.flag(crowd) is None:
                raise UserError(f"{self.path} must have 0 or 1 for iscrowd, and annotation {object_id} of {filename} "
                                f"has {str(crowd)[:40]!r}. Correct it.")
            left, top, width, height = bbox
            boxes_xyxy.append((left, top, left + width, top + height))
            labels.append(ids[label])
            is_crowd.append(coco_values.flag(crowd))
            area = coco_values.number(area)
            areas.append(area if area and area > 0 else width * height)
        repairs = ["object listed twice, taken once"] * self.repeated[number]
        try:
            size = coco_values.size(sides)
        except ValueError as error:
            raise UserError(f"{self.path} must have the size of {filename} in whole pixels, and has {error}. Correct "
                            "it.") from None
        if size is None:
            repairs.append("annotation without the size of its picture")
        return Annotation(self.folder / filename, filename, np.reshape(boxes_xyxy, [-1, 4]), labels, size,
                          is_crowd=is_crowd, area=areas, repairs=tuple(repairs))

    def _image(self, item):
        filename = pathlib.PurePosixPath(str(item["file_name"]))
        if filename.is_absolute() or ".." in filename.parts:
            raise UserError(f"{self.path} must name pictures inside {self.folder}, and names {filename}. "
                            "Correct it.")
        return str(filename), {"width": item.get("width"), "height": item.get("height")}

    def _require_one_image_each(self):
        """Two entries of one picture would each teach that the objects of the other are background."""
        first = {}
        for number, filename, _ in self.images:
            if first.setdefault(filename, number) != number:
                raise UserError(f"{self.path} must list every picture once, and lists {filename} as images "
                                f"{first[filename]} and {number}. Put their annotations under one id.")

    def _entries(self, content, key):
        if not isinstance(content.get(key), list):
            raise UserError(f'{self.path} must have a list "{key}", and has none. Give an instances file.')
        return content[key]

    def _by_id(self, content, key, value):
        found = {}
        for item in self._entries(content, key):
            try:
                number, fields = item["id"], value(item)
                repeated = number in found
            except (KeyError, TypeError, AttributeError) as error:
                raise self._broken(key, item, error) from None
            if repeated:
                raise UserError(f"{self.path} must have ids that differ in {key}, and repeats {number}. "
                                "Correct it.")
            found[number] = fields
        return found

    def _broken(self, key, item, error):
        missing = f"lacks {error}" if isinstance(error, KeyError) else "is something else"
        return UserError(f"{self.path} must have whole entries in {key}, and {str(item)[:80]} {missing}. "
                         "Correct it.")


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and np.isfinite(value)


def _is_box(bbox):
    return isinstance(bbox, list) and len(bbox) == 4 and all(map(_is_number, bbox)) and min(bbox[2:]) >= 0


def _id_order(number):
    """Numbers in their order, whether they are text or not, before any other text."""
    text = str(number)
    return (0, int(text), "") if text.isdecimal() else (1, 0, text)


def few(names):
    """The first names, for a message."""
    names = list(names)
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
