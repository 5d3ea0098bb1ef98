"""Values in COCO's JSON files as people's tools write them: flags and numbers that are text, sizes that are floats,
coordinates that are fractions of a picture."""

import math

from common.errors import UserError

_FLAGS = {"true": True, "yes": True, "false": False, "no": False, "": False}
BEYOND = 0.1    # of a picture's side: how far boxes and joints that are fractions may lie outside


def number(value):
    """float of a finite number, or of the text of one; None of anything else."""
    if not isinstance(value, (int, float, str)) or isinstance(value, bool):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def flag(value):
    """bool of 0 and 1, true and false, also as text; what is null or empty is False. None of anything else."""
    if value is None or isinstance(value, bool):
        return bool(value)
    found = number(value)
    if found is None:
        return _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
    return bool(found) if found in (0, 1) else None


def size(entry):
    """(width, height) of an image entry in whole pixels; None where one of them is missing, null, empty or 0.

    Raises ValueError, with what came, for what is no whole number of pixels.
    """
    sides = []
    for key in ("width", "height"):
        value = entry.get(key)
        side = 0.0 if value in (None, "") else number(value)
        if side is None or side < 0 or side != int(side):
            raise ValueError(f"{key} {str(value)[:40]!r}")
        sides.append(int(side))
    return tuple(sides) if all(sides) else None


def in_fractions(coordinates):
    """Whether all coordinates of a set, an iterable of finite numbers, are fractions of a picture's sides, not pixels.

    A set in pixels has some beyond the first one. Without coordinates but zeros nothing can be said: False.
    """
    some = False
    for coordinate in coordinates:
        if not -BEYOND <= coordinate <= 1 + BEYOND:
            return False
        some = some or coordinate != 0
    return some


def refuse_fractions(coordinates, path, what):
    """Raises UserError where `coordinates`, all of the file `path`, are fractions. what: "boxes"."""
    if in_fractions(coordinates):
        raise UserError(f"{path} must have {what} in pixels, and all of its numbers lie between 0 and 1, as fractions "
                        "of the picture's sides. Multiply x by the width and y by the height.")


def crowd_line(split, crowds, objects):
    """A sentence where more than half of a split's objects are crowds (iscrowd 1), else None."""
    if 2 * crowds <= objects:
        return None
    share = "all" if crowds == objects else f"{crowds} of"
    return (f"{split}: {share} {objects} objects are crowds (iscrowd 1), from which nothing is learnt. "
            "Where each is a single object, iscrowd must be 0.")
