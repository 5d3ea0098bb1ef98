"""Encoded pictures to pixels with OpenCV, for functions that tf.data calls and for processes without TensorFlow."""

import cv2
import numpy as np

from common.errors import UserError

_RGB = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
_REDUCED = {1: _RGB, 2: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_4,
            8: _RGB | cv2.IMREAD_REDUCED_GRAYSCALE_8}
_SCAN, _END = 0xDA, 0xD9  # JPEG's markers, behind 0xFF; ITU T.81, table B.1
_WITHOUT_CONTENTS = {0x00, 0x01, *range(0xD0, 0xD9)}


def decode(image_bytes, name=""):
    """uint8 RGB [H, W, 3] of an encoded picture, whatever its EXIF orientation.

    Raises UserError, with `name` (str or bytes), where OpenCV cannot decode it, and for a JPEG that was cut: OpenCV
    would give what is left of it, and grey.
    """
    return decode_reduced(image_bytes, 1, name)[0]


def decode_reduced(image_bytes, shrink, name=""):
    """(picture as of `decode`, r): decoded at 1 / r of its size; r is 1, 2, 4 or 8, at most `shrink`.

    Pixel i of the result covers r * i to r * (i + 1), without the aliasing that sampling every r-th pixel would bring.
    libjpeg decodes a JPEG faster that way; of other formats the means of r x r pixels are taken, the last block filled
    up with the picture's last pixels.
    """
    is_jpeg = image_bytes[:2] == b"\xff\xd8"
    shrink = max(r for r in _REDUCED if r <= max(shrink, 1))
    whole = image_bytes and not (is_jpeg and is_cut(image_bytes))
    image = cv2.imdecode(np.frombuffer(image_bytes, np.uint8), _REDUCED[shrink if is_jpeg else 1]) if whole else None
    if image is None:
        name = name.decode(errors="replace") if isinstance(name, bytes) else name
        raise UserError(f"{name or 'A picture of the records'} must be a picture that OpenCV decodes, and is not. "
                        "Build the records again; preprocess.py --check names all such pictures.")
    return image if is_jpeg else means(image, shrink), shrink


def means(image, shrink):
    """The means of shrink x shrink pixels of a picture uint8 [H, W, 3], the last ones repeated to fill up."""
    if shrink == 1:
        return image
    bottom, right = (-length % shrink for length in image.shape[:2])
    image = cv2.copyMakeBorder(image, 0, bottom, 0, right, cv2.BORDER_REPLICATE)
    return cv2.resize(image, (image.shape[1] // shrink, image.shape[0] // shrink), interpolation=cv2.INTER_AREA)


def jpeg_segments(data):
    """(marker, where its contents begin, where they end) of each segment of a JPEG, up to that of its first scan.

    Bytes between segments, which libjpeg skips, are skipped, and so are markers without contents. The end, 0xD9, has
    none and is the last.
    """
    position = data.find(b"\xff", 2)
    while 0 <= position < len(data) - 1:
        marker = data[position + 1]
        if marker == 0xFF:  # fills up
            position += 1
        elif marker in _WITHOUT_CONTENTS:
            position = data.find(b"\xff", position + 2)
        else:
            start = position + 4
            end = start if marker == _END else position + 2 + int.from_bytes(data[position + 2:start], "big")
            yield marker, start, end
            if marker in (_SCAN, _END):
                return
            position = data.find(b"\xff", end)


def is_cut(jpeg):
    """Whether a JPEG has no end behind the beginning of its first scan; a thumbnail's own stands before that.

    Compressed data have no 0xFF 0xD9 in them (ITU T.81, B.1.1.5), nor do the tables between scans.
    """
    return not any(marker == _SCAN and jpeg.rfind(b"\xff\xd9", end) >= 0 for marker, _, end in jpeg_segments(jpeg))
