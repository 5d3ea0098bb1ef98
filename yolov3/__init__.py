"""YOLO v3: an object detector with three scales and nine anchors."""

import common  # noqa: F401  loads TensorFlow quietly before any file of this folder does
