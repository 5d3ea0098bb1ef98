"""Names of classes: which mean the same, and in what two lists of them differ."""

from common.errors import UserError

# Darknet's coco.names and Pascal VOC spell these otherwise than COCO's JSON files.
ALIASES = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv",
           "pottedplant": "potted plant", "diningtable": "dining table"}


ADVICE = "Give the set that it was trained on, or build the records again with --labels in its order."


def meanings(*lists):
    """The lists of names in the spelling by which they are compared: COCO's, without regard to case.

    Names stay as they are where one of the lists tells two apart that would then be the same, such as a and A.
    """
    found = [[ALIASES.get(name.strip().lower(), name.strip().lower()) for name in names] for names in lists]
    return found if all(len(set(names)) == len(names) for names in found) else [list(names) for names in lists]


def require_same(ours, theirs, what, where, advice=ADVICE):
    """Raises UserError unless two lists of class names mean the same, in the same order; it says where they differ.

    ours: of the network; theirs: of the data. what, where: what has them, in words: "The run", "the records x".
    """
    mine, others = meanings(ours, theirs)
    if mine == others:
        return
    lacking = [name for name, meaning in zip(theirs, others) if meaning not in mine]
    more = [name for name, meaning in zip(ours, mine) if meaning not in others]
    parts = [f"{what} lacks {_some(lacking)}"] * bool(lacking) + [f"{where} lacks {_some(more)}"] * bool(more)
    if not parts and len(ours) != len(theirs):
        parts = [f"{what} has {len(ours)} and {where} {len(theirs)}, some of them twice"]
    if not parts:
        number = next(i for i in range(len(ours)) if mine[i] != others[i])
        parts = [f"they stand in another order: class {number} is {ours[number]!r} and {theirs[number]!r}"]
    raise UserError(f"{what} and {where} must have the same classes; {', and '.join(parts)}. {advice}")


def _some(names, most=6):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
