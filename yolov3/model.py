"""YOLO v3: Darknet-53, three necks and three heads, and the smaller and larger networks of the same family.

Article: "Dive Really Deep into YOLO v3: A Beginner's Guide". Paper: Redmon and Farhadi, "YOLOv3: An Incremental
Improvement", 2018. The layers that neither of them lists follow Darknet's yolov3.cfg, yolov3-tiny.cfg, yolov3-spp.cfg.

In: float32 [B, H, W, 3], RGB in 0..1, H and W multiples of 32. Out: a list over strides 8, 16, 32 (tiny: 16, 32) of
float32 logits [B, h, w, A, 5 + C], packed (x, y, w, h, obj, classes).

B batch, H, W image, h, w grid, A anchors per scale, N boxes of all scales, C classes.
"""

import functools
import itertools
import math

import keras
import numpy as np
import tensorflow as tf

from common import boxes
from common.layers import BatchNormalization, Conv2D

# (w, h) in pixels of the network input, small to large, from k-means over COCO at 416 (paper, sec. 2.3).
ANCHORS = np.array([[[10, 13], [16, 30], [33, 23]],
                    [[30, 61], [62, 45], [59, 119]],
                    [[116, 90], [156, 198], [373, 326]]], np.float32)
TINY_ANCHORS = np.array([[[10, 14], [23, 27], [37, 58]],
                         [[81, 82], [135, 169], [344, 319]]], np.float32)


def conv_block(numbers, x, filters, kernel_size, strides=1):
    """Convolution, batch normalisation, leaky ReLU: Darknet's [convolutional] section.

    `numbers` counts the convolutions in the order of Darknet's cfg file, in which its weight files are written.
    """
    number = next(numbers)
    padding = "same"
    if strides == 2:
        # Darknet pads the top and the left; "same" would pad the bottom and the right.
        x = keras.layers.ZeroPadding2D(((1, 0), (1, 0)))(x)
        padding = "valid"
    x = Conv2D(filters, kernel_size, strides, padding, use_bias=False, kernel_initializer="he_normal",
               name=f"conv_{number:03d}")(x)
    # 1e-6 as in OpenCV and, outside the root, in Darknet's processor code; its GPU code has 1e-5, with which
    # boxes of the 75-layer networks came out 1e-3 away from both.
    # Darknet's momentum is 0.99; 0.97 forgets the random start within a few hundred steps.
    x = BatchNormalization(momentum=0.97, epsilon=1e-6, name=f"bn_{number:03d}")(x)
    return keras.layers.LeakyReLU(negative_slope=0.1)(x)


def residual_block(conv, x, filters):
    """Bottleneck (1x1 to half the filters, 3x3 back) and a skip connection."""
    y = conv(x, filters // 2, 1)
    y = conv(y, filters, 3)
    return keras.layers.Add()([x, y])


def darknet53(conv, x, width=1.0):
    """Returns the features of the last three residual stages, at strides 8, 16, 32."""
    x = conv(x, scaled(32, width), 3)
    features = []
    for filters, num_blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        x = conv(x, scaled(filters, width), 3, strides=2)
        for _ in range(num_blocks):
            x = residual_block(conv, x, scaled(filters, width))
        features.append(x)
    return features[-3:]


def neck(conv, x, filters, spp=False):
    """Five convolutions, 1x1 and 3x3 in turn, with spatial pyramid pooling in their middle if asked for."""
    x = conv(x, filters, 1)
    x = conv(x, 2 * filters, 3)
    x = conv(x, filters, 1)
    if spp:
        pools = [keras.layers.MaxPooling2D(size, 1, "same")(x) for size in (13, 9, 5)]
        x = keras.layers.Concatenate()([*pools, x])
        x = conv(x, filters, 1)
    x = conv(x, 2 * filters, 3)
    return conv(x, filters, 1)


def head(numbers, x, filters, num_anchors, num_classes):
    """3x3 convolution and the last 1x1, which has a bias, no normalisation and no activation."""
    x = conv_block(numbers, x, filters, 3)
    x = Conv2D(num_anchors * (5 + num_classes), 1, name=f"conv_{next(numbers):03d}", dtype="float32",
               kernel_initializer=keras.initializers.RandomNormal(stddev=0.01),
               bias_initializer=ObjectnessPrior(num_anchors))(x)
    return SplitAnchors(num_anchors, dtype="float32")(x)


def upsample_and_concat(conv, x, skip, filters):
    """1x1 convolution, nearest upsampling by two, features of the finer scale behind."""
    x = conv(x, filters, 1)
    x = keras.layers.UpSampling2D(2)(x)
    return keras.layers.Concatenate()([x, skip])


@keras.saving.register_keras_serializable(package="zoo")
class SplitAnchors(keras.layers.Layer):
    """[B, h, w, A * (5 + C)] -> [B, h, w, A, 5 + C]."""

    def __init__(self, num_anchors, **kwargs):
        super().__init__(**kwargs)
        self.num_anchors = num_anchors

    def call(self, x):
        height, width = tf.unstack(tf.shape(x)[1:3])
        return tf.reshape(x, [-1, height, width, self.num_anchors, x.shape[-1] // self.num_anchors])

    def compute_output_shape(self, input_shape):
        *grid, channels = input_shape
        return (*grid, self.num_anchors, channels // self.num_anchors)

    def get_config(self):
        return {**super().get_config(), "num_anchors": self.num_anchors}


@keras.saving.register_keras_serializable(package="zoo")
class ObjectnessPrior(keras.initializers.Initializer):
    """Zero bias, but for the objectness, which starts at probability `prior`.

    Darknet starts at 0.5 in each of the 10,647 boxes of a 416 picture and spends its burn-in on unlearning it
    (Lin et al., "Focal Loss for Dense Object Detection", 2017, sec. 4.1).
    """

    def __init__(self, num_anchors, prior=0.01):
        self.num_anchors = num_anchors
        self.prior = prior

    def __call__(self, shape, dtype=None):
        bias = np.zeros([self.num_anchors, shape[0] // self.num_anchors], np.float32)
        bias[:, 4] = -math.log((1 - self.prior) / self.prior)
        return keras.ops.convert_to_tensor(bias.reshape(-1), dtype=dtype)

    def get_config(self):
        return {"num_anchors": self.num_anchors, "prior": self.prior}


def scaled(filters, width):
    """`filters` times `width`, a multiple of 8."""
    return max(8, int(round(filters * width / 8)) * 8)


def yolov3(num_classes, num_anchors=3, width=1.0, spp=False):
    """YOLOv3 as in the article's figure; outputs at strides 8, 16, 32. `width` multiplies the filters of all layers."""
    numbers = itertools.count()
    conv = functools.partial(conv_block, numbers)
    inputs = keras.Input([None, None, 3], name="images")
    stride8, stride16, stride32 = darknet53(conv, inputs, width)

    # The heads stand in Darknet's order, large objects first.
    x = neck(conv, stride32, scaled(512, width), spp)
    large = head(numbers, x, scaled(1024, width), num_anchors, num_classes)
    x = upsample_and_concat(conv, x, stride16, scaled(256, width))
    x = neck(conv, x, scaled(256, width))
    medium = head(numbers, x, scaled(512, width), num_anchors, num_classes)
    x = upsample_and_concat(conv, x, stride8, scaled(128, width))
    x = neck(conv, x, scaled(128, width))
    small = head(numbers, x, scaled(256, width), num_anchors, num_classes)
    return keras.Model(inputs, [small, medium, large], name="yolov3_spp" if spp else "yolov3")


def yolov3_spp(num_classes, num_anchors=3, width=1.0):
    """YOLOv3 with spatial pyramid pooling before the coarsest head; outputs at strides 8, 16, 32."""
    return yolov3(num_classes, num_anchors, width, spp=True)


def yolov3_tiny(num_classes, num_anchors=3, width=1.0):
    """Seven convolutions with pooling between them and two heads; outputs at strides 16, 32."""
    numbers = itertools.count()
    conv = functools.partial(conv_block, numbers)
    x = inputs = keras.Input([None, None, 3], name="images")
    for filters in (16, 32, 64, 128):
        x = conv(x, scaled(filters, width), 3)
        x = keras.layers.MaxPooling2D(2, 2, "same")(x)
    x = stride16 = conv(x, scaled(256, width), 3)
    x = keras.layers.MaxPooling2D(2, 2, "same")(x)
    x = conv(x, scaled(512, width), 3)
    x = keras.layers.MaxPooling2D(2, 1, "same")(x)
    x = conv(x, scaled(1024, width), 3)

    x = conv(x, scaled(256, width), 1)
    large = head(numbers, x, scaled(512, width), num_anchors, num_classes)
    x = upsample_and_concat(conv, x, stride16, scaled(128, width))
    medium = head(numbers, x, scaled(256, width), num_anchors, num_classes)
    return keras.Model(inputs, [medium, large], name="yolov3_tiny")


MODELS = {"yolov3": yolov3, "tiny": yolov3_tiny, "spp": yolov3_spp}
DEFAULT_ANCHORS = {"yolov3": ANCHORS, "tiny": TINY_ANCHORS, "spp": ANCHORS}
STRIDES = {"yolov3": (8, 16, 32), "tiny": (16, 32), "spp": (8, 16, 32)}


def decode_boxes(logits, anchors, image_size):
    """Boxes that the logits of one scale stand for (paper, sec. 2.1: bx = sigmoid(tx) + cx, bw = pw exp(tw)).

    logits [B, h, w, A, 5 + C]; anchors [A, 2] (w, h) in pixels; image_size (H, W) in pixels.
    Returns boxes_cxcywh [B, h, w, A, 4] in fractions of the network input.
    """
    height, width = tf.unstack(tf.shape(logits)[1:3])
    columns, rows = tf.meshgrid(tf.range(width), tf.range(height))
    corners = tf.cast(tf.stack([columns, rows], axis=-1), tf.float32)[:, :, None]       # [h, w, 1, 2]
    grid = tf.cast(tf.stack([width, height]), tf.float32)
    image = tf.cast(tf.stack([image_size[1], image_size[0]]), tf.float32)
    centers = (tf.sigmoid(logits[..., 0:2]) + corners) / grid
    sizes = tf.exp(logits[..., 2:4]) * anchors / image
    return tf.concat([centers, sizes], axis=-1)


def decode(logits, anchors, image_size):
    """Boxes and class scores of all scales.

    logits as the network puts them out; anchors [scales, A, 2] in pixels; image_size (H, W) in pixels.
    Returns boxes_xyxy [B, N, 4] in fractions of the network input (not clipped) and scores [B, N, C], the objectness
    times the class probability: classes are not mutually exclusive (article, "Loss Function").
    """
    all_boxes, all_scores = [], []
    for scale_logits, scale_anchors in zip(logits, anchors):
        batch, num_classes = tf.shape(scale_logits)[0], scale_logits.shape[-1] - 5
        scores = tf.sigmoid(scale_logits[..., 4:5]) * tf.sigmoid(scale_logits[..., 5:])
        scale_boxes = decode_boxes(scale_logits, scale_anchors, image_size)
        all_boxes.append(tf.reshape(scale_boxes, [batch, -1, 4]))
        all_scores.append(tf.reshape(scores, [batch, -1, num_classes]))
    return boxes.to_xyxy(tf.concat(all_boxes, axis=1)), tf.concat(all_scores, axis=1)
