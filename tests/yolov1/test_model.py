"""The article's layers against a slow twin, and what the outputs stand for against numbers worked out by hand."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.common.test_export import randomize
from yolov1.model import cell_corners, decode, decode_boxes, humble_yolo, split


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def convolve(x, kernel, bias):
    """A convolution without padding, [H, W, C] by [k, k, C, F]."""
    size = kernel.shape[0]
    height, width = x.shape[0] - size + 1, x.shape[1] - size + 1
    y = np.zeros([height, width, kernel.shape[3]])
    for row in range(height):
        for column in range(width):
            y[row, column] = np.tensordot(x[row:row + size, column:column + size], kernel, 3) + bias
    return y


def pool(x):
    height, width = x.shape[0] // 2, x.shape[1] // 2
    return x[:2 * height, :2 * width].reshape(height, 2, width, 2, -1).max(axis=(1, 3))


def test_forward_pass_is_that_of_the_article():
    """Conv 1x1, conv 3x3, leaky ReLU 0.3, pool; conv 3x3, conv 3x3, the same; 256 and outputs, both sigmoid."""
    model = randomize(humble_yolo(2, image_size=19), seed=1)
    image = np.random.default_rng(2).uniform(size=[19, 19, 3])
    weights = [weight.astype(np.float64) for weight in model.get_weights()]
    x = image
    for first in (0, 4):
        for kernel, bias in (weights[first:first + 2], weights[first + 2:first + 4]):
            x = convolve(x, kernel, bias)
        x = pool(np.where(x > 0, x, 0.3 * x))
    for kernel, bias in (weights[8:10], weights[10:12]):
        x = sigmoid(x.reshape(-1) @ kernel + bias)
    # Sums of 2^8 terms in float32 before steep sigmoids.
    np.testing.assert_allclose(model(image[None].astype(np.float32))[0], x.reshape(4, 8), atol=1e-4)


@pytest.mark.parametrize("classes, grid, num_boxes, size, hidden", [
    (2, 2, 1, 64, 256), (4, 3, 2, 48, 10), (1, 1, 3, 16, 5)])
def test_what_can_be_chosen(classes, grid, num_boxes, size, hidden):
    model = humble_yolo(classes, grid, num_boxes, size, hidden)
    assert model.input_shape == (None, size, size, 3)
    assert model.output_shape == (None, grid * grid, classes + 1 + 5 * num_boxes)
    dense = [layer.units for layer in model.layers if isinstance(layer, keras.layers.Dense)]
    assert dense == [hidden, grid * grid * (classes + 1 + 5 * num_boxes)]


def test_corners_go_row_by_row():
    """The article's listing: [[0, 0], [1, 0], [0, 1], [1, 1]], (x, y)."""
    assert cell_corners(4).numpy().tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert cell_corners(9).numpy().tolist()[5] == [2, 1]


def test_decoding_by_hand():
    """Two classes and two boxes in a cell of a 2 x 2 grid; all else is 0.

    Cell (1, 0), second box: centre ((0.25 + 1) / 2, (0.5 + 0) / 2) = (0.625, 0.25), 0.5 wide and 0.25 high.
    """
    predictions = np.zeros([1, 4, 2 + 1 + 10], np.float32)
    predictions[0, 1] = [0.5, 0.25, 0.9, *[0] * 5, 0.25, 0.5, 0.5, 0.25, 0.8]
    boxes_xyxy, scores = decode(predictions, num_classes=2, num_boxes=2)
    assert boxes_xyxy.shape == (1, 8, 4) and scores.shape == (1, 8, 2)
    np.testing.assert_allclose(boxes_xyxy[0, 3], [0.375, 0.125, 0.875, 0.375], atol=1e-7)
    np.testing.assert_allclose(scores[0, 3], [0.4, 0.2], atol=1e-7)             # none, 0.9, has no say
    assert np.count_nonzero(scores) == 2


def test_split_takes_any_leading_axes():
    packed = np.arange(2 * 3 * 4 * 8, dtype=np.float32).reshape(2, 3, 4, 8)
    classes, cell_boxes = split(packed, num_classes=2, num_boxes=1)
    np.testing.assert_array_equal(classes, packed[..., :2])
    np.testing.assert_array_equal(cell_boxes[..., 0, :], packed[..., 3:])
    assert decode_boxes(cell_boxes).shape == (2, 3, 4, 1, 4)


def test_the_graph_of_a_training_step_is_optimised_without_errors(capfd):
    """TensorFlow's leaky ReLU behind a bias made it print "remapper failed" and leave the graph as it was."""
    network = humble_yolo(2)

    @tf.function
    def gradients(images):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(network(images, training=True))
        return tape.gradient(loss, network.trainable_variables)

    gradients(tf.ones([8, 64, 64, 3]))
    assert "failed" not in capfd.readouterr().err
