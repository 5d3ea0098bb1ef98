"""Persons per second of the hourglass's input pipeline: python -m benchmarks.pose_pipeline [--tfrecords PATH]

Decoding alone (records -> tf.io.decode_image), training batches (cropped, turned, coloured, with their heatmaps)
and evaluation batches, all with tf.data's own choice of parallelism, and the last two as a share of the first.
They take turns in one process. Without --tfrecords, made-up figures are drawn in pictures of 480 x 480 in a
temporary folder.
"""

import pathlib
import tempfile

import numpy as np

from benchmarks.pipeline import decoded, measure
from common import cli, records
from hourglass import demo, poses, preprocess


def define_flags():
    flags = cli.flags
    flags.DEFINE_string("tfrecords", None, "Record set: a name or a path; None makes one up.")
    flags.DEFINE_integer("pictures", 200, "How many are made up.", lower_bound=16)
    flags.DEFINE_integer("image_size", 256, "Side of the network input.")
    flags.DEFINE_integer("batch_size", 16, "Persons per batch.")
    flags.DEFINE_integer("rounds", 5, "Turns of each candidate.")
    flags.DEFINE_float("seconds", 2.0, "Length of a turn.")


def run(folder, flags):
    size, batch_size = flags.image_size, flags.batch_size
    datasets = {
        "decoding alone": decoded(folder, batch_size),
        "training": preprocess.training_dataset(folder, image_size=size, batch_size=batch_size, seed=0),
        "evaluation": preprocess.evaluation_dataset(folder, "train", image_size=size, batch_size=batch_size).repeat()}
    rates = measure(datasets, batch_size, flags.rounds, flags.seconds)
    base = np.array(rates["decoding alone"])
    for name, found in rates.items():
        print(f"{name:<16}{np.median(found):>8.0f} persons/s{np.median(found / base):>7.2f} of decoding alone")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if flags.tfrecords:
        run(records.resolve(flags.tfrecords, kind=preprocess.KIND), flags)
        return
    with tempfile.TemporaryDirectory() as root:
        made_up = demo.source(size=480, splits={"train": flags.pictures})
        run(poses.build_records(made_up, pathlib.Path(root), progress=False).folder, flags)


if __name__ == "__main__":
    cli.run(main, define_flags)
