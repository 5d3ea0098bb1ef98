"""Pictures per second of SSD's matching and encoding: python -m benchmarks.target_encoding

Batches of 32 pictures for the 8,732 anchors of vgg300, with 1 to N boxes each, sides log-uniform from 0.03 to 0.9.
Beside it the same in NumPy, picture after picture, and in PyTorch as its ports of SSD do it (matrix of overlaps,
best anchor of each truth in a loop, without the contest for anchors; skipped where torch is not installed). All in
one process, called in turn; ratios are those of the medians.
"""

import time

import numpy as np
import tensorflow as tf

from common import cli
from ssd import model as models
from ssd import preprocess

BATCH, COUNTS = 32, (5, 20, 50)


def load(most, seed=0):
    """boxes_xyxy float32 [B, N, 4], labels int32 [B, N]; zeros and -1 behind the last."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(0.03), np.log(0.9), (BATCH, most, 2)))
    corners = rng.random((BATCH, most, 2)) * (1 - sides)
    counts = rng.integers(1, most + 1, BATCH)
    labels = np.where(np.arange(most) < counts[:, None], rng.integers(20, size=(BATCH, most)), -1)
    boxes_xyxy = np.concatenate([corners, corners + sides], axis=-1) * (labels >= 0)[..., None]
    return boxes_xyxy.astype(np.float32), labels.astype(np.int32)


def numpy_targets(boxes_xyxy, labels, anchors):
    """classes [A] and offsets [A, 4] of one picture as `preprocess.encode_targets`, greedily truth after truth."""
    boxes_xyxy, labels = boxes_xyxy[labels >= 0], labels[labels >= 0]
    low, high = anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2
    sides = np.minimum(boxes_xyxy[:, None, 2:], high) - np.maximum(boxes_xyxy[:, None, :2], low)
    shared = np.prod(np.maximum(sides, 0), axis=-1)
    areas = np.prod(boxes_xyxy[:, 2:] - boxes_xyxy[:, :2], axis=-1)
    overlap = shared / (areas[:, None] + np.prod(high - low, axis=-1) - shared)          # [N, A]
    owner = np.where(overlap.max(axis=0) >= preprocess.THRESHOLD, overlap.argmax(axis=0), -1)
    for _ in labels:
        truth, anchor = np.unravel_index(overlap.argmax(), overlap.shape)
        owner[anchor] = truth
        overlap[truth], overlap[:, anchor] = -1, -1
    positive = owner >= 0
    truths = boxes_xyxy[owner[positive]]
    classes, offsets = np.zeros(len(anchors), np.int32), np.zeros([len(anchors), 4], np.float32)
    classes[positive] = 1 + labels[owner[positive]]
    center, sides = (truths[:, :2] + truths[:, 2:]) / 2, truths[:, 2:] - truths[:, :2]
    offsets[positive, :2] = (center - anchors[positive, :2]) / anchors[positive, 2:] / 0.1
    offsets[positive, 2:] = np.log(sides / anchors[positive, 2:]) / 0.2
    return classes, offsets


def torch_targets(torch, boxes_xyxy, labels, anchors):
    """The same of one picture in PyTorch, but of two truths with one best anchor the later takes it."""
    boxes_xyxy, labels = boxes_xyxy[labels >= 0], labels[labels >= 0]
    low, high = anchors[:, :2] - anchors[:, 2:] / 2, anchors[:, :2] + anchors[:, 2:] / 2
    sides = torch.minimum(boxes_xyxy[:, None, 2:], high) - torch.maximum(boxes_xyxy[:, None, :2], low)
    shared = sides.clamp(min=0).prod(-1)
    areas = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).prod(-1)
    overlap = shared / (areas[:, None] + (high - low).prod(-1) - shared)
    value, owner = overlap.max(0)
    best = overlap.argmax(1)
    value.index_fill_(0, best, 2)
    for truth, anchor in enumerate(best):
        owner[anchor] = truth
    truths = boxes_xyxy[owner]
    classes = torch.where(value >= preprocess.THRESHOLD, 1 + labels[owner], 0)
    center, sides = (truths[:, :2] + truths[:, 2:]) / 2, truths[:, 2:] - truths[:, :2]
    moved, grown = (center - anchors[:, :2]) / anchors[:, 2:], (sides / anchors[:, 2:]).log()
    return classes, torch.cat([moved / 0.1, grown / 0.2], 1)


def medians(calls, seconds=4.0):
    """Median seconds of each of {name: call}, called in turn."""
    times = {name: [] for name in calls}
    for call in calls.values():
        call()
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(mine)) for name, mine in times.items()}


def candidates(most, anchors):
    """{name: call} that encode one batch."""
    batch = load(most)
    tensors = [tf.constant(array) for array in batch]
    encode = tf.function(lambda boxes_xyxy, labels: preprocess.encode_batch(boxes_xyxy, labels, anchors))
    expected = [np.stack(column) for column in zip(*(numpy_targets(*pair, anchors) for pair in zip(*batch)))]
    np.testing.assert_array_equal(encode(*tensors)["classes"], expected[0])
    np.testing.assert_allclose(encode(*tensors)["offsets"], expected[1], atol=2e-4)
    calls = {"ours": lambda: encode(*tensors),
             "NumPy": lambda: [numpy_targets(*pair, anchors) for pair in zip(*batch)]}
    try:
        import torch
    except ImportError:
        return calls
    theirs, their_anchors = [torch.tensor(array) for array in batch], torch.tensor(anchors)
    return calls | {"PyTorch": lambda: [torch_targets(torch, *pair, their_anchors) for pair in zip(*theirs)]}


def main(args):
    cli.no_arguments(args)
    anchors = models.anchors("vgg300")
    for most in COUNTS:
        times = medians(candidates(most, anchors))
        figures = (f"{name} {BATCH / seconds:.0f} pictures/s, ours {seconds / times['ours']:.1f} times as fast"
                   for name, seconds in times.items())
        print(f"1 to {most:>2} boxes: {'; '.join(figures)}")


if __name__ == "__main__":
    cli.run(main, lambda: None)
