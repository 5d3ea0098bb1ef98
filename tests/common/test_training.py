"""Replicas, schedules, averages, the run folder and its logs."""

import json
import math
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import files, run_folder, training
from common.errors import UserError
from tests.common import toy


@pytest.fixture(scope="module")
def one_replica():
    return training.make_strategy()


def steps(strategy, count, **options):
    """A toy after `count` steps on the same global batches."""
    training.set_seed(11)
    trained = toy.Toy(strategy, dropout=0.0, **options)
    batches = iter(training.distribute(strategy, toy.dataset, toy.BATCH))
    for _ in range(count):
        parts = trained.step(next(batches))
    return trained, {name: float(part) for name, part in parts.items()}


def test_one_replica_equals_two(one_replica, two_replicas):
    """Clipping in every step, synchronised statistics, two optimizers, average, pool: equal to 1e-5."""
    first, parts = steps(one_replica, 6, clip_norm=0.05)
    second, others = steps(two_replicas, 6, clip_norm=0.05)
    for name, value in first.values().items():
        if "seed" not in name:
            np.testing.assert_allclose(second.values()[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    assert parts == pytest.approx(others, rel=1e-5)


def test_clipped_gradient_does_not_depend_on_the_replicas(one_replica, two_replicas):
    """Shares (3, 4) and (0, 0) have norm 5 together: clipped to 1, the optimizer sees (0.6, 0.8)."""
    for strategy in (one_replica, two_replicas):
        replicas = strategy.num_replicas_in_sync

        @tf.function
        def clipped():
            def replica_step():
                first = tf.cast(tf.distribute.get_replica_context().replica_id_in_sync_group == 0, tf.float32)
                gradients = training.clip_by_global_norm([first * [3.0, 4.0], None], 1.0)
                assert gradients[1] is None
                return gradients[0]
            each = strategy.run(replica_step)
            return strategy.experimental_local_results(each)

        each = [share.numpy() for share in clipped()]
        assert len(each) == replicas
        for share in each:
            np.testing.assert_allclose(share, np.array([0.6, 0.8]) / replicas, rtol=1e-6)


def test_consecutive_examples_of_a_global_batch_go_to_the_replicas(one_replica, two_replicas):
    """7 batches of 2 make 3 global batches of 4 for two replicas; what is left over is dropped.

    Also where the size of the pictures is not known in the graph (multi-scale training).
    """
    def make_dataset(batch_size, context):
        assert context.num_input_pipelines == 1
        numbers = tf.data.Dataset.range(15).map(lambda i: {"index": i, "pair": (i, i)})
        batches = numbers.batch(batch_size, drop_remainder=True)
        return batches.map(lambda batch: {**batch, "images": tf.zeros([batch_size, batch["index"][0], 2])})

    for strategy in (one_replica, two_replicas):
        seen = []
        for batch in training.distribute(strategy, make_dataset, 4):
            parts = strategy.experimental_local_results(batch["index"])
            assert len(parts) == strategy.num_replicas_in_sync
            seen.append(np.concatenate(parts).tolist())
        assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    single = training.distribute(two_replicas, lambda size, _: tf.data.Dataset.range(8).batch(size), 4)
    parts = two_replicas.experimental_local_results(next(iter(single)))
    assert [part.numpy().tolist() for part in parts] == [[0, 1], [2, 3]]
    with pytest.raises(UserError, match="multiple of the 2 replicas, and 5 is not. Give --batch_size 6"):
        training.distribute(two_replicas, make_dataset, 5)


def test_schedules():
    """Hand-worked rates; every schedule survives being saved."""
    constant = training.schedule("constant", 0.1, 100, warmup_steps=4)
    assert [float(constant(step)) for step in (0, 1, 3, 4, 99)] == pytest.approx([0.025, 0.05, 0.1, 0.1, 0.1])
    burn_in = training.schedule("step", 1.0, 100, warmup_steps=10, warmup_power=4)
    assert [float(burn_in(step)) for step in (0, 4, 9, 10, 79, 80, 89, 90)] == pytest.approx(
        [1e-4, 0.0625, 1, 1, 1, 0.1, 0.1, 0.01])
    cosine = training.schedule("cosine", 2.0, 110, warmup_steps=10)
    assert [float(cosine(step)) for step in (10, 35, 60, 110, 200)] == pytest.approx(
        [2, 1 + math.cos(math.pi / 4), 1, 0, 0], abs=1e-6)
    exponential = training.schedule("exponential", 2.0, 100, warmup_steps=2, factor=0.25, decay_steps=10)
    assert [float(exponential(step)) for step in (0, 1, 5, 10, 20)] == pytest.approx([1, 2, 1, 0.5, 0.125])
    linear = training.schedule("linear", 2e-4, 200)
    assert [float(linear(step)) for step in (0, 99, 100, 101, 150, 199, 200, 300)] == pytest.approx(
        [2e-4, 2e-4, 2e-4, 1.98e-4, 1e-4, 2e-6, 0, 0], rel=1e-5)                 # 1 - 199 / 200 in float32
    odd = training.schedule("linear", 1.0, 5, warmup_steps=2)
    assert [float(odd(step)) for step in range(6)] == pytest.approx([0.5, 1, 1, 0.8, 0.4, 0])
    optimizer = keras.optimizers.SGD(burn_in)
    again = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert float(again._learning_rate(85)) == pytest.approx(0.1)
    assert training.Schedule(**exponential.get_config()).get_config() == exponential.get_config()
    with pytest.raises(UserError, match="constant, linear, cosine, step or exponential"):
        training.schedule("square", 0.1, 100)


def test_average_of_the_weights(one_replica, two_replicas):
    """Equal to the recursion by hand, on all replicas alike; it stands in for the weights in a block only."""
    for strategy in (one_replica, two_replicas):
        with strategy.scope():
            model = toy.small_model()
            weights = model.trainable_variables
            average = training.ema_variables(weights)

        @tf.function
        def move(step):
            for variable in weights:
                variable.assign(variable + 1)
            training.update_ema(strategy, average, weights, 0.15, step)

        expected = 0.0
        for step in range(5):
            move(tf.constant(step, tf.int64))
            decay = min(0.15, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * (step + 1)
        for copy in strategy.experimental_local_results(average[0]):
            np.testing.assert_allclose(copy.numpy(), np.full([4, 3], expected), rtol=1e-6)
        with pytest.raises(ZeroDivisionError), training.swapped(weights, average):
            np.testing.assert_allclose(weights[0].numpy(), np.full([4, 3], expected), rtol=1e-6)
            raise ZeroDivisionError
        np.testing.assert_array_equal(weights[0].numpy(), np.full([4, 3], 5.0))


def test_precision():
    try:
        training.set_precision("mixed_bfloat16")
        layer = keras.layers.Dense(1)
        assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")
    finally:
        training.set_precision("float32")


def test_run_folder_keeps_what_shapes_the_model(tmp_path):
    folder = tmp_path / "runs" / "toy"
    run = training.open_run(folder, {"labels": ["a", "b"], "epochs": 3}, identity=["labels"])
    assert not run.resumed
    config = training.read_config(folder)
    assert config["labels"] == ["a", "b"]
    assert set(config["versions"]) == {"python", "tensorflow", "keras", "numpy", "zoo"}
    again = training.open_run(folder, {"labels": ("a", "b"), "epochs": 5}, identity=["labels"])
    assert again.resumed and training.read_config(folder)["epochs"] == 5
    with pytest.raises(UserError, match=r'labels = \["a", "b"\], but \["a"\] was asked for.*--run'):
        training.open_run(folder, {"labels": ["a"], "epochs": 9}, identity=["labels"])
    assert training.read_config(folder)["epochs"] == 5
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="must be readable JSON"):
        training.open_run(folder, {"labels": ["a", "b"]}, identity=["labels"])
    (folder / "config.json").unlink()
    (folder / "checkpoints" / "ckpt-3.index").touch()
    with pytest.raises(UserError, match="no config.json"):
        training.open_run(folder, {})
    with pytest.raises(UserError, match="must be a run folder"):
        training.read_config(tmp_path)


def test_folder_that_cannot_be_used(tmp_path, monkeypatch):
    """Read-only, below a file, full, in use by another process: refused before anything is trained."""
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", "/proc/run", "/sys/run"):
        with pytest.raises(UserError, match="must be a folder that can be written to"):
            training.open_run(folder, {})
    run = training.open_run(tmp_path / "run", {})
    code = f"from common import training; training.open_run({str(run.folder)!r}, {{}})"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "is in use by another process" in other.stderr
    usage = type("Usage", (), {"free": 3 * 2**20})
    monkeypatch.setattr(files.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(UserError, match="needs 8 MiB of free space, but its disk has 3 MiB"):
        training.Checkpoints(run.folder / "checkpoints", {"big": tf.Variable(tf.zeros([2**20]))})

    def full(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.pathlib.Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left on device"):
        training.open_run(tmp_path / "full", {})


def test_metrics_and_resume(tmp_path, capfd):
    """Means over the epoch, empty cells for metrics that an epoch lacks, no rows after the restored step."""
    run = training.open_run(tmp_path, {})
    with training.Log(run, 6, every=1) as log:
        for step in range(1, 7):
            log.step(step, {"xy": tf.constant(float(step)), "wh": tf.constant(1.0)}, images=4)
            if step % 2 == 0:
                log.epoch(step // 2, {"map": 0.5} if step == 4 else None)
        log.image("samples", np.zeros([4, 4, 3], np.uint8))
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert lines[0] == "epoch,step,seconds,xy,wh,map"
    cells = [line.split(",") for line in lines[1:]]
    assert [row[:2] + row[3:] for row in cells] == [
        ["1", "2", "1.5", "1.0", ""], ["2", "4", "3.5", "1.0", "0.5"], ["3", "6", "5.5", "1.0", ""]]
    assert "epoch 2  step 4  xy 3.5  wh 1  map 0.5" in capfd.readouterr().err
    events, = (tmp_path / "logs").iterdir()
    events = tf.compat.v1.train.summary_iterator(str(events))
    tags = {value.tag for event in events for value in event.summary.value}
    assert {"train/xy", "train/images_per_second", "epoch/wh", "metrics/map", "samples"} <= tags
    with training.Log(run, 6, start=4) as log:
        log.step(5, {"xy": tf.constant(0.0), "wh": tf.constant(0.0)})
        log.epoch(3)
    lines = (tmp_path / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == ["2", "4", "5"]


def test_nan_stops_training(one_replica, tmp_path):
    """The step and the part are named, with the article's advice; no checkpoint holds the damage."""
    with pytest.raises(training.NonFiniteLoss) as stopped:
        toy.train(tmp_path, 40, one_replica, nan_at=19)
    assert "Loss part size is nan at step 20" in str(stopped.value)
    assert "last good checkpoint is kept. Make it smaller." in str(stopped.value)
    trained = toy.Toy(one_replica)
    assert training.Checkpoints(tmp_path / "checkpoints", trained.items()).restore() == 10
    assert all(np.isfinite(value).all() for value in trained.values().values())


def test_nan_is_looked_for_one_step_late(tmp_path):
    """A step that was dispatched is not waited for; `flush` waits."""
    run = training.open_run(tmp_path, {})
    bad = {"loss": tf.constant(np.inf), "wh": tf.constant(1.0), "xy": tf.constant(-np.inf)}
    with training.Log(run, 5) as log:
        log.step(1, bad)
        with pytest.raises(training.NonFiniteLoss, match="Loss part xy is -inf at step 1"):
            log.step(2, {"loss": tf.constant(1.0)})
    with training.Log(run, 5) as log:
        log.step(1, {"loss": tf.constant(np.nan)})
        with pytest.raises(training.NonFiniteLoss, match="Loss part loss is nan"):
            log.flush()


def test_only_the_chief_writes(tmp_path, monkeypatch):
    assert files.is_chief()
    for task, chief in ((("worker", 0), True), (("worker", 1), False)):
        workers = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": task[0], "index": task[1]}}
        monkeypatch.setenv("TF_CONFIG", json.dumps(workers))
        assert files.is_chief() is chief
    run = training.open_run(tmp_path / "run", {})
    with training.Log(run, 2) as log:
        log.step(1, {"xy": tf.constant(1.0)})
        log.epoch(1)
    checkpoints = training.Checkpoints(tmp_path / "run" / "checkpoints", {"v": tf.Variable(1.0)})
    checkpoints.save(1)
    assert not run.save_best(None, 1.0, 1)
    assert not os.path.exists(tmp_path / "run")


def test_lost_worker_is_one_line(monkeypatch):
    error = tf.errors.UnavailableError(None, None, "peer")
    with pytest.raises(tf.errors.UnavailableError), training.worker_errors():
        raise error
    monkeypatch.setenv("TF_CONFIG", "{}")
    with pytest.raises(UserError, match="Start all workers again"), training.worker_errors():
        raise error


def test_files_are_whole_or_not_there(tmp_path):
    path = tmp_path / "some.txt"
    files.write_text(path, "old")
    with pytest.raises(ZeroDivisionError), files.replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.suffix == ".txt" and path.read_text() == "old"
        raise ZeroDivisionError
    assert [each.name for each in tmp_path.iterdir()] == ["some.txt"] and path.read_text() == "old"
    with pytest.raises(ValueError):
        files.write_json(tmp_path / "some.json", float("nan"))
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(tmp_path / "nowhere" / "some.txt", "")
    (tmp_path / f"{files.PREFIX}1-some.txt").touch()
    files.remove_temporaries(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["some.txt"]


def test_versions_name_this_zoo():
    setup = (files.pathlib.Path(run_folder.__file__).parents[1] / "setup.py").read_text()
    assert f'version="{run_folder.VERSION}"' in setup
