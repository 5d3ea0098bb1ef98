"""Pictures, folders, globs, videos and cameras as one stream of named RGB frames.

Pictures are turned as their EXIF orientation says, as viewers show them, so H and W are those of the picture
as shown.
"""

import glob
import os
import pathlib
import re
from typing import NamedTuple

import cv2
import numpy as np

from common import building, decoding, images, splits
from common.errors import UserError

PICTURES = {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp"}
ANIMATED = {".gif", ".webp"}
VIDEOS = {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts"}
DEFAULT_FPS = 25.0  # where a camera or a file does not say
PATIENCE = 100      # frames without a picture behind which, where a file claims no more, nothing is expected
ENDLESS = 10_000    # the same, whatever it claims


class Frame(NamedTuple):
    source: str  # path of the file, or "camera 0"
    index: int  # of the frame in its video, those that cannot be decoded counted; 0 for a picture
    image: np.ndarray  # uint8 RGB [H, W, 3]
    fps: float | None  # frames per second of the video; None for a picture
    first: bool = False  # whether it is the first that its source gives


class Unreadable(Exception):
    """Why one source cannot be read."""


def frames(arguments, on_unreadable, *, on_white=False, max_pixels=images.MAX_PIXELS):
    """Yields a `Frame` for each picture and each frame of each video, in the order of the arguments.

    arguments: files, folders (their pictures and videos, not those of sub-folders), globs ("**" too), or
    camera numbers. Calls `on_unreadable(name, reason)` for whatever gives no frame, for a video or an animated picture
    that did not give all of its frames, and for what is left out of a folder; and goes on. on_white: as in
    `read_picture`.
    """
    # All are found before the first is given out, so that what is made of one is not a source itself.
    for source in [source for argument in arguments for source in _expand(argument, on_unreadable)]:
        try:
            yield from _frames_of(source, on_white, max_pixels)
        except Unreadable as error:
            on_unreadable(source, str(error))


def expand(argument):
    """The sources that an argument stands for; itself where it stands for nothing else, found or not."""
    return _expand(argument, lambda name, reason: None)


def _expand(argument, on_unreadable):
    path = pathlib.Path(argument).expanduser()
    if path.is_dir():
        found = splits.entries(path)
        chosen, left_out = splits.of_kinds([entry for entry in found if not entry.is_dir()], PICTURES | VIDEOS)
        left_out["folders (not looked into)"] = [entry for entry in found if entry.is_dir()]
        for line in building.left_out_lines(building.summarize(left_out)):
            on_unreadable(str(path), line)
        return sorted(map(str, chosen), key=_natural) or [str(path)]
    if not path.exists() and glob.has_magic(argument):
        found = [name for name in glob.glob(str(path), recursive=True) if os.path.isfile(name)]
        return sorted(found, key=_natural) or [argument]
    return [str(path)]


def read_picture(path, *, on_white=False, max_pixels=images.MAX_PIXELS):
    """uint8 RGB [H, W, 3] of a JPEG, PNG, BMP, GIF (first frame) or WebP file, turned upright.

    Raises `Unreadable`. Gray and palette pictures become three channels, 16 bits become 8. Transparency is dropped,
    which shows whatever colour a file has behind it; on_white: it lies on white, as `images.lay_on_white` has it.
    """
    data = _bytes_of(path)
    try:
        header = images.read_header(data)
    except ValueError as error:
        raise Unreadable(f"not a picture: {error}") from None
    if header.width * header.height > max_pixels:
        raise Unreadable(f"it claims {header.width} x {header.height} pixels, more than {max_pixels:,}")
    if header.format == "jpeg":  # OpenCV is faster
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        except cv2.error as error:
            raise Unreadable(f"cannot be decoded: {error.err}") from None
        if image is None or decoding.is_cut(data):  # some versions give the half of it
            raise Unreadable("damaged or cut JPEG data")
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    try:
        image, alpha = images.decode_file(data, header.format)
    except ValueError as error:
        raise Unreadable(f"damaged or cut {header.format.upper()} data: {error}") from None
    if on_white and alpha is not None:
        image = images.lay_on_white(image, alpha).numpy()
    return np.ascontiguousarray(images.upright(image, header.orientation))


def _bytes_of(path):
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror) from None


def _frames_of(source, on_white, max_pixels):
    path = pathlib.Path(source)
    if not path.exists():
        if not re.fullmatch(r"\d{1,3}", source):
            raise Unreadable("no such file, folder or camera")
        yield from _video(int(source), f"camera {source}")
    elif path.is_dir():
        raise Unreadable("no pictures or videos in this folder")
    elif path.suffix.lower() in VIDEOS:
        yield from _video(source, source)
    else:
        yield Frame(source, 0, read_picture(path, on_white=on_white, max_pixels=max_pixels), None, first=True)
        if path.suffix.lower() in ANIMATED:
            data = _bytes_of(path)
            count = images.frame_count(data, images.read_header(data).format)
            if count > 1:
                raise Unreadable(f"1 of its {count} pictures is read, the first; a video of them would give all")


def _video(handle, name):
    capture = cv2.VideoCapture(handle)
    is_camera = isinstance(handle, int)
    try:
        if not capture.isOpened():
            raise Unreadable("the camera cannot be opened" if is_camera else "not a readable video")
        fps = capture.get(cv2.CAP_PROP_FPS)
        fps = fps if 0 < fps < 1000 else DEFAULT_FPS
        claimed = capture.get(cv2.CAP_PROP_FRAME_COUNT)
        claimed = int(claimed) if 0 < claimed < 2**31 else 0  # below 0 where the file does not say
        index = given = without = 0  # without: frames in a row that gave no picture
        while without < PATIENCE or index < claimed and without < ENDLESS:
            success, image = capture.read()
            if success:
                yield Frame(name, index, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), fps, first=not given)
                given, without = given + 1, 0
            elif is_camera:
                break
            else:
                without += 1
            index += 1
        total = max(claimed, index - without)  # behind the end there is nothing either
        if not given:
            raise Unreadable("it has no frame that can be decoded")
        if given < total and not is_camera:
            raise Unreadable(f"{given} of its {total} frames could be decoded, the others are left out")
    finally:
        capture.release()


class VideoWriter:
    """Writes RGB frames to an MP4 file, or AVI where this OpenCV cannot write MP4; use it with `with`.

    The file has its name only when it is complete: at the end of the `with` block, also after Ctrl-C. After an error
    there is none. MP4 has even sizes: of odd ones the last column or row is left out.
    """

    def __init__(self, path, fps, size):
        """path without suffix; size (width, height)."""
        self.size, self._count = size, 0
        base = pathlib.Path(path)
        base.parent.mkdir(parents=True, exist_ok=True)
        for suffix, codec in ((".mp4", "mp4v"), (".avi", "MJPG")):
            self.path = base.with_name(base.name + suffix)
            self._temporary = base.with_name(f".tmp-{os.getpid()}-{base.name}{suffix}")
            self._writer = cv2.VideoWriter(str(self._temporary), cv2.VideoWriter_fourcc(*codec), fps, size)
            if self._writer.isOpened():
                return
            self._temporary.unlink(missing_ok=True)
        raise UserError(
            f"{base.parent} must be a folder that OpenCV can write videos to, and it can write neither MP4 "
            "nor AVI there. Choose another --out."
        )

    def write(self, image):
        """Appends a frame; frames of another size than the first are resized."""
        if image.shape[1::-1] != self.size:
            image = cv2.resize(image, self.size, interpolation=cv2.INTER_AREA)
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        self._count += 1

    def close(self):
        """Completes the file and gives it its name.

        Raises UserError, and leaves no file, where it does not hold what was written: OpenCV says nothing of a full
        disk.
        """
        self._writer.release()
        written = cv2.VideoCapture(str(self._temporary))
        held = int(written.get(cv2.CAP_PROP_FRAME_COUNT)) if written.isOpened() else 0
        written.release()
        if held < self._count:
            self.discard()
            raise UserError(f"{self.path} must hold the {self._count} frames that were written, and holds {held}. Free "
                            "some space or choose another --out.")
        os.replace(self._temporary, self.path)

    def discard(self):
        """Removes what was written."""
        self._writer.release()
        self._temporary.unlink(missing_ok=True)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if kind is None or issubclass(kind, KeyboardInterrupt):
            self.close()
        else:
            self.discard()


def _natural(name):
    """Sorts picture 2 before picture 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part.lower()) for part in parts]
