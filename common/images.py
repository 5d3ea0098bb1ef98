"""Picture files before they go into records: what their headers claim, whether TensorFlow decodes them."""

import io
import struct
from typing import NamedTuple

import numpy as np
from PIL import Image
import tensorflow as tf

from common import decoding, files
from common.errors import UserError

MAX_PIXELS = 2**26  # 8192 x 8192; TensorFlow itself would decode gigabytes that a small file claims to hold
FORMATS = "JPEG, PNG, GIF, BMP or WebP"


class Header(NamedTuple):
    format: str  # "jpeg", "png", "gif", "bmp", "webp"
    width: int  # pixels as stored, before any EXIF rotation
    height: int
    orientation: int  # EXIF, 1..8; 1 where there is none


class Picture(NamedTuple):
    data: bytes  # JPEG or PNG that TensorFlow decodes to three channels
    format: str  # "jpeg" or "png"
    width: int
    height: int
    repairs: tuple  # what was changed, in words


def decode(image_bytes, on_white=False):
    """uint8 [H, W, 3] RGB of a JPEG or PNG, whatever its EXIF orientation.

    Works in a graph. Gray becomes three equal channels, 16 bits become 8. Transparency is dropped, which shows
    whatever colour a file has behind it; on_white: it lies on white, see `lay_on_white`. Other kinds: `decode_file`.
    """
    def opaque():
        return tf.io.decode_image(image_bytes, channels=3, expand_animations=False)

    def laid():
        rgba = tf.io.decode_png(image_bytes, channels=4)
        return lay_on_white(rgba[..., :3], rgba[..., 3])

    if on_white:
        image_bytes = tf.convert_to_tensor(image_bytes)
        image = tf.cond(_has_alpha(image_bytes), laid, opaque)
    else:
        image = opaque()
    image.set_shape([None, None, 3])
    return image


def lay_on_white(image, alpha):
    """Colours uint8 [H, W, 3] of opacity uint8 [H, W] on a white ground, uint8 [H, W, 3]; works in a graph."""
    image, alpha = tf.cast(image, tf.int32), tf.cast(alpha, tf.int32)[..., tf.newaxis]
    return tf.cast((image * alpha + 255 * (255 - alpha) + 127) // 255, tf.uint8)


def decode_file(data, kind):
    """(colours uint8 [H, W, 3], opacity uint8 [H, W], or None where all is opaque) of encoded bytes, as stored.

    kind: as in `Header`; of a GIF the first frame. Palettes, gray and single colours that are transparent count too.
    JPEG and PNG are decoded by TensorFlow, as everywhere else; the others, which it knows in part only (palettes of
    BMP, transparency of GIF and WebP), and `is_bare_cmyk` by Pillow. Raises ValueError, with the reason, where that cannot be done.
    """
    alpha = None
    try:
        if kind == "jpeg" and is_bare_cmyk(data):
            image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
        elif kind in ("jpeg", "png"):
            data = tf.constant(data)
            if kind == "png" and _has_alpha(data):
                rgba = tf.io.decode_png(data, channels=4).numpy()
                image, alpha = rgba[..., :3], rgba[..., 3]
            else:
                image = decode(data).numpy()
        else:
            rgba = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
            image, alpha = rgba[..., :3], rgba[..., 3]
    except Exception as error:  # Pillow's readers raise all kinds of errors about damaged data
        raise ValueError(files.reason(error).split(" [Op:")[0][:100]) from None
    return image, alpha if alpha is not None and alpha.min() < 255 else None


def is_bare_cmyk(data):
    """Whether a JPEG has four inks and no segment of Adobe's, which says how: to TensorFlow it is a negative of what
    Pillow and OpenCV see, and the programs in which people annotate."""
    inks, says = 0, False
    for marker, start, _ in decoding.jpeg_segments(data):
        says |= marker == 0xEE and data[start:start + 5] == b"Adobe"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            inks = data[start + 5]
    return inks == 4 and not says


def frame_count(data, kind):
    """How many pictures an encoded GIF or WebP holds, of which `decode_file` takes the first; 1 of other kinds."""
    return getattr(Image.open(io.BytesIO(data)), "n_frames", 1) if kind in ("gif", "webp") else 1


def _has_alpha(image_bytes):
    """bool: a PNG with alpha for each pixel (colour types 4 and 6, byte 25), or with a chunk that says what is
    transparent; works in a graph.

    Of other PNG of less than 8 bits, TensorFlow's fourth channel is not 255.
    """
    return tf.strings.regex_full_match(image_bytes, r"\CPNG\r\n\x1a\n\C{17}(?:[\x04\x06]|\C*tRNS)\C*")


def read_header(data):
    """The `Header` of encoded bytes, without decoding; ValueError where there is none."""
    try:
        if data[:2] == b"\xff\xd8":
            return _jpeg_header(data)
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            return Header("png", *struct.unpack(">II", data[16:24]), _png_orientation(data))
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return Header("gif", *struct.unpack("<HH", data[6:10]), 1)
        if data[:2] == b"BM":
            width, height = struct.unpack("<ii", data[18:26])
            return Header("bmp", width, abs(height), 1)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return Header("webp", *_webp_size(data), _webp_orientation(data))
    except (struct.error, IndexError):
        raise ValueError("its header is cut") from None
    raise ValueError(f"it is not a {FORMATS}" if data else "it is empty")


def prepare(data, name, *, annotated_size=None, turned=False, on_white=False, max_pixels=MAX_PIXELS):
    """Checks a picture once, when records are built, and returns the `Picture` to store.

    JPEG and PNG that TensorFlow decodes keep their bytes; GIF (first frame), BMP and WebP become PNG. EXIF
    orientation is ignored, as TensorFlow does, because boxes refer to the pixels that were annotated; where
    `annotated_size` (width, height) is that of the rotated picture and not of the stored one, and always if
    `turned`, the rotation is baked into the pixels. Transparency is counted, or with `on_white` baked in as well.

    A UserError names the file where it is empty, cut, no picture, or has more than `max_pixels` (refused
    before decoding).
    """
    try:
        header = read_header(data)
    except ValueError as error:
        raise UserError(f"{name} must be a {FORMATS} picture, and {error}. Replace or remove it.") from None
    if header.width * header.height > max_pixels or min(header.width, header.height) < 1:
        raise UserError(f"{name} must have 1 to {max_pixels:,} pixels, and claims {header.width} x "
                        f"{header.height}. Make it smaller or remove it.")
    try:
        image, alpha = decode_file(data, header.format)
    except ValueError as error:
        raise UserError(f"{name} must be a whole {header.format.upper()} picture, and cannot be decoded "
                        f"({error}). Replace or remove it.") from None
    height, width = image.shape[:2]
    if (width, height) != (header.width, header.height):
        raise UserError(f"{name} must be as large as its header says, {header.width} x {header.height}, and "
                        f"is {width} x {height}. Save it again.")
    kept, repairs = header.format in ("jpeg", "png"), []
    if not kept:
        repairs.append(f"{header.format} stored as png")
    if header.format == "jpeg" and is_bare_cmyk(data):
        kept = False
        repairs.append("JPEG of four inks stored as one of three colours")
    if frame_count(data, header.format) > 1:
        repairs.append("first of several pictures in a file taken")
    if alpha is not None and on_white:
        image, kept = lay_on_white(image, alpha).numpy(), False
        repairs.append("picture with transparency laid on white")
    elif alpha is not None:
        repairs.append("picture with transparency, its colours taken as they are")
    swapped = annotated_size == (height, width) and width != height and header.orientation >= 5
    if swapped or turned and header.orientation > 1:
        image, kept = np.ascontiguousarray(upright(image, header.orientation)), False
        repairs.append("picture turned as its EXIF orientation says")
    height, width = image.shape[:2]
    if kept:
        return Picture(data, header.format, width, height, tuple(repairs))
    if header.format == "jpeg":
        data = tf.io.encode_jpeg(image, quality=95, chroma_downsampling=False).numpy()
        return Picture(data, "jpeg", width, height, tuple(repairs))
    return Picture(tf.io.encode_png(image).numpy(), "png", width, height, tuple(repairs))


def upright(image, orientation):
    """`image` [H, W, C] as it is meant to be seen, from its EXIF orientation 1..8."""
    turned = {1: image, 2: image[:, ::-1], 3: image[::-1, ::-1], 4: image[::-1], 5: image.swapaxes(0, 1),
              6: np.rot90(image, -1), 7: image[::-1, ::-1].swapaxes(0, 1), 8: np.rot90(image)}
    return turned[orientation]


def _jpeg_header(data):
    orientation = 1
    for marker, start, end in decoding.jpeg_segments(data):
        if marker == 0xE1 and data[start:start + 6] == b"Exif\0\0":
            orientation = _exif_orientation(data[start + 6:end])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame, not a table
            height, width = struct.unpack(">HH", data[start + 1:start + 5])
            return Header("jpeg", width, height, orientation)
    raise ValueError("it has no JPEG frame header")


def _exif_orientation(tiff):
    """Tag 0x0112 of the first directory; 1 where it is missing or damaged."""
    try:
        order = {b"II": "<", b"MM": ">"}[bytes(tiff[:2])]
        directory, = struct.unpack(order + "I", tiff[4:8])
        entries, = struct.unpack(order + "H", tiff[directory:directory + 2])
        for i in range(entries):
            entry = tiff[directory + 2 + 12 * i:directory + 14 + 12 * i]
            tag, = struct.unpack(order + "H", entry[:2])
            if tag == 0x0112:
                value, = struct.unpack(order + "H", entry[8:10])
                return value if 1 <= value <= 8 else 1
    except (KeyError, struct.error):
        pass
    return 1


def _png_orientation(data):
    """As the chunk eXIf says, wherever it stands; 1 where there is none."""
    position = 8
    while position + 8 <= len(data):
        length, kind = struct.unpack(">I4s", data[position:position + 8])
        if kind == b"eXIf":
            return _exif_orientation(data[position + 8:position + 8 + length])
        position += 12 + length
    return 1


def _webp_orientation(data):
    """As the chunk EXIF says, which some programs begin as in a JPEG; 1 where there is none."""
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack("<4sI", data[position:position + 8])
        if kind == b"EXIF":
            return _exif_orientation(data[position + 8:position + 8 + length].removeprefix(b"Exif\0\0"))
        position += 8 + length + length % 2
    return 1


def _webp_size(data):
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits, = struct.unpack("<I", data[21:25])
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack("<HH", data[26:30])
    return width & 0x3FFF, height & 0x3FFF
