"""The same checks over every model of the zoo; a new model is one more row of MODELS.

Each builds, has exactly the parameters of its source, traces once, takes a batch of any size, gives the same
on two replicas as on one, saves and comes back equal. Narrow variants stand in where the size does not
matter.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from autoencoders import model as autoencoders
from cyclegan import model as cyclegan
from hourglass import model as hourglass
from ssd import model as ssd
from textclf import model as textclf
from yolov1 import model as yolov1
from yolov3 import model as yolov3


class Case(NamedTuple):
    """`build` and `counts` are of full size, `small` and `input_shape` of a variant that runs at once."""

    build: Callable
    counts: dict                     # arguments of build -> (trainable, all) parameters
    small: Callable
    input_shape: tuple               # of one picture


MODELS = {
    # Counts: the weight files that belong to Darknet's cfg files (yolov3.weights has 62,001,757 values).
    "yolov3": Case(
        yolov3.yolov3, {(80,): (61_949_149, 62_001_757), (20,): (61_626_049, 61_678_657)},
        functools.partial(yolov3.yolov3, 2, width=1 / 16), (64, 96, 3)),
    "yolov3_tiny": Case(
        yolov3.yolov3_tiny, {(80,): (8_852_366, 8_858_734)},
        functools.partial(yolov3.yolov3_tiny, 2, width=1 / 16), (64, 96, 3)),
    "yolov3_spp": Case(
        yolov3.yolov3_spp, {(80,): (62_998_749, 63_052_381)},
        functools.partial(yolov3.yolov3_spp, 2, width=1 / 16), (64, 96, 3)),
    # Counts: the layers of the reference code with VOC's classes and the background.
    "vgg300": Case(
        ssd.vgg300, {(20,): (26_285_486, 26_285_486)},
        functools.partial(ssd.vgg300, 2, width=1 / 16), (300, 300, 3)),
    "vgg512": Case(
        ssd.vgg512, {(20,): (26_959_300, 26_959_300), (20, "caffe"): (27_188_676, 27_188_676)},
        functools.partial(ssd.vgg512, 2, "caffe", width=1 / 16), (512, 512, 3)),
    # Counted here: no one else has this network.
    "ssd_tiny": Case(
        ssd.tiny, {(6,): (1_277_992, 1_277_992), (6, "article", 1.0, True): (1_279_512, 1_282_552)},
        functools.partial(ssd.tiny, 2, width=1 / 4, batch_norm=True), (160, 160, 3)),
    # Counts: the article prints them. A "picture" is a row of tf-idf.
    "textclf": Case(textclf.textclf, {(8,): (5_124_616, 5_124_616)},
                    functools.partial(textclf.textclf, 3, vocabulary=500, width=256), (500,)),
    # Counts: the articles' listings; Keras's documentation of its VAE prints 69,076 and 65,089 for the two halves.
    "dense_autoencoder": Case(autoencoders.dense, {(): (226_512, 226_512)}, autoencoders.dense, (28, 28, 1)),
    "conv_autoencoder": Case(autoencoders.conv, {(): (4_385, 4_385)}, autoencoders.conv, (28, 28, 1)),
    "vae": Case(autoencoders.vae, {(): (202_516, 202_516)}, autoencoders.vae, (28, 28, 1)),
    "conv_vae": Case(autoencoders.conv_vae, {(): (134_165, 134_165)}, autoencoders.conv_vae, (28, 28, 1)),
    # Counts: the blocks of the paper's figures and of the article's text, added up.
    "hourglass": Case(
        hourglass.hourglass, {(16, 1): (4_284_560, 4_305_296), (16, 2): (8_286_624, 8_326_304)},
        functools.partial(hourglass.hourglass, 3, num_stacks=2, filters=8, order=1), (64, 96, 3)),
    "hourglass_newell": Case(
        hourglass.hourglass, {(16, 2, 256, 4, 1, "newell"): (6_570_400, 6_601_888)},
        functools.partial(hourglass.hourglass, 3, num_stacks=1, filters=8, order=2, variant="newell"),
        (64, 96, 3)),
    # Counts: the layers of the paper, added up; the article's "about 44mb" are 43.4 MiB of float32.
    "cyclegan_generator": Case(
        cyclegan.generator, {(9,): (11_383_427, 11_383_427), (6,): (7_841_411, 7_841_411),
                             (9, 64, "resize"): (11_383_427, 11_383_427)},
        functools.partial(cyclegan.generator, 1, 8), (16, 24, 3)),
    "cyclegan_discriminator": Case(
        cyclegan.discriminator, {(): (2_765_633, 2_765_633)},
        functools.partial(cyclegan.discriminator, 8), (32, 40, 3)),
    # Counts: the layers of the article's listing, added up.
    "yolov1": Case(
        yolov1.humble_yolo, {(2,): (1_406_896, 1_406_896)},
        functools.partial(yolov1.humble_yolo, 2, image_size=32), (32, 32, 3)),
}


@pytest.fixture(params=list(MODELS))
def case(request):
    return MODELS[request.param]


@functools.cache
def small_model(case_name):
    """One small model per case, shared by the tests that leave it as it is."""
    keras.utils.set_random_seed(0)
    return MODELS[case_name].small()


@pytest.fixture(params=list(MODELS))
def small(request):
    return small_model(request.param), MODELS[request.param].input_shape


def pictures(count, shape, seed=0):
    return np.random.default_rng(seed).uniform(size=(count, *shape)).astype(np.float32)


def outputs(model, images, training=False):
    return [np.asarray(output) for output in tf.nest.flatten(model(images, training=training))]


def test_parameter_counts(case):
    for arguments, expected in case.counts.items():
        model = case.build(*arguments)
        trainable = sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)
        assert (trainable, model.count_params()) == expected


def test_batch_of_any_size_traces_once(small):
    model, shape = small
    traces = []

    @tf.function(input_signature=[tf.TensorSpec([None, *shape])])
    def forward(images):
        traces.append(1)
        return tf.nest.flatten(model(images, training=False))

    images = pictures(5, shape)
    together = forward(images)
    for count in (1, 2, 3):
        for part, whole in zip(forward(images[:count]), together):
            assert part.shape[0] == count
            # A convolution may sum in another order when the batch is another: some float32 roundings.
            np.testing.assert_allclose(part, whole[:count], rtol=1e-4, atol=1e-5)
    assert len(traces) == 1


def test_no_layer_of_foreign_code(small):
    """Lambda layers hold Python byte code, which a file from elsewhere must not bring."""
    assert not any(isinstance(layer, keras.layers.Lambda) for layer in small[0].layers)


def test_saved_and_loaded_are_equal(small, tmp_path):
    model, shape = small
    images = pictures(2, shape)
    expected = outputs(model, images)

    model.save(tmp_path / "whole.keras")
    model.save_weights(tmp_path / "only.weights.h5")
    loaded = keras.models.load_model(tmp_path / "whole.keras", safe_mode=True)
    for ours, theirs in zip(expected, outputs(loaded, images)):
        np.testing.assert_array_equal(ours, theirs)
    loaded.set_weights([np.zeros(weight.shape, np.float32) for weight in loaded.weights])
    loaded.load_weights(tmp_path / "only.weights.h5")
    for ours, theirs in zip(model.get_weights(), loaded.get_weights()):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_stay_float32_in_half_precision(case, precision):
    keras.mixed_precision.set_dtype_policy(precision)
    try:
        model = case.small()
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    for output in outputs(model, pictures(1, case.input_shape), training=True):
        assert output.dtype == np.float32 and np.isfinite(output).all()
    assert all(weight.dtype == "float32" for weight in model.weights)


def weights_after_a_step(model, optimizer, strategy, images):
    """The weights after one step on the global batch `images`, split among the replicas.

    Not a tf.function: tracing 75 convolutions for two replicas takes longer than all other tests together.
    """
    count = strategy.num_replicas_in_sync
    parts = strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(np.split(images, count)[context.replica_id_in_sync_group]))

    def replica_step(part):
        with tf.GradientTape() as tape:
            # Any smooth function of the outputs: a sum over the pictures, divided by the global batch.
            per_picture = [
                tf.reduce_mean(tf.square(tf.sigmoid(output) - 0.1), axis=range(1, len(output.shape)))
                for output in tf.nest.flatten(model(part, training=True))]
            loss = tf.reduce_sum(tf.add_n(per_picture)) / len(images)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    strategy.run(replica_step, args=(parts,))
    return model.get_weights()


def test_two_replicas_equal_one(case, two_replicas):
    images = pictures(4, case.input_shape)
    results, before = [], None
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        with strategy.scope():
            keras.utils.set_random_seed(0)
            model = case.small()
            optimizer = keras.optimizers.SGD(0.01)
            optimizer.build(model.trainable_variables)
        before = model.get_weights()
        results.append(weights_after_a_step(model, optimizer, strategy, images))
    # Sums over the pictures in another order; where that tips a leaky ReLU or a maximum over, a gradient of
    # the deep nets takes another way. A loss that is divided wrongly would make the error as large as the
    # change. Moving variances of pictures in 0..255 are thousands: the tolerance grows with what is above 1.
    for weight, one, two in zip(model.weights, *results):
        assert np.abs(two - one).max() <= 3e-5 * max(1, np.abs(one).max()), weight.path
    change, error = (np.sqrt(sum(np.sum(np.square(a - b)) for a, b in zip(results[i], other)))
                     for i, other in ((0, before), (1, results[0])))
    # Through the three sigmoids of yolov1 the gradient is small: a change of 8.5e-4, 0.01 and more in the others.
    assert 5e-4 < change and error < 0.01 * change
