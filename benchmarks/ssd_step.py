"""Times of one training step of SSD300 (vgg300, batch 8): python -m benchmarks.ssd_step

Our step in float32 and bfloat16, and the same network, loss and optimizer in PyTorch (channels last, autocast, fused
optimizer). First both networks are given the same weights and must put out the same. --memory starts each candidate
in a process of its own and prints its peak memory instead. Needs the extra `bench`.
"""

import functools

import numpy as np
import tensorflow as tf

from benchmarks import train_step
from benchmarks.inference import is_installed
from common import cli, runtime
from ssd import model as ssd_model
from ssd import train

NUM_CLASSES = 20
POSITIVES = 30  # matched anchors of a picture


def batch(batch_size):
    """(images [B, S, S, 3], targets) of random numbers."""
    rng = np.random.default_rng(0)
    side, num_anchors = ssd_model.IMAGE_SIZE["vgg300"], len(ssd_model.anchors("vgg300"))
    classes = np.zeros([batch_size, num_anchors], np.int32)
    for row in classes:
        row[rng.permutation(num_anchors)[:POSITIVES]] = rng.integers(1, NUM_CLASSES + 1, POSITIVES)
    return (rng.uniform(size=[batch_size, side, side, 3]).astype(np.float32),
            {"classes": classes, "offsets": rng.normal(size=[batch_size, num_anchors, 4]).astype(np.float32)})


def our_step(batch_size, *, precision):
    """Returns a function that runs train.py's own step once."""
    with runtime.dtype_policy(precision):
        net = ssd_model.vgg300(NUM_CLASSES, variant="caffe")
    config = {**train.DEFAULTS, "precision": precision, "learning_rate": 1e-5, "schedule": "constant"}
    optimizer = train.make_optimizer(config, total_steps=1000, steps_per_epoch=1000)
    optimizer.build(net.trainable_variables)
    step = train.make_train_step(net, optimizer, tf.distribute.get_strategy(), weight_decay=config["weight_decay"])
    batches = iter(tf.data.Dataset.from_tensors(batch(batch_size)).repeat().prefetch(2))
    return lambda: {name: float(part) for name, part in step(batches).items()}


def torch_step(batch_size, *, bfloat16):
    """Returns a function that trains PyTorch's network for one step."""
    import torch

    from benchmarks import torch_ssd

    net = torch_ssd.build(NUM_CLASSES).train()
    # Adam's weight_decay is the gradient of the l2 part of the loss.
    optimizer = torch.optim.Adam(net.parameters(), 1e-5, eps=0.1, weight_decay=5e-4, fused=True)
    images, targets = batch(batch_size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    classes, offsets = torch.from_numpy(targets["classes"]).long(), torch.from_numpy(targets["offsets"])

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            outputs = net(x)
        loss = torch_ssd.ssd_loss(outputs, classes, offsets)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def check_equal():
    """Both networks put out the same from the same weights, to 1e-3 of the largest output."""
    import torch

    from benchmarks import torch_ssd

    ours = ssd_model.vgg300(NUM_CLASSES, variant="caffe")
    net = torch_ssd.build(NUM_CLASSES).eval()
    torch_ssd.copy_weights(net, ours)
    images = batch(1)[0]
    with torch.inference_mode():
        theirs = net(torch.from_numpy(images).permute(0, 3, 1, 2))
    for name, other in zip(("logits", "offsets"), theirs):
        found = ours(images)[name].numpy()
        difference = np.abs(found - other.numpy()).max() / np.abs(found).max()
        assert difference < 1e-3, (name, difference)


CANDIDATES = {
    "ours, bfloat16": functools.partial(our_step, precision="mixed_bfloat16"),
    "ours, float32": functools.partial(our_step, precision="float32"),
    "PyTorch, bfloat16": functools.partial(torch_step, bfloat16=True),
    "PyTorch, float32": functools.partial(torch_step, bfloat16=False),
}


def main(args):
    cli.no_arguments(args)
    if is_installed("torch") and not (cli.FLAGS.only or cli.FLAGS.memory):
        check_equal()
    train_step.compare(CANDIDATES, "ours, bfloat16", "benchmarks.ssd_step", batch_size=cli.FLAGS.batch_size)


if __name__ == "__main__":
    cli.run(main, lambda: train_step.define_flags(CANDIDATES, batch_size=8))
