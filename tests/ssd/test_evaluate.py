"""The article's table and curves by confidence, worked out by hand and against suppression itself; the command."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf

from common import detection_demo
from common.errors import UserError
from common.metrics import average_precision
from ssd import convert, evaluate
from ssd.model import anchors
from ssd.postprocess import postprocess
from tests.ssd import small

ROOT = pathlib.Path(__file__).parents[2]


def by_hand():
    """Class 0: four objects, three found with 0.9, 0.2, 0.05, one false with 0.4. Class 1: one, found with 0.2."""
    places = np.array([[0, 0, 10, 10], [20, 20, 40, 40], [0, 0, 30, 30], [50, 50, 60, 60], [5, 5, 9, 9]], float)
    truths = average_precision.Truths(np.array([0, 0, 1, 1, 1]), np.array([0, 0, 0, 0, 1]), places)
    nowhere = [100.0, 100.0, 110.0, 110.0]
    detections = average_precision.Detections(
        np.array([0, 0, 1, 0, 1]), np.array([0, 0, 0, 0, 1]), np.array([0.05, 0.4, 0.2, 0.9, 0.2]),
        np.array([places[1], nowhere, places[2], places[0], places[4]]))
    return detections, truths


def random_case(num_classes=3, num_truths=60, num_detections=400):
    rng = np.random.default_rng(0)

    def boxes(count):
        low = rng.uniform(0, 80, [count, 2])
        return np.concatenate([low, low + rng.uniform(5, 40, [count, 2])], axis=1)

    images, labels = rng.integers(10, size=num_truths), rng.integers(num_classes, size=num_truths)
    truths = average_precision.Truths(images, labels, boxes(num_truths))
    source = rng.integers(num_truths, size=num_detections)
    moved = truths.boxes_xyxy[source] + rng.normal(0, 3, [num_detections, 4])
    return average_precision.Detections(truths.image[source], truths.label[source],
                                        rng.beta(0.5, 1, num_detections), moved), truths


def test_table_and_curves_by_hand():
    found = evaluate.by_confidence(*by_hand(), 3)
    # Recalls 0, .1, .2, ... of class 0: above .5 and .3 precision 1 up to recall 1/4; above .1 also 2/3 up to 1/2;
    # above .01 3/4 up to 3/4.
    expected = {0.01: (3 + 5 * 0.75) / 11, 0.1: (3 + 3 * 2 / 3) / 11, 0.3: 3 / 11, 0.5: 3 / 11}
    for confidence, ap in expected.items():
        other = 1.0 if confidence < 0.2 else 0.0
        np.testing.assert_allclose(found[confidence]["voc07"]["ap"], [ap, other, np.nan], rtol=1e-12)
        assert found[confidence]["voc07"]["map"] == pytest.approx((ap + other) / 2)
    assert [list(row["detections"]) for row in found.values()] == [[4, 1, 0], [3, 1, 0], [2, 0, 0], [1, 0, 0]]

    labels = ["cat", "dog", "none"]
    assert evaluate.confidence_table(found, labels).splitlines() == [
        "confidence     0.01     0.10     0.30     0.50",
        "cat           0.614    0.455    0.273    0.273",
        "dog           1.000    1.000    0.000    0.000",
        "mean          0.807    0.727    0.136    0.136",
        "detections        5        4        2        1"]
    assert evaluate.confidence_table(found, labels, "cat").splitlines()[1:] == [
        "cat           0.614    0.455    0.273    0.273",
        "detections        4        3        2        1"]
    recall, precision = evaluate.confidence_curves(found, labels, "cat")["above 0.10: AP 0.455"]
    np.testing.assert_allclose([recall, precision], [[0.25, 0.25, 0.5], [1, 0.5, 2 / 3]])
    # The mean of class 0 (1 up to 1/4, 3/4 up to 3/4, then 0) and class 1 (1 everywhere).
    recall, precision = evaluate.mean_curve(found[0.01]["voc07"])
    np.testing.assert_allclose(precision[[0, 25, 26, 75, 76, 100]], [1, 1, 0.875, 0.875, 0.5, 0.5])
    recall, precision = evaluate.mean_curve(found[0.5]["voc07"])
    np.testing.assert_allclose([recall[-1], precision[-1], len(recall)], [0.25, 0.5, 26])
    summary = evaluate.confidence_summary(found, labels)
    assert summary["0.30"]["detections"] == 2 and summary["0.30"]["voc07_ap"]["dog"] == 0


def test_lower_thresholds_continue_the_curves_and_never_lower_the_average_precision():
    found = list(evaluate.by_confidence(*random_case(), 3).values())
    for lower, higher in zip(found, found[1:]):
        lower, higher = lower["voc07"], higher["voc07"]
        assert (lower["ap"] >= higher["ap"]).all()
        for name in ("recall", "precision"):
            for longer, shorter in zip(lower[name], higher[name]):
                assert len(longer) > len(shorter) > 0
                np.testing.assert_array_equal(longer[:len(shorter)], shorter)
    assert found[0]["voc07"]["map"] > found[-1]["voc07"]["map"] > 0


def test_nothing_found_and_nothing_there():
    detections, truths = by_hand()
    empty = average_precision.Detections(*(column[:0] for column in detections))
    found = evaluate.by_confidence(empty, truths, 2)
    assert found[0.5]["voc07"]["map"] == 0
    assert [len(curve[0]) for curve in evaluate.confidence_curves(found, ["cat", "dog"]).values()] == [0] * 4
    nothing = average_precision.Truths(*(column[:0] for column in truths[:3]))
    assert len(evaluate.mean_curve(evaluate.by_confidence(detections, nothing, 2)[0.01]["voc07"])[0]) == 0


def test_detections_above_a_threshold_are_those_of_suppression_at_that_threshold():
    """The table needs one pass through the network: what is kept does not depend on what scores lower."""
    rng = np.random.default_rng(1)
    all_anchors = anchors("tiny")
    logits = rng.normal(0, 1.5, [2, len(all_anchors), 4]).astype(np.float32)
    predictions = {"logits": logits, "offsets": rng.normal(0, 0.5, [2, len(all_anchors), 4]).astype(np.float32)}
    everything = postprocess(predictions, all_anchors, score_threshold=0.01)
    for confidence in evaluate.CONFIDENCES[1:]:
        kept = postprocess(predictions, all_anchors, score_threshold=confidence)
        for i in range(2):
            num = int(kept["num"][i])
            assert num == np.sum(everything["scores"][i] > confidence) > 0
            for name in ("boxes", "scores", "classes"):
                np.testing.assert_array_equal(kept[name][i, :num], everything[name][i, :num])


def test_detections_come_back_in_pixels():
    model = small.build()
    detect = evaluate.make_detect(model, tf.distribute.get_strategy(), anchors=anchors("tiny"))
    images = np.random.default_rng(2).uniform(size=[2, 160, 160, 3]).astype(np.float32)
    found = detect(images, np.array([100, 300], np.int32), np.array([400, 50], np.int32))
    expected = postprocess(model(images, training=False), anchors("tiny"))
    assert expected["num"].numpy().min() > 0
    for i, (width, height) in enumerate([(400, 100), (50, 300)]):
        # Cutting commutes with the stretch; some float32 roundings.
        pixels = np.clip(expected["boxes"][i], 0, 1) * np.array([width, height, width, height])
        np.testing.assert_allclose(found["boxes"][i], pixels, rtol=1e-4, atol=1e-3)


def test_command(tmp_path):
    folder = detection_demo.build(tmp_path, size=64, splits={"train": 2, "val": 6}, progress=False).folder
    labels = detection_demo.LABELS
    config = {**small.CONFIG, "labels": labels}
    model = small.randomize(convert.build(config))
    run = small.write_run(tmp_path / "run", model, labels=labels, tfrecords=str(folder))

    command = [sys.executable, "-m", "ssd.evaluate", "--run", run, "--label", "ring", "--batch_size", "4"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == 0, done.stderr[-3000:]
    assert "VOC07" in done.stdout and "confidence     0.01     0.10     0.30     0.50\nring  " in done.stdout
    summary = json.loads((run / "evaluation" / "val.json").read_text())
    assert list(summary["confidence"]) == ["0.01", "0.10", "0.30", "0.50"]
    assert summary["confidence"]["0.01"]["voc07_map"] == pytest.approx(summary["voc07_map"], abs=1e-12)
    picture = cv2.imread(str(run / "evaluation" / "val_confidence.png"))
    assert str(run / "evaluation" / "val_confidence.png") in done.stdout and picture.std() > 10
    with pytest.raises(UserError, match="--label must be one of disc, square.*'dog' came"):
        evaluate.check_label("dog", labels)
