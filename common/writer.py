"""What predict.py leaves behind: drawn pictures, drawn videos, and a file with a JSON line for each frame."""

import contextlib
import json
import os
import pathlib
import re

from common import drawing, files, media
from common.errors import UserError


class Writer:
    """Drawn pictures and videos and a file of JSON lines in a folder; use it with `with`.

    Every file has its name only when it is complete. lines: the name of the file. arguments: of `media.frames`; what
    they stand for is not replaced, whatever the folder.
    """

    def __init__(self, folder, lines, arguments):
        self.folder = pathlib.Path(folder)
        self._lines_name = lines
        self._names = set()
        self._sources = {_identity(source) for argument in arguments for source in media.expand(argument)} - {None}
        self._video = None

    def __enter__(self):
        self._stack = contextlib.ExitStack()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            path = self._stack.enter_context(files.replacing(self.folder / self._lines_name))
            self._lines = self._stack.enter_context(open(path, "w", encoding="utf-8"))
        except OSError as error:
            raise UserError(
                f"--out {self.folder} cannot be written ({files.reason(error)}). Choose another folder."
            ) from None
        return self

    def write(self, frame, drawn, values):
        """Writes one frame as it was drawn, uint8 RGB [H, W, 3], and its line: where it is from, and `values`."""
        height, width = frame.image.shape[:2]
        if frame.fps is None:
            path = self.folder / f"{self._free_name(frame.source)}.png"
            drawing.write_png(path, drawn)
        else:
            path = self._write_video(frame, drawn)
        line = {"file": frame.source, "frame": frame.index, "width": width, "height": height, "drawn": path.name}
        print(json.dumps({**line, **values}, ensure_ascii=False), file=self._lines)

    def _write_video(self, frame, drawn):
        if self._video is None or frame.first:
            self._close_video()
            size = drawn.shape[1::-1]
            self._video = media.VideoWriter(self.folder / self._free_name(frame.source), frame.fps, size)
        self._video.write(drawn)
        return self._video.path

    def _free_name(self, source):
        """File name without suffix that no earlier source has taken and that is no source itself."""
        stem = re.sub(r"\W", "_", source)  # "camera 0"
        if os.path.exists(source):
            stem = pathlib.Path(source).stem
        name, number = stem, 2
        while name.casefold() in self._names or any(_identity(self.folder / (name + suffix)) in self._sources
                                         for suffix in (".png", ".mp4", ".avi")):
            name, number = f"{stem}_{number}", number + 1
        self._names.add(name.casefold())  # some systems have one file for all spellings
        return name

    def _close_video(self):
        if self._video is not None:
            self._video.close()
            self._video = None

    def __exit__(self, kind, error, traceback):
        try:
            if kind is not None and self._video is not None:
                self._video.discard()
                self._video = None
            self._close_video()
        finally:
            self._stack.__exit__(kind, error, traceback)


def _identity(path):
    """What tells one file from all others; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
