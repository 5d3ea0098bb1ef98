"""From small pictures to records, and from records to batches for the network.

    python -m autoencoders.preprocess --dataset mnist --source FOLDER_OF_IDX     builds tfrecords/mnist
    python -m autoencoders.preprocess --dataset fashion_mnist                    downloads it
    python -m autoencoders.preprocess --dataset mine --source FOLDER_OF_PICTURES --image_size 28x28

Articles: `x_train.astype('float32') / 255`, which the dense autoencoder's listing forgot. records -> parse_batch
-> the random numbers of the batch -> batches.

B batch, H, W, C picture, D latent_dim.
"""

import array
import pathlib
import re
import shlex
import sys

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from autoencoders import sources
from common import building, cli, drawing, records, splits
from common.errors import UserError

KIND = "small pictures"
_EPSILON, _NOISE = 1, 2  # what random numbers are for


def encode_example(image, label=-1, filename=""):
    """A serialized tf.train.Example of one picture uint8 [H, W, C]; label: its id, -1 where there is none."""
    height, width, channels = image.shape

    def ints(value):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[value]))

    def text(value):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=[value]))

    return tf.train.Example(features=tf.train.Features(feature={
        "image/raw": text(image.tobytes()), "image/height": ints(height), "image/width": ints(width),
        "image/channels": ints(channels), "image/class/label": ints(int(label)),
        "image/filename": text(filename.encode())})).SerializeToString(deterministic=True)


def parse(record):
    """One record as {"image": uint8 [H, W, C], "label": int32, "filename": string}."""
    kinds = {key: tf.int64 for key in ("image/height", "image/width", "image/channels", "image/class/label")}
    kinds |= {key: tf.string for key in ("image/raw", "image/filename")}
    features = {key: tf.io.FixedLenFeature([], kind) for key, kind in kinds.items()}
    found = tf.io.parse_single_example(record, features)
    shape = tf.stack([found[f"image/{axis}"] for axis in ("height", "width", "channels")])
    return {"image": tf.reshape(tf.io.decode_raw(found["image/raw"], tf.uint8), shape),
            "label": tf.cast(found["image/class/label"], tf.int32), "filename": found["image/filename"]}


def parse_batch(batch, image_shape):
    """(images float32 [B, H, W, C] in 0..1, labels int32 [B]) of serialized records [B]."""
    found = tf.io.parse_example(batch, {"image/raw": tf.io.FixedLenFeature([], tf.string),
                                        "image/class/label": tf.io.FixedLenFeature([], tf.int64)})
    pixels = tf.io.decode_raw(found["image/raw"], tf.uint8)
    images = tf.cast(tf.reshape(pixels, [-1, *image_shape]), tf.float32) / 255
    return images, tf.cast(found["image/class/label"], tf.int32)


def normals(seed, purpose, position, global_batch_size, shape):
    """Normal random numbers [B, *shape] for the examples at `position` [B], all of one global batch.

    They follow from the seed and the position alone: those of an example are the same on whichever replica it
    lands, and the same again when training resumes.
    """
    key = tf.random.experimental.stateless_fold_in(tf.cast([seed, purpose], tf.int64),
                                                   position[0] // global_batch_size)
    drawn = tf.random.stateless_normal([global_batch_size, *shape], key)
    return tf.gather(drawn, position % global_batch_size)


def add_noise(images, standard_normals, noise):
    """Pictures with normal noise of standard deviation `noise`, cut to 0..1."""
    return tf.clip_by_value(images + noise * standard_normals, 0.0, 1.0)


def _randomized(images, position, *, latent_dim, noise, seed, global_batch_size):
    """{"images", "inputs": noisy if noise is above 0, "epsilon" [B, D] if latent_dim is above 0}."""
    batch = {"images": images, "inputs": images}
    if noise:
        drawn = normals(seed, _NOISE, position, global_batch_size, images.shape[1:])
        batch["inputs"] = add_noise(images, drawn, noise)
    if latent_dim:
        batch["epsilon"] = normals(seed, _EPSILON, position, global_batch_size, [latent_dim])
    return batch


def untuned(dataset):
    """The dataset without tf.data's thread that tunes parallelism, which batches this small have no use for."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def training_dataset(folder, *, image_shape, batch_size, seed, latent_dim=0, noise=0.0, start_step=0,
                     global_batch_size=None, limit=0, num_workers=1, worker=0):
    """Endless batches of {"images": float32 [B, H, W, C] in 0..1, "inputs": what the network gets, "epsilon"}.

    Step k takes the examples k * global_batch_size onwards of the endless stream of epochs, so that training can
    start at any step; order and random numbers depend on (seed, position) alone. batch_size is a replica's.
    latent_dim: numbers of the code that is sampled, 0 for a plain autoencoder. noise: standard deviation of what
    is added to the inputs.
    """
    global_batch_size = global_batch_size or batch_size
    per_epoch = records.count(folder, "train", limit=limit) // num_workers * num_workers
    start = divmod(start_step * global_batch_size, max(per_epoch, 1))
    stream = records.dataset(folder, "train", seed=seed, limit=limit, start=start, num_shards=num_workers,
                             shard_index=worker)

    def prepare(batch):
        images, _ = parse_batch(batch["record"], image_shape)
        images = tf.ensure_shape(images, [batch_size, *image_shape])
        position = batch["epoch"] * per_epoch + batch["index"]
        return _randomized(images, position, latent_dim=latent_dim, noise=noise, seed=seed,
                           global_batch_size=global_batch_size)

    dataset = stream.batch(batch_size, drop_remainder=True).map(prepare, num_parallel_calls=2)
    return untuned(dataset.prefetch(8))


def evaluation_dataset(folder, split, *, image_shape, batch_size, latent_dim=0, noise=0.0, seed=0,
                       global_batch_size=None, limit=0):
    """Batches for evaluation, each example once and in the order of the records, with "index" and "label" [B].

    The last global batch is filled up with examples of index -1. The rest as in `training_dataset`.
    """
    global_batch_size = global_batch_size or batch_size
    dataset = records.dataset(folder, split, epochs=1, limit=limit)
    dataset = dataset.map(lambda item: {"record": item["record"], "index": item["index"],
                                        "position": item["index"]})
    count = records.count(folder, split, limit=limit)
    missing = -count % global_batch_size

    def fill(item, number):
        return {**item, "index": tf.constant(-1, tf.int64), "position": count + number}

    filler = tf.data.Dataset.zip(dataset.take(1).repeat(missing), tf.data.Dataset.range(missing)).map(fill)

    def prepare(batch):
        images, label = parse_batch(batch["record"], image_shape)
        images = tf.ensure_shape(images, [batch_size, *image_shape])
        found = _randomized(images, batch["position"], latent_dim=latent_dim, noise=noise, seed=seed,
                            global_batch_size=global_batch_size)
        return {**found, "index": batch["index"], "label": label}

    dataset = dataset.concatenate(filler).batch(batch_size, drop_remainder=True)
    return untuned(dataset.map(prepare, num_parallel_calls=2).prefetch(4))


def read_split(folder, split, limit=0):
    """(uint8 [N, H, W, C], labels int32 [N]) of a whole split, or of its first `limit` examples."""
    shape = image_shape(folder)
    stream = records.dataset(folder, split, epochs=1, limit=limit).map(lambda item: item["record"]).batch(1024)
    found = [parse_batch(batch, shape) for batch in untuned(stream)]
    pictures = np.concatenate([np.rint(images.numpy() * 255).astype(np.uint8) for images, _ in found])
    return pictures, np.concatenate([labels.numpy() for _, labels in found])


def image_shape(folder):
    """(H, W, C) of the pictures of a record set; a UserError where it is of another kind."""
    return tuple(records.require_kind(folder, KIND)["image_shape"])


def ensure_records(name):
    """The folder of the record set `name` (or a path), built on the spot if its data can be had at once."""
    try:
        return records.resolve(name, kind=KIND, command=command(name))
    except UserError as missing:
        if name == records.DEMO:
            return build(name)
        if name not in sources.LABELS:
            raise
        try:
            return build(name)
        except UserError as error:
            raise UserError(f"{missing} (not done on the spot: {error})") from None


def command(name):
    """The command line that builds the record set `name`."""
    name = records.name_of(name, KIND)
    source = "" if name == records.DEMO else " --source FOLDER"
    return f"python -m autoencoders.preprocess --dataset {shlex.quote(name)}{source}"


def build(name, source=None, folder=None, *, shards=1, image_size=None, channels=None, skip_bad=False, seed=0):
    """Writes the records of a data set, says what they hold and what was skipped, and returns their folder.

    source: folder of IDX files or of pictures; None draws the demo's digits or downloads the set. image_size (H,
    W) and channels as in `sources.from_folder`. Raises UserError.
    """
    folder = pathlib.Path(folder or records.default_folder(name, KIND))
    found = sources.find(name, source, image_size=image_size, channels=channels, skip_bad=skip_bad, seed=seed)
    keys = {split: array.array("d") for split in found.splits}  # a number for each picture, the same for its copies

    def serialized(split, pictures):
        for picture in pictures:
            keys[split].append(splits.fraction(picture[0].tobytes()))
            yield encode_example(*picture)

    with records.RecordWriter(folder, kind=KIND, labels=found.labels, source=found.origin,
                              builder="autoencoders.preprocess") as writer:
        writer.manifest["image_shape"] = list(found.image_shape)
        for split, (count, pictures) in found.splits.items():
            examples = serialized(split, pictures)
            shown = tqdm(examples, total=count, desc=f"{folder.name} {split}", unit="picture", file=sys.stderr,
                         disable=not sys.stderr.isatty())
            writer.write_split(split, shown, total=count, num_shards=shards)
        left_out, shared = building.summarize(found.left_out), splits.shared(keys)
        writer.manifest.update(skipped=found.skipped, left_out=left_out, repaired=found.repaired, shared=shared,
                               notes=found.notes)
        writer.publish()
    height, width, channels = found.image_shape
    for split, (count, _) in found.splits.items():
        print(f"{folder}: {split} {count} pictures of {width} x {height}, {channels} "
              f"channel{'s' * (channels > 1)}")
    lines = [f"labels: {', '.join(found.labels[:20]) or 'none'}{', ...' if len(found.labels) > 20 else ''}",
             *building.left_out_lines(left_out),
             *(f"repaired: {what}: {times}" for what, times in found.repaired.items()),
             *building.skipped_lines(found.skipped), *(f"note: {note}" for note in found.notes),
             *splits.shared_lines(shared, "pictures")]
    print("\n".join(lines))
    return folder


def visualize(folder, split, path, *, noise=0.0, count=100):
    """Writes a PNG of the first `count` pictures of a split, with noise if asked for; returns how many."""
    images, _ = read_split(folder, split, limit=count)
    images = images.astype(np.float32) / 255
    images = add_noise(images, np.random.default_rng(0).normal(size=images.shape), noise).numpy()
    pictures = [np.broadcast_to(np.rint(image * 255).astype(np.uint8), (*image.shape[:2], 3)) for image in images]
    drawing.write_png(path, drawing.grid(pictures, columns=10, gap=2))
    return len(pictures)


def parse_size(text):
    """(H, W) of "28" or "WIDTHxHEIGHT"; None of None. Raises UserError."""
    if text is None:
        return None
    found = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    if not found:
        raise UserError(f"--image_size must be a side, 28, or WIDTHxHEIGHT, 32x24; {text!r} came.")
    return int(found[2] or found[1]), int(found[1])


def define_flags():
    flags = cli.flags
    flags.DEFINE_string("dataset", None, "mnist, fashion_mnist, demo, a set of small pictures of "
                        "tensorflow-datasets, or a name for your own folder.")
    flags.DEFINE_string("source", None, "Folder of IDX files, or of pictures in folders named by their labels; "
                        "default: download.")
    flags.DEFINE_string("out", None, "Folder of the records; default tfrecords/<dataset>.")
    flags.DEFINE_integer("shards", 1, "Files per split.", lower_bound=1)
    flags.DEFINE_string("image_size", None, "Side, or WIDTHxHEIGHT, to which pictures of a folder are resized; "
                        "default: the one that they have.")
    flags.DEFINE_integer("channels", None, "1 gray, 3 colours, of pictures of a folder; default: gray if all are.")
    flags.DEFINE_bool("skip_bad", False, "Leave out, and list, pictures that cannot be used.")
    flags.DEFINE_bool("visualize", False, "Draw the first training pictures.")
    flags.DEFINE_float("noise", 0.0, "Standard deviation of the noise that --visualize adds.", lower_bound=0.0)
    flags.DEFINE_integer("seed", 0, "Seed of the split and of made-up digits.", lower_bound=0)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if not flags.dataset:
        raise UserError("Give --dataset NAME: mnist, fashion_mnist, demo, or a name for a folder of your own, "
                        "which --source then names.")
    if flags.channels not in (None, 1, 3):
        raise UserError(f"--channels must be 1 or 3; {flags.channels} came.")
    if not flags.source and (flags.image_size or flags.channels or flags.skip_bad):
        raise UserError("--image_size, --channels and --skip_bad are for a folder of pictures. Add --source.")
    if flags.noise and not flags.visualize:
        raise UserError("--noise is what --visualize adds; records have none. Add --visualize, or give it to train.")
    folder = pathlib.Path(flags.out or records.default_folder(flags.dataset, KIND))
    if flags.source or not (flags.visualize and (folder / records.MANIFEST).is_file()):
        build(flags.dataset, flags.source, folder, shards=flags.shards, image_size=parse_size(flags.image_size),
              channels=flags.channels, skip_bad=flags.skip_bad, seed=flags.seed)
    if flags.visualize:
        path = folder / "pictures.png"
        count = visualize(folder, "train", path, noise=flags.noise)
        print(f"{path}: the first {count} training pictures")


if __name__ == "__main__":
    cli.run(main, define_flags)
