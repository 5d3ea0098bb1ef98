"""Pictures per second of the input pipeline: python -m benchmarks.pipeline [--tfrecords PATH]

Decoding alone (records -> tf.io.decode_image), training batches (augmented, with the targets of the loss)
and evaluation batches, all with tf.data's own choice of parallelism, and the last two as a share of the first.
They take turns in one process, so that what else the machine does falls on all of them. Without --tfrecords,
made-up pictures of 500 x 375 are built in a temporary folder first, which gives the builder's figure.
"""

import pathlib
import tempfile
import time

import numpy as np
import tensorflow as tf

from common import cli, detection, detection_demo, records
from yolov3 import preprocess
from yolov3.model import ANCHORS, STRIDES

WIDTH, HEIGHT = 500, 375


def build(root, count):
    """(folder, pictures per second) of `count` made-up pictures; drawing them is not part of the time."""
    def load(i):
        image, boxes_xyxy, labels = detection_demo.draw(0, i, WIDTH)
        data = tf.io.encode_jpeg(image[:HEIGHT], quality=92).numpy()
        return detection.Annotation(data, f"{i}.jpg", boxes_xyxy, labels)

    pictures = [load(i) for i in range(count)]
    size = sum(len(picture.image) for picture in pictures) / count
    print(f"{count} made-up pictures of {WIDTH} x {HEIGHT}, {size / 1000:.0f} kB on average", flush=True)
    source = detection.Source("made_up", detection_demo.LABELS, {"train": pictures}, lambda picture: picture)
    start = time.perf_counter()
    folder = detection.build_records(source, root, progress=False).folder
    return folder, count / (time.perf_counter() - start)


def decoded(folder, batch_size):
    """Endless batches of the number of values in each decoded picture."""
    def decode(item):
        features = tf.io.parse_single_example(
            item["record"], {"image/encoded": tf.io.FixedLenFeature([], tf.string)})
        return tf.size(tf.io.decode_image(features["image/encoded"], channels=3, expand_animations=False))

    dataset = records.dataset(folder, "train", seed=0).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    return dataset.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def rate(dataset, batch_size, seconds):
    """Pictures per second while batches are taken for `seconds`, from the third batch on."""
    batches = iter(dataset)
    for _ in range(2):
        next(batches)
    start, taken = time.perf_counter(), 0
    while time.perf_counter() < start + seconds:
        next(batches)
        taken += batch_size
    return taken / (time.perf_counter() - start)


def measure(datasets, batch_size, rounds, seconds):
    """{name: pictures per second of each round}, after one that does not count."""
    rates = {name: [] for name in datasets}
    for turn in range(rounds + 1):
        for name, dataset in datasets.items():
            found = rate(dataset, batch_size, seconds if turn else 1.0)
            if turn:
                rates[name].append(found)
    return rates


def define_flags():
    flags = cli.flags
    flags.DEFINE_string("tfrecords", None, "Record set: a name or a path; None makes one up.")
    flags.DEFINE_integer("pictures", 300, "How many are made up.", lower_bound=16)
    flags.DEFINE_integer("image_size", 416, "Side of the network input.")
    flags.DEFINE_integer("num_classes", 20, "Classes in the targets; at least those of the records.")
    flags.DEFINE_integer("batch_size", 16, "Pictures per batch.")
    flags.DEFINE_integer("rounds", 5, "Turns of each candidate.")
    flags.DEFINE_float("seconds", 2.0, "Length of a turn.")


def run(folder, flags):
    size, batch_size = flags.image_size, flags.batch_size
    num_classes = max(flags.num_classes, len(records.read_manifest(folder)["labels"]))
    evaluation = preprocess.evaluation_dataset(folder, "train", image_size=size, batch_size=batch_size)
    datasets = {
        "decoding alone": decoded(folder, batch_size),
        "training": preprocess.training_dataset(
            folder, anchors=ANCHORS, strides=STRIDES["yolov3"], image_size=size, num_classes=num_classes,
            batch_size=batch_size, seed=0),
        "evaluation": evaluation.repeat()}
    rates = measure(datasets, batch_size, flags.rounds, flags.seconds)
    base = np.array(rates["decoding alone"])
    for name, found in rates.items():
        print(f"{name:<16}{np.median(found):>8.0f} pictures/s{np.median(found / base):>7.2f} of decoding alone")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if flags.tfrecords:
        run(records.resolve(flags.tfrecords, kind=preprocess.KIND), flags)
        return
    with tempfile.TemporaryDirectory() as root:
        folder, speed = build(pathlib.Path(root), flags.pictures)
        print(f"{'building':<16}{speed:>8.0f} pictures/s", flush=True)
        run(folder, flags)


if __name__ == "__main__":
    cli.run(main, define_flags)
