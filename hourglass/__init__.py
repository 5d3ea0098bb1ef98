"""Stacked hourglass: human pose from one heatmap for each joint."""

import common  # noqa: F401  loads TensorFlow quietly before any file of this folder does
