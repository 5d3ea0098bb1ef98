"""From logits and offsets to detections: softmax, decoding and suppression, in the graph."""

import tensorflow as tf

from common.nms import nms
from ssd.model import decode


def postprocess(predictions, anchors, *, score_threshold=0.01, iou_threshold=0.45, candidates_per_class=400,
                max_detections=200, class_agnostic=False):
    """Detections of a batch, per class and multi-label; the defaults are the reference code's.

    predictions: the network's dict. anchors: boxes_cxcywh [A, 4], see `model.anchors`. Returns a dict: boxes
    [B, M, 4] (xyxy, fractions of the picture, not clipped), scores [B, M] in descending order, classes [B, M]
    (without the background, 0 is the first label; -1 behind the last), num [B]. Of each class the
    `candidates_per_class` best boxes above the threshold are looked at; with class_agnostic=True, of each picture.
    """
    scores = tf.nn.softmax(tf.cast(predictions["logits"], tf.float32))[..., 1:]  # [B, A, C], no background
    limit = "candidates" if class_agnostic else "candidates_per_class"
    return nms(decode(predictions["offsets"], anchors), scores, score_threshold=score_threshold,
               iou_threshold=iou_threshold, max_detections=max_detections, class_agnostic=class_agnostic,
               **{limit: candidates_per_class})
