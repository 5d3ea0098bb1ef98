"""The exported detector as a server loads it: session, gRPC, REST, saved_model_cli, the README's requests."""

import base64
import json
import os
import pathlib
import shutil
import subprocess
import sys
import urllib.error

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import prediction_log_pb2

from common import boxes, checkpoints, export, runtime, warm_up
from common.errors import UserError
from tests import serving
from tests.common.test_export import randomize
from tests.common.test_media import png_bomb
from yolov3 import export as yolov3_export
from yolov3 import predict
from yolov3.model import TINY_ANCHORS
from yolov3.postprocess import postprocess

SIZE = 96
LABELS = ["cat", "dog", "écureuil"]
CONFIG = {"article": "yolov3", "model": "tiny", "width": 0.25, "image_size": SIZE, "labels": LABELS,
          "anchors": TINY_ANCHORS.tolist()}
THRESHOLDS = {"score_threshold": 0.3, "iou_threshold": 0.45, "max_detections": 15, "class_agnostic": False}
RNG = np.random.default_rng(5)
IMAGES = RNG.uniform(size=[3, SIZE, SIZE, 3]).astype(np.float32)
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}


def pictures():
    return serving.example_pictures(RNG)


@pytest.fixture(scope="module")
def model():
    return randomize(predict.build(CONFIG), seed=3)


@pytest.fixture(scope="module")
def out(model, tmp_path_factory):
    """A folder with version 1 in float32 and version 2 in bfloat16."""
    out = tmp_path_factory.mktemp("serving") / "yolov3"
    yolov3_export.export_bundle(model, CONFIG, out, **THRESHOLDS)
    with runtime.dtype_policy("mixed_bfloat16"):
        half = predict.build(CONFIG)
    half.set_weights(model.get_weights())
    options = {"precision": "bfloat16", "reference": model, **THRESHOLDS}
    version = yolov3_export.export_bundle(half, CONFIG, out, **options)
    assert version == out / "2"
    return out


@pytest.fixture(scope="module")
def float32_server(out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "yolov3"
    shutil.copytree(out / "1", folder / "1")
    with serving.Server("yolov3", folder) as server:
        yield server


def keras_detections(model, images):
    logits = model(images, training=False)
    return {name: value.numpy() for name, value in
            postprocess(logits, TINY_ANCHORS, (SIZE, SIZE), **THRESHOLDS).items()}


def assert_same_detections(found, expected, unit=1.0):
    assert expected["num"].min() > 0
    assert set(expected) <= set(found)
    for name, value in expected.items():
        # float32 rounding of the folded kernels, through exp() of the sizes.
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol={"boxes": 2e-4 * unit, "scores": 1e-4}.get(name, 0)
        )


def test_float_images_give_what_keras_gives(model, out):
    expected = keras_detections(model, IMAGES)
    expected["boxes"] = boxes.clip(expected["boxes"]).numpy()
    with export.Session(out / "1") as session:
        found = session.run("serving_default", {"images": IMAGES})
    assert_same_detections(found, expected)
    assert found["classes"].dtype == np.int32 and (found["boxes"] >= 0).all() and (found["boxes"] <= 1).all()


def test_files_give_what_keras_gives_in_pixels_of_the_original(model, out):
    images, data = pictures()
    expected = keras_detections(model, tf.stack([boxes.letterbox(image, SIZE) for image in images]))
    height, width = np.array([image.shape[:2] for image in images]).T
    expected["boxes"] = boxes.unletterbox_boxes(expected["boxes"], height, width, SIZE).numpy()
    with export.Session(out / "1") as session:
        found = session.run("image_bytes", {"image_bytes": np.array(data, object)})
        alone = session.run("image_bytes", {"image_bytes": np.array(data[1:2], object)})
    assert_same_detections(found, expected, unit=300)
    names = [[(LABELS + [""])[i].encode() for i in row] for row in found["classes"]]
    np.testing.assert_array_equal(found["labels"], np.array(names, object))
    for name, value in alone.items():
        if value.dtype.kind == "f":  # another batch, another order of sums
            np.testing.assert_allclose(value[0], found[name][1], atol=1e-2)
        else:
            np.testing.assert_array_equal(value[0], found[name][1])


def test_bfloat16_is_close_and_half_the_size(model, out):
    with export.Session(out / "2") as session:
        found = session.run("network", {"images": IMAGES})
        assert session.run("serving_default", {"images": IMAGES})["boxes"].dtype == np.float32
    for scale, expected in enumerate(model(IMAGES, training=False)):
        difference = found[f"logits_{scale}"] - expected
        # 8 bits of mantissa in a dozen layers.
        assert np.sqrt(np.mean(difference**2)) < 0.05 * np.std(expected)
    sizes = [(out / version / "saved_model.pb").stat().st_size for version in "12"]
    assert sizes[1] < 0.65 * sizes[0]


def test_graph_is_folded_and_has_neither_variables_nor_pads(model, out):
    saved = saved_model_pb2.SavedModel.FromString((out / "1" / "saved_model.pb").read_bytes())
    graph = saved.meta_graphs[0].graph_def
    functions = [node.op for function in graph.library.function for node in function.node_def]
    network = [node.op for node in graph.node]
    assert network.count("Conv2D") == network.count("BiasAdd") == 3 * 13 and "Pad" not in network
    assert not [op for op in network + functions if "Variable" in op or "BatchNorm" in op]
    assert "Conv2D" not in functions
    constants = sum(node.ByteSize() for node in graph.node if node.op == "Const")
    assert constants < 1.1 * 4 * model.count_params()  # one copy for all signatures


def test_bundle_holds_labels_warm_up_and_readme(out):
    extra = out / "1" / "assets.extra"
    assert extra.joinpath("labels.txt").read_text("utf-8").split() == LABELS
    config = export.read_config(out / "1")
    assert config["anchors"] == CONFIG["anchors"] and config["precision"] == "float32"
    records = tf.data.TFRecordDataset(str(extra / warm_up.FILE)).as_numpy_iterator()
    requests = [prediction_log_pb2.PredictionLog.FromString(record).predict_log.request for record in records]
    names = {request.model_spec.signature_name for request in requests}
    assert names == {"serving_default", "image_bytes", "network"}
    assert tf.make_ndarray(requests[0].inputs["images"]).shape == (1, SIZE, SIZE, 3)
    assert "tensorflow/serving:2." in (out / "README.md").read_text("utf-8")
    assert set(export.check_bundle(out / "2")) == {"serving_default", "image_bytes", "network"}


def test_a_bundle_of_other_weights_is_not_published(model, out, tmp_path):
    other = randomize(predict.build(CONFIG), seed=4)
    with pytest.raises(UserError, match="logits of scale 0 must be those of the Keras model"):
        yolov3_export.export_bundle(model, CONFIG, tmp_path / "new", reference=other, **THRESHOLDS)
    assert list((tmp_path / "new").iterdir()) == []


def test_grpc(float32_server, model):
    _, data = pictures()

    def send(data):
        return serving.ask(float32_server, {"image_bytes": data}, "image_bytes")

    found = send(data)
    assert found["num"].shape == (3,) and found["labels"][0, 0].decode() in LABELS
    for bad in (b"", b"no picture", data[0][:60], data[1][:-40], png_bomb(12_000, 12_000)):
        with pytest.raises(grpc.RpcError) as error:
            send([data[0], bad])
        assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    np.testing.assert_array_equal(send(data)["boxes"], found["boxes"])  # the server goes on
    with pytest.raises(grpc.RpcError) as error:
        serving.ask(float32_server, {"images": IMAGES[:, :-1]})
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    found = serving.ask(float32_server, {"images": IMAGES})
    np.testing.assert_allclose(found["scores"], keras_detections(model, IMAGES)["scores"], atol=1e-4)


def test_rest(float32_server):
    _, data = pictures()
    encoded = [{"b64": base64.b64encode(item).decode()} for item in data]
    rows = serving.post(
        float32_server, {"signature_name": "image_bytes", "instances": [{"image_bytes": e} for e in encoded]}
    )
    assert len(rows["predictions"]) == 3
    row = rows["predictions"][1]
    assert set(row) == {"boxes", "scores", "classes", "labels", "num"}
    assert row["labels"][:row["num"]] == [LABELS[i] for i in row["classes"][:row["num"]]]
    columns = serving.post(float32_server, {"signature_name": "image_bytes", "inputs": encoded})
    assert columns["outputs"]["boxes"][1] == row["boxes"]
    with pytest.raises(urllib.error.HTTPError) as error:
        serving.post(float32_server, {"signature_name": "image_bytes", "instances": [{"b64": "bm8gcGljdHVyZQ=="}]})
    assert error.value.code == 400 and "JPEG or PNG" in json.load(error.value)["error"]
    error.value.close()
    images = serving.post(float32_server, {"instances": IMAGES[:1].tolist()})
    assert len(images["predictions"][0]["scores"]) == THRESHOLDS["max_detections"]


def test_the_readme_works_as_it_stands(float32_server, out, tmp_path):
    text = (out / "README.md").read_text("utf-8")
    row, printed = serving.run_readme(text, float32_server, tmp_path, pictures()[1][0])
    assert row["labels"][0] in printed


def test_half_a_version_is_never_served(out, model, tmp_path, monkeypatch):
    published, out = out / "1", tmp_path / "yolov3"
    shutil.copytree(published, out / "1")
    with serving.Server("yolov3", out) as server:
        seen = []
        save = export.save

        def watched(folder, *args, **kwargs):
            save(folder, *args, **kwargs)
            seen.append(server.reload())
            assert {path.name for path in out.iterdir() if path.name.isdigit()} == {"1"}

        monkeypatch.setattr(export, "save", watched)
        yolov3_export.export_bundle(model, CONFIG, out, **THRESHOLDS)
        assert seen == [1] and server.reload() == 2
        assert len(serving.post(server, {"instances": IMAGES.tolist()})["predictions"]) == 3


def test_saved_model_cli(out, tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    np.save(tmp_path / "files.npy", np.array(pictures()[1]))  # no NUL at their ends, which NumPy would cut
    run = ["run", "--tag_set", "serve", "--dir", out / "1"]
    commands = [
        ["show", "--all", "--dir", out / "1"],
        [*run, "--signature_def", "serving_default", "--inputs", f"images={tmp_path}/images.npy", "--outdir",
         tmp_path / "images"],
        [*run, "--signature_def", "image_bytes", "--inputs", f"image_bytes={tmp_path}/files.npy", "--outdir",
         tmp_path / "files"]]
    shown, *_ = serving.saved_model_cli(*commands)
    assert f"shape: (-1, {SIZE}, {SIZE}, 3)" in shown and "inputs['image_bytes'] tensor_info" in shown
    assert np.load(tmp_path / "images" / "boxes.npy").shape == (3, THRESHOLDS["max_detections"], 4)
    labels = np.load(tmp_path / "files" / "labels.npy", allow_pickle=True)
    assert labels[0, 0].decode() in LABELS


def test_command(model, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(CONFIG))
    checkpoints.write_best(run / "checkpoints" / "best.weights.h5", model, {"value": 0.5, "step": 1})
    command = [sys.executable, "-m", "yolov3.export", "--run", run, "--out", tmp_path / "serving",
               "--precision", "bfloat16", "--image_size", "64", "--score_threshold", "0.3"]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT,
                             cwd=pathlib.Path(__file__).parents[2])
    assert process.returncode == 0, process.stderr[-2000:]
    assert f"{tmp_path}/serving/1" in process.stdout
    with export.Session(tmp_path / "serving" / "1") as session:
        found = session.run("network", {"images": np.zeros([1, 64, 64, 3], np.float32)})
    assert found["logits_0"].shape == (1, 4, 4, 3, 8)
