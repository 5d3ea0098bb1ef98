"""Augmentation of SSD's training pictures as the Caffe reference has it: colours, expansion, crop, mirror, resize.

NumPy and OpenCV alone, because it runs in worker processes that start without TensorFlow. Everything random comes
from the `rng` that is handed in (np.random.Generator), so that the same generator gives the same picture. First
all of the geometry is drawn, then only the pixels that stay in view are worked on.

H, W picture, N boxes, S side of the network input. A picture is uint8 RGB [H, W, 3]. A window is (left, top,
right, bottom) in whole pixels of the picture; it may reach beyond it.
"""

import struct
from typing import NamedTuple

import cv2
import numpy as np

from common import decoding
from common.errors import UserError

MEAN = (123, 117, 104)                   # R, G, B of ImageNet, which the network subtracts: padding becomes 0
BRIGHTNESS = 32                          # levels up or down
CONTRAST = SATURATION = (0.5, 1.5)       # factors
HUE = 18                                 # up or down; OpenCV counts a turn as 180, so that these are 36 degrees
EXPANSION = 4.0                          # largest side of the canvas against the picture's
OVERLAPS = (None, 0.1, 0.3, 0.5, 0.7, 0.9, 0.0)  # of a crop with one object at least; None: no crop, 0: any
TRIALS = 50
CROP_SCALE, CROP_ASPECT = (0.3, 1.0), (0.5, 2.0)
INTERPOLATIONS = (cv2.INTER_LINEAR, cv2.INTER_AREA, cv2.INTER_NEAREST, cv2.INTER_CUBIC, cv2.INTER_LANCZOS4)
_HEAD = "<II"                            # of a payload: number of boxes, bytes of the file name


class Colors(NamedTuple):
    """What `distort` does; the defaults change nothing."""

    brightness: int = 0                  # levels added
    contrast: float = 1.0
    saturation: float = 1.0
    hue: int = 0                         # added
    contrast_first: bool = True


def augment(image, boxes_xyxy, labels, rng, size):
    """A random view of the picture: (image uint8 [S, S, 3], boxes_xyxy [K, 4], labels [K]).

    boxes_xyxy float32 [N, 4] in fractions of the picture; what comes back are fractions of the view, clipped, of
    the K objects whose centre is in it, and of crowds (label -1) of which it shows any part.
    """
    height, width = image.shape[:2]
    boxes_xyxy = np.asarray(boxes_xyxy, np.float32) * np.float32([width, height] * 2)
    colors = draw_colors(rng)
    window = draw_crop(boxes_xyxy[labels >= 0], draw_expansion(height, width, rng), rng)
    interpolation = INTERPOLATIONS[rng.integers(len(INTERPOLATIONS))]
    mirrored = rng.random() < 0.5
    image, boxes_xyxy, labels = view(image, boxes_xyxy, labels, window, size, interpolation, colors)
    return (*mirror(image, boxes_xyxy), labels) if mirrored else (image, boxes_xyxy, labels)


def draw_colors(rng):
    """`Colors`, each change with probability 1/2, contrast before or after saturation and hue."""
    changes = rng.random(4) < 0.5
    drawn = (int(rng.integers(-BRIGHTNESS, BRIGHTNESS + 1)), rng.uniform(*CONTRAST), rng.uniform(*SATURATION),
             int(rng.integers(-HUE, HUE + 1)))
    chosen = [value if change else default for value, change, default in zip(drawn, changes, Colors())]
    return Colors(*chosen, contrast_first=rng.random() < 0.5)


def distort(image, colors):
    """The picture in other `Colors`, as long as its pixels: brightness, then contrast, saturation and hue."""
    image = change_brightness(image, colors.brightness)
    if colors.contrast_first:
        image = change_contrast(image, colors.contrast)
    image = change_saturation_and_hue(image, colors.saturation, colors.hue)
    return image if colors.contrast_first else change_contrast(image, colors.contrast)


def change_brightness(image, levels):
    """`levels` (a whole number) added to each channel, cut at 0 and 255."""
    return cv2.add(image, (levels, levels, levels, 0)) if levels else image


def change_contrast(image, factor):
    """Each channel multiplied, cut at 255."""
    return cv2.convertScaleAbs(image, alpha=factor) if factor != 1 else image


def change_saturation_and_hue(image, factor, turn):
    """Saturation multiplied, cut at 255, and hue turned by `turn` of 180, both in HSV.

    The hue comes round at 180 (Caffe's saturates, so that reds near the cut stay as they are), and it is the hue
    channel that is turned: the article's code changed rows of the picture.
    """
    if factor == 1 and turn == 0:
        return image
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
    levels = np.arange(256)
    if turn:
        table = ((levels + turn) % 180).astype(np.uint8)
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 0), table), hsv, 0)
    if factor != 1:
        table = np.minimum(np.rint(levels * factor), 255).astype(np.uint8)
        cv2.insertChannel(cv2.LUT(cv2.extractChannel(hsv, 1), table), hsv, 1)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def draw_expansion(height, width, rng):
    """A window with the picture somewhere in it, up to four times as wide and high; every second time just it."""
    if rng.random() < 0.5:
        return 0, 0, width, height
    ratio = rng.uniform(1, EXPANSION)
    across, down = int(width * ratio), int(height * ratio)
    left, top = -int(rng.uniform(0, across - width)), -int(rng.uniform(0, down - height))
    return left, top, left + across, top + down


def draw_crop(boxes_xyxy, window, rng):
    """A window in `window` that overlaps one object at least as much as one of `OVERLAPS`, drawn at random.

    boxes_xyxy [N, 4] pixels. In Caffe each overlap has its trials, and one of those that succeed is taken; it
    comes to the same to go through them in random order until one succeeds. The whole window always does.
    """
    left, top, right, bottom = window
    across, down = right - left, bottom - top
    fractions = (boxes_xyxy - np.float32([left, top] * 2)) / np.float32([across, down] * 2)
    for choice in rng.permutation(len(OVERLAPS)):
        if OVERLAPS[choice] is None:
            return window
        crops = draw_shapes(rng, TRIALS)
        fits = np.flatnonzero((overlaps(crops, fractions) >= OVERLAPS[choice]).any(axis=1))
        if len(fits):
            low, high = np.split(crops[fits[0]] * [across, down, across, down], 2)
            low = low.astype(int)
            high = np.maximum(high.astype(int), low + 1)
            return left + int(low[0]), top + int(low[1]), left + int(high[0]), top + int(high[1])
    return window


def draw_shapes(rng, count):
    """Crops [count, 4] (x1, y1, x2, y2) in fractions: scale .3 to 1, aspect .5 to 2, anywhere that is inside."""
    scale = rng.uniform(*CROP_SCALE, count)
    aspect = np.clip(rng.uniform(*CROP_ASPECT, count), scale ** 2, scale ** -2)    # so that no side exceeds 1
    sides = np.stack([scale * np.sqrt(aspect), scale / np.sqrt(aspect)], axis=-1)
    corners = rng.random((count, 2)) * (1 - sides)
    return np.concatenate([corners, corners + sides], axis=-1)


def overlaps(a_xyxy, b_xyxy):
    """IoU [N, M] of boxes [N, 4] and [M, 4]; 0 where the union is 0."""
    a_xyxy, b_xyxy = a_xyxy[:, None], b_xyxy[None]
    sides = np.minimum(a_xyxy[..., 2:], b_xyxy[..., 2:]) - np.maximum(a_xyxy[..., :2], b_xyxy[..., :2])
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    areas = [np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0), axis=-1) for boxes in (a_xyxy, b_xyxy)]
    return shared / np.maximum(areas[0] + areas[1] - shared, 1e-12)


def view(image, boxes_xyxy, labels, window, size, interpolation=cv2.INTER_LINEAR, colors=Colors()):
    """What is in the window, warped to a square: (image uint8 [S, S, 3], boxes_xyxy [K, 4] fractions, labels [K]).

    boxes_xyxy [N, 4] pixels of the picture. Objects whose centre is in the window stay, clipped to it (the centre
    rule of Caffe, whose author's article first kept all, unclipped), and crowds (label -1) that reach into it. Outside
    of the picture is `MEAN`, which `colors` leaves as it is. Caffe pastes the picture into a canvas of up to 16 times
    its size; here it is resized straight to its place, which is rounded to whole pixels of the view, and the boxes
    with it.
    """
    left, top, right, bottom = window
    height, width = image.shape[:2]
    seen = max(left, 0), max(top, 0), min(right, width), min(bottom, height)      # the picture in the window
    canvas = np.empty([size, size, 3], np.uint8)
    if seen[0] >= seen[2] or seen[1] >= seen[3]:
        canvas[:] = MEAN
        return canvas, np.zeros([0, 4], np.float32), labels[:0]
    x1, x2 = _span(seen[0] - left, seen[2] - left, right - left, size)
    y1, y2 = _span(seen[1] - top, seen[3] - top, bottom - top, size)
    if (x1, y1, x2, y2) != (0, 0, size, size):
        canvas[:] = MEAN
    part = distort(np.ascontiguousarray(image[seen[1]:seen[3], seen[0]:seen[2]]), colors)
    canvas[y1:y2, x1:x2] = cv2.resize(part, (x2 - x1, y2 - y1), interpolation=interpolation)

    center = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
    stay = ((center >= [left, top]) & (center < [right, bottom])).all(axis=1)
    reaches = ((boxes_xyxy[:, 2:] > [left, top]) & (boxes_xyxy[:, :2] < [right, bottom])).all(axis=1)
    stay |= (labels < 0) & reaches
    scale = np.float32([(x2 - x1) / (seen[2] - seen[0]), (y2 - y1) / (seen[3] - seen[1])] * 2)
    moved = (boxes_xyxy[stay] - np.float32(seen[:2] * 2)) * scale + np.float32([x1, y1] * 2)
    moved = np.clip(moved, np.float32([x1, y1] * 2), np.float32([x2, y2] * 2))
    return canvas, moved / np.float32(size), labels[stay]


def _span(start, end, length, size):
    """Where start..end of `length` lands on `size` pixels: whole pixels, at least one."""
    first = min(round(start * size / length), size - 1)
    return first, max(round(end * size / length), first + 1)


def mirror(image, boxes_xyxy):
    """Left and right swapped, in the picture and in boxes in fractions of it."""
    x1, y1, x2, y2 = boxes_xyxy.T
    return cv2.flip(image, 1), np.stack([1 - x2, y1, 1 - x1, y2], axis=-1)


def pack(image_bytes, name, boxes_xyxy, labels):
    """One example as the bytes that `prepare` takes; boxes_xyxy [N, 4] fractions, labels [N], name bytes."""
    head = struct.pack(_HEAD, len(labels), len(name))
    return b"".join([head, np.asarray(boxes_xyxy, "<f4").tobytes(), np.asarray(labels, "<i4").tobytes(), name,
                     image_bytes])


def unpack(payload):
    """(image_bytes, name, boxes_xyxy float32 [N, 4], labels int32 [N]), the inverse of `pack`."""
    count, length = struct.unpack_from(_HEAD, payload)
    at = struct.calcsize(_HEAD)
    boxes_xyxy = np.frombuffer(payload, "<f4", 4 * count, at).reshape(-1, 4)
    labels = np.frombuffer(payload, "<i4", count, at + 16 * count)
    at += 20 * count
    return payload[at + length:], bytes(payload[at:at + length]), boxes_xyxy, labels


def prepare(payload, rng, *, size, most, augmented=True):
    """A worker's job: decode and augment one packed example, or only warp it to the square.

    most: boxes that the result has room for, those without an object labelled -1; UserError if there are more.
    Returns what `specs` says.
    """
    image_bytes, name, boxes_xyxy, labels = unpack(payload)
    name = name.decode(errors="replace")
    if len(labels) > most:
        raise UserError(f"{name} must have at most {most} objects, and has {len(labels)}. Build the records "
                        "again.")
    image = decoding.decode(image_bytes, name)
    if augmented:
        image, boxes_xyxy, labels = augment(image, boxes_xyxy, labels, rng, size)
    else:
        image = cv2.resize(image, (size, size), interpolation=cv2.INTER_LINEAR)
    room = most - len(labels)
    return {"image": image, "boxes_xyxy": np.pad(boxes_xyxy, ((0, room), (0, 0))),
            "labels": np.pad(labels, (0, room), constant_values=-1)}


def specs(size, most):
    """{name: (shape, dtype)} of what `prepare` returns."""
    return {"image": ((size, size, 3), np.uint8), "boxes_xyxy": ((most, 4), np.float32),
            "labels": ((most,), np.int32)}
