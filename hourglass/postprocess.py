"""From heatmaps to joints (article: "... the pixel with max value ... the neighbor pixel with largest value").

B batch, h, w heatmap, K joints.
"""

import numpy as np
import tensorflow as tf

from common import heatmaps as peaks

STRIDE = 4  # pixels of the network input per pixel of a heatmap


def postprocess(heatmaps, flipped=None, pairs=()):
    """(joints_xy [B, K, 2] in pixels of the network input, scores [B, K], the height of each peak).

    heatmaps [B, h, w, K] of the last stack. flipped: those of the mirrored picture, to be averaged with them; pairs:
    the joints (left, right) that swap in a mirror.
    """
    if flipped is not None:
        heatmaps = (heatmaps + unflip(flipped, pairs)) / 2
    joints_xy, scores = peaks.peaks(heatmaps)
    return joints_xy * STRIDE, scores


def unflip(heatmaps, pairs):
    """Heatmaps [B, h, w, K] of a mirrored picture as those of the picture: columns turned round, left for right."""
    return tf.gather(heatmaps[:, :, ::-1], mirrored(heatmaps.shape[-1], pairs), axis=-1)


def mirrored(num_joints, pairs):
    """int [K]: the joint that stands in a mirror where joint k stands."""
    order = np.arange(num_joints)
    for left, right in pairs:
        order[[left, right]] = right, left
    return order
