"""What is in a detection record set, and what is wrong with it: every article's `preprocess.py --check`.

A problem is what no training should see: a box without area, a class that the manifest does not know, a
picture that cannot be decoded. A note is what its owner should know: a class without objects, a picture in
two splits.

P pictures, N objects of all pictures, C classes. Boxes are fractions of the picture.
"""

import collections
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common import detection, records
from common.errors import UserError

COCO_SMALL, COCO_MEDIUM = 32 ** 2, 96 ** 2     # pixels: smaller is small, smaller is medium
ROUNDING = 1e-5                                # of a fraction in float32


class Contents(NamedTuple):
    """One split in flat arrays."""

    filenames: np.ndarray        # [P]
    sizes: np.ndarray            # [P, 2] height, width as the records say
    found: np.ndarray            # [P, 2] height, width as decoded; 0, 0 where that failed
    fingerprints: np.ndarray     # [P] hash of the encoded picture
    picture: np.ndarray          # [N] which picture an object is in
    boxes_xyxy: np.ndarray       # [N, 4]
    labels: np.ndarray           # [N] from 0
    difficult: np.ndarray        # [N] bool
    is_crowd: np.ndarray         # [N] bool
    area: np.ndarray             # [N] pixels of the picture


class Findings(NamedTuple):
    folder: pathlib.Path
    manifest: dict
    contents: dict               # split -> Contents
    problems: dict               # what -> names of the records, one for each time
    notes: list                  # of sentences


BACKGROUND = "they teach what is background"


def examine(folder, *, without_objects=BACKGROUND, decode=True, progress=False):
    """Reads a whole record set, files against the manifest's sha256 and counts first, and returns `Findings`.

    without_objects: what training makes of pictures without objects, in words. decode: also decode every picture.
    Raises UserError if a file is damaged, or no detection records.
    """
    folder = pathlib.Path(folder)
    records.verify(folder)
    manifest = records.require_kind(folder, detection.KIND)
    contents, problems = {}, collections.defaultdict(list)
    for split, entry in manifest["splits"].items():
        if entry["examples"]:
            contents[split] = read(folder, split, decode=decode, progress=progress)
            for what, names in find_problems(contents[split], len(manifest["labels"])).items():
                problems[what] += [f"{split} {name}" for name in names]
            objects = len(contents[split].labels)
            if entry.get("objects", objects) != objects:
                what = f"number of objects, {objects}, unlike the manifest's, {entry['objects']}"
                problems[what].append(split)
    notes = find_notes(contents, manifest["labels"], without_objects)
    return Findings(folder, manifest, contents, dict(problems), notes)


def read(folder, split, *, decode=True, progress=False):
    """The `Contents` of a split. Raises UserError if one of its records cannot be parsed."""
    def look(item):
        example = detection.parse(item["record"])
        image_bytes = example.pop("image_bytes")
        example["fingerprint"] = tf.strings.to_hash_bucket_fast(image_bytes, 2 ** 62)
        if not decode:
            example["found"] = tf.stack([example["height"], example["width"]])
            return tf.data.Dataset.from_tensors(example)
        picture = tf.data.Dataset.from_tensors(image_bytes)
        size = picture.map(lambda data: tf.shape(detection.decode_image(data))[:2])
        nothing = tf.data.Dataset.from_tensors(tf.zeros([2], tf.int32))
        found = size.ignore_errors().concatenate(nothing).take(1)
        return found.map(lambda found: {**example, "found": found})

    # Nested datasets, because a picture that cannot be decoded must not end the stream.
    stream = records.dataset(folder, split, epochs=1).interleave(
        look, cycle_length=8, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    columns = collections.defaultdict(list)
    try:
        for example in tqdm(stream.as_numpy_iterator(), total=records.count(folder, split), unit="picture",
                            desc=f"checking {split}", disable=not progress, leave=False):
            for key, value in example.items():
                columns[key].append(value)
    except tf.errors.InvalidArgumentError as error:
        raise UserError(f"Record {len(columns['found'])} of {split} in {folder} must be a detection record, "
                        f"and cannot be parsed: {error.message.splitlines()[0]} Build it again.") from None
    objects = {key: np.concatenate(columns[key])
               for key in ("boxes_xyxy", "labels", "difficult", "is_crowd", "area")}
    return Contents(
        filenames=np.array([name.decode(errors="replace") for name in columns["filename"]]),
        sizes=np.stack([columns["height"], columns["width"]], axis=-1), found=np.array(columns["found"]),
        fingerprints=np.array(columns["fingerprint"]),
        picture=np.repeat(np.arange(len(columns["labels"])), [len(labels) for labels in columns["labels"]]),
        **objects)


def find_problems(contents, num_classes):
    """{what: names of the pictures}, a name for each object that it holds for."""
    x1, y1, x2, y2 = contents.boxes_xyxy.T
    finite = np.isfinite(contents.boxes_xyxy).all(axis=1)
    inside = ((contents.boxes_xyxy >= -ROUNDING) & (contents.boxes_xyxy <= 1 + ROUNDING)).all(axis=1)
    unknown = (contents.labels < 0) | (contents.labels >= num_classes)
    unreadable = ~contents.found.all(axis=1)
    other_size = ~unreadable & (contents.found != contents.sizes).any(axis=1)
    objects = {
        "box with NaN or infinity": ~finite,
        "box without area": finite & ((x2 <= x1) | (y2 <= y1)),
        "box outside the picture": finite & ~inside,
        f"class id outside the {num_classes} labels": unknown,
    }
    problems = {what: contents.filenames[contents.picture[mask]].tolist() for what, mask in objects.items()}
    pictures = {
        "picture that cannot be decoded": unreadable,
        "picture of another size than its record says": other_size,
    }
    problems |= {what: contents.filenames[mask].tolist() for what, mask in pictures.items()}
    return {what: names for what, names in problems.items() if names}


def find_notes(contents, labels, without_objects=BACKGROUND):
    """Sentences on what is no mistake for certain; contents: {split: Contents}. without_objects: as in `examine`."""
    notes = []
    for split, part in contents.items():
        empty = len(part.filenames) - len(np.unique(part.picture))
        if empty:
            meaning = f"; {without_objects}" if split == "train" else ""
            notes.append(f"{split}: {empty} pictures without any object{meaning}.")
        same = np.concatenate([part.picture[:, None], part.labels[:, None], part.boxes_xyxy], axis=1)
        doubles = len(same) - len(np.unique(same, axis=0))
        if doubles:
            notes.append(f"{split}: {doubles} objects have class and box of another in their picture.")
        for other in list(contents)[:list(contents).index(split)]:
            shared = np.isin(part.fingerprints, contents[other].fingerprints).sum()
            if shared:
                notes.append(f"{split}: {shared} pictures are in {other} too; scores on them mean little.")
        twice = len(part.fingerprints) - len(np.unique(part.fingerprints))
        if twice:
            notes.append(f"{split}: {twice} pictures are copies of another one in the same split.")
    if "train" in contents:
        missing = [name for i, name in enumerate(labels) if not (contents["train"].labels == i).any()]
        if missing:
            notes.append(f"train: no object of {len(missing)} classes: {_some(missing)}.")
    return notes


def describe(findings, most_classes=100):
    """`Findings` in words: pictures and objects, classes, sizes, problems, notes."""
    labels, parts = findings.manifest["labels"], findings.contents
    lines = [f"{findings.folder}: {sum(len(part.filenames) for part in parts.values())} pictures, "
             f"{len(labels)} classes; every file has the sha256 and the number of records of the manifest"]
    for split, part in parts.items():
        per_picture = np.bincount(part.picture, minlength=len(part.filenames))
        lines.append(f"  {split}: {len(part.filenames)} pictures, {len(part.labels)} objects "
                     f"({per_picture.mean():.1f} per picture, at most {per_picture.max()}), "
                     f"{part.difficult.sum()} difficult, {part.is_crowd.sum()} crowds")
    lines += ["classes (objects)", *_class_table(parts, labels, most_classes)]
    lines.append("sizes in the picture (COCO's bounds)")
    for split, part in parts.items():
        small, medium, large = (np.sum(mask) / max(len(part.area), 1) for mask in size_masks(part.area))
        lines.append(f"  {split}: {small:.1%} small (under 32 x 32 pixels), {medium:.1%} medium, "
                     f"{large:.1%} large (from 96 x 96)")
    for what, names in findings.problems.items():
        lines.append(f"problem: {what}: {len(names)} times: {_some(list(dict.fromkeys(names)))}")
    return "\n".join([*lines, *(f"note: {note}" for note in findings.notes)])


def size_masks(area):
    """(small, medium, large), each [N] bool, of areas in pixels by COCO's bounds."""
    return area < COCO_SMALL, (area >= COCO_SMALL) & (area < COCO_MEDIUM), area >= COCO_MEDIUM


def require_sound(findings):
    """Raises UserError if there are problems."""
    count = sum(len(names) for names in findings.problems.values())
    if count:
        raise UserError(f"{findings.folder} must be free of problems; it has {count}, listed above. "
                        "Correct the annotations and build it again.")


def _class_table(parts, labels, most):
    """One line per class, most frequent first: its count in each split and its share of all objects."""
    counts = {split: np.bincount(part.labels[(part.labels >= 0) & (part.labels < len(labels))],
                                 minlength=len(labels)) for split, part in parts.items()}
    total = np.sum(list(counts.values()), axis=0)
    order = np.argsort(-total, kind="stable")
    width = max(len(label) for label in labels)
    lines = []
    for i in order[:most]:
        numbers = "  ".join(f"{split} {count[i]:>6}" for split, count in counts.items())
        lines.append(f"  {labels[i]:<{width}}  {numbers}  {total[i] / max(total.sum(), 1):>6.1%}")
    return lines + [f"  and {len(order) - most} more"] * (len(order) > most)


def _some(names, most=5):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
