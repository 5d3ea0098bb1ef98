"""Left and right in the names of joints: which of them change places in a mirror.

A name says its side as a word of its own, wherever it stands: ear_left, eyeL, HIP_LEFT, LHip, forelegL1, "left eye";
and at an edge of a word where the other side is there too: Lear and Rear, LF_paw and RF_paw, FL and FR, earleft. So
tail, collar and lower_lip say none. Two joints are a pair where their names differ in nothing but the side.
"""

import collections
import re
from typing import NamedTuple

from common.errors import UserError

_WORDS = {"left": "left", "l": "left", "right": "right", "r": "right"}
_OTHER = {"left": "right", "right": "left"}


class Joint(NamedTuple):
    """What the name of a joint says."""

    side: str  # "left", "right", or "" where it says none
    words: tuple  # the other words of the name, in lower case, without numbers
    partner: int | None  # the joint that it changes places with in a mirror


class _Reading(NamedTuple):
    pattern: tuple  # the words; (before, after) where a side is at the edge of one, None where it is one
    sides: tuple  # that are left out of the pattern, in their order


def read(labels):
    """[`Joint`] of the names of all joints."""
    words = [_words(label) for label in labels]
    readings = [_readings(each) for each in words]
    partners, told = {}, {}
    for level in range(3):
        holders = collections.defaultdict(set)
        for i in range(len(labels)):
            for reading in readings[i][level] if i not in partners else ():
                holders[reading].add(i)
        found = {}
        for reading, joints in holders.items():
            for i in joints:
                others = holders.get(_mirrored(reading), set())
                found.setdefault(i, set()).update((other, reading) for other in others)
        for i, candidates in found.items():
            others = {other for other, _ in candidates}
            if len(others) == 1 and {other for other, _ in found[min(others)]} == {i}:
                partners[i], told[i] = min(others), min((reading for _, reading in candidates), key=repr)
    joints = []
    for i, each in enumerate(words):
        reading = told.get(i) or next(iter(readings[i][0]), _Reading(each, ()))
        rest = (part for word in reading.pattern for part in (word if isinstance(word, tuple) else [word]))
        joints.append(Joint(reading.sides[0] if reading.sides else "",
                            tuple(word for word in rest if word and not word.isdigit()), partners.get(i)))
    return joints


def pairs_of(labels):
    """[(left, right)]: the numbers of the joints that change places in a mirror, by their names."""
    return [(i, joint.partner) for i, joint in enumerate(read(labels))
            if joint.partner is not None and joint.side == "left"]


def unpaired(labels, pairs=()):
    """Names that say a side and have no partner, neither by name nor in `pairs`: with them nothing can be mirrored."""
    taken = {joint for pair in pairs for joint in pair}
    return [label for i, (label, joint) in enumerate(zip(labels, read(labels)))
            if joint.side and joint.partner is None and i not in taken]


def parse_pairs(text, labels):
    """[(left, right)] of --pairs: "a:b,c:d", the left joint first, or "none". Raises UserError."""
    if text.strip().lower() == "none":
        return []
    form = '"left:right,left:right" with the names of the joints, or none'
    pairs, taken = [], collections.Counter()
    for entry in text.split(","):
        names = [name.strip() for name in entry.split(":")]
        if len(names) != 2:
            raise UserError(f"--pairs must be {form}, and has {entry.strip()!r}.")
        for name in names:
            if name not in labels:
                raise UserError(f"--pairs must be {form}; {name!r} is none of {', '.join(labels)}.")
        pairs.append(tuple(map(labels.index, names)))
        taken.update(names)
    if max(taken.values()) > 1:
        raise UserError(f"--pairs must name every joint once, and names {taken.most_common(1)[0][0]!r} "
                        f"{max(taken.values())} times.")
    return pairs


def _words(name):
    """The words of a name: cut at what is no letter, at capitals, before and after numbers, behind a leading left
    or right."""
    found = []
    for run in re.findall(r"[^\W\d_]+|\d+", name):
        for word in re.findall("[A-Z]?[^A-Z]+|[A-Z]+(?![^A-Z])", run):
            begins = re.match("left|right", word.lower())
            found += [word[:begins.end()], word[begins.end():]] if begins else [word]
    return tuple(word.lower() for word in found if word)


def _readings(words):
    """Three lists of `_Reading`, the surest first: all words that are sides, one of them alone, edges of words."""
    places = [i for i, word in enumerate(words) if word in _WORDS]

    def without(chosen):
        pattern = tuple(None if i in chosen else word for i, word in enumerate(words))
        return _Reading(pattern, tuple(_WORDS[words[i]] for i in chosen))

    edges = []
    for i, word in enumerate(words):
        for text, side in _WORDS.items():
            rests = [("", word[len(text):])] * word.startswith(text) + [(word[:-len(text)], "")] * word.endswith(text)
            edges += [_Reading((*words[:i], rest, *words[i + 1:]), (side,)) for rest in rests if any(rest)]
    return [without(places)] if places else [], [without([i]) for i in places if len(places) > 1], edges


def _mirrored(reading):
    return _Reading(reading.pattern, tuple(_OTHER[side] for side in reading.sides))
