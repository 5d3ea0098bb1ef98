"""Figures of a classifier against scikit-learn, a slow twin, and numbers worked out by hand."""

import numpy as np
import pytest
from sklearn import metrics

from common.metrics import classification

RNG = np.random.default_rng(3)
LABELS, PREDICTIONS = RNG.integers(0, 5, 400), RNG.integers(0, 6, 400)  # class 5 is predicted, never true


def test_confusion_and_scores_are_those_of_scikit_learn():
    confusion = classification.confusion_matrix(LABELS, PREDICTIONS, 7)
    np.testing.assert_array_equal(confusion, metrics.confusion_matrix(LABELS, PREDICTIONS, labels=range(7)))
    found = classification.scores(confusion)
    expected = metrics.precision_recall_fscore_support(LABELS, PREDICTIONS, labels=range(7), zero_division=0)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert classification.macro_f1(found) == pytest.approx(np.mean(expected[2][:5]), rel=1e-12)


def test_hand_worked_scores():
    found = classification.scores(np.array([[3, 1], [2, 4]]))
    np.testing.assert_allclose(found.precision, [3 / 5, 4 / 5])
    np.testing.assert_allclose(found.recall, [3 / 4, 4 / 6])
    np.testing.assert_allclose(found.f1, [2 / 3, 8 / 11])
    assert np.isnan(classification.macro_f1(classification.scores(np.zeros([2, 2], int))))


def test_hand_worked_calibration():
    """Two predictions of 0.8, one of them right; one of 0.6, right; one of 1.0, right: four of ten bins' width."""
    probs = np.array([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4], [1.0, 0.0]])
    found = classification.reliability([0, 0, 0, 0], probs, bins=10)
    np.testing.assert_array_equal(found.count, [0, 0, 0, 0, 0, 1, 0, 2, 0, 1])
    np.testing.assert_allclose(found.accuracy[[5, 7, 9]], [1, 0.5, 1])
    assert np.isnan(found.accuracy[[0, 6, 8]]).all()
    assert classification.expected_calibration_error(found) == pytest.approx((0.4 + 2 * 0.3 + 0) / 4)


def test_calibration_equals_a_slow_twin():
    probs = RNG.dirichlet(np.ones(4) * 0.5, 300)
    labels = RNG.integers(0, 4, 300)
    total = 0.0
    for k in range(15):
        inside = [i for i, row in enumerate(probs) if k / 15 < max(row) <= (k + 1) / 15]
        if inside:
            right = np.mean([np.argmax(probs[i]) == labels[i] for i in inside])
            total += len(inside) * abs(right - np.mean([max(probs[i]) for i in inside]))
    found = classification.reliability(labels, probs)
    assert classification.expected_calibration_error(found) == pytest.approx(total / 300, rel=1e-9)
    assert found.count.sum() == 300
