"""Pictures before they go into records: cut anywhere, orientation against OpenCV, the limit of pixels."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image
import tensorflow as tf

from common import decoding, detection, images, media
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


COUNTED = "picture with transparency, its colours taken as they are"
LAID = "picture with transparency laid on white"


def transparent(kind):
    """A picture of 6 x 7 random colours, some of them transparent, as a file of some kind."""
    rng = np.random.default_rng(1)
    rgba = rng.integers(0, 256, (6, 7, 4), np.uint8)
    rgba[0, 0, 3], rgba[0, 1, 3] = 0, 255
    palette = Image.fromarray(rgba[..., :3]).quantize(8)
    flat = np.where(rgba[..., :3] < 128, np.uint8(9), np.uint8(200))
    picture, options = {
        "rgba": (Image.fromarray(rgba), {}),
        "gray and alpha": (Image.fromarray(rgba[..., 2:], "LA"), {}),
        "palette": (palette, {"transparency": bytes(range(0, 256, 32))}),
        "one colour": (Image.fromarray(np.repeat(flat[..., :1], 3, -1)), {"transparency": (9, 9, 9)}),
        "one gray": (Image.fromarray(flat[..., 0]), {"transparency": 9}),
        "black and white": (Image.fromarray(flat[..., 0] > 9), {"transparency": 0}),
        "16 bits": (None, {}),
        "gif": (palette, {"format": "GIF", "transparency": 3}),
        "webp": (Image.fromarray(rgba), {"format": "WEBP", "lossless": True, "exact": True}),
    }[kind]
    if picture is None:
        return cv2.imencode(".png", rgba.astype(np.uint16) * 257)[1].tobytes()
    stream = io.BytesIO()
    picture.save(stream, **{"format": "PNG", **options})
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["rgba", "gray and alpha", "palette", "one colour", "one gray", "black and white",
                                  "16 bits", "gif", "webp"])
def test_transparency_on_white_is_the_same_everywhere(kind, tmp_path):
    """Pillow's composition is the oracle: of the builder, of pictures that predict reads, and of a graph."""
    data = transparent(kind)
    seen = Image.open(io.BytesIO(data)).convert("RGBA")
    expected = np.asarray(Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen).convert("RGB"))
    built = images.prepare(data, "a.png", on_white=True)
    assert built.format == "png" and built.repairs[-1] == LAID
    np.testing.assert_array_equal(images.decode(built.data), expected)
    path = tmp_path / "a"
    path.write_bytes(data)
    np.testing.assert_array_equal(media.read_picture(path, on_white=True), expected)
    (frame,) = media.frames([str(path)], pytest.fail, on_white=True)
    np.testing.assert_array_equal(frame.image, expected)
    if kind not in ("gif", "webp"):
        decode = tf.function(lambda data: images.decode(data, on_white=True))
        np.testing.assert_array_equal(decode(tf.constant(data)), expected)
    # Without it the colours are those behind, and it is counted.
    plain = images.prepare(data, "a.png")
    assert plain.repairs[-1] == COUNTED
    np.testing.assert_array_equal(images.decode(plain.data), np.asarray(seen)[..., :3])
    np.testing.assert_array_equal(media.read_picture(path), np.asarray(seen)[..., :3])
    np.testing.assert_array_equal(decoding.decode(plain.data), np.asarray(seen)[..., :3])  # as training reads it


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_opaque_pictures_are_no_transparent_ones(bits):
    """Palettes of less than 8 bits too, where TensorFlow's fourth channel is not 255, and alpha that is all 255."""
    rng = np.random.default_rng(0)
    colors = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).quantize(2**bits)
    for picture, options in ((colors, {"bits": bits}), (colors.convert("RGBA"), {})):
        stream = io.BytesIO()
        picture.save(stream, "PNG", **options)
        data, expected = stream.getvalue(), np.asarray(picture.convert("RGB"))
        assert images.prepare(data, "a.png", on_white=True) == images.Picture(data, "png", 9, 9, ())
        np.testing.assert_array_equal(images.decode(data, on_white=True), expected)


@pytest.mark.parametrize("kind", ["P", "L", "RGB", "1"])
def test_bmp_has_the_colours_of_its_palette(kind, tmp_path):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3), np.uint8)).convert(kind)
    picture.save(tmp_path / "a.bmp")
    built = images.prepare((tmp_path / "a.bmp").read_bytes(), "a.bmp")
    np.testing.assert_array_equal(images.decode(built.data), np.asarray(picture.convert("RGB")))
    np.testing.assert_array_equal(media.read_picture(tmp_path / "a.bmp"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_baked_in_where_asked(orientation, kind, tmp_path):
    """Of all kinds that have one, as OpenCV applies it and as `media.read_picture` shows it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(kind, exif=exif.tobytes(), **({"lossless": True} if kind == "WEBP" else {}))
    assert images.read_header(data).orientation == orientation
    (tmp_path / "a").write_bytes(data)
    seen = media.read_picture(tmp_path / "a")
    np.testing.assert_array_equal(seen, cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1])
    built = images.prepare(data, "a", turned=True)
    assert ("picture turned as its EXIF orientation says" in built.repairs) == (orientation > 1)
    assert (built.height, built.width) == seen.shape[:2]
    difference = np.abs(images.decode(built.data).numpy().astype(int) - seen)
    assert difference.mean() < (5 if kind == "JPEG" else 1e-9)  # JPEG is encoded once more


def test_builders_count_transparent_pictures(tmp_path):
    boxes_xyxy = np.array([[1, 1, 5, 5]])
    source = detection.Source("set", ["a"], {"train": ["rgba", "palette", "16 bits"]}, lambda kind: (
        detection.Annotation(transparent(kind), f"{kind}.png", boxes_xyxy, [0])))
    report = detection.build_records(source, tmp_path, progress=False)
    assert report.repaired == {COUNTED: 3} and report.manifest["repaired"] == {COUNTED: 3}


def test_four_inks_are_what_other_programs_see():
    """With Adobe's segment TensorFlow sees the same as Pillow; without it, black."""
    colours = np.zeros([32, 32, 3], np.uint8)
    colours[..., 0], colours[:16, :, 1] = 200, 120
    file = io.BytesIO()
    Image.fromarray(colours).convert("CMYK").save(file, "JPEG", quality=95)
    said = file.getvalue()
    place = said.index(b"\xff\xee")
    bare = said[:place] + said[place + 2 + int.from_bytes(said[place + 2:place + 4], "big"):]
    assert images.is_bare_cmyk(bare) and not images.is_bare_cmyk(said)
    for data, repairs in ((said, ()), (bare, ("JPEG of four inks stored as one of three colours",))):
        stored = images.prepare(data, "a.jpg")
        assert (stored.format, stored.repairs) == ("jpeg", repairs)
        for decoded in (images.decode(stored.data).numpy(), decoding.decode(stored.data)):
            np.testing.assert_allclose(decoded[[8, 24], 8].astype(int), [[200, 120, 0], [200, 0, 0]], atol=3)
