"""Times of one training step of CycleGAN (256, 9 blocks, batch 1): python -m benchmarks.cyclegan_step

Both steps and the pool: ours in float32 and bfloat16; the article's way with the same networks (a graph for each of
the two steps, six passes of the generators, the pool in Python between them); the same training in PyTorch (channels
last, autocast, fused Adam). First our generator and PyTorch's are given the same weights and must paint the same
picture. --memory starts each candidate in a process of its own and prints its peak memory instead. Needs the extra
`bench`.
"""

import functools
import random

import keras
import numpy as np
import tensorflow as tf

from benchmarks import train_step
from benchmarks.inference import is_installed
from common import cli, runtime
from cyclegan import model as cyclegan_model
from cyclegan import train
from cyclegan.loss import cycle_loss, gan_loss, identity_loss
from cyclegan.pool import ImagePool


def batch(image_size, batch_size=1):
    """{"a", "b"}: random pictures float32 [B, S, S, 3] in -1..1."""
    rng = np.random.default_rng(0)
    return {side: rng.uniform(-1, 1, [batch_size, image_size, image_size, 3]).astype(np.float32) for side in "ab"}


def our_step(image_size, *, precision):
    """Returns a function that runs train.py's own step once."""
    with runtime.dtype_policy(precision):
        model, judges = cyclegan_model.generators(), cyclegan_model.discriminators()
    config = {**train.DEFAULTS, "precision": precision}
    optimizers = [train.make_optimizer(config, total_steps=10**6) for _ in range(2)]
    for optimizer, networks in zip(optimizers, (model, judges)):
        optimizer.build(networks.trainable_variables)
    step = train.make_train_step(
        model, judges, *optimizers, ImagePool(config["pool_size"], image_size, 1), tf.distribute.get_strategy(),
        cycle_weight=config["cycle_weight"], identity_weight=config["identity_weight"], global_batch_size=1)
    batches = iter(tf.data.Dataset.from_tensors(batch(image_size)).repeat().prefetch(2))
    return lambda: {name: float(part) for name, part in step(batches).items()}


def article_step(image_size, *, precision):
    """Returns a function that trains for one step as the article's listings do, with our networks and losses."""
    with runtime.dtype_policy(precision):
        a2b, b2a = cyclegan_model.generator(name="a2b"), cyclegan_model.generator(name="b2a")
        judge_a, judge_b = (cyclegan_model.discriminator(name=f"judge_{side}") for side in "ab")
    generator_weights = a2b.trainable_variables + b2a.trainable_variables
    judge_weights = judge_a.trainable_variables + judge_b.trainable_variables
    generator_optimizer, judge_optimizer = (keras.optimizers.Adam(2e-4, 0.5) for _ in range(2))
    generator_optimizer.build(generator_weights)
    judge_optimizer.build(judge_weights)

    @tf.function
    def train_generator(real_a, real_b):
        with tf.GradientTape() as tape:
            fake_b, fake_a = a2b(real_a, training=True), b2a(real_b, training=True)
            gan = gan_loss(judge_b(fake_b, training=True), True) + gan_loss(judge_a(fake_a, training=True), True)
            cycle = cycle_loss(b2a(fake_b, training=True), real_a) + cycle_loss(a2b(fake_a, training=True), real_b)
            identity = identity_loss(a2b(real_b, training=True), real_b) \
                + identity_loss(b2a(real_a, training=True), real_a)
            total = gan + 10 * cycle + 5 * identity
        generator_optimizer.apply_gradients(zip(tape.gradient(total, generator_weights), generator_weights))
        return fake_a, fake_b, total

    @tf.function
    def train_discriminator(real_a, real_b, fake_a, fake_b):
        with tf.GradientTape() as tape:
            total = 0.5 * sum(
                gan_loss(judge(real, training=True), True) + gan_loss(judge(fake, training=True), False)
                for judge, real, fake in ((judge_a, real_a, fake_a), (judge_b, real_b, fake_b)))
        judge_optimizer.apply_gradients(zip(tape.gradient(total, judge_weights), judge_weights))
        return total

    images, pools = {side: tf.constant(value) for side, value in batch(image_size).items()}, ([], [])

    def query(pool, image):
        image = image.numpy()
        if len(pool) < train.DEFAULTS["pool_size"]:
            pool.append(image)
        elif random.random() < 0.5:
            place = random.randrange(len(pool))
            image, pool[place] = pool[place], image
        return tf.constant(image)

    def run():
        fake_a, fake_b, total = train_generator(images["a"], images["b"])
        shown = [query(pool, fake) for pool, fake in zip(pools, (fake_a, fake_b))]
        return float(total[0]), float(train_discriminator(images["a"], images["b"], *shown)[0])

    return run


def torch_step(image_size, *, bfloat16):
    """Returns a function that trains PyTorch's networks for one step."""
    import torch

    from benchmarks import torch_cyclegan

    trainer = torch_cyclegan.Trainer()
    a, b = (torch.from_numpy(value).permute(0, 3, 1, 2).to(memory_format=torch.channels_last)
            for value in batch(image_size).values())
    return lambda: trainer.step(a, b, bfloat16)


def check_equal():
    """Both generators paint the same picture with the same weights, to 1e-3."""
    import torch

    from benchmarks import torch_cyclegan

    ours, theirs = cyclegan_model.generator(), torch_cyclegan.generator().eval()
    torch_cyclegan.copy_weights(theirs, ours)
    images = batch(64)["a"]
    with torch.inference_mode():
        other = theirs(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    difference = np.abs(ours(images).numpy() - other).max()
    assert difference < 1e-3, difference


CANDIDATES = {
    "ours, bfloat16": functools.partial(our_step, precision="mixed_bfloat16"),
    "ours, float32": functools.partial(our_step, precision="float32"),
    "the article's way, bfloat16": functools.partial(article_step, precision="mixed_bfloat16"),
    "the article's way, float32": functools.partial(article_step, precision="float32"),
    "PyTorch, bfloat16": functools.partial(torch_step, bfloat16=True),
    "PyTorch, float32": functools.partial(torch_step, bfloat16=False),
}


def main(args):
    cli.no_arguments(args)
    if is_installed("torch") and not (cli.FLAGS.only or cli.FLAGS.memory):
        check_equal()
    train_step.compare(CANDIDATES, "ours, bfloat16", "benchmarks.cyclegan_step", image_size=cli.FLAGS.image_size)


if __name__ == "__main__":
    cli.run(main, lambda: train_step.define_flags(CANDIDATES, image_size=256))
