"""The loss of SSD against numbers worked out by hand, a NumPy twin with loops, PyTorch and numerical gradients."""

import numpy as np
import pytest
import tensorflow as tf

from ssd.loss import l2_loss, num_positives, smooth_l1, ssd_loss, sum_of_hardest

LN2, LN3, LN4 = np.log([2.0, 3.0, 4.0])


def random_batch(seed, batch=3, anchors=40, classes=4, positives=(3, 0, 17)):
    """(targets, predictions) as NumPy; picture i has positives[i] matched anchors."""
    rng = np.random.default_rng(seed)
    labels = np.zeros([batch, anchors], np.int32)
    for row, count in zip(labels, positives, strict=True):
        row[rng.permutation(anchors)[:count]] = rng.integers(1, classes + 1, count)
    targets = {"classes": labels, "offsets": rng.normal(0, 2, [batch, anchors, 4]).astype(np.float32)}
    predictions = {"logits": rng.normal(0, 2, [batch, anchors, 1 + classes]).astype(np.float32),
                   "offsets": rng.normal(0, 2, [batch, anchors, 4]).astype(np.float32)}
    return targets, predictions


def as_tensors(*arrays):
    return tf.nest.map_structure(tf.constant, arrays)


def numpy_loss(targets, predictions, ratio=3, least=0):
    """The definition, one anchor after the other."""
    confidence, localization = [], []
    for classes, wanted, logits, offsets in zip(targets["classes"], targets["offsets"], predictions["logits"],
                                                predictions["offsets"]):
        positive_loss, distance, negative_losses = 0.0, 0.0, []
        for anchor, label in enumerate(classes):
            if label < 0:
                continue                                                   # in a crowd
            scores = np.exp(logits[anchor].astype(np.float64) - logits[anchor].max())
            entropy = -np.log(scores[label] / scores.sum())
            if label == 0:
                negative_losses.append(entropy)
                continue
            positive_loss += entropy
            for difference in offsets[anchor].astype(np.float64) - wanted[anchor]:
                distance += difference ** 2 / 2 if abs(difference) < 1 else abs(difference) - 0.5
        hardest = sorted(negative_losses, reverse=True)[:max(ratio * int(np.sum(classes > 0)), least)]
        confidence.append(positive_loss + sum(hardest))
        localization.append(distance)
    return {"confidence": np.array(confidence), "localization": np.array(localization)}


def test_by_hand():
    """Six anchors, two classes; one positive, so that the three hardest of five negatives count."""
    logits = np.zeros([1, 6, 3], np.float32)
    logits[0, 1] = [0.0, LN2, 0.0]       # positive of class 1: probability 2/4
    logits[0, 0] = [LN4, 0.0, 0.0]       # background 4/6: ln(3/2), the easiest
    logits[0, 2] = [0.0, 0.0, LN4]       # background 1/6: ln 6, the hardest
    logits[0, 3] = [LN2, 0.0, 0.0]       # background 2/4: ln 2
    logits[0, 5] = [0.0, LN2, 0.0]       # background 1/4: ln 4; anchor 4 has 1/3: ln 3
    offsets = np.full([1, 6, 4], 7.0, np.float32)                          # of the negatives nothing counts
    offsets[0, 1] = [0.5, -2.0, 1.0, 0.0]
    targets = {"classes": np.array([[0, 1, 0, 0, 0, 0]], np.int32), "offsets": np.zeros([1, 6, 4], np.float32)}
    targets["offsets"][0, 1] = [0.0, 1.0, 1.0, 1.0]
    parts = ssd_loss(*as_tensors(targets, {"logits": logits, "offsets": offsets}))
    # ln 2 of the positive, ln 6 + ln 4 + ln 3 of the negatives.
    assert parts["confidence"].numpy() == pytest.approx([LN2 + np.log(6) + LN4 + LN3], rel=1e-6)
    # Differences 1/2, -3, 0, -1: 1/8, 3 - 1/2, 0, 1/2.
    assert parts["localization"].numpy() == pytest.approx([0.125 + 2.5 + 0.5], rel=1e-6)
    assert num_positives(targets).numpy() == [1.0]


def test_smooth_l1_takes_the_absolute_value():
    """The article's formula would make -3 cost 4.5 and the gradient there -3."""
    x = tf.constant([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = smooth_l1(x)
    np.testing.assert_allclose(y, [2.5, 0.5, 0.125, 0.0, 0.125, 0.5, 2.5])
    np.testing.assert_allclose(tape.gradient(y, x), [-1, -1, -0.5, 0, 0.5, 1, 1])


@pytest.mark.parametrize("positives", [(3, 0, 17), (1, 40, 9), (0, 0, 0), (10, 11, 5)],
                         ids=["usual", "all positive", "no object at all", "fewer negatives than wanted"])
@pytest.mark.parametrize("ratio", [3, 1])
def test_equals_the_loops(positives, ratio):
    targets, predictions = random_batch(sum(positives), positives=positives)
    found = tf.function(ssd_loss)(*as_tensors(targets, predictions), negatives_per_positive=ratio)
    for name, expected in numpy_loss(targets, predictions, ratio).items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)  # float32 sums
    np.testing.assert_array_equal(num_positives(targets), positives)


def test_anchors_in_a_crowd_have_no_loss_and_a_picture_can_have_negatives_without_positives():
    targets, predictions = random_batch(11, positives=(3, 0, 17))
    targets["classes"][:, ::3] = np.where(targets["classes"][:, ::3] > 0, targets["classes"][:, ::3], -1)
    for least in (0, 5, 100):
        tensors = as_tensors(targets, predictions)
        with tf.GradientTape() as tape:
            tape.watch(tensors[1])
            found = ssd_loss(*tensors, min_negatives=least)
        for name, expected in numpy_loss(targets, predictions, least=least).items():
            np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)
        gradient = tape.gradient(found["confidence"], tensors[1]["logits"]).numpy()
        assert not gradient[targets["classes"] < 0].any()
        empty = np.any(gradient[1] != 0, axis=-1).sum()
        assert empty == min(least, (targets["classes"][1] == 0).sum())
    np.testing.assert_array_equal(num_positives(targets), [3, 0, 17])


def test_mining_equals_the_ranks_of_pytorch():
    """The usual PyTorch spelling: the rank of each anchor, from sorting twice, is below the number of negatives."""
    torch = pytest.importorskip("torch")
    targets, predictions = random_batch(7)
    labels, logits = torch.from_numpy(targets["classes"]).long(), torch.from_numpy(predictions["logits"])
    logits.requires_grad_()
    entropy = torch.nn.functional.cross_entropy(logits.transpose(1, 2), labels, reduction="none")
    positive = labels > 0
    order = entropy.detach().masked_fill(positive, -1.0).argsort(dim=1, descending=True)
    chosen = order.argsort(dim=1) < (3 * positive.sum(1, keepdim=True)).clamp(max=(~positive).sum(1, keepdim=True))
    expected = (entropy * (positive | (chosen & ~positive))).sum(1)
    expected.sum().backward()

    tensors = as_tensors(targets, predictions)
    with tf.GradientTape() as tape:
        tape.watch(tensors[1]["logits"])
        found = ssd_loss(*tensors)["confidence"]
    np.testing.assert_allclose(found, expected.detach(), rtol=1e-5)
    gradient = tape.gradient(found, tensors[1]["logits"]).numpy()
    np.testing.assert_allclose(gradient, logits.grad, atol=1e-6)
    touched = np.any(gradient != 0, axis=-1).sum(axis=1)
    assert touched.tolist() == [12, 0, 40]                                 # 3 + 9, none, 17 + the 23 that are left


def test_localization_equals_pytorch():
    torch = pytest.importorskip("torch")
    targets, predictions = random_batch(8)
    each = torch.nn.functional.smooth_l1_loss(
        torch.from_numpy(predictions["offsets"]), torch.from_numpy(targets["offsets"]), reduction="none").sum(-1)
    expected = (each * torch.from_numpy(targets["classes"] > 0)).sum(1)
    np.testing.assert_allclose(ssd_loss(*as_tensors(targets, predictions))["localization"], expected, rtol=1e-5)


def test_of_equal_losses_the_first_anchors_count():
    entropy = tf.ones([2, 12])
    positive = np.zeros([2, 12], bool)
    positive[0, [0, 5]] = True
    with tf.GradientTape() as tape:
        tape.watch(entropy)
        total = sum_of_hardest(entropy, tf.constant(~positive), tf.constant([6, 0]))
    assert total.numpy().tolist() == [6.0, 0.0]
    assert np.flatnonzero(tape.gradient(total, entropy)[0]).tolist() == [1, 2, 3, 4, 6, 7]


@pytest.mark.parametrize("name", ["confidence", "localization"])
def test_gradient_is_the_numerical_one(name):
    targets, predictions = random_batch(3)
    key = {"confidence": "logits", "localization": "offsets"}[name]
    direction = np.random.default_rng(4).normal(size=predictions[key].shape).astype(np.float32)
    tensors = as_tensors(targets, predictions)
    with tf.GradientTape() as tape:
        tape.watch(tensors[1][key])
        total = tf.reduce_sum(ssd_loss(*tensors)[name])
    analytic = np.vdot(tape.gradient(total, tensors[1][key]), direction)
    # Central differences of the double-precision twin; small enough that the same negatives stay the hardest.
    step = 1e-4
    ahead, behind = (numpy_loss(targets, {**predictions, key: predictions[key] + sign * step * direction})[name]
                     for sign in (1, -1))
    assert abs(analytic) > 1
    assert (ahead - behind).sum() / (2 * step) == pytest.approx(analytic, rel=2e-3)


def test_one_value_per_picture():
    """The loss of a batch is the losses of its pictures; the others' positives do not change what is mined."""
    targets, predictions = random_batch(5)
    together = ssd_loss(*as_tensors(targets, predictions))
    for index in range(3):
        one = tf.nest.map_structure(lambda value: tf.constant(value[index:index + 1]), (targets, predictions))
        for name, part in ssd_loss(*one).items():
            assert part.numpy()[0] == pytest.approx(together[name].numpy()[index], rel=1e-6)


def test_a_picture_without_objects_has_neither_loss_nor_gradient():
    targets, predictions = random_batch(6, positives=(0, 0, 0))
    tensors = as_tensors(targets, predictions)
    with tf.GradientTape() as tape:
        tape.watch(tensors[1])
        parts = ssd_loss(*tensors)
        total = tf.add_n(list(parts.values()))
    assert total.numpy().tolist() == [0, 0, 0]
    assert all(not np.any(gradient) for gradient in tape.gradient(total, tensors[1]).values())


def test_extreme_predictions_give_numbers():
    targets, predictions = random_batch(9)
    for name in predictions:
        predictions[name] = np.sign(predictions[name]) * np.float32(1e4)
    tensors = as_tensors(targets, predictions)
    with tf.GradientTape() as tape:
        tape.watch(tensors[1])
        parts = ssd_loss(*tensors)
        total = tf.add_n(list(parts.values()))
    values = [total, *parts.values(), *tape.gradient(total, tensors[1]).values()]
    assert all(np.isfinite(value.numpy()).all() for value in values)


def test_predictions_of_half_precision_are_cast():
    targets, predictions = random_batch(10)
    half = {name: tf.cast(value, tf.bfloat16) for name, value in predictions.items()}
    parts = ssd_loss(*as_tensors(targets), half)
    exact = ssd_loss(*as_tensors(targets), {name: tf.cast(value, tf.float32) for name, value in half.items()})
    for name in exact:
        assert parts[name].dtype == tf.float32
        np.testing.assert_array_equal(parts[name], exact[name])


def test_l2_loss_is_half_the_squares():
    variables = [tf.Variable([[1.0, -2.0]]), tf.Variable([3.0])]
    with tf.GradientTape() as tape:
        total = l2_loss(variables)
    assert total.numpy() == 7.0                                            # (1 + 4 + 9) / 2
    np.testing.assert_array_equal(tape.gradient(total, variables)[0], variables[0])
