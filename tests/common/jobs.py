"""What the worker processes of test_workers.py do; imports neither TensorFlow nor pytest."""

import os
import sys
import time

import cv2
import numpy as np

SPECS = {"draws": ((5,), np.float64), "payload": ((3,), np.uint8), "process": ((), np.int64)}
SMALL = {"process": ((), np.int64)}
FACTS = {"tensorflow": ((), np.bool_), "cuda": ((), np.bool_), "threads": ((), np.int32),
         "kilobytes": ((), np.int64)}


class Picky(Exception):
    """Can be pickled, but not unpickled: its constructor wants more than it keeps."""

    def __init__(self, file, reason):
        super().__init__(f"{file}: {reason}")


def draw(payload, rng):
    """Random numbers, and the payload back; an empty payload takes longer."""
    if not payload:
        time.sleep(0.02)
    filled = np.frombuffer(payload.ljust(3, b"\0")[:3], np.uint8)
    return {"draws": rng.random(5), "payload": filled, "process": np.int64(os.getpid())}


def facts(payload, rng):
    """What the process has loaded, sees and weighs."""
    with open("/proc/self/status", encoding="utf-8") as file:
        kilobytes = next(line.split()[1] for line in file if line.startswith("VmRSS"))
    return {"tensorflow": np.bool_("tensorflow" in sys.modules), "threads": np.int32(cv2.getNumThreads()),
            "cuda": np.bool_(os.environ["CUDA_VISIBLE_DEVICES"] != ""), "kilobytes": np.int64(kilobytes)}


def obey(payload, rng):
    """Does what the payload says."""
    word, _, rest = payload.decode().partition(" ")
    if word == "value":
        raise ValueError(rest)
    if word == "picky":
        raise Picky(rest, "is bad")
    if word == "exit":
        sys.exit(7)
    if word == "vanish":
        os._exit(7)
    if word == "sleep":
        time.sleep(float(rest))
    if word == "spin":
        while True:
            pass
    if word == "shape":
        return {"process": np.zeros(3, np.int64)}
    if word == "dtype":
        return {"process": np.zeros((), np.int32)}
    if word == "name":
        return {"other": np.zeros((), np.int64)}
    return {"process": np.int64(os.getpid())}


class Unborn:
    """Pickles well and ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (9,)

    def __call__(self, payload, rng):
        return {}
