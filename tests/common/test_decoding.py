"""Encoded pictures to pixels; what hourglass and SSD ask of it is in their own tests."""

import re

import numpy as np
import pytest
import tensorflow as tf

from common import decoding, errors, images, training
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


def photo(progressive=False):
    """(JPEG of random pixels, the same with a thumbnail in its header, which has an end of its own)."""
    image = np.random.default_rng(0).integers(0, 256, [64, 64, 3], np.uint8)
    data, small = tf.io.encode_jpeg(image, progressive=progressive).numpy(), tf.io.encode_jpeg(image[:8, :8]).numpy()
    segment = b"\xff\xe1" + (len(small) + 2).to_bytes(2, "big") + small
    return data, data[:2] + segment + data[2:]


@pytest.mark.parametrize("progressive", [False, True])
def test_a_cut_jpeg_is_refused_wherever_it_is_cut(progressive):
    """Some versions of OpenCV decode the half."""
    for whole in photo(progressive):
        assert decoding.decode(whole).shape == (64, 64, 3) and not decoding.is_cut(whole)
        for length in [*range(2, 1000), *range(1000, len(whole), 37), len(whole) - 2, len(whole) - 1]:
            assert decoding.is_cut(whole[:length])
        for cut in (whole[:-2], whole[:-1000]):
            with pytest.raises(UserError, match="cut.jpg must be a picture"):
                decoding.decode(cut, "cut.jpg")


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_the_end_of_a_jpeg_is_no_damage(progressive):
    """Films behind photos, maps of depth, anything; with the marks of scans and ends in it."""
    rng = np.random.default_rng(1)
    for whole in photo(progressive):
        expected = decoding.decode(whole)
        for rest in (b"more of a camera", b"\xff\xda", b"\xff\xd9\xff\xda\0", b"\0\0\0\x18ftypmp42\xff\xda" * 9,
                     whole, whole[:-1000], rng.integers(0, 256, 300_000, np.uint8).tobytes()):
            assert not decoding.is_cut(whole + rest)
            np.testing.assert_array_equal(decoding.decode(whole + rest), expected)


def test_bytes_between_markers_are_no_damage():
    """As libjpeg has it: they are skipped, for the picture's size too."""
    data, _ = photo()
    ends = [end for _, _, end in decoding.jpeg_segments(data)]
    assert data[ends[-2]:ends[-2] + 2] == b"\xff\xda" and len(ends) == 9  # JFIF, 2 tables, frame, 4 tables, scan
    for place in ends[:-1]:
        for stray in (b"\0", b"\x12\x34" * 10, b"\xff", b"\xff\xff\0", b"\xff\0\xff\x01\xff\xd0"):
            mended = data[:place] + stray + data[place:]
            np.testing.assert_array_equal(decoding.decode(mended), decoding.decode(data))
            assert images.prepare(mended, "a.jpg") == images.Picture(mended, "jpeg", 64, 64, ())
            assert decoding.is_cut(mended[:-2])


def test_an_error_in_a_function_of_a_dataset_comes_out_as_it_was():
    """TensorFlow wraps it into twenty lines about its own functions."""
    dataset = tf.data.Dataset.from_tensors(b"none").map(
        lambda data: tf.numpy_function(lambda data: decoding.decode(data, "photo.jpg"), [data], tf.uint8))
    with pytest.raises(UserError, match="^photo.jpg must be .* names all such pictures.$"), training.worker_errors():
        next(iter(dataset))
    assert errors.original(tf.errors.InvalidArgumentError(None, None, "UserError of another kind")) is None


@pytest.mark.parametrize("kind, reason", [("empty", "Input is empty"), ("text", "Unknown image file format"),
                                          ("png", "Invalid PNG data"), ("jpeg", "Invalid JPEG data")])
@pytest.mark.parametrize("on_white", [False, True])
def test_a_picture_that_tensorflow_cannot_decode_is_one_line(kind, reason, on_white, two_replicas):
    black = np.zeros([64, 64, 3], np.uint8)
    data = {"empty": b"", "text": b"no picture", "png": tf.io.encode_png(black).numpy()[:-20],
            "jpeg": tf.io.encode_jpeg(black).numpy()[:-9]}[kind]
    dataset = tf.data.Dataset.from_tensors(data).repeat(2).map(lambda data: images.decode(data, on_white)).batch(2)
    for batches in (dataset, two_replicas.experimental_distribute_dataset(dataset)):
        with pytest.raises(UserError) as raised, training.worker_errors():
            next(iter(batches))
        assert re.fullmatch(
            rf"A picture of the records must be whole, and cannot be decoded \([^{{}}]*{reason}[^{{}}]*\)\. Build the "
            r"records again; preprocess\.py --check names all such pictures\.", str(raised.value))
    assert errors.original(tf.errors.InvalidArgumentError(None, None, "decode_image/DecodeImage")) is None
