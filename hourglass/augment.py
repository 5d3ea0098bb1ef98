"""The random view of a person that training sees: where the crop is, how it is turned, mirrored and coloured.

NumPy and OpenCV only. Everything random comes from the `rng` that is handed in.

K joints, S side of the network input. `visible`: 0 not annotated, 1 occluded, 2 visible.
"""

import cv2
import numpy as np

from hourglass import crops

ROTATION = 30.0              # degrees either way (article's repository and paper)
ZOOM = (0.75, 1.25)          # of the crop's side (paper, sec. 3.2)
SHIFT = 0.05                 # of the side of the article's crop: evaluation's centre is not the middle of the joints
GAIN = (0.6, 1.4)            # of all channels (the authors' code draws it for each)
TINT = (0.9, 1.1)            # of each channel


def draw_view(square, rng, size, *, rotation=ROTATION, shift=SHIFT, flips=True):
    """(`crops.to_picture` [2, 3] of a random view of a square (left, top, side), whether it is mirrored).

    It is turned by up to `rotation` degrees either way, zoomed, shifted by up to that share of its side in x and y,
    and, if it `flips`, mirrored every other time.
    """
    zoom, degrees = rng.uniform(*ZOOM), rng.uniform(-rotation, rotation)
    moved, flip = rng.uniform(-shift, shift, 2), bool(rng.random() < 0.5) and flips
    left, top, side = square
    center = np.array([left, top]) + side / 2 + moved * side * zoom
    side *= zoom
    return crops.to_picture((*(center - side / 2), side), size, degrees, flip), flip


def recolor(image, rng):
    """A picture uint8 [H, W, 3] whose channels are multiplied by random factors."""
    factors = rng.uniform(*GAIN) * rng.uniform(*TINT, 3)
    table = np.clip(np.rint(np.arange(256)[:, None] * factors), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None])


def mirrored(values, pairs):
    """values [K, ...] with those of each (left, right) exchanged: what a flip does to who is who."""
    values = values.copy()
    for left, right in pairs:
        values[[left, right]] = values[[right, left]]
    return values
