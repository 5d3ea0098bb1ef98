"""The exported hourglass as a server loads it: session, gRPC, REST, the README's requests."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import urllib.error

import cv2
import grpc
import keras
import numpy as np
import pytest
import tensorflow as tf

from common import checkpoints, export, runtime
from common.errors import UserError
from hourglass import export as hourglass_export
from hourglass import poses, predict
from hourglass.postprocess import postprocess
from tests import serving
from tests.common.test_export import randomize
from tests.common.test_media import png_bomb
from tests.hourglass import dots

SIZE, COUNT = 64, 16
CONFIG = {**dots.CONFIG, **{key: poses.MPII._asdict()[key] for key in ("labels", "pairs", "skeleton", "metric")},
          "image_size": SIZE, "num_stacks": 2}
IMAGES = np.random.default_rng(5).uniform(size=[3, SIZE, SIZE, 3]).astype(np.float32)
BOXES = np.array([[[10, 5, 60, 45], [0, 0, 0, 0], [-50, -50, 900, 900]], [[30, 60, 80, 250], [5, 5, 5, 90],
                   [70, 150, 20, 10]]], np.float32)


def files():
    _, data = serving.example_pictures(np.random.default_rng(5))
    return data[:2]  # 50 x 130 and 200 x 90


@pytest.fixture(scope="module")
def model():
    return randomize(predict.build(CONFIG), seed=3)


@pytest.fixture(scope="module")
def out(model, tmp_path_factory):
    """A folder with version 1 in float32."""
    out = tmp_path_factory.mktemp("serving") / "hourglass"
    assert hourglass_export.export_bundle(model, CONFIG, out) == out / "1"
    return out


@pytest.fixture(scope="module")
def server(out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "hourglass"
    shutil.copytree(out / "1", folder / "1")
    with serving.Server("hourglass", folder) as server:
        yield server


@pytest.fixture(scope="module")
def dots_bundle(tmp_path_factory):
    """The bundle of the network of tests/hourglass/dots.py, with the flip test."""
    out = tmp_path_factory.mktemp("dots")
    return hourglass_export.export_bundle(dots.model(), dots.CONFIG, out, flip_test=True)


def assert_same(found, expected, tolerance):
    """All but two in a hundred within the tolerance: of two equal peaks, float32 rounding chooses."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.mean(np.abs(found - expected) <= tolerance) > 0.98


def test_crops_give_what_keras_gives(model, out):
    heatmaps = predict.last_stack(model)(IMAGES, training=False)
    np.testing.assert_array_equal(heatmaps, model(IMAGES, training=False)[-1])
    joints_xy, scores = postprocess(heatmaps)
    with export.Session(out / "1") as session:
        found = session.run("serving_default", {"images": IMAGES})
        network = session.run("network", {"images": IMAGES})
    scale = np.abs(heatmaps).max()
    np.testing.assert_allclose(network["heatmaps"], heatmaps, atol=1e-4 * scale)  # rounding of the folded kernels
    assert_same(found["joints"], joints_xy, 1e-3)
    np.testing.assert_allclose(found["scores"], scores, atol=1e-4 * scale)


def test_files_and_boxes_give_what_predict_gives(model, out):
    pose = predict.make_pose(runtime.network(predict.last_stack(model), SIZE), CONFIG)
    bundle, config = runtime.bundle_network(out)
    with export.Session(out / "1") as session:
        found = session.run("image_bytes", {"image_bytes": np.array(files(), object), "boxes": BOXES})
        nobody = session.run("image_bytes", {"image_bytes": np.array(files(), object), "boxes": BOXES[:, :0]})
        zeros = session.run("image_bytes", {"image_bytes": np.array(files(), object), "boxes": BOXES[:, 1:2]})
    assert found["joints"].shape == (2, 3, COUNT, 2) and found["scores"].shape == (2, 3, COUNT)
    assert nobody["joints"].shape == (2, 0, COUNT, 2) and nobody["scores"].shape == (2, 0, COUNT)
    assert not zeros["joints"].any() and zeros["scores"].shape == (2, 1, COUNT) and not zeros["scores"].any()
    whole = [0, 0, 130, 50]  # what the picture leaves of the largest box
    for picture, kept, boxes in ((0, [0, 2], [BOXES[0, 0], whole]), (1, [0], [[30, 60, 80, 200]])):
        image = tf.io.decode_image(files()[picture], channels=3).numpy()
        joints_xy, scores, _ = pose(image, boxes)
        assert_same(found["joints"][picture, kept], joints_xy, 1e-2)
        np.testing.assert_allclose(found["scores"][picture, kept], scores, atol=1e-3 * np.abs(scores).max())
        joints_xy, _, _ = predict.make_pose(bundle, config)(image, boxes)  # predict --bundle
        assert_same(found["joints"][picture, kept], joints_xy, 1e-2)
        others = [index for index in range(3) if index not in kept]
        assert not found["joints"][picture, others].any() and not found["scores"][picture, others].any()


def test_joints_are_in_pixels_of_the_original(dots_bundle):
    persons = [[dots.person(40, 30, 90, 120), dots.person(190, 8, 290, 60)],
               [dots.person(20.5, 300, 160, 420), dots.person(60, 100, 120, 180.25)]]
    shapes = [(150, 300), (450, 170)]
    data = [cv2.imencode(".png", dots.draw(*shape, [joints_xy for joints_xy, _ in both])[..., ::-1])[1].tobytes()
            for shape, both in zip(shapes, persons)]
    boxes = np.array([[box for _, box in both] for both in persons], np.float32)
    with export.Session(dots_bundle) as session:
        found = session.run("image_bytes", {"image_bytes": np.array(data, object), "boxes": boxes})
    for picture, both in enumerate(persons):
        for index, (joints_xy, box) in enumerate(both):
            side = 1.25 * max(box[2] - box[0], box[3] - box[1])
            # Of a pixel of the heatmap: a quarter from the peak, the rest from the slope under the red dots.
            assert np.abs(found["joints"][picture, index] - joints_xy).max() < 0.35 * 4 * side / 128


def test_flip_test_is_in_the_graph(dots_bundle):
    assert export.read_config(dots_bundle)["flip_test"] is True
    image = dots.draw(128, 128, [[(30, 60), (100, 70), (64, 20), (60, 110)]]).astype(np.float32) / 255
    heatmaps = dots.model()(np.stack([image, image[:, ::-1]]), training=False)
    joints_xy, scores = postprocess(heatmaps[:1], heatmaps[1:], dots.CONFIG["pairs"])
    with export.Session(dots_bundle) as session:
        found = session.run("serving_default", {"images": np.stack([image, 1 - image])})
    np.testing.assert_allclose(found["joints"][0], joints_xy[0], atol=1e-4)
    np.testing.assert_allclose(found["scores"][0], scores[0], atol=1e-6)
    # One side alone weighs the right hand, on the left, by 1.5 - 30 / 128; so does the other, after its exchange.
    np.testing.assert_allclose(found["joints"][0], [(30, 60), (100, 70), (64, 20), (60, 110)], atol=0.35 * 4)


def test_bundle_holds_joints_warm_up_and_readme(out):
    extra = out / "1" / "assets.extra"
    assert extra.joinpath("labels.txt").read_text("utf-8").split() == poses.MPII_LABELS
    config = export.read_config(out / "1")
    assert config["pairs"] == [list(pair) for pair in poses.MPII.pairs] and config["precision"] == "float32"
    assert config["skeleton"] == [list(limb) for limb in poses.MPII_SKELETON] and config["flip_test"] is False
    requests = dict(export.warm_up.read(extra / "tf_serving_warmup_requests"))
    assert set(requests) == {"serving_default", "image_bytes", "network"}
    assert requests["image_bytes"]["boxes"].shape == (1, 1, 4)
    assert "tensorflow/serving:2." in (out / "README.md").read_text("utf-8")


def test_a_bundle_of_other_weights_is_not_published(model, tmp_path):
    other = randomize(predict.build(CONFIG), seed=4)
    with pytest.raises(UserError, match="heatmaps must be those of the Keras model"):
        hourglass_export.export_bundle(model, CONFIG, tmp_path / "new", reference=other)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_bundle_with_other_geometry_is_not_published(tmp_path, monkeypatch):
    monkeypatch.setattr(hourglass_export, "signatures", moved(hourglass_export.signatures))
    with pytest.raises(UserError, match="Exported joints of serving_default must be those of"):
        hourglass_export.export_bundle(dots.model(), dots.CONFIG, tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def moved(signatures):
    """The signatures, but all joints are eight pixels to the right."""
    def made(config):
        found = signatures(config)
        default = found["serving_default"]

        def after(outputs):
            values = default.after(outputs)
            return {**values, "joints": values["joints"] + [8.0, 0.0]}

        return {**found, "serving_default": default._replace(after=after)}

    return made


def test_grpc(server):
    def send(data, boxes):
        return serving.ask(server, {"image_bytes": data, "boxes": boxes}, "image_bytes")

    found = send(files(), BOXES)
    assert found["joints"].shape == (2, 3, COUNT, 2)
    many = np.tile(BOXES[:1, :1], [1, hourglass_export.MAX_PERSONS + 1, 1])
    not_finite = np.array([[[0, 0, 9, np.nan]]], np.float32)
    broken = (b"", b"no picture", files()[1][:-40], png_bomb(12_000, 12_000))
    refused = [([files()[0], bad], BOXES) for bad in broken]
    for data, boxes in (*refused, (files()[:1], BOXES), (files()[:1], many), (files()[:1], not_finite),
                        (files(), BOXES[..., :3])):
        with pytest.raises(grpc.RpcError) as error:
            send(data, boxes)
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    np.testing.assert_array_equal(send(files(), BOXES)["joints"], found["joints"])  # the server goes on
    with pytest.raises(grpc.RpcError) as error:
        serving.ask(server, {"images": IMAGES[:, :-1]})
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert serving.ask(server, {"images": IMAGES})["joints"].shape == (3, COUNT, 2)


def test_rest(server):
    expected = serving.ask(server, {"image_bytes": files(), "boxes": BOXES}, "image_bytes")
    encoded = [{"b64": base64.b64encode(item).decode()} for item in files()]
    rows = [{"image_bytes": data, "boxes": boxes} for data, boxes in zip(encoded, BOXES.tolist())]
    answer = serving.post(server, {"signature_name": "image_bytes", "instances": rows})["predictions"]
    assert [set(row) for row in answer] == [{"joints", "scores"}] * 2
    np.testing.assert_allclose([row["joints"] for row in answer], expected["joints"], rtol=1e-6)
    columns = {"image_bytes": encoded, "boxes": BOXES.tolist()}
    answer = serving.post(server, {"signature_name": "image_bytes", "inputs": columns})
    np.testing.assert_allclose(answer["outputs"]["scores"], expected["scores"], rtol=1e-6)
    rows[0]["image_bytes"] = {"b64": "bm8gcGljdHVyZQ=="}
    with pytest.raises(urllib.error.HTTPError) as error:
        serving.post(server, {"signature_name": "image_bytes", "instances": rows})
    assert error.value.code == 400 and "JPEG or PNG" in json.load(error.value)["error"]
    error.value.close()
    answer = serving.post(server, {"instances": IMAGES[:1].tolist()})["predictions"]
    assert len(answer) == 1 and np.shape(answer[0]["joints"]) == (COUNT, 2)


def test_the_readme_works_as_it_stands(server, out, tmp_path):
    shutil.copytree(out / "1", tmp_path / "1")
    text = (out / "README.md").read_text("utf-8")
    row, printed = serving.run_readme(text, server, tmp_path, files()[0])
    assert np.shape(row["joints"]) == (1, COUNT, 2) and np.shape(row["scores"]) == (1, COUNT)
    numbers = np.array([float(number) for number in printed.replace("[", " ").replace("]", " ").split()])
    np.testing.assert_allclose(numbers[:2 * COUNT].reshape(COUNT, 2), row["joints"][0], rtol=1e-4)


def test_half_a_version_is_never_served(dots_bundle, tmp_path, monkeypatch):
    out = tmp_path / "hourglass"
    shutil.copytree(dots_bundle, out / "1")
    with serving.Server("hourglass", out) as server:
        seen, save = [], export.save

        def watched(folder, *args, **kwargs):
            save(folder, *args, **kwargs)
            seen.append(server.reload())
            assert {path.name for path in out.iterdir() if path.name.isdigit()} == {"1"}

        monkeypatch.setattr(export, "save", watched)
        hourglass_export.export_bundle(dots.model(), dots.CONFIG, out)
        assert seen == [1] and server.reload() == 2


def test_command(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(CONFIG))
    keras.utils.clear_session()  # layers are named as in a process that builds one network
    model = randomize(predict.build(CONFIG), seed=3)
    checkpoints.write_best(run / "checkpoints" / "best.weights.h5", model, {"value": 0.5, "step": 1})
    command = [sys.executable, "-m", "hourglass.export", "--run", run, "--out", tmp_path / "serving",
               "--precision", "bfloat16", "--flip_test"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=240,
                             cwd=pathlib.Path(__file__).parents[2],
                             env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert process.returncode == 0, process.stderr[-2000:]
    assert f"{tmp_path}/serving/1" in process.stdout
    expected = model(IMAGES, training=False)[-1]
    with export.Session(tmp_path / "serving" / "1") as session:
        found = session.run("network", {"images": IMAGES})["heatmaps"]
        assert session.run("serving_default", {"images": IMAGES})["joints"].shape == (3, COUNT, 2)
    # 8 bits of mantissa in a few dozen layers.
    assert np.sqrt(np.mean((found - expected) ** 2)) < 0.1 * np.std(expected)
