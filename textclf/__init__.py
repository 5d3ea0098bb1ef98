"""A news classifier: tf-idf of 10,000 words, one hidden layer, any number of categories."""

import common  # noqa: F401  loads TensorFlow quietly before any file of this folder does
