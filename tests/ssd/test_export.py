"""The exported detector as a server loads it: session, gRPC, REST, saved_model_cli."""

import base64
import os
import pathlib
import shutil
import subprocess
import sys

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from common import boxes, detection_export, export, runtime
from common.errors import UserError
from ssd import export as ssd_export
from ssd.model import VARIANCES, anchors, vgg300
from ssd.postprocess import postprocess
from tests import serving
from tests.ssd import small

ROOT = pathlib.Path(__file__).parents[2]
SIZE, LABELS, CONFIG = small.CONFIG["image_size"], small.LABELS, small.CONFIG
THRESHOLDS = {"score_threshold": 0.3, "iou_threshold": 0.45, "max_detections": 15, "class_agnostic": False}
RNG = np.random.default_rng(5)
IMAGES = RNG.uniform(size=[2, SIZE, SIZE, 3]).astype(np.float32)
PICTURES, FILES = serving.example_pictures(RNG)


@pytest.fixture(scope="module")
def model():
    return small.build()


@pytest.fixture(scope="module")
def out(model, tmp_path_factory):
    """A folder with version 1 in float32; version 2, in bfloat16, is what the command writes."""
    folder = tmp_path_factory.mktemp("serving")
    out = folder / "ssd"
    ssd_export.export_bundle(model, CONFIG, out, **THRESHOLDS)
    run = small.write_run(folder / "run", model)
    command = [sys.executable, "-m", "ssd.export", "--run", run, "--out", out, "--precision", "bfloat16",
               "--score_threshold", "0.3", "--max_detections", "15"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"{out}/2: loaded and checked" in done.stdout
    return out


@pytest.fixture(scope="module")
def server(out, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "ssd"
    shutil.copytree(out / "1", folder / "1")
    with serving.Server("ssd", folder) as server:
        yield server


def keras_detections(model, images):
    found = postprocess(model(images, training=False), anchors("tiny"), **THRESHOLDS)
    assert found["num"].numpy().min() > 0
    return {name: value.numpy() for name, value in found.items()}


def assert_same_detections(found, expected, unit=1.0):
    for name, value in expected.items():
        # float32 rounding of the folded kernels, through exp() of the sizes.
        np.testing.assert_allclose(found[name], value, rtol=0,
                                   atol={"boxes": 2e-4 * unit, "scores": 1e-4}.get(name, 0))


def test_both_signatures_give_what_keras_gives(model, out):
    expected = keras_detections(model, IMAGES)
    expected["boxes"] = boxes.clip(expected["boxes"]).numpy()
    in_pixels = keras_detections(model, tf.stack([boxes.warp(image, SIZE) for image in PICTURES]))
    height, width = np.array([image.shape[:2] for image in PICTURES]).T
    in_pixels["boxes"] = boxes.unwarp_boxes(in_pixels["boxes"], height, width, SIZE).numpy()
    with export.Session(out / "1") as session:
        found = session.run("serving_default", {"images": IMAGES})
        from_files = session.run("image_bytes", {"image_bytes": np.array(FILES, object)})
    assert_same_detections(found, expected)
    assert_same_detections(from_files, in_pixels, unit=300)
    names = [[(LABELS + [""])[i].encode() for i in row] for row in from_files["classes"]]
    np.testing.assert_array_equal(from_files["labels"], np.array(names, object))


def test_network_signature_with_the_anchors_beside_it_gives_the_boxes(model, out):
    """Decoding as the README says it, in NumPy."""
    with export.Session(out / "1") as session:
        found = session.run("network", {"images": IMAGES})
    all_anchors = np.load(out / "1" / "assets.extra" / "anchors.npy")
    variance = np.array(VARIANCES)
    centers = all_anchors[:, :2] + variance[:2] * found["offsets"][..., :2] * all_anchors[:, 2:]
    sizes = all_anchors[:, 2:] * np.exp(variance[2:] * found["offsets"][..., 2:])
    odds = np.exp(found["logits"])
    scores = (odds / odds.sum(-1, keepdims=True))[..., 1:]
    expected = keras_detections(model, IMAGES)
    for i in range(len(IMAGES)):
        anchor, label = np.unravel_index(scores[i].argmax(), scores[i].shape)
        center, size = centers[i, anchor], sizes[i, anchor]
        best = np.concatenate([center - size / 2, center + size / 2])
        np.testing.assert_allclose(best, expected["boxes"][i, 0], atol=1e-4)
        assert label == expected["classes"][i, 0]
        assert scores[i].max() == pytest.approx(expected["scores"][i, 0], abs=1e-4)


def test_readme_says_how_to_prepare_pictures_and_decode(out):
    text = (out / "README.md").read_text("utf-8")
    for expected in ("# ssd: SSD (tiny) for TensorFlow Serving", "2/assets.extra/anchors.npy", str(VARIANCES),
                     f"`images` float32 [B, {SIZE}, {SIZE}, 3], RGB in 0..1, resized to that size whatever"):
        assert expected in text
    assert "{" not in text.replace("{{", "").split("## `serving_default`")[1]


def test_bfloat16_is_close_and_smaller(model, out):
    assert export.read_config(out / "2") == {**CONFIG, "precision": "bfloat16", **THRESHOLDS}
    with export.Session(out / "2") as session:
        found = session.run("network", {"images": IMAGES})
    for name, expected in model(IMAGES, training=False).items():
        assert found[name].dtype == np.float32
        # 8 bits of mantissa in a dozen layers.
        assert np.sqrt(np.mean((found[name] - expected) ** 2)) < 0.05 * np.std(expected)
    # Kernels take two bytes or three (as a varint) instead of four; those of the predictors stay in float32.
    halved = sum(np.prod(layer.kernel.shape) for layer in model.layers
                 if hasattr(layer, "kernel") and not layer.name.startswith(("boxes_", "classes_")))
    saved = constants(out / "1") - constants(out / "2")
    assert 1.4 * halved < saved < 2.1 * halved


def graph_of(folder):
    saved = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
    return saved.meta_graphs[0].graph_def


def constants(folder):
    return sum(node.ByteSize() for node in graph_of(folder).node if node.op == "Const")


def test_graph_holds_one_copy_of_the_folded_weights(model, out):
    graph = graph_of(out / "1")
    operations = [node.op for node in graph.node]
    inside = [node.op for function in graph.library.function for node in function.node_def]
    convolutions = sum(hasattr(layer, "kernel") for layer in model.layers)
    assert operations.count("Conv2D") == 3 * convolutions and "Conv2D" not in inside
    assert not [op for op in operations + inside if "Variable" in op or "BatchNorm" in op]
    anchors_and_labels = 3 * 16 * len(anchors("tiny"))
    assert constants(out / "1") < 1.1 * 4 * model.count_params() + anchors_and_labels


@pytest.mark.parametrize("variant, batch_norm", [("article", False), ("caffe", True)])
def test_vgg_freezes_with_all_its_layers(variant, batch_norm):
    """Rescaling, dilation, the padding of `caffe`, L2 normalisation; batch normalisation, with and without."""
    model = small.randomize(vgg300(2, variant, 1 / 16, batch_norm))
    frozen = runtime.network(model, 300)
    images = np.random.default_rng(0).uniform(size=[1, 300, 300, 3]).astype(np.float32)
    outputs = frozen(tf.constant(images))
    for found, expected in zip(outputs, tf.nest.flatten(model(images, training=False)), strict=True):
        # Some float32 roundings in 23 layers.
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    operations = [operation.type for operation in frozen.graph.get_operations()]
    assert operations.count("Conv2D") == 23 + 12 and not frozen.captured_inputs
    assert not {"Pad", "PadV2", "SpaceToBatchND", "FusedBatchNormV3", "ReadVariableOp"} & set(operations)


def test_a_bundle_of_other_weights_is_not_published(model, out, tmp_path):
    other = small.build(seed=4)
    config = {**CONFIG, "precision": "float32", **THRESHOLDS}
    with export.Session(out / "1") as session:
        detection_export.check_equal(session, model, config, ssd_export.detector(CONFIG, **THRESHOLDS))
        with pytest.raises(UserError, match="Exported logits must be those of the Keras model.*ssd.evaluate"):
            detection_export.check_equal(session, other, config, ssd_export.detector(CONFIG, **THRESHOLDS))
        with pytest.raises(UserError, match="Exported boxes of serving_default must be those of ssd.postprocess"):
            detection_export.check_equal(session, model, config,
                                         ssd_export.detector(CONFIG, **{**THRESHOLDS, "iou_threshold": 0.1}))


def test_grpc_and_rest(server, model):
    found = serving.ask(server, {"image_bytes": FILES}, "image_bytes")
    assert found["num"].shape == (3,) and found["labels"][0, 0].decode() in LABELS
    with pytest.raises(grpc.RpcError) as error:
        serving.ask(server, {"image_bytes": [FILES[0], b"no picture"]}, "image_bytes")
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    scores = serving.ask(server, {"images": IMAGES})["scores"]
    np.testing.assert_allclose(scores, keras_detections(model, IMAGES)["scores"], atol=1e-4)
    encoded = [{"image_bytes": {"b64": base64.b64encode(data).decode()}} for data in FILES]
    rows = serving.post(server, {"signature_name": "image_bytes", "instances": encoded})["predictions"]
    for i, row in enumerate(rows):
        np.testing.assert_allclose(row["boxes"], found["boxes"][i], atol=1e-4)
        assert row["labels"][:row["num"]] == [LABELS[label] for label in row["classes"][:row["num"]]]


def test_saved_model_cli(out, tmp_path):
    np.save(tmp_path / "files.npy", np.array(FILES))  # no NUL at their ends, which NumPy would cut
    serving.saved_model_cli(
        ["run", "--tag_set", "serve", "--dir", out / "1", "--signature_def", "image_bytes", "--inputs",
         f"image_bytes={tmp_path}/files.npy", "--outdir", tmp_path])
    assert np.load(tmp_path / "boxes.npy").shape == (3, THRESHOLDS["max_detections"], 4)
