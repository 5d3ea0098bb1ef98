"""The layers of the zoo against Keras's, alone and on two replicas."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.layers import BatchNormalization, Conv2D, InstanceNormalization

# Both compute the same sums in another order; the numbers are about 1, float32 has 1.2e-7 of that.
FLOAT32 = 1e-5
# bfloat16 keeps 8 bits: a value of 4 is rounded by up to 2**-7, in the input and once more in the output.
BFLOAT16 = 2.0 ** -5


def data(shape, seed=0):
    """Values whose channels differ in mean and spread."""
    draws = np.random.default_rng(seed).normal(size=shape)
    channels = np.arange(shape[-1])
    return (draws * (0.5 + 0.3 * channels) + channels - 1).astype(np.float32)


def pair(shape, dtype=None, momentum=0.9, epsilon=1e-3):
    """Our layer and Keras's with the same scale and offset, which are not 1 and 0."""
    layers = []
    for layer in (BatchNormalization(momentum, epsilon, dtype=dtype),
                  keras.layers.BatchNormalization(momentum=momentum, epsilon=epsilon, dtype=dtype)):
        layer.build((None, *shape[1:]))
        layer.gamma.assign(np.linspace(0.5, 2, shape[-1]))
        layer.beta.assign(np.linspace(-1, 1, shape[-1]))
        layers.append(layer)
    return layers


def close(a, b, tolerance=FLOAT32):
    a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(4, 5, 6, 3), (8, 3), (4, 7, 3), (2, 3, 4, 5, 3), (1, 2, 1, 3)])
def test_equals_keras_in_training_and_inference(shape):
    ours, theirs = pair(shape)
    for step in range(3):
        x = data(shape, step)
        close(ours(x, training=True), theirs(x, training=True))
        close(ours.moving_mean, theirs.moving_mean)
        close(ours.moving_variance, theirs.moving_variance)
    close(ours(x), theirs(x))
    close(ours(x, training=False), theirs(x, training=False))
    assert ours(x).shape == shape


def test_moving_variance_is_the_biased_one():
    layer = BatchNormalization(momentum=0.0)
    layer(np.array([[[[1.0]], [[3.0]]]], np.float32), training=True)
    close(layer.moving_mean, [2.0])
    close(layer.moving_variance, [1.0])                                    # the unbiased variance would be 2


@pytest.mark.parametrize("dtype,tolerance", [("mixed_bfloat16", BFLOAT16), ("mixed_float16", 2.0 ** -8)])
def test_half_precision(dtype, tolerance):
    shape = (8, 6, 6, 4)
    ours, theirs = pair(shape, dtype)
    x = tf.cast(data(shape), dtype.removeprefix("mixed_"))
    y = ours(x, training=True)
    assert y.dtype == x.dtype
    close(y, theirs(x, training=True), 2 * tolerance)
    close(ours(x), theirs(x), 2 * tolerance)
    assert all(weight.dtype == "float32" for weight in ours.weights)
    # Our statistics are sums in float32, whatever the input has.
    close(ours.moving_mean, 0.1 * np.mean(np.asarray(x, np.float32), (0, 1, 2)))
    close(ours.moving_variance, 0.9 + 0.1 * np.var(np.asarray(x, np.float32), (0, 1, 2)))


def gradients(layer, x, weight):
    """d sum(weight * layer(x)) with respect to x, gamma and beta."""
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(weight * layer(x, training=True))
    return tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])


def test_gradients_equal_keras():
    shape = (4, 5, 6, 3)
    ours, theirs = pair(shape)
    x, weight = data(shape), data(shape, 1)
    for a, b in zip(gradients(ours, x, weight), gradients(theirs, x, weight)):
        close(a, b, 1e-4)                                                  # sums of 120 terms of about 1


def test_frozen_layer_uses_the_moving_statistics():
    ours, _ = pair((4, 5, 6, 3))
    ours.moving_mean.assign([1.0, 2.0, 3.0])
    ours.moving_variance.assign([4.0, 5.0, 6.0])
    ours.trainable = False
    x = data((4, 5, 6, 3))
    expected = (x - [1, 2, 3]) / np.sqrt(np.array([4, 5, 6]) + 1e-3) * [0.5, 1.25, 2] + [-1, 0, 1]
    close(ours(x, training=True), expected)
    close(ours.moving_mean, [1, 2, 3])
    assert ours.trainable_variables == []


def test_config_and_saving(tmp_path):
    layer = BatchNormalization(momentum=0.7, epsilon=1e-4, synchronized=False, name="norm")
    again = BatchNormalization.from_config(layer.get_config())
    assert again.get_config() == layer.get_config()
    assert (again.momentum, again.epsilon, again.synchronized, again.name) == (0.7, 1e-4, False, "norm")

    inputs = keras.Input([None, None, 3])
    model = keras.Model(inputs, BatchNormalization()(inputs))
    assert model.output_shape == (None, None, None, 3)
    x = data((2, 4, 4, 3))
    model(x, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded(x), model(x))
    flat = keras.Input([7])
    assert BatchNormalization()(flat).shape == (None, 7)


def on_two_replicas(strategy, halves, weights, synchronized):
    """(outputs, input gradients, summed scale and offset gradients, moving statistics of each replica)."""
    with strategy.scope():
        layer = BatchNormalization(0.9, 1e-3, synchronized=synchronized)
        layer.build((None, *halves[0].shape[1:]))
        layer.gamma.assign(np.linspace(0.5, 2, halves[0].shape[-1]))
        layer.beta.assign(np.linspace(-1, 1, halves[0].shape[-1]))

    def per_replica(values):
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(values[context.replica_id_in_sync_group]))

    @tf.function
    def run(x, weight):
        def step(x, weight):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x, training=True)
                loss = tf.reduce_sum(weight * y)
            return y, tape.gradient(loss, [x, *layer.trainable_variables])
        return strategy.run(step, (x, weight))

    outputs, grads = run(per_replica(halves), per_replica(weights))
    local = strategy.experimental_local_results
    outputs, dx, dgamma, dbeta = (local(value) for value in (outputs, *grads))
    moving = [[copy.numpy() for copy in local(weight.value)]
              for weight in (layer.moving_mean, layer.moving_variance)]
    return np.concatenate(outputs), np.concatenate(dx), (sum(dgamma), sum(dbeta)), moving


def test_two_synchronized_replicas_equal_one(two_replicas):
    shape = (6, 4, 5, 3)
    x, weight = data(shape), data(shape, 1)
    single, _ = pair(shape)
    expected_dx, *expected_params = gradients(single, x, weight)           # moves the statistics once
    mean, variance = single.moving_mean.numpy(), single.moving_variance.numpy()
    # Halves of different sizes: the statistics weigh every value alike.
    parts = [slice(0, 2), slice(2, 6)]
    y, dx, params, moving = on_two_replicas(
        two_replicas, [x[part] for part in parts], [weight[part] for part in parts], True)
    close(y, single(x, training=True))
    close(dx, expected_dx, 1e-4)
    for ours, expected in zip(params, expected_params):
        close(ours, expected, 1e-4)
    for copies, expected in zip(moving, (mean, variance)):
        np.testing.assert_array_equal(copies[0], copies[1])
        close(copies[0], expected)


def test_unsynchronized_replicas_share_averaged_statistics(two_replicas):
    halves = [data((2, 4, 5, 3)), data((2, 4, 5, 3), 1) * 3 + 5]
    y, _, _, moving = on_two_replicas(two_replicas, halves, halves, False)
    for half, output in zip(halves, np.split(y, 2)):
        alone, _ = pair((2, 4, 5, 3))
        close(output, alone(half, training=True))
    means = np.mean([half.mean((0, 1, 2)) for half in halves], 0)
    variances = np.mean([half.var((0, 1, 2)) for half in halves], 0)
    for copies, start, batch in zip(moving, (0.0, 1.0), (means, variances)):
        np.testing.assert_array_equal(copies[0], copies[1])
        close(copies[0], 0.9 * start + 0.1 * batch)


@pytest.mark.parametrize("options", [
    {"kernel_size": 1}, {"kernel_size": 1, "use_bias": False}, {"kernel_size": 1, "activation": "relu"},
    {"kernel_size": 1, "strides": 2}, {"kernel_size": 1, "groups": 2}, {"kernel_size": 3, "padding": "same"}],
    ids=str)
def test_convolution_equals_keras_with_its_gradients(options):
    x = tf.constant(data((2, 5, 7, 4)))
    ours, theirs = Conv2D(6, **options), keras.layers.Conv2D(6, **options)
    results = []
    for layer in (ours, theirs):
        layer.build(x.shape)
        layer.set_weights([data(weight.shape, seed) for seed, weight in enumerate(layer.weights)])
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            total = tf.reduce_sum(y * data(y.shape, 9))
        results.append([y, *tape.gradient(total, [x, *layer.trainable_variables])])
    for one, other in zip(*results, strict=True):
        close(one / 10, other / 10)                                        # sums of up to 70 products of about 1


def test_convolution_is_a_product_where_it_is_pointwise():
    def operations(kernel_size):
        layer = Conv2D(3, kernel_size)
        function = tf.function(layer, input_signature=[tf.TensorSpec([None, None, None, 2])])
        return {operation.type for operation in function.get_concrete_function().graph.get_operations()}

    assert "MatMul" in operations(1) and "Conv2D" not in operations(1)
    assert "Conv2D" in operations(3) and "MatMul" not in operations(3)


def instance_pair(channels, dtype=None):
    """Our layer and Keras's with the same scale and offset, which are not 1 and 0."""
    pair = InstanceNormalization(dtype=dtype), keras.layers.GroupNormalization(groups=-1, epsilon=1e-5, dtype=dtype)
    for layer in pair:
        layer.build((None, None, None, channels))
        layer.gamma.assign(np.linspace(0.5, 2, channels))
        layer.beta.assign(np.linspace(-1, 1, channels))
    return pair


@pytest.mark.parametrize("shape", [(3, 5, 6, 4), (1, 7, 2, 3), (2, 2, 2, 1)])
def test_instance_normalisation_equals_keras_with_its_gradients(shape):
    """On the fused kernel (training) and as plain arithmetic, of a known and of an unknown batch."""
    ours, theirs = instance_pair(shape[-1])
    x, weight = data(shape), data(shape, 1)
    x[0] = 4 * x[0] + 9                                                    # pictures do not share statistics
    any_batch = tf.function(ours, input_signature=[tf.TensorSpec([None, None, None, shape[-1]])])
    for y in (ours(x, training=True), ours(x), any_batch(x)):
        close(y, theirs(x), 3e-5)                                          # of a mean of 9 float32 keeps less
    for a, b in zip(gradients(ours, x, weight), gradients(theirs, x, weight)):
        close(a, b, 2e-4)

    def plain(layer, x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(weight * layer(x))
        return tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])

    for a, b in zip(plain(ours, tf.constant(x)), gradients(theirs, x, weight)):
        close(a, b, 2e-4)


def test_instance_normalisation_by_hand():
    layer = InstanceNormalization(epsilon=0.0)
    x = np.array([[[[1.0], [3.0]]], [[[10.0], [50.0]]]], np.float32)
    for training in (True, False):
        close(layer(x, training=training)[..., 0], [[[-1, 1]], [[-1, 1]]])
    same = InstanceNormalization()
    np.testing.assert_array_equal(same(np.full([1, 3, 3, 2], 7, np.float32), training=True), np.zeros([1, 3, 3, 2]))
    assert InstanceNormalization.from_config(layer.get_config()).epsilon == 0.0


@pytest.mark.parametrize("dtype, tolerance", [("mixed_bfloat16", BFLOAT16), ("mixed_float16", 2.0 ** -8)])
def test_instance_normalisation_in_half_precision(dtype, tolerance):
    ours, theirs = instance_pair(4, dtype)
    x = tf.cast(data((2, 6, 6, 4)), dtype.removeprefix("mixed_"))
    for y in (ours(x, training=True), ours(x)):
        assert y.dtype == x.dtype
        close(y, theirs(x), 2 * tolerance)
    assert all(weight.dtype == "float32" for weight in ours.weights)


def test_instance_normalisation_is_fused_in_training():
    layer, _ = instance_pair(2)

    def operations(training, batch):
        function = tf.function(lambda x: layer(x, training=training),
                               input_signature=[tf.TensorSpec([batch, 4, 4, 2])])
        return [operation.type for operation in function.get_concrete_function().graph.get_operations()]

    assert operations(True, 2).count("FusedBatchNormV3") == 2
    assert "FusedBatchNormV3" not in operations(False, 2) + operations(True, None)
