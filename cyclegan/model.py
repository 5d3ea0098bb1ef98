"""CycleGAN: a generator that repaints a picture of one domain as one of the other, and a judge of patches.

Article: "Gender Swap and CycleGAN in TensorFlow 2.0". Paper: Zhu et al., "Unpaired Image-to-Image Translation
using Cycle-Consistent Adversarial Networks", 2017, sec. 7.2. The article's listing has convolutions without biases
and no normalisation behind them; the paper's instance normalisation, with scale and offset, stands there.

Generator in and out: float32 [B, H, W, 3], RGB in -1..1, H and W multiples of 4, from 8. Discriminator in: the
same, out: logits float32 [B, ceil(H / 8), ceil(W / 8), 1], high where a patch looks real; 32 x 32 of them for
256 x 256 as the article says (the original, padded otherwise, has 30 x 30).

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


def conv(x, filters, kernel_size, name, strides=1, padding="same", use_bias=False):
    """Convolution, by default without a bias: the offset of the normalisation behind it does its work."""
    return keras.layers.Conv2D(filters, kernel_size, strides, padding, use_bias=use_bias,
                               kernel_initializer=normal(), name=name)(x)


def norm_relu(x, name):
    """Instance normalisation and ReLU."""
    return keras.layers.ReLU()(InstanceNormalization(name=f"{name}_norm")(x))


def c7s1(x, filters, name):
    """7x7 convolution, padded by reflection: the first layer (c7s1-64)."""
    return norm_relu(conv(ReflectionPadding2D(3)(x), filters, 7, name, padding="valid"), name)


def down_block(x, filters, name):
    """3x3 convolution of stride 2 (d128, d256)."""
    return norm_relu(conv(x, filters, 3, name, strides=2), name)


def residual_block(x, filters, name):
    """Two 3x3 convolutions, padded by reflection, and what went in (R256)."""
    y = norm_relu(conv(ReflectionPadding2D()(x), filters, 3, f"{name}_1", padding="valid"), f"{name}_1")
    y = conv(ReflectionPadding2D()(y), filters, 3, f"{name}_2", padding="valid")
    return keras.layers.Add()([x, InstanceNormalization(name=f"{name}_2_norm")(y)])


def up_block(x, filters, name, upsample="transpose"):
    """Twice the sides (u128, u64): a transposed convolution, or nearest neighbours and a convolution.

    A transposed 3x3 convolution of stride 2 writes some pixels from more cells than others, which can show as a
    checkerboard; the other way cannot (Odena et al., "Deconvolution and Checkerboard Artifacts", 2016).
    """
    if upsample == "transpose":
        x = keras.layers.Conv2DTranspose(filters, 3, 2, "same", use_bias=False, kernel_initializer=normal(),
                                         name=name)(x)
    else:
        x = conv(ReflectionPadding2D()(keras.layers.UpSampling2D(2)(x)), filters, 3, name, padding="valid")
    return norm_relu(x, name)


def generator(num_blocks=9, filters=64, upsample="transpose", name="generator"):
    """c7s1-64, d128, d256, R256 x num_blocks, u128, u64, c7s1-3: a picture in, a picture of the same size out.

    upsample: transpose or resize, see `up_block`.
    """
    with keras.name_scope(name):  # the variables of two generators need names of their own
        images = keras.Input([None, None, 3], name="images")
        x = c7s1(images, filters, "first")
        x = down_block(x, 2 * filters, "down_1")
        x = down_block(x, 4 * filters, "down_2")
        for number in range(1, num_blocks + 1):
            x = residual_block(x, 4 * filters, f"residual_{number}")
        x = up_block(x, 2 * filters, "up_1", upsample)
        x = up_block(x, filters, "up_2", upsample)
        x = conv(ReflectionPadding2D(3)(x), 3, 7, "last", padding="valid", use_bias=True)
        x = keras.layers.Activation("tanh", dtype="float32", name="translated")(x)
    return keras.Model(images, x, name=name)


def discriminator(filters=64, name="discriminator"):
    """C64-C128-C256-C512 and a last convolution: a decision for each patch of 70 x 70 pixels (PatchGAN)."""
    with keras.name_scope(name):
        images = keras.Input([None, None, 3], name="images")
        x = conv(images, filters, 4, "conv_1", strides=2, use_bias=True)  # the paper does not normalise the first
        x = keras.layers.LeakyReLU(0.2)(x)
        for number, multiple, strides in ((2, 2, 2), (3, 4, 2), (4, 8, 1)):
            x = conv(x, multiple * filters, 4, f"conv_{number}", strides)
            x = keras.layers.LeakyReLU(0.2)(InstanceNormalization(name=f"conv_{number}_norm")(x))
        x = conv(x, 1, 4, "patches", use_bias=True)
        x = keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(images, x, name=name)


def generators(num_blocks=9, filters=64, upsample="transpose"):
    """Both generators as one model, {"a", "b"} -> {"a2b", "b2a"}; its layers are "generator_a2b" and
    "generator_b2a"."""
    a, b = keras.Input([None, None, 3], name="a"), keras.Input([None, None, 3], name="b")
    a2b, b2a = (generator(num_blocks, filters, upsample, f"generator_{way}") for way in ("a2b", "b2a"))
    return keras.Model({"a": a, "b": b}, {"a2b": a2b(a), "b2a": b2a(b)}, name="generators")


def discriminators(filters=64):
    """Both discriminators as one model, {"a", "b"} -> the logits of each; its layers are "discriminator_a" and
    "discriminator_b"."""
    a, b = keras.Input([None, None, 3], name="a"), keras.Input([None, None, 3], name="b")
    judge_a, judge_b = (discriminator(filters, f"discriminator_{side}") for side in ("a", "b"))
    return keras.Model({"a": a, "b": b}, {"a": judge_a(a), "b": judge_b(b)}, name="discriminators")


def default_blocks(image_size):
    """Residual blocks for pictures of a size: 6 under 256 pixels, 9 from there (paper)."""
    return 9 if image_size >= 256 else 6


MODELS = {"generator": generator, "discriminator": discriminator}
