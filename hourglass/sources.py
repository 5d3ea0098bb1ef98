"""Readers of the data sets that people have: MPII as JSON and as its own .mat, Leeds Sports Poses, COCO keypoints.

All of them give joints in continuous pixels, pixel i from i to i + 1, and say what the first pixel of the source
is: where counting starts at 1 (MPII, LSP: Matlab), x becomes x - 0.5, and where it starts at 0 (COCO, LSP's
extended set, JSON of your own), x + 0.5, so that a joint on a whole number lies in the middle of its pixel.

K joints.
"""

import collections
import hashlib
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from common import detection_coco
from common.errors import UserError
from hourglass import coco, demo
from hourglass.poses import LSP, MPII, Person, Source

HEAD_BIAS = 0.6        # MPII's evaluation code: of the diagonal of the head's box
_SPLITS = {"train": "train", "valid": "val", "val": "val", "validation": "val", "test": "test"}


def find(name, source=None, first_pixel=None, seed=0):
    """The `Source` of data set `name` in `source`, a folder or its annotation file; the demo needs none.

    Looked for in this order, and the first alone if `name` is mpii, lsp or coco_keypoints and asks for it:
    train.json and valid.json in annot/ or in the folder itself (MPII's 16 joints as the article has them), MPII's
    .mat file, joints.mat of LSP, *keypoints*.json of COCO. first_pixel: the number of the first pixel, 0 or 1,
    None as the module's docstring says. Raises UserError.
    """
    if source is None:
        if name == "demo":
            return demo.source(seed=seed)
        raise UserError(f"--source must name the folder of {name} (MPII, LSP or COCO keypoints); only demo is made up "
                        "on the spot.")
    place = pathlib.Path(source)
    if not place.exists():
        raise UserError(f"--source must be a folder with MPII, LSP or COCO keypoints, and {place} does not exist.")
    for reader in (_find_json, _find_mpii_mat, _find_lsp, _find_coco):
        if reader is not _WANTED.get(name, reader) and not (name == "mpii" and reader is _find_mpii_mat):
            continue
        found = reader(place, name, first_pixel)
        if found:
            return found
    raise UserError(
        f"--source must hold annot/train.json and annot/valid.json with images/ (MPII as JSON), MPII's .mat file, "
        f"joints.mat (LSP) or annotations/person_keypoints_train2017.json (COCO), and {place} holds nothing that "
        f"{name} could be. Unpack the data there; --dataset names what it is.")


# MPII as JSON: a list of {"joints_vis", "joints", "image", "scale", "center"}.

def _find_json(place, name, first_pixel):
    files = [place] if place.suffix == ".json" else [*place.glob("annot/*.json"), *place.glob("*.json")]
    parts = {}
    for file in sorted(files):
        split = _SPLITS.get(file.stem)
        if split and split not in parts:
            content = _read_json(file)
            if isinstance(content, list):
                parts[split] = (file, content)
    if not parts:
        return None
    wrong = [file for file in sorted(files) if file.stem in _SPLITS and _SPLITS[file.stem] not in parts]
    if wrong:
        raise UserError(f"{wrong[0]} must be a list of persons, as the other split is. Correct it or move it away.")
    first = (1 if name == "mpii" else 0) if first_pixel is None else first_pixel
    # MPII's centre is the middle of the body with the legs drawn up: as all that crop it do, it is moved down.
    shift = 15.0 if name == "mpii" else 0.0
    splits = {split: _JsonSplit(file, entries, _pictures(file), first, shift) for split, (file, entries)
              in parts.items()
              if split != "test" or any(isinstance(entry, dict) and "joints" in entry for entry in entries)}
    order = [split for split in ("train", "val", "test") if split in splits]
    origin = "MPII JSON, " + ", ".join(parts[split][0].name for split in order)
    return Source(name, MPII, {split: splits[split] for split in order}, lambda item: item.load(), origin)


class _JsonItem(NamedTuple):
    part: Any
    number: int

    def __str__(self):
        return f"{self.part.file.name} entry {self.number}"

    def load(self):
        return self.part.person(self.number)


class _JsonSplit:
    """The entries of one file."""

    def __init__(self, file, entries, folder, first, shift):
        self.file, self.entries, self.folder, self.first, self.shift = file, entries, folder, first, shift
        names = (str(entry.get("image")) if isinstance(entry, dict) else "" for entry in entries)
        self._ids = {picture: i for i, picture in enumerate(dict.fromkeys(names))}

    def __len__(self):
        return len(self.entries)

    def __getitem__(self, number):
        if not 0 <= number < len(self):
            raise IndexError(number)
        return _JsonItem(self, number)

    def person(self, number):
        entry, where = self.entries[number], f"entry {number} of {self.file}"
        keys = ("joints", "joints_vis", "image", "scale", "center")
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise UserError(f"{where} must have {', '.join(keys)}, and lacks {', '.join(missing)}. Correct it.")
        count = len(MPII.labels)
        joints_xy = _numbers(entry["joints"], (count, 2), "joints", where, finite=False)
        seen = _numbers(entry["joints_vis"], (count,), "joints_vis", where)
        scale = float(_numbers(entry["scale"], (), "scale", where, finite=False))
        center = _numbers(entry["center"], (2,), "center", where, finite=False)
        # -1 says that it is not known, which `poses.mend` sees as well from the moved one.
        moved = center + [0, self.shift * scale] if (center > 0).all() else center
        return Person(inside(self.folder, entry["image"], where), str(entry["image"]),
                      joints_xy - self.first + 0.5, np.where(seen > 0, 2, 0),
                      tuple(moved - self.first + 0.5) if (center > 0).all() else (-1.0, -1.0), scale,
                      image_id=self._ids[str(entry["image"])], person_id=number)


# MPII's own file.

def _find_mpii_mat(place, name, first_pixel):
    files = [place] if place.suffix == ".mat" else [*place.glob("*.mat"), *place.glob("*/*.mat"),
                                                    *place.glob("*/annot/*.mat")]
    for file in sorted(files):
        if file.name.startswith("mpii") or file == place:
            content = load_mat(file)
            if "RELEASE" in content:
                return _mpii_mat(file, content["RELEASE"], name, 1 if first_pixel is None else first_pixel)
    return None


def _mpii_mat(file, release, name, first):
    """The persons with joints of the pictures for training; a tenth of these pictures, by their md5, is val.

    MPII keeps the joints of its test set to itself, and the file says nothing of the 2,958 persons that are
    usually validated on: annot/valid.json does.
    """
    folder, people, left_out = _pictures(file), collections.defaultdict(list), collections.Counter()
    pictures, train = _several(release, "annolist"), _several(release, "img_train")
    if not pictures or len(pictures) != len(train):
        raise UserError(f"{file} must have an annolist and as many img_train, and has {len(pictures)} and "
                        f"{len(train)}: it is not MPII's file, or not whole.")
    for number, (picture, wanted) in enumerate(zip(pictures, train)):
        if not wanted:
            continue
        image = str(_field(_field(picture, "image", file), "name", file))
        for place, rect in enumerate(_several(picture, "annorect")):
            body = _several(rect, "annopoints")
            points = _several(body[0], "point") if body else []
            if points:
                people[image].append(_MatPerson(file, folder, image, number, place, rect, points, first))
            else:
                left_out["persons without annotated joints"] += 1
    splits = split_by_name(people)
    return Source(name, MPII, splits, lambda item: item.load(), f"MPII, {file.name}", {"train": dict(left_out)})


class _MatPerson(NamedTuple):
    file: Any
    folder: Any
    image: str
    number: int
    place: int
    rect: Any
    points: list
    first: int

    def __str__(self):
        return f"{self.image} person {self.place}"

    def load(self):
        where = f"{self.file}, {self}"
        joints_xy, visible = np.zeros([len(MPII.labels), 2]), np.zeros(len(MPII.labels), np.int64)
        for point in self.points:
            joint = int(_number(point, "id", where))
            if not 0 <= joint < len(MPII.labels):
                raise UserError(f"{where} must have joints 0 to {len(MPII.labels) - 1}, and has {joint}. Correct it.")
            joints_xy[joint] = _number(point, "x", where), _number(point, "y", where)
            # A number or a letter; neck and head top have nothing there.
            occluded = [str(value).strip() for value in _several(point, "is_visible")] in (["0"], ["0.0"])
            visible[joint] = 1 if occluded else 2
        center, scale, head_size = None, None, 0.0
        if _several(self.rect, "scale"):
            scale = _number(self.rect, "scale", where)
        position = _several(self.rect, "objpos")
        if position and scale:
            center = (_number(position[0], "x", where) - self.first + 0.5,
                      _number(position[0], "y", where) + 15 * scale - self.first + 0.5)
        if all(_several(self.rect, key) for key in ("x1", "y1", "x2", "y2")):
            x1, y1, x2, y2 = (_number(self.rect, key, where) for key in ("x1", "y1", "x2", "y2"))
            head_size = HEAD_BIAS * float(np.hypot(x2 - x1, y2 - y1))
        return Person(inside(self.folder, self.image, where), self.image, joints_xy - self.first + 0.5, visible,
                      center, scale, head_size=head_size, image_id=self.number,
                      person_id=1000 * self.number + self.place)


# Leeds Sports Poses.

def _find_lsp(place, name, first_pixel):
    files = [place] if place.suffix == ".mat" else [*place.glob("joints.mat"), *place.glob("*/joints.mat")]
    if len(files) > 1:
        raise UserError(f"--source must hold one joints.mat, and {place} has {', '.join(map(str, sorted(files)))}. "
                        "Give one of them.")
    return _lsp(sorted(files)[0], name, first_pixel) if files else None


def _lsp(file, name, first_pixel):
    """LSP: joints [3, 14, N], of which the second thousand is for testing, here val; the third row is 1 where a
    joint is occluded. Its extended training set: [14, 3, N]; the third column is 0 where a joint could not be
    annotated, and a tenth, by the md5 of the names, is val."""
    joints = np.asarray(load_mat(file).get("joints", np.zeros(0)))
    extended = joints.ndim == 3 and joints.shape[:2] == (14, 3)
    if not extended and (joints.ndim != 3 or joints.shape[:2] != (3, 14)):
        raise UserError(f"{file} must have joints of 3 x 14 x N or 14 x 3 x N numbers, and has "
                        f"{' x '.join(map(str, joints.shape))}.")
    joints = joints if extended else joints.swapaxes(0, 1)                         # [14, 3, N]
    first = (0 if extended else 1) if first_pixel is None else first_pixel
    folder, digits = _pictures(file), 5 if extended else 4

    def load(item):
        number = int(item[2:-4]) - 1
        third = joints[:, 2, number]
        visible = np.where(third > 0, 2, 0) if extended else np.where(third > 0, 1, 2)
        return Person(folder / item, item, joints[:, :2, number] - first + 0.5, visible, image_id=number,
                      person_id=number)

    names = [f"im{i + 1:0{digits}d}.jpg" for i in range(joints.shape[2])]
    if extended or len(names) < 2000:
        splits = split_by_name({each: [each] for each in names})
    else:
        splits = {"train": names[:1000], "val": names[1000:]}
    return Source(name, LSP, splits, load, f"Leeds Sports Poses, {file.parent.name}/{file.name}")


# COCO keypoints.

def _find_coco(place, name, first_pixel):
    parts, _ = detection_coco.find_parts(place, "person_keypoints_") if place.is_dir() else ({}, {})
    if None in parts:  # a file whose name says no split
        parts["train"] = parts.pop(None)
    return coco.source(parts, name, 0 if first_pixel is None else first_pixel) if parts else None


_WANTED = {"mpii": _find_json, "lsp": _find_lsp, "coco_keypoints": _find_coco}


# What they share.

def split_by_name(people):
    """{"train", "val"} of {picture: persons}: val are those of the tenth of the pictures with the smallest md5."""
    ordered = sorted(people, key=lambda picture: hashlib.md5(picture.encode()).digest())
    held_out = set(ordered[:max(1, len(ordered) // 10)]) if len(ordered) > 1 else set()
    splits = {"train": [person for picture in people if picture not in held_out for person in people[picture]],
              "val": [person for picture in people if picture in held_out for person in people[picture]]}
    return {split: persons for split, persons in splits.items() if persons}


def inside(folder, name, where):
    """The path of picture `name` in `folder`; a UserError where the name leads out of it."""
    relative = pathlib.PurePosixPath(str(name))
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise UserError(f"{where} must name a picture inside {folder}, and names {str(name)[:80]!r}. Correct it.")
    return folder / relative


def load_mat(file):
    """The variables of a Matlab file. Raises UserError without scipy, and for what cannot be read."""
    try:
        import scipy.io
    except ImportError:
        raise UserError("Matlab files need scipy, which is not installed: pip install -e '.[mat]'.") from None
    try:
        return scipy.io.loadmat(file, struct_as_record=False, squeeze_me=False)
    except Exception as error:  # a damaged file can bring about anything in there
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} must be a Matlab file, and cannot be read ({words}).") from error


def _pictures(file):
    """The folder of pictures that belongs to an annotation file: images/ beside it or above, or its own."""
    for folder in (file.parent, file.parent.parent, file.parent.parent.parent):
        if (folder / "images").is_dir():
            return folder / "images"
    return file.parent


def _read_json(file):
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} must be a JSON file, and cannot be read ({error}).") from None


def _numbers(value, shape, key, where, finite=True):
    """float64 of that shape; a UserError where it is something else."""
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        found = np.full([1, 1, 1], np.nan)
    if found.shape != shape or (finite and not np.isfinite(found).all()):
        wanted = " x ".join(map(str, shape)) or "one"
        raise UserError(f"{where} must have {wanted} numbers in {key}, and has {str(value)[:60]}. Correct it.")
    return found


def _field(struct, key, file):
    """The one thing that Matlab struct has under `key`, or its list of things."""
    values = _several(struct, key)
    if not values:
        raise UserError(f"{file} must have {key}, and lacks it: it is not MPII's file, or not whole.")
    return values[0]


def _several(struct, key):
    """The elements of the array that a Matlab struct, or an array of one, has under `key`; [] where it has
    none."""
    if isinstance(struct, np.ndarray):
        struct = struct.reshape(-1)[0] if struct.size else None
    value = getattr(struct, key, None)
    if value is None:
        return []
    return list(value.reshape(-1)) if isinstance(value, np.ndarray) else [value]


def _number(struct, key, where):
    values = _several(struct, key)
    try:
        number = float(np.asarray(values[0]).reshape(-1)[0])
    except (IndexError, TypeError, ValueError):
        number = np.nan
    if not np.isfinite(number):
        raise UserError(f"{where} must have a finite number in {key}, and has {values[:1]}. Correct it.")
    return number
