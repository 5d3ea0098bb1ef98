"""SSD: VGG-16 made fully convolutional, extra layers on top, and class and box predictors on six or seven maps.

Article: "Tackling the Object Detection Problem with SSD". Paper: Liu et al., "SSD: Single Shot MultiBox Detector",
2016. What neither of them says, anchors above all, follows the authors' code in Caffe.

In: float32 [B, S, S, 3], RGB in 0..1, S fixed by the network. Out: a dict over all anchors, maps fine to coarse,
cells row by row, the anchors of a cell innermost: logits float32 [B, A, 1 + C], class 0 is the background, and
offsets float32 [B, A, 4], encoded (cx, cy, w, h), see `decode`.

B batch, S side of the network input, h, w grid, A anchors of all maps, C classes.
"""

import functools

import keras
import numpy as np
import tensorflow as tf

from common import boxes
from common.layers import BatchNormalization

MEAN = (123.0, 117.0, 104.0)  # RGB, of ImageNet's pictures in 0..255; VGG-16 was trained without it

IMAGE_SIZE = {"vgg300": 300, "vgg512": 512, "tiny": 160}
GRIDS = {"vgg300": (38, 19, 10, 5, 3, 1), "vgg512": (64, 32, 16, 8, 4, 2, 1), "tiny": (20, 10, 5, 3, 1)}
# Pixels between the centres of two cells. The article has S / grid; the networks that were published have these.
STEPS = {"vgg300": (8, 16, 32, 64, 100, 300), "vgg512": (8, 16, 32, 64, 128, 256, 512),
         "tiny": (8, 16, 32, 160 / 3, 160)}
# Sides of the square anchors in fractions of the picture, one for each map and one more. The paper's formula gives
# .1 .2 .375 .55 .725 .9 1.075 for vgg300; the published networks have these.
SCALES = {"vgg300": (.1, .2, .37, .54, .71, .88, 1.05), "vgg512": (.07, .15, .3, .45, .6, .75, .9, 1.05),
          "tiny": (.12, .24, .4, .6, .8, 1.)}
ASPECT_RATIOS = {"vgg300": ((2,), (2, 3), (2, 3), (2, 3), (2,), (2,)),
                 "vgg512": ((2,), (2, 3), (2, 3), (2, 3), (2, 3), (2,), (2,)),
                 "tiny": ((2,), (2, 3), (2, 3), (2,), (2,))}
VARIANCES = (.1, .1, .2, .2)  # of the offsets (cx, cy, w, h)


def conv_block(x, filters, kernel_size, name, strides=1, padding="same", dilation=1, batch_norm=False):
    """Convolution and ReLU, with batch normalisation between them if asked for.

    padding: "same", "valid", or zeros for `ZeroPadding2D`.
    """
    if padding not in ("same", "valid"):
        x = keras.layers.ZeroPadding2D(padding, name=f"{name}_padding")(x)
        padding = "valid"
    # Xavier as the article's code and Caffe have it. What is to be normalised starts from He's instead.
    initializer = "he_normal" if batch_norm else "glorot_uniform"
    x = keras.layers.Conv2D(filters, kernel_size, strides, padding, dilation_rate=dilation,
                            use_bias=not batch_norm, kernel_initializer=initializer, name=name)(x)
    if batch_norm:
        x = BatchNormalization(momentum=0.97, name=f"{name}_bn")(x)
    return keras.layers.ReLU(name=f"{name}_relu")(x)


def max_pool(x, number, size=2, strides=2):
    """Maximum over size x size; a last odd row or column counts too, so that 75 cells become 38 as in Caffe."""
    return keras.layers.MaxPooling2D(size, strides, "same", name=f"pool{number}")(x)


@keras.saving.register_keras_serializable(package="zoo")
class L2Normalization(keras.layers.Layer):
    """Each cell's features [..., channels] brought to length 1, times a learned scale for each channel.

    Liu et al., "ParseNet", 2016: conv4_3 is larger than the other maps and would drown them. Computed in float32.
    """

    def __init__(self, scale=20.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def build(self, input_shape):
        self.gamma = self.add_weight(name="scale", shape=(input_shape[-1],), autocast=False,
                                     initializer=keras.initializers.Constant(self.scale))

    def call(self, x):
        x32 = tf.cast(x, tf.float32)
        # 1e-10 as in Caffe; without it an empty cell, all zeros after the ReLU, would give 0 / 0.
        length_squared = tf.reduce_sum(tf.square(x32), axis=-1, keepdims=True) + 1e-10
        return tf.cast(x32 * tf.math.rsqrt(length_squared) * self.gamma, self.compute_dtype)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


def pictures(image_size):
    """(input, its values as VGG-16 wants them: RGB in 0..255 minus the mean)."""
    inputs = keras.Input([image_size, image_size, 3], name="images")
    offset = [-value for value in MEAN]
    return inputs, keras.layers.Rescaling(255.0, offset, dtype="float32", name="caffe_range")(inputs)


def vgg16(conv, x, width=1.0):
    """VGG-16 up to fc7; returns its maps conv4_3 and fc7, at strides 8 and 16."""
    for stage, filters, num_convolutions in ((1, 64, 2), (2, 128, 2), (3, 256, 3), (4, 512, 3), (5, 512, 3)):
        for number in range(1, num_convolutions + 1):
            x = conv(x, scaled(filters, width), 3, f"conv{stage}_{number}")
        if stage == 4:
            conv4_3 = x
        x = max_pool(x, stage) if stage < 5 else max_pool(x, 5, size=3, strides=1)
    # The decimated 7x7 filter wants rate 3; 6 is what the reference code has (article).
    x = conv(x, scaled(1024, width), 3, "fc6", dilation=6)
    return [conv4_3, conv(x, scaled(1024, width), 1, "fc7")]


def tiny_base(conv, x, width=1.0):
    """A VGG of six convolutions, fc6 and fc7; returns its maps at strides 8 and 16."""
    for stage, filters, num_convolutions in ((1, 16, 1), (2, 32, 1), (3, 64, 2), (4, 128, 2)):
        for number in range(1, num_convolutions + 1):
            x = conv(x, scaled(filters, width), 3, f"conv{stage}_{number}")
        features = x
        x = max_pool(x, stage)
    x = conv(x, scaled(256, width), 3, "fc6", dilation=3)
    return [features, conv(x, scaled(256, width), 1, "fc7")]


def extra_layers(conv, x, layers, width=1.0):
    """Pairs conv<n>_1, 1x1, and conv<n>_2, which makes the next coarser map, from n = 8 on; returns these maps.

    layers: (filters of the first, filters, kernel size, strides, padding of the second) of each pair.
    """
    maps = []
    for number, (bottleneck, filters, kernel_size, strides, padding) in enumerate(layers, 8):
        x = conv(x, scaled(bottleneck, width), 1, f"conv{number}_1")
        x = conv(x, scaled(filters, width), kernel_size, f"conv{number}_2", strides=strides, padding=padding)
        maps.append(x)
    return maps


def predictors(maps, num_classes, anchors_per_cell):
    """One 3x3 convolution of each map for the classes and one for the boxes, anchors of all maps in one row."""
    logits, offsets = [], []
    for i, (x, num_anchors) in enumerate(zip(maps, anchors_per_cell)):
        for outputs, name, values in ((logits, "classes", 1 + num_classes), (offsets, "boxes", 4)):
            name = f"{name}_{i}"
            y = keras.layers.Conv2D(num_anchors * values, 3, padding="same", dtype="float32", name=name)(x)
            outputs.append(keras.layers.Reshape([-1, values], dtype="float32", name=f"{name}_anchors")(y))
    return {"logits": keras.layers.Concatenate(axis=1, dtype="float32", name="logits")(logits),
            "offsets": keras.layers.Concatenate(axis=1, dtype="float32", name="offsets")(offsets)}


def ssd(name, base, layers, num_classes, width, batch_norm):
    """The network `name` on top of the function `base`, with the extra layers `layers`."""
    conv = functools.partial(conv_block, batch_norm=batch_norm)
    inputs, x = pictures(IMAGE_SIZE[name])
    features, coarse = base(conv, x, width)
    maps = [L2Normalization(name="conv4_norm")(features), coarse, *extra_layers(conv, coarse, layers, width)]
    outputs = predictors(maps, num_classes, [2 + 2 * len(ratios) for ratios in ASPECT_RATIOS[name]])
    return keras.Model(inputs, outputs, name=name)


def scaled(filters, width):
    """`filters` times `width`, a multiple of 8."""
    return max(8, int(round(filters * width / 8)) * 8)


def halving(variant):
    """Padding of a 3x3 convolution of stride 2.

    The article says "same", which pads an even map at the bottom and the right alone; Caffe pads all sides.
    """
    return {"article": "same", "caffe": 1}[variant]


def vgg300(num_classes, variant="article", width=1.0, batch_norm=False):
    """SSD300: maps of 38, 19, 10, 5, 3 and 1 cells a side, 8,732 anchors.

    variant: "article" or "caffe", see `halving`. width multiplies the filters of all layers. batch_norm: after
    every convolution but the predictors, for training from random weights.
    """
    down = halving(variant)
    layers = [(256, 512, 3, 2, down), (128, 256, 3, 2, down), (128, 256, 3, 1, "valid"), (128, 256, 3, 1, "valid")]
    return ssd("vgg300", vgg16, layers, num_classes, width, batch_norm)


def vgg512(num_classes, variant="article", width=1.0, batch_norm=False):
    """SSD512: maps of 64, 32, 16, 8, 4, 2 and 1 cells a side, 24,564 anchors. Arguments as those of `vgg300`.

    The article worked the last two layers out from the number of anchors: 4 cells to 2 without padding, 2 to 1
    after padding one at the bottom and the right. Caffe: stride 2 with padding, then 4x4 with padding.
    """
    down = halving(variant)
    layers = [(256, 512, 3, 2, down), (128, 256, 3, 2, down), (128, 256, 3, 2, down)]
    if variant == "caffe":
        layers += [(128, 256, 3, 2, down), (128, 256, 4, 1, 1)]
    else:
        layers += [(128, 256, 3, 1, "valid"), (128, 256, 3, 1, ((0, 1), (0, 1)))]
    return ssd("vgg512", vgg16, layers, num_classes, width, batch_norm)


def tiny(num_classes, variant="article", width=1.0, batch_norm=False):
    """The same idea for 160x160 pictures: maps of 20, 10, 5, 3 and 1 cells a side, 2,390 anchors."""
    down = halving(variant)
    layers = [(64, 128, 3, 2, down), (64, 128, 3, 2, down), (64, 128, 3, 1, "valid")]
    return ssd("tiny", tiny_base, layers, num_classes, width, batch_norm)


MODELS = {"vgg300": vgg300, "vgg512": vgg512, "tiny": tiny}


def anchors(name):
    """Anchors of a network, boxes_cxcywh float32 [A, 4] in fractions of the picture, not clipped.

    In the order of the outputs. Of a cell: the square of the map's scale, the square between it and the next scale
    (geometric mean), then each aspect ratio wide and tall.
    """
    side, scales, all_anchors = IMAGE_SIZE[name], SCALES[name], []
    for i, (grid, step, ratios) in enumerate(zip(GRIDS[name], STEPS[name], ASPECT_RATIOS[name])):
        scale = scales[i]
        sizes = [(scale, scale), (np.sqrt(scale * scales[i + 1]),) * 2]
        for ratio in ratios:
            wide, narrow = scale * np.sqrt(ratio), scale / np.sqrt(ratio)
            sizes += [(wide, narrow), (narrow, wide)]
        centers = (np.arange(grid) + 0.5) * step / side
        cells = np.stack(np.meshgrid(centers, centers), axis=-1).reshape(-1, 1, 2)          # [h * w, 1, 2]
        cells = np.broadcast_to(cells, [grid * grid, len(sizes), 2])
        all_anchors.append(np.concatenate([cells, np.broadcast_to(sizes, cells.shape)], axis=-1).reshape(-1, 4))
    return np.concatenate(all_anchors).astype(np.float32)


def encode(boxes_xyxy, anchors):
    """Offsets [..., 4] that stand for the boxes [..., 4] at the anchors (cx, cy, w, h) [..., 4], all in fractions.

    The article's formula has 10 and 5 the other way round: 1 / variance is 10 for the centre and 5 for the sizes.
    A box narrower than 1e-6 counts as that wide, so that every offset is finite.
    """
    center, size = tf.split(boxes.to_cxcywh(boxes_xyxy), 2, axis=-1)
    anchor_center, anchor_size = tf.split(tf.cast(anchors, tf.float32), 2, axis=-1)
    moved = (center - anchor_center) / anchor_size
    grown = tf.math.log(tf.maximum(size, 1e-6) / anchor_size)
    return tf.concat([moved, grown], axis=-1) / VARIANCES


def decode(offsets, anchors):
    """boxes_xyxy [..., 4] in fractions of the picture, not clipped; the inverse of `encode`."""
    moved, grown = tf.split(tf.cast(offsets, tf.float32) * VARIANCES, 2, axis=-1)
    anchor_center, anchor_size = tf.split(tf.cast(anchors, tf.float32), 2, axis=-1)
    return boxes.to_xyxy(tf.concat([anchor_center + moved * anchor_size, anchor_size * tf.exp(grown)], axis=-1))
