"""The pose record: one person of one picture. What is in it, how it is built and how it is read.

Joints are in pixels of the stored picture, and pixel i covers i to i + 1: the middle of the first pixel is at 0.5.
What joints there are, which of them are left and right, and how they are connected is said by a `Body`, which goes
into the manifest; nothing here is fixed to 16.

K joints, H, W picture. `visible`: 0 not annotated, 1 annotated but occluded, 2 visible.
"""

import collections
import functools
import pathlib
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from common import building, images, records
from common.errors import UserError
from hourglass import sides

KIND = "pose"
BUILDER = "hourglass.poses 1"
ROUNDING = 1.0  # pixels that a joint may lie beyond the picture and still be on its border


class Body(NamedTuple):
    """What the joints of a record set are, and how poses of it are measured."""

    labels: list  # names of the joints
    pairs: list  # [(left, right)]: joints that change places in a mirror
    skeleton: list  # [(joint, joint)]: limbs to draw
    metric: str  # "pckh", "pck" or "oks"
    head: list = ()  # the two ends of the head, or nothing
    torso: list = ()  # left shoulder and right hip, or nothing
    sigmas: list = ()  # of OKS, one per joint, or nothing
    absent: str = "unknown"  # what a joint without annotation is: "unknown", or "out of view", to be learnt as such
    unpaired: list = ()  # names that say left or right and have no partner

    @property
    def mirrors(self):
        """Whether a mirrored picture shows the same joints: not where a joint's partner is not known."""
        return not self.unpaired


class Person(NamedTuple):
    """One person as a reader of hourglass/sources.py finds it; all in pixels of the picture, continuous."""

    image: Any  # path of the picture, or its encoded bytes
    filename: str  # stored in the record and named in messages
    joints_xy: np.ndarray  # [K, 2]
    visible: np.ndarray  # [K] 0, 1, 2
    center: tuple | None = None  # (x, y); None takes the middle of the joints' box
    scale: float | None = None  # height / 200 pixels; None takes the longer side of that box
    size: tuple | None = None  # (width, height) that the annotation claims; None if it says nothing
    box: tuple = (0, 0, 0, 0)  # (x, y, w, h), zeros where it is not known
    area: float = 0.0  # of the person's mask, 0 where it is not known
    head_size: float = 0.0  # MPII: 0.6 times the diagonal of the head's box; 0 where it is not known
    image_id: int = 0
    person_id: int = 0
    repairs: tuple = ()  # what the reader mended, in words


class Source(NamedTuple):
    """A data set to build records from: `load(item)` gives the Person of each item of each split."""

    name: str
    body: Body
    splits: dict  # split -> sequence of items
    load: Callable[[Any], Person]  # raises UserError with the name of the file
    origin: str = ""  # where the data come from, for the manifest
    left_out: dict = {}  # reason -> names of what the reader leaves out by its rules
    facts: dict = {}  # what else the manifest is to say: first_pixel, center_shift, head_boxes
    notes: list = ()  # sentences that the owner of the data should read


def with_pairs(body, pairs):
    """A `Body` with other pairs, named by hand; what then is in none of them is in the middle."""
    return body._replace(pairs=list(pairs), unpaired=[])


def mirror_notes(body):
    """Sentences on what the names leave open about left and right."""
    if body.unpaired:
        are = "says a side and has" if len(body.unpaired) == 1 else "say a side and have"
        return [f"{', '.join(body.unpaired)} {are} no partner: nothing is mirrored, neither in training nor in a flip "
                "test. Build with --pairs left:right,left:right to name the pairs, or --pairs none."]
    if not body.pairs and len(body.labels) > 1:
        return ["no pair of joints is left and right: in a mirror all stay what they are. If some change places, "
                "build with --pairs left:right,left:right."]
    return []


MPII_LABELS = ["right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax",
               "upper_neck", "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow",
               "left_wrist"]
MPII_SKELETON = [(0, 1), (1, 2), (2, 6), (6, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 9), (10, 11), (11, 12), (12, 7),
                 (7, 13), (13, 14), (14, 15)]
LSP_LABELS = ["right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist",
              "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top"]
LSP_SKELETON = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (6, 7), (7, 8), (8, 12), (12, 9), (9, 10), (10, 11), (12, 13),
                (8, 2), (9, 3)]
MPII = Body(MPII_LABELS, sides.pairs_of(MPII_LABELS), MPII_SKELETON, "pckh", [8, 9], [13, 2], absent="out of view")
LSP = Body(LSP_LABELS, sides.pairs_of(LSP_LABELS), LSP_SKELETON, "pck", [12, 13], [9, 2])


def encode_example(person, image_bytes, height, width, image_format="jpeg"):
    """A serialized tf.train.Example of a `Person` whose picture is given."""
    def values(kind, key, *entries):
        return tf.train.Feature(**{kind: {"value": np.asarray(entries, key).reshape(-1).tolist()}})

    def ints(*entries):
        return values("int64_list", np.int64, *entries)

    def floats(*entries):
        return values("float_list", np.float32, *entries)

    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    x, y, w, h = person.box
    joints_xy = np.asarray(person.joints_xy, np.float32)
    return tf.train.Example(features=tf.train.Features(feature={
        "image/encoded": text(image_bytes), "image/format": text(image_format.encode()),
        "image/filename": text(person.filename.encode()), "image/id": ints(person.image_id),
        "image/height": ints(height), "image/width": ints(width), "person/id": ints(person.person_id),
        "person/joints/x": floats(joints_xy[:, 0]), "person/joints/y": floats(joints_xy[:, 1]),
        "person/joints/visible": ints(person.visible),
        "person/center/x": floats(person.center[0]), "person/center/y": floats(person.center[1]),
        "person/scale": floats(person.scale), "person/area": floats(person.area),
        "person/head_size": floats(person.head_size),
        "person/box/x": floats(x), "person/box/y": floats(y), "person/box/w": floats(w), "person/box/h": floats(h),
    })).SerializeToString(deterministic=True)


def parse(serialized, num_joints):
    """The contents of serialized records [B] (or of one, a scalar), as tensors; works in a graph.

    {"image_bytes", "filename": string, "image_id", "person_id": int64, "height", "width": int32, "joints": float32
    [B, K, 2] pixels of the picture, "visible": int32 [B, K], "center" [B, 2], "box" [B, 4] (x, y, w, h), "scale",
    "area", "head_size": float32 [B]}. tf.errors.InvalidArgumentError where a record has another number of joints.
    """
    def one(kind):
        return tf.io.FixedLenFeature([], kind)

    several = ("person/joints/x", "person/joints/y")
    single = ("person/center/x", "person/center/y", "person/scale", "person/area", "person/head_size",
              "person/box/x", "person/box/y", "person/box/w", "person/box/h")
    spec = {"image/encoded": one(tf.string), "image/filename": one(tf.string),
            "person/joints/visible": tf.io.FixedLenFeature([num_joints], tf.int64)}
    spec |= {key: one(tf.int64) for key in ("image/id", "person/id", "image/height", "image/width")}
    spec |= {key: tf.io.FixedLenFeature([num_joints], tf.float32) for key in several}
    spec |= {key: one(tf.float32) for key in single}
    parse_them = tf.io.parse_single_example if serialized.shape.rank == 0 else tf.io.parse_example
    found = parse_them(serialized, spec)

    def stacked(*keys):
        return tf.stack([found[f"person/{key}"] for key in keys], axis=-1)

    return {
        "image_bytes": found["image/encoded"], "filename": found["image/filename"], "image_id": found["image/id"],
        "person_id": found["person/id"], "height": tf.cast(found["image/height"], tf.int32),
        "width": tf.cast(found["image/width"], tf.int32), "joints": stacked("joints/x", "joints/y"),
        "visible": tf.cast(found["person/joints/visible"], tf.int32), "center": stacked("center/x", "center/y"),
        "box": stacked("box/x", "box/y", "box/w", "box/h"),
        **{key: found[f"person/{key}"] for key in ("scale", "area", "head_size")}}


def build_records(source, out_root="tfrecords", *, shards=None, num_workers=None, on_bad="error", progress=True):
    """Writes the records of a `Source` to `out_root`/<its name> and returns a `building.Report`, which it also
    prints.

    The rest as in `building.build`.
    """
    body, notes = source.body._asdict(), [*source.notes, *mirror_notes(source.body)]
    report = building.build(
        pathlib.Path(out_root) / source.name, source.splits, lambda item: _example(source, item), kind=KIND,
        labels=body.pop("labels"), builder=BUILDER, origin=source.origin, units=("persons", "joints"),
        manifest={**body, **source.facts, "notes": notes}, left_out=source.left_out, shards=shards,
        num_workers=num_workers, on_bad=on_bad, progress=progress)
    if progress:
        for line in (*fact_lines(source.facts), *(f"note: {note}" for note in notes)):
            print(line)
    return report


def fact_lines(facts):
    """What a reader took for granted, or found beside the joints, in words; facts: as in `Source` and the manifest."""
    lines = []
    if "first_pixel" in facts:
        lines.append(f"pixels of the source count from {facts['first_pixel']} (--first_pixel)")
    if "center_shift" in facts:
        lines.append(f"centres are moved down by {facts['center_shift']:g} times the scale (--center_shift)")
    if "head_boxes" in facts:
        counts = ", ".join(f"{split} {count}" for split, count in facts["head_boxes"].items() if count)
        lines.append(f"persons with a box of the head: {counts or 'none, so there is no PCKh to hold against others'}")
    return lines


def body_of(folder):
    """The `Body` in the manifest of a pose record set. Raises UserError for another kind.

    Sets that were built before joints could be unpaired know only the pairs that begin with their side; what their
    names say beyond that is added, and said.
    """
    manifest = records.require_kind(folder, KIND)
    body = Body(**{key: manifest[key] for key in Body._fields if key in manifest})
    if "unpaired" in manifest:
        return body
    taken = {joint for pair in body.pairs for joint in pair}
    more = [pair for pair in sides.pairs_of(body.labels) if not taken & set(pair)]
    body = body._replace(pairs=[*body.pairs, *more], unpaired=sides.unpaired(body.labels, body.pairs))
    if more or body.unpaired:
        names = ", ".join(f"{body.labels[left]} and {body.labels[right]}" for left, right in more)
        _say_once(f"{folder} was built by an older reader of joint names"
                  + (f"; {names} change places in a mirror, too." if more else ".")
                  + "".join(f" {note[0].upper()}{note[1:]}" for note in mirror_notes(body) if body.unpaired))
    return body


@functools.cache
def _say_once(line):
    print(line, flush=True)


def mend(person, width, height, body):
    """(Person with every field filled and its joints in the picture, Counter of what was done for it).

    A joint that lies outside the picture (width, height pixels) is one that is not annotated: it is not in view.
    One within a pixel of the border is put on it. Without a usable centre and scale those of the joints' box are
    taken (the longer side is the height), without a head size the distance of the two ends of the head.
    Coordinates of joints that are not annotated are 0. If the picture has another size than the annotation claims
    but the same shape, everything is scaled. A UserError names the file for another shape, for numbers that are
    not finite, for the wrong number of joints, and where no joint is annotated.
    """
    name, count = person.filename, len(body.labels)
    joints_xy, visible = np.asarray(person.joints_xy, np.float64), np.asarray(person.visible)
    if joints_xy.shape != (count, 2) or visible.shape != (count,):
        raise UserError(f"{name} must have {count} joints (x, y) and {count} visibilities, and has "
                        f"{' x '.join(map(str, joints_xy.shape))} and {len(visible)}. Correct its annotation.")
    if not np.isin(visible, (0, 1, 2)).all():
        raise UserError(f"{name} must have visibilities 0, 1 or 2, and has others. Correct its annotation.")
    if not np.isfinite(joints_xy[visible > 0]).all():
        raise UserError(f"{name} must have joints of finite numbers, and has one with NaN or infinity. "
                        "Correct its annotation.")
    repairs = collections.Counter(person.repairs)
    factor = _resized(person, width, height)
    if factor is not None:
        repairs["picture resized after annotating, joints scaled"] += 1
        person, joints_xy = _scaled(person, factor), joints_xy * factor
    clipped = np.clip(joints_xy, 0, [width, height])
    outside = (visible > 0) & (np.abs(clipped - joints_xy) > ROUNDING).any(axis=1)
    if outside.any():
        repairs["joint outside the picture taken as not in view"] += int(outside.sum())
    visible = np.where(outside, 0, visible)
    joints_xy = np.where(visible[:, None] > 0, clipped, 0)
    if not visible.any():
        raise UserError(f"{name} must have an annotated joint in the picture, and has none. Remove the person.")
    person, guessed = _with_place(person._replace(joints_xy=joints_xy, visible=visible))
    repairs.update(guessed)
    if not person.head_size and len(body.head) == 2 and visible[list(body.head)].all():
        length = np.linalg.norm(np.subtract(*joints_xy[list(body.head)]))
        person = person._replace(head_size=float(length))
        if body.metric == "pckh":
            repairs["head size not given: the distance of the head's two ends taken, which is not MPII's"] += 1
    return person._replace(size=(width, height), repairs=()), repairs


def _resized(person, width, height):
    """Factors [2] from the annotated to the stored picture, None where they are as large."""
    if not person.size or min(person.size) <= 0 or tuple(person.size) == (width, height):
        return None
    w, h = person.size
    if abs(w * height - h * width) > max(w, h, width, height):  # more than rounding one side to a pixel
        raise UserError(f"{person.filename} must be as large as annotated, {w} x {h}, and is {width} x {height}. "
                        "Correct its annotation, or put the annotated picture there.")
    return np.array([width / w, height / h])


def _scaled(person, factor):
    mean = float(np.sqrt(factor.prod()))
    return person._replace(
        center=person.center and tuple(np.multiply(person.center, factor)),
        scale=person.scale and person.scale * mean, area=person.area * mean * mean,
        head_size=person.head_size * mean, box=tuple(np.multiply(person.box, [*factor, *factor])))


def _with_place(person):
    """(Person with centre and scale, how often they were guessed)."""
    annotated = person.joints_xy[person.visible > 0]
    low, high = annotated.min(0), annotated.max(0)
    guessed = collections.Counter()
    if person.scale is None or not (np.isfinite(person.scale) and person.scale > 0):
        if (high - low).max() <= 0:
            raise UserError(f"{person.filename} must have a positive scale, or joints apart from each other to take "
                            "it from, and has neither. Correct its annotation.")
        if person.scale is not None:
            guessed["scale that is none, taken from the joints"] += 1
        person = person._replace(scale=float((high - low).max() / 200))
    if person.center is None or not np.isfinite(person.center).all() or max(person.center) <= 0:
        if person.center is not None:
            guessed["centre that is none, taken from the joints"] += 1
        person = person._replace(center=tuple((low + high) / 2))
    return person, guessed


def _example(source, item):
    """(serialized record, number of annotated joints, Counter of repairs); a UserError stands against it."""
    person = source.load(item)
    picture, name = building.read_picture(person.image, person.filename, person.size and tuple(person.size))
    whole, repairs = mend(person._replace(filename=name), picture.width, picture.height, source.body)
    repairs.update(picture.repairs)
    if images.read_header(picture.data).orientation > 1:
        repairs["EXIF orientation not applied: joints count as of the stored pixels"] += 1
    serialized = encode_example(whole._replace(filename=person.filename), picture.data, picture.height, picture.width,
                                picture.format)
    return serialized, int((whole.visible > 0).sum()), repairs
