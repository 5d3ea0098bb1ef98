"""The commands of the README, one after the other, as a user runs them: in a folder of their own, from a shell."""

import concurrent.futures
import json
import os
import pathlib
import subprocess
import sys

import pytest

from yolov1 import words

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Returns a function that runs `python -m <words>` in one folder and returns the finished process."""
    folder = tmp_path_factory.mktemp("user")

    def run(*arguments):
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.run([sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True,
                              timeout=300, env={**os.environ, "PYTHONPATH": paths})

    run.folder = folder
    words.build(folder / "tfrecords", splits={"train": 16, "val": 8}, progress=False)
    return run


def test_every_command(shell):
    looked = shell("yolov1.preprocess", "--dataset=chat_rat", "--check", "--visualize", "--export_labels=labels")
    assert looked.returncode == 0, looked.stderr[-3000:]
    assert "train: 0 of" in looked.stdout and "24 pictures with their label files" in looked.stdout
    assert (shell.folder / "tfrecords" / "chat_rat" / "targets.png").stat().st_size > 1000
    assert len(list((shell.folder / "labels" / "train" / "Labels").glob("*.txt"))) == 16

    trained = shell("yolov1.train", "--demo", "--limit=8", "--epochs=2", "--batch_size=4", "--hidden=16")
    assert trained.returncode == 0, trained.stderr[-3000:]
    assert "mAP@0.5" in trained.stdout and "epoch_0002.png" in trained.stdout
    run = shell.folder / "runs" / "yolov1" / "demo"
    config = json.loads((run / "config.json").read_text())
    assert config["labels"] == ["chat", "rat"] and config["limit"] == 8 and config["grid"] == 2

    picture = next((shell.folder / "labels" / "val" / "Images").glob("*.png"))
    with concurrent.futures.ThreadPoolExecutor() as pool:  # each takes seconds to start
        evaluated, predicted, exported = pool.map(lambda arguments: shell(*arguments), [
            ["yolov1.evaluate", f"--run={run}", "--split=val"],
            ["yolov1.predict", f"--run={run}", "--score_threshold=0.0001", str(picture)],
            ["yolov1.export", f"--run={run}", "--out=serving/yolov1"]])
    for done in (evaluated, predicted, exported):
        assert done.returncode == 0, done.stderr[-3000:]
    assert "VOC07" in evaluated.stdout and "chat" in evaluated.stdout
    assert set(json.loads((run / "evaluation" / "val.json").read_text())["coco"]) >= {"AP", "AP50", "AR100"}

    line = json.loads((shell.folder / "predictions" / "detections.jsonl").read_text())
    assert (line["width"], line["height"]) == (64, 64) and line["detections"]
    assert (shell.folder / "predictions" / line["drawn"]).exists()

    assert (shell.folder / "serving" / "yolov1" / "1" / "saved_model.pb").exists()


def test_mistakes_end_with_one_line(shell):
    done = shell("yolov1.predict", "--run=nowhere", "photo.jpg")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and "nowhere must be a run folder" in last
