"""Made-up digits for `--demo`: the ten digits in OpenCV's fonts, turned, sheared, shifted, thick and thin.

Everything in a picture follows from (seed, index).
"""

import cv2
import numpy as np

SPLITS = {"train": 6000, "val": 500, "test": 1000}
_FONTS = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX)
_LARGER = 4  # digits are drawn this much larger and averaged, for smooth edges


def draw(seed, index, size=28):
    """Digit `index` of a series: white on black uint8 [size, size, 1], and which one it is, index % 10."""
    rng, label = np.random.default_rng([seed, index]), index % 10
    side = size * _LARGER
    font, thickness = _FONTS[rng.integers(len(_FONTS))], int(rng.integers(2 * _LARGER, 3 * _LARGER + 1))
    (width, height), _ = cv2.getTextSize(str(label), font, side / 40, thickness)
    canvas = np.zeros([side, side], np.uint8)
    cv2.putText(canvas, str(label), ((side - width) // 2, (side + height) // 2), font, side / 40, 255, thickness,
                cv2.LINE_AA)
    angle, shear = np.radians(rng.uniform(-5, 5)), rng.uniform(-0.2, 0.2)
    stretch = rng.uniform(0.9, 1.1, 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1, shear], [0, 1]]) @ np.diag(stretch)
    center = np.full(2, (side - 1) / 2)
    shift = center - matrix @ center + rng.uniform(-side / 40, side / 40, 2)
    moved = cv2.warpAffine(canvas, np.column_stack([matrix, shift]), (side, side), flags=cv2.INTER_LINEAR)
    return cv2.resize(moved, (size, size), interpolation=cv2.INTER_AREA)[..., None], label
