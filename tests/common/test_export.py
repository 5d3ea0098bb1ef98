"""Folding, freezing, decoding in the graph, warm-up requests, and how a bundle is published."""

import os
import subprocess

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from common import export, folding, warm_up
from common.errors import UserError
from common.layers import BatchNormalization
from tests.common.test_media import picture, png_bomb, with_orientation


def randomize(model, seed=0):
    """Weights and statistics as a trained network has them, so that nothing folds by chance."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        low, high = (0.5, 2.0) if "variance" in weight.path or "gamma" in weight.path else (-0.4, 0.4)
        weight.assign(rng.uniform(low, high, weight.shape))
    return model


def every_case():
    """A model with what folds, and with what must not."""
    layers = keras.layers
    x = inputs = keras.Input([24, 20, 3])
    x = layers.ZeroPadding2D(((1, 0), (2, 1)))(x)
    x = layers.Conv2D(8, 3, 2, "valid", use_bias=False, name="pad_conv_norm")(x)
    x = BatchNormalization(epsilon=1e-3)(x)
    x = skip = layers.LeakyReLU(negative_slope=0.1)(x)
    x = layers.Conv2D(8, 3, padding="same", dilation_rate=2, groups=2, name="bias_norm")(x)
    x = layers.BatchNormalization(scale=False)(x)
    x = layers.ReLU()(x) + skip
    x = BatchNormalization(name="norm_first")(x)
    x = layers.Conv2D(8, 1, activation="relu", name="with_activation")(x)
    x = layers.BatchNormalization(center=False)(x)
    x = two_users = layers.Conv2D(8, 1, name="two_users")(x)
    x = layers.Add()([layers.BatchNormalization()(x), two_users])
    shared = layers.Conv2D(8, 1, name="shared")
    x = shared(shared(x))
    x = BatchNormalization()(x)
    x = layers.GroupNormalization(groups=-1)(x)
    x = layers.Conv2DTranspose(4, 3, 2, "same")(x)
    output = layers.Conv2D(4, 1, name="is_output")(x)
    y = BatchNormalization()(output)
    y = layers.Dense(5)(layers.GlobalAveragePooling2D()(y))
    return randomize(keras.Model(inputs, {"map": output, "vector": y}))


@pytest.fixture(scope="module")
def case():
    return every_case()


def test_folding_keeps_every_output(case):
    folded = folding.fold_batch_norm(case)
    images = np.random.default_rng(1).normal(size=[2, 24, 20, 3]).astype(np.float32)
    expected, found = case(images, training=False), folded(images, training=False)
    for name in expected:
        # Rounding of a folded float32 kernel.
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    kinds = {layer.name: type(layer).__name__ for layer in folded.layers}
    assert kinds["pad_conv_norm"] == kinds["bias_norm"] == kinds["two_users"] == "ConstantConv2D"
    assert kinds["norm_first"] == "ConstantAffine" and kinds["with_activation"] == "Conv2D"
    assert not any("norm" in weight.path and "group" not in weight.path for weight in folded.weights)
    assert list(kinds.values()).count("Folded") == 3  # the padding and two norms


def test_frozen_model_in_the_session_loader(case, tmp_path):
    frozen = folding.freeze(case, tf.TensorSpec([None, 24, 20, 3], tf.float32, "images"))
    assert not frozen.captured_inputs
    images = np.random.default_rng(2).normal(size=[3, 24, 20, 3]).astype(np.float32)
    expected = case(images, training=False)

    spec = tf.TensorSpec([None, 24, 20, 3], tf.float32, "images")
    serve = export.Signature(spec, lambda images: (images / 2, images), lambda outputs, images: {
        "map": outputs[0], "vector": outputs[1], "images": images})
    again = export.Signature(spec, lambda images: (images / 2,), lambda outputs: {"map": outputs[0]})
    requests = [(name, {"images": 2 * images}) for name in ("serving_default", "again")]
    export.save(tmp_path / "1", frozen, {"serving_default": serve, "again": again}, requests=requests)
    assert (tmp_path / "1" / "saved_model.pb").stat().st_size < 100_000
    found = export.check_bundle(tmp_path / "1")["serving_default"]
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)
    assert not list((tmp_path / "1" / "variables").iterdir())


def test_check_finds_what_is_wrong(tmp_path):
    nothing = tf.function(lambda x: [x + 0], input_signature=[tf.TensorSpec([None], tf.float32)])

    def bundle(name, function, spec):
        signature = export.Signature(spec, lambda x: (tf.zeros([1]), x), lambda _, x: function(x))
        value = np.array([b"x"], object) if spec.dtype == tf.string else np.ones([2, 3], np.float32)
        export.save(tmp_path / name, nothing.get_concrete_function(), {"serving_default": signature},
                    requests=[("serving_default", {"x": value})])
        return tmp_path / name

    floats = tf.TensorSpec([None, 3], tf.float32, "x")
    export.check_bundle(bundle("good", lambda x: {"y": x + 1}, floats))
    with pytest.raises(UserError, match="y that are not finite"):
        export.check_bundle(bundle("nan", lambda x: {"y": x / 0}, floats))
    with pytest.raises(UserError, match="must answer 2 images with as many y"):
        export.check_bundle(bundle("batch", lambda x: {"y": x[:1]}, floats))
    with pytest.raises(UserError, match="must refuse broken strings"):
        export.check_bundle(bundle("string", lambda x: {"y": tf.strings.length(x)},
                                   tf.TensorSpec([None], tf.string, "x")))
    (tmp_path / "good" / "saved_model.pb").write_bytes(b"\xff damaged")
    for folder in (tmp_path / "good", tmp_path / "missing"):
        with pytest.raises(UserError, match="cannot be loaded"):
            export.check_bundle(folder)


def test_warm_up_requests_are_what_the_server_reads(tmp_path):
    images = np.arange(300, dtype=np.float32).reshape(1, 10, 10, 3)
    path = tmp_path / warm_up.FILE
    warm_up.write(path, [("a", {"images": images, "other": np.array([1, 2])}),
                         ("b", {"image_bytes": np.array([b"\xff\0" * 300], object)})])
    first, second = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    log = prediction_log_pb2.PredictionLog.FromString(first)
    request = log.predict_log.request
    assert request.model_spec.signature_name == "a" and set(request.inputs) == {"images", "other"}
    np.testing.assert_array_equal(tf.make_ndarray(request.inputs["images"]), images)
    request = prediction_log_pb2.PredictionLog.FromString(second).predict_log.request
    assert tf.make_ndarray(request.inputs["image_bytes"])[0] == b"\xff\0" * 300
    (name, inputs), (_, strings) = warm_up.read(path)
    assert name == "a" and inputs["other"].tolist() == [1, 2]
    np.testing.assert_array_equal(inputs["images"], images)
    assert strings["image_bytes"].tolist() == [b"\xff\0" * 300]


def encoded(suffix, image):
    return cv2.imencode(suffix, image)[1].tobytes()


def test_decoding_in_the_graph():
    decode = tf.function(export.decode_picture, input_signature=[tf.TensorSpec([], tf.string)])
    image = picture()
    np.testing.assert_array_equal(decode(encoded(".png", image[..., ::-1])), image)
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    for data in (encoded(".png", gray), encoded(".jpg", gray), encoded(".png", gray.astype(np.uint16) * 257)):
        np.testing.assert_allclose(decode(data), np.repeat(gray[..., None], 3, -1), atol=4)  # JPEG rounds
    alpha = np.dstack([image[..., ::-1], np.full(image.shape[:2], 9, np.uint8)])
    np.testing.assert_array_equal(decode(encoded(".png", alpha)), image)
    turned = with_orientation(encoded(".jpg", image[..., ::-1]), 6)
    assert decode(turned).shape == image.shape  # as stored, not as shown


def test_decoding_refuses_what_is_no_picture_and_pixel_bombs():
    decode = tf.function(export.decode_picture, input_signature=[tf.TensorSpec([], tf.string)])
    jpeg = encoded(".jpg", np.zeros([16, 16, 3], np.uint8))
    start = jpeg.index(b"\xff\xc0") + 5
    jpeg_bomb = jpeg[:start] + b"\xff\xdc\xff\xdc" + jpeg[start + 4:]
    bad = {
        b"": "JPEG or PNG",
        b"no picture": "JPEG or PNG",
        encoded(".bmp", picture()): "JPEG or PNG",
        png_bomb(12_000, 12_000): "pixels",
        png_bomb(2**31 - 1, 2**31 - 1): "pixels",
        png_bomb(0, 5): "pixels",
        jpeg_bomb: "pixels",
        jpeg[:40]: None,
        jpeg[:-100]: None,
        encoded(".png", picture())[:20]: None,
        encoded(".png", picture())[:-30]: None,
    }
    for data, message in bad.items():
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            decode(data)


def marker(content):
    def write(folder):
        folder.mkdir()
        (folder / "saved_model.pb").write_text(content)
    return write


def test_versions_count_up_and_become_visible_at_once(tmp_path):
    out = tmp_path / "serving" / "net"

    def write(folder):
        marker("a")(folder)
        assert export.versions(out) == [] and not folder.name.isdigit()

    def check(folder):
        assert export.versions(out) == [] and (folder / "saved_model.pb").exists()

    assert export.publish(out, write, check, lambda version: f"version {version.name}") == out / "1"
    (out / "7").mkdir()
    assert export.publish(out, marker("b"), lambda folder: None) == out / "8"
    assert export.resolve_version(out) == out / "8" == export.resolve_version(out / "8")
    assert (out / "README.md").read_text() == "version 1"
    assert sorted(path.name for path in out.iterdir()) == ["1", "7", "8", "README.md"]


def test_two_exports_at_once_get_two_numbers(tmp_path, monkeypatch):
    export.publish(tmp_path, marker("a"), lambda folder: None)
    monkeypatch.setattr(export, "versions", lambda out: [])  # the other was published after we looked
    assert export.publish(tmp_path, marker("b"), lambda folder: None) == tmp_path / "2"
    assert (tmp_path / "1" / "saved_model.pb").read_text() == "a"


def test_nothing_is_published_when_writing_or_checking_fails(tmp_path, monkeypatch):
    def fails(folder):
        raise UserError("not good")

    def full(folder):
        marker("half")(folder)
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="not good"):
        export.publish(tmp_path, marker("a"), fails)
    with pytest.raises(UserError, match="No space left on device.*--out"):
        export.publish(tmp_path, full, lambda folder: None)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export.publish(tmp_path / "file", marker("a"), lambda folder: None)


def test_what_a_killed_export_left_is_no_version_and_goes_away(tmp_path):
    process = subprocess.Popen(["true"])
    process.wait()
    left = tmp_path / f"exporting-{export.socket.gethostname()}-{process.pid}"
    left.mkdir()
    (left / "saved_model.pb").write_text("half")
    alive = tmp_path / f"exporting-{export.socket.gethostname()}-{os.getppid()}"
    alive.mkdir()
    assert export.versions(tmp_path) == []
    with pytest.raises(UserError, match="saved_model.pb"):
        export.resolve_version(tmp_path)
    export.publish(tmp_path, marker("a"), lambda folder: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["1", alive.name])
