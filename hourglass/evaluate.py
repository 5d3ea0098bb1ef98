"""How well a run finds joints: PCKh@0.5 (MPII), PCK@0.2 (LSP) or OKS average precision (COCO), joint by joint.

    python -m hourglass.evaluate --run runs/hourglass/mpii [--split val] [--flip_test] [--metric pck]

Every person is cropped around the centre that is annotated, as usual in the literature; nobody is searched for. A run
that was trained with --limit is shown the crops of its training.
The article's open question, both feet "to the same location", is answered in numbers.

P persons, B batch, K joints.
"""

import pathlib
import types
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from common import cli, detection_evaluate, drawing, files, records, training
from common.errors import UserError
from common.metrics import keypoints
from hourglass import crops, doctor, poses, preprocess, report
from hourglass.postprocess import postprocess
from hourglass.predict import load_run, require_mirrors

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
    # HRNet's mpii.py prints as Mean@0.1 what it finds at 0.11.
    "pckh": Metric("PCKh@0.5", 0.5, "PCKh@0.1", 0.1, "head sizes"),
    "pck": Metric("PCK@0.2", 0.2, "PCK@0.1", 0.1, "lengths of the torso"),
    # For bodies without head and torso: every record has a height. Heads and torsos give about that threshold.
    "pck_height": Metric("PCK@0.05 of the height", 0.05, "PCK@0.02", 0.02, "heights of the body"),
    # Of single joints: the distance at which their similarity, exp(-d**2 / 2), is that number.
    "oks": Metric("KS 0.5", float(np.sqrt(2 * np.log(2))), "KS 0.75", float(np.sqrt(2 * np.log(4 / 3))),
                  "2 sigma sqrt(area)"),
}


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


def crop_of(config):
    """The crop to evaluate a run of config.json on: the square around the centre, but with `limit` the one that
    training showed, because such a run is asked whether it has learnt by heart what it saw."""
    return config.get("crop", "article") if config.get("limit") else "center"


def batches(folder, split, strategy, config, *, batch_size, limit=0):
    """The evaluation dataset of a split, distributed over the replicas; batch_size is the global one.

    Without the file names: text has no place on an accelerator.
    """
    def make_dataset(replica_batch_size, context):
        dataset = preprocess.evaluation_dataset(
            folder, split, image_size=config["image_size"], batch_size=replica_batch_size,
            global_batch_size=batch_size, limit=limit, crop=crop_of(config))
        return dataset.map(lambda batch: {key: value for key, value in batch.items() if key != "filename"})

    return training.distribute(strategy, make_dataset, batch_size)


def collect(predict, batches, strategy):
    """Runs `predict` over an evaluation dataset; returns arrays over all persons, in the order of the records.

    "predicted" [P, K, 2] in pixels of the pictures, "scores" [P, K], and what `preprocess.evaluation_dataset` says
    of each person ("joints" is the truth) but its pixels.
    """
    found = {}
    for batch in batches:
        predicted, scores = predict(batch)
        values = {key: value for key, value in batch.items() if key != "images"}
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
        raise UserError("PCK is measured in lengths of the torso, and this record set does not say which joints "
                        "are its ends. Give --metric pckh or oks.")
    if metric == "oks":
        if len(body.sigmas) != len(body.labels):
            raise UserError(f"OKS needs the sigma of every joint, and this record set has {len(body.sigmas)} for "
                            f"{len(body.labels)} joints. Give --metric pckh or pck.")
        keypoints.require_pycocotools()
    return metric


def usable_metric(folder, split, body, limit=0):
    """(key, `Metric` as `named`) of the record set's metric or, where it can measure no person of the split, of one
    that can measure some: PCK of the torso, PCK of the height. Says so then. Raises UserError as `choose_metric`."""
    keys = ("joints", "visible", "head_size", "scale", "area")
    stream = records.dataset(folder, split, epochs=1, limit=limit).batch(64)
    for metric in dict.fromkeys((choose_metric(body), "pck", "pck_height")):
        if metric == "pck" and len(body.torso) != 2:
            continue
        for batch in stream:
            example = poses.parse(batch["record"], len(body.labels))
            found = {key: example[key].numpy() for key in keys}
            if (reference_lengths(found, body, metric) > 0).any():
                if metric != body.metric:
                    print(f"No person of {split} of {folder} can be measured in {METRICS[body.metric].unit}: "
                          f"{METRICS[metric].name} is taken instead of {METRICS[body.metric].name}.", flush=True)
                return metric, named(found, body, metric)
    raise UserError(f"The persons of {split} of {folder} must have a head, a torso, an area or a height to measure "
                    "distances in, and none has. python -m hourglass.preprocess --check says what is wrong.")


def head_lengths(found, body):
    """How many persons have the distance of the head's two ends for a head size, as `poses.mend` takes it where the
    source has no box of the head."""
    if len(body.head) != 2:
        return 0
    ends = found["joints"][:, list(body.head)].astype(np.float64)
    apart, known = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1), found["head_size"] > 0
    known = known & (found["visible"][:, list(body.head)] > 0).all(axis=1)
    return int((known & (np.abs(apart - found["head_size"]) <= 1e-4 * apart)).sum())


def named(found, body, metric):
    """The `Metric`; PCKh is MPII's name, so without boxes of the heads the metric gets another one."""
    chosen, count = METRICS[metric], head_lengths(found, body)
    if metric != "pckh" or not count:
        return chosen
    neck, top = (body.labels[joint] for joint in body.head)
    unit = (f"head lengths, {neck} to {top} for {count} of the persons: not to be held against MPII's PCKh, which "
            "takes 0.6 times the diagonal of the head's box")
    return chosen._replace(name="PCK@0.5 of the head length", strict_name="PCK@0.1", unit=unit)


def reference_lengths(found, body, metric):
    """[P] or [P, K]: what the distances of each person are measured in, 0 where it is not known."""
    if metric == "pckh":
        return found["head_size"]
    if metric == "pck_height":
        return found["scale"] * crops.BODY_HEIGHT
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
    sets = {}
    for name, joints in joint_sets(body).items():
        arrays = (found[key][:, joints] for key in ("predicted", "joints", "visible"))
        sets[name] = keypoints.pck(*arrays, lengths if lengths.ndim == 1 else lengths[:, joints], thresholds)
    return sets


def average_precision(found, body):
    """Dict of `keypoints.oks_ap`, of the persons that have an area."""
    known = {key: value[found["area"] > 0] for key, value in found.items()}
    results = keypoints.coco_results(known["predicted"], known["scores"], known["image_id"])
    truths = keypoints.coco_truths(*(known[key] for key in ("joints", "visible", "area", "box", "image_id")))
    return keypoints.oks_ap(results, truths, body.sigmas)


def without_looking(found, body, metric, size):
    """{"mean pose", "best fixed place": figures as of `summarize`} of answers that are the same for every crop.

    Both are taken from the evaluated persons themselves: the mean place of each joint in the crops, and the place
    where it is right most often. A network that has learnt something is better. size: side of the crops.
    """
    linear, start = np.split(found["to_picture"].astype(np.float64), [2], axis=2)                # [P, 2, 2], [P, 2, 1]
    turned = np.swapaxes(linear, 1, 2)
    in_crop = (found["joints"] - start[:, None, :, 0]) @ np.linalg.inv(turned) / size
    lengths = reference_lengths(found, body, metric)
    lengths = np.broadcast_to(lengths if lengths.ndim == 2 else lengths[:, None], in_crop.shape[:2])
    counts = (found["visible"] > 0) & (lengths > 0)
    zoom = np.sqrt(np.abs(np.linalg.det(linear)))[:, None] * size
    with np.errstate(invalid="ignore"):
        mean = np.where(counts[..., None], in_crop, 0).sum(axis=0) / counts.sum(axis=0)[:, None]
    places = keypoints.best_places(in_crop, np.where(counts, METRICS[metric].threshold * lengths / zoom, np.nan))
    return {name: summarize({**found, "predicted": place * size @ turned + start[:, None, :, 0],
                             "scores": np.ones(counts.shape)}, body, metric)
            for name, place in {"mean pose": mean, "best fixed place": places}.items()}


def summarize(found, body, metric=None):
    """The main figures of `collect`'s arrays by name, for logs; the first is the one to judge a run by.

    {"pckh", "pckh_no_pelvis_thorax"}, {"pck", ...}: shares of all joints that are right, NaN if nothing can be
    measured; {"oks_ap", "oks_ap50"}. The second set is there if the joints are. metric: default the record set's.
    """
    metric = choose_metric(body, metric)
    if metric == "oks":
        return headline(metric, {}, average_precision(found, body))
    return headline(metric, measure(found, body, metric))


def headline(metric, sets, precision=None):
    """What `summarize` returns, of `measure` or of `average_precision`."""
    if metric == "oks":
        return {"oks_ap": precision["AP"], "oks_ap50": precision["AP50"]}
    names = (metric, f"{metric}_no_pelvis_thorax")
    return {name: float(pck.mean[-1]) for name, pck in zip(names, sets.values())}


def details(found, body, metric):
    """(dict for the JSON file, {joint set: `keypoints.Pck`}) of `collect`'s arrays; NaN where there is nothing."""
    chosen, sets = named(found, body, metric), measure(found, body, metric)
    precision = average_precision(found, body) if metric == "oks" else None
    every = next(iter(sets.values()))
    strict = int(np.searchsorted(every.thresholds, chosen.strict))
    summary = {**headline(metric, sets, precision), "persons": len(found["index"]), "metric": metric,
               "name": chosen.name, "strict_name": chosen.strict_name, "threshold": chosen.threshold,
               "unit": chosen.unit, "left_out": every.left_out, "sets": {}, "joints": {}}
    for name, pck in sets.items():
        summary["sets"][name] = {
            "joints": int(pck.count.sum()), chosen.name: float(pck.mean[-1]),
            chosen.strict_name: float(pck.mean[strict]), "area": pck.area_mean,
            "mean of the joints": float(pck.joint_mean[-1])}
    for joint, label in enumerate(body.labels):
        summary["joints"][label] = {
            "joints": int(every.count[joint]), chosen.name: float(every.curve[-1, joint]),
            chosen.strict_name: float(every.curve[strict, joint]), "area": float(every.area[joint])}
    if metric == "oks":
        arrays = (found[key] for key in ("predicted", "joints", "visible", "area"))
        summary["oks"] = {**precision, "mean": float(np.nanmean(keypoints.oks(*arrays, body.sigmas)))}
        _, persons = np.unique(found["image_id"], return_counts=True)
        summary["pictures of more than 20 persons"] = int((persons > 20).sum())
    summary["left_and_right"] = left_and_right(found, body, metric)
    return summary, sets


def left_and_right(found, body, metric):
    """{"left, right": {what: [how often, of how many]}} for each pair of joints.

    "exchanged": predicted joints that lie within the threshold of the other side's true one, not of their own.
    "on one spot": persons whose two joints are closer than doctor.COINCIDE of the body's height, as predicted and
    as annotated, where both are annotated; and as predicted where only one is: the article's "only one foot in the
    image".
    """
    pairs, annotated = [list(pair) for pair in body.pairs], found["visible"] > 0
    alone = np.zeros_like(annotated)
    for pair in pairs:
        alone[:, pair] = (annotated[:, pair[0]] != annotated[:, pair[1]])[:, None]

    def together(joints, visible):
        persons = types.SimpleNamespace(joints=joints, visible=visible, scale=found["scale"])
        return doctor.coinciding(persons, pairs)

    columns = {
        "exchanged": keypoints.exchanged(found["predicted"], found["joints"], annotated,
                                         reference_lengths(found, body, metric), pairs, METRICS[metric].threshold),
        "predicted on one spot": together(found["predicted"], annotated),
        "annotated on one spot": together(found["joints"], annotated),
        "predicted on one spot, one of them annotated": together(found["predicted"], alone)}
    return {", ".join(body.labels[joint] for joint in pair): {what: list(counts[number])
                                                             for what, counts in columns.items()}
            for number, pair in enumerate(pairs)}


def person_errors(found, body, metric):
    """[P]: mean distance of a person's joints in thresholds, each at most 2; NaN where nothing counts."""
    apart = keypoints.distances(found["predicted"], found["joints"], found["visible"],
                                reference_lengths(found, body, metric)) / METRICS[metric].threshold
    counts = ~np.isnan(apart)
    total = np.where(counts, np.minimum(apart, 2), 0).sum(axis=1)
    return np.where(counts.any(axis=1), total / np.maximum(counts.sum(axis=1), 1), np.nan)


def write_report(out, split, found, body, metric, folder, *, size, crop="center"):
    """Writes <split>.json, curves and samples to `out`; returns (the summary, paths). size: side of the crops."""
    summary, sets = details(found, body, metric)
    summary["without looking"] = without_looking(found, body, metric, size)
    files.make_folder(out)
    paths = {"curves": out / f"{split}_{metric}.png"}
    report.draw_curves(paths["curves"], sets, body, summary, f"{split}: {len(found['index'])} persons")
    errors, summary["samples"] = person_errors(found, body, metric), {}
    for kind, chosen in report.choose_samples(errors).items():
        picture, names = report.draw_persons(folder, split, found, body, chosen, crop)
        paths[kind] = out / f"{split}_{kind}.png"
        drawing.write_png(paths[kind], picture)
        summary["samples"][kind] = [
            {"file": name, "person_id": int(found["person_id"][row]),
             "error": float(errors[row]) if np.isfinite(errors[row]) else None}
            for name, row in zip(names, chosen)]
    if metric == "oks":
        paths["results"] = out / f"{split}_coco_results.json"
        files.write_json(paths["results"], keypoints.coco_results(found["predicted"], found["scores"],
                                                                  found["image_id"]))
    return summary, paths


def define_flags():
    detection_evaluate.define_flags()
    cli.flags.DEFINE_enum("metric", None, list(METRICS), "PCKh@0.5, PCK@0.2 of the torso, OKS average precision, or "
                          "PCK@0.05 of the body's height; default: the record set's own, if it can be measured.")
    cli.flags.DEFINE_bool("flip_test", False, "Average the heatmaps with those of the mirrored crop.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    strategy = training.make_strategy()
    with strategy.scope():
        model, config = load_run(flags.run, flags.which)
    folder, split, limit = detection_evaluate.choose_records(flags, config, preprocess.command, preprocess.KIND)
    body = poses.body_of(folder)
    metric = choose_metric(body, flags.metric) if flags.metric else usable_metric(folder, split, body, limit)[0]
    if flags.flip_test:
        require_mirrors(body)
    predict = make_predict(model, strategy, body.pairs, flags.flip_test)
    dataset = batches(folder, split, strategy, config, batch_size=flags.batch_size, limit=limit)
    found = collect(predict, dataset, strategy)
    if not (reference_lengths(found, body, metric) > 0).any():
        raise UserError(f"{METRICS[metric].name} is measured in {METRICS[metric].unit}, and of no person of {split} of "
                        f"{folder} they are known. Leave --metric out: what can be measured is taken then.")
    if crop_of(config) != "center":
        print(f"crops of training ({crop_of(config)}), because the run was trained with --limit")
    out = pathlib.Path(flags.out or pathlib.Path(flags.run) / "evaluation")
    summary, paths = write_report(out, split, found, body, metric, folder, size=config["image_size"],
                                  crop=crop_of(config))
    print(report.table(summary))
    summary = {"split": split, "flip_test": flags.flip_test, **summary}
    paths["json"] = out / f"{split}.json"
    files.write_json(paths["json"], detection_evaluate.without_nan(summary))
    for path in paths.values():
        print(path)


if __name__ == "__main__":
    cli.run(main, define_flags)
