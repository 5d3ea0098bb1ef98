"""Trains YOLO v3 on detection records.

    python -m yolov3.train --tfrecords voc2007
    python -m yolov3.train --demo

Article: "you finally have a chance to run python train.py". What happens in a step is written out in
`make_train_step`; the rest keeps the books.
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf

from common import cli, detection_evaluate, drawing, optimizers, records, training
from common.errors import UserError
from yolov3 import convert, darknet_cfg, evaluate, preprocess
from yolov3.loss import LOSSES
from yolov3.model import DEFAULT_ANCHORS, MODELS, STRIDES

# Every value of config.json and its default; the command line has a flag for each.
DEFAULTS = {
    "model": "yolov3", "width": 1.0, "image_size": 416, "anchors": None, "loss": "article",
    "batch_size": 16, "epochs": 100, "optimizer": "adam", "learning_rate": 1e-3, "schedule": "cosine",
    "warmup_steps": 1000, "weight_decay": None, "clip_norm": 10.0, "ema": 0.0, "multi_scale": False, "augment": None,
    "weights": None, "cfg": None, "transfer": "all_but_classes", "freeze_backbone": False, "precision": "float32",
    "seed": 0, "limit": 0, "eval_every": 1, "checkpoint_every": 1000,
}

# Darknet's for SGD. AdamW takes rate * decay of a kernel in each step: over a VOC training of 15,600 steps at 5e-4 on
# average, 0.05 takes a third; Darknet's 5e-4 would take 0.4 %, as good as nothing.
WEIGHT_DECAY = {"adam": 0.05, "sgd": 5e-4}

# Learns in about three minutes on two CPU cores.
DEMO = {
    "model": "tiny", "width": 0.5, "image_size": 160, "batch_size": 16, "epochs": 16, "learning_rate": 2e-3,
    "warmup_steps": 100, "eval_every": 4,
    "anchors": [[[22, 22], [30, 30], [40, 40]], [[54, 54], [70, 70], [92, 92]]],
}

# What shapes the network, the data or the course of training; a run keeps these when it is resumed.
IDENTITY = ("model", "width", "image_size", "labels", "anchors", "loss", "batch_size", "optimizer", "ema",
            "multi_scale", "freeze_backbone", "seed", "limit")

# What to do when a part of the loss stops being a number (article, "NaN Loss").
_EXPLODED = ("The gradient has exploded: lower --learning_rate, or lengthen --warmup_steps, or set --clip_norm. "
             "--limit 20 shows the step on a few pictures.")
ADVICE = {
    "wh": "The way from tw to the width goes through exp: look for boxes without size with python -m "
          "yolov3.preprocess --check, and lower --learning_rate or lengthen --warmup_steps.",
    "any": _EXPLODED,
}


def make_train_step(model, optimizer, strategy, *, loss, anchors, image_size, global_batch_size, clip_norm=0.0,
                    ema=(), ema_decay=0.0):
    """Returns the `@tf.function` that takes one global batch from an iterator and updates the model.

    It returns the loss parts, each the mean over the global batch. image_size: side of the network input in pixels,
    None with multi-scale training.
    """
    variables = model.trainable_variables

    @tf.function
    def train_step(batches):
        def replica_step(images, targets):
            size = tf.shape(images)[1:3] if image_size is None else (image_size, image_size)
            with tf.GradientTape() as tape:
                logits = model(tf.image.convert_image_dtype(images, tf.float32), training=True)   # 0..1
                parts = loss(targets, logits, anchors, size)                              # each [b]
                # Divided by the global batch, because the optimizer adds up the replicas (article, "Multi-GPU").
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
    """Trains, or goes on with, the run in `run_folder`; returns the metrics of the last validation, {} if none ran.

    config: the flat dict that config.json keeps, see `make_config`. Raises UserError for what the user can mend.
    """
    command = preprocess.command(config["tfrecords"])
    folder = records.resolve(config["tfrecords"], kind=preprocess.KIND, command=command)
    if not config["limit"]:
        records.resolve(config["tfrecords"], kind=preprocess.KIND, split="val", command=command)
    steps_per_epoch = max(1, records.count(folder, "train", limit=config["limit"]) // config["batch_size"])
    total_steps = config["epochs"] * steps_per_epoch
    anchors, image_size = np.array(config["anchors"], np.float32), config["image_size"]

    training.set_seed(config["seed"])
    training.set_precision(config["precision"])
    run = training.open_run(run_folder, config, IDENTITY)
    with strategy.scope():
        model = MODELS[config["model"]](len(config["labels"]), anchors.shape[1], config["width"])
        if config["weights"] and not any(run.folder.glob("checkpoints/ckpt-*.index")):
            load_start(model, config)
        if config["freeze_backbone"]:
            freeze_backbone(model)
        optimizer = make_optimizer(config, total_steps)
        optimizer.build(model.trainable_variables)
        ema = training.ema_variables(model.weights) if config["ema"] else []
    checkpoints = training.Checkpoints(
        run.folder / "checkpoints", {"model": model, "optimizer": optimizer, "ema": ema})
    step = checkpoints.restore()
    if run.finished(step, total_steps):
        return {}

    train_step = make_train_step(
        model, optimizer, strategy, loss=LOSSES[config["loss"]], anchors=anchors, clip_norm=config["clip_norm"],
        image_size=None if config["multi_scale"] else image_size, global_batch_size=config["batch_size"],
        ema=ema, ema_decay=config["ema"])
    detect = evaluate.make_detect(
        model, strategy, anchors=anchors, image_size=image_size,
        max_detections=detection_evaluate.most_detections(folder, validated(config), evaluate.MAX_DETECTIONS))
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
            folder, anchors=config["anchors"], strides=STRIDES[config["model"]], image_size=config["image_size"],
            num_classes=len(config["labels"]), batch_size=batch_size, global_batch_size=config["batch_size"],
            seed=config["seed"], augmented=augmented, start_step=start_step, limit=config["limit"],
            multi_scale=config["multi_scale"], num_workers=context.num_input_pipelines,
            worker=context.input_pipeline_id)

    return training.distribute(strategy, make_dataset, config["batch_size"])


def validated(config):
    """The split that is validated."""
    return "train" if config["limit"] else "val"


def validate(detect, folder, config, strategy):
    """({"map50": VOC10 mAP at IoU 0.5, "coco_ap": COCO AP}, picture grid uint8) of the validation split.

    With `limit`, of the training pictures themselves: a model must be able to overfit a few pictures (article).
    """
    split = validated(config)
    batches = evaluate.batches(folder, split, strategy, image_size=config["image_size"],
                               batch_size=config["batch_size"], limit=config["limit"])
    return detection_evaluate.validate(detect, batches, strategy, folder=folder, split=split, labels=config["labels"])


def make_optimizer(config, total_steps):
    """AdamW (default) or Darknet's SGD with momentum 0.9, both with weight decay on the kernels alone.

    The article's own start is a rate of 0.01, and it reports 1e-4 and 1e-5 as working; Adam at 1e-3 after a warm-up is
    what trains from random weights. Darknet: SGD at 1e-3, burn-in of 1,000 steps with power 4, decay 5e-4.
    """
    sgd = config["optimizer"] == "sgd"
    rate = training.schedule(config["schedule"], config["learning_rate"], total_steps,
                             min(config["warmup_steps"], total_steps // 5), warmup_power=4.0 if sgd else 1.0)
    decay = config["weight_decay"] or None
    if sgd:
        optimizer = optimizers.SGD(rate, momentum=0.9, weight_decay=decay)
    else:
        optimizer = optimizers.AdamW(rate, weight_decay=decay or 0.0)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    return optimizers.in_precision(optimizer, config["precision"])


def load_start(model, config):
    """Starts from Darknet weights or from another run: the backbone, all but the class layers, or everything."""
    path = pathlib.Path(config["weights"])
    if path.is_dir():
        convert.load_run(model, path, transfer=config["transfer"], labels=config["labels"])
    else:
        convert.load_darknet(model, path, backbone_only=config["transfer"] == "backbone",
                             skip_heads=config["transfer"] == "all_but_classes")


def choose_anchors(config, kept=None):
    """{"anchors": those of the command line, of the run that goes on (kept) or of the weights to start from}, or {}.

    The weights' own are taken, and said, unless only their backbone is: the rest was trained with them.
    """
    asked = config["anchors"]
    if isinstance(asked, str):
        asked = convert.parse_anchors(asked, config["model"]).tolist()
    if asked is None and kept:
        asked = kept
    anchors = {} if asked is None else {"anchors": asked}
    if not config["weights"] or config["transfer"] == "backbone" or kept:
        return anchors
    theirs, source = convert.anchors_of(config["weights"], config["model"], config["cfg"])
    if asked is None:
        print(f"anchors: {darknet_cfg.text_of(theirs)} ({source})", file=sys.stderr)
        return {"anchors": np.asarray(theirs).tolist()}
    if not np.array_equal(theirs, asked):
        print(f"note: the anchors of {config['weights']} are {darknet_cfg.text_of(theirs)} ({source}); --anchors says "
              "others, which are taken.", file=sys.stderr)
    return anchors


def freeze_backbone(model):
    """Keeps the weights and the statistics of the convolutions before the first neck as they are."""
    for layers in convert.convolutions(model)[:convert.num_backbone(model)]:
        for layer in layers:
            layer.trainable = False


def make_config(values, manifest):
    """config.json of a new run: DEFAULTS, then `values`, then the labels of the records and the network's anchors."""
    config = {**DEFAULTS, **values, "article": "yolov3", "labels": manifest["labels"]}
    if config["weight_decay"] is None:
        config["weight_decay"] = WEIGHT_DECAY[config["optimizer"]]
    anchors = DEFAULT_ANCHORS[config["model"]] if config["anchors"] is None else config["anchors"]
    config["anchors"] = np.asarray(anchors, np.float32).tolist()
    strides = STRIDES[config["model"]]
    if np.shape(config["anchors"])[0] != len(strides):
        raise UserError(f"--anchors must have {len(strides)} groups, one for each of the strides {strides} of "
                        f"{config['model']}, smallest first; {len(config['anchors'])} came.")
    darknet_cfg.require_rising_scales(config["anchors"], "--anchors")
    if config["image_size"] % 32:
        raise UserError(f"--image_size must be a multiple of 32; {config['image_size']} came.")
    return config


def define_flags():
    cli.define_training_flags("yolov3", batch_size=DEFAULTS["batch_size"], epochs=DEFAULTS["epochs"],
                              learning_rate=DEFAULTS["learning_rate"])
    flags = cli.flags
    flags.DEFINE_enum("model", DEFAULTS["model"], list(MODELS), "Network.")
    flags.DEFINE_float("width", DEFAULTS["width"], "Multiplies the filters of all layers.", lower_bound=0.05)
    flags.DEFINE_integer("image_size", DEFAULTS["image_size"], "Side of the network input, a multiple of 32.",
                         lower_bound=32)
    flags.DEFINE_string("anchors", None, 'Anchors as preprocess --kmeans prints them: "10,13 16,30 33,23 ...", small '
                        "to large, in pixels of the network input; default: those of --weights, or the network's.")
    flags.DEFINE_enum("loss", DEFAULTS["loss"], list(LOSSES), "The article's loss, or Darknet's.")
    flags.DEFINE_bool("multi_scale", DEFAULTS["multi_scale"], "Draw the input size anew every ten batches.")
    flags.DEFINE_bool("augment", DEFAULTS["augment"], "Augment the training pictures; default: not with --limit.")
    flags.DEFINE_string("weights", None, "Start from a Darknet weight file, or from another run folder.")
    flags.DEFINE_string("cfg", None, "Darknet's cfg file of --weights, which says their anchors.")
    flags.DEFINE_enum("transfer", DEFAULTS["transfer"], ["backbone", "all_but_classes", "all"],
                      "What to take from --weights.")
    flags.DEFINE_bool("freeze_backbone", DEFAULTS["freeze_backbone"], "Do not train the layers before the necks.")
    flags.DEFINE_enum("optimizer", DEFAULTS["optimizer"], ["adam", "sgd"], "AdamW, or Darknet's momentum SGD.")
    flags.DEFINE_enum("schedule", DEFAULTS["schedule"], ["constant", "cosine", "step"], "Of the learning rate.")
    flags.DEFINE_integer("warmup_steps", DEFAULTS["warmup_steps"], "At most a fifth of the training.", lower_bound=0)
    flags.DEFINE_float("weight_decay", DEFAULTS["weight_decay"], "Decay of the kernels: AdamW's, apart from the "
                       "gradient, default 0.05; SGD's, through the momentum, default 5e-4.", lower_bound=0.0)
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
    whole = bool(flags.weights) and flags.transfer != "backbone"
    if flags.demo:
        values = {**DEMO, **values}
        if whole and flags.anchors is None:
            del values["anchors"]
    if flags.cfg and not whole:
        raise UserError("--cfg says the anchors of the Darknet file that --weights names, which are taken with more "
                        "than its backbone (--transfer). Leave --cfg out.")
    run_folder = pathlib.Path(flags.run or pathlib.Path("runs") / "yolov3" / pathlib.Path(name).name)
    kept = training.kept_values(run_folder, ["weight_decay", "anchors", "model"])
    if kept and kept.pop("model", None) != values.get("model", DEFAULTS["model"]):
        kept = {}  # that it is another run is what open_run says
    values = {**kept, **values, **choose_anchors({**DEFAULTS, **values}, kept.get("anchors"))}
    strategy = training.make_strategy()
    folder = preprocess.ensure_records(name)
    config = make_config({**values, "tfrecords": str(folder)}, records.read_manifest(folder))
    metrics = train(run_folder, config, strategy)
    if metrics:
        print(f"mAP@0.5 {metrics['map50']:.3f}, COCO AP {metrics['coco_ap']:.3f} on the validation pictures")
    pictures = sorted((run_folder / "samples").glob("epoch_*.png"))
    if pictures:
        print(f"detections drawn: {pictures[-1]}")
    print(f"next: python -m yolov3.predict --run {run_folder} photo.jpg")


if __name__ == "__main__":
    cli.run(main, define_flags)
