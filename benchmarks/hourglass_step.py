"""Times of one training step of the stacked hourglass (256, batch 4): python -m benchmarks.hourglass_step

Our step with 2 and 4 stacks in float32 and bfloat16, and the same network, loss and RMSprop in PyTorch (channels
last, autocast). First both networks are given the same weights and must put out the same heatmaps. --memory starts
each candidate in a process of its own and prints its peak memory instead. Needs the extra `bench`.
"""

import functools

import numpy as np
import tensorflow as tf

from benchmarks import train_step
from benchmarks.inference import is_installed
from common import cli, runtime
from hourglass import model as hourglass_model
from hourglass import preprocess, train
from hourglass.loss import article_loss, foreground_weight

JOINTS, SIDE = 16, 256


def batch(batch_size):
    """(images [B, S, S, 3], targets) of random joints, a tenth of which nobody annotated."""
    rng = np.random.default_rng(0)
    joints_xy = rng.uniform(0, SIDE, [batch_size, JOINTS, 2]).astype(np.float32)
    visible = np.where(rng.random([batch_size, JOINTS]) < 0.9, 2, 0)
    targets = preprocess.encode_targets(joints_xy, visible, SIDE)
    return rng.uniform(size=[batch_size, SIDE, SIDE, 3]).astype(np.float32), targets


def our_step(batch_size, *, stacks, precision):
    """Returns a function that runs train.py's own step once."""
    with runtime.dtype_policy(precision):
        net = hourglass_model.hourglass(JOINTS, num_stacks=stacks)
    config = {**train.DEFAULTS, "precision": precision, "learning_rate": 1e-5, "schedule": "constant"}
    optimizer = train.make_optimizer(config, total_steps=1000)
    optimizer.build(net.trainable_variables)
    step = train.make_train_step(net, optimizer, tf.distribute.get_strategy(), loss=article_loss,
                                 global_batch_size=batch_size)
    batches = iter(tf.data.Dataset.from_tensors(batch(batch_size)).repeat().prefetch(2))
    return lambda: {name: float(part) for name, part in step(batches).items()}


def torch_step(batch_size, *, stacks, bfloat16):
    """Returns a function that trains PyTorch's network for one step with the article's loss."""
    import torch

    from benchmarks import torch_hourglass

    net = torch_hourglass.Hourglass(JOINTS, stacks).train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.RMSprop(net.parameters(), 1e-5, foreach=True)
    images, targets = batch(batch_size)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
    truth = torch.from_numpy(targets["heatmaps"].numpy()).permute(0, 3, 1, 2)
    weight = torch.where(truth > 0, foreground_weight(*truth.shape[2:]), 1.0) \
        * torch.from_numpy(targets["weight"].numpy())[:, :, None, None]

    def run():
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            found = net(x)
        loss = sum((weight * (truth - heatmaps.float()) ** 2).mean() for heatmaps in found)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def check_equal():
    """Both networks put out the same from the same weights, to 1e-3 of the largest heatmap value."""
    import torch

    from benchmarks import torch_hourglass

    created, originals = [], {}
    for name in ("Conv2D", "BatchNormalization"):
        originals[name] = getattr(hourglass_model, name)
        setattr(hourglass_model, name, lambda *args, make=originals[name], **options: created.append(
            make(*args, **options)) or created[-1])
    try:
        ours = hourglass_model.hourglass(JOINTS, num_stacks=2)
    finally:
        for name, original in originals.items():
            setattr(hourglass_model, name, original)
    net = torch_hourglass.Hourglass(JOINTS, 2)
    torch_hourglass.copy_weights(created, net.eval())
    images, _ = batch(1)
    with torch.inference_mode():
        theirs = net(torch.from_numpy(images).permute(0, 3, 1, 2))
    for found, other in zip(ours(images), theirs):
        difference = np.abs(found.numpy() - other.permute(0, 2, 3, 1).numpy()).max() / np.abs(found).max()
        assert difference < 1e-3, difference


CANDIDATES = {
    f"{who}, {stacks} stacks, {precision}": make
    for stacks in (2, 4) for who, precision, make in (
        ("ours", "bfloat16", functools.partial(our_step, stacks=stacks, precision="mixed_bfloat16")),
        ("ours", "float32", functools.partial(our_step, stacks=stacks, precision="float32")),
        ("PyTorch", "bfloat16", functools.partial(torch_step, stacks=stacks, bfloat16=True)),
        ("PyTorch", "float32", functools.partial(torch_step, stacks=stacks, bfloat16=False)))}


def main(args):
    cli.no_arguments(args)
    if is_installed("torch") and not (cli.FLAGS.only or cli.FLAGS.memory):
        check_equal()
    train_step.compare(CANDIDATES, "ours, 2 stacks, bfloat16", "benchmarks.hourglass_step",
                       batch_size=cli.FLAGS.batch_size)


if __name__ == "__main__":
    cli.run(main, lambda: train_step.define_flags(CANDIDATES, batch_size=4))
