"""PCK, PCKh and OKS: numbers worked out by hand, slow twins of the reference rules, and pycocotools on files."""

import json
import sys

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.errors import UserError
from common.metrics import keypoints


def moved(truth, *steps):
    """truth [P, K, 2] with each joint moved right by steps [P][K]."""
    return truth + np.stack([np.array(steps, float), np.zeros_like(truth[..., 0])], axis=-1)


# PCK.

def test_pck_by_hand():
    """Lengths 20 and 8, threshold 0.5: 10 and 4 pixels. Exactly that far is right, a bit more is not."""
    truth = np.arange(18, dtype=float).reshape(3, 3, 2) * 10
    predicted = moved(truth, [10, 10.001, 0], [4, 3, 4.5], [0, 0, 0])
    visible = np.array([[2, 1, 2], [2, 2, 0], [2, 2, 2]])
    found = keypoints.pck(predicted, truth, visible, np.array([20.0, 8.0, 0.0]), [0.1, 0.5])
    assert found.count.tolist() == [2, 2, 1]                         # nobody knows how long the third person is
    np.testing.assert_array_equal(found.curve, [[0, 0, 1], [1, 0.5, 1]])
    np.testing.assert_allclose(found.mean, [1 / 5, 4 / 5])           # 4 of 5 joints
    np.testing.assert_allclose(found.joint_mean, [1 / 3, 2.5 / 3])   # of the three shares
    np.testing.assert_allclose(found.area, [0.5, 0.25, 1])           # trapezoids over one step
    assert found.area_mean == pytest.approx(0.5)
    assert found.left_out == {"persons without reference length": 1, "joints not annotated": 1}


@pytest.mark.parametrize("length, threshold", [(20.0, 0.5), (35.0, 0.2), (1.0, 0.0)])
def test_exactly_at_the_threshold_is_right(length, threshold):
    truth = np.zeros([1, 1, 2])
    for factor, right in ((1.0, 1.0), (1.0001, 0.0 if threshold else 1.0)):
        predicted = moved(truth, [length * threshold * factor])
        assert keypoints.pck(predicted, truth, [[2]], [length], [threshold]).curve.item() == right


def test_perfect_nonsense_and_nothing():
    rng = np.random.default_rng(0)
    truth, visible = rng.uniform(0, 100, (5, 4, 2)), np.full((5, 4), 2)
    thresholds = np.linspace(0, 0.5, 51)
    perfect = keypoints.pck(truth, truth, visible, np.full(5, 10.0), thresholds)
    assert perfect.curve.min() == 1 and perfect.area_mean == 1 and perfect.joint_mean.min() == 1
    nonsense = truth.copy()
    nonsense[:, 1] = np.nan
    nonsense[:, 2, 0] = np.inf
    found = keypoints.pck(nonsense, truth, visible, np.full(5, 10.0), thresholds)
    assert found.curve[-1].tolist() == [1, 0, 0, 1] and found.count.tolist() == [5] * 4
    truth[:, 0] = np.nan                                              # as where a joint is not annotated
    visible[:, 0] = 0
    found = keypoints.pck(nonsense, truth, visible, np.full(5, 10.0), thresholds)
    assert np.isnan(found.curve[:, 0]).all() and found.joint_mean[-1] == pytest.approx(1 / 3)
    nothing = keypoints.pck(nonsense, truth, visible * 0, np.full(5, 10.0), thresholds)
    assert np.isnan(nothing.mean).all() and np.isnan(nothing.joint_mean).all() and np.isnan(nothing.area_mean)


def test_area_under_a_curve_by_hand():
    """A joint 0.2 lengths off: wrong up to 0.19, right from 0.20; 0.3 of the 0.5 and half a step."""
    truth = np.zeros([1, 1, 2])
    found = keypoints.pck(moved(truth, [20.0]), truth, [[1]], [100.0], np.arange(51) / 100)
    assert found.area.item() == pytest.approx((0.3 + 0.005) / 0.5)


def mpii_twin(predicted, truth, missing, headboxes, threshold):
    """The rules of MPII's evaluation, as HRNet has them, in loops.

    Head size 0.6 times the diagonal; <= threshold; a joint's share is of the persons who have it; the mean weighs
    the 14 joints other than pelvis and thorax by how often they are there.
    """
    shares, counts = [], []
    for joint in range(16):
        right = count = 0
        for person in range(len(truth)):
            if missing[person, joint]:
                continue
            (left, top), (to_x, to_y) = headboxes[person]
            size = 0.6 * ((to_x - left) ** 2 + (to_y - top) ** 2) ** 0.5
            dx, dy = predicted[person, joint] - truth[person, joint]
            count += 1
            right += (dx * dx + dy * dy) ** 0.5 / size <= threshold
        shares.append(right / count)
        counts.append(count)
    rest = [joint for joint in range(16) if joint not in (6, 7)]
    total = sum(counts[joint] for joint in rest)
    return shares, sum(shares[joint] * counts[joint] / total for joint in rest)


def test_pckh_as_in_the_evaluation_code_of_mpii():
    rng = np.random.default_rng(1)
    truth = rng.uniform(0, 200, (40, 16, 2))
    predicted = truth + rng.normal(0, 9, truth.shape) * np.linspace(0.3, 2, 16)[:, None]
    missing = rng.random((40, 16)) < rng.uniform(0, 0.6, 16)
    corner = rng.uniform(0, 100, (40, 2))
    headboxes = np.stack([corner, corner + rng.uniform(15, 40, (40, 2))], axis=1)
    head_size = 0.6 * np.linalg.norm(headboxes[:, 1] - headboxes[:, 0], axis=1)
    visible, rest = np.where(missing, 0, 2), [joint for joint in range(16) if joint not in (6, 7)]
    for threshold in (0.1, 0.5):
        shares, mean = mpii_twin(predicted, truth, missing, headboxes, threshold)
        every = keypoints.pck(predicted, truth, visible, head_size, [threshold])
        np.testing.assert_allclose(every.curve[0], shares)
        found = keypoints.pck(predicted[:, rest], truth[:, rest], visible[:, rest], head_size, [threshold])
        assert found.mean[0] == pytest.approx(mean) and 0.01 < mean < 0.99
        assert abs(found.mean[0] - found.joint_mean[0]) > 1e-4 and abs(found.mean[0] - every.mean[0]) > 1e-4


def test_exchanged_by_hand():
    """Left joint 0, right joint 1, forty pixels apart; length 20, threshold 0.5."""
    truth = np.tile(np.array([[[100.0, 50], [60, 50]]]), (6, 1, 1))
    predicted = truth.copy()
    predicted[1] = truth[1, ::-1]                    # both exchanged
    predicted[2, 0] = [50, 50]                       # both at the right one's place, one exactly at the threshold
    predicted[3, 0] = [49, 50]                       # just beyond
    truth[4, 1] = predicted[4, 1] = [92, 50]         # true joints close together, the left one right for both
    predicted[5] = truth[5, ::-1]                    # does not count: one is not annotated
    visible = np.full((6, 2), 2)
    visible[5, 1] = 0
    lengths = np.full(6, 20.0)
    assert keypoints.exchanged(predicted, truth, visible, lengths, [(0, 1)], 0.5) == [(3, 10)]
    by_joint = np.broadcast_to(lengths[:, None], (6, 2))
    assert keypoints.exchanged(predicted, truth, visible, by_joint, [[1, 0]], 0.5) == [(3, 10)]
    assert keypoints.exchanged(predicted, truth, visible, lengths * 0, [(0, 1)], 0.5) == [(0, 0)]


# Answers that do not look.

def test_best_places_are_those_that_a_search_finds():
    """Against all cells of the grid in a loop; joints beyond the square, some that do not count."""
    rng = np.random.default_rng(3)
    joints, radii = rng.normal(0.5, 0.3, (40, 3, 2)), rng.uniform(0.02, 0.3, (40, 3))
    radii[rng.random((40, 3)) < 0.3] = np.nan
    found, middles = keypoints.best_places(joints, radii, grid=16), (np.arange(16) + 0.5) / 16
    for joint in range(3):
        counts = np.array([[np.sum(np.hypot(x - joints[:, joint, 0], y - joints[:, joint, 1]) <= radii[:, joint])
                            for x in middles] for y in middles])
        row, column = np.unravel_index(np.argmax(counts), counts.shape)
        assert found[joint].tolist() == [middles[column], middles[row]] and counts.max() > 3


# OKS.

COCO_SIGMAS = np.array([.026, .025, .025, .035, .035, .079, .079, .072, .072, .062, .062, .107, .107, .087, .087,
                        .089, .089])


def shifted(similarity):
    """One person of one joint with area 400 and sigma 0.05, whose prediction has that similarity."""
    truth = np.array([[[30.0, 40.0]]])
    step = 2 * 0.05 * 20 * np.sqrt(-2 * np.log(similarity))
    arrays = np.array([400.0]), np.array([[0.0, 0, 100, 100]]), np.array([7])
    return (keypoints.coco_results(moved(truth, [step]), [[0.9]], arrays[2]),
            keypoints.coco_truths(truth, np.array([[2]]), *arrays), moved(truth, [step]), truth)


@pytest.mark.parametrize("similarity, expected", [(0.99, 1.0), (0.81, 0.7), (0.79, 0.6), (0.49, 0.0)])
def test_oks_ap_by_hand(similarity, expected):
    """Average precision is the share of the thresholds 0.50, 0.55, ... 0.95 that the only person reaches."""
    results, truths, predicted, truth = shifted(similarity)
    found = keypoints.oks_ap(results, truths, [0.05])
    assert found["AP"] == pytest.approx(expected) and found["AR"] == pytest.approx(expected)
    assert found["AP50"] == pytest.approx(float(similarity > 0.5)) and np.isnan(found["APl"])
    assert keypoints.oks(predicted, truth, [[1]], np.array([400.0]), [0.05]) == pytest.approx([similarity])
    assert np.isnan(keypoints.oks(predicted, truth, [[0]], np.array([400.0]), [0.05])).all()


def test_a_person_score_is_the_mean_of_confident_joints():
    np.testing.assert_allclose(keypoints.person_scores([[0.9, 0.1, 0.5], [0.2, 0.1, 0.0]]), [0.7, 0.0])


def crowd():
    """30 persons in 12 pictures, 17 joints: (predicted, scores, truth, visible, area, box, image_id)."""
    rng = np.random.default_rng(2)
    corner, side = rng.uniform(0, 300, (30, 1, 2)), rng.uniform(40, 200, (30, 1, 2))
    truth = (corner + side * rng.uniform(0, 1, (30, 17, 2))).astype(np.float32)
    error = rng.normal(0, 1, truth.shape) * rng.uniform(0.005, 0.12, (30, 1, 1)) * side.mean(-1)[..., None]
    visible = rng.choice(3, (30, 17), p=[0.3, 0.2, 0.5])
    visible[:, 0] = 2
    return (truth + error, rng.uniform(0, 1, (30, 17)), truth, visible, 0.6 * side.prod(-1)[:, 0],
            np.concatenate([corner, side], axis=2)[:, 0], rng.integers(100, 112, 30))


def test_oks_ap_as_pycocotools_finds_it_in_files(tmp_path):
    predicted, scores, truth, visible, area, box, image_id = crowd()
    results = keypoints.coco_results(predicted, scores, image_id)
    truths = keypoints.coco_truths(truth, visible, area, box, image_id)
    found = keypoints.oks_ap(json.loads(json.dumps(results)), json.loads(json.dumps(truths)), COCO_SIGMAS)
    (tmp_path / "results.json").write_text(json.dumps(results))
    # As COCO has it: the pixel's middle is a whole number, absent joints are zeros.
    annotations = []
    for person in range(30):
        flat = []
        for (x, y), seen in zip(truth[person].astype(float), visible[person]):
            flat += [x - 0.5, y - 0.5, int(seen)] if seen else [0, 0, 0]
        annotations.append({"id": person + 1, "image_id": int(image_id[person]), "category_id": 1, "iscrowd": 0,
                            "area": area[person], "bbox": box[person].tolist(), "keypoints": flat,
                            "num_keypoints": sum(flat[2::3][k] > 0 for k in range(17))})
    (tmp_path / "truths.json").write_text(json.dumps({
        "info": {}, "images": [{"id": int(image)} for image in set(image_id)], "annotations": annotations,
        "categories": [{"id": 1, "name": "person"}]}))
    known = COCO(str(tmp_path / "truths.json"))
    evaluation = COCOeval(known, known.loadRes(str(tmp_path / "results.json")), "keypoints")  # its own sigmas
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    np.testing.assert_allclose(list(found.values()), evaluation.stats, rtol=1e-12)
    assert 0.1 < found["AP"] < 0.9 and found["AP50"] > found["AP75"] > 0
    similarity = keypoints.oks(predicted, truth, visible, area, COCO_SIGMAS)
    for person in range(30):
        gts = known.loadAnns(known.getAnnIds(imgIds=[int(image_id[person])]))
        column = [gt["id"] for gt in gts].index(person + 1)
        # Predictions of a picture by score; persons and predictions have the same order.
        here = np.flatnonzero(image_id == image_id[person])
        row = here[np.argsort(-keypoints.person_scores(scores[here]), kind="stable")].tolist().index(person)
        expected = evaluation.ious[int(image_id[person]), 1][row, column]
        assert similarity[person] == pytest.approx(expected, rel=1e-9)


def test_a_perfect_prediction_has_precision_one():
    _, scores, truth, visible, area, box, image_id = crowd()
    results = keypoints.coco_results(truth, scores, image_id)
    found = keypoints.oks_ap(results, keypoints.coco_truths(truth, visible, area, box, image_id), COCO_SIGMAS)
    assert found["AP"] == pytest.approx(1, abs=1e-12) and found["AR"] == 1


def test_without_pycocotools_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match="needs the package pycocotools. Install it: pip install pycocotools"):
        keypoints.require_pycocotools()
