"""The networks: layers of the articles, other sizes, a sigmoid per pixel, the reparameterisation trick."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from autoencoders import model as models
from common.errors import UserError


def layer_sizes(part):
    return [tuple(layer.kernel.shape) for layer in part.layers if hasattr(layer, "kernel")]


def test_layers_are_the_articles():
    dense, conv, vae, conv_vae = (build() for build in models.MODELS.values())
    assert layer_sizes(dense.get_layer("encoder")) == [(784, 128), (128, 64), (64, 64)]
    assert layer_sizes(dense.get_layer("decoder")) == [(64, 64), (64, 128), (128, 784)]
    assert layer_sizes(conv.get_layer("encoder")) == [(3, 3, 1, 16), (3, 3, 16, 8), (3, 3, 8, 8)]
    assert layer_sizes(conv.get_layer("decoder")) == [(3, 3, 8, 8), (3, 3, 8, 8), (3, 3, 8, 16), (3, 3, 16, 1)]
    assert conv.get_layer("decoder").input_shape == (None, 4, 4, 8)
    assert layer_sizes(vae.get_layer("encoder")) == [(784, 128), (128, 2), (128, 2)]
    assert layer_sizes(vae.get_layer("decoder")) == [(2, 128), (128, 784)]
    # Keras's example prints 69,076 and 65,089 for its two halves.
    assert [conv_vae.get_layer(name).count_params() for name in ("encoder", "decoder")] == [69_076, 65_089]


def test_activations_are_the_articles():
    for build in models.MODELS.values():
        model = build()
        for part in ("encoder", "decoder"):
            for layer in model.get_layer(part).layers:
                if hasattr(layer, "kernel"):
                    linear = layer.name in ("z_mean", "z_log_var", "decoder_pixels")
                    assert layer.activation is (keras.activations.linear if linear
                                                else keras.activations.relu), layer.name


@pytest.mark.parametrize("name", list(models.MODELS))
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3), (20, 36, 1), (9, 14, 3), (1, 1, 1)])
def test_any_size_comes_back_as_it_went_in(name, shape):
    model = models.build(name, shape)
    images = np.random.default_rng(0).uniform(size=(2, *shape)).astype(np.float32)
    outputs = model(images, training=False)
    assert outputs["logits"].shape == images.shape
    assert models.code_of(outputs).shape == (2, *model.get_layer("decoder").input_shape[1:])


def test_unpadded_convolution_only_where_it_comes_out():
    """28 = 8 * 4 - 4: 4 -> 8 -> 16 -> 14 -> 28; 32: 4 -> 8 -> 16 -> 16 -> 32; 30 is cut out of 32."""
    for side, padding in ((28, "valid"), (20, "valid"), (32, "same"), (30, "same")):
        decoder = models.conv((side, side, 1)).get_layer("decoder")
        assert decoder.get_layer("decoder_conv_3").padding == padding
        assert any(isinstance(layer, keras.layers.Cropping2D) for layer in decoder.layers) == (side == 30)


@pytest.mark.parametrize("name, latent_dim, code", [("dense", 2, (2,)), ("vae", 5, (5,)), ("conv_vae", 7, (7,)),
                                                    ("conv", 32, (4, 4, 2))])
def test_latent_dim(name, latent_dim, code):
    assert models.build(name, latent_dim=latent_dim).get_layer("decoder").input_shape[1:] == code


@pytest.mark.parametrize("latent_dim", [2, 17])
def test_conv_wants_a_multiple_of_its_cells(latent_dim):
    with pytest.raises(UserError, match=f"multiple of its 4 x 4 cells, such as 128; {latent_dim} came"):
        models.conv(latent_dim=latent_dim)


@pytest.mark.parametrize("name", ["dense", "vae"])
def test_every_pixel_can_be_white(name):
    """The articles' softmax over 784 pixels cannot: its pixels share a sum of 1, 0.0013 each."""
    keras.utils.set_random_seed(0)
    model = models.build(name)
    white = tf.ones([4, 28, 28, 1])
    optimizer = keras.optimizers.Adam(0.01)
    for _ in range(15):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(white, model(white)["logits"]))
        variables = model.get_layer("decoder").trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables))
    pictures = models.probs(model(white)["logits"]).numpy()
    assert pictures.min() > 0.6 and pictures[0].sum() > 400


def test_sample_is_a_linear_function_of_epsilon():
    mean, log_var = np.float32([[1, -2]]), np.log(np.float32([[4, 0.25]]))
    np.testing.assert_allclose(models.sample(mean, log_var, np.float32([[0, 0]])), [[1, -2]], rtol=1e-6)
    np.testing.assert_allclose(models.sample(mean, log_var, np.float32([[3, -2]])), [[1 + 2 * 3, -2 - 0.5 * 2]],
                               rtol=1e-6)
    drawn = models.sample(mean, log_var, np.random.default_rng(0).normal(size=(20_000,
                                                                               2)).astype(np.float32)).numpy()
    np.testing.assert_allclose(drawn.mean(axis=0), [1, -2], atol=0.05)  # 3.5 standard errors
    np.testing.assert_allclose(drawn.std(axis=0), [2, 0.5], rtol=0.02)


def test_forward_decodes_the_sample_and_lets_gradients_through():
    keras.utils.set_random_seed(1)
    model = models.build("vae")
    images = tf.constant(np.random.default_rng(1).uniform(size=(3, 28, 28, 1)).astype(np.float32))
    epsilon = tf.constant([[0.5, -1], [0, 2], [1, 1]], tf.float32)
    with tf.GradientTape() as tape:
        found = models.forward(model, images, epsilon)
        total = tf.reduce_sum(tf.square(found["logits"]))
    expected = found["mean"] + np.exp(found["log_var"] / 2) * epsilon
    np.testing.assert_allclose(found["z"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["logits"], model.get_layer("decoder")(expected), rtol=1e-4, atol=1e-5)
    gradients = tape.gradient(total, [layer.kernel for layer in (model.get_layer("encoder").get_layer(name)
                                                                 for name in
                                                                 ("z_mean", "z_log_var"))])
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)
    np.testing.assert_array_equal(models.forward(model, images)["logits"], model(images)["logits"])
