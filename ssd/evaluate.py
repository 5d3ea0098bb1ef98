"""How well a run detects: VOC07, VOC10 and COCO average precision, per class, with precision-recall curves.

    python -m ssd.evaluate --run runs/ssd/voc2007 [--split test] [--label bottle]

Article, "Pascal VOC and the mAP Metric": a second table and picture show what becomes of the average precision
when only detections above a confidence threshold are accepted. C classes, D detections.
"""

import numpy as np
import tensorflow as tf

from common import boxes, cli, detection_evaluate, drawing, training
from common.errors import UserError
from common.metrics import average_precision
from ssd import predict, preprocess
from ssd.model import anchors
from ssd.postprocess import postprocess

CONFIDENCES = (0.01, 0.10, 0.30, 0.50)  # the article's table; the first is what `postprocess` keeps by itself
RECALLS = np.linspace(0.0, 1.0, 101)    # where the mean curve of several classes is taken


def make_detect(model, strategy, *, anchors):
    """Returns the `@tf.function` (images, height, width) -> detections in pixels of the pictures."""
    @tf.function
    def detect(images, height, width):
        def replica(images, height, width):
            found = postprocess(model(images, training=False), anchors, score_threshold=CONFIDENCES[0])
            found["boxes"] = boxes.unwarp_boxes(found["boxes"], height, width, images.shape[1])
            return found

        return strategy.run(replica, args=(images, height, width))

    return detect


def batches(folder, split, strategy, *, image_size, batch_size, limit=0):
    """The evaluation dataset of a split, distributed over the replicas; batch_size is the global one."""
    return detection_evaluate.distribute(preprocess.evaluation_dataset, folder, split, strategy,
                                         image_size=image_size, batch_size=batch_size, limit=limit)


def by_confidence(detections, truths, num_classes, confidences=CONFIDENCES):
    """{confidence: {"detections": their number [C], "voc07": `average_precision.voc` of those above it}}.

    11-point interpolated, as in the article. Those above a threshold are what suppression at that threshold would
    have kept, because what is kept never depends on what has a lower score.
    """
    found = {}
    for confidence in confidences:
        accepted = detections.score > confidence
        kept = average_precision.Detections(*(column[accepted] for column in detections))
        voc07 = average_precision.voc(kept, truths, num_classes, style="11-point", inclusive_pixels=False)
        found[confidence] = {"detections": np.bincount(kept.label, minlength=num_classes), "voc07": voc07}
    return found


def confidence_summary(found, labels):
    """What `by_confidence` found, as entries of <split>.json."""
    return {f"{confidence:.2f}": {
        "detections": int(row["detections"].sum()), "voc07_map": row["voc07"]["map"],
        "voc07_ap": dict(zip(labels, row["voc07"]["ap"].tolist()))} for confidence, row in found.items()}


def confidence_table(found, labels, label=None):
    """The article's table as text, a line for each class, or for `label` alone, and the mean."""
    ap = np.array([row["voc07"]["ap"] for row in found.values()]).T  # [C, confidences]
    chosen = [labels.index(name) for name in (labels if label is None else [label])]
    rows = {labels[index]: ap[index] for index in chosen if np.isfinite(ap[index]).all()}
    if label is None:
        rows["mean"] = [row["voc07"]["map"] for row in found.values()]
    width = max(map(len, ["detections", *rows]))
    lines = [f"{'confidence':{width}}" + "".join(f"  {confidence:7.2f}" for confidence in found)]
    lines += [f"{name:{width}}" + "".join(f"  {value:7.3f}" for value in values) for name, values in rows.items()]
    lines.append(f"{'detections':{width}}" + "".join(f"  {row['detections'][chosen].sum():7d}"
                                                    for row in found.values()))
    return "\n".join(lines)


def confidence_curves(found, labels, label=None):
    """{name: (recall, precision)}, a curve for each confidence: of `label`, or the mean of all classes."""
    lines = {}
    for confidence, row in found.items():
        voc07 = row["voc07"]
        if label is None:
            curve, ap = mean_curve(voc07), voc07["map"]
        else:
            index = labels.index(label)
            curve, ap = (voc07["recall"][index], voc07["precision"][index]), voc07["ap"][index]
        lines[f"above {confidence:.2f}: AP {ap:.3f}"] = curve
    return lines


def mean_curve(voc07):
    """(recall, precision): the interpolated precision at each of RECALLS, mean of the classes with objects.

    It ends where the last class ends; a class that does not reach a recall has precision 0 there.
    """
    curves = []
    for ap, recall, precision in zip(voc07["ap"], voc07["recall"], voc07["precision"]):
        if np.isfinite(ap):
            envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
            curves.append(envelope[np.searchsorted(recall, RECALLS - 1e-9)])
    mean = np.mean(curves, axis=0) if curves else np.zeros(len(RECALLS))
    return RECALLS[mean > 0], mean[mean > 0]


def check_label(label, labels):
    """Raises UserError if --label is no class of the run."""
    if label not in labels:
        raise UserError(f"--label must be one of {', '.join(labels)}; {label!r} came.")


def define_flags():
    detection_evaluate.define_flags()
    cli.flags.DEFINE_string("label", None, "Class of the table and picture by confidence; default: all and "
                            "their mean.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    strategy = training.make_strategy()
    with strategy.scope():
        model, config = predict.load_run(flags.run, flags.which)
    labels, label = config["labels"], flags.label
    if label is not None:
        check_label(label, labels)
    folder, split, limit = detection_evaluate.choose_records(flags, config, preprocess.command)
    dataset = batches(folder, split, strategy, image_size=config["image_size"], batch_size=flags.batch_size,
                      limit=limit)
    detect = make_detect(model, strategy, anchors=anchors(config["model"]))
    evaluated = detection_evaluate.collect(detect, dataset, strategy)
    found = by_confidence(evaluated.detections, evaluated.truths, len(labels))
    out = detection_evaluate.report(flags, split, evaluated, labels, {"confidence": confidence_summary(found, labels)})
    print(confidence_table(found, labels, label))
    path = out / f"{split}_confidence.png"
    drawing.curves(path, confidence_curves(found, labels, label), xlabel="recall", ylabel="precision",
                   title=f"{split}, {label or 'mean of the classes'}: by confidence", xlim=(0, 1), ylim=(0, 1.05))
    print(path)


if __name__ == "__main__":
    cli.run(main, define_flags)
