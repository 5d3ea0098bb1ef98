"""The humble YOLO: a few convolutions, two dense layers, and a box in every cell of a grid.

Article: "Humble YOLO implementation in Keras". Paper: Redmon et al., "You Only Look Once: Unified, Real-Time
Object Detection", 2016, whose detector this is on a smaller network.

In: float32 [B, S, S, 3], RGB in 0..1. Out: float32 [B, h * w, C + 1 + 5 A], all in 0..1 (behind the sigmoid), the
cells row by row, packed (C class scores, that of "none", then for each of the A boxes x, y, w, h, confidence): x,
y is the centre as an offset in the cell, w, h are fractions of the network input.

B batch, S side of the network input, h, w grid (a square), A boxes of a cell, C classes.
"""

import math

import keras
import tensorflow as tf

from common import boxes


def conv_pair(x, name, kernel_size):
    """16 narrow and 32 wider filters, leaky ReLU, pooling (article, "Strategies of layers combinations").

    kernel_size: of the narrow ones. Nothing is between the two convolutions in the article.
    """
    x = keras.layers.Conv2D(16, kernel_size, name=f"{name}_narrow")(x)
    x = keras.layers.Conv2D(32, 3, name=f"{name}_wide")(x)
    # Leaky ReLU. TensorFlow's own, behind a bias and with a gradient, makes its graph optimizer give up ("remapper
    # failed") on the whole training step.
    x = keras.ops.maximum(x, 0.3 * x)
    return keras.layers.MaxPooling2D(2)(x)


def humble_yolo(num_classes, grid=2, num_boxes=1, image_size=64, hidden=256):
    """The article's network; with its two classes and the defaults 1,406,896 parameters.

    grid: cells on a side; num_boxes: boxes of a cell; hidden: units of the first dense layer.
    """
    depth = num_classes + 1 + 5 * num_boxes
    inputs = keras.Input([image_size, image_size, 3], name="images")
    x = conv_pair(inputs, "conv_1", 1)
    x = conv_pair(x, "conv_2", 3)
    x = keras.layers.Flatten()(x)
    x = keras.layers.Dense(hidden, activation="sigmoid", name="hidden")(x)
    x = keras.layers.Dense(grid * grid * depth, activation="sigmoid", dtype="float32", name="cells")(x)
    outputs = keras.layers.Reshape([grid * grid, depth], dtype="float32")(x)
    return keras.Model(inputs, outputs, name="humble_yolo")


def split(predictions, num_classes, num_boxes):
    """[..., h * w, C + 1 + 5 A] -> (class scores [..., h * w, C], boxes [..., h * w, A, 5]).

    The score of "none" is left out: the article gives the network one, but its loss and its drawings leave it
    alone (`y_pred[..., 0:2]`). That nothing is there, the confidence says.
    """
    packed = tf.cast(predictions, tf.float32)
    flat = packed[..., num_classes + 1:]
    shape = tf.concat([tf.shape(flat)[:-1], [num_boxes, 5]], axis=0)
    cell_boxes = tf.ensure_shape(tf.reshape(flat, shape), [*flat.shape[:-1], num_boxes, 5])
    return packed[..., :num_classes], cell_boxes


def cell_corners(num_cells):
    """(column, row) of every cell of a square grid, row by row: float32 [h * w, 2]; num_cells is a Python int."""
    side = math.isqrt(num_cells)
    columns, rows = tf.meshgrid(tf.range(side), tf.range(side))
    return tf.cast(tf.reshape(tf.stack([columns, rows], axis=-1), [-1, 2]), tf.float32)


def decode_boxes(cell_boxes):
    """boxes_cxcywh [..., h * w, A, 4], fractions of the network input, of what the cells say, [..., h * w, A, 5].

    One unit for centre and size, so that overlaps can be computed; the article's code mixes cells and fractions.
    """
    num_cells = cell_boxes.shape[-3]
    corners = cell_corners(num_cells)[:, tf.newaxis]                                      # [h * w, 1, 2]
    centers = (cell_boxes[..., 0:2] + corners) / math.isqrt(num_cells)
    return tf.concat([centers, cell_boxes[..., 2:4]], axis=-1)


def decode(predictions, num_classes, num_boxes):
    """(boxes_xyxy [B, N, 4] in fractions of the network input, not clipped; scores [B, N, C]), N = h * w * A.

    A score is the class score of the cell times the confidence of the box (paper, eq. 1).
    """
    class_scores, cell_boxes = split(predictions, num_classes, num_boxes)
    scores = class_scores[..., tf.newaxis, :] * cell_boxes[..., 4:5]                      # [B, h * w, A, C]
    number = cell_boxes.shape[-3] * num_boxes
    boxes_xyxy = boxes.to_xyxy(decode_boxes(cell_boxes))
    return tf.reshape(boxes_xyxy, [-1, number, 4]), tf.reshape(scores, [-1, number, num_classes])
