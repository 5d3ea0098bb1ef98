"""The article's network: tf-idf rows in, a logit for each category out.

Article: *A simple natural language category classifier with Keras*. Dense(512, input_dim=10000), relu, Dense(8),
softmax: 5,124,616 parameters. The softmax is left to the loss and to `probabilities`, which need the logits.

    rows    float32 [B, V], a column per word of the vocabulary (tfidf.py), at least 0; V = 10,000 in the article
    logits  float32 [B, C], any real numbers; C = 8 in the article

B batch, V vocabulary, C categories.
"""

import keras
import tensorflow as tf


def textclf(num_classes, vocabulary=10_000, width=512):
    """The network of the article's summary: dense_1, activation_1, dense_2."""
    rows = keras.Input([vocabulary], name="rows")
    x = keras.layers.Dense(width, name="dense_1")(rows)                                   # [B, 512]
    x = keras.layers.Activation("relu", name="activation_1")(x)
    x = keras.layers.Dense(num_classes, name="dense_2")(x)                                # [B, C]
    logits = keras.layers.Activation("linear", dtype="float32", name="logits")(x)
    return keras.Model(rows, logits, name="textclf")


def probabilities(logits):
    """The article's last activation: softmax, [B, C] -> [B, C], each row sums to 1."""
    return tf.nn.softmax(logits)
