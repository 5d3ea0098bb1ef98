"""Figures of poses: PCK and PCKh, left and right exchanged, OKS average precision (that one needs pycocotools).

Joints are (x, y) in pixels of the picture, pixel i from i to i + 1. `visible` [P, K] is 0 for joints that are not
annotated. `reference_length` [P], or [P, K], is what distances are measured in; 0 or NaN where it is not known.

P persons, K joints, T thresholds.
"""

import contextlib
import io
from typing import NamedTuple

import numpy as np

from common.errors import UserError

CONFIDENT = 0.2  # joints above it make up a person's score (HRNet's coco.py, in_vis_thre)


class Pck(NamedTuple):
    """Shares of joints that lie within a threshold of the truth; NaN where there are none to count."""

    thresholds: np.ndarray   # [T] in reference lengths
    count: np.ndarray        # [K] joints that count
    curve: np.ndarray        # [T, K] of each joint
    mean: np.ndarray         # [T] of all joints together: what the code of MPII and of HRNet calls the mean
    joint_mean: np.ndarray   # [T] mean of the joints' shares, each joint the same weight
    area: np.ndarray         # [K] under each joint's curve, of the area that is there: 1 if all are always right
    area_mean: float         # the same under `mean`
    left_out: dict           # {what: how many}: persons without reference length, joints that are not annotated


def distances(predicted, truth, visible, reference_length):
    """[P, K]: from prediction to truth in reference lengths; NaN where it does not count.

    That is: not annotated, or no reference length. A prediction that is not finite is infinitely far.
    """
    predicted, truth = np.asarray(predicted, np.float64), np.asarray(truth, np.float64)
    length = np.asarray(reference_length, np.float64)
    length = np.broadcast_to(length if length.ndim == 2 else length[:, None], truth.shape[:2])
    counts = (np.asarray(visible) > 0) & np.isfinite(length) & (length > 0)
    found = np.isfinite(predicted).all(axis=2)
    apart = np.linalg.norm(np.where((counts & found)[..., None], predicted - truth, 0), axis=2)
    apart = np.where(found, apart / np.where(counts, length, 1), np.inf)
    return np.where(counts, apart, np.nan)


def pck(predicted, truth, visible, reference_length, thresholds):
    """`Pck`, the percentage of correct keypoints, as shares in 0..1.

    predicted, truth [P, K, 2]; thresholds [T] go up. A joint is right if its distance is at most the threshold
    times the reference length. Occluded joints count like visible ones, joints that are not annotated never (the
    evaluation code of MPII and of HRNet).
    """
    thresholds = np.asarray(thresholds, np.float64)
    apart, annotated = distances(predicted, truth, visible, reference_length), np.asarray(visible) > 0
    counts = ~np.isnan(apart)
    right = (apart <= thresholds[:, None, None]).sum(axis=1)                            # [T, K]
    count = counts.sum(axis=0)
    with np.errstate(invalid="ignore"):
        curve, mean = right / count, right.sum(axis=1) / np.float64(count.sum())
    present = curve[:, count > 0]
    joint_mean = present.mean(axis=1) if present.size else np.full(len(thresholds), np.nan)
    unmeasured = annotated & ~counts
    left_out = {"persons without reference length": int((unmeasured.any(axis=1) & ~counts.any(axis=1)).sum()),
                "joints not annotated": int((~annotated).sum())}
    return Pck(thresholds, count, curve, mean, joint_mean, _area(curve, thresholds),
               float(_area(mean, thresholds)), left_out)


def _area(curve, thresholds):
    """Trapezoids under curve [T, ...], divided by the range of the thresholds."""
    reach = thresholds[-1] - thresholds[0]
    return np.trapezoid(curve, thresholds, axis=0) / reach if reach > 0 else curve[-1]


def exchanged(predicted, truth, visible, reference_length, pairs, threshold):
    """[(how many joints are taken for the other side's, joints that count)], pair by pair.

    pairs: (left, right). A predicted left joint is taken for the right one if it lies within the threshold of the
    true right one and not of the true left one; and the other way round. Persons count in whom both are annotated.
    """
    counts = []
    for pair in pairs:
        pair = list(pair)
        length = np.asarray(reference_length)
        length = length if length.ndim == 1 else length[:, pair]
        both = np.broadcast_to((np.asarray(visible)[:, pair] > 0).all(axis=1)[:, None], [len(truth), 2])
        own = distances(predicted[:, pair], truth[:, pair], both, length)
        other = distances(predicted[:, pair], truth[:, pair[::-1]], both, length)
        counts.append((int(((other <= threshold) & ~(own <= threshold)).sum()), int((~np.isnan(own)).sum())))
    return counts


def best_places(joints_xy, radii, grid=64):
    """[K, 2]: for each joint the place, of grid x grid in the unit square, that is within most of its radii.

    joints_xy [P, K, 2] in shares of the square; radii [P, K], NaN where a joint does not count. Places are the middles
    of the cells; of equal ones the first, row by row.
    """
    middles, places = (np.arange(grid) + 0.5) / grid, []
    for (x, y), radius in zip(np.moveaxis(joints_xy, 0, -1), np.transpose(radii)):
        # A disc is an interval of columns in each row: +1 at its first column, -1 behind its last.
        with np.errstate(invalid="ignore"):
            half = np.sqrt(radius[:, None] ** 2 - (middles - y[:, None]) ** 2)                      # [P, grid]
        person, row = np.nonzero(half >= 0)
        half, x = half[person, row], x[person]
        first = np.clip(np.ceil((x - half) * grid - 0.5), 0, grid).astype(int)
        behind = np.clip(np.floor((x + half) * grid - 0.5) + 1, first, grid).astype(int)
        steps = np.zeros([grid, grid + 1], int)
        np.add.at(steps, (row, first), 1)
        np.add.at(steps, (row, behind), -1)
        row, column = np.unravel_index(np.argmax(steps[:, :-1].cumsum(axis=1)), [grid, grid])
        places.append([middles[column], middles[row]])
    return np.array(places)


def oks_lengths(area, sigmas):
    """[P, K]: lengths in which a joint at distance d has the similarity exp(-d**2 / 2), COCO's.

    area [P] of the persons' masks, in pixels; sigmas [K].
    """
    return 2 * np.sqrt(np.maximum(area, 0))[:, None].astype(np.float64) * np.asarray(sigmas, np.float64)


def oks(predicted, truth, visible, area, sigmas):
    """[P]: object keypoint similarity, the mean of exp(-d**2 / 2) of a person's annotated joints; NaN without."""
    apart = distances(predicted, truth, visible, oks_lengths(area, sigmas))
    counts = ~np.isnan(apart)
    similarity = np.where(counts, np.exp(-np.square(np.where(counts, apart, 0)) / 2), 0)
    with np.errstate(invalid="ignore"):
        return similarity.sum(axis=1) / counts.sum(axis=1).astype(np.float64)


def person_scores(scores):
    """[P]: mean of the scores [P, K] of a person's joints that are above CONFIDENT, 0 if none is."""
    sure = np.asarray(scores) > CONFIDENT
    return np.where(sure, scores, 0).sum(axis=1, dtype=np.float64) / np.maximum(sure.sum(axis=1), 1)


def coco_results(predicted, scores, image_id):
    """Predictions in the layout of COCO's results file; json can write it.

    predicted [P, K, 2], scores [P, K], image_id [P]. COCO counts from the middle of the first pixel, hence - 0.5.
    """
    joints_xy = np.asarray(predicted, np.float64) - 0.5
    triples = np.concatenate([joints_xy, np.asarray(scores, np.float64)[..., None]], axis=2)
    return [{"image_id": int(image), "category_id": 1, "keypoints": triple.reshape(-1).tolist(),
             "score": float(score)} for image, triple, score in zip(image_id, triples, person_scores(scores))]


def coco_truths(truth, visible, area, box, image_id):
    """The annotation file, as a dict, that the truth [P, K, 2] would be in COCO; box [P, 4] is (x, y, w, h)."""
    visible = np.asarray(visible)
    triples = np.concatenate([np.asarray(truth, np.float64) - 0.5, visible[..., None]], 2)
    triples = np.where(visible[..., None] > 0, triples, 0)
    # Numbers from 1: pycocotools takes the annotation 0 for no match.
    annotations = [{"id": number, "image_id": int(image), "category_id": 1, "iscrowd": 0, "area": float(size),
                    "bbox": [float(edge) for edge in place], "keypoints": triple.reshape(-1).tolist(),
                    "num_keypoints": int((seen > 0).sum())}
                   for number, (image, size, place, triple, seen)
                   in enumerate(zip(image_id, area, box, triples, visible), 1)]
    images = [{"id": int(image)} for image in np.unique(image_id)]
    return {"info": {}, "images": images, "categories": [{"id": 1, "name": "person"}], "annotations": annotations}


def require_pycocotools():
    """The module pycocotools.cocoeval. Raises UserError where it is not installed."""
    try:
        from pycocotools import cocoeval
    except ImportError:
        raise UserError("OKS average precision needs the package pycocotools. Install it: pip install pycocotools"
                        ) from None
    return cocoeval


def oks_ap(results, truths, sigmas):
    """{"AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl"} by pycocotools, NaN without truths.

    results, truths: of `coco_results` and `coco_truths`. Raises UserError without pycocotools.
    """
    cocoeval = require_pycocotools()
    from pycocotools.coco import COCO

    with contextlib.redirect_stdout(io.StringIO()):
        known = COCO()
        known.dataset = truths
        known.createIndex()
        evaluation = cocoeval.COCOeval(known, known.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = [name + what for name in ("AP", "AR") for what in ("", "50", "75", "m", "l")]
    return {name: float(value) if value >= 0 else float("nan") for name, value in zip(names, evaluation.stats)}
