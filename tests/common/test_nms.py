"""Suppression against the greedy algorithm written out slowly, TensorFlow's and Keras's, and served."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import nms as nms_module
from common.nms import nms

KEYS = ("boxes", "scores", "classes", "num")


def iou_twin(box, others):
    width = np.maximum(np.minimum(box[2], others[:, 2]) - np.maximum(box[0], others[:, 0]), np.float32(0))
    height = np.maximum(np.minimum(box[3], others[:, 3]) - np.maximum(box[1], others[:, 1]), np.float32(0))
    intersection = width * height
    areas = [np.maximum(b[..., 2] - b[..., 0], 0) * np.maximum(b[..., 3] - b[..., 1], 0)
             for b in (box, others)]
    union = areas[0] + areas[1] - intersection
    return np.where(union > 0, intersection / np.where(union > 0, union, 1), 0)


def greedy(boxes, scores, score_threshold, iou_threshold, max_detections, class_agnostic=False,
           candidates=None, candidates_per_class=None):
    """One picture, one candidate after the other: [(box index, class, score)]."""
    pairs = [(b, c) for b, c in np.argwhere(scores > score_threshold)]
    if class_agnostic:
        best = {}
        for b, c in pairs:
            if b not in best or scores[b, c] > scores[b, best[b]]:
                best[b] = c
        pairs = list(best.items())
    pairs.sort(key=lambda pair: -scores[pair])  # stable
    if candidates_per_class is not None:
        seen = dict.fromkeys(range(scores.shape[1]), 0)
        few = []
        for b, c in pairs:
            seen[c] += 1
            if seen[c] <= candidates_per_class:
                few.append((b, c))
        pairs = few
    kept, kept_boxes, kept_classes = [], np.zeros([0, 4], np.float32), np.zeros([0], int)
    for b, c in pairs[:candidates]:
        if len(kept) == max_detections:
            break
        rivals = kept_boxes if class_agnostic else kept_boxes[kept_classes == c]
        if np.isfinite(boxes[b]).all() and not (iou_twin(boxes[b], rivals) > np.float32(iou_threshold)).any():
            kept.append((b, c, scores[b, c]))
            kept_boxes, kept_classes = np.append(kept_boxes, boxes[b][None], 0), np.append(kept_classes, c)
    return kept


@functools.cache
def graph(num_classes, block, batch, **arguments):
    """nms as a function with N unknown; `block` only keeps traces with another BLOCK apart."""
    return tf.function(lambda boxes, scores: nms(boxes, scores, **arguments), input_signature=[
        tf.TensorSpec([batch, None, 4]), tf.TensorSpec([batch, None, num_classes])])


def check(boxes, scores, batch=None, **arguments):
    """nms in a graph with unknown B and N gives what `greedy` gives for every picture; returns it."""
    function = graph(scores.shape[-1], nms_module.BLOCK, batch, **arguments)
    found = {key: value.numpy() for key, value in function(boxes, scores).items()}
    assert found["boxes"].shape == (len(boxes), arguments["max_detections"], 4)
    for i, (picture_boxes, picture_scores) in enumerate(zip(boxes, scores)):
        kept = greedy(picture_boxes, picture_scores, **arguments)
        n = len(kept)
        assert found["num"][i] == n
        np.testing.assert_array_equal(found["classes"][i, :n], [c for _, c, _ in kept])
        np.testing.assert_array_equal(found["scores"][i, :n], [s for _, _, s in kept])
        np.testing.assert_array_equal(found["boxes"][i, :n],
                                      picture_boxes[[b for b, _, _ in kept]].reshape(-1, 4))
        assert (found["classes"][i, n:] == -1).all()
        assert not found["scores"][i, n:].any() and not found["boxes"][i, n:].any()
    return found


def crowded(batch, num_boxes, num_classes, seed, levels=None):
    """Boxes in clusters, many identical, some without area; `levels` distinct scores make ties."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(size=(batch, 7, 2)).repeat(-(-num_boxes // 7), axis=1)[:, :num_boxes]
    centres = centres + rng.normal(scale=0.02, size=centres.shape)
    sizes = rng.choice([0.0, 0.1, 0.15, 0.2], size=(batch, num_boxes, 2), p=[0.03, 0.3, 0.37, 0.3])
    boxes = np.concatenate([centres - sizes / 2, centres + sizes / 2], -1).astype(np.float32)
    boxes[:, ::5] = boxes[:, :1]
    scores = rng.uniform(size=(batch, num_boxes, num_classes)) ** 3
    if levels:
        scores = np.round(scores * levels) / levels
    return boxes, scores.astype(np.float32)


@pytest.mark.parametrize("arguments", [
    {},
    {"class_agnostic": True},
    {"candidates": 50},
    {"candidates_per_class": 20, "max_detections": 25},
    {"score_threshold": 0.9, "iou_threshold": 0.0},
    {"iou_threshold": 1.0, "score_threshold": 0.0, "max_detections": 2000},
], ids=str)
def test_equals_the_greedy_algorithm(arguments):
    arguments = {"score_threshold": 0.05, "iou_threshold": 0.45, "max_detections": 300} | arguments
    for seed, levels in ((0, None), (1, 8)):
        boxes, scores = crowded(3, 211, 4, seed, levels)
        check(boxes, scores, **arguments)


def test_a_chain_of_overlaps_and_the_sizes_of_block_and_prefix(monkeypatch):
    # Each box overlaps only its neighbours: every second one stays, and deciding takes as many rounds.
    left = np.arange(700, dtype=np.float32)
    boxes = np.stack([left, 0 * left, left + 2, 0 * left + 1], axis=-1)[None]
    scores = np.linspace(1, 0.5, 700, dtype=np.float32)[None, :, None]
    arguments = {"score_threshold": 0.1, "iou_threshold": 0.3, "max_detections": 1000}
    assert check(boxes, scores, **arguments)["num"][0] == 350
    monkeypatch.setattr(nms_module, "BLOCK", 3)  # many small blocks, sorted further after the ninth candidate
    monkeypatch.setattr(nms_module, "PREFIX", 9)
    check(boxes, scores, **arguments)
    check(*crowded(2, 60, 3, 2, 8), **arguments)


def test_edges():
    arguments = {"score_threshold": 0.5, "iou_threshold": 0.5, "max_detections": 5}
    unit = np.array([0, 0, 1, 1], np.float32)
    half = np.array([0, 0, 1, 0.5], np.float32)  # IoU with unit is exactly 0.5
    nan = np.array([0, np.nan, 1, 1], np.float32)
    infinite = np.array([0, 0, np.inf, 1], np.float32)

    def one(boxes, scores, **changed):
        return check(np.stack(boxes)[None], np.float32(scores)[None], **arguments | changed)

    assert one([unit, half], [[0.9], [0.8]])["num"][0] == 2  # suppressed only above the threshold
    assert one([unit, half], [[0.9], [0.8]], iou_threshold=0.49)["num"][0] == 1
    assert one([unit, half], [[0.5], [0.8]])["num"][0] == 1  # a score must be above its threshold
    assert one([unit], [[0.9, 0.8]])["classes"][0, :2].tolist() == [0, 1]  # multi-label
    assert one([unit, unit], [[0.7, 0.7], [0.7, 0.7]])["classes"][0].tolist() == [0, 1, -1, -1, -1]
    assert one([unit, half], [[0.6, 0.9], [0.8, 0.7]], class_agnostic=True, iou_threshold=0.4)["num"][0] == 1
    assert one([unit, unit], [[np.nan, 0.6], [np.nan, np.nan]])["num"][0] == 1
    assert one([unit, unit], [[np.nan, 0.6], [np.nan, np.nan]], class_agnostic=True)["num"][0] == 1
    assert one([unit, unit], [[np.nan, 0.6], [np.nan, np.nan]], candidates_per_class=1)["num"][0] == 1
    assert one([nan, infinite, unit], [[0.9], [0.8], [0.7]])["num"][0] == 1  # and they suppress nothing
    assert one([unit, half], [[0.1], [0.2]])["num"][0] == 0
    for batch, num_boxes in ((0, 3), (2, 0), (0, 0)):
        for options in ({}, {"class_agnostic": True}, {"candidates_per_class": 3}):
            check(np.zeros([batch, num_boxes, 4], np.float32), np.zeros([batch, num_boxes, 2], np.float32),
                  **arguments | options)
    with pytest.raises(ValueError, match="candidates_per_class"):
        nms(np.zeros([1, 1, 4]), np.zeros([1, 1, 1]), class_agnostic=True, candidates_per_class=3,
            **arguments)


def to_yxyx(boxes):
    return boxes[..., [1, 0, 3, 2]]


@pytest.mark.parametrize("score_threshold", [0.25, 0.001])
def test_the_size_of_yolov3(score_threshold):
    boxes, _ = crowded(1, 10647, 80, 3)
    rng = np.random.default_rng(4)
    scores = rng.uniform(size=(1, 10647, 1)) ** 8 * rng.uniform(size=(1, 10647, 80)) ** 20
    scores = scores.astype(np.float32)
    arguments = {"score_threshold": score_threshold, "iou_threshold": 0.45, "max_detections": 100}
    found = check(boxes, scores, batch=1, **arguments)  # the batch that needs no loop over pictures
    check(boxes, scores, **arguments)
    oracle = tf.image.combined_non_max_suppression(to_yxyx(boxes)[:, :, None], scores, 100, 100, 0.45,
                                                   score_threshold, clip_boxes=False)
    n = found["num"][0]
    assert oracle.valid_detections == n == 100
    np.testing.assert_array_equal(found["boxes"], to_yxyx(oracle.nmsed_boxes.numpy()))
    np.testing.assert_array_equal(found["scores"], oracle.nmsed_scores)
    np.testing.assert_array_equal(found["classes"], oracle.nmsed_classes)


def test_equals_tensorflow_one_class_with_ties():
    boxes, scores = crowded(1, 500, 1, 5, levels=10)
    found = check(boxes, scores, score_threshold=0.15, iou_threshold=0.3, max_detections=500)
    oracle = tf.image.non_max_suppression(to_yxyx(boxes[0]), scores[0, :, 0], 500, 0.3, 0.15).numpy()
    np.testing.assert_array_equal(found["boxes"][0, :found["num"][0]], boxes[0, oracle])


def test_suppression_uses_the_iou_that_keras_computes():
    boxes, scores = crowded(1, 300, 1, 6)
    boxes *= 400  # Keras adds 1e-7 to the union, which pixels do not notice
    found = check(boxes, scores, score_threshold=0.0, iou_threshold=0.5, max_detections=300)
    kept = found["boxes"][:, :found["num"][0]]
    overlap = np.array(keras.utils.bounding_boxes.compute_iou(kept, boxes, bounding_box_format="xyxy"))[0]
    kept_overlap = np.array(keras.utils.bounding_boxes.compute_iou(kept, kept, bounding_box_format="xyxy"))[0]
    assert (np.triu(kept_overlap, 1) <= 0.5).all()
    has_area = (boxes[0, :, 2] > boxes[0, :, 0]) & (boxes[0, :, 3] > boxes[0, :, 1])
    assert (overlap.max(0)[has_area] > 0.5).all()  # every box is kept or stands below one that is


def test_served_by_the_session_loader(tmp_path):
    boxes, scores = crowded(2, 90, 3, 7)

    class Served(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None, None, 4]), tf.TensorSpec([None, None, 3])])
        def __call__(self, boxes, scores):
            return nms(boxes, scores, score_threshold=0.1, iou_threshold=0.5, max_detections=20)

    served = Served()
    expected = served(boxes, scores)
    tf.saved_model.save(served, str(tmp_path), signatures=served.__call__)
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        bundle = tf.compat.v1.saved_model.load(session, ["serve"], str(tmp_path))
        signature = bundle.signature_def["serving_default"]
        feed = {signature.inputs["boxes"].name: boxes, signature.inputs["scores"].name: scores}
        found = session.run({key: signature.outputs[key].name for key in KEYS}, feed)
    for key in KEYS:
        np.testing.assert_array_equal(found[key], expected[key])
