"""What the readers of pose data share: files, numbers, folders of pictures, splits."""

import json
import pathlib

import numpy as np

from common import coco_values, media, splits
from common.errors import UserError

VAL_SHARE = 0.1
DEALT = "one picture in ten, by a hash of its name, is val: the source names none"


def divide(items, picture, seed=0):
    """({split: items}, notes) of {split: items} in which those under None are of no split: these are for training.

    Where no val is given, a tenth of their pictures, by a hash of their names and the seed, is val. picture: from an
    item to the name of its picture, whose persons stay together.
    """
    items, notes = dict(items), []
    whole = items.pop(None, [])
    if whole and "val" in items:
        items["train"] = whole
    elif whole:
        dealt = splits.deal(list(dict.fromkeys(map(picture, whole))), {"val": VAL_SHARE}, seed=seed)
        place = {name: split for split, names in dealt.items() for name in names}
        for item in whole:
            items.setdefault(place[picture(item)], []).append(item)
        notes = [DEALT] * ("val" in dealt)
    return {split: items[split] for split in splits.SPLITS if split in items}, notes


def files_in(place, *patterns):
    """`place` where it is a file; else the paths in it that match a glob pattern, but for hidden ones, sorted."""
    if place.is_file():
        return [place]
    found = {path for pattern in patterns for path in place.glob(pattern)}
    return sorted(path for path in found if not any(map(splits.is_hidden, path.relative_to(place).parts)))


def inside(folder, name, where):
    """The path of picture `name` in `folder`; a UserError where the name leads out of it."""
    relative = pathlib.PurePosixPath(str(name))
    if relative.is_absolute() or ".." in relative.parts or not relative.parts:
        raise UserError(f"{where} must name a picture inside {folder}, and names {str(name)[:80]!r}. Correct it.")
    return folder / relative


def pictures_of(file):
    """The folder of pictures that belongs to an annotation file: images/ beside it or above, or its own."""
    for folder in (file.parent, file.parent.parent, file.parent.parent.parent):
        if (folder / "images").is_dir():
            return folder / "images"
    return file.parent


def without_persons(used):
    """{reason: pictures} that hold no person; used: [(folder, the names of its pictures that hold some)]."""
    named = {folder / name for folder, names in used for name in names}
    paths = {path for folder in {folder for folder, _ in used} if folder.is_dir() for path in splits.walk(folder)}
    chosen, others = splits.of_kinds(sorted(paths - named), media.PICTURES)
    unread = {reason: paths for reason, paths in others.items()
              if paths[0].suffix.lower() in splits.UNREAD_PICTURES}
    return {"pictures without an annotated person": chosen, **unread}


def read_json(file):
    """The contents of a JSON file. Raises UserError."""
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} must be a JSON file, and cannot be read ({error}).") from None


def load_mat(file):
    """The variables of a Matlab file. Raises UserError without scipy, and for what cannot be read."""
    try:
        import scipy.io
    except ImportError:
        raise UserError(f"{file} needs scipy to be read, which is not installed: pip install -e '.[mat]'.") from None
    try:
        return scipy.io.loadmat(file, struct_as_record=False, squeeze_me=False)
    except Exception as error:  # a damaged file can bring about anything in there
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{file} must be a Matlab file, and cannot be read ({words}).") from error


def numbers(value, shape, key, where, finite=True):
    """float64 of that shape; a UserError where it is something else."""
    try:
        found = np.asarray(value, np.float64)
    except (TypeError, ValueError):
        found = np.full([1, 1, 1], np.nan)
    if found.shape != shape or (finite and not np.isfinite(found).all()):
        wanted = " x ".join(map(str, shape)) or "one"
        raise UserError(f"{where} must have {wanted} numbers in {key}, and has {str(value)[:60]}. Correct it.")
    return found


def refuse_fractions(joints_xy, where):
    """Raises UserError where all finite numbers of an array are fractions of a picture's sides."""
    joints_xy = np.asarray(joints_xy, np.float64)
    coco_values.refuse_fractions(joints_xy[np.isfinite(joints_xy)].tolist(), where, "joints")
