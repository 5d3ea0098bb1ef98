"""Where small pictures come from: IDX files, Keras and tensorflow-datasets downloads, folders, drawn digits.

Each reader gives a `Source`: pictures of one size, with labels. H, W, C picture.
"""

import gzip
import hashlib
import math
import os
import pathlib
import struct
import zlib
from typing import NamedTuple

import cv2
import keras
import numpy as np

from autoencoders import digits
from common import images, media
from common.detection_sources import reachable
from common.errors import UserError

VAL_SHARE = 12  # one in so many training pictures is for validation: 5,000 of MNIST
MAX_SIDE = 512

_FASHION = ["T-shirt/top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
            "ankle boot"]
LABELS = {"mnist": [str(digit) for digit in range(10)], "fashion_mnist": _FASHION}
_IDX = {"train": "train", "test": "t10k"}
_KERAS_HOST = "https://storage.googleapis.com/"
_ADVICE = ("Put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and their two t10k files into a folder and "
           "add --source FOLDER.")


class Source(NamedTuple):
    labels: list                  # names in the order of their ids; [] where nothing is known
    image_shape: tuple            # (H, W, C)
    splits: dict                  # {split: (count, iterable of (uint8 [H, W, C], label id or -1, file name))}
    origin: str
    skipped: list                 # {"split", "file", "reason"} of pictures left out


def find(name, source=None, *, image_size=None, channels=None, skip_bad=False, seed=0):
    """The `Source` of data set `name`: of the folder `source`, or of a download if that is None.

    image_size, channels: for folders of pictures, see `from_folder`. Raises UserError.
    """
    if source is None:
        if name == "demo":
            return from_digits(seed)
        return from_keras(name) if name in LABELS else from_tfds(name)
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise UserError(f"--source must be a folder with IDX files or with pictures, and {folder} "
                        f"{'is a file' if folder.exists() else 'does not exist'}.")
    if _idx_path(folder, "train", "images") or _idx_path(folder, "t10k", "images"):
        return from_idx(folder, LABELS.get(name))
    return from_folder(folder, image_size=image_size, channels=channels, skip_bad=skip_bad)


def from_arrays(arrays, labels, origin, val_share=VAL_SHARE):
    """The Source of {split: (uint8 [N, H, W] or [N, H, W, C], ids [N] or None)}; val may be cut off train."""
    arrays = {split: (pictures if pictures.ndim == 4 else pictures[..., None],
                      np.full(len(pictures), -1) if ids is None else np.asarray(ids, np.int64).reshape(-1))
              for split, (pictures, ids) in arrays.items() if len(pictures)}
    if "train" in arrays and "val" not in arrays and len(arrays["train"][0]) > 1:
        pictures, ids = arrays["train"]
        held_out = max(1, len(pictures) // val_share)
        arrays |= {"train": (pictures[:-held_out], ids[:-held_out]),
                   "val": (pictures[-held_out:], ids[-held_out:])}
    highest = max((int(ids.max()) for _, ids in arrays.values()), default=-1)
    if labels is None or highest >= len(labels):
        labels = [str(number) for number in range(highest + 1)]
    shapes = {pictures.shape[1:] for pictures, _ in arrays.values()}
    if len(shapes) != 1:
        raise UserError(f"All pictures of a set must have one size, and {origin} holds {sorted(shapes)}.")
    splits = {split: (len(pictures), zip(pictures, ids, map(f"{split}/{{}}".format, range(len(pictures)))))
              for split, (pictures, ids) in arrays.items()}
    return Source(labels, shapes.pop(), splits, origin, [])


def from_idx(folder, labels=None):
    """The Source of MNIST's files: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., gzip or not."""
    arrays = {}
    for split, prefix in _IDX.items():
        path = _idx_path(folder, prefix, "images")
        if path is None:
            continue
        pictures, ids, of_labels = read_idx(path, 3), None, _idx_path(folder, prefix, "labels")
        if of_labels is not None:
            ids = read_idx(of_labels, 1)
            if len(ids) != len(pictures):
                raise UserError(f"{of_labels} must have a label for each of the {len(pictures)} pictures of "
                                f"{path}, and has {len(ids)}. Take both files from one place.")
        arrays[split] = pictures, ids
    return from_arrays(arrays, labels, str(folder))


def read_idx(path, num_axes):
    """The uint8 array of an IDX file, plain or gzip. Raises UserError: it is cut, too long, or another format.

    Two zero bytes, the type (8: unsigned bytes), the number of axes, their lengths as big-endian int32, the bytes.
    """
    path = pathlib.Path(path)
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} must be a whole IDX file, plain or gzip, and cannot be read ({error}). Get it "
                        "again.") from None
    start = 4 + 4 * num_axes
    if content[:4] != bytes([0, 0, 8, num_axes]) or len(content) < start:
        raise UserError(f"{path} must be an IDX file of bytes with {num_axes} axes, and its first bytes are "
                        f"{content[:4].hex(' ') or 'missing'}, not 00 00 08 {num_axes:02x}. Get it again.")
    shape = struct.unpack(f">{num_axes}I", content[4:start])
    if len(content) - start != math.prod(shape):
        raise UserError(f"{path} must have {math.prod(shape)} bytes behind its header, for {shape}, and has "
                        f"{len(content) - start}. Get it again.")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _idx_path(folder, prefix, kind):
    """The file of one kind ("images", "labels") in a folder, under any usual name; None without."""
    axes = {"images": 3, "labels": 1}[kind]
    names = [f"{prefix}-{kind}{dot}idx{axes}-ubyte{gz}" for dot in "-." for gz in ("", ".gz")]
    return next((folder / name for name in names if (folder / name).is_file()), None)


def from_keras(name):
    """The Source of `keras.datasets.mnist` or `fashion_mnist`, downloaded once; UserError offline."""
    kept = pathlib.Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"
    found = kept / "mnist.npz" if name == "mnist" else kept / "fashion-mnist" / "t10k-images-idx3-ubyte.gz"
    if not found.exists() and not reachable(_KERAS_HOST):
        raise UserError(f"{name} is not in {kept}, and {_KERAS_HOST} cannot be reached. {_ADVICE}")
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # whatever the network or the disk did
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} could not be downloaded ({words}). {_ADVICE}") from error
    return from_arrays({"train": train, "test": test}, LABELS[name], f"keras.datasets.{name}")


def from_tfds(name):
    """The Source of a tensorflow-datasets set of small pictures with labels, such as kmnist; UserError offline."""
    root = pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    prepared = any((root / name).glob("*/dataset_info.json"))
    advice = f"Give --source FOLDER, a folder with IDX files or pictures, for the set {name}."
    if not prepared and not reachable("https://www.tensorflow.org/"):
        raise UserError(f"{name} is not in {root}, and tensorflow-datasets cannot download it: there is no "
                        f"connection. {advice}")
    import tensorflow_datasets as tfds
    try:
        builder = tfds.builder(name, data_dir=str(root))
        if not prepared:
            builder.download_and_prepare()
        arrays = {}
        for theirs, ours in (("train", "train"), ("validation", "val"), ("test", "test")):
            if theirs in builder.info.splits:
                found = tfds.as_numpy(builder.as_dataset(split=theirs, batch_size=-1))
                arrays[ours] = found["image"], found.get("label")
        labels = builder.info.features["label"].names if "label" in builder.info.features else []
    except Exception as error:  # whatever the network, the name or the disk did
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} could not be had from tensorflow-datasets ({words}). {advice}") from error
    return from_arrays(arrays, labels, f"tensorflow-datasets {name}")


def from_digits(seed=0, splits=None):
    """The Source of the demo's digits; `splits` maps a split to its number of pictures."""
    found, first = {}, 0
    for split, count in (splits or digits.SPLITS).items():
        numbers = range(first, first + count)
        found[split] = count, ((*digits.draw(seed, number), f"{number:06d}") for number in numbers)
        first += count
    return Source(LABELS["mnist"], (28, 28, 1), found, f"made up, seed {seed}", [])


def from_folder(folder, *, image_size=None, channels=None, skip_bad=False):
    """The Source of a folder of pictures: folder/[train|val|test/][label/]picture.png.

    Names of folders above the pictures are the labels. Without folders for splits a twelfth of the pictures,
    chosen by the md5 of their names, is val and another test. image_size: all are resized to (H, W), averaging
    over areas; None: they must have one size. channels: 1 gray, 3 colours; None: 1 if all pictures are gray.
    """
    paths = _split_paths(pathlib.Path(folder))
    labels = sorted({path.parent.name for found in paths.values() for path, has_label in found if has_label})
    shapes, all_gray, skipped, kept = {}, True, [], {}
    for split, found in paths.items():
        kept[split] = []
        for path, has_label in found:
            try:
                picture = read_picture(path)
            except UserError as error:
                if not skip_bad:
                    raise UserError(f"{error} To leave such pictures out, use --skip_bad.") from None
                skipped.append({"split": split, "file": str(path), "reason": str(error)})
                continue
            shapes.setdefault(picture.shape[:2], path)
            all_gray = all_gray and not np.ptp(picture, axis=-1).any()
            kept[split].append((path, labels.index(path.parent.name) if has_label else -1))
    if not shapes:
        raise UserError(f"{folder} must hold pictures, in it or in its folders, and none could be used.")
    if image_size is None and len(shapes) > 1:
        (size, one), (other_size, other) = list(shapes.items())[:2]
        raise UserError(f"All pictures must have one size, and {one} has {size[1]} x {size[0]}, {other} "
                        f"{other_size[1]} x {other_size[0]}. Give --image_size WIDTHxHEIGHT, to which all are "
                        "resized.")
    size = tuple(image_size or next(iter(shapes)))
    if max(size) > MAX_SIDE:
        raise UserError(f"The networks are for small pictures, up to {MAX_SIDE} x {MAX_SIDE}, and these have "
                        f"{size[1]} x {size[0]}. Give a smaller --image_size.")
    shape = (*size, channels or (1 if all_gray else 3))
    splits = {split: (len(found), ((fit(read_picture(path), shape), label, str(path)) for path, label in found))
              for split, found in kept.items() if found}
    return Source(labels, shape, splits, str(folder), skipped)


def _split_paths(folder):
    """{split: [(path, whether the folder above is a label)]}, each in the order of the paths."""
    def pictures_in(place):
        found = [path for path in sorted(place.rglob("*")) if path.suffix.lower() in media.PICTURES
                 and path.is_file()
                 and not path.name.startswith(".")]
        return [(path, path.parent != place) for path in found]

    given = {split: pictures_in(folder / split) for split in ("train", "val", "test") if (folder / split).is_dir()}
    if given.get("train") and given.get("val"):
        return given
    items = given.get("train") or pictures_in(folder)
    ordered = sorted(items, key=lambda item: hashlib.md5(str(item[0].relative_to(folder)).encode()).digest())
    number, parts = max(1, len(ordered) // VAL_SHARE), {}
    if given.get("test"):
        parts["test"] = given["test"]
    elif len(ordered) > 2:
        parts["test"], ordered = ordered[:number], ordered[number:]
    if len(ordered) > 1:
        parts["val"], ordered = ordered[:number], ordered[number:]
    return {"train": ordered, **parts}


def read_picture(path):
    """uint8 RGB [H, W, 3] of a picture file, turned upright; a UserError names the file."""
    try:
        return media.read_picture(path)
    except media.Unreadable as error:
        raise UserError(f"{path} must be a {images.FORMATS} picture, and is not ({error}). Replace or remove it."
                        ) from None


def fit(picture, image_shape):
    """An RGB picture uint8 [H, W, 3] as uint8 of `image_shape`: averaged where it shrinks, gray if C is 1."""
    height, width, channels = image_shape
    if picture.shape[:2] != (height, width):
        shrinks = picture.shape[0] >= height and picture.shape[1] >= width
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks
                             else cv2.INTER_LINEAR)
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else picture
