"""The parts of the loss: numbers worked out by hand, a slow twin, and what the article's code did wrong."""

import math

import numpy as np
import pytest
import tensorflow as tf

from yolov1.loss import PARTS, assign, yolo_loss

# One object in cell (1, 0) of a 2 x 2 grid, two classes: centre (1.5, 0.5) cells, 0.25 x 0.25 of the picture.
TRUTH = [1.0, 0.0, 1.5, 0.5, 0.25, 0.25, 1.0]


def targets_of(*rows, grid=2, num_classes=2):
    """[1, h * w, C + 5] with `rows` {cell: values}."""
    targets = np.zeros([1, grid * grid, num_classes + 5], np.float32)
    for cell, values in rows:
        targets[0, cell] = values
    return targets


def predictions_of(*rows, grid=2, depth=8):
    predictions = np.zeros([1, grid * grid, depth], np.float32)
    for cell, values in rows:
        predictions[0, cell] = values
    return predictions


def parts_of(targets, predictions, num_boxes=1, **options):
    parts = yolo_loss(targets, predictions, num_boxes=num_boxes, **options)
    assert tuple(parts) == PARTS
    return {name: part.numpy() for name, part in parts.items()}


def gradient(targets, predictions, part, num_boxes=1, **options):
    predictions = tf.constant(predictions)
    with tf.GradientTape() as tape:
        tape.watch(predictions)
        loss = tf.reduce_sum(yolo_loss(targets, predictions, num_boxes=num_boxes, **options)[part])
    return tape.gradient(loss, predictions).numpy()


def test_every_part_by_hand():
    """Predicted in the object's cell: centre (1.75, 0.5) cells, 0.25 x 0.09, confidence 0.5, classes 0.7 and 0.4;
    in the empty cell (0, 1): confidence 0.6.

    In the picture the centres are 0.125 apart, so the boxes share 0.125 of the width and all of 0.09: 0.01125 of
    0.0625 + 0.0225 - 0.01125 = 0.07375.
    """
    predictions = predictions_of((1, [0.7, 0.4, 0.9, 0.75, 0.5, 0.25, 0.09, 0.5]),
                                 (2, [0, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.6]))
    parts = parts_of(targets_of((1, TRUTH)), predictions)
    expected = {"xy": 5 * 0.25 ** 2, "wh": 5 * (0.5 - 0.3) ** 2, "obj": (0.01125 / 0.07375 - 0.5) ** 2,
                "noobj": 0.5 * 0.6 ** 2, "class": 0.3 ** 2 + 0.4 ** 2}
    for name, value in expected.items():
        assert parts[name] == pytest.approx([value], rel=1e-5), name
    article = parts_of(targets_of((1, TRUTH)), predictions, lambda_coord=1.0, lambda_noobj=1.0)
    assert article["xy"] == pytest.approx([0.0625]) and article["noobj"] == pytest.approx([0.36])


def test_sizes_are_compared_with_the_truth():
    """Erratum: `y_true_wh = pred_boxes[..., 2:4]` makes this part 0 whatever is predicted."""
    for width, height in ((0.81, 0.25), (0.25, 0.01)):
        predictions = predictions_of((1, [0, 0, 0, 0.5, 0.5, width, height, 0]))
        expected = 5 * ((0.5 - math.sqrt(width)) ** 2 + (0.5 - math.sqrt(height)) ** 2)
        assert parts_of(targets_of((1, TRUTH)), predictions)["wh"] == pytest.approx([expected], rel=1e-5)
        assert expected > 0.1
    slope = gradient(targets_of((1, TRUTH)), predictions, "wh")[0, 1, 5:7]
    assert slope[0] == pytest.approx(0, abs=1e-6) and slope[1] < -1          # a larger height is better


def test_overlap_takes_the_absolute_distance():
    """Erratum: with the squared distance of the centres, 0.0156, not 0.125, the boxes would share 0.234 x 0.25.

    Centres 0.125 of the picture apart, both boxes 0.25 x 0.25: they share 0.125 x 0.25 of 0.09375, a third.
    """
    predictions = predictions_of((1, [0, 0, 0, 0.75, 0.5, 0.25, 0.25, 0.0]))
    assert parts_of(targets_of((1, TRUTH)), predictions)["obj"] == pytest.approx([(1 / 3) ** 2], rel=1e-5)
    squared = 0.25 * (0.25 - 0.125 ** 2)
    assert abs((squared / (0.125 - squared)) ** 2 - (1 / 3) ** 2) > 0.5
    # To the left as to the right: a distance without its sign taken off would make them overlap more.
    mirrored = predictions_of((1, [0, 0, 0, 0.25, 0.5, 0.25, 0.25, 0.0]))
    assert parts_of(targets_of((1, TRUTH)), mirrored)["obj"] == pytest.approx([(1 / 3) ** 2], rel=1e-5)


def test_overlap_has_one_unit():
    """Erratum: distances in cells, sizes in fractions: 0.25 cells away would be no overlap of boxes 0.25 wide.

    With more cells the same boxes of the picture overlap the same.
    """
    for grid in (2, 4):
        cell = grid - 1  # the last of the first row
        truth = [1, 0, cell + 0.5, 0.5, 0.25, 0.25, 1]
        predicted = [0, 0, 0, 0.5 + 0.125 * grid, 0.5, 0.25, 0.25, 0.0]
        parts = parts_of(targets_of((cell, truth), grid=grid), predictions_of((cell, predicted), grid=grid))
        assert parts["obj"] == pytest.approx([(1 / 3) ** 2], rel=1e-5)


def test_no_object_is_learnt():
    """Erratum: behind the object mask, a confidence where nothing is costs nothing and is never unlearnt."""
    predictions = predictions_of(*((cell, [0.9, 0.9, 0, 0.5, 0.5, 0.5, 0.5, 0.8]) for cell in range(4)))
    parts = parts_of(targets_of(), predictions)
    assert parts["noobj"] == pytest.approx([4 * 0.5 * 0.64], rel=1e-5)
    assert all(parts[name] == [0.0] for name in ("xy", "wh", "obj", "class"))
    slope = gradient(targets_of(), predictions, "noobj")
    np.testing.assert_allclose(slope[0, :, 7], 0.8, rtol=1e-5)               # 0.5 * 2 * 0.8
    assert np.count_nonzero(slope) == 4


def test_the_responsible_box_is_the_one_that_overlaps_most():
    """Of the second box's overlap, 1, and the first's, a third; the first is far more confident."""
    first, second = [0.75, 0.5, 0.25, 0.25, 0.9], [0.5, 0.5, 0.25, 0.25, 0.2]
    for order, responsible in (([first, second], 1), ([second, first], 0)):
        predictions = predictions_of((1, [1, 0, 0, *order[0], *order[1]]), depth=13)
        parts = parts_of(targets_of((1, TRUTH)), predictions, num_boxes=2)
        assert parts["xy"] == parts["wh"] == pytest.approx([0.0])
        assert parts["obj"] == pytest.approx([0.8 ** 2], rel=1e-5)
        assert parts["noobj"] == pytest.approx([0.5 * 0.9 ** 2], rel=1e-5)   # the other one sees no object
        overlap, mask = assign(targets_of((1, TRUTH)), predictions[..., 3:].reshape(1, 4, 2, 5))
        np.testing.assert_array_equal(mask[0], np.eye(4)[1][:, None] * np.eye(2)[responsible])
        assert overlap.numpy()[0, 1, responsible] == pytest.approx(1, abs=1e-6)


def test_without_overlap_the_nearest_box_is_responsible():
    """Both boxes are too small to overlap the truth; the second is nearer, though the first is confident."""
    predictions = predictions_of((1, [1, 0, 0, 0, 0, 0.01, 0.01, 1.0, 0.9, 0.9, 0.01, 0.01, 0.1]), depth=13)
    _, mask = assign(targets_of((1, TRUTH)), predictions[..., 3:].reshape(1, 4, 2, 5))
    np.testing.assert_array_equal(mask[0, 1], [0, 1])
    same = predictions_of((1, [1, 0, 0, *[0, 0, 0.01, 0.01, 1.0] * 2]), depth=13)
    _, mask = assign(targets_of((1, TRUTH)), same[..., 3:].reshape(1, 4, 2, 5))
    np.testing.assert_array_equal(mask[0, 1], [1, 0])                        # of equals the first


def test_no_gradient_goes_through_the_overlap():
    predictions = predictions_of((1, [0, 0, 0, 0.7, 0.5, 0.25, 0.25, 0.1]))
    slope = gradient(targets_of((1, TRUTH)), predictions, "obj")
    assert slope[0, 1, 7] < 0 and np.count_nonzero(slope) == 1


def test_gradients_are_finite_at_the_ends_of_the_sigmoid():
    predictions = np.concatenate([np.zeros([1, 4, 8]), np.ones([1, 4, 8])]).astype(np.float32)
    targets = np.concatenate([targets_of((1, TRUTH)), targets_of()])
    for part in PARTS:
        assert np.isfinite(gradient(targets, predictions, part)).all()


def slow(targets, predictions, num_boxes, lambda_coord, lambda_noobj):
    """The loss of one picture, cell by cell, as the paper's eq. 3 reads."""
    num_cells, num_classes = len(targets), targets.shape[1] - 5
    side = math.isqrt(num_cells)
    parts = dict.fromkeys(PARTS, 0.0)
    for cell in range(num_cells):
        *classes, x, y, w, h, obj = targets[cell].astype(float)
        boxes = predictions[cell, num_classes + 1:].reshape(num_boxes, 5).astype(float)
        overlaps, distances = [], []
        for bx, by, bw, bh, _ in boxes:
            bx, by = (bx + cell % side) / side, (by + cell // side) / side
            shared = [max(0, min(a + b / 2, c + d / 2) - max(a - b / 2, c - d / 2))
                      for a, b, c, d in ((bx, bw, x / side, w), (by, bh, y / side, h))]
            shared = shared[0] * shared[1]
            overlaps.append(shared / (bw * bh + w * h - shared))
            distances.append((bx - x / side) ** 2 + (by - y / side) ** 2 + (bw - w) ** 2 + (bh - h) ** 2)
        chosen = int(np.argmax(overlaps)) if max(overlaps) > 0 else int(np.argmin(distances))
        for index, (bx, by, bw, bh, confidence) in enumerate(boxes):
            if obj and index == chosen:
                parts["xy"] += lambda_coord * ((bx + cell % side - x) ** 2 + (by + cell // side - y) ** 2)
                parts["wh"] += lambda_coord * ((bw ** .5 - w ** .5) ** 2 + (bh ** .5 - h ** .5) ** 2)
                parts["obj"] += (overlaps[index] - confidence) ** 2
            else:
                parts["noobj"] += lambda_noobj * confidence ** 2
        if obj:
            parts["class"] += sum((a - b) ** 2 for a, b in zip(classes, predictions[cell]))
    return parts


@pytest.mark.parametrize("grid, num_boxes, num_classes", [(2, 1, 2), (3, 3, 4)])
def test_equals_a_slow_twin_and_is_a_sum_per_picture(grid, num_boxes, num_classes):
    rng = np.random.default_rng(0)
    predictions = rng.uniform(0.01, 1, [5, grid * grid, num_classes + 1 + 5 * num_boxes]).astype(np.float32)
    targets = np.zeros([5, grid * grid, num_classes + 5], np.float32)
    for picture, cell in np.argwhere(rng.uniform(size=[5, grid * grid]) < 0.6):
        xy = np.array([cell % grid, cell // grid]) + rng.uniform(size=2)
        label = np.eye(num_classes)[rng.integers(num_classes)]
        targets[picture, cell] = [*label, *xy, *rng.uniform(0.05, 0.9, 2), 1]
    targets[4] = 0                                                           # a picture without an object
    parts = parts_of(targets, predictions, num_boxes, lambda_coord=3.0, lambda_noobj=0.25)
    for picture in range(5):
        expected = slow(targets[picture], predictions[picture], num_boxes, 3.0, 0.25)
        for name in PARTS:
            assert parts[name].shape == (5,)
            assert parts[name][picture] == pytest.approx(expected[name], rel=1e-4, abs=1e-5), name


def test_boxes_in_a_crowd_are_not_taught_that_nothing_is_there():
    """The crowd is the middle quarter of the picture, which covers a quarter of each cell and no cell by half.

    Of the boxes of 0.2 x 0.2, confidence 0.6, that of cell (0, 0), centre (0.4, 0.4), lies in it; that of (0, 1),
    centre (0.26, 0.6), by 0.11 / 0.2; that of (1, 1), centre (0.74, 0.76), by (0.11 * 0.09) / 0.04, about a quarter.
    The IoU of each with the crowd is small: 0.16 of the first.
    """
    crowds = np.float32([[[0.25, 0.25, 0.75, 0.75], [0, 0, 0, 0]]])
    rows = [(cell, [0, 0, 0, 2 * x - cell % 2, 2 * y - cell // 2, 0.2, 0.2, 0.6])
            for cell, x, y in ((0, 0.4, 0.4), (2, 0.26, 0.6), (3, 0.74, 0.76))]
    targets, predictions = targets_of((1, TRUTH)), predictions_of(*rows)
    plain, spared = parts_of(targets, predictions), parts_of(targets, predictions, crowds_xyxy=crowds)
    assert plain["noobj"] == pytest.approx([3 * 0.5 * 0.36]) and spared["noobj"] == pytest.approx([0.5 * 0.36])
    assert all(plain[name] == spared[name] for name in PARTS if name != "noobj")
    slope = gradient(targets, predictions, "noobj", crowds_xyxy=crowds)
    assert not slope[0, :3].any() and slope[0, 3, 7] == pytest.approx(0.6)
    # An object in a crowd is learnt as any other; the other box of its cell may be a member.
    two = predictions_of((1, [1, 0, 0, 0.5, 0.5, 0.25, 0.25, 0.2, 0.1, 0.9, 0.2, 0.2, 0.9]), depth=13)
    whole = np.float32([[[0, 0, 1, 1]]])
    parts = parts_of(targets, two, num_boxes=2, crowds_xyxy=whole)
    assert parts["obj"] == pytest.approx([0.8 ** 2], rel=1e-5) and parts["noobj"] == [0.0]
    none = parts_of(targets, predictions, crowds_xyxy=np.zeros([1, 0, 4], np.float32))
    assert none["noobj"] == plain["noobj"]
