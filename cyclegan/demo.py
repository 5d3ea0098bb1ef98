"""Made-up pictures for `--demo`: animals on grass, plain ones (A) and striped ones (B), drawn in seconds.

Body, legs, neck, head, tail, coat, pose, size, place, grass and light are drawn at random, and alike on both
sides: only the stripes tell them apart. No animal of A is one of B. Everything in a picture follows from (seed,
side, index). H, W are the picture's `size`.
"""

import cv2
import numpy as np

LABELS = ["plain", "striped"]
SPLITS = {"trainA": 500, "trainB": 400, "testA": 60, "testB": 60}
SIZE = 64
_FINE = 256  # side at which the shapes are drawn, to be averaged
# RGB of coats: tan, chestnut, grey, cream, sand, dapple, rust.
_COATS = np.float32([[200, 160, 110], [165, 100, 60], [160, 160, 160], [232, 220, 190], [215, 185, 140],
                     [190, 190, 200], [185, 120, 85]])


def draw(seed, side, index, size=SIZE):
    """Picture `index` of side 0 (plain) or 1 (striped) as uint8 [H, W, 3] RGB."""
    rng = np.random.default_rng([seed, side, index])
    canvas = _meadow(rng)
    animal, parts = _animal(rng)
    shade = np.linspace(*rng.uniform([1.0, 0.7], [1.15, 0.9]), _FINE, dtype=np.float32)[:, None, None]
    coat = _COATS[rng.integers(len(_COATS))] * rng.uniform(0.9, 1.1, 3).astype(np.float32) * shade
    if side == 1:
        dark = rng.uniform(15, 50, 3).astype(np.float32)
        coat = coat + (dark - coat) * _stripes(rng)[..., None]
    canvas += (coat - canvas) * animal[..., None]
    for mask, color in parts:  # mane, tail, hooves and eye are dark on both sides
        canvas += (np.float32(color) - canvas) * mask[..., None]
    canvas = canvas * rng.uniform(0.85, 1.1)
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    image = image + rng.normal(0, rng.uniform(0, 4), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _meadow(rng):
    """float32 [256, 256, 3]: grass with blades, light and dark places, and often a sky."""
    low = np.float32(rng.uniform([50, 90, 20], [120, 150, 60]))
    high = low * rng.uniform(1.15, 1.45)
    coarse, fine = (cv2.resize(rng.random((n, n), np.float32), (_FINE, _FINE), interpolation=cv2.INTER_CUBIC)
                    for n in (int(rng.integers(3, 7)), 48))
    canvas = low + (high - low) * np.clip(0.7 * coarse + 0.3 * fine, 0, 1)[..., None]
    horizon = int(rng.uniform(-60, 110))
    if horizon > 0:
        top, bottom = np.float32(rng.uniform([110, 150, 190], [190, 205, 240], (2, 3)))
        canvas[:horizon] = top + (bottom - top) * np.linspace(0, 1, horizon, dtype=np.float32)[:, None, None]
        if rng.random() < 0.6:  # hills
            hills = [(x, horizon - rng.uniform(0, 35)) for x in range(0, _FINE + 1, 32)]
            outline = np.rint([*hills, (_FINE, horizon), (0, horizon)]).astype(np.int32)
            cv2.fillPoly(canvas, [outline], (low * rng.uniform(0.6, 0.9)).tolist(), cv2.LINE_AA)
    for x, y, lean, height in zip(*rng.uniform([[0], [max(horizon, 0)], [-8], [6]],
                                               [[_FINE], [_FINE + 20], [8], [22]], (4, 160))):
        color = (low + (high - low) * rng.random()) * rng.uniform(0.7, 1.2)
        cv2.line(canvas, (int(x), int(y)), (int(x + lean), int(y - height)), color.tolist(), 2, cv2.LINE_AA)
    return canvas


def _animal(rng):
    """(mask float32 [256, 256] of the coat, [(mask, RGB)] of what is painted on it)."""
    length, thick = rng.uniform(105, 150), rng.uniform(46, 64)
    facing = rng.choice([-1, 1])
    middle = np.array([128 - 20 * facing + rng.uniform(-22, 22), rng.uniform(112, 150)])
    tilt = np.radians(rng.uniform(-8, 8))
    axis = np.array([np.cos(tilt) * facing, np.sin(tilt)])
    front, back = middle + axis * length * 0.42, middle - axis * length * 0.42
    coat, dark = np.zeros([2, _FINE, _FINE], np.float32)

    def line(mask, points, width):
        points = np.rint(np.array(points) * 16).astype(np.int32)
        cv2.polylines(mask, [points], False, 1.0, max(1, round(width)), cv2.LINE_AA, 4)

    def oval(mask, center, axes, degrees):
        center, axes = np.rint(np.array([center, axes]) * 16).astype(int).tolist()
        cv2.ellipse(mask, center, axes, degrees, 0, 360, 1.0, cv2.FILLED, cv2.LINE_AA, 4)

    oval(coat, middle, (length / 2, thick / 2), np.degrees(tilt) * facing)
    leg, stout = rng.uniform(52, 80), rng.uniform(11, 17)
    for hip in (front - axis * 12, front - axis * 26, back + axis * 10, back + axis * 24):
        start = hip + (0, thick * 0.2)
        knee = start + (rng.uniform(-14, 14), leg * 0.5)
        foot = knee + (rng.uniform(-10, 10), leg * 0.5)
        line(coat, [start, knee, foot], stout)
        line(dark, [foot + (-3, 1), foot + (3, 1)], stout * 0.7)
    raised = np.radians(rng.uniform(-10, 70))  # the head: grazing to upright
    neck = front + (facing * np.cos(raised) * 48, -np.sin(raised) * 52 + 4)
    line(coat, [front - axis * 10, neck], rng.uniform(24, 32))
    nod = rng.uniform(20, 50)
    head = neck + (facing * 14, 6)
    oval(coat, head, (rng.uniform(22, 28), rng.uniform(11, 14)), nod * facing)
    ear = neck + (-facing * 2, -12)
    line(coat, [ear, ear + (-facing * 3, -12)], 8)
    line(dark, [neck + (-facing * 8, -8), front + (-facing * 22, -thick * 0.42)], rng.uniform(5, 9))
    swish = back + (-facing * rng.uniform(6, 26), rng.uniform(28, 50))
    line(dark, [back + (-facing * 6, -6), back + (-facing * 14, 8), swish], rng.uniform(5, 9))
    oval(dark, head + (-facing * 2, -4), (3, 3), 0)
    return coat, [(dark, rng.uniform(15, 45, 3))]


def _stripes(rng):
    """float32 [256, 256], 1 where a stripe is: bent bands from back to belly."""
    y, x = np.mgrid[:_FINE, :_FINE].astype(np.float32)
    angle = np.radians(rng.uniform(-20, 20))
    across = x * np.cos(angle) + y * np.sin(angle)
    across += rng.uniform(3, 7) * np.sin(y / rng.uniform(14, 24) + rng.uniform(0, 6))
    wave = np.sin(2 * np.pi * (across / rng.uniform(22, 30) + rng.random()))
    return np.clip(0.5 + 3 * (wave - rng.uniform(-0.1, 0.2)), 0, 1)
