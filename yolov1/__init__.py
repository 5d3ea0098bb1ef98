"""The humble YOLO: an object detector with one box, or several, in every cell of a grid."""

import common  # noqa: F401  loads TensorFlow quietly before any file of this folder does
