"""Training as a whole: replicas, resuming with workers, overfitting, the NaN stop, the optimizers, mistakes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import detection, detection_demo, records, training
from common.errors import UserError
from ssd import convert, train
from tests.ssd import small
from tests.yolov3 import asked

ROOT = pathlib.Path(train.__file__).parents[1]
SMALL = {"model": "tiny", "width": 0.125, "batch_norm": True, "batch_size": 4, "epochs": 2, "warmup_steps": 2,
         "eval_every": 2, "checkpoint_every": 2, "workers": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 12 + 6 made-up pictures; 12 is no multiple of every batch size, 6 none of 4."""
    root = tmp_path_factory.mktemp("tfrecords")
    return detection_demo.build(root, size=64, splits={"train": 12, "val": 6}, progress=False).folder


def config_of(folder, **values):
    return train.make_config({**SMALL, **values, "tfrecords": str(folder)}, records.read_manifest(folder))


def weights_of(run, config):
    model = convert.build(config)
    training.load_weights(run, model, "last")
    return {weight.path: weight.numpy() for weight in model.weights}


def stored(run, step):
    reader = tf.train.load_checkpoint(str(run / "checkpoints" / f"ckpt-{step}"))
    return {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map() if "OBJECT_GRAPH" not in key}


class Batches:
    """A record set in the place of `preprocess.training_dataset`: the same global batch again and again."""

    def __init__(self, positives, side=160, anchors=2390, classes=6):
        rng = np.random.default_rng(0)
        labels = np.zeros([len(positives), anchors], np.int32)
        for row, count in zip(labels, positives):
            row[rng.permutation(anchors)[:count]] = rng.integers(1, classes + 1, count)
        self.images = rng.uniform(size=[len(positives), side, side, 3]).astype(np.float32)
        self.targets = {"classes": labels,
                        "offsets": rng.normal(size=[len(positives), anchors, 4]).astype(np.float32)}

    def __call__(self, folder, *, batch_size, **_):
        examples = tf.data.Dataset.from_tensor_slices((self.images, self.targets))
        return examples.repeat().batch(batch_size)


@pytest.mark.parametrize("options", [
    {"optimizer": "sgd", "learning_rate": 0.01, "clip_norm": 10.0},
    {"optimizer": "sgd", "learning_rate": 0.01, "batch_norm": False, "ema": 0.9},
], ids=["clipped, batch norm", "ema"])
def test_two_replicas_equal_one(folder, tmp_path, two_replicas, monkeypatch, options):
    """Faults 20 and 22, with positives spread unevenly: the second replica has none at all.

    Were each replica's sum divided by its own positives, the first replica would count twice as much.
    """
    monkeypatch.setattr(train.preprocess, "training_dataset", Batches([30, 1, 0, 0]))
    config = config_of(folder, epochs=1, eval_every=1, warmup_steps=0, **options)
    metrics = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        metrics[name] = train.train(tmp_path / name, config, strategy)
    one, two = (weights_of(tmp_path / name, config) for name in ("one", "two"))
    for path in one:
        np.testing.assert_allclose(one[path], two[path], rtol=1e-4, atol=1e-5, err_msg=path)
    assert metrics["one"]["map50"] == pytest.approx(metrics["two"]["map50"], abs=1e-3)
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines()[-1].split(",")[3:6] for name in ("one", "two")]
    assert np.array(rows[0], float) == pytest.approx(np.array(rows[1], float), rel=1e-4)


def test_batches_are_the_same_on_any_number_of_replicas(folder, two_replicas):
    config = config_of(folder)
    batches = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        found = [batch for _, batch in zip(range(4), train.training_batches(folder, config, strategy, 2))]
        batches[name] = [np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
                         for batch in found for value in tf.nest.flatten(batch)]
    for one, two in zip(batches["one"], batches["two"], strict=True):
        # The logarithm of a size is rounded differently in the vectors and at the end of an array.
        np.testing.assert_allclose(one, two, rtol=0 if one.ndim != 3 else 1e-6, atol=0)


def one_step(config, batch, steps=1, **options):
    """({path: value} before, after, the parts of the last step) of a training on the batch."""
    training.set_seed(1)
    model = convert.build(config)
    optimizer = train.make_optimizer(config, 100, 10)
    optimizer.build(model.trainable_variables)
    step = train.make_train_step(model, optimizer, tf.distribute.get_strategy(), **options)
    before = {weight.path: weight.numpy() for weight in model.weights}
    batches = iter(batch(None, batch_size=len(batch.images)))
    for _ in range(steps):
        parts = step(batches)
    after = {weight.path: weight.numpy() for weight in model.weights}
    return before, after, {name: float(part) for name, part in parts.items()}


def test_biases_learn_twice_as_fast_with_sgd(folder):
    """As with Caffe's lr_mult, momentum included; kernels do not notice, and no bias decays."""
    config = config_of(folder, optimizer="sgd", batch_norm=False, warmup_steps=0)
    batch = Batches([20, 3])
    before, plain, _ = one_step({**config, "learning_rate": 1e-5}, batch, steps=3)
    _, doubled, _ = one_step({**config, "learning_rate": 1e-5}, batch, steps=3, bias_rate=2.0)
    for path in before:
        rate = 2.0 if path.endswith("bias") else 1.0
        moved = (doubled[path] - before[path], rate * (plain[path] - before[path]))
        # At this rate the weights, hence the gradients, hardly change from step to step.
        np.testing.assert_allclose(*moved, rtol=2e-2, atol=2e-7, err_msg=path)
    assert np.abs(plain["boxes_0/bias"] - before["boxes_0/bias"]).max() > 1e-6


def test_without_objects_only_the_kernels_decay(folder):
    """A batch without any positive (divided by 1, not by 0): what is left is weight decay, by Caffe's rule."""
    config = config_of(folder, optimizer="sgd", batch_norm=False, learning_rate=0.5, schedule="constant",
                       warmup_steps=0)
    before, after, parts = one_step(config, Batches([0, 0]), weight_decay=0.01, bias_rate=2.0)
    assert parts["confidence"] == parts["localization"] == 0
    kernels = [path for path in before if path.endswith("kernel")]
    squares = sum(np.sum(np.square(before[path], dtype=np.float64)) for path in kernels)
    assert parts["l2"] == pytest.approx(0.01 / 2 * squares, rel=1e-5)
    for path in before:
        rate = 1 - 0.5 * 0.01 if path in kernels else 1.0
        np.testing.assert_allclose(after[path], rate * before[path], rtol=1e-6, err_msg=path)


def test_optimizers_are_the_article_s_and_caffe_s(folder):
    adam = train.make_optimizer(config_of(folder, learning_rate=0.001, warmup_steps=0), 1000, 50)
    assert isinstance(adam, keras.optimizers.AdamW) and adam.epsilon == 0.1 and not adam.weight_decay
    rates = [float(adam._learning_rate(step)) for step in (0, 50, 500)]
    assert rates == pytest.approx([0.001, 0.00097, 0.001 * 0.97 ** 10])
    sgd = train.make_optimizer(config_of(folder, optimizer="sgd", learning_rate=0.001, warmup_steps=0), 120_000, 50)
    assert isinstance(sgd, keras.optimizers.SGD) and sgd.momentum == 0.9 and not sgd.weight_decay
    rates = [float(sgd._learning_rate(step)) for step in (0, 79_999, 80_000, 99_999, 100_000, 119_999)]
    assert rates == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5])


def test_the_variant_is_that_of_the_weights_and_a_run_keeps_its_own(folder, tmp_path, monkeypatch, capsys):
    small.write_run(tmp_path / "caffe", small.build(), variant="caffe")
    run = ["--tfrecords", str(folder), "--run", "run", "--model", "tiny"]
    start = [*run, "--weights", str(tmp_path / "caffe")]
    for arguments, variant in ((run, "article"), (start, "caffe"), ([*start, "--variant", "article"], "article"),
                               ([*start, "--transfer", "backbone"], "article")):
        assert asked.configuration(arguments, monkeypatch, tmp_path, train)["variant"] == variant
    assert "computes something else from the same weights" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"variant": "caffe"}')
    assert asked.configuration(run, monkeypatch, tmp_path, train)["variant"] == "caffe"


def test_negatives_of_pictures_without_objects_reach_the_step(folder):
    """A batch without any positive: with --min_negatives the classes of its hardest anchors are learnt, no box is."""
    config = config_of(folder, optimizer="sgd", batch_norm=False, schedule="constant", warmup_steps=0)
    before, after, parts = one_step(config, Batches([0, 0]), min_negatives=5)
    assert parts["confidence"] > 0 == parts["localization"]
    moved = {path.split("_")[0] for path in before if path.endswith("bias") and (before[path] != after[path]).any()}
    assert "classes" in moved and "boxes" not in moved


CHILD = """
import json, os, pathlib, signal, sys, time
root, config, run, name = sys.argv[1:]
sys.path.insert(0, root)
import tensorflow as tf
from common import training
from ssd import train
taken = training.Log.step
def step(self, number, *args, **kwargs):
    taken(self, number, *args, **kwargs)
    if number == 5:
        threads = pathlib.Path("/proc/self/task").glob("*/children")
        pathlib.Path(run + ".children").write_text(" ".join(path.read_text() for path in threads))
        os.kill(os.getpid(), getattr(signal, name))
        time.sleep(0.2)  # a thread takes the signal
training.Log.step = step
train.train(run, json.loads(pathlib.Path(config).read_text()), tf.distribute.get_strategy())
"""


@pytest.mark.parametrize("name, code, left", [("SIGKILL", -signal.SIGKILL, 4), ("SIGTERM", 143, 5)])
def test_ended_and_resumed_equals_uninterrupted_bit_for_bit(folder, tmp_path, uninterrupted, name, code, left):
    """Faults 11, 13 and 36: behind step 5 of 6, while two workers augment; none of them is left."""
    config, expected = uninterrupted
    files, run = tmp_path / "config.json", tmp_path / "run"
    files.write_text(json.dumps({**config, "workers": 2}))
    done = subprocess.run([sys.executable, "-c", CHILD, str(ROOT), str(files), str(run), name], capture_output=True,
                          timeout=300, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == code, done.stderr[-2000:]
    children = (tmp_path / "run.children").read_text().split()
    assert len(children) == 2
    end = time.monotonic() + 5
    while any(pathlib.Path(f"/proc/{child}/cmdline").exists() and pathlib.Path(f"/proc/{child}/cmdline").read_text()
              for child in children):
        assert time.monotonic() < end, "a worker is left"
        time.sleep(0.05)
    assert max(int(path.stem.split("-")[1]) for path in (run / "checkpoints").glob("*.index")) == left
    train.train(run, config, tf.distribute.get_strategy())
    found = stored(run, 6)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value, err_msg=key)


@pytest.fixture(scope="module")
def uninterrupted(folder, tmp_path_factory):
    """(config, what its last checkpoint holds) of a run that augments in this process: Adam, EMA, augmentation."""
    config = config_of(folder, ema=0.9)
    run = tmp_path_factory.mktemp("runs") / "whole"
    train.train(run, config, tf.distribute.get_strategy())
    return config, stored(run, 6)


def test_overfits_a_few_pictures(folder, tmp_path):
    """A model must learn a handful of pictures by heart."""
    config = config_of(folder, limit=4, width=0.25, batch_size=4, epochs=80, eval_every=80, learning_rate=3e-3,
                       epsilon=1e-3, schedule="cosine", checkpoint_every=1000, warmup_steps=10)
    metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    assert metrics["map50"] >= 0.9
    assert (tmp_path / "run" / "samples" / "epoch_0080.png").stat().st_size > 1000
    assert all((tmp_path / "run" / "samples" / name).stat().st_size > 1000 for name in ("losses.png", "metrics.png"))
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[0].split(",")[:6] == ["epoch", "step", "seconds", "confidence", "localization", "l2"]
    assert len(rows) == 81
    assert train.train(tmp_path / "run", config, tf.distribute.get_strategy()) == {}  # a finished run says so


def test_nan_stops_training_and_names_the_part(folder, tmp_path):
    config = config_of(folder, learning_rate=1e12, warmup_steps=0, epochs=20, eval_every=20, optimizer="sgd",
                       batch_norm=False, checkpoint_every=100)
    message = r"Loss part (confidence|localization|l2) is .* at step \d+.*--learning_rate"
    with pytest.raises(training.NonFiniteLoss, match=message):
        train.train(tmp_path / "run", config, tf.distribute.get_strategy())


def test_start_from_another_run_with_stages_frozen(folder, tmp_path):
    first = config_of(folder)
    train.train(tmp_path / "first", first, tf.distribute.get_strategy())
    second = config_of(folder, weights=str(tmp_path / "first"), transfer="backbone", freeze=2)
    train.train(tmp_path / "second", second, tf.distribute.get_strategy())
    model = convert.build(first)
    training.load_weights(tmp_path / "first", model, "best")
    before = {weight.path: weight.numpy() for weight in model.weights}
    after = weights_of(tmp_path / "second", second)
    for path in before:
        frozen = path.startswith(("conv1_", "conv2_"))
        assert np.array_equal(before[path], after[path]) == frozen, path


def test_a_damaged_picture_stops_training_with_its_own_error(folder, tmp_path):
    """Faults 25 and 34: what a worker raised comes out with its words, not with TensorFlow's about it."""
    manifest = records.read_manifest(folder)
    good = [item["record"].numpy() for item in records.dataset(folder, "train", epochs=1)]
    bad = detection.encode_example(b"no picture", 64, 64, "bad.jpg", [[0, 0, 1, 1]], [0])
    with records.RecordWriter(tmp_path / "demo", kind=detection.KIND, labels=manifest["labels"]) as writer:
        for split in ("train", "val"):
            writer.write_split(split, [*good[:4], bad], most_objects=4)
        writer.publish()
    with pytest.raises(UserError, match="bad.jpg must be a picture that OpenCV decodes") as error:
        train.train(tmp_path / "run", config_of(tmp_path / "demo", workers=1, epochs=3), tf.distribute.get_strategy())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values, message", [
    ({"batch_size": 3}, "multiple of the 2 replicas"),
    ({"weights": "missing.caffemodel"}, "missing.caffemodel"),
    ({"weights": "imagenet"}, "VGG-16 fit vgg300 and vgg512"),
])
def test_mistakes_are_one_clear_line(folder, tmp_path, two_replicas, values, message):
    with pytest.raises(UserError, match=message) as error:
        train.train(tmp_path / "run", config_of(folder, **values), two_replicas)
    assert "\n" not in str(error.value)


def test_a_run_of_another_model_is_not_overwritten(folder, tmp_path):
    train.train(tmp_path / "run", config_of(folder, epochs=1, eval_every=5), tf.distribute.get_strategy())
    with pytest.raises(UserError, match="batch_norm = true, but false was asked for"):
        train.train(tmp_path / "run", config_of(folder, batch_norm=False), tf.distribute.get_strategy())


def test_unbuilt_records_name_the_command(tmp_path):
    with pytest.raises(UserError, match="No records match .*python -m ssd.preprocess --dataset nothing_here"):
        train.train(tmp_path / "run", {**train.DEFAULTS, "tfrecords": "nothing_here", "labels": []},
                    tf.distribute.get_strategy())


def test_records_without_validation_are_refused_before_training(tmp_path):
    folder = detection_demo.build(tmp_path, size=64, splits={"train": 4}, progress=False).folder
    with pytest.raises(UserError, match=r"No records match .*val-\*.*The set holds train"):
        train.train(tmp_path / "run", config_of(folder), tf.distribute.get_strategy())
    assert not (tmp_path / "run").exists()
