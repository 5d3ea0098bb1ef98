"""Where the pictures of the two domains come from: CycleGAN's folders, any two folders, CelebA by an attribute,
tensorflow-datasets, the demo's animals.

Each reader gives a `Source`. A and B are the two domains; nobody says which picture of B belongs to one of A.
"""

import functools
import hashlib
import os
import pathlib
import re
from typing import Any, Callable, NamedTuple

import tensorflow as tf

from common import media
from common.detection_sources import reachable
from common.errors import UserError
from cyclegan import demo

SPLITS = ("trainA", "trainB", "testA", "testB")
HELD_OUT = 10  # one in so many pictures is for testing where nothing else is said
# The sets of the paper that tensorflow-datasets has as cycle_gan/<name>, with what A and B show.
TFDS = {
    "apple2orange": ["apple", "orange"], "summer2winter_yosemite": ["summer", "winter"],
    "horse2zebra": ["horse", "zebra"], "monet2photo": ["monet", "photo"], "cezanne2photo": ["cezanne", "photo"],
    "ukiyoe2photo": ["ukiyoe", "photo"], "vangogh2photo": ["vangogh", "photo"], "maps": ["aerial photo", "map"],
    "facades": ["photo", "labels"], "iphone2dslr_flower": ["iphone", "dslr"],
}
_HOST = "https://efrosgans.eecs.berkeley.edu/cyclegan/datasets/"
_ATTRIBUTES, _PARTITION = "list_attr_celeba", "list_eval_partition"
_FACES = ("img_align_celeba/img_align_celeba", "img_align_celeba", "Img/img_align_celeba", ".")


class Source(NamedTuple):
    labels: list                       # [name of A, name of B]
    splits: dict                       # {"trainA": items, "trainB", "testA", "testB"}
    load: Callable[[Any], tuple]       # item -> (path of the picture or its encoded bytes, name for the record)
    origin: str                        # for the manifest


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
        found = from_two(source_a, source_b, name)
    elif is_celeba:
        found = from_celeba(source, attribute or "Male")
    elif source:
        found = from_folders(source, name)
    else:
        found = from_demo(seed) if name == "demo" else from_tfds(name)
    return found._replace(labels=list(labels)) if labels else found


def from_folders(folder, name=""):
    """The Source of a folder with trainA and trainB, testA and testB where there are; in itself or one below."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise UserError(f"--source must be a folder with trainA and trainB, and {folder} "
                        f"{'is a file; unpack it first' if folder.exists() else 'does not exist'}.")
    root = next((place for place in (folder, *sorted(folder.glob("*/")))
                 if (place / "trainA").is_dir() and (place / "trainB").is_dir()), None)
    if root is None:
        raise UserError(f"--source must be a folder with trainA and trainB (CycleGAN's layout) or with "
                        f"{_ATTRIBUTES}.txt (CelebA), and {folder} is neither. For two folders of your own, give "
                        "--source_a and --source_b.")
    splits = {}
    for side in "AB":
        splits[f"train{side}"] = _pictures(root / f"train{side}")
        tests = [root / f"{split}{side}" for split in ("test", "val") if (root / f"{split}{side}").is_dir()]
        if tests:
            splits[f"test{side}"] = _pictures(tests[0])
    return Source(names_of(name), _held_out(splits), _load_path, f"CycleGAN layout, {root.name}")


def from_two(folder_a, folder_b, name=""):
    """The Source of two folders of pictures, those in folders below included; a tenth is held out for testing."""
    folders = [pathlib.Path(folder) for folder in (folder_a, folder_b)]
    for flag, folder in zip(("--source_a", "--source_b"), folders):
        if not folder.is_dir():
            raise UserError(f"{flag} must be a folder of pictures, and {folder} "
                            f"{'is a file' if folder.exists() else 'does not exist'}.")
    splits = {f"train{side}": _pictures(folder) for side, folder in zip("AB", folders)}
    labels = names_of(name)
    if labels == ["A", "B"] and folders[0].resolve().name != folders[1].resolve().name:
        labels = [folder.resolve().name for folder in folders]
    return Source(labels, _held_out(splits), _load_path, f"{folders[0].name} and {folders[1].name}")


def from_celeba(folder, attribute="Male"):
    """The Source of CelebA's faces: A has the attribute, B does not (article: male, female).

    folder holds list_attr_celeba.txt (or in Anno/; or the .csv of the same name), list_eval_partition.txt if there
    is one, and img_align_celeba. Partition 0 is for training, 2 for testing (1, where nothing has 2); without the
    file a tenth is held out.
    """
    folder = pathlib.Path(folder)
    path = _list_file(folder, _ATTRIBUTES)
    names, rows = _read_table(path)
    if attribute not in names:
        raise UserError(f"--attribute must be one of CelebA's, and {attribute!r} is none of them: "
                        f"{', '.join(names)}.")
    column = names.index(attribute)
    places = [folder / place for place in _FACES if any((folder / place).glob("*.jpg"))]
    if not places:
        raise UserError(f"The pictures of {path.name} must be in {folder / 'img_align_celeba'}, and are not. "
                        "Unpack img_align_celeba.zip there.")
    partition, listed = {}, _list_file(folder, _PARTITION)
    if listed:
        partition = {name: values[0] for name, values in _read_table(listed)[1].items()}
        for_test = 2 if 2 in partition.values() else 1
    splits = {split: [] for split in ("trainA", "trainB")}
    for name, values in rows.items():
        side = "A" if values[column] == 1 else "B"
        if listed and name not in partition:
            raise UserError(f"{listed} must list every picture of {path.name}, and lacks {name}. Get it again.")
        if partition.get(name, 0) == 0:
            splits[f"train{side}"].append(places[0] / name)
        elif partition[name] == for_test:
            splits.setdefault(f"test{side}", []).append(places[0] / name)
    for side, having in (("A", "with"), ("B", "without")):
        if not splits[f"train{side}"]:
            raise UserError(f"Both domains need pictures, and {path} lists none {having} {attribute} for "
                            "training.")
    labels = ["male", "female"] if attribute == "Male" else [attribute, f"no {attribute}"]
    return Source(labels, _held_out(splits), _load_path, f"CelebA by {attribute}")


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
    splits = {split: _TfdsSplit(builder, split, tfds.decode.SkipDecoding()) for split in SPLITS}
    return Source(TFDS[name], splits, lambda item: item, f"tensorflow-datasets cycle_gan/{name}")


def from_demo(seed=0, splits=None):
    """The Source of the demo's animals; `splits` maps a split to its number of pictures."""
    items, first = {}, {"A": 0, "B": 0}
    for split, count in (splits or demo.SPLITS).items():
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


def _pictures(folder):
    """Paths of the pictures in a folder and below, sorted. Raises UserError where there are none."""
    found = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in media.PICTURES and path.is_file()
             and not path.name.startswith(".")]
    if not found:
        raise UserError(f"{folder} must hold pictures ({', '.join(sorted(media.PICTURES))}), and holds none.")
    return found


def _held_out(splits):
    """The splits in their order; a side without a test gives the tenth with the smallest md5 of their names."""
    splits = dict(splits)
    for side in "AB":
        train = splits[f"train{side}"]
        if f"test{side}" not in splits and len(train) > 1:
            ordered = sorted(train, key=lambda path: hashlib.md5(path.name.encode()).digest())
            chosen = set(ordered[:max(1, len(train) // HELD_OUT)])
            splits |= {f"train{side}": [path for path in train if path not in chosen],
                       f"test{side}": [path for path in train if path in chosen]}
    return {split: splits[split] for split in SPLITS if split in splits}


def _list_file(folder, name):
    """CelebA's list of that name in a folder, wherever it is usually kept; None without."""
    places = [folder / place / f"{name}{suffix}" for place in (".", "Anno", "Eval") for suffix in (".txt", ".csv")]
    return next((path for path in places if path.is_file()), None)


def _read_table(path):
    """(column names, {picture: ints}) of a list of CelebA: .txt, with the count in the first line or not, or .csv.

    Raises UserError where it is cut or damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").replace(",", " ").splitlines()
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
