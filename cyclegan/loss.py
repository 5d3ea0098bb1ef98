"""The losses of generators and discriminators: least squares, cycle and identity.

Article, "Loss Functions". One value per picture; the weights of the parts are applied in train.py.

B batch, H, W picture, h, w patches.
"""

import tensorflow as tf


def gan_loss(logits, is_real):
    """Mean squared distance of all patches [B, h, w, 1] from 1 (real) or 0: [B].

    Least squares (article, `calc_gan_loss`; paper, sec. 4), not the logarithms of the first GANs.
    """
    return tf.reduce_mean(tf.square(logits - (1.0 if is_real else 0.0)), axis=[1, 2, 3])


def mean_absolute(a, b):
    """Mean of |a - b| over the pixels and channels of pictures [B, H, W, 3] in -1..1: [B]."""
    return tf.reduce_mean(tf.abs(a - b), axis=[1, 2, 3])


def cycle_loss(reconstructed, real):
    """How far a picture that went there and back is from what it was: [B] (article, `calc_cycle_loss`)."""
    return mean_absolute(reconstructed, real)


def identity_loss(same, real):
    """How far a generator changes a picture that is of its target domain already: [B] (article,
    `calc_identity_loss`)."""
    return mean_absolute(same, real)


def generator_loss(real, cycled, same, judged):
    """{"gan_a2b", "gan_b2a", "cycle_a", "cycle_b", "identity_a2b", "identity_b2a"}, each [B] and unweighted.

    real: {"a", "b"}, the pictures [B, H, W, 3]. cycled: {"a", "b"}, the same after both generators. same: {"a2b",
    "b2a"}, b through the generator a2b and a through b2a, or {} to go without. judged: {"a2b", "b2a"}, logits of
    discriminator b for a's translation, and of a for b's.
    """
    parts = {"gan_a2b": gan_loss(judged["a2b"], True), "gan_b2a": gan_loss(judged["b2a"], True),
             "cycle_a": cycle_loss(cycled["a"], real["a"]), "cycle_b": cycle_loss(cycled["b"], real["b"])}
    if same:
        parts["identity_a2b"] = identity_loss(same["a2b"], real["b"])
        parts["identity_b2a"] = identity_loss(same["b2a"], real["a"])
    return parts


def discriminator_loss(real, fake):
    """{"discriminator_a", "discriminator_b"}: half of the loss on real and half of that on made-up pictures, [B].

    real, fake: {"a", "b"}: a discriminator's logits of pictures of its domain and of translations into it.
    """
    return {f"discriminator_{side}": 0.5 * (gan_loss(real[side], True) + gan_loss(fake[side], False))
            for side in ("a", "b")}
