"""Trains an autoencoder, plain or variational, on small pictures.

    python -m autoencoders.train --tfrecords mnist --model conv_vae
    python -m autoencoders.train --demo

Article: "We will define the loss function as the sum of two positive real numbers". What happens in a step is
written out in `make_train_step`; the rest keeps the books.
"""

import pathlib

import keras
import numpy as np
import tensorflow as tf

from autoencoders import evaluate, figures, holes, preprocess
from autoencoders.loss import autoencoder_loss, vae_loss
from autoencoders.model import MODELS, VARIATIONAL, build, forward
from common import cli, drawing, optimizers, records, training
from common.errors import UserError

# Every value of config.json and its default; the command line has a flag for each.
DEFAULTS = {
    "model": "vae", "latent_dim": None, "beta": 1.0, "noise": 0.0, "batch_size": 128, "epochs": 30,
    "optimizer": "adam", "learning_rate": 1e-3, "schedule": "cosine", "warmup_steps": 1000, "precision": "float32",
    "seed": 0, "limit": 0, "eval_every": 1, "checkpoint_every": 1000,
}

# Learns in about a minute on two CPU cores.
DEMO = {"model": "vae", "batch_size": 64, "epochs": 120, "learning_rate": 3e-3, "eval_every": 30}

# What shapes the network, the data or the course of training; a run keeps these when it is resumed.
IDENTITY = ("model", "image_shape", "latent_dim", "beta", "noise", "batch_size", "optimizer", "seed", "limit")

# What to do when a part of the loss stops being a number.
ADVICE = {
    "kl": "The variance goes through exp: lower --learning_rate, or lengthen --warmup_steps.",
    "any": "The gradient has exploded: lower --learning_rate, or lengthen --warmup_steps.",
}


def make_train_step(model, optimizer, strategy, *, loss, beta, global_batch_size):
    """Returns the `@tf.function` that takes one global batch from an iterator and updates the model.

    It returns the loss parts, each the mean over the global batch, the KL divergence without its weight beta.
    """
    variables = model.trainable_variables

    @tf.function
    def train_step(batches):
        def replica_step(batch):
            with tf.GradientTape() as tape:
                outputs = forward(model, batch["inputs"], batch.get("epsilon"), training=True)
                parts = loss(batch["images"], outputs)                                    # each [b]
                # Divided by the global batch, because the optimizer adds up the replicas.
                parts = {name: tf.reduce_sum(part) / global_batch_size for name, part in parts.items()}
                total = parts["reconstruction"] + beta * parts.get("kl", 0.0)
                scaled_loss = optimizer.scale_loss(total)
            gradients = tape.gradient(scaled_loss, variables)
            optimizer.apply_gradients(zip(gradients, variables))
            return parts

        parts = strategy.run(replica_step, args=(next(batches),))
        return {name: strategy.reduce("SUM", part, axis=None) for name, part in parts.items()}

    return train_step


def train(run_folder, config, strategy):
    """Trains, or goes on with, the run in `run_folder`; returns the metrics of the last validation, or {}.

    config: the flat dict that config.json keeps, see `make_config`. Raises UserError for what the user can mend.
    """
    command = preprocess.command(config["tfrecords"])
    folder = records.resolve(config["tfrecords"], kind=preprocess.KIND, command=command)
    if not config["limit"]:
        records.resolve(config["tfrecords"], kind=preprocess.KIND, split="val", command=command)
    steps_per_epoch = max(1, records.count(folder, "train", limit=config["limit"]) // config["batch_size"])
    total_steps = config["epochs"] * steps_per_epoch

    training.set_seed(config["seed"])
    training.set_precision(config["precision"])
    run = training.open_run(run_folder, config, IDENTITY)
    with strategy.scope():
        model = build(config["model"], config["image_shape"], config["latent_dim"])
        optimizer = make_optimizer(config, total_steps)
        optimizer.build(model.trainable_variables)
    checkpoints = training.Checkpoints(run.folder / "checkpoints", {"model": model, "optimizer": optimizer})
    step = checkpoints.restore()
    if run.finished(step, total_steps):
        return {}

    loss = vae_loss if config["model"] in VARIATIONAL else autoencoder_loss
    train_step = make_train_step(model, optimizer, strategy, loss=loss, beta=config["beta"],
                                 global_batch_size=config["batch_size"])
    measure = evaluate.make_evaluate(model, strategy)
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
                    metrics, samples = validate(model, measure, folder, config, strategy)
                    run.save_best(model, metrics["val_loss"], step, higher_is_better=False)
                    if run.writes:
                        drawing.write_png(run.samples / f"epoch_{epoch:04d}.png", samples)
                    log.image("reconstructions", samples)
                    log.epoch(epoch, metrics)
                    log.draw_curves()
                else:
                    log.epoch(epoch)
            if signals.stop or step % steps_per_epoch == 0 or step % config["checkpoint_every"] == 0:
                log.flush()
                checkpoints.save(step)
            if signals.stop:
                raise SystemExit(signals.exit_code)
    return metrics


def training_batches(folder, config, strategy, start_step):
    """The distributed dataset of global batches from `start_step` on."""
    def make_dataset(batch_size, context):
        return preprocess.training_dataset(
            folder, image_shape=config["image_shape"], batch_size=batch_size,
            global_batch_size=config["batch_size"],
            latent_dim=config["latent_dim"] if config["model"] in VARIATIONAL else 0, noise=config["noise"],
            seed=config["seed"], start_step=start_step, limit=config["limit"],
            num_workers=context.num_input_pipelines,
            worker=context.input_pipeline_id)

    return training.distribute(strategy, make_dataset, config["batch_size"])


def validate(model, measure, folder, config, strategy):
    """({"val_loss", "val_reconstruction", "val_kl", "psnr" if finite}, picture grid uint8) of the validation split.

    val_loss has the KL divergence weighted by beta, as in training. With `limit`, of the training pictures
    themselves.
    """
    split = "train" if config["limit"] else "val"
    batches = evaluate.batches(folder, split, strategy, config, batch_size=config["batch_size"],
                               limit=config["limit"])
    found = evaluate.collect(measure, batches, strategy, kept=20)
    summary = evaluate.summarize(found, config)
    metrics = {"val_loss": summary["reconstruction"] + config["beta"] * summary.get("kl", 0.0)}
    metrics |= {f"val_{name}": summary[name] for name in ("reconstruction", "kl") if "kl" in summary}
    if summary["psnr"] is not None:  # else every picture comes back to the last bit
        metrics["psnr"] = summary["psnr"]
    rows = [found["images"], *([found["inputs"]] if config["noise"] else []), found["pictures"]]
    bands = [figures.reconstructions(*(row[:10] for row in rows))]
    if config["latent_dim"] == 2:
        codes = holes.plane_codes(found["code"], variational=config["model"] in VARIATIONAL)
        bands.append(figures.tiles(evaluate.decode(model, codes)))
    return metrics, figures.stacked(bands)


def make_optimizer(config, total_steps):
    """Adam (default), or the Adadelta of the article's convolutional autoencoder.

    Adadelta's rate was 1 when the article was written (`--optimizer adadelta --learning_rate 1 --schedule
    constant`); the 0.001 of today's Keras hardly moves.
    """
    rate = training.schedule(config["schedule"], config["learning_rate"], total_steps,
                             min(config["warmup_steps"], total_steps // 5))
    if config["optimizer"] == "adadelta":
        optimizer = keras.optimizers.Adadelta(rate)
    else:
        optimizer = optimizers.AdamW(rate, weight_decay=0.0)  # without decay it is Adam
    return optimizers.in_precision(optimizer, config["precision"])


def make_config(values, manifest):
    """config.json of a new run: DEFAULTS, `values`, shape and labels of the records, and the size of the code."""
    config = {**DEFAULTS, **values, "article": "autoencoders", "labels": manifest["labels"],
              "image_shape": manifest["image_shape"]}
    if config["latent_dim"] is not None and config["latent_dim"] < 1:
        raise UserError(f"--latent_dim must be at least 1; {config['latent_dim']} came.")
    for name in ("beta", "noise"):
        if not np.isfinite(config[name]) or config[name] < 0:
            raise UserError(f"--{name} must be a number from 0; {config[name]} came.")
    if config["beta"] != 1 and config["model"] not in VARIATIONAL:
        raise UserError(f"--beta weighs the KL divergence of a variational autoencoder, and {config['model']} is "
                        f"none. Leave it out, or give --model "
                        f"{' or '.join(VARIATIONAL)}.")
    code = build(config["model"], config["image_shape"], config["latent_dim"]).get_layer("decoder").input_shape[1:]
    config["latent_dim"] = int(np.prod(code))
    return config


def define_flags():
    cli.define_training_flags("autoencoders", batch_size=DEFAULTS["batch_size"], epochs=DEFAULTS["epochs"],
                              learning_rate=DEFAULTS["learning_rate"])
    flags = cli.flags
    flags.DEFINE_enum("model", DEFAULTS["model"], list(MODELS), "Network.")
    flags.DEFINE_integer("latent_dim", None, "Numbers of the code; default the article's: dense 64, conv 128, vae "
                         "and conv_vae 2.")
    flags.DEFINE_float("beta", DEFAULTS["beta"], "Weight of the KL divergence.")
    flags.DEFINE_float("noise", DEFAULTS["noise"], "Standard deviation of noise that is added to the inputs: the "
                       "network learns to remove it.")
    flags.DEFINE_enum("optimizer", DEFAULTS["optimizer"], ["adam", "adadelta"], "Adam, or the article's Adadelta.")
    flags.DEFINE_enum("schedule", DEFAULTS["schedule"], ["constant", "cosine", "step"], "Of the learning rate.")
    flags.DEFINE_integer("warmup_steps", DEFAULTS["warmup_steps"], "At most a fifth of the training.",
                         lower_bound=0)


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
    preprocess.image_shape(folder)
    config = make_config({**values, "tfrecords": str(folder)}, records.read_manifest(folder))
    run_folder = pathlib.Path(flags.run or pathlib.Path("runs") / "autoencoders" / pathlib.Path(name).name)
    metrics = train(run_folder, config, strategy)
    if metrics:
        parts = f" = reconstruction {metrics['val_reconstruction']:.2f} + KL {metrics['val_kl']:.2f}" \
            if "val_kl" in metrics and config["beta"] == 1 else ""
        pictures = "training" if config["limit"] else "validation"
        print(f"loss {metrics['val_loss']:.2f}{parts} nats per picture, PSNR {metrics.get('psnr', np.inf):.2f} dB on "
              f"the {pictures} pictures")
    pictures = sorted((run_folder / "samples").glob("epoch_*.png"))
    if pictures:
        print(f"reconstructions drawn: {pictures[-1]}")
    print(f"next: python -m autoencoders.evaluate --run {run_folder}")


if __name__ == "__main__":
    cli.run(main, define_flags)
