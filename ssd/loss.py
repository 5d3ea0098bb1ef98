"""The loss of SSD: confidence with hard negative mining, localization, and the weight decay.

Article, "Training Objective": confidence, localization and l2 loss. Paper: Liu et al., "SSD: Single Shot MultiBox
Detector", 2016, eq. 1 to 3. The functions take

    targets      {"classes": int32 [B, A], 0 is background and -1 in a crowd, "offsets": float32 [B, A, 4], encoded
                  (cx, cy, w, h)}
    predictions  {"logits": [B, A, 1 + C], "offsets": [B, A, 4]}, what the network puts out

and sum over anchors: never over the batch. What they return is to be divided by the positives of the global batch.

B batch, A anchors, C classes.
"""

import tensorflow as tf

PARTS = ("confidence", "localization", "l2")


def ssd_loss(targets, predictions, *, negatives_per_positive=3, min_negatives=0):
    """{"confidence": [B], "localization": [B]}: sums over the positive and the mined negative anchors of a picture.

    Anchors without an object far outnumber those with one (the article has it the other way round), so that of them
    only the `negatives_per_positive` hardest count for each positive. A picture without an object has no positives,
    hence no negatives and no loss, as in Caffe (bbox_util.cpp, MineHardExamples); with `min_negatives` every picture
    has so many at least (min_negatives_per_image of TensorFlow's Object Detection API). Anchors in a crowd are
    neither.
    """
    logits, offsets = (tf.cast(predictions[name], tf.float32) for name in ("logits", "offsets"))
    positive, negative = targets["classes"] > 0, targets["classes"] == 0                  # [B, A]
    labels = tf.maximum(targets["classes"], 0)
    entropy = tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits)
    distance = tf.reduce_sum(smooth_l1(offsets - targets["offsets"]), axis=-1)            # [B, A]
    wanted = tf.maximum(negatives_per_positive * tf.math.count_nonzero(positive, axis=1, dtype=tf.int32), min_negatives)
    negatives = sum_of_hardest(entropy, negative, wanted)
    return {"confidence": sum_anchors(tf.where(positive, entropy, 0.0)) + negatives,
            "localization": sum_anchors(tf.where(positive, distance, 0.0))}


def num_positives(targets):
    """Anchors that are matched with an object, float32 [B]."""
    return sum_anchors(tf.cast(targets["classes"] > 0, tf.float32))


def sum_of_hardest(entropy, negative, wanted):
    """[B]: the sum of the highest losses among the negative anchors of each picture.

    entropy float32 [B, A], not negative; negative bool [B, A]; wanted int32 [B], how many of a picture, all where it
    has fewer. Of equal losses those of the first anchors count. Only as many are sorted as the picture that wants
    most needs: an eighth of the time of sorting all.
    """
    wanted = tf.minimum(wanted, tf.math.count_nonzero(negative, axis=1, dtype=tf.int32))
    most = tf.reduce_max(wanted)
    hardest = tf.math.top_k(tf.where(negative, entropy, -1.0), most).values               # [B, most]
    return sum_anchors(tf.where(tf.range(most) < wanted[:, tf.newaxis], hardest, 0.0))


def smooth_l1(x):
    """x^2 / 2 where |x| < 1, else |x| - 1/2, each element (the article's formula compares x, its code |x|)."""
    size = tf.abs(x)
    return tf.where(size < 1.0, 0.5 * tf.square(x), size - 0.5)


def l2_loss(variables):
    """Half the sum of the squares of all variables: its gradient is the variable, as Caffe's weight decay has it."""
    return tf.add_n([tf.nn.l2_loss(tf.convert_to_tensor(variable)) for variable in variables])


def sum_anchors(values):
    """[B, A] -> [B]."""
    return tf.reduce_sum(values, axis=1)
