"""YOLOv3's blocks and decoding; what every model must do is in tests/test_conformance.py."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from yolov3 import model as models
from yolov3 import preprocess
from yolov3.postprocess import postprocess


def slow_convolution(image, kernel, pad_top, pad_left, pad_bottom, pad_right):
    """Cross-correlation [H, W] * [3, 3] with stride 2, one product after the other."""
    image = np.pad(image, ((pad_top, pad_bottom), (pad_left, pad_right)))
    rows, columns = (image.shape[0] - 3) // 2 + 1, (image.shape[1] - 3) // 2 + 1
    return np.array([[np.sum(image[2 * r:2 * r + 3, 2 * c:2 * c + 3] * kernel) for c in range(columns)]
                     for r in range(rows)])


def test_stride_two_pads_the_top_and_the_left():
    image = np.random.default_rng(0).uniform(size=[6, 8]).astype(np.float32)
    kernel = np.arange(1, 10, dtype=np.float32).reshape(3, 3)
    inputs = keras.Input([None, None, 1])
    block = keras.Model(inputs, models.conv_block(itertools.count(), inputs, 1, 3, strides=2))
    block.get_layer("conv_000").set_weights([kernel[:, :, None, None]])
    output = np.asarray(block(image[None, :, :, None]))[0, :, :, 0]
    scale = 1 / np.sqrt(1 + block.get_layer("bn_000").epsilon)   # fresh batch norm: mean 0, variance 1
    np.testing.assert_allclose(output, slow_convolution(image, kernel, 1, 1, 0, 0) * scale, rtol=1e-5)

    same = keras.layers.Conv2D(1, 3, 2, "same", use_bias=False)
    same.build([None, None, None, 1])
    same.set_weights([kernel[:, :, None, None]])
    same_output = np.asarray(same(image[None, :, :, None]))[0, :, :, 0]
    np.testing.assert_allclose(same_output, slow_convolution(image, kernel, 0, 0, 1, 1), rtol=1e-5)
    assert np.abs(same_output * scale - output).max() > 1                  # another network


@pytest.mark.parametrize("name", ["yolov3", "spp"])
def test_every_stride_two_convolution_is_padded_before(name):
    model = models.MODELS[name](1, width=1 / 16)
    strided = [layer for layer in model.layers
               if isinstance(layer, keras.layers.Conv2D) and layer.strides == (2, 2)]
    assert len(strided) == 5
    for layer in strided:
        before = layer.input._keras_history.operation
        assert layer.padding == "valid" and before.padding == ((1, 0), (1, 0))


@pytest.mark.parametrize("name,convolutions", [("yolov3", 75), ("spp", 76), ("tiny", 13)])
def test_names_and_shapes(name, convolutions):
    """The convolutions are numbered as in Darknet's cfg, the heads have no batch normalisation."""
    model = models.MODELS[name](3, width=1 / 16)
    names = {layer.name for layer in model.layers}
    assert {n for n in names if n.startswith("conv_")} == {f"conv_{i:03d}" for i in range(convolutions)}
    strides = models.STRIDES[name]
    assert len([n for n in names if n.startswith("bn_")]) == convolutions - len(strides)
    outputs = model(np.zeros([1, 64, 96, 3], np.float32))
    assert [output.shape for output in outputs] == [(1, 64 // s, 96 // s, 3, 8) for s in strides]
    # Objectness starts near 1 %, so that the thousands of empty cells do not drown the rest.
    for output in outputs:
        assert 0.005 < float(tf.reduce_mean(tf.sigmoid(output[..., 4]))) < 0.02


def test_decode_by_hand():
    """Grid 2 x 3 of stride 32: input 64 x 96 (H x W)."""
    logits = np.zeros([1, 2, 3, 1, 7], np.float32)
    # Row 1, column 2: sigmoid(ln 3) = 0.75 -> centre x (2 + 0.75) / 3, y (1 + 0.5) / 2; 24 * 2 by 16 / 2.
    logits[0, 1, 2, 0] = [np.log(3), 0, np.log(2), -np.log(2), np.log(3), 0, -np.log(3)]
    boxes_xyxy, scores = models.decode([tf.constant(logits)], np.array([[[24, 16]]], np.float32), (64, 96))
    assert boxes_xyxy.shape == (1, 6, 4) and scores.shape == (1, 6, 2)
    # Centre (88, 48), half of 48 x 8: 64..112 of 96, 44..52 of 64: not clipped.
    np.testing.assert_allclose(boxes_xyxy[0, 5], [64 / 96, 44 / 64, 112 / 96, 52 / 64], rtol=1e-6)
    # Objectness 3/4 times the class probabilities 1/2 and 1/4, not the objectness alone.
    np.testing.assert_allclose(scores[0, 5], [0.375, 0.1875], rtol=1e-6)
    np.testing.assert_allclose(scores[0, 0], [0.25, 0.25], rtol=1e-6)


def logits_of_targets(grids):
    """Logits whose decoding is the target: the inverse of the sigmoid, +-20 for sure and not."""
    logits = []
    for grid in grids:
        offsets = tf.clip_by_value(grid[..., 0:2], 1e-6, 1 - 1e-6)
        offsets = tf.math.log(offsets / (1 - offsets))
        logits.append(tf.concat([offsets, grid[..., 2:4], 40 * grid[..., 4:] - 20], axis=-1))
    return logits


@pytest.mark.parametrize("name,anchors", [("yolov3", models.ANCHORS), ("tiny", models.TINY_ANCHORS)])
def test_detections_of_perfect_logits_are_the_truth(name, anchors):
    """Truth -> targets -> logits -> postprocess, in a graph: nothing is lost on the way."""
    truth = np.array([[0.05, 0.10, 0.12, 0.20], [0.3, 0.3, 0.62, 0.9], [0.5, 0.02, 0.98, 0.4]], np.float32)
    labels = np.array([2, 0, 1], np.int32)
    grids = preprocess.encode_targets(truth, labels, anchors, models.STRIDES[name], 416, 3)
    logits = logits_of_targets([grid[None] for grid in grids])
    detect = tf.function(lambda logits: postprocess(logits, anchors, (416, 416), score_threshold=0.5))
    found = detect(logits)
    assert found["num"].numpy().tolist() == [3]
    order = np.argsort(found["classes"][0, :3])
    np.testing.assert_array_equal(found["classes"].numpy()[0, :3][order], [0, 1, 2])
    np.testing.assert_allclose(found["boxes"].numpy()[0, :3][order], truth[[1, 2, 0]], atol=1e-5)
    assert found["scores"].numpy()[0, :3].min() > 0.999


def test_one_box_of_two_classes_is_detected_twice():
    """Classes are not mutually exclusive: suppression is per class (article, "Loss Function")."""
    truth = np.array([[0.2, 0.2, 0.6, 0.7]] * 2, np.float32)
    grids = preprocess.encode_targets(truth, np.array([0, 2], np.int32), models.ANCHORS, (8, 16, 32), 416, 3)
    logits = logits_of_targets([grid[None] for grid in grids])
    found = postprocess(logits, models.ANCHORS, (416, 416), score_threshold=0.5)
    assert sorted(found["classes"].numpy()[0, :2].tolist()) == [0, 2] and found["num"].numpy()[0] == 2
    merged = postprocess(logits, models.ANCHORS, (416, 416), score_threshold=0.5, class_agnostic=True)
    assert merged["num"].numpy()[0] == 1
