"""Stacked hourglass: a network for human pose that predicts a heatmap for each joint, again and again.

Article: "Human Pose Estimation with Stacked Hourglass Network and TensorFlow". Paper: Newell et al., "Stacked Hourglass
Networks for Human Pose Estimation", 2016. Layers that neither of them lists follow the authors' code in Torch.

In: float32 [B, H, W, 3], RGB in 0..1, H and W multiples of 4 * 2**order (64). Out: a list over stacks of heatmaps
float32 [B, h, w, K], h = H / 4 and w = W / 4; the last is the best, the others are there to be supervised. Of a single
stack Keras returns the tensor, not a list.

B batch, H, W image, h, w heatmap, K joints.
"""

import keras

from common.layers import BatchNormalization, Conv2D

VARIANTS = ("article", "newell")
HEATMAP_DEVIATION = 3e-4


def conv(x, filters, kernel_size, name, strides=1, padding="same", **kwargs):
    """Convolution with a bias, as all of Torch's have one."""
    kwargs = {"kernel_initializer": "he_normal", **kwargs}
    return Conv2D(filters, kernel_size, strides, padding, name=name, **kwargs)(x)


def heatmap_conv(x, num_joints, name):
    """The layer that puts out heatmaps: float32, next to zero before training, as most of a heatmap is.

    Features are normalised and cut at zero: the mean of their squares is 1/2. So kernels from N(0, d**2) give values
    of variance d**2 * filters / 2, 1e-5 for 256 filters. The mean square of a target of 64 x 64 with one Gaussian is
    8e-4: the first loss is that of zeros, weighted or not. From he_normal, the variance would be 1.
    """
    start = keras.initializers.RandomNormal(stddev=HEATMAP_DEVIATION)
    return conv(x, num_joints, 1, name, dtype="float32", kernel_initializer=start)


def norm_relu(x, name):
    """Batch normalisation and ReLU."""
    return keras.layers.ReLU()(BatchNormalization(momentum=0.9, name=f"{name}_norm")(x))


def bottleneck_block(x, filters, name):
    """Residual block that is normalised before each convolution: 1x1 to half the filters, 3x3, 1x1 back."""
    skip = x if x.shape[-1] == filters else conv(x, filters, 1, f"{name}_skip")
    x = conv(norm_relu(x, f"{name}_1"), filters // 2, 1, f"{name}_1")
    x = conv(norm_relu(x, f"{name}_2"), filters // 2, 3, f"{name}_2")
    x = conv(norm_relu(x, f"{name}_3"), filters, 1, f"{name}_3")
    return keras.layers.Add()([skip, x])


def bottleneck_blocks(x, filters, count, name):
    """`count` bottleneck blocks, one after the other."""
    for number in range(1, count + 1):
        x = bottleneck_block(x, filters, f"{name}_{number}")
    return x


def hourglass_module(x, order, filters, num_residual=1, variant="article", name="hourglass"):
    """One hourglass: half the size, `order` times over, and back, with a branch at each size that skips the rest.

    The article's upper branch has one block more than the original network ("up1 went through two bottleneck
    blocks"). At the innermost size a block stands where the smaller hourglass would; the article's listing leaves it
    out.
    """
    extra = {"article": 1, "newell": 0}[variant]
    level = f"{name}_{order}"
    up1 = bottleneck_blocks(x, filters, num_residual + extra, f"{level}_up1")
    low1 = keras.layers.MaxPooling2D(2, 2)(x)
    low1 = bottleneck_blocks(low1, filters, num_residual, f"{level}_low1")
    if order > 1:
        low2 = hourglass_module(low1, order - 1, filters, num_residual, variant, name)
    else:
        low2 = bottleneck_blocks(low1, filters, num_residual, f"{level}_low2")
    low3 = bottleneck_blocks(low2, filters, num_residual, f"{level}_low3")
    up2 = keras.layers.UpSampling2D(2)(low3)
    return keras.layers.Add()([up2, up1])


def stem(x, filters, variant="article"):
    """From the picture to features at a quarter of its size."""
    padding = "same"
    if variant == "newell":
        # Torch pads all sides; "same" pads the bottom and the right of an even picture by one more.
        x, padding = keras.layers.ZeroPadding2D(3)(x), "valid"
    x = norm_relu(conv(x, filters // 4, 7, "stem", strides=2, padding=padding), "stem")
    x = bottleneck_block(x, filters // 2, "stem_1")
    x = keras.layers.MaxPooling2D(2, 2)(x)
    x = bottleneck_block(x, filters // 2, "stem_2")
    return bottleneck_block(x, filters, "stem_3")


def hourglass(num_joints=16, num_stacks=4, filters=256, order=4, num_residual=1, variant="article"):
    """Hourglasses in a row; each predicts all heatmaps, and the next one starts from its features and heatmaps.

    variant: "article" or "newell" (the original network), see `hourglass_module` and `stem`. filters: a multiple of 8.
    """
    inputs = keras.Input([None, None, 3], name="images")
    x = stem(inputs, filters, variant)
    heatmaps = []
    for stack in range(1, num_stacks + 1):
        features = hourglass_module(x, order, filters, num_residual, variant, f"hourglass_{stack}")
        features = bottleneck_blocks(features, filters, num_residual, f"features_{stack}")
        features = norm_relu(conv(features, filters, 1, f"features_{stack}"), f"features_{stack}")
        y = heatmap_conv(features, num_joints, f"heatmaps_{stack}")
        heatmaps.append(y)
        if stack < num_stacks:
            # The stack's own input is added, too, as in the original (CAddTable of three); the article forgot it.
            x = keras.layers.Add()([x, conv(features, filters, 1, f"remap_features_{stack}"),
                                    conv(y, filters, 1, f"remap_heatmaps_{stack}")])
    return keras.Model(inputs, heatmaps, name="hourglass")


MODELS = {"hourglass": hourglass}
