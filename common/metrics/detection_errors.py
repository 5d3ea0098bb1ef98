"""What kinds of mistakes a detector makes at one score threshold, after Hoiem et al., "Diagnosing Error in Object
Detectors", 2012: doubles, bad places, wrong classes, background; and which truths it misses, by size.

D detections, G truths. Boxes are edges in pixels.
"""

import numpy as np

KINDS = ("right", "double", "badly placed", "wrong class", "background")
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # COCO's bounds, pixels


def detection_errors(detections, truths, *, score_threshold=0.25, iou_threshold=0.5, near=0.1):
    """Counts of each kind of detection above `score_threshold`, and of found truths by size.

    Detections are taken best first. right: overlaps a truth of its class that is still free by iou_threshold or more;
    double: such a truth, but taken; wrong class: overlaps one of another class as much; badly placed: overlaps one
    of its class by `near` or more; background: the rest. Detections on difficult and crowd truths alone do not count.
    Returns {"kinds": {kind: count}, "found": {size: (found, all)}}; difficult and crowd truths are in neither.
    """
    kinds = dict.fromkeys(KINDS, 0)
    ignored = np.zeros(len(truths.image), bool)
    for mask in (truths.difficult, truths.is_crowd):
        if mask is not None:
            ignored |= np.asarray(mask, bool)
    taken = np.zeros(len(truths.image), bool)
    order = np.argsort(-np.asarray(detections.score), kind="stable")
    for index in order[np.asarray(detections.score)[order] > score_threshold]:
        here = np.flatnonzero(truths.image == detections.image[index])
        overlap = iou(detections.boxes_xyxy[index], truths.boxes_xyxy[here])
        same = truths.label[here] == detections.label[index]
        free = here[same & ~taken[here] & ~ignored[here] & (overlap >= iou_threshold)]
        if len(free):
            taken[free[np.argmax(overlap[np.isin(here, free)])]] = True
            kinds["right"] += 1
        elif (same & ignored[here] & (overlap >= iou_threshold)).any():
            continue
        elif (same & (overlap >= iou_threshold)).any():
            kinds["double"] += 1
        elif (~same & ~ignored[here] & (overlap >= iou_threshold)).any():
            kinds["wrong class"] += 1
        elif (same & (overlap >= near)).any():
            kinds["badly placed"] += 1
        else:
            kinds["background"] += 1
    areas = np.prod(truths.boxes_xyxy[:, 2:] - truths.boxes_xyxy[:, :2], axis=1)
    found = {}
    for name, (low, high) in SIZES.items():
        of_size = ~ignored & (areas >= low) & (areas < high)
        found[name] = (int((taken & of_size).sum()), int(of_size.sum()))
    return {"kinds": kinds, "found": found}


def iou(box, boxes):
    """IoU [G] of one box [4] with boxes [G, 4]; 0 where the union is 0."""
    shared = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    shared = np.prod(np.maximum(shared, 0), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - shared
    return np.divide(shared, union, out=np.zeros(len(boxes)), where=union > 0)
