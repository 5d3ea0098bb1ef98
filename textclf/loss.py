"""The article's loss: categorical cross-entropy. B batch, C categories."""

import tensorflow as tf


def categorical_crossentropy(labels, logits, *, label_smoothing=0.0):
    """{"crossentropy": [B]}: -log of the probability that the network gives to the category of each text.

    labels int [B] in 0..C - 1, made one-hot here as in the article ("representing categories numerically");
    logits float32 [B, C], before the softmax. label_smoothing e: the target is 1 - e + e / C for the category and
    e / C for the others (Szegedy et al., Rethinking the Inception Architecture, sec. 7); the article has 0.
    """
    logits = tf.cast(logits, tf.float32)
    num_classes = tf.shape(logits)[-1]
    one_hot = tf.one_hot(labels, num_classes)
    targets = one_hot * (1 - label_smoothing) + label_smoothing / tf.cast(num_classes, tf.float32)
    return {"crossentropy": tf.nn.softmax_cross_entropy_with_logits(targets, logits)}
