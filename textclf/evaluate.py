"""How well a run classifies: accuracy, precision, recall, F1, confusion, calibration, and where it disagrees.

    python -m textclf.evaluate --run runs/textclf/articles [--split test]

The article's last wish: "differences in classification between what I had and what the NN outputted would be even
more interesting than a perfect 100% match". `<split>_disagreements.csv` has them all, the most confident first.

B batch, N texts, C categories.
"""

import pathlib
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from common import cli, files, records, training
from common.errors import UserError
from common.metrics import classification
from textclf import predict, preprocess, report
from textclf.model import probabilities


class Found(NamedTuple):
    """What the network says of the texts of a split, in the split's order."""

    labels: np.ndarray  # int64 [N]
    probs: np.ndarray  # float32 [N, C]


def make_classify(model, strategy):
    """Returns the `@tf.function` from tf-idf rows to probabilities [B, C]."""
    @tf.function
    def classify(rows):
        return strategy.run(lambda rows: probabilities(model(rows, training=False)), args=(rows,))

    return classify


def batches(folder, split, vectorize, strategy, *, batch_size, limit=0):
    """The evaluation dataset of a split, distributed over the replicas; batch_size is the global one."""
    def make_dataset(replica_batch_size, context):
        return preprocess.evaluation_dataset(folder, split, vectorize, batch_size=replica_batch_size,
                                             global_batch_size=batch_size, limit=limit)

    return training.distribute(strategy, make_dataset, batch_size)


def collect(classify, dataset, strategy):
    """Runs `classify` over an evaluation dataset (distributed or not); returns `Found`."""
    columns = []
    for batch in dataset:
        values = batch["index"], batch["label"], classify(batch["rows"])
        for part in zip(*(strategy.experimental_local_results(value) for value in values)):
            index, labels, probs = (value.numpy() for value in part)
            real = index >= 0  # the others fill the last batch up
            columns.append((index[real], labels[real], probs[real]))
    index, labels, probs = (np.concatenate(column) for column in zip(*columns))
    order = np.argsort(index)
    return Found(labels[order], probs[order])


def summarize(found, labels):
    """All figures as a dict of plain numbers; None for what a category without texts, or predictions, does not have.

    "always": the category with the most texts of these, and how often it alone would be right.
    """
    predictions = found.probs.argmax(axis=1)
    confusion = classification.confusion_matrix(found.labels, predictions, len(labels))
    scores = classification.scores(confusion)
    own = np.maximum(found.probs[np.arange(len(found.labels)), found.labels], 1e-30)
    ece = classification.expected_calibration_error(classification.reliability(found.labels, found.probs))
    most = int(scores.support.argmax())
    predicted = confusion.sum(axis=0)
    categories = {label: {
        "texts": int(scores.support[i]), "precision": float(scores.precision[i]) if predicted[i] else None,
        "recall": float(scores.recall[i]) if scores.support[i] else None,
        "f1": float(scores.f1[i]) if scores.support[i] else None} for i, label in enumerate(labels)}
    return {
        "texts": len(found.labels), "accuracy": float(np.mean(predictions == found.labels)),
        "macro_f1": classification.macro_f1(scores), "crossentropy": float(-np.mean(np.log(own))), "ece": ece,
        "mean_confidence": float(np.mean(found.probs.max(axis=1))), "confusion": confusion.tolist(),
        "always": {"category": labels[most], "accuracy": float(scores.support[most] / len(found.labels))},
        "categories": categories}


def disagreements(folder, split, found, labels):
    """`report.Disagreement` of each text whose category and prediction differ, the most confident first."""
    order = np.argsort(-found.probs, axis=1, kind="stable")
    wrong = set(np.flatnonzero(order[:, 0] != found.labels).tolist())
    rows = []
    stream = records.dataset(folder, split, epochs=1, limit=len(found.labels)).batch(1024)
    for batch in stream:
        example = preprocess.parse(batch["record"])
        for place, index in enumerate(batch["index"].numpy().tolist()):
            if index in wrong:
                probs, (first, second), own = found.probs[index], order[index, :2], found.labels[index]
                rows.append(report.Disagreement(
                    example["source"][place].numpy().decode(), labels[own], float(probs[own]), labels[first],
                    float(probs[first]), labels[second], float(probs[second]),
                    example["text"][place].numpy().decode(errors="replace")))
    return sorted(rows, key=lambda row: -row.probability)


def define_flags():
    cli.define_run_flag()
    cli.flags.DEFINE_string("tfrecords", None, "Record set; default: the one the run was trained on.")
    cli.flags.DEFINE_alias("dataset", "tfrecords")
    cli.flags.DEFINE_string("split", None, "Split to evaluate; default val, test where there is none, or train of "
                            "a run with --limit.")
    cli.flags.DEFINE_integer("limit", 0, "Evaluate the first N examples; 0 takes all.", lower_bound=0)
    cli.flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    cli.flags.DEFINE_integer("batch_size", 256, "Texts per step over all replicas.", lower_bound=1)
    cli.flags.DEFINE_string("out", None, "Folder of the report; default <run>/evaluation.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    strategy = training.make_strategy()
    with strategy.scope():
        model, vectorize, config = predict.load_run(flags.run, flags.which)
    name = flags.tfrecords or config["tfrecords"]
    limited = bool(config["limit"]) and not flags.tfrecords
    folder = records.resolve(name, kind=preprocess.KIND, command=preprocess.command(name))
    split = flags.split or ("train" if limited else
                            "val" if "val" in records.read_manifest(folder)["splits"] else "test")
    records.resolve(name, kind=preprocess.KIND, split=split, command=preprocess.command(name))
    limit = flags.limit or (config["limit"] if limited and split == "train" else 0)
    labels = records.read_manifest(folder)["labels"]
    if labels != config["labels"]:
        raise UserError(f"The categories of {folder} must be those that the run was trained on, "
                        f"{config['labels']}; "
                        f"they are {labels}.")
    dataset = batches(folder, split, vectorize, strategy, batch_size=flags.batch_size, limit=limit)
    found = collect(make_classify(model, strategy), dataset, strategy)
    summary = summarize(found, labels)
    rows = disagreements(folder, split, found, labels)
    print(report.table(summary))
    print(report.disagreement_table(rows, split))
    out = pathlib.Path(flags.out or pathlib.Path(flags.run) / "evaluation")
    files.make_folder(out)
    files.write_json(out / f"{split}.json", summary)
    paths = [out / f"{split}.json", *report.write_disagreements(out, split, rows)]
    for path in [*paths, *report.draw(out, found, labels, prefix=f"{split}_")]:
        print(path)


if __name__ == "__main__":
    cli.run(main, define_flags)
