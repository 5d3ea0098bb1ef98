"""From logits to detections: decoding and suppression, in the graph (article: "The final component ...")."""

from common.nms import nms
from yolov3.model import decode


def postprocess(logits, anchors, image_size, *, score_threshold=0.25, iou_threshold=0.45, max_detections=100,
                class_agnostic=False, candidates=None):
    """Detections of a batch, per class and multi-label.

    logits, anchors and image_size as in `model.decode`. Returns a dict: boxes [B, M, 4] (xyxy, fractions of the
    network input, not clipped), scores [B, M] in descending order, classes [B, M] (-1 behind the last), num [B].
    Evaluation takes a low score threshold, drawing a high one; `candidates` bounds the work, see `nms`.
    """
    boxes_xyxy, scores = decode(logits, anchors, image_size)
    return nms(boxes_xyxy, scores, score_threshold=score_threshold, iou_threshold=iou_threshold,
               max_detections=max_detections, class_agnostic=class_agnostic, candidates=candidates)
