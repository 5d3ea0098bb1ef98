"""Autoencoders, plain and variational: pictures to codes of few numbers, and codes to pictures."""

import common  # noqa: F401  loads TensorFlow quietly before any file of this folder does
