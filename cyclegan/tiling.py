"""Large pictures on small machines: the generator piece by piece, with the result of the whole, so without seams.

Article: "How to generate a bigger image such as 1024 x 1024". Pieces that are translated one by one do not fit
together, however far they overlap, because instance normalisation gives each the contrast of its own mean and
variance in place of the picture's. Here the picture is not cut, but the work of every layer: a layer is done for
the whole picture, tile by tile, each with the few pixels beside it that its convolution sees, while the mean and
variance of all tiles together are taken; what follows is normalised with these. So nothing overlaps, and nothing
is blended.

What lies between two layers is kept where it is small, a quarter of the sides: two arrays of 256 channels, 128
bytes for each pixel of the picture in float32 and 64 in bfloat16. At the full and half size, where the whole needs
its gigabytes, the cheap layers are computed anew whenever they are needed: about an eighth more work.

h, w sides of a layer's output, C channels. A window is (top, bottom, left, right), the ends not in it.
"""

import keras
import numpy as np
import tensorflow as tf

MIN_TILE = 32


def windows(height, width, tile):
    """Lists of the windows of an area, row by row, of tile x tile or less, all of about the same size."""
    rows, columns = (_edges(length, tile) for length in (height, width))
    return [[(*row, *column) for column in columns] for row in rows]


def _edges(length, tile):
    edges = np.linspace(0, length, -(-length // tile) + 1).astype(int).tolist()
    return list(zip(edges, edges[1:]))


class Stored:
    """What is held in an array [h, w, C]. `zoom`: pixels of the picture's side for each of its own."""

    def __init__(self, array, zoom=1):
        self.array, self.zoom, self.shape = array, zoom, array.shape[:2]

    def window(self, top, bottom, left, right):
        return tf.constant(self.array[None, top:bottom, left:right])


class Upsampled:
    """Each pixel of a source as 2 x 2 equal ones."""

    def __init__(self, source):
        self.source, self.zoom = source, source.zoom // 2
        self.shape = tuple(2 * side for side in source.shape)

    def window(self, top, bottom, left, right):
        first_y, first_x = top // 2, left // 2
        x = self.source.window(first_y, -(-bottom // 2), first_x, -(-right // 2))
        x = tf.repeat(tf.repeat(x, 2, axis=1), 2, axis=2)
        return x[:, top - 2 * first_y:bottom - 2 * first_y, left - 2 * first_x:right - 2 * first_x]


class Convolution:
    """The output of a convolution over a source, padded as in `model.generator`."""

    def __init__(self, layer, source, reflect):
        """reflect: whether the input is mirrored at the border; else there are zeros below and on the right."""
        self.layer, self.source, self.reflect = layer, source, reflect
        self.kernel = tf.cast(layer.kernel, layer.compute_dtype)
        self.size, self.stride = layer.kernel_size[0], layer.strides[0]
        self.before = self.size // 2 if reflect else 0  # "same" pads an even side at its end alone
        self.shape = tuple(side // self.stride for side in source.shape)
        self.zoom = source.zoom * self.stride

    def window(self, top, bottom, left, right):
        (top, bottom, above, below), (left, right, before, behind) = (
            self._needed(*ends) for ends in zip((top, left), (bottom, right), self.source.shape))
        x = tf.cast(self.source.window(top, bottom, left, right), self.kernel.dtype)
        sides = [[0, 0], [above, below], [before, behind], [0, 0]]
        x = tf.pad(x, sides, "REFLECT" if self.reflect else "CONSTANT")
        x = tf.nn.conv2d(x, self.kernel, self.stride, "VALID")
        return tf.nn.bias_add(x, tf.cast(self.layer.bias, x.dtype)) if self.layer.use_bias else x

    def _needed(self, start, stop, length):
        """(first, last + 1) of the source's pixels that an output's are made of, and the padding at both ends."""
        start = start * self.stride - self.before
        stop = (stop - 1) * self.stride + self.size - self.before
        return max(start, 0), min(stop, length), max(-start, 0), max(stop - length, 0)


class Transposed:
    """The output of a transposed 3x3 convolution of stride 2, of twice the sides of its source."""

    def __init__(self, layer, source):
        self.kernel = tf.cast(layer.kernel, layer.compute_dtype)
        self.source, self.zoom = source, source.zoom // 2
        self.shape = tuple(2 * side for side in source.shape)

    def window(self, top, bottom, left, right):
        # An even pixel has a part from the one of the source before its own.
        first_y, first_x = max(top // 2 - 1, 0), max(left // 2 - 1, 0)
        x = self.source.window(first_y, -(-bottom // 2), first_x, -(-right // 2))
        size = [1, 2 * x.shape[1], 2 * x.shape[2], self.kernel.shape[2]]
        x = tf.nn.conv2d_transpose(x, self.kernel, size, 2, "SAME")
        return x[:, top - 2 * first_y:bottom - 2 * first_y, left - 2 * first_x:right - 2 * first_x]


class Normalized:
    """A source after instance normalisation and, where there is one, ReLU."""

    def __init__(self, layer, source, statistics, relu=True):
        self.source, self.relu, self.shape, self.zoom = source, relu, source.shape, source.zoom
        self.mean, self.variance = (tf.constant(value, tf.float32) for value in statistics)
        self.gamma, self.beta = tf.convert_to_tensor(layer.gamma), tf.convert_to_tensor(layer.beta)
        self.epsilon = layer.epsilon

    def window(self, top, bottom, left, right):
        y = tf.raw_ops.FusedBatchNormV3(  # the fast kernel for a given mean and variance
            x=self.source.window(top, bottom, left, right), scale=self.gamma, offset=self.beta, mean=self.mean,
            variance=self.variance, epsilon=self.epsilon, is_training=False)[0]
        return tf.nn.relu(y) if self.relu else y


def compute(source, tile, array=None):
    """(mean, variance) of a source's channels, float64 [C] each; writes it into an array [h, w, C] if given.

    The array may be the one that the source reads, by up to a tile beyond its window: a row of tiles is written
    when the next one is computed.
    """
    count, mean, squares, waiting = 0, 0.0, 0.0, []
    for row in windows(*source.shape, max(1, tile // source.zoom)):
        computed = []
        for window in row:
            x = source.window(*window)
            part, part_mean, part_squares = _moments(x)
            difference, total = part_mean - mean, count + part
            # The sums of squares of two parts, around the mean of both (Chan et al., 1979).
            squares = squares + part_squares + difference**2 * (count * part / total)
            mean, count = mean + difference * (part / total), total
            if array is not None:
                computed.append((window, x.numpy()[0]))
        _write(array, waiting)
        waiting = computed
    _write(array, waiting)
    return mean, squares / count


def _moments(x):
    """(number of pixels, mean, sum of squares around it) of the channels of [1, h, w, C]."""
    part, some, none = int(np.prod(x.shape[1:3])), tf.ones([x.shape[3]]), tf.zeros([0])
    _, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(  # several times as fast as tf.nn.moments
        x=x, scale=some, offset=some, mean=none, variance=none, is_training=True)
    # The kernel divides by one less than the number of pixels.
    return part, mean.numpy().astype(np.float64), variance.numpy().astype(np.float64) * (part - 1)


def _write(array, parts):
    for (top, bottom, left, right), values in parts:
        array[top:bottom, left:right] = values


def translate(generator, image, tile=256):
    """What a generator makes of a picture float32 [H, W, 3] in -1..1, H and W multiples of 4 from 8: the same.

    Equal to the generator on the whole picture but for the rounding of sums. tile: side of the pieces in pixels,
    `MIN_TILE` at least; it decides over the memory for the work on one of them, and not over the result.
    """
    layer = generator.get_layer
    x = _norm(layer, "first", Convolution(layer("first"), Stored(image), reflect=True), tile)
    x = _norm(layer, "down_1", Convolution(layer("down_1"), x, reflect=False), tile)
    x = _residual_blocks(generator, Convolution(layer("down_2"), x, reflect=False), tile)
    for name in ("up_1", "up_2"):
        if isinstance(layer(name), keras.layers.Conv2DTranspose):
            x = Transposed(layer(name), x)
        else:
            x = Convolution(layer(name), Upsampled(x), reflect=True)
        x = _norm(layer, name, x, tile)
    x = Convolution(layer("last"), x, reflect=True)
    translated = np.empty([*x.shape, 3], np.float32)
    for row in windows(*x.shape, tile):
        _write(translated, [(window, tf.tanh(tf.cast(x.window(*window), tf.float32)).numpy()[0])
                            for window in row])
    return translated


def _norm(layer, name, source, tile, array=None, relu=True):
    """A layer's output, normalised; where there is an array, the output is kept in it and read from there."""
    statistics = compute(source, tile, array)
    kept = source if array is None else Stored(array, source.zoom)
    return Normalized(layer(f"{name}_norm"), kept, statistics, relu)


def _residual_blocks(generator, down, tile):
    """What comes out of the blocks, stored; down: the convolution before them."""
    layer, names = generator.get_layer, {each.name for each in generator.layers}
    shape, dtype = [*down.shape, down.kernel.shape[3]], down.kernel.dtype.as_numpy_dtype
    kept, work = np.empty(shape, dtype), np.empty(shape, dtype)
    _replace(kept, _norm(layer, "down_2", down, tile, kept), tile)
    x, number = Stored(kept, down.zoom), 1
    while f"residual_{number}_1" in names:
        first, second = f"residual_{number}_1", f"residual_{number}_2"
        y = _norm(layer, first, Convolution(layer(first), x, reflect=True), tile, work)
        y = _norm(layer, second, Convolution(layer(second), y, reflect=True), tile, work, relu=False)
        _replace(kept, y, tile, add=True)
        number += 1
    return x


def _replace(array, source, tile, add=False):
    """Writes a source that reads no further than its window into an array, or adds it to what is there."""
    for row in windows(*source.shape, tile // source.zoom):
        for window in row:
            top, bottom, left, right = window
            values = source.window(*window)[0]
            if add:
                values += tf.constant(array[top:bottom, left:right])
            array[top:bottom, left:right] = values.numpy()
