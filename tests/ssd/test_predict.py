"""From a run folder or a bundle to detections in pixels of pictures and videos, under every runtime."""

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

from common import boxes, media, runtime
from common.errors import UserError
from ssd import export, predict
from ssd.model import anchors
from ssd.postprocess import postprocess
from tests.ssd import small

ROOT = pathlib.Path(__file__).parents[2]
SIZE = small.CONFIG["image_size"]
THRESHOLDS = {"score_threshold": 0.3, "iou_threshold": 0.45, "max_detections": 15, "class_agnostic": False}
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def model():
    return small.build()


def picture(height, width):
    return cv2.resize(RNG.integers(0, 256, [6, 7, 3], np.uint8), (width, height))


def test_run_is_loaded_with_its_weights(model, tmp_path):
    run = small.write_run(tmp_path / "run", model)
    half, config = predict.load_run(run, precision="mixed_bfloat16")
    assert config["labels"] == small.LABELS and half.get_layer("conv1_1").compute_dtype == "bfloat16"
    for found, expected in zip(half.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    (run / "config.json").write_text(json.dumps({"article": "yolov3"}))
    with pytest.raises(UserError, match="must be a run of ssd.*'yolov3'"):
        predict.load_run(run)
    with pytest.raises(UserError, match="--labels"):
        predict.load_caffe("ssd.caffemodel", None)
    values = flags.FlagValues()
    for flag in ("run", "weights", "bundle", "labels"):
        flags.DEFINE_string(flag, None, "", flag_values=values)
    values(["predict", "--run=x", "--labels=y"])
    with pytest.raises(UserError, match="--labels is of --weights"):
        predict.load_network(values)


def test_detections_are_those_of_keras_in_pixels(model):
    images = [picture(60, 140), picture(200, 90)]
    for options in (THRESHOLDS, {**THRESHOLDS, "class_agnostic": True}):
        found, seconds = predict.make_detect(runtime.network(model, SIZE), small.CONFIG, **options)(images)
        predictions = model(tf.stack([boxes.warp(image, SIZE) for image in images]), training=False)
        expected = {name: value.numpy() for name, value in
                    postprocess(predictions, anchors("tiny"), **options).items()}
        assert seconds > 0
        for index, (height, width) in enumerate([(60, 140), (200, 90)]):
            num = expected["num"][index]
            assert len(found[index]) == num > 0
            labels = [small.LABELS.index(one["label"]) for one in found[index]]
            np.testing.assert_array_equal(labels, expected["classes"][index, :num])
            pixels = np.clip(expected["boxes"][index, :num], 0, 1) * [width, height, width, height]
            # Rounded to a hundredth of a pixel, after rounding of the folded kernels.
            np.testing.assert_allclose([one["box_xyxy"] for one in found[index]], pixels, atol=0.05)
            np.testing.assert_allclose([one["score"] for one in found[index]], expected["scores"][index, :num],
                                       atol=1e-4)


def test_runtimes_agree(model, tmp_path):
    pytest.importorskip("openvino")
    images = tf.constant(RNG.uniform(size=[2, SIZE, SIZE, 3]), tf.float32)
    expected = tf.nest.flatten(model(images, training=False))
    export.write_bundle(tmp_path / "1", model, small.CONFIG, **THRESHOLDS)
    bundle, config = runtime.bundle_network(tmp_path)
    assert config["labels"] == small.LABELS and config["model"] == "tiny"
    networks = {"keras": bundle, "openvino from bundle": runtime.bundle_network(tmp_path, "openvino")[0],
                "openvino": runtime.network(model, SIZE, "openvino")}
    for name, infer in networks.items():
        for found, output in zip(infer(images), expected, strict=True):
            assert found.shape == output.shape, name
            # OpenVINO computes in bfloat16 where the processor can: 8 bits of mantissa in a dozen layers.
            limit = (1e-4 if name == "keras" else 0.05) * np.std(output)
            assert np.sqrt(np.mean((found - output) ** 2)) < limit, name


def test_command(model, tmp_path):
    """Two pictures and a video, whose rate per second stands in the last line; what cannot be read is named."""
    run = small.write_run(tmp_path / "run", model)
    cv2.imwrite(str(tmp_path / "a.png"), picture(60, 140))
    cv2.imwrite(str(tmp_path / "b.png"), picture(90, 50))
    with media.VideoWriter(tmp_path / "clip", 10.0, (80, 64)) as video:
        for _ in range(3):
            video.write(picture(64, 80))
    command = [sys.executable, "-m", "ssd.predict", "--run", run, "--out", tmp_path / "out", "--score_threshold",
               "0.3", "--precision", "bfloat16", "--batch_size", "2", tmp_path / "*.png", video.path, "none.jpg"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "5 images, " in done.stdout and " per second in network and suppression, " in done.stdout
    assert " all in; 1 unreadable" in done.stdout and "none.jpg: no such" in done.stderr
    lines = [json.loads(line) for line in (tmp_path / "out" / "detections.jsonl").read_text("utf-8").splitlines()]
    assert [(pathlib.Path(line["file"]).name, line["frame"]) for line in lines] == [
        ("a.png", 0), ("b.png", 0), *((video.path.name, frame) for frame in range(3))]
    for line in lines:
        assert line["detections"]
        for one in line["detections"]:
            x1, y1, x2, y2 = one["box_xyxy"]
            assert 0 <= x1 <= x2 <= line["width"] and 0 <= y1 <= y2 <= line["height"]
    frames = list(media.frames([str(tmp_path / "out" / video.path.name)], pytest.fail))
    assert len(frames) == 3 and frames[0].image.shape == (64, 80, 3)
