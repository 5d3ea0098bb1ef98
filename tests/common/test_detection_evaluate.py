"""What the evaluation of every detector says: more objects than detections, pictures and classes without objects."""

import types

import numpy as np
import pytest
import tensorflow as tf

from common import detection, detection_evaluate, detection_predict, records
from common.errors import UserError
from common.metrics.average_precision import Detections, Truths
from ssd import evaluate as ssd_evaluate
from ssd.model import anchors as ssd_anchors
from tests.yolov1 import test_train as yolov1_small
from tests.yolov3 import test_train as yolov3_small
from yolov1 import evaluate as yolov1_evaluate
from yolov1 import train as yolov1_train
from yolov3 import evaluate as yolov3_evaluate
from yolov3 import train as yolov3_train

SIDE, CELLS = 416, 26  # 676 cells of 16 pixels
ANCHORS = np.full([3, 3, 2], 10, np.float32)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    """Records: a white picture with an object of 10 x 10 pixels in each of 676 cells, and a black one without any."""
    folder = tmp_path_factory.mktemp("crowded") / "set"
    corner = np.stack(np.meshgrid(np.arange(CELLS), np.arange(CELLS)), axis=-1).reshape(-1, 2) * 16 + 3
    boxes_xyxy = np.concatenate([corner, corner + 10], axis=1)
    source = detection.Source("set", ["dot", "never"], {split: [0, 1] for split in ("train", "val")}, lambda index: (
        detection.Annotation(tf.io.encode_png(np.full([SIDE, SIDE, 3], 255 * (1 - index), np.uint8)).numpy(),
                             f"{index}.png", boxes_xyxy[:0] if index else boxes_xyxy, [0] * (0 if index else 676))))
    return detection.build_records(source, folder.parent, progress=False).folder


def yolov1_perfect(images, training):
    """Predictions [B, 676, C + 1 + 5]: class 0 and an object in each cell of white pictures, all scores differ."""
    sure = tf.reduce_mean(images, axis=[1, 2, 3])[:, None] * tf.linspace(0.5, 1.0, CELLS**2)
    constant = tf.constant([1.0, 0.0, 0.0, 0.5, 0.5, 10 / SIDE, 10 / SIDE])
    return tf.concat([tf.tile(constant[None, None], [tf.shape(images)[0], CELLS**2, 1]), sure[..., None]], axis=-1)


def yolov3_perfect(images, training):
    """Logits of three scales: one anchor in each cell of the middle one."""
    white = tf.reduce_mean(images, axis=[1, 2, 3])[:, None, None, None, None]
    there = tf.constant([0, 0, 0, 0, 5, 5, -20.0]) * white
    nothing = tf.constant([0, 0, 0, 0, -20, 0, 0.0])
    logits = []
    for cells in (CELLS // 2, CELLS, 2 * CELLS):
        shape = [tf.shape(images)[0], cells, cells, 1, 7]
        one = tf.broadcast_to(tf.where(white > 0.5, there, nothing) if cells == CELLS else nothing, shape)
        logits.append(tf.concat([one, tf.broadcast_to(nothing, [*shape[:3], 2, 7])], axis=3))
    return logits


def found_by(article, folder, max_detections):
    strategy = tf.distribute.get_strategy()
    if article == "yolov1":
        module, detect = yolov1_evaluate, yolov1_evaluate.make_detect(
            yolov1_perfect, strategy, num_classes=2, num_boxes=1, max_detections=max_detections)
    else:
        module, detect = yolov3_evaluate, yolov3_evaluate.make_detect(
            yolov3_perfect, strategy, anchors=ANCHORS, image_size=SIDE, max_detections=max_detections)
    dataset = module.batches(folder, "val", strategy, image_size=SIDE, batch_size=1)
    return detection_evaluate.collect(detect, dataset, strategy)


@pytest.mark.parametrize("article", ["yolov1", "yolov3"])
def test_perfect_detector_of_more_objects_than_detections_are_kept(article, crowded):
    most = detection_evaluate.most_detections(crowded, "val", 300)
    assert most == 676 and detection_evaluate.most_detections(crowded, "val", 1000) == 1000
    found = found_by(article, crowded, most)
    summary, _ = detection_evaluate.summarize(found, ["dot", "never"])
    assert summary["voc10_map"] == summary["voc07_map"] == 1
    assert summary["pictures"] == 2 and summary["objects"] == 676
    assert summary["coco"]["AP50"] < 0.2 and summary["notes"] == [  # pycocotools' rule
        "note: no picture has an object of 1 of the 2 classes; their average precision is nan, and the means are those "
        "of the others: never.",
        "note: some pictures have up to 676 objects of a class, and COCO's figures take the best 100 detections of a "
        "class in a picture, as its evaluator does: they cannot reach 1."]
    assert detection_evaluate.table(summary).splitlines()[0] == "2 pictures, 676 objects"
    assert detection_evaluate.table(summary).splitlines()[-2:] == summary["notes"]

    cut = found_by(article, crowded, 300)
    summary, _ = detection_evaluate.summarize(cut, ["dot", "never"])
    assert summary["voc10_map"] == pytest.approx(300 / 676)
    assert summary["notes"][1] == ("note: 1 of 2 pictures have more than 300 objects, and no more than that are "
                                   "detected in a picture: the others count as missed.")


@pytest.mark.parametrize("small, train", [(yolov1_small, yolov1_train), (yolov3_small, yolov3_train)])
@pytest.mark.parametrize("limit", [0, 2])
def test_validation_that_chooses_the_best_epoch_keeps_as_many(small, train, limit, crowded, tmp_path, monkeypatch):
    class Made(Exception):
        pass

    def make_detect(*_, max_detections, **__):
        raise Made(max_detections)

    monkeypatch.setattr(train.evaluate, "make_detect", make_detect)
    with pytest.raises(Made, match="676"):
        train.train(tmp_path, small.config_of(crowded, limit=limit, batch_size=1), tf.distribute.get_strategy())


def test_ssd_keeps_its_200_and_says_so(crowded):
    def model(images, training):
        shape = [tf.shape(images)[0], len(ssd_anchors("tiny"))]
        return {"logits": tf.broadcast_to([9.0, 0.0, 0.0], [*shape, 3]), "offsets": tf.zeros([*shape, 4])}

    strategy = tf.distribute.get_strategy()
    detect = ssd_evaluate.make_detect(model, strategy, anchors=ssd_anchors("tiny"))
    dataset = ssd_evaluate.batches(crowded, "val", strategy, image_size=160, batch_size=2)
    found = detection_evaluate.collect(detect, dataset, strategy)
    summary, _ = detection_evaluate.summarize(found, ["dot", "never"])
    assert "note: 1 of 2 pictures have more than 200 objects" in detection_evaluate.table(summary)


def nothing_found(truths, pictures=3):
    none = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros([0, 4]))
    return detection_evaluate.Found(none, truths, pictures, 300)


def test_split_without_objects_is_said():
    none = Truths(np.zeros(0, int), np.zeros(0, int), np.zeros([0, 4]))
    summary, _ = detection_evaluate.summarize(nothing_found(none), ["a", "b"])
    assert np.isnan(summary["voc10_map"]) and summary["pictures"] == 3
    assert summary["notes"] == ["note: no picture has an object: there is no average precision to measure, it is nan."]
    difficult = Truths(np.array([0, 2]), np.array([0, 1]), np.tile([0, 0, 9, 9], [2, 1]),
                       difficult=np.array([True, True]))
    summary, _ = detection_evaluate.summarize(nothing_found(difficult), ["a", "b"])
    assert summary["notes"] == ["note: no picture has an object (difficult ones and crowds apart): there is no "
                                "average precision to measure, it is nan."]
    one = difficult._replace(difficult=np.array([True, False]))
    summary, _ = detection_evaluate.summarize(nothing_found(one), ["a", "b"])
    assert summary["notes"] == ["note: no picture has an object (difficult ones and crowds apart) of 1 of the 2 "
                                "classes; their average precision is nan, and the means are those of the others: a."]


def test_validation_without_objects_says_that_no_epoch_is_best(tmp_path, capsys):
    picture = tf.io.encode_png(np.zeros([32, 32, 3], np.uint8)).numpy()
    source = detection.Source("empty", ["a"], {"val": [0, 1]}, lambda index: detection.Annotation(
        picture, f"{index}.png", np.zeros([0, 4]), []))
    folder = detection.build_records(source, tmp_path, progress=False).folder
    assert detection_evaluate.most_detections(folder, "val", 300) == 300
    strategy = tf.distribute.get_strategy()

    def detect(images, height, width):
        return {"num": tf.zeros([2], tf.int32), "classes": tf.zeros([2, 5], tf.int32), "scores": tf.zeros([2, 5]),
                "boxes": tf.zeros([2, 5, 4])}

    dataset = yolov1_evaluate.batches(folder, "val", strategy, image_size=32, batch_size=2)
    metrics, _ = detection_evaluate.validate(detect, dataset, strategy, folder=folder, split="val", labels=["a"])
    assert np.isnan(metrics["map50"])
    assert capsys.readouterr().err == ("note: no picture has an object: there is no average precision to measure, it "
                                       "is nan. No epoch of val is kept as the best.\n")
    assert records.read_manifest(folder)["splits"]["val"]["most_objects"] == 0


def test_predict_says_where_it_kept_no_more(tmp_path, capsys):
    for index in range(3):
        (tmp_path / f"{index}.png").write_bytes(tf.io.encode_png(np.full([8, 8, 3], index, np.uint8)).numpy())
    one = {"label": "a", "score": 0.9, "box_xyxy": [1.0, 1.0, 5.0, 5.0]}

    def detect(pictures):
        return [[one] * min(int(picture[0, 0, 0]), 2) for picture in pictures], 0.1

    flags = types.SimpleNamespace(out=str(tmp_path / "out"), batch_size=1, max_detections=2)
    arguments = [str(tmp_path / f"{index}.png") for index in range(3)]
    detection_predict.run(arguments, lambda flags: (detect, {"labels": ["a"], "image_size": 8}), flags)
    assert capsys.readouterr().err == ("note: 1 of 3 images have the 2 detections that --max_detections keeps, and may "
                                       "have more. Give more to see them.\n")
    flags.max_detections = 3
    detection_predict.run(arguments, lambda flags: (detect, {"labels": ["a"], "image_size": 8}), flags)
    assert capsys.readouterr().err == ""


def test_a_report_below_a_file_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    empty = Truths(*[np.zeros([0, 4]) if name == "boxes_xyxy" else np.zeros([0]) for name in Truths._fields])
    none = Detections(np.zeros([0]), np.zeros([0]), np.zeros([0]), np.zeros([0, 4]))
    found = detection_evaluate.Found(none, empty, 1, 100)
    flags = types.SimpleNamespace(run=str(tmp_path), out=str(tmp_path / "file" / "report"))
    with pytest.raises(UserError, match="report must be a folder, or a place to make one"):
        detection_evaluate.report(flags, "val", found, ["a"])
