"""Files that are whole or not there: written under a temporary name, flushed to the disk, then renamed."""

import contextlib
import json
import math
import os
import pathlib
import re
import shutil

from common.errors import UserError

PREFIX = ".tmp-"
MEBIBYTE = 2**20


@contextlib.contextmanager
def replacing(path):
    """Gives a temporary path beside `path`, with the same suffix; on success it takes `path`'s place.

    On any failure the temporary file is removed and the old file stays as it was. Raises `UserError` where
    the system refuses to write (disk full, folder read-only).
    """
    path = pathlib.Path(path)
    temporary = path.with_name(f"{PREFIX}{os.getpid()}-{path.name}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written ({reason(error)}); what was there before is kept. Free some space or "
            "choose a folder that can be written to, then run the same again.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def make_folder(path):
    """Makes a folder and those above it where they are not there. Raises UserError."""
    try:
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{path} must be a folder, or a place to make one ({reason(error)}). Choose another."
                        ) from None


def write_bytes(path, data):
    """Writes `data` to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path, text):
    """Writes `text` as UTF-8 to `path`, whole or not at all."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path, value):
    """Writes `value` as indented JSON to `path`, whole or not at all; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def flush(path):
    """Waits until the file or folder is on the disk; a folder's entries count as its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_temporaries(folder):
    """Removes what an interrupted `replacing` left in `folder` and below; returns the removed paths."""
    left = [path for path in pathlib.Path(folder).rglob(f"{PREFIX}*") if path.is_file()]
    for path in left:
        path.unlink(missing_ok=True)
    return left


def require_space(folder, size):
    """Raises `UserError` when the disk of `folder` has fewer than `size` bytes left."""
    free = shutil.disk_usage(folder).free
    if free < size:
        raise UserError(f"{folder} needs {math.ceil(size / MEBIBYTE)} MiB of free space, but its disk has "
                        f"{free // MEBIBYTE} MiB. Free some space, or choose another --run.")


def is_chief():
    """Whether this process writes the run folder: always, unless TF_CONFIG makes another the chief."""
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}")
    task = cluster.get("task", {})
    if task.get("type") == "worker" and not cluster.get("cluster", {}).get("chief"):
        return task.get("index", 0) == 0
    return task.get("type", "chief") == "chief"


def reason(error):
    """The system's words for an error, without its number and path."""
    within_hdf5 = re.search("error message = '([^']+)'", str(error))
    if within_hdf5:
        return within_hdf5[1]
    words = getattr(error, "strerror", None) or (str(error) or type(error).__name__).splitlines()[0]
    return re.sub(r"^\{\{.*\}\} (.*; )?| \[Op:\w+\]$", "", words)  # what TensorFlow puts around them
