"""YOLO v3: an object detector with three scales and nine anchors."""
