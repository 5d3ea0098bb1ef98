"""Augmented pictures per second of SSD's worker processes: python -m benchmarks.workers [--pictures N]

`ssd.augment.prepare` on made-up JPEG pictures of 500 x 375 that are held in memory; what counts are batches of
uint8 [B, S, S, 3] in the main process. Beside common.workers with 1, 2 and 4 processes: this process alone (with
and without OpenCV's threads), tf.data with tf.numpy_function in threads, multiprocessing.Pool with pickled
results, and grain, if it is installed. They take turns, so that what else the machine does falls on all of them.

"main" is the time that all threads of the main process compute for a picture. "copies" are those of a picture from
the function's result to the batch, counted in the code: to the row of a batch (1, for all); to a slot (1); to a
tensor of tf.numpy_function (1); pickle, into the pipe, out of it, unpickle (4); a whole batch into grain's shared
memory and out of it (2).
"""

import collections
import functools
import itertools
import multiprocessing
import os
import time

import cv2
import numpy as np
import tensorflow as tf

from common import cli, detection_demo, workers
from ssd import augment

WIDTH, HEIGHT = 500, 375
MOST = 16                           # boxes of a picture
AHEAD = workers.SLOTS_PER_WORKER    # results per process that may wait, the same for all


def make_payloads(count):
    """Packed made-up pictures, as SSD's training reads them from records."""
    payloads = []
    for i in range(count):
        image, boxes_xyxy, labels = detection_demo.draw(0, i, WIDTH)
        data = tf.io.encode_jpeg(image[:HEIGHT], quality=92).numpy()
        fractions = np.clip(boxes_xyxy / [WIDTH, HEIGHT, WIDTH, HEIGHT], 0, 1)
        payloads.append(augment.pack(data, b"picture", fractions[:MOST], labels[:MOST]))
    return payloads


def endless(payloads):
    """(epoch, index, payload) for ever."""
    for epoch in itertools.count():
        for index, payload in enumerate(payloads):
            yield epoch, index, payload


def stacked(outputs, batch_size):
    """Batches {name: [B, ...]} of single outputs, each copied into its row."""
    outputs = iter(outputs)
    while True:
        first = next(outputs)
        batch = {name: np.empty((batch_size, *np.shape(value)), value.dtype) for name, value in first.items()}
        for row, each in enumerate(itertools.chain([first], itertools.islice(outputs, batch_size - 1))):
            for name, value in each.items():
                batch[name][row] = value
        yield batch


def threads(function, specs, payloads, batch_size):
    """tf.data's own threads, each of which waits for Python's lock."""
    def work(epoch, index, payload):
        outputs = function(payload, np.random.default_rng([0, epoch, index]))
        return [outputs[name] for name in specs]

    def parse(epoch, index, payload):
        found = tf.numpy_function(work, [epoch, index, payload], [dtype for _, dtype in specs.values()])
        return {name: tf.ensure_shape(value, shape) for (name, (shape, _)), value in zip(specs.items(), found)}

    signature = tuple(tf.TensorSpec([], dtype) for dtype in (tf.int64, tf.int64, tf.string))
    dataset = tf.data.Dataset.from_generator(lambda: endless(payloads), output_signature=signature)
    return dataset.map(parse, num_parallel_calls=os.cpu_count()).batch(batch_size).prefetch(1)


def pickled(function, payloads, processes):
    """multiprocessing.Pool; its imap would read all of the jobs at once, so results are asked for one by one."""
    with multiprocessing.get_context("spawn").Pool(processes, cv2.setNumThreads, (0,)) as pool:
        jobs, waiting = endless(payloads), collections.deque()
        while True:
            while len(waiting) < AHEAD * processes:
                epoch, index, payload = next(jobs)
                waiting.append(pool.apply_async(seeded, (function, payload, epoch, index)))
            yield waiting.popleft().get()


def seeded(function, payload, epoch, index):
    """A job of `pickled`."""
    return function(payload, np.random.default_rng([0, epoch, index]))


def grains(function, payloads, batch_size, processes):
    """grain's processes, each of which makes whole batches; None where grain is not installed."""
    try:
        import grain
    except ImportError:
        return None
    dataset = grain.MapDataset.source(payloads).seed(0).repeat().random_map(function)
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=AHEAD)
    dataset = dataset.to_iter_dataset(reading).batch(batch_size)
    return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=processes, per_worker_buffer_size=1))


def rate(batches, batch_size, seconds, warm_up=3):
    """(pictures per second, seconds of the main process per picture); what had been prepared does not count."""
    for _ in range(warm_up):
        next(batches)
    start, used, taken = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() < start + seconds:
        next(batches)
        taken += batch_size
    return taken / (time.perf_counter() - start), (time.process_time() - used) / taken


def candidates(payloads, size, batch_size):
    """{name: (batches, copies)}; the first is what the others are compared with."""
    function, specs = functools.partial(augment.prepare, size=size, most=MOST), augment.specs(size, MOST)

    def ours(count):
        pool = workers.WorkerPool(function, specs, workers=count, slots=AHEAD * max(count, 1))
        return pool.batches(endless(payloads), batch_size)

    found = {"in process": (ours(0), 1), "in process, threads in OpenCV": (ours(0), 1)}
    found |= {f"common.workers, {count}": (ours(count), 2) for count in (1, 2, 4)}
    dataset = workers.tf_dataset(function, specs, lambda: endless(payloads), batch_size=batch_size, workers=2)
    found["common.workers, 2, as tf.data"] = dataset.prefetch(1), 2
    found["tf.data and tf.numpy_function"] = threads(function, specs, payloads, batch_size), 2
    found["multiprocessing.Pool, 2"] = stacked(pickled(function, payloads, 2), batch_size), 5
    found["grain, 2"] = grains(function, payloads, batch_size, 2), 3
    for name, (batches, _) in found.items():
        if batches is None:
            print(f"{name}: not installed (pip install grain)", flush=True)
    return {name: (iter(batches), copies) for name, (batches, copies) in found.items() if batches is not None}


def define_flags():
    flags = cli.flags
    flags.DEFINE_integer("pictures", 200, "How many are made up.", lower_bound=16)
    flags.DEFINE_integer("image_size", 300, "Side of the network input.")
    flags.DEFINE_integer("batch_size", 32, "Pictures per batch.")
    flags.DEFINE_integer("rounds", 5, "Turns of each candidate.")
    flags.DEFINE_float("seconds", 2.0, "Length of a turn.")


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    payloads = make_payloads(flags.pictures)
    size = sum(map(len, payloads)) / len(payloads)
    print(f"{len(payloads)} made-up pictures of {WIDTH} x {HEIGHT}, {size / 1000:.0f} kB on average; "
          f"{os.cpu_count()} CPUs", flush=True)
    found = candidates(payloads, flags.image_size, flags.batch_size)
    rates = {name: [] for name in found}
    for turn in range(flags.rounds + 1):
        for name, (batches, _) in found.items():
            cv2.setNumThreads(-1 if "threads in OpenCV" in name else 0)
            measured = rate(batches, flags.batch_size, flags.seconds if turn else 0.5)
            if turn:
                rates[name].append(measured)
    base = np.array(rates["in process"])[:, 0]
    for name, (_, copies) in found.items():
        speed, used = np.array(rates[name]).T
        print(f"{name:<32}{np.median(speed):>6.0f} pictures/s{np.median(speed / base):>7.2f} of in process"
              f"{1000 * np.median(used):>7.2f} ms main{copies:>3} copies")


if __name__ == "__main__":
    cli.run(main, define_flags)
