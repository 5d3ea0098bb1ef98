"""Trains the humble YOLO on detection records.

    python -m yolov1.train --tfrecords chat_rat
    python -m yolov1.train --demo

Article: "Finally we'll see how to practically combine all the above into the final loss function". What happens in
a step is written out in `make_train_step`; the rest keeps the books.
"""

import pathlib

import tensorflow as tf

from common import cli, detection_evaluate, drawing, optimizers, records, training
from common.errors import UserError
from yolov1 import evaluate, predict, preprocess, words
from yolov1.loss import yolo_loss

# Every value of config.json and its default; the command line has a flag for each. The article: Adam at 1e-3,
# batches of 32.
DEFAULTS = {
    "grid": 2, "num_boxes": 1, "image_size": 64, "hidden": 256, "lambda_coord": 5.0, "lambda_noobj": 0.5,
    "batch_size": 32, "epochs": 100, "optimizer": "adam", "learning_rate": 1e-3, "schedule": "cosine",
    "warmup_steps": 0, "weight_decay": None, "clip_norm": 0.0, "ema": 0.0, "precision": "float32", "seed": 0,
    "limit": 0, "eval_every": 1, "checkpoint_every": 1000,
}

# The article's Adam has none; the paper's SGD has this one (sec. 2.2).
WEIGHT_DECAY = {"adam": 0.0, "sgd": 5e-4}

# Learns in about three minutes on two CPU cores.
DEMO = {"epochs": 12, "eval_every": 3}

# What shapes the network, the data or the course of training; a run keeps these when it is resumed.
IDENTITY = ("grid", "num_boxes", "image_size", "hidden", "labels", "lambda_coord", "lambda_noobj", "batch_size",
            "optimizer", "ema", "seed", "limit")

# What to do when a part of the loss stops being a number.
ADVICE = {"any": "The gradient has exploded: lower --learning_rate, or set --warmup_steps 100 or --clip_norm 10. "
                 "--limit 20 shows the step on a few pictures."}


def make_train_step(model, optimizer, strategy, *, num_boxes, lambda_coord, lambda_noobj, global_batch_size,
                    clip_norm=0.0, ema=(), ema_decay=0.0):
    """Returns the `@tf.function` that takes one global batch from an iterator and updates the model.

    It returns the loss parts, each the mean over the global batch.
    """
    variables = model.trainable_variables

    @tf.function
    def train_step(batches):
        def replica_step(images, targets, crowds_xyxy):
            with tf.GradientTape() as tape:
                parts = yolo_loss(targets, model(images, training=True), crowds_xyxy, num_boxes=num_boxes,
                                  lambda_coord=lambda_coord, lambda_noobj=lambda_noobj)    # each [b]
                # Divided by the global batch, because the optimizer adds up the replicas.
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
    if not config["limit"]:
        records.resolve(config["tfrecords"], kind=preprocess.KIND, split="val", command=command)
    steps_per_epoch = max(1, records.count(folder, "train", limit=config["limit"]) // config["batch_size"])
    total_steps = config["epochs"] * steps_per_epoch

    training.set_seed(config["seed"])
    training.set_precision(config["precision"])
    run = training.open_run(run_folder, config, IDENTITY)
    with strategy.scope():
        model = predict.build(config)
        optimizer = make_optimizer(config, total_steps)
        optimizer.build(model.trainable_variables)
        ema = training.ema_variables(model.weights) if config["ema"] else []
    checkpoints = training.Checkpoints(
        run.folder / "checkpoints", {"model": model, "optimizer": optimizer, "ema": ema})
    step = checkpoints.restore()
    if run.finished(step, total_steps):
        return {}

    train_step = make_train_step(
        model, optimizer, strategy, num_boxes=config["num_boxes"], lambda_coord=config["lambda_coord"],
        lambda_noobj=config["lambda_noobj"], global_batch_size=config["batch_size"], clip_norm=config["clip_norm"],
        ema=ema, ema_decay=config["ema"])
    detect = evaluate.make_detect(
        model, strategy, num_classes=len(config["labels"]), num_boxes=config["num_boxes"],
        max_detections=detection_evaluate.most_detections(folder, validated(config), evaluate.MAX_DETECTIONS))
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
    def make_dataset(batch_size, context):
        return preprocess.training_dataset(
            folder, grid=config["grid"], image_size=config["image_size"], num_classes=len(config["labels"]),
            batch_size=batch_size, global_batch_size=config["batch_size"], seed=config["seed"],
            start_step=start_step, limit=config["limit"], num_workers=context.num_input_pipelines,
            worker=context.input_pipeline_id)

    return training.distribute(strategy, make_dataset, config["batch_size"])


def validated(config):
    """The split that is validated."""
    return "train" if config["limit"] else "val"


def validate(detect, folder, config, strategy):
    """({"map50": VOC10 mAP at IoU 0.5, "coco_ap": COCO AP}, picture grid uint8) of the validation split.

    With `limit`, of the training pictures themselves: a model must be able to overfit a few pictures.
    """
    split = validated(config)
    batches = evaluate.batches(folder, split, strategy, image_size=config["image_size"],
                               batch_size=config["batch_size"], limit=config["limit"])
    return detection_evaluate.validate(detect, batches, strategy, folder=folder, split=split,
                                       labels=config["labels"])


def make_optimizer(config, total_steps):
    """The article's Adam, or the paper's SGD with momentum 0.9; the weight decay is of the kernels."""
    rate = training.schedule(config["schedule"], config["learning_rate"], total_steps,
                             min(config["warmup_steps"], total_steps // 5))
    decay = config["weight_decay"] or None
    if config["optimizer"] == "sgd":
        optimizer = optimizers.SGD(rate, momentum=0.9, weight_decay=decay)
    else:
        optimizer = optimizers.AdamW(rate, weight_decay=decay or 0.0)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizers.in_precision(optimizer, config["precision"])


def make_config(values, manifest):
    """config.json of a new run: DEFAULTS, then `values`, the labels of the records, the optimizer's weight decay."""
    config = {**DEFAULTS, **values, "article": "yolov1", "labels": manifest["labels"]}
    if config["weight_decay"] is None:
        config["weight_decay"] = WEIGHT_DECAY[config["optimizer"]]
    return config


def define_flags():
    cli.define_training_flags("yolov1", batch_size=DEFAULTS["batch_size"], epochs=DEFAULTS["epochs"],
                              learning_rate=DEFAULTS["learning_rate"])
    flags = cli.flags
    flags.DEFINE_integer("grid", DEFAULTS["grid"], "Cells on a side of the picture.", lower_bound=1)
    flags.DEFINE_integer("num_boxes", DEFAULTS["num_boxes"], "Boxes that every cell predicts.", lower_bound=1)
    flags.DEFINE_integer("image_size", DEFAULTS["image_size"], "Side of the network input.", lower_bound=16)
    flags.DEFINE_integer("hidden", DEFAULTS["hidden"], "Units of the first dense layer.", lower_bound=1)
    flags.DEFINE_float("lambda_coord", DEFAULTS["lambda_coord"], "Weight of the errors of centres and sizes; the "
                       "article's is 1.", lower_bound=0.0)
    flags.DEFINE_float("lambda_noobj", DEFAULTS["lambda_noobj"], "Weight of confidence where no object is.",
                       lower_bound=0.0)
    flags.DEFINE_enum("optimizer", DEFAULTS["optimizer"], ["adam", "sgd"], "The article's Adam, or momentum SGD.")
    flags.DEFINE_enum("schedule", DEFAULTS["schedule"], ["constant", "cosine", "step"], "Of the learning rate.")
    flags.DEFINE_integer("warmup_steps", DEFAULTS["warmup_steps"], "At most a fifth of the training.",
                         lower_bound=0)
    flags.DEFINE_float("weight_decay", DEFAULTS["weight_decay"], "Decay of the kernels: Adam's, apart from the "
                       "gradient (AdamW), default 0; SGD's, through the momentum, default 5e-4.", lower_bound=0.0)
    flags.DEFINE_float("clip_norm", DEFAULTS["clip_norm"], "Largest norm of the gradient; 0 does not clip.",
                       lower_bound=0.0)
    flags.DEFINE_float("ema", DEFAULTS["ema"], "Decay of a moving average of the weights that is validated and "
                       "exported, such as 0.999; 0 keeps none.", lower_bound=0.0, upper_bound=0.99999)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if flags.demo == bool(flags.tfrecords):
        raise UserError("Give either --tfrecords NAME (a record set) or --demo.")
    name = flags.tfrecords or words.NAME
    values = {key: flags[key].value for key in DEFAULTS if not flags[key].using_default_value}
    if flags.demo:
        values = {**DEMO, **values}
    run_name = "demo" if flags.demo else pathlib.Path(name).name
    run_folder = pathlib.Path(flags.run or pathlib.Path("runs") / "yolov1" / run_name)
    values = {**training.kept_values(run_folder, ["weight_decay"]), **values}
    strategy = training.make_strategy()
    folder = preprocess.ensure_records(name)
    config = make_config({**values, "tfrecords": str(folder)}, records.read_manifest(folder))
    metrics = train(run_folder, config, strategy)
    if metrics:
        print(f"mAP@0.5 {metrics['map50']:.3f}, COCO AP {metrics['coco_ap']:.3f} on the validation pictures")
    pictures = sorted((run_folder / "samples").glob("epoch_*.png"))
    if pictures:
        print(f"detections drawn: {pictures[-1]}")
    print(f"next: python -m yolov1.predict --run {run_folder} photo.jpg")


if __name__ == "__main__":
    cli.run(main, define_flags)
