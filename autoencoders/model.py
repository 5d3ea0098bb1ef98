"""Autoencoders, plain and variational: an encoder to a code of few numbers, a decoder back to the picture.

Articles: "Generating MNIST images from an autoencoder model in Keras" (`dense`, `conv`) and "Variational
autoencoder (VAE)" (`vae`). `conv_vae` is the network of the Keras documentation's VAE example (Chollet), whose
loss is published.

In: images float32 [B, H, W, C] in 0..1. Out: a dict of float32 tensors, "logits" [B, H, W, C], whose sigmoid is
the picture, and the code: "code" of a plain autoencoder, [B, D] or, of `conv`, [B, h, w, F]; "mean" and "log_var"
[B, D] of a variational one. The whole model decodes the mean, without any random numbers; `forward` samples, for
training. Encoder and decoder are its layers "encoder" and "decoder", Keras models themselves.

B batch, H, W, C picture, D latent_dim, h, w, F code map.
"""

import math

import keras
import tensorflow as tf

from common.errors import UserError

layers = keras.layers


def whole(encoder, decoder, name):
    """The model that stacks an encoder and a decoder (article: "models behave like layers")."""
    images = keras.Input(encoder.input_shape[1:], name="images")
    found = encoder(images)
    return keras.Model(images, {**found, "logits": decoder(code_of(found))}, name=name)


def gaussian(x, latent_dim):
    """Mean and log variance of a normal distribution; the logarithm, so that any number is allowed (article)."""
    return {"mean": layers.Dense(latent_dim, dtype="float32", name="z_mean")(x),
            "log_var": layers.Dense(latent_dim, dtype="float32", name="z_log_var")(x)}


def pixels(x, image_shape):
    """The last dense layer: a logit per pixel and channel.

    The articles take a softmax over all 784 pixels, which makes them share a sum of one; we put a sigmoid on each
    pixel, as the article's convolutional decoder does. It is not part of the network: the loss takes the logits.
    """
    x = layers.Dense(math.prod(image_shape), name="decoder_pixels")(x)
    return layers.Reshape(image_shape, dtype="float32", name="logits")(x)


def crop(x, image_shape):
    """The top left of a map that is larger than the picture; the map itself where it fits."""
    height, width = (have - want for have, want in zip(x.shape[1:3], image_shape))
    return layers.Cropping2D(((0, height), (0, width)))(x) if height or width else x


def dense(image_shape=(28, 28, 1), latent_dim=64):
    """The article's dense autoencoder: 784, 128, 64, 64 and back; any size of picture."""
    images = keras.Input(image_shape)
    x = layers.Flatten()(images)
    x = layers.Dense(128, activation="relu", name="encoder_dense_1")(x)
    x = layers.Dense(64, activation="relu", name="encoder_dense_2")(x)
    x = layers.Dense(latent_dim, activation="relu", dtype="float32", name="encoder_code")(x)
    encoder = keras.Model(images, {"code": x}, name="encoder")

    code = keras.Input([latent_dim])
    x = layers.Dense(64, activation="relu", name="decoder_dense_1")(code)
    x = layers.Dense(128, activation="relu", name="decoder_dense_2")(x)
    decoder = keras.Model(code, pixels(x, image_shape), name="decoder")
    return whole(encoder, decoder, "dense")


def conv(image_shape=(28, 28, 1), latent_dim=None):
    """The article's convolutional autoencoder; its code is a map of 4 x 4 cells with 8 numbers each.

    latent_dim: numbers of the code, a multiple of the cells; None takes 8 a cell. Three poolings halve the sides,
    rounded up, and three upsamplings double them; that this comes out at 28 is because the third 3x3 convolution
    of the decoder is not padded. So it is for sides of 8 k - 4 (4, 12, 20, 28, 36, ...); for others it is padded,
    and the picture is cut out of the larger map.
    """
    height, width, channels = image_shape
    cells = [math.ceil(side / 8) for side in (height, width)]
    filters = 8 if latent_dim is None else latent_dim // math.prod(cells)
    if filters < 1 or latent_dim not in (None, filters * math.prod(cells)):
        raise UserError(f"--latent_dim of conv must be a multiple of its {cells[0]} x {cells[1]} cells, such as "
                        f"{8 * math.prod(cells)}; {latent_dim} came.")
    images = keras.Input(image_shape)
    x = layers.Conv2D(16, 3, padding="same", activation="relu", name="encoder_conv_1")(images)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="encoder_conv_2")(x)
    x = layers.MaxPooling2D(2, padding="same")(x)
    x = layers.Conv2D(filters, 3, padding="same", activation="relu", name="encoder_conv_3")(x)
    x = layers.MaxPooling2D(2, padding="same", dtype="float32", name="encoder_code")(x)
    encoder = keras.Model(images, {"code": x}, name="encoder")

    code = keras.Input([*cells, filters])
    unpadded = height % 8 == width % 8 == 4
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="decoder_conv_1")(code)
    x = layers.UpSampling2D(2)(x)
    x = layers.Conv2D(8, 3, padding="same", activation="relu", name="decoder_conv_2")(x)
    x = layers.UpSampling2D(2)(x)
    x = layers.Conv2D(16, 3, padding="valid" if unpadded else "same", activation="relu", name="decoder_conv_3")(x)
    x = layers.UpSampling2D(2)(x)
    x = layers.Conv2D(channels, 3, padding="same", name="decoder_pixels")(x)
    x = layers.Identity(dtype="float32", name="logits")(crop(x, image_shape))
    return whole(encoder, keras.Model(code, x, name="decoder"), "conv")


def vae(image_shape=(28, 28, 1), latent_dim=2):
    """The article's variational autoencoder: 784, 128, 2 means and log variances, 128, 784; any size."""
    images = keras.Input(image_shape)
    x = layers.Flatten()(images)
    x = layers.Dense(128, activation="relu", name="encoder_dense_1")(x)
    encoder = keras.Model(images, gaussian(x, latent_dim), name="encoder")

    code = keras.Input([latent_dim])
    x = layers.Dense(128, activation="relu", name="decoder_dense_1")(code)
    decoder = keras.Model(code, pixels(x, image_shape), name="decoder")
    return whole(encoder, decoder, "vae")


def conv_vae(image_shape=(28, 28, 1), latent_dim=2):
    """The VAE of the Keras documentation: convolutions of stride 2, a dense layer of 16, transposed convolutions.

    Sides that are no multiple of 4 are rounded up, and the picture is cut out of the larger map.
    """
    height, width, channels = image_shape
    map_shape = (math.ceil(height / 4), math.ceil(width / 4), 64)
    images = keras.Input(image_shape)
    x = layers.Conv2D(32, 3, 2, "same", activation="relu", name="encoder_conv_1")(images)
    x = layers.Conv2D(64, 3, 2, "same", activation="relu", name="encoder_conv_2")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(16, activation="relu", name="encoder_dense")(x)
    encoder = keras.Model(images, gaussian(x, latent_dim), name="encoder")

    code = keras.Input([latent_dim])
    x = layers.Dense(math.prod(map_shape), activation="relu", name="decoder_dense")(code)
    x = layers.Reshape(map_shape)(x)
    x = layers.Conv2DTranspose(64, 3, 2, "same", activation="relu", name="decoder_conv_1")(x)
    x = layers.Conv2DTranspose(32, 3, 2, "same", activation="relu", name="decoder_conv_2")(x)
    x = layers.Conv2DTranspose(channels, 3, padding="same", name="decoder_pixels")(x)
    x = layers.Identity(dtype="float32", name="logits")(crop(x, image_shape))
    return whole(encoder, keras.Model(code, x, name="decoder"), "conv_vae")


MODELS = {"dense": dense, "conv": conv, "vae": vae, "conv_vae": conv_vae}
VARIATIONAL = ("vae", "conv_vae")


def build(name, image_shape=(28, 28, 1), latent_dim=None):
    """The network `name` with random weights; latent_dim None takes the article's."""
    return MODELS[name](tuple(image_shape), **({} if latent_dim is None else {"latent_dim": latent_dim}))


def sample(mean, log_var, epsilon):
    """The reparameterisation trick: a draw of N(mean, exp(log_var)) as a linear function of epsilon ~ N(0, 1)."""
    return mean + tf.exp(0.5 * log_var) * epsilon


def forward(model, images, epsilon=None, training=False):
    """The model's outputs; with epsilon [B, D] the decoder gets a sample of the code, "z", and not its mean."""
    if epsilon is None:
        return model(images, training=training)
    found = model.get_layer("encoder")(images, training=training)
    z = sample(found["mean"], found["log_var"], epsilon)
    return {**found, "z": z, "logits": model.get_layer("decoder")(z, training=training)}


def code_of(outputs):
    """The code that stands for a picture: the mean of a variational autoencoder."""
    return outputs["mean"] if "mean" in outputs else outputs["code"]


def probs(logits):
    """Pictures in 0..1 from logits."""
    return tf.sigmoid(logits)
