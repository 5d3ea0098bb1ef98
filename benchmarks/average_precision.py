"""Our COCO evaluator against pycocotools on 5,000 made-up images: `python -m benchmarks.average_precision`.

80 classes, 36,000 truths with 1 % crowds, 100 and 20 detections an image. Times are those of one process on
one core, with the data in memory in the form that each side takes; pycocotools is timed in evaluate() and
accumulate().
"""

import contextlib
import io
import time

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.metrics.average_precision import Detections, Truths, coco

IMAGES, CLASSES, TRUTHS = 5000, 80, 36_000


def load(detections_per_image, seed=0):
    """(Detections, Truths): a detector that finds most objects, several times, and much that is not there."""
    rng = np.random.default_rng(seed)
    size = np.exp(rng.normal(4.0, 1.0, (TRUTHS, 2))).clip(4, 400)
    corner = rng.uniform(0, 640 - size)
    popularity = 1.0 / np.arange(1, CLASSES + 1)
    truths = Truths(rng.integers(0, IMAGES, TRUTHS),
                    rng.choice(CLASSES, TRUTHS, p=popularity / popularity.sum()),
                    np.concatenate([corner, corner + size], axis=1), None, rng.uniform(size=TRUTHS) < 0.01)
    total = IMAGES * detections_per_image
    near = rng.integers(0, TRUTHS, total)
    spread = np.exp(rng.normal(-2.0, 1.0, (total, 1)))  # of the corners, in sides of the object
    boxes = truths.boxes_xyxy[near] + rng.normal(size=(total, 4)) * spread * np.tile(size[near], 2)
    boxes = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]),
                            np.maximum(boxes[:, :2], boxes[:, 2:]) + 1], 1)
    label = np.where(rng.uniform(size=total) < 0.6, truths.label[near], rng.integers(0, CLASSES, total))
    score = (rng.uniform(size=total) * np.exp(-2 * spread[:, 0])).astype(np.float32)
    return Detections(truths.image[near], label, score, boxes), truths


def pycocotools_sets(detections, truths):
    """The same data as pycocotools' two COCO objects."""
    def entries(flat, **more):
        boxes = np.concatenate([flat.boxes_xyxy[:, :2], flat.boxes_xyxy[:, 2:] - flat.boxes_xyxy[:, :2]],
                               axis=1)
        columns = {"image_id": flat.image, "category_id": flat.label, "bbox": boxes} | more
        return [dict(zip(columns, row)) for row in zip(*(column.tolist() for column in columns.values()))]

    real = COCO()
    area = np.prod(truths.boxes_xyxy[:, 2:] - truths.boxes_xyxy[:, :2], axis=1)
    real.dataset = {
        "info": {}, "images": [{"id": i} for i in range(IMAGES)],
        "categories": [{"id": c} for c in range(CLASSES)],
        "annotations": entries(truths, area=area, iscrowd=truths.is_crowd.astype(int),
                               id=np.arange(1, TRUTHS + 1))}
    real.createIndex()
    return real, real.loadRes(entries(detections, score=detections.score.astype(float)))


def main():
    print("detections an image  pycocotools s   ours s  times faster      AP  differs by")
    for detections_per_image in (100, 20):
        detections, truths = load(detections_per_image)
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation = COCOeval(*pycocotools_sets(detections, truths), "bbox")
            start = time.perf_counter()
            evaluation.evaluate()
            evaluation.accumulate()
            theirs = time.perf_counter() - start
            evaluation.summarize()
        start = time.perf_counter()
        found = coco(detections, truths, CLASSES)
        ours = time.perf_counter() - start
        keys = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
        off = np.max(np.abs([found[key] - value for key, value in zip(keys, evaluation.stats, strict=True)]))
        print(f"{detections_per_image:>19} {theirs:>14.2f} {ours:>8.2f} {theirs / ours:>13.1f} "
              f"{found['AP']:>7.4f} {off:>11.1e}", flush=True)


if __name__ == "__main__":
    main()
