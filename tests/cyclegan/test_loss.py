"""Every part of the losses against numbers worked out by hand."""

import numpy as np
import pytest

from cyclegan.loss import cycle_loss, discriminator_loss, gan_loss, generator_loss, identity_loss


def logits(*rows):
    """[B, 1, w, 1] from a row of patches for each picture."""
    return np.array(rows, np.float32)[:, None, :, None]


def flat(value, size=2):
    """Pictures [1, size, size, 3] of one value."""
    return np.full([1, size, size, 3], value, np.float32)


def test_least_squares_by_hand():
    judged = logits([1, 0, 3], [0.5, 0.5, 2])
    np.testing.assert_allclose(gan_loss(judged, True), [(0 + 1 + 4) / 3, (0.25 + 0.25 + 1) / 3], rtol=1e-6)
    np.testing.assert_allclose(gan_loss(judged, False), [(1 + 0 + 9) / 3, (0.25 + 0.25 + 4) / 3], rtol=1e-6)
    assert gan_loss(judged, True).shape == (2,)


@pytest.mark.parametrize("loss", [cycle_loss, identity_loss])
def test_mean_absolute_difference_by_hand(loss):
    real = np.zeros([2, 2, 1, 3], np.float32)
    made = np.array([[[[1, -1, 0]], [[0.5, 0, 0]]], [[[0, 0, 0]], [[0, 0, -0.6]]]], np.float32)
    np.testing.assert_allclose(loss(made, real), [2.5 / 6, 0.1], rtol=1e-6)
    np.testing.assert_allclose(loss(real, made), [2.5 / 6, 0.1], rtol=1e-6)


def test_parts_of_the_generators():
    """Six different numbers, each from its own pictures: a swapped side shows."""
    real = {"a": flat(0.0), "b": flat(0.5)}
    cycled = {"a": flat(0.1), "b": flat(0.3)}
    same = {"a2b": flat(0.9), "b2a": flat(-0.8)}
    judged = {"a2b": logits([0.5]), "b2a": logits([-1.0])}
    found = generator_loss(real, cycled, same, judged)
    assert {name: pytest.approx(float(part[0]), rel=1e-5) for name, part in found.items()} == {
        "gan_a2b": 0.25, "gan_b2a": 4.0, "cycle_a": 0.1, "cycle_b": 0.2, "identity_a2b": 0.4, "identity_b2a": 0.8}
    assert all(part.shape == (1,) for part in found.values())
    without = generator_loss(real, cycled, {}, judged)
    assert list(without) == ["gan_a2b", "gan_b2a", "cycle_a", "cycle_b"]


def test_discriminators_are_halved():
    found = discriminator_loss({"a": logits([1, 3], [1, 1]), "b": logits([0, 0], [2, 2])},
                               {"a": logits([1, 1], [0, 0]), "b": logits([0, 0], [3, 1])})
    # a: (mean(0, 4) + mean(1, 1)) / 2, (0 + 0) / 2; b: (1 + 0) / 2, (1 + mean(9, 1)) / 2.
    np.testing.assert_allclose(found["discriminator_a"], [1.5, 0.0])
    np.testing.assert_allclose(found["discriminator_b"], [0.5, 3.0])
