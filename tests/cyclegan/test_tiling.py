"""The generator piece by piece: what the whole gives, without seams, where pieces by themselves show them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import runtime
from cyclegan import tiling
from cyclegan.model import generator


def random_generator(num_blocks=2, filters=8, upsample="transpose", precision="float32"):
    """A generator whose norms scale and shift, as those of a trained one do."""
    keras.utils.set_random_seed(3)
    with runtime.dtype_policy(precision):
        model = generator(num_blocks, filters, upsample)
    rng = np.random.default_rng(4)
    for weight in model.weights:
        if "norm" in weight.path:
            weight.assign(weight.numpy() + rng.normal(size=weight.shape) * 0.3)
    return model


def photo(height, width):
    """float32 [H, W, 3] in -1..1 of which each part has a brightness and a contrast of its own."""
    rng = np.random.default_rng(5)
    rows, columns = np.mgrid[0:height, 0:width]
    contrast = 0.05 + 0.5 * columns / width
    brightness = rows / height - 0.5
    return np.clip(brightness[..., None] + contrast[..., None] * rng.normal(size=(height, width, 3)), -1,
                   1).astype(np.float32)


def whole(model, image):
    return model(image[None], training=False).numpy()[0]


def by_themselves(model, image, tile, overlap):
    """Pieces that are translated one by one, with a border that is cut off again."""
    found = np.empty_like(image)
    height, width = image.shape[:2]
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            first, start = max(top - overlap, 0), max(left - overlap, 0)
            piece = whole(model, image[first:top + tile + overlap, start:left + tile + overlap])
            found[top:top + tile, left:left + tile] = piece[top - first:, left - start:][:tile, :tile]
    return found


def steps(image, column):
    """Mean absolute difference of the pixels on both sides of a column's left edge."""
    return np.abs(image[:, column] - image[:, column - 1]).mean()


@pytest.mark.parametrize("shape, tile, upsample", [((8, 8), 256, "transpose"), ((100, 140), 36, "transpose"),
                                                   ((32, 200), 50, "resize")])
def test_pieces_give_the_whole(shape, tile, upsample):
    model, image = random_generator(upsample=upsample), photo(*shape)
    expected = whole(model, image)
    assert expected.std() > 0.1
    # float32 sums in another order.
    np.testing.assert_allclose(tiling.translate(model, image, tile), expected, atol=2e-5)


def test_no_seam():
    """The article's open question, in both ways: pieces by themselves differ and show seams, these do not."""
    model, image = random_generator(num_blocks=1), photo(128, 192)
    expected = whole(model, image)
    found = tiling.translate(model, image, 64)
    naive = by_themselves(model, image, 64, overlap=32)
    assert np.abs(found - expected).max() < 2e-5 and np.abs(naive - expected).max() > 0.2
    for column in (64, 128):
        excess = {name: abs(steps(each, column) - steps(expected, column))
                  for name, each in (("found", found), ("naive", naive))}
        assert excess["found"] < 1e-5 and excess["naive"] > 1e-3


def test_bfloat16():
    model, image = random_generator(1, precision="mixed_bfloat16"), photo(68, 76)
    difference = tiling.translate(model, image, 48) - whole(model, image)
    # Statistics of other sums can round a value to the next of bfloat16's; a seam would be far more.
    assert np.sqrt(np.mean(np.square(difference))) < 2e-3 and np.abs(difference).max() < 0.05


def test_windows_cover_an_area_once():
    for height, width, tile in ((1, 1, 8), (17, 30, 8), (16, 33, 16), (5, 9, 4)):
        times = np.zeros([height, width], int)
        sizes = []
        for row in tiling.windows(height, width, tile):
            for top, bottom, left, right in row:
                times[top:bottom, left:right] += 1
                sizes += [bottom - top, right - left]
        assert (times == 1).all() and max(sizes) <= tile
        assert min(sizes) >= tile // 2 or tile > min(height, width)  # no slivers at the end


def test_statistics_are_those_of_all_tiles_together():
    values = (np.random.default_rng(6).normal(size=(37, 23, 5)) * [1, 2, 3, 1e-3, 1] + [0, 100, -5, 7, 0])
    values = values.astype(np.float32)
    kept = np.empty_like(values)
    mean, variance = tiling.compute(tiling.Stored(values), 8, kept)
    np.testing.assert_allclose(mean, values.mean((0, 1), np.float64), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(variance, values.astype(np.float64).var((0, 1)), rtol=1e-3)  # 1e-3 of 7 in float32
    np.testing.assert_array_equal(kept, values)


def test_a_convolution_may_write_where_it_reads():
    values = np.random.default_rng(7).normal(size=(40, 24, 4)).astype(np.float32)
    layer = keras.layers.Conv2D(4, 3, padding="valid", use_bias=False)
    layer.build([None, None, None, 4])
    expected = layer(tf.pad(values[None], [[0, 0], [1, 1], [1, 1], [0, 0]], "REFLECT")).numpy()[0]
    array = values.copy()
    tiling.compute(tiling.Convolution(layer, tiling.Stored(array), reflect=True), 8, array)
    np.testing.assert_allclose(array, expected, atol=1e-5)
