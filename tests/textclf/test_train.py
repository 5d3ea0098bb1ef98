"""Training as a whole: replicas, resuming, signals, overfitting, the NaN stop, and mistakes of the user."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from common import files, records, training
from common.errors import UserError
from textclf import demo, evaluate, predict, preprocess, train

SMALL = {"vocabulary": 120, "width": 16, "batch_size": 8, "epochs": 2, "eval_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 26 + 11 made-up stories: three steps of 8 an epoch, and 2 over; 11 fills no batch up."""
    splits, demo.SPLITS = demo.SPLITS, {"train": 26, "val": 11, "test": 5}
    try:
        return preprocess.build("demo", folder=tmp_path_factory.mktemp("records") / "demo")
    finally:
        demo.SPLITS = splits


def config_of(folder, **values):
    return train.make_config({**SMALL, **values, "tfrecords": str(folder)}, records.read_manifest(folder))


def weights_of(run):
    return {weight.path: weight.numpy() for weight in predict.load_run(run, "last")[0].weights}


def test_two_replicas_equal_one(folder, tmp_path, two_replicas):
    """Fault 20, through the whole of train(): data, loss, update, validation."""
    config = config_of(folder, weight_decay=0.1, warmup_steps=1)
    metrics = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        metrics[name] = train.train(tmp_path / name, config, strategy)
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    for path in one:
        np.testing.assert_allclose(one[path], two[path], rtol=1e-4, atol=1e-5, err_msg=path)
    assert metrics["one"] == pytest.approx(metrics["two"], abs=1e-4)


STOPPED = """
import os, pathlib, sys, json, time
sys.path.insert(0, {root!r})
import tensorflow as tf
from common import training
from textclf import train
taken = training.Log.step
def step(self, number, *args, **kwargs):
    taken(self, number, *args, **kwargs)
    if number == 5:
        os.kill(os.getpid(), {signal})
        time.sleep(1)  # a thread takes the signal
training.Log.step = step
config = json.loads(pathlib.Path({config!r}).read_text())
train.train({run!r}, config, tf.distribute.get_strategy())
"""


def test_killed_and_stopped_runs_resume_bit_for_bit(folder, tmp_path):
    """Faults 11 and 13: kill -9 behind step 5 of 6, after the checkpoint of step 4; SIGTERM there saves step 5."""
    config = config_of(folder)
    (tmp_path / "config.json").write_text(json.dumps(config))
    kinds = {"killed": (signal.SIGKILL, -9, 4), "stopped": (signal.SIGTERM, 143, 5)}
    processes = {}
    for name, (number, _, _) in kinds.items():
        script = STOPPED.format(root=str(pathlib.Path(train.__file__).parents[1]), run=str(tmp_path / name),
                                config=str(tmp_path / "config.json"), signal=int(number))
        processes[name] = subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE,
                                           env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    train.train(tmp_path / "whole", config, tf.distribute.get_strategy())
    for name, (_, code, step) in kinds.items():
        _, errors = processes[name].communicate(timeout=200)
        assert processes[name].returncode == code, errors[-2000:]
        saved = [path.name for path in (tmp_path / name / "checkpoints").glob("*.index")]
        assert sorted(saved)[-1] == f"ckpt-{step}.index"
        train.train(tmp_path / name, config, tf.distribute.get_strategy())
        stored = []
        for run in (name, "whole"):
            reader = tf.train.load_checkpoint(str(tmp_path / run / "checkpoints" / "ckpt-6"))
            stored.append({key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()
                           if "OBJECT_GRAPH" not in key})
        assert stored[0].keys() == stored[1].keys() and len(stored[0]) > 10
        for key, value in stored[1].items():
            np.testing.assert_array_equal(stored[0][key], value, err_msg=key)


def test_learns_a_few_texts_by_heart_in_half_precision(folder, tmp_path):
    """The development set: --limit N trains and validates on N texts, and learns its vocabulary from them."""
    config = config_of(folder, limit=10, batch_size=5, epochs=25, eval_every=25, learning_rate=1e-2,
                       precision="mixed_bfloat16", tfidf="article", label_smoothing=0.0)
    try:
        metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    finally:
        training.set_precision("float32")
    assert metrics["accuracy"] == 1.0
    assert json.loads((tmp_path / "run" / "vocabulary.json").read_text())["documents"] == 10
    names = {path.name for path in (tmp_path / "run" / "samples").iterdir()}
    assert names == {"confusion.png", "reliability.png", "losses.png", "metrics.png"}
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[0] == "epoch,step,seconds,crossentropy,accuracy,macro_f1,ece" and len(rows) == 26
    assert train.train(tmp_path / "run", config, tf.distribute.get_strategy()) == {}  # a finished run says so


def test_float16_scales_its_loss(folder, tmp_path):
    try:
        train.train(tmp_path / "run", config_of(folder, precision="mixed_float16"), tf.distribute.get_strategy())
    finally:
        training.set_precision("float32")
    assert all(np.isfinite(value).all() for value in weights_of(tmp_path / "run").values())


def test_without_a_validation_split_the_last_epoch_counts(tmp_path, capfd):
    (tmp_path / "a.csv").write_text("".join(
        f"{word} news{' more' * number},{word}\n" for number in range(20) for word in ("sport", "trade")))
    folder = preprocess.build("a", tmp_path / "a.csv", tmp_path / "a", val_fraction=0)
    config = config_of(folder, learning_rate=0.05)
    assert train.train(tmp_path / "run", config, tf.distribute.get_strategy()) == {}
    assert "nothing is validated" in capfd.readouterr().err
    model, vectorize, _ = predict.load_run(tmp_path / "run")
    dataset = evaluate.batches(folder, "test", vectorize, tf.distribute.get_strategy(), batch_size=4)
    found = evaluate.collect(evaluate.make_classify(model, tf.distribute.get_strategy()), dataset,
                             tf.distribute.get_strategy())
    assert evaluate.summarize(found, config["labels"])["accuracy"] == 1.0


def test_categories_without_validation_texts_are_said(tmp_path, capfd):
    for name, content in (("train", "a\tx\nb\ty\nc\tz\n" * 3), ("val", "a\tx\n"), ("test", "a\tx\n")):
        (tmp_path / f"{name}.txt").write_text(content)
    folder = preprocess.build("a", tmp_path, tmp_path / "a")
    config = config_of(folder, epochs=1, eval_every=1)
    metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    assert "val has no texts of b, c: macro F1 is the mean of the other categories" in capfd.readouterr().err
    assert metrics["macro_f1"] == metrics["accuracy"]


def test_nan_stops_training(folder, tmp_path, monkeypatch):
    def broken(labels, logits, **kwargs):
        return {"crossentropy": tf.reduce_sum(logits, axis=-1) / 0.0}

    monkeypatch.setattr(train, "categorical_crossentropy", broken)
    with pytest.raises(training.NonFiniteLoss, match=r"Loss part crossentropy is .* at step 1; .*--learning_rate"):
        train.train(tmp_path / "run", config_of(folder), tf.distribute.get_strategy())


def test_a_run_keeps_its_vocabulary(folder, tmp_path):
    config = config_of(folder, epochs=1, eval_every=5)
    train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    path = tmp_path / "run" / "vocabulary.json"
    kept = json.loads(path.read_text())
    other = {**kept, "words": kept["words"][::-1]}
    files.write_json(path, other)
    train.train(tmp_path / "run", {**config, "epochs": 2}, tf.distribute.get_strategy())
    assert json.loads(path.read_text()) == other  # not learnt again
    path.unlink()
    with pytest.raises(UserError, match="vocabulary.json must be the vocabulary that train.py wrote"):
        train.train(tmp_path / "run", {**config, "epochs": 3}, tf.distribute.get_strategy())
    with pytest.raises(UserError, match='tfidf = "normalized", but "article" was asked for'):
        train.train(tmp_path / "run", {**config, "tfidf": "article"}, tf.distribute.get_strategy())


def test_mistakes_are_one_clear_line(folder, tmp_path, two_replicas):
    for values, message in (({"batch_size": 3}, "multiple of the 2 replicas"),
                            ({"tfrecords": "nothing_here"}, "No records match .*textclf.preprocess --dataset")):
        with pytest.raises(UserError, match=message) as error:
            train.train(tmp_path / "run", {**config_of(folder), **values}, two_replicas)
        assert "\n" not in str(error.value)
