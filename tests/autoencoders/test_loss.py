"""The losses against numbers worked out by hand, NumPy, torch.distributions, and a case with a known answer."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from autoencoders import evaluate
from autoencoders import loss as losses
from autoencoders.model import build


def normals(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_reconstruction_by_hand():
    """White where 1/4 was said: log 4. Black where 1/4 was said: log 4/3. Gray 0.5 at 0.5: log 2."""
    logit = math.log(1 / 3)
    images = np.float32([1, 0, 0.5, 0]).reshape(1, 2, 2, 1)
    logits = np.float32([logit, logit, 0, -100]).reshape(1, 2, 2, 1)
    expected = math.log(4) + math.log(4 / 3) + math.log(2)
    np.testing.assert_allclose(losses.reconstruction_loss(images, logits), [expected], rtol=1e-6)


def test_reconstruction_is_keras_times_784():
    """`binary_crossentropy(inputs, outputs) * original_dim` of the article."""
    images = np.random.default_rng(0).uniform(size=(3, 28, 28, 1)).astype(np.float32)
    logits = normals(1, 3, 28, 28, 1)
    mean = keras.losses.binary_crossentropy(images.reshape(3, 784), 1 / (1 + np.exp(-logits.reshape(3, 784))))
    np.testing.assert_allclose(losses.reconstruction_loss(images, logits), 784 * mean, rtol=1e-5)


def test_kl_by_hand():
    """N(0, 1): 0. N(2, 1): 4 / 2. N(0, e^2): (e^2 - 1 - 2) / 2."""
    mean, log_var = np.float32([[0, 0], [2, 0], [0, 0]]), np.float32([[0, 0], [0, 0], [2, 0]])
    np.testing.assert_allclose(losses.kl_divergence(mean, log_var), [0, 2, (math.e**2 - 3) / 2], rtol=1e-6)


def test_kl_against_torch():
    torch = pytest.importorskip("torch")
    mean, log_var = normals(0, 5, 7), normals(1, 5, 7)
    ours = losses.kl_divergence(mean, log_var)
    distribution = torch.distributions.Normal(torch.tensor(mean), torch.tensor(log_var / 2).exp())
    theirs = torch.distributions.kl_divergence(distribution, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)
    assert (ours.numpy() > 0).all()


def test_vae_loss_is_the_article_s_formula():
    """In NumPy, as the article writes it: reconstruction * original_dim - 0.5 sum(1 + log var - mean^2 - var)."""
    images = np.random.default_rng(0).uniform(size=(2, 28, 28, 1)).astype(np.float32)
    outputs = {"logits": normals(1, 2, 28, 28, 1), "mean": normals(2, 2, 2), "log_var": normals(3, 2, 2)}
    probs = 1 / (1 + np.exp(-outputs["logits"].astype(np.float64)))
    entropy = -(images * np.log(probs) + (1 - images) * np.log(1 - probs)).reshape(2, 784).mean(axis=1) * 784
    kl = -0.5 * np.sum(1 + outputs["log_var"] - outputs["mean"] ** 2 - np.exp(outputs["log_var"]), axis=-1)
    parts = losses.vae_loss(images, outputs)
    np.testing.assert_allclose(parts["reconstruction"], entropy, rtol=1e-5)
    np.testing.assert_allclose(parts["kl"], kl, rtol=1e-4)
    plain = losses.autoencoder_loss(images, outputs)
    assert set(plain) == {"reconstruction"}
    np.testing.assert_array_equal(plain["reconstruction"], parts["reconstruction"])


def test_log_normal_against_torch():
    torch = pytest.importorskip("torch")
    x, mean, log_var = normals(0, 4, 3), normals(1, 4, 3), normals(2, 4, 3)
    theirs = torch.distributions.Normal(torch.tensor(mean),
                                        torch.tensor(log_var / 2).exp()).log_prob(torch.tensor(x))
    np.testing.assert_allclose(losses.log_normal(x, mean, log_var), theirs.sum(-1).numpy(), rtol=1e-5)


def test_importance_bound_of_a_linear_gaussian():
    """z ~ N(0, 1), x ~ N(w z, s^2): p(x) = N(0, w w' + s^2), whatever was taken for q.

    With the true posterior for q every weight is p(x) itself. With a wrong q one sample gives the ELBO, log p(x)
    minus the KL divergence of q from the posterior; many samples come close to log p(x), and never above it on
    average.
    """
    w, s, x = np.array([1.5, -0.7]), 0.8, np.array([[0.4, 1.1], [-2.0, 0.3]])
    covariance = np.outer(w, w) + s**2 * np.eye(2)
    truth = np.array([-0.5 * (row @ np.linalg.solve(covariance,
                                                    row) + np.linalg.slogdet(2 * np.pi * covariance)[1])
                      for row in x])
    variance = 1 / (1 + w @ w / s**2)
    posterior = (x @ w / s**2 * variance)[:, None]

    def bound(mean, log_var, samples):
        mean, log_var = (tf.constant(value, tf.float64) for value in (mean, log_var))
        z = mean + tf.exp(log_var / 2) * np.random.default_rng(0).normal(size=(samples, 2, 1))
        residual = (x - z * w) / s
        likelihood = -0.5 * tf.reduce_sum(residual**2 + math.log(2 * math.pi * s**2), axis=-1)
        return losses.log_weights(likelihood, z, mean, log_var)

    exact = losses.importance_bound(bound(posterior, np.full([2, 1], math.log(variance)), 3))
    np.testing.assert_allclose(exact, truth, rtol=1e-9)

    wrong_mean, wrong_log_var = posterior + 0.3, np.full([2, 1], math.log(2 * variance))
    weights = bound(wrong_mean, wrong_log_var, 20_000)
    gap = 0.5 * (2 + 0.3**2 / variance - 1 - math.log(2))
    elbo = tf.reduce_mean(weights, axis=0)
    np.testing.assert_allclose(elbo, truth - gap, atol=0.03)                 # standard error 0.008
    np.testing.assert_allclose(losses.importance_bound(weights), truth, atol=0.02)
    groups = tf.transpose(tf.reshape(weights, [4000, 5, 2]), [1, 0, 2])
    few = np.mean(losses.importance_bound(tf.reshape(groups, [5, -1])).numpy().reshape(4000, 2), axis=0)
    assert (elbo.numpy() < few).all() and (few < truth).all()


def test_importance_bound_of_a_network_against_numpy():
    """The whole of `evaluate.make_importance`: a NumPy twin with the same random numbers, one by one."""
    keras.utils.set_random_seed(0)
    model = build("vae", (4, 5, 1), 3)
    images = np.random.default_rng(0).uniform(size=(2, 4, 5, 1)).astype(np.float32)
    ours = evaluate.make_importance(model, 12, seed=9)(images, images, tf.constant([20, 21], tf.int64)).numpy()

    found = {name: value.numpy().astype(np.float64) for name, value in model(images).items()}
    epsilon = tf.random.stateless_normal([2, 12, 3], [9, 20 * 12]).numpy()
    std = np.exp(found["log_var"] / 2)
    for i in range(2):
        terms = []
        for k in range(12):
            z = found["mean"][i] + std[i] * epsilon[i, k]
            logits = model.get_layer("decoder")(z[None].astype(np.float32)).numpy()[0].astype(np.float64)
            probs = 1 / (1 + np.exp(-logits))
            likelihood = np.sum(images[i] * np.log(probs) + (1 - images[i]) * np.log(1 - probs))
            prior = np.sum(-0.5 * z**2 - 0.5 * np.log(2 * np.pi))
            q = np.sum(-0.5 * epsilon[i, k] ** 2 - 0.5 * np.log(2 * np.pi) - np.log(std[i]))
            terms.append(likelihood + prior - q)
        assert ours[i] == pytest.approx(np.log(np.mean(np.exp(terms))), abs=1e-4)
