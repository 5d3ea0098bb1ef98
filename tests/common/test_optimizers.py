"""The fused optimizers against Keras's, step by step, on one replica and on two."""

import importlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import optimizers, training

PAIRS = [
    (keras.optimizers.AdamW, optimizers.AdamW, {"weight_decay": 0.1}),
    (keras.optimizers.AdamW, optimizers.AdamW, {"weight_decay": 0.0, "beta_1": 0.5, "epsilon": 0.1}),
    (keras.optimizers.SGD, optimizers.SGD, {"momentum": 0.9}),
    (keras.optimizers.SGD, optimizers.SGD, {"momentum": 0.9, "nesterov": True}),
]


def trajectory(optimizer_class, options, strategy, steps=6):
    """The values of a kernel and a bias after each step; the gradients are the same for every optimizer."""
    rng = np.random.default_rng(0)
    start = [rng.normal(size=[3, 4]).astype(np.float32), rng.normal(size=[4]).astype(np.float32)]
    gradients = tf.constant(rng.normal(size=[steps, 16]).astype(np.float32))
    with strategy.scope():
        kernel = keras.Variable(start[0], name="kernel")
        bias = keras.Variable(start[1], name="bias")
        rate = training.schedule("cosine", 0.05, steps, warmup_steps=2)
        optimizer = optimizer_class(rate, **options)
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        optimizer.build([kernel, bias])
    share = 1 / strategy.num_replicas_in_sync

    @tf.function
    def step(gradient):
        def replica_step(gradient):
            pair = tf.reshape(gradient[:12], [3, 4]) * share, gradient[12:] * share
            optimizer.apply_gradients(zip(pair, [kernel, bias]))
        strategy.run(replica_step, args=(gradient,))

    values = []
    for gradient in gradients:
        step(gradient)
        values.append(np.concatenate([kernel.numpy().ravel(), bias.numpy()]))
    return np.array(values), [variable.name for variable in optimizer.variables]


@pytest.mark.parametrize("theirs, ours, options", PAIRS)
def test_updates_equal_those_of_keras(theirs, ours, options, two_replicas):
    one = tf.distribute.get_strategy()
    expected, names = trajectory(theirs, options, one)
    assert np.abs(np.diff(expected, axis=0)).max() > 1e-3
    for strategy in (one, two_replicas):
        found, our_names = trajectory(ours, options, strategy)
        np.testing.assert_allclose(found, expected, rtol=2e-6, atol=1e-6)  # rounding of six float32 updates
        assert our_names == names


def darknet_step(weights, updates, gradient, *, rate, momentum, decay, batch):
    """One update of a kernel as update_convolutional_layer of Darknet has it: `updates` gathers minus the gradient,
    summed over the batch, and is what the momentum keeps."""
    updates = updates - batch * gradient
    updates = updates - decay * batch * weights
    weights = weights + rate / batch * updates
    return weights, updates * momentum


def test_sgd_decays_as_darknet_does():
    rng = np.random.default_rng(1)
    start, gradients = rng.normal(size=[3, 4]), rng.normal(size=[5, 3, 4])
    kernel, bias = keras.Variable(start, name="kernel"), keras.Variable(start[0], name="bias")
    optimizer = optimizers.SGD(0.1, momentum=0.9, weight_decay=0.2)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    expected, updates = {"kernel": start, "bias": start[0]}, {"kernel": 0.0, "bias": 0.0}
    for gradient in gradients:
        optimizer.apply([tf.constant(gradient, tf.float32), tf.constant(gradient[0], tf.float32)], [kernel, bias])
        for name, part, decay in (("kernel", gradient, 0.2), ("bias", gradient[0], 0.0)):
            expected[name], updates[name] = darknet_step(
                expected[name], updates[name], part, rate=0.1, momentum=0.9, decay=decay, batch=64)
    np.testing.assert_allclose(kernel.numpy(), expected["kernel"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(bias.numpy(), expected["bias"], rtol=1e-5, atol=1e-6)


def test_two_thousand_steps_without_a_gradient_shrink_a_kernel_by_a_hundredth():
    """Darknet's rate 1e-3, momentum 0.9 and decay 5e-4: 1 - exp(-2000 * 1e-3 / (1 - 0.9) * 5e-4) = 0.00995; the first
    steps, while the momentum builds up, take a little of it. Decay beside the momentum would leave 0.001."""
    kernel = keras.Variable(np.ones([4], np.float32), name="kernel")
    optimizer = optimizers.SGD(1e-3, momentum=0.9, weight_decay=5e-4)
    optimizer.build([kernel])

    @tf.function
    def steps():
        for _ in tf.range(2000):
            optimizer.apply([tf.zeros([4])], [kernel])

    steps()
    np.testing.assert_allclose(1 - kernel.numpy(), 9.9e-3, rtol=0.01)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_neither_loss_scale_nor_clipping_nor_replicas_touch_the_decay(clip_norm, two_replicas):
    """Three steps of gradients of norm 8, of which clipping leaves 1; the decay is that of the whole kernel, once."""
    with two_replicas.scope():
        kernel = keras.Variable(np.full([4, 4], 3.0, np.float32), name="kernel")
        optimizer = optimizers.in_precision(optimizers.SGD(0.1, momentum=0.9, weight_decay=0.2), "mixed_float16")
        optimizer.build([kernel])

    @tf.function
    def step():
        def replica_step():
            gradients = [tf.fill([4, 4], optimizer.scale_loss(2.0) / 2)]
            if clip_norm:
                gradients = training.clip_by_global_norm(gradients, clip_norm * optimizer.dynamic_scale)
            optimizer.apply_gradients(zip(gradients, [kernel]))
        two_replicas.run(replica_step)

    expected, updates, gradient = 3.0, 0.0, 2.0 / 8.0 if clip_norm else 2.0
    for _ in range(3):
        step()
        expected, updates = darknet_step(expected, updates, gradient, rate=0.1, momentum=0.9, decay=0.2, batch=64)
    np.testing.assert_allclose(kernel.numpy(), expected, rtol=1e-5)


def test_a_saved_configuration_builds_the_same_optimizer():
    optimizer = optimizers.AdamW(0.01, weight_decay=0.2)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(copy, optimizers.AdamW) and copy.weight_decay == pytest.approx(0.2)


def article_optimizer(article):
    """The optimizer of an article's train.py in mixed_float16."""
    train = importlib.import_module(f"{article}.train")
    config = {**train.DEFAULTS, "precision": "mixed_float16", "learning_rate": 0.1, "warmup_steps": 0,
              "schedule": "constant", "weight_decay": 0.0}
    steps_per_epoch = [10] if article == "ssd" else []
    return train.make_optimizer(config, 100, *steps_per_epoch)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
@pytest.mark.parametrize("article", ["autoencoders", "cyclegan", "hourglass", "ssd", "textclf", "yolov1", "yolov3"])
def test_an_overflow_on_any_replica_passes_over_the_step_on_all(article, clip_norm, two_replicas):
    """Infinity in the gradients of the second replica alone: the weights stay and the loss scale halves."""
    with two_replicas.scope():
        kernel = keras.Variable(np.ones([2, 2], np.float32), name="kernel")
        optimizer = article_optimizer(article)
        optimizer.build([kernel])

    @tf.function
    def step(bad_replica):
        def replica_step():
            replica = tf.distribute.get_replica_context().replica_id_in_sync_group
            value = tf.where(tf.equal(replica, bad_replica), np.inf, optimizer.scale_loss(1.0))
            gradients = [tf.fill([2, 2], value)]
            if clip_norm:
                gradients = training.clip_by_global_norm(gradients, clip_norm * optimizer.dynamic_scale)
            optimizer.apply_gradients(zip(gradients, [kernel]))
        two_replicas.run(replica_step)

    scale = float(optimizer.dynamic_scale.numpy())
    for bad_replica in (1, 0):
        step(bad_replica)
        scale /= 2
        for weights in two_replicas.experimental_local_results(kernel.value):
            np.testing.assert_array_equal(weights, 1.0)
        assert float(optimizer.dynamic_scale.numpy()) == scale and int(optimizer.iterations.numpy()) == 0
    step(-1)
    copies = [weights.numpy() for weights in two_replicas.experimental_local_results(kernel.value)]
    np.testing.assert_array_equal(*copies)
    assert np.isfinite(copies[0]).all() and (copies[0] != 1).all() and int(optimizer.iterations.numpy()) == 1
