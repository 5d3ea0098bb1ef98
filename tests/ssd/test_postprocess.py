"""Detections of SSD against OpenCV's DetectionOutput, and worked out by hand."""

import numpy as np
import pytest
import tensorflow as tf

from common import boxes
from ssd import model as models
from ssd.postprocess import postprocess
from tests.ssd import caffe_oracle


def opencv(folder, logits, offsets, anchors, **options):
    """Rows (picture, class from 1, score, left, top, right, bottom) of OpenCV's DetectionOutput."""
    batch, num_anchors, num_classes = logits.shape
    text = caffe_oracle.declare("loc", batch, 4 * num_anchors)
    text += caffe_oracle.declare("probs", batch, num_classes * num_anchors)
    text += caffe_oracle.declare("priors", 1, 2, 4 * num_anchors)
    net = caffe_oracle.read_net(folder, text + caffe_oracle.detection_output(num_classes - 1, **options))
    corners = boxes.to_xyxy(anchors).numpy().reshape(-1)
    variances = np.tile(np.array(models.VARIANCES, np.float32), num_anchors)
    net.setInput(offsets.reshape(batch, -1), "loc")
    net.setInput(tf.nn.softmax(logits).numpy().reshape(batch, -1), "probs")
    net.setInput(np.stack([corners, variances])[None], "priors")
    rows = net.forward("detections")[0, 0]
    return rows[rows[:, 2] > 0]  # zeros behind the last


@pytest.mark.parametrize("top_k, keep, threshold, iou", [(400, 200, 0.01, 0.45), (30, 200, 0.01, 0.45),
                                                        (400, 25, 0.2, 0.3), (400, 200, 0.9, 0.6)])
def test_opencv_finds_the_same(top_k, keep, threshold, iou, tmp_path):
    rng = np.random.default_rng(0)
    anchors = models.anchors("tiny")[::2]
    logits = rng.normal(size=(2, len(anchors), 4)).astype(np.float32) * 2
    logits[..., 0] += 2
    offsets = rng.normal(size=(2, len(anchors), 4)).astype(np.float32)
    rows = opencv(tmp_path, logits, offsets, anchors, score_threshold=threshold, iou_threshold=iou, top_k=top_k,
                  keep_top_k=keep)
    found = postprocess({"logits": logits, "offsets": offsets}, anchors, score_threshold=threshold,
                        iou_threshold=iou, candidates_per_class=top_k, max_detections=keep)
    assert found["boxes"].shape == (2, keep, 4)
    for i in range(2):
        expected = rows[rows[:, 0] == i]
        expected = expected[np.argsort(-expected[:, 2])]  # no two scores are the same
        count = found["num"][i].numpy()
        assert count == len(expected) > 10
        np.testing.assert_allclose(found["scores"][i, :count], expected[:, 2], atol=1e-6)
        np.testing.assert_array_equal(found["classes"][i, :count] + 1, expected[:, 1])
        np.testing.assert_allclose(found["boxes"][i, :count], expected[:, 3:], atol=1e-5)
        assert (found["classes"][i, count:].numpy() == -1).all()


def by_hand(**options):
    """Four anchors a fifth of the picture wide, of which the first two overlap by 3/5 (IoU), and two classes."""
    anchors = np.array([[.3, .3, .2, .2], [.35, .3, .2, .2], [.7, .7, .2, .2], [.7, .3, .2, .2]], np.float32)
    probs = np.array([[[.1, .8, .1], [.25, .05, .7], [.005, .005, .99], [.98, .015, .005]],
                      [[.1, .8, .1], [.31, .6, .09], [1, 0, 0], [1, 0, 0]]], np.float32)
    offsets = np.zeros([2, 4, 4], np.float32)
    offsets[0, 2] = [1, -1, 5 * np.log(2), 0]  # moved by .02, -.02, twice as wide
    return postprocess({"logits": np.log(probs + 1e-9), "offsets": offsets}, anchors, **options)


def test_by_hand():
    found = by_hand(max_detections=8)
    assert found["num"].numpy().tolist() == [4, 2]
    # Picture 0: class 1 of anchors 2 and 1, class 0 of anchors 0 and 3. Class 1 of anchor 0 (.1) and class 0 of
    # anchor 1 (.05) overlap a better box of their class, and .005 is no candidate.
    assert found["classes"][0].numpy().tolist() == [1, 0, 1, 0, -1, -1, -1, -1]
    # Picture 1: class 0 of anchor 0; of the two boxes of class 1 the better.
    np.testing.assert_allclose(found["scores"][1, :2], [.8, .1], atol=1e-6)
    np.testing.assert_allclose(found["boxes"][1, 1], [.2, .2, .4, .4], atol=1e-6)
    np.testing.assert_allclose(found["scores"][0, :4], [.99, .8, .7, .015], atol=1e-6)
    np.testing.assert_allclose(found["boxes"][0, :2], [[.52, .58, .92, .78], [.2, .2, .4, .4]], atol=1e-6)


def test_one_class_for_a_box():
    found = by_hand(class_agnostic=True, max_detections=5)
    # Anchor 1 has another class than anchor 0, and yields to it all the same.
    assert found["num"].numpy().tolist() == [3, 1]
    np.testing.assert_allclose(found["scores"][0, :3], [.99, .8, .015], atol=1e-6)
    assert by_hand(class_agnostic=True, candidates_per_class=1)["num"].numpy().tolist() == [1, 1]


def test_nothing_found():
    logits = np.zeros([2, 3, 4], np.float32)
    logits[..., 0] = 20
    found = postprocess({"logits": logits, "offsets": np.zeros([2, 3, 4], np.float32)},
                        np.full([3, 4], 0.5, np.float32))
    assert found["num"].numpy().tolist() == [0, 0]
    assert found["boxes"].shape == (2, 200, 4) and (found["classes"].numpy() == -1).all()


def test_boxes_that_are_no_numbers_are_left_out():
    logits = np.array([[[0, 5], [0, 4], [0, 3]]], np.float32)
    offsets = np.zeros([1, 3, 4], np.float32)
    offsets[0, 0, 2], offsets[0, 1, 0] = 1e6, np.nan  # the exponential overflows
    found = postprocess({"logits": logits, "offsets": offsets}, np.full([3, 4], 0.5, np.float32))
    assert found["num"].numpy().tolist() == [1]
    np.testing.assert_allclose(found["scores"][0, 0], 1 / (1 + np.exp(-3)), rtol=1e-6)


def test_in_a_graph_with_any_batch():
    @tf.function(input_signature=[tf.TensorSpec([None, 4, 3]), tf.TensorSpec([None, 4, 4])])
    def run(logits, offsets):
        anchors = np.full([4, 4], 0.5, np.float32)
        return postprocess({"logits": logits, "offsets": offsets}, anchors, max_detections=3)

    for batch in (1, 3):
        found = run(np.zeros([batch, 4, 3]), np.zeros([batch, 4, 4]))
        assert found["num"].numpy().tolist() == [2] * batch  # the same box four times, once kept for each class
