"""A run folder `runs/<article>/<name>/`: its configuration, its logs, and the signals that end a run.

    config.json   every value needed to build the model again, and the versions it was made with
    checkpoints/  the newest checkpoints, best.weights.h5 and best.json
    logs/         TensorBoard
    metrics.csv   a row for every epoch
    samples/      pictures
"""

import csv
import io
import json
import math
import os
import pathlib
import platform
import signal
import socket
import sys
import threading
import time

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from common import checkpoints, drawing, files
from common.errors import UserError

VERSION = "0.1.0"


class Run:
    """An open run folder.

    folder: pathlib.Path. config: the dict that was asked for, with "versions". resumed: whether the folder
    held a run before. writes: False in the processes of a cluster that leave the writing to the chief.
    """

    def __init__(self, folder, config, resumed, writes):
        self.folder = pathlib.Path(folder)
        self.config = config
        self.resumed = resumed
        self.writes = writes

    @property
    def samples(self):
        """The folder for pictures."""
        return self.folder / "samples"

    def finished(self, step, total_steps):
        """Whether nothing is left to do at `step`; says so on stderr."""
        if step < total_steps:
            return False
        print(f"{self.folder} is finished, {step} of {total_steps} steps. More --epochs go on from here; "
              f"another --run starts anew.", file=sys.stderr)
        return True

    def save_best(self, model, value, step, higher_is_better=True):
        """Writes `checkpoints/best.weights.h5` when `value` beats the best so far; returns whether it did.

        A NaN never does. The file is Keras's weights file, with the names and shapes that `load_weights`
        checks.
        """
        if not self.writes or math.isnan(value):
            return False
        path = self.folder / "checkpoints" / "best.weights.h5"
        try:
            best = checkpoints.read_best(path)
        except UserError as error:
            print(f"warning: {error} It is written anew.", file=sys.stderr)
            best = None
        if best is not None and (value <= best["value"] if higher_is_better else value >= best["value"]):
            return False
        best = {"value": float(value), "step": int(step)}
        checkpoints.write_best(path, model, best)
        files.write_json(path.with_name("best.json"), best)
        return True


def open_run(folder, config, identity=(), former=()):
    """Creates the run folder, or opens it again when it holds a run; returns a `Run`.

    config: what JSON can hold. identity: the keys that shape the model; when the folder holds a run, they
    must have the values they had. The other keys may change (more epochs, another learning rate) and are
    written anew. former: {key: value} that a config.json stands for which is older than these keys. Raises
    `UserError` before anything is trained: the folder cannot be written to, is full, is
    in use by another process, or holds another model.
    """
    folder = pathlib.Path(folder)
    config = json.loads(json.dumps({**config, "versions": versions()}, allow_nan=False))
    if not files.is_chief():
        return Run(folder, config, resumed=(folder / "config.json").exists(), writes=False)
    if (folder / "config.json").exists():
        _check_identity(folder, config, identity, dict(former))
        resumed = True
    elif list(folder.glob("checkpoints/ckpt-*")):
        raise UserError(f"{folder} holds checkpoints but no config.json, so nothing says which model they "
                        "are of. Put config.json back, or choose another --run.")
    else:
        resumed = False
    _require_writable(folder)
    _lock(folder)
    files.remove_temporaries(folder)
    files.write_json(folder / "config.json", config)
    return Run(folder, config, resumed=resumed, writes=True)


def read_config(folder):
    """The dict of a run folder's config.json; `UserError` where there is none or it is no JSON."""
    path = pathlib.Path(folder) / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} must be a run folder, but has no config.json. Train first, or give --run "
                        "the folder that train.py wrote.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be readable JSON ({files.reason(error)}). Put back a copy of it, or "
                        "train with another --run.") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object, not {type(config).__name__}. Put back a copy of "
                        "it, or train with another --run.")
    return config


def kept_values(folder, keys):
    """{key: value} of those keys in the config.json of a run that goes on; {} where none was begun."""
    if not (pathlib.Path(folder) / "config.json").exists():
        return {}
    return {key: value for key, value in read_config(folder).items() if key in keys}


def versions():
    """The versions that a run was made with, by name."""
    return {"python": platform.python_version(), "tensorflow": tf.__version__, "keras": keras.__version__,
            "numpy": np.__version__, "zoo": VERSION}


def _check_identity(folder, config, identity, former):
    old = {**former, **read_config(folder)}
    for key in identity:
        if old.get(key) != config.get(key):
            raise UserError(
                f"{folder} holds a run with {key} = {json.dumps(old.get(key))}, but "
                f"{json.dumps(config.get(key))} was asked for. Ask for the old value to go on with it, or "
                "choose another --run.")


def _require_writable(folder):
    """Makes the folders and writes a mebibyte, so that a full or read-only disk is found now."""
    try:
        for name in ("checkpoints", "logs", "samples"):
            (folder / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} must be a folder that can be written to ({files.reason(error)}). "
                        f"Choose another --run.") from error
    for name in ("", "checkpoints", "logs", "samples"):
        probe = folder / name / "probe"
        files.write_bytes(probe, bytes(files.MEBIBYTE if name == "checkpoints" else 1))
        probe.unlink()


def _lock(folder):
    """Holds the run for this process until it ends, however it ends; another process is refused."""
    import fcntl

    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        os.close(descriptor)
        raise UserError(f"{folder} is in use by another process. Wait for it or stop it, or choose another "
                        "--run.") from None
    except OSError:  # a file system without locks
        os.close(descriptor)


class NonFiniteLoss(UserError):
    """A part of the loss, or a variable, is NaN or infinite."""


class Log:
    """Progress bar, TensorBoard, metrics.csv and the NaN stop of one run.

    total_steps: the bar's length. start: the restored step; rows of metrics.csv after it are dropped. advice:
    what the article says to do, by name of the loss part that went first; the key "any" for all others.
    every: steps between two points of a TensorBoard curve. unit: what a step takes, for the bar. Use as a
    context manager. In a cluster, only the chief shows and writes anything.
    """

    def __init__(self, run, total_steps, start=0, advice=None, every=20, unit="images"):
        self.run = run
        self.unit = unit
        self.advice = advice or {}
        self.every = every
        self._step = int(start)
        self._pending = None
        self._sums, self._count = {}, 0
        self._parts = ()
        self._clock, self._seconds_per_image = None, None
        self._epoch_started = time.monotonic()
        self._rows = self._read_rows(int(start))
        logs = str(run.folder / "logs")
        self._writer = tf.summary.create_file_writer(logs) if run.writes else tf.summary.create_noop_writer()
        interval = 0.2 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(total=int(total_steps), initial=self._step, unit="step", mininterval=interval,
                         dynamic_ncols=True, disable=not run.writes)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if kind is None:
                self.flush()
        finally:
            self._bar.close()
            self._writer.close()

    def step(self, step, parts, images=0):
        """Takes the loss parts of a step that has been dispatched, and looks at those of the step before.

        step: Python int; count it in Python, since reading a variable waits for the device.
        parts: {name: scalar tensor}. images: how many the step took (of `unit`).
        Raises `NonFiniteLoss` one step late, so that the accelerator never waits for the host.
        """
        now = time.monotonic()
        if self._clock is not None and images:
            seconds = (now - self._clock) / images
            last = self._seconds_per_image
            self._seconds_per_image = seconds if last is None else 0.9 * last + 0.1 * seconds
        self._clock = now
        pending, self._pending = self._pending, (int(step), parts)
        self._step = int(step)
        if pending:
            self._take(*pending)

    def flush(self):
        """Looks at the parts that are still on the way; call it before a checkpoint is saved."""
        pending, self._pending = self._pending, None
        if pending:
            self._take(*pending)
        self._clock = None

    def epoch(self, epoch, metrics=None):
        """Adds a row to metrics.csv (epoch, step, seconds, mean of the loss parts, metrics) and TensorBoard.

        metrics: {name: float}. The means are over the steps of the epoch that this process ran. Returns the
        row.
        """
        self.flush()
        now = time.monotonic()
        means = {name: total / self._count for name, total in self._sums.items()}
        metrics = {name: float(value) for name, value in (metrics or {}).items()}
        row = {"epoch": int(epoch), "step": self._step, "seconds": round(now - self._epoch_started, 1),
               **means, **metrics}
        self._rows.append(row)
        self._epoch_started, self._sums, self._count = now, {}, 0
        if self.run.writes:
            self._write_rows()
            for name, value in means.items():
                self.scalar(f"epoch/{name}", value)
            for name, value in metrics.items():
                self.scalar(f"metrics/{name}", value)
            self._writer.flush()
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in {**means, **metrics}.items())
            self.write(f"epoch {epoch}  step {self._step}  {numbers}")
        return row

    def draw_curves(self):
        """Draws metrics.csv over the steps: samples/losses.png, the loss parts, and samples/metrics.png, the rest."""
        if not self.run.writes or not self._rows:
            return
        points = {}
        for row in self._rows:
            for name, value in row.items():
                if name not in ("epoch", "step", "seconds") and value != "":
                    points.setdefault(name, []).append((float(row["step"]), float(value)))
        parts = set(self._parts)
        for file, chosen, log_y in (("losses", parts, True), ("metrics", points.keys() - parts, False)):
            lines = {name: tuple(zip(*points[name])) for name in points if name in chosen}
            if lines:
                drawing.curves(self.run.samples / f"{file}.png", lines, xlabel="step", ylabel=file, log_y=log_y)

    def scalar(self, name, value):
        """One point of a TensorBoard curve at the current step."""
        with self._writer.as_default(step=self._step):
            tf.summary.scalar(name, value)

    def image(self, name, image):
        """A picture in TensorBoard at the current step: uint8 [H, W, 3], RGB."""
        with self._writer.as_default(step=self._step):
            tf.summary.image(name, image[None])

    def write(self, line):
        """A line above the progress bar."""
        if self.run.writes:
            tqdm.write(line, file=sys.stderr)

    def _take(self, step, parts):
        values = {name: float(part) for name, part in parts.items()}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            # The sum of all parts is not finite whenever one of them is: name a part if there is one.
            first = next((name for name in bad if name not in ("loss", "total")), bad[0])
            advice = self.advice.get(first, self.advice.get("any", ""))
            raise NonFiniteLoss(f"Loss part {first} is {values[first]} at step {step}; training stops and "
                                f"the last good checkpoint is kept. {advice}".rstrip())
        self._parts = tuple(values)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1
        if step % self.every == 0:
            for name, value in values.items():
                self.scalar(f"train/{name}", value)
            if self._seconds_per_image:
                self.scalar(f"train/{self.unit}_per_second", 1 / self._seconds_per_image)
        shown = [f"{name} {value:.3g}" for name, value in values.items()]
        if self._seconds_per_image:
            shown.append(f"{1 / self._seconds_per_image:.3g} {self.unit}/s")
        self._bar.set_postfix_str(" ".join(shown), refresh=False)
        self._bar.update(step - self._bar.n)

    def _read_rows(self, start):
        path = self.run.folder / "metrics.csv"
        if not path.exists():
            return []
        with open(path, newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if int(row["step"]) <= start]
        return rows

    def _write_rows(self):
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        files.write_text(self.run.folder / "metrics.csv", text.getvalue())


class Signals:
    """SIGTERM and SIGINT set `stop`, to be looked at between two steps; a second signal ends at once.

    `exit_code` is then what the process must exit with: 143 or 130. A thread reads the signals, because
    Python's own handlers do not run while the main thread is inside TensorFlow.
    """

    def __init__(self):
        self.stop = False
        self.exit_code = 0

    def __enter__(self):
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_wakeup = signal.set_wakeup_fd(self._writer.fileno())
        self._old = {number: signal.signal(number, lambda *_: None)
                     for number in (signal.SIGTERM, signal.SIGINT)}
        self._thread = threading.Thread(target=self._watch, name="signals", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_wakeup)
        self._writer.close()
        self._thread.join()
        self._reader.close()

    def _watch(self):
        while data := self._reader.recv(1):
            number = data[0]
            if number not in self._old:
                continue
            if self.stop:
                os._exit(128 + number)
            self.exit_code = 128 + number
            self.stop = True
            print(f"\n{signal.Signals(number).name}: saving a checkpoint after this step; a second signal "
                  "ends at once.", file=sys.stderr, flush=True)
