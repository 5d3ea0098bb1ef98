"""Made-up pictures for `--demo`: articulated figures with MPII's 16 joints, drawn in seconds.

Everything in a picture follows from (seed, index). Figures vary in pose, proportions, limb widths, clothes,
colours and the way they face; some are cut by the border, some hide joints behind their body or behind a thing.
Which side is left is seen as in a photo: most face us (face, collar, zip; their left is on our right), one in six
shows its back (hair all over the head, a rucksack). A mirrored figure is one again, its left and right exchanged.

H, W the picture's `size`, K the 16 joints.
"""

from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from common import detection_demo
from hourglass.poses import MPII, Person, Source

SPLITS = {"train": 600, "val": 100}
_SUBPIXELS = 3                  # figures are drawn this much larger and averaged, for smooth edges
_HEAD, _NECK, _TORSO = 0.17, 0.035, 0.27                       # lengths as shares of the body's height
_UPPER_ARM, _FOREARM, _THIGH, _SHIN = 0.165, 0.155, 0.235, 0.235
_SHOULDER, _HIP = 0.095, 0.06                                  # from the middle
_SIDES = {-1: (2, 1, 0, 12, 11, 10), 1: (3, 4, 5, 13, 14, 15)}  # hip, knee, ankle, shoulder, elbow, wrist of a side
_OWN = {0: "shin", 1: "shin thigh", 2: "thigh torso", 6: "torso", 7: "torso neck", 8: "neck head torso", 9: "head",
        10: "forearm", 11: "forearm upper_arm", 12: "upper_arm torso"}  # what a joint of the right, or middle, is of


class Figure(NamedTuple):
    """One person as it stands in its picture."""

    joints_xy: np.ndarray   # [K, 2] pixels
    visible: np.ndarray     # [K]: 0 outside the picture, 1 hidden, 2 visible
    height: float           # of the body if it stood upright, pixels
    head_size: float        # 0.6 times the diagonal of the head's box


def draw(seed, index, size=160):
    """Picture `index` of a series: (image uint8 [H, W, 3] RGB, `Figure`)."""
    rng = np.random.default_rng([seed, index])
    canvas = np.clip(detection_demo.background(rng, size), 0, 255).astype(np.uint8)
    canvas = cv2.resize(canvas, (size * _SUBPIXELS,) * 2, interpolation=cv2.INTER_LINEAR)
    _clutter(rng, canvas, rng.integers(2, 8))
    height = size * rng.uniform(0.6, 0.88)
    front = rng.random() < 5 / 6
    joints_xy = _pose(rng, front) * height
    low, high = joints_xy.min(0), joints_xy.max(0)
    free = size - (high - low)
    if rng.random() < 0.2:      # cut by the border, mostly at the legs
        corner = free * rng.random(2) + size * rng.uniform([-0.15, 0.0], [0.15, 0.3])
    else:
        corner = np.where(free > 0, rng.uniform(0.05, 0.95, 2), 0.5) * free
    joints_xy += corner - low
    parts = np.zeros(canvas.shape[:2], np.uint8)
    head_size = _paint(rng, canvas, parts, joints_xy * _SUBPIXELS, height * _SUBPIXELS, front) / _SUBPIXELS
    if rng.random() < 0.2:
        _thing(rng, canvas, parts, joints_xy * _SUBPIXELS, height * _SUBPIXELS)
    image = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    image = image + rng.normal(0, rng.uniform(0, 6), image.shape)
    image = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return image, Figure(joints_xy.astype(np.float32), _visible(parts, joints_xy, size), height, head_size)


def source(*, name="demo", seed=0, size=160, splits=None):
    """The pictures as a `poses.Source`; `splits` maps a split to its number of pictures."""
    items, first = {}, 0
    for split, count in (splits or SPLITS).items():
        items[split] = range(first, first + count)
        first += count

    def load(index):
        image, figure = draw(seed, index, size)
        data = tf.io.encode_jpeg(image, quality=92, chroma_downsampling=False).numpy()
        low, high = figure.joints_xy.min(0), figure.joints_xy.max(0)
        # As annotators do: about the middle, about the height, or more where the figure reaches further.
        rng = np.random.default_rng([seed, index, 1])
        center = (low + high) / 2 + rng.normal(0, 0.015, 2) * figure.height
        scale = max(figure.height, (high - low).max() * 1.05) * rng.uniform(0.95, 1.05) / 200
        inside = np.clip([low, high], 0, size)
        box = (*inside[0], *(inside[1] - inside[0]))
        return Person(data, f"{index:06d}.jpg", figure.joints_xy, figure.visible, tuple(center), scale, (size, size),
                      box, box[2] * box[3], figure.head_size, index, index)

    return Source(name, MPII, items, load, f"made up, seed {seed}")


def _pose(rng, front):
    """[K, 2]: joints of a figure of height 1 whose pelvis is at 0, in the picture's directions."""
    lean = np.radians(rng.normal(0, 12) if rng.random() < 0.85 else rng.uniform(-60, 60))
    down, across = np.array([-np.sin(lean), np.cos(lean)]), np.array([np.cos(lean), np.sin(lean)])
    facing = np.cos(np.radians(rng.uniform(-45, 45))) * (1 if front else -1)   # the left is on our right, or not
    joints_xy = np.zeros([16, 2])
    build = rng.uniform(0.9, 1.1, 2)                                           # breadth of shoulders and hips
    joints_xy[7] = -down * _TORSO * rng.uniform(0.85, 1.05)
    tilt = lean + np.radians(rng.normal(0, 12))
    up = np.array([np.sin(tilt), -np.cos(tilt)])
    joints_xy[8] = joints_xy[7] + up * _NECK
    joints_xy[9] = joints_xy[8] + up * _HEAD
    squats = rng.random() < 0.15
    for side, (hip, knee, ankle, shoulder, elbow, wrist) in _SIDES.items():
        outward = np.sign(side * facing)                                       # on our right: 1

        def along(degrees):
            """The direction that is turned outward from straight down the body."""
            turn = np.radians(degrees)
            return down * np.cos(turn) + across * outward * np.sin(turn)

        joints_xy[hip] = across * side * facing * _HIP * build[1]
        joints_xy[shoulder] = joints_xy[7] + across * side * facing * _SHOULDER * build[0] + down * 0.015
        thigh = rng.uniform(35, 80) if squats else rng.uniform(-8, 45) * rng.random()
        shin = thigh - (rng.uniform(30, 90) if squats else rng.triangular(-10, 5, 70))
        joints_xy[knee] = joints_xy[hip] + along(thigh) * _THIGH * rng.uniform(0.8, 1.0)
        joints_xy[ankle] = joints_xy[knee] + along(shin) * _SHIN * rng.uniform(0.85, 1.0)
        arm = rng.uniform(-15, 60) if rng.random() < 0.6 else rng.uniform(60, 165)
        bend = rng.uniform(-60, 20) if rng.random() < 0.5 else rng.uniform(20, 120) * rng.choice([-1, 1])
        joints_xy[elbow] = joints_xy[shoulder] + along(arm) * _UPPER_ARM * rng.uniform(0.75, 1.0)
        joints_xy[wrist] = joints_xy[elbow] + along(arm + bend) * _FOREARM * rng.uniform(0.75, 1.0)
    return joints_xy


# What a pixel shows, for _visible.
_IDS = {name: i for i, name in enumerate(
    ["background", "torso", "neck", "head", "thing", *(f"{limb}{side}" for limb in
     ("upper_arm", "forearm", "thigh", "shin") for side in (-1, 1))])}


class _Brush(NamedTuple):
    """Draws on the picture and notes in `parts` what is there."""

    canvas: np.ndarray
    parts: np.ndarray

    def limb(self, part, start, end, radii, color):
        """A tapered limb with round ends."""
        along = end - start
        aside = np.array([-along[1], along[0]]) / max(np.hypot(*along), 1e-6)
        corners = [start + aside * radii[0], end + aside * radii[1], end - aside * radii[1], start - aside * radii[0]]
        self.polygon(part, corners, color)
        for point, radius in zip((start, end), radii):
            self.ellipse(part, point, (radius, radius), 0, color)

    def polygon(self, part, corners, color):
        corners = np.rint(np.array(corners) * 16).astype(np.int32)
        for target, value in self._targets(part, color):
            cv2.fillPoly(target, [corners], value, cv2.LINE_8, 4)

    def ellipse(self, part, center, radii, degrees, color):
        center, radii = (np.rint(np.array(each) * 16).astype(int).tolist() for each in (center, radii))
        for target, value in self._targets(part, color):
            cv2.ellipse(target, center, radii, degrees, 0, 360, value, -1, cv2.LINE_8, 4)

    def _targets(self, part, color):
        return (self.canvas, [float(level) for level in color]), (self.parts, _IDS[part])


def _paint(rng, canvas, parts, joints_xy, height, front):
    """Draws the figure; returns its head size in pixels of the canvas."""
    brush = _Brush(canvas, parts)
    skin = np.array([[240, 205, 175], [225, 180, 140], [180, 125, 85], [120, 80, 55], [85, 55, 40]])[rng.integers(5)]
    hair = np.array([[35, 25, 20], [90, 60, 35], [200, 160, 90], [150, 150, 150], [130, 60, 30]])[rng.integers(5)]
    shirt, trousers, shoes = rng.uniform(20, 240, (3, 3))
    sleeve, leg = rng.random(2) < 0.6                       # long or short
    width = height * rng.uniform(0.85, 1.25)                # of the limbs

    def shade(color):
        return np.clip(np.asarray(color) * rng.uniform(0.82, 1.12), 0, 255)

    def arm(side):
        *_, shoulder, elbow, wrist = (joints_xy[joint] for joint in _SIDES[side])
        radii = np.array([0.032, 0.025, 0.019]) * width
        brush.limb(f"upper_arm{side}", shoulder, elbow, radii[:2], shade(shirt))
        brush.limb(f"forearm{side}", elbow, wrist, radii[1:], shade(shirt if sleeve else skin))
        hand = wrist + (wrist - elbow) * 0.12
        brush.ellipse(f"forearm{side}", hand, (radii[2] * 1.15,) * 2, 0, skin)

    def legs(side):
        hip, knee, ankle, *_ = (joints_xy[joint] for joint in _SIDES[side])
        radii = np.array([0.05, 0.036, 0.024]) * width
        brush.limb(f"thigh{side}", hip, knee, radii[:2], shade(trousers))
        brush.limb(f"shin{side}", knee, ankle, radii[1:], shade(trousers if leg else skin))
        toe = ankle + np.array([np.sign(hip[0] - joints_xy[6][0]) * 0.03, 0.022]) * height
        brush.limb(f"shin{side}", ankle, toe, radii[[2, 2]] * 0.9, shoes)

    behind = [side for side in (-1, 1) if rng.random() < (0.3 if front else 0.6)]
    for side in behind:
        arm(side)
    for side in rng.permutation([-1, 1]):
        legs(int(side))
    _paint_torso(brush, joints_xy, width, shade(shirt), skin, front, rng)
    head_size = _paint_head(brush, joints_xy, height, skin, hair, front, rng)
    for side in (-1, 1):
        if side not in behind:
            arm(side)
    return head_size


def _paint_torso(brush, joints_xy, width, color, skin, front, rng):
    pelvis, thorax, neck = joints_xy[6:9]
    brush.limb("neck", thorax, neck + (joints_xy[9] - neck) * 0.2, np.array([0.026, 0.026]) * width, skin)
    corners = [joints_xy[joint] for joint in (12, 13, 3, 2)]
    hull = [corner + (corner - (pelvis + thorax) / 2) * 0.12 for corner in corners]
    brush.polygon("torso", hull, color)
    for joint, radius in ((12, 0.036), (13, 0.036), (2, 0.05), (3, 0.05)):
        brush.ellipse("torso", joints_xy[joint], (radius * width,) * 2, 0, color)
    brush.limb("torso", pelvis, thorax, np.array([0.055, 0.045]) * width, color)
    aside = (joints_xy[13] - joints_xy[12]) * 0.22
    if front:                                               # collar and zip
        brush.polygon("torso", [thorax - aside, thorax + aside, thorax + (pelvis - thorax) * 0.22], skin)
        line = 255 - color if rng.random() < 0.5 else color * 0.5
        brush.limb("torso", thorax + (pelvis - thorax) * 0.25, pelvis, np.array([0.007, 0.007]) * width, line)
    else:                                                   # rucksack
        bag = [thorax - aside * 1.6, thorax + aside * 1.6, pelvis + aside * 1.3, pelvis - aside * 1.3]
        middle = np.mean(bag, axis=0)
        brush.polygon("torso", [middle + (corner - middle) * 0.75 for corner in bag], rng.uniform(0, 255, 3))


def _paint_head(brush, joints_xy, height, skin, hair, front, rng):
    neck, top = joints_xy[8:10]
    middle, along = (neck + top) / 2, neck - top
    tall, wide = np.hypot(*along) / 2, height * _HEAD * 0.42
    degrees = float(np.degrees(np.arctan2(along[1], along[0])))             # of the head's long axis
    down, across = along / (2 * tall), np.array([along[1], -along[0]]) / (2 * tall)
    brush.ellipse("head", middle, (tall, wide), degrees, hair)
    if front:
        face = middle + down * tall * 0.18
        brush.ellipse("head", face, (tall * 0.8, wide * 0.82), degrees, skin)
        turn = rng.uniform(-0.25, 0.25) * wide
        for side in (-1, 1):
            eye = face - down * tall * 0.12 + across * (side * wide * 0.36 + turn)
            brush.ellipse("head", eye, (tall * 0.1, wide * 0.12), degrees, (25, 25, 25))
        mouth = face + down * tall * 0.42 + across * turn
        brush.limb("head", mouth - across * wide * 0.25, mouth + across * wide * 0.25, [tall * 0.06] * 2,
                   (150, 50, 50))
    turn = np.radians(degrees)
    sides = 2 * np.hypot(np.array([np.cos(turn), np.sin(turn)]) * tall, np.array([np.sin(turn), np.cos(turn)]) * wide)
    return 0.6 * float(np.hypot(*sides))


def _clutter(rng, canvas, count):
    """Things that stand about behind the figure, some like limbs."""
    size = len(canvas)
    for _ in range(count):
        color, place = rng.uniform(0, 255, 3).tolist(), rng.uniform(0, size, 2)
        reach = rng.normal(0, size / 6, 2)
        kind = rng.integers(3)
        if kind == 0:
            ends = (np.rint(place + way * reach).astype(int).tolist() for way in (-1, 1))
            cv2.line(canvas, *ends, color, int(rng.integers(3, size // 20)))
        elif kind == 1:
            ends = (np.rint(place + way * reach).astype(int).tolist() for way in (-1, 1))
            cv2.rectangle(canvas, *ends, color, -1)
        else:
            radii = np.maximum(np.abs(reach) / 2, 2).astype(int).tolist()
            cv2.ellipse(canvas, place.astype(int).tolist(), radii, rng.uniform(0, 180), 0, 360, color, -1)


def _thing(rng, canvas, parts, joints_xy, height):
    """Something in front of a limb."""
    middle = joints_xy[rng.choice([0, 1, 4, 5, 10, 11, 14, 15])] + rng.normal(0, 0.02, 2) * height
    reach = height * rng.uniform(0.04, 0.1, 2)
    corners = [middle + reach * way for way in ([-1, -1], [1, -1], [1, 1], [-1, 1])]
    _Brush(canvas, parts).polygon("thing", corners, rng.uniform(0, 255, 3))


def _visible(parts, joints_xy, size):
    """[K]: 0 for joints outside the picture, 1 where something else is in front, 2 else."""
    visible = np.zeros(16, np.int64)
    for joint, (x, y) in enumerate(joints_xy):
        if not (0 <= x < size and 0 <= y < size):
            continue
        mirrored = dict(MPII.pairs).get(joint, joint)       # the right one of a pair
        side = 1 if mirrored != joint else -1
        own = {_IDS[name] if name in _IDS else _IDS[f"{name}{side}"] for name in _OWN[mirrored].split()}
        there = parts[int(y * _SUBPIXELS), int(x * _SUBPIXELS)]
        visible[joint] = 2 if there in own | {_IDS["background"]} else 1
    return visible
