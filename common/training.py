"""What every train.py needs around its training step: devices, input, schedules, averages, the run folder.

The step itself (tape, loss, scaling, update) is written out in each article. A train.py goes like this:

    strategy = training.make_strategy()
    run = training.open_run(folder, config, identity=["model", "labels"])
    with strategy.scope():
        ...  # model, optimizer, optimizer.build(model.trainable_variables), step variable
    items = {"model": model, "optimizer": optimizer, "step": step}
    checkpoints = training.Checkpoints(run.folder / "checkpoints", items)
    start = checkpoints.restore()
    with training.worker_errors(), training.Log(run, total, start) as log, training.Signals() as signals:
        ...  # each batch: train_step, log.step; if signals.stop: log.flush, checkpoints.save, SystemExit

Under a strategy, a global batch of B examples goes to n replicas in B / n consecutive examples each.
"""

import contextlib
import json
import math
import os

import keras
import tensorflow as tf

from common import errors, workers
from common.checkpoints import Checkpoints, load_weights, named_variables
from common.errors import UserError
from common.run_folder import Log, NonFiniteLoss, Run, Signals, kept_values, open_run, read_config

__all__ = ["Checkpoints", "Log", "NonFiniteLoss", "Run", "Schedule", "Signals", "clip_by_global_norm",
           "distribute", "ema_variables", "kept_values", "load_weights", "make_strategy", "named_variables", "open_run",
           "read_config", "schedule", "set_precision", "set_seed", "sum_over_replicas", "swapped", "update_ema",
           "worker_errors"]


def make_strategy(devices=None):
    """MirroredStrategy over all GPUs, or the CPU; MultiWorkerMirroredStrategy when TF_CONFIG names a cluster.

    devices: names such as ["GPU:0", "GPU:1"], for some of them only. Call it before any other TensorFlow
    work.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        with contextlib.suppress(RuntimeError):  # already in use: its memory has been set up
            tf.config.experimental.set_memory_growth(gpu, True)
    if devices is None and json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster"):
        return tf.distribute.MultiWorkerMirroredStrategy()
    return tf.distribute.MirroredStrategy(devices or [f"GPU:{i}" for i in range(len(gpus))] or ["CPU:0"])


def set_precision(name):
    """Sets the arithmetic of layers made from now on: float32, mixed_bfloat16 or mixed_float16."""
    keras.mixed_precision.set_dtype_policy(name)


def set_seed(seed):
    """Seeds the weights of layers made from now on, dropout, NumPy and Python."""
    keras.utils.set_random_seed(seed)


def distribute(strategy, make_dataset, global_batch_size):
    """A distributed dataset whose global batches hold the same examples for any number of replicas.

    make_dataset(batch_size, context) returns a tf.data.Dataset of whole batches for one replica, any
    structure of dense tensors [B, ...]; the replicas of a process take successive ones. Of the
    `context.num_input_pipelines` processes of a cluster, number `context.input_pipeline_id` must give every
    num_input_pipelines-th example. What is left over at the end, too little for all replicas of a process, is
    dropped: no replica ever gets an empty batch.
    Raises `UserError` when `global_batch_size` is no multiple of the number of replicas.
    """
    replicas = strategy.num_replicas_in_sync
    if global_batch_size % replicas:
        fitting = math.ceil(global_batch_size / replicas) * replicas
        raise UserError(f"The batch size must be a multiple of the {replicas} replicas, and "
                        f"{global_batch_size} is not. Give --batch_size {fitting}.")

    def make(context):
        dataset = make_dataset(global_batch_size // replicas, context)
        local = replicas // context.num_input_pipelines
        if local > 1:
            dataset = dataset.window(local, drop_remainder=True).flat_map(
                lambda *group: tf.data.Dataset.zip(group if len(group) > 1 else group[0]))
        options = tf.data.Options()
        options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
        return dataset.with_options(options)

    return strategy.distribute_datasets_from_function(make)


@keras.saving.register_keras_serializable(package="zoo")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A warm-up to `learning_rate`, then "constant", "linear" (constant for the first half, then evenly to zero),
    "cosine" (to zero), "step" (`factor` at each of `drops`) or "exponential" (`factor` once in every
    `decay_steps`, evenly).

    During the first `warmup_steps` the rate is learning_rate * ((step + 1) / warmup_steps) ** warmup_power:
    linear, or with power 4 Darknet's burn-in (network.c, get_current_rate). drops are fractions of
    `total_steps`; Darknet's YOLOv3 has 0.8 and 0.9 with factor 0.1. The cosine is over the steps after the
    warm-up (Loshchilov, Hutter, SGDR, eq. 5, one cycle). The halves of "linear" are of `total_steps`, and at
    that step, the first that is not taken, the rate is zero (Zhu et al., CycleGAN, sec. 7.1). The exponential
    counts from step 0, warm-up or not, as tf.train.exponential_decay does.
    """

    def __init__(self, name, learning_rate, total_steps, warmup_steps=0, warmup_power=1.0, drops=(0.8, 0.9),
                 factor=0.1, decay_steps=1):
        if name not in ("constant", "linear", "cosine", "step", "exponential"):
            raise UserError(f"A schedule must be constant, linear, cosine, step or exponential, not {name!r}.")
        self.name = name
        self.learning_rate = float(learning_rate)
        self.total_steps = int(total_steps)
        self.warmup_steps = int(warmup_steps)
        self.warmup_power = float(warmup_power)
        self.drops = tuple(drops)
        self.factor = float(factor)
        self.decay_steps = int(decay_steps)

    def __call__(self, step):
        step = tf.cast(step, tf.float32)
        if self.name == "linear":
            scale = tf.clip_by_value(2 * (1 - step / max(self.total_steps, 1)), 0.0, 1.0)
        elif self.name == "cosine":
            rest = max(self.total_steps - self.warmup_steps, 1)
            done = tf.clip_by_value((step - self.warmup_steps) / rest, 0.0, 1.0)
            scale = 0.5 * (1 + tf.cos(math.pi * done))
        elif self.name == "step":
            starts = tf.constant([math.ceil(drop * self.total_steps) for drop in self.drops], tf.float32)
            scale = tf.pow(self.factor, tf.reduce_sum(tf.cast(step >= starts, tf.float32)))
        elif self.name == "exponential":
            scale = tf.pow(self.factor, step / self.decay_steps)
        else:
            scale = tf.ones_like(step)
        warmup = tf.pow(tf.minimum((step + 1) / max(self.warmup_steps, 1), 1.0), self.warmup_power)
        return self.learning_rate * tf.where(step < self.warmup_steps, warmup, scale)

    def get_config(self):
        return {"name": self.name, "learning_rate": self.learning_rate, "total_steps": self.total_steps,
                "warmup_steps": self.warmup_steps, "warmup_power": self.warmup_power,
                "drops": list(self.drops), "factor": self.factor, "decay_steps": self.decay_steps}


def schedule(name, learning_rate, total_steps, warmup_steps=0, warmup_power=1.0, **options):
    """A learning-rate schedule by name: constant, linear, cosine, step or exponential; see `Schedule`."""
    return Schedule(name, learning_rate, total_steps, warmup_steps, warmup_power, **options)


def sum_over_replicas(value):
    """The sum of a tensor, or of each of a list, over all replicas; call it in the replica context."""
    context = tf.distribute.get_replica_context()
    if context.num_replicas_in_sync == 1:
        return value
    return context.all_reduce(tf.distribute.ReduceOp.SUM, value)


def clip_by_global_norm(gradients, clip_norm):
    """Gradients whose sum over the replicas has a global norm of at most `clip_norm`.

    Call it in the replica context. gradients: of the replica's share of the loss (its sum divided by the
    global batch size); None stays None. What Keras clips are the gradients of one replica, before they are
    added up, so its result depends on the number of replicas. Here they are added up, clipped, and divided by
    the number n of replicas: every replica gives its optimizer the same 1/n of the clipped gradient, and the
    optimizer's own sum over the replicas makes it whole. With a LossScaleOptimizer, multiply clip_norm by its
    dynamic_scale.
    """
    replicas = tf.distribute.get_replica_context().num_replicas_in_sync
    present = sum_over_replicas([tf.convert_to_tensor(gradient) for gradient in gradients if gradient is not None])
    clipped, _ = tf.clip_by_global_norm(present, clip_norm)
    shares = iter([gradient / replicas for gradient in clipped])
    return [None if gradient is None else next(shares) for gradient in gradients]


def ema_variables(variables):
    """Variables for moving averages: equal to `variables`, named by their paths. Call it in the scope."""
    return [tf.Variable(variable.numpy(), trainable=False, name=variable.path) for variable in variables]


def update_ema(strategy, ema, variables, decay, step):
    """Moves each average towards its variable: average += (variable - average) * (1 - decay).

    decay is min(decay, (1 + step) / (10 + step)), so that the first steps count
    (tf.train.ExponentialMovingAverage). Call it within the tf.function but outside `strategy.run`, after the
    step: all replicas then compute the same.
    """
    step = tf.cast(step, tf.float32)
    rate = 1 - tf.minimum(decay, (1 + step) / (10 + step))
    for average, variable in zip(ema, variables, strict=True):
        strategy.extended.update(average, _move, args=(variable.value, rate))


def _move(average, value, rate):
    average.assign_add((tf.convert_to_tensor(value) - average) * rate)


@contextlib.contextmanager
def swapped(variables, ema):
    """The averages stand in for `variables` within the block: for validation and for the best weights.

    Never save a checkpoint inside.
    """
    kept = [variable.numpy() for variable in variables]
    try:
        for variable, average in zip(variables, ema, strict=True):
            variable.assign(average.numpy())
        yield
    finally:
        for variable, value in zip(variables, kept):
            variable.assign(value)


@contextlib.contextmanager
def worker_errors():
    """Raises what happened in a process of `workers.tf_dataset`, or as a UserError in a function of a dataset;
    TensorFlow's error about a lost worker of a cluster becomes one line.
    """
    try:
        yield
    except tf.errors.OpError as error:
        original = workers.original_error(error) or errors.original(error)
        if original is not None:
            raise original from None
        lost = isinstance(error, (tf.errors.UnavailableError, tf.errors.AbortedError))
        if not lost or not os.environ.get("TF_CONFIG"):
            raise
        raise UserError("Another worker of TF_CONFIG stopped or cannot be reached, and training needs all of "
                        "them. Start all workers again with the same commands; they go on from the last "
                        "checkpoint."
                        ) from error
