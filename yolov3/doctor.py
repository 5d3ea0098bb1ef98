"""What YOLO v3 will make of a record set: the anchors of its boxes, their reach, which boxes are lost.

N boxes of all pictures, A anchors per scale.
"""

import numpy as np

from common import boxes, detection_doctor
from common.errors import UserError
from yolov3 import anchors as anchor_boxes

ENOUGH_RECALL = 0.9      # of the anchors; COCO's own reach about 0.9 on photographs


def network_boxes(contents, image_size):
    """(boxes_xyxy [N, 4] in fractions of the letterboxed network input, picture [N]) of what is learnt: finite boxes
    that are no crowds."""
    height, width = contents.sizes[contents.picture].T
    sound = np.isfinite(contents.boxes_xyxy).all(axis=1) & ~contents.is_crowd
    letterboxed = boxes.letterbox_boxes(contents.boxes_xyxy[:, None], height, width, image_size)[:, 0].numpy()
    return letterboxed[sound], contents.picture[sound]


def network_sizes(parts, image_size):
    """Sizes [N, 2] (w, h) in pixels of the network input of all boxes with area of several `Contents`."""
    sizes = [np.diff(network_boxes(part, image_size)[0].reshape(-1, 2, 2), axis=1)[:, 0] for part in parts]
    sizes = np.concatenate(sizes) * image_size
    return sizes[(sizes > 0).all(axis=1)]


def describe(contents, anchors, strides, image_size):
    """How the objects of {split: Contents} meet the anchors [scales, A, 2] (pixels), in words."""
    lines = [f"anchors at image_size {image_size}"]
    advice = []
    for split, part in contents.items():
        sizes = network_sizes([part], image_size)
        if not len(sizes):
            continue
        recall = anchor_boxes.best_possible_recall(sizes, anchors)
        lines.append(f"  {split}: best possible recall {recall:.1%} (boxes whose best anchor overlaps "
                     f"by 0.5 or more), mean IoU {anchor_boxes.mean_best_iou(sizes, anchors):.3f}")
        best = anchor_boxes.shape_iou(sizes, anchors).argmax(axis=1) // len(anchors[0])
        shares = ", ".join(f"{np.mean(best == i):.1%} at stride {stride}" for i, stride in enumerate(strides))
        names = zip(("small", "medium", "large"), detection_doctor.size_masks(sizes.prod(axis=1)))
        by_size = ", ".join(f"{np.mean(mask):.1%} {name}" for name, mask in names)
        lines.append(f"  {split}: objects by scale: {shares}; by size in the network input: {by_size}")
        letterboxed, picture = network_boxes(part, image_size)
        per_picture = np.split(letterboxed, np.searchsorted(picture, np.arange(1, len(part.filenames))))
        lost = anchor_boxes.collisions(per_picture, anchors, image_size, strides)
        share = lost / len(letterboxed)
        lines.append(f"  {split}: {lost} of {len(letterboxed)} objects ({share:.2%}) fall on "
                     "the cell and anchor of another; YOLO can learn only one of them")
        if recall < ENOUGH_RECALL:
            advice.append(f"note: {split}: the anchors miss many boxes; --kmeans tells what others reach.")
        tiny = np.mean(sizes.min(axis=1) < min(strides) / 2)
        if tiny > 0.05:
            advice.append(f"note: {split}: {tiny:.0%} of the objects have a side under {min(strides) // 2} "
                          "pixels in the network input; a larger --image_size would show more of them.")
    return "\n".join(lines + advice)


def find_anchors(parts, num_scales, num_anchors, image_size, *, seed=0):
    """Anchors [scales, A, 2] in whole pixels from k-means over several `Contents`. Raises UserError."""
    try:
        found = anchor_boxes.kmeans(network_sizes(parts, image_size), num_scales, num_anchors, seed=seed)
    except ValueError as error:
        raise UserError(f"The boxes are too few or too alike: {error}. Keep the default anchors.") from error
    found = np.maximum(np.rint(found), 1).reshape(-1, 2)  # rounding may change the order of areas that are alike
    return found[np.argsort(found.prod(axis=1), kind="stable")].reshape(num_scales, num_anchors, 2)


def compare_anchors(parts, old, new, image_size):
    """A table of what two sets of anchors [scales, A, 2] reach on the boxes of several `Contents`."""
    sizes = network_sizes(parts, image_size)
    lines = [f"{len(sizes)} boxes at image_size {image_size}        mean IoU   best possible recall"]
    for name, anchors in (("default anchors", old), ("k-means anchors", new)):
        iou = anchor_boxes.mean_best_iou(sizes, anchors)
        recall = anchor_boxes.best_possible_recall(sizes, anchors)
        lines.append(f"  {name:<38} {iou:.3f}      {recall:.1%}")
    return "\n".join(lines)
