"""The stacked hourglass against the same network in PyTorch, and what goes wrong in copies of it."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from hourglass import model as models
from hourglass.loss import LOSSES
from hourglass.preprocess import encode_targets


@pytest.mark.parametrize("variant,stacks,order", [
    ("article", 2, 2), ("newell", 2, 2), ("article", 1, 4), ("newell", 3, 1)])
def test_equals_the_same_network_in_pytorch(variant, stacks, order, monkeypatch):
    """In training and in inference, all stacks, with weights copied in the order of creation."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from benchmarks import torch_hourglass

    created = []
    for name in ("Conv2D", "BatchNormalization"):
        original = getattr(models, name)
        monkeypatch.setattr(models, name, lambda *args, original=original, **kwargs: created.append(
            original(*args, **kwargs)) or created[-1])
    keras.utils.set_random_seed(1)
    model = models.hourglass(5, num_stacks=stacks, filters=16, order=order, variant=variant)
    rng = np.random.default_rng(0)
    for layer in created:
        if "normalization" in layer.name:
            layer.set_weights([rng.uniform(0.5, 1.5, value.shape) for value in layer.get_weights()])
    net = torch_hourglass.Hourglass(5, stacks, 16, order, variant)
    torch_hourglass.copy_weights(created, net)

    images = rng.uniform(size=[2, 64, 128, 3]).astype(np.float32)
    for training in (False, True):
        net.train(training)
        with torch.no_grad():
            expected = net(torch.from_numpy(images).permute(0, 3, 1, 2))
        found = tf.nest.flatten(model(images, training=training))
        assert len(found) == len(expected) == stacks
        for ours, theirs in zip(found, expected):
            assert ours.shape == (2, 16, 32, 5)
            theirs = theirs.permute(0, 2, 3, 1).numpy()
            # float32 through up to 60 layers.
            np.testing.assert_allclose(ours, theirs, atol=1e-4 * max(1, np.abs(theirs).max()))


def blocks(model):
    """Numbers of additions, poolings and upsamplings in a network."""
    kinds = [type(layer).__name__ for layer in model.layers]
    return {kind: kinds.count(kind) for kind in ("Add", "MaxPooling2D", "UpSampling2D")}


@pytest.mark.parametrize("variant,per_level", [("article", 4), ("newell", 3)])
@pytest.mark.parametrize("order", [1, 2, 4])
def test_blocks_of_a_module(variant, per_level, order):
    """A level has its blocks and the sum of two branches; the innermost has one block more, instead of a module."""
    x = keras.Input([64, 64, 8])
    model = keras.Model(x, models.hourglass_module(x, order, 8, variant=variant))
    assert blocks(model) == {"Add": (per_level + 1) * order + 1, "MaxPooling2D": order, "UpSampling2D": order}
    deeper = keras.Model(x, models.hourglass_module(x, order, 8, num_residual=3, variant=variant))
    # The inner loop has a variable of its own: three blocks at each of the places.
    assert blocks(deeper)["Add"] == (3 * 3 + (per_level - 3) + 1) * order + 3


@pytest.mark.parametrize("stacks", [1, 2, 3])
def test_every_stack_but_the_last_is_remapped_once(stacks):
    model = models.hourglass(4, num_stacks=stacks, filters=16, order=1, num_residual=2)
    remaps = [layer for layer in model.layers if isinstance(layer, keras.layers.Add) and len(layer.input) == 3]
    assert len(remaps) == stacks - 1 and len(model.outputs) == stacks
    # Its own input, its features and its heatmaps.
    for stack, (layer, heatmaps) in enumerate(zip(remaps, model.outputs), 1):
        sources = [tensor._keras_history.operation for tensor in layer.input]
        assert any(source.input is heatmaps for source in sources)
        own = model.get_layer(f"hourglass_{stack}_1_up1_1_1_norm").input
        assert any(tensor is own for tensor in layer.input)


def test_outputs_are_a_quarter_of_the_picture():
    model = models.hourglass(num_stacks=1, filters=8)
    for size in ((64, 64), (128, 192)):
        output = model(np.zeros([1, *size, 3], np.float32))  # Keras makes one tensor of a list of one
        assert output.shape == (1, size[0] // 4, size[1] // 4, 16)


@pytest.mark.parametrize("variant,total,trainable", [
    ("article", {1: 4_305_296, 2: 8_326_304, 4: 16_368_320}, {}),
    ("newell", {1: 3_443_088, 2: 6_601_888, 4: 12_919_488}, {1: 3_426_448, 2: 6_570_400, 4: 12_858_304})])
def test_parameters_of_any_number_of_stacks(variant, total, trainable):
    for stacks, expected in total.items():
        model = models.hourglass(num_stacks=stacks, variant=variant)
        assert model.count_params() == expected
        if trainable:
            assert sum(int(np.prod(weight.shape)) for weight in model.trainable_weights) == trainable[stacks]


@pytest.mark.parametrize("variant", models.VARIANTS)
def test_names_do_not_depend_on_what_was_built_before(variant):
    """Weights are stored by name; each name is there once, and says where its layer is."""
    first, second = (models.hourglass(3, num_stacks=2, filters=8, order=2, num_residual=2, variant=variant)
                     for _ in range(2))
    names = [weight.path for weight in first.weights]
    assert names == [weight.path for weight in second.weights] and len(set(names)) == len(names)
    assert {"stem/kernel", "hourglass_1_2_up1_1_3/kernel", "hourglass_2_1_low2_2_3_norm/gamma",
            "features_2/kernel", "heatmaps_2/bias", "remap_heatmaps_1/kernel"} <= set(names)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("variant", models.VARIANTS)
def test_the_first_loss_is_that_of_zeros(variant, loss):
    """Within 10 %, for the most features and the largest heatmaps of the defaults, half of the joints out of view.

    From he_normal it is 50 times that with the article's weights, and 3,100 times without.
    """
    keras.utils.set_random_seed(1)
    rng = np.random.default_rng(0)
    model = models.hourglass(16, num_stacks=1, filters=256, order=1, variant=variant)
    joints = rng.uniform(0, 256, [2, 16, 2]).astype(np.float32)
    targets = encode_targets(joints, rng.random([2, 16]) < 0.5, 256, absent="out of view")
    heatmaps = tf.nest.flatten(model(rng.uniform(size=[2, 256, 256, 3]).astype(np.float32), training=True))
    first, zeros = (tf.reduce_sum(LOSSES[loss](targets, each)["stack_1"]).numpy()
                    for each in (heatmaps, [tf.zeros_like(heatmaps[0])]))
    assert first == pytest.approx(zeros, rel=0.1) and first != zeros
