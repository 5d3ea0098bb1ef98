"""COCO's JSON files with keypoints: the persons (or animals) of each split, their joints, boxes and areas.

K joints.
"""

import collections
import pathlib
from typing import Any, NamedTuple

import numpy as np

from common import coco_values
from common.errors import UserError
from hourglass import annotations, sides
from hourglass.poses import Body, Person, Source

# Of the joints' distances, from the COCO paper's code; joints of others get MEAN_SIGMA.
SIGMAS = {"nose": .026, "eye": .025, "ear": .035, "shoulder": .079, "elbow": .072, "wrist": .062, "hip": .107,
          "knee": .087, "ankle": .089}
MEAN_SIGMA = 0.062
CROWDS = "crowds"


def source(parts, name, first_pixel=0, seed=0, left_out=None):
    """The `Source` of {split: (JSON file, folder of pictures)}; of a file that stands under None, a tenth of the
    pictures, by a hash of their names and the seed, is val where no file is val's.

    Crowds, and persons whose num_keypoints is 0, are left out and counted, as COCO's own evaluation ignores them; they
    are added to left_out, {reason: names}. A UserError names the file and the id: at once for missing keys, unknown
    image and category ids, repeated ids, sizes and flags that are none, joints or boxes that are all fractions, and
    where no person is left; when a person is loaded for keypoints and boxes that are not finite numbers, as many as
    there should be.
    """
    files = {split: _File(file, folder, first_pixel) for split, (file, folder) in parts.items()}
    first = next(iter(files.values()))
    for file in files.values():
        if (file.labels, file.skeleton) != (first.labels, first.skeleton):
            raise UserError(f"{file.path} must have the keypoints and the skeleton of {first.path}, and has others.")
    divided, notes = annotations.divide(
        {split: [_Item(file, number) for number in file.persons] for split, file in files.items()},
        lambda item: item.file.picture(item.number), seed)
    notes += [line for split, file in files.items()
              if (line := coco_values.crowd_line(split or "train", len(file.left_out[CROWDS]), file.objects))]
    if not any(divided.values()):
        raise UserError(" ".join([f"{first.path} must have persons with joints, and none is left.", *notes]))
    found = annotations.without_persons([(file.folder, file.pictures()) for file in files.values()])
    for some in (left_out or {}, *(file.left_out for file in files.values())):
        for reason, names in some.items():
            found.setdefault(reason, []).extend(names)
    return Source(name, body_of(first.labels, first.skeleton), divided, lambda item: item.file.person(item.number),
                  "COCO keypoints, " + ", ".join(file.path.name for file in files.values()), found,
                  {"first_pixel": first_pixel}, notes)


def body_of(labels, skeleton):
    """The `Body` of COCO's joints, or of others by such names: OKS's sigmas, the torso, pairs."""
    joints = sides.read(labels)
    known = [{word for word in joint.words if word in SIGMAS} for joint in joints]
    sigmas = [SIGMAS[next(iter(words))] if len(words) == 1 else MEAN_SIGMA for words in known]
    torso = [i for side, word in (("left", "shoulder"), ("right", "hip"))
             for i, joint in enumerate(joints) if (joint.side, joint.words) == (side, (word,))]
    return Body(labels, sides.pairs_of(labels), skeleton, "oks", torso=torso if len(torso) == 2 else [], sigmas=sigmas,
                unpaired=sides.unpaired(labels))


class _Item(NamedTuple):
    file: Any
    number: Any  # id of the annotation

    def __str__(self):
        return f"{self.file.path.name} annotation {self.number}"


class _File:
    """One JSON file: `images` {id: (name, size)}, `persons` {id: annotation}, `left_out`, `objects` in all."""

    def __init__(self, path, folder, first_pixel):
        self.path, self.folder, self.first_pixel = pathlib.Path(path), pathlib.Path(folder), first_pixel
        content = annotations.read_json(self.path)
        content = content if isinstance(content, dict) else {}
        self.left_out = collections.defaultdict(list)  # reason -> names
        self.images = {number: self._image(entry) for number, entry in self._by_id(content, "images").items()}
        categories = self._by_id(content, "categories")
        with_joints = {number: entry for number, entry in categories.items() if entry.get("keypoints")}
        kinds = {tuple(map(str, entry["keypoints"])) for entry in with_joints.values()}
        if len(kinds) != 1:
            raise UserError(f"{path} must have one list of keypoints in its categories, and has {len(kinds)}. Give a "
                            "person_keypoints file.")
        self.labels = list(kinds.pop())
        if len(set(self.labels)) < len(self.labels):
            raise UserError(f"{path} must have keypoints of different names, and repeats one. Rename it.")
        self.skeleton = self._skeleton(next(iter(with_joints.values())).get("skeleton") or [])
        self.persons, self.objects = {}, 0
        for number, entry in self._by_id(content, "annotations").items():
            missing = [key for key in ("image_id", "category_id", "keypoints", "bbox") if key not in entry]
            category = entry.get("category_id")
            if category is not None and not (isinstance(category, int) and category in categories):
                raise UserError(f"{path} must list the category of every annotation, and annotation {number} is of "
                                f"category {category!r}, which it does not list. Correct it.")
            if category in categories and category not in with_joints:
                self.left_out["objects of a category without joints"].append(str(_Item(self, number)))
            elif missing:
                raise UserError(f"{path} must have whole annotations, and {number} lacks {', '.join(missing)}. "
                                "Correct it.")
            elif not isinstance(entry["image_id"], int) or entry["image_id"] not in self.images:
                raise UserError(f"{path} must list the image of every annotation, and annotation {number} is of image "
                                f"{entry['image_id']!r}, which it does not list. Correct it.")
            else:
                self._sort(number, entry)
        for key, what, step in (("keypoints", "joints", 3), ("bbox", "boxes", 2)):
            coco_values.refuse_fractions(
                (value for entry in self.persons.values() for value in _coordinates(entry[key], step)), path, what)

    def _sort(self, number, entry):
        """Takes an object with joints as a person, or puts it down as left out."""
        self.objects += 1
        crowd, count = coco_values.flag(entry.get("iscrowd")), _count(entry["keypoints"])
        if crowd is None:
            raise UserError(f"{self.path} must have 0 or 1 for iscrowd, and annotation {number} has "
                            f"{str(entry['iscrowd'])[:40]!r}. Correct it.")
        if crowd:
            self.left_out[CROWDS].append(str(_Item(self, number)))
        elif not count:
            self.left_out["persons without annotated joints"].append(str(_Item(self, number)))
        elif entry.get("num_keypoints") is not None and coco_values.number(entry["num_keypoints"]) == 0:
            self.left_out["persons with joints whose num_keypoints is 0"].append(str(_Item(self, number)))
        else:
            self.persons[number] = entry

    def picture(self, number):
        """The name of the picture of a person."""
        return self.images[self.persons[number]["image_id"]][0]

    def pictures(self):
        """The names of all pictures that hold persons."""
        return set(map(self.picture, self.persons))

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
        area, flat, repairs = coco_values.number(entry.get("area")), min(w, h) == 0, []
        if flat:
            repairs.append("box without area, place taken from the joints")
        if not area or area < 0:
            area = w * h
            repairs.append("person without an area, that of the box taken")
        if size is None:
            repairs.append("annotation without the size of its picture")
        return Person(self.folder / name, name, keypoints[:, :2] - self.first_pixel + 0.5,
                      keypoints[:, 2].astype(np.int64), None if flat else (x + w / 2, y + h / 2),
                      None if flat else max(w, h) / 200, size, (x, y, w, h), area, image_id=entry["image_id"],
                      person_id=number, repairs=tuple(repairs))

    def _image(self, entry):
        name = str(entry.get("file_name", ""))
        annotations.inside(self.folder, name, self.path)
        try:
            return str(pathlib.PurePosixPath(name)), coco_values.size(entry)
        except ValueError as error:
            raise UserError(f"{self.path} must have the size of {name} in whole pixels, and has {error}. Correct "
                            "it.") from None

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
            if number in found:
                self.left_out[f"{key} listed twice, taken once"].append(f"{self.path.name} {number}")
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
    """How many joints of a flat list x, y, visible, ... are annotated; 1 where it is none, which is said later."""
    return sum(1 for seen in keypoints[2::3] if coco_values.number(seen) != 0) if isinstance(keypoints, list) else 1


def _coordinates(values, step):
    """The x and y of a list x, y, visible, ... (step 3) whose joints are annotated, or of a box (step 2)."""
    for start in range(0, len(values) if isinstance(values, list) else 0, step):
        group = values[start:start + step]
        if step == 2 or coco_values.number(group[-1]) != 0:
            yield from (number for number in map(coco_values.number, group[:2]) if number is not None)
