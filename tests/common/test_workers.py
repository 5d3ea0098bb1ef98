"""The worker pool: same data for any number of workers, and a clean end whatever happens to whom."""

import contextlib
import functools
import gc
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest

from common import workers
from common.errors import UserError
from tests.common import jobs

ROOT = pathlib.Path(__file__).resolve().parents[2]


def stream(start=0, stop=40, per_epoch=15):
    """Jobs number `start` onwards; the payloads of every third are empty, and these take longer."""
    for number in range(start, stop):
        epoch, index = divmod(number, per_epoch)
        yield epoch, index, bytes([epoch, index, 255]) if number % 3 else b""


def commands(*texts):
    return [(0, i, text.encode()) for i, text in enumerate(texts)]


def obedient(count=2, **options):
    return workers.WorkerPool(jobs.obey, jobs.SMALL, workers=count, **options)


def alive(process):
    """Whether the process number runs; a zombie, which only waits for its parent, does not."""
    try:
        return pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_for(predicate, seconds=5.0):
    end = time.monotonic() + seconds
    while not predicate():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def without_process(outputs):
    return [{key: value for key, value in each.items() if key != "process"} for each in outputs]


def assert_same(some, others):
    assert len(some) == len(others)
    for one, other in zip(without_process(some), without_process(others)):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key], err_msg=key)


@pytest.fixture(scope="module")
def expected():
    """The outputs of `stream`, each worked out from its seed."""
    return [{"draws": np.random.default_rng([11, epoch, index]).random(5),
             "payload": np.frombuffer(payload.ljust(3, b"\0"), np.uint8)} for epoch, index, payload in stream()]


@pytest.mark.parametrize(("count", "slots"), [(0, None), (1, 1), (2, None), (3, 2), (2, 100)])
def test_same_data_in_the_same_order(expected, count, slots):
    """For any number of workers and slots; the arrays that come out stay as they are; all workers work."""
    with workers.WorkerPool(jobs.draw, jobs.SPECS, workers=count, slots=slots, seed=11) as pool:
        outputs = list(pool.run(stream()))
        assert_same(outputs, expected)
        assert_same(list(pool.run(stream(23))), expected[23:])              # a restart at epoch 1, index 8
        batches = list(pool.batches(stream(3), 4))
    assert len({int(each["process"]) for each in outputs}) == max(min(count, slots or count), 1)
    assert [batch["draws"].shape for batch in batches] == [(4, 5)] * 9      # 37 jobs; the last one is dropped
    rows = [{key: value[i] for key, value in batch.items()} for batch in batches for i in range(4)]
    assert_same(rows, expected[3:39])


@pytest.mark.parametrize("count", [0, 2])
def test_jobs_are_read_lazily(count):
    """No more than the slots ahead of what was handed out; endless jobs are fine."""
    read = itertools.count()
    endless = ((0, next(read), b"") for _ in itertools.count())
    with workers.WorkerPool(jobs.draw, jobs.SPECS, workers=count, slots=6) as pool:
        results = pool.run(endless)
        for taken in range(1, 20):
            next(results)
            assert next(read) <= taken + 6 + taken                          # looking at the count adds one to it
    with pytest.raises(RuntimeError, match="closed"):
        next(pool.run(stream()))


@pytest.mark.parametrize("count", [0, 2])
def test_payloads_larger_than_a_socket_holds(count):
    """They come through whole, and while one worker sleeps over its jobs the other gets on with its own."""
    payloads = [bytes([i]) * 3_000_000 for i in range(12)]
    with workers.WorkerPool(jobs.draw, jobs.SPECS, workers=count) as pool:
        found = list(pool.run((0, i, payload) for i, payload in enumerate(payloads)))
    assert [each["payload"].tolist() for each in found] == [[i] * 3 for i in range(12)]
    if count:
        words = ["sleep 1.0"] + ["x".ljust(1_000_000)] * 9
        with obedient(2) as pool:
            results = pool.run(commands(*words))
            first = int(next(results)["process"])
            done = time.monotonic()
            others = [int(each["process"]) for each in results]
        assert time.monotonic() - done < 0.5
        assert sum(process != first for process in others) >= 8


@pytest.mark.parametrize("count", [0, 2])
def test_errors_of_the_jobs_come_in_their_turn(count):
    def broken():
        yield from commands("a", "b", "c")
        raise OSError("no more records")

    taken = []
    with obedient(count) as pool, pytest.raises(OSError, match="no more records"):
        for outputs in pool.run(broken()):
            taken.append(outputs)
    assert len(taken) == 3 and pool.closed


def test_an_exception_comes_with_type_text_and_traceback():
    """Fault 34: in its turn, though a later job failed before it; then the pool is closed, its workers gone."""
    taken = []
    with obedient() as pool:
        with pytest.raises(ValueError) as caught:
            words = "a", "sleep 0.3", "b", "value wrong number", "picky x", "value late"
            for outputs in pool.run(commands(*words)):
                taken.append(int(outputs["process"]))
        assert pool.closed
    assert len(taken) == 3 and str(caught.value) == "wrong number"
    note, = caught.value.__notes__
    assert "(epoch 0, index 3)" in note and "in obey" in note and "raise ValueError(rest)" in note
    assert not any(map(alive, taken))


@pytest.mark.parametrize(("word", "kind", "text"), [
    ("picky photo.jpg", workers.WorkerError, r"A worker raised tests.common.jobs.Picky: photo.jpg: is bad"),
    ("exit", workers.WorkerError, "A worker raised SystemExit: 7"),
    ("shape", ValueError, r"'process' as int64 \[\]; it returned int64 \[3\]"),
    ("dtype", ValueError, r"'process' as int64 \[\]; it returned int32 \[\]"),
    ("name", ValueError, r"a dict of \['process'\]; it returned \['other'\]")])
def test_other_failures_of_a_function(word, kind, text):
    with obedient(1) as pool, pytest.raises(kind, match=text):
        list(pool.run(commands(word)))
    if kind is ValueError:
        with obedient(0) as pool, pytest.raises(kind, match=text):
            list(pool.run(commands(word)))


@pytest.mark.parametrize("when", ["works", "waits", "vanishes"])
def test_a_killed_worker_is_an_error_at_once(when):
    """Fault 35: while both work, between two jobs, or by its own doing; the others end, too."""
    with obedient(2, slots=4) as pool:
        list(pool.run(commands(*"abcd")))
        pids = [process.pid for process in pool._processes]
        words = {"works": ["sleep 60"] * 6, "waits": ["x"] * 6, "vanishes": ["x", "vanish", "x", "sleep 60"]}[when]
        if when == "works":
            threading.Timer(0.2, os.kill, (pids[1], signal.SIGKILL)).start()
        elif when == "waits":
            os.kill(pids[1], signal.SIGKILL)
        start = time.monotonic()
        with pytest.raises(workers.WorkerError, match="worker . of 2 ended (by signal 9|with exit code 7)"):
            list(pool.run(commands(*words)))
        assert time.monotonic() - start < 3
        assert not any(map(alive, pids))


def test_failures_while_the_workers_start(monkeypatch):
    """A module that only the main process has, a process that ends itself, functions without a name."""
    module = types.ModuleType("made_up_here")
    exec("def function(payload, rng):\n    return {}", module.__dict__)
    monkeypatch.setitem(sys.modules, "made_up_here", module)
    with workers.WorkerPool(module.function, {}, workers=2) as pool:
        with pytest.raises(ModuleNotFoundError, match="made_up_here") as caught:
            next(pool.run(stream()))
        assert "while it started" in caught.value.__notes__[0]
    with workers.WorkerPool(jobs.Unborn(), {}, workers=2) as pool:
        with pytest.raises(workers.WorkerError, match="ended with exit code 9 while it started"):
            next(pool.run(stream()))
    with pytest.raises(TypeError, match="importable by its name"):
        workers.WorkerPool(lambda payload, rng: {}, {}, workers=1)
    with pytest.raises(TypeError, match="dtype object"):
        workers.WorkerPool(jobs.obey, {"name": ((), object)}, workers=1)
    for counts in ({"workers": -1}, {"workers": 2, "slots": 0}):
        with pytest.raises(UserError, match="0 or more workers and 1 or more slots"):
            workers.WorkerPool(jobs.obey, jobs.SMALL, **counts)


def test_too_little_shared_memory_is_named():
    """Fault 37: before anything is started. The whole of /dev/shm and a MiB cannot be had."""
    total = os.statvfs(workers.SHARED_MEMORY)
    size = total.f_frsize * total.f_blocks + 2 ** 20
    with pytest.raises(UserError, match=r"2 slots for 1 workers need .* MiB of shared memory, and /dev/shm has .* "
                                        r"free of .* Use fewer workers .*--shm-size"):
        workers.WorkerPool(jobs.obey, {"big": ((size // 2,), np.uint8)}, workers=1, slots=2)


def test_shared_memory_that_runs_out_while_it_is_set_aside(monkeypatch, tmp_path):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    monkeypatch.setattr(workers, "SHARED_MEMORY", str(tmp_path))
    with pytest.raises(UserError, match="need 0.0 MiB .*No space left on device"):
        obedient()
    assert list(tmp_path.iterdir()) == []


def test_what_a_worker_sees():
    """No TensorFlow, no GPU, no threads of OpenCV's; arguments by functools.partial; a light process."""
    with workers.WorkerPool(functools.partial(jobs.facts), jobs.FACTS, workers=1) as pool:
        outputs, = pool.run(commands("x"))
    assert not outputs["tensorflow"] and not outputs["cuda"] and outputs["threads"] <= 1
    assert outputs["kilobytes"] < 100_000


def test_workers_ignore_what_a_terminal_sends_and_the_pool_takes_no_handler():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with obedient() as pool:
        results = pool.run(commands(*["x"] * 60))
        next(results)
        for process in pool._processes:
            os.kill(process.pid, signal.SIGINT)
            os.kill(process.pid, signal.SIGTERM)
        assert len(list(results)) == 59
        assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_two_pools_runs_that_are_given_up_and_a_pool_that_is_forgotten(expected):
    with workers.WorkerPool(jobs.draw, jobs.SPECS, workers=1, seed=11) as one, workers.WorkerPool(
            jobs.draw, jobs.SPECS, workers=2, seed=11) as two:
        pairs = list(zip(one.run(stream()), two.run(stream(5))))
        assert_same([pair[0] for pair in pairs], expected[:35])
        assert_same([pair[1] for pair in pairs], expected[5:])
        given_up = two.run(stream(9))
        next(given_up)
        assert_same(list(two.run(stream())), expected)
        with pytest.raises(RuntimeError, match="Another run"):
            next(given_up)
        assert not two.closed
        assert_same(list(two.run(stream())), expected)
    pool = obedient()
    results = pool.run(commands("a", "sleep 60", "sleep 60", "sleep 60"))
    next(results)
    processes = [process.pid for process in pool._processes]
    assert all(map(alive, processes))
    del pool, results
    gc.collect()
    assert not any(map(alive, processes))


def test_a_fork_of_the_main_process_leaves_the_workers_alone():
    script = """
import gc, os
from common import workers
from tests.common import jobs

with workers.WorkerPool(jobs.obey, jobs.SMALL, workers=2) as pool:
    work = [(0, i, b"x") for i in range(20)]
    assert len(list(pool.run(work))) == 20
    child = os.fork()
    if not child:
        pool.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert len(list(pool.run(work))) == 20
print("fine")
"""
    found = run("-c", script)
    assert (found.stdout, found.stderr) == ("fine\n", "")


def environment():
    return {**os.environ, "ZOO_LAZY_TENSORFLOW": "1", "PYTHONPATH": str(ROOT)}


def run(*arguments, folder=None):
    return subprocess.run([sys.executable, *arguments], env=environment(), cwd=folder, capture_output=True,
                          text=True, timeout=60)


MAIN = """
import os
import numpy as np
from common import workers

print("loaded", __name__, flush=True)

class Own(Exception):
    pass

def double(payload, rng):
    if payload == b"own":
        raise Own("from the worker")
    return {"x": np.int64(2 * int(payload))}

def main():
    with workers.WorkerPool(double, {"x": ((), np.int64)}, workers=1) as pool:
        print([int(each["x"]) for each in pool.run((0, i, str(i).encode()) for i in range(4))])
        try:
            list(pool.run([(0, 0, b"own")]))
        except Own as error:
            print("own", error)

GUARD:
    main()
"""


def test_functions_of_the_main_module(tmp_path):
    """They work from a file and with -m; without the guard of the main module the error says so."""
    (tmp_path / "program.py").write_text(MAIN.replace("GUARD", "if __name__ == '__main__'"))
    (tmp_path / "unguarded.py").write_text(MAIN.replace("GUARD", "if True"))
    for command in (["program.py"], ["-m", "program"]):
        found = run(*command, folder=tmp_path)
        assert found.stderr == ""
        assert found.stdout.splitlines() == ["loaded __main__", "loaded __mp_main__", "[0, 2, 4, 6]",
                                             "own from the worker"]
    found = run("unguarded.py", folder=tmp_path)
    assert found.returncode == 1
    assert 'put what it does under if __name__ == "__main__"' in found.stderr


ENDS = """
import signal, sys
from common import workers
from tests.common import jobs

if "exit" in sys.argv:  # what training's signal handling comes to
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
first = workers.WorkerPool(jobs.obey, jobs.SMALL, workers=2)
second = workers.WorkerPool(jobs.obey, jobs.SMALL, workers=1)
words = [b"x", b"x", b"x", b"spin", b"sleep 60", b"sleep 60"]
results = first.run((0, i, word) for i, word in enumerate(words)), second.run((0, i, b"x") for i in range(99))
print(*(next(each)["process"] for each in [results[0]] * 3 + [results[1]]), flush=True)
next(results[0])
"""


@pytest.mark.parametrize(("number", "how"), [(signal.SIGINT, "plain"), (signal.SIGTERM, "plain"),
                                             (signal.SIGTERM, "exit"), (signal.SIGKILL, "plain")])
def test_nothing_is_left_of_a_process_that_is_ended(number, how, tmp_path):
    """Fault 36: with two pools, one worker in a loop and one asleep; the whole process group gets the signal."""
    before = set(os.listdir(workers.SHARED_MEMORY))
    with open(tmp_path / "errors.txt", "w+", encoding="utf-8") as errors:
        main = subprocess.Popen([sys.executable, "-c", ENDS, how], env=environment(), stdout=subprocess.PIPE,
                                stderr=errors, text=True, process_group=0)
        with contextlib.closing(main.stdout):
            pids = {int(word) for word in main.stdout.readline().split()}
        assert len(pids) == 3 and all(map(alive, pids))
        assert set(os.listdir(workers.SHARED_MEMORY)) <= before     # the memory has no name even while it is used
        time.sleep(0.1)
        os.killpg(main.pid, number)
        assert main.wait(5) == (143 if how == "exit" else -number)
        wait_for(lambda: not any(map(alive, pids)))
        errors.seek(0)
        text = errors.read()
    assert set(os.listdir(workers.SHARED_MEMORY)) <= before
    assert ("KeyboardInterrupt" in text) if number == signal.SIGINT else text == ""


def test_tf_data_takes_the_batches_without_a_copy():
    """And so must not be given memory that is written to again: this one is, and the tensor shows it."""
    import tensorflow as tf

    batch = workers._aligned((4, 1000), np.dtype(np.uint8))
    batch[:] = 1
    signature = tf.TensorSpec([4, 1000], tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: iter([batch]), output_signature=signature)
    tensor = next(iter(dataset))
    batch[:] = 2
    assert tensor.numpy().min() == 2


def test_tf_dataset(expected):
    """The batches of the pool; two datasets at once; workers end with their iterator; errors are found again."""
    import tensorflow as tf

    def dataset(count, make_jobs=stream, function=jobs.draw, specs=jobs.SPECS):
        return workers.tf_dataset(function, specs, make_jobs, batch_size=4, workers=count, seed=11)

    assert dataset(2).element_spec["draws"] == tf.TensorSpec([4, 5], tf.float64)
    batches = list(tf.data.Dataset.zip(dataset(0), dataset(2).prefetch(2)))     # what is kept stays as it is
    for number in (0, 1):
        rows = [{key: value[i].numpy() for key, value in batch[number].items()}
                for batch in batches for i in range(4)]
        assert_same(rows, expected)
    endless = iter(dataset(2, lambda: ((0, i, b"") for i in itertools.count())).prefetch(1))
    pids = {int(process) for _ in range(3) for process in next(endless)["process"]}
    assert len(pids) == 2 and all(map(alive, pids))
    del endless
    gc.collect()
    wait_for(lambda: not any(map(alive, pids)))

    def broken():
        return commands("a", "value no such picture")

    with pytest.raises(tf.errors.OpError) as caught:
        list(dataset(1, broken, jobs.obey, jobs.SMALL))
    found = workers.original_error(caught.value)
    assert isinstance(found, ValueError) and str(found) == "no such picture"
    assert "(epoch 0, index 1)" in found.__notes__[0]
    assert workers.original_error(ValueError("another")) is None


TENSORFLOW = """
import itertools, os, signal, sys
from common import workers
from tests.common import jobs

def records():
    import tensorflow as tf
    dataset = tf.data.Dataset.range(10 ** 6).map(lambda i: (i, tf.strings.as_string(i)), num_parallel_calls=2)
    for i, payload in dataset.as_numpy_iterator():
        yield 0, i, payload

import tensorflow as tf
tf.config.threading.set_inter_op_parallelism_threads(1)
datasets = [workers.tf_dataset(jobs.draw, jobs.SPECS, records, batch_size=4, workers=1) for _ in range(3)]
batches = iter(tf.data.Dataset.zip(*datasets).prefetch(2))
pids = {int(each["process"][0]) for _ in range(50) for each in next(batches)}
print(*pids, flush=True)
if sys.argv[1] == "wait":
    while True:
        next(batches)
"""


@pytest.mark.parametrize("ending", ["wait", "leave"])
def test_three_datasets_fed_by_tf_data_and_a_program_that_just_ends(ending):
    """With a single thread for TensorFlow's operations nobody waits for anybody for ever; nothing is left."""
    main = subprocess.Popen([sys.executable, "-c", TENSORFLOW, ending], env=environment(), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)
    with main.stdout, main.stderr:
        pids = {int(word) for word in main.stdout.readline().split()}
        assert len(pids) == 3
        if ending == "wait":
            main.kill()
        assert main.wait(60) == (-signal.SIGKILL if ending == "wait" else 0), main.stderr.read()
    wait_for(lambda: not any(map(alive, pids)))


SLOW_JOBS = """
import time
import tensorflow as tf
from common import workers
from tests.common import jobs

def slow():
    for i in range(1000):
        time.sleep(0.3)
        yield 0, i, b"abc"

batches = iter(workers.tf_dataset(jobs.draw, jobs.SPECS, slow, batch_size=1, workers=0).prefetch(2))
next(batches)
"""


def test_a_program_ends_while_tf_data_is_in_the_middle_of_a_batch():
    """A thread of TensorFlow sleeps in `slow` when the interpreter goes; the stream must not keep the process."""
    done = subprocess.run([sys.executable, "-c", SLOW_JOBS], env=environment(), capture_output=True, timeout=60,
                          text=True)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
