"""Targets and peaks against numbers worked out by hand, the article's patch drawn in a loop, and each other."""

import numpy as np
import pytest
import tensorflow as tf

from common import heatmaps


def draw(joints, present=None, size=(16, 20), **options):
    """numpy heatmaps of joints_xy [K, 2]."""
    joints = np.asarray(joints, np.float32)
    present = np.ones(len(joints), bool) if present is None else present
    return heatmaps.gaussian_heatmaps(joints, present, size, **options).numpy()


def loop(joints, present, size, sigma):
    """The article's patch, drawn pixel by pixel: centre at the joint's pixel, clipped at the border."""
    height, width = size
    result = np.zeros((height, width, len(joints)))
    for k, (x, y) in enumerate(joints):
        column, row = int(np.floor(x)), int(np.floor(y))
        if not present[k] or not (0 <= column < width and 0 <= row < height):
            continue
        patch_size = 6 * sigma + 1
        center = patch_size // 2
        for j in range(patch_size):
            for i in range(patch_size):
                to_x, to_y = column + i - center, row + j - center
                if 0 <= to_x < width and 0 <= to_y < height:
                    result[to_y, to_x, k] = np.exp(-((i - center) ** 2 + (j - center) ** 2) / (2 * sigma ** 2))
    return result


def test_seven_by_seven_for_sigma_one():
    """A joint in the middle of pixel (10, 8): exp(-d^2 / 2) by hand."""
    heatmap = draw([[10.5, 8.5]])[..., 0]
    assert np.argwhere(heatmap > 0).min(0).tolist() == [5, 7]
    assert np.argwhere(heatmap > 0).max(0).tolist() == [11, 13]
    assert (heatmap > 0).sum() == 49 and heatmap[8, 10] == 1
    for row, column, value in ((8, 11, 0.6065307), (7, 11, 0.3678794), (8, 13, 0.0111090), (5, 7, 0.0001234)):
        assert heatmap[row, column] == pytest.approx(value, abs=1e-7)
    assert heatmap.max() == 1


@pytest.mark.parametrize("sigma", [1, 2, 3])
def test_twin_of_the_articles_loop(sigma):
    rng = np.random.default_rng(sigma)
    joints = rng.uniform(-4, 22, (60, 2)).astype(np.float32)
    present = rng.random(60) < 0.8
    expected = loop(joints, present, (16, 20), sigma)
    assert np.any(expected, axis=(0, 1)).sum() > 15
    np.testing.assert_allclose(draw(joints, present, sigma=sigma, subpixel=False), expected, atol=1e-6)
    centers = np.floor(joints) + 0.5                    # there the two ways are one
    np.testing.assert_allclose(draw(centers, present, sigma=sigma), expected, atol=1e-6)


def test_the_centre_is_the_joint_itself():
    """x 0.3 right of the pixel's middle: a Gaussian there, divided by its value at the pixel."""
    heatmap = draw([[10.8, 8.5]])[..., 0]
    true = np.exp(-(np.arange(20) + 0.5 - 10.8) ** 2 / 2)
    np.testing.assert_allclose(heatmap[8, 7:14], true[7:14] / true[10], rtol=1e-5)
    assert heatmap[8, 10] == 1 and heatmap[8, 11] > heatmap[8, 9] and (heatmap > 0).sum() == 49


@pytest.mark.parametrize("subpixel", [True, False])
@pytest.mark.parametrize("x, y", [(0.2, 7.9), (19.99, 7), (9, 0), (9.5, 15.7), (0, 0), (19.5, 15.5), (2.5, 13.5)])
def test_patches_are_clipped_at_borders_never_moved(x, y, subpixel):
    """What is in view is what a larger heatmap shows there."""
    large = draw([[x + 5, y + 5]], size=(26, 30), subpixel=subpixel)[5:-5, 5:-5]
    heatmap = draw([[x, y]], subpixel=subpixel)
    np.testing.assert_allclose(heatmap, large, atol=1e-6)
    assert heatmap[int(y), int(x), 0] == 1 == heatmap.max()


def test_absent_joints_and_those_outside_are_zero():
    outside = [(-0.01, 5), (20, 5), (5, -0.01), (5, 16), (np.nan, 5), (5, np.inf), (-np.inf, np.nan)]
    assert not draw(outside).any()
    two = draw([[5, 5], [5, 5]], [False, True])
    assert not two[..., 0].any() and two[5, 5, 1] == 1


@pytest.mark.parametrize("sigma, side", [(0.3, 1), (0.5, 3), (1.5, 9), (2.0, 13)])
def test_any_sigma(sigma, side):
    heatmap = draw([[20.3, 20.7]], size=(40, 40), sigma=sigma)[..., 0]
    assert (heatmap > 0).sum() == side * side and heatmap[20, 20] == 1
    with pytest.raises(ValueError, match="positive; 0 came"):
        draw([[5, 5]], sigma=0)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0])
def test_round_trip_within_a_quarter_of_a_pixel(sigma):
    """Away from the border pixels, which have one neighbour only: there it is half a pixel."""
    rng = np.random.default_rng(0)
    joints = rng.uniform(1, [63, 47], (5, 200, 2)).astype(np.float32)
    maps = heatmaps.gaussian_heatmaps(joints, np.ones((5, 200), bool), (48, 64), sigma)
    found, scores = heatmaps.peaks(maps)
    assert np.abs(found - joints).max() <= 0.25 + 1e-4                    # float32
    assert scores.shape == (5, 200) and (scores.numpy() == 1).all()
    border = np.float32([[0.1, 0.9], [63.9, 47.9], [0.5, 20.3]])
    found, _ = heatmaps.peaks(draw(border, size=(48, 64), sigma=sigma))
    assert np.abs(found - border).max() <= 0.5
    whole = heatmaps.gaussian_heatmaps(joints, np.ones((5, 200), bool), (48, 64), sigma, subpixel=False)
    assert 0.25 < np.abs(heatmaps.peaks(whole)[0] - joints).max() <= 0.5  # what the article's patch loses


def test_peaks_by_hand():
    maps = np.zeros((4, 5, 4), np.float32)
    maps[1, 2, 0], maps[1, 3, 0], maps[0, 2, 0] = 0.9, 0.3, 0.2            # right and up are larger
    maps[2, 2, 1], maps[2, 1, 1], maps[1, 2, 1], maps[3, 2, 1] = 0.5, 0.1, 0.2, 0.2   # left; up and down are equal
    maps[3, 4, 2], maps[3, 3, 2] = -0.5, -1                                # all others are 0: the first of them
    maps[3, 4, 3], maps[2, 4, 3] = 2, 1                                    # corner: neighbours are missing
    found, scores = heatmaps.peaks(maps)
    np.testing.assert_allclose(found, [[2.75, 1.25], [2.25, 2.5], [0.5, 0.5], [4.5, 3.5]])
    np.testing.assert_allclose(scores, [0.9, 0.5, 0, 2])


def test_batch_axes_graph_and_precision():
    rng = np.random.default_rng(1)
    joints = rng.uniform(0, 16, (2, 3, 5, 2)).astype(np.float32)
    present = rng.random((2, 3, 5)) < 0.7

    @tf.function(input_signature=[tf.TensorSpec([None, None, 5, 2]), tf.TensorSpec([None, None, 5], tf.bool)])
    def there(joints, present):
        return heatmaps.gaussian_heatmaps(joints, present, (16, 16), 1.5)

    maps = there(joints, present)
    assert maps.shape == (2, 3, 16, 16, 5)
    for i, j in np.ndindex(2, 3):
        np.testing.assert_allclose(maps[i, j], draw(joints[i, j], present[i, j], (16, 16), sigma=1.5), atol=1e-6)

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 5])])
    def back(maps):
        found, scores = heatmaps.peaks(maps)
        assert found.shape.as_list() == [None, 5, 2] and scores.shape.as_list() == [None, 5]
        return found, scores

    whole, scores = heatmaps.peaks(maps)
    for i in range(2):
        found, _ = back(maps[i])
        np.testing.assert_array_equal(found, whole[i])
    np.testing.assert_array_equal(scores.numpy() > 0, present)
    half, scores = heatmaps.peaks(tf.cast(maps, tf.bfloat16))
    assert half.dtype == scores.dtype == tf.float32
    found = tf.boolean_mask(tf.abs(half - joints), present)
    assert tf.reduce_max(found) < 1.25                                     # bfloat16 makes ties of near values
