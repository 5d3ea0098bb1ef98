"""What SSD will make of a record set: how well its anchors reach the boxes, and which sizes they miss.

N boxes of all pictures, A anchors of all maps.
"""

import numpy as np

from common import boxes, detection_doctor

ENOUGH = 0.9        # of the objects, with an anchor above the threshold
SMALLEST = 4        # pixels of the network input: half a cell of the finest map
WITHOUT_OBJECTS = "they have no loss in SSD, unless it mines negatives in them: ssd.train --min_negatives 10"
_CHUNK = 500        # boxes at a time: their overlaps take 17 MB


def best_overlaps(boxes_xyxy, anchors, threshold):
    """(largest IoU with any anchor [N], number of anchors from the threshold on [N]) of boxes_xyxy [N, 4]."""
    anchors_xyxy, best, count = boxes.to_xyxy(anchors), [np.zeros(0)], [np.zeros(0, int)]
    for start in range(0, len(boxes_xyxy), _CHUNK):
        overlap = boxes.iou(boxes_xyxy[start:start + _CHUNK], anchors_xyxy).numpy()
        best.append(overlap.max(axis=1))
        count.append((overlap >= threshold).sum(axis=1))
    return np.concatenate(best), np.concatenate(count)


def describe(contents, anchors, image_size, threshold):
    """How the objects of {split: Contents} meet the anchors [A, 4], in words."""
    lines, advice = [f"{len(anchors)} anchors at image_size {image_size}"], []
    for split, part in contents.items():
        sound = np.isfinite(part.boxes_xyxy).all(axis=1) & (part.boxes_xyxy[:, 2:] > part.boxes_xyxy[:, :2]).all(1)
        boxes_xyxy = part.boxes_xyxy[sound & ~part.is_crowd]
        if not len(boxes_xyxy):
            continue
        best, count = best_overlaps(boxes_xyxy, anchors, threshold)
        alone = best < threshold
        sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]) * image_size
        lines.append(f"  {split}: {alone.sum()} of {len(alone)} objects ({alone.mean():.1%}) have no anchor that "
                     f"overlaps by {threshold:g}, only their best; mean best IoU {best.mean():.3f}, "
                     f"{np.maximum(count, 1).mean():.1f} anchors for an object on average")
        names = zip(("small", "medium", "large"), detection_doctor.size_masks(sides.prod(axis=1)))
        by_size = ", ".join(f"{(alone & mask).sum()} of {mask.sum()} {name}" for name, mask in names)
        lines.append(f"  {split}: by size in the network input (COCO's bounds): {by_size}")
        if alone.mean() > 1 - ENOUGH:
            advice.append(f"note: {split}: the anchors reach {1 - alone.mean():.0%} of the objects by "
                          f"{threshold:g}; a network with a larger input has smaller ones (--model vgg512).")
        tiny = np.mean(sides.min(axis=1) < SMALLEST)
        if tiny > 0.05:
            advice.append(f"note: {split}: {tiny:.0%} of the objects have a side under {SMALLEST} pixels in the "
                          "network input; SSD hardly finds them.")
    return "\n".join(lines + advice)
