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

from autoencoders import evaluate, predict, preprocess, sources, train
from autoencoders.model import build, forward
from common import records, training
from common.errors import UserError

SMALL = {"batch_size": 4, "epochs": 2, "eval_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 12 + 6 digits; 6 is no multiple of the batch."""
    made_up = sources.from_digits(0, {"train": 12, "val": 6})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "find", lambda *args, **kwargs: made_up)
        return preprocess.build("demo", folder=tmp_path_factory.mktemp("tfrecords") / "demo")


def config_of(folder, **values):
    return train.make_config({**SMALL, **values, "tfrecords": str(folder)}, records.read_manifest(folder))


def weights_of(run, config):
    model = build(config["model"], config["image_shape"], config["latent_dim"])
    training.load_weights(run, model, "last")
    return {weight.path: weight.numpy() for weight in model.weights}


@pytest.mark.parametrize("values", [{"model": "conv_vae", "beta": 0.5}, {"model": "conv", "noise": 0.4},
                                    {"model": "vae", "latent_dim": 3, "noise": 0.3}],
                         ids=lambda values: values["model"])
def test_two_replicas_equal_one(folder, tmp_path, two_replicas, values):
    """Faults 20 and 21 through the whole of train(): data, random numbers, loss, update, validation.

    Adadelta, whose step grows with the gradient: a loss that is divided wrongly shows. Adam would hide it.
    """
    config = config_of(folder, optimizer="adadelta", learning_rate=1.0, schedule="constant", **values)
    metrics = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        metrics[name] = train.train(tmp_path / name, config, strategy)
    one, two = (weights_of(tmp_path / name, config) for name in ("one", "two"))
    before = {weight.path: weight.numpy() for weight in build(config["model"],
                                                              latent_dim=config["latent_dim"]).weights}
    assert any(np.abs(one[path] - before[path]).max() > 1e-3 for path in one)
    for path in one:
        np.testing.assert_allclose(one[path], two[path], rtol=1e-4, atol=1e-5, err_msg=path)
    assert metrics["one"] == pytest.approx(metrics["two"], rel=1e-5)


def test_the_step_is_that_of_the_formula(folder):
    """One step of the whole machine against a tape written out here."""
    config = config_of(folder, beta=3.0)
    batch = next(iter(preprocess.training_dataset(folder, image_shape=(28, 28, 1), batch_size=4, seed=0,
                                                  latent_dim=2)))
    training.set_seed(0)
    model, twin = build("vae"), build("vae")
    twin.set_weights(model.get_weights())
    with tf.GradientTape() as tape:
        found = forward(twin, batch["images"], batch["epsilon"])
        probs = tf.clip_by_value(tf.sigmoid(found["logits"]), 1e-7, 1 - 1e-7)
        white = batch["images"]
        entropy = -tf.reduce_sum(white * tf.math.log(probs) + (1 - white) * tf.math.log(1 - probs)) / 4
        kl = 0.5 * tf.reduce_sum(found["mean"] ** 2 + tf.exp(found["log_var"]) - found["log_var"] - 1) / 4
        total = entropy + 3 * kl
    gradients = tape.gradient(total, twin.trainable_variables)
    strategy = tf.distribute.get_strategy()
    optimizer = tf.keras.optimizers.SGD(1e-3)
    optimizer.build(model.trainable_variables)
    step = train.make_train_step(model, optimizer, strategy, loss=train.vae_loss, beta=config["beta"],
                                 global_batch_size=4)
    parts = step(iter([batch]))
    assert float(parts["reconstruction"]) == pytest.approx(float(entropy), rel=1e-5)
    assert float(parts["kl"]) == pytest.approx(float(kl), rel=1e-4)
    for weight, start, gradient in zip(model.trainable_variables, twin.trainable_variables, gradients):
        np.testing.assert_allclose(weight - start, -1e-3 * gradient, rtol=1e-3, atol=2e-6, err_msg=weight.path)


KILLED = """
import os, pathlib, signal, sys, json
sys.path.insert(0, {root!r})
import tensorflow as tf
from autoencoders import train
from common import training
taken = training.Log.step
def step(self, number, *args, **kwargs):
    taken(self, number, *args, **kwargs)
    if number == {at}:
        os.kill(os.getpid(), signal.{signal})
training.Log.step = step
config = json.loads(pathlib.Path({config!r}).read_text())
train.train({run!r}, config, tf.distribute.get_strategy())
"""


def run_until(number, name, config, run, tmp_path):
    """The exit code of a process that trains until it gets the signal `name` behind step `number`."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    script = KILLED.format(root=str(pathlib.Path(train.__file__).parents[1]), config=str(file), run=str(run),
                           at=number,
                           signal=name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    return done.returncode, done.stderr.decode()[-2000:]


def test_killed_and_resumed_equals_uninterrupted_bit_for_bit(folder, tmp_path):
    """Faults 11 and 13: SIGTERM behind step 3, kill -9 behind step 5 of 6; sampled codes, noise, Adam."""
    config = config_of(folder, noise=0.3)
    code, said = run_until(3, "SIGTERM", config, tmp_path / "killed", tmp_path)
    assert code == 143, said
    assert (tmp_path / "killed" / "checkpoints" / "ckpt-3.index").exists()
    code, said = run_until(5, "SIGKILL", config, tmp_path / "killed", tmp_path)
    assert code == -signal.SIGKILL, said
    saved = sorted(path.name for path in (tmp_path / "killed" / "checkpoints").glob("*.index"))
    assert saved[-1] == "ckpt-4.index"
    for name in ("killed", "whole"):
        train.train(tmp_path / name, config, tf.distribute.get_strategy())
    stored = {}
    for name in ("killed", "whole"):
        reader = tf.train.load_checkpoint(str(tmp_path / name / "checkpoints" / "ckpt-6"))
        stored[name] = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()
                        if "OBJECT_GRAPH" not in key}
    assert stored["killed"].keys() == stored["whole"].keys()
    for key, value in stored["whole"].items():
        np.testing.assert_array_equal(stored["killed"][key], value, err_msg=key)


def test_overfits_a_few_pictures(folder, tmp_path):
    """`--limit`: pictures learnt by heart. The loss of gray pixels cannot be 0: the bound is theirs."""
    config = config_of(folder, model="dense", limit=8, epochs=120, eval_every=120, learning_rate=5e-3)
    metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    images = preprocess.read_split(folder, "train", limit=8)[0] / 255
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -np.nan_to_num(images * np.log(images)) - np.nan_to_num((1 - images) * np.log(1 - images))
    least = entropy.sum(axis=(1, 2, 3)).mean()
    assert least < metrics["val_loss"] < least + 8 and metrics["psnr"] > 25
    assert (tmp_path / "run" / "samples" / "epoch_0120.png").stat().st_size > 500
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert rows[0].split(",")[:4] == ["epoch", "step", "seconds", "reconstruction"] and len(rows) == 121
    assert train.train(tmp_path / "run", config, tf.distribute.get_strategy()) == {}  # a finished run says so


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_learns_and_keeps_float32_weights(folder, tmp_path, precision):
    config = config_of(folder, model="vae", precision=precision, epochs=15, eval_every=15, learning_rate=3e-3)
    try:
        metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    finally:
        training.set_precision("float32")
    rows = [row.split(",") for row in (tmp_path / "run" / "metrics.csv").read_text().splitlines()]
    assert float(rows[-1][3]) < 0.7 * float(rows[1][3]) and np.isfinite(metrics["val_loss"])
    model, _ = predict.load_run(tmp_path / "run", "last")
    assert all(weight.dtype == "float32" for weight in model.weights)


def test_nan_stops_training_and_names_the_part(folder, tmp_path):
    config = config_of(folder, model="vae", learning_rate=1e6, schedule="constant", epochs=20)
    message = r"Loss part (reconstruction|kl) is .* at step \d+.*--learning_rate"
    with pytest.raises(training.NonFiniteLoss, match=message):
        train.train(tmp_path / "run", config, tf.distribute.get_strategy())


def test_evaluation_takes_every_picture_once_on_any_number_of_replicas(folder, two_replicas):
    """Fault 21: 6 pictures in batches of 4."""
    config, model = config_of(folder, noise=0.2), build("vae")
    found = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        with strategy.scope():
            copy = build("vae")
        copy.set_weights(model.get_weights())
        dataset = evaluate.batches(folder, "val", strategy, config, batch_size=4)
        found[name] = evaluate.collect(evaluate.make_evaluate(copy, strategy), dataset, strategy)
    assert list(found["one"]["index"]) == list(range(6)) and found["one"]["images"].shape == (6, 28, 28, 1)
    for key, value in found["one"].items():
        np.testing.assert_allclose(found["two"][key], value, rtol=1e-4, atol=1e-5, err_msg=key)
    pictures, labels = preprocess.read_split(folder, "val")
    np.testing.assert_allclose(found["one"]["images"], pictures / np.float32(255), rtol=1e-6)
    np.testing.assert_array_equal(found["one"]["label"], labels)
    summary = evaluate.summarize(found["one"], config)
    mse = np.mean((found["one"]["pictures"].astype(np.float64) - found["one"]["images"]) ** 2, axis=(1, 2, 3))
    assert summary["psnr"] == pytest.approx(np.mean(-10 * np.log10(mse)), rel=1e-5)
    assert summary["loss"] == summary["reconstruction"] + summary["kl"] == -summary["elbo"]
    assert summary["reconstruction_per_pixel"] == pytest.approx(summary["reconstruction"] / 784)


@pytest.mark.parametrize("values, message", [
    ({"latent_dim": 0}, "--latent_dim must be at least 1; 0 came"),
    ({"beta": -1.0}, "--beta must be a number from 0; -1.0 came"),
    ({"noise": float("nan")}, "--noise must be a number from 0; nan came"),
    ({"model": "dense", "beta": 2.0}, "dense is none. Leave it out, or give --model vae or conv_vae"),
    ({"model": "conv", "latent_dim": 2}, "multiple of its 4 x 4 cells"),
    ({"batch_size": 3}, "multiple of the 2 replicas"),
])
def test_mistakes_are_one_clear_line(folder, tmp_path, two_replicas, values, message):
    with pytest.raises(UserError, match=message) as error:
        train.train(tmp_path / "run", config_of(folder, **values), two_replicas)
    assert "\n" not in str(error.value)


def test_a_run_of_another_model_is_not_overwritten(folder, tmp_path):
    train.train(tmp_path / "run", config_of(folder, model="vae", epochs=1), tf.distribute.get_strategy())
    with pytest.raises(UserError, match='model = "vae", but "dense" was asked for'):
        train.train(tmp_path / "run", config_of(folder, model="dense"), tf.distribute.get_strategy())


def test_a_checkpoint_of_another_code_names_the_layer_and_both_shapes(folder, tmp_path):
    """Fault 15."""
    train.train(tmp_path / "run", config_of(folder, model="vae", epochs=1), tf.distribute.get_strategy())
    with pytest.raises(UserError, match=r"z_(mean|log_var)/kernel is \[128, 2\] in .*, but \[128, 3\] in this "
                       "model"):
        training.load_weights(tmp_path / "run", build("vae", latent_dim=3), "last")
