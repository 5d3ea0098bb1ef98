"""Processes that are ended in the middle of a training or of a save, and what they leave behind.

The children are forked from a server that has imported TensorFlow and has not started its runtime, which
saves five seconds for each of them.
"""

import json
import multiprocessing
import os
import random
import signal
import socket
import time

import numpy as np
import pytest
import tensorflow as tf

from common import checkpoints, training
from tests.common import toy

SIZE = 1_000_000  # floats in a variable of the save loop, so that a save takes long enough to be hit
UNITS = 200_000  # of its model, for the same reason
STEPS = 40


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.common.toy"])
    return context


def start(processes, target, *args, **options):
    process = processes.Process(target=target, args=args, kwargs=options, daemon=True)
    process.start()
    return process


def exit_code(process, timeout=60):
    process.join(timeout)
    if process.exitcode is None:
        process.kill()
        pytest.fail("the process did not end")
    return process.exitcode


def wait_for(predicate, timeout=60):
    end = time.monotonic() + timeout
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def metrics_rows(folder):
    lines = (folder / "metrics.csv").read_text().splitlines()
    names = lines[0].split(",")
    assert "seconds" in names
    rows = [dict(zip(names, line.split(","))) for line in lines[1:]]
    return [{name: cell for name, cell in row.items() if name != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def uninterrupted(processes, tmp_path_factory):
    """Folder of a run that was left alone."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert exit_code(start(processes, toy.train_and_keep, folder, STEPS)) == 0
    return folder


def assert_same_run(folder, other):
    with np.load(folder / "values.npz") as values, np.load(other / "values.npz") as others:
        assert set(values.files) == set(others.files)
        for name in values.files:
            np.testing.assert_array_equal(values[name], others[name], err_msg=name)
        assert values["model/seed_generator/state"].any()  # dropout has drawn
        assert values["pool/pool"].all()


def test_resume_after_kill_is_bit_exact(processes, uninterrupted, tmp_path):
    """Killed between two checkpoints: dropout, batch norm, schedules, two optimizers, average, pool go on."""
    killed = start(processes, toy.train_and_keep, tmp_path, STEPS, kill_at=33, save_every=20)
    assert exit_code(killed) == -signal.SIGKILL
    assert metrics_rows(tmp_path)[-1]["step"] == "30"  # to be dropped: step 20 is what is restored
    assert exit_code(start(processes, toy.train_and_keep, tmp_path, STEPS)) == 0
    assert_same_run(tmp_path, uninterrupted)
    assert metrics_rows(tmp_path) == metrics_rows(uninterrupted)


def test_sigterm_saves_and_resumes(processes, uninterrupted, tmp_path):
    """Exit code 143, a checkpoint of that very step, and a resumed run that equals the uninterrupted one."""
    errors = tmp_path / "errors.txt"
    process = start(processes, toy.train_and_keep, tmp_path, STEPS, errors, pause_at=23)
    wait_for((tmp_path / "paused").exists)
    os.kill(process.pid, signal.SIGTERM)
    assert exit_code(process) == 143
    assert "SIGTERM: saving a checkpoint" in errors.read_text()
    assert (tmp_path / "checkpoints" / "ckpt-23.index").exists()
    assert exit_code(start(processes, toy.train_and_keep, tmp_path, STEPS, errors)) == 0
    assert_same_run(tmp_path, uninterrupted)
    assert exit_code(start(processes, toy.train_and_keep, tmp_path, STEPS, errors)) == 0
    assert f"is finished, {STEPS} of {STEPS} steps" in errors.read_text()


def test_sigint_and_second_signal(processes, tmp_path):
    """Ctrl-C ends with 130 after the step; a second signal ends a process that hangs inside TensorFlow."""
    first, second = tmp_path / "first", tmp_path / "second"
    one = start(processes, toy.train_and_keep, first, STEPS, pause_at=3)
    two = start(processes, toy.train_and_keep, second, STEPS, pause_at=3, deaf=True)
    wait_for((first / "paused").exists)
    wait_for((second / "paused").exists)
    os.kill(one.pid, signal.SIGINT)
    assert exit_code(one) == 130
    os.kill(two.pid, signal.SIGTERM)
    time.sleep(0.5)
    assert two.is_alive()
    os.kill(two.pid, signal.SIGINT)
    assert exit_code(two, timeout=2) == 130


def save_for_ever(folder, report):
    """Restores, says what it found, then saves step after step: every value is the step it belongs to."""
    variable = tf.Variable(tf.zeros([SIZE]), name="filled")
    step = tf.Variable(0, dtype=tf.int64)
    model = toy.small_model(UNITS)
    saved = training.Checkpoints(folder, {"filled": variable, "step": step, "model": model})
    found = saved.restore()
    values = {found, int(step), *np.unique(variable.numpy()), *np.unique(model.weights[0].numpy())}
    best = checkpoints.read_best(folder / "best.weights.h5")
    best_values = set()
    if best:
        step_of_best = training.load_weights(folder.parent, model)
        best_values = {step_of_best, best["value"], *np.unique(model.weights[0].numpy())}
    report.send([sorted(map(int, values)), sorted(map(int, best_values))])
    while True:
        found += 1
        variable.assign(tf.fill([SIZE], float(found)))
        step.assign(found)
        model.weights[0].assign(tf.fill(model.weights[0].shape, float(found)))
        saved.save(found)
        report.send(["checkpoint", found])
        checkpoints.write_best(folder / "best.weights.h5", model, {"value": float(found), "step": found})
        report.send(["best", found])


def test_kill_at_random_moments_of_a_save(processes, tmp_path):
    """What is restored is one whole step, and no step that was reported as saved is lost; 12 kills."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    known = {"checkpoint": 0, "best": 0}
    moments = random.Random(5)
    for _ in range(12):
        receiver, sender = processes.Pipe(duplex=False)
        process = start(processes, save_for_ever, folder, sender)
        sender.close()
        values, best_values = receiver.recv()
        assert len(values) == 1 and values[0] >= known["checkpoint"], values
        assert known["best"] == 0 or len(best_values) == 1 and best_values[0] >= known["best"], best_values
        for _ in range(moments.randrange(4)):
            kind, step = receiver.recv()
            known[kind] = step
        time.sleep(moments.uniform(0, 0.06))
        process.kill()
        process.join()
        while receiver.poll():
            try:
                kind, step = receiver.recv()
            except EOFError:
                break
            known[kind] = step
    assert known["checkpoint"] > 5
    assert len(list(folder.glob("ckpt-*.index"))) <= 4


def train_as_worker(folder, ports, index, error_file, kill_at):
    workers = [f"127.0.0.1:{port}" for port in ports]
    task = {"type": "worker", "index": index}
    os.environ["TF_CONFIG"] = json.dumps({"cluster": {"worker": workers}, "task": task})
    toy.train_and_keep(folder, 400, error_file, kill_at=kill_at, dropout=0.0)


def test_two_workers_and_the_death_of_one(processes, tmp_path):
    """The other ends within 30 s with one line; only the chief has written."""
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    folders = [tmp_path / "chief", tmp_path / "worker"]
    for folder in folders:
        folder.mkdir()
    errors = [tmp_path / "chief.txt", tmp_path / "worker.txt"]
    chief = start(processes, train_as_worker, folders[0], ports, 0, errors[0], None)
    worker = start(processes, train_as_worker, folders[1], ports, 1, errors[1], 25)
    assert exit_code(worker, timeout=60) == -signal.SIGKILL
    died = time.monotonic()
    assert exit_code(chief, timeout=30) == 2
    assert time.monotonic() - died < 30
    assert "error: Another worker of TF_CONFIG" in errors[0].read_text()
    assert (folders[0] / "checkpoints" / "ckpt-20.index").exists()
    assert list(folders[1].iterdir()) == []
