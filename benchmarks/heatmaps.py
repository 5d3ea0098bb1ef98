"""Heatmaps per second: python -m benchmarks.heatmaps

Targets of 16 joints, 64 x 64, sigma 1: ours for a batch, and beside it two that draw joint by joint: the article's
way in a graph (a loop over joints, in it two loops over the pixels of the patch, which tf.scatter_nd then puts
into the heatmap), run for the pictures of the batch in parallel as tf.data would; and a loop in NumPy that adds
slices of a patch made once. Then joints from heatmaps, ours against a loop in NumPy. All agree before they are
timed; they take turns in one process, and ratios are those of the medians.
"""

import time

import numpy as np
import tensorflow as tf

from common import cli, heatmaps

JOINTS, SIDE, REACH = 16, 64, 3   # sigma 1: the patch reaches 3 pixels from its middle


def load(batch, seed=0):
    """joints_xy float32 [B, K, 2] in heatmap pixels, a tenth of them outside; present bool [B, K]."""
    rng = np.random.default_rng(seed)
    joints_xy = rng.uniform(-0.03, 1.03, (batch, JOINTS, 2)) * SIDE
    return joints_xy.astype(np.float32), rng.random((batch, JOINTS)) < 0.95


def loop_heatmap(x, y, present):
    """One heatmap [h, w] as the article draws it: pixel by pixel of the patch, in the graph."""
    column, row = tf.cast(tf.floor(x), tf.int32), tf.cast(tf.floor(y), tf.int32)
    heatmap = tf.zeros([SIDE, SIDE])
    if present and column >= 0 and row >= 0 and column < SIDE and row < SIDE:
        places, values = tf.TensorArray(tf.int32, 0, True), tf.TensorArray(tf.float32, 0, True)
        count = 0
        for i in tf.range(-REACH, REACH + 1):
            for j in tf.range(-REACH, REACH + 1):
                if column + i >= 0 and column + i < SIDE and row + j >= 0 and row + j < SIDE:
                    places = places.write(count, tf.stack([row + j, column + i]))
                    values = values.write(count, tf.exp(tf.cast(-(i * i + j * j), tf.float32) / 2))
                    count += 1
        heatmap = tf.scatter_nd(places.stack(), values.stack(), [SIDE, SIDE])
    return heatmap


def loop_heatmaps(joints_xy, present):
    """[h, w, K] of one picture, joint after joint."""
    maps = tf.TensorArray(tf.float32, JOINTS)
    for k in tf.range(JOINTS):
        maps = maps.write(k, loop_heatmap(joints_xy[k, 0], joints_xy[k, 1], present[k]))
    return tf.transpose(maps.stack(), [1, 2, 0])


def numpy_heatmaps(joints_xy, present):
    """[B, h, w, K], a slice of one patch for each joint."""
    steps = np.arange(-REACH, REACH + 1)
    patch = np.exp(-(steps[:, None] ** 2 + steps ** 2) / 2).astype(np.float32)
    maps = np.zeros([len(joints_xy), SIDE, SIDE, JOINTS], np.float32)
    for i, k in np.ndindex(*present.shape):
        column, row = np.floor(joints_xy[i, k]).astype(int)
        if present[i, k] and 0 <= column < SIDE and 0 <= row < SIDE:
            left, top = max(column - REACH, 0), max(row - REACH, 0)
            right, bottom = min(column + REACH + 1, SIDE), min(row + REACH + 1, SIDE)
            x, y = REACH - column, REACH - row
            maps[i, top:bottom, left:right, k] = patch[top + y:bottom + y, left + x:right + x]
    return maps


def numpy_peaks(maps):
    """joints_xy [B, K, 2] as `heatmaps.peaks` finds them, one after the other."""
    batch, height, width, count = maps.shape
    found = np.zeros([batch, count, 2], np.float32)
    for i, k in np.ndindex(batch, count):
        heatmap = maps[i, :, :, k]
        y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
        found[i, k] = x + 0.5, y + 0.5
        if 0 < x < width - 1:
            found[i, k, 0] += 0.25 * np.sign(heatmap[y, x + 1] - heatmap[y, x - 1])
        if 0 < y < height - 1:
            found[i, k, 1] += 0.25 * np.sign(heatmap[y + 1, x] - heatmap[y - 1, x])
    return found


def medians(calls, seconds):
    """Median seconds of each of {name: call}, in turns of 30 ms at least, the first call of which does not count."""
    times = {name: [] for name in calls}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop:
        for name, call in calls.items():
            call()
            start, count = time.perf_counter(), 0
            while not count or time.perf_counter() < start + 0.03:
                call()
                count += 1
            times[name].append((time.perf_counter() - start) / count)
    return {name: float(np.median(mine)) for name, mine in times.items()}


def report(title, times, count):
    ours = times["ours"]
    print(title + ": " + "; ".join(f"{name} {count / seconds:,.0f} heatmaps/s" + (
        "" if name == "ours" else f" (ours {seconds / ours:.1f} times as fast)") for name, seconds in times.items()),
        flush=True)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    joints_xy, present = load(flags.batch_size)
    tensors = tf.constant(joints_xy), tf.constant(present)
    whole_pixels = tf.function(lambda *truth: heatmaps.gaussian_heatmaps(*truth, (SIDE, SIDE), subpixel=False))
    ours = tf.function(lambda *truth: heatmaps.gaussian_heatmaps(*truth, (SIDE, SIDE)))
    looped = tf.function(lambda *truth: tf.map_fn(
        lambda pair: loop_heatmaps(*pair), truth, fn_output_signature=tf.float32, parallel_iterations=8))
    expected = numpy_heatmaps(joints_xy, present)
    for function in (whole_pixels, looped):
        np.testing.assert_allclose(function(*tensors), expected, atol=1e-6)
    maps = ours(*tensors)
    decode = tf.function(heatmaps.peaks)
    np.testing.assert_array_equal(decode(maps)[0], numpy_peaks(maps.numpy()))

    count = flags.batch_size * JOINTS
    report("joints to heatmaps", medians({
        "ours": lambda: ours(*tensors), "the article's loop": lambda: looped(*tensors),
        "loop in NumPy": lambda: numpy_heatmaps(joints_xy, present)}, flags.seconds), count)
    array = maps.numpy()
    report("heatmaps to joints", medians({
        "ours": lambda: decode(maps), "loop in NumPy": lambda: numpy_peaks(array)}, flags.seconds / 2), count)


def define_flags():
    cli.flags.DEFINE_integer("batch_size", 16, "Pictures at a time.", lower_bound=1)
    cli.flags.DEFINE_float("seconds", 10.0, "How long is measured.")


if __name__ == "__main__":
    cli.run(main, define_flags)
