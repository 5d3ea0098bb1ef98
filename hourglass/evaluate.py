"""How well a run finds joints: PCKh@0.5 (MPII), PCK@0.2 (LSP) or OKS average precision (COCO), joint by joint.

    python -m hourglass.evaluate --run runs/hourglass/mpii [--split val] [--flip_test] [--metric pck]

Every person is cropped around the centre that is annotated, as usual in the literature; nobody is searched for. The
article's open question, both feet "to the same location", is answered in numbers. P persons, B batch, K joints, S
side of the network input.
"""

import pathlib
import types
from typing import NamedTuple

import cv2
import numpy as np
import tensorflow as tf

from common import cli, detection_evaluate, drawing, files, records, runtime, training
from common.errors import UserError
from common.metrics import keypoints
from hourglass import crops, doctor, poses, preprocess
from hourglass.model import MODELS
from hourglass.postprocess import postprocess

SAMPLES = 6          # persons in each of the pictures
SIDE = 256           # pixels of a person in them
STEPS = 50           # of a curve
VIRTUAL = {"pelvis", "thorax"}  # joints of MPII that its own evaluation leaves out of the mean


class Metric(NamedTuple):
    """What distances are measured in, and which are right."""

    name: str
    threshold: float
    strict_name: str
    strict: float        # a second threshold, for the table
    unit: str


METRICS = {
    "pckh": Metric("PCKh@0.5", 0.5, "PCKh@0.1", 0.1, "head sizes"),
    "pck": Metric("PCK@0.2", 0.2, "PCK@0.1", 0.1, "lengths of the torso"),
    # Of single joints: the distance at which their similarity, exp(-d**2 / 2), is that number.
    "oks": Metric("KS 0.5", float(np.sqrt(2 * np.log(2))), "KS 0.75", float(np.sqrt(2 * np.log(4 / 3))),
                  "2 sigma sqrt(area)"),
}


def load_run(folder, which="best"):
    """(model, config) of a run folder, with the weights of its best or last epoch. Raises UserError."""
    keys = ("num_stacks", "filters", "order", "num_residual", "variant")
    return runtime.read_run(
        folder, which, article="hourglass", keys=(*keys, "image_size", "labels"),
        build=lambda config: MODELS["hourglass"](len(config["labels"]), **{key: config[key] for key in keys}))


def make_predict(model, strategy, pairs, flip=False):
    """The function from a batch of `batches` to (joints [B, K, 2] in pixels of the pictures, scores [B, K]).

    flip: heatmaps are averaged with those of the mirrored crop. pairs: joints (left, right) that swap in it.
    """
    def heatmaps(images):
        return tf.nest.flatten(model(images, training=False))[-1]  # of the last stack

    def replica(images, to_picture):
        flipped = heatmaps(images[:, :, ::-1]) if flip else None
        joints_xy, scores = postprocess(heatmaps(images), flipped, pairs)
        moved = tf.einsum("bij,bkj->bki", to_picture[:, :, :2], joints_xy) + to_picture[:, None, :, 2]
        return moved, scores

    @tf.function
    def predict(batch):
        return strategy.run(replica, args=(batch["images"], batch["to_picture"]))

    return predict


def batches(folder, split, strategy, config, *, batch_size, limit=0):
    """The evaluation dataset of a split, distributed over the replicas; batch_size is the global one.

    Without the file names: text has no place on an accelerator.
    """
    def make_dataset(replica_batch_size, context):
        dataset = preprocess.evaluation_dataset(
            folder, split, image_size=config["image_size"], batch_size=replica_batch_size,
            global_batch_size=batch_size, limit=limit)
        return dataset.map(lambda batch: {key: value for key, value in batch.items() if key != "filename"})

    return training.distribute(strategy, make_dataset, batch_size)


def collect(predict, batches, strategy):
    """Runs `predict` over an evaluation dataset; returns arrays over all persons, in the order of the records.

    "predicted" [P, K, 2] in pixels of the pictures, "scores" [P, K], and what `preprocess.evaluation_dataset` says
    of each person ("joints" is the truth) but its crop.
    """
    found = {}
    for batch in batches:
        predicted, scores = predict(batch)
        values = {key: value for key, value in batch.items() if key not in ("images", "to_picture")}
        local = {name: np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
                 for name, value in {**values, "predicted": predicted, "scores": scores}.items()}
        real = local["index"] >= 0  # the others fill the last batch up
        for name, value in local.items():
            found.setdefault(name, []).append(value[real])
    if not found:
        raise UserError("There is nothing to evaluate: the record set has no example in this split.")
    found = {name: np.concatenate(values) for name, values in found.items()}
    order = np.argsort(found["index"], kind="stable")
    return {name: value[order] for name, value in found.items()}


def choose_metric(body, metric=None):
    """`metric`, or the record set's own; UserError where its joints, or what is installed, do not allow it."""
    metric = metric or body.metric
    if metric == "pck" and len(body.torso) != 2:
        raise UserError("PCK is measured in lengths of the torso, and this record set does not say which joints are "
                        "its ends. Give --metric pckh or oks.")
    if metric == "oks":
        if len(body.sigmas) != len(body.labels):
            raise UserError(f"OKS needs the sigma of every joint, and this record set has {len(body.sigmas)} for "
                            f"{len(body.labels)} joints. Give --metric pckh or pck.")
        keypoints.require_pycocotools()
    return metric


def reference_lengths(found, body, metric):
    """[P] or [P, K]: what the distances of each person are measured in, 0 where it is not known."""
    if metric == "pckh":
        return found["head_size"]
    if metric == "oks":
        return keypoints.oks_lengths(found["area"], body.sigmas)
    ends = found["joints"][:, list(body.torso)].astype(np.float64)
    known = (found["visible"][:, list(body.torso)] > 0).all(axis=1)
    return np.where(known, np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1), 0)


def joint_sets(body):
    """{name: indices}: all joints, and those that MPII's own evaluation takes the mean of."""
    rest = [joint for joint, label in enumerate(body.labels) if label not in VIRTUAL]
    sets = {f"all {len(body.labels)} joints": list(range(len(body.labels)))}
    if len(rest) < len(body.labels):
        left_out = sorted(VIRTUAL & set(body.labels))
        sets[f"{len(rest)} joints, without {' and '.join(left_out)}"] = rest
    return sets


def measure(found, body, metric):
    """{name of a joint set: `keypoints.Pck`} with thresholds from 0 to the metric's own."""
    chosen = METRICS[metric]
    thresholds = np.sort(np.append(np.linspace(0, chosen.threshold, STEPS + 1), chosen.strict))
    lengths = reference_lengths(found, body, metric)
    return {name: keypoints.pck(found["predicted"][:, joints], found["joints"][:, joints], found["visible"][:, joints],
                                lengths if lengths.ndim == 1 else lengths[:, joints], thresholds)
            for name, joints in joint_sets(body).items()}


def average_precision(found, body):
    """Dict of `keypoints.oks_ap`."""
    results = keypoints.coco_results(found["predicted"], found["scores"], found["image_id"])
    truths = keypoints.coco_truths(*(found[key] for key in ("joints", "visible", "area", "box", "image_id")))
    return keypoints.oks_ap(results, truths, body.sigmas)


def summarize(found, body, metric=None):
    """The main figures of `collect`'s arrays by name, for logs; the first is the one to judge a run by.

    {"pckh", "pckh_no_pelvis_thorax"}, {"pck", ...}: shares of all joints that are right, NaN if nothing can be
    measured; {"oks_ap", "oks_ap50"}. The second set is there if the joints are. metric: default the record set's.
    """
    metric = choose_metric(body, metric)
    if metric == "oks":
        precision = average_precision(found, body)
        return {"oks_ap": precision["AP"], "oks_ap50": precision["AP50"]}
    names = (metric, f"{metric}_no_pelvis_thorax")
    return {name: float(pck.mean[-1]) for name, pck in zip(names, measure(found, body, metric).values())}
