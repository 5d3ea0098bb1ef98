"""The fused optimizers against Keras's, step by step, on one replica and on two."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import optimizers, training

PAIRS = [
    (keras.optimizers.AdamW, optimizers.AdamW, {"weight_decay": 0.1}),
    (keras.optimizers.AdamW, optimizers.AdamW, {"weight_decay": 0.0, "beta_1": 0.5, "epsilon": 0.1}),
    (keras.optimizers.SGD, optimizers.SGD, {"weight_decay": 0.1, "momentum": 0.9}),
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


def test_a_saved_configuration_builds_the_same_optimizer():
    optimizer = optimizers.AdamW(0.01, weight_decay=0.2)
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    assert isinstance(copy, optimizers.AdamW) and copy.weight_decay == pytest.approx(0.2)
