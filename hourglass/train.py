"""Trains a stacked hourglass on pose records.

    python -m hourglass.train --tfrecords mpii
    python -m hourglass.train --demo

Article, "Loss Function" and "Intermediate Supervision": one loss for each hourglass, all added up. What happens in
a step is written out in `make_train_step`; the rest keeps the books.
"""

import functools
import pathlib

import keras
import numpy as np
import tensorflow as tf

from common import cli, drawing, optimizers, records, training
from common.errors import UserError
from hourglass import crops, evaluate, poses, preprocess, report
from hourglass.loss import LOSSES, foreground_weight
from hourglass.model import VARIANTS
from hourglass.predict import build
from hourglass.preprocess import STRIDE

# Every value of config.json and its default; the command line has a flag for each.
DEFAULTS = {
    "num_stacks": 4, "filters": 256, "order": 4, "num_residual": 1, "variant": "article", "image_size": 256,
    "sigma": 1.0, "loss": "article", "batch_size": 16, "epochs": 100, "optimizer": "rmsprop",
    "learning_rate": 2.5e-4, "schedule": "step", "warmup_steps": 1000, "clip_norm": 0.0, "ema": 0.0,
    "augment": None, "crop": "article", "rotation": 30.0,
    "precision": "float32", "seed": 0, "limit": 0, "eval_every": 1, "checkpoint_every": 1000,
}

# Learns in about three minutes on two CPU cores.
DEMO = {
    "num_stacks": 2, "filters": 64, "order": 3, "image_size": 96, "batch_size": 8, "epochs": 24,
    "optimizer": "adam", "learning_rate": 1e-2, "schedule": "cosine", "warmup_steps": 100, "eval_every": 6,
}

# What shapes the network, the data or the course of training; a run keeps these when it is resumed.
IDENTITY = ("num_stacks", "filters", "order", "num_residual", "variant", "image_size", "labels", "sigma", "loss",
            "batch_size", "optimizer", "ema", "seed", "limit", "crop", "rotation")

# What a config.json stands for that is older than these keys.
FORMER = {"crop": "article", "rotation": 30.0}

# What to do when a part of the loss, one per stack, stops being a number.
ADVICE = {
    "any": "The gradient has exploded: lower --learning_rate, or lengthen --warmup_steps, or set --clip_norm 10. "
           "Look for joints and scales that are no numbers with python -m hourglass.preprocess --check "
           "--dataset NAME.",
}

# Paper, sec. 3.2: the rate is divided by five when the validation accuracy is on a plateau. A plateau depends on
# what was seen when, and training must go on from a checkpoint as if it had never stopped: so the drops have their
# places, as shares of the training.
DROPS, FACTOR = (0.7, 0.9), 0.2

SAMPLES = 12  # persons drawn after every validation


def make_train_step(model, optimizer, strategy, *, loss, global_batch_size, clip_norm=0.0, ema=(), ema_decay=0.0):
    """Returns the `@tf.function` that takes one global batch from an iterator and updates the model.

    It returns the loss parts, one for each stack, each the mean over the global batch.
    """
    variables = model.trainable_variables

    @tf.function
    def train_step(batches):
        def replica_step(images, targets):
            with tf.GradientTape() as tape:
                heatmaps = tf.nest.flatten(model(images, training=True))  # Keras gives one stack without its list
                parts = loss(targets, heatmaps)                                           # each [b]
                # Divided by the global batch, because the optimizer adds up the replicas. The article's code took
                # the mean over the batch and divided that again.
                parts = {name: tf.reduce_sum(part) / global_batch_size for name, part in parts.items()}
                scaled_loss = optimizer.scale_loss(tf.add_n(list(parts.values())))
            gradients = tape.gradient(scaled_loss, variables)
            if clip_norm:
                scale = getattr(optimizer, "dynamic_scale", 1.0)
                gradients = training.clip_by_global_norm(gradients, clip_norm * scale)
            optimizer.apply_gradients(zip(gradients, variables))
            return parts

        parts = strategy.run(replica_step, args=next(batches))
        if ema:
            training.update_ema(strategy, ema, model.weights, ema_decay, optimizer.iterations)
        return {name: strategy.reduce("SUM", part, axis=None) for name, part in parts.items()}

    return train_step


def train(run_folder, config, strategy):
    """Trains, or goes on with, the run in `run_folder`; returns the metrics of the last validation, or {}.

    config: the flat dict that config.json keeps, see `make_config`. Raises UserError for what the user can mend.
    """
    command = preprocess.command(config["tfrecords"])
    folder = records.resolve(config["tfrecords"], kind=preprocess.KIND, command=command)
    split = "train" if config["limit"] else "val"
    records.resolve(config["tfrecords"], kind=preprocess.KIND, split=split, command=command)
    # Says now what validation would miss after the first epoch.
    metric, meaning = evaluate.usable_metric(folder, split, poses.body_of(folder), config["limit"])
    config = {**config, "metric": metric}
    steps_per_epoch = max(1, records.count(folder, "train", limit=config["limit"]) // config["batch_size"])
    total_steps = config["epochs"] * steps_per_epoch

    training.set_seed(config["seed"])
    training.set_precision(config["precision"])
    say_what_changed(run_folder, config)
    run = training.open_run(run_folder, config, IDENTITY, FORMER)
    with strategy.scope():
        model = build(config)
        optimizer = make_optimizer(config, total_steps)
        optimizer.build(model.trainable_variables)
        ema = training.ema_variables(model.weights) if config["ema"] else []
    checkpoints = training.Checkpoints(
        run.folder / "checkpoints", {"model": model, "optimizer": optimizer, "ema": ema})
    step = checkpoints.restore()
    if run.finished(step, total_steps):
        return {}

    train_step = make_train_step(
        model, optimizer, strategy, loss=functools.partial(LOSSES[config["loss"]], sigma=config["sigma"]),
        global_batch_size=config["batch_size"], clip_norm=config["clip_norm"], ema=ema, ema_decay=config["ema"])
    predict = evaluate.make_predict(model, strategy, config["pairs"])
    batches = iter(training_batches(folder, config, strategy, start_step=step))
    metrics = {}
    with (training.worker_errors(), training.Log(run, total_steps, step, ADVICE) as log,
          training.Signals() as signals):
        while step < total_steps:
            parts = train_step(batches)
            step += 1
            log.step(step, parts, images=config["batch_size"])
            if step % steps_per_epoch == 0:
                epoch = step // steps_per_epoch
                if epoch % config["eval_every"] == 0 or step == total_steps:
                    log.flush()
                    with training.swapped(model.weights if ema else [], ema):
                        metrics, samples = validate(predict, folder, config, strategy)
                        run.save_best(model, next(iter(metrics.values())), step)
                    if run.writes:
                        drawing.write_png(run.samples / f"epoch_{epoch:04d}.png", samples)
                    log.image("skeletons", samples)
                    log.epoch(epoch, metrics)
                    log.draw_curves()
                else:
                    log.epoch(epoch)
            if signals.stop or step % steps_per_epoch == 0 or step % config["checkpoint_every"] == 0:
                log.flush()
                checkpoints.save(step)
            if signals.stop:
                raise SystemExit(signals.exit_code)
    name = "OKS AP" if metric == "oks" else meaning.name
    print(f"{name} {next(iter(metrics.values())):.3f} on the persons of {split}")
    return metrics


def say_what_changed(run_folder, config):
    """Says it in a line when a run goes on whose config.json is older than the weight and the crop of today."""
    if not (pathlib.Path(run_folder) / "config.json").exists() or "crop" in training.read_config(run_folder):
        return
    side = config["image_size"] // STRIDE
    weight = foreground_weight(side, side, config["sigma"])
    print(f"{run_folder} was begun with a foreground weight of 82 (loss article) and crops padded by .1 to .3 of the "
          f"body's height; it goes on with {weight:.1f} and {crops.MARGIN:g}.", flush=True)


def training_batches(folder, config, strategy, start_step):
    """The distributed dataset of global batches from `start_step` on."""
    augmented = not config["limit"] if config["augment"] is None else config["augment"]

    def make_dataset(batch_size, context):
        return preprocess.training_dataset(
            folder, image_size=config["image_size"], sigma=config["sigma"], batch_size=batch_size,
            global_batch_size=config["batch_size"], seed=config["seed"], augmented=augmented,
            start_step=start_step, limit=config["limit"], crop=config["crop"], rotation=config["rotation"],
            num_workers=context.num_input_pipelines, worker=context.input_pipeline_id)

    return training.distribute(strategy, make_dataset, config["batch_size"])


def validate(predict, folder, config, strategy):
    """({"val_pckh", ...}, picture uint8) of the validation split: figures of `evaluate.summarize`, the first to
    judge by, and skeletons.

    With `limit`, of the training pictures themselves, cropped as for training: a model must be able to overfit a few
    pictures.
    """
    split = "train" if config["limit"] else "val"
    body = poses.body_of(folder)
    batches = evaluate.batches(folder, split, strategy, config, batch_size=config["batch_size"],
                               limit=config["limit"])
    found = evaluate.collect(predict, batches, strategy)
    metrics = {f"val_{name}": value for name, value in evaluate.summarize(found, body, config["metric"]).items()}
    shown = range(min(SAMPLES, len(found["index"])))
    samples, _ = report.draw_persons(folder, split, found, body, shown, evaluate.crop_of(config), side=192)
    return metrics, samples


def make_optimizer(config, total_steps):
    """The paper's RMSprop (default), in Torch's terms alpha 0.99 and epsilon 1e-8, or Adam.

    Torch adds its epsilon to the root of the mean square, Keras adds one to the mean square: 1e-16 is as small
    there. Keras's own 1e-7 would be larger than many squared gradients of a mean over all pixels.
    """
    rate = training.schedule(config["schedule"], config["learning_rate"], total_steps,
                             min(config["warmup_steps"], total_steps // 5), drops=DROPS, factor=FACTOR)
    if config["optimizer"] == "adam":
        optimizer = optimizers.AdamW(rate, weight_decay=0.0)  # without decay it is Adam
    else:
        optimizer = keras.optimizers.RMSprop(rate, rho=0.99, epsilon=1e-16)
    return optimizers.in_precision(optimizer, config["precision"])


def make_config(values, body):
    """config.json of a new run: DEFAULTS, then `values`, then what is needed of the records' `poses.Body`."""
    config = {**DEFAULTS, **values, "article": "hourglass"}
    config |= {key: getattr(body, key) for key in ("labels", "pairs", "skeleton", "metric", "unpaired")}
    side = STRIDE * 2 ** config["order"]
    if config["image_size"] % side:
        raise UserError(f"--image_size must be a multiple of {side}, 4 times 2 for each --order; "
                        f"{config['image_size']} came.")
    if config["filters"] % 8:
        raise UserError(f"--filters must be a multiple of 8; {config['filters']} came.")
    if not 0 < config["sigma"] < np.inf:
        raise UserError(f"--sigma must be a positive number; {config['sigma']} came.")
    return config


def define_flags():
    cli.define_training_flags("hourglass", batch_size=DEFAULTS["batch_size"], epochs=DEFAULTS["epochs"],
                              learning_rate=DEFAULTS["learning_rate"])
    flags = cli.flags
    flags.DEFINE_integer("num_stacks", DEFAULTS["num_stacks"], "Hourglasses in a row; the paper has 2, 4 and 8.",
                         lower_bound=1)
    flags.DEFINE_integer("filters", DEFAULTS["filters"], "Features of all layers, a multiple of 8.", lower_bound=8)
    flags.DEFINE_integer("order", DEFAULTS["order"], "How often a hourglass halves its input.", lower_bound=1)
    flags.DEFINE_integer("num_residual", DEFAULTS["num_residual"], "Residual blocks at each place.", lower_bound=1)
    flags.DEFINE_enum("variant", DEFAULTS["variant"], VARIANTS, "The article's blocks, or the original network's.")
    flags.DEFINE_integer("image_size", DEFAULTS["image_size"], "Side of the network input, a multiple of 4 * "
                         "2^order; heatmaps have a quarter of it.", lower_bound=8)
    flags.DEFINE_float("sigma", DEFAULTS["sigma"], "Of the Gaussians to learn, in pixels of the heatmap.")
    flags.DEFINE_enum("loss", DEFAULTS["loss"], list(LOSSES), "The article's loss, in which Gaussians weigh more, "
                      "or the plain mean squared error.")
    flags.DEFINE_bool("augment", DEFAULTS["augment"], "Augment the training pictures; default: not with --limit.")
    flags.DEFINE_enum("crop", DEFAULTS["crop"], crops.CROPS, "What training sees: the article's crop around the "
                      "joints, or the square around the annotated centre, as evaluation.")
    flags.DEFINE_float("rotation", DEFAULTS["rotation"], "Degrees by which augmentation turns pictures either way, at "
                       "most; 180 for people who stand on their heads.", lower_bound=0.0, upper_bound=180.0)
    flags.DEFINE_enum("optimizer", DEFAULTS["optimizer"], ["rmsprop", "adam"], "The paper's RMSprop, or Adam.")
    flags.DEFINE_enum("schedule", DEFAULTS["schedule"], ["constant", "cosine", "step"],
                      "Of the learning rate; step divides it by 5 after 0.7 and 0.9 of the training.")
    flags.DEFINE_integer("warmup_steps", DEFAULTS["warmup_steps"], "At most a fifth of the training.",
                         lower_bound=0)
    flags.DEFINE_float("clip_norm", DEFAULTS["clip_norm"], "Largest norm of the gradient; 0 does not clip.",
                       lower_bound=0.0)
    flags.DEFINE_float("ema", DEFAULTS["ema"], "Decay of a moving average of the weights that is validated and "
                       "exported, such as 0.999; 0 keeps none.", lower_bound=0.0, upper_bound=0.99999)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if flags.demo == bool(flags.tfrecords):
        raise UserError("Give either --tfrecords NAME (a record set) or --demo.")
    name = flags.tfrecords or "demo"
    values = {key: flags[key].value for key in DEFAULTS if not flags[key].using_default_value}
    if flags.demo:
        values = {**DEMO, **values}
    strategy = training.make_strategy()
    folder = preprocess.ensure_records(name)
    config = make_config({**values, "tfrecords": str(folder)}, poses.body_of(folder))
    run_folder = pathlib.Path(flags.run or pathlib.Path("runs") / "hourglass" / pathlib.Path(name).name)
    train(run_folder, config, strategy)
    pictures = sorted((run_folder / "samples").glob("epoch_*.png"))
    if pictures:
        print(f"skeletons drawn, annotated and predicted: {pictures[-1]}")
    print(f"next: python -m hourglass.predict --run {run_folder} photo.jpg")


if __name__ == "__main__":
    cli.run(main, define_flags)
