"""SSD: an object detector with anchors on six or seven maps of a VGG-16."""

import common  # noqa: F401  loads TensorFlow quietly before any file of this folder does
