"""Training as a whole: replicas, resuming, overfitting, the NaN stop, freezing, and mistakes of the user."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from common import detection_demo, detection_evaluate, records, training
from common.errors import UserError
from tests.yolov3 import asked
from yolov3 import evaluate, predict, train

SMALL = {"model": "tiny", "width": 0.125, "image_size": 64, "batch_size": 4, "epochs": 2, "warmup_steps": 2,
         "anchors": [[[9, 9], [14, 14]], [[20, 20], [32, 32]]], "eval_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 12 + 6 made-up pictures; 12 is no multiple of every batch size, 6 none of 4."""
    root = tmp_path_factory.mktemp("tfrecords")
    return detection_demo.build(root, size=64, splits={"train": 12, "val": 6}, progress=False).folder


def config_of(folder, **values):
    return train.make_config({**SMALL, **values, "tfrecords": str(folder)}, records.read_manifest(folder))


def weights_of(run, config):
    model = predict.build(config)
    training.load_weights(run, model, "last")
    return {weight.path: weight.numpy() for weight in model.weights}


@pytest.mark.parametrize("options", [
    {"optimizer": "sgd", "learning_rate": 0.01, "clip_norm": 10.0},
    {"optimizer": "sgd", "learning_rate": 0.01, "clip_norm": 0.0, "loss": "darknet", "multi_scale": True, "ema": 0.9},
], ids=["article", "darknet, multi-scale, ema"])
def test_two_replicas_equal_one(folder, tmp_path, two_replicas, options):
    """Faults 20 and 22, through the whole of train(): data, batch norm, loss, clipping, update.

    Without augmentation and for two steps: where the maxima of a pooling window tie, as they do in grey bars,
    rounding decides which of them gets the gradient, and the runs drift apart from there.
    """
    config = config_of(folder, augment=False, batch_size=6, epochs=1, eval_every=1, warmup_steps=0, **options)
    metrics = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        metrics[name] = train.train(tmp_path / name, config, strategy)
    one, two = (weights_of(tmp_path / name, config) for name in ("one", "two"))
    for path in one:
        np.testing.assert_allclose(one[path], two[path], rtol=1e-4, atol=1e-5, err_msg=path)
    assert metrics["one"]["map50"] == pytest.approx(metrics["two"]["map50"], abs=1e-3)


def test_batches_are_the_same_on_any_number_of_replicas(folder, two_replicas):
    config = config_of(folder, multi_scale=True)
    batches = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        images = [batch[0] for _, batch in zip(range(5), train.training_batches(folder, config, strategy, 2))]
        batches[name] = [np.concatenate([part.numpy() for part in strategy.experimental_local_results(batch)])
                         for batch in images]
    for one, two in zip(batches["one"], batches["two"], strict=True):
        np.testing.assert_array_equal(one, two)


def test_evaluation_takes_every_picture_once_on_any_number_of_replicas(folder, two_replicas):
    """Fault 21: 6 pictures in batches of 4 leave a last batch of 2."""
    seen = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        def detect(images, height, width, strategy=strategy):
            def replica(images):
                count = tf.shape(images)[0]
                return {"num": tf.ones([count], tf.int32), "classes": tf.zeros([count, 1], tf.int32),
                        "scores": tf.ones([count, 1]),
                        "boxes": tf.tile(tf.reduce_mean(images, [1, 2, 3])[:, None, None], [1, 1, 4])}
            return strategy.run(replica, args=(images,))

        dataset = evaluate.batches(folder, "val", strategy, image_size=64, batch_size=4)
        seen[name] = detection_evaluate.collect(detect, dataset, strategy)
    for detections, truths, pictures, _ in seen.values():
        assert pictures == 6
        assert sorted(detections.image) == list(range(6))
        assert len(truths.image) == records.read_manifest(folder)["splits"]["val"]["objects"]
    order = [np.argsort(detections.image) for detections, *_ in seen.values()]
    np.testing.assert_array_equal(seen["one"][0].boxes_xyxy[order[0]], seen["two"][0].boxes_xyxy[order[1]])


KILLED = """
import os, pathlib, signal, sys, json
sys.path.insert(0, {root!r})
import tensorflow as tf
from common import training
from yolov3 import train
taken = training.Log.step
def step(self, number, *args, **kwargs):
    taken(self, number, *args, **kwargs)
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
training.Log.step = step
config = json.loads(pathlib.Path({config!r}).read_text())
train.train({run!r}, config, tf.distribute.get_strategy())
"""


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(folder, tmp_path):
    """Fault 13: kill -9 behind step 5 of 6, after the checkpoint of step 4; Adam, EMA, multi-scale, augmentation."""
    config = config_of(folder, ema=0.9, multi_scale=True)
    files = tmp_path / "config.json"
    files.write_text(json.dumps(config))
    script = KILLED.format(root=str(pathlib.Path(train.__file__).parents[1]), config=str(files),
                           run=str(tmp_path / "killed"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("*.index"))[-1] == "ckpt-4.index"
    train.train(tmp_path / "killed", config, tf.distribute.get_strategy())
    train.train(tmp_path / "whole", config, tf.distribute.get_strategy())
    stored = {}
    for name in ("killed", "whole"):
        reader = tf.train.load_checkpoint(str(tmp_path / name / "checkpoints" / "ckpt-6"))
        stored[name] = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()
                        if "OBJECT_GRAPH" not in key}
    assert stored["killed"].keys() == stored["whole"].keys()
    for key, value in stored["whole"].items():
        np.testing.assert_array_equal(stored["killed"][key], value, err_msg=key)


def test_overfits_a_few_pictures(folder, tmp_path):
    """The article's development set: a model must learn a handful of pictures by heart."""
    config = config_of(folder, limit=8, width=0.5, batch_size=8, epochs=150, eval_every=150, learning_rate=3e-3,
                       checkpoint_every=1000, warmup_steps=10)
    metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    assert metrics["map50"] >= 0.9
    assert (tmp_path / "run" / "samples" / "epoch_0150.png").stat().st_size > 1000
    assert all((tmp_path / "run" / "samples" / name).stat().st_size > 1000 for name in ("losses.png", "metrics.png"))
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[0].split(",")[:8] == ["epoch", "step", "seconds", "xy", "wh", "obj", "noobj", "class"]
    assert len(rows) == 151
    assert train.train(tmp_path / "run", config, tf.distribute.get_strategy()) == {}  # a finished run says so


def test_nan_stops_training_and_names_the_part(folder, tmp_path):
    config = config_of(folder, learning_rate=1e6, warmup_steps=0, clip_norm=0.0, epochs=20, eval_every=20,
                       optimizer="sgd")
    message = r"Loss part (xy|wh|obj|noobj|class) is .* at step \d+.*--learning_rate"
    with pytest.raises(training.NonFiniteLoss, match=message):
        train.train(tmp_path / "run", config, tf.distribute.get_strategy())


def test_start_from_another_run_with_the_backbone_frozen(folder, tmp_path):
    first = config_of(folder)
    train.train(tmp_path / "first", first, tf.distribute.get_strategy())
    second = config_of(folder, weights=str(tmp_path / "first"), transfer="backbone", freeze_backbone=True)
    train.train(tmp_path / "second", second, tf.distribute.get_strategy())
    model = predict.build(first)
    training.load_weights(tmp_path / "first", model, "best")
    before = {weight.path: weight.numpy() for weight in model.weights}
    after = weights_of(tmp_path / "second", second)
    for path in before:
        frozen = int(path.split("/")[0].split("_")[1]) < 7
        assert np.array_equal(before[path], after[path]) == frozen, path


def test_weight_decay_is_the_optimizer_s_and_a_run_keeps_its_own(folder, tmp_path, monkeypatch):
    """AdamW's 0.05 takes 1 - exp(-0.05 * 15,600 * 1e-3 / 2), a third of a kernel, over 100 epochs of VOC 2007."""
    run, made = ["--tfrecords", str(folder), "--run", "run"], {}
    for name, decay in (("adam", 0.05), ("sgd", 5e-4)):
        config = asked.configuration([*run, "--optimizer", name], monkeypatch, tmp_path)
        made[name] = train.make_optimizer(config, 15_600)
        assert config["weight_decay"] == decay == pytest.approx(made[name].weight_decay)
    rates = [float(made["adam"]._learning_rate(step)) for step in range(0, 15_600, 100)]
    assert 1 - np.exp(-0.05 * 100 * np.sum(rates)) == pytest.approx(1 / 3, abs=0.03)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"model": "yolov3", "weight_decay": 0.0005}')
    assert asked.configuration(run, monkeypatch, tmp_path)["weight_decay"] == 5e-4
    assert asked.configuration([*run, "--weight_decay", "0"], monkeypatch, tmp_path)["weight_decay"] == 0


@pytest.mark.parametrize("values, message", [
    ({"image_size": 100}, "multiple of 32; 100 came"),
    ({"anchors": [[[10, 10]]]}, "2 groups, one for each of the strides"),
    ({"batch_size": 3}, "multiple of the 2 replicas"),
    ({"weights": "missing.weights"}, "missing.weights"),
])
def test_mistakes_are_one_clear_line(folder, tmp_path, two_replicas, values, message):
    with pytest.raises(UserError, match=message) as error:
        train.train(tmp_path / "run", config_of(folder, **values), two_replicas)
    assert "\n" not in str(error.value)


def test_a_run_of_another_model_is_not_overwritten(folder, tmp_path):
    train.train(tmp_path / "run", config_of(folder, epochs=1, eval_every=5), tf.distribute.get_strategy())
    with pytest.raises(UserError, match="width = 0.125, but 0.25 was asked for"):
        train.train(tmp_path / "run", config_of(folder, width=0.25), tf.distribute.get_strategy())


def test_unbuilt_records_name_the_command(tmp_path):
    with pytest.raises(UserError, match="No records match .*python -m yolov3.preprocess --dataset nothing_here"):
        train.train(tmp_path / "run", {**train.DEFAULTS, "tfrecords": "nothing_here", "labels": []},
                    tf.distribute.get_strategy())


def test_records_without_validation_are_refused_before_training(tmp_path):
    folder = detection_demo.build(tmp_path, size=64, splits={"train": 4}, progress=False).folder
    with pytest.raises(UserError, match=r"No records match .*val-\*.*The set holds train"):
        train.train(tmp_path / "run", config_of(folder), tf.distribute.get_strategy())
    assert not (tmp_path / "run").exists()
