"""Fréchet and kernel distance: hand numbers, scipy's matrix root, slow sums, singular covariances."""

import numpy as np
import pytest
import scipy.linalg

from common.errors import UserError
from common.metrics import frechet

RNG = np.random.default_rng(0)


def features(count, dimensions, scale=1.0, shift=0.0):
    return RNG.normal(size=(count, dimensions)) @ RNG.normal(size=(dimensions, dimensions)) * scale + shift


def test_statistics_are_numpys():
    found = features(7, 3)
    mean, covariance = frechet.statistics(found.astype(np.float32))
    assert mean.dtype == covariance.dtype == np.float64
    np.testing.assert_allclose(mean, found.mean(axis=0), rtol=1e-5)  # of float32 features
    np.testing.assert_allclose(covariance, np.cov(found, rowvar=False), rtol=1e-4, atol=1e-5)


def test_by_hand():
    """One number: (3 - 1)^2 + (2 - 5)^2 of the standard deviations; of diagonal covariances their sum."""
    assert frechet.frechet_distance([3.0], [[4.0]], [1.0], [[25.0]]) == pytest.approx(4 + 9, rel=1e-12)
    found = frechet.frechet_distance([0, 0], np.diag([4.0, 1.0]), [1, 0], np.diag([25.0, 9.0]))
    assert found == pytest.approx(1 + 9 + 4, rel=1e-12)


def test_as_scipys_matrix_root():
    one, other = frechet.statistics(features(50, 8)), frechet.statistics(features(40, 8, 2.0, 0.5))
    root = scipy.linalg.sqrtm(one[1] @ other[1])
    expected = np.sum((one[0] - other[0])**2) + np.trace(one[1] + other[1] - 2 * root.real)
    assert frechet.frechet_distance(*one, *other) == pytest.approx(expected, rel=1e-9)
    assert frechet.frechet_distance(*other, *one) == pytest.approx(expected, rel=1e-9)


def test_singular_covariances():
    """Fewer pictures than numbers: the distance of a set to its copy, moved by 2 in one of 40 numbers, is 4."""
    found = features(10, 40)
    moved = found + 2.0 * np.eye(40)[3]
    assert frechet.frechet_distance(*frechet.statistics(found), *frechet.statistics(moved)) == pytest.approx(4.0)
    assert frechet.frechet_distance(*frechet.statistics(found), *frechet.statistics(found)) == pytest.approx(
        0.0, abs=1e-9)
    flat = np.zeros([40, 40])  # ten equal pictures
    mean, covariance = frechet.statistics(found)
    assert frechet.frechet_distance(mean, flat, mean, covariance) == pytest.approx(np.trace(covariance))
    # A root of the nuclear norm of the centred features: no covariance, no cut of eigenvalues.
    other = features(12, 40)
    roots = np.linalg.svd((found - found.mean(0)) @ (other - other.mean(0)).T / np.sqrt(9 * 11), compute_uv=False)
    expected = (np.sum((found.mean(0) - other.mean(0))**2) + np.trace(covariance) + np.cov(other.T).trace()
                - 2 * roots.sum())
    assert frechet.frechet_distance(mean, covariance, *frechet.statistics(other)) == pytest.approx(expected)


def test_kernel_distance_by_hand():
    """x = 0, 1 and y = 1, 2 with one number: pairs within x give 1, within y 27; across 1, 1, 8, 27."""
    mean, deviation = frechet.kernel_distance([[0.0], [1.0]], [[1.0], [2.0]])
    assert mean == pytest.approx((1 + 1) / 2 + (27 + 27) / 2 - 2 * (1 + 1 + 8 + 27) / 4)
    assert np.isnan(deviation)  # of one subset, of all pictures, it is not 0


def slow_mmd(x, y):
    """Binkowski et al., eq. 4, term by term."""
    def kernel(a, b):
        return (sum(p * q for p, q in zip(a, b)) / len(a) + 1)**3

    n = len(x)
    total = 0.0
    for i in range(n):
        for j in range(n):
            total += (kernel(x[i], x[j]) + kernel(y[i], y[j])) / (n * (n - 1)) if i != j else 0.0
            total -= 2 * kernel(x[i], y[j]) / (n * n)
    return total


def test_kernel_distance_of_all_is_the_slow_sum():
    x, y = features(6, 4), features(6, 4)
    assert frechet.kernel_distance(x, y)[0] == pytest.approx(slow_mmd(x, y), rel=1e-10)


def test_subsets_vary_around_the_value_of_all():
    x, y = RNG.normal(size=(400, 4)), RNG.normal(size=(300, 4)) + 0.5
    mean, deviation = frechet.kernel_distance(x, y, subsets=50, subset_size=60)
    whole = frechet.kernel_distance(x[:300], y)[0]
    assert 0 < deviation < mean and mean == pytest.approx(whole, abs=2 * deviation)
    assert (mean, deviation) == frechet.kernel_distance(x, y, subsets=50, subset_size=60)
    # Two draws of one distribution: unbiased, so about as often below 0 as above.
    values = [frechet.kernel_distance(RNG.normal(size=(50, 3)), RNG.normal(size=(50, 3)))[0] for _ in range(60)]
    assert 10 < np.sum(np.array(values) < 0) < 50


def test_spread_of_subsets_of_which_there_is_one():
    x, y = features(1200, 3), features(1001, 3)
    for count in (60, 1000):
        assert np.isnan(frechet.kernel_distance(x[:count], y[:count])[1])
    assert frechet.kernel_distance(x[:61], y[:60])[1] > 0 and frechet.kernel_distance(x, y, subsets=2)[1] > 0


def test_too_few_pictures_for_their_features_are_said():
    assert frechet.caveat(features(9, 8), features(9, 8)) == ""
    for pictures in (2, 8):
        said = frechet.caveat(features(9, 8), features(pictures, 8))
        assert said.startswith(f"{pictures} pictures are too few for the Frechet distance of 8 numbers")
    # Two halves of one set, at a distance that grows as they get smaller than their features.
    x = features(4000, 20)
    small, large = (frechet.frechet_distance(*frechet.statistics(x[:n]), *frechet.statistics(x[n:2 * n]))
                    for n in (10, 2000))
    assert small > 20 * large


@pytest.mark.parametrize("bad", [np.zeros([1, 3]), np.zeros(5), np.full([4, 2], np.nan), np.zeros([4, 0])])
def test_features_that_are_none(bad):
    with pytest.raises(UserError, match="Features must be"):
        frechet.statistics(bad)
    with pytest.raises(UserError, match="Features must be"):
        frechet.kernel_distance(np.zeros([4, 2]), bad)
