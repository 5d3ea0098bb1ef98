"""CycleGAN: a generator that repaints a picture of one domain as one of the other, and a judge of patches.

Article: "Gender Swap and CycleGAN in TensorFlow 2.0". Paper: Zhu et al., "Unpaired Image-to-Image Translation using
Cycle-Consistent Adversarial Networks", 2017, sec. 7.2. The article's listing has convolutions without biases and no
normalisation behind them; the paper's instance normalisation, with scale and offset, stands there.

Generator in and out: float32 [B, H, W, 3], RGB in -1..1, H and W multiples of 4. Discriminator in: the same; out: logits
float32 [B, H / 8, W / 8, 1], high where a patch looks real; 32 x 32 of them for 256 x 256 as the article says (the
original, padded otherwise, has 30 x 30).

B batch, H, W picture.
"""

import keras
import tensorflow as tf

from common.layers import InstanceNormalization

UPSAMPLE = ("transpose", "resize")


@keras.saving.register_keras_serializable(package="zoo")
class ReflectionPadding2D(keras.layers.Layer):
    """`padding` rows and columns on each side that mirror the picture; its border is not repeated."""

    def __init__(self, padding=1, **kwargs):
        super().__init__(**kwargs)
        self.padding = padding

    def call(self, x):
        sides = [self.padding, self.padding]
        return tf.pad(x, [[0, 0], sides, sides, [0, 0]], "REFLECT")

    def get_config(self):
        return {**super().get_config(), "padding": self.padding}


def normal():
    """The paper's initial weights, N(0, 0.02); the article has none, which makes them Glorot's."""
    return keras.initializers.RandomNormal(0.0, 0.02)


def conv(x, filters, kernel_size, strides=1, padding="same", use_bias=False):
    """Convolution, by default without a bias: the offset of the normalisation behind it does its work."""
    return keras.layers.Conv2D(filters, kernel_size, strides, padding, use_bias=use_bias,
                               kernel_initializer=normal())(x)


def norm_relu(x):
    """Instance normalisation and ReLU."""
    return keras.layers.ReLU()(InstanceNormalization()(x))


def c7s1(x, filters):
    """7x7 convolution, padded by reflection: the first layer (c7s1-64)."""
    return norm_relu(conv(ReflectionPadding2D(3)(x), filters, 7, padding="valid"))


def down_block(x, filters):
    """3x3 convolution of stride 2 (d128, d256)."""
    return norm_relu(conv(x, filters, 3, strides=2))


def residual_block(x, filters):
    """Two 3x3 convolutions, padded by reflection, and what went in (R256)."""
    y = norm_relu(conv(ReflectionPadding2D()(x), filters, 3, padding="valid"))
    y = InstanceNormalization()(conv(ReflectionPadding2D()(y), filters, 3, padding="valid"))
    return keras.layers.Add()([x, y])


def up_block(x, filters, upsample="transpose"):
    """Twice the sides (u128, u64): a transposed convolution, or nearest neighbours and a convolution.

    A transposed 3x3 convolution of stride 2 writes some pixels from more cells than others, which can show as a
    checkerboard; the other way cannot (Odena et al., "Deconvolution and Checkerboard Artifacts", 2016).
    """
    if upsample == "transpose":
        x = keras.layers.Conv2DTranspose(filters, 3, 2, "same", use_bias=False, kernel_initializer=normal())(x)
    else:
        x = conv(ReflectionPadding2D()(keras.layers.UpSampling2D(2)(x)), filters, 3, padding="valid")
    return norm_relu(x)


def generator(num_blocks=9, filters=64, upsample="transpose"):
    """c7s1-64, d128, d256, R256 x num_blocks, u128, u64, c7s1-3: a picture in, a picture of the same size out.

    upsample: transpose or resize, see `up_block`.
    """
    images = keras.Input([None, None, 3], name="images")
    x = c7s1(images, filters)
    x = down_block(x, 2 * filters)
    x = down_block(x, 4 * filters)
    for _ in range(num_blocks):
        x = residual_block(x, 4 * filters)
    x = up_block(x, 2 * filters, upsample)
    x = up_block(x, filters, upsample)
    x = conv(ReflectionPadding2D(3)(x), 3, 7, padding="valid", use_bias=True)
    x = keras.layers.Activation("tanh", dtype="float32", name="translated")(x)
    return keras.Model(images, x, name="generator")


def discriminator(filters=64):
    """C64-C128-C256-C512 and a last convolution: a decision for each patch of 70 x 70 pixels (PatchGAN)."""
    images = keras.Input([None, None, 3], name="images")
    x = keras.layers.LeakyReLU(0.2)(conv(images, filters, 4, strides=2, use_bias=True))  # not normalised (paper)
    for multiple, strides in ((2, 2), (4, 2), (8, 1)):
        x = InstanceNormalization()(conv(x, multiple * filters, 4, strides))
        x = keras.layers.LeakyReLU(0.2)(x)
    x = conv(x, 1, 4, use_bias=True)
    return keras.Model(images, keras.layers.Activation("linear", dtype="float32", name="logits")(x),
                       name="discriminator")


def default_blocks(image_size):
    """Residual blocks for pictures of a size: 6 under 256 pixels, 9 from there (paper)."""
    return 9 if image_size >= 256 else 6


MODELS = {"generator": generator, "discriminator": discriminator}
