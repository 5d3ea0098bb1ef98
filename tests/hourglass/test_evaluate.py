"""From batches to a report: a network that draws the truth finds it again, exchanged sides are seen, replicas and
small batches change nothing; the command."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf

from common import checkpoints
from common.errors import UserError
from hourglass import crops, demo, evaluate, poses, preprocess, report
from hourglass.model import hourglass
from hourglass.postprocess import mirrored, postprocess

ROOT = pathlib.Path(__file__).parents[2]
BODY = poses.MPII
CONFIG = {"article": "hourglass", "num_stacks": 1, "filters": 8, "order": 1, "num_residual": 1,
          "variant": "article", "image_size": 64, "limit": 0,
          **{key: getattr(BODY, key) for key in ("labels", "pairs", "skeleton", "metric")}}
PERSONS = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of made-up figures of 96 pixels."""
    root = tmp_path_factory.mktemp("records")
    splits = {"train": 2, "val": PERSONS}
    poses.build_records(demo.source(size=96, splits=splits, seed=4), root, progress=False)
    return root / "demo"


def network(num_stacks=1):
    """Two convolutions with the hourglass's input and outputs: quickly traced."""
    inputs = keras.Input([None, None, 3])
    x = keras.layers.Conv2D(8, 7, 4, padding="same", activation="relu")(inputs)
    model = keras.Model(inputs, [keras.layers.Conv2D(16, 3, padding="same")(x) for _ in range(num_stacks)])
    rng = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(rng.normal(0, 0.2, variable.shape))
    return model


def collect(predict, folder, strategy, batch_size=4, image_size=64, limit=0):
    dataset = evaluate.batches(folder, "val", strategy, {"image_size": image_size}, batch_size=batch_size,
                               limit=limit)
    return evaluate.collect(predict, dataset, strategy)


def tell_truth(batch):
    """A predict that has read the answers."""
    return batch["joints"], tf.cast(batch["visible"] > 0, tf.float32)


@pytest.fixture(scope="module")
def truth(folder):
    return collect(tell_truth, folder, tf.distribute.get_strategy())


def test_truth_is_perfect_in_every_metric(folder, truth):
    assert truth["index"].tolist() == list(range(PERSONS)) and truth["predicted"].shape == (PERSONS, 16, 2)
    assert (truth["visible"] == 0).any() and set(truth) == {
        "index", "joints", "visible", "head_size", "scale", "area", "box", "image_id", "person_id", "to_picture",
        "predicted", "scores"}
    assert evaluate.summarize(truth, poses.body_of(folder)) == {"pckh": 1, "pckh_no_pelvis_thorax": 1}
    assert evaluate.summarize(truth, BODY, "pck") == {"pck": 1, "pck_no_pelvis_thorax": 1}
    with_sigmas = BODY._replace(metric="oks", sigmas=[0.07] * 16)
    assert evaluate.summarize(truth, with_sigmas) == pytest.approx({"oks_ap": 1, "oks_ap50": 1}, abs=1e-12)


def test_left_for_right(truth):
    """A network that takes every left for right keeps the middle: four joints of sixteen."""
    swapped = {**truth, "predicted": truth["joints"][:, mirrored(16, BODY.pairs)]}
    summary, _ = evaluate.details(swapped, BODY, "pckh")
    for middle in ("pelvis", "thorax", "upper_neck", "head_top"):
        assert summary["joints"][middle]["PCKh@0.5"] == 1
    assert evaluate.details(truth, BODY, "pckh")[0]["left_and_right"]["left_hip, right_hip"]["exchanged"][0] == 0
    far, total = 0, 0
    for left, right in BODY.pairs:
        both = (truth["visible"][:, [left, right]] > 0).all(axis=1)
        apart = np.linalg.norm(truth["joints"][:, left] - truth["joints"][:, right], axis=1)
        beyond = both & (apart > 0.5 * truth["head_size"])      # nearer ones are right either way
        counts = summary["left_and_right"][f"{BODY.labels[left]}, {BODY.labels[right]}"]
        assert counts["exchanged"] == [2 * beyond.sum(), 2 * both.sum()]
        assert counts["predicted on one spot"] == counts["annotated on one spot"]
        far, total = far + beyond.sum(), total + both.sum()
    assert far > 0.8 * total


def test_feet_on_one_spot(truth):
    """Both ankles of person 0 at the left one; person 1 has a single annotated ankle, and two predicted on it."""
    predicted, visible = truth["joints"].copy(), truth["visible"].copy()
    visible[:, [0, 5]], visible[1, 0] = 2, 0
    predicted[:, 0] = predicted[:, 5] + [50, 0]
    predicted[0, 0] = predicted[0, 5] + [0, 200 * 0.0199 * truth["scale"][0]]   # 2 % of the body's height
    predicted[1, 0] = predicted[1, 5]
    predicted[2, 0] = predicted[2, 5] + [0, 200 * 0.0201 * truth["scale"][2]]
    apart = truth["joints"] + np.where(np.arange(16) == 0, 30.0, 0.0)[:, None]
    found = {**truth, "joints": apart, "visible": visible, "predicted": predicted}
    counts = evaluate.left_and_right(found, BODY, "pckh")["left_ankle, right_ankle"]
    assert counts["predicted on one spot"] == [1, PERSONS - 1]
    assert counts["predicted on one spot, one of them annotated"] == [1, 1]
    assert report.share(*counts["predicted on one spot"]) == "1 of 6 (16.7%)" and report.share(0, 0) == "-"


def test_joints_come_back_to_the_picture(folder):
    """A network that draws the Gaussians of the truth: within a quarter of a heatmap pixel, in picture pixels."""
    strategy, size = tf.distribute.get_strategy(), 128
    batch = next(iter(evaluate.batches(folder, "val", strategy, {"image_size": size}, batch_size=PERSONS)))
    to_crop = [crops.invert(matrix) for matrix in batch["to_picture"].numpy().astype(float)]
    joints = np.stack([crops.move(matrix, each) for matrix, each in zip(to_crop, batch["joints"].numpy())])
    answer = preprocess.encode_targets(joints.astype(np.float32), batch["visible"], size)["heatmaps"]
    predict = evaluate.make_predict(lambda images, training: [answer * 0, answer], strategy, BODY.pairs)
    found = collect(predict, folder, strategy, batch_size=PERSONS, image_size=size)
    zoom = 250 * found["scale"] / size
    error = np.abs(found["predicted"] - found["joints"]).max(axis=2)
    inside = (found["scores"] > 0.5) & (found["visible"] > 0)
    assert inside.sum() > 0.95 * (found["visible"] > 0).sum()
    assert (error[inside] <= np.broadcast_to(0.2501 * 4 * zoom[:, None], error.shape)[inside]).all()
    assert np.median(error[inside]) > 0                                  # it went through the heatmaps


@pytest.mark.parametrize("num_stacks, flip", [(1, False), (2, True)])
def test_predict_is_the_network_postprocessed(folder, num_stacks, flip):
    """Keras gives one stack as a tensor, several as a list."""
    strategy, model = tf.distribute.get_strategy(), network(num_stacks)
    batch = next(iter(evaluate.batches(folder, "val", strategy, CONFIG, batch_size=3)))
    joints_xy, scores = evaluate.make_predict(model, strategy, BODY.pairs, flip)(batch)
    last, other = (outputs if num_stacks == 1 else outputs[-1] for outputs in (
        model(batch["images"], training=False), model(batch["images"][:, :, ::-1], training=False)))
    expected, heights = postprocess(last, other if flip else None, BODY.pairs)
    moved = [crops.move(matrix, each) for matrix, each in zip(batch["to_picture"].numpy(), expected.numpy())]
    np.testing.assert_allclose(joints_xy, moved, atol=1e-3)             # pixels, float32
    np.testing.assert_allclose(scores, heights, rtol=1e-4, atol=1e-5)


def test_flip_test_of_a_mirrored_crop_is_the_mirrored_answer(folder):
    strategy, model = tf.distribute.get_strategy(), network()
    batch = next(iter(evaluate.batches(folder, "val", strategy, CONFIG, batch_size=3)))
    batch["to_picture"] = tf.tile(tf.constant([[[1.0, 0, 0], [0, 1, 0]]]), [3, 1, 1])
    predict = evaluate.make_predict(model, strategy, BODY.pairs, flip=True)
    joints_xy, scores = predict(batch)
    again, same = predict({**batch, "images": batch["images"][:, :, ::-1]})
    order = mirrored(16, BODY.pairs)
    np.testing.assert_allclose(same.numpy()[:, order], scores, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(64 - again.numpy()[:, order, 0], joints_xy[..., 0], atol=1e-3)
    np.testing.assert_allclose(again.numpy()[:, order, 1], joints_xy[..., 1], atol=1e-3)


def test_two_replicas_equal_one(folder, two_replicas):
    """Seven persons in batches of four; and a single one, so that the second replica has nothing but filling."""
    default, found = tf.distribute.get_strategy(), {}
    for name, strategy in (("one", default), ("two", two_replicas)):
        with strategy.scope():
            model = network()
        predict = evaluate.make_predict(model, strategy, BODY.pairs)
        found[name] = collect(predict, folder, strategy), collect(predict, folder, strategy, 2, limit=1)
    for one, two, persons in zip(found["one"], found["two"], (PERSONS, 1)):
        assert one["index"].tolist() == two["index"].tolist() == list(range(persons))
        for key in one:
            np.testing.assert_allclose(one[key], two[key], rtol=1e-4, atol=1e-4, err_msg=key)
        assert evaluate.summarize(one, BODY) == evaluate.summarize(two, BODY)


def test_what_a_metric_needs():
    assert evaluate.choose_metric(BODY) == "pckh" and evaluate.choose_metric(BODY, "pck") == "pck"
    with pytest.raises(UserError, match="lengths of the torso, and this record set does not say"):
        evaluate.choose_metric(BODY._replace(torso=[]), "pck")
    with pytest.raises(UserError, match="sigma of every joint, and this record set has 0 for 16 joints"):
        evaluate.choose_metric(BODY, "oks")


def test_pck_needs_both_ends_of_the_torso(truth):
    """Left shoulder (13) to right hip (2); without one of them the person is left out and counted."""
    visible = np.full_like(truth["visible"], 2)
    visible[3, 2] = 0
    found = {**truth, "visible": visible}
    lengths = evaluate.reference_lengths(found, BODY, "pck")
    assert lengths[3] == 0
    assert lengths[0] == pytest.approx(np.hypot(*(truth["joints"][0, 13] - truth["joints"][0, 2])), rel=1e-5)
    summary, _ = evaluate.details(found, BODY, "pck")
    assert summary["left_out"] == {"persons without reference length": 1, "joints not annotated": 1}
    assert summary["joints"]["pelvis"]["joints"] == PERSONS - 1
    # A joint exactly a fifth of the torso away is right, one beyond is wrong.
    for factor, right in ((0.1999, 1), (0.2001, 0)):
        off = truth["joints"] + np.stack([factor * lengths, 0 * lengths], axis=1)[:, None]
        assert evaluate.summarize({**found, "predicted": off}, BODY, "pck")["pck"] == right


def test_answers_that_do_not_look(truth):
    """Four persons whose crops differ in place and size; one joint of the first is somewhere else, one is unknown."""
    size, joints = 64, np.tile(np.linspace(10, 50, 16)[:, None], (4, 1, 2))                 # in the crops
    joints[:, :, 1] += 3
    joints[0, 4] += [12, -8]
    zoom, start = np.array([1, 2, 0.5, 3]), np.array([[0, 0], [50, 20], [7, 9], [-30, 10.0]])
    matrices = np.concatenate([zoom[:, None, None] * np.eye(2), start[..., None]], axis=2).astype(np.float32)
    visible = np.full([4, 16], 2)
    visible[3, 4] = 0
    found = {"joints": np.stack([crops.move(*pair) for pair in zip(matrices.astype(float), joints)]),
             "visible": visible, "to_picture": matrices, "head_size": 4.0 * zoom, "scale": zoom, "index": np.arange(4)}
    figures = evaluate.without_looking(found, BODY, "pckh", size)
    # Within 2 pixels of the crop: the mean of (12, -8), 0 and 0 is right for nobody, one of the places for two.
    assert figures["mean pose"]["pckh"] == pytest.approx(60 / 63)
    assert figures["best fixed place"]["pckh"] == pytest.approx(62 / 63)
    assert list(evaluate.without_looking(truth, BODY._replace(sigmas=[0.07] * 16), "oks", 64)["mean pose"]) \
        == ["oks_ap", "oks_ap50"]
    # Heads of nobody: no figure, and no warning either.
    nothing = evaluate.without_looking({**found, "head_size": 0 * zoom}, BODY, "pckh", size)
    assert all(np.isnan(value) for each in nothing.values() for value in each.values())


def test_the_head_length_is_not_called_pckh(truth, tmp_path):
    """Figures have boxes of their heads. Where a source has none, records have the distance of the head's ends."""
    summary, _ = evaluate.details(truth, BODY, "pckh")
    assert summary["name"] == "PCKh@0.5" and summary["unit"] == "head sizes"
    source = demo.source(size=64, splits={"val": 3})

    def load(index):
        return source.load(index)._replace(head_size=0.0)

    folder = poses.build_records(source._replace(load=load), tmp_path, progress=False).folder
    found = collect(tell_truth, folder, tf.distribute.get_strategy())
    ends = (found["visible"][:, [8, 9]] > 0).all(axis=1)
    summary, _ = evaluate.details(found, BODY, "pckh")
    assert ends.any() and f"upper_neck to head_top for {ends.sum()} of the persons" in summary["unit"]
    assert summary["name"] == "PCK@0.5 of the head length" and "PCKh@" not in report.table(summary)
    metric, meaning = evaluate.usable_metric(folder, "val", BODY)
    assert metric == "pckh" and meaning.name == summary["name"]


@pytest.mark.parametrize("missing, expected, said", [
    ([], "pckh", ""), ([9], "pck", "in head sizes: PCK@0.2 is taken instead of PCKh@0.5"),
    ([8, 2], "pck_height", "in head sizes: PCK@0.05 of the height is taken instead of PCKh@0.5")])
def test_a_metric_that_can_be_measured(missing, expected, said, tmp_path, capsys):
    """Nobody's head is annotated; nobody's torso either. In every one of them the truth has 1."""
    source = demo.source(size=64, splits={"val": 3})

    def load(index):
        person = source.load(index)
        person.visible[missing] = 0
        return person._replace(head_size=0.0, visible=np.maximum(person.visible, np.eye(16, dtype=int)[0]))

    folder = poses.build_records(source._replace(load=load), tmp_path, progress=False).folder
    metric, _ = evaluate.usable_metric(folder, "val", poses.body_of(folder))
    assert metric == expected and said in capsys.readouterr().out
    found = collect(tell_truth, folder, tf.distribute.get_strategy())
    assert evaluate.summarize(found, BODY, metric)[metric] == 1
    if missing:
        text = report.table(evaluate.details(found, BODY, metric)[0])
        assert f"nan: no person counts who has {', '.join(BODY.labels[joint] for joint in sorted(missing))}" in text
    lengths = evaluate.reference_lengths({"scale": np.array([0.4])}, BODY, "pck_height")
    assert lengths.tolist() == [80]                                     # a scale of 1 is 200 pixels


def test_oks_of_crowds_and_of_persons_without_area(truth):
    """COCO's evaluation counts 20 answers a picture; who has no area has no similarity, and is left out."""
    body = BODY._replace(metric="oks", sigmas=[0.07] * 16)
    many = {key: np.concatenate([value] * 4) for key, value in truth.items()}
    many["image_id"] = np.array([5] * 21 + [6] * 7)
    summary, _ = evaluate.details(many, body, "oks")
    assert "1 pictures have more than 20 persons; AP and AR count 20 answers, as" in report.table(summary)
    assert "more than 20" not in report.table(evaluate.details(truth, body, "oks")[0])
    area = truth["area"].copy()
    area[:3] = 0
    summary, _ = evaluate.details({**truth, "area": area}, body, "oks")
    assert summary["oks_ap"] == pytest.approx(1) and summary["left_out"]["persons without reference length"] == 3


def test_a_run_with_limit_is_evaluated_on_what_it_saw(folder):
    strategy = tf.distribute.get_strategy()
    for config, crop in (({}, "center"), ({"limit": 0, "crop": "article"}, "center"), ({"limit": 2}, "article"),
                         ({"limit": 2, "crop": "article"}, "article"), ({"limit": 2, "crop": "center"}, "center")):
        assert evaluate.crop_of(config) == crop
    config = {"limit": 2, "image_size": 64}
    batch = next(iter(evaluate.batches(folder, "train", strategy, config, batch_size=2)))
    example = preprocess.training_dataset(folder, image_size=64, batch_size=2, seed=0, augmented=False, limit=2)
    shown = next(iter(example))[0].numpy()
    for image in batch["images"].numpy():
        assert any(np.array_equal(image, other) for other in shown)
    found = {**batch, "index": np.arange(2), "predicted": batch["joints"]}
    pictures = [report.draw_persons(folder, "train", {key: np.asarray(found[key]) for key in found}, BODY, [0], crop)[0]
                for crop in crops.CROPS]
    assert not np.array_equal(*pictures)


def test_worst_best_and_random(folder, truth):
    """Person p is off by p tenths of its head: in units of the threshold 0.2 p, at most 2."""
    off = truth["joints"] + (0.1 * np.arange(PERSONS) * truth["head_size"])[:, None, None] * [0.6, 0.8]
    visible = truth["visible"].copy()
    visible[4] = 0
    found = {**truth, "predicted": off, "visible": visible}
    errors = evaluate.person_errors(found, BODY, "pckh")
    np.testing.assert_allclose(errors, [0, 0.2, 0.4, 0.6, np.nan, 1.0, 1.2], rtol=1e-4)
    assert evaluate.person_errors({**found, "predicted": off + 1e4}, BODY, "pckh")[0] == 2
    chosen = report.choose_samples(errors, 3)
    assert chosen["worst"].tolist() == [6, 5, 3] and chosen["best"].tolist() == [0, 1, 2]
    picture, names = report.draw_persons(folder, "val", truth, BODY, [6, 0, 6], side=96)
    assert names == ["000008.jpg", "000002.jpg", "000008.jpg"]           # after two of train
    assert picture.shape == (96, 3 * 192 + 8, 3)
    np.testing.assert_array_equal(picture[:, :96], picture[:, 96:192])   # the prediction is the truth
    assert not np.array_equal(picture[:, :192], picture[:, 200:392])


def test_report_of_oks(folder, truth, tmp_path):
    body = BODY._replace(sigmas=[0.07] * 16)
    summary, paths = evaluate.write_report(tmp_path, "val", truth, body, "oks", folder, size=64)
    results = json.loads(paths["results"].read_text())
    assert len(results) == PERSONS and results[2]["image_id"] == 4       # the fifth picture, after two of train
    assert results[2]["keypoints"][:2] == pytest.approx((truth["joints"][2, 0] - 0.5).tolist())
    text = report.table(summary)
    assert "KS 0.5" in text and "AP 1.000  AP50 1.000" in text and "left_ankle, right_ankle" in text
    assert cv2.imread(str(paths["curves"])).std() > 10


def test_command(folder, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({**CONFIG, "tfrecords": str(folder)}))
    keras.utils.clear_session()                     # layers are named as in a process that builds one network
    model = hourglass(16, 1, 8, 1)
    checkpoints.write_best(run / "checkpoints" / "best.weights.h5", model, {"value": 0.5, "step": 1})
    command = [sys.executable, "-m", "hourglass.evaluate", "--run", run, "--flip_test", "--batch_size", "4"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == 0, done.stderr[-3000:]
    for words in ("PCKh@0.5", "all 16 joints", "14 joints, without pelvis and thorax", "mean of the joints",
                  "7 persons, distances in head sizes", "exchanged", "left_ankle, right_ankle",
                  "without looking, the mean pose: pckh ", "without looking, the best fixed place: pckh "):
        assert words in done.stdout, words
    summary = json.loads((run / "evaluation" / "val.json").read_text())
    predict = evaluate.make_predict(model, tf.distribute.get_strategy(), BODY.pairs, flip=True)
    expected = evaluate.summarize(collect(predict, folder, tf.distribute.get_strategy()), BODY)
    assert {key: summary[key] for key in expected} == pytest.approx(expected, abs=0.03)   # a joint on the edge
    assert summary["flip_test"] and summary["split"] == "val" and len(summary["samples"]["worst"]) == 6
    for name in ("pckh", "worst", "best", "random"):
        path = run / "evaluation" / f"val_{name}.png"
        assert str(path) in done.stdout and cv2.imread(str(path)).std() > 5
    with pytest.raises(UserError, match="must be a run of hourglass"):
        (run / "config.json").write_text(json.dumps({**CONFIG, "article": "ssd"}))
        evaluate.load_run(run)
