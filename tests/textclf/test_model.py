"""The article's network and loss."""

import keras
import numpy as np
import tensorflow as tf

from textclf.loss import categorical_crossentropy
from textclf.model import probabilities, textclf


def test_the_articles_summary():
    """Layers and parameters as the article prints them: 5,120,512 + 4,104 = 5,124,616."""
    model = textclf(8)
    counts = {layer.name: layer.count_params() for layer in model.layers if layer.count_params()}
    assert counts == {"dense_1": 5_120_512, "dense_2": 4_104} and model.count_params() == 5_124_616
    names = [layer.name for layer in model.layers]
    assert names == ["rows", "dense_1", "activation_1", "dense_2", "logits"]
    assert model.input_shape == (None, 10_000) and model.output_shape == (None, 8)


def test_forward_pass_by_hand():
    model = textclf(2, vocabulary=3, width=2)
    model.set_weights([np.float32([[1, -1], [0, 2], [3, 0]]), np.float32([0, 1]),
                       np.float32([[1, 0], [0.5, -1]]), np.float32([0, 0.25])])
    logits = model(np.float32([[1, 0, 2], [0, -1, 0]]))            # hidden: (7, 0 of relu(0)), (0, 0 of relu(-1))
    np.testing.assert_allclose(logits, [[7, 0.25], [0, 0.25]])
    expected = [1 / (1 + np.exp(0.25)), 1 / (1 + np.exp(-0.25))]
    np.testing.assert_allclose(probabilities(logits)[1], expected, rtol=1e-6)


def test_loss_by_hand_and_against_keras():
    logits = np.log(np.float32([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
    found = categorical_crossentropy(np.array([0, 1]), logits)["crossentropy"]
    np.testing.assert_allclose(found, -np.log([0.7, 0.25]), rtol=1e-6)
    smoothed = categorical_crossentropy(np.array([0, 1]), logits, label_smoothing=0.3)["crossentropy"]
    expected = -(0.8 * np.log(0.7) + 0.1 * np.log(0.2) + 0.1 * np.log(0.1))
    np.testing.assert_allclose(smoothed[0], expected, rtol=1e-6)
    theirs = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.3, reduction="none")
    np.testing.assert_allclose(smoothed, theirs(tf.one_hot([0, 1], 3), logits), rtol=1e-6)
