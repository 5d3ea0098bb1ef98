"""Kinds of mistakes, on a picture where each was put by hand."""

import numpy as np

from common.metrics.average_precision import Detections, Truths
from common.metrics.detection_errors import detection_errors


def test_each_kind_once():
    truths = Truths(np.array([0, 0, 0, 0, 1]), np.array([0, 1, 0, 0, 0]), np.array([
        [0, 0, 20, 20], [100, 100, 200, 200], [300, 300, 340, 340], [400, 400, 480, 480], [0, 0, 50, 50]], float),
        difficult=np.array([False, False, True, False, False]), is_crowd=np.zeros(5, bool))
    boxes_xyxy = np.array([
        [0, 0, 20, 18],          # right: IoU 0.9
        [0, 0, 18, 20],          # double of it
        [100, 100, 200, 190],    # wrong class: IoU 0.9 with a truth of class 1
        [300, 300, 340, 340],    # on a difficult truth: does not count
        [440, 400, 520, 480],    # badly placed: IoU 1/3
        [600, 600, 700, 700],    # background
        [0, 0, 50, 50],          # right, in picture 1
        [0, 0, 20, 20],          # below the threshold
    ], float)
    detections = Detections(np.array([0, 0, 0, 0, 0, 0, 1, 0]), np.zeros(8, int),
                            np.array([.9, .8, .7, .6, .5, .4, .3, .1]), boxes_xyxy)
    errors = detection_errors(detections, truths, score_threshold=0.25)
    assert errors["kinds"] == {"right": 2, "double": 1, "badly placed": 1, "wrong class": 1, "background": 1}
    assert errors["found"] == {"small": (1, 1), "medium": (1, 2), "large": (0, 1)}


def test_nothing_at_all():
    none = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros([0, 4]))
    truths = Truths(np.zeros(0, int), np.zeros(0, int), np.zeros([0, 4]))
    assert sum(detection_errors(none, truths)["kinds"].values()) == 0
