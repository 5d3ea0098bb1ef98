"""The detection record that yolov1, yolov3 and ssd share: what is in it, how it is built and how it is read.

The keys are those of the TensorFlow Object Detection API, so its records can be read too; tfrecords/README.md
lists them. Stored class ids count from 1 (0 is the background there); everywhere else here they count from 0.

N boxes, H, W picture in pixels. Boxes are (left, top, right, bottom), the right and bottom edges exclusive,
so that width = right - left; pixels in an `Annotation`, fractions of the picture in a record.
"""

import collections
import pathlib
from typing import Any, Callable, NamedTuple

import numpy as np
import tensorflow as tf

from common import building, images, splits
from common.errors import UserError

KIND = "detection"
BUILDER = "common.detection 1"
VAL_SHARE = 0.1  # of what has no split of its own
DEALT = "a tenth of the pictures is val, dealt by a hash of their names, since nothing says which are."
decode_image = images.decode


class Annotation(NamedTuple):
    """One picture with its objects, as a reader of common/detection_sources.py finds them."""

    image: Any  # path of the picture, or its encoded bytes
    filename: str  # stored in the record and named in messages
    boxes_xyxy: np.ndarray  # [N, 4] pixels
    labels: np.ndarray  # [N] int, 0-based
    size: tuple | None = None  # (width, height) that the annotation claims; None if it says nothing
    difficult: np.ndarray | None = None  # [N] bool
    is_crowd: np.ndarray | None = None  # [N] bool
    area: np.ndarray | None = None  # [N] pixels of the object's mask; None takes the box
    repairs: tuple = ()  # what the reader mended, in words


class Source(NamedTuple):
    """A data set to build records from: `load(item)` gives the Annotation of each item of each split."""

    name: str
    labels: list  # class names, in the order of their ids
    splits: dict  # split -> sequence of items
    load: Callable[[Any], Annotation]  # raises UserError with the name of the file
    origin: str = ""  # where the data come from, for the manifest
    left_out: dict = {}  # reason -> names of files or objects that the reader passed over
    notes: tuple = ()  # sentences on what is no mistake for certain


def divide(parts, key):
    """({split: items}, notes) of {split: items} in which those under None are of no split: these are for training.

    Where nothing is val, a tenth of them is, by a hash of their keys. key: item -> its name.
    """
    dealt = splits.deal(parts.get(None, []), {} if "val" in parts else {"val": VAL_SHARE}, key=key)
    parts = parts | dealt
    return {split: parts[split] for split in splits.SPLITS if split in parts}, [DEALT] * ("val" in dealt)


def encode_example(image_bytes, height, width, filename, boxes_xyxy, labels, *, difficult=None, is_crowd=None,
                   area=None, label_names=None, image_format="jpeg"):
    """A serialized record; boxes_xyxy [N, 4] fractions, labels [N] from 0, area [N] pixels (or the box's)."""
    boxes_xyxy = np.asarray(boxes_xyxy, np.float32).reshape(-1, 4)
    labels = np.asarray(labels, np.int64).reshape(-1)
    if area is None:
        area = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=1) * height * width
    none = np.zeros(len(labels), np.int64)
    columns = dict(zip(("xmin", "ymin", "xmax", "ymax"), boxes_xyxy.T))
    features = {
        "image/encoded": _bytes([image_bytes]),
        "image/format": _bytes([image_format.encode()]),
        "image/filename": _bytes([filename.encode()]),
        "image/source_id": _bytes([filename.encode()]),
        "image/height": _ints([height]),
        "image/width": _ints([width]),
        **{f"image/object/bbox/{key}": _floats(column) for key, column in columns.items()},
        "image/object/class/label": _ints(labels + 1),
        "image/object/difficult": _ints(none if difficult is None else difficult),
        "image/object/is_crowd": _ints(none if is_crowd is None else is_crowd),
        "image/object/area": _floats(area),
    }
    if label_names is not None:
        features["image/object/class/text"] = _bytes([label_names[label].encode() for label in labels])
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString(deterministic=True)


def parse(serialized):
    """The contents of one serialized record (scalar string), as tensors; works in a graph.

    {"image_bytes": string, "height", "width": int32, "filename": string, "boxes_xyxy": [N, 4] float32
    fractions, "labels": [N] int32 0-based, "difficult", "is_crowd": [N] bool, "area": [N] float32 pixels}.
    Lists that a record leaves out are zeros; a missing area is the box's. tf.errors.InvalidArgumentError
    where a list has another length.
    """
    def listed(kind):
        return tf.io.FixedLenSequenceFeature([], kind, allow_missing=True)

    keys = ("xmin", "ymin", "xmax", "ymax")
    features = tf.io.parse_single_example(serialized, {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/filename": tf.io.FixedLenFeature([], tf.string, ""),
        "image/height": tf.io.FixedLenFeature([], tf.int64),
        "image/width": tf.io.FixedLenFeature([], tf.int64),
        **{f"image/object/bbox/{key}": listed(tf.float32) for key in keys},
        "image/object/class/label": listed(tf.int64),
        "image/object/difficult": listed(tf.int64),
        "image/object/is_crowd": listed(tf.int64),
        "image/object/area": listed(tf.float32),
    })
    boxes_xyxy = tf.stack([features[f"image/object/bbox/{key}"] for key in keys], axis=-1)  # [N, 4]
    num_boxes = tf.shape(boxes_xyxy)[0]

    def filled(key, default=None):
        values = features[f"image/object/{key}"]
        if default is None:
            default = tf.zeros([num_boxes], values.dtype)
        values = tf.cond(tf.size(values) == 0, lambda: default, lambda: values)
        return tf.reshape(values, [num_boxes])  # fails if a list is neither missing nor as long as the boxes

    height, width = tf.cast(features["image/height"], tf.int32), tf.cast(features["image/width"], tf.int32)
    box_area = tf.reduce_prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=-1)
    box_area *= tf.cast(height, tf.float32) * tf.cast(width, tf.float32)
    return {
        "image_bytes": features["image/encoded"],
        "height": height,
        "width": width,
        "filename": features["image/filename"],
        "boxes_xyxy": boxes_xyxy,
        "labels": tf.cast(tf.reshape(features["image/object/class/label"], [num_boxes]), tf.int32) - 1,
        "difficult": filled("difficult") > 0,
        "is_crowd": filled("is_crowd") > 0,
        "area": filled("area", box_area),
    }


def parse_batch(serialized):
    """What training needs of B serialized records [B], padded to the longest list, of N boxes; works in a graph.

    {"image_bytes", "filename": [B] string, "boxes_xyxy": [B, N, 4] float32 fractions, "labels": [B, N] int32 0-based,
    "is_crowd": [B, N] bool}; behind the last box zeros and the label -1. Errors as of `parse`.
    """
    keys = ("xmin", "ymin", "xmax", "ymax")
    features = tf.io.parse_example(serialized, {
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/filename": tf.io.FixedLenFeature([], tf.string, ""),
        **{f"image/object/bbox/{key}": tf.io.RaggedFeature(tf.float32) for key in keys},
        "image/object/class/label": tf.io.RaggedFeature(tf.int64),
        "image/object/is_crowd": tf.io.RaggedFeature(tf.int64),
    })
    counts = features["image/object/bbox/xmin"].row_lengths()
    shape = tf.stack([tf.size(counts), tf.reduce_max(counts)])

    def padded(key, optional=False):
        lengths = features[f"image/object/{key}"].row_lengths()
        fits = tf.reduce_all((lengths == counts) | (optional & (lengths == 0)))
        with tf.control_dependencies([tf.debugging.Assert(fits, [f"image/object/{key} of a record has not as many "
                                                                 "values as it has boxes: ", lengths, counts])]):
            return features[f"image/object/{key}"].to_tensor(shape=shape)

    return {
        "image_bytes": features["image/encoded"],
        "filename": features["image/filename"],
        "boxes_xyxy": tf.stack([padded(f"bbox/{key}") for key in keys], axis=-1),
        "labels": tf.cast(padded("class/label"), tf.int32) - 1,
        "is_crowd": padded("is_crowd", optional=True) > 0,
    }


def build_records(source, out_root="tfrecords", *, shards=None, num_workers=None, on_bad="error",
                  progress=True):
    """Writes the records of a `Source` to `out_root`/<its name> and returns a `building.Report`, which it also prints.

    The rest as in `building.build`. A UserError where two classes have one name.
    """
    if len(set(source.labels)) < len(source.labels):
        raise UserError(f"Classes must have different names, and {source.name} has {', '.join(source.labels)}. "
                        "Rename one.")
    alike = [name for name, times in collections.Counter(label.lower() for label in source.labels).items() if times > 1]
    notes = [*source.notes, *(f"classes that differ in upper and lower case alone are not the same: {name}."
                              for name in alike)]
    report = building.build(
        pathlib.Path(out_root) / source.name, source.splits, lambda item: _example(source, item), kind=KIND,
        labels=source.labels, builder=BUILDER, origin=source.origin, manifest={"notes": notes},
        left_out=source.left_out, shards=shards, num_workers=num_workers, on_bad=on_bad, progress=progress)
    if progress and notes:
        print("\n".join(f"note: {note}" for note in notes))
    return report


def repair_boxes(annotation, width, height):
    """(Annotation with all boxes in the picture and every field filled; Counter of what was done for it).

    If the picture (width, height pixels) has another size than the annotation claims but the same shape, it
    was resized after annotating: the boxes are scaled; a size of 0 says nothing. Boxes partly outside are
    clipped; those without area or wholly outside are dropped. A UserError names the file for another shape,
    and for numbers that are not finite.
    """
    boxes_xyxy = np.asarray(annotation.boxes_xyxy, np.float64).reshape(-1, 4)
    count, scale, repairs = len(boxes_xyxy), 1.0, collections.Counter(annotation.repairs)
    if not np.isfinite(boxes_xyxy).all():
        raise UserError(f"{annotation.filename} must have boxes of finite numbers, and has one with NaN or "
                        "infinity. Correct its annotation.")
    if annotation.size and min(annotation.size) > 0 and tuple(annotation.size) != (width, height):
        w, h = annotation.size
        if abs(w * height - h * width) > max(w, h, width, height):  # more than rounding one side to a pixel
            raise UserError(f"{annotation.filename} must be as large as annotated, {w} x {h}, and is {width} "
                            f"x {height}. Correct its annotation, or put the annotated picture there.")
        scale = np.array([width / w, height / h] * 2)
        repairs["picture resized after annotating, boxes scaled"] += 1
    boxes_xyxy = boxes_xyxy * scale
    area = None if annotation.area is None else np.asarray(annotation.area, np.float64) * np.prod(scale) ** .5
    clipped = np.clip(boxes_xyxy, 0, [width, height] * 2)
    sides, left = boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], clipped[:, 2:] - clipped[:, :2]
    empty = (sides <= 0).any(axis=1)
    outside = ~empty & (left <= 0).any(axis=1)
    kept = ~empty & ~outside
    moved = kept & (clipped != boxes_xyxy).any(axis=1)
    for what, mask in (("object without area dropped", empty),
                       ("object outside the picture dropped", outside),
                       ("box clipped to the picture", moved),
                       ("object of less than a pixel kept", kept & (np.prod(left, axis=1) < 1))):
        if mask.any():
            repairs[what] += int(mask.sum())
    if area is None:
        area = np.prod(left, axis=1)

    def flags(values):
        return (np.zeros(count, bool) if values is None else np.asarray(values, bool))[kept]

    return annotation._replace(
        boxes_xyxy=clipped[kept], labels=np.asarray(annotation.labels, np.int64).reshape(-1)[kept],
        size=(width, height), difficult=flags(annotation.difficult), is_crowd=flags(annotation.is_crowd),
        area=area[kept], repairs=()), repairs


def _example(source, item):
    """(serialized record, number of objects, Counter of repairs); a UserError stands against it."""
    annotation = source.load(item)
    picture, name = building.read_picture(
        annotation.image, annotation.filename, annotation.size and tuple(annotation.size))
    whole, repairs = repair_boxes(annotation._replace(filename=name), picture.width, picture.height)
    repairs.update(picture.repairs)
    fractions = whole.boxes_xyxy / ([picture.width, picture.height] * 2)
    return encode_example(
        picture.data, picture.height, picture.width, annotation.filename, fractions, whole.labels,
        difficult=whole.difficult, is_crowd=whole.is_crowd, area=whole.area, label_names=source.labels,
        image_format=picture.format), len(whole.labels), repairs


def _bytes(values):
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _ints(values):
    return tf.train.Feature(int64_list=tf.train.Int64List(value=np.asarray(values, np.int64)))


def _floats(values):
    return tf.train.Feature(float_list=tf.train.FloatList(value=values))
