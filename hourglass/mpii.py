"""Readers of MPII: the JSON lists that the article and most networks train from, and MPII's own .mat file.

J joints in MPII's order, 16; P persons.
"""

import collections
from typing import Any, NamedTuple

import numpy as np

from common import splits
from common.errors import UserError
from hourglass import annotations
from hourglass.poses import MPII, Person, Source

HEAD_BIAS = 0.6        # MPII's evaluation code: of the diagonal of the head's box
# MPII's centre is the middle of the body with the legs drawn up: as all that crop it do, it is moved down by this
# times the scale.
CENTER_SHIFT = 15.0
NAME = "mpii"          # the data set whose centres are moved, and whose pixels count from 1

# Why some are left out.
HIDDEN = "pictures of the test set, whose joints are not published"
NO_JOINTS = "persons without annotated joints"


# JSON: lists of {"joints_vis", "joints", "image", "scale", "center"}.

def find_json(place, name, options):
    """The `Source` of the lists of persons in a folder, or of one such file; None where there is none.

    A file without a split's word in its name is for training where none is named so; a tenth of its pictures is val
    where no file is. Head boxes are taken from gt_valid.mat beside valid.json, as MPII's download has it. Raises
    UserError.
    """
    files, parts = _annotation_files(place), collections.defaultdict(list)
    for file in filter(_is_json_list, files):
        entries = annotations.read_json(file)
        if _are_persons(entries):
            parts[splits.of_name(file.stem)].append((file, entries))
    if "train" in parts:
        parts.pop(None, None)
    for split, found in parts.items():
        if len(found) > 1:
            raise UserError(f"--source must hold one list of persons per split, and {place} has "
                            f"{' and '.join(file.name for file, _ in found)} for {split or 'training'}. Move one away.")
    if not parts:
        return None
    for file in files:
        if file.suffix.lower() == ".json" and splits.of_name(file.stem) not in (None, "test", *parts):
            raise UserError(f"{file} must be a list of persons, as the other split is. Correct it or move it away.")
    first, shift = options.first_pixel, options.center_shift
    first = (1 if name == NAME else 0) if first is None else first
    shift = (CENTER_SHIFT if name == NAME else 0.0) if shift is None else shift
    read = {split: _JsonSplit(*part, first, shift) for split, (part,) in parts.items()}
    left_out = _left_out_of_json(files, read)
    divided, notes = annotations.divide({split: list(part) for split, part in read.items()},
                                        lambda item: item.part.names[item.number], options.seed)
    facts = {"first_pixel": first, "center_shift": shift, "head_boxes": {
        split: sum(item.part.has_head(item.number) for item in items) for split, items in divided.items()}}
    origin = "MPII JSON, " + ", ".join(part.file.name for part in read.values())
    return Source(name, MPII, divided, lambda item: item.load(), origin, left_out, facts, notes)


def _left_out_of_json(files, read):
    """{reason: names} of what {split: `_JsonSplit`} leaves out; takes a test set without joints out of it."""
    taken = {file for part in read.values() for file in (part.file, part.heads and part.heads.file)}
    left_out = annotations.without_persons([(part.folder, part.names) for part in read.values()])
    left_out["annotation files of no split, or of something else"] = [file for file in files if file not in taken]
    if "test" in read and not any("joints" in entry for entry in read["test"].entries if isinstance(entry, dict)):
        part = read.pop("test")
        if not read:
            raise UserError(f"{part.file} must have the joints of its persons, and has none. Give a training set.")
        left_out["persons of the test set, whose joints are not published"] = list(part)
    return left_out


def _annotation_files(place):
    if place.is_file():
        return [place]
    folders = [place, *(path for path in splits.entries(place) if path.is_dir() and path.name.lower() == "annot")]
    return [path for folder in folders for path in splits.entries(folder) if path.suffix.lower() in (".json", ".mat")]


def _is_json_list(file):
    """Whether a file is a list in JSON, by its first letter: those of COCO are large, and no lists."""
    if file.suffix.lower() != ".json":
        return False
    try:
        with open(file, "rb") as opened:
            return opened.read(1000).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["
    except OSError:
        return False


def _are_persons(entries):
    """Whether a list is one of persons, broken ones or none among them, and not one of something else."""
    return not entries or any(isinstance(entry, dict) and {"joints", "joints_vis", "center"} & set(entry)
                              for entry in entries)


class _JsonItem(NamedTuple):
    part: Any
    number: int

    def __str__(self):
        return f"{self.part.file.name} entry {self.number}"

    def load(self):
        return self.part.person(self.number)


class _JsonSplit:
    """The entries of one file, and the head boxes beside it; iterates over its items."""

    def __init__(self, file, entries, first, shift):
        self.file, self.entries, self.first, self.shift = file, entries, first, shift
        self.folder = annotations.pictures_of(file)
        self.names = [str(entry.get("image")) if isinstance(entry, dict) else "" for entry in self.entries]
        self._ids = {picture: i for i, picture in enumerate(dict.fromkeys(self.names))}
        annotations.refuse_fractions([point for entry in entries for point in _seen(entry)[1]], file)
        heads = file.parent / f"gt_{file.stem}.mat"
        self.heads = _Heads(heads, self) if heads.is_file() else None

    def __iter__(self):
        return (_JsonItem(self, number) for number in range(len(self.entries)))

    def has_head(self, number):
        """Whether the head's box is known."""
        return self.heads is not None and bool(self.heads.sizes[number] > 0)

    def person(self, number):
        entry, where = self.entries[number], f"entry {number} of {self.file}"
        keys = ("joints", "joints_vis", "image", "scale", "center")
        missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
        if missing:
            raise UserError(f"{where} must have {', '.join(keys)}, and lacks {', '.join(missing)}. Correct it.")
        count = len(MPII.labels)
        joints_xy = annotations.numbers(entry["joints"], (count, 2), "joints", where, finite=False)
        seen = annotations.numbers(entry["joints_vis"], (count,), "joints_vis", where) > 0
        scale = float(annotations.numbers(entry["scale"], (), "scale", where, finite=False))
        center = annotations.numbers(entry["center"], (2,), "center", where, finite=False)
        head_size, repairs = 0.0, ()
        if self.heads is not None:
            head_size, hidden = self.heads.sizes[number], seen & self.heads.missing[number]
            repairs = (f"joint that {self.heads.file.name} calls missing, not annotated",) * int(hidden.sum())
            seen &= ~hidden
        # -1 says that it is not known, which `poses.mend` sees as well from the moved one.
        moved = center + [0, self.shift * scale] if (center > 0).all() else center
        return Person(annotations.inside(self.folder, entry["image"], where), str(entry["image"]),
                      joints_xy - self.first + 0.5, np.where(seen, 2, 0),
                      tuple(moved - self.first + 0.5) if (center > 0).all() else (-1.0, -1.0), scale,
                      head_size=float(head_size), image_id=self._ids[str(entry["image"])], person_id=number,
                      repairs=repairs)


def _seen(entry):
    """(numbers [N], x and y [N, 2]) of an entry's annotated joints; none where it is broken, which
    `_JsonSplit.person` says."""
    try:
        joints_xy, seen = np.asarray(entry["joints"], np.float64), np.asarray(entry["joints_vis"], np.float64) > 0
        if joints_xy.shape == (len(MPII.labels), 2) and seen.shape == (len(MPII.labels),):
            return np.flatnonzero(seen), joints_xy[seen]
    except (TypeError, ValueError, KeyError, IndexError):
        pass
    return np.zeros(0, int), np.zeros([0, 2])


class _Heads:
    """MPII's gt_valid.mat: `sizes` [P] of the persons' heads, 0.6 times the diagonal of their boxes, and `missing`
    [P, J], the joints that do not count; in the order of the JSON file."""

    FAR, SHARE = 10.0, 0.1  # pixels by which the joints of another person lie elsewhere; how many may

    def __init__(self, file, part):
        self.file, count = file, len(part.entries)
        content = annotations.load_mat(file)
        boxes = np.asarray(content.get("headboxes_src", np.zeros(0)))
        boxes = boxes[..., None] if boxes.ndim == 2 else boxes        # Matlab drops the axis of a single person
        if boxes.ndim != 3 or boxes.shape[:2] != (2, 2):
            raise UserError(f"{file} must have headboxes_src of 2 x 2 x P numbers, and has "
                            f"{' x '.join(map(str, boxes.shape))}. Correct it or move it away.")
        if boxes.shape[2] != count:
            raise UserError(f"{file} must have the head of every person of {part.file.name}, and has "
                            f"{boxes.shape[2]} for {count}. Give the two files that belong together, or move it away.")
        boxes = annotations.numbers(boxes, boxes.shape, "headboxes_src", file)
        self.sizes = HEAD_BIAS * np.hypot(*(boxes[1] - boxes[0]))
        self.missing = np.zeros([count, len(MPII.labels)], bool)
        if "jnt_missing" in content:
            shape = len(MPII.labels), count
            self.missing = annotations.numbers(content["jnt_missing"], shape, "jnt_missing", file).T > 0
        if "pos_gt_src" in content:
            shape, joints_xy = (len(MPII.labels), 2, count), content["pos_gt_src"]
            joints_xy = joints_xy[..., None] if joints_xy.ndim == 2 else joints_xy
            self._require_order(annotations.numbers(joints_xy, shape, "pos_gt_src", file, finite=False), part)

    def _require_order(self, joints_xy, part):
        """Raises UserError where the joints [J, 2, P] are those of other persons than the JSON file's."""
        others = 0
        for number, entry in enumerate(part.entries):
            seen, here = _seen(entry)
            if len(seen):
                others += int(np.median(np.linalg.norm(here - joints_xy[seen, :, number], axis=1)) > self.FAR)
        if others > self.SHARE * len(part.entries):
            raise UserError(f"{self.file} must have the persons of {part.file.name} in the same order, and {others} of "
                            f"{len(part.entries)} have other joints there. Give the two files that belong together, or "
                            "move it away.")


# MPII's own file.

def find_mat(place, name, options):
    """The `Source` of MPII's .mat file, or None.

    MPII keeps the joints of its test set to itself, and the file says nothing of the 2,958 persons that are
    usually validated on: annot/valid.json does. So a tenth of the pictures for training, by a hash of their names,
    is val.
    """
    found = []
    for file in annotations.files_in(place, "*.mat", "*/*.mat", "*/annot/*.mat"):
        if file.suffix == ".mat" and (file.name.startswith("mpii") or file == place):
            content = annotations.load_mat(file)
            if "RELEASE" in content:
                found.append((file, content["RELEASE"]))
    if len(found) > 1:
        raise UserError(f"--source must hold one file of MPII, and {place} has "
                        f"{' and '.join(str(file) for file, _ in found)}. Move one away.")
    return _mat_source(*found[0], name, options) if found else None


def _mat_source(file, release, name, options):
    folder, people, left_out = annotations.pictures_of(file), [], {HIDDEN: [], NO_JOINTS: []}
    pictures, train = _several(release, "annolist"), _several(release, "img_train")
    if not pictures or len(pictures) != len(train):
        raise UserError(f"{file} must have an annolist and as many img_train, and has {len(pictures)} and "
                        f"{len(train)}: it is not MPII's file, or not whole.")
    first = 1 if options.first_pixel is None else options.first_pixel
    shift = CENTER_SHIFT if options.center_shift is None else options.center_shift
    for number, (picture, wanted) in enumerate(zip(pictures, train)):
        image = str(_field(_field(picture, "image", file), "name", file))
        if not wanted:
            left_out[HIDDEN].append(image)
            continue
        for place, rect in enumerate(_several(picture, "annorect")):
            body = _several(rect, "annopoints")
            points = _several(body[0], "point") if body else []
            person = _MatPerson(file, folder, image, number, place, rect, points, first, shift)
            if points:
                people.append(person)
            else:
                left_out[NO_JOINTS].append(str(person))
    named = [*left_out[HIDDEN], *(person.image for person in people)]
    left_out |= annotations.without_persons([(folder, named)])
    divided, notes = annotations.divide({None: people}, lambda person: person.image, options.seed)
    facts = {"first_pixel": first, "center_shift": shift,
             "head_boxes": {split: sum(person.has_head() for person in persons) for split, persons in divided.items()}}
    return Source(name, MPII, divided, lambda item: item.load(), f"MPII, {file.name}", left_out, facts, notes)


class _MatPerson(NamedTuple):
    file: Any
    folder: Any
    image: str
    number: int
    place: int
    rect: Any
    points: list
    first: int
    shift: float

    def __str__(self):
        return f"{self.image} person {self.place}"

    def has_head(self):
        return all(_several(self.rect, key) for key in ("x1", "y1", "x2", "y2"))

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
                      _number(position[0], "y", where) + self.shift * scale - self.first + 0.5)
        if self.has_head():
            x1, y1, x2, y2 = (_number(self.rect, key, where) for key in ("x1", "y1", "x2", "y2"))
            head_size = HEAD_BIAS * float(np.hypot(x2 - x1, y2 - y1))
        return Person(annotations.inside(self.folder, self.image, where), self.image, joints_xy - self.first + 0.5,
                      visible, center, scale, head_size=head_size, image_id=self.number,
                      person_id=1000 * self.number + self.place)


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
