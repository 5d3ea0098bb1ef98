"""The loss of YOLO v3, twice: as the article has it, and as Darknet trains.

Article, "Loss Function": xy, wh, objectness, no-objectness and class loss. Both functions take

    targets      {"boxes_xyxy": [B, N, 4] all truth boxes in fractions of the network input, zero behind the last,
                  "is_crowd": [B, N] bool, which of them are crowds; without the key none is,
                  "grids": a tuple over scales of [B, h, w, A, 5 + C], packed (x, y, w, h, obj, classes)}
    predictions  the list of logits [B, h, w, A, 5 + C] that the network puts out

and return a dict of the five parts, each [B], a sum over cells, anchors and classes: never an average over the batch.
x, y of a target grid are the offset in the cell (0..1), w, h are log(box / anchor): see preprocess.encode_targets.

B batch, h, w grid, A anchors per scale, N truth boxes, C classes.
"""

import tensorflow as tf

from common import boxes
from yolov3.model import decode_boxes

PARTS = ("xy", "wh", "obj", "noobj", "class")


def article_loss(targets, predictions, anchors, image_size, *, lambda_coord=5.0, lambda_noobj=0.5,
                 ignore_threshold=0.5):
    """The article's loss: squared errors of sigmoid(tx), sigmoid(ty), tw, th, cross-entropies of the rest.

    Small boxes weigh more, by the factor 2 - w h of the author's code. The article's long formula leaves obj_mask out
    of the class loss; we follow its detailed line, which has it.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    for grid, logits, scale_anchors in zip(targets["grids"], predictions, anchors):
        txy, twh, tobj, tclass = split(logits)
        obj_mask = grid[..., 4]                                                           # [B, h, w, A]
        weight = obj_mask * box_weight(grid, scale_anchors, image_size)
        xy_error = tf.reduce_sum(tf.square(grid[..., 0:2] - tf.sigmoid(txy)), axis=-1)
        wh_error = tf.reduce_sum(tf.square(grid[..., 2:4] - twh), axis=-1)
        obj_entropy = cross_entropy(obj_mask, tobj)
        class_entropy = tf.reduce_sum(cross_entropy(grid[..., 5:], tclass), axis=-1)
        ignore_mask = not_ignored(logits, targets, scale_anchors, image_size, ignore_threshold)

        parts["xy"] += lambda_coord * sum_cells(weight * xy_error)
        parts["wh"] += lambda_coord * sum_cells(weight * wh_error)
        parts["obj"] += sum_cells(obj_mask * obj_entropy)
        parts["noobj"] += lambda_noobj * sum_cells((1 - obj_mask) * ignore_mask * obj_entropy)
        parts["class"] += sum_cells(obj_mask * class_entropy)
    return parts


def darknet_loss(targets, predictions, anchors, image_size, *, ignore_threshold=0.7):
    """The loss whose gradient with respect to the logits is what Darknet propagates (yolo_layer.c).

    Darknet writes gradients, not a loss: truth - sigmoid for x and y, the gradient of a cross-entropy; truth - tw for
    the sizes, of half a squared error; no lambdas. Its ignore threshold is 0.7 for COCO (0.5 in the paper).
    """
    parts = dict.fromkeys(PARTS, 0.0)
    for grid, logits, scale_anchors in zip(targets["grids"], predictions, anchors):
        txy, twh, tobj, tclass = split(logits)
        obj_mask = grid[..., 4]                                                           # [B, h, w, A]
        weight = obj_mask * box_weight(grid, scale_anchors, image_size)
        xy_entropy = tf.reduce_sum(cross_entropy(grid[..., 0:2], txy), axis=-1)
        wh_error = tf.reduce_sum(tf.square(grid[..., 2:4] - twh), axis=-1)
        obj_entropy = cross_entropy(obj_mask, tobj)
        class_entropy = tf.reduce_sum(cross_entropy(grid[..., 5:], tclass), axis=-1)
        ignore_mask = not_ignored(logits, targets, scale_anchors, image_size, ignore_threshold)

        parts["xy"] += sum_cells(weight * xy_entropy)
        parts["wh"] += sum_cells(weight * wh_error / 2)
        parts["obj"] += sum_cells(obj_mask * obj_entropy)
        parts["noobj"] += sum_cells((1 - obj_mask) * ignore_mask * obj_entropy)
        parts["class"] += sum_cells(obj_mask * class_entropy)
    return parts


LOSSES = {"article": article_loss, "darknet": darknet_loss}


def split(logits):
    """[B, h, w, A, 5 + C] -> float32 (x, y) [..., 2], (w, h) [..., 2], objectness [...], classes [..., C].

    One split has one cheap gradient; that of slices is a padded copy of the whole for each.
    """
    txy, twh, tobj, tclass = tf.split(tf.cast(logits, tf.float32), [2, 2, 1, logits.shape[-1] - 5], axis=-1)
    return txy, twh, tobj[..., 0], tclass


def not_ignored(logits, targets, anchors, image_size, threshold):
    """1 where a prediction overlaps no truth box by more than `threshold`, else 0; [B, h, w, A].

    Every truth box counts at every scale, as in Darknet. The article's code compared with the truths of the same
    scale only, and sorted their coordinates column by column, which mixes the boxes up. A crowd is not one object, and
    its IoU with a member is small: what counts is the share of the prediction in it.
    """
    logits = tf.cast(tf.stop_gradient(logits), tf.float32)
    predicted = boxes.to_xyxy(decode_boxes(logits, anchors, image_size))                  # [B, h, w, A, 4]
    shape = tf.shape(predicted)
    flat = tf.reshape(predicted, [shape[0], -1, 4])
    overlap = boxes.iou(flat, targets["boxes_xyxy"], targets.get("is_crowd"))             # [B, h * w * A, N]
    return tf.cast(tf.reshape(tf.reduce_max(overlap, axis=-1), shape[:-1]) <= threshold, tf.float32)


def box_weight(grid, anchors, image_size):
    """2 - w h of the truth box in fractions of the network input; [B, h, w, A]."""
    image = tf.cast(tf.stack([image_size[1], image_size[0]]), tf.float32)
    sizes = tf.exp(grid[..., 2:4]) * anchors / image
    return 2 - sizes[..., 0] * sizes[..., 1]


def cross_entropy(labels, logits):
    """Binary cross-entropy of each element. Keras's function of this name averages over the last axis (tip 7)."""
    return tf.nn.sigmoid_cross_entropy_with_logits(labels=labels, logits=logits)


def sum_cells(values):
    """[B, h, w, A] -> [B]."""
    return tf.reduce_sum(values, axis=[1, 2, 3])
