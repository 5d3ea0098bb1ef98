"""From what the network puts out to detections: decoding and suppression, in the graph."""

from common.nms import nms
from yolov1.model import decode


def postprocess(predictions, num_classes, num_boxes, *, score_threshold=0.25, iou_threshold=0.45,
                max_detections=100, class_agnostic=False):
    """Detections of a batch, per class.

    predictions, num_classes and num_boxes as in `model.decode`. Returns a dict: boxes [B, M, 4] (xyxy, fractions
    of the network input, not clipped), scores [B, M] in descending order, classes [B, M] (-1 behind the last), num
    [B]. Evaluation takes a low score threshold, drawing a high one.
    """
    boxes_xyxy, scores = decode(predictions, num_classes, num_boxes)
    return nms(boxes_xyxy, scores, score_threshold=score_threshold, iou_threshold=iou_threshold,
               max_detections=max_detections, class_agnostic=class_agnostic)
