"""Anchors of a data set: k-means over the sizes of its boxes, and what given anchors can reach.

Article, "Preprocessing": the anchors come from k-means over the whole data set. YOLO9000, sec. 2: the
distance of a box to a centroid is 1 - IoU of the two on a common centre, so that large boxes do not weigh
more.

Sizes are (w, h) in pixels of the network input, after the letterbox. NumPy throughout.
N boxes, A anchors per scale, K anchors of all scales.
"""

import numpy as np

MAX_SIZES = 50_000  # more boxes than that move the centroids by less than a pixel


def kmeans(sizes, num_scales=3, num_anchors=3, *, seed=0, restarts=10, iterations=100):
    """Anchors [num_scales, num_anchors, 2] that overlap `sizes` [N, 2] best, by area from small to large.

    Lloyd's algorithm with the distance 1 - IoU. Each start draws its centroids far from each other
    (k-means++). A centroid moves to the median sides of its cluster, which overlapped it better than the mean
    ones in trials; a cluster that loses all boxes starts again at the box that is worst off. Neither need
    raise the mean IoU, so the best centroids on the way win. Of more than 50,000 boxes so many are drawn. The
    same seed gives the same anchors. Raises ValueError with fewer than K different sizes above zero.
    """
    sizes = np.asarray(sizes, np.float64)
    sizes = sizes[(sizes > 0).all(axis=1)]
    count = num_scales * num_anchors
    if len(np.unique(sizes, axis=0)) < count:
        raise ValueError(f"k-means of {count} anchors needs as many different box sizes; there are "
                         f"{len(np.unique(sizes, axis=0))}")
    rng = np.random.default_rng(seed)
    if len(sizes) > MAX_SIZES:
        sizes = sizes[rng.choice(len(sizes), MAX_SIZES, replace=False)]
    best, best_iou = None, -1.0
    for _ in range(restarts):
        centroids = _spread_start(sizes, count, rng)
        nearest = None
        for _ in range(iterations):
            iou = shape_iou(sizes, centroids)                                     # [N, K]
            mean_iou = iou.max(axis=1).mean()
            if mean_iou > best_iou:
                best, best_iou = centroids, mean_iou
            before, nearest = nearest, iou.argmax(axis=1)
            if before is not None and (nearest == before).all():
                break
            centroids = _move(sizes, centroids, nearest, iou.max(axis=1))
    by_area = best[np.argsort(best.prod(axis=1), kind="stable")]
    return by_area.reshape(num_scales, num_anchors, 2).astype(np.float32)


def shape_iou(sizes, anchors):
    """IoU [N, K] of sizes [N, 2] with anchors [..., 2] (K in all) on a common centre."""
    sizes, anchors = np.asarray(sizes, np.float64), np.asarray(anchors, np.float64).reshape(-1, 2)
    width = np.minimum(sizes[:, None, 0], anchors[:, 0])
    height = np.minimum(sizes[:, None, 1], anchors[:, 1])
    intersection = width * height
    return intersection / (sizes.prod(axis=1)[:, None] + anchors.prod(axis=1) - intersection)


def mean_best_iou(sizes, anchors):
    """Mean over the boxes of the IoU with the best of all anchors; 0 without boxes."""
    return float(shape_iou(sizes, anchors).max(axis=1).mean()) if len(sizes) else 0.0


def best_possible_recall(sizes, anchors, iou=0.5):
    """Share of boxes whose best anchor, on a common centre, overlaps by at least `iou`; 0 without boxes."""
    return float((shape_iou(sizes, anchors).max(axis=1) >= iou).mean()) if len(sizes) else 0.0


def collisions(boxes_per_image, anchors, image_size, strides):
    """How many truth boxes lose their cell and anchor to another of their picture: YOLO can learn only one.

    boxes_per_image: arrays [N, 4], xyxy in fractions of the network input; anchors [scales, A, 2] in its
    pixels; strides: of the scales. A place with three boxes counts two. Boxes without area are no truths.
    """
    anchors = np.asarray(anchors, np.float64)
    strides, num_anchors, lost = np.asarray(strides), anchors.shape[1], 0
    for boxes_xyxy in boxes_per_image:
        boxes_xyxy = np.asarray(boxes_xyxy, np.float64).reshape(-1, 4)
        sizes = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * image_size
        boxes_xyxy, sizes = (values[(sizes > 0).all(axis=1)] for values in (boxes_xyxy, sizes))
        if len(sizes) == 0:
            continue
        best = shape_iou(sizes, anchors).argmax(axis=1)
        cells = (image_size // strides[best // num_anchors])[:, None]
        centers = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) / 2
        places = np.clip(np.floor(centers * cells), 0, cells - 1).astype(int)
        lost += len(places) - len(np.unique(np.concatenate([places, best[:, None]], axis=1), axis=0))
    return lost


def _spread_start(sizes, count, rng):
    """Boxes as centroids, each drawn in proportion to the squared distance from those before (k-means++)."""
    centroids = sizes[rng.integers(len(sizes))][None]
    while len(centroids) < count:
        distance = np.square(1 - shape_iou(sizes, centroids).max(axis=1))
        drawn = rng.choice(len(sizes), p=distance / distance.sum())
        centroids = np.append(centroids, sizes[drawn][None], axis=0)
    return centroids


def _move(sizes, centroids, nearest, iou):
    """The medians of the clusters; an empty one goes to the box with the least IoU that is not taken yet."""
    worst = iter(np.argsort(iou, kind="stable"))
    moved = []
    for i in range(len(centroids)):
        cluster = sizes[nearest == i]
        moved.append(np.median(cluster, axis=0) if len(cluster) else sizes[next(worst)])
    return np.stack(moved)
