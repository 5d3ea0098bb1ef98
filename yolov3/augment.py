"""Augmentation of YOLO v3's training pictures: zoom, shift, stretch, mirror and colours; NumPy and OpenCV alone.

Everything random comes from the `rng` that is handed in (np.random.Generator), so that the same generator gives the
same picture. First the geometry is drawn, then only the pixels that stay in view are worked on. A landing is (left,
top, right, bottom): where the picture comes to lie, in whole pixels of the network input; it may reach beyond it.

H, W picture, N boxes, S side of the network input. A picture is uint8 RGB [H, W, 3].
"""

import math

import cv2
import numpy as np

SCALE_RANGE = (0.6, 1.6)     # size of the picture in the network input, 1 fits it in
ASPECT_JITTER = 1.3          # largest change of width against height
EXPOSURE = SATURATION = 1.5  # factor either way, as in yolov3.cfg
HUE = 0.05                   # of a turn either way, half of what stands there
MIN_VISIBLE = 0.25           # share of a box that must stay in view for it to stay a truth
GREY = 128                   # around the picture


def augment(image, boxes_xyxy, labels, rng, out):
    """Draws a random view of the picture into `out` uint8 [S, S, 3]; returns (boxes_xyxy float32 [K, 4], labels [K]).

    boxes_xyxy [N, 4] in fractions of the picture; what comes back are fractions of the network input, clipped, of the
    K objects that are in view. Of a crowd (label -1), any part in view counts.
    """
    landing = draw_landing(*image.shape[:2], rng, len(out))
    flip, colors = rng.random() < 0.5, color_matrix(*rng.random(3))
    moved = place(image, boxes_xyxy, landing, out, flip, colors)
    visible = np.clip(moved, 0, 1)
    stay = area(visible) > np.where(labels < 0, 0, MIN_VISIBLE) * area(moved)
    return visible[stay], labels[stay]


def draw_landing(height, width, rng, size):
    """A landing of random size, shape and place: a picture that fits in lies inside, a larger one covers it."""
    scale = math.exp(rng.uniform(*np.log(SCALE_RANGE))) * size / max(height, width)
    stretch = ASPECT_JITTER ** rng.uniform(-0.5, 0.5)
    across, down = max(round(width * scale * stretch), 1), max(round(height * scale / stretch), 1)
    left, top = (round(rng.random() * (size - side)) for side in (across, down))
    return left, top, left + across, top + down


def letterbox(image, boxes_xyxy, out):
    """`place` of the picture in the middle and as large as it fits in (`common.boxes.letterbox`)."""
    height, width, size = *image.shape[:2], len(out)
    across, down = (max(side * size // max(height, width), 1) for side in (width, height))
    left, top = (size - across) // 2, (size - down) // 2
    return place(image, boxes_xyxy, (left, top, left + across, top + down), out)


def place(image, boxes_xyxy, landing, out, flip=False, colors=None):
    """Draws a picture at its landing into the network input `out` uint8 [S, S, 3]; returns its boxes_xyxy [N, 4].

    It is scaled bilinearly, with grey around it. The boxes, float32 fractions, may reach beyond the view. flip: left
    and right change places in the network input. colors: 3x3 matrix that its pixels, grey ones as well, are
    multiplied by.
    """
    left, top, right, bottom = landing
    height, width, size = *image.shape[:2], len(out)
    columns, across, scale_x, shift_x = _axis(left, right, width, size)
    rows, down, scale_y, shift_y = _axis(top, bottom, height, size)
    shown = cv2.resize(image[rows, columns], (across.stop - across.start, down.stop - down.start))
    moved = np.asarray(boxes_xyxy, np.float32) * np.float32([width * scale_x, height * scale_y] * 2)
    moved += np.float32([shift_x, shift_y] * 2)
    if flip:
        shown, across = cv2.flip(shown, 1), slice(size - across.stop, size - across.start)
        moved = np.stack([size - moved[:, 2], moved[:, 1], size - moved[:, 0], moved[:, 3]], axis=-1)
    grey = GREY
    if colors is not None:
        shown, grey = cv2.transform(shown, colors), min(round(GREY * colors[0].sum()), 255)   # grey stays grey
    if shown.shape != out.shape:
        out[:] = grey
    out[down, across] = shown
    return moved / np.float32(size)


def _axis(start, end, length, size):
    """Along one side, `length` pixels of a picture landing on start..end: (slice of those in view, slice of the
    network input that they fill, factor and offset from coordinates in the picture to the network input)."""
    first, last = max(start, 0), min(end, size)
    seen = slice(int((first - start) * length / (end - start)), math.ceil((last - start) * length / (end - start)))
    scale = (last - first) / (seen.stop - seen.start)     # whole pixels are seen: the boxes follow them
    return seen, slice(first, last), scale, first - seen.start * scale


def area(boxes_xyxy):
    """Areas [N] of boxes [N, 4]."""
    return np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=-1)


_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_FROM_YIQ = np.linalg.inv(_TO_YIQ)


def color_matrix(exposure, saturation, hue):
    """The 3x3 matrix that changes exposure, saturation and hue of an RGB pixel; all three in 0..1, 0.5 for no change.

    In the luma-chroma plane (Y'IQ) saturation is a scaling and hue a rotation, so that a 3x3 matrix does what Darknet
    does in HSV, in a quarter of the time.
    """
    exposure, saturation = EXPOSURE ** (2 * exposure - 1), SATURATION ** (2 * saturation - 1)
    angle = (2 * hue - 1) * HUE * 2 * math.pi
    cos, sin = saturation * math.cos(angle), saturation * math.sin(angle)
    return (exposure * _FROM_YIQ @ [[1, 0, 0], [0, cos, -sin], [0, sin, cos]] @ _TO_YIQ).astype(np.float32)
