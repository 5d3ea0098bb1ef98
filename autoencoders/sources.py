"""Where small pictures come from: IDX files, Keras and tensorflow-datasets downloads, folders, drawn digits.

Each reader gives a `Source`: pictures of one size, with labels. Without a split for validation one is dealt by a hash
of a picture's name or pixels (`common/splits.py`). H, W, C picture.
"""

import collections
import gzip
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
from common import building, images, media, splits
from common.detection_sources import reachable
from common.errors import UserError

VAL_SHARE = 12  # about one in so many training pictures is for validation, and for testing where there is none
PUBLISHED = 60_000  # training pictures of MNIST and Fashion-MNIST; they never change, and their last 5,000 are val
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
    skipped: list = []            # {"split", "file", "reason"} of pictures that cannot be used
    left_out: dict = {}           # {reason: paths} of what is no picture of a split
    repaired: dict = {}           # what -> how often
    notes: list = []              # of sentences: what the owner of the pictures should know


def find(name, source=None, *, image_size=None, channels=None, skip_bad=False, seed=0):
    """The `Source` of data set `name`: of the folder `source`, or of a download if that is None.

    image_size, channels: for folders of pictures, see `from_folder`. Raises UserError.
    """
    if source is None:
        if name == "demo":
            return from_digits(seed)
        return from_keras(name) if name in LABELS else from_tfds(name, seed)
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise UserError(f"--source must be a folder with IDX files or with pictures, and {folder} "
                        f"{'is a file' if folder.exists() else 'does not exist'}.")
    if _idx_path(folder, "train", "images") or _idx_path(folder, "t10k", "images"):
        if image_size or channels:
            raise UserError(f"--image_size and --channels are for folders of pictures, and {folder} has IDX files, "
                            "which are taken as they are. Leave them out.")
        return from_idx(folder, LABELS.get(name), published=name in LABELS, seed=seed)
    return from_folder(folder, image_size=image_size, channels=channels, skip_bad=skip_bad, seed=seed)


def from_arrays(arrays, labels, origin, *, published=False, seed=0):
    """The Source of {split: (uint8 [N, H, W] or [N, H, W, C], ids [N] or None)}.

    Without val a share of train is: of the `published` sets the last pictures, of others those that a hash of their
    pixels says.
    """
    arrays = {split: (pictures if pictures.ndim == 4 else pictures[..., None],
                      np.full(len(pictures), -1) if ids is None else np.asarray(ids, np.int64).reshape(-1))
              for split, (pictures, ids) in arrays.items() if len(pictures)}
    if "train" in arrays and "val" not in arrays:
        pictures, ids = arrays["train"]
        if published and len(pictures) == PUBLISHED:
            edge = PUBLISHED - PUBLISHED // VAL_SHARE
            parts = {"train": slice(edge), "val": slice(edge, None)}
        else:
            parts = splits.deal(range(len(pictures)), {"val": 1 / VAL_SHARE}, seed=seed,
                                key=lambda number: pictures[number].tobytes(), category=lambda number: ids[number])
        arrays |= {split: (pictures[part], ids[part]) for split, part in parts.items()}
    highest = max((int(ids.max()) for _, ids in arrays.values()), default=-1)
    if labels is None or highest >= len(labels):
        labels = [str(number) for number in range(highest + 1)]
    shapes = {pictures.shape[1:] for pictures, _ in arrays.values()}
    if len(shapes) != 1:
        raise UserError(f"All pictures of a set must have one size, and {origin} holds {sorted(shapes)}.")
    found = {split: (len(pictures), zip(pictures, ids, map(f"{split}/{{}}".format, range(len(pictures)))))
             for split, (pictures, ids) in arrays.items()}
    return Source(labels, shapes.pop(), found, origin,
                  notes=_label_notes(labels, {split: ids.tolist() for split, (_, ids) in arrays.items()}))


def _label_notes(labels, ids):
    """What is to be said of {split: ids of its pictures, -1 without label}."""
    present = {split: set(numbers) - {-1} for split, numbers in ids.items()}
    everywhere, notes = set().union(*present.values()), []
    for split, numbers in ids.items():
        missing = [labels[number] for number in sorted(everywhere - present[split])]
        if missing:
            notes.append(f"{split}: no picture has the label {', '.join(missing)}.")
        if everywhere and -1 in numbers:
            notes.append(f"{split}: {numbers.count(-1)} of {len(numbers)} pictures have no label.")
    return notes


def from_idx(folder, labels=None, *, published=False, seed=0):
    """The Source of MNIST's files: train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-..., gzip or not."""
    arrays, used = {}, []
    for split, prefix in _IDX.items():
        path = _idx_path(folder, prefix, "images")
        if path is None:
            continue
        pictures, ids, of_labels = read_idx(path, 3), None, _idx_path(folder, prefix, "labels")
        used.append(path)
        if of_labels is not None:
            used.append(of_labels)
            ids = read_idx(of_labels, 1)
            if len(ids) != len(pictures):
                raise UserError(f"{of_labels} must have a label for each of the {len(pictures)} pictures of "
                                f"{path}, and has {len(ids)}. Take both files from one place.")
        arrays[split] = pictures, ids
    found = from_arrays(arrays, labels, str(folder), published=published, seed=seed)
    left_out = [path for path in splits.entries(folder) if path not in used]
    return found._replace(left_out={"files or folders beside the IDX files": left_out})


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
    return from_arrays({"train": train, "test": test}, LABELS[name], f"keras.datasets.{name}", published=True)


def from_tfds(name, seed=0):
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
        arrays, others = {}, set(builder.info.splits)
        for theirs, ours in (("train", "train"), ("validation", "val"), ("test", "test")):
            if theirs in others:
                found = tfds.as_numpy(builder.as_dataset(split=theirs, batch_size=-1))
                arrays[ours] = found["image"], found.get("label")
                others.remove(theirs)
        labels = builder.info.features["label"].names if "label" in builder.info.features else []
    except Exception as error:  # whatever the network, the name or the disk did
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} could not be had from tensorflow-datasets ({words}). {advice}") from error
    found = from_arrays(arrays, labels, f"tensorflow-datasets {name}", seed=seed)
    return found._replace(left_out={"other splits of the set": sorted(others)})


def from_digits(seed=0, splits=None):
    """The Source of the demo's digits; `splits` maps a split to its number of pictures."""
    found, first = {}, 0
    for split, count in (splits or digits.SPLITS).items():
        numbers = range(first, first + count)
        found[split] = count, ((*digits.draw(seed, number), f"{number:06d}") for number in numbers)
        first += count
    return Source(LABELS["mnist"], (28, 28, 1), found, f"made up, seed {seed}")


def from_folder(folder, *, image_size=None, channels=None, skip_bad=False, seed=0):
    """The Source of a folder of pictures: folder/[split/][label/]picture.png or folder/label/split/picture.png.

    The label is the path of the folders above a picture, but for the split's. Folders of splits are those of
    `common/splits.py`; beside a folder of training pictures everything else is left out, without one everything else
    is for training. About a twelfth of the training pictures is val where there is no val, and another test where
    there is neither. image_size: all are resized to (H, W), averaging over areas; None: they must have one size.
    channels: 1 gray, 3 colours; None: 1 if all pictures are gray. Transparency lies on white.
    """
    folder = pathlib.Path(folder)
    parts, left_out = _find_pictures(folder, seed)
    labels = sorted({label for found in parts.values() for _, label in found if label})
    shapes, all_gray, skipped, kept, repaired = {}, True, [], {}, collections.Counter()
    for split, found in parts.items():
        kept[split] = []
        for path, label in found:
            try:
                picture = read_picture(path)
            except UserError as error:
                if not skip_bad:
                    raise UserError(f"{error} To leave such pictures out, use --skip_bad.") from None
                skipped.append({"split": split, "file": str(path), "reason": str(error)})
                continue
            shapes.setdefault(picture.shape[:2], path)
            all_gray = all_gray and not np.ptp(picture, axis=-1).any()
            repaired["picture with transparency laid on white"] += not _is_opaque(path, picture)
            kept[split].append((path, labels.index(label) if label else -1))
    if not kept.get("train"):
        raise UserError(" ".join([f"{folder} must hold pictures to train on, in it, in a folder train or in folders "
                                  "named by their labels, and none could be used.",
                                  *building.left_out_lines(building.summarize(left_out)),
                                  *building.skipped_lines(skipped)]))
    shape = _common_shape(shapes, image_size, channels or (1 if all_gray else 3))
    found = {split: (len(items), ((fit(read_picture(path), shape), label, str(path)) for path, label in items))
             for split, items in kept.items() if items}
    notes = _label_notes(labels, {split: [label for _, label in items] for split, items in kept.items()})
    return Source(labels, shape, found, str(folder), skipped, left_out, dict(+repaired), notes)


def _common_shape(shapes, image_size, channels):
    """(H, W, C) of the records; shapes: {(H, W): a picture that has it}."""
    if image_size is None and len(shapes) > 1:
        (size, one), (other_size, other) = list(shapes.items())[:2]
        raise UserError(f"All pictures must have one size, and {one} has {size[1]} x {size[0]}, {other} "
                        f"{other_size[1]} x {other_size[0]}. Give --image_size WIDTHxHEIGHT, to which all are "
                        "resized.")
    size = tuple(image_size or next(iter(shapes)))
    if max(size) > MAX_SIDE:
        raise UserError(f"The networks are for small pictures, up to {MAX_SIDE} x {MAX_SIDE}, and these have "
                        f"{size[1]} x {size[0]}. Give a smaller --image_size.")
    return (*size, channels)


def _find_pictures(folder, seed):
    """({split: [(path, label or "")]}, {reason: paths} of what is left out), see `from_folder`.

    Each split is in the order of a hash of its names: its first pictures, which --limit and the reports take, are of
    all labels.
    """
    parts, left_out = collections.defaultdict(list), collections.defaultdict(list)

    def add(split, place, root, *above):
        pictures, others = splits.of_kinds(splits.walk(place) if place.is_dir() else [place], media.PICTURES)
        for path in pictures:
            parts[split].append((path, "/".join([*above, *path.parent.relative_to(root).parts])))
        for reason, paths in others.items():
            left_out[reason] += paths

    def add_all(place, *above):
        """The folders of splits in `place`, and what else is there."""
        given, others = splits.folders(place)
        for split, inner in given.items():
            before = len(parts[split])
            add(split, inner, inner, *above)
            if len(parts[split]) == before:
                left_out["folders of splits without pictures"].append(inner)
        if "train" in given:
            left_out["files or folders beside the folders of splits"] += others
            return
        for other in others:
            # A label's folder with splits of its own: cat/train, cat/test.
            if not given and not above and other.is_dir() and splits.folders(other)[0]:
                add_all(other, other.name)
            else:
                add("train", other, place, *above)

    add_all(folder)

    def key(item):
        return item[0].relative_to(folder).as_posix()

    shares = {split: 1 / VAL_SHARE for split in ("test", "val") if not parts[split]}
    if parts["val"]:
        shares.pop("test", None)
    parts |= splits.deal(parts.pop("train", []), shares, seed=seed, key=key, category=lambda item: item[1])
    parts = {split: sorted(parts[split], key=lambda item: splits.fraction(key(item), seed)) for split in splits.SPLITS}
    return {split: found for split, found in parts.items() if found}, dict(left_out)


def read_picture(path, on_white=True):
    """uint8 RGB [H, W, 3] of a picture file, turned upright; a UserError names the file."""
    try:
        return media.read_picture(path, on_white=on_white)
    except media.Unreadable as error:
        raise UserError(f"{path} must be a {images.FORMATS} picture, and is not ({error}). Replace or remove it."
                        ) from None


def _is_opaque(path, picture):
    """Whether a picture on white is what it is without transparency."""
    return path.suffix.lower() in (".jpg", ".jpeg", ".jpe", ".jfif") or np.array_equal(
        picture, read_picture(path, on_white=False))


def fit(picture, image_shape):
    """An RGB picture uint8 [H, W, 3] as uint8 of `image_shape`, gray if C is 1.

    Sides that shrink are averaged over areas, then those that grow are interpolated.
    """
    height, width, channels = image_shape
    for size, method in (((min(height, picture.shape[0]), min(width, picture.shape[1])), cv2.INTER_AREA),
                         ((height, width), cv2.INTER_LINEAR)):
        if picture.shape[:2] != size:
            picture = cv2.resize(picture, size[::-1], interpolation=method)
    return cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None] if channels == 1 else picture
