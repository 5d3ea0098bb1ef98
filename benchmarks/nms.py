"""Our suppression against tf.image.combined_non_max_suppression: `python -m benchmarks.nms`.

One image (and eight) of YOLOv3 at 416: 10,647 boxes x 80 classes, scores as a trained network gives them:
objectness near 0 almost everywhere, clusters of confident boxes around a dozen objects, a tail of weak
candidates. Both sides in one process, called in turn; the ratio is that of the medians. Both must give the
same detections.
"""

import os
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402

from common.nms import nms  # noqa: E402

BOXES, CLASSES, OBJECTS, IOU, KEPT = 10_647, 80, 12, 0.45, 100


def load(seed=0):
    """boxes_xyxy [1, N, 4] fractions, scores [1, N, C]."""
    rng = np.random.default_rng(seed)
    centre, size = rng.uniform(0, 1, (BOXES, 2)), np.exp(rng.normal(-2.5, 0.8, (BOXES, 2)))
    boxes = np.concatenate([centre - size / 2, centre + size / 2], axis=1)
    objectness = 0.3 * rng.beta(0.08, 3, (BOXES, 1))
    probs = rng.beta(0.05, 2, (BOXES, CLASSES))
    for _ in range(OBJECTS):
        cluster = rng.choice(BOXES, 40, replace=False)
        centre, size = rng.uniform(0.1, 0.9, 2), rng.uniform(0.05, 0.5, 2)
        corners = np.concatenate([centre - size / 2, centre + size / 2])
        boxes[cluster] = corners + rng.normal(0, 0.06, (40, 4)) * np.tile(size, 2)
        objectness[cluster] = rng.uniform(0.1, 1, (40, 1))
        probs[cluster] *= 0.1
        probs[cluster, rng.integers(CLASSES)] = rng.uniform(0.5, 1, 40)
    return boxes[np.newaxis].astype(np.float32), (objectness * probs)[np.newaxis].astype(np.float32)


def medians(calls, seconds=4.0):
    """Median seconds of each call, called in turn."""
    times = [[] for _ in calls]
    for call in calls:
        call()
        call()
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for call, mine in zip(calls, times):
            start = time.perf_counter()
            call()
            mine.append(time.perf_counter() - start)
    return [float(np.median(mine)) for mine in times]


def main():
    boxes, scores = load()
    print("images  score >  candidates  tf.image ms  ours ms  times faster")
    for images in (1, 8):
        batch = [tf.constant(np.repeat(array, images, axis=0)) for array in (boxes, scores)]
        for threshold in (0.25, 0.001):
            @tf.function
            def ours(boxes, scores):
                return nms(boxes, scores, score_threshold=threshold, iou_threshold=IOU, max_detections=KEPT)

            # It treats both axes alike, so that (left, top, right, bottom) need not be swapped for it.
            @tf.function
            def theirs(boxes, scores):
                return tf.image.combined_non_max_suppression(boxes[:, :, tf.newaxis], scores, KEPT, KEPT, IOU,
                                                             threshold, clip_boxes=False)

            kept, expected = ours(*batch), theirs(*batch)
            np.testing.assert_array_equal(kept["num"], expected.valid_detections)
            np.testing.assert_array_equal(kept["scores"], expected.nmsed_scores)
            np.testing.assert_array_equal(kept["boxes"], expected.nmsed_boxes)
            np.testing.assert_array_equal(np.maximum(kept["classes"], 0), expected.nmsed_classes)
            theirs_time, ours_time = medians([lambda: theirs(*batch), lambda: ours(*batch)])
            found = int((scores > threshold).sum())
            print(f"{images:>6} {threshold:>8} {found:>11} {1e3 * theirs_time:>12.2f} "
                  f"{1e3 * ours_time:>8.2f} {theirs_time / ours_time:>13.2f}", flush=True)


if __name__ == "__main__":
    main()
