"""Made-up pictures for `--demo`: coloured shapes of six classes on varied backgrounds, drawn in seconds.

Everything in a picture follows from (seed, index). H, W are the picture's `size`, N its 1 to 4 objects.
"""

import cv2
import numpy as np
import tensorflow as tf

from common import detection

LABELS = ["disc", "square", "triangle", "ring", "cross", "star"]
SPLITS = {"train": 1200, "val": 200, "test": 200}
_SUBPIXELS = 4  # shapes are drawn this much larger and averaged, for smooth edges
_MAX_COVERED = 0.1  # share of the smaller of two boxes, so that no shape hides another's edges


def draw(seed, index, size=160):
    """Picture `index` of a series: image uint8 [H, W, 3] RGB, boxes_xyxy float32 [N, 4], labels int32 [N].

    Boxes are pixels, tight on the pixels that the shape covers by half or more, right and bottom edges
    exclusive.
    """
    rng = np.random.default_rng([seed, index])
    canvas = background(rng, size)
    boxes_xyxy, labels = [], []
    for _ in range(rng.integers(1, 5)):
        for _ in range(20):  # a crowded picture may end with fewer objects
            label = int(rng.integers(len(LABELS)))
            side = size * np.exp(rng.uniform(np.log(0.15), np.log(0.6)))
            left, top = rng.uniform(0, size - side, 2)
            outline = _outlines(LABELS[label], rng.uniform(-20, 20))
            opacity = _mask(outline, left, top, side, size)
            box = _tight(opacity)
            if all(_covered(box, other) <= _MAX_COVERED for other in boxes_xyxy):
                canvas = _paint(rng, canvas, opacity, box)
                boxes_xyxy.append(box)
                labels.append(label)
                break
    image = canvas + rng.normal(0, rng.uniform(0, 6), canvas.shape)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return image, np.array(boxes_xyxy, np.float32).reshape(-1, 4), np.array(labels, np.int32)


def source(*, name="demo", seed=0, size=160, splits=None):
    """The pictures as a `detection.Source`; `splits` maps a split to its number of pictures."""
    items, first = {}, 0
    for split, count in (splits or SPLITS).items():
        items[split] = range(first, first + count)
        first += count

    def load(index):
        image, boxes_xyxy, labels = draw(seed, index, size)
        data = tf.io.encode_jpeg(image, quality=92, chroma_downsampling=False).numpy()
        return detection.Annotation(data, f"{index:06d}.jpg", boxes_xyxy, labels, (size, size))

    return detection.Source(name, LABELS, items, load, f"made up, seed {seed}")


def build(out_root="tfrecords", *, name="demo", seed=0, size=160, splits=None, num_workers=None,
          progress=True):
    """Writes the records of the demo to `out_root`/`name` and returns the `building.Report`."""
    made_up = source(name=name, seed=seed, size=size, splits=splits)
    return detection.build_records(made_up, out_root, num_workers=num_workers, progress=progress)


def background(rng, size):
    """float32 [H, W, 3] from one of two colours to the other: a gradient, stripes, noise or blurred blobs."""
    y, x = np.mgrid[:size, :size].astype(np.float32) / size
    low, high = rng.uniform(30, 225, (2, 3)).astype(np.float32)
    kind = rng.integers(4)
    if kind == 0:
        angle = rng.uniform(0, 2 * np.pi)
        share = np.clip(0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle), 0, 1)
    elif kind == 1:
        angle, waves = rng.uniform(0, np.pi), rng.uniform(2, 12)
        high = low + (high - low) * 0.5
        share = 0.5 + 0.5 * np.sin(2 * np.pi * waves * (x * np.cos(angle) + y * np.sin(angle)))
    elif kind == 2:
        grain = int(rng.integers(4, size // 2))
        grains = rng.random((grain, grain), np.float32)
        share = cv2.resize(grains, (size, size), interpolation=cv2.INTER_LINEAR)
        high = low + (high - low) * 0.6
    else:
        dots = (rng.random((8, 8), np.float32) > 0.6).astype(np.float32)
        blobs = cv2.resize(dots, (size, size), interpolation=cv2.INTER_NEAREST)
        share = cv2.GaussianBlur(blobs, (0, 0), size / 16)
    return low + (high - low) * share[..., None].astype(np.float32)


def _outlines(shape, degrees):
    """Polygons around 0, the first to fill, a second to cut out of it; each [points, 2] (x, y)."""
    circle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    if shape in ("disc", "ring"):
        rims = [0.5 * np.stack([np.cos(circle), np.sin(circle)], 1)]
        return rims if shape == "disc" else [rims[0], rims[0] * 0.55]
    if shape == "square":
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.4
    elif shape == "triangle":
        points = np.array([(0, -0.5), (0.5, 0.45), (-0.5, 0.45)])
    elif shape == "cross":
        a, b = 0.48, 0.16
        points = np.array([(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b),
                           (b, a), (-b, a), (-b, b), (-a, b), (-a, -b), (-b, -b)])
    else:
        corners = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2, 0.21, 0.5)
        points = np.stack([radius * np.cos(corners), radius * np.sin(corners)], 1)
    sine, cosine = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    return [points @ np.array([[cosine, sine], [-sine, cosine]])]


def _mask(outlines, left, top, side, size):
    """float32 [H, W]: the share of each pixel that the shape covers; its longer side has `side` pixels."""
    corners = np.concatenate(outlines)
    lowest, extent = corners.min(0), np.ptp(corners, axis=0).max()
    large = np.zeros((size * _SUBPIXELS,) * 2, np.uint8)
    for value, points in zip((255, 0), outlines):
        pixels = ((points - lowest) / extent * side + (left, top)) * _SUBPIXELS - 0.5
        cv2.fillPoly(large, [np.rint(pixels * 16).astype(np.int32)], value, shift=4)
    return cv2.resize(large, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255


def _tight(opacity):
    columns = np.flatnonzero((opacity >= 0.5).any(axis=0))
    rows = np.flatnonzero((opacity >= 0.5).any(axis=1))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


def _paint(rng, canvas, opacity, box):
    """The canvas with the shape in a shaded colour that stands out from what is under it."""
    under = canvas[box[1]:box[3], box[0]:box[2]].mean(axis=(0, 1))
    colours = rng.uniform(0, 255, (8, 3))
    colour = colours[np.abs(colours - under).sum(1).argmax()]
    shade = np.linspace(*rng.uniform(0.8, 1.1, 2), len(canvas), dtype=np.float32)[:, None, None]
    return canvas + (np.clip(colour * shade, 0, 255) - canvas) * opacity[..., None]


def _covered(a, b):
    """The share of the smaller of two boxes that lies in both."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(0, width) * max(0, height) / smaller
