"""Maps, anchors, offsets and layers of SSD, against OpenCV's PriorBox and numbers worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import boxes
from ssd import model as models
from ssd.model import anchors, decode, encode
from tests.ssd import caffe_oracle

NETWORKS = [(name, variant) for name in models.MODELS for variant in ("article", "caffe")]


@pytest.mark.parametrize("name, variant", NETWORKS)
def test_maps_are_as_large_as_the_anchors_say(name, variant):
    model = models.MODELS[name](2, variant, width=1 / 16)
    for i, grid in enumerate(models.GRIDS[name]):
        per_cell = 2 + 2 * len(models.ASPECT_RATIOS[name][i])
        assert model.get_layer(f"classes_{i}").output.shape == (None, grid, grid, 3 * per_cell)
        assert model.get_layer(f"boxes_{i}").output.shape == (None, grid, grid, 4 * per_cell)
    num_anchors = {"vgg300": 8732, "vgg512": 24564, "tiny": 2390}[name]
    assert model.output["logits"].shape == (None, num_anchors, 3)
    assert model.output["offsets"].shape == (None, num_anchors, 4)
    assert anchors(name).shape == (num_anchors, 4) and anchors(name).dtype == np.float32
    assert model.input.shape == (None, models.IMAGE_SIZE[name], models.IMAGE_SIZE[name], 3)


@pytest.mark.parametrize("side", [300, 512])
def test_anchors_are_the_priors_of_caffe(side, tmp_path):
    expected, variances = caffe_oracle.priors(tmp_path, side)
    np.testing.assert_allclose(boxes.to_xyxy(anchors(f"vgg{side}")), expected, atol=1e-6)
    np.testing.assert_allclose(variances, np.broadcast_to(models.VARIANCES, variances.shape), atol=1e-7)


def test_anchors_by_hand():
    found = anchors("vgg300")
    root2, root3 = 2 ** 0.5, 3 ** 0.5
    # The second cell of the first row of conv4_3: centre (1.5, 0.5) * 8 pixels.
    center = [12 / 300, 4 / 300]
    np.testing.assert_allclose(found[4:8], [[*center, .1, .1], [*center, 0.02 ** 0.5, 0.02 ** 0.5],
                                            [*center, .1 * root2, .1 / root2], [*center, .1 / root2, .1 * root2]],
                               rtol=1e-6)
    # The last cell of fc7, and the only one of the last map, whose step is the picture.
    center, last = [18.5 * 16 / 300] * 2, 38 * 38 * 4 + 19 * 19 * 6
    np.testing.assert_allclose(found[last - 2:last], [[*center, .2 * root3, .2 / root3],
                                                      [*center, .2 / root3, .2 * root3]], rtol=1e-6)
    np.testing.assert_allclose(found[-3], [.5, .5, (.88 * 1.05) ** 0.5, (.88 * 1.05) ** 0.5], rtol=1e-6)
    # Of tiny all cells share the picture evenly.
    np.testing.assert_allclose(anchors("tiny")[1600 + 600 + 150::4][:4, :2], [
        [1 / 6, 1 / 6], [3 / 6, 1 / 6], [5 / 6, 1 / 6], [1 / 6, 3 / 6]], rtol=1e-6)


def test_outputs_stand_in_the_order_of_the_anchors():
    """A predictor with biases alone says of each anchor which of its cell it is; one with a kernel which cell."""
    model = models.tiny(2, width=1 / 16)
    for i in range(5):
        for kind in ("classes", "boxes"):
            layer = model.get_layer(f"{kind}_{i}")
            layer.set_weights([np.zeros(layer.kernel.shape), 1000 * i + np.arange(layer.filters)])
    outputs = model(np.zeros([1, 160, 160, 3], np.float32))
    first = 0
    for i, (grid, ratios) in enumerate(zip(models.GRIDS["tiny"], models.ASPECT_RATIOS["tiny"])):
        per_cell = 2 + 2 * len(ratios)
        last = first + grid * grid * per_cell
        for kind, values in (("logits", 3), ("offsets", 4)):
            expected = 1000 * i + np.tile(np.arange(per_cell * values).reshape(-1, values), [grid * grid, 1])
            np.testing.assert_array_equal(outputs[kind][0, first:last], expected)
        first = last
    assert first == 2390

    features = np.zeros([1, 20, 20, 8], np.float32)
    features[0, 3, 17] = 1
    layer, reshape = model.get_layer("boxes_0"), model.get_layer("boxes_0_anchors")
    kernel = np.zeros(layer.kernel.shape)
    kernel[1, 1] = 1
    layer.set_weights([kernel, np.zeros(16)])
    rows = np.unique(np.nonzero(reshape(layer(features)).numpy())[1])
    np.testing.assert_array_equal(rows, (3 * 20 + 17) * 4 + np.arange(4))
    np.testing.assert_allclose(anchors("tiny")[rows, :2], [[17.5 * 8 / 160, 3.5 * 8 / 160]] * 4, rtol=1e-6)


def test_offsets_by_hand():
    """Centres are divided by the anchor and multiplied by 10, logarithms of sizes by 5, not the reverse."""
    anchor = [0.5, 0.4, 0.2, 0.1]
    box = [0.46, 0.4, 0.66, 0.6]  # centre (0.56, 0.5), size (0.2, 0.2)
    np.testing.assert_allclose(encode(box, anchor), [10 * 0.06 / 0.2, 10 * 0.1 / 0.1, 0, 5 * np.log(2)], atol=1e-5)
    np.testing.assert_allclose(decode([3, 10, 0, 5 * np.log(2)], anchor), box, atol=1e-6)
    np.testing.assert_allclose(decode(np.zeros(4), anchor), [0.4, 0.35, 0.6, 0.45], atol=1e-6)


def test_offsets_there_and_back():
    rng = np.random.default_rng(0)
    corner, size = rng.uniform(-0.2, 0.9, [2, 2390, 2]), rng.uniform(0.01, 1.2, [2, 2390, 2])
    boxes_xyxy = np.concatenate([corner, corner + size], axis=-1).astype(np.float32)
    offsets = encode(boxes_xyxy, anchors("tiny"))
    assert offsets.shape == (2, 2390, 4) and offsets.dtype == tf.float32
    np.testing.assert_allclose(decode(offsets, anchors("tiny")), boxes_xyxy, atol=2e-6)


def test_offsets_of_boxes_without_area_are_finite():
    degenerate = [[0.3, 0.3, 0.3, 0.3], [0, 0, 0, 0], [0.2, 0.5, 0.4, 0.5]]
    assert np.isfinite(encode(degenerate, anchors("tiny")[:3])).all()


def test_l2_normalization_by_hand():
    layer = models.L2Normalization()
    x = tf.constant([[[[3.0, 4.0], [0.0, 0.0]]]])
    np.testing.assert_allclose(layer(x), [[[[12, 16], [0, 0]]]], rtol=1e-6)
    layer.gamma.assign([1, 10])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
    np.testing.assert_allclose(y, [[[[0.6, 8], [0, 0]]]], rtol=1e-6)
    x_gradient, gamma_gradient = tape.gradient(y, [x, layer.gamma])
    np.testing.assert_allclose(gamma_gradient, [0.6, 0.8], rtol=1e-6)
    # d/dx of (x, 10 y) / |(x, y)| at (3, 4): (16 - 120, -12 + 90) / 125.
    np.testing.assert_allclose(x_gradient[0, 0, 0], [-104 / 125, 78 / 125], rtol=1e-5)
    assert np.isfinite(x_gradient).all()

    half = models.L2Normalization(dtype="mixed_float16")
    found = half(tf.constant([[300.0, 400.0]]))  # whose squares float16 cannot hold
    assert found.dtype == tf.float16
    np.testing.assert_allclose(found, [[12, 16]], rtol=1e-3)


def test_the_network_takes_what_vgg16_was_trained_on():
    model = models.tiny(2, width=1 / 16)
    layer = model.get_layer("caffe_range")
    image = np.array([[[[0, 0, 0], [1, 1, 1], [1, 0.5, 0]]]], np.float32)
    np.testing.assert_allclose(layer(image), [[[[-123, -117, -104], [132, 138, 151], [132, 10.5, -104]]]],
                               rtol=1e-6)


def test_conv12_2_of_the_article():
    """The article's listing: one cell of zeros below and on the right, then 3x3 without padding."""
    model = models.vgg512(2, width=1 / 16)
    x = np.random.default_rng(0).normal(size=(1, 2, 2, 8)).astype(np.float32)
    layer = model.get_layer("conv12_2")
    padded = tf.pad(x, [[0, 0], [0, 1], [0, 1], [0, 0]])
    expected = tf.nn.conv2d(padded, layer.kernel, 1, "VALID") + layer.bias
    np.testing.assert_allclose(layer(model.get_layer("conv12_2_padding")(x)), expected, atol=1e-6)
    assert expected.shape == (1, 1, 1, 16)


def test_an_odd_row_is_not_lost_in_pooling():
    """75 cells become 38, of which the last sees one row (Caffe rounds up)."""
    model = models.vgg300(2, width=1 / 16)
    x = np.zeros([1, 75, 75, 1], np.float32)
    x[0, 74, 74], x[0, 73, 73] = 5, 3
    found = model.get_layer("pool3")(x)[0, :, :, 0].numpy()
    assert found.shape == (38, 38) and found[37, 37] == 5 and found[36, 36] == 3


def test_batch_normalisation_is_everywhere_but_in_the_predictors():
    model = models.tiny(2, width=1 / 16, batch_norm=True)
    names = {layer.name for layer in model.layers}
    for layer in model.layers:
        if isinstance(layer, keras.layers.Conv2D):
            predictor = layer.name.startswith(("classes_", "boxes_"))
            assert (f"{layer.name}_bn" in names) != predictor
            assert layer.use_bias == predictor
    assert "conv1_1_bn" not in {layer.name for layer in models.tiny(2, width=1 / 16).layers}


def test_filters_by_width():
    filters = {layer.name: layer.filters for layer in models.vgg300(2, width=1 / 2).layers
               if isinstance(layer, keras.layers.Conv2D)}
    assert (filters["conv1_1"], filters["fc6"], filters["conv8_1"], filters["conv9_1"]) == (32, 512, 128, 64)
    assert (filters["classes_0"], filters["boxes_1"]) == (12, 24)
