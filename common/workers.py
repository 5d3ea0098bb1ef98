"""Work on pictures in other processes, whose results come back through shared memory.

    specs = {"image": ((300, 300, 3), np.uint8), "boxes": ((100, 4), np.float32)}
    with WorkerPool(function, specs, workers=2, seed=0) as pool:
        for outputs in pool.run(jobs):                  # jobs: (epoch, index, payload bytes), read lazily
            ...                                         # outputs: {"image": [300, 300, 3], "boxes": [100, 4]}
    dataset = tf_dataset(function, specs, make_jobs, batch_size=32, workers=2)      # the same for tf.data

`function(payload, rng)` returns a dict of arrays as in specs; rng is np.random.default_rng([seed, epoch, index]), so
that order and content are the same for any number of workers; 0 works in this process.

Article, "Data augmentation": no pickling of pictures, no fork, no CUDA in the workers. A worker is a new interpreter
that runs `serve` and loads the module of the function, nothing else: not the program's main module (unless the
function is in it) and not TensorFlow, so that it takes 45 MB and half a second, of which OpenCV and NumPy are most. The
function must be importable: a top-level function, a functools.partial of one, an object that can be pickled.

Payloads go to a worker as they are, over a socket. A result is copied twice: by the worker into a slot of shared
memory, and from there into what is handed out, for `batches` the row of a batch that tf.data takes over without a copy
of its own. (Never give tf.data the slots themselves: it keeps the memory of aligned arrays.)

The shared memory is a file that has no name from the start, and a worker ends when its socket does, so that nothing is
left over, whoever is killed; no signal handler is needed or touched. Workers ignore SIGINT and SIGTERM, which a
terminal or a service manager sends to all processes, while the main process may still want to save a checkpoint.
"""

import collections
import contextlib
import errno
import mmap
import multiprocessing.connection
import multiprocessing.spawn
import operator
import os
import pathlib
import pickle
import queue
import selectors
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
import weakref

import numpy as np

from common.errors import UserError

SHARED_MEMORY = "/dev/shm"
SLOTS_PER_WORKER = 8
ALIGNMENT = 64                # of every array, in bytes: tf.data takes such arrays over without a copy

_JOB = struct.Struct("<qqq")  # sequence, epoch, index; the payload follows
_REPLY = struct.Struct("<cq")  # kind, sequence; after a failure its pickle follows
_READY, _DONE, _FAILED = b"r", b"d", b"f"
_COMMAND = "import sys; sys.path.insert(0, sys.argv[1]); from common.workers import serve; serve(*sys.argv[2:])"
_LOST = (EOFError, OSError)   # what a connection to a process that has ended raises

_serving = False              # whether this process is a worker
_last_failure = None          # what ended the last generator of a tf_dataset


class WorkerError(UserError):
    """A worker process ended, or raised what cannot be brought here as it was."""


class WorkerPool:
    """Processes that run `function(payload, rng)`; a context manager.

    function: importable, see above. specs: {name: (shape, dtype)} of all that it returns. workers: number of
    processes; 0 works in this one. slots: results that may be on the way at a time, and jobs read ahead. seed: int,
    at least 0.

    Any error closes the pool: an exception in a worker comes out in its turn, with its type and text and the worker's
    traceback as a note (Exception.add_note); a worker that ends is a `WorkerError` within a second or two. What is
    left of an abandoned pool is ended when it is collected, or at exit.
    Raises `UserError` when the shared memory is too small, TypeError for a function that cannot be imported.
    """

    def __init__(self, function, specs, *, workers, slots=None, seed=0):
        if workers < 0 or (slots is not None and slots < 1):
            raise UserError(f"There must be 0 or more workers and 1 or more slots; {workers} and {slots} came.")
        if workers and _serving:
            raise RuntimeError("A worker cannot start workers. If this is the program's main module, which a worker "
                               'imports for its function, put what it does under if __name__ == "__main__".')
        self.function = function
        self.specs = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in specs.items()}
        self.workers = workers
        self.slots = slots or SLOTS_PER_WORKER * max(workers, 1)
        self.seed = seed
        self.closed = False
        self._run = None         # the generator that owns the slots
        self._next = 0           # sequence number of the next job
        self._results = {}       # sequence -> None or the exception, of replies that wait for their turn
        self._processes = []
        self._close = weakref.finalize(self, _end, self._processes, os.getpid())
        if workers:
            try:
                self._start()
            except BaseException:
                self.close()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Ends the workers at once; the memory goes with the last array that looks into it."""
        self.closed = True
        self._close()

    def run(self, jobs):
        """Yields a dict of arrays for every job, in the order of the jobs; the arrays are the caller's.

        jobs: an iterable of (epoch, index, payload), ints of at least 0 and bytes; at most `slots` are read ahead of
        what has been handed out. Its own exceptions come out in their turn, too. A second run gives up the first.
        """
        with contextlib.closing(self._views(jobs)) as results:
            for views in results:
                yield {name: view.copy() for name, view in views.items()}

    def batches(self, jobs, batch_size):
        """`run`, `batch_size` results at a time: {name: [B, ...]}; too few at the end are dropped."""
        filled = 0
        with contextlib.closing(self._views(jobs)) as results:
            for views in results:
                if not filled:
                    batch = {name: _aligned((batch_size, *shape), dtype)
                             for name, (shape, dtype) in self.specs.items()}
                for name, view in views.items():
                    batch[name][filled] = view
                filled = (filled + 1) % batch_size
                if not filled:
                    yield batch
                    del batch

    def _views(self, jobs):
        """Yields the outputs of the jobs in their order: arrays that are good until the next is asked for."""
        if self.closed:
            raise RuntimeError("The pool is closed: an error or its `with` block has ended the workers. Make another.")
        self._run = token = object()
        try:
            for views in self._shared(jobs) if self.workers else self._in_process(jobs):
                yield views
                if self._run is not token:
                    raise RuntimeError("Another run of this pool has begun; it gives up the one before it.")
        except GeneratorExit:
            raise
        except BaseException:
            if self._run is token:
                self.close()
            raise

    def _in_process(self, jobs):
        for epoch, index, payload in jobs:
            yield _call(self.function, self.specs, payload, (self.seed, epoch, index))

    def _shared(self, jobs):
        self._drain()
        jobs, pending, failure = iter(jobs), collections.deque(), None
        while True:
            while jobs is not None and len(pending) < self.slots:
                try:
                    job = next(jobs)
                except StopIteration:
                    jobs = None
                except Exception as error:  # comes out in its turn
                    jobs, failure = None, error
                else:
                    pending.append(self._send(*job))
            if not pending:
                break
            sequence = pending.popleft()
            while sequence not in self._results:
                self._receive()
            error = self._results.pop(sequence)
            if error is not None:
                raise error
            yield self._ring[sequence % self.slots]
        if failure is not None:
            raise failure

    def _start(self):
        function, main = _pickled(self.function)
        size, _ = _layout(self.specs)
        with _shared_memory(size * self.slots, f"{self.slots} slots for {self.workers} workers") as file:
            memory = mmap.mmap(file.fileno(), size * self.slots)
            self._ring = _slots(memory, self.specs, self.slots)
            self._selector = selectors.DefaultSelector()
            for _ in range(self.workers):
                self._start_worker(file.fileno())
        setup = {"path": [os.path.abspath(path) for path in sys.path], "main": main, "function": function,
                 "specs": self.specs, "slots": self.slots, "seed": self.seed}
        for worker in self._selector.get_map().values():
            self._write(worker.data, pickle.dumps(setup))

    def _start_worker(self, memory):
        ours, theirs = multiprocessing.connection.Pipe()
        threads = {f"{name}_NUM_THREADS": "1" for name in ("OMP", "OPENBLAS", "MKL")}
        environment = {**threads, **os.environ, "CUDA_VISIBLE_DEVICES": "", "ZOO_LAZY_TENSORFLOW": "1"}
        root = str(pathlib.Path(__file__).resolve().parents[1])
        with theirs:
            # A process group of its own: Ctrl-C in a terminal does not even reach a worker that is starting.
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", _COMMAND, root, str(theirs.fileno()), str(memory), str(os.getpid())],
                stdin=subprocess.DEVNULL, env=environment, pass_fds=(theirs.fileno(), memory), process_group=0)
        self._processes.append(process)
        self._selector.register(ours, selectors.EVENT_READ, _Worker(len(self._processes), process, ours))

    def _send(self, epoch, index, payload):
        """Gives a job to the worker with the fewest; returns its sequence number."""
        epoch, index, sequence = operator.index(epoch), operator.index(index), self._next
        self._receive(timeout=0)
        worker = min((key.data for key in self._selector.get_map().values()), key=lambda worker: len(worker.jobs))
        self._next += 1
        worker.jobs[sequence] = epoch, index
        self._write(worker, b"".join((_JOB.pack(sequence, epoch, index), payload)))
        return sequence

    def _receive(self, timeout=1.0):
        """Takes the replies that are there, or come within `timeout` seconds."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            worker = key.data
            try:
                message = worker.connection.recv_bytes()
            except _LOST:
                raise self._died(worker) from None
            kind, sequence = _REPLY.unpack_from(message)
            error = _exception(message[_REPLY.size:], worker, sequence) if kind == _FAILED else None
            if sequence in worker.jobs:
                del worker.jobs[sequence]
                self._results[sequence] = error
            elif error is not None:
                raise error
            else:
                worker.ready = True
        if not ready and timeout:
            for key in self._selector.get_map().values():
                if key.data.process.poll() is not None:
                    raise self._died(key.data)

    def _drain(self):
        """Waits until all workers are ready, and for the jobs that an abandoned run has left to them."""
        workers = [key.data for key in self._selector.get_map().values()]
        while any(worker.jobs or not worker.ready for worker in workers):
            self._receive()
        self._results.clear()

    def _write(self, worker, data):
        try:
            worker.connection.send_bytes(data)
        except _LOST:
            raise self._died(worker) from None

    def _died(self, worker):
        if self.closed:
            return RuntimeError("The pool was closed while it was in use.")
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(1.0)
        code = worker.process.returncode
        ending = "with its socket" if code is None else f"with exit code {code}"
        if code is not None and code < 0:
            ending = f"by {signal.Signals(-code).name}"
        doing = "while it started"
        if worker.ready:
            doing = "between two jobs"
        if worker.jobs:
            doing = "at the job (epoch {}, index {})".format(*next(iter(worker.jobs.values())))
        return WorkerError(f"Workers must live as long as their pool, but worker {worker.number} of {self.workers} "
                           f"ended {ending} {doing}. If memory ran out, use fewer workers; with 0 the same work is "
                           "done, and fails, in the main process.")


class _Worker:
    """What the main process knows of a worker; jobs: {sequence: (epoch, index)} that it has not answered."""

    def __init__(self, number, process, connection):
        self.number = number
        self.process = process
        self.connection = connection
        self.ready = False
        self.jobs = {}


def tf_dataset(function, specs, jobs, *, batch_size, workers, slots=None, seed=0):
    """A tf.data.Dataset of {name: [B, ...]}, the `WorkerPool.batches` of `jobs()`.

    jobs: a callable that returns a fresh iterable. Every iterator of the dataset has a pool of its own, which ends
    with the iterator. `original_error` finds what an error of TensorFlow was before.
    """
    import tensorflow as tf

    def batches():
        global _last_failure
        with WorkerPool(function, specs, workers=workers, slots=slots, seed=seed) as pool:
            try:
                yield from pool.batches(jobs(), batch_size)
            except Exception as error:
                _last_failure = error
                raise

    signature = {name: tf.TensorSpec([batch_size, *shape], tf.as_dtype(np.dtype(dtype)))
                 for name, (shape, dtype) in specs.items()}
    return tf.data.Dataset.from_generator(batches, output_signature=signature)


def original_error(error):
    """The exception in a `tf_dataset`, of a worker or of its jobs, that reached us as the OpError `error`, or None."""
    text = str(_last_failure).strip()
    return _last_failure if _last_failure is not None and text and text in str(error) else None


def serve(connection, memory, parent):
    """What a worker does. Numbers as text: of its socket, of the shared memory's file, of the main process."""
    global _serving
    _serving = True
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    connection = multiprocessing.connection.Connection(int(connection))
    with _ends_with_parent():
        setup, jobs = pickle.loads(connection.recv_bytes()), queue.SimpleQueue()
    threading.Thread(target=_read_jobs, args=(connection, jobs, int(parent)), daemon=True).start()
    sequence = -1
    try:
        sys.path[:] = setup["path"]
        multiprocessing.spawn.prepare(setup["main"])
        function = pickle.loads(setup["function"])
        import cv2

        cv2.setNumThreads(0)
        specs, (size, _) = setup["specs"], _layout(setup["specs"])
        ring = _slots(mmap.mmap(int(memory), size * setup["slots"]), specs, setup["slots"])
        os.close(int(memory))
        reply = _REPLY.pack(_READY, sequence)
    except BaseException as error:
        reply = _REPLY.pack(_FAILED, sequence) + _failure(error)
    while True:
        with _ends_with_parent():
            connection.send_bytes(reply)
        message = jobs.get()
        sequence, epoch, index = _JOB.unpack_from(message)
        try:
            outputs = _call(function, specs, message[_JOB.size:], (setup["seed"], epoch, index))
            for name, view in ring[sequence % len(ring)].items():
                view[...] = outputs[name]
            reply = _REPLY.pack(_DONE, sequence)
        except BaseException as error:
            reply = _REPLY.pack(_FAILED, sequence) + _failure(error)


def _read_jobs(connection, jobs, parent):
    """Reads ahead, so that the main process never waits for a busy worker, and ends the worker with its parent."""
    with _ends_with_parent():
        while os.getppid() == parent:
            if connection.poll(1.0):
                jobs.put(connection.recv_bytes())
    os._exit(0)


@contextlib.contextmanager
def _ends_with_parent():
    """Ends this process when the socket that is used in the block has lost its other side."""
    try:
        yield
    except _LOST:
        os._exit(0)


def _call(function, specs, payload, seed):
    """The outputs of one job, after a look at their names, shapes and dtypes."""
    outputs = function(payload, np.random.default_rng(seed))
    if outputs.keys() != specs.keys():
        raise ValueError(f"The function of the workers must return {sorted(specs)}; it returned {sorted(outputs)}.")
    outputs = {name: np.asarray(outputs[name]) for name in specs}
    for name, (shape, dtype) in specs.items():
        if outputs[name].shape != shape or outputs[name].dtype != dtype:
            raise ValueError(f"The function of the workers must return {name!r} as {dtype} {list(shape)}; it returned "
                             f"{outputs[name].dtype} {list(outputs[name].shape)}.")
    return outputs


def _pickled(function):
    """(the function as bytes, what a worker needs to import the main module if the function is in there)."""
    try:
        data = pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"The function of the workers must be importable by its name, and {function!r} is not "
                        f"({error}). Define it at the top level of a module; functools.partial adds arguments.") from None
    if b"__main__" not in data:
        return data, {}
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return data, {"init_main_from_name": main.__spec__.name}
    if not os.path.isfile(getattr(main, "__file__", None) or ""):
        raise TypeError(f"The function of the workers must be in a file, and {function!r} is in a main module without "
                        "one. Put it into a module and import it from there.")
    return data, {"init_main_from_path": os.path.abspath(main.__file__)}


def _layout(specs):
    """(bytes of a slot, {name: offset in it}), all multiples of ALIGNMENT."""
    size, offsets = 0, {}
    for name, (shape, dtype) in specs.items():
        if dtype.hasobject:
            raise TypeError(f"Shared memory holds numbers; {name!r} has dtype {dtype}.")
        offsets[name] = size
        size += -(-max(int(np.prod(shape)) * dtype.itemsize, 1) // ALIGNMENT) * ALIGNMENT
    return size, offsets


def _slots(memory, specs, count):
    """The arrays of every slot: a list of {name: view}."""
    size, offsets = _layout(specs)
    return [{name: np.ndarray(shape, dtype, memory, i * size + offsets[name]) for name, (shape, dtype) in specs.items()}
            for i in range(count)]


def _aligned(shape, dtype):
    """An uninitialised array whose memory begins at a multiple of ALIGNMENT."""
    size = int(np.prod(shape)) * dtype.itemsize
    data = np.empty(size + ALIGNMENT, np.uint8)
    start = -data.ctypes.data % ALIGNMENT
    return data[start:start + size].view(dtype).reshape(shape)


def _shared_memory(size, purpose):
    """An open file without a name, `size` bytes of which are set aside: writing them cannot fail later (SIGBUS)."""
    folder = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    file = None
    try:
        if size > usage.free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        file = tempfile.TemporaryFile(dir=folder, buffering=0)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
        return file
    except OSError as error:
        if file is not None:
            file.close()
        need, free, total = (f"{_mebibytes(amount)} MiB" for amount in (size, usage.free, usage.total))
        raise UserError(
            f"{purpose} need {need} of shared memory, and {folder} has {free} free of {total} ({error.strerror}). Use "
            f"fewer workers or slots (0 workers need none), or enlarge it: mount -o remount,size=SIZE {folder}, in "
            "Docker --shm-size SIZE.") from None


def _mebibytes(size):
    """Bytes in MiB, rounded up to a tenth."""
    return f"{-(-size * 10 // 2 ** 20) / 10:g}"


def _failure(error):
    """The exception being handled as bytes: type, text, traceback, and itself if it can be pickled."""
    try:
        data = pickle.dumps(error)
        pickle.loads(data)
    except Exception:
        data = None
    kind = type(error)
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return pickle.dumps((name, str(error), traceback.format_exc(), data))


def _exception(data, worker, sequence):
    """The exception that `_failure` has packed, with the worker's traceback as a note."""
    name, text, trace, data = pickle.loads(data)
    error = None
    with contextlib.suppress(Exception):
        error = pickle.loads(data) if data else None
    if not isinstance(error, Exception):  # SystemExit must not end the main process
        error = WorkerError(f"A worker raised {name}: {text}")
    doing = "while it started" if sequence not in worker.jobs else "at the job (epoch {}, index {})".format(
        *worker.jobs[sequence])
    error.add_note(f"Raised in worker {worker.number} {doing}:\n{trace}")
    return error


def _end(processes, owner):
    if os.getpid() == owner:  # a fork of the owner must leave them alone
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
