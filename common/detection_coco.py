"""The COCO layout: JSON files with the objects of each split, and the folders of their pictures."""

import collections
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from common.detection import Annotation, Source
from common.errors import UserError

SPLITS = ("train", "val", "test")
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp")
_SPLIT_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
                "test": "test", "testing": "test"}


def coco(parts, name="coco", labels=None):
    """The Source of COCO JSON files: `parts` maps a split to (JSON file, folder of pictures).

    Category ids become 0, 1, ... in their order. Crowd objects are kept and marked. An object that is listed
    twice is taken once. A UserError names the file and the id: at once for missing keys, unknown or repeated
    image ids and repeated ids; when the picture is loaded for boxes that are not four finite numbers or have
    a negative side.
    """
    sets = {split: _CocoFile(file, images) for split, (file, images) in parts.items()}
    if labels is None:
        categories = {}
        for part in sets.values():
            for number, label in part.categories.items():
                if categories.setdefault(number, label) != label:
                    raise UserError(f"{part.path} must have the categories of the other splits, and calls "
                                    f"{number} {label!r} instead of {categories[number]!r}. Correct it.")
        labels = [categories[number] for number in sorted(categories)]
    if len(set(labels)) < len(labels):
        files = ", ".join(str(part.path) for part in sets.values())
        raise UserError(f"Classes must have different names, and {files} or --labels repeat one. Rename it.")
    ids = {label: i for i, label in enumerate(labels)}
    splits = {split: [_CocoItem(part, image) for image in part.images] for split, part in sets.items()}
    origin = ", ".join(part.path.name for part in sets.values())
    return Source(name, list(labels), splits, lambda item: item.part.annotation(item.image, ids),
                  f"COCO layout, {origin}")


def find_parts(source, prefix="instances_"):
    """{split: (JSON file, folder of pictures)} found in a folder; files with that prefix come before others."""
    files = [*source.glob("annotations/*.json"), *source.glob("*.json"), *source.glob("*/*.json")]
    instances = [file for file in files if file.name.startswith(prefix)]
    parts = {}
    for file in sorted(dict.fromkeys(instances or files)):
        words = "".join(c if c.isalpha() else " " for c in f"{file.stem} {file.parent.name}".lower()).split()
        split = next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
        if split is None:
            continue
        if split in parts:
            raise UserError(f"--source must hold one JSON file per split, and {source} has "
                            f"{parts[split][0].name} and {file.name} for {split}. Move one away.")
        year = file.stem.split("_")[-1]  # instances_val2017 -> val2017
        places = [source / year, source / "images" / year, source / split, source / "images" / split,
                  file.parent, source / "images", source]
        parts[split] = (file, next((place for place in places if _has_pictures(place)), source / year))
    return {split: parts[split] for split in SPLITS if split in parts}


def _has_pictures(folder):
    return folder.is_dir() and any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())


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
        self.categories = self._by_id(content, "categories", lambda item: str(item["name"]))
        images = self._by_id(content, "images", self._image)
        self.images = [(number, *rest) for number, rest in images.items()]
        self.objects, self.repeated = collections.defaultdict(list), collections.Counter()
        seen = {}
        for item in self._entries(content, "annotations"):
            try:
                fields = (item["image_id"], item["category_id"], item.get("bbox"), item.get("iscrowd", 0),
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

    def annotation(self, image, ids):
        number, filename, size = image
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
            left, top, width, height = bbox
            boxes_xyxy.append((left, top, left + width, top + height))
            labels.append(ids[label])
            is_crowd.append(bool(crowd))
            areas.append(area if _is_number(area) and area > 0 else width * height)
        repairs = ("object listed twice, taken once",) * self.repeated[number]
        return Annotation(self.folder / filename, filename, np.reshape(boxes_xyxy, [-1, 4]), labels, size,
                          is_crowd=is_crowd, area=areas, repairs=repairs)

    def _image(self, item):
        filename = pathlib.PurePosixPath(str(item["file_name"]))
        if filename.is_absolute() or ".." in filename.parts:
            raise UserError(f"{self.path} must name pictures inside {self.folder}, and names {filename}. "
                            "Correct it.")
        size = item.get("width"), item.get("height")
        known = all(isinstance(side, int) and side > 0 for side in size)
        return str(filename), size if known else None

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


def few(names):
    names = list(names)
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
