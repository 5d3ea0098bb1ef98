"""Trains the news classifier on text records.

    python -m textclf.train --tfrecords articles
    python -m textclf.train --demo

Article, "Training the NN": "training is done by an algorithm named backpropagation". What happens in a step is
written out in `make_train_step`; the rest keeps the books.
"""

import pathlib
import sys

import tensorflow as tf

from common import cli, optimizers, records, training
from common.errors import UserError
from textclf import evaluate, preprocess, report, tfidf
from textclf.loss import categorical_crossentropy
from textclf.model import textclf

# Every value of config.json and its default; the command line has a flag for each.
DEFAULTS = {
    "vocabulary": 10_000, "width": 512, "tfidf": "normalized", "label_smoothing": 0.0, "batch_size": 64,
    "epochs": 10, "learning_rate": 2e-3, "schedule": "cosine", "warmup_steps": 0, "weight_decay": 0.0,
    "precision": "float32", "seed": 0, "limit": 0, "eval_every": 1, "checkpoint_every": 1000,
}

# Learns in well under three minutes on two CPU cores.
DEMO = {"vocabulary": 1000, "width": 128, "epochs": 6}

# What shapes the network, the data or the course of training; a run keeps these when it is resumed.
IDENTITY = ("vocabulary", "width", "tfidf", "labels", "label_smoothing", "batch_size", "seed", "limit")

# What to do when the loss stops being a number.
ADVICE = {"any": "The gradient has exploded: lower --learning_rate, or lengthen --warmup_steps. --limit 20 shows "
                 "the step on a few texts."}


def make_train_step(model, optimizer, strategy, *, global_batch_size, label_smoothing=0.0):
    """Returns the `@tf.function` that takes one global batch from an iterator and updates the model.

    It returns the loss, the mean over the global batch, as {"crossentropy": scalar}.
    """
    variables = model.trainable_variables

    @tf.function
    def train_step(batches):
        def replica_step(rows, labels):
            with tf.GradientTape() as tape:
                logits = model(rows, training=True)
                parts = categorical_crossentropy(labels, logits, label_smoothing=label_smoothing)   # each [b]
                # Divided by the global batch, because the optimizer adds up the replicas.
                parts = {name: tf.reduce_sum(part) / global_batch_size for name, part in parts.items()}
                scaled_loss = optimizer.scale_loss(tf.add_n(list(parts.values())))
            gradients = tape.gradient(scaled_loss, variables)
            optimizer.apply_gradients(zip(gradients, variables))
            return parts

        parts = strategy.run(replica_step, args=next(batches))
        return {name: strategy.reduce("SUM", part, axis=None) for name, part in parts.items()}

    return train_step


def train(run_folder, config, strategy):
    """Trains, or goes on with, the run in `run_folder`; returns the metrics of the last validation, {} if none
    ran.

    config: the flat dict that config.json keeps, see `make_config`. Raises UserError for what the user can mend.
    """
    command = preprocess.command(config["tfrecords"])
    folder = records.resolve(config["tfrecords"], kind=preprocess.KIND, command=command)
    held_out = records.read_manifest(folder)["splits"].get("val")
    validated = bool(config["limit"]) or held_out is not None
    steps_per_epoch = max(1, records.count(folder, "train", limit=config["limit"]) // config["batch_size"])
    total_steps = config["epochs"] * steps_per_epoch

    training.set_seed(config["seed"])
    training.set_precision(config["precision"])
    run = training.open_run(run_folder, config, IDENTITY)
    vocabulary = learn_vocabulary(run, folder, config)
    vectorize = tfidf.make_vectorize(vocabulary, config["vocabulary"], config["tfidf"])
    with strategy.scope():
        model = textclf(len(config["labels"]), config["vocabulary"], config["width"])
        optimizer = make_optimizer(config, total_steps)
        optimizer.build(model.trainable_variables)
    checkpoints = training.Checkpoints(run.folder / "checkpoints", {"model": model, "optimizer": optimizer})
    step = checkpoints.restore()
    if run.finished(step, total_steps):
        return {}

    train_step = make_train_step(model, optimizer, strategy, global_batch_size=config["batch_size"],
                                 label_smoothing=config["label_smoothing"])
    classify = evaluate.make_classify(model, strategy)
    batches = iter(training_batches(folder, vectorize, config, strategy, start_step=step))
    metrics = {}
    log = training.Log(run, total_steps, step, ADVICE, unit="texts")
    with training.worker_errors(), log, training.Signals() as signals:
        if not validated:
            log.write(f"{folder} has no val split: nothing is validated, and the weights of the last epoch count.")
        elif not config["limit"]:
            missing = [label for label, count in held_out["categories"].items() if not count]
            if missing:
                log.write(f"val has no texts of {', '.join(missing)}: macro F1 is the mean of the other categories.")
        while step < total_steps:
            parts = train_step(batches)
            step += 1
            log.step(step, parts, images=config["batch_size"])
            if step % steps_per_epoch == 0:
                epoch = step // steps_per_epoch
                if validated and (epoch % config["eval_every"] == 0 or step == total_steps):
                    log.flush()
                    metrics, found = validate(classify, folder, vectorize, config, strategy)
                    run.save_best(model, metrics["accuracy"], step)
                    if run.writes:
                        report.draw(run.samples, found, config["labels"])
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


def learn_vocabulary(run, folder, config):
    """The run's vocabulary: learnt from the training texts alone when the run begins; kept from then on."""
    if (run.folder / tfidf.FILE).exists() or list(run.folder.glob("checkpoints/ckpt-*.index")):
        return tfidf.load(run.folder)
    texts = preprocess.text_batches(folder, "train", limit=config["limit"])
    vocabulary = tfidf.learn(texts, config["vocabulary"])
    if run.writes:
        tfidf.save(run.folder, vocabulary)
        print(f"vocabulary: {len(vocabulary.words)} words of {vocabulary.documents} training "
              "texts", file=sys.stderr)
    return vocabulary


def training_batches(folder, vectorize, config, strategy, start_step):
    """The distributed dataset of global batches from `start_step` on."""
    def make_dataset(batch_size, context):
        return preprocess.training_dataset(
            folder, vectorize, batch_size=batch_size, global_batch_size=config["batch_size"], seed=config["seed"],
            start_step=start_step, limit=config["limit"], num_workers=context.num_input_pipelines,
            worker=context.input_pipeline_id)

    return training.distribute(strategy, make_dataset, config["batch_size"])


def validate(classify, folder, vectorize, config, strategy):
    """({"accuracy", "macro_f1", "ece"}, `evaluate.Found`) of the validation split.

    With `limit`, of the training texts themselves: a model must be able to learn a few texts by heart.
    """
    split = "train" if config["limit"] else "val"
    batches = evaluate.batches(folder, split, vectorize, strategy, batch_size=config["batch_size"],
                               limit=config["limit"])
    found = evaluate.collect(classify, batches, strategy)
    summary = evaluate.summarize(found, config["labels"])
    return {name: summary[name] for name in ("accuracy", "macro_f1", "ece")}, found


def make_optimizer(config, total_steps):
    """Adam as in the article (Keras's default rate is 1e-3), with decoupled weight decay of the kernels."""
    rate = training.schedule(config["schedule"], config["learning_rate"], total_steps,
                             min(config["warmup_steps"], total_steps // 5))
    optimizer = optimizers.AdamW(rate, weight_decay=config["weight_decay"])
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    return optimizers.in_precision(optimizer, config["precision"])


def make_config(values, manifest):
    """config.json of a new run: DEFAULTS, then `values`, then the categories of the records."""
    return {**DEFAULTS, **values, "article": "textclf", "labels": manifest["labels"]}


def define_flags():
    cli.define_training_flags("textclf", batch_size=DEFAULTS["batch_size"], epochs=DEFAULTS["epochs"],
                              learning_rate=DEFAULTS["learning_rate"], unit="Texts")
    flags = cli.flags
    flags.DEFINE_integer("vocabulary", DEFAULTS["vocabulary"], "Columns of the tf-idf rows: the most frequent "
                         "words, and one for all others.", lower_bound=2)
    flags.DEFINE_integer("width", DEFAULTS["width"], "Units of the hidden layer.", lower_bound=1)
    flags.DEFINE_enum("tfidf", DEFAULTS["tfidf"], list(tfidf.KINDS), "The article's rows, or the same divided by "
                      "their lengths.")
    flags.DEFINE_float("label_smoothing", DEFAULTS["label_smoothing"], "Share of the target that is spread over "
                       "all categories; confidences then mean less.", lower_bound=0.0, upper_bound=0.9)
    flags.DEFINE_enum("schedule", DEFAULTS["schedule"], ["constant", "cosine", "step"], "Of the learning rate.")
    flags.DEFINE_integer("warmup_steps", DEFAULTS["warmup_steps"], "At most a fifth of the "
                                                                   "training.", lower_bound=0)
    flags.DEFINE_float("weight_decay", DEFAULTS["weight_decay"], "Of the kernels.", lower_bound=0.0)


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
    config = make_config({**values, "tfrecords": str(folder)}, records.read_manifest(folder))
    run_folder = pathlib.Path(flags.run or pathlib.Path("runs") / "textclf" / pathlib.Path(name).name)
    metrics = train(run_folder, config, strategy)
    if metrics:
        texts = "training" if config["limit"] else "validation"
        print(f"accuracy {100 * metrics['accuracy']:.2f} %, macro F1 {metrics['macro_f1']:.3f}, calibration error "
              f"{metrics['ece']:.3f} on the {texts} texts")
    for path in report.pictures(run_folder / "samples"):
        print(f"drawn: {path}")
    print(f"next: python -m textclf.evaluate --run {run_folder} --split test")


if __name__ == "__main__":
    cli.run(main, define_flags)
