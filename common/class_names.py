"""Names of classes: which mean the same, and in what two lists of them differ."""

from common.errors import UserError

# Darknet's coco.names and Pascal VOC spell these otherwise than COCO's JSON files.
ALIASES = {"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv",
           "pottedplant": "potted plant", "diningtable": "dining table"}


def meaning(name):
    """The spelling by which names are compared: COCO's, without regard to case."""
    name = name.strip().lower()
    return ALIASES.get(name, name)


def require_same(ours, theirs, what, where):
    """Raises UserError unless two lists of class names mean the same, in the same order; it says where they differ.

    ours: of the network; theirs: of the data. what, where: what has them, in words: "The run", "the records x".
    """
    if list(map(meaning, ours)) == list(map(meaning, theirs)):
        return
    lacking = [name for name in theirs if meaning(name) not in set(map(meaning, ours))]
    more = [name for name in ours if meaning(name) not in set(map(meaning, theirs))]
    parts = [f"{what} lacks {_some(lacking)}"] * bool(lacking) + [f"{where} lacks {_some(more)}"] * bool(more)
    if not parts:
        number, (mine, other) = next((i, pair) for i, pair in enumerate(zip(ours, theirs))
                                     if meaning(pair[0]) != meaning(pair[1]))
        parts = [f"they stand in another order: class {number} is {mine!r} and {other!r}"]
    raise UserError(f"{what} and {where} must have the same {len(ours)} classes; {', and '.join(parts)}. Give the set "
                    "that it was trained on, or build the records again with --labels in its order.")


def _some(names, most=6):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
