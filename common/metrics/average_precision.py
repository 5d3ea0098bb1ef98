"""Average precision of a detector by the rules of the VOC devkit and of COCO, in NumPy.

Detections and truths of the whole set are flat arrays; all (image, class) groups are worked on at once.

Shape letters: D detections, G truths, C classes, P pairs (detection, truth) of one group; A area ranges,
T IoU thresholds, R recall thresholds.
"""

from typing import NamedTuple

import numpy as np

COCO_IOUS = np.linspace(0.5, 0.95, 10)
COCO_RECALLS = np.linspace(0.0, 1.0, 101)
COCO_AREAS = np.array([[0, 1e10], [0, 32**2], [32**2, 96**2], [96**2, 1e10]])  # all, small, medium, large
PAIRS_AT_ONCE = 1 << 20  # bounds the memory, does not change the result


class Detections(NamedTuple):
    """What a detector said, in any order; of equal scores the earlier counts first."""

    image: np.ndarray  # [D] int, any numbers
    label: np.ndarray  # [D] int in 0..C-1
    score: np.ndarray  # [D]
    boxes_xyxy: np.ndarray  # [D, 4] pixels


class Truths(NamedTuple):
    """What is there. A flag or area that is left out means: nothing difficult, no crowd, the box's area."""

    image: np.ndarray  # [G] int
    label: np.ndarray  # [G] int in 0..C-1
    boxes_xyxy: np.ndarray  # [G, 4] pixels
    difficult: np.ndarray | None = None  # [G] bool
    is_crowd: np.ndarray | None = None  # [G] bool
    area: np.ndarray | None = None  # [G] pixels; COCO's is that of the object's outline


def voc(detections, truths, num_classes, iou_threshold=0.5, style="area", inclusive_pixels=True):
    """Average precision by the VOC devkit (VOCevaldet.m): {"ap", "map", "precision", "recall"}.

    Detections are taken best score first. Each claims the truth of its image and class that it overlaps most;
    when the IoU is >= iou_threshold it is a true positive if the truth is still free, else a false positive.
    A truth that is difficult is no positive, and a detection that claims it does not count. Neither is a crowd, which
    VOC does not have and nobody claims: a detection of which iou_threshold or more lies in one does not count unless
    it is a true positive, as in `coco`.

    style: "area" under the interpolated curve (VOC 2010 and later) or "11-point" (VOC 2007).
    inclusive_pixels: the devkit's boxes name the last pixel inside, so its widths are right - left + 1. True
        for boxes in that convention; False for boxes whose right and bottom are edges, width right - left.

    ap [C] is nan for a class without positives, map the mean of the others (nan if none). precision and
    recall are lists of C curves: after each detection of the class, best first.
    """
    if style not in ("area", "11-point"):
        raise ValueError(f'style must be "area" or "11-point", not {style!r}')
    detections, truths = checked(detections, truths, num_classes)
    best_first = np.argsort(-detections.score, kind="stable")
    detections = Detections(*(field[best_first] for field in detections))
    hidden = truths.difficult | truths.is_crowd
    group, truth_group = groups(detections, truths)
    pair_det, pair_truth, pair_iou = all_pairs(detections, truths, group, truth_group, iou_threshold,
                                               is_crowd=truths.is_crowd, extra=float(inclusive_pixels))
    on_crowd = truths.is_crowd[pair_truth]
    in_crowd = pair_det[on_crowd]
    pair_det, pair_truth, pair_iou = pair_det[~on_crowd], pair_truth[~on_crowd], pair_iou[~on_crowd]

    # The truth with the highest IoU, the first of equals, then the first detection that claims it.
    choice = np.lexsort((pair_truth, -pair_iou, pair_det))
    claiming, first = np.unique(pair_det[choice], return_index=True)
    claimed = pair_truth[choice][first]
    true_positive = np.zeros(len(group), bool)
    true_positive[claiming[np.unique(claimed, return_index=True)[1]]] = True
    counts = np.ones(len(group), bool)
    counts[claiming[hidden[claimed]]] = False
    true_positive &= counts
    counts[in_crowd[~true_positive[in_crowd]]] = False

    positives = np.bincount(truths.label[~hidden], minlength=num_classes)
    ap, precision, recall = np.full(num_classes, np.nan), [], []
    for label in range(num_classes):
        mine = detections.label == label
        hits, seen = np.cumsum(true_positive[mine]), np.cumsum(counts[mine])
        precision.append(hits / np.maximum(seen, 1))
        recall.append(hits / positives[label] if positives[label] else np.full(len(hits), np.nan))
        if positives[label]:
            ap[label] = _voc_ap(hits, precision[-1], positives[label], style)
    return {"ap": ap, "map": _mean(ap), "precision": precision, "recall": recall}


def _voc_ap(hits, precision, positives, style):
    """One class's average precision from its true positives so far and precision after each detection."""
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    if style == "area":
        return float(envelope[:-1] @ np.diff(hits, prepend=0) / positives)
    # recall >= i / 10 in whole numbers: 0.3 as a float would miss a recall of 3 / 10.
    return float(envelope[np.searchsorted(10 * hits, np.arange(11) * positives)].mean())


def coco(detections, truths, num_classes, max_detections=(1, 10, 100)):
    """The twelve COCO figures and "per_class" [C] (the AP of each class), equal to pycocotools for boxes.

    Keys "AP" (mean over IoU .5:.05:.95), "AP50", "AP75", "APs", "APm", "APl" at the last of max_detections
    (per image and class), "AR1", "AR10", "AR100" (named after max_detections), "ARs", "ARm", "ARl". nan
    stands where nothing can be measured, pycocotools' -1.

    For each IoU threshold and area range, best score first, a detection takes the free truth with the highest
    IoU (the later of equals); only where there is none, an ignored truth, and then it does not count. Ignored
    are crowds (overlap = intersection / area of the detection; they match any number of times) and truths
    outside of the area range. VOC's difficult objects, which COCO does not know, are ignored like those
    outside of the area range: a difficult object excuses one detection. A detection without a match does not
    count if its own area is outside.
    """
    detections, truths = checked(detections, truths, num_classes)
    detections, group, rank = by_group(detections, truths, max_detections[-1])
    truths = Truths(*(field[np.lexsort((truths.image, truths.label))] for field in truths))
    truth_group = groups(detections, truths)[1]
    ignored = (truths.difficult | truths.is_crowd)[:, np.newaxis] | ~_in_areas(truths.area)  # [G, A]
    inside = _in_areas(np.prod(detections.boxes_xyxy[:, 2:] - detections.boxes_xyxy[:, :2], axis=1))  # [D, A]
    pairs = all_pairs(detections, truths, group, truth_group, COCO_IOUS[0], is_crowd=truths.is_crowd)
    paired, matched, excused, _ = match(*pairs, group, ignored, truths.is_crowd, COCO_IOUS)  # [D'], [D', A, T], ...

    # Of equal scores the lower image comes first, as in pycocotools; from here on all is by (class, score).
    order = np.lexsort((-detections.score, detections.label))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    resort = np.argsort(place[paired])
    paired, matched, excused = paired[resort], matched[resort], excused[resort]
    inside, place = inside[order], place[paired]
    true_positive = matched & ~excused
    correction = np.where(matched, ~excused, inside[place][:, :, np.newaxis]).astype(np.int32)
    correction -= inside[place][:, :, np.newaxis]

    classes = np.arange(num_classes + 1)
    det_border = np.searchsorted(detections.label[order], classes)
    pair_border = np.searchsorted(place, det_border)
    truth_border = np.searchsorted(truths.label, classes)
    areas, ious = len(COCO_AREAS), len(COCO_IOUS)
    precision = np.full([num_classes, areas, ious], np.nan)  # mean over the recall thresholds
    recall = np.full([len(max_detections), num_classes, areas, ious], np.nan)
    for label in range(num_classes):
        positives = (~ignored[truth_border[label]:truth_border[label + 1]]).sum(0)  # [A]
        mine = slice(pair_border[label], pair_border[label + 1])
        start, stop = det_border[label], det_border[label + 1]
        # Detections that count up to each paired one: all inside the area range, and what matching changed.
        seen = np.cumsum(inside[start:stop], axis=0)[place[mine] - start][:, :, np.newaxis]
        seen = seen + np.cumsum(correction[mine], axis=0)  # [D', A, T]
        hit = true_positive[mine]
        for area in np.flatnonzero(positives):
            for iou in range(ious):
                at_hits = seen[hit[:, area, iou], area, iou]
                precision[label, area, iou] = _coco_ap(at_hits, positives[area])
            for limit, most in enumerate(max_detections):
                hits = hit[rank[paired[mine]] < most, area].sum(0)
                recall[limit, label, area] = hits / positives[area]
    sizes = tuple(zip("sml", (1, 2, 3)))
    return {
        "AP": _mean(precision[:, 0]), "AP50": _mean(precision[:, 0, 0]), "AP75": _mean(precision[:, 0, 5]),
        **{f"AP{size}": _mean(precision[:, area]) for size, area in sizes},
        **{f"AR{most}": _mean(recall[limit, :, 0]) for limit, most in enumerate(max_detections)},
        **{f"AR{size}": _mean(recall[-1, :, area]) for size, area in sizes},
        "per_class": precision[:, 0].mean(axis=-1),
    }


def _coco_ap(seen, positives):
    """Mean over the recall thresholds of the best precision from there on; seen: detections at each hit."""
    hits = np.arange(1, len(seen) + 1)
    envelope = np.append(np.maximum.accumulate((hits / seen)[::-1])[::-1], 0.0)
    return envelope[np.searchsorted(hits / positives, COCO_RECALLS)].mean()


def match(pair_det, pair_truth, pair_iou, group, ignored, many, ious):
    """COCO's greedy matching, for A kinds of truths that are ignored and T IoU thresholds at once.

    pair_*: of `all_pairs`; group [D]: of `by_group`; ignored [G, A]; many [G]: truths that match any number of times.
    Returns the detections with any pair, ascending [D'], whether each found a truth [D', A, T], whether
    that truth is an ignored one [D', A, T], and whether each truth was found [G, A, T]. Round i decides the i-th best
    detection of every group.
    """
    choice = np.lexsort((pair_truth, pair_iou, pair_det))  # in a detection, the later the better
    pair_det, pair_truth, pair_iou = pair_det[choice], pair_truth[choice], pair_iou[choice]
    paired, first, size = np.unique(pair_det, return_index=True, return_counts=True)
    turn = _rank_in_group(group[paired])
    better = 1 + np.arange(len(pair_det)) - np.repeat(first, size)  # 1.. within a detection
    counted_bonus = np.int32(len(pair_det) + 1)  # any truth that counts goes before any ignored one

    matched = np.zeros([len(paired), ignored.shape[1], len(ious)], bool)
    excused = np.zeros_like(matched)
    taken = np.zeros([*ignored.shape, len(ious)], bool)
    by_turn = np.argsort(turn, kind="stable")
    borders = np.searchsorted(turn[by_turn], np.arange(turn.max(initial=-1) + 2))
    for start, stop in zip(borders[:-1], borders[1:]):
        dets = by_turn[start:stop]
        begin = np.cumsum(size[dets]) - size[dets]
        pairs = np.repeat(first[dets] - begin, size[dets]) + np.arange(size[dets].sum())
        truth = pair_truth[pairs]
        possible = ~taken[truth] | many[truth][:, np.newaxis, np.newaxis]  # [P, A, T]
        possible &= (pair_iou[pairs][:, np.newaxis] >= ious)[:, np.newaxis]
        priority = better[pairs].astype(np.int32)[:, np.newaxis] + counted_bonus * ~ignored[truth]  # [P, A]
        best = np.maximum.reduceat(priority[:, :, np.newaxis] * possible, begin, axis=0)  # [D', A, T]
        found = best > 0
        matched[dets] = found
        excused[dets] = found & (best < counted_bonus)
        det, area, iou = np.nonzero(found)
        taken[truth[begin[det] + best[det, area, iou] % counted_bonus - 1], area, iou] = True
    return paired, matched, excused, taken


def all_pairs(detections, truths, group, truth_group, min_iou, is_crowd=None, extra=0.0):
    """(detection, truth, IoU), each [P], of every detection with every truth of its group, IoU >= min_iou.

    extra: added to widths and heights. is_crowd [G]: truths where the overlap is intersection / detection's
    area.
    """
    by_group = np.argsort(truth_group, kind="stable")
    first = np.searchsorted(truth_group[by_group], group, side="left")
    count = np.searchsorted(truth_group[by_group], group, side="right") - first
    before = np.cumsum(count) - count
    borders = np.searchsorted(before, np.arange(0, count.sum() + 1, PAIRS_AT_ONCE)).tolist() + [len(count)]
    parts = []
    for start, stop in zip(borders[:-1], borders[1:]):
        some = count[start:stop]
        det = np.repeat(np.arange(start, stop), some)
        truth = by_group[np.repeat(first[start:stop] - (before[start:stop] - before[start:start + 1]), some)
                         + np.arange(len(det))]
        a, b = detections.boxes_xyxy[det].T, truths.boxes_xyxy[truth].T
        width = np.maximum(np.minimum(a[2], b[2]) - np.maximum(a[0], b[0]) + extra, 0.0)
        height = np.maximum(np.minimum(a[3], b[3]) - np.maximum(a[1], b[1]) + extra, 0.0)
        intersection, area = width * height, (a[2] - a[0] + extra) * (a[3] - a[1] + extra)
        union = area + (b[2] - b[0] + extra) * (b[3] - b[1] + extra) - intersection
        if is_crowd is not None:
            union = np.where(is_crowd[truth], area, union)
        iou = np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)
        keep = iou >= min_iou
        parts.append((det[keep], truth[keep], iou[keep]))
    return tuple(np.concatenate(columns) for columns in zip(*parts))


def by_group(detections, truths, limit):
    """Detections by (class, image, best score), the first `limit` of each group; group [D]; rank in it."""
    order = np.lexsort((-detections.score, detections.image, detections.label))
    detections = Detections(*(field[order] for field in detections))
    group, _ = groups(detections, truths)
    rank = _rank_in_group(group)
    keep = rank < limit
    return Detections(*(field[keep] for field in detections)), group[keep], rank[keep]


def _rank_in_group(group):
    """0, 1, ... within each run of equal values of a sorted array."""
    return np.arange(len(group)) - np.searchsorted(group, group)


def groups(detections, truths):
    """One number for each (class, image), ascending in that order: [D], [G]."""
    images, index = np.unique(np.concatenate([detections.image, truths.image]), return_inverse=True)
    group = np.concatenate([detections.label, truths.label]) * len(images) + index
    return group[:len(detections.image)], group[len(detections.image):]


def _in_areas(area):
    return (area[:, np.newaxis] >= COCO_AREAS[:, 0]) & (area[:, np.newaxis] <= COCO_AREAS[:, 1])


def _mean(values):
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else float("nan")


def checked(detections, truths, num_classes):
    """Both as arrays of the right kinds, flags and areas filled in; ValueError for what cannot be meant."""
    boxes = np.asarray(truths.boxes_xyxy, np.float64).reshape(-1, 4)
    no = np.zeros(len(boxes), bool)
    truths = Truths(
        np.asarray(truths.image, np.int64), np.asarray(truths.label, np.int64), boxes,
        no if truths.difficult is None else np.asarray(truths.difficult, bool),
        no if truths.is_crowd is None else np.asarray(truths.is_crowd, bool),
        np.asarray(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) if truths.area is None else truths.area,
                   np.float64))
    detections = Detections(
        np.asarray(detections.image, np.int64), np.asarray(detections.label, np.int64),
        np.asarray(detections.score, np.float64), np.asarray(detections.boxes_xyxy, np.float64).reshape(-1,
                                                                                                        4))
    for name, flat in (("detections", detections), ("truths", truths)):
        lengths = {field: len(values) for field, values in zip(flat._fields, flat)}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"all fields of {name} must have one length, not {lengths}")
        wrong = flat.label[(flat.label < 0) | (flat.label >= num_classes)]
        if wrong.size:
            raise ValueError(f"labels of {name} must lie in 0..{num_classes - 1}, not {wrong[0]}")
        if not np.isfinite(flat.boxes_xyxy).all():
            raise ValueError(f"boxes of {name} must be finite")
    if np.isnan(detections.score).any():
        raise ValueError("scores must be numbers, not nan")
    return detections, truths
