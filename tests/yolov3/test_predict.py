"""From a run folder, Darknet weights or a bundle to detections, drawn pictures and JSON lines."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf
from absl import flags

from common import boxes, checkpoints, detection_predict, media, runtime
from common.errors import UserError
from tests.common.test_export import randomize
from tests.common.test_media import with_orientation
from yolov3 import convert, export, predict
from yolov3.model import TINY_ANCHORS
from yolov3.postprocess import postprocess

ROOT = pathlib.Path(__file__).parents[2]
SIZE = 96
LABELS = ["cat", "dog", "écureuil"]
CONFIG = {"article": "yolov3", "model": "tiny", "width": 0.25, "image_size": SIZE, "labels": LABELS,
          "anchors": TINY_ANCHORS.tolist()}
THRESHOLDS = {"score_threshold": 0.3, "iou_threshold": 0.45, "max_detections": 15, "class_agnostic": False}
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def model():
    return randomize(predict.build(CONFIG), seed=3)


@pytest.fixture(scope="module")
def run(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "toy"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    checkpoints.write_best(folder / "checkpoints" / "best.weights.h5", model, {"value": 0.5, "step": 7})
    return folder


@pytest.fixture(scope="module")
def detect(model):
    return predict.make_detect(runtime.network(model, SIZE), CONFIG, **THRESHOLDS)


@pytest.fixture()
def sources(tmp_path):
    """A folder of a wide picture and a turned one, a video of 3 frames, and what cannot be read."""
    folder = tmp_path / "photos"
    folder.mkdir()
    wide = picture(60, 140)
    cv2.imwrite(str(folder / "a.png"), wide)
    jpeg = cv2.imencode(".jpg", wide)[1].tobytes()
    (folder / "b.jpg").write_bytes(with_orientation(jpeg, 6))
    (tmp_path / "cut.jpg").write_bytes(jpeg[:len(jpeg) // 2])
    (tmp_path / "other").mkdir()
    cv2.imwrite(str(tmp_path / "other" / "a.png"), picture(90, 50))
    with media.VideoWriter(tmp_path / "clip", 10.0, (80, 64)) as video:
        for _ in range(3):
            video.write(picture(64, 80))
    return [folder, tmp_path / "other" / "*.png", tmp_path / "cut.jpg", video.path, tmp_path / "missing.png"]


def picture(height, width):
    return cv2.resize(RNG.integers(0, 256, [6, 7, 3], np.uint8), (width, height))


def lines(folder):
    return [json.loads(line) for line in (folder / "detections.jsonl").read_text("utf-8").splitlines()]


def test_run_is_loaded_with_its_weights(run, model):
    loaded, config = predict.load_run(run)
    assert config["labels"] == LABELS
    for found, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    half, _ = predict.load_run(run, precision="mixed_bfloat16")
    assert half.get_layer("conv_000").compute_dtype == "bfloat16"
    assert predict.build(CONFIG).get_layer("conv_000").compute_dtype == "float32"  # the policy is put back


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="--run must name"):
        predict.load_run(None)
    with pytest.raises(UserError, match="config.json"):
        predict.load_run(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"article": "ssd"}))
    with pytest.raises(UserError, match="must be a run of yolov3.*'ssd'"):
        predict.load_run(tmp_path)


def test_detections_are_those_of_keras_in_pixels(model, detect):
    images = [picture(60, 140), picture(200, 90)]
    found, seconds = detect(images)
    logits = model(tf.stack([boxes.letterbox(image, SIZE) for image in images]), training=False)
    expected = postprocess(logits, TINY_ANCHORS, (SIZE, SIZE), **THRESHOLDS)
    pixels = boxes.unletterbox_boxes(expected["boxes"], [60, 200], [140, 90], SIZE).numpy()
    assert seconds > 0
    for index, detections in enumerate(found):
        assert len(detections) == expected["num"][index] > 0
        num = len(detections)
        assert [LABELS.index(one["label"]) for one in detections] == list(expected["classes"][index, :num])
        # Rounded to a hundredth of a pixel, after rounding of the folded kernels.
        np.testing.assert_allclose([one["box_xyxy"] for one in detections], pixels[index, :num], atol=0.05)
        scores = [one["score"] for one in detections]
        np.testing.assert_allclose(scores, expected["scores"][index, :num], atol=1e-4)
        assert scores == sorted(scores, reverse=True)


def test_files_lines_and_drawings(detect, sources, tmp_path):
    messages = []
    result = detection_predict.predict(list(map(str, sources)), detect, CONFIG, tmp_path / "out", batch_size=4,
                             report=messages.append)
    assert result["images"] == 6 and result["network_seconds"] < result["seconds"]
    assert result["unreadable"] == [str(sources[2]), str(sources[4])]
    assert "cut.jpg" in messages[0] and "missing.png: no such" in messages[1]
    found = lines(tmp_path / "out")
    assert [(pathlib.Path(line["file"]).name, line["frame"]) for line in found] == [
        ("a.png", 0), ("b.jpg", 0), ("a.png", 0), *((sources[3].name, frame) for frame in range(3))]
    assert (found[0]["width"], found[0]["height"]) == (140, 60)
    assert (found[1]["width"], found[1]["height"]) == (60, 140)  # as shown
    for line in found:
        for one in line["detections"]:
            x1, y1, x2, y2 = one["box_xyxy"]
            assert 0 <= x1 <= x2 <= line["width"] and 0 <= y1 <= y2 <= line["height"]
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"a.png", "b.png", "a_2.png", sources[3].name, "detections.jsonl"}
    drawn = cv2.imread(str(tmp_path / "out" / "a.png"))
    assert drawn.shape == (60, 140, 3) and (drawn != cv2.imread(str(sources[0] / "a.png"))).any()
    video = list(media.frames([str(tmp_path / "out" / sources[3].name)], pytest.fail))
    assert len(video) == 3 and video[0].image.shape == (64, 80, 3) and video[0].fps == pytest.approx(10.0)


def test_interrupted_camera_keeps_what_it_saw(tmp_path, monkeypatch):
    def camera(*_):
        yield media.Frame("camera 0", 0, picture(64, 80), 10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(media, "frames", camera)
    found = [{"label": "dog", "score": 0.5, "box_xyxy": [1.0, 2.0, 30.0, 40.0]}]
    result = detection_predict.predict(["0"], lambda pictures: ([found] * len(pictures), 0.1), CONFIG, tmp_path)
    assert result["interrupted"] and result["images"] == 1
    assert lines(tmp_path)[0]["drawn"] in ("camera_0.mp4", "camera_0.avi")
    assert len(list(tmp_path.iterdir())) == 2


def test_class_agnostic_keeps_one_class_per_place(model):
    infer = runtime.network(model, SIZE)
    agnostic = {**THRESHOLDS, "class_agnostic": True, "iou_threshold": 0.3, "max_detections": 100}
    (found,), _ = predict.make_detect(infer, CONFIG, **agnostic)([picture(SIZE, SIZE)])
    corners = np.array([one["box_xyxy"] for one in found], np.float32)
    overlap = boxes.iou(corners, corners).numpy() - np.eye(len(found))
    assert len(found) > 1 and overlap.max() < 0.8  # clipped boxes may overlap a little more than 0.3


def test_runtimes_agree(model, run, tmp_path):
    pytest.importorskip("openvino")
    images = tf.constant(RNG.uniform(size=[2, SIZE, SIZE, 3]), tf.float32)
    expected = model(images, training=False)
    export.export_bundle(model, CONFIG, tmp_path / "bundle", **THRESHOLDS)
    bundle, config = runtime.bundle_network(tmp_path / "bundle")
    assert config["labels"] == LABELS
    networks = {
        "keras": bundle,
        "openvino from bundle": runtime.bundle_network(tmp_path / "bundle", "openvino")[0],
        "openvino": runtime.network(model, SIZE, "openvino"),
    }
    for name, infer in networks.items():
        for found, logits in zip(infer(images), expected, strict=True):
            assert found.shape == logits.shape, name
            # OpenVINO computes in bfloat16 where the processor can: 8 bits of mantissa in a dozen layers.
            limit = (1e-4 if name == "keras" else 0.05) * np.std(logits)
            assert np.sqrt(np.mean((found - logits) ** 2)) < limit, name


def test_openvino_that_is_not_installed(model, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[openvino\]"'):
        runtime.network(model, SIZE, "openvino")


def test_darknet_weights(tmp_path):
    full = randomize(predict.build({**CONFIG, "width": 1.0}), seed=1)
    convert.save_darknet(full, tmp_path / "tiny.weights")
    (tmp_path / "toy.names").write_text("\n".join(LABELS) + "\n", "utf-8")
    model, config = predict.load_darknet(tmp_path / "tiny.weights", tmp_path / "toy.names", image_size=64)
    assert config["model"] == "tiny" and config["labels"] == LABELS and config["image_size"] == 64
    for found, expected in zip(model.get_weights(), full.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(UserError, match="--labels"):
        predict.load_darknet(tmp_path / "tiny.weights", None)


@pytest.mark.parametrize("name", ["anchors", "cfg", "labels", "model"])
def test_flags_of_weights_are_refused_without_them(name):
    values = flags.FlagValues()
    for flag in ("anchors", "cfg", "labels", "model", "weights", "bundle", "image_size", "run"):
        flags.DEFINE_string(flag, None, "", flag_values=values)
    values(["predict", "--run=x", f"--{name}=y"])
    with pytest.raises(UserError, match="are of --weights"):
        predict.load_network(values)


def test_command(run, sources, tmp_path):
    def command(*arguments):
        return subprocess.run([sys.executable, "-m", "yolov3.predict", "--run", run, *arguments], cwd=ROOT,
                              text=True, capture_output=True, timeout=120,
                              env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})

    options = ["--score_threshold", "0.3", "--precision", "bfloat16"]
    process = command("--out", tmp_path / "out", *options, *sources)
    assert process.returncode == 0, process.stderr[-2000:]
    for expected in ("6 images", "2 unreadable", "per second"):
        assert expected in process.stdout
    assert len(lines(tmp_path / "out")) == 6
    process = command("--out", tmp_path / "none", tmp_path / "missing.jpg", sources[2])
    assert process.returncode == 2 and "None of the 2 sources could be read" in process.stderr
    assert "Traceback" not in process.stderr and "missing.jpg" in process.stderr
