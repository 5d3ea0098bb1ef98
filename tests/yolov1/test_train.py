"""Training as a whole: replicas, resuming, overfitting, the NaN stop, precision, and mistakes of the user."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from common import detection_evaluate, records, training
from common.errors import UserError
from tests.yolov3 import asked
from yolov1 import evaluate, predict, train, words
from yolov1.loss import PARTS

ROOT = pathlib.Path(train.__file__).parents[1]
SMALL = {"image_size": 32, "hidden": 16, "batch_size": 4, "epochs": 2, "eval_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 12 + 6 made-up pictures; 12 is no multiple of every batch size, 6 none of 4."""
    root = tmp_path_factory.mktemp("tfrecords")
    return words.build(root, splits={"train": 12, "val": 6}, progress=False).folder


def config_of(folder, **values):
    return train.make_config({**SMALL, **values, "tfrecords": str(folder)}, records.read_manifest(folder))


def weights_of(run, config):
    model = predict.build(config)
    training.load_weights(run, model, "last")
    return {weight.path: weight.numpy() for weight in model.weights}


def one():
    return tf.distribute.get_strategy()


@pytest.mark.parametrize("options", [
    {"learning_rate": 0.01},
    {"optimizer": "sgd", "learning_rate": 0.1, "clip_norm": 0.5, "num_boxes": 2, "ema": 0.9},
], ids=["article", "sgd, clipping, two boxes, ema"])
def test_two_replicas_equal_one(folder, tmp_path, two_replicas, options):
    """Faults 20 and 22, through the whole of train(): data, loss, clipping, update."""
    config = config_of(folder, batch_size=6, **options)
    metrics = {}
    for name, strategy in (("one", one()), ("two", two_replicas)):
        metrics[name] = train.train(tmp_path / name, config, strategy)
    weights = {name: weights_of(tmp_path / name, config) for name in ("one", "two")}
    start = {weight.path: weight.numpy() for weight in initial(config).weights}
    moved = 0
    for path, value in weights["one"].items():
        # Adam divides small gradients, whose last bits differ with the order of the sums, by their own size.
        np.testing.assert_allclose(value, weights["two"][path], rtol=1e-3, atol=1e-4, err_msg=path)
        moved = max(moved, np.abs(value - start[path]).max())
    assert moved > 0.01
    assert metrics["one"]["map50"] == pytest.approx(metrics["two"]["map50"], abs=1e-3)


def initial(config):
    training.set_seed(config["seed"])
    return predict.build(config)


def test_evaluation_takes_every_picture_once_on_any_number_of_replicas(folder, two_replicas):
    """Fault 21: 6 pictures in batches of 4 leave a last batch of 2."""
    config, seen = config_of(folder), {}
    for name, strategy in (("one", one()), ("two", two_replicas)):
        with strategy.scope():
            model = initial(config)
        detect = evaluate.make_detect(model, strategy, num_classes=2, num_boxes=1)
        dataset = evaluate.batches(folder, "val", strategy, image_size=32, batch_size=4)
        seen[name] = detection_evaluate.collect(detect, dataset, strategy)
    for detections, truths, pictures, _ in seen.values():
        assert pictures == 6
        assert sorted(set(detections.image)) == list(range(6))
        assert len(truths.image) == records.read_manifest(folder)["splits"]["val"]["objects"]
    order = [np.lexsort((found.score, found.image)) for found, *_ in seen.values()]
    np.testing.assert_allclose(seen["one"][0].boxes_xyxy[order[0]], seen["two"][0].boxes_xyxy[order[1]], atol=1e-3)


ENDED = """
import json, os, pathlib, signal, sys, time
sys.path.insert(0, {root!r})
import tensorflow as tf
from common import training
from yolov1 import train
taken = training.Log.step
def step(self, number, *args, **kwargs):
    taken(self, number, *args, **kwargs)
    if number == 5:
        os.kill(os.getpid(), signal.{signal})
        time.sleep(1)  # until the thread that waits for signals has run
training.Log.step = step
config = json.loads(pathlib.Path({config!r}).read_text())
train.train({run!r}, config, tf.distribute.get_strategy())
"""


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    """(config, every value of the last checkpoint) of 6 steps that nothing disturbed; Adam and an average."""
    config = config_of(folder, ema=0.9)
    run = tmp_path_factory.mktemp("runs") / "whole"
    train.train(run, config, one())
    return config, stored(run)


def stored(run):
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / "ckpt-6"))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in key}


@pytest.mark.parametrize("kind, code, kept", [("SIGKILL", -signal.SIGKILL, "ckpt-4"), ("SIGTERM", 143, "ckpt-5")])
def test_ended_and_resumed_equals_uninterrupted_bit_for_bit(whole, tmp_path, kind, code, kept):
    """Faults 11 and 13: kill -9 behind step 5 of 6 goes back to the checkpoint of step 4; SIGTERM loses none."""
    config, expected = whole
    (tmp_path / "config.json").write_text(json.dumps(config))
    script = ENDED.format(root=str(ROOT), config=str(tmp_path / "config.json"), run=str(tmp_path / "run"),
                          signal=kind)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == code, done.stderr[-2000:]
    newest = sorted(path.stem for path in (tmp_path / "run" / "checkpoints").glob("ckpt-*.index"))[-1]
    assert newest == kept
    train.train(tmp_path / "run", config, one())
    found = stored(tmp_path / "run")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


def test_overfits_a_few_pictures(folder, tmp_path):
    """A model must learn a handful of pictures by heart."""
    config = config_of(folder, limit=4, image_size=64, hidden=64, epochs=80, eval_every=80, learning_rate=1e-2,
                       checkpoint_every=1000)
    metrics = train.train(tmp_path / "run", config, one())
    assert metrics["map50"] >= 0.9
    samples = tmp_path / "run" / "samples"
    assert all((samples / name).stat().st_size > 1000 for name in ("epoch_0080.png", "losses.png", "metrics.png"))
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[0].split(",")[:8] == ["epoch", "step", "seconds", *PARTS] and len(rows) == 81
    assert train.train(tmp_path / "run", config, one()) == {}                # a finished run says so


def test_a_damaged_record_is_named(tmp_path):
    """Fault 23: a byte flipped in a picture's record, after the set was built."""
    folder = words.build(tmp_path, splits={"train": 6, "val": 2}, progress=False).folder
    path = next(folder.glob("train-*.tfrecord"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        train.train(tmp_path / "run", config_of(folder, batch_size=2), one())
    assert f"{path} is damaged: no whole record" in records.damage(error.value)


def test_nan_stops_training_and_names_the_part(folder, tmp_path):
    """Fault 17. Behind sigmoids the loss stays bounded, so the weights must grow beyond all floats."""
    config = config_of(folder, learning_rate=1e30, epochs=20, eval_every=20, optimizer="sgd")
    message = r"Loss part (xy|wh|obj|noobj|class) is .* at step \d+.*--learning_rate"
    with pytest.raises(training.NonFiniteLoss, match=message):
        train.train(tmp_path / "run", config, one())


def test_weight_decay_is_the_optimizer_s_and_a_run_keeps_its_own(folder, tmp_path, monkeypatch):
    """None with the article's Adam, the paper's with SGD."""
    run = ["--tfrecords", str(folder), "--run", "run"]
    for name, decay in (("adam", 0.0), ("sgd", 5e-4)):
        config = asked.configuration([*run, "--optimizer", name], monkeypatch, tmp_path, train)
        assert config["weight_decay"] == decay == pytest.approx(train.make_optimizer(config, 10).weight_decay or 0.0)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"weight_decay": 0.05}')
    assert asked.configuration(run, monkeypatch, tmp_path, train)["weight_decay"] == 0.05


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_learns(folder, tmp_path, precision):
    config = config_of(folder, precision=precision, limit=4, epochs=15, eval_every=15, learning_rate=1e-2)
    try:
        train.train(tmp_path / "run", config, one())
    finally:
        training.set_precision("float32")
    rows = [line.split(",") for line in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[1:]]
    first, last = (sum(map(float, rows[index][3:8])) for index in (0, -1))
    assert last < 0.5 * first


@pytest.mark.parametrize("values, message", [
    ({"batch_size": 3}, "multiple of the 2 replicas"),
    ({"tfrecords": "nothing_here"}, "No records match .*python -m yolov1.preprocess --dataset nothing_here"),
    ({"tfrecords": "chat_rat"}, "No records match .*python -m yolov1.preprocess --dataset chat_rat"),
])
def test_mistakes_are_one_clear_line(folder, tmp_path, two_replicas, values, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=message) as error:
        train.train(tmp_path / "run", {**config_of(folder), **values}, two_replicas)
    assert "\n" not in str(error.value)


def test_a_run_of_another_model_is_not_overwritten(folder, tmp_path):
    train.train(tmp_path / "run", config_of(folder, epochs=1, eval_every=5), one())
    with pytest.raises(UserError, match="grid = 2, but 4 was asked for"):
        train.train(tmp_path / "run", config_of(folder, grid=4), one())


def test_records_without_validation_are_refused_before_training(tmp_path):
    folder = words.build(tmp_path, splits={"train": 4}, progress=False).folder
    with pytest.raises(UserError, match=r"No records match .*val-\*.*The set holds train"):
        train.train(tmp_path / "run", config_of(folder), one())
    assert not (tmp_path / "run").exists()
