"""Pictures before they go into records: cut anywhere, orientation against OpenCV, the limit of pixels."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image

from common import images
from common.errors import UserError


def encoded(kind, **options):
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (5, 8, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "WEBP"])
def test_a_file_cut_anywhere_is_an_error_with_its_name(kind):
    data = encoded(kind)
    for length in {0, 1, 2, 3, 7, 12, 17, 24, 29, 40, len(data) // 2, len(data) * 9 // 10}:
        with pytest.raises(UserError, match="^shelf/cut.jpg must be "):
            images.prepare(data[:length], "shelf/cut.jpg")
    assert images.prepare(data, "shelf/cut.jpg").width == 64


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_as_opencv_applies_it(orientation, order):
    name = b"II" if order == "<" else b"MM"
    tiff = struct.pack(order + "2sHIHHHIHHI", name, 42, 8, 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    plain = encoded("JPEG", quality=95)
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    assert images.read_header(data) == ("jpeg", 64, 40, orientation)
    stored = cv2.imdecode(np.frombuffer(plain, np.uint8), cv2.IMREAD_COLOR)
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(images.upright(stored, orientation), seen)


def test_the_limit_of_pixels_is_inclusive():
    data = encoded("PNG")
    assert images.prepare(data, "a.png", max_pixels=64 * 40).data == data
    with pytest.raises(UserError, match="a.png must have 1 to 2,559 pixels, and claims 64 x 40"):
        images.prepare(data, "a.png", max_pixels=64 * 40 - 1)
