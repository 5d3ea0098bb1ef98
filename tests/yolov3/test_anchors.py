"""k-means anchors against scikit-learn and by hand; recall and collisions by hand."""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from common import boxes
from yolov3 import anchors, preprocess
from yolov3.model import ANCHORS


@pytest.fixture(scope="module")
def sizes():
    """5,000 box sizes in nine overlapping groups, as wide a range as COCO's."""
    rng = np.random.default_rng(0)
    centers = ANCHORS.reshape(-1, 2)[rng.integers(9, size=5000)]
    return np.clip(centers * np.exp(rng.normal(0, .35, [5000, 2])), 2, 416)


def test_mean_iou_is_at_least_that_of_euclidean_kmeans(sizes):
    found = anchors.kmeans(sizes)
    assert found.shape == (3, 3, 2) and found.dtype == np.float32
    assert (np.diff(found.reshape(-1, 2).prod(axis=1)) >= 0).all()
    ours = anchors.mean_best_iou(sizes, found)
    euclidean = KMeans(9, n_init=5, random_state=0).fit(sizes).cluster_centers_
    # scikit-learn's distance is Euclidean; on logarithms it comes nearest to 1 - IoU, a ratio of areas.
    logarithmic = np.exp(KMeans(9, n_init=5, random_state=0).fit(np.log(sizes)).cluster_centers_)
    assert ours > anchors.mean_best_iou(sizes, euclidean) + 0.01
    assert ours > anchors.mean_best_iou(sizes, logarithmic)
    assert ours > anchors.mean_best_iou(sizes, ANCHORS)


def test_separate_groups_are_found_exactly():
    # Where any distance gives the same clusters, so does ours: the centroids are the medians of the groups.
    rng = np.random.default_rng(1)
    centers = np.array([[10, 10], [10, 60], [60, 10], [80, 90], [200, 90], [300, 350]], float)
    sizes = np.concatenate([center * rng.uniform(.97, 1.03, [40, 2]) for center in centers])
    labels = KMeans(6, n_init=10, random_state=0).fit(sizes).labels_
    medians = np.array([np.median(sizes[labels == label], axis=0) for label in range(6)])
    medians = medians[np.argsort(medians.prod(axis=1))]
    np.testing.assert_allclose(anchors.kmeans(sizes, 2, 3).reshape(-1, 2), medians, rtol=1e-6)


def test_the_same_seed_gives_the_same_anchors(sizes):
    first, again = (anchors.kmeans(sizes[:500], seed=3, restarts=2) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_as_many_sizes_as_anchors_and_fewer():
    sizes = np.array([[w, h] for w in (10, 20, 40) for h in (10, 25, 50)], float)
    found = anchors.kmeans(np.repeat(sizes, 5, axis=0)).reshape(-1, 2)
    assert {tuple(size) for size in found} == {tuple(size) for size in sizes}
    assert anchors.mean_best_iou(sizes, found) == 1
    with pytest.raises(ValueError, match="there are 8"):
        anchors.kmeans(np.concatenate([sizes[:8], [[0, 5]]]))


def test_an_empty_cluster_starts_at_the_worst_box():
    sizes = np.array([[10, 10], [12, 12], [100, 5]], float)
    nearest, iou = np.array([0, 0, 0]), np.array([1., .7, .2])
    moved = anchors._move(sizes, np.ones([2, 2]), nearest, iou)
    np.testing.assert_allclose(moved, [[12, 10], [100, 5]])


def test_recall_and_mean_iou_by_hand():
    given = np.array([[[10, 10]], [[40, 20]]], float)
    # 10 x 10: 1. 20 x 10 with 10 x 10: 100 / 200, with 40 x 20: 200 / 800. 80 x 20: 800 / 1600. 1 x 40: 10 /
    # 130
    sizes = np.array([[10, 10], [20, 10], [80, 20], [1, 40]], float)
    best = [1, .5, .5, 10 / 130]
    assert anchors.mean_best_iou(sizes, given) == pytest.approx(np.mean(best))
    assert anchors.best_possible_recall(sizes, given) == .75
    assert anchors.best_possible_recall(sizes, given, iou=.51) == .25
    assert anchors.best_possible_recall(np.zeros([0, 2]), given) == 0
    expected = boxes.shape_iou(sizes, ANCHORS.reshape(-1, 2))
    np.testing.assert_allclose(anchors.shape_iou(sizes, ANCHORS), expected, rtol=1e-6)


def test_collisions_by_hand():
    # At 64 pixels: anchors of 16 and 32 in cells of 8 (8 x 8 of them) and 16 pixels (4 x 4).
    given, strides = [[[16, 16], [8, 24]], [[32, 32], [48, 16]]], (8, 16)

    def box(x, y, width, height):
        return [(x - width / 2) / 64, (y - height / 2) / 64, (x + width / 2) / 64, (y + height / 2) / 64]

    def count(*images):
        return anchors.collisions([np.reshape(image, [-1, 4]) for image in images], given, 64, strides)

    same_cell = [box(25, 25, 16, 16), box(31, 31, 15, 15)]
    assert count(same_cell) == 1
    assert count(same_cell + [box(28, 28, 14, 17)]) == 2
    assert count([box(25, 25, 16, 16), box(33, 25, 16, 16)]) == 0        # the next cell
    assert count([box(25, 25, 16, 16), box(25, 25, 8, 24)]) == 0         # another anchor
    assert count([box(25, 25, 16, 16), box(25, 25, 32, 32)]) == 0        # another scale
    assert count([box(33, 33, 32, 32), box(47, 47, 30, 30)]) == 1        # a cell of 16
    assert count(same_cell[:1], same_cell[1:]) == 0                      # different pictures
    assert count([], [box(25, 25, 0, 16), box(25, 25, 0, 16)]) == 0      # no box, no area
    # On the right and the lower border the last cell takes them.
    assert count([box(64, 64, 16, 16), box(63, 63, 12, 12)]) == 1


def test_collisions_are_the_boxes_that_the_targets_lack():
    rng = np.random.default_rng(5)
    centers, sizes = rng.uniform(.3, .7, [60, 2]), np.exp(rng.uniform(-3, -.7, [60, 2]))
    boxes_xyxy = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=1).astype(np.float32)
    grids = preprocess.encode_targets(boxes_xyxy, np.zeros(60, int), ANCHORS, (8, 16, 32), 416, 1)
    kept = sum(int(np.sum(grid[..., 4])) for grid in grids)
    assert kept < 60
    assert anchors.collisions([boxes_xyxy], ANCHORS, 416, (8, 16, 32)) == 60 - kept
