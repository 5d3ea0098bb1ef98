"""The random view of a person that training sees: where the crop is, how it is turned, mirrored and coloured.

NumPy and OpenCV only. Everything random comes from the `rng` that is handed in.

K joints, S side of the network input. `visible`: 0 not annotated, 1 occluded, 2 visible.
"""

import cv2
import numpy as np

from hourglass import crops

ROTATION = 30                # degrees either way (article's repository and paper)
ZOOM = (0.75, 1.25)          # of the crop's side (paper, sec. 3.2)
MARGINS = (0.1, 0.3)         # of the body's height around the joints, MARGIN in the middle
SHIFT = 0.05                 # of the side: evaluation's centre is not the middle of the joints
GAIN = (0.6, 1.4)            # of all channels (the authors' code draws it for each)
TINT = (0.9, 1.1)            # of each channel


def draw_view(joints_xy, visible, scale, width, height, rng, size):
    """(`crops.to_picture` [2, 3] of a random view, whether it is mirrored).

    The article's box around the joints, with a random margin; then turned by up to 30 degrees, zoomed, shifted and
    mirrored.
    """
    margin, zoom, degrees = rng.uniform(*MARGINS), rng.uniform(*ZOOM), rng.uniform(-ROTATION, ROTATION)
    shift, flip = rng.uniform(-SHIFT, SHIFT, 2), bool(rng.random() < 0.5)
    box = crops.joints_box(joints_xy, visible, scale, width, height, margin)
    left, top, side = crops.square_around(box)
    side, shift = side * zoom, shift * side
    center = np.array([left, top]) + side / zoom / 2 + shift
    return crops.to_picture((*(center - side / 2), side), size, degrees, flip), flip


def plain_view(joints_xy, visible, scale, width, height, size):
    """`crops.to_picture` [2, 3] of the article's box as it is."""
    box = crops.joints_box(joints_xy, visible, scale, width, height)
    return crops.to_picture(crops.square_around(box), size)


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
