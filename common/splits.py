"""Which split a picture or a text belongs to, and which files of a folder are data at all: one rule for all articles.

A split is named by a whole word of a file's or a folder's name, in any case: train, training; val, valid, validation,
dev; test, testing. What has no split of its own is dealt by a hash, so that whatever is added later moves nothing.
"""

import collections
import hashlib
import os
import pathlib
import re

import numpy as np

from common.errors import UserError

SPLITS = ("train", "val", "test")
_WORDS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val",
          "test": "test", "testing": "test"}
# Pictures that cameras and tools write and that the zoo does not read: worth a word of their own.
UNREAD_PICTURES = {".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".svg", ".psd", ".ico", ".tga", ".ppm",
                   ".pgm", ".raw", ".dng", ".cr2", ".cr3", ".nef", ".arw"}


def of_name(name):
    """The split that a name says, "instances_val2017.json" or "TrainA"; None where it says none, or several."""
    words = re.findall(r"[^\W\d_]+", name)
    parts = [part for word in words for part in re.findall("[A-Z]?[^A-Z]+|[A-Z]+(?![^A-Z])", word)]
    splits = {_WORDS[word.lower()] for word in [*words, *parts] if word.lower() in _WORDS}
    return splits.pop() if len(splits) == 1 else None


def of_folder(name):
    """The split of a folder whose whole name is a split's word: "Valid"; None of any other, such as "test rig"."""
    return _WORDS.get(name.lower())


def folders(folder):
    """({split: its folder in `folder`}, [what else is there, but for hidden things]), sorted.

    Raises UserError where two folders are of one split: `val` and `validation`.
    """
    found, others = {}, []
    for path in entries(folder):
        split = of_folder(path.name) if path.is_dir() else None
        if split is None:
            others.append(path)
        elif split in found:
            raise UserError(f"{folder} must have one folder for a split, and has {found[split].name} and {path.name} "
                            f"for {split}. Move one away, or put them together.")
        else:
            found[split] = path
    return {split: found[split] for split in SPLITS if split in found}, others


def is_hidden(name):
    """Whether a file or folder is a system's or a tool's: .ipynb_checkpoints, .Trash, ._photo.jpg, __MACOSX."""
    return name.startswith(".") or name.lower() in ("__macosx", "thumbs.db", "desktop.ini")


def entries(folder):
    """Paths in a folder, sorted by name, but for hidden ones."""
    return [pathlib.Path(folder, name) for name in sorted(os.listdir(folder)) if not is_hidden(name)]


def walk(folder):
    """Paths of all files in a folder and below, sorted; hidden files and folders are passed over.

    Linked folders are followed, each place once.
    """
    found, seen, waiting = [], set(), [pathlib.Path(folder)]
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        for path in entries(place):
            (waiting if path.is_dir() else found).append(path)
    return sorted(found)


def beside(folder, used):
    """What lies in a folder beside the paths `used`, sorted: in a folder that holds one of them, each other entry.

    Hidden things are passed over, and so is whatever lies in a folder that is used itself.
    """
    used = {pathlib.Path(path) for path in used}
    holders = {parent for path in used for parent in path.parents}
    found, waiting = [], [pathlib.Path(folder)]
    while waiting:
        place = waiting.pop()
        if place not in used:
            found += [path for path in entries(place) if path not in used | holders]
            waiting += [path for path in entries(place) if path in holders]
    return sorted(found)


def of_kinds(paths, suffixes):
    """(the paths with one of these suffixes in any case, {reason: [paths]} of the others), as `building` takes it."""
    chosen, left_out = [], collections.defaultdict(list)
    for path in paths:
        suffix = path.suffix.lower()
        if suffix in suffixes:
            chosen.append(path)
        else:
            kind = "pictures of a kind that is not read" if suffix in UNREAD_PICTURES else "files of another kind"
            left_out[f"{kind} ({suffix or 'without suffix'})"].append(path)
    return chosen, dict(left_out)


def fraction(key, seed=0):
    """A number in [0, 1) that depends on a key and the seed alone, evenly spread over keys.

    key: what names an item for ever: its name, or for a row its text, for a picture without a name its bytes. md5
    serves as a hash here, not as a seal.
    """
    key = key if isinstance(key, bytes) else str(key).encode("utf-8", "surrogateescape")
    digest = hashlib.md5(f"{seed}\n".encode() + key, usedforsecurity=False).digest()
    return int.from_bytes(digest[:8]) / 2**64


def shared(keys):
    """{split: {another split: how many of its items stand there too}} of {split: numbers that stand for its items}.

    keys: such as the `fraction` of a text or of a picture's bytes, in any array. Splits in the order of `keys`, each
    beside those before it; without zeros.
    """
    found = {}
    for number, split in enumerate(keys):
        for other in list(keys)[:number]:
            count = int(np.isin(keys[split], keys[other]).sum())
            if count:
                found.setdefault(split, {})[other] = count
    return found


def shared_lines(found, units):
    """A line for each pair of splits in `shared`; units: "pictures"."""
    return [f"note: {split}: {count} {units} are in {other} too; scores on them mean little."
            for split, others in found.items() for other, count in others.items()]


def deal(items, shares, *, seed=0, key=str, category=None):
    """{split: items in their order}: what each split of `shares`, {split: share}, gets; all others are for training.

    Where an item goes depends on its key and the seed alone: its `fraction` falls below a split's threshold or not.
    So shares are approximate, and whatever is added, removed or reordered moves no other item; but for the smallest
    sets: a split that would be empty gets the item nearest to it, and a category without a training example gets back
    the one nearest to training. category: item -> category, None where there is none.
    """
    places = [fraction(key(item), seed) for item in items]
    categories = [category(item) if category else None for item in items]
    chosen = [place(where, shares) for where in places]
    training = collections.Counter(kind for kind, split in zip(categories, chosen) if split == "train")
    for split in shares:
        candidates = [i for i, other in enumerate(chosen) if other == "train" and training[categories[i]] > 1]
        if split not in chosen and candidates:
            nearest = min(candidates, key=places.__getitem__)
            chosen[nearest] = split
            training[categories[nearest]] -= 1
    for kind in dict.fromkeys(categories):
        if not training[kind]:
            chosen[max((i for i, other in enumerate(categories) if other == kind), key=places.__getitem__)] = "train"
    parts = {split: [item for item, other in zip(items, chosen) if other == split] for split in SPLITS}
    return {split: part for split, part in parts.items() if part}


def place(where, shares):
    """The split of a `fraction`: the first of `shares` below whose threshold it is, or train."""
    threshold = 0.0
    for split, share in shares.items():
        threshold += share
        if where < threshold:
            return split
    return "train"
