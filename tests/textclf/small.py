"""A small network with weights that are not trained, for tests of what is done with its outputs."""

import keras
import tensorflow as tf

from textclf import tfidf
from textclf.model import textclf

LABELS = ["acq", "earn", "größe", "ship"]
CONFIG = {"article": "textclf", "vocabulary": 30, "width": 8, "tfidf": "normalized", "labels": LABELS}
NEWS = ["bank profit rose", "Profit and bank", "storm and ship", "the ship, the Élan", "dividend of the bank"]


def network(seed=1):
    """(model, vectorize, vocabulary, config)."""
    keras.utils.set_random_seed(seed)
    model = textclf(len(LABELS), CONFIG["vocabulary"], CONFIG["width"])
    model.set_weights([4 * weight + 0.1 for weight in model.get_weights()])
    vocabulary = tfidf.learn([tf.constant(NEWS)], CONFIG["vocabulary"])
    return model, tfidf.make_vectorize(vocabulary, CONFIG["vocabulary"], CONFIG["tfidf"]), vocabulary, CONFIG
