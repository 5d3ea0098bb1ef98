"""How well a detector detects: what every article's evaluate.py has around its own network.

VOC07, VOC10 and COCO average precision, per class, kinds of mistakes, precision-recall curves, sample pictures.
B batch, N truth boxes, M detections, C classes.
"""

import pathlib
import sys
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from common import class_names, cli, detection, detection_data, drawing, files, records, training
from common.errors import UserError
from common.metrics import average_precision
from common.metrics.detection_errors import detection_errors

NAMED = 20  # classes without objects
COCO_MOST = 100  # detections of a class in a picture, pycocotools' last maxDets


class Found(NamedTuple):
    """What `collect` found in the pictures of a split."""

    detections: average_precision.Detections
    truths: average_precision.Truths
    pictures: int  # all that were looked at, with objects or without
    most: int  # detections that a picture can have


def most_detections(folder, split, least):
    """How many detections of a picture an evaluation keeps: `least`, or as many as the split's fullest picture has
    objects. Average precision could not reach 1 with fewer.
    """
    return max(least, detection_data.most_objects(folder, split))


def distribute(evaluation_dataset, folder, split, strategy, *, image_size, batch_size, limit=0):
    """The evaluation dataset of a split, distributed over the replicas; batch_size is the global one.

    evaluation_dataset: the article's own, of its preprocess.py.
    """
    def make_dataset(replica_batch_size, context):
        return evaluation_dataset(folder, split, image_size=image_size, batch_size=replica_batch_size,
                                  global_batch_size=batch_size, limit=limit)

    return training.distribute(strategy, make_dataset, batch_size)


def collect(detect, dataset, strategy):
    """Runs `detect` over an evaluation dataset (distributed or not); returns what was `Found`, in pixels.

    detect: (images, height, width) -> detections of `nms` with boxes in pixels of the pictures.
    """
    found, known = [], []
    for batch in dataset:
        result = detect(batch["images"], batch["height"], batch["width"])
        local = [strategy.experimental_local_results(value) for value in tf.nest.flatten((result, batch))]
        for values in zip(*local):
            values = [value.numpy() for value in values]
            result_one, batch_one = tf.nest.pack_sequence_as((result, batch), values)
            add_batch(result_one, batch_one, found, known)
    if not known:
        raise UserError("There is nothing to evaluate: the record set has no example in this split.")
    columns = [np.concatenate(column) for column in zip(*found)]
    truths = [np.concatenate(column) for column in zip(*known)]
    return Found(average_precision.Detections(*columns), average_precision.Truths(*truths), pictures=len(known),
                 most=result_one["scores"].shape[1])


def add_batch(result, batch, found, known):
    """Appends the detections and truths of one batch, flat, with the picture's index at each."""
    for i, picture in enumerate(batch["index"]):
        if picture < 0:  # fills the last batch up
            continue
        num = result["num"][i]
        found.append((np.full(num, picture), result["classes"][i, :num], result["scores"][i, :num],
                      result["boxes"][i, :num]))
        real = batch["labels"][i] >= 0
        scale = np.array([batch["width"][i], batch["height"][i]] * 2, np.float32)
        known.append((np.full(real.sum(), picture), batch["labels"][i][real], batch["boxes_xyxy"][i][real] * scale,
                      batch["difficult"][i][real], batch["is_crowd"][i][real], batch["area"][i][real]))


def summarize(found, labels):
    """(summary, VOC10 curves) of what was `Found`: all metrics as a dict of plain numbers.

    voc07 and voc10 (mAP and AP per class at IoU 0.5), coco, counts; curves of `average_precision.voc`.
    """
    detections, truths, pictures, _ = found
    summary = {"pictures": pictures, "objects": len(truths.image), "classes": {}}
    # Our boxes are edges, x2 - x1 is the width; the devkit's + 1 belongs to the pixels of the XML files.
    voc07 = average_precision.voc(detections, truths, len(labels), style="11-point", inclusive_pixels=False)
    voc10 = average_precision.voc(detections, truths, len(labels), style="area", inclusive_pixels=False)
    coco = average_precision.coco(detections, truths, len(labels))
    per_class = coco.pop("per_class")
    summary |= {"voc07_map": voc07["map"], "voc10_map": voc10["map"]}
    summary["coco"] = {name: float(value) for name, value in coco.items()}
    for index, label in enumerate(labels):
        summary["classes"][label] = {
            "objects": int(np.sum(truths.label == index)), "voc07_ap": float(voc07["ap"][index]),
            "voc10_ap": float(voc10["ap"][index]), "coco_ap": float(per_class[index])}
    summary["notes"] = notes(found, summary)
    return summary, voc10


def notes(found, summary):
    """What has to be known beside the figures of a `summarize`: why some are nan, and what no detector could reach."""
    truths, lines = found.truths, []
    absent = [label for label, row in summary["classes"].items() if np.isnan(row["voc10_ap"])]
    hidden = any(summary["classes"][label]["objects"] for label in absent)
    nothing = "no picture has an object" + " (difficult ones and crowds apart)" * hidden
    if len(absent) == len(summary["classes"]):
        lines.append(f"{nothing}: there is no average precision to measure, it is nan")
    elif absent:
        named = ", ".join(absent[:NAMED]) + (f" and {len(absent) - NAMED} more" if len(absent) > NAMED else "")
        lines.append(f"{nothing} of {len(absent)} of the {len(summary['classes'])} classes; their average precision is "
                     f"nan, and the means are those of the others: {named}")
    _, per_picture = np.unique(truths.image, return_counts=True)
    if np.any(per_picture > found.most):
        lines.append(f"{np.sum(per_picture > found.most)} of {found.pictures} pictures have more than {found.most} "
                     "objects, and no more than that are detected in a picture: the others count as missed")
    _, per_class = np.unique([truths.image, truths.label], axis=1, return_counts=True)
    if np.any(per_class > COCO_MOST):
        lines.append(f"some pictures have up to {per_class.max()} objects of a class, and COCO's figures take the best "
                     f"{COCO_MOST} detections of a class in a picture, as its evaluator does: they cannot reach 1")
    return [f"note: {line}." for line in lines]


def validate(detect, dataset, strategy, *, folder, split, labels):
    """({"map50": VOC10 mAP at IoU 0.5, "coco_ap": COCO AP}, picture grid uint8) of a split, for train.py.

    Says on stderr where there is nothing to measure: no epoch is then better than another, and none is kept as best.
    """
    found = collect(detect, dataset, strategy)
    summary, _ = summarize(found, labels)
    if np.isnan(summary["voc10_map"]):
        print(f"{summary['notes'][0]} No epoch of {split} is kept as the best.", file=sys.stderr)
    samples = draw_samples(folder, split, found.detections, labels)
    return {"map50": summary["voc10_map"], "coco_ap": summary["coco"]["AP"]}, samples


def draw_samples(folder, split, detections, labels, count=16, score_threshold=0.3, side=320):
    """The first pictures of a split with their detections, as one uint8 picture."""
    pictures = []
    for index, item in enumerate(records.dataset(folder, split, limit=count)):
        image = detection.decode_image(detection.parse(item["record"])["image_bytes"]).numpy()
        scale = side / max(image.shape[:2])
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        here = (detections.image == index) & (detections.score > score_threshold)
        classes = detections.label[here]
        names = [labels[label] for label in classes]
        pictures.append(drawing.draw_boxes(image, detections.boxes_xyxy[here] * scale, names,
                                           detections.score[here], classes))
    return drawing.grid(pictures, columns=4)


def table(summary):
    """The summary as text: a line a class, then the means."""
    width = max([5, *map(len, summary["classes"])])
    lines = [f"{summary['pictures']} pictures, {summary['objects']} objects",
             f"{'class':{width}}  objects   VOC07   VOC10    COCO"]
    for label, row in summary["classes"].items():
        lines.append(f"{label:{width}}  {row['objects']:7d}  {row['voc07_ap']:6.3f}  {row['voc10_ap']:6.3f}  "
                     f"{row['coco_ap']:6.3f}")
    coco = summary["coco"]
    lines.append(f"{'mean':{width}}  {summary['objects']:7d}  {summary['voc07_map']:6.3f}  "
                 f"{summary['voc10_map']:6.3f}  {coco['AP']:6.3f}")
    if "errors" in summary:
        kinds, found = summary["errors"]["kinds"], summary["errors"]["found"]
        lines.append("detections above 0.25  " + "  ".join(f"{name} {count}" for name, count in kinds.items()))
        lines.append("objects found by them  " + "  ".join(f"{size} {got} of {total}"
                                                           for size, (got, total) in found.items()))
    lines.append("COCO  " + "  ".join(f"{name} {value:.3f}" for name, value in coco.items()))
    return "\n".join([*lines, *summary["notes"]])


def write_report(out, split, summary, curves, labels):
    """Writes <split>.json and the precision-recall picture; returns their paths."""
    files.make_folder(out)
    files.write_json(out / f"{split}.json", without_nan(summary))
    lines = {f"{label} {summary['classes'][label]['voc10_ap']:.2f}": (curves["recall"][i], curves["precision"][i])
             for i, label in enumerate(labels) if np.isfinite(summary["classes"][label]["voc10_ap"])}
    drawing.curves(out / f"{split}_precision_recall.png", lines, xlabel="recall", ylabel="precision",
                   title=f"{split}: mAP@0.5 {summary['voc10_map']:.3f}")
    return out / f"{split}.json", out / f"{split}_precision_recall.png"


def without_nan(value):
    """The same nested dict with None for NaN, which JSON does not have: classes and sizes without a truth."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def define_flags():
    """The flags of every detector's evaluate.py."""
    cli.define_run_flag()
    cli.flags.DEFINE_string("tfrecords", None, "Record set; default: the one the run was trained on.")
    cli.flags.DEFINE_alias("dataset", "tfrecords")
    cli.flags.DEFINE_string("split", None, "Split to evaluate; default val, or train of a run with --limit.")
    cli.flags.DEFINE_integer("limit", 0, "Evaluate the first N examples; 0 takes all.", lower_bound=0)
    cli.flags.DEFINE_enum("which", "best", ["best", "last"], "Weights of the best or of the last epoch.")
    cli.flags.DEFINE_integer("batch_size", 16, "Pictures per step over all replicas.", lower_bound=1)
    cli.flags.DEFINE_string("out", None, "Folder of the report; default <run>/evaluation.")


def choose_records(flags, config, command, kind=detection.KIND):
    """(folder, split, limit): what to evaluate the run of config.json on. Raises UserError.

    command: function from the name of a record set to the command that builds it. kind: of records.
    """
    name = flags.tfrecords or config.get("tfrecords")
    if not name:
        raise UserError(f"{flags.run} was not trained here; say with --tfrecords what to evaluate it on.")
    limited = bool(config.get("limit")) and not flags.tfrecords
    split = flags.split or ("train" if limited else "val")
    folder = records.resolve(name, kind=kind, split=split, command=command(name))
    limit = flags.limit or (config["limit"] if limited and split == "train" else 0)
    class_names.require_same(config["labels"], records.read_manifest(folder)["labels"], str(flags.run), str(folder))
    return folder, split, limit


def report(flags, split, found, labels, extra=None):
    """Prints the table, writes the report and prints its paths; returns the folder of the report.

    found: of `collect`. extra: further entries of <split>.json.
    """
    summary, curves = summarize(found, labels)
    summary["errors"] = detection_errors(found.detections, found.truths)
    print(table(summary))
    out = pathlib.Path(flags.out or pathlib.Path(flags.run) / "evaluation")
    for path in write_report(out, split, {**summary, **(extra or {})}, curves, labels):
        print(path)
    return out
