"""Training as a whole: replicas, resuming, overfitting, the NaN stop, the optimizers, mistakes of the user."""

import csv
import json
import os
import pathlib
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import training
from common.errors import UserError
from hourglass import demo, evaluate, model, poses, train
from hourglass.loss import LOSSES

ROOT = pathlib.Path(train.__file__).parents[1]
SMALL = {"num_stacks": 1, "filters": 8, "order": 1, "variant": "newell", "image_size": 64, "batch_size": 4,
         "epochs": 2, "warmup_steps": 2, "eval_every": 2, "checkpoint_every": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 12 + 6 made-up figures; 6 is no multiple of the batch."""
    source = demo.source(size=64, splits={"train": 12, "val": 6})
    return poses.build_records(source, tmp_path_factory.mktemp("tfrecords"), progress=False).folder


def config_of(folder, **values):
    return train.make_config({**SMALL, **values, "tfrecords": str(folder)}, poses.body_of(folder))


def weights_of(run):
    model, _ = evaluate.load_run(run, "last")
    return {weight.path: weight.numpy() for weight in model.weights}


def sgd(config, total_steps):
    """An optimizer whose step grows with the gradient: a loss that is divided wrongly shows. RMSprop hides it."""
    return keras.optimizers.SGD(0.01, momentum=0.9)


def rows_of(run):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def eager():
    """Runs functions operation by operation: tracing a network takes longer than a few steps of it."""
    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


def test_two_replicas_equal_one(folder, tmp_path, two_replicas, monkeypatch):
    """Faults 20 and 22, through the whole of train(): data, batch norm, loss, clipping, update, validation.

    Without augmentation and for three steps: where the maxima of a pooling window tie, rounding decides which of
    them gets the gradient, and the runs drift apart from there.
    """
    monkeypatch.setattr(train, "make_optimizer", sgd)
    config = config_of(folder, augment=False, epochs=1, eval_every=1, clip_norm=1.0, ema=0.9)
    metrics = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        metrics[name] = train.train(tmp_path / name, config, strategy)
    one, two = (weights_of(tmp_path / name) for name in ("one", "two"))
    training.set_seed(config["seed"])
    before = train.build(config).get_weights()
    assert max(np.abs(value - start).max() for value, start in zip(one.values(), before)) > 1e-3
    for path in one:
        np.testing.assert_allclose(one[path], two[path], rtol=1e-4, atol=1e-5, err_msg=path)
    assert metrics["one"] == pytest.approx(metrics["two"], abs=0.02)
    for ours, theirs in zip(*(rows_of(tmp_path / name) for name in ("one", "two")), strict=True):
        parts = [name for name in ours if name.startswith("stack_")]
        assert parts == ["stack_1"]
        one, two = ([float(row[name]) for name in parts] for row in (ours, theirs))
        assert one == pytest.approx(two, rel=1e-4)


def test_batches_are_the_same_on_any_number_of_replicas(folder, two_replicas):
    config = config_of(folder)
    batches = {}
    for name, strategy in (("one", tf.distribute.get_strategy()), ("two", two_replicas)):
        found = [batch for _, batch in zip(range(4), train.training_batches(folder, config, strategy, 2))]
        batches[name] = [np.concatenate([part.numpy() for part in strategy.experimental_local_results(value)])
                         for batch in found for value in tf.nest.flatten(batch)]
    for one, two in zip(batches["one"], batches["two"], strict=True):
        # Exponentials are rounded differently in the vectors and at the end of an array.
        np.testing.assert_allclose(one, two, rtol=1e-5)


def fixed_batch(count=4, joints=16, weight=1.0, seed=0):
    """A dataset of one batch, again and again."""
    rng = np.random.default_rng(seed)
    images = rng.uniform(size=[count, 64, 64, 3]).astype(np.float32)
    heatmaps = np.where(rng.random([count, 16, 16, joints]) < 0.1, 1, 0).astype(np.float32)
    targets = {"heatmaps": heatmaps, "weight": np.full([count, joints], weight, np.float32)}
    return tf.data.Dataset.from_tensors((images, targets)).repeat()


def one_step(config, dataset, optimizer):
    """(weights before and after a step by path, its parts)."""
    training.set_seed(3)
    model = train.build(config)
    optimizer.build(model.trainable_variables)
    before = {weight.path: weight.numpy() for weight in model.weights}
    step = train.make_train_step(model, optimizer, tf.distribute.get_strategy(), loss=LOSSES[config["loss"]],
                                 global_batch_size=config["batch_size"])
    parts = step(iter(dataset))
    return before, {weight.path: weight.numpy() for weight in model.weights}, parts


def test_the_step_is_that_of_the_formula(folder, eager):
    """One step against a tape written out here: the article's two losses, the mean over the batch taken once."""
    config, dataset = config_of(folder, num_stacks=2, variant="article"), fixed_batch()
    before, after, parts = one_step(config, dataset, keras.optimizers.SGD(1e-2))
    training.set_seed(3)
    twin = train.build(config)
    images, targets = next(iter(dataset))
    with tf.GradientTape() as tape:
        weights = tf.where(targets["heatmaps"] > 0, (16 * 16 - 49) / 49, 1.0)
        expected = [tf.reduce_mean(tf.square(targets["heatmaps"] - output) * weights)
                    for output in twin(images, training=True)]
        total = tf.add_n(expected)
    gradients = tape.gradient(total, twin.trainable_variables)
    assert [float(part) for part in parts.values()] == pytest.approx([float(part) for part in expected], rel=1e-5)
    largest = max(float(tf.reduce_max(tf.abs(gradient))) for gradient in gradients)
    for weight, gradient in zip(twin.trainable_variables, gradients, strict=True):
        moved = after[weight.path] - before[weight.path]
        np.testing.assert_allclose(moved, -1e-2 * gradient, rtol=1e-3, atol=1e-5 * largest, err_msg=weight.path)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision_keeps_loss_and_weights_in_float32(folder, eager, precision, monkeypatch):
    monkeypatch.setattr(model, "HEATMAP_DEVIATION", 0.5)  # else the first loss does not depend on the features
    dataset, found = fixed_batch(), {}
    for name in ("float32", precision):
        config = config_of(folder, precision=name)
        training.set_precision(name)
        try:
            _, after, parts = one_step(config, dataset, train.make_optimizer(config, 10))
        finally:
            training.set_precision("float32")
        assert [part.dtype for part in parts.values()] == [tf.float32]
        assert all(value.dtype == np.float32 for value in after.values())
        found[name] = float(parts["stack_1"])
    # Half precision has 8 or 11 bits; the sum is over thousands of pixels.
    assert found[precision] == pytest.approx(found["float32"], rel=0.02)
    assert found[precision] != found["float32"]


def test_a_batch_without_any_annotated_joint_changes_nothing(folder, eager):
    """Weight 0 everywhere: loss and gradients are 0, not 0 / 0, in RMSprop too."""
    config = config_of(folder, warmup_steps=0)
    before, after, parts = one_step(config, fixed_batch(weight=0.0), train.make_optimizer(config, 10))
    assert [float(part) for part in parts.values()] == [0]
    for path, value in after.items():
        assert np.isfinite(value).all()
        assert "moving" in path or np.array_equal(value, before[path]), path


def test_three_joints_most_of_them_missing(tmp_path):
    """Persons with one joint, of a body of three: PCK of the torso cannot measure them, so their height does."""
    body = poses.Body(["left_hand", "right_hand", "hat"], [(0, 1)], [(0, 2), (2, 1)], "pck", torso=[0, 1])
    data = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 255, [64, 64, 3], np.uint8)).numpy()

    def load(index):
        visible = np.eye(3, dtype=int)[index % 3] * 2
        return poses.Person(data, f"{index}.jpg", np.full([3, 2], 30.0), visible, (32, 32), 0.3)

    source = poses.Source("hands", body, {"train": range(4), "val": range(4, 6)}, load)
    folder = poses.build_records(source, tmp_path, progress=False).folder
    config = config_of(folder, epochs=1)
    metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    assert list(metrics) == ["val_pck_height"] and 0 <= metrics["val_pck_height"] <= 1
    row, = rows_of(tmp_path / "run")
    assert float(row["stack_1"]) > 0 and "stack_2" not in row
    assert json.loads((tmp_path / "run" / "config.json").read_text())["metric"] == "pck_height"
    assert (tmp_path / "run" / "checkpoints" / "best.weights.h5").exists()
    assert all(np.isfinite(value).all() for value in weights_of(tmp_path / "run").values())


KILLED = """
import os, pathlib, signal, sys, json
sys.path.insert(0, {root!r})
import tensorflow as tf
from common import training
from hourglass import train
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
    """(exit code, words) of a process that trains until it gets the signal `name` behind step `number`."""
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    script = KILLED.format(root=str(ROOT), config=str(file), run=str(run), at=number, signal=name)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=300,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    return done.returncode, done.stderr.decode()[-2000:]


def test_ended_and_resumed_equals_uninterrupted_bit_for_bit(folder, tmp_path):
    """Faults 11 and 13: SIGTERM behind step 3, kill -9 behind step 5 of 6; RMSprop, EMA, augmentation."""
    config = config_of(folder, ema=0.9)
    code, said = run_until(3, "SIGTERM", config, tmp_path / "ended", tmp_path)
    assert code == 143, said
    assert (tmp_path / "ended" / "checkpoints" / "ckpt-3.index").exists()
    code, said = run_until(5, "SIGKILL", config, tmp_path / "ended", tmp_path)
    assert code == -signal.SIGKILL, said
    assert sorted(path.name for path in (tmp_path / "ended" / "checkpoints").glob("*.index"))[-1] == "ckpt-4.index"
    stored = {}
    for name in ("ended", "whole"):
        train.train(tmp_path / name, config, tf.distribute.get_strategy())
        reader = tf.train.load_checkpoint(str(tmp_path / name / "checkpoints" / "ckpt-6"))
        stored[name] = {key: reader.get_tensor(key) for key in reader.get_variable_to_shape_map()
                        if "OBJECT_GRAPH" not in key}
    assert stored["ended"].keys() == stored["whole"].keys()
    assert any("velocity" in key for key in stored["whole"]) and any("ema" in key for key in stored["whole"])
    for key, value in stored["whole"].items():
        np.testing.assert_array_equal(stored["ended"][key], value, err_msg=key)


def test_overfits_a_few_pictures(folder, tmp_path, monkeypatch):
    """`--limit`: two figures learnt by heart, far below what "predicting all zeros" gets (article), and validated on
    the very crops that training showed: every joint is right. So does `evaluate` of such a run."""
    config = config_of(folder, limit=2, filters=32, order=3, batch_size=2, epochs=150, eval_every=150,
                       learning_rate=5e-3, optimizer="adam", schedule="cosine", warmup_steps=10,
                       checkpoint_every=1000)
    (_, targets), = train.training_batches(folder, config, tf.distribute.get_strategy(), 0).take(1)
    zeros = LOSSES["article"](targets, [tf.zeros_like(targets["heatmaps"])])["stack_1"]
    save = training.Checkpoints.save     # every epoch, that is every step here, costs more than the training
    monkeypatch.setattr(training.Checkpoints, "save", lambda self, step: save(self, step) if step == 150 else None)
    metrics = train.train(tmp_path / "run", config, tf.distribute.get_strategy())
    assert list(metrics) == ["val_pckh", "val_pckh_no_pelvis_thorax"] and metrics["val_pckh"] == 1
    for name in ("epoch_0150.png", "losses.png", "metrics.png"):
        assert (tmp_path / "run" / "samples" / name).stat().st_size > 1000
    picture = tf.io.decode_png((tmp_path / "run" / "samples" / "epoch_0150.png").read_bytes())
    assert picture.shape == (192, 2 * 2 * 192 + 4, 3)       # two persons, annotated and predicted
    rows = rows_of(tmp_path / "run")
    assert list(rows[0])[:4] == ["epoch", "step", "seconds", "stack_1"] and len(rows) == 150
    assert float(rows[-1]["stack_1"]) < 0.25 * float(tf.reduce_mean(zeros))
    assert train.train(tmp_path / "run", config, tf.distribute.get_strategy()) == {}  # a finished run says so
    strategy = tf.distribute.get_strategy()
    model, kept = evaluate.load_run(tmp_path / "run")
    right = []
    for crop_of in (evaluate.crop_of, lambda config: "center"):
        monkeypatch.setattr(evaluate, "crop_of", crop_of)
        batches = evaluate.batches(folder, "train", strategy, kept, batch_size=2, limit=2)
        found = evaluate.collect(evaluate.make_predict(model, strategy, kept["pairs"]), batches, strategy)
        right.append(evaluate.summarize(found, poses.body_of(folder))["pckh"])
    assert right[0] == 1 > right[1]         # evaluation's square is another view of the same figures


def test_nan_stops_training_and_says_what_to_do(folder, tmp_path):
    config = config_of(folder, learning_rate=1e20, warmup_steps=0, epochs=4, eval_every=4)
    message = r"Loss part stack_\d is .* at step \d+.*--learning_rate.*preprocess --check"
    with pytest.raises(training.NonFiniteLoss, match=message):
        train.train(tmp_path / "run", config, tf.distribute.get_strategy())


def test_rmsprop_is_the_one_of_torch(folder):
    """Newell's training: torch's RMSprop with alpha 0.99, epsilon 1e-8; gradients as small as those of a mean."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    optimizer = train.make_optimizer(config_of(folder, schedule="constant", warmup_steps=0), 100)
    rng = np.random.default_rng(0)
    gradients = rng.normal(size=[8, 6]) * [1, 1e-2, 1e-3, 1e-4, 1e-5, 0]
    ours = keras.Variable(np.ones(6, np.float32))
    theirs = torch.nn.Parameter(torch.ones(6))
    oracle = torch.optim.RMSprop([theirs], lr=2.5e-4, alpha=0.99, eps=1e-8)
    optimizer.build([ours])
    for gradient in gradients.astype(np.float32):
        optimizer.apply_gradients([(tf.constant(gradient), ours)])
        theirs.grad = torch.from_numpy(gradient)
        oracle.step()
    moved = theirs.detach().numpy() - 1
    assert np.abs(moved[:5]).min() > 1e-5 and moved[5] == 0
    # The root of the mean square starts at a tenth of the gradient, of which 1e-8 is 1 %; with Keras's own epsilon
    # the fifth would move 300 times less.
    np.testing.assert_allclose(ours.numpy() - 1, moved, atol=0.02 * np.abs(moved).max())


def test_optimizers_and_their_rates(folder):
    default = train.make_optimizer(config_of(folder, warmup_steps=0, learning_rate=2.5e-4), 1000)
    rates = [float(default._learning_rate(step)) for step in (0, 699, 700, 899, 900, 999)]
    assert rates == pytest.approx([2.5e-4, 2.5e-4, 5e-5, 5e-5, 1e-5, 1e-5])        # divided by five, twice
    adam = train.make_optimizer(config_of(folder, optimizer="adam"), 1000)
    assert isinstance(adam, keras.optimizers.AdamW) and not adam.weight_decay
    scaled = train.make_optimizer(config_of(folder, precision="mixed_float16"), 1000)
    assert isinstance(scaled, keras.mixed_precision.LossScaleOptimizer)
    assert isinstance(scaled.inner_optimizer, keras.optimizers.RMSprop)


@pytest.mark.parametrize("values, message", [
    ({"image_size": 100}, "--image_size must be a multiple of 8, .* 100 came"),
    ({"order": 5}, "--image_size must be a multiple of 128, .* 64 came"),
    ({"filters": 12}, "--filters must be a multiple of 8; 12 came"),
    ({"sigma": 0.0}, "--sigma must be a positive number; 0.0 came"),
    ({"sigma": float("nan")}, "--sigma must be a positive number; nan came"),
    ({"batch_size": 3}, "multiple of the 2 replicas"),
])
def test_mistakes_are_one_clear_line(folder, tmp_path, two_replicas, values, message):
    with pytest.raises(UserError, match=message) as error:
        train.train(tmp_path / "run", config_of(folder, **values), two_replicas)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values, message", [
    ({"filters": 16}, "filters = 8, but 16 was asked for"),
    ({"variant": "article"}, 'variant = "newell", but "article" was asked for'),
])
def test_a_run_of_another_model_is_not_overwritten(folder, tmp_path, values, message):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps(config_of(folder)))
    with pytest.raises(UserError, match=message):
        train.train(run, config_of(folder, **values), tf.distribute.get_strategy())
    assert json.loads((run / "config.json").read_text()) == config_of(folder)


def test_a_run_older_than_its_flags_goes_on_and_says_what_changed(folder, tmp_path, capsys):
    run, config, strategy = tmp_path / "run", config_of(folder, epochs=1, eval_every=1), tf.distribute.get_strategy()
    run.mkdir()
    old = {key: value for key, value in config.items() if key not in ("crop", "rotation")}
    (run / "config.json").write_text(json.dumps(old))
    for key, value, former in (("crop", "center", '"article"'), ("rotation", 90.0, "30.0")):
        with pytest.raises(UserError, match=f"holds a run with {key} = {former}, but .* was asked for"):
            train.train(run, {**config, key: value}, strategy)
    assert json.loads((run / "config.json").read_text()) == old
    said = capsys.readouterr().out
    assert "was begun with a foreground weight of 82" in said and "it goes on with 4.2 and 0.125" in said
    training.open_run(run, config, train.IDENTITY, train.FORMER)
    assert json.loads((run / "config.json").read_text())["crop"] == "article"
    train.say_what_changed(run, config)
    assert capsys.readouterr().out == ""


def test_config_knows_the_body_and_every_flag(folder):
    config = config_of(folder)
    assert config["article"] == "hourglass" and config["labels"] == poses.MPII_LABELS
    assert [tuple(pair) for pair in config["pairs"]] == poses.MPII.pairs and config["metric"] == "pckh"
    assert [tuple(limb) for limb in config["skeleton"]] == poses.MPII_SKELETON
    assert set(train.DEMO) < set(train.DEFAULTS) and set(train.IDENTITY) < set(config)


def test_unbuilt_records_name_the_command(tmp_path):
    message = "No records match .*python -m hourglass.preprocess --dataset nothing_here"
    with pytest.raises(UserError, match=message):
        train.train(tmp_path / "run", {**train.DEFAULTS, "tfrecords": "nothing_here", "labels": []},
                    tf.distribute.get_strategy())


def test_records_without_validation_are_refused_before_training(tmp_path):
    folder = poses.build_records(demo.source(size=64, splits={"train": 4}), tmp_path, progress=False).folder
    with pytest.raises(UserError, match=r"No records match .*val-\*.*The set holds train"):
        train.train(tmp_path / "run", config_of(folder), tf.distribute.get_strategy())
    assert not (tmp_path / "run").exists()
