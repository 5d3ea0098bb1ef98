"""From the pictures of two domains to records, and from records to batches for the networks.

    python -m cyclegan.preprocess --dataset horse2zebra                          downloads it
    python -m cyclegan.preprocess --dataset horse2zebra --source FOLDER          trainA, trainB, testA, testB
    python -m cyclegan.preprocess --dataset celeba --source FOLDER               men and women
    python -m cyclegan.preprocess --dataset mine --source_a CATS --source_b DOGS --visualize

Each side has its own records and is shuffled on its own: which picture of B comes with one of A is another in
every epoch, and the shorter side starts anew while the longer one goes on (the original repository zipped both
sides and shuffled the pairs). records -> parse -> augment, or resize alone -> batches.

B batch, H, W picture, S side of what the networks get. Their range is -1..1.
"""

import array
import pathlib
import shlex
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from common import building, cli, drawing, images, records, splits
from common.errors import UserError
from cyclegan import sources

KIND = "unpaired pictures"
RESIZED = 286 / 256  # sides before the random crop, as in the paper's code
_SIDES = "AB"


def encode_example(picture, filename):
    """A serialized tf.train.Example of an `images.Picture`."""
    def ints(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    return tf.train.Example(features=tf.train.Features(feature={
        "image/encoded": text(picture.data), "image/height": ints(picture.height),
        "image/width": ints(picture.width), "image/filename": text(filename.encode()),
    })).SerializeToString(deterministic=True)


def parse(record):
    """One record as {"image_bytes": string, "height", "width": int32, "filename": string}; works in a graph."""
    kinds = {"image/encoded": tf.string, "image/height": tf.int64, "image/width": tf.int64,
             "image/filename": tf.string}
    features = {key: tf.io.FixedLenFeature([], kind) for key, kind in kinds.items()}
    found = tf.io.parse_single_example(record, features)
    return {"image_bytes": found["image/encoded"], "height": tf.cast(found["image/height"], tf.int32),
            "width": tf.cast(found["image/width"], tf.int32), "filename": found["image/filename"]}


def decode(record):
    """The picture uint8 [H, W, 3] of one record, to the last bit what `media.read_picture` gives; works in a graph.

    TensorFlow's own choice for JPEG, the fast cosine transform, is 1.3 to 2.1 levels rms away. Older sets have PNG with
    transparency, which lies on white.
    """
    data = parse(record)["image_bytes"]
    image = tf.cond(tf.io.is_jpeg(data), lambda: tf.io.decode_jpeg(data, 3, dct_method="INTEGER_ACCURATE"),
                    lambda: images.decode(data, on_white=True))
    return tf.ensure_shape(image, [None, None, 3])


def resize(image, size):
    """uint8 [H, W, 3] as float32 of a size in 0..255, or a batch: bicubic, averaged where it shrinks.

    size: S for both sides, whatever they were, as in the paper's code, which uses Pillow's bicubic; or (height, width).
    What a network was trained on is what it must get: evaluation, predict, face swap and LiteRT resize with this too.
    (Means over areas are 1.6 to 2.4 levels rms away, for photos that are shrunk to 256 to 96 pixels.)
    """
    size = size if isinstance(size, (list, tuple)) else [size, size]
    return tf.clip_by_value(tf.image.resize(image, size, "bicubic", antialias=True), 0.0, 255.0)


def augment(image, key, size, flip=True):
    """float32 [S, S, 3] in 0..255: resized to 286 / 256 of S, a random S x S of it, mirrored half of the time.

    image uint8 [H, W, 3]; key int64 [2], from which all random numbers follow.
    """
    large = round(size * RESIZED)
    image = resize(image, large)
    draws = tf.random.stateless_uniform([3], key)
    top, left = tf.unstack(tf.cast(draws[:2] * (large - size + 1), tf.int32))
    image = tf.slice(image, [top, left, 0], [size, size, 3])
    return tf.where(draws[2] < 0.5, tf.reverse(image, [1]), image) if flip else image


def to_floats(image):
    """0..255 as float32 in -1..1, what the networks take and give."""
    return tf.cast(image, tf.float32) / 127.5 - 1.0


def to_bytes(images):
    """uint8 NumPy array of what is -1..1; what lies outside is cut."""
    return np.rint(np.clip((np.asarray(images, np.float32) + 1) * 127.5, 0, 255)).astype(np.uint8)


def steps_per_epoch(folder, batch_size, limit=0):
    """Batches that cover the longer side once; at least 1."""
    longer = max(records.count(folder, f"train{side}", limit=limit) for side in _SIDES)
    return max(1, longer // batch_size)


def training_dataset(folder, *, image_size, batch_size, seed, augmented=True, flip=True, start_step=0,
                     global_batch_size=None, limit=0, num_workers=1, worker=0):
    """Endless batches {"a": float32 [B, S, S, 3] in -1..1, "b": the same} of pictures that do not belong together.

    Step k takes the pictures k * global_batch_size onwards of each side's own endless stream of epochs, so that
    training can start at any step; order, crops and flips depend on (seed, side, epoch, index) alone. An epoch of
    a side holds each of its pictures once, so the shorter side is in a later epoch. batch_size is a replica's.
    """
    start = start_step * (global_batch_size or batch_size)

    def stream(side):
        split, number = f"train{side}", _SIDES.index(side)
        per_epoch = records.count(folder, split, limit=limit) // num_workers * num_workers
        shuffled = records.dataset(folder, split, seed=2 * seed + number, limit=limit, num_shards=num_workers,
                                   start=divmod(start, max(per_epoch, 1)), shard_index=worker)

        def prepare(item):
            image = decode(item["record"])
            if not augmented:
                return to_floats(resize(image, image_size))
            key = tf.random.experimental.stateless_fold_in(tf.constant([seed, number], tf.int64), item["epoch"])
            key = tf.random.experimental.stateless_fold_in(key, item["index"])
            return to_floats(augment(image, key, image_size, flip))

        return shuffled.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)

    dataset = tf.data.Dataset.zip({side.lower(): stream(side) for side in _SIDES})
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(folder, split, *, image_size, batch_size, global_batch_size=None, limit=0):
    """Batches {"images": float32 [B, S, S, 3] in -1..1, "index": int64 [B]} of one side, each picture once.

    split: testA, trainB, ... In the order of the records, resized to S x S; index -1 fills the last global batch
    up.
    """
    dataset = records.dataset(folder, split, epochs=1, limit=limit)

    def prepare(item):
        image = decode(item["record"])
        return {"images": to_floats(resize(image, image_size)), "index": item["index"]}

    dataset = dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE)
    filler = dataset.take(1).map(lambda example: {**example, "index": tf.constant(-1, tf.int64)})
    missing = -records.count(folder, split, limit=limit) % (global_batch_size or batch_size)
    dataset = dataset.concatenate(filler.repeat(missing))
    return dataset.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE)


def drawn_dataset(folder, split, *, image_size, count, seed=0):
    """{"images": float32 [S, S, 3] in -1..1} of at most `count` pictures, drawn from all of a split.

    The first ones of a set may be of one kind: they are in the order of their files and folders.
    """
    drawn = records.dataset(folder, split, seed=seed, epochs=1).take(count)
    return drawn.map(lambda item: {"images": to_floats(resize(decode(item["record"]), image_size))},
                     num_parallel_calls=tf.data.AUTOTUNE)


def domains(folder):
    """[name of A, name of B] of a record set; a UserError where it is of another kind."""
    return records.require_kind(folder, KIND)["labels"]


def ensure_records(name):
    """The folder of the record set `name` (or a path), built on the spot if its data can be had at once."""
    name = name.removeprefix("cycle_gan/")
    try:
        return records.resolve(name, kind=KIND, split="trainA", command=command(name))
    except UserError as missing:
        if name == records.DEMO:
            return build(name)
        if any((folder / records.MANIFEST).is_file()
               for folder in (records.default_folder(name, KIND), pathlib.Path(name))):
            raise  # it is there, and is not what was asked for
        if name not in sources.TFDS:
            raise UserError(f"{missing} Without a folder, {', '.join(sources.TFDS)} and demo can be had."
                            ) from None
        try:
            return build(name)
        except UserError as error:
            raise UserError(f"{missing} (not done on the spot: {error})") from None


def command(name):
    """The command line that builds the record set `name`."""
    name = records.name_of(name, KIND)
    source = "" if name == records.DEMO else f" --source {name if name in sources.TFDS else 'FOLDER'}"
    return f"python -m cyclegan.preprocess --dataset {shlex.quote(name)}{source}"


def build(name, source=None, folder=None, *, shards=None, num_workers=None, skip_bad=False, **choices):
    """Writes the records of a data set, says what was mended and skipped, and returns their folder.

    source, choices (source_a, source_b, attribute, labels, seed): as in `sources.find`. Raises UserError.
    """
    name = name.removeprefix("cycle_gan/")
    folder = pathlib.Path(folder or records.default_folder(name, KIND))
    found = sources.find(name, source, **choices)

    items = {split: _OfSplit(split, each) for split, each in found.splits.items()}
    keys = {split: array.array("d") for split in items}  # a number for each picture, the same for its copies

    def example(item):
        image, filename = found.load(item.item)
        # There are no boxes to go by: pictures are turned as viewers show them, and lie on white.
        picture, _ = building.read_picture(image, filename, turned=True, on_white=True)
        keys[item.split].append(splits.fraction(picture.data))
        return encode_example(picture, filename), picture.height * picture.width, dict.fromkeys(picture.repairs, 1)

    report = building.build(
        folder, items, example, kind=KIND, labels=found.labels, builder="cyclegan.preprocess", origin=found.origin,
        units=("pictures", "pixels"), manifest=lambda: {"shared": splits.shared(keys)}, left_out=found.left_out,
        shards=shards, num_workers=num_workers, on_bad="skip" if skip_bad else "error")
    for line in shared_lines(report.manifest["shared"]):
        print(line)
    return folder


def shared_lines(shared):
    """A line for each pair of splits in `splits.shared` of the four: of one domain, or of two."""
    of_one = {split: {other: count for other, count in others.items() if other[-1] == split[-1]}
              for split, others in shared.items()}
    return [*splits.shared_lines(of_one, "pictures"),
            *(f"note: {split}: {count} pictures are in {other} too, which is of the other domain."
              for split, others in shared.items() for other, count in others.items() if other[-1] != split[-1])]


class _OfSplit:
    """The items of a split, each with the split's name."""

    def __init__(self, split, items):
        self._split, self._items = split, items

    def __len__(self):
        return len(self._items)

    def __iter__(self):
        return (_Item(self._split, item) for item in self._items)


class _Item(NamedTuple):
    split: str
    item: Any

    def __str__(self):  # what the manifest says of one that was skipped
        return str(self.item[1] if isinstance(self.item, tuple) else self.item)


def visualize(folder, path, *, image_size, seed=0, columns=8):
    """Writes a PNG of the first batches as training gets them: a row of A, a row of B, and once more."""
    batches = training_dataset(folder, image_size=image_size, batch_size=columns, seed=seed).take(2)
    pictures = [picture for batch in batches for side in "ab" for picture in to_bytes(batch[side])]
    drawing.write_png(path, drawing.grid(pictures, columns=columns))


def define_flags():
    flags = cli.flags
    flags.DEFINE_string("dataset", None, f"{', '.join(sources.TFDS)}, celeba, demo, or a name for your own "
                        "folders.")
    flags.DEFINE_string("source", None, "Folder with trainA and trainB, or of CelebA; default: "
                        "tensorflow-datasets.")
    flags.DEFINE_string("source_a", None, "Folder of the pictures of A, in place of --source.")
    flags.DEFINE_string("source_b", None, "Folder of the pictures of B.")
    flags.DEFINE_string("attribute", None, "Of CelebA: A has it, B does not; default Male.")
    flags.DEFINE_list("labels", None, "Names of A and B, horse,zebra; default: as found.")
    flags.DEFINE_string("out", None, "Folder of the records; default tfrecords/<dataset>.")
    flags.DEFINE_integer("shards", None, "Files per split; default one for 1,000 pictures.", lower_bound=1)
    flags.DEFINE_integer("workers", None, "Pictures read at a time; default one per CPU.", lower_bound=1)
    flags.DEFINE_bool("skip_bad", False, "Leave out, and list, pictures that cannot be used.")
    flags.DEFINE_bool("visualize", False, "Draw batches of A and B as training gets them.")
    flags.DEFINE_integer("image_size", 256, "Side of the pictures that --visualize draws.", lower_bound=16)
    flags.DEFINE_integer("seed", 0, "Seed of the split, of made-up pictures and of drawn batches.", lower_bound=0)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if not flags.dataset:
        raise UserError("Give --dataset NAME: horse2zebra or another set of the paper, celeba, demo, or a name "
                        "for folders of your own, which --source or --source_a and --source_b then name.")
    if flags.labels and (len(flags.labels) != 2 or flags.labels[0] == flags.labels[1] or "" in flags.labels):
        raise UserError(f"--labels must be two different names, horse,zebra; {','.join(flags.labels)!r} came.")
    name = flags.dataset.removeprefix("cycle_gan/")
    folder = pathlib.Path(flags.out or records.default_folder(name, KIND))
    if flags.source or flags.source_a or not (flags.visualize and (folder / records.MANIFEST).is_file()):
        build(name, flags.source, folder, shards=flags.shards, num_workers=flags.workers, skip_bad=flags.skip_bad,
              source_a=flags.source_a, source_b=flags.source_b, attribute=flags.attribute, labels=flags.labels,
              seed=flags.seed)
    if flags.visualize:
        path, (a, b) = folder / "pictures.png", domains(folder)
        visualize(folder, path, image_size=flags.image_size, seed=flags.seed)
        print(f"{path}: rows of {a} and of {b} as training gets them")


if __name__ == "__main__":
    cli.run(main, define_flags)
