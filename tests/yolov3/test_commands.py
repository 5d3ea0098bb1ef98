"""The commands of the README, one after the other, as a user runs them: in a folder of their own, from a shell."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Returns a function that runs `python -m <words>` in one folder and returns the finished process."""
    folder = tmp_path_factory.mktemp("user")

    def run(*words):
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.run([sys.executable, "-m", *words], cwd=folder, capture_output=True, text=True, timeout=300,
                              env={**os.environ, "PYTHONPATH": paths})

    run.folder = folder
    return run


def test_train_evaluate_predict_export(shell):
    trained = shell("yolov3.train", "--demo", "--limit=16", "--epochs=2", "--image_size=64", "--width=0.25")
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "mAP@0.5" in trained.stdout and "epoch_0002.png" in trained.stdout
    run = shell.folder / "runs" / "yolov3" / "demo"
    config = json.loads((run / "config.json").read_text())
    assert config["labels"] == ["disc", "square", "triangle", "ring", "cross", "star"] and config["limit"] == 16
    assert (run / "metrics.csv").exists() and list((run / "logs").glob("events*"))

    evaluated = shell("yolov3.evaluate", f"--run={run}", "--split=val", "--limit=8")
    assert evaluated.returncode == 0, evaluated.stderr[-3000:]
    assert "VOC07" in evaluated.stdout and "triangle" in evaluated.stdout
    summary = json.loads((run / "evaluation" / "val.json").read_text())
    assert summary["pictures"] == 8 and set(summary["coco"]) >= {"AP", "AP50", "APs", "AR100"}
    assert (run / "evaluation" / "val_precision_recall.png").stat().st_size > 1000

    (shell.folder / "photo.jpg").write_bytes(tf.io.encode_jpeg(np.full([90, 120, 3], 80, np.uint8)).numpy())
    predicted = shell("yolov3.predict", f"--run={run}", "--score_threshold=0.0001", "photo.jpg")
    assert predicted.returncode == 0, predicted.stderr[-3000:]
    line = json.loads((shell.folder / "predictions" / "detections.jsonl").read_text())
    assert (line["file"], line["width"], line["height"]) == ("photo.jpg", 120, 90)
    assert (shell.folder / "predictions" / line["drawn"]).exists()

    exported = shell("yolov3.export", f"--run={run}", "--out=serving/yolov3")
    assert exported.returncode == 0, exported.stderr[-3000:]
    assert (shell.folder / "serving" / "yolov3" / "1" / "saved_model.pb").exists()


def test_help_lists_the_shared_flags_with_those_of_the_file(shell):
    shown = shell("yolov3.train", "--help").stdout
    for name in ("--tfrecords", "--[no]demo", "--epochs", "--precision", "--limit", "--[no]multi_scale"):
        assert f"\n  {name}:" in shown, name


@pytest.mark.parametrize("words, message", [
    (["yolov3.train"], "Give either --tfrecords NAME"),
    (["yolov3.evaluate"], "--run must name a run folder"),
    (["yolov3.predict", "--run=nowhere", "photo.jpg"], "nowhere must be a run folder"),
])
def test_mistakes_end_with_one_line(shell, words, message):
    done = shell(*words)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and message in last


def test_a_damaged_record_is_one_line_that_names_the_file(shell):
    """Fault 23: a byte flipped in a picture's record, after the set was built."""
    from common import detection_demo

    folder = detection_demo.build(shell.folder, name="damaged", size=64, splits={"train": 6, "val": 2},
                                  progress=False).folder
    path = next(folder.glob("train-*.tfrecord"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = shell("yolov3.train", f"--tfrecords={folder}", "--model=tiny", "--width=0.1", "--image_size=64",
                 "--batch_size=2", "--epochs=2", "--run=runs/damaged")
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr[-2000:]
    assert f"error: {path} is damaged: no whole record" in done.stderr
