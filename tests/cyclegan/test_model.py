"""Generator and discriminator against the same networks in PyTorch, their sizes, weights and names."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from common import training
from cyclegan.model import ReflectionPadding2D, default_blocks, discriminator, discriminators, generator, \
    generators, up_block


def data(shape, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def shaken(model):
    """The model with weights that make every layer matter: scales and offsets that are not 1 and 0."""
    rng = np.random.default_rng(3)
    for weight in model.weights:
        spread = 0.3 if weight.path.endswith(("gamma", "beta", "bias")) else 0.1
        weight.assign(np.asarray(weight) + rng.normal(0, spread, weight.shape))
    return model


@pytest.mark.parametrize("size", [(32, 32), (36, 44)], ids=str)
@pytest.mark.parametrize("upsample", ["transpose", "resize"])
def test_generator_equals_pytorch(size, upsample):
    """36 x 44 are sides that a stride of 4 divides and 8 does not."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.cyclegan import torch_oracle

    model = shaken(generator(2, 8, upsample))
    x = data((2, *size, 3))
    expected = torch_oracle.generator(torch_oracle.weights_of(model), torch_oracle.pictures(x), 2, upsample)
    expected = expected.detach().permute(0, 2, 3, 1).numpy()
    assert expected.std() > 0.2                                            # and not saturated
    for training_ in (False, True):
        found = model(x, training=training_)
        assert found.dtype == tf.float32
        # Float32 through 13 normalised layers; PyTorch's is float64.
        np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("size", [(32, 32), (36, 44)], ids=str)
def test_discriminator_equals_pytorch(size):
    pytest.importorskip("torch", reason="PyTorch is not installed")
    from tests.cyclegan import torch_oracle

    model = shaken(discriminator(8))
    x = data((2, *size, 3))
    expected = torch_oracle.discriminator(torch_oracle.weights_of(model), torch_oracle.pictures(x))
    for training_ in (False, True):
        np.testing.assert_allclose(model(x, training=training_), expected.detach().permute(0, 2, 3, 1), rtol=1e-4,
                                   atol=2e-4)


def test_decisions_and_sizes():
    """32 x 32 decisions for 256 x 256 (article); a generator gives back the size it got."""
    assert discriminator(4).compute_output_shape((1, 256, 256, 3)) == (1, 32, 32, 1)
    model = generator(1, 4)
    assert model.output_shape == (None, None, None, 3)
    for size in ((8, 12), (20, 36)):
        assert model(data((1, *size, 3))).shape == (1, *size, 3)
    assert [default_blocks(size) for size in (64, 255, 256, 512)] == [6, 6, 9, 9]


@pytest.mark.parametrize("height, width", [(4, 5), (7, 9)])
def test_reflection_padding_is_numpys(height, width):
    x = data((2, height, width, 3))
    padded = ReflectionPadding2D(3)(x)
    np.testing.assert_array_equal(padded, np.pad(x, [(0, 0), (3, 3), (3, 3), (0, 0)], "reflect"))
    again = ReflectionPadding2D.from_config(ReflectionPadding2D(3, name="pad").get_config())
    assert (again.padding, again.name) == (3, "pad")


def test_initial_weights_are_of_the_paper():
    """N(0, 0.02) in every convolution, each with draws of its own; scale 1, offset and bias 0."""
    keras.utils.set_random_seed(0)
    kernels = []
    for weight in [*generators(1, 32).weights, *discriminators(32).weights]:
        value = np.asarray(weight)
        if weight.path.endswith("kernel"):
            error = 0.02 / np.sqrt(value.size)
            assert abs(value.mean()) < 5 * error and abs(value.std() - 0.02) < 5 * error, weight.path
            assert np.abs(value).max() > 0.05                              # not cut at two deviations
            kernels.append(value.ravel()[:20].tobytes())
        else:
            assert (value == weight.path.endswith("gamma")).all(), weight.path
    assert len(set(kernels)) == len(kernels) == 2 * 8 + 2 * 5


def test_what_goes_as_one_batch_is_what_goes_alone():
    """Training sends two batches through a generator at once: no picture may see another."""
    model = shaken(generator(1, 8))
    x = data((3, 16, 16, 3))
    x[1] *= 0.1
    together = model(x, training=True)
    for i in range(3):
        np.testing.assert_allclose(model(x[i:i + 1], training=True)[0], together[i], atol=1e-5)


def test_names_are_of_their_own_and_the_same_in_every_process():
    """Checkpoints go by names: they must not count up with the models that were made before."""
    first, second = (training.named_variables(generators(1, 2)) for _ in range(2))
    assert list(first) == list(second)
    assert not any("#" in name for name in first)
    assert {"generator_a2b/residual_1_2_norm/gamma", "generator_b2a/up_1/kernel"} <= set(first)
    judges = training.named_variables(discriminators(2))
    assert not any("#" in name for name in judges) and "discriminator_b/patches/bias" in judges


def test_both_generators_are_one_model():
    model = generators(1, 4)
    a, b = data((1, 8, 8, 3)), data((1, 8, 8, 3), 1)
    found = model({"a": a, "b": b})
    np.testing.assert_array_equal(found["a2b"], model.get_layer("generator_a2b")(a))
    np.testing.assert_array_equal(found["b2a"], model.get_layer("generator_b2a")(b))
    judges = discriminators(4)
    np.testing.assert_array_equal(judges({"a": a, "b": b})["b"], judges.get_layer("discriminator_b")(b))


def test_resizing_leaves_no_checkerboard():
    """Of an even area a transposed convolution makes an uneven one; the pixels between its cells differ."""
    uneven = {}
    for upsample in ("transpose", "resize"):
        inputs = keras.Input([6, 6, 4])
        keras.utils.set_random_seed(0)
        block = keras.Model(inputs, up_block(inputs, 4, "up", upsample))
        convolved = keras.Model(inputs, block.get_layer("up").output)
        found = convolved(np.ones([1, 6, 6, 4], np.float32))[0, 2:-2, 2:-2].numpy()
        uneven[upsample] = np.ptp(found, axis=(0, 1)).max() / np.abs(found).max()
    assert uneven["resize"] < 1e-5 and uneven["transpose"] > 0.1
