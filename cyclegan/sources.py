"""Where the pictures of the two domains come from: CycleGAN's folders, any two folders, CelebA by an attribute,
tensorflow-datasets, the demo's animals.

Each reader gives a `Source`. A and B are the two domains; nobody says which picture of B belongs to one of A.
"""

import collections
import functools
import os
import pathlib
import re
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from common import building, media, splits
from common.detection_sources import reachable
from common.errors import UserError
from cyclegan import demo

SPLITS = ("trainA", "trainB", "testA", "testB")
HELD_OUT = 10  # about one in so many pictures is for testing where nothing else is said
# The sets of the paper that tensorflow-datasets has as cycle_gan/<name>, with what A and B show.
TFDS = {
    "apple2orange": ["apple", "orange"], "summer2winter_yosemite": ["summer", "winter"],
    "horse2zebra": ["horse", "zebra"], "monet2photo": ["monet", "photo"], "cezanne2photo": ["cezanne", "photo"],
    "ukiyoe2photo": ["ukiyoe", "photo"], "vangogh2photo": ["vangogh", "photo"], "maps": ["aerial photo", "map"],
    "facades": ["photo", "labels"], "iphone2dslr_flower": ["iphone", "dslr"],
}
_HOST = "https://efrosgans.eecs.berkeley.edu/cyclegan/datasets/"
_ATTRIBUTES, _PARTITION = "list_attr_celeba", "list_eval_partition"
_BESIDE = "files or folders beside the folders of splits"
_FACES = ("img_align_celeba/img_align_celeba", "img_align_celeba", "Img/img_align_celeba", ".")


class Source(NamedTuple):
    labels: list                       # [name of A, name of B]
    splits: dict                       # {"trainA": items, "trainB", "testA", "testB"}
    load: Callable[[Any], tuple]       # item -> (path of the picture or its encoded bytes, name for the record)
    origin: str                        # for the manifest
    left_out: dict = {}                # {reason: paths or names}


def find(name, source=None, *, source_a=None, source_b=None, attribute=None, labels=None, seed=0):
    """The `Source` of data set `name`.

    source: folder in CycleGAN's layout (trainA, trainB, testA, testB) or of CelebA; source_a, source_b: one folder
    for each domain; without any of them the demo is drawn and the paper's sets come from tensorflow-datasets.
    attribute: of CelebA, default Male. labels: names of A and B, default as found. Raises UserError.
    """
    if bool(source_a) != bool(source_b) or (source and source_a):
        raise UserError("Give --source_a and --source_b, a folder for each domain, or --source alone, one folder "
                        "with trainA and trainB or of CelebA.")
    is_celeba = source and _list_file(pathlib.Path(source), _ATTRIBUTES)
    if attribute and not is_celeba:
        raise UserError(f"--attribute is one of CelebA, and needs a --source with {_ATTRIBUTES}.txt; "
                        f"{source or 'no --source'} came.")
    if source_a:
        found = from_two(source_a, source_b, name, seed)
    elif is_celeba:
        found = from_celeba(source, attribute or "Male", seed)
    elif source:
        found = from_folders(source, name, seed)
    else:
        found = from_demo(seed) if name == "demo" else from_tfds(name)
    return found._replace(labels=list(labels)) if labels else found


def from_folders(folder, name="", seed=0):
    """The Source of a folder with trainA and trainB, testA and testB where there are; in itself or one below.

    Train and test by any of the words and in any case that `common/splits.py` has: TrainA, training_A, valB. What is
    for validation stands in for a missing test, and is left out beside one.
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"--source must be a folder with trainA and trainB, and {folder} "
                        f"{'is a file; unpack it first' if folder.exists() else 'does not exist'}.")
    roots = [place for place in [folder, *splits.entries(folder)]
             if place.is_dir() and {"trainA", "trainB"} <= side_folders(place)[0].keys()]
    if not roots:
        raise UserError(f"--source must be a folder with trainA and trainB (CycleGAN's layout) or with "
                        f"{_ATTRIBUTES}.txt (CelebA), and {folder} is neither. For two folders of your own, give "
                        "--source_a and --source_b.")
    if len(roots) > 1:
        raise UserError(f"--source must hold one set with trainA and trainB, and {folder} holds several, in "
                        f"{', '.join(place.name for place in roots)}. Give one of them.")
    root, left_out = roots[0], collections.defaultdict(list)
    given, others = side_folders(root)
    left_out[_BESIDE] += others + [place for place in splits.entries(folder) if root not in (folder, place)]
    found = {}
    for side in "AB":
        parts = {split.removesuffix(side): [place] for split, place in given.items() if split.endswith(side)}
        found |= _side(side, parts, root, seed, left_out)
    return Source(names_of(name), _ordered(found), _load_path, f"CycleGAN layout, {root.name}", dict(left_out))


def side_folders(folder):
    """({"trainA", "trainB", "valA", ...: its folder in `folder`}, [what else is there]), sorted."""
    found, others = {}, []
    for path in splits.entries(folder):
        named = re.fullmatch(r"([^\W_]+)[ _-]?([AB])", path.name, re.IGNORECASE) if path.is_dir() else None
        split = splits.of_folder(named[1]) if named else None
        if split is None:
            others.append(path)
        elif found.setdefault(split + named[2].upper(), path) != path:
            raise UserError(f"{folder} must have one folder for {split}{named[2].upper()}, and has "
                            f"{found[split + named[2].upper()].name} and {path.name}. Move one away, or put them "
                            "together.")
    return found, others


def from_two(folder_a, folder_b, name="", seed=0):
    """The Source of two folders of pictures, those in folders below included.

    Folders of splits in them are what they say; beside one for training all else is left out. Without one for testing
    or validation a tenth of the training pictures is held out, see `_side`.
    """
    folders = [pathlib.Path(folder) for folder in (folder_a, folder_b)]
    for flag, folder in zip(("--source_a", "--source_b"), folders):
        if not folder.is_dir():
            raise UserError(f"{flag} must be a folder of pictures, and {folder} "
                            f"{'is a file' if folder.exists() else 'does not exist'}.")
    one, other = (folder.resolve() for folder in folders)
    if one in (other, *other.parents) or other in one.parents:
        raise UserError(f"--source_a and --source_b must not share pictures, and {folder_a} and {folder_b} are one "
                        "folder, or one is in the other. Move the pictures of one domain into a folder of their own.")
    found, left_out = {}, collections.defaultdict(list)
    for side, folder in zip("AB", folders):
        parts = {"train": []}
        _add_parts(folder, parts, left_out)
        found |= _side(side, parts, folder, seed, left_out)
    labels = names_of(name)
    own = [(place.parent if splits.of_folder(place.name) else place).name for place in (one, other)]
    if labels == ["A", "B"] and own[0] != own[1] and all(own):
        labels = own
    return Source(labels, _ordered(found), _load_path, f"{folders[0].name} and {folders[1].name}", dict(left_out))


def from_celeba(folder, attribute="Male", seed=0):
    """The Source of CelebA's faces: A has the attribute, B does not (article: male, female).

    folder holds list_attr_celeba.txt (or in Anno/; or the .csv of the same name), list_eval_partition.txt if there
    is one, and img_align_celeba. Partition 0 is for training, 2 for testing (1, where nothing has 2); without the
    file a tenth is held out. Rows without their picture, and pictures without a row, are left out.
    """
    folder = pathlib.Path(folder)
    path = _list_file(folder, _ATTRIBUTES)
    names, rows = _read_table(path)
    if attribute not in names:
        raise UserError(f"--attribute must be one of CelebA's, and {attribute!r} is none of them: "
                        f"{', '.join(names)}.")
    column = names.index(attribute)
    place = next((folder / place for place in _FACES if any((folder / place).glob("*.jpg"))), None)
    if place is None:
        raise UserError(f"The pictures of {path.name} must be in {folder / 'img_align_celeba'}, and are not. "
                        "Unpack img_align_celeba.zip there.")
    listed, used = _list_file(folder, _PARTITION), {0: "train"}
    partition = {name: values[0] for name, values in _read_table(listed)[1].items()} if listed else {}
    if listed:
        used[2 if 2 in partition.values() else 1] = "test"
    files = [entry for entry in splits.entries(place) if entry.is_file() and not entry.name.startswith("list_")]
    pictures, left_out = splits.of_kinds(files, media.PICTURES)
    pictures = {picture.name: picture for picture in pictures}
    found, besides = {"trainA": [], "trainB": []}, []
    for name, values in rows.items():
        if listed and name not in partition:
            raise UserError(f"{listed} must list every picture of {path.name}, and lacks {name}. Get it again.")
        split = used.get(partition.get(name, 0))
        if name in pictures and split is None:
            besides.append(name)
        elif name in pictures:
            found.setdefault(f"{split}{'A' if values[column] == 1 else 'B'}", []).append(pictures[name])
    left_out |= {f"rows of {path.name} without their picture": [name for name in rows if name not in pictures],
                 f"pictures without a row in {path.name}": [name for name in pictures if name not in rows],
                 "pictures for validation, as there are others for testing": besides}
    for side, having in (("A", "with"), ("B", "without")):
        if not found[f"train{side}"]:
            raise UserError(f"Both domains need pictures, and {path} lists none {having} {attribute} for "
                            f"training that is in {place}.")
        found |= _held_out(side, found, place, seed)
    labels = ["male", "female"] if attribute == "Male" else [attribute, f"no {attribute}"]
    return Source(labels, _ordered(found), _load_path, f"CelebA by {attribute}", left_out)


def from_tfds(name, *, data_dir=None):
    """The Source of cycle_gan/<name> in tensorflow-datasets, downloaded if it is not there and can be.

    A UserError says within seconds what to do where it cannot; tensorflow-datasets itself would wait for minutes.
    """
    name = name.removeprefix("cycle_gan/")
    if name not in TFDS:
        raise UserError(f"Without a folder, only {', '.join(TFDS)} (of tensorflow-datasets) and demo can be had; "
                        f"{name!r} came. For pictures of your own, give --source, or --source_a and --source_b.")
    advice = (f"Download {_HOST}{name}.zip, unpack it here, and run python -m cyclegan.preprocess --dataset "
              f"{name} --source {name}")
    root = pathlib.Path(data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
    prepared = any((root / "cycle_gan" / name).glob("*/dataset_info.json"))
    if not prepared and not reachable(_HOST):
        raise UserError(f"{name} is not in {root}, and {_HOST} cannot be reached. {advice}")
    import tensorflow_datasets as tfds
    try:
        builder = tfds.builder(f"cycle_gan/{name}", data_dir=str(root))
        if not prepared:
            builder.download_and_prepare()
    except Exception as error:  # whatever the network, the mirror or the disk did
        words = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{name} could not be had from tensorflow-datasets ({words}). {advice}") from error
    found = {split: _TfdsSplit(builder, split, tfds.decode.SkipDecoding()) for split in SPLITS}
    return Source(TFDS[name], found, lambda item: item, f"tensorflow-datasets cycle_gan/{name}")


def from_demo(seed=0, counts=None):
    """The Source of the demo's animals; `counts` maps a split to its number of pictures."""
    items, first = {}, {"A": 0, "B": 0}
    for split, count in (counts or demo.SPLITS).items():
        side = split[-1]
        items[split] = [("AB".index(side), index) for index in range(first[side], first[side] + count)]
        first[side] += count

    def load(item):
        image = demo.draw(seed, *item)
        return tf.io.encode_png(image).numpy(), f"{'AB'[item[0]]}{item[1]:06d}.png"

    return Source(demo.LABELS, items, load, f"made up, seed {seed}")


def names_of(name):
    """[name of A, name of B] as the name of a data set tells them: horse2zebra; ["A", "B"] where it does not."""
    found = re.fullmatch(r"([^\d_]+)2([^\d_]+)(_.*)?", name)
    return TFDS.get(name) or ([found[1], found[2]] if found and found[1] != found[2] else ["A", "B"])


def _load_path(path):
    return path, path.name


def _add_parts(place, parts, left_out):
    """Adds the folders of splits in a place, and what is for training without one, to {split: files and folders}.

    A folder in it may have splits of its own: tabby/train, tabby/test.
    """
    given, others = splits.folders(place)
    for split, inner in given.items():
        parts.setdefault(split, []).append(inner)
    if "train" in given:
        left_out[_BESIDE] += others
        return
    for other in others:
        if not given and other.is_dir() and splits.folders(other)[0]:
            _add_parts(other, parts, left_out)
        else:
            parts["train"].append(other)


def _side(side, parts, root, seed, left_out):
    """{"trainA": paths, "testA": paths} of a side's files and folders in `root`, {"train": list, "val", "test"}.

    Adds to {reason: paths} what is left out. Without test or val a tenth of train is for testing. Raises UserError.
    """
    found = {}
    for split, places in parts.items():
        files = [file for place in places for file in (splits.walk(place) if place.is_dir() else [place])]
        found[f"{split}{side}"], others = splits.of_kinds(files, media.PICTURES)
        for reason, paths in others.items():
            left_out[reason] += paths
        if not found[f"{split}{side}"]:
            raise UserError(" ".join([
                f"{places[0] if len(places) == 1 else root} must hold pictures "
                f"({', '.join(sorted(media.PICTURES))}){' for training' * (split == 'train')}, and holds none.",
                *building.left_out_lines(building.summarize(others))]))
    if f"test{side}" in found:
        left_out["pictures for validation, as there are others for testing"] += found.pop(f"val{side}", [])
    elif f"val{side}" in found:
        found[f"test{side}"] = found.pop(f"val{side}")
    return _held_out(side, found, root, seed)


def _held_out(side, found, root, seed):
    """{"trainA": paths, "testA": paths} of a side; about a tenth of train is test, by a hash, where there is none."""
    train, test = found[f"train{side}"], found.get(f"test{side}")
    if test is None:
        parts = splits.deal(train, {"test": 1 / HELD_OUT}, seed=seed,
                            key=lambda path: path.relative_to(root).as_posix())
        train, test = parts["train"], parts.get("test")
    return {f"train{side}": train, **({f"test{side}": test} if test else {})}


def _ordered(found):
    return {split: found[split] for split in SPLITS if split in found}


def _list_file(folder, name):
    """CelebA's list of that name in a folder, wherever it is usually kept; None without."""
    places = [folder / place / f"{name}{suffix}" for place in (".", "Anno", "Eval") for suffix in (".txt", ".csv")]
    return next((path for path in places if path.is_file()), None)


def _read_table(path):
    """(column names, {picture: ints}) of a list of CelebA: .txt, with the count in the first line or not, or .csv.

    Raises UserError where it is cut or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").replace(",", " ").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} must be a text file of CelebA, and cannot be read ({error}). Get it again."
                        ) from None
    rows = [line.split() for line in lines if line.strip()]
    count = int(rows.pop(0)[0]) if rows and len(rows[0]) == 1 and rows[0][0].isdigit() else None
    names = [] if not rows or media.PICTURES & {pathlib.Path(rows[0][0]).suffix.lower()} else rows.pop(0)
    if names and names[0] == "image_id":
        names = names[1:]
    width = len(names) or 1
    table = {}
    for row in rows:
        try:
            table[row[0]] = [int(value) for value in row[1:]]
        except ValueError:
            table[row[0]] = []
        if len(table[row[0]]) != width or pathlib.PurePath(row[0]).name != row[0]:
            raise UserError(f"{path} must have a picture and {width} whole numbers in each line, and one is "
                            f"{' '.join(row)[:60]!r}. Get it again.")
    if count not in (None, len(table)) or not table:
        raise UserError(f"{path} must list {count or 'some'} pictures, and lists {len(table)}: it is cut. Get it "
                        "again.")
    return names, table


class _TfdsSplit:
    """The examples (encoded bytes, name) of one split."""

    def __init__(self, builder, split, skip_decoding):
        self._split, self._num = split, builder.info.splits[split].num_examples
        self._dataset = functools.partial(builder.as_dataset, split=split, decoders={"image": skip_decoding})

    def __len__(self):
        return self._num

    def __iter__(self):
        for index, example in enumerate(self._dataset().as_numpy_iterator()):
            yield example["image"], f"{self._split}/{index:06d}"
