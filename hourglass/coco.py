"""COCO's JSON files with keypoints: the persons (or animals) of each split, their joints, boxes and areas.

K joints.
"""

import collections
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from common.errors import UserError
from hourglass.poses import Body, Person, Source, pairs_of

# Of the joints' distances, from the COCO paper's code; joints of others get MEAN_SIGMA.
SIGMAS = {"nose": .026, "eye": .025, "ear": .035, "shoulder": .079, "elbow": .072, "wrist": .062, "hip": .107,
          "knee": .087, "ankle": .089}
MEAN_SIGMA = 0.062


def source(parts, name, first_pixel=0):
    """The `Source` of {split: (JSON file, folder of pictures)}.

    Crowds, and persons whose num_keypoints is 0, are left out and counted, as COCO's own evaluation ignores them.
    A UserError names the file and the id: at once for missing keys, unknown image ids and repeated ids; when a
    person is loaded for keypoints and boxes that are not finite numbers, as many as there should be.
    """
    files = {split: _File(file, folder, first_pixel) for split, (file, folder) in parts.items()}
    first = next(iter(files.values()))
    for file in files.values():
        if (file.labels, file.skeleton) != (first.labels, first.skeleton):
            raise UserError(f"{file.path} must have the keypoints and the skeleton of {first.path}, and has others.")
    labels = first.labels
    sigmas = [SIGMAS.get(label.split("_")[-1], MEAN_SIGMA) for label in labels]
    torso = [labels.index(joint) for joint in ("left_shoulder", "right_hip") if joint in labels]
    body = Body(labels, pairs_of(labels), first.skeleton, "oks", torso=torso if len(torso) == 2 else [], sigmas=sigmas)
    splits = {split: [_Item(file, number) for number in file.persons] for split, file in files.items()}
    return Source(name, body, splits, lambda item: item.file.person(item.number),
                  "COCO keypoints, " + ", ".join(file.path.name for file in files.values()),
                  {split: dict(file.left_out) for split, file in files.items()})


class _Item(NamedTuple):
    file: Any
    number: Any  # id of the annotation

    def __str__(self):
        return f"{self.file.path.name} annotation {self.number}"


class _File:
    """One JSON file: `images` {id: (name, size)}, `persons` {id: annotation}, joints and what is left out."""

    def __init__(self, path, folder, first_pixel):
        self.path, self.folder, self.first_pixel = pathlib.Path(path), pathlib.Path(folder), first_pixel
        try:
            content = json.loads(self.path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path} must be a COCO JSON file, and cannot be read ({error}).") from None
        content = content if isinstance(content, dict) else {}
        self.images = {number: self._image(entry) for number, entry in self._by_id(content, "images").items()}
        with_joints = {number: entry for number, entry in self._by_id(content, "categories").items()
                       if entry.get("keypoints")}
        kinds = {tuple(map(str, entry["keypoints"])) for entry in with_joints.values()}
        if len(kinds) != 1:
            raise UserError(f"{path} must have one list of keypoints in its categories, and has {len(kinds)}. Give a "
                            "person_keypoints file.")
        self.labels = list(kinds.pop())
        self.skeleton = self._skeleton(next(iter(with_joints.values())).get("skeleton", []))
        self.persons, self.left_out = {}, collections.Counter()
        for number, entry in self._by_id(content, "annotations").items():
            missing = [key for key in ("image_id", "category_id", "keypoints", "bbox") if key not in entry]
            if entry.get("category_id", None) not in [None, *with_joints]:
                self.left_out["objects of a category without joints"] += 1
            elif missing:
                raise UserError(f"{path} must have whole annotations, and {number} lacks {', '.join(missing)}. "
                                "Correct it.")
            elif not isinstance(entry["image_id"], int) or entry["image_id"] not in self.images:
                raise UserError(f"{path} must list the image of every annotation, and annotation {number} is of image "
                                f"{entry['image_id']}, which it does not list. Correct it.")
            elif entry.get("iscrowd"):
                self.left_out["crowds"] += 1
            elif not entry.get("num_keypoints", _count(entry["keypoints"])):
                self.left_out["persons without annotated joints"] += 1
            else:
                self.persons[number] = entry

    def person(self, number):
        entry = self.persons[number]
        name, size = self.images[entry["image_id"]]
        where = f"annotation {number} of {self.path}"
        keypoints = self._numbers(entry["keypoints"], 3 * len(self.labels), "keypoints", where).reshape(-1, 3)
        x, y, w, h = self._numbers(entry["bbox"], 4, "bbox", where)
        if not np.isin(keypoints[:, 2], (0, 1, 2)).all():
            raise UserError(f"{where} must have visibilities 0, 1 or 2, and has others. Correct it.")
        if min(w, h) < 0:
            raise UserError(f"{where} must have a box with positive sides, and has {w:g} x {h:g}. Correct it.")
        area = entry.get("area")
        known = isinstance(area, (int, float)) and np.isfinite(area) and area > 0
        flat = min(w, h) == 0
        return Person(self.folder / name, name, keypoints[:, :2] - self.first_pixel + 0.5,
                      keypoints[:, 2].astype(np.int64), None if flat else (x + w / 2, y + h / 2),
                      None if flat else max(w, h) / 200, size, (x, y, w, h), float(area) if known else w * h,
                      image_id=entry["image_id"], person_id=number,
                      repairs=("box without area, place taken from the joints",) if flat else ())

    def _image(self, entry):
        name = pathlib.PurePosixPath(str(entry.get("file_name", "")))
        if name.is_absolute() or ".." in name.parts or not name.parts:
            raise UserError(f"{self.path} must name pictures inside {self.folder}, and names {str(name)!r}. "
                            "Correct it.")
        size = entry.get("width"), entry.get("height")
        return str(name), size if all(isinstance(side, int) and side > 0 for side in size) else None

    def _skeleton(self, limbs):
        try:
            found = [(int(a) - 1, int(b) - 1) for a, b in limbs]  # they count from 1
        except (TypeError, ValueError):
            found = [(-1, -1)]
        if any(not 0 <= joint < len(self.labels) for limb in found for joint in limb):
            raise UserError(f"{self.path} must have a skeleton of pairs of joints 1 to {len(self.labels)}, and has "
                            f"{str(limbs)[:60]}. Correct it.")
        return found

    def _by_id(self, content, key):
        if not isinstance(content.get(key), list):
            raise UserError(f'{self.path} must have a list "{key}", and has none. Give a person_keypoints file.')
        found = {}
        for entry in content[key]:
            number = entry.get("id") if isinstance(entry, dict) else None
            if not isinstance(number, int):
                raise UserError(f"{self.path} must have whole entries with an id in {key}, and has {str(entry)[:80]}. "
                                "Correct it.")
            if number in found and found[number] != entry:
                raise UserError(f"{self.path} must have ids that differ in {key}, and repeats {number}. Correct it.")
            found[number] = entry
        return found

    @staticmethod
    def _numbers(value, count, key, where):
        try:
            found = np.asarray(value, np.float64).reshape(-1)
        except (TypeError, ValueError):
            found = np.zeros(0)
        if len(found) != count or not np.isfinite(found).all():
            raise UserError(f"{where} must have {count} finite numbers in {key}, and has {str(value)[:60]}. "
                            "Correct it.")
        return found


def _count(keypoints):
    return sum(1 for seen in keypoints[2::3] if seen) if isinstance(keypoints, list) else 1
