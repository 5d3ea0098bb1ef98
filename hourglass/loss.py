"""The loss of the stacked hourglass: squared errors of the heatmaps of all stacks (article, "Loss Function").

Both functions take

    targets      {"heatmaps": [B, h, w, K], "weight": [B, K], 0 for joints that nobody annotated, else 1}
    predictions  the list over stacks of heatmaps [B, h, w, K] that the network puts out

and return a dict of one part for each stack ("intermediate supervision"), each [B]: a mean over pixels and joints,
never over the batch. The article's code took the mean over the batch too, and divided by the batch again.

B batch, h, w heatmap, K joints.
"""

import tensorflow as tf

FOREGROUND_WEIGHT = 82.0


def article_loss(targets, predictions, *, foreground_weight=FOREGROUND_WEIGHT):
    """Squared error in which a pixel of a joint's Gaussian weighs 82 times as much as one of the background.

    The patch of a joint has 7 x 7 pixels, so that a heatmap of 64 x 64 has (4096 - 49) / 49 = 82.6 times as many pixels
    of background; with equal weights the network "learned to cheat by predicting all zeros".
    """
    heatmaps = targets["heatmaps"]
    weight = tf.where(heatmaps > 0, foreground_weight, 1.0) * targets["weight"][:, None, None]
    parts = {}
    for stack, prediction in enumerate(predictions, 1):
        error = tf.square(heatmaps - tf.cast(prediction, tf.float32))
        parts[f"stack_{stack}"] = tf.reduce_mean(weight * error, axis=[1, 2, 3])
    return parts


def vanilla_loss(targets, predictions):
    """The mean squared error, as in the paper."""
    return article_loss(targets, predictions, foreground_weight=1.0)


LOSSES = {"article": article_loss, "vanilla": vanilla_loss}
