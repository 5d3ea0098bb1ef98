"""The losses: binary cross-entropy, and for variational autoencoders the Kullback-Leibler divergence of the code.

Article, "Defining a loss function". Sums over pixels and over the numbers of the code, one value per picture, in
nats.

B batch, H, W, C picture, D latent_dim, K samples of a code.
"""

import math

import tensorflow as tf


def reconstruction_loss(images, logits):
    """Binary cross-entropy of pictures in 0..1, [B, H, W, C] both, summed over the pixels: [B].

    The article's `binary_crossentropy(inputs, outputs) * original_dim`: Keras's function is the mean over 784
    pixels. For a gray pixel it is smallest, and not zero, where the output equals it.
    """
    entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=images, logits=logits)
    return tf.reduce_sum(entropy, axis=[1, 2, 3])


def kl_divergence(mean, log_var):
    """KL(N(mean, exp(log_var)) || N(0, 1)), [B, D] both, summed over D: [B].

    -1/2 sum(1 + log var - mean^2 - var); the article's last formula leaves the bracket of the minus out.
    """
    return -0.5 * tf.reduce_sum(1 + log_var - tf.square(mean) - tf.exp(log_var), axis=-1)


def autoencoder_loss(images, outputs):
    """{"reconstruction": [B]}; outputs as `model.forward` returns them, images the clean ones."""
    return {"reconstruction": reconstruction_loss(images, outputs["logits"])}


def vae_loss(images, outputs):
    """{"reconstruction": [B], "kl": [B]}: their sum is minus the evidence lower bound (ELBO), from one sample."""
    return {"reconstruction": reconstruction_loss(images, outputs["logits"]),
            "kl": kl_divergence(outputs["mean"], outputs["log_var"])}


def log_normal(x, mean, log_var):
    """Log density of N(mean, exp(log_var)), independent in the last axis, which is summed over."""
    each = math.log(2 * math.pi) + log_var + tf.square(x - mean) * tf.exp(-log_var)
    return -0.5 * tf.reduce_sum(each, axis=-1)


def log_weights(log_likelihood, z, mean, log_var):
    """log p(x|z) + log p(z) - log q(z|x) with the prior p(z) = N(0, 1) and q = N(mean, exp(log_var)).

    log_likelihood [K, B]; z [K, B, D] drawn from q; mean, log_var [B, D]. Returns [K, B].
    """
    return log_likelihood + log_normal(z, 0.0, tf.zeros_like(z)) - log_normal(z, mean, log_var)


def importance_bound(weights):
    """The importance-weighted lower bound of log p(x) from `log_weights` [K, B]: log of their mean, [B].

    Burda, Grosse, Salakhutdinov, "Importance Weighted Autoencoders", 2016, eq. 8. With K = 1 it is the ELBO.
    """
    return tf.reduce_logsumexp(weights, axis=0) - math.log(weights.shape[0])
