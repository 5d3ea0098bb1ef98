"""Work on pictures in other processes, whose results come back through shared memory.

    specs = {"image": ((300, 300, 3), np.uint8), "boxes": ((100, 4), np.float32)}
    with WorkerPool(function, specs, workers=2, seed=0) as pool:
        for outputs in pool.run(jobs):            # jobs: (epoch, index, payload bytes), read lazily
            ...                                   # outputs: {"image": [300, 300, 3], "boxes": [100, 4]}
    dataset = tf_dataset(function, specs, make_jobs, batch_size=32, workers=2)  # the same for tf.data

`function(payload, rng)` returns a dict of arrays as in specs. rng is np.random.default_rng([seed, epoch, index]),
so that order and content are the same for any number of workers; 0 works in this process.

Article, "Data augmentation": no pickling of pictures, no fork, no CUDA in the workers. A worker is a new
interpreter without TensorFlow and without the program's main module (unless the function is in there): 50 MB and
0.15 s, mostly NumPy and OpenCV. The function must be importable: at the top level of a module, or a
functools.partial of such a one, or an object that can be pickled.

Payloads go to a worker over a socket as they are, and no more of them than it holds, so that nobody waits for
a busy worker. A result is copied twice: by the worker into a slot of shared
memory, and from there into what is handed out; with `batches` that is its row of a batch, which tf.data takes over
without a copy of its own. Slots are never handed out: tf.data would keep looking at the memory of aligned arrays.

The shared memory is a file that never has a name, and a worker ends when its socket does: nothing is left over,
whoever is killed, without any signal handler.
"""

import atexit
import collections
import contextlib
import errno
import mmap
import multiprocessing.connection
import operator
import os
import pathlib
import pickle
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref

import numpy as np

from common import worker_process
from common.errors import UserError

SHARED_MEMORY = "/dev/shm"
SLOTS_PER_WORKER = 16
QUEUED_BYTES = 128 * 1024     # of payloads in a worker's socket, which Linux lets hold 208 KiB

_COMMAND = ("import sys; sys.path.insert(0, sys.argv[1]); "
            "from common.worker_process import serve; serve(*sys.argv[2:])")
# The user's own environment comes first. glibc gives the memory of a picture back to the system and takes it anew
# for the next one, a sixth of the time of SSD's augmentation, unless it is told to keep 128 MiB.
_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1",
                "MALLOC_MMAP_THRESHOLD_": str(32 * 2 ** 20), "MALLOC_TRIM_THRESHOLD_": str(128 * 2 ** 20)}

_last_failure = None          # what ended the last generator of a tf_dataset
_streams = weakref.WeakSet()  # the generators that tf.data may ask for more at this moment


class WorkerError(UserError):
    """A worker process ended, or raised what cannot be brought here as it was."""


class WorkerPool:
    """Processes that run `function(payload, rng)`; a context manager.

    function: importable, see above. specs: {name: (shape, dtype)} of all that it returns. workers: number of
    processes; 0 works in this one. slots: results on the way at a time, and so jobs that are read ahead; 16 per
    worker by default. seed: an int of at least 0.

    Any error closes the pool. An exception in a worker comes out in its turn, with its type and text, and the
    worker's traceback as a note (Exception.add_note); a worker that ends is a `WorkerError` within two seconds.
    The workers of an abandoned pool end when it is collected, or at exit.
    Raises `UserError` when the shared memory is too small, TypeError for a function that cannot be imported.
    """

    def __init__(self, function, specs, *, workers, slots=None, seed=0):
        if workers < 0 or (slots is not None and slots < 1):
            raise UserError(f"There must be 0 or more workers and 1 or more slots; {workers} and {slots} came.")
        if workers and worker_process.serving:
            raise RuntimeError("A worker must not start workers. If this is the program's main module, which "
                               'holds the function: put what it does under if __name__ == "__main__".')
        self.function = function
        self.specs = {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in specs.items()}
        self.workers = workers
        self.slots = slots or SLOTS_PER_WORKER * max(workers, 1)
        self.seed = seed
        self.closed = False
        self._run = None         # the generator that owns the slots
        self._next = 0           # sequence number of the next job
        self._results = {}       # sequence -> None or the exception, of replies that wait for their turn
        self._members, self._processes = [], []
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

        jobs: an iterable of (epoch, index, payload), two ints of at least 0 and bytes; at most `slots` are read
        ahead. Its own exceptions come out in their turn, too. A second run gives up the first.
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
            raise RuntimeError("This pool was closed, by an error or by its `with` block. Make another.")
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
            yield worker_process.call(self.function, self.specs, payload, (self.seed, epoch, index))

    def _shared(self, jobs):
        self._drain()
        jobs, job, pending, failure = iter(jobs), None, collections.deque(), None
        while True:
            while len(pending) < self.slots:
                if job is None and jobs is not None:
                    try:
                        job = next(jobs, None)
                    except Exception as error:  # comes out in its turn
                        failure = error
                if job is None:
                    jobs = None
                    break
                worker = self._worker_for(len(job[2]))
                if worker is None:
                    self._receive(timeout=0)
                    worker = self._worker_for(len(job[2]))
                if worker is None:
                    break
                pending.append(self._send(worker, *job))
                job = None
            if not pending:
                break
            if pending[0] not in self._results:
                self._receive()
                continue
            sequence = pending.popleft()
            error = self._results.pop(sequence)
            if error is not None:
                raise error
            yield self._ring[sequence % self.slots]
        if failure is not None:
            raise failure

    def _start(self):
        function, main = _pickled(self.function)
        size, _ = worker_process.layout(self.specs)
        with _shared_memory(size * self.slots, f"{self.slots} slots for {self.workers} workers") as file:
            memory = mmap.mmap(file.fileno(), size * self.slots)
            self._ring = worker_process.slots_of(memory, self.specs, self.slots)
            self._selector = selectors.DefaultSelector()
            for _ in range(self.workers):
                self._start_worker(file.fileno())
        setup = {"path": [os.path.abspath(path) for path in sys.path], "main": main, "function": function,
                 "specs": self.specs, "slots": self.slots, "seed": self.seed}
        for worker in self._members:
            self._write(worker, pickle.dumps(setup))

    def _start_worker(self, memory):
        ours, theirs = multiprocessing.connection.Pipe()
        environment = {**_ENVIRONMENT, **os.environ, "CUDA_VISIBLE_DEVICES": "", "ZOO_LAZY_TENSORFLOW": "1"}
        root = str(pathlib.Path(__file__).resolve().parents[1])
        with theirs:
            # A process group of its own: Ctrl-C in a terminal does not even reach a worker that is starting.
            process = subprocess.Popen(
                [sys.executable, "-u", "-c", _COMMAND, root, str(theirs.fileno()), str(memory), str(os.getpid())],
                stdin=subprocess.DEVNULL, env=environment, pass_fds=(theirs.fileno(), memory), process_group=0)
        self._processes.append(process)
        self._members.append(_Worker(len(self._processes), process, ours))
        self._selector.register(ours, selectors.EVENT_READ, self._members[-1])

    def _worker_for(self, size):
        """The worker with the fewest jobs, of those whose socket takes `size` bytes at once; or None."""
        free = [worker for worker in self._members if not worker.jobs or worker.unread + size <= QUEUED_BYTES]
        return min(free, key=lambda worker: len(worker.jobs), default=None)

    def _send(self, worker, epoch, index, payload):
        """Gives a job to a worker; returns its sequence number."""
        epoch, index, sequence = operator.index(epoch), operator.index(index), self._next
        self._next += 1
        worker.add(sequence, (epoch, index, len(payload)))
        self._write(worker, b"".join((worker_process.JOB.pack(sequence, epoch, index), payload)))
        return sequence

    def _receive(self, timeout=1.0):
        """Takes the replies that are there, or come within `timeout` seconds."""
        ready = self._selector.select(timeout)
        for key, _ in ready:
            worker = key.data
            try:
                message = worker.connection.recv_bytes()
            except worker_process.LOST:
                raise self._died(worker) from None
            kind, sequence = worker_process.REPLY.unpack_from(message)
            error = None
            if kind == worker_process.FAILED:
                error = _exception(message[worker_process.REPLY.size:], worker, sequence)
            if sequence in worker.jobs:
                worker.remove(sequence)
                self._results[sequence] = error
            elif error is not None:
                raise error
            else:
                worker.ready = True
        if not ready and timeout:
            for worker in self._members:
                if worker.process.poll() is not None:
                    raise self._died(worker)

    def _drain(self):
        """Waits until all workers are ready, and for the jobs that an abandoned run has left to them."""
        while any(worker.jobs or not worker.ready for worker in self._members):
            self._receive()
        self._results.clear()

    def _write(self, worker, data):
        try:
            worker.connection.send_bytes(data)
        except worker_process.LOST:
            raise self._died(worker) from None

    def _died(self, worker):
        if self.closed:
            return RuntimeError("The pool was closed while it was in use.")
        with contextlib.suppress(subprocess.TimeoutExpired):
            worker.process.wait(1.0)
        code = worker.process.returncode
        ending = "without an exit code" if code is None else f"with exit code {code}"
        if code is not None and code < 0:
            ending = f"by signal {-code} ({signal.strsignal(-code)})"
        doing = worker.doing(min(worker.jobs, default=None))
        return WorkerError(f"Workers must live as long as their pool, but worker {worker.number} of "
                           f"{self.workers} ended {ending} {doing}. If memory ran out, use fewer workers; with 0 "
                           "the main process does the same work.")


class _Worker:
    """What the main process knows of a worker.

    jobs: {sequence: (epoch, index, bytes)} of what it has not answered, in order. unread: bytes of all of these
    but the first, which it reads at once.
    """

    def __init__(self, number, process, connection):
        self.number = number
        self.process = process
        self.connection = connection
        self.ready = False
        self.jobs = {}
        self.unread = 0

    def add(self, sequence, job):
        """A job was sent."""
        self.unread += job[2] if self.jobs else 0
        self.jobs[sequence] = job

    def remove(self, sequence):
        """The first job was answered."""
        del self.jobs[sequence]
        self.unread -= next(iter(self.jobs.values()), (0, 0, 0))[2]

    def doing(self, sequence):
        """In words, what it does at the job `sequence`, or without one."""
        if sequence in self.jobs:
            return "at the job (epoch {}, index {})".format(*self.jobs[sequence])
        return "between two jobs" if self.ready else "while it started"


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
    return tf.data.Dataset.from_generator(lambda: _Stream(batches()), output_signature=signature)


class _Stream:
    """An iterator that ends when the program does.

    Otherwise TensorFlow may ask a generator for more while the interpreter goes. A training of half an hour once ended
    with its warning about that, and the process took over a minute to go; shorter ones end well either way.
    """

    def __init__(self, generator):
        self.generator = generator
        self.lock = threading.Lock()
        self.ended = False
        _streams.add(self)

    def __iter__(self):
        return self

    def __next__(self):
        with self.lock:
            if self.ended:
                raise StopIteration
            return next(self.generator)


@atexit.register
def _end_streams():
    streams = list(_streams)
    for stream in streams:
        stream.ended = True  # it starts nothing more; what it is at, it finishes
    for stream in streams:
        if stream.lock.acquire(timeout=10.0):
            stream.generator.close()
            stream.lock.release()
    if streams:
        time.sleep(0.1)  # until TensorFlow's own Python code behind the last batch is through, too


def original_error(error):
    """The exception of a worker, or of the jobs, that a `tf_dataset` turned into the OpError `error`; or None."""
    text = str(_last_failure).strip()
    return _last_failure if _last_failure is not None and text and text in str(error) else None


def _pickled(function):
    """(the function as bytes, what a worker needs to import the main module if the function is in there)."""
    try:
        data = pickle.dumps(function)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise TypeError(f"The function of the workers must be importable by its name, and {function!r} is not "
                        f"({error}). Put it at the top level of a module; functools.partial adds arguments."
                        ) from None
    if b"__main__" not in data:
        return data, {}
    main = sys.modules["__main__"]
    if getattr(main, "__spec__", None) is not None:
        return data, {"init_main_from_name": main.__spec__.name}
    if not os.path.isfile(getattr(main, "__file__", None) or ""):
        raise TypeError(f"The function of the workers must be in a file, and {function!r} is in a main module "
                        "without one. Put it into a module and import it from there.")
    return data, {"init_main_from_path": os.path.abspath(main.__file__)}


def _aligned(shape, dtype):
    """An array without values, its memory aligned as tf.data likes it."""
    size = int(np.prod(shape)) * dtype.itemsize
    data = np.empty(size + worker_process.ALIGNMENT, np.uint8)
    start = -data.ctypes.data % worker_process.ALIGNMENT
    return data[start:start + size].view(dtype).reshape(shape)


def _shared_memory(size, purpose):
    """An open file without a name, with `size` bytes set aside: no later write can fail with SIGBUS."""
    folder = SHARED_MEMORY if os.path.isdir(SHARED_MEMORY) else tempfile.gettempdir()
    usage = shutil.disk_usage(folder)
    with contextlib.ExitStack() as stack:
        try:
            if size > usage.free:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            file = stack.enter_context(tempfile.TemporaryFile(dir=folder, buffering=0))
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:
                file.truncate(size)
        except OSError as error:
            need, free, total = (f"{amount / 2 ** 20:.1f} MiB" for amount in (size, usage.free, usage.total))
            raise UserError(
                f"{purpose} need {need} of shared memory, and {folder} has {free} free of {total} "
                f"({error.strerror}). Use fewer workers (0 need none) or slots, or enlarge it: mount -o "
                f"remount,size=SIZE {folder}, in Docker --shm-size SIZE.") from None
        stack.pop_all()
    return file


def _exception(data, worker, sequence):
    """The exception in what `worker_process.pack_failure` made, with the worker's traceback as a note."""
    name, text, trace, data = pickle.loads(data)
    error = None
    with contextlib.suppress(Exception):
        error = pickle.loads(data) if data else None
    if not isinstance(error, Exception):  # SystemExit must not end the main process
        error = WorkerError(f"A worker raised {name}: {text}")
    error.add_note(f"Raised in worker {worker.number} {worker.doing(sequence)}:\n{trace}")
    return error


def _end(processes, owner):
    if os.getpid() == owner:  # a fork of the owner must leave them alone
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
