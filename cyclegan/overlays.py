"""Hair, eyeliner, beard and pictures of one's own that are laid over faces by their keypoints.

    python -m cyclegan.overlays --out overlays     writes the three that are drawn here, as a start for one's own

An overlay is a transparent PNG file and a JSON file of the same name beside it, hat.png and hat.json, which says
where in the PNG, in pixels, keypoints of a face are:

    {"anchors": {"right_eye": [192, 240], "left_eye": [320, 240], "mouth": [256, 374]}, "transform": "affine"}

The right eye is the person's own, on the left of the picture. "similarity" turns, moves and scales the PNG as two
or more keypoints say; "affine", with three or more, also stretches it. Without "transform" the number of anchors
decides. Detectors know where eyes are but not where their lids end, so that an eyeliner sits about right, no more.

H, W picture or overlay. Places are in pixels, pixel i from i to i + 1.
"""

import json
import pathlib
from typing import NamedTuple

import cv2
import numpy as np

from common import cli, files
from common.errors import UserError
from cyclegan.faces import KEYPOINTS

TRANSFORMS = ("similarity", "affine")
MOST_STRETCH = 3.0  # of an affine overlay; faces from the side give more, and get a similarity

SIDE, EYES_Y, EYE_DISTANCE = 512, 240, 128  # of the canvas of the overlays that are drawn here
# Where keypoints are, from the middle between the eyes, in eye distances: medians of 63 faces in photos.
FACE = {"right_eye": (-0.5, 0.0), "left_eye": (0.5, 0.0), "nose": (0.0, 0.56), "mouth": (0.0, 1.05)}


class Overlay(NamedTuple):
    name: str
    image: np.ndarray  # uint8 RGBA [H, W, 4]
    anchors: dict  # name of a keypoint -> (x, y) in the image
    transform: str  # of TRANSFORMS


# From a face to a place


def similarity(source, target):
    """float64 [2, 3]: turn, scale and shift that take points source [N, 2] nearest to target (least squares)."""
    source, target = (np.asarray(points, np.float64) @ [1, 1j] for points in (source, target))
    away = source - source.mean()
    turn = np.vdot(away, target - target.mean()) / np.vdot(away, away).real
    shift = target.mean() - turn * source.mean()
    return np.array([[turn.real, -turn.imag, shift.real], [turn.imag, turn.real, shift.imag]])


def affine(source, target):
    """float64 [2, 3]: the affine map that takes points source [N, 2] nearest to target (least squares)."""
    source = np.concatenate([source, np.ones([len(source), 1])], axis=1)
    return np.linalg.lstsq(source, np.asarray(target, np.float64), rcond=None)[0].T


def place(overlay, face):
    """float64 [2, 3]: from places in an overlay to those in the picture of a `faces.Face`."""
    source, target = list(overlay.anchors.values()), [face.point(name) for name in overlay.anchors]
    found = similarity(source, target)
    if overlay.transform == "affine":
        stretched = affine(source, target)
        most, least = np.linalg.svd(stretched[:, :2], compute_uv=False)
        if np.linalg.det(stretched[:, :2]) > 0 and most < MOST_STRETCH * least:
            return stretched
    return found


def lay(picture, overlay, matrix):
    """A picture uint8 [H, W, 3] with an overlay over it; matrix [2, 3] of `place`."""
    height, width = picture.shape[:2]
    image, matrix = overlay.image.astype(np.float32), np.array(matrix, np.float64)
    image[..., :3] *= image[..., 3:] / 255  # colours of transparent pixels must not leak into their neighbours
    scale = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    if not np.isfinite(matrix).all() or scale * max(image.shape) < 1:
        return picture.copy()
    if scale < 1:  # averaged, as warping takes four pixels only
        size = [max(1, round(length * scale)) for length in image.shape[1::-1]]
        matrix[:, :2] /= np.divide(size, image.shape[1::-1])
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    corners = np.array([[0, 0], [1, 0], [0, 1], [1, 1]]) * image.shape[1::-1] @ matrix[:, :2].T + matrix[:, 2]
    left, top = np.clip(np.floor(corners.min(0)), 0, [width, height]).astype(int) - [1, 1]
    right, bottom = np.clip(np.ceil(corners.max(0)), 0, [width, height]).astype(int) + [1, 1]
    left, top, right, bottom = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        return picture.copy()
    # OpenCV counts from the middle of the first pixel.
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - [left + 0.5, top + 0.5]
    found = cv2.warpAffine(image, matrix, (int(right - left), int(bottom - top)), flags=cv2.INTER_LINEAR)
    drawn = picture.copy()
    region = drawn[top:bottom, left:right]
    region[:] = np.rint(np.clip(region * (1 - found[..., 3:] / 255) + found[..., :3], 0, 255))
    return drawn


# From a name to an overlay


def load(name):
    """The `Overlay` of a name of `SAMPLES` or of a PNG file with its JSON file beside it. Raises UserError."""
    if name in SAMPLES:
        return draw(name)
    path = pathlib.Path(name)
    if not path.is_file():
        raise UserError(f"An overlay is one of {', '.join(SAMPLES)} or a PNG file, and there is no {name}.")
    data = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED) if path.stat().st_size else None
    if data is None or data.ndim != 3 or data.shape[2] != 4 or data.dtype != np.uint8:
        raise UserError(f"{name} must be a PNG file with transparency, 8 bits each of RGB and alpha. Save it so.")
    anchors, transform = _read_anchors(path.with_suffix(".json"))
    return Overlay(path.stem, cv2.cvtColor(data, cv2.COLOR_BGRA2RGBA), anchors, transform)


def _read_anchors(path):
    example = '{"anchors": {"right_eye": [192, 240], "left_eye": [320, 240]}}'
    try:
        read = json.loads(path.read_text("utf-8"))
        anchors = {name: (float(x), float(y)) for name, (x, y) in read["anchors"].items()}
        transform = read.get("transform", TRANSFORMS[len(anchors) > 2])
        if not np.isfinite(list(anchors.values())).all():
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} must say where keypoints of a face are in the overlay beside it, such as "
                        f"{example}; it is missing or does not.") from None
    unknown = sorted(set(anchors) - set(KEYPOINTS))
    places = np.array(list(anchors.values())).reshape(-1, 2)
    needed = 2 + (transform == "affine")
    apart = np.linalg.matrix_rank(places - places.mean(0), tol=1e-6) if len(places) else 0
    if unknown or transform not in TRANSFORMS or len(places) < needed or apart < needed - 1:
        raise UserError(f"{path} must have 2 anchors apart for a similarity, 3 that are not on a line for an "
                        f"affine transform, of {', '.join(KEYPOINTS)}; {anchors} came, with {transform!r}.")
    return anchors, transform


# Overlays that are drawn here


def draw(name):
    """The `Overlay` of a name of `SAMPLES`."""
    paint, points, transform = SAMPLES[name]
    anchors = {point: (SIDE / 2 + EYE_DISTANCE * FACE[point][0], EYES_Y + EYE_DISTANCE * FACE[point][1])
               for point in points}
    return Overlay(name, paint(np.random.default_rng(0)), anchors, transform)


class _Canvas:
    """A transparent picture that is drawn in eye distances from the middle between the eyes, twice as large."""

    def __init__(self):
        self.color = np.zeros([2 * SIDE, 2 * SIDE, 3], np.uint8)
        self.alpha = np.zeros([2 * SIDE, 2 * SIDE], np.uint8)

    def _points(self, points):
        pixels = np.asarray(points) * EYE_DISTANCE + [SIDE / 2, EYES_Y]
        return [np.rint((2 * pixels - 0.5) * 16).astype(np.int32)]  # OpenCV's sixteenths, from the pixel's middle

    def line(self, points, color, thickness, alpha=255):
        for image, ink in ((self.color, color), (self.alpha, alpha)):
            cv2.polylines(image, self._points(points), False, ink, thickness, cv2.LINE_AA, 4)

    def fill(self, points, color, alpha=255):
        for image, ink in ((self.color, color), (self.alpha, alpha)):
            cv2.fillPoly(image, self._points(points), ink, cv2.LINE_AA, 4)

    def image(self, blur):
        """uint8 RGBA [SIDE, SIDE, 4]; blur: standard deviation of softer edges in pixels."""
        alpha = cv2.GaussianBlur(self.alpha.astype(np.float32), (0, 0), 2 * blur)
        both = np.dstack([self.color * (self.alpha[..., None] / np.float32(255)), self.alpha, alpha])
        both = cv2.resize(both, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        color = both[..., :3] / np.maximum(both[..., 3:4] / 255, 1e-3)
        # Outside of what was drawn, where only the blurred alpha reaches, the colours are those next to it.
        spread = cv2.GaussianBlur(both[..., :4], (0, 0), 3 * blur + 1)
        spread = spread[..., :3] / np.maximum(spread[..., 3:4] / 255, 1e-3)
        color = np.where(both[..., 3:4] > 8, color, spread)
        return np.rint(np.clip(np.dstack([color, both[..., 4]]), 0, 255)).astype(np.uint8)


def _curve(points, steps=24):
    """float64 [steps, 2]: the Bézier curve of control points [4, 2]."""
    t = np.linspace(0, 1, steps)[:, None]
    a, b, c, d = np.asarray(points, np.float64)
    return (1 - t)**3 * a + 3 * t * (1 - t)**2 * b + 3 * t**2 * (1 - t) * c + t**3 * d


def _shade(color, light):
    return [float(np.clip(channel * light, 0, 255)) for channel in color]


def _paint_hair(random):
    """Long brown hair with a parting in the middle."""
    canvas = _Canvas()
    inner = np.array([(0.0, -0.98), (1.02, -0.95), (0.98, 0.1), (1.12, 1.55)])  # along forehead and cheek
    outer = np.array([(0.0, -1.72), (1.75, -1.85), (1.5, 0.5), (1.72, 1.85)])  # along the head
    for mirror in ((-1, 1), (1, 1)):
        shape = np.concatenate([_curve(inner)[:19], _curve(outer)[18::-1]])  # its end is strands alone
        canvas.fill(shape * mirror, (52, 33, 22))
    for _ in range(2600):
        between = random.uniform(0, 1)
        strand = _curve(inner + (outer - inner) * between + random.normal(0, 0.025, [4, 2]))
        strand[:, 0] += 0.02 * np.sin(np.linspace(0, 9, len(strand)) + random.uniform(0, 6))
        # Hair shines where it turns from the top of the head to its side.
        light = 0.75 + 0.5 * np.exp(-((between - 0.55) / 0.2)**2) + random.normal(0, 0.16)
        first, last = random.uniform(0, 0.3), 1 - 0.25 * random.beta(1, 2)
        first, last = int(first * len(strand)), int(last * len(strand))
        canvas.line(strand[first:last] * (random.choice([-1, 1]), 1), _shade((84, 54, 36), light),
                    int(random.integers(1, 4)))
    return canvas.image(0.8)


def _paint_beard(random):
    """Short dark beard with moustache."""
    canvas = _Canvas()
    x, y = random.uniform(-1.15, 1.15, 26000), random.uniform(0.3, 1.95, 26000)
    jaw = (np.abs(x) / 1.06)**2.6 + (np.clip(y - 0.35, 0, None) / 1.5)**2.6 < 1
    cheek = y > np.interp(np.abs(x), [0, 0.3, 0.55, 0.85, 0.95, 1.2], [0.79, 0.82, 1.0, 0.78, 0.3, 0.3]) \
        + random.normal(0, 0.03, x.shape)
    mouth = (x / 0.40)**2 + ((y - 1.06) / 0.13)**2 > 1
    chin = (np.abs(x) > 0.16) | (y < 1.1) | (y > 1.36)
    beside = (np.abs(x) < 0.5) | (y > 1.02) | (np.abs(x) > 0.6)
    density = np.where(chin, np.clip((y - 0.3) / 0.35, 0.1, 1), 0.35)  # sideburns begin thinly
    kept = jaw & cheek & mouth & beside & (random.uniform(size=x.shape) < density)
    for place in np.stack([x, y], -1)[kept]:
        length, across = random.uniform(0.05, 0.12), 0.5 * place[0] + random.normal(0, 0.35)
        if place[1] < 1.0 and abs(place[0]) < 0.5:
            across = 1.6 * place[0] + random.normal(0, 0.3)  # a moustache is combed to the sides
        way = np.array([across, 1.0]) / np.hypot(across, 1.0) * length
        bend = np.array([-way[1], way[0]]) * random.normal(0, 0.15)
        hair = [place, place + way / 2 + bend, place + way]
        canvas.line(hair, _shade((46, 33, 25), 0.8 + random.gamma(2, 0.15)), int(random.integers(1, 3)), 215)
    return canvas.image(0.6)


def _paint_eyeliner(random):
    """A dark line along the upper lid, with a wing, and a thin one along the lower lid."""
    canvas = _Canvas()
    for mirror in ((-1, 1), (1, 1)):
        def place(points):
            return (np.asarray(points) + [0.5, 0]) * mirror

        upper = _curve([(-0.21, 0.035), (-0.13, -0.125), (0.11, -0.135), (0.225, 0.0)])
        wing = [(0.32, -0.075)]
        above = _curve([(0.2, -0.045), (0.1, -0.165), (-0.13, -0.15), (-0.21, 0.03)])
        canvas.fill(place(np.concatenate([upper, wing, above])), (18, 14, 16), 230)
        lower = _curve([(-0.17, 0.055), (-0.07, 0.105), (0.1, 0.1), (0.21, 0.01)])
        canvas.line(place(lower), (30, 24, 26), 2, 150)
    return canvas.image(0.9)


SAMPLES = {"hair": (_paint_hair, ("right_eye", "left_eye", "mouth"), "similarity"),
           "eyeliner": (_paint_eyeliner, ("right_eye", "left_eye"), "similarity"),
           "beard": (_paint_beard, ("right_eye", "left_eye", "mouth"), "affine")}


def write(overlay, folder):
    """Writes an overlay as name.png and name.json; returns the path of the PNG file."""
    path = pathlib.Path(folder) / f"{overlay.name}.png"
    files.make_folder(path.parent)
    files.write_bytes(path, cv2.imencode(".png", cv2.cvtColor(overlay.image, cv2.COLOR_RGBA2BGRA))[1].tobytes())
    anchors = {name: list(place) for name, place in overlay.anchors.items()}
    text = json.dumps({"anchors": anchors, "transform": overlay.transform}, indent=2)
    files.write_bytes(path.with_suffix(".json"), text.encode() + b"\n")
    return path


def define_flags():
    cli.flags.DEFINE_string("out", "overlays", "Folder of the PNG and JSON files.")


def main(args):
    cli.no_arguments(args)
    for name in SAMPLES:
        print(write(draw(name), cli.FLAGS.out))


if __name__ == "__main__":
    cli.run(main, define_flags)
