"""The loss of the humble YOLO: sums of squares over the cells of a grid.

Article, "Pack everything in a custom loss function"; paper, eq. 3. `yolo_loss` takes

    targets      float32 [B, h * w, C + 5], a truth of each cell, packed (classes, x, y, w, h, obj): see
                 preprocess.encode_targets
    crowds_xyxy  float32 [B, N, 4] fractions of the network input, zero behind the last; None: there are none
    predictions  float32 [B, h * w, C + 1 + 5 A], what the network puts out: see model.py

and returns a dict of the parts, each [B], a sum over cells, boxes and classes: never an average over the batch.

Where the article's code is mended: the sizes are compared with the truth's (there with the prediction itself,
which is 0); the overlap takes the absolute distance of the centres, and centres and sizes in one unit; cells and
boxes without an object are taught a confidence of 0 (there the object mask stands before that part, too).

Darknet's [detection] layer with sqrt=1, rescore=1 has the same gradients, if its outputs for the sizes are taken
as the square roots that they are there. Its cost is not this sum: it is the sum of the squares of these gradients,
so that the weights count twice (lambda^2).

B batch, h, w grid (a square), A boxes of a cell, C classes, N crowds of a picture.
"""

import tensorflow as tf

from common import boxes
from yolov1.model import cell_corners, decode_boxes, split

PARTS = ("xy", "wh", "obj", "noobj", "class")
IN_CROWD = 0.5     # share of a predicted box in a crowd above which it may be a member
_SMALLEST = 1e-12  # of a side before its root: the gradient at 0 is infinite


def yolo_loss(targets, predictions, crowds_xyxy=None, *, num_boxes, lambda_coord=5.0, lambda_noobj=0.5):
    """The article's loss; of several boxes in a cell the responsible one is the object's (paper, sec. 2.2).

    lambda_coord: the paper's 5; the article skips it ("not essential"), which is 1. A box that may be a member of a
    crowd is not taught that nothing is there.
    """
    num_classes = targets.shape[-1] - 5
    true_class, true_xy, true_wh, obj_mask = tf.split(targets, [num_classes, 2, 2, 1], axis=-1)
    class_scores, cell_boxes = split(predictions, num_classes, num_boxes)
    pred_xy, pred_wh, confidence = tf.split(cell_boxes, [2, 2, 1], axis=-1)
    overlap, responsible = assign(targets, cell_boxes)                                    # [B, h * w, A] each

    corners = cell_corners(targets.shape[1])[:, tf.newaxis]                               # [h * w, 1, 2]
    xy_error = tf.reduce_sum(tf.square(true_xy[..., tf.newaxis, :] - (pred_xy + corners)), axis=-1)
    true_roots, pred_roots = root(true_wh)[..., tf.newaxis, :], root(pred_wh)
    wh_error = tf.reduce_sum(tf.square(true_roots - pred_roots), axis=-1)
    confidence = confidence[..., 0]
    background = 1 - responsible
    if crowds_xyxy is not None:
        background *= 1 - in_crowds(cell_boxes, crowds_xyxy)
    class_error = tf.square(true_class - class_scores)
    return {
        "xy": lambda_coord * sum_cells(responsible * xy_error),
        "wh": lambda_coord * sum_cells(responsible * wh_error),
        "obj": sum_cells(responsible * tf.square(overlap - confidence)),
        "noobj": lambda_noobj * sum_cells(background * tf.square(confidence)),
        "class": sum_cells(obj_mask * class_error),
    }


def assign(targets, cell_boxes):
    """(overlap of each box with the truth of its cell, 1 where a box is responsible for it else 0), [B, h * w, A].

    Responsible is the box that overlaps the truth most; if none does, the one with the smallest distance in (x, y,
    w, h) (Darknet, detection_layer.c), the first of equals. Both are targets: no gradient goes through them.
    Through the overlap it would pull boxes away from their objects wherever the confidence is too low.
    """
    truth = truth_boxes(targets)[..., tf.newaxis, :]                                      # [B, h * w, 1, 4]
    predicted = decode_boxes(tf.stop_gradient(cell_boxes))
    overlap = boxes.iou_paired(boxes.to_xyxy(predicted), boxes.to_xyxy(truth))
    distance = tf.reduce_sum(tf.square(predicted - truth), axis=-1)
    rank = tf.where(tf.reduce_max(overlap, axis=-1, keepdims=True) > 0, overlap, -distance)
    best = tf.one_hot(tf.argmax(rank, axis=-1), cell_boxes.shape[-2])
    return overlap, best * targets[..., -1:]


def in_crowds(cell_boxes, crowds_xyxy):
    """1 where a predicted box lies in a crowd by more than IN_CROWD of its own area, else 0; [B, h * w, A].

    As the COCO evaluator has it: members of a crowd are smaller than it by far, so that their IoU with it is small.
    """
    predicted = boxes.to_xyxy(decode_boxes(tf.stop_gradient(cell_boxes)))                 # [B, h * w, A, 4]
    shape = tf.shape(predicted)
    share = boxes.iou(tf.reshape(predicted, [shape[0], -1, 4]), crowds_xyxy, is_crowd=tf.constant(True))
    return tf.cast(tf.reshape(tf.reduce_any(share > IN_CROWD, axis=-1), shape[:-1]), tf.float32)


def truth_boxes(targets):
    """boxes_cxcywh [..., h * w, 4] in fractions of the network input; all zero in a cell without an object."""
    side = tf.sqrt(tf.cast(targets.shape[-2], tf.float32))
    return tf.concat([targets[..., -5:-3] / side, targets[..., -3:-1]], axis=-1)


def root(sizes):
    """Square roots, so that an error counts less in a large box (article); finite gradients down to 0."""
    return tf.sqrt(tf.maximum(sizes, _SMALLEST))


def sum_cells(values):
    """[B, h * w, A or C] -> [B]."""
    return tf.reduce_sum(values, axis=[1, 2])
