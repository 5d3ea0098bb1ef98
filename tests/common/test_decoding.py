"""Encoded pictures to pixels; what hourglass and SSD ask of it is in their own tests."""

import numpy as np
import pytest
import tensorflow as tf

from common import decoding, errors, training
from common.errors import UserError


def test_lossless_pictures_come_back_and_jpeg_as_from_tensorflow():
    image = np.random.default_rng(0).integers(0, 256, [40, 60, 3], np.uint8)
    np.testing.assert_array_equal(decoding.decode(tf.io.encode_png(image).numpy()), image)
    smooth = np.asarray(tf.image.resize(image[:5, :8], [40, 60]), np.uint8)
    data = tf.io.encode_jpeg(smooth, quality=95).numpy()
    accurate = tf.io.decode_jpeg(data, dct_method="INTEGER_ACCURATE")    # OpenCV's; the default of TensorFlow is the fast
    np.testing.assert_array_equal(decoding.decode(data), accurate)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8 no picture", b"GIF no picture"])
def test_what_cannot_be_decoded_is_named(data):
    with pytest.raises(UserError, match="^photo.jpg must be a picture that OpenCV decodes, and is not"):
        decoding.decode(data, b"photo.jpg")
    with pytest.raises(UserError, match="^A picture of the records must be"):
        decoding.decode(data)


def test_a_cut_jpeg_is_refused_and_what_follows_its_end_is_not():
    """OpenCV alone decodes the half. A thumbnail in the header has an end of its own."""
    image = np.random.default_rng(0).integers(0, 256, [64, 64, 3], np.uint8)
    data, small = tf.io.encode_jpeg(image).numpy(), tf.io.encode_jpeg(image[:8, :8]).numpy()
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    thumbnailed = data[:2] + segment + data[2:]
    for good in (data, data + b"more of a camera", thumbnailed):
        np.testing.assert_array_equal(decoding.decode(good), decoding.decode(data))
    for whole in (data, thumbnailed):
        for cut in (whole[:-2], whole[:-1000]):
            with pytest.raises(UserError, match="cut.jpg must be a picture"):
                decoding.decode(cut, "cut.jpg")


def test_an_error_in_a_function_of_a_dataset_comes_out_as_it_was():
    """TensorFlow wraps it into twenty lines about its own functions."""
    dataset = tf.data.Dataset.from_tensors(b"none").map(
        lambda data: tf.numpy_function(lambda data: decoding.decode(data, "photo.jpg"), [data], tf.uint8))
    with pytest.raises(UserError, match="^photo.jpg must be .* names all such pictures.$"), training.worker_errors():
        next(iter(dataset))
    assert errors.original(tf.errors.InvalidArgumentError(None, None, "UserError of another kind")) is None
