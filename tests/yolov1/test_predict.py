"""From a run folder or a bundle to detections: pixels of the pictures, both signatures, bfloat16, drawings."""

import json

import cv2
import numpy as np
import pytest
import tensorflow as tf

from common import checkpoints, detection_predict, export, runtime
from common.errors import UserError
from tests.common.test_export import randomize
from yolov1 import export as yolov1_export
from yolov1 import predict
from yolov1.postprocess import postprocess

LABELS = ["cat", "dog", "écureuil"]
CONFIG = {"article": "yolov1", "grid": 3, "num_boxes": 2, "image_size": 32, "hidden": 8, "labels": LABELS}
THRESHOLDS = {"score_threshold": 0.3, "iou_threshold": 0.45, "max_detections": 15, "class_agnostic": False}
RNG = np.random.default_rng(5)


@pytest.fixture(scope="module")
def model():
    model = randomize(predict.build(CONFIG), seed=3)
    # The last layer as it is behind a training: sigmoids that are not at their ends.
    kernel, bias = model.get_layer("cells").get_weights()
    model.get_layer("cells").set_weights([kernel, bias + 0.5])
    return model


@pytest.fixture(scope="module")
def bundle(model, tmp_path_factory):
    """Version 1 in float32 and version 2 in bfloat16."""
    out = tmp_path_factory.mktemp("serving") / "yolov1"
    yolov1_export.export_bundle(model, CONFIG, out, **THRESHOLDS)
    with runtime.dtype_policy("mixed_bfloat16"):
        half = predict.build(CONFIG)
    half.set_weights(model.get_weights())
    yolov1_export.export_bundle(half, CONFIG, out, precision="bfloat16", reference=model, **THRESHOLDS)
    return out


def picture(height, width):
    return cv2.resize(RNG.integers(0, 256, [6, 7, 3], np.uint8), (width, height))


def expected_detections(model, images):
    """Detections of Keras's outputs, in pixels of the pictures, cut at their borders."""
    outputs = model(tf.stack([tf.image.resize(tf.cast(image, tf.float32) / 255, [32, 32]) for image in images]))
    found = postprocess(outputs, 3, 2, **THRESHOLDS)
    height, width = np.array([image.shape[:2] for image in images]).T[..., None]
    limits = np.stack([width, height, width, height], axis=-1)
    found = {name: value.numpy() for name, value in found.items()}
    return {**found, "boxes": np.clip(found["boxes"], 0, 1) * limits}


def test_detections_are_those_of_keras_in_pixels(model):
    images = [picture(60, 140), picture(200, 90)]
    expected = expected_detections(model, images)
    found, seconds = predict.make_detect(runtime.network(model, 32), CONFIG, **THRESHOLDS)(images)
    assert seconds > 0
    for index, detections in enumerate(found):
        num = len(detections)
        assert num == expected["num"][index] > 0
        assert [LABELS.index(one["label"]) for one in detections] == list(expected["classes"][index, :num])
        boxes_xyxy, scores = ([one[key] for one in detections] for key in ("box_xyxy", "score"))
        np.testing.assert_allclose(boxes_xyxy, expected["boxes"][index, :num], atol=0.05)
        np.testing.assert_allclose(scores, expected["scores"][index, :num], atol=1e-4)


def test_both_signatures_of_a_bundle(model, bundle):
    images = [picture(32, 32), picture(50, 130)]
    files = [cv2.imencode(".png", image[..., ::-1])[1].tobytes() for image in images]
    expected = expected_detections(model, images)
    with export.Session(bundle / "1") as session:
        found = session.run("image_bytes", {"image_bytes": np.array(files, object)})
        square = session.run("serving_default", {"images": np.float32(images[:1]) / 255})
        with pytest.raises(tf.errors.InvalidArgumentError, match="JPEG or PNG"):
            session.run("image_bytes", {"image_bytes": np.array([b"no picture"], object)})
        assert len(session.run("image_bytes", {"image_bytes": np.array(files, object)})["num"]) == 2
    np.testing.assert_array_equal(found["num"], expected["num"])
    np.testing.assert_array_equal(found["classes"], expected["classes"])
    np.testing.assert_allclose(found["boxes"], expected["boxes"], atol=0.02)
    np.testing.assert_allclose(found["scores"], expected["scores"], atol=1e-4)
    names = [[(LABELS + [""])[i].encode() for i in row] for row in found["classes"]]
    np.testing.assert_array_equal(found["labels"], np.array(names, object))
    np.testing.assert_allclose(square["boxes"][0] * 32, expected["boxes"][0], atol=0.02)
    readme = (bundle / "README.md").read_text("utf-8")
    assert "humble YOLO" in readme and "whatever the" in readme and "image_bytes" in readme


def test_bfloat16_is_close(model, bundle):
    images = np.float32([picture(32, 32)]) / 255
    with export.Session(bundle / "2") as session:
        found = session.run("network", {"images": images})["predictions"]
    expected = model(images).numpy()
    # 8 bits of mantissa in six layers.
    assert found.dtype == np.float32 and 0 < np.sqrt(np.mean((found - expected) ** 2)) < 0.1 * np.std(expected)


def test_run_and_bundle_from_the_command_line(model, bundle, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps(CONFIG))
    checkpoints.write_best(run / "checkpoints" / "best.weights.h5", model, {"value": 0.5, "step": 7})
    loaded, config = predict.load_run(run)
    for found, expected in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)
    image = picture(60, 140)
    cv2.imwrite(str(tmp_path / "photo.png"), image)
    written = []
    for infer, config in ((runtime.network(loaded, 32), config), runtime.bundle_network(bundle / "1")):
        out = tmp_path / f"out_{len(written)}"
        detection_predict.predict([str(tmp_path / "photo.png")], predict.make_detect(infer, config, **THRESHOLDS),
                                  config, out)
        written.append(json.loads((out / "detections.jsonl").read_text("utf-8")))
        assert (cv2.imread(str(out / "photo.png")) != image).any()
    assert written[0]["detections"] and (written[0]["width"], written[0]["height"]) == (140, 60)
    for one, other in zip(written[0]["detections"], written[1]["detections"], strict=True):
        assert one["label"] == other["label"]
        np.testing.assert_allclose(one["box_xyxy"], other["box_xyxy"], atol=0.05)


def test_folder_that_is_no_run(tmp_path):
    with pytest.raises(UserError, match="--run must name a run folder, runs/yolov1/<name>"):
        predict.load_run(None)
    (tmp_path / "config.json").write_text(json.dumps({"article": "yolov3"}))
    with pytest.raises(UserError, match="must be a run of yolov1.*'yolov3'"):
        predict.load_run(tmp_path)


def test_a_bundle_of_another_article_is_refused(bundle):
    with pytest.raises(UserError, match="--bundle must be one that ssd.export wrote, and .* is of 'yolov1'."):
        runtime.bundle_network(bundle, article="ssd")
