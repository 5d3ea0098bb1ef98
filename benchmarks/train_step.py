"""Times of one training step of YOLOv3 (416, batch 4): python -m benchmarks.train_step

Our step in float32 and bfloat16, the same with Keras's own batch normalisation, and the same network, loss and AdamW
in PyTorch (channels last, autocast, fused optimizer). First both networks are given the same weights and must have the
same outputs and loss. The candidates take turns in one process, so that what else the machine does falls on all of
them. --memory starts each in a process of its own and prints its peak memory instead. Needs the extra `bench`.
"""

import resource
import subprocess
import sys

import keras
import numpy as np
import tensorflow as tf

from benchmarks.inference import is_installed, measure, random_model, table
from common import cli, layers, runtime
from yolov3 import model as yolov3_model
from yolov3 import preprocess, train
from yolov3.loss import article_loss
from yolov3.model import ANCHORS, STRIDES

NUM_CLASSES = 80
STRIDE_LIST = STRIDES["yolov3"]


def batch(image_size, batch_size):
    """(images [B, S, S, 3], targets) with eight random objects in each picture."""
    rng = np.random.default_rng(0)
    images = rng.uniform(size=[batch_size, image_size, image_size, 3]).astype(np.float32)
    centers, sizes = rng.uniform(0.2, 0.8, [batch_size, 8, 2]), rng.uniform(0.02, 0.35, [batch_size, 8, 2])
    truth = np.concatenate([centers - sizes / 2, centers + sizes / 2], axis=-1).astype(np.float32)
    labels = rng.integers(NUM_CLASSES, size=[batch_size, 8])
    grids = [preprocess.encode_targets(boxes, ids, ANCHORS, STRIDE_LIST, image_size, NUM_CLASSES)
             for boxes, ids in zip(truth, labels)]
    return images, {"boxes_xyxy": truth, "is_crowd": np.zeros(labels.shape, bool),
                    "grids": tuple(tf.stack(scale) for scale in zip(*grids))}


def our_step(image_size, batch_size, *, precision, batch_norm):
    """Returns a function that runs train.py's own step once."""
    strategy = tf.distribute.get_strategy()
    with runtime.dtype_policy(precision):
        yolov3_model.BatchNormalization = batch_norm
        try:
            net = yolov3_model.yolov3(NUM_CLASSES)
        finally:
            yolov3_model.BatchNormalization = layers.BatchNormalization
    config = {**train.DEFAULTS, "precision": precision, "learning_rate": 1e-5, "weight_decay": 5e-4}
    optimizer = train.make_optimizer(config, total_steps=1000)
    optimizer.build(net.trainable_variables)
    step = train.make_train_step(net, optimizer, strategy, loss=article_loss, anchors=ANCHORS, image_size=image_size,
                                 global_batch_size=batch_size)
    batches = iter(tf.data.Dataset.from_tensors(batch(image_size, batch_size)).repeat().prefetch(2))
    return lambda: {name: float(part) for name, part in step(batches).items()}


def torch_step(image_size, batch_size, *, bfloat16):
    """Returns a function that trains PyTorch's network for one step with the article's loss."""
    import torch

    from benchmarks import torch_yolov3

    net = torch_yolov3.build(NUM_CLASSES).train()
    optimizer = torch.optim.AdamW(net.parameters(), 1e-5, weight_decay=5e-4, fused=True)
    images, targets = batch(image_size, batch_size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    truth = torch.from_numpy(targets["boxes_xyxy"])
    grids = [torch.from_numpy(grid.numpy()) for grid in targets["grids"]]
    anchors = torch.from_numpy(ANCHORS)

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = net(x)
        loss = torch_yolov3.article_loss(outputs, grids, truth, anchors, image_size) / batch_size
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def check_equal(image_size=64, batch_size=2):
    """Both networks put out the same from the same weights, to 1e-4 of the largest output, and have the same loss.

    Their epsilons differ, 1e-6 as in OpenCV and PyTorch's own 1e-5.
    """
    import torch

    from benchmarks import torch_yolov3

    config = {"model": "yolov3", "width": 1.0, "labels": range(NUM_CLASSES), "anchors": ANCHORS}
    ours, net = random_model(config, "float32"), torch_yolov3.build(NUM_CLASSES).eval()
    torch_yolov3.copy_weights(net, ours)
    images, targets = batch(image_size, batch_size)
    found = ours(images, training=False)
    loss = sum(tf.reduce_sum(part) for part in article_loss(targets, found, ANCHORS, (image_size,) * 2).values())
    with torch.inference_mode():
        theirs = net(torch.from_numpy(images).permute(0, 3, 1, 2))
        truth, *grids = (torch.from_numpy(np.array(value)) for value in (targets["boxes_xyxy"], *targets["grids"]))
        their_loss = torch_yolov3.article_loss(theirs, grids, truth, torch.from_numpy(ANCHORS), image_size).item()
    for mine, other in zip(found, theirs, strict=True):
        other = other.permute(0, 2, 3, 1).reshape(tuple(mine.shape)).numpy()
        difference = np.abs(mine - other).max() / np.abs(mine).max()
        assert difference < 1e-4, difference
    assert abs(loss - their_loss) < 1e-4 * their_loss, (float(loss), their_loss)


CANDIDATES = {
    "ours, bfloat16": lambda **size: our_step(
        **size, precision="mixed_bfloat16", batch_norm=layers.BatchNormalization),
    "ours, float32": lambda **size: our_step(**size, precision="float32", batch_norm=layers.BatchNormalization),
    "Keras batch norm, bfloat16": lambda **size: our_step(
        **size, precision="mixed_bfloat16", batch_norm=keras.layers.BatchNormalization),
    "Keras batch norm, float32": lambda **size: our_step(
        **size, precision="float32", batch_norm=keras.layers.BatchNormalization),
    "PyTorch, bfloat16": lambda **size: torch_step(**size, bfloat16=True),
    "PyTorch, float32": lambda **size: torch_step(**size, bfloat16=False),
}


def define_flags(candidates=tuple(CANDIDATES), **sizes):
    """--rounds, --only and --memory, and an integer flag for each of `sizes`, which every candidate is called with."""
    flags = cli.flags
    for name, default in (sizes or {"image_size": 416, "batch_size": 4}).items():
        flags.DEFINE_integer(name, default, "Side of the network input." if name == "image_size" else
                             "Pictures per step.")
    flags.DEFINE_integer("rounds", 3, "Steps of each candidate.")
    flags.DEFINE_enum("only", None, list(candidates), "Run this candidate alone and print its peak memory.")
    flags.DEFINE_bool("memory", False, "Print the peak memory of each candidate, in a process of its own.")


def compare(candidates, base, module, **sizes):
    """Prints times, or with --memory peak memory, of {name: function of `sizes` that makes a step}."""
    flags = cli.FLAGS
    if flags.only:
        run = candidates[flags.only](**sizes)
        for _ in range(3):
            run()
        print(f"{flags.only:28} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:6.2f} GiB at the peak")
        return
    names = [name for name in candidates if is_installed("torch") or "PyTorch" not in name]
    if flags.memory:
        for name in names:
            options = [f"--{key}={value}" for key, value in sizes.items()]
            subprocess.run([sys.executable, "-m", module, f"--only={name}", *options], check=True)
        return
    seconds = measure({name: candidates[name](**sizes) for name in names}, flags.rounds)
    print(table(seconds, base))


def main(args):
    cli.no_arguments(args)
    if is_installed("torch") and not (cli.FLAGS.only or cli.FLAGS.memory):
        check_equal()
    compare(CANDIDATES, "ours, bfloat16", "benchmarks.train_step", image_size=cli.FLAGS.image_size,
            batch_size=cli.FLAGS.batch_size)


if __name__ == "__main__":
    cli.run(main, define_flags)
