"""Darknet weight files there and back, partial starts, and files that are not what they should be."""

import json
import struct

import numpy as np
import pytest
from absl.testing import flagsaver

from common import transfers
from common.errors import UserError
from tests.yolov3 import darknet_oracle
from yolov3 import convert, darknet_cfg
from yolov3.model import MODELS, TINY_ANCHORS

WIDTH = 0.25  # filters from 8 to 256: everything but the speed is as at full width


@pytest.fixture(scope="module", autouse=True)
def flags():
    convert.define_flags()
    if not convert.FLAGS.is_parsed():
        convert.FLAGS(["convert"])
    yield
    for name in ("run", "weights", "out", "model", "labels", "image_size", "width", "anchors", "cfg", "which"):
        delattr(convert.FLAGS, name)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Returns a function from (network, classes) to a small weight file."""
    folder = tmp_path_factory.mktemp("weights")

    def path(name, num_classes, seed=0):
        file = folder / f"{name}-{num_classes}-{seed}.weights"
        if not file.exists():
            layers = darknet_oracle.sections(name, num_classes, WIDTH)
            darknet_oracle.write_weights(file, layers, seed)
        return file

    return path


def cut(source, path, num_values):
    """The header and the first values of a weight file."""
    path.write_bytes(source.read_bytes()[:20 + 4 * num_values])
    return path


def kernel(model, number):
    return model.get_layer(f"conv_{number:03d}").kernel.numpy()


@pytest.mark.parametrize("num_classes", [1, 7])
@pytest.mark.parametrize("name", list(MODELS))
def test_there_and_back_is_byte_identical(name, num_classes, weights, tmp_path):
    model = MODELS[name](num_classes, width=WIDTH)
    header = convert.load_darknet(model, weights(name, num_classes))
    assert header == (0, 2, 0, 32_013_312)
    convert.save_darknet(model, tmp_path / "back.weights", header)
    assert (tmp_path / "back.weights").read_bytes() == weights(name, num_classes).read_bytes()
    assert list(tmp_path.iterdir()) == [tmp_path / "back.weights"]


def test_order_and_layout_by_hand(tmp_path):
    model = MODELS["tiny"](1, width=WIDTH)
    num_values = sum(int(np.prod(weight.shape)) for weight in model.weights)
    values = np.arange(num_values, dtype="<f4")
    path = tmp_path / "counted.weights"
    path.write_bytes(struct.pack("<iiiq", 0, 2, 5, 7) + values.tobytes())
    assert convert.load_darknet(model, path) == (0, 2, 5, 7)
    norm = model.get_layer("bn_000")
    order = (norm.beta, norm.gamma, norm.moving_mean, norm.moving_variance)
    assert [weight.numpy()[0] for weight in order] == [0, 8, 16, 24]
    # Kernel [8 out, 3 in, 3, 3] from 32 on: (out 1, in 2, row 0, column 1) is 27 + 2 * 9 + 1 values further.
    assert kernel(model, 0)[0, 1, 2, 1] == 32 + 46
    # The last convolution, 64 -> 18 with a bias in front, ends the file.
    last = model.get_layer("conv_012")
    assert last.bias.numpy()[0] == num_values - 18 * 64 - 18
    assert last.kernel.numpy()[0, 0, 63, 17] == num_values - 1


def test_header_before_version_0_2_has_a_short_count(weights, tmp_path):
    old = tmp_path / "old.weights"
    old.write_bytes(struct.pack("<iiii", 0, 1, 0, 123) + weights("tiny", 7).read_bytes()[20:])
    model = MODELS["tiny"](7, width=WIDTH)
    header = convert.load_darknet(model, old)
    assert header == (0, 1, 0, 123)
    convert.save_darknet(model, tmp_path / "back.weights", header)
    assert (tmp_path / "back.weights").read_bytes() == old.read_bytes()


def test_length_gives_network_and_classes_away():
    for name, num_classes, num_bytes in (("yolov3", 80, 248_007_048), ("yolov3", 20, 246_714_648),
                                         ("tiny", 80, 35_434_956), ("spp", 80, 252_209_544)):
        assert convert.identify((num_bytes - 20) // 4) == [(name, num_classes)]
    assert convert.identify(1_000_000) == []


@pytest.mark.parametrize("name", ["yolov3", "tiny"])
def test_backbone_alone(name, weights, tmp_path):
    model, num_backbone = MODELS[name](3, width=WIDTH), {"yolov3": 52, "tiny": 7}[name]
    values = np.frombuffer(weights(name, 7).read_bytes(), "<f4", offset=20)
    whole = MODELS[name](7, width=WIDTH)
    convert.load_darknet(whole, weights(name, 7))
    before = kernel(model, num_backbone)
    sizes = np.cumsum([sum(int(np.prod(weight.shape)) for layer in pair if layer for weight in layer.weights)
                       for pair in convert.convolutions(whole)])

    # Of the whole network with other classes; of the backbone; of two convolutions more.
    for num_values in (len(values), sizes[num_backbone - 1], sizes[num_backbone + 1]):
        fresh = MODELS[name](3, width=WIDTH) if num_values != len(values) else model
        path = cut(weights(name, 7), tmp_path / "cut.weights", num_values)
        convert.load_darknet(fresh, path, backbone_only=True)
        for number in (0, num_backbone - 1):
            np.testing.assert_array_equal(kernel(fresh, number), kernel(whole, number))
            np.testing.assert_array_equal(fresh.get_layer(f"bn_{number:03d}").moving_variance,
                                          whole.get_layer(f"bn_{number:03d}").moving_variance)
    np.testing.assert_array_equal(kernel(model, num_backbone), before)
    path = cut(weights(name, 7), tmp_path / "cut.weights", sizes[num_backbone - 1] - 1)
    expected = 20 + 4 * sizes[num_backbone - 1]
    with pytest.raises(UserError,
                       match=rf"{expected - 4:,} bytes; the backbone of .* has {expected:,} \(4 too"):
        convert.load_darknet(model, path, backbone_only=True)


def test_all_but_the_class_layers(weights):
    model, whole = MODELS["tiny"](3, width=WIDTH), MODELS["tiny"](7, width=WIDTH)
    convert.load_darknet(whole, weights("tiny", 7))
    heads = [number for number, (_, norm) in enumerate(convert.convolutions(model)) if norm is None]
    assert heads == [9, 12]
    before = [kernel(model, number) for number in heads]
    convert.load_darknet(model, weights("tiny", 7), skip_heads=True)
    for number in set(range(13)) - set(heads):
        np.testing.assert_array_equal(kernel(model, number), kernel(whole, number))
    for number, old in zip(heads, before):
        np.testing.assert_array_equal(kernel(model, number), old)


def test_wrong_files_are_refused_with_byte_counts(weights, tmp_path):
    model = MODELS["tiny"](7, width=WIDTH)
    good = weights("tiny", 7).read_bytes()
    before = [weight.numpy() for weight in model.weights]
    path = tmp_path / "bad.weights"

    def refused(data, *words, **options):
        path.write_bytes(data)
        with pytest.raises(UserError) as error:
            convert.load_darknet(model, path, **options)
        assert "\n" not in str(error.value)
        for word in (str(path), *words):
            assert word in str(error.value)

    refused(b"", "0 bytes")
    refused(good[:11], "11 bytes")
    refused(good[:-4], f"{len(good) - 4:,} bytes", f"{len(good):,} (4 too few)")
    refused(good[:-2], f"{len(good) - 2:,} bytes", "cut short")
    refused(good + bytes(8), f"{len(good) + 8:,} bytes", f"{len(good):,} (8 too many)")
    refused(good + bytes(8), "too many", skip_heads=True)
    refused(good + bytes(8), "too many", backbone_only=True)
    refused(struct.pack("<iii", 5, 1, 2) + good[12:], "version 5.1.2")
    refused(struct.pack("<iii", 0, 3, 0) + good[12:], "version 0.3.0")
    refused(weights("tiny", 3).read_bytes(), f"{len(good):,}", "too few")
    refused(weights("yolov3", 7).read_bytes(), f"{len(good):,}", "too many")
    refused(weights("yolov3", 7).read_bytes(), "too many", backbone_only=True)
    # As long as a YOLOv3 of 20 classes and full width: the message says so.
    refused(good[:20] + bytes(246_714_628), "246,714,648 bytes", "yolov3 with 20 classes")
    refused(good[:20] + b"\xff" * (len(good) - 20), "not finite")
    refused(good[:20] + np.full((len(good) - 20) // 4, -1, "<f4").tobytes(), "variance below 0")
    for weight, old in zip(model.weights, before):
        np.testing.assert_array_equal(weight, old)
    with pytest.raises(UserError, match="there is none"):
        convert.load_darknet(model, tmp_path / "nowhere.weights")


def test_run_folder_there_and_back(weights, tmp_path, capsys):
    (tmp_path / "seven.names").write_text("\n".join("abcdefg") + "\n\n")
    run, out = tmp_path / "run", tmp_path / "deep" / "back.weights"
    arguments = {"weights": str(weights("tiny", 7)), "labels": str(tmp_path / "seven.names"), "run": str(run),
                 "model": "tiny", "width": WIDTH, "image_size": 320,
                 "anchors": "10,14, 23,27, 37,58, 81,82, 135,169, 344,320"}
    with flagsaver.flagsaver(**arguments):
        convert.main([])
        with pytest.raises(UserError, match="holds a run already"):
            convert.main([])
    config = json.loads((run / "config.json").read_text())
    assert config["labels"] == list("abcdefg") and config["image_size"] == 320 and config["model"] == "tiny"
    assert config["anchors"][1][2] == [344, 320]
    assert config["darknet"] == [0, 2, 0, 32_013_312]
    assert "predict --run" in capsys.readouterr().out
    with flagsaver.flagsaver(run=str(run), out=str(out)):
        convert.main([])
    with flagsaver.flagsaver(run=str(run), out=str(tmp_path / "seven.names" / "back.weights")):
        with pytest.raises(UserError, match="seven.names must be a folder, or a place to make one"):
            convert.main([])
    assert out.read_bytes() == weights("tiny", 7).read_bytes()
    cfg = darknet_cfg.read(out.with_suffix(".cfg"))
    assert cfg.anchors.tolist() == config["anchors"] and (cfg.num_classes, cfg.image_size) == (7, 320)
    # That cfg says everything but the names.
    again = {**dict.fromkeys(("model", "anchors", "image_size", "out")), "width": 1.0, "weights": str(out),
             "run": str(tmp_path / "again"), "labels": arguments["labels"], "cfg": str(out.with_suffix(".cfg"))}
    with flagsaver.flagsaver(**again):
        convert.main([])
    other = json.loads((tmp_path / "again" / "config.json").read_text())
    assert {**other, "anchors_from": config["anchors_from"]} == config and other["anchors_from"] == "--cfg"
    old = {key: value for key, value in config.items() if key != "anchors_from"}
    (run / "config.json").write_text(json.dumps({**old, "anchors": TINY_ANCHORS.tolist()}))
    capsys.readouterr()
    convert.read_run(run)
    assert "convert it again" in capsys.readouterr().err
    (run / "config.json").write_text(json.dumps(config))

    # Another run as a start.
    whole = MODELS["tiny"](7, width=WIDTH)
    convert.load_darknet(whole, weights("tiny", 7))
    model = MODELS["tiny"](3, width=WIDTH)
    convert.load_run(model, run, transfer="all_but_classes")
    np.testing.assert_array_equal(kernel(model, 11), kernel(whole, 11))
    with pytest.raises(UserError, match=r"conv_009 has .*24.* here and .*36.* there"):
        convert.load_run(model, run)
    with pytest.raises(UserError, match="The network lacks g, and .* lacks x. Take less of it"):
        convert.load_run(whole, run, labels=list("abcdefx"))
    convert.load_run(whole, run, labels=list("abcdefg"))
    model = MODELS["tiny"](3, width=WIDTH)
    before = kernel(model, 7)
    convert.load_run(model, run, transfer="backbone")
    np.testing.assert_array_equal(kernel(model, 6), kernel(whole, 6))
    np.testing.assert_array_equal(kernel(model, 7), before)


def test_user_mistakes(tmp_path, weights):
    names = tmp_path / "x.names"
    names.write_text("a\nb\n")

    def refused(match, **values):
        with flagsaver.flagsaver(**values), pytest.raises(UserError, match=match):
            convert.main([])

    tiny = {"weights": str(weights("tiny", 7)), "run": str(tmp_path / "run"), "labels": str(names)}
    refused("either --weights")
    refused("either --weights", run="x", weights="y", out="z")
    refused("--labels", weights="y", run="x")
    refused("multiple of 32; 100", **{**tiny, "image_size": 100})
    refused("says everything else; leave --labels out", run="x", out="z", labels="l")
    refused("Say with --model", **tiny)
    refused("anchors must be", **{**tiny, "model": "tiny", "anchors": "1,2,3"})
    refused("anchors must be", **{**tiny, "model": "tiny", "anchors": "1,2,a,4"})
    refused("anchors must be", **{**tiny, "model": "tiny", "anchors": "1,2,inf,4"})
    refused("no usable|config.json", run=str(tmp_path), out=str(tmp_path / "x.weights"))
    names.write_text("a\n\nb\n")
    refused("empty line", **tiny)
    # A file of full width whose number of classes is not that of the labels.
    names.write_text("a\nb\n")
    (tmp_path / "full.weights").write_bytes(struct.pack("<iiiq", 0, 2, 0, 0) + bytes(35_434_936))
    refused("tiny with 80 classes; 2 labels", **{**tiny, "weights": str(tmp_path / "full.weights")})
    full = {**tiny, "weights": str(tmp_path / "full.weights")}
    refused("anchors must be .* 2 scales of tiny", **{**full, "anchors": "1"})
    cfg = tmp_path / "net.cfg"
    cfg.write_text(darknet_cfg.text(MODELS["tiny"](2, width=WIDTH), TINY_ANCHORS, 320, 2))
    refused("--cfg is of width 0.25, and --width 0.5 came", **{**tiny, "cfg": str(cfg), "width": 0.5})
    refused("--cfg is of tiny, and --model spp came", **{**tiny, "cfg": str(cfg), "model": "spp"})
    refused("too many", **{**tiny, "cfg": str(cfg)})            # of 7 classes, and the cfg of 2
    names.write_text("\ufeffa\nb\nc\n", "utf-8")
    refused("--cfg has 2 classes, and 3 labels came", **{**tiny, "cfg": str(cfg)})
    assert transfers.read_labels(names) == ["a", "b", "c"]
