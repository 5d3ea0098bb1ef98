"""Boxes as tensors: corner and centre forms, IoU, clipping, and how pictures become squares and boxes come back.

Everything is TensorFlow in float32 and works in a graph, in tf.data and in an exported model; leading axes
broadcast. A box carries its order in its name: `boxes_xyxy` is (left, top, right, bottom), `boxes_cxcywh` is
(centre x, centre y, width, height). Units are the caller's, fractions or pixels, unless a docstring says
otherwise.

Shape letters: B batch, H W picture, N M boxes.
"""

from typing import Callable, NamedTuple

import tensorflow as tf


def to_xyxy(boxes_cxcywh):
    """Corners [..., 4] of boxes given by centre and size [..., 4]."""
    centre, size = tf.split(tf.cast(boxes_cxcywh, tf.float32), 2, axis=-1)
    return tf.concat([centre - size / 2.0, centre + size / 2.0], axis=-1)


def to_cxcywh(boxes_xyxy):
    """Centre and size [..., 4] of boxes given by their corners [..., 4]."""
    low, high = tf.split(tf.cast(boxes_xyxy, tf.float32), 2, axis=-1)
    return tf.concat([(low + high) / 2.0, high - low], axis=-1)


def area(boxes_xyxy):
    """Areas [...] of boxes [..., 4]; 0 for a box without width or height, or turned inside out."""
    return _area(*tf.unstack(tf.cast(boxes_xyxy, tf.float32), axis=-1))


def iou(a_xyxy, b_xyxy, is_crowd=None):
    """IoU [..., N, M] of every a [..., N, 4] with every b [..., M, 4]; 0 where the union is 0.

    is_crowd: bool, of every b [..., M] or of all []. With a crowd it is the share of a that lies in it, since members
    of a crowd are smaller than it by far (pycocotools, iscrowd).
    """
    a_xyxy, b_xyxy = tf.cast(a_xyxy, tf.float32), tf.cast(b_xyxy, tf.float32)
    if is_crowd is not None and len(is_crowd.shape):
        is_crowd = is_crowd[..., tf.newaxis, :]
    return iou_paired(a_xyxy[..., :, tf.newaxis, :], b_xyxy[..., tf.newaxis, :, :], is_crowd)


def iou_paired(a_xyxy, b_xyxy, is_crowd=None):
    """IoU [...] of boxes [..., 4] with boxes [..., 4], one to one; 0 where the union is 0. is_crowd: as in `iou`."""
    a = a_left, a_top, a_right, a_bottom = tf.unstack(tf.cast(a_xyxy, tf.float32), axis=-1)
    b = b_left, b_top, b_right, b_bottom = tf.unstack(tf.cast(b_xyxy, tf.float32), axis=-1)
    intersection = _area(tf.maximum(a_left, b_left), tf.maximum(a_top, b_top),
                         tf.minimum(a_right, b_right), tf.minimum(a_bottom, b_bottom))
    union = _area(*a) + _area(*b) - intersection
    if is_crowd is not None:
        union = tf.where(is_crowd, _area(*a), union)
    return tf.math.divide_no_nan(intersection, union)


def _area(left, top, right, bottom):
    return tf.maximum(right - left, 0.0) * tf.maximum(bottom - top, 0.0)


def shape_iou(sizes_a, sizes_b):
    """IoU [..., N, M] of sizes (w, h) [..., N, 2] with sizes [M, 2] on a common centre, as for anchors."""
    sizes_a = tf.cast(sizes_a, tf.float32)[..., :, tf.newaxis, :]  # [..., N, 1, 2]
    sizes_b = tf.cast(sizes_b, tf.float32)
    intersection = tf.reduce_prod(tf.minimum(sizes_a, sizes_b), axis=-1)
    union = tf.reduce_prod(sizes_a, axis=-1) + tf.reduce_prod(sizes_b, axis=-1) - intersection
    return tf.math.divide_no_nan(intersection, union)


def clip(boxes_xyxy, height=1.0, width=1.0):
    """Boxes [..., 4] cut at the picture's border.

    height, width: of the picture, scalars or [...] with the boxes' leading axes.
    """
    boxes_xyxy = tf.cast(boxes_xyxy, tf.float32)
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    limit = _per_box(boxes_xyxy, tf.stack([width, height, width, height], axis=-1))
    return tf.minimum(tf.maximum(boxes_xyxy, 0.0), limit)


def letterbox_geometry(height, width, size):
    """(new_height, new_width, top, left), int32: where a picture lands in a square of side `size`.

    The longer side fills the square, the shorter keeps the ratio and is centred, both rounded down to whole
    pixels (Darknet, letterbox_image); unlike Darknet a side is at least 1 pixel. height, width: ints or
    integer tensors [...].
    """
    height, width = tf.cast(height, tf.int32), tf.cast(width, tf.int32)
    size = tf.cast(size, tf.int32)
    longer = tf.maximum(height, width)
    new_height = tf.maximum(height * size // longer, 1)
    new_width = tf.maximum(width * size // longer, 1)
    return new_height, new_width, (size - new_height) // 2, (size - new_width) // 2


def letterbox(image, size, fill=0.5):
    """The picture resized (bilinear) into the middle of a square of side `size`, the bars filled with `fill`.

    image: [H, W, 3] uint8, or float already in 0..1. Returns float32 [size, size, 3] in 0..1.
    """
    image = tf.image.convert_image_dtype(image, tf.float32)
    shape = tf.shape(image)
    new_height, new_width, top, left = letterbox_geometry(shape[0], shape[1], size)
    image = tf.image.resize(image, tf.stack([new_height, new_width]))
    bars = [[top, size - new_height - top], [left, size - new_width - left], [0, 0]]
    image = tf.pad(image, bars, constant_values=fill)
    side = tf.get_static_value(size)  # None where the size is drawn in the graph
    return tf.ensure_shape(image, [side, side, 3])


def letterbox_boxes(boxes_xyxy, height, width, size):
    """Boxes [..., N, 4] in fractions of a picture as fractions of its letterboxed network input.

    height, width: of the picture, scalars or [...] with the boxes' leading axes.
    """
    boxes_xyxy = tf.cast(boxes_xyxy, tf.float32)
    scale, shift = _letterbox_transform(height, width, size)
    pixels = boxes_xyxy * _per_box(boxes_xyxy, scale) + _per_box(boxes_xyxy, shift)
    return pixels / tf.cast(size, tf.float32)


def unletterbox_boxes(boxes_xyxy, height, width, size):
    """Boxes [..., N, 4] in fractions of a letterboxed network input as pixels of the picture, clipped to it.

    height, width: of the picture, scalars or [...] with the boxes' leading axes. Takes the whole pixels where
    the picture really lies; Darknet's correct_yolo_boxes takes (size - new_size) / 2. and is half a pixel off
    when that is not a whole number.
    """
    boxes_xyxy = tf.cast(boxes_xyxy, tf.float32)
    scale, shift = _letterbox_transform(height, width, size)
    fractions = boxes_xyxy * tf.cast(size, tf.float32) - _per_box(boxes_xyxy, shift)
    fractions /= _per_box(boxes_xyxy, scale)
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    pixels = fractions * _per_box(boxes_xyxy, tf.stack([width, height, width, height], axis=-1))
    return clip(pixels, height, width)


def warp(image, size):
    """The picture resized (bilinear) to a square of side `size`, whatever its ratio, as the reference SSD does.

    image: [H, W, 3] uint8, or float already in 0..1. Returns float32 [size, size, 3] in 0..1.
    """
    image = tf.image.resize(tf.image.convert_image_dtype(image, tf.float32), [size, size])
    return tf.ensure_shape(image, [size, size, 3])


def unwarp_boxes(boxes_xyxy, height, width, size):
    """Boxes [..., N, 4] in fractions of a warped network input as pixels of the picture, clipped to it.

    height, width: of the picture, scalars or [...] with the boxes' leading axes. size has no influence; it
    stands there as in `unletterbox_boxes`.
    """
    boxes_xyxy = tf.cast(boxes_xyxy, tf.float32)
    height, width = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    pixels = boxes_xyxy * _per_box(boxes_xyxy, tf.stack([width, height, width, height], axis=-1))
    return clip(pixels, height, width)


class Geometry(NamedTuple):
    """How a picture becomes the network input, and boxes in fractions of that come back as its pixels."""

    to_input: Callable   # (image [H, W, 3], size) -> float32 [size, size, 3] in 0..1
    to_pixels: Callable  # (boxes_xyxy [..., N, 4], height, width, size) -> boxes_xyxy [..., N, 4]


LETTERBOX = Geometry(letterbox, unletterbox_boxes)
WARP = Geometry(warp, unwarp_boxes)


def _letterbox_transform(height, width, size):
    """(scale, shift) [..., 4]: fractions of the picture * scale + shift = pixels of the network input."""
    geometry = letterbox_geometry(height, width, size)
    new_height, new_width, top, left = (tf.cast(value, tf.float32) for value in geometry)
    return (tf.stack([new_width, new_height, new_width, new_height], axis=-1),
            tf.stack([left, top, left, top], axis=-1))


def _per_box(boxes_xyxy, values):
    """values [4] or [..., 4], one for a picture, shaped so that they broadcast against boxes [..., N, 4]."""
    if values.shape.rank == 1 or values.shape.rank == boxes_xyxy.shape.rank:
        return values
    return values[..., tf.newaxis, :]
