"""A small training with everything that a checkpoint must hold, to be run in the tests' child processes.

Two models, dropout, batch normalisation, schedules, two optimizers, an average of the weights, and a pool of
earlier outputs in a variable.
"""

import os
import signal
import sys
import time

import keras
import numpy as np
import tensorflow as tf

from common import cli, layers, training
from common.errors import UserError

BATCH = 8
POOL = 4


def dataset(batch_size, context=None, start=0, broken_at=None):
    """Batches from step `start` on: images [B, 8, 8, 3] and targets [B, 1], from the index alone.

    broken_at: index of an example that raises a UserError, while eight threads are in Python functions.
    """
    workers, worker = (context.num_input_pipelines, context.input_pipeline_id) if context else (1, 0)

    def example(index):
        image = tf.random.stateless_normal([8, 8, 3], tf.stack([7, tf.cast(index, tf.int32)]))
        return image, tf.reduce_mean(image, [0, 1])[:1] + 1.0

    def in_python(index):
        if index == broken_at:
            raise UserError(f"Example {index} is broken.")
        time.sleep(0.01)
        return index

    indices = tf.data.Dataset.range(start * BATCH, 100_000).shard(workers, worker)
    if broken_at is not None:
        indices = indices.map(lambda index: tf.ensure_shape(tf.numpy_function(in_python, [index], tf.int64), []),
                              num_parallel_calls=8)
    return indices.map(example).batch(batch_size, drop_remainder=True)


def small_model(units=3):
    """A model with dropout and one layer."""
    inputs = keras.Input([4])
    x = keras.layers.Dropout(0.5, name="dropout")(inputs)
    outputs = keras.layers.Dense(units, kernel_initializer="zeros", name="head")(x)
    return keras.Model(inputs, outputs, name="small")


class Toy:
    """Models, optimizers and variables; `step(batch)` is the training step."""

    def __init__(self, strategy, dropout=0.5, channels=4, clip_norm=0.5, total_steps=40):
        self.strategy = strategy
        self.clip_norm = clip_norm
        with strategy.scope():
            x = inputs = keras.Input([8, 8, 3])
            x = keras.layers.Conv2D(channels, 3, use_bias=False, name="conv_000")(x)
            x = layers.BatchNormalization(name="bn_000")(x)
            x = keras.layers.ReLU(name="relu")(x)
            x = keras.layers.Dropout(dropout, name="dropout")(x)
            x = keras.layers.GlobalAveragePooling2D(name="pool")(x)
            self.model = keras.Model(inputs, keras.layers.Dense(1, name="head")(x), name="toy")
            self.critic = keras.Sequential(
                [keras.Input([1]), keras.layers.Dense(2, name="critic_head")], name="critic")
            self.optimizer = keras.optimizers.Adam(
                training.schedule("cosine", 0.05, total_steps, warmup_steps=4))
            self.critic_optimizer = keras.optimizers.SGD(
                training.schedule("step", 0.05, total_steps, warmup_steps=4, warmup_power=4), momentum=0.9)
            self.optimizer.build(self.model.trainable_variables)
            self.critic_optimizer.build(self.critic.trainable_variables)
            self.ema = training.ema_variables(self.model.trainable_variables)
            self.pool = tf.Variable(tf.zeros([POOL]), trainable=False, name="pool")
            self.count = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.step = tf.function(self._step)

    def items(self):
        return {"model": self.model, "critic": self.critic, "optimizer": self.optimizer,
                "critic_optimizer": self.critic_optimizer, "ema": self.ema, "pool": self.pool,
                "step": self.count}

    def values(self):
        """Every variable by name, as arrays."""
        return {f"{group}/{name}": variable.numpy() for group, item in self.items().items()
                for name, variable in training.named_variables(item).items()}

    def _step(self, batch):
        parts, mean = self.strategy.run(self._replica_step, args=batch)
        parts = {name: self.strategy.reduce("SUM", part, axis=None) for name, part in parts.items()}
        mean = self.strategy.reduce("SUM", mean, axis=None)
        self.pool.assign(tf.concat([self.pool[1:], mean[None]], axis=0))
        training.update_ema(self.strategy, self.ema, self.model.trainable_variables, 0.99, self.count)
        self.count.assign_add(1)
        return parts

    def _replica_step(self, images, targets):
        with tf.GradientTape() as tape, tf.GradientTape() as critic_tape:
            outputs = self.model(images, training=True)
            judged = self.critic(outputs - tf.reduce_mean(self.pool))
            parts = {"fit": tf.reduce_sum(tf.square(outputs - targets)) / BATCH,
                     "size": tf.reduce_sum(tf.square(judged[:, 0])) / BATCH}
            critic_loss = tf.reduce_sum(tf.square(judged - targets)) / BATCH
            loss = parts["fit"] + 0.1 * parts["size"]
        gradients = tape.gradient(loss, self.model.trainable_variables)
        gradients = training.clip_by_global_norm(gradients, self.clip_norm)
        self.optimizer.apply(gradients, self.model.trainable_variables)
        gradients = critic_tape.gradient(critic_loss, self.critic.trainable_variables)
        self.critic_optimizer.apply(gradients, self.critic.trainable_variables)
        return {**parts, "critic": critic_loss}, tf.reduce_sum(outputs) / BATCH


def train(folder, steps, strategy=None, kill_at=None, save_every=10, nan_at=None, steps_per_epoch=10,
          pause_at=None, deaf=False, broken_at=None, kill_with=signal.SIGKILL, **options):
    """Trains to `steps` in a run folder, going on where it stopped; returns the Toy."""
    strategy = strategy or training.make_strategy()
    training.set_seed(3)
    config = {"article": "toy", "channels": options.get("channels", 4), "steps": steps}
    run = training.open_run(folder, config, identity=["article"])
    toy = Toy(strategy, **options)
    checkpoints = training.Checkpoints(run.folder / "checkpoints", toy.items())
    step = checkpoints.restore()
    if run.finished(step, steps):
        return toy
    advice = {"size": "Make it smaller."}
    with (training.worker_errors(), training.Signals() as signals,
          training.Log(run, steps, step, advice) as log):
        for batch in training.distribute(strategy, lambda *share: dataset(*share, start=step, broken_at=broken_at),
                                         BATCH):
            if step == nan_at:
                toy.critic.variables[0].assign(toy.critic.variables[0] * np.nan)
            parts = toy.step(batch)
            step += 1
            log.step(step, parts, images=BATCH)
            if step == kill_at:
                os.kill(os.getpid(), kill_with)
                time.sleep(0.1)  # until it has been heard
            if step == pause_at:
                (run.folder / "paused").touch()
                if deaf:
                    tf.queue.FIFOQueue(1, tf.int32).dequeue()  # never comes back
                while not signals.stop:
                    time.sleep(0.01)
            if signals.stop:
                log.flush()
                checkpoints.save(step)
                raise SystemExit(signals.exit_code)
            if step % steps_per_epoch == 0:
                row = log.epoch(step // steps_per_epoch, {"score": float(step)})
                with training.swapped(toy.model.trainable_variables, toy.ema):
                    run.save_best(toy.model, row["score"], step)
            if step % save_every == 0:
                log.flush()
                checkpoints.save(step)
            if step == steps:
                break
    return toy


def train_and_keep(folder, steps, error_file=None, **options):
    """`train` under cli.run, with stderr in `error_file`; then every value in the folder's values.npz."""

    if error_file:
        os.dup2(os.open(error_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    sys.argv = ["toy"]
    cli.run(lambda _: keep(folder, train(folder, steps, **options)), lambda: None)


def keep(folder, trained):
    np.savez(f"{folder}/values.npz", **trained.values())
