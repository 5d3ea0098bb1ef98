"""What kinds of mistakes a detector makes at one score threshold, after Hoiem et al., "Diagnosing Error in Object
Detectors", 2012: doubles, bad places, wrong classes, background; and which truths it misses, by size.

D detections, G truths. Boxes are edges in pixels.
"""

import numpy as np

from common.metrics import average_precision

KINDS = ("right", "double", "badly placed", "wrong class", "background")
SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, np.inf)}  # COCO's bounds, pixels


def detection_errors(detections, truths, *, score_threshold=0.25, iou_threshold=0.5, near=0.1):
    """Counts of each kind of detection above `score_threshold`, and of found truths by size.

    Detections are taken best first. right: overlaps a truth of its class that is still free by iou_threshold or more;
    double: such a truth, but taken; wrong class: overlaps one of another class as much; badly placed: overlaps one
    of its class by `near` or more; background: the rest. Detections on difficult and crowd truths alone do not count;
    with a crowd the overlap is the share of the detection's own area, as in COCO's figures.
    Returns {"kinds": {kind: count}, "found": {size: (found, all)}}; difficult and crowd truths are in neither.
    """
    num_classes = 1 + int(max(np.max(detections.label, initial=0), np.max(truths.label, initial=0)))
    detections, truths = average_precision.checked(detections, truths, num_classes)
    above = detections.score > score_threshold
    detections = average_precision.Detections(*(field[above] for field in detections))
    detections, group, _ = average_precision.by_group(detections, truths, len(detections.image))
    ignored = truths.difficult | truths.is_crowd
    # Pairs of a picture, whatever the classes.
    det, truth, overlap = average_precision.all_pairs(detections, truths, detections.image, truths.image, near,
                                                      is_crowd=truths.is_crowd)
    same, close = detections.label[det] == truths.label[truth], overlap >= iou_threshold
    paired, matched, excused, taken = average_precision.match(
        det[same], truth[same], overlap[same], group, ignored[:, np.newaxis], ignored, np.array([iou_threshold]))

    def any_of(chosen):
        """bool [D], True for the chosen detections."""
        found = np.zeros(len(group), bool)
        found[chosen] = True
        return found

    names = ("", "right", "double", "wrong class", "badly placed", "background")  # of what is told first
    which = np.select(
        [any_of(paired[excused[:, 0, 0]]), any_of(paired[matched[:, 0, 0]]), any_of(det[same & close]),
         any_of(det[~same & close & ~ignored[truth]]), any_of(det[same & ~truths.is_crowd[truth]])],
        range(5), default=5)
    kinds = {kind: int(np.sum(which == names.index(kind))) for kind in KINDS}
    areas = np.prod(truths.boxes_xyxy[:, 2:] - truths.boxes_xyxy[:, :2], axis=1)
    found = {}
    for name, (low, high) in SIZES.items():
        of_size = ~ignored & (areas >= low) & (areas < high)
        found[name] = (int((taken[:, 0, 0] & of_size).sum()), int(of_size.sum()))
    return {"kinds": kinds, "found": found}
