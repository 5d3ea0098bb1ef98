"""A narrow network with weights as a trained one has them, and its run folder, for the tests of this folder."""

import json

import numpy as np

from common import checkpoints
from ssd import convert
from ssd.model import IMAGE_SIZE

LABELS = ["cat", "dog", "écureuil"]
CONFIG = {"article": "ssd", "model": "tiny", "variant": "article", "width": 0.25, "batch_norm": True,
          "image_size": IMAGE_SIZE["tiny"], "labels": LABELS}


def randomize(model, seed=0):
    """Biases, scales and statistics that are not 0 or 1, kernels of He, small ones of the predictors."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        name = weight.path.rpartition("/")[2]
        if name == "kernel":
            share = 0.005 if weight.path.startswith(("boxes_", "classes_")) else 1.0
            value = share * rng.normal(0.0, np.sqrt(2.0 / np.prod(weight.shape[:3])), weight.shape)
        elif name in ("gamma", "moving_variance"):
            value = rng.uniform(0.5, 2.0, weight.shape)
        elif name == "scale":
            value = rng.uniform(10.0, 30.0, weight.shape)
        else:
            value = rng.normal(0.0, 0.2, weight.shape)
        weight.assign(value)
    return model


def build(config=None, seed=3):
    return randomize(convert.build(config or CONFIG), seed)


def write_run(folder, model, **values):
    """A run folder as train.py leaves it."""
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **values}))
    checkpoints.write_best(folder / "checkpoints" / "best.weights.h5", model, {"value": 0.5, "step": 1})
    return folder
