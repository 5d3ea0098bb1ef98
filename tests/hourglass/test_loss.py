"""The loss of the heatmaps: by hand, against the article's own line of code, and where there is nothing to see."""

import numpy as np
import pytest
import tensorflow as tf

from common.heatmaps import gaussian_heatmaps
from hourglass.loss import LOSSES, article_loss, foreground_weight, vanilla_loss


def example(batch=3, side=6, joints=4, stacks=2, seed=0):
    """(targets, predictions): a third of the pixels is foreground, one joint of the first picture is unknown."""
    rng = np.random.default_rng(seed)
    shape = [batch, side, side, joints]
    heatmaps = np.where(rng.random(shape) < 1 / 3, rng.uniform(0.01, 1, shape), 0).astype(np.float32)
    weight = np.ones([batch, joints], np.float32)
    weight[0, 1] = 0
    predictions = [rng.normal(size=shape).astype(np.float32) for _ in range(stacks)]
    return {"heatmaps": heatmaps, "weight": weight}, predictions


def test_by_hand():
    """One joint, 2 x 2 pixels, a patch of one: a foreground error of 0.5 weighs three times one of the background."""
    targets = {"heatmaps": tf.reshape(tf.constant([1.0, 0, 0, 0]), [1, 2, 2, 1]), "weight": tf.ones([1, 1])}
    prediction = tf.reshape(tf.constant([0.5, 0.5, 0, 1]), [1, 2, 2, 1])
    parts = article_loss(targets, [prediction, prediction * 0], sigma=0.3)
    assert list(parts) == ["stack_1", "stack_2"] and parts["stack_1"].shape == (1,)
    assert float(parts["stack_1"][0]) == pytest.approx((3 * 0.25 + 0.25 + 1) / 4)
    assert float(parts["stack_2"][0]) == pytest.approx(3 / 4)
    parts = vanilla_loss(targets, [prediction], sigma=0.3)
    assert float(parts["stack_1"][0]) == pytest.approx((0.25 + 0.25 + 1) / 4)


@pytest.mark.parametrize("side, sigma, weight", [
    (64, 1.0, 4047 / 49), (32, 1.0, 975 / 49), (24, 1.0, 527 / 49), (64, 2.0, 3927 / 169), (64, 1.5, 4015 / 81),
    (8, 2.0, 1.0)])
def test_the_foreground_weighs_as_much_as_the_background(side, sigma, weight):
    """The article's 82 is (64 x 64 - 49) / 49 = 82.6; 19.9 at 128 pixels, 10.8 at 96. The patch is the one that is
    drawn, and a heatmap that is all patch has the weight 1."""
    assert foreground_weight(side, side, sigma) == pytest.approx(weight)
    drawn = gaussian_heatmaps(tf.fill([1, 1, 2], side / 2 + 0.2), [[True]], [side, side], sigma)
    pixels = int((drawn.numpy() > 0).sum())
    assert weight == 1 or weight == pytest.approx((side * side - pixels) / pixels)
    targets = {"heatmaps": drawn, "weight": tf.ones([1, 1])}
    foreground = tf.cast(drawn > 0, tf.float32)
    for wrong, expected in ((foreground, pixels * weight), (1 - foreground, side * side - pixels)):
        part = article_loss(targets, [drawn + wrong], sigma=sigma)["stack_1"]
        assert float(part[0]) == pytest.approx(expected / side**2, rel=1e-5)


def test_sum_over_the_global_batch_is_the_articles_line():
    """`weights = cast(labels > 0) * 81 + 1; loss += reduce_mean(square(labels - output) * weights)`, once only.

    The article's code took that mean over the batch and divided by the global batch again. 81 is 81.6 unrounded.
    """
    targets, predictions = example(side=64)
    targets["weight"][:] = 1
    weight = 4047 / 49
    expected = sum(np.mean(np.square(targets["heatmaps"] - output) * ((targets["heatmaps"] > 0) * (weight - 1) + 1))
                   for output in predictions)
    parts = article_loss(targets, predictions)
    assert all(part.shape == (3,) for part in parts.values())
    assert sum(float(tf.reduce_sum(part)) / 3 for part in parts.values()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name, foreground", [("article", 3.0), ("vanilla", 1.0)])
def test_against_loops(name, foreground):
    """6 x 6 pixels, sigma 0.4: a patch of 9, 27 of background."""
    targets, predictions = example()
    parts = LOSSES[name](targets, predictions, sigma=0.4)
    for stack, prediction in enumerate(predictions, 1):
        for picture in range(3):
            total = 0.0
            for y, x, joint in np.ndindex(6, 6, 4):
                truth = float(targets["heatmaps"][picture, y, x, joint])
                error = (truth - float(prediction[picture, y, x, joint])) ** 2
                total += (foreground if truth > 0 else 1) * error * targets["weight"][picture, joint]
            assert float(parts[f"stack_{stack}"][picture]) == pytest.approx(total / (6 * 6 * 4), rel=1e-5)


def test_unknown_joints_are_not_looked_at_and_absent_ones_are():
    targets, (prediction, _) = example()
    other = prediction.copy()
    other[0, ..., 1] += 7                                   # of weight 0
    np.testing.assert_array_equal(article_loss(targets, [prediction])["stack_1"],
                                  article_loss(targets, [other])["stack_1"])
    nothing = {"heatmaps": np.zeros([2, 6, 6, 4], np.float32), "weight": np.array([[0.0] * 4, [1.0] * 4], np.float32)}
    part = article_loss(nothing, [prediction[:2]])["stack_1"].numpy()
    assert part[0] == 0 and part[1] == pytest.approx(np.mean(np.square(prediction[1])), rel=1e-5)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_float32_of_half_precision(dtype):
    targets, predictions = example()
    half = [tf.cast(prediction, dtype) for prediction in predictions]
    whole = article_loss(targets, [tf.cast(prediction, tf.float32) for prediction in half])
    for name, part in article_loss(targets, half).items():
        assert part.dtype == tf.float32
        np.testing.assert_array_equal(part, whole[name])
