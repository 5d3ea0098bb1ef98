"""The other side of `common.workers`: what runs in a worker process, and what both sides agree on.

A worker is a new interpreter that calls `serve` and loads OpenCV and the module of the function, nothing else: not
the program's main module (unless the function is in there), and TensorFlow only if the function's module does.
"""

import contextlib
import mmap
import multiprocessing.connection
import multiprocessing.spawn
import os
import pickle
import select
import signal
import struct
import sys
import threading
import traceback

import numpy as np

ALIGNMENT = 64                 # of every array, in bytes: tf.data takes such arrays over without a copy
JOB = struct.Struct("<qqq")    # sequence, epoch, index; the payload follows
REPLY = struct.Struct("<cq")   # READY, DONE or FAILED, sequence; what `pack_failure` returns follows FAILED
READY, DONE, FAILED = b"r", b"d", b"f"
LOST = (EOFError, OSError)     # what a connection to a process that has ended raises

serving = False                # whether this process is a worker


def serve(connection, memory, parent):
    """What a worker does. Texts of numbers: of its socket, of the shared memory's file, of the main process.

    It ends when the main process closes the socket, or is no more. SIGINT and SIGTERM, which a terminal and a
    service manager send to all processes, do not end it: the main process may have to save a checkpoint first.
    """
    global serving
    serving = True
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = multiprocessing.connection.Connection(int(connection))
    with _ends_with_parent():
        setup = pickle.loads(connection.recv_bytes())
    threading.Thread(target=_watch, args=(connection.fileno(), int(parent)), daemon=True).start()
    sequence = -1
    try:
        sys.path[:] = setup["path"]
        multiprocessing.spawn.prepare(setup["main"])
        function = pickle.loads(setup["function"])
        import cv2

        cv2.setNumThreads(0)
        specs, (size, _) = setup["specs"], layout(setup["specs"])
        ring = slots_of(mmap.mmap(int(memory), size * setup["slots"]), specs, setup["slots"])
        os.close(int(memory))
        reply = REPLY.pack(READY, sequence)
    except BaseException as error:
        reply = REPLY.pack(FAILED, sequence) + pack_failure(error)
    while True:
        with _ends_with_parent():
            connection.send_bytes(reply)
            message = connection.recv_bytes()
        sequence, epoch, index = JOB.unpack_from(message)
        try:
            outputs = call(function, specs, message[JOB.size:], (setup["seed"], epoch, index))
            for name, view in ring[sequence % len(ring)].items():
                view[...] = outputs[name]
            reply = REPLY.pack(DONE, sequence)
        except BaseException as error:
            reply = REPLY.pack(FAILED, sequence) + pack_failure(error)


def _watch(connection, parent):
    """Ends this process, whatever its function does, when the main process has closed its socket or is no more."""
    hung_up = select.poll()
    hung_up.register(connection, 0)
    while not hung_up.poll(1000) and os.getppid() == parent:  # a fork of the main process may keep the socket open
        pass
    os._exit(0)


@contextlib.contextmanager
def _ends_with_parent():
    """Ends this process when the socket that is used in the block has lost its other side."""
    try:
        yield
    except LOST:
        os._exit(0)


def call(function, specs, payload, seed):
    """The outputs of one job, after a look at their names, shapes and dtypes."""
    outputs = function(payload, np.random.default_rng(seed))
    if not isinstance(outputs, dict) or outputs.keys() != specs.keys():
        came = sorted(outputs) if isinstance(outputs, dict) else type(outputs).__name__
        raise ValueError(f"The function of the workers must return a dict of {sorted(specs)}; it returned {came}.")
    outputs = {name: np.asarray(outputs[name]) for name in specs}
    for name, (shape, dtype) in specs.items():
        found = outputs[name]
        if found.shape != shape or found.dtype != dtype:
            raise ValueError(f"The function of the workers must return {name!r} as {dtype} {list(shape)}; it "
                             f"returned {found.dtype} {list(found.shape)}.")
    return outputs


def layout(specs):
    """(bytes of a slot, {name: offset in it}), all multiples of ALIGNMENT."""
    size, offsets = 0, {}
    for name, (shape, dtype) in specs.items():
        if dtype.hasobject:
            raise TypeError(f"Shared memory holds numbers; {name!r} has dtype {dtype}.")
        offsets[name] = size
        size += -(-max(int(np.prod(shape)) * dtype.itemsize, 1) // ALIGNMENT) * ALIGNMENT
    return max(size, ALIGNMENT), offsets


def slots_of(memory, specs, count):
    """The arrays of every slot: a list of {name: view}."""
    size, offsets = layout(specs)
    return [{name: np.ndarray(shape, dtype, memory, i * size + offsets[name])
             for name, (shape, dtype) in specs.items()} for i in range(count)]


def pack_failure(error):
    """The exception being handled as bytes: type, text, traceback, and itself if it can be pickled."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        data = None
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return pickle.dumps((name, str(error), traceback.format_exc(), data))
