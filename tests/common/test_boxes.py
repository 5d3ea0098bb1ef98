"""Boxes against numbers worked out by hand, a NumPy twin and Keras; the letterbox a painted picture."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import boxes


def random_boxes(rng, *shape):
    """Some without area, some identical, some outside 0..1."""
    corners = rng.uniform(-0.2, 1.2, size=(*shape, 2, 2)).astype(np.float32)
    found = np.concatenate([corners.min(-2), corners.max(-2)], axis=-1)
    found[..., ::7, 2] = found[..., ::7, 0]
    found[..., 1::5, :] = found[..., 1:2, :]
    return found


def test_forms():
    np.testing.assert_array_equal(boxes.to_xyxy([[3.0, 5.0, 2.0, 4.0]]), [[2, 3, 4, 7]])
    np.testing.assert_array_equal(boxes.to_cxcywh([[2.0, 3.0, 4.0, 7.0]]), [[3, 5, 2, 4]])
    some = random_boxes(np.random.default_rng(0), 2, 3, 50)
    np.testing.assert_allclose(boxes.to_xyxy(boxes.to_cxcywh(some)), some, atol=2e-7)  # two float32 roundings
    keras_form = keras.utils.bounding_boxes.convert_format(some[0], "xyxy", "center_xywh", 1, 1, "float32")
    np.testing.assert_allclose(boxes.to_cxcywh(some[0]), keras_form, atol=2e-7)


def test_area():
    np.testing.assert_array_equal(boxes.area([[1, 2, 4, 4], [1, 2, 1, 4], [3, 3, 1, 1], [3, 3, 4, 1]]),
                                  [6, 0, 0, 0])


def test_iou_by_hand():
    a = [[0, 0, 2, 2], [5, 5, 5, 5]]
    b = [[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2], [1, 0, 2, 2], [5, 5, 5, 5]]
    np.testing.assert_allclose(boxes.iou(a, b), [[1, 1 / 7, 0, 0.5, 0], [0, 0, 0, 0, 0]], rtol=1e-7)
    assert boxes.iou(np.zeros([0, 4]), b).shape == (0, 5)


def test_iou_against_keras_and_the_twin():
    rng = np.random.default_rng(1)
    a, b = random_boxes(rng, 3, 40), random_boxes(rng, 3, 60)
    a[:, :20] = b[:, :20]
    found = boxes.iou(a, b).numpy()
    assert found.dtype == np.float32 and found.shape == (3, 40, 60)
    for i, n, m in np.ndindex(*found.shape):
        x, y = a[i, n].astype(float), b[i, m].astype(float)
        overlap = max(min(x[2], y[2]) - max(x[0], y[0]), 0) * max(min(x[3], y[3]) - max(x[1], y[1]), 0)
        union = (x[2] - x[0]) * (x[3] - x[1]) + (y[2] - y[0]) * (y[3] - y[1]) - overlap
        # float32 on areas up to 2
        assert found[i, n, m] == pytest.approx(overlap / union if union else 0, abs=2e-6)
    # Keras adds 1e-7 to the union, which shows in small boxes; in pixels it does not.
    oracle = keras.utils.bounding_boxes.compute_iou(a * 400, b * 400, bounding_box_format="xyxy")
    np.testing.assert_allclose(found, oracle, atol=2e-6)
    np.testing.assert_array_equal(boxes.iou_paired(a, b[:, :40]),
                                  np.diagonal(found[:, :, :40], axis1=1, axis2=2))
    # Leading axes broadcast.
    np.testing.assert_array_equal(boxes.iou(a[:, None], b[0]).numpy()[1, 0], boxes.iou(a[1], b[0]))


def test_shape_iou_is_the_iou_of_centred_boxes():
    rng = np.random.default_rng(2)
    a, b = rng.uniform(size=(2, 30, 2)).astype(np.float32), rng.uniform(size=(9, 2)).astype(np.float32)
    a[0, 0] = 0
    centred = [np.concatenate([-size / 2, size / 2], axis=-1) for size in (a, b)]
    np.testing.assert_allclose(boxes.shape_iou(a, b), boxes.iou(*centred), atol=1e-6)
    np.testing.assert_allclose(boxes.shape_iou([[2.0, 4.0]], [[4.0, 2.0], [0.0, 0.0]]), [[4 / 12, 0]])
    assert boxes.shape_iou([[0.0, 0.0]], [[0.0, 0.0]]).numpy() == 0


def test_clip():
    some = [[-1, 0.5, 2, 3], [0.2, 0.3, 0.4, 0.5]]
    np.testing.assert_allclose(boxes.clip(some), [[0, 0.5, 1, 1], [0.2, 0.3, 0.4, 0.5]])
    batched = boxes.clip([[[-5, -5, 50, 50]], [[-5, -5, 50, 50]]], height=[10, 20], width=[30, 40])
    np.testing.assert_array_equal(batched, [[[0, 0, 30, 10]], [[0, 0, 40, 20]]])


@pytest.mark.parametrize("height, width, size, expected", [
    (100, 200, 416, (208, 416, 104, 0)),
    (500, 333, 416, (416, 277, 0, 69)),  # 277.056 -> 277; (416 - 277) / 2 = 69.5 -> 69
    (333, 500, 416, (277, 416, 69, 0)),
    (416, 416, 416, (416, 416, 0, 0)),
    (1, 1, 32, (32, 32, 0, 0)),
    (1, 5000, 416, (1, 416, 207, 0)),  # Darknet's integers would give no row at all
])
def test_letterbox_geometry(height, width, size, expected):
    assert tuple(int(value) for value in boxes.letterbox_geometry(height, width, size)) == expected
    batched = boxes.letterbox_geometry(tf.constant([height, 7]), tf.constant([width, 7]), tf.constant(size))
    assert tuple(int(value[0]) for value in batched) == expected and batched[0].dtype == tf.int32


@pytest.mark.parametrize("height, width", [(90, 160), (211, 97), (64, 64), (640, 33)])
def test_a_painted_box_lands_where_letterbox_boxes_says(height, width):
    size = 256
    top, left, bottom, right = height // 5, width // 4, height * 4 // 5, width * 2 // 3
    picture = np.zeros([height, width, 3], np.uint8)
    picture[top:bottom, left:right] = 255
    out = tf.function(lambda image: boxes.letterbox(image, size, fill=0.0),
                      input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])(picture).numpy()
    assert out.shape == (size, size, 3) and out.dtype == np.float32
    # Interpolation blurs an edge over two pixels but keeps its place where the value crosses one half.
    scale = max(height, width) / size
    rows, columns = np.where((out[..., 0] > 0.5).any(1))[0], np.where((out[..., 0] > 0.5).any(0))[0]
    measured = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
    fractions = np.array([[left / width, top / height, right / width, bottom / height]], np.float32)
    told = boxes.letterbox_boxes(fractions, height, width, size).numpy()[0] * size
    np.testing.assert_allclose(measured, told, atol=1.0)
    back = boxes.unletterbox_boxes(measured[None].astype(np.float32) / size, height, width, size).numpy()[0]
    np.testing.assert_allclose(back, [left, top, right, bottom], atol=1.1 * scale)


@pytest.mark.parametrize("height, width", [(90, 160), (211, 97), (640, 33)])
def test_a_painted_box_lands_in_the_warped_picture_at_the_same_fractions(height, width):
    size = 256
    top, left, bottom, right = height // 5, width // 4, height * 4 // 5, width * 2 // 3
    picture = np.zeros([height, width, 3], np.uint8)
    picture[top:bottom, left:right] = 255
    out = tf.function(lambda image: boxes.warp(image, size),
                      input_signature=[tf.TensorSpec([None, None, 3], tf.uint8)])(picture).numpy()
    assert out.shape == (size, size, 3) and out.dtype == np.float32 and out.max() == 1
    rows, columns = np.where((out[..., 0] > 0.5).any(1))[0], np.where((out[..., 0] > 0.5).any(0))[0]
    measured = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32) / size
    told = np.array([left / width, top / height, right / width, bottom / height])
    np.testing.assert_allclose(measured, told, atol=1 / size)
    # A batch of one picture's boxes, and boxes of one picture alone.
    back = boxes.unwarp_boxes(told[None, None], [height], [width], size).numpy()[0, 0]
    np.testing.assert_allclose(back, [left, top, right, bottom], rtol=1e-5)
    outside = boxes.unwarp_boxes([[-1.0, 0.5, 2.0, 2.0]], height, width, size)
    np.testing.assert_allclose(outside, [[0, height / 2, width, height]])


def test_letterbox_fills_with_grey_and_takes_floats():
    white = np.full([10, 20, 3], 255, np.uint8)
    out = boxes.letterbox(white, 32).numpy()
    np.testing.assert_array_equal(out[8:24], 1)
    np.testing.assert_array_equal(out[:8], 0.5)
    np.testing.assert_array_equal(out[24:], 0.5)
    np.testing.assert_array_equal(boxes.letterbox(np.ones([10, 20, 3], np.float32), 32), out)
    data = tf.data.Dataset.from_tensors(white).map(lambda image: boxes.letterbox(image, 32))
    np.testing.assert_array_equal(next(iter(data)), out)


def test_letterbox_and_back():
    rng = np.random.default_rng(3)
    height, width = np.array([333, 500, 40, 1]), np.array([500, 375, 4000, 700])
    fractions = np.clip(random_boxes(rng, 4, 25), 0, 1)
    inside = boxes.letterbox_boxes(fractions, height, width, 416)
    pixels = boxes.unletterbox_boxes(inside, height, width, 416).numpy()
    size = np.stack([width, height, width, height], axis=-1)[:, np.newaxis]
    shown = np.stack(boxes.letterbox_geometry(height, width, 416)[:2])[[1, 0, 1, 0]].T[:, np.newaxis]
    # A float32 fraction of the input is good to 6e-8, a few roundings; shown in few pixels, the picture
    # magnifies them.
    assert (np.abs(pixels / size - fractions) < 4 * 6e-8 * 416 / shown).all()
    np.testing.assert_array_equal(boxes.unletterbox_boxes(inside[1], 500, 375, 416), pixels[1])
    outside = boxes.unletterbox_boxes([[-1.0, -1.0, 2.0, 2.0]], 333, 500, 416)
    np.testing.assert_array_equal(outside, [[0, 0, 500, 333]])


def test_of_a_crowd_counts_the_share_that_lies_in_it():
    """4 x 4 in a crowd of 10 x 10: all of it, IoU 0.16; 4 x 4 half of it: 1/2, IoU 8 / 108; without area: 0."""
    a = [[1, 1, 5, 5], [8, 0, 12, 4], [20, 20, 24, 24], [3, 3, 3, 3]]
    b = [[0, 0, 10, 10], [0, 0, 10, 10]]
    found = boxes.iou(a, b, tf.constant([True, False])).numpy()
    np.testing.assert_allclose(found, [[1, 0.16], [0.5, 8 / 108], [0, 0], [0, 0]], rtol=1e-6)
    np.testing.assert_array_equal(boxes.iou(a, b, tf.constant(True)).numpy()[:, 1], found[:, 0])
