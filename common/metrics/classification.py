"""Figures of a classifier: accuracy, precision, recall, F1, confusion matrix, calibration. NumPy alone.

N examples, C classes. labels and predictions int [N] in 0..C - 1; probs float [N, C], rows sum to 1.
"""

from typing import NamedTuple

import numpy as np


def confusion_matrix(labels, predictions, num_classes):
    """int64 [C, C]: how many examples of class row were taken for class column."""
    pairs = np.asarray(labels, np.int64) * num_classes + np.asarray(predictions, np.int64)
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


class Scores(NamedTuple):
    """Of each class, all [C]: precision and recall are 0 where nothing was predicted or is to be found."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    support: np.ndarray  # int64, examples of the class


def scores(confusion):
    """`Scores` of a confusion matrix. F1 is the harmonic mean of precision and recall."""
    right, found, support = np.diag(confusion), confusion.sum(axis=0), confusion.sum(axis=1)
    f1 = 2 * right / np.maximum(found + support, 1)
    return Scores(right / np.maximum(found, 1), right / np.maximum(support, 1), f1, support)


def macro_f1(scores):
    """Mean F1 of the classes that have examples; NaN without any."""
    present = scores.support > 0
    return float(np.mean(scores.f1[present])) if present.any() else float("nan")


class Reliability(NamedTuple):
    """Of each bin of confidence, all [bins]; NaN where a bin is empty."""

    edges: np.ndarray  # [bins + 1]
    count: np.ndarray  # int64
    confidence: np.ndarray  # mean probability of the predicted class
    accuracy: np.ndarray


def reliability(labels, probs, bins=15):
    """How often predictions of a given confidence are right; bin k takes confidences in (k / bins, (k + 1) /
    bins].

    Guo et al., On Calibration of Modern Neural Networks, 2017, sec. 2.
    """
    probs = np.asarray(probs, np.float64)
    confidence, right = probs.max(axis=1), probs.argmax(axis=1) == np.asarray(labels)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    count = np.bincount(place, minlength=bins)
    with np.errstate(invalid="ignore"):
        means = [np.bincount(place, weights, bins) / count for weights in (confidence, right)]
    return Reliability(np.linspace(0, 1, bins + 1), count, *means)


def expected_calibration_error(found):
    """Mean over the examples of |accuracy - confidence| of their bin (Guo et al., eq. 3) in a `Reliability`."""
    gap = np.nan_to_num(np.abs(found.accuracy - found.confidence))
    return float(np.sum(found.count * gap) / max(found.count.sum(), 1))
