"""The loss of the stacked hourglass: squared errors of the heatmaps of all stacks (article, "Loss Function").

Both functions take

    targets      {"heatmaps": [B, h, w, K], "weight": [B, K], 0 for joints that nobody annotated, else 1}
    predictions  the list over stacks of heatmaps [B, h, w, K] that the network puts out

and return a dict of one part for each stack ("intermediate supervision"), each [B]: a mean over pixels and joints,
never over the batch. The article's code took the mean over the batch too, and divided by the batch again.

B batch, h, w heatmap, K joints.
"""

import tensorflow as tf

from common.heatmaps import patch_side


def foreground_weight(height, width, sigma=1.0):
    """How many times more pixels of background than of Gaussian a heatmap has: 82.6 for 64 x 64 and sigma 1.

    (4096 - 7 * 7) / (7 * 7) there, which is where the article has its 82 from; 19.9 for 32 x 32. At least 1.
    """
    patch = patch_side(sigma) ** 2
    return max((height * width - patch) / patch, 1.0)


def article_loss(targets, predictions, *, sigma=1.0):
    """Squared error in which a pixel of a joint's Gaussian weighs `foreground_weight` times one of the background.

    With equal weights the network "learned to cheat by predicting all zeros". sigma: that of the targets.
    """
    _, height, width, _ = targets["heatmaps"].shape
    return squared_errors(targets, predictions, foreground_weight(height, width, sigma))


def vanilla_loss(targets, predictions, *, sigma=1.0):
    """The mean squared error, as in the paper, whatever the `sigma`."""
    del sigma
    return squared_errors(targets, predictions, 1.0)


def squared_errors(targets, predictions, foreground):
    """The parts: means of squared errors, those of pixels above 0 times `foreground`."""
    heatmaps = targets["heatmaps"]
    weight = tf.where(heatmaps > 0, foreground, 1.0) * targets["weight"][:, None, None]
    parts = {}
    for stack, prediction in enumerate(predictions, 1):
        error = tf.square(heatmaps - tf.cast(prediction, tf.float32))
        parts[f"stack_{stack}"] = tf.reduce_mean(weight * error, axis=[1, 2, 3])
    return parts


LOSSES = {"article": article_loss, "vanilla": vanilla_loss}
