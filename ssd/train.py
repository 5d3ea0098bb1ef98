"""Trains SSD on detection records.

    python -m ssd.train --tfrecords voc2007 --weights imagenet
    python -m ssd.train --demo

Article, "Training Objective". What happens in a step is written out in `make_train_step`; the rest keeps the books.
"""

import pathlib
import sys

import tensorflow as tf

from common import cli, detection_evaluate, drawing, optimizers, records, training
from common.errors import UserError
from ssd import convert, evaluate, preprocess
from ssd.loss import l2_loss, num_positives, ssd_loss
from ssd.model import IMAGE_SIZE, MODELS, anchors

# Every value of config.json and its default; the command line has a flag for each.
DEFAULTS = {
    "model": "vgg300", "variant": "article", "width": 1.0, "batch_norm": False,
    "batch_size": 8, "epochs": 200, "optimizer": "adam", "learning_rate": 1e-3, "epsilon": 0.1, "schedule": None,
    "warmup_steps": 1000, "weight_decay": 5e-4, "clip_norm": 0.0, "ema": 0.0, "min_negatives": 0, "augment": None,
    "workers": 2,
    "weights": None, "transfer": "all_but_classes", "freeze": 0, "precision": "float32", "seed": 0,
    "limit": 0, "eval_every": 1, "checkpoint_every": 1000,
}

# Learns in about three minutes on two CPU cores.
DEMO = {
    "model": "tiny", "width": 0.5, "batch_norm": True, "batch_size": 16, "epochs": 16, "learning_rate": 2e-3,
    "epsilon": 1e-3, "schedule": "cosine", "warmup_steps": 100, "clip_norm": 10.0, "eval_every": 4,
}

# What shapes the network, the data or the course of training; a run keeps these when it is resumed.
IDENTITY = ("model", "variant", "width", "batch_norm", "labels", "batch_size", "optimizer", "ema", "min_negatives",
            "freeze", "seed", "limit")

# What a config.json stands for that is older than these keys.
FORMER = {"min_negatives": 0}

# What to do when a part of the loss stops being a number.
_EXPLODED = ("The gradient has exploded: lower --learning_rate, or lengthen --warmup_steps, or set --clip_norm 10. "
             "--limit 20 shows the step on a few pictures.")
ADVICE = {
    "localization": "The sizes in it are logarithms: look for boxes without size with python -m ssd.preprocess "
                    "--check, and lower --learning_rate or lengthen --warmup_steps.",
    "any": _EXPLODED,
}

# The article's decay of the rate per epoch; Caffe's drops, at 80,000 and 100,000 of 120,000 steps.
DECAY_PER_EPOCH = 0.97
DROPS = (2 / 3, 5 / 6)


def make_train_step(model, optimizer, strategy, *, weight_decay=0.0, bias_rate=1.0, clip_norm=0.0, min_negatives=0,
                    ema=(), ema_decay=0.0):
    """Returns the `@tf.function` that takes one global batch from an iterator and updates the model.

    It returns the loss parts: confidence and localization per positive of the global batch, and l2. bias_rate
    multiplies the gradients of the biases; of an SGD optimizer that is a learning rate of their own.
    """
    variables = model.trainable_variables
    kernels = [variable for variable in variables if variable.name == "kernel"]
    rates = [bias_rate if variable.name == "bias" else 1.0 for variable in variables]

    @tf.function
    def train_step(batches):
        def replica_step(images, targets):
            # The article's code divides by the positives of each picture and averages; the paper (eq. 1) and Caffe
            # divide by those of the batch, here of all replicas together: they may be spread unevenly.
            positives = training.sum_over_replicas(tf.reduce_sum(num_positives(targets)))
            divisor = tf.maximum(positives, 1.0)
            with tf.GradientTape() as tape:
                parts = ssd_loss(targets, model(images, training=True), min_negatives=min_negatives)     # each [b]
                parts = {name: tf.reduce_sum(part) / divisor for name, part in parts.items()}
                parts["l2"] = weight_decay * l2_loss(kernels) / strategy.num_replicas_in_sync
                scaled_loss = optimizer.scale_loss(tf.add_n(list(parts.values())))
            gradients = tape.gradient(scaled_loss, variables)
            if clip_norm:
                scale = getattr(optimizer, "dynamic_scale", 1.0)
                gradients = training.clip_by_global_norm(gradients, clip_norm * scale)
            # The article needed a second backward pass for this. The velocity of SGD is linear in the gradients.
            gradients = [gradient if rate == 1.0 else gradient * rate for gradient, rate in zip(gradients, rates)]
            optimizer.apply_gradients(zip(gradients, variables))
            return parts

        parts = strategy.run(replica_step, args=next(batches))
        if ema:
            training.update_ema(strategy, ema, model.weights, ema_decay, optimizer.iterations)
        return {name: strategy.reduce("SUM", part, axis=None) for name, part in parts.items()}

    return train_step


def train(run_folder, config, strategy):
    """Trains, or goes on with, the run in `run_folder`; returns the metrics of the last validation, {} if none ran.

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
    run = training.open_run(run_folder, config, IDENTITY, FORMER)
    with strategy.scope():
        model = convert.build(config)
        if config["weights"] and not any(run.folder.glob("checkpoints/ckpt-*.index")):
            load_start(model, config)
        freeze_stages(model, config["freeze"])
        optimizer = make_optimizer(config, total_steps, steps_per_epoch)
        optimizer.build(model.trainable_variables)
        ema = training.ema_variables(model.weights) if config["ema"] else []
    checkpoints = training.Checkpoints(
        run.folder / "checkpoints", {"model": model, "optimizer": optimizer, "ema": ema})
    step = checkpoints.restore()
    if run.finished(step, total_steps):
        return {}

    train_step = make_train_step(
        model, optimizer, strategy, weight_decay=config["weight_decay"], clip_norm=config["clip_norm"],
        bias_rate=2.0 if config["optimizer"] == "sgd" else 1.0, min_negatives=config["min_negatives"], ema=ema,
        ema_decay=config["ema"])
    detect = evaluate.make_detect(model, strategy, anchors=anchors(config["model"]))
    batches = iter(training_batches(folder, config, strategy, start_step=step))
    metrics = {}
    with training.worker_errors(), training.Log(run, total_steps, step, ADVICE) as log, training.Signals() as signals:
        while step < total_steps:
            parts = train_step(batches)
            step += 1
            log.step(step, parts, images=config["batch_size"])
            if step % steps_per_epoch == 0:
                epoch = step // steps_per_epoch
                if epoch % config["eval_every"] == 0 or step == total_steps:
                    log.flush()
                    with training.swapped(model.weights if ema else [], ema):
                        metrics, samples = validate(detect, folder, config, strategy)
                        run.save_best(model, metrics["map50"], step)
                    if run.writes:
                        drawing.write_png(run.samples / f"epoch_{epoch:04d}.png", samples)
                    log.image("detections", samples)
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
    augmented = not config["limit"] if config["augment"] is None else config["augment"]

    def make_dataset(batch_size, context):
        return preprocess.training_dataset(
            folder, anchors=anchors(config["model"]), image_size=config["image_size"],
            num_classes=len(config["labels"]), batch_size=batch_size, global_batch_size=config["batch_size"],
            seed=config["seed"], augmented=augmented, start_step=start_step, limit=config["limit"],
            workers=config["workers"], num_workers=context.num_input_pipelines, worker=context.input_pipeline_id)

    return training.distribute(strategy, make_dataset, config["batch_size"])


def validate(detect, folder, config, strategy):
    """({"map50": VOC10 mAP at IoU 0.5, "coco_ap": COCO AP}, picture grid uint8) of the validation split.

    With `limit`, of the training pictures themselves: a model must be able to overfit a few pictures.
    """
    split = "train" if config["limit"] else "val"
    batches = evaluate.batches(folder, split, strategy, image_size=config["image_size"],
                               batch_size=config["batch_size"], limit=config["limit"])
    return detection_evaluate.validate(detect, batches, strategy, folder=folder, split=split, labels=config["labels"])


def make_optimizer(config, total_steps, steps_per_epoch):
    """The article's Adam (default) or Caffe's SGD with momentum 0.9; the weight decay is a part of the loss.

    The article: Adam with an epsilon of 0.1, the rate decayed by 0.97 per epoch; it names no rate, and its author's
    code of that time started Adam at 1e-3. Caffe: SGD at 1e-3 with two drops by ten and the rate doubled for biases.
    """
    rate = training.schedule(
        config["schedule"], config["learning_rate"], total_steps, min(config["warmup_steps"], total_steps // 5),
        drops=DROPS, factor=DECAY_PER_EPOCH if config["schedule"] == "exponential" else 0.1,
        decay_steps=steps_per_epoch)
    if config["optimizer"] == "sgd":
        optimizer = optimizers.SGD(rate, momentum=0.9)
    else:
        optimizer = optimizers.AdamW(rate, epsilon=config["epsilon"], weight_decay=0.0)
    return optimizers.in_precision(optimizer, config["precision"])


def load_start(model, config):
    """Starts from VGG-16 as ImageNet trained it, from another run, or from a network of SSD's authors."""
    path = pathlib.Path(config["weights"])
    if config["weights"] == "imagenet":
        convert.load_imagenet(model)
    elif path.is_dir():
        convert.load_run(model, path, transfer=config["transfer"])
    else:
        convert.load_caffe(model, path, transfer=config["transfer"])


def freeze_stages(model, count):
    """Keeps the convolutions (and statistics) of the first `count` stages of the base as they are.

    Two are what Caffe's first SSD froze: conv1_1 to conv2_2.
    """
    stages = tuple(f"conv{number}_" for number in range(1, count + 1))
    for layer in model.layers:
        if stages and layer.name.startswith(stages):
            layer.trainable = False


def make_config(values, manifest):
    """config.json of a new run: DEFAULTS, then `values`, the labels of the records, the side and the schedule."""
    config = {**DEFAULTS, **values, "article": "ssd", "labels": manifest["labels"]}
    config["image_size"] = IMAGE_SIZE[config["model"]]
    config["schedule"] = config["schedule"] or {"adam": "exponential", "sgd": "step"}[config["optimizer"]]
    return config


def define_flags():
    cli.define_training_flags("ssd", batch_size=DEFAULTS["batch_size"], epochs=DEFAULTS["epochs"],
                              learning_rate=DEFAULTS["learning_rate"])
    flags = cli.flags
    flags.DEFINE_enum("model", DEFAULTS["model"], list(MODELS), "Network; it fixes the side of its input.")
    flags.DEFINE_enum("variant", DEFAULTS["variant"], ["article", "caffe"], "Where the two differ, whom to follow; "
                      "default that of --weights, if they are of an SSD, or article.")
    flags.DEFINE_float("width", DEFAULTS["width"], "Multiplies the filters of all layers.", lower_bound=0.05)
    flags.DEFINE_bool("batch_norm", DEFAULTS["batch_norm"], "Normalise after every convolution but the predictors: "
                      "for training from random weights.")
    flags.DEFINE_bool("augment", DEFAULTS["augment"], "Augment the training pictures; default: not with --limit.")
    flags.DEFINE_integer("workers", DEFAULTS["workers"], "Processes that augment pictures; 0 does it in this one. "
                         "The pictures are the same for any number.", lower_bound=0)
    flags.DEFINE_string("weights", None, 'Start from "imagenet", the VGG-16 trained there, from another run folder, or '
                        "from a .caffemodel of SSD's authors.")
    flags.DEFINE_enum("transfer", DEFAULTS["transfer"], ["backbone", "all_but_classes", "all"],
                      "What to take from --weights, if that is a network of ours or of SSD's authors.")
    flags.DEFINE_integer("min_negatives", DEFAULTS["min_negatives"], "Mine at least N negatives in every image, as "
                         "TensorFlow's Object Detection API can; with 0, an image without objects has no loss.",
                         lower_bound=0)
    flags.DEFINE_integer("freeze", DEFAULTS["freeze"], "Do not train the first N stages of the base.",
                         lower_bound=0, upper_bound=5)
    flags.DEFINE_enum("optimizer", DEFAULTS["optimizer"], ["adam", "sgd"], "The article's Adam, or Caffe's SGD.")
    flags.DEFINE_float("epsilon", DEFAULTS["epsilon"], "Adam's stability constant.", lower_bound=0.0)
    flags.DEFINE_enum("schedule", None, ["constant", "cosine", "step", "exponential"],
                      "Of the learning rate; default exponential for adam, step for sgd.")
    flags.DEFINE_integer("warmup_steps", DEFAULTS["warmup_steps"], "At most a fifth of the training.", lower_bound=0)
    flags.DEFINE_float("weight_decay", DEFAULTS["weight_decay"], "Of the kernels, as the l2 part of the loss.",
                       lower_bound=0.0)
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
    run_folder = pathlib.Path(flags.run or pathlib.Path("runs") / "ssd" / pathlib.Path(name).name)
    kept = training.kept_values(run_folder, ["variant"])
    values = {**kept, **values}
    if flags.weights and flags.transfer != "backbone" and not kept:
        values["variant"] = convert.variant_for(flags.weights, values.get("variant"))
    strategy = training.make_strategy()
    folder = preprocess.ensure_records(name)
    config = make_config({**values, "tfrecords": str(folder)}, records.read_manifest(folder))
    if not config["weights"] and not config["batch_norm"]:
        print("note: the article starts from VGG-16's weights: --weights imagenet. From random weights give "
              "--batch_norm.", file=sys.stderr)
    metrics = train(run_folder, config, strategy)
    if metrics:
        print(f"mAP@0.5 {metrics['map50']:.3f}, COCO AP {metrics['coco_ap']:.3f} on the validation pictures")
    pictures = sorted((run_folder / "samples").glob("epoch_*.png"))
    if pictures:
        print(f"detections drawn: {pictures[-1]}")
    print(f"next: python -m ssd.predict --run {run_folder} photo.jpg")


if __name__ == "__main__":
    cli.run(main, define_flags)
