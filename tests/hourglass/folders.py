"""Folders of pose data in the layouts that people have, small and made up."""

import json

import numpy as np
import tensorflow as tf

from hourglass import poses

JPEG = tf.io.encode_jpeg(np.zeros((400, 600, 3), np.uint8)).numpy()

HEAD = "head size not given: the distance of the head's two ends taken, which is not MPII's"


def entry(**changes):
    """A person of MPII's JSON whose joint k is at (100 + 10 k, 50 + 5 k); None takes a key away."""
    whole = {"joints": [[100 + 10 * k, 50 + 5 * k] for k in range(16)], "joints_vis": [1] * 16, "image": "a.jpg",
             "scale": 1.5, "center": [180.0, 90.0]} | changes
    return {key: value for key, value in whole.items() if value is not None}


def write_mpii(root, **parts):
    """A folder with annot/<part>.json and the picture a.jpg, 600 x 400."""
    (root / "annot").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    (root / "images" / "a.jpg").write_bytes(JPEG)
    for part, entries in parts.items():
        (root / "annot" / f"{part}.json").write_text(json.dumps(entries))
    return root


def mended(source, split=None, size=(600, 400)):
    """[(Person, Counter of repairs)] of a split."""
    items = source.splits[split or next(iter(source.splits))]
    return [poses.mend(source.load(item), *size, source.body) for item in items]
