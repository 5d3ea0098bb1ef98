"""A network that needs no training: each joint is a coloured dot, and its heatmap shows how coloured a place is.

Of the two red dots the one further to the left is the right hand, as of a person who faces us; so a mirrored
picture exchanges them, and the flip test must change them back.
"""

import keras
import numpy as np
import tensorflow as tf

LABELS = ["right_hand", "left_hand", "nose", "tail"]
CONFIG = {"article": "hourglass", "num_stacks": 1, "filters": 16, "order": 1, "num_residual": 1,
          "variant": "article", "image_size": 128, "labels": LABELS, "pairs": [[1, 0]],
          "skeleton": [[0, 2], [1, 2], [2, 3]], "metric": "pck"}


class Dots(keras.layers.Layer):
    """float32 [B, S, S, 3] in 0..1 -> heatmaps [B, S / 4, S / 4, 4]."""

    def call(self, images):
        small = tf.nn.avg_pool2d(images, 4, 4, "VALID")
        others = tf.stack([tf.maximum(small[..., (c + 1) % 3], small[..., (c + 2) % 3]) for c in range(3)], -1)
        red, green, blue = tf.unstack(tf.maximum(small - others, 0), axis=-1)
        width = tf.shape(small)[2]
        share = (tf.range(width, dtype=tf.float32) + 0.5) / tf.cast(width, tf.float32)
        return tf.stack([red * (1.5 - share), red * (0.5 + share), green, blue], axis=-1)


def model():
    inputs = keras.Input([None, None, 3], name="images")
    return keras.Model(inputs, Dots(name="dots")(inputs))


def draw(height, width, persons, sigma=4.0):
    """uint8 [H, W, 3], grey with a soft dot for each joint of persons [N, 4, 2] (x, y, continuous pixels)."""
    image = np.full([height, width, 3], 128.0)
    y, x = np.mgrid[0:height, 0:width] + 0.5
    for joints_xy in persons:
        for (joint_x, joint_y), channel in zip(joints_xy, (0, 0, 1, 2)):
            dot = np.exp(-((x - joint_x) ** 2 + (y - joint_y) ** 2) / (2 * sigma**2))
            for c in range(3):
                image[..., c] += dot * (120 if c == channel else -120)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def person(left, top, right, bottom):
    """(joints_xy [4, 2], box) of a person whose dots stand at the given edges of its box."""
    middle_x, middle_y = (left + right) / 2, (top + bottom) / 2
    joints_xy = [(left, middle_y - 5), (right, middle_y + 3), (middle_x + 2, top), (middle_x - 7, bottom)]
    return np.array(joints_xy, np.float64), [left, top, right, bottom]
