"""Average precision against numbers by hand, pycocotools, another package, and the devkit's rules."""

import contextlib
import io
import re

import numpy as np
import pytest
from mean_average_precision import MetricBuilder
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.metrics import average_precision
from common.metrics.average_precision import Detections, Truths, coco, voc

COCO_KEYS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")


def random_set(seed, images=40, num_classes=5, truths_per_image=6, detections_per_image=25, crowd=0.1,
               difficult=0.2, levels=20):
    """Boxes on whole pixels, so that IoUs meet thresholds exactly; `levels` distinct scores make ties."""
    rng = np.random.default_rng(seed)
    G, D = images * truths_per_image, images * detections_per_image

    def boxes(n):
        corner = rng.integers(0, 200, (n, 2))
        size = rng.choice([4, 16, 20, 32, 60, 96, 150], (n, 2))
        return np.concatenate([corner, corner + size], axis=1).astype(float)

    image, label = rng.integers(0, images, G) * 3 + 7, rng.integers(0, num_classes - 1, G)
    truth_boxes = boxes(G)
    truths = Truths(image, label, truth_boxes, rng.uniform(size=G) < difficult, rng.uniform(size=G) < crowd,
                    np.round(np.prod(truth_boxes[:, 2:] - truth_boxes[:, :2], 1) * rng.choice([0.5, 1.0], G)))
    near = rng.integers(0, G, D)  # a quarter falls anywhere, the rest around truths
    moved = truth_boxes[near] + rng.choice([0, 0, 0, 1, -1, 2, -4, 8], (D, 4))
    moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
    stray = rng.uniform(size=D) < 0.25
    moved[stray] = boxes(stray.sum())
    det_label = np.where(rng.uniform(size=D) < 0.8, label[near], rng.integers(0, num_classes, D))
    det_image = np.where(stray, rng.integers(0, images, D) * 3 + 7, image[near])
    score = rng.uniform(size=D)
    if levels:
        score = np.round(score * levels) / levels
    return Detections(det_image, det_label, score, moved), truths


def xywh(box):
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def pycocotools(detections, truths, num_classes):
    """(the twelve figures with nan for -1, AP of each class)"""
    oracle = COCO()
    images = np.unique(np.concatenate([detections.image, truths.image]))
    oracle.dataset = {
        "info": {},
        "images": [{"id": int(i)} for i in images],
        "categories": [{"id": c} for c in range(num_classes)],
        "annotations": [
            {"id": i + 1, "image_id": int(truths.image[i]), "category_id": int(truths.label[i]),
             "bbox": xywh(truths.boxes_xyxy[i]), "area": truths.area[i], "iscrowd": int(truths.is_crowd[i])}
            for i in range(len(truths.image))],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        oracle.createIndex()
        found = oracle.loadRes([
            {"image_id": int(detections.image[i]), "category_id": int(detections.label[i]),
             "bbox": xywh(detections.boxes_xyxy[i]), "score": detections.score[i]}
            for i in range(len(detections.image))])
        evaluation = COCOeval(oracle, found, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    precision = evaluation.eval["precision"][:, :, :, 0, -1].mean((0, 1))
    return [np.where(values == -1, np.nan, values) for values in (evaluation.stats, precision)]


@pytest.mark.parametrize("options", [
    {"seed": 0},
    {"seed": 1, "levels": None, "crowd": 0.0},
    {"seed": 2, "levels": 2, "images": 15, "crowd": 0.4},
    # Over 100 detections of a class in an image.
    {"seed": 3, "images": 3, "truths_per_image": 20, "detections_per_image": 500, "num_classes": 2},
    {"seed": 4, "images": 60, "truths_per_image": 1, "detections_per_image": 1, "num_classes": 30},
], ids=str)
def test_coco_equals_pycocotools(options, monkeypatch):
    detections, truths = random_set(difficult=0.0, **options)
    num_classes = options.get("num_classes", 5)
    stats, per_class = pycocotools(detections, truths, num_classes)
    for pairs_at_once in (1 << 20, 50):
        monkeypatch.setattr(average_precision, "PAIRS_AT_ONCE", pairs_at_once)
        ours = coco(detections, truths, num_classes)
        np.testing.assert_allclose([ours[key] for key in COCO_KEYS], stats, rtol=0, atol=1e-9)
        np.testing.assert_allclose(ours["per_class"], per_class, rtol=0, atol=1e-9)


def test_coco_by_hand():
    truths = Truths([0, 0], [0, 0], [[0, 0, 100, 100], [200, 0, 300, 100]])
    detections = Detections([0, 0, 0], [0, 0, 0], [0.9, 0.8, 0.7],
                            [[0, 0, 100, 100], [0, 0, 100, 100], [200, 0, 300, 80]])
    found = coco(detections, truths, 2)
    # One hit of two at precision 1 covers recalls 0 to .50, 51 of 101; the second comes at 2/3 up to IoU 0.8.
    one, both = 51 / 101, (51 + 50 * 2 / 3) / 101
    np.testing.assert_allclose([found["AP50"], found["AP75"], found["AP"]],
                               [both, both, 0.7 * both + 0.3 * one])
    np.testing.assert_allclose([found["AR1"], found["AR10"], found["ARl"]], [0.5, 0.85, 0.85])
    assert np.isnan([found["APs"], found["ARm"], found["per_class"][1]]).all()


def test_difficult_in_coco_is_an_ignored_truth_that_excuses_one_detection():
    truths = Truths([0, 0], [0, 0], [[0, 0, 100, 100], [200, 0, 300, 100]], difficult=[True, False])
    boxes = [[0, 0, 100, 100], [200, 0, 300, 100]]
    assert coco(Detections([0, 0], [0, 0], [0.9, 0.8], boxes), truths, 1)["AP"] == 1
    twice = Detections([0, 0, 0], [0, 0, 0], [0.9, 0.85, 0.8], [boxes[0], *boxes])
    assert coco(twice, truths, 1)["AP"] == pytest.approx(0.5)
    # pycocotools' own way to ignore such a truth, an area that no range holds, gives the same.
    detections, truths = random_set(5, crowd=0.1, difficult=0.3)
    stats, _ = pycocotools(detections, truths._replace(area=np.where(truths.difficult, 1e11, truths.area)), 5)
    np.testing.assert_allclose([coco(detections, truths, 5)[key] for key in COCO_KEYS], stats, rtol=0,
                               atol=1e-9)


def devkit(detections, truths, num_classes, iou_threshold, style, inclusive_pixels):
    """VOCevaldet.m and VOCap.m, one detection after the other."""
    extra = 1 if inclusive_pixels else 0
    aps, hits = [], []
    for label in range(num_classes):
        mine = [i for i in range(len(detections.image)) if detections.label[i] == label]
        mine.sort(key=lambda i: -detections.score[i])
        real = [j for j in range(len(truths.image)) if truths.label[j] == label]
        positives = sum(not truths.difficult[j] for j in real)
        free, outcome = set(real), []
        for i in mine:
            a, best, chosen = detections.boxes_xyxy[i], -np.inf, None
            for j in real:
                if truths.image[j] != detections.image[i]:
                    continue
                b = truths.boxes_xyxy[j]
                width = min(a[2], b[2]) - max(a[0], b[0]) + extra
                height = min(a[3], b[3]) - max(a[1], b[1]) + extra
                if width > 0 and height > 0:
                    both = width * height
                    union = sum((box[2] - box[0] + extra) * (box[3] - box[1] + extra)
                                for box in (a, b)) - both
                    if both / union > best:
                        best, chosen = both / union, j
            if best < iou_threshold:
                outcome.append("false")
            elif truths.difficult[chosen]:
                outcome.append("neither")
            else:
                outcome.append("true" if chosen in free else "false")
                free.discard(chosen)
        hits.append(outcome)
        if not positives:
            aps.append(np.nan)
            continue
        curve, true, false = [], 0, 0
        for one in outcome:
            true, false = true + (one == "true"), false + (one == "false")
            curve.append((true, true / (true + false) if true + false else 0))
        if style == "11-point":
            aps.append(sum(max([p for t, p in curve if 10 * t >= i * positives], default=0)
                           for i in range(11)) / 11)
        else:
            aps.append(sum(max(p for t, p in curve if t >= i) for i in range(1, true + 1)) / positives)
    return aps, hits


@pytest.mark.parametrize("style", ["area", "11-point"])
@pytest.mark.parametrize("inclusive_pixels", [True, False])
@pytest.mark.parametrize("seed, iou_threshold, levels", [(0, 0.5, 20), (1, 0.75, None), (2, 0.3, 2)])
def test_voc_equals_the_devkit(style, inclusive_pixels, seed, iou_threshold, levels):
    detections, truths = random_set(seed, images=20, crowd=0.0, levels=levels)
    arguments = (detections, truths, 5, iou_threshold, style, inclusive_pixels)
    ap, outcomes = devkit(*arguments)
    found = voc(*arguments)
    np.testing.assert_allclose(found["ap"], ap, rtol=0, atol=1e-12)
    assert np.isnan(found["ap"][4]) and found["map"] == pytest.approx(np.mean(ap[:4]), abs=1e-12)
    for label, outcome in enumerate(outcomes[:4]):
        true, false = (np.cumsum([one == kind for one in outcome]) for kind in ("true", "false"))
        np.testing.assert_allclose(found["precision"][label], true / np.maximum(true + false, 1))
        assert found["recall"][label][-1] <= 1 and len(found["recall"][label]) == len(outcome)


def test_voc_does_not_count_what_lies_in_a_crowd():
    """Of the detection's own area; the IoU of a member with its crowd is small. What is there is found all the same."""
    truths = Truths([0, 0], [0, 0], [[0, 0, 400, 400], [10, 10, 50, 50]], is_crowd=[True, False])
    member, half, outside = [200, 200, 220, 220], [380, 0, 420, 40], [381, 0, 421, 40]
    boxes = [member, half, [10, 10, 50, 50], [12, 10, 52, 50], outside]
    detections = Detections([0] * 5, [0] * 5, [0.9, 0.8, 0.7, 0.6, 0.5], boxes)
    found = voc(detections, truths, 1, inclusive_pixels=False)
    assert found["ap"] == [1.0]
    np.testing.assert_array_equal(found["precision"][0], [0, 0, 1, 1, 0.5])
    np.testing.assert_array_equal(found["recall"][0], [0, 0, 1, 1, 1])
    assert voc(detections._replace(image=[1] * 5), truths, 1)["ap"] == [0.0]  # in another picture
    # COCO's figure at the same IoU, of sets with crowds.
    for seed in range(3):
        detections, truths = random_set(seed, crowd=0.4, difficult=0.0, levels=None, detections_per_image=4)
        truths = truths._replace(area=np.full(len(truths.area), 5000.0))
        assert voc(detections, truths, 5, inclusive_pixels=False)["map"] == pytest.approx(
            coco(detections, truths, 5)["AP50"], abs=0.02)  # 101 recalls, and another choice between two truths


@pytest.mark.parametrize("style", ["area", "11-point"])
def test_voc_equals_the_other_package(style):
    for some_difficult in (False, True):
        # A tie in score or IoU and an IoU of exactly 0.5 are decided otherwise there: so none of them. It
        # mixes up the difficult flags of several truths of one class in one image: so they are all alike.
        detections, truths = random_set(6, images=30, crowd=0.0, levels=None)
        rng = np.random.default_rng(0)
        detections, truths = (flat._replace(boxes_xyxy=flat.boxes_xyxy
                                            + rng.uniform(0, 0.1, flat.boxes_xyxy.shape))
                              for flat in (detections, truths))
        truths = truths._replace(difficult=((truths.image + truths.label) % 5 == 0) & some_difficult)
        oracle = MetricBuilder.build_evaluation_metric("map_2d", async_mode=False, num_classes=5)
        for image in np.unique(truths.image):
            mine, real = detections.image == image, truths.image == image
            oracle.add(np.column_stack([detections.boxes_xyxy, detections.label, detections.score])[mine],
                       np.column_stack([truths.boxes_xyxy, truths.label, truths.difficult,
                                        truths.is_crowd])[real])
        recalls = np.arange(11) / 10 if style == "11-point" else None
        theirs = oracle.value(iou_thresholds=0.5, recall_thresholds=recalls)[0.5]
        with_truths = np.isin(detections.image, truths.image)
        ours = voc(Detections(*(field[with_truths] for field in detections)), truths, 5, style=style)
        for label in range(4):
            np.testing.assert_allclose(ours["precision"][label], theirs[label]["precision"], atol=1e-12)
            # It counts difficult objects as positives, which the devkit does not; so recalls differ by that
            # share.
            share = (~truths.difficult[truths.label == label]).mean()
            np.testing.assert_allclose(ours["recall"][label] * share, theirs[label]["recall"], atol=1e-12)
            if not some_difficult:
                assert ours["ap"][label] == pytest.approx(theirs[label]["ap"], abs=1e-6)  # it is in float32


def test_voc_by_hand():
    truths = Truths([0, 0, 1], [0, 0, 0], [[0, 0, 9, 9], [50, 50, 59, 59], [0, 0, 9, 9]])
    detections = Detections([0, 0, 0, 1], [0] * 4, [0.6, 0.9, 0.8, 0.7],
                            [[50, 50, 59, 59], [0, 0, 9, 9], [0, 0, 9, 9], [40, 40, 49, 49]])
    found = voc(detections, truths, 1)  # true, false (duplicate), false, true
    np.testing.assert_allclose(found["precision"][0], [1, 1 / 2, 1 / 3, 1 / 2])
    np.testing.assert_allclose(found["recall"][0], [1 / 3, 1 / 3, 1 / 3, 2 / 3])
    assert found["ap"][0] == pytest.approx(1 / 3 * 1 + 1 / 3 * 1 / 2)
    # Recalls 0 to .3 reach precision 1, .4 to .6 only 1/2.
    assert voc(detections, truths, 1, style="11-point")["map"] == pytest.approx((4 * 1 + 3 * 0.5) / 11)
    # 10 x 5 of 10 x 10 pixels is one half; measured between edges it is 9 x 4 of 9 x 9.
    half = Detections([0], [0], [1.0], [[0, 0, 9, 4]])
    one = Truths([0], [0], [[0, 0, 9, 9]])
    assert voc(half, one, 1)["map"] == 1
    assert voc(half, one, 1, inclusive_pixels=False)["map"] == 0


def test_nothing_detected_and_nothing_there():
    no_detections, no_truths = Detections([], [], [], np.zeros([0, 4])), Truths([], [], np.zeros([0, 4]))
    detections, truths = random_set(7, difficult=0.0)
    for metric, key in ((voc, "map"), (coco, "AP")):
        assert metric(no_detections, truths, 5)[key] == 0
        assert np.isnan(metric(detections, no_truths, 5)[key])
        assert np.isnan(metric(no_detections, no_truths, 5)[key])
    assert coco(no_detections, truths, 5)["AR100"] == 0


def test_what_cannot_be_meant_is_refused():
    detections, truths = random_set(8)
    bad = {
        "labels of detections must lie in 0..3, not 4": (detections, truths, 4),
        "all fields of detections must have one length": (detections._replace(score=[0.5]), truths, 5),
        "scores must be numbers": (detections._replace(score=detections.score * np.nan), truths, 5),
        "boxes of truths must be finite": (
            detections, truths._replace(boxes_xyxy=truths.boxes_xyxy + np.inf), 5),
    }
    for metric in (voc, coco):
        for message, arguments in bad.items():
            with pytest.raises(ValueError, match=re.escape(message)):
                metric(*arguments)
    with pytest.raises(ValueError, match="11-point"):
        voc(detections, truths, 5, style="interpolated")
