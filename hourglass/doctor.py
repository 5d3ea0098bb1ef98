"""What is in a pose record set, and what is wrong with it: `preprocess.py --check`.

A problem is what no training should see: a joint outside its picture, a scale of 0, a picture that cannot be
decoded. A note is what its owner should know, such as pictures in two splits. How often left and right coincide is
the article's open question in numbers: "when there is only one foot in the image, the network could confuse
itself".

P persons, K joints.
"""

import collections
import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common import decoding, records
from common.errors import UserError
from hourglass import crops, poses

HIGH = 8            # times the scale, where a body is 200: how far centres may lie from the middles of the joints
SMALL, LARGE = 0.4, 1.5  # of the height that the scale says: what a body's joints span, at least and at most
COINCIDE = 0.02     # of the body's height (200 * scale pixels): closer than that left and right are on one spot


class Contents(NamedTuple):
    """One split in flat arrays."""

    filenames: np.ndarray        # [P]
    sizes: np.ndarray            # [P, 2] height, width as the records say
    found: np.ndarray            # [P, 2] height, width as decoded; 0, 0 where that failed
    fingerprints: np.ndarray     # [P] hash of the encoded picture
    joints: np.ndarray           # [P, K, 2] pixels
    visible: np.ndarray          # [P, K]
    center: np.ndarray           # [P, 2]
    scale: np.ndarray            # [P]
    head_size: np.ndarray        # [P]
    area: np.ndarray             # [P]


class Findings(NamedTuple):
    folder: pathlib.Path
    manifest: dict
    body: poses.Body
    contents: dict               # split -> Contents
    problems: dict               # what -> names of the records, one for each time
    notes: list                  # of sentences


def examine(folder, *, progress=False):
    """Reads a whole record set, files against the manifest's sha256 and counts first, and returns `Findings`.

    Raises UserError if a file is damaged, or no pose records.
    """
    folder = pathlib.Path(folder)
    records.verify(folder)
    manifest, body = records.read_manifest(folder), poses.body_of(folder)
    contents, problems = {}, collections.defaultdict(list)
    for split, entry in manifest["splits"].items():
        if entry["examples"]:
            contents[split] = read(folder, split, len(body.labels), progress=progress)
            for what, names in find_problems(contents[split]).items():
                problems[what] += [f"{split} {name}" for name in names]
    return Findings(folder, manifest, body, contents, dict(problems), find_notes(contents, body, manifest))


def read(folder, split, num_joints, *, progress=False):
    """The `Contents` of a split. Raises UserError if one of its records cannot be parsed."""
    def size_of(image_bytes):
        try:
            return np.array(decoding.decode(image_bytes).shape[:2], np.int32)
        except UserError:
            return np.zeros(2, np.int32)

    def look(item):
        example = poses.parse(item["record"], num_joints)
        image_bytes = example.pop("image_bytes")
        example["fingerprint"] = tf.strings.to_hash_bucket_fast(image_bytes, 2 ** 62)
        example["found"] = tf.ensure_shape(tf.numpy_function(size_of, [image_bytes], tf.int32), [2])
        return example

    stream = records.dataset(folder, split, epochs=1).map(look, num_parallel_calls=tf.data.AUTOTUNE)
    columns = collections.defaultdict(list)
    try:
        for example in tqdm(stream.as_numpy_iterator(), total=records.count(folder, split), unit="person",
                            desc=f"checking {split}", disable=not progress, leave=False):
            for key, value in example.items():
                columns[key].append(value)
    except tf.errors.InvalidArgumentError as error:
        if records.damage(error):
            raise
        raise UserError(f"Record {len(columns['found'])} of {split} in {folder} must be a pose record of {num_joints} "
                        f"joints, and cannot be parsed: {error.message.splitlines()[0]} Build it again.") from None
    return Contents(
        filenames=np.array([name.decode(errors="replace") for name in columns["filename"]]),
        sizes=np.stack([columns["height"], columns["width"]], axis=-1), found=np.array(columns["found"]),
        fingerprints=np.array(columns["fingerprint"]),
        **{key: np.array(columns[key]) for key in ("joints", "visible", "center", "scale", "head_size", "area")})


def find_problems(contents):
    """{what: names of the pictures}, a name for each person that it holds for."""
    annotated = contents.visible > 0
    finite = np.isfinite(contents.joints).all(axis=2)
    sides = contents.sizes[:, None, ::-1]
    inside = ((contents.joints >= 0) & (contents.joints <= sides)).all(axis=2)
    unreadable = ~contents.found.all(axis=1)
    persons = {
        "joint with NaN or infinity": (annotated & ~finite).any(axis=1),
        "joint outside the picture": (annotated & finite & ~inside).any(axis=1),
        "visibility other than 0, 1, 2": ~np.isin(contents.visible, (0, 1, 2)).all(axis=1),
        "person without any annotated joint": ~annotated.any(axis=1),
        "scale of 0, or none": ~(np.isfinite(contents.scale) & (contents.scale > 0)),
        "centre with NaN or infinity": ~np.isfinite(contents.center).all(axis=1),
        "head size or area that is negative, NaN or infinite": ~(
            np.isfinite([contents.head_size, contents.area]) & (np.array([contents.head_size, contents.area]) >= 0)
        ).all(axis=0),
        "picture that cannot be decoded": unreadable,
        "picture of another size than its record says": ~unreadable & (contents.found != contents.sizes).any(axis=1),
    }
    return {what: contents.filenames[mask].tolist() for what, mask in persons.items() if mask.any()}


def find_notes(contents, body, manifest):
    """Sentences on what is no mistake for certain; contents: {split: Contents}, manifest: of the set."""
    notes = []
    for split, part in contents.items():
        notes += [f"{split}: {note}" for note in (*_of_joints(part, body), *_of_places(part), *_of_sizes(part, body))]
        twice = len(part.filenames) - len(np.unique(_persons(part)))
        if twice:
            notes.append(f"{split}: {twice} persons are there twice, the same joints in the same picture.")
        for other in list(contents)[:list(contents).index(split)]:
            shared = np.isin(part.fingerprints, contents[other].fingerprints).sum()
            if shared:
                notes.append(f"{split}: {shared} persons are in pictures of {other} too; scores on them mean little.")
        if body.metric == "pckh" and manifest.get("head_boxes", {}).get(split) == 0:
            notes.append(f"{split}: no head sizes from boxes of heads; PCKh is not MPII's, and called another name.")
    for split, part in contents.items():
        never = [name for name, times in zip(body.labels, (part.visible > 0).sum(0)) if not times]
        if never:
            notes.append(f"{split}: no annotation at all of {', '.join(never)}.")
    return notes


def _of_joints(part, body):
    annotated = part.visible > 0
    missing, outside = int((~annotated).sum()), int((annotated & ~in_square(part)).sum())
    if missing:
        what = "taught as out of view" if body.absent == "out of view" else "not looked at by the loss"
        yield f"{missing} of {annotated.size} joints are not annotated; they are {what}."
    if outside:
        yield f"{outside} annotated joints are outside the square that evaluation crops."
    corner = int((annotated & (part.joints <= 1).all(axis=2)).sum())
    if corner:
        yield (f"{corner} annotated joints are at the corner (0, 0) of their picture; if that stands for not "
               "annotated, their visibility must be 0.")


def _of_places(part):
    """Where centre and scale stand beside the joints: what is wrong for all of a set."""
    shown = (part.visible > 0) & np.isfinite(part.joints).all(axis=2)
    whole = shown.any(axis=1) & (part.scale > 0) & np.isfinite(part.scale) & np.isfinite(part.center).all(axis=1)
    if not whole.any():
        return
    shown, joints, scale = shown[whole][..., None], part.joints[whole], part.scale[whole]
    low, high = np.where(shown, joints, np.inf).min(axis=1), np.where(shown, joints, -np.inf).max(axis=1)
    below = np.median((part.center[whole] - (low + high) / 2)[:, 1] / scale)
    span = np.median((high - low).max(axis=1) / (crops.BODY_HEIGHT * scale))
    if abs(below) > HIGH:
        yield (f"centres lie {abs(below):.0f} times the scale {'below' if below > 0 else 'above'} the middles of the "
               "joints, in the median; MPII's need --center_shift 15, most others 0.")
    if not SMALL <= span <= LARGE:
        yield (f"persons are as tall as {span:.2f} of what their scales say, in the median; a scale is the height in "
               f"pixels / {crops.BODY_HEIGHT:g}.")


def _of_sizes(part, body):
    heads, areas = int((part.head_size <= 0).sum()), int((part.area <= 0).sum())
    if body.metric == "pckh" and heads:
        yield f"{heads} of {len(part.filenames)} persons have no head size; PCKh leaves them out."
    if body.metric == "oks" and areas:
        yield f"{areas} of {len(part.filenames)} persons have no area; OKS leaves them out."


def _persons(part):
    """[P]: what two persons share that have the same joints in the same picture."""
    rows = np.concatenate([part.joints.reshape(len(part.joints), -1), part.visible], axis=1).astype(np.float32)
    return np.array([f"{picture} {row.tobytes().hex()}" for picture, row in zip(part.fingerprints, rows)])


def in_square(contents):
    """[P, K] bool: joints that are inside the square that evaluation crops."""
    half = contents.scale[:, None, None] * crops.BODY_HEIGHT * crops.EVALUATION_MARGIN / 2
    return (np.abs(contents.joints - contents.center[:, None]) <= half).all(axis=2)


def coinciding(contents, pairs, share=COINCIDE):
    """[(how often left and right of a pair coincide, persons in which both are annotated)], pair by pair.

    They coincide where they are less than `share` of the body's height, 200 * scale pixels, apart.
    """
    counts = []
    for left, right in pairs:
        both = (contents.visible[:, [left, right]] > 0).all(axis=1)
        apart = np.linalg.norm(contents.joints[:, left] - contents.joints[:, right], axis=1)
        counts.append((int((both & (apart < share * crops.BODY_HEIGHT * contents.scale)).sum()), int(both.sum())))
    return counts


def describe(findings, built=False):
    """`Findings` in words: persons, joints, sizes, pairs, problems, notes.

    built: right behind the build of the set, which has said what its manifest takes for granted.
    """
    body, parts, manifest = findings.body, findings.contents, findings.manifest
    facts = [] if built else poses.fact_lines(manifest)
    known = [] if built else manifest.get("notes", poses.mirror_notes(body))
    lines = [f"{findings.folder}: {sum(len(part.filenames) for part in parts.values())} persons, {len(body.labels)} "
             f"joints, {len(body.pairs)} pairs, measured by {body.metric}"]
    for split, part in parts.items():
        height = np.percentile(part.scale * crops.BODY_HEIGHT, [5, 50, 95])
        lines.append(f"  {split}: {len(part.filenames)} persons in {len(np.unique(part.fingerprints))} pictures, "
                     f"height {height[0]:.0f}, {height[1]:.0f}, {height[2]:.0f} pixels (5, 50, 95 of 100)")
    lines += facts
    width = max(map(len, body.labels))
    lines.append("joints (visible, occluded, not annotated)")
    for joint, label in enumerate(body.labels):
        counts = (np.bincount(np.clip(part.visible[:, joint], 0, 2), minlength=3) for part in parts.values())
        numbers = "   ".join(f"{split} {count[2]:>6} {count[1]:>6} {count[0]:>6}"
                             for split, count in zip(parts, counts))
        lines.append(f"  {label:<{width}}  {numbers}")
    if body.pairs:
        lines.append(f"left and right on one spot (closer than {COINCIDE:.0%} of the body's height)")
    counts = {split: coinciding(part, body.pairs) for split, part in parts.items()}
    for number, (left, right) in enumerate(body.pairs):
        numbers = "   ".join(f"{split} {_share(*count[number])}" for split, count in counts.items())
        lines.append(f"  {body.labels[left] + ', ' + body.labels[right]:<{2 * width + 2}}  {numbers}")
    for what, names in findings.problems.items():
        lines.append(f"problem: {what}: {len(names)} times: {_some(list(dict.fromkeys(names)))}")
    return "\n".join([*lines, *(f"note: {note}" for note in (*known, *findings.notes))])


def require_sound(findings):
    """Raises UserError if there are problems."""
    count = sum(len(names) for names in findings.problems.values())
    if count:
        raise UserError(f"{findings.folder} must be free of problems; it has {count}, listed above. "
                        "Correct the annotations and build it again.")


def side_colors(body):
    """(r, g, b) of each joint: red on the right of the person, blue on the left, yellow in the middle."""
    colors = [(250, 210, 40)] * len(body.labels)
    for left, right in body.pairs:
        colors[left], colors[right] = (50, 110, 255), (255, 60, 60)
    return colors


def _share(times, total):
    return f"{times} of {total} ({times / max(total, 1):.1%})"


def _some(names, most=5):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
