"""Gaussian targets for the joints of a pose, and joints from heatmaps with sub-pixel accuracy.

A joint is (x, y) in pixels of the heatmap: pixel i covers i to i + 1, so that its centre is at i + 0.5.

K joints, h, w heatmap. Every function takes any leading batch axes, works in a graph and has no loop.
"""

import tensorflow as tf


def patch_side(sigma):
    """Pixels of a side of the patch that a Gaussian is drawn in: 2 * floor(3 sigma) + 1, 7 for sigma 1."""
    return 2 * int(3 * sigma // 1) + 1


def gaussian_heatmaps(joints_xy, present, size, sigma=1.0, subpixel=True):
    """Heatmaps float32 [..., h, w, K], one Gaussian each, of joints_xy [..., K, 2] in heatmap pixels.

    present: [..., K] bool; size: (h, w); sigma: of the Gaussian, in pixels. The patch has `patch_side` pixels
    a side around the pixel that the joint is in, whose value is exactly 1; at the border it
    is clipped, never moved. Joints that are absent, or in no pixel, or not finite have zeros only. subpixel: the
    Gaussian's centre is the joint itself, and dividing by the value at its pixel keeps 1 there. False puts the
    centre in the middle of that pixel, as the article's patch does; the two agree for a joint in the middle of a
    pixel. Only the first lets `peaks` find a joint again to a quarter of a pixel.
    """
    if not sigma > 0:
        raise ValueError(f"sigma must be positive; {sigma} came.")
    joints_xy, reach = tf.cast(joints_xy, tf.float32), float(patch_side(sigma) // 2)
    height, width = size
    pixel = tf.floor(joints_xy)                                                         # [..., K, 2]
    limits = tf.cast(tf.stack([width, height]), tf.float32)
    inside = tf.cast(present, tf.bool) & tf.reduce_all((pixel >= 0) & (pixel < limits), axis=-1)
    offset = joints_xy - pixel - 0.5 if subpixel else tf.zeros_like(pixel)              # -0.5 to 0.5

    def profile(axis, length):
        """[..., length, K]: the Gaussian along one axis; over both axes it is the product of two such."""
        steps = tf.range(length, dtype=tf.float32)[:, None] - pixel[..., None, :, axis]
        # (step - offset)^2 - offset^2: the second term is what divides by the value at the joint's pixel.
        exponent = steps * (steps - 2 * offset[..., None, :, axis]) / (-2 * sigma * sigma)
        return tf.where((tf.abs(steps) <= reach) & inside[..., None, :], tf.exp(exponent), 0.0)

    return profile(1, height)[..., :, None, :] * profile(0, width)[..., None, :, :]


def peaks(heatmaps):
    """(joints_xy float32 [..., K, 2] in heatmap pixels, scores float32 [..., K]) of heatmaps [..., h, w, K].

    The pixel of the maximum (of equal ones the first, row by row), a quarter of a pixel toward its larger
    neighbour in x, and likewise in y, and 0.5 to its middle (Newell's evaluation code). No shift between equal
    neighbours, nor at a border, where one is missing. The score is the value of the maximum.
    """
    shape = tf.shape(heatmaps)
    height, width, num_joints = shape[-3], shape[-2], shape[-1]
    maps = tf.reshape(heatmaps, [-1, height * width, num_joints])
    maps = tf.transpose(maps, [0, 2, 1])                                                # [B, K, h * w]
    best = tf.argmax(maps, axis=-1, output_type=tf.int32)
    x, y = best % width, best // width

    def values(index):
        return tf.cast(tf.gather(maps, index, axis=-1, batch_dims=2), tf.float32)

    def shift(position, length, step):
        within = (position > 0) & (position < length - 1)
        after, before = (values(tf.where(within, best + way * step, best)) for way in (1, -1))
        return 0.25 * tf.sign(after - before)

    joints_xy = tf.stack([tf.cast(x, tf.float32) + shift(x, width, 1),
                          tf.cast(y, tf.float32) + shift(y, height, width)], axis=-1) + 0.5
    static = heatmaps.shape[:-3] + heatmaps.shape[-1:]
    joints_xy = tf.reshape(joints_xy, tf.concat([shape[:-3], [num_joints, 2]], 0))
    scores = tf.reshape(values(best), tf.concat([shape[:-3], [num_joints]], 0))
    return tf.ensure_shape(joints_xy, static + (2,)), tf.ensure_shape(scores, static)
