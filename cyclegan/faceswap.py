"""Swaps faces in pictures, folders, videos and cameras, as the article's pipeline for its gender swap does.

    python -m cyclegan.faceswap --run runs/cyclegan/celeba --direction a2b photo.jpg folder/ video.mp4
    python -m cyclegan.faceswap --bundle serving/cyclegan/1 --direction b2a --all --overlay hair,eyeliner group.jpg

The article's five steps: (1) box and keypoints of the dominant face, see `faces`; (2) a larger region, so that
the network sees as much of a head as in its training pictures; (3) the crop of it through the generator; (4) the
result back into the picture under a soft mask; (5) hair, eyeliner, beard, placed by the keypoints, see `overlays`.

A region has the face as CelebA's aligned pictures have: 178 x 218 pixels, eyes level, 39 pixels apart and in the
middle, which is 1.8 boxes of the detector wide. Training squeezes them to squares, and so does the crop. Data sets
that were cut otherwise want other --extend and --aspect. Beyond the picture's border is its mirror image.

What is put back is the difference between what came out of the network and what went in. So the picture keeps its
own detail, which is finer than the network's, and a network that changes nothing changes nothing; --nokeep_detail
puts the network's picture itself there. Outside of the mask every pixel stays what it was.

H, W picture, S side of the crop. Places are in pixels, pixel i from i to i + 1.
"""

import functools
import pathlib
import sys
import time
from typing import NamedTuple

import cv2
import numpy as np

from common import cli, detection_predict, drawing, media, runtime, writer
from common.errors import UserError
from cyclegan import faces, overlays, preprocess
from cyclegan.predict import DIRECTIONS, MULTIPLE, SMALLEST, bundle_network, load_run, whole_network

EXTEND, ASPECT = 1.8, 218 / 178  # width of CelebA's pictures in boxes of BlazeFace, and their height / width
EYES = (0.5, 0.51)  # where their middle is in CelebA's pictures, as a share of width and height
MASKS = ("ellipse", "box")
FEATHER = 0.4


class Region(NamedTuple):
    """The part of a picture that the network gets: a rectangle that may be turned."""

    middle: tuple  # (x, y)
    width: float
    height: float
    angle: float  # of its upper edge, in degrees, clockwise as seen

    def matrix(self):
        """float64 [2, 3]: from shares (x, y) of width and height, from the upper left corner, to the picture."""
        turn = np.deg2rad(self.angle)
        across = self.width * np.array([np.cos(turn), np.sin(turn)])
        down = self.height * np.array([-np.sin(turn), np.cos(turn)])
        return np.stack([across, down, self.middle - (across + down) / 2], axis=1)

    def corners(self):
        """float64 [4, 2]: the corners in the picture, around the region from the upper left one."""
        return np.array([[0, 0, 1], [1, 0, 1], [1, 1, 1], [0, 1, 1]]) @ self.matrix().T


class Swapped(NamedTuple):
    """What became of a picture; F faces."""

    picture: np.ndarray  # uint8 [H, W, 3]
    patched: np.ndarray  # the same without overlays
    regions: list  # F times Region
    given: list  # F times float32 [S, S, 3] in 0..1: the crop
    translated: list  # F times what the network made of it
    seconds: float  # of the network


# Step 2: from a face to a region


def region_of(face, *, extend=EXTEND, aspect=ASPECT, align=True):
    """The `Region` of a `faces.Face`: `extend` times the box's longer side wide, the eyes where CelebA has them.

    aspect: height / width. align: turned so that the eyes are level.
    """
    right, left = face.point("right_eye"), face.point("left_eye")
    angle = float(np.rad2deg(np.arctan2(*(left - right)[::-1]))) if align else 0.0
    width = extend * float((face.box_xyxy[2:] - face.box_xyxy[:2]).max())
    region = Region((0.0, 0.0), width, width * aspect, angle)
    middle = (right + left) / 2 - region.matrix() @ [*EYES, 1]
    return region._replace(middle=tuple(middle.tolist()))


# Step 3: from a picture to a crop


def crop(picture, region, size):
    """float32 [S, S, 3] in 0..1: what a picture uint8 [H, W, 3] has in a region, mirrored beyond its border.

    The region is cut out pixel by pixel, and resized as training pictures are.
    """
    sides = [max(1, round(side)) for side in (region.width, region.height)]
    found = _warp(picture, region.matrix() / [*sides, 1], sides, cv2.BORDER_REFLECT_101)
    return preprocess.resize(found, size).numpy() / 255


def _warp(image, matrix, size, border, interpolation=cv2.INTER_LINEAR):
    """An image [height, width, C] of size (width, height) with what `matrix` [2, 3] says where to fetch."""
    matrix = matrix.copy()
    matrix[:, 2] += matrix[:, :2] @ [0.5, 0.5] - 0.5  # OpenCV counts from the middle of the first pixel
    return cv2.warpAffine(image, matrix, size, flags=interpolation | cv2.WARP_INVERSE_MAP, borderMode=border)


# Step 4: from a crop back to the picture


def soft_mask(x, y, shape="ellipse", feather=FEATHER):
    """float32, as x and y: 1 inside of a region, falling smoothly to 0 over its outer part, 0 outside.

    x, y: shares of width and height. feather: share of the way from the middle to the border that it falls in.
    """
    away = np.stack([np.abs(2 * x - 1), np.abs(2 * y - 1)])
    if shape == "ellipse":
        inside = 1 - np.hypot(*away)
    else:
        inside = 1 - away
    rise = np.clip(inside / max(feather, 1e-6), 0, 1)
    rise = rise * rise * (3 - 2 * rise)
    return (rise if shape == "ellipse" else rise.prod(axis=0)).astype(np.float32)


def patch(picture, region, given, translated, *, mask="ellipse", feather=FEATHER, keep_detail=True,
          match_colors=False):
    """A picture uint8 [H, W, 3] with the translation of its region in it.

    given, translated: float [S, S, 3] in 0..1, the crop and what the network made of it. keep_detail: add their
    difference instead of laying the translation over the picture. match_colors: without the change of colour that
    the translation has where the mask falls (its median), so that a cast of the whole crop leaves no edge.
    """
    height, width = picture.shape[:2]
    change = np.asarray(translated, np.float32) - given
    if match_colors:
        change = change - _cast(change, mask, feather)
    laid = change if keep_detail else given + change
    corners = region.corners()
    left, top = np.clip(np.floor(corners.min(0)), 0, [width, height]).astype(int)
    right, bottom = np.clip(np.ceil(corners.max(0)), 0, [width, height]).astype(int)
    if left >= right or top >= bottom:
        return picture.copy()
    back = cv2.invertAffineTransform(region.matrix())  # from places in the picture to shares
    x, y = np.meshgrid(np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5)
    share = soft_mask(*np.einsum("ij,jhw->ihw", back, np.stack([x, y, np.ones_like(x)])), mask, feather)[..., None]
    sides = [min(laid.shape[0], max(1, round(side))) for side in (region.width, region.height)]
    laid = cv2.resize(laid, sides, interpolation=cv2.INTER_AREA)  # averaged where the region has fewer pixels
    to_pixels = back * np.array(sides)[:, None]
    to_pixels[:, 2] += to_pixels[:, :2] @ [left, top]
    laid = 255 * _warp(laid, to_pixels, share.shape[1::-1], cv2.BORDER_REPLICATE, cv2.INTER_CUBIC)
    result = picture.copy()
    part = result[top:bottom, left:right]
    found = part + share * laid if keep_detail else part * (1 - share) + share * laid
    part[:] = np.rint(np.clip(found, 0, 255))
    return result


def _cast(change, mask, feather):
    """float32 [3]: the median change of the pixels where the mask is between 0 and 1."""
    places = (np.arange(len(change)) + 0.5) / len(change)
    share = soft_mask(*np.meshgrid(places, places), mask, feather)
    ring = change[(share > 0.02) & (share < 0.9)]
    return np.median(ring, axis=0) if len(ring) else np.zeros(3, np.float32)


# All steps


def make_swap(infer, size, *, drawn_over=(), extend=EXTEND, aspect=ASPECT, align=True, **patching):
    """The function from a picture uint8 [H, W, 3] and a list of faces to what becomes of it, `Swapped`.

    infer: one of predict's networks, from float32 [S, S, 3] in 0..1 to the same. drawn_over: overlays. patching:
    of `patch`. Every crop is of the picture as it came, so that faces side by side do not see each other's swap.
    """
    def swap(picture, found):
        regions = [region_of(face, extend=extend, aspect=aspect, align=align) for face in found]
        given = [crop(picture, region, size) for region in regions]
        start = time.perf_counter()
        translated = [np.asarray(infer(image)) for image in given]
        seconds = time.perf_counter() - start
        patched = picture
        for values in zip(regions, given, translated):
            patched = patch(patched, *values, **patching)
        result = patched
        for face in found:
            for overlay in drawn_over:
                result = overlays.lay(result, overlay, overlays.place(overlay, face))
        return Swapped(result, patched, regions, given, translated, seconds)

    return swap


def draw_steps(picture, found, swapped):
    """uint8 [H, W', 3]: the picture, faces with their regions, crop and translation of the first, patched, with
    overlays; side by side."""
    height = picture.shape[0]
    seen = drawing.draw_boxes(picture, [face.box_xyxy for face in found], ["face"] * len(found),
                              [face.score for face in found])
    line = max(1, round(sum(picture.shape[:2]) / 500))
    for face, region in zip(found, swapped.regions):
        cv2.polylines(seen, [np.rint(region.corners()).astype(np.int32)], True, (255, 255, 255), line, cv2.LINE_AA)
        for point in np.rint(face.keypoints_xy).astype(int).tolist():
            cv2.circle(seen, point, 2 * line, (255, 40, 40), cv2.FILLED, cv2.LINE_AA)
    crops = [cv2.resize(np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8), (height, height),
                        interpolation=cv2.INTER_CUBIC) for image in (*swapped.given[:1], *swapped.translated[:1])]
    crops = crops or [np.zeros([height, height, 3], np.uint8)] * 2  # frames of a video have one size
    return np.concatenate([picture, seen, *crops, swapped.patched, swapped.picture], axis=1)


def predict(arguments, detect, swap, out, *, every_face=False, smooth=0.5, values=None, side_by_side=False,
            steps=False, report=print):
    """Swaps the faces of all sources and writes to `out`; says what has no face or cannot be read, and goes on.

    detect: of `faces.make_detector`; swap: of `make_swap`. every_face: not the dominant one alone. smooth: of
    `faces.Tracker`, for videos. values: what every JSON line has besides its own. side_by_side, steps: write what
    the swap was made from beside it, or all of `draw_steps`. Returns {"images", "faces",
    "without_face", "unreadable" (names), "network_seconds", "seconds", "interrupted"}. Ctrl-C, which ends a
    camera, keeps what was done until then.
    """
    unreadable = []

    def on_unreadable(name, reason):
        unreadable.append(name)
        report(f"unreadable: {name}: {reason}")

    images, count, without, network_seconds, interrupted = 0, 0, 0, 0.0, False
    tracker, start = faces.Tracker(smooth), time.perf_counter()
    with writer.Writer(out, "faces.jsonl", arguments) as written:
        try:
            for frame in media.frames(arguments, on_unreadable, on_white=True):
                if frame.first:
                    tracker.reset()
                found = tracker.update(detect(frame.image))
                if not every_face:
                    dominant = tracker.dominant(*frame.image.shape[:2])
                    found = [] if dominant is None else [dominant]
                if not found and frame.fps is None:
                    report(f"no face: {frame.source}: written unchanged")
                swapped = swap(frame.image, found)
                drawn = np.concatenate([frame.image, swapped.picture], axis=1) if side_by_side else swapped.picture
                if steps:
                    drawn = draw_steps(frame.image, found, swapped)
                lines = list(map(_readable, found, swapped.regions))
                written.write(frame, drawn, {**(values or {}), "faces": lines})
                images, count, without = images + 1, count + len(found), without + (not found)
                network_seconds += swapped.seconds
        except KeyboardInterrupt:
            interrupted = True
    return {"images": images, "faces": count, "without_face": without, "unreadable": unreadable,
            "network_seconds": network_seconds, "seconds": time.perf_counter() - start, "interrupted": interrupted}


def _readable(face, region):
    def numbers(values):
        return [round(float(value), 2) for value in values]

    return {"box_xyxy": numbers(face.box_xyxy), "score": round(face.score, 5),
            "keypoints": {name: numbers(point) for name, point in zip(faces.KEYPOINTS, face.keypoints_xy)},
            "region": {"middle": numbers(region.middle), "size": numbers([region.width, region.height]),
                       "angle": round(region.angle, 2)}}


def define_flags():
    cli.define_run_flag()
    flags = cli.flags
    flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    flags.DEFINE_string("bundle", None, "Exported bundle, instead of --run.")
    flags.DEFINE_string("out", "predictions", "Folder of the pictures and of faces.jsonl.")
    flags.DEFINE_enum("direction", "a2b", list(DIRECTIONS), "From the first domain to the second, or back.")
    flags.DEFINE_bool("all", False, "Swap every face; default: the dominant one, by score x size x nearness to "
                      "the picture's middle.")
    flags.DEFINE_list("overlay", [], f"What to lay over the faces, in this order: {', '.join(overlays.SAMPLES)}, "
                      "or PNG files with a JSON file beside them, see cyclegan.overlays.")
    flags.DEFINE_integer("size", 0, "Side of the crop for the network, a multiple of 4; 0: as in training. Large "
                         "faces may get more detail with more.", lower_bound=0)
    flags.DEFINE_float("extend", EXTEND, "Width of the region in boxes of the detector; the default is CelebA's.",
                       lower_bound=0.5, upper_bound=10.0)
    flags.DEFINE_float("aspect", ASPECT, "Height of the region / its width; the default is CelebA's, 1 a square.",
                       lower_bound=0.25, upper_bound=4.0)
    flags.DEFINE_bool("align", True, "Turn the crop so that the eyes are level.")
    flags.DEFINE_enum("mask", "ellipse", MASKS, "What of the region is swapped.")
    flags.DEFINE_float("feather", FEATHER, "Share of the way from the region's middle to its border in which the "
                       "swap fades.", lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_bool("keep_detail", True, "Add what the network changed, instead of laying its picture there.")
    flags.DEFINE_bool("match_colors", False, "Take off the cast that the network gave the whole crop.")
    flags.DEFINE_enum("detector", "full_sparse", list(faces.MODELS), "Model of the face detector; short is for "
                      "faces that fill the picture.")
    flags.DEFINE_float("score_threshold", 0.5, "Faces score at least as much.", lower_bound=0.0, upper_bound=1.0)
    flags.DEFINE_float("smooth", 0.5, "Share of the last frame's places in this frame's, in videos; 0: none.",
                       lower_bound=0.0, upper_bound=0.99)
    flags.DEFINE_bool("side_by_side", False, "Write each picture with what it was made from on its left.")
    flags.DEFINE_bool("steps", False, "Write the steps side by side: picture, face and region, crop, translation, "
                      "patched, with overlays.")
    flags.DEFINE_enum("precision", "float32", runtime.PRECISIONS, "Arithmetic of --run; bfloat16 is faster on "
                      "processors with amx_bf16 or avx512_bf16 only.")


def load_network(flags):
    """(network, config) that --run or --bundle stands for."""
    detection_predict.require_one(flags, ["run", "bundle"])
    if flags.bundle:
        return bundle_network(flags.bundle, flags.direction)
    precision = "mixed_bfloat16" if flags.precision == "bfloat16" else "float32"
    models, config = load_run(flags.run, flags.which, precision)
    return whole_network(models[flags.direction]), config


def side_of_crop(size, config):
    """S that --size and a config.json stand for. Raises UserError."""
    size = size or config["image_size"]
    if size % MULTIPLE or size < SMALLEST:
        raise UserError(f"--size must be a multiple of {MULTIPLE}, {SMALLEST} at least; {size} came.")
    return size


def main(args):
    flags = cli.FLAGS
    if not args:
        raise UserError(
            "Say what to look at: files, folders, globs, videos or a camera's number, e.g. photo.jpg"
        )
    detect = faces.make_detector(flags.detector, flags.score_threshold)
    drawn_over = [overlays.load(name) for name in flags.overlay]
    infer, config = load_network(flags)
    swap = make_swap(infer, side_of_crop(flags.size, config), drawn_over=drawn_over, extend=flags.extend,
                     aspect=flags.aspect, align=flags.align, mask=flags.mask, feather=flags.feather,
                     keep_detail=flags.keep_detail, match_colors=flags.match_colors)
    source, target = config["labels"] if flags.direction == "a2b" else config["labels"][::-1]
    values = {"direction": flags.direction, "source": source, "target": target,
              "overlays": [overlay.name for overlay in drawn_over]}
    result = predict(args, detect, swap, flags.out, every_face=flags.all, smooth=flags.smooth, values=values,
                     side_by_side=flags.side_by_side, steps=flags.steps,
                     report=functools.partial(print, file=sys.stderr))
    images, unreadable = result["images"], result["unreadable"]
    if not images and not result["interrupted"]:
        raise UserError(f"None of the {len(unreadable)} sources could be read; their names stand above.")
    if images:
        print(f"{result['faces']} faces from {source} to {target} in {images} images, {result['without_face']} of "
              f"them without a face; {images / result['seconds']:.2f} images per second all in; {len(unreadable)} "
              "unreadable")
        print(pathlib.Path(flags.out) / "faces.jsonl")
    if result["interrupted"]:
        raise KeyboardInterrupt


if __name__ == "__main__":
    cli.run(main, define_flags)
