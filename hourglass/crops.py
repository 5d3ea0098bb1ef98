"""Which part of a picture the network sees, and what that does to its joints; NumPy and OpenCV only.

A crop is described by `to_picture` [2, 3]: the pixel of the picture at each pixel of the crop. Coordinates are
continuous: pixel i covers i to i + 1, in the picture and in the crop. A square is (left, top, side) in pixels of
the picture, and may reach beyond it.

K joints, H, W picture, S side of the network input. `visible`: 0 not annotated, 1 occluded, 2 visible.
"""

import cv2
import numpy as np

from common import decoding

CROPS = ("article", "center")
MARGIN = 0.125         # of the body's height around the joints; the article pads by "a proportion" of it
EVALUATION_MARGIN = 1.25  # 1 + 2 * MARGIN: whoever is as tall as his scale says has the same size in both crops
BODY_HEIGHT = 200      # pixels of a person of scale 1
GREY = 128             # beyond the picture


def joints_box(joints_xy, visible, scale, width, height, margin=MARGIN):
    """The article's proposal, (left, top, right, bottom): around the annotated joints, padded by margin * 200 * scale
    pixels, inside the picture. Without annotated joints it is the whole picture."""
    joints_xy = np.asarray(joints_xy, np.float64)[np.asarray(visible) > 0]
    picture = np.array([width, height], np.float64)
    if not len(joints_xy):
        return np.concatenate([np.zeros(2), picture])
    padding = margin * BODY_HEIGHT * scale
    low = np.clip(joints_xy.min(0) - padding, 0, picture - 1)
    high = np.clip(joints_xy.max(0) + padding, low + 1, picture)
    return np.concatenate([low, high])


def square_around(box_xyxy, margin=1.0):
    """The square (left, top, side) on the centre of a box (left, top, right, bottom) that holds it.

    The article resizes the box itself, which stretches whoever does not stand in a square; here the picture goes
    on beyond the shorter sides. margin: times the longer side, such as EVALUATION_MARGIN for a detector's box.
    """
    left, top, right, bottom = box_xyxy
    side = margin * max(right - left, bottom - top)
    return (left + right - side) / 2, (top + bottom - side) / 2, side


def crop_box(center, scale):
    """The square (left, top, side) for evaluation: side 200 * scale * 1.25 pixels around the centre (x, y)."""
    side = BODY_HEIGHT * scale * EVALUATION_MARGIN
    return center[0] - side / 2, center[1] - side / 2, side


def square_of(crop, joints_xy, visible, center, scale, width, height):
    """The square (left, top, side) of a person: around the joints ("article"), or around the centre ("center")."""
    if crop == "article":
        return square_around(joints_box(joints_xy, visible, scale, width, height))
    return crop_box(np.asarray(center, np.float64), scale)


def crop(image, square, size):
    """The square of a picture uint8 [H, W, 3] as uint8 [S, S, 3], grey beyond the picture."""
    return warp(image, to_picture(square, size), size)


def to_picture(square, size, degrees=0.0, flip=False):
    """float64 [2, 3]: pixel of the picture at a pixel of the crop of `square`, turned around its centre.

    degrees: how far what is in view turns, clockwise; flip: left and right change places in the crop, after
    turning.
    """
    left, top, side = square
    turn, zoom = np.radians(degrees), side / size
    cos, sin = np.cos(turn) * zoom, np.sin(turn) * zoom
    linear = np.array([[-cos if flip else cos, sin], [sin if flip else -sin, cos]])
    center = np.array([left, top]) + side / 2
    return np.concatenate([linear, (center - linear @ [size / 2, size / 2])[:, None]], axis=1)


def invert(matrix):
    """The inverse of an affine matrix [2, 3]: from crop to picture becomes from picture to crop."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.concatenate([linear, -linear @ matrix[:, 2:]], axis=1)


def move(matrix, points):
    """points [..., 2] through an affine matrix [2, 3]."""
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def warp(image, matrix, size):
    """The crop uint8 [S, S, 3] of a picture uint8 [H, W, 3], sampled once, bilinearly; matrix: `to_picture`."""
    step = max(image.shape[:2]) // 32767 + 1  # OpenCV takes shorter sides than that
    if step > 1:
        image, matrix = np.ascontiguousarray(image[::step, ::step]), matrix / step
    centers = matrix.copy()                   # OpenCV counts from the middle of the first pixel
    centers[:, 2] += matrix[:, :2].sum(1) / 2 - 0.5
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(image, centers, (size, size), flags=flags, borderValue=(GREY,) * 3)


def view(image_bytes, matrix, size):
    """The crop uint8 [S, S, 3] of an encoded picture; matrix: `to_picture`."""
    zoom = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    image, shrink = decoding.decode_reduced(image_bytes, int(zoom))
    return warp(image, matrix / shrink, size)
