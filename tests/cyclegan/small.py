"""A small run with random weights, as train.py would leave it, and pictures."""

import json

import cv2
import keras
import numpy as np

from common import checkpoints
from cyclegan import predict

CONFIG = {"article": "cyclegan", "num_blocks": 1, "filters": 8, "upsample": "transpose", "image_size": 32,
          "labels": ["horse", "zebra"], "limit": 0, "seed": 0}


def both_generators(seed=1):
    """Both generators as one model, whose norms scale and shift as those of a trained one do."""
    keras.utils.set_random_seed(seed)
    keras.utils.clear_session()  # layers are named as in a process that builds one network
    model = predict.build(CONFIG)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "norm" in weight.path:
            weight.assign(weight.numpy() + rng.normal(size=weight.shape) * 0.3)
    return model


def write_run(folder):
    """Writes a run folder; returns its generators {"a2b", "b2a"}."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    model = both_generators()
    checkpoints.write_best(folder / "checkpoints" / "best.weights.h5", model, {"value": 0.5, "step": 7})
    return predict.split(model)


def picture(height, width, seed=0):
    """uint8 [H, W, 3], smooth and colourful."""
    cells = np.random.default_rng(seed).integers(0, 256, [5, 6, 3], np.uint8)
    return cv2.resize(cells, (width, height), interpolation=cv2.INTER_CUBIC)
