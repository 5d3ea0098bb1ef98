"""The losses of YOLOv3 against numbers worked out by hand, numerical gradients and the errata."""

import numpy as np
import pytest
import tensorflow as tf

from yolov3 import preprocess
from yolov3.loss import LOSSES, PARTS, article_loss, box_weight, darknet_loss, not_ignored

LN2, LN3, LN4 = np.log([2.0, 3.0, 4.0])
# One scale of stride 32 on an input of 64 x 64: a grid of 2 x 2 cells, two anchors, two classes.
SIZE = (64, 64)
ANCHORS = np.array([[[32, 32], [16, 48]]], np.float32)
# Centre (48, 8), 32 x 16 pixels: row 0, column 1, offset (0.5, 0.25); the first anchor fits it.
TRUTH = np.array([[0.5, 0.0, 1.0, 0.25]], np.float32)
CELL = (0, 0, 1, 0)                                                        # picture, row, column, anchor


def grid_of_truth():
    grid = np.zeros([1, 2, 2, 2, 7], np.float32)
    grid[CELL] = [0.5, 0.25, 0.0, -LN2, 1.0, 0.0, 1.0]    # log(32/32), log(16/32); the second class
    return grid


def targets(grid=None, boxes_xyxy=TRUTH):
    return {"boxes_xyxy": tf.constant(boxes_xyxy[None]),
            "grids": [tf.constant(grid_of_truth() if grid is None else grid)]}


def logits_of_example():
    """Logits with another wrong value in each place; all others are 0."""
    logits = np.zeros([1, 2, 2, 2, 7], np.float32)
    # sigmoid(ln 3) = 3/4, sigmoid(0) = 1/2, sigmoid(-ln 3) = 1/4.
    logits[CELL] = [LN3, 0.0, 0.2, 0.0, LN3, -LN3, LN3]
    logits[0, 1, 0, 1, 4] = LN3
    return logits


def values(parts):
    return {name: part.numpy()[0] for name, part in parts.items()}


def test_article_loss_by_hand():
    parts = values(article_loss(targets(), [tf.constant(logits_of_example())], ANCHORS, SIZE))
    # The weight of the box: 2 - (32/64) (16/64) = 1.875.
    # xy: 5 * 1.875 * ((1/2 - 3/4)^2 + (1/4 - 1/2)^2) = 5 * 1.875 * 0.125
    assert parts["xy"] == pytest.approx(1.171875, rel=1e-6)
    # wh: 5 * 1.875 * ((0 - 0.2)^2 + (-ln 2 - 0)^2) = 9.375 * (0.04 + 0.480453)
    assert parts["wh"] == pytest.approx(9.375 * (0.04 + LN2 ** 2), rel=1e-6)
    # obj: -ln(3/4)
    assert parts["obj"] == pytest.approx(LN4 - LN3, rel=1e-6)
    # noobj: of the seven other boxes six have probability 1/2 and one 3/4: 0.5 * (6 ln 2 + ln 4). None is
    # ignored: the largest overlap is that of the second anchor in the truth's cell, 40..56 x -8..40:
    # intersection 16 * 16, union 32 * 16 + 16 * 48 - 256, IoU 1/4.
    assert parts["noobj"] == pytest.approx(0.5 * (6 * LN2 + LN4), rel=1e-6)
    # class: the sum over both, not the mean: -ln(1 - 1/4) - ln(3/4) = 2 ln(4/3)
    assert parts["class"] == pytest.approx(2 * (LN4 - LN3), rel=1e-6)
    assert tuple(parts) == PARTS


def test_darknet_loss_by_hand():
    parts = values(darknet_loss(targets(), [tf.constant(logits_of_example())], ANCHORS, SIZE))
    # x: truth 1/2, probability 3/4: -(ln(3/4) + ln(1/4)) / 2; y: truth 1/4, probability 1/2: ln 2; no lambda.
    x_entropy = -(np.log(0.75) + np.log(0.25)) / 2
    assert parts["xy"] == pytest.approx(1.875 * (x_entropy + LN2), rel=1e-6)
    # Half the squared error, so that its gradient is truth - tw.
    assert parts["wh"] == pytest.approx(1.875 * (0.04 + LN2 ** 2) / 2, rel=1e-6)
    assert parts["obj"] == pytest.approx(LN4 - LN3, rel=1e-6)
    assert parts["noobj"] == pytest.approx(6 * LN2 + LN4, rel=1e-6)
    assert parts["class"] == pytest.approx(2 * (LN4 - LN3), rel=1e-6)


def test_darknet_gradient_is_truth_minus_prediction():
    logits = tf.constant(logits_of_example())
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.add_n(list(darknet_loss(targets(), [logits], ANCHORS, SIZE).values()))
    delta = -tape.gradient(total, logits).numpy()
    # yolo_layer.c: delta = scale (truth - x), 1 - objectness, truth - class; elsewhere 0 - objectness.
    expected = [1.875 * -0.25, 1.875 * -0.25, 1.875 * -0.2, 1.875 * -LN2, 0.25, -0.25, 0.25]
    np.testing.assert_allclose(delta[CELL], expected, rtol=1e-5)
    np.testing.assert_allclose(delta[0, 1, 0, 1], [0, 0, 0, 0, -0.75, 0, 0], rtol=1e-5)


def test_parameters_of_the_article_loss():
    logits = [tf.constant(logits_of_example())]
    plain = values(article_loss(targets(), logits, ANCHORS, SIZE, lambda_coord=1.0, lambda_noobj=1.0))
    article = values(article_loss(targets(), logits, ANCHORS, SIZE))
    assert article["xy"] == pytest.approx(5 * plain["xy"])
    assert article["wh"] == pytest.approx(5 * plain["wh"])
    assert article["noobj"] == pytest.approx(plain["noobj"] / 2)


def test_weight_uses_the_height_and_width_of_the_input():
    grid = np.zeros([1, 1, 1, 1, 7], np.float32)    # a box as large as its anchor, 32 x 16
    weight = box_weight(tf.constant(grid), tf.constant([[32.0, 16.0]]), (64, 128))
    assert weight.numpy().item() == pytest.approx(2 - 32 / 128 * 16 / 64)


@pytest.mark.parametrize("name", list(LOSSES))
def test_gradient_is_the_numerical_one(name):
    rng = np.random.default_rng(1)
    anchors = np.array([[[10, 14], [23, 27]], [[37, 58], [60, 50]]], np.float32)
    truth = np.array([[0.1, 0.2, 0.5, 0.6], [0.55, 0.1, 0.7, 0.3]], np.float32)
    grids = preprocess.encode_targets(truth, np.array([0, 1], np.int32), anchors, (16, 32), 64, 2)
    target = {"boxes_xyxy": tf.constant(truth[None]), "grids": [grid[None] for grid in grids]}
    logits = [tf.constant(rng.normal(size=grid[None].shape), tf.float32) for grid in grids]
    directions = [tf.constant(rng.normal(size=grid[None].shape), tf.float32) for grid in grids]

    def part(logits, key):
        return LOSSES[name](target, logits, anchors, SIZE)[key][0]

    for key in PARTS:
        with tf.GradientTape() as tape:
            tape.watch(logits)
            value = part(logits, key)
        gradient = tape.gradient(value, logits, unconnected_gradients="zero")
        analytic = sum(tf.reduce_sum(g * d).numpy() for g, d in zip(gradient, directions))
        # Central differences: the error is about step^2; float32 of a loss of about 100 gives 1e-5 / step.
        step = 1e-2
        ahead, behind = ([a + sign * step * d for a, d in zip(logits, directions)] for sign in (1, -1))
        numeric = (part(ahead, key) - part(behind, key)).numpy() / (2 * step)
        assert abs(analytic) > 1e-2
        assert numeric == pytest.approx(analytic, rel=1e-2, abs=5e-3), key


def prediction(box_xyxy, cell, anchor, anchors=ANCHORS[0], size=64, cells=2):
    """(row, column, anchor) and the four logits of a box in pixels that is predicted from that cell."""
    x1, y1, x2, y2 = box_xyxy
    stride = size // cells
    offsets = np.array([(x1 + x2) / 2 / stride - cell[1], (y1 + y2) / 2 / stride - cell[0]])
    sizes = np.array([x2 - x1, y2 - y1]) / anchors[anchor]
    return (0, *cell, anchor), np.concatenate([np.log(offsets / (1 - offsets)), np.log(sizes)])


def test_ignore_mask_does_not_mix_the_truths_up():
    """Sorted column by column the truths A and B would be (12, 4, 60, 60), which nothing here is like."""
    truths = np.array([[12, 36, 28, 60], [36, 4, 60, 28]], np.float32)
    mixed = np.sort(truths, axis=0)[::-1][0]
    logits = np.zeros([1, 2, 2, 2, 7], np.float32)
    logits[..., 2:4] = -5                                                  # tiny boxes that overlap nothing
    hits = []
    for box, cell, anchor in ((truths[0], (1, 0), 0), (truths[1], (0, 1), 0), (mixed, (1, 1), 0)):
        position, values = prediction(box, cell, anchor)
        logits[position][0:4] = values
        hits.append(position)
    padded = np.concatenate([truths, np.zeros([3, 4], np.float32)]) / 64   # as batches are padded
    targets = {"boxes_xyxy": tf.constant(padded[None])}
    mask = not_ignored(tf.constant(logits), targets, ANCHORS[0], SIZE, 0.5).numpy()
    assert mask[hits[0]] == 0 and mask[hits[1]] == 0
    assert mask[hits[2]] == 1
    assert mask.sum() == mask.size - 2


def test_what_lies_in_a_crowd_is_not_background():
    """A box of 16 x 16 in a crowd of 60 x 60 has IoU 256 / 3600 with it, far below any threshold, and lies in it; one
    of 32 x 32 at 44, 44 shares 16 x 16 of its 1,024 with it, a quarter."""
    crowd = np.array([[0, 0, 60, 60]], np.float32)
    logits = np.zeros([1, 2, 2, 2, 7], np.float32)
    logits[..., 2:4], logits[..., 0:2] = -9, -9                            # points in the corners of their cells
    inside, values = prediction((8, 8, 24, 24), (0, 0), 1)
    logits[inside][0:4] = values
    across, values = prediction((44, 44, 76, 76), (1, 1), 1)
    logits[across][0:4] = values
    truths = {"boxes_xyxy": tf.constant(crowd[None] / 64)}
    counts = {"one object": False, "crowd": True}
    masks = {name: not_ignored(tf.constant(logits), {**truths, "is_crowd": tf.constant([[flag]])}, ANCHORS[0], SIZE,
                               0.5).numpy() for name, flag in counts.items()}
    assert masks["one object"].min() == 1
    assert masks["crowd"][across] == 1 and masks["crowd"].sum() == 1       # the points lie in the crowd, too
    grids = [np.zeros([1, 2, 2, 2, 7], np.float32)]
    for name, loss in LOSSES.items():
        spared, charged = (loss({**truths, "grids": grids, "is_crowd": tf.constant([[flag]])}, [tf.constant(logits)],
                                ANCHORS, SIZE)["noobj"].numpy()[0] for flag in (True, False))
        # The objectness of all eight predictions is 1/2: log 2 each.
        weight = 0.5 if name == "article" else 1.0
        assert charged == pytest.approx(8 * weight * np.log(2), rel=1e-5), name
        assert spared == pytest.approx(weight * np.log(2), rel=1e-5), name


def test_every_truth_counts_at_every_scale():
    """A prediction of the coarse scale on a truth of the fine one is not punished for its objectness."""
    anchors = np.array([[[10, 12], [16, 16]], [[40, 40], [50, 60]]], np.float32)
    truth = np.array([[20, 20, 32, 34]], np.float32)                       # 12 x 14: the fine scale
    grids = preprocess.encode_targets(truth / 64, np.zeros([1], np.int32), anchors, (16, 32), 64, 2)
    assert [tf.reduce_sum(grid[..., 4]).numpy() for grid in grids] == [1, 0]
    target = {"boxes_xyxy": tf.constant(truth[None] / 64), "grids": [grid[None] for grid in grids]}
    quiet = [np.full([1, cells, cells, 2, 7], -5, np.float32) for cells in (4, 2)]
    position, values = prediction(truth[0], (0, 0), 1, anchors[1])
    loud = [logits.copy() for logits in quiet]
    loud[1][position][0:4] = values
    loud[1][position][4] = 5.0
    for name, loss in LOSSES.items():
        before, after = (loss(target, [tf.constant(x) for x in logits], anchors, SIZE)["noobj"].numpy()[0]
                         for logits in (quiet, loud))
        assert after < before, name                      # even the entropy of the -5 is gone
        missed = dict(target, boxes_xyxy=target["boxes_xyxy"] * 0)         # without truths it costs about 5
        assert loss(missed, [tf.constant(x) for x in loud], anchors, SIZE)["noobj"].numpy()[0] > before + 2


@pytest.mark.parametrize("name,threshold", [("article", 0.5), ("darknet", 0.7)])
def test_ignore_threshold(name, threshold):
    """A prediction of the truth's height and `share` of its width has IoU `share`."""
    for share, ignored in ((threshold - 0.02, False), (threshold + 0.02, True)):
        logits = np.zeros([1, 2, 2, 2, 7], np.float32)
        logits[..., 2:4] = -5
        position, values = prediction((32, 0, 32 + 32 * share, 16), (0, 1), 1)
        logits[position][0:4] = values
        loud = logits.copy()
        loud[position][4] = 3.0
        parts = [LOSSES[name](targets(), [tf.constant(x)], ANCHORS, SIZE)["noobj"].numpy()[0]
                 for x in (logits, loud)]
        assert (parts[0] == pytest.approx(parts[1])) == ignored


@pytest.mark.parametrize("name", list(LOSSES))
def test_class_box_and_objectness_parts_are_masked(name):
    """What a cell without object says of classes and boxes is not part of the loss."""
    noise = np.random.default_rng(0).normal(size=[1, 2, 2, 2, 7]).astype(np.float32)
    noise[..., 2:5] = -4                                                   # boxes that overlap no truth
    noise[CELL] = 0
    plain = np.zeros_like(noise)
    plain[..., 2:5] = noise[..., 2:5]
    first, second = (values(LOSSES[name](targets(), [tf.constant(x)], ANCHORS, SIZE)) for x in (noise, plain))
    for key in PARTS:
        assert first[key] == pytest.approx(second[key], rel=1e-6), key
    no_truth = targets(np.zeros_like(noise), TRUTH * 0)
    empty = values(LOSSES[name](no_truth, [tf.constant(noise)], ANCHORS, SIZE))
    assert [empty[key] for key in ("xy", "wh", "obj", "class")] == [0, 0, 0, 0]
    assert empty["noobj"] > 0


@pytest.mark.parametrize("name", list(LOSSES))
def test_no_truth_at_all(name):
    """A batch whose pictures are all without an object has no box axis to reduce over."""
    target = targets(np.zeros([1, 2, 2, 2, 7], np.float32), np.zeros([0, 4], np.float32))
    parts = values(LOSSES[name](target, [tf.zeros([1, 2, 2, 2, 7])], ANCHORS, SIZE))
    assert parts["noobj"] == pytest.approx(8 * LN2 * (0.5 if name == "article" else 1))
    assert parts["xy"] == parts["wh"] == parts["obj"] == parts["class"] == 0


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("sign", [(1, 1), (-1, -1), (1, -1)])
def test_extreme_logits_give_numbers(name, sign):
    logits = np.full([1, 2, 2, 2, 7], 1e4, np.float32) * sign[0]
    logits[..., 3] = 1e4 * sign[1]                         # infinitely wide and infinitely flat
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        parts = LOSSES[name](targets(), [logits], ANCHORS, SIZE)
        total = tf.add_n(list(parts.values()))
    assert all(np.isfinite(part.numpy()).all() for part in parts.values())
    assert np.isfinite(tape.gradient(total, logits).numpy()).all()


@pytest.mark.parametrize("name", list(LOSSES))
def test_logits_of_half_precision_are_cast(name):
    logits = tf.cast(logits_of_example(), tf.bfloat16)
    parts = LOSSES[name](targets(), [logits], ANCHORS, SIZE)
    exact = LOSSES[name](targets(), [tf.cast(logits, tf.float32)], ANCHORS, SIZE)
    for key in PARTS:
        assert parts[key].dtype == tf.float32
        assert parts[key].numpy() == exact[key].numpy()


@pytest.mark.parametrize("name", list(LOSSES))
def test_one_value_per_picture(name):
    """The loss of a batch is the losses of its pictures, and padding boxes change nothing."""
    rng = np.random.default_rng(3)
    logits = tf.constant(rng.normal(size=[2, 2, 2, 2, 7]), tf.float32)
    truths = np.concatenate([TRUTH, np.zeros([2, 4], np.float32)])
    batch = {"boxes_xyxy": tf.constant(np.stack([truths, truths * 0])),
             "grids": [tf.concat([grid_of_truth(), np.zeros([1, 2, 2, 2, 7], np.float32)], axis=0)]}
    together = LOSSES[name](batch, [logits], ANCHORS, SIZE)
    first = LOSSES[name](targets(), [logits[:1]], ANCHORS, SIZE)
    no_truth = targets(np.zeros([1, 2, 2, 2, 7], np.float32), TRUTH[:0])
    second = LOSSES[name](no_truth, [logits[1:]], ANCHORS, SIZE)
    for key in PARTS:
        np.testing.assert_allclose(together[key], [first[key][0], second[key][0]], rtol=1e-6)
