"""Trains CycleGAN on the records of two domains.

    python -m cyclegan.train --dataset horse2zebra
    python -m cyclegan.train --demo

Article: the functions `train_generator`, `train_discriminator` and `train_step`. What happens in a step is written
out in `make_train_step`; the rest keeps the books.
"""

import pathlib

import numpy as np
import tensorflow as tf

from common import cli, drawing, optimizers, records, training
from common.errors import UserError
from cyclegan import evaluate, features, preprocess
from cyclegan.loss import discriminator_loss, generator_loss
from cyclegan.model import UPSAMPLE, default_blocks, discriminators, generators
from cyclegan.pool import ImagePool

# Every value of config.json and its default; the command line has a flag for each.
DEFAULTS = {
    "image_size": 256, "num_blocks": None, "filters": 64, "upsample": "transpose", "batch_size": 1, "epochs": 200,
    "learning_rate": 2e-4, "schedule": "linear", "pool_size": 50, "cycle_weight": 10.0, "identity_weight": 5.0,
    "augment": None, "flip": True, "features": "judge", "precision": "float32", "seed": 0, "limit": 0,
    "eval_every": 5, "checkpoint_every": 1000,
}

# Learns in about three minutes on two CPU cores.
DEMO = {"image_size": 64, "num_blocks": 3, "filters": 24, "upsample": "resize", "epochs": 3, "learning_rate": 4e-4,
        "eval_every": 3}

# What shapes the networks, the data or the course of training; a run keeps these when it is resumed.
IDENTITY = ("image_size", "num_blocks", "filters", "upsample", "labels", "batch_size", "pool_size", "cycle_weight",
            "identity_weight", "flip", "features", "seed", "limit")

# What to do when a part of the loss stops being a number.
ADVICE = {
    "any": "The gradient has exploded: lower --learning_rate, or go back to --precision float32. --limit 20 shows "
           "the step on a few pictures.",
}

SAMPLES = 6  # pictures of each side that are drawn after every epoch


def make_train_step(model, judges, generator_optimizer, discriminator_optimizer, pool, strategy, *, cycle_weight,
                    identity_weight, global_batch_size):
    """Returns the `@tf.function` that takes one global batch from an iterator and updates all four networks.

    model: both generators, judges: both discriminators. It returns the loss parts of both, unweighted, each the
    mean over the global batch. With an identity_weight of 0 the identity is not computed.
    """
    generator_a2b, generator_b2a = (model.get_layer(f"generator_{way}") for way in ("a2b", "b2a"))
    discriminator_a, discriminator_b = (judges.get_layer(f"discriminator_{side}") for side in ("a", "b"))
    weights = {"gan": 1.0, "cycle": cycle_weight, "identity": identity_weight}

    def train_generator(real):
        variables = model.trainable_variables
        # The tape sees the generators' variables alone: the discriminators judge here and do not learn.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            # Every picture is normalised by itself, so that what goes through the same network goes as one batch:
            # four passes where the article has six.
            if identity_weight:
                fake_b, same_b = tf.split(generator_a2b(tf.concat([real["a"], real["b"]], 0), training=True), 2)
                fake_a, same_a = tf.split(generator_b2a(tf.concat([real["b"], real["a"]], 0), training=True), 2)
                same = {"a2b": same_b, "b2a": same_a}
            else:
                fake_b, fake_a = generator_a2b(real["a"], training=True), generator_b2a(real["b"], training=True)
                same = {}
            cycled = {"a": generator_b2a(fake_b, training=True), "b": generator_a2b(fake_a, training=True)}
            judged = {"a2b": discriminator_b(fake_b, training=True), "b2a": discriminator_a(fake_a, training=True)}
            parts = generator_loss(real, cycled, same, judged)                            # each [b]
            # Divided by the global batch, because the optimizer adds up the replicas.
            parts = {name: tf.reduce_sum(part) / global_batch_size for name, part in parts.items()}
            total = tf.add_n([weights[name.split("_")[0]] * part for name, part in parts.items()])
            scaled_loss = generator_optimizer.scale_loss(total)
        generator_optimizer.apply_gradients(zip(tape.gradient(scaled_loss, variables), variables))
        return {"a": fake_a, "b": fake_b}, parts

    def train_discriminator(real, fake):
        variables = judges.trainable_variables
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch([variable.value for variable in variables])
            real_a, fake_a = tf.split(discriminator_a(tf.concat([real["a"], fake["a"]], 0), training=True), 2)
            real_b, fake_b = tf.split(discriminator_b(tf.concat([real["b"], fake["b"]], 0), training=True), 2)
            parts = discriminator_loss({"a": real_a, "b": real_b}, {"a": fake_a, "b": fake_b})
            parts = {name: tf.reduce_sum(part) / global_batch_size for name, part in parts.items()}
            scaled_loss = discriminator_optimizer.scale_loss(tf.add_n(list(parts.values())))
        discriminator_optimizer.apply_gradients(zip(tape.gradient(scaled_loss, variables), variables))
        return parts

    @tf.function
    def train_step(batches):
        def replica_step(real):
            fake, generator_parts = train_generator(real)  # made once, for both steps
            discriminator_parts = train_discriminator(real, pool.query(fake))
            return {**generator_parts, **discriminator_parts}

        parts = strategy.run(replica_step, args=(next(batches),))
        return {name: strategy.reduce("SUM", part, axis=None) for name, part in parts.items()}

    return train_step


def train(run_folder, config, strategy):
    """Trains, or goes on with, the run in `run_folder`; returns the metrics of the last validation, or {}.

    config: the flat dict that config.json keeps, see `make_config`. Raises UserError for what the user can mend.
    """
    command = preprocess.command(config["tfrecords"])
    folder = records.resolve(config["tfrecords"], kind=preprocess.KIND, split="trainA", command=command)
    for split in ("trainB",) if config["limit"] else ("trainB", "testA", "testB"):
        records.resolve(config["tfrecords"], kind=preprocess.KIND, split=split, command=command)
    steps_per_epoch = preprocess.steps_per_epoch(folder, config["batch_size"], config["limit"])
    total_steps = config["epochs"] * steps_per_epoch

    training.set_seed(config["seed"])
    training.set_precision(config["precision"])
    run = training.open_run(run_folder, config, IDENTITY)
    described = features.load(config["features"], folder, run.folder, seed=config["seed"], in_training=True)
    with strategy.scope():
        model = generators(config["num_blocks"], config["filters"], config["upsample"])
        judges = discriminators(config["filters"])
        generator_optimizer = make_optimizer(config, total_steps)
        generator_optimizer.build(model.trainable_variables)
        discriminator_optimizer = make_optimizer(config, total_steps)
        discriminator_optimizer.build(judges.trainable_variables)
        pool = ImagePool(config["pool_size"], config["image_size"], config["batch_size"], config["seed"])
    checkpoints = training.Checkpoints(run.folder / "checkpoints", {
        "model": model, "discriminators": judges, "generator_optimizer": generator_optimizer,
        "discriminator_optimizer": discriminator_optimizer, "pool": pool.variables}, older={"pool": pool.cut})
    step = checkpoints.restore()
    if run.finished(step, total_steps):
        return {}

    train_step = make_train_step(
        model, judges, generator_optimizer, discriminator_optimizer, pool, strategy,
        cycle_weight=config["cycle_weight"], identity_weight=config["identity_weight"],
        global_batch_size=config["batch_size"])
    translate = evaluate.make_translate(
        {way: model.get_layer(f"generator_{way}") for way in ("a2b", "b2a")}, strategy)
    draw = make_draw(model, folder, config)
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
                log.flush()
                samples = draw()
                if run.writes:
                    drawing.write_png(run.samples / f"epoch_{epoch:04d}.png", samples)
                log.image("translations", samples)
                if epoch % config["eval_every"] == 0 or step == total_steps:
                    metrics = validate(translate, described, folder, config, strategy)
                    run.save_best(model, metrics["score"], step, higher_is_better=False)
                    log.epoch(epoch, metrics)
                else:
                    log.epoch(epoch)
                log.draw_curves()
            if signals.stop or step % steps_per_epoch == 0 or step % config["checkpoint_every"] == 0:
                log.flush()
                checkpoints.save(step)
            if signals.stop:
                raise SystemExit(signals.exit_code)
    return metrics


def training_batches(folder, config, strategy, start_step):
    """The distributed dataset of global batches from `start_step` on."""
    augmented = not config["limit"] if config["augment"] is None else config["augment"]

    def make_dataset(batch_size, context):
        return preprocess.training_dataset(
            folder, image_size=config["image_size"], batch_size=batch_size, global_batch_size=config["batch_size"],
            seed=config["seed"], augmented=augmented, flip=config["flip"], start_step=start_step,
            limit=config["limit"], num_workers=context.num_input_pipelines, worker=context.input_pipeline_id)

    return training.distribute(strategy, make_dataset, config["batch_size"])


def validate(translate, described, folder, config, strategy):
    """The numbers of `evaluate.summarize` for the test pictures, and "score", by which the best epoch is chosen.

    With `limit`, for the training pictures themselves.
    """
    split = "train" if config["limit"] else "test"
    summary, _ = evaluate.measure(translate, folder, strategy, config, described, split=split,
                                  batch_size=4 * strategy.num_replicas_in_sync, limit=config["limit"])
    metrics = {name: value for name, value in summary.items() if isinstance(value, float)}
    return {**{f"val_{name}": value for name, value in metrics.items()}, "score": evaluate.score(summary)}


def make_draw(model, folder, config):
    """The function that draws A, A->B, A->B->A and B, B->A, B->A->B of some test pictures: uint8 [H, W, 3].

    With `limit`, of the training pictures.
    """
    kind = "train" if config["limit"] else "test"
    real = {}
    for side in ("a", "b"):
        dataset = preprocess.evaluation_dataset(
            folder, f"{kind}{side.upper()}", image_size=config["image_size"], batch_size=1,
            limit=min(SAMPLES, config["limit"] or SAMPLES))
        real[side] = [batch["images"] for batch in dataset]

    @tf.function
    def translate(a, b):
        fake = model({"a": a, "b": b}, training=True)  # the fast kernels; the result is that of inference
        cycled = model({"a": fake["b2a"], "b": fake["a2b"]}, training=True)
        return a, fake["a2b"], cycled["b2a"], b, fake["b2a"], cycled["a2b"]

    def draw():
        rows = [translate(a, b) for a, b in zip(real["a"], real["b"])]
        return drawing.grid([preprocess.to_bytes(image)[0] for row in rows for image in row], columns=6)

    return draw


def make_optimizer(config, total_steps):
    """Adam with beta_1 0.5 (article, paper: LinearDecay of 2e-4 in the second half of the training)."""
    rate = training.schedule(config["schedule"], config["learning_rate"], total_steps)
    optimizer = optimizers.AdamW(rate, weight_decay=0.0, beta_1=0.5)  # without decay it is Adam
    return optimizers.in_precision(optimizer, config["precision"])


def make_config(values, manifest):
    """config.json of a new run: DEFAULTS, then `values`, the labels of the records and the number of blocks."""
    config = {**DEFAULTS, **values, "article": "cyclegan", "labels": manifest["labels"]}
    if config["image_size"] % 4:
        raise UserError(f"--image_size must be a multiple of 4; {config['image_size']} came.")
    if config["num_blocks"] is None:
        config["num_blocks"] = default_blocks(config["image_size"])
    for name in ("cycle_weight", "identity_weight"):
        if not np.isfinite(config[name]) or config[name] < 0:
            raise UserError(f"--{name} must be a number from 0; {config[name]} came.")
    return config


def report(metrics, labels):
    """Prints what share of the pictures is translated and comes back: low, however networks fail to learn it."""
    for way, (source, target) in (("a2b", labels), ("b2a", labels[::-1])):
        print(f"{source} to {target}: {metrics[f'val_round_trip_{way}']:.0%} are taken for {target} by the judge, "
              f"and come back as themselves")
    copied = " and ".join(f"{metrics[f'val_judged_{way}_before']:.0%}" for way in ("a2b", "b2a"))
    print(f"(networks that copy would have {copied}, which the judge takes for the other side as they are; what "
          "random networks send back resembles no picture more than any other)")


def define_flags():
    cli.define_training_flags("cyclegan", batch_size=DEFAULTS["batch_size"], epochs=DEFAULTS["epochs"],
                              learning_rate=DEFAULTS["learning_rate"])
    flags = cli.flags
    flags.FLAGS.set_default("eval_every", DEFAULTS["eval_every"])
    flags.DEFINE_integer("image_size", DEFAULTS["image_size"], "Side of the training pictures, a multiple of 4.",
                         lower_bound=16)
    flags.DEFINE_integer("num_blocks", None, "Residual blocks; default 6 under 256 pixels, 9 from there.",
                         lower_bound=0)
    flags.DEFINE_integer("filters", DEFAULTS["filters"], "Filters of the first layers; the others have multiples.",
                         lower_bound=1)
    flags.DEFINE_enum("upsample", DEFAULTS["upsample"], list(UPSAMPLE), "Transposed convolutions, or nearest "
                      "neighbours and a convolution against checkerboards.")
    flags.DEFINE_enum("schedule", DEFAULTS["schedule"], ["constant", "linear", "cosine"], "Of the learning rate.")
    flags.DEFINE_integer("pool_size", DEFAULTS["pool_size"], "Earlier pictures of each domain that the "
                         "discriminators may see, as many for each place in the batch, rounded up; 0 shows the new "
                         "ones alone.", lower_bound=0)
    flags.DEFINE_float("cycle_weight", DEFAULTS["cycle_weight"], "Weight of there and back.")
    flags.DEFINE_float("identity_weight", DEFAULTS["identity_weight"], "Weight of leaving pictures of the target "
                       "domain alone; 0 does without, in less time.")
    flags.DEFINE_bool("augment", DEFAULTS["augment"], "Cut and flip the training pictures; default: not with "
                      "--limit.")
    flags.DEFINE_bool("flip", DEFAULTS["flip"], "Mirror half of the augmented pictures.")
    flags.DEFINE_string("features", DEFAULTS["features"], "What the distances of the validation are of: judge, "
                        "inception (downloads Keras's weights; FID), or the folder of a SavedModel.")


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
    preprocess.domains(folder)
    config = make_config({**values, "tfrecords": str(folder)}, records.read_manifest(folder))
    run_folder = pathlib.Path(flags.run or pathlib.Path("runs") / "cyclegan" / pathlib.Path(name).name)
    metrics = train(run_folder, config, strategy)
    if metrics:
        report(metrics, config["labels"])
    pictures = sorted((run_folder / "samples").glob("epoch_*.png"))
    if pictures:
        print(f"translations drawn: {pictures[-1]}")
    print(f"next: python -m cyclegan.evaluate --run {run_folder}")


if __name__ == "__main__":
    cli.run(main, define_flags)
