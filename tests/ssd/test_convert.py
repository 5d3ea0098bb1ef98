"""VGG-16's weights decimated, Caffe's networks against OpenCV, other runs, and files that are something else."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from absl.testing import flagsaver

from common import detection_sources, transfers
from common.errors import UserError
from ssd import convert
from ssd import model as models
from ssd.postprocess import postprocess
from tests.ssd import caffe_oracle

WIDTH = 1 / 8  # filters from 8 to 128


@pytest.fixture(scope="module", autouse=True)
def flags():
    convert.define_flags()
    if not convert.FLAGS.is_parsed():
        convert.FLAGS(["convert"])
    yield
    for name in ("run", "weights", "labels"):
        delattr(convert.FLAGS, name)


@pytest.fixture(scope="module")
def vgg16():
    """A VGG-16 with the names, order and strides of keras.applications.VGG16, an eighth as wide, random biases."""
    keras.utils.set_random_seed(1)
    x = inputs = keras.Input([224, 224, 3])
    for block, filters, count in ((1, 8, 2), (2, 16, 2), (3, 32, 3), (4, 64, 3), (5, 64, 3)):
        for number in range(1, count + 1):
            x = keras.layers.Conv2D(filters, 3, padding="same", activation="relu", bias_initializer="random_normal",
                                    name=f"block{block}_conv{number}")(x)
        x = keras.layers.MaxPooling2D(2, 2, name=f"block{block}_pool")(x)
    x = keras.layers.Flatten(name="flatten")(x)
    for name in ("fc1", "fc2"):
        x = keras.layers.Dense(512, activation="relu", bias_initializer="random_normal", name=name)(x)
    return keras.Model(inputs, keras.layers.Dense(1000, name="predictions")(x))


def weights_of(model):
    return {weight.path: weight.numpy() for weight in model.weights}


def test_names_are_those_of_keras_applications():
    """Only the layers up to conv5_3: the fully connected ones hold 124 million values."""
    network = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    names = [layer.name for layer in network.layers if layer.weights]
    assert names == [f"block{block}_conv{number}" for block, count in ((1, 2), (2, 2), (3, 3), (4, 3), (5, 3))
                     for number in range(1, count + 1)]


def test_vgg16_decimated_as_the_article_does_it(vgg16):
    model = models.vgg300(2, width=WIDTH)
    convert.load_vgg16(model, vgg16)
    for ours, theirs in (("conv1_2", "block1_conv2"), ("conv3_3", "block3_conv3"), ("conv5_1", "block5_conv1")):
        for weight, expected in zip(model.get_layer(ours).weights, vgg16.get_layer(theirs).weights):
            np.testing.assert_array_equal(weight, expected)

    # The article's loop, on the fully connected weights as convolutions of 7x7 and 1x1.
    original, original_bias = vgg16.get_layer("fc1").get_weights()
    original = original.reshape(7, 7, 64, 512)
    kernel, bias = np.zeros((3, 3, 64, 128), np.float32), np.zeros(128, np.float32)
    for i in range(128):
        bias[i] = original_bias[4 * i]
        for h in range(3):
            for w in range(3):
                kernel[h, w, :, i] = original[3 * h, 3 * w, :, 4 * i]
    np.testing.assert_array_equal(model.get_layer("fc6").kernel, kernel)
    np.testing.assert_array_equal(model.get_layer("fc6").bias, bias)
    dense, dense_bias = vgg16.get_layer("fc2").get_weights()
    for i, j in ((0, 0), (1, 0), (5, 77), (127, 127)):
        assert model.get_layer("fc7").kernel[0, 0, j, i].numpy() == dense[4 * j, 4 * i]
    np.testing.assert_array_equal(model.get_layer("fc7").bias, dense_bias[::4])

    # The layer on features: each output sees nine cells, six apart, zeros beyond the border.
    features = np.random.default_rng(0).normal(size=(1, 15, 14, 64)).astype(np.float32)
    found = model.get_layer("fc6")(features)[0]
    padded = np.pad(features[0], [[6, 6], [6, 6], [0, 0]])
    for y, x in ((0, 0), (7, 6), (14, 13), (3, 10)):
        expected = sum(padded[y + 6 * h, x + 6 * w] @ original[3 * h, 3 * w, :, ::4] for h in range(3)
                       for w in range(3))
        np.testing.assert_allclose(found[y, x], expected + original_bias[::4], atol=1e-5)


def test_the_7x7_filter_sees_what_the_decimated_one_sees(vgg16):
    """Where the features repeat so that the 40 filter cells left out are zero, fc1 itself gives fc6's numbers."""
    model = models.vgg300(2, width=WIDTH)
    convert.load_vgg16(model, vgg16)
    cells = np.random.default_rng(0).normal(size=(3, 3, 64)).astype(np.float32)
    pooled = np.zeros((1, 7, 7, 64), np.float32)
    pooled[0, ::3, ::3] = cells
    spread = np.zeros((1, 13, 13, 64), np.float32)
    spread[0, ::6, ::6] = cells
    dense = vgg16.get_layer("fc1")(vgg16.get_layer("flatten")(pooled))[0]
    np.testing.assert_allclose(model.get_layer("fc6_relu")(model.get_layer("fc6")(spread))[0, 6, 6], dense[::4],
                               atol=1e-5)


def test_pictures_come_to_conv1_1_as_they_come_to_vgg16(vgg16):
    model = models.vgg300(2, width=WIDTH)
    convert.load_vgg16(model, vgg16)
    images = np.random.default_rng(0).uniform(size=(2, 300, 300, 3)).astype(np.float32)
    prepared = keras.applications.vgg16.preprocess_input(255 * images)  # BGR minus its mean
    expected = vgg16.get_layer("block1_conv1")(prepared)
    found = model.get_layer("conv1_1_relu")(model.get_layer("conv1_1")(model.get_layer("caffe_range")(images)))
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], expected[:, 1:-1, 1:-1], atol=1e-3)  # of values up to 100
    # Where the filter reaches over the border, zeros stand for the mean, and the two means differ by 0.7 of 255.
    reach = np.abs(vgg16.get_layer("block1_conv1").kernel.numpy()).sum((0, 1, 2)).max()
    assert np.abs(found - expected).max() <= 0.69 * reach


def test_only_a_plain_vgg16_takes_its_weights(vgg16):
    for model in (models.tiny(2), models.vgg300(2, width=WIDTH, batch_norm=True), models.vgg300(2, width=1 / 4)):
        before = weights_of(model)
        with pytest.raises(UserError, match=f"not this {model.name}"):
            convert.load_vgg16(model, vgg16)
        for path, value in weights_of(model).items():
            np.testing.assert_array_equal(value, before[path])


def test_offline_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setattr(detection_sources, "reachable", lambda url: False)
    with pytest.raises(UserError, match="vgg16_weights.*cannot be reached") as error:
        convert.load_imagenet(models.vgg300(2))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="not this tiny"):
        convert.load_imagenet(models.tiny(2))


@pytest.mark.parametrize("side", [300, 512])
def test_caffe_networks_give_what_opencv_gives(side, tmp_path):
    num_classes, width = 3, WIDTH
    weights = caffe_oracle.random_weights(side, num_classes, width)
    net = caffe_oracle.read_net(tmp_path, caffe_oracle.network(side, num_classes, width),
                                caffe_oracle.caffemodel(weights))
    name = f"vgg{side}"
    model = models.MODELS[name](num_classes, "caffe", width)
    convert.load_caffe(model, tmp_path / "net.caffemodel")

    images = np.random.default_rng(1).uniform(size=(1, side, side, 3)).astype(np.float32)
    bgr = 255 * images[..., ::-1] - np.array([104, 117, 123], np.float32)
    net.setInput(np.ascontiguousarray(bgr.transpose(0, 3, 1, 2)), "data")
    conf, loc, found = net.forward(["conf", "loc", "detections"])
    outputs = model(images)
    for ours, theirs in ((outputs["logits"], conf), (outputs["offsets"], loc)):
        theirs = theirs.reshape(ours.shape)
        assert 0.5 < np.abs(theirs).max() < 50  # numbers that a mistake would show in
        np.testing.assert_allclose(ours, theirs, atol=1e-4)

    ours = postprocess(outputs, models.anchors(name))
    found = found[0, 0]
    assert ours["num"][0] == len(found) == 200
    np.testing.assert_allclose(ours["scores"][0], np.sort(found[:, 2])[::-1], atol=1e-4)
    rows = np.concatenate([np.zeros([200, 1]), ours["classes"][0][:, None] + 1, ours["scores"][0][:, None],
                           ours["boxes"][0]], axis=1)
    # Neighbours whose scores differ by a rounding may change places.
    assert all(np.abs(found - row).max(axis=1).min() < 1e-3 for row in rows)


def test_variants_differ_where_the_paddings_do():
    """With the same weights: article pads 10 cells to 11 at the end, Caffe to 12 on both sides."""
    article, caffe = models.vgg300(2, width=WIDTH), models.vgg300(2, "caffe", WIDTH)
    caffe.set_weights(article.get_weights())
    images = np.random.default_rng(0).uniform(size=(1, 300, 300, 3)).astype(np.float32)
    maps = [keras.Model(model.input, [model.get_layer(f"{name}_relu").output for name in ("conv8_2", "conv9_1",
                                                                                          "conv9_2")])(images)
            for model in (article, caffe)]
    np.testing.assert_allclose(maps[0][0], maps[1][0], atol=1e-5)
    kernel = article.get_layer("conv9_2").kernel
    for (_, before, after), padding in zip(maps, ([0, 1], [1, 1])):
        padded = tf.pad(before, [[0, 0], padding, padding, [0, 0]])
        np.testing.assert_allclose(after, tf.nn.relu(tf.nn.conv2d(padded, kernel, 2, "VALID")), atol=1e-5)
    assert np.abs(maps[0][2] - maps[1][2]).max() > 0.01


def test_old_files_and_parts_of_files(tmp_path):
    weights = caffe_oracle.random_weights(300, 3, WIDTH)
    path = tmp_path / "old.caffemodel"
    path.write_bytes(caffe_oracle.caffemodel(weights, old=True))
    for (name, arrays), (theirs, blobs) in zip(convert.read_caffe(path).items(), weights.items(), strict=True):
        assert name == theirs
        for array, blob in zip(arrays, blobs, strict=True):
            np.testing.assert_array_equal(array, blob)

    model, whole = models.vgg300(7, "caffe", WIDTH), models.vgg300(3, "caffe", WIDTH)
    convert.load_caffe(whole, path)
    before = weights_of(model)
    convert.load_caffe(model, path, transfer="all_but_classes")
    for layer in model.layers:
        for mine, theirs in zip(layer.weights, whole.get_layer(layer.name).weights):
            np.testing.assert_array_equal(mine, before[mine.path] if layer.name.startswith("classes_") else theirs)
    model = models.vgg512(7, width=WIDTH)
    kept = model.get_layer("conv8_1").kernel.numpy()
    convert.load_caffe(model, path, transfer="backbone")
    np.testing.assert_array_equal(model.get_layer("fc7").kernel, whole.get_layer("fc7").kernel)
    np.testing.assert_array_equal(model.get_layer("conv8_1").kernel, kept)
    assert [layer.name for layer in convert.backbone(model)][-2:] == ["fc6", "fc7"]
    assert len(convert.backbone(model)) == 15
    normed = convert.backbone(models.vgg300(2, width=WIDTH, batch_norm=True))
    assert [layer.name for layer in normed][-2:] == ["fc7", "fc7_bn"] and len(normed) == 30


def test_wrong_caffe_files_are_refused(tmp_path):
    weights = caffe_oracle.random_weights(300, 3, WIDTH)
    good = caffe_oracle.caffemodel(weights)
    model = models.vgg300(3, "caffe", WIDTH)
    before = weights_of(model)
    path = tmp_path / "bad.caffemodel"

    def refused(data, *words, into=model):
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            convert.load_caffe(into, path)
        for word in (str(path), *words):
            assert word in str(error.value)
        assert "\n" not in str(error.value)

    refused(good[:-7], "cut short")
    refused(b"", "no layer with weights")
    refused(b'name: "VGG_VOC0712"\ninput: "data"\n', "kind of file")
    refused(good, "classes_0", "(3, 3, 64, 16)", "(3, 3, 64, 32)", into=models.vgg300(7, "caffe", WIDTH))
    refused(good, "conv12_1 (conv10_1 in Caffe)", into=models.vgg512(3, "caffe", WIDTH))
    refused(good, "conv1_1", "without --batch_norm", into=models.vgg300(3, "caffe", WIDTH, batch_norm=True))
    refused(caffe_oracle.caffemodel({**weights, "fc7": [weights["fc7"][0] * np.inf, weights["fc7"][1]]}),
            "not finite at fc7")
    wrong_size = caffe_oracle.field(7, caffe_oracle.field(5, bytes(12)) + caffe_oracle.field(7, b"\x0a\x01\x04"))
    refused(caffe_oracle.field(100, caffe_oracle.field(1, b"fc7") + wrong_size), "12 bytes at fc7", "needs 16")
    for weight_path, value in weights_of(model).items():
        np.testing.assert_array_equal(value, before[weight_path])
    with pytest.raises(UserError, match="there is none"):
        convert.load_caffe(model, tmp_path / "nowhere.caffemodel")


def test_run_folders(tmp_path, monkeypatch, capsys):
    """A .caffemodel becomes a run, and a run a start for another."""
    weights = caffe_oracle.random_weights(300, 3, WIDTH)
    path, run, names = tmp_path / "ssd.caffemodel", tmp_path / "run", tmp_path / "x.names"
    path.write_bytes(caffe_oracle.caffemodel(weights))
    names.write_text("a\nb\n")
    narrow = {name: lambda *args, make=make: make(*args[:2], WIDTH) for name, make in models.MODELS.items()}
    monkeypatch.setattr(models, "MODELS", narrow)

    def refused(match, **values):
        with flagsaver.flagsaver(**values), pytest.raises(UserError, match=match):
            convert.main([])

    refused("Give --weights", run=str(run))
    arguments = {"weights": str(path), "labels": str(names), "run": str(run)}
    refused("vgg300 with 3 classes; 2 labels", **arguments)
    names.write_text("a\nb\nc\n")
    with flagsaver.flagsaver(**arguments):
        convert.main([])
    refused("holds a run already", **arguments)
    assert "ssd.predict --run" in capsys.readouterr().out
    for start in (path, run):
        assert convert.variant_for(str(start)) == "caffe" == convert.variant_for(str(start), "caffe")
        assert convert.variant_for(str(start), "article") == "article"
        assert "trained as --variant caffe; as article the network" in capsys.readouterr().err
    assert convert.variant_for("imagenet") == "article"
    base = {name: arrays for name, arrays in weights.items() if "mbox" not in name}
    path.write_bytes(caffe_oracle.caffemodel(base))
    assert convert.variant_for(str(path)) == "article"                     # a base alone is the same in both
    refused("has no conv4_3_norm_mbox_conf", **{**arguments, "run": str(tmp_path / "new")})

    config = json.loads((run / "config.json").read_text())
    assert (config["article"], config["model"], config["variant"]) == ("ssd", "vgg300", "caffe")
    assert config["labels"] == ["a", "b", "c"] and config["image_size"] == 300
    whole, _ = convert.read_run(run)
    np.testing.assert_array_equal(whole.get_layer("fc7").bias, weights["fc7"][1])


    monkeypatch.setattr(models, "MODELS", narrow)
    model = models.vgg300(7, "article", WIDTH)
    with pytest.raises(UserError, match=r"classes_0 has .*32.* here and .*16.* there"):
        convert.load_run(model, run)
    convert.load_run(model, run, transfer="all_but_classes")
    np.testing.assert_array_equal(model.get_layer("boxes_3").kernel, whole.get_layer("boxes_3").kernel)
    model = models.vgg512(7, "article", WIDTH)
    with pytest.raises(UserError, match="conv11_2|conv12_1"):
        convert.load_run(model, run, transfer="all_but_classes")
    convert.load_run(model, run, transfer="backbone")
    np.testing.assert_array_equal(model.get_layer("fc6").kernel, whole.get_layer("fc6").kernel)


def test_labels_of_a_text_file(tmp_path):
    (tmp_path / "labels.txt").write_text(" a \nb c\n\n")
    assert transfers.read_labels(tmp_path / "labels.txt") == ["a", "b c"]
    (tmp_path / "labels.txt").write_text("a\n\nb\n")
    with pytest.raises(UserError, match="empty line"):
        transfers.read_labels(tmp_path / "labels.txt")
