"""Features of pictures: the judge learns, is kept, disturbs nothing; Inception, SavedModels, stored features."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from cyclegan import demo, features, preprocess
from tests.cyclegan.domains import write_records

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (5, 32, 32, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 40 + 30 animals for training, 10 + 10 for testing."""
    counts = {"trainA": (0, 40), "trainB": (0, 30), "testA": (40, 50), "testB": (40, 50)}
    return write_records(tmp_path_factory.mktemp("judge"), {
        split: [demo.draw(0, "AB".index(split[-1]), i) for i in range(*ends)] for split, ends in counts.items()})


@pytest.fixture(scope="module")
def trained(folder):
    return features.train_judge(folder, seed=1, steps=60)


def pictures_of(folder, split):
    batch = next(iter(preprocess.evaluation_dataset(folder, split, image_size=64, batch_size=10)))
    return preprocess.to_bytes(batch["images"])


# The judge.

def test_the_judge_tells_plain_from_striped(folder, trained):
    judge = features.make_judge(trained)
    described, logits = zip(*(judge(pictures_of(folder, split)) for split in ("testA", "testB")))
    assert described[0].shape == (10, 176) and logits[0].shape == (10,) and logits[0].dtype == np.float32
    assert np.mean([(logits[0] < 0).mean(), (logits[1] > 0).mean()]) >= 0.85  # after 60 of 400 steps
    larger = np.kron(pictures_of(folder, "testB"), np.ones((1, 2, 2, 1), np.uint8))  # of any size
    np.testing.assert_allclose(judge(larger)[1], logits[1], atol=0.15 * np.abs(logits[1]).max())


def test_the_judge_is_the_same_again_and_disturbs_nothing(folder, trained):
    keras.utils.set_random_seed(3)
    expected = keras.random.normal([2]).numpy(), np.random.random(2)
    keras.utils.set_random_seed(3)
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        again = features.train_judge(folder, seed=1, steps=60)
        assert keras.config.dtype_policy().name == "mixed_bfloat16"
    finally:
        keras.config.set_dtype_policy("float32")
    np.testing.assert_array_equal(keras.random.normal([2]), expected[0])
    np.testing.assert_array_equal(np.random.random(2), expected[1])
    assert again.get_layer("conv0").compute_dtype == "float32"
    for one, other in zip(trained.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(features.judge_model(2).get_weights()[0], features.judge_model(1).get_weights()[0])


def test_the_judge_is_kept_in_the_run(folder, trained, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "train_judge", lambda *args: trained)
    found = features.load("judge", folder, tmp_path)
    path = tmp_path / "features" / "judge.weights.h5"
    assert path.is_file() and [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert (found.kind, found.extract, found.stored) == ("judge", None, None)
    monkeypatch.setattr(features, "train_judge", lambda *args: pytest.fail("trained again"))
    again = features.load("judge", "nowhere", tmp_path)
    np.testing.assert_array_equal(found.judge(IMAGES)[1], again.judge(IMAGES)[1])
    monkeypatch.setattr(features, "train_judge", lambda *args: trained)
    path.write_bytes(path.read_bytes()[:1000])
    mended = features.load("judge", folder, tmp_path)
    assert "warning: " in capsys.readouterr().err
    np.testing.assert_array_equal(found.judge(IMAGES)[1], mended.judge(IMAGES)[1])
    before = path.stat().st_size
    cluster = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    path.unlink()
    features.load("judge", folder, tmp_path)  # a worker that is not the chief writes nothing
    assert before > 1000 and not path.exists()


def test_the_judge_learns_from_pictures_of_the_whole_set(tmp_path, monkeypatch):
    """Those of a set that begins with 20 dark ones: 8 of 40 are drawn, from both halves."""
    levels = np.uint8([20] * 20 + [220] * 20)[:, None, None, None] + np.zeros([1, 8, 8, 3], np.uint8)
    folder = write_records(tmp_path, {"trainA": levels, "trainB": levels, "testA": levels[:1], "testB": levels[:1]})
    monkeypatch.setattr(features, "JUDGE_PICTURES", 8)
    drawn = features._training_pictures(folder, "trainA", 8, 0)
    assert drawn.shape == (8, 8, 8, 3) and set(drawn[:, 0, 0, 0].tolist()) == {20, 220}


# Inception.

def test_inception_gets_what_fid_gives_it(tmp_path, monkeypatch):
    """A stand-in for the network: what it is asked for, and pictures of 299 pixels in -1..1."""
    asked = {}

    def network(**options):
        asked.update(options)
        images = keras.Input(options["input_shape"])
        least, most = (function(images, axis=[1, 2, 3])[:, None] for function in (keras.ops.min, keras.ops.max))
        return keras.Model(images, keras.ops.concatenate([least, most, images[:, 200, 150]], axis=-1))

    monkeypatch.setattr(features, "reachable", lambda url: url.endswith("inception_v3_weights_tf_dim_ordering_tf_"
                                                                        "kernels_notop.h5"))
    monkeypatch.setattr(keras.applications, "InceptionV3", network)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    extract = features.make_inception()
    assert asked == {"include_top": False, "weights": "imagenet", "pooling": "avg", "input_shape": (299, 299, 3)}
    images = np.full([40, 20, 20, 3], 255, np.uint8)
    images[:, 0] = 0
    images[39, 10:] = [0, 51, 255]
    found = extract(images)
    assert found.shape == (40, 5)
    np.testing.assert_allclose(found[:2], [[-1, 1, 1, 1, 1]] * 2)
    np.testing.assert_allclose(found[39, 2:], [-1, -0.6, 1], atol=1e-5)


def test_inception_without_a_network_says_so_before_anything_is_trained(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(features, "reachable", lambda url: False)
    monkeypatch.setattr(features, "train_judge", lambda *args: pytest.fail("trained"))
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(UserError, match="weights are not at .*notop.h5, and https://.* cannot be reached. Put .* "
                       "or take --features judge .*SavedModel") as error:
        features.load("inception", folder, tmp_path)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(features, "reachable", lambda url: True)
    monkeypatch.setattr(keras.applications, "InceptionV3", lambda **options: int("no weights"))
    with pytest.raises(UserError, match="could not be had .*no weights.*--features judge"):
        features.load("inception", folder, tmp_path)


# Networks of one's own.

def save(path, function, spec, several=False):
    module = tf.Module()
    module.scale = tf.Variable(2.0)

    @tf.function(input_signature=[spec])
    def serve(pictures):
        found = function(tf.cast(pictures, tf.float32)) * module.scale
        return {"features": found, "other": found[:, :1]} if several else {"anything": found}

    tf.saved_model.save(module, str(path), signatures={"serving_default": serve})
    return path


@pytest.mark.parametrize("size, kind, scale, several", [
    (None, tf.float32, 255, False), (16, tf.float32, 255, True), (None, tf.uint8, 1, True)])
def test_a_network_of_ones_own(tmp_path, folder, trained, monkeypatch, size, kind, scale, several):
    """Twice the mean colours, of 0..1 or of bytes, resized or not."""
    path = save(tmp_path / "net", lambda x: tf.reduce_mean(x, axis=[1, 2]),
                tf.TensorSpec([None, size, size, 3], kind), several)
    monkeypatch.setattr(features, "train_judge", lambda *args: trained)
    found = features.load(str(path), folder, tmp_path / "run", in_training=True)
    assert found.kind == "custom" and "not FID" in found.note
    smooth = np.broadcast_to(RNG.integers(0, 256, (35, 1, 1, 3)), (35, 32, 32, 3)).astype(np.uint8)
    np.testing.assert_allclose(found.extract(smooth), 2.0 * smooth[:, 0, 0] / scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function, spec", [
    (lambda x: tf.reduce_mean(x, axis=1), tf.TensorSpec([None, 8, 8, 3], tf.float32)),
    (lambda x: x, tf.TensorSpec([None, 3], tf.float32)),
    (lambda x: tf.reduce_mean(x, axis=[1, 2]), tf.TensorSpec([None, 8, 8, 3], tf.float64))])
def test_networks_that_give_no_features(tmp_path, function, spec):
    with pytest.raises(UserError, match="must take pictures .* and give features .B, D., and takes"):
        features.make_custom(save(tmp_path / "net", function, spec))


def test_a_folder_that_is_no_saved_model(tmp_path):
    (tmp_path / "saved_model.pb").write_bytes(b"nothing")
    with pytest.raises(UserError, match="must be a SavedModel with the signature serving_default, and is not"):
        features.load(str(tmp_path), None)


# Stored features.

def test_stored_features(tmp_path, folder, trained, monkeypatch):
    arrays = {name: RNG.normal(size=(4, 3)) for name in ("a", "b", "a2b", "b2a")}
    for name, value in arrays.items():
        np.save(tmp_path / f"{name}.npy", value)
    np.savez(tmp_path / "all.npz", **arrays)
    (tmp_path / "inside").mkdir()
    np.savez(tmp_path / "inside" / "any.npz", **arrays)
    (tmp_path / "all.npz").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(features, "train_judge", lambda *args: trained)
    for path in (tmp_path, tmp_path / "elsewhere", tmp_path / "inside"):
        found = features.load(str(path), folder)
        assert found.kind == "stored" and found.extract is None and found.stored.keys() == arrays.keys()
        np.testing.assert_array_equal(found.stored["b2a"], arrays["b2a"])
    with pytest.raises(UserError, match="judge, inception or the folder of a SavedModel, and .* is none of them"):
        features.load(str(tmp_path), folder, in_training=True)
    np.save(tmp_path / "a2b.npy", RNG.normal(size=(4, 2)))
    with pytest.raises(UserError, match="must all have as many numbers, and have .2, 3."):
        features.read_stored(tmp_path)
    (tmp_path / "b.npy").unlink()
    with pytest.raises(UserError, match="a.npy, b.npy, a2b.npy and b2a.npy .* lacks b"):
        features.read_stored(tmp_path)
    (tmp_path / "a.npy").write_bytes(b"none")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "inside" / "any.npz").read_bytes()[:-40])
    np.save(tmp_path / "one.npy", np.zeros(3))
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "cut.npz", tmp_path / "one.npy"):
        with pytest.raises(UserError, match="cannot be read"):
            features.read_stored(path)
