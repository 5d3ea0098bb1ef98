"""The loss of the heatmaps: by hand, against the article's own line of code, and where there is nothing to see."""

import numpy as np
import pytest
import tensorflow as tf

from hourglass.loss import FOREGROUND_WEIGHT, LOSSES, article_loss, vanilla_loss


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
    """One joint, 2 x 2 pixels: a foreground error of 0.5 weighs 82 times as much as one of the background."""
    targets = {"heatmaps": tf.reshape(tf.constant([1.0, 0, 0, 0]), [1, 2, 2, 1]), "weight": tf.ones([1, 1])}
    prediction = tf.reshape(tf.constant([0.5, 0.5, 0, 1]), [1, 2, 2, 1])
    parts = article_loss(targets, [prediction, prediction * 0])
    assert list(parts) == ["stack_1", "stack_2"] and parts["stack_1"].shape == (1,)
    assert float(parts["stack_1"][0]) == pytest.approx((82 * 0.25 + 0.25 + 1) / 4)
    assert float(parts["stack_2"][0]) == pytest.approx(82 / 4)
    parts = vanilla_loss(targets, [prediction])
    assert float(parts["stack_1"][0]) == pytest.approx((0.25 + 0.25 + 1) / 4)


def test_sum_over_the_global_batch_is_the_articles_line():
    """`weights = cast(labels > 0) * 81 + 1; loss += reduce_mean(square(labels - output) * weights)`, once only.

    The article's code took that mean over the batch and divided by the global batch again.
    """
    targets, predictions = example()
    targets["weight"][:] = 1
    expected = sum(np.mean(np.square(targets["heatmaps"] - output) * ((targets["heatmaps"] > 0) * 81 + 1))
                   for output in predictions)
    parts = article_loss(targets, predictions)
    assert all(part.shape == (3,) for part in parts.values())
    assert sum(float(tf.reduce_sum(part)) / 3 for part in parts.values()) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name, foreground", [("article", FOREGROUND_WEIGHT), ("vanilla", 1.0)])
def test_against_loops(name, foreground):
    targets, predictions = example()
    parts = LOSSES[name](targets, predictions)
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
