"""What stands beside the figures of an evaluation: trivial answers, the least there can be, caveats."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from autoencoders import evaluate, preprocess, train
from common import records


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 4 x 4 pictures: 12 for training, and for testing one that is all 0, one that is all 51."""
    root = tmp_path_factory.mktemp("pictures")
    for name, values in (("train", range(0, 240, 20)), ("val", [0, 0]), ("test", [0, 51])):
        (root / name).mkdir()
        for number, value in enumerate(values):
            cv2.imwrite(str(root / name / f"{number}.png"), np.full([4, 4], value, np.uint8))
    return preprocess.build("gray", root, root / "records")


def test_trivial_answers_by_hand(folder):
    """Pictures of 16 pixels, 0 and 0.2; their mean is 0.1."""
    found = evaluate.measure_trivial(folder, "test")

    def entropy(p):
        return -p * np.log(p) - (1 - p) * np.log(1 - p)

    assert found["least_reconstruction"] == pytest.approx(16 * (0 + entropy(0.2)) / 2, rel=1e-6)
    assert found["mean_reconstruction"] == pytest.approx(16 * entropy(0.1), rel=1e-6)
    slow = np.mean([-np.mean([x * np.log(0.1) + (1 - x) * np.log(0.9)]) * 16 for x in (0, 0.2)])
    assert found["mean_reconstruction"] == pytest.approx(slow, rel=1e-6)
    assert found["mean_psnr"] == pytest.approx(20, rel=1e-6)
    one = evaluate.measure_trivial(folder, "test", limit=1)
    assert one["mean_reconstruction"] == one["least_reconstruction"] and one["mean_psnr"] is None


def test_table_says_what_figures_mean():
    summary = {"split": "train", "pictures": 10, "reconstruction": 20.0, "reconstruction_per_pixel": 0.5, "loss": 20.0,
               "psnr": 12.5, "exact": 3, "least_reconstruction": 15.0, "mean_reconstruction": 30.0, "mean_psnr": 9.25}
    holes = {"share": 0.2, "limit": 0.3, "mean_share": 1.0, "mean_distance": 0.4, "distance": 0.1,
             "usual_distance": 0.05, "variety": 0.5, "usual_variety": 0.9, "agreement": None, "usual_agreement": None,
             "chance_agreement": None, "neighbours": 10, "samples": 1000, "reconstructions": 10, "references": 50}
    text = evaluate.table({**summary, "holes": holes})
    assert "20.000   (0.50000 a pixel; of the mean picture 30.000, the least there can be 15.000)" in text
    assert "12.50 dB   (of the mean picture 9.25)" in text and "exact                   3 " in text
    assert "the mean picture, at 0.4000, would be in one)" in text and "agreement" not in text
    assert "The reconstructions are of training pictures" in text
    blur = evaluate.table({**summary, "split": "test", "exact": 0, "holes": {**holes, "mean_share": 0.0}})
    assert "would be in none: few holes may be blur" in blur and "exact" not in blur
    assert "of training pictures, which" not in blur


def test_pictures_that_come_back_to_the_last_bit_have_no_psnr(folder, tmp_path, monkeypatch):
    """All black pictures, and a network that has learnt them: the infinite PSNR ends no training."""
    config = train.make_config({"model": "dense", "epochs": 1, "batch_size": 4, "tfrecords": str(folder)},
                               records.read_manifest(folder))
    monkeypatch.setattr(evaluate, "probs", tf.zeros_like)
    metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    assert "psnr" not in metrics and metrics["val_loss"] > 0
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len(rows) == 2 and "psnr" not in rows[0]
    found = {"reconstruction": np.ones(3), "psnr": np.array([np.inf, 10, 20])}
    summary = evaluate.summarize(found, {"image_shape": [4, 4, 1], "noise": 0})
    assert summary["psnr"] == 15 and summary["exact"] == 1
