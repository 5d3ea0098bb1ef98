"""Random codes and the measure of holes, on clouds of points whose answer is known."""

import numpy as np
import pytest

from autoencoders import figures, holes


def images(values):
    """[N] or [N, 4] numbers as pictures of 2 x 2 pixels."""
    values = np.asarray(values, np.float32)
    return np.broadcast_to(values.reshape(len(values), -1), (len(values), 4)).reshape(-1, 2, 2, 1)


def test_random_codes_of_a_plain_autoencoder_keep_each_number_s_values_and_break_their_bond():
    rng = np.random.default_rng(0)
    codes = np.repeat(rng.integers(0, 5, size=(1000, 1)), 2,
                      axis=1).astype(np.float32)  # both numbers are the same
    drawn = holes.random_codes(codes, 2000, variational=False, seed=1)
    assert set(np.unique(drawn)) == set(range(5))
    assert np.mean(drawn[:, 0] == drawn[:, 1]) == pytest.approx(0.2, abs=0.04)
    maps = holes.random_codes(np.zeros([7, 4, 4, 8], np.float32), 3, variational=False)
    assert maps.shape == (3, 4, 4, 8)


def test_random_codes_of_a_variational_one_are_normal():
    drawn = holes.random_codes(np.full([5, 2], 9, np.float32), 20_000, variational=True)
    np.testing.assert_allclose(drawn.mean(axis=0), 0, atol=0.03)
    np.testing.assert_allclose(drawn.std(axis=0), 1, atol=0.03)


def test_plane_codes_are_quantiles():
    grid = holes.plane_codes(np.zeros([1, 2], np.float32), 10, variational=True).reshape(10, 10, 2)
    assert grid[0, 0] == pytest.approx([-1.6449, 1.6449], abs=1e-4)      # 5 % and 95 % of the normal distribution
    assert grid[9, 9] == pytest.approx([1.6449, -1.6449], abs=1e-4)
    assert grid[4, 4] == pytest.approx([-0.12566, 0.12566], abs=1e-4)
    codes = np.stack([np.arange(101), np.arange(101) * 10], axis=1).astype(np.float32)
    plain = holes.plane_codes(codes, 2, variational=False)
    np.testing.assert_allclose(plain, [[25, 750], [75, 750], [25, 250], [75, 250]])


def test_nearest_against_numpy():
    rng = np.random.default_rng(0)
    a, b = rng.uniform(size=(13, 3, 4, 1)).astype(np.float32), rng.uniform(size=(50, 3, 4, 1)).astype(np.float32)
    distance, index = holes.nearest(a, b, count=3, chunk=5)
    slow = np.sqrt(((a[:, None] - b[None]) ** 2).mean(axis=(2, 3, 4)))
    order = np.argsort(slow, axis=1)[:, :3]
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(distance, np.take_along_axis(slow, order, axis=1), atol=1e-4)


def test_measure_of_a_dense_space_and_of_one_with_holes():
    """Pictures are all 0 or all 1. Reconstructions are off by up to 0.1; a sample of 0.5 is in a hole."""
    references, ids = images([0.0] * 20 + [1.0] * 20), np.array([0] * 20 + [1] * 20)
    near = images(np.linspace(0, 0.1, 101))
    dense = holes.measure(near, near, references, ids)
    assert dense["share"] == pytest.approx(5 / 101) and dense["limit"] == pytest.approx(0.095, abs=1e-3)
    assert dense["agreement"] == dense["usual_agreement"] == 1
    # The mean picture, 0.5, would be in a hole; one training picture is the nearest of all.
    assert dense["mean_share"] == 1 and dense["mean_distance"] == pytest.approx(0.5)
    assert dense["variety"] == dense["usual_variety"] == 1 / 101 and dense["references"] == 40
    empty = holes.measure(images([0.5, 0.4, 0.6, 0.01]), near, references, ids)
    assert empty["share"] == 0.75 and empty["distance"] == pytest.approx(0.4, abs=1e-3) and empty["samples"] == 4


def test_the_trivial_answers_of_the_measure():
    """A decoder that answers with one picture has no holes: the mean picture and the variety show it."""
    rng = np.random.default_rng(0)
    references, ids = images(rng.uniform(size=[60, 4])), np.repeat([0, 1, 2], 20)
    blurred = np.repeat(references.mean(axis=0, keepdims=True), 50, axis=0)
    found = holes.measure(blurred, np.zeros_like(blurred), references, ids)
    assert (found["share"], found["mean_share"], found["variety"]) == (0, 0, 1 / 50)
    assert found["distance"] == pytest.approx(found["mean_distance"], abs=1e-6) and found["distance"] < found["limit"]
    exact = holes.measure(references[:50], references[:40], references, ids)
    assert exact["variety"] == exact["usual_variety"] == 1 and exact["mean_share"] == 1
    # Ten draws from three equal labels: 1,000 groups by another generator.
    groups = np.random.default_rng(5).multinomial(10, [1 / 3] * 3, size=100_000).max(axis=1).mean() / 10
    assert exact["chance_agreement"] == pytest.approx(groups, abs=0.02) and exact["neighbours"] == 10


def test_agreement_is_the_share_of_the_most_frequent_label():
    assert holes.agreement(np.array([[1, 1, 1, 1], [0, 1, 2, 3],
                                     [5, 5, 0, 1]])) == pytest.approx((1 + 0.25 + 0.5) / 3)
    unlabelled = holes.measure(images([0.5]), images([0.1]), images([0.0, 1.0]), np.array([-1, -1]))
    assert unlabelled["agreement"] is None


def test_reconstructions_stand_below_their_pictures():
    top, bottom = np.zeros([3, 28, 28, 1]), np.ones([3, 28, 28, 1])
    picture = figures.reconstructions(top, bottom, columns=3)
    assert picture.shape == (2 * 56 + 2, 3 * 56 + 4, 3)
    assert (picture[:56, :56] == 0).all() and (picture[58:, :56] == 255).all()


def test_plane_has_the_colours_of_the_labels_and_marks_those_without():
    codes = np.random.default_rng(0).normal(size=(200, 2)).astype(np.float32)
    picture = figures.plane(codes, np.arange(200) % 3 - 1, ["a", "b"], "title")
    red, green, blue = np.moveaxis(picture.astype(int), -1, 0)
    assert ((blue - red > 60) & (blue > 150)).sum() > 50          # label 0, blue
    assert ((red - blue > 100) & (red > 200)).sum() > 50          # label 1, orange
    assert picture.dtype == np.uint8 and picture.shape[2] == 3


def test_stacked_pictures_touch_but_for_the_gap():
    picture = figures.stacked([np.zeros([5, 7, 3], np.uint8), np.zeros([20, 4, 3], np.uint8)], gap=3)
    assert picture.shape == (28, 7, 3)
    assert (picture[:5] == 0).all() and (picture[5:8] == 255).all() and (picture[8:, :4] == 0).all()
    assert (picture[8:, 4:] == 255).all()
