"""The commands of the README, one after the other, as a user runs them: in a folder of their own, from a shell."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest

from common import splits

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Returns a function that runs `python -m <words>` in one folder and returns the finished process."""
    folder = tmp_path_factory.mktemp("user")

    def run(*words):
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True,
                              timeout=300,
                              env={**os.environ, "PYTHONPATH": paths})

    run.folder = folder
    return run


def test_preprocess_train_evaluate_predict_export(shell):
    for label in ("a", "b"):
        (shell.folder / "mine" / label).mkdir(parents=True)
        for i in range(20):
            image = np.full([12, 10], 40 * i % 255, np.uint8)
            cv2.imwrite(str(shell.folder / "mine" / label / f"{i}.png"), image)
    built = shell("autoencoders.preprocess", "--dataset=mine", "--source=mine", "--visualize")
    assert built.returncode == 0, built.stderr[-3000:]
    where = [splits.fraction(f"{label}/{i}.png") for label in "ab" for i in range(20)]
    tested = sum(each < 1 / 12 for each in where)
    trained = sum(each >= 2 / 12 for each in where)
    assert f"tfrecords/mine: train {trained} pictures of 10 x 12, 1 channel" in built.stdout
    assert "labels: a, b\n" in built.stdout and "note: " in built.stdout  # every picture is there twice
    assert (shell.folder / "tfrecords" / "mine" / "pictures.png").exists()

    trained = shell("autoencoders.train", "--tfrecords=mine", "--epochs=2", "--batch_size=16", "--model=conv_vae")
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "loss " in trained.stdout and "epoch_0002.png" in trained.stdout and "KL" in trained.stdout
    run = shell.folder / "runs" / "autoencoders" / "mine"
    config = json.loads((run / "config.json").read_text())
    assert config["labels"] == ["a", "b"] and config["image_shape"] == [12, 10, 1] and config["latent_dim"] == 2

    evaluated = shell("autoencoders.evaluate", f"--run={run}", "--split=test", "--importance_samples=20",
                      f"--beside={run}")
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    for word in ("reconstruction", "of the mean picture", "KL", "ELBO", "20 weighted samples", "PSNR", "holes",
                 "variety", "by chance"):
        assert word in evaluated.stdout, word
    summary = json.loads((run / "evaluation" / "test.json").read_text())
    assert summary["pictures"] == tested > 0 and summary["importance_bound"] >= summary["importance_elbo"] - 5
    assert summary["holes"]["share"] == summary["beside"]["share"]
    for kind in ("reconstructions", "samples", "plane", "grid", "samples_beside"):
        assert (run / "evaluation" / f"test_{kind}.png").stat().st_size > 300, kind

    predicted = shell("autoencoders.predict", f"--run={run}", "mine/a/3.png")
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    line = json.loads((shell.folder / "predictions" / "codes.jsonl").read_text())
    assert line["file"] == "mine/a/3.png" and len(line["code"]) == 2
    assert (shell.folder / "predictions" / line["drawn"]).exists()

    exported = shell("autoencoders.export", f"--run={run}", "--out=serving/autoencoder")
    assert exported.returncode == 0, exported.stderr[-3000:]
    assert (shell.folder / "serving" / "autoencoder" / "1" / "saved_model.pb").exists()


@pytest.mark.parametrize("words, message", [
    (["autoencoders.train"], "Give either --tfrecords NAME"),
    (["autoencoders.evaluate", "--run=nowhere"], "nowhere must be a run folder"),
])
def test_mistakes_end_with_one_line(shell, words, message):
    done = shell(*words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last
