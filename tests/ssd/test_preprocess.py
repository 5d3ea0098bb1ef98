"""Targets and batches of SSD: matching by hand and against Caffe's loops, the same batches by all workers."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from common import boxes, detection, detection_data, detection_demo, detection_doctor, records, workers
from common.errors import UserError
from ssd import augment, doctor, preprocess
from ssd import model as models

TINY = models.anchors("tiny")
# Two squares of side 0.2 beside each other, a large one over both, and one far away.
FOUR = np.float32([[0.3, 0.5, 0.2, 0.2], [0.5, 0.5, 0.2, 0.2], [0.4, 0.5, 0.4, 0.4], [0.9, 0.9, 0.2, 0.2]])


def encode(boxes_xyxy, labels, anchors=FOUR):
    targets = preprocess.encode_targets(np.float32(boxes_xyxy).reshape(-1, 4), np.int32(labels), anchors)
    return targets["classes"].numpy(), targets["offsets"].numpy()


def corners(cx, cy, w, h):
    return [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]


def caffe_match(overlap, threshold=0.5):
    """The truth of each anchor by the loops of Caffe's MatchBBox (bbox_util.cpp): bipartite, per prediction."""
    num_truths, num_anchors = overlap.shape
    owner, pool = np.full(num_anchors, -1), list(range(num_truths))
    while pool:
        best, chosen, anchor = 0.0, -1, -1
        for i in range(num_anchors):
            if owner[i] < 0:
                for j in pool:
                    if overlap[j, i] > best:
                        best, chosen, anchor = overlap[j, i], j, i
        if anchor < 0:
            break
        owner[anchor] = chosen
        pool.remove(chosen)
    for i in range(num_anchors):
        if owner[i] < 0:
            best = -1.0
            for j in range(num_truths):
                if overlap[j, i] >= threshold and overlap[j, i] > best:
                    best, owner[i] = overlap[j, i], j
    return owner


def random_truth(rng, count, smallest=0.02):
    sides = np.exp(rng.uniform(np.log(smallest), np.log(0.9), (count, 2)))
    low = rng.random((count, 2)) * (1 - sides)
    return np.concatenate([low, low + sides], axis=1).astype(np.float32), rng.integers(6, size=count)


def test_one_truth_by_hand():
    """10 on the centre, 5 on the sizes (the article has it the other way round)."""
    classes, offsets = encode([corners(0.52, 0.49, 0.2, 0.24)], [6])
    assert classes.tolist() == [0, 7, 0, 0]
    np.testing.assert_allclose(offsets[1], [10 * 0.02 / 0.2, 10 * -0.01 / 0.2, 0, 5 * np.log(1.2)], atol=1e-5)
    assert not offsets[[0, 2, 3]].any()


def test_every_truth_keeps_its_best_anchor():
    """However little it overlaps: the article wants more than 0.5, and small objects have no anchor then."""
    small = corners(0.32, 0.5, 0.02, 0.02)                                  # a hundredth of its anchor
    assert encode([small], [0])[0].tolist() == [1, 0, 0, 0]
    assert encode([small, corners(0.9, 0.9, 0.2, 0.2)], [0, 1])[0].tolist() == [1, 0, 0, 2]


def test_all_anchors_from_the_threshold_on():
    # 0.32 x 0.32 in the middle of the large one: 0.1024 / 0.16 = 0.64; of the squares 0.26 and 0.26.
    assert encode([corners(0.4, 0.5, 0.32, 0.32)], [0])[0].tolist() == [0, 0, 1, 0]
    # Half of a square is 0.5 exactly where the numbers are: sides of 1/4 and 1/8.
    anchors = np.float32([[0.5, 0.5, 0.25, 0.25], [0.5, 0.5, 0.25, 0.125]])
    assert encode([corners(0.5, 0.5, 0.25, 0.125)], [0], anchors)[0].tolist() == [1, 1]


def test_two_truths_want_the_same_anchor():
    """The one that overlaps more keeps it, the other takes its next best; in any order."""
    good, worse = corners(0.3, 0.5, 0.2, 0.2), corners(0.32, 0.5, 0.18, 0.18)
    for order in ([0, 1], [1, 0]):
        classes, _ = encode(np.array([good, worse])[order], np.array([3, 5])[order])
        assert classes.tolist() == [4, 0, 6, 0]
    # One moves on to an anchor whose truth has to move on, too: of anchor 0, 2 and 1.
    third = corners(0.41, 0.5, 0.3, 0.3)
    overlap = boxes.iou(np.float32([good, worse, third]), boxes.to_xyxy(FOUR)).numpy()
    assert overlap.argmax(axis=1).tolist() == [0, 0, 2]
    assert encode([good, worse, third], [0, 1, 2])[0].tolist() == (1 + caffe_match(overlap)).tolist()


def test_an_anchor_above_the_threshold_goes_to_the_truth_it_overlaps_most():
    near, far = corners(0.51, 0.5, 0.2, 0.2), corners(0.54, 0.5, 0.2, 0.2)
    anchors = np.float32([[x, 0.5, 0.2, 0.2] for x in (0.5, 0.51, 0.54, 0.53)])
    assert encode([far, near], [0, 1], anchors)[0].tolist() == [2, 2, 1, 1]


@pytest.mark.parametrize("seed,count", [(0, 1), (1, 3), (2, 12), (3, 40), (4, 40)])
def test_matching_equals_the_loops_of_caffe(seed, count):
    """Boxes by chance; in the last, crowded together around a few places, so that they contend for anchors."""
    rng = np.random.default_rng(seed)
    truth, labels = random_truth(rng, count)
    if seed == 4:
        truth = (truth[rng.integers(4, size=count)] + rng.uniform(-0.01, 0.01, (count, 4))).astype(np.float32)
    coarse = TINY[1600:]                                                     # the loops are slow
    overlap = boxes.iou(truth, boxes.to_xyxy(coarse)).numpy()
    owner = caffe_match(overlap)
    classes, offsets = encode(truth, labels, coarse)
    np.testing.assert_array_equal(classes, np.where(owner >= 0, 1 + labels[owner], 0))
    np.testing.assert_allclose(models.decode(offsets, coarse)[owner >= 0], truth[owner[owner >= 0]], atol=1e-5)
    assert len(set(owner[owner >= 0])) == count and not offsets[owner < 0].any()


def test_identical_truths_and_more_truths_than_anchors():
    """Equal overlaps: the first truth has the first anchor. Four anchors are enough for four truths."""
    anchors = np.float32([[0.25, 0.5, 0.25, 0.25], [0.5, 0.5, 0.25, 0.25], [0.375, 0.5, 0.5, 0.5],
                          [0.875, 0.875, 0.25, 0.25]])                       # in eighths, so that equal is equal
    same = [corners(0.375, 0.5, 0.5, 0.5)] * 3
    overlap = boxes.iou(np.float32(same), boxes.to_xyxy(anchors)).numpy()
    classes, _ = encode(same, [0, 1, 2], anchors)
    assert classes.tolist() == (1 + caffe_match(overlap)).tolist() == [2, 3, 1, 0]       # none reaches the last
    truth = [corners(x, y, 0.5, 0.5) for x in (0.3, 0.5, 0.7) for y in (0.3, 0.5, 0.7)]
    overlap = boxes.iou(np.float32(truth), boxes.to_xyxy(FOUR)).numpy()
    assert encode(truth, range(9))[0].tolist() == (1 + caffe_match(overlap)).tolist()


@pytest.mark.parametrize("alike", [True, False])
def test_five_hundred_boxes(alike):
    truth, labels = random_truth(np.random.default_rng(1), 500)
    if alike:
        truth[:] = truth[0]
    classes, offsets = encode(truth, labels, TINY)
    found = models.decode(offsets[classes > 0], TINY[classes > 0]).numpy()
    assert np.isfinite(offsets).all() and (classes > 0).sum() >= 500
    for box, label in zip(found, classes[classes > 0] - 1):
        assert (np.abs(truth - box).max(axis=1) < 1e-5)[labels == label].any()
    if alike:
        assert (classes > 0).sum() == max(500, (boxes.iou(truth[:1], boxes.to_xyxy(TINY)) >= 0.5).numpy().sum())
        np.testing.assert_array_equal(np.sort(classes[classes > 0])[:20], 1)


def test_what_is_no_truth():
    """Nothing at all, padding (-1), boxes without area, turned inside out, outside of every anchor."""
    for truth, labels in (([], []), ([[0, 0, 0, 0]], [-1]), ([[0.3, 0.2, 0.3, 0.6]], [0]),
                          ([[0.3, 0.6, 0.5, 0.6]], [0]), ([[0.5, 0.2, 0.3, 0.6]], [0]), ([[0, 0, 0, 0]], [0]),
                          ([[5, 5, 6, 6]], [0])):
        classes, offsets = encode(truth, labels)
        assert not classes.any() and not offsets.any() and classes.shape == (4,) and offsets.shape == (4, 4)
    pixel = np.float32([100, 50, 101, 51]) / 300
    classes, offsets = encode([pixel], [2], models.anchors("vgg300"))
    anchor, = np.flatnonzero(classes)
    np.testing.assert_allclose(models.decode(offsets, models.anchors("vgg300"))[anchor], pixel, atol=1e-5)


def test_anchors_in_a_crowd_are_neither_objects_nor_background():
    """Of anchors that lie in the crowd by all, 3/4, 1/4 and nothing of their own area the first two are no background;
    one that is an object's stays so."""
    crowd = [0.0, 0.0, 0.5, 1.0]
    anchors = np.float32([[0.2, 0.5, 0.2, 0.2], [0.45, 0.5, 0.2, 0.2], [0.55, 0.5, 0.2, 0.2], [0.8, 0.5, 0.2, 0.2],
                          [0.2, 0.2, 0.2, 0.2]])
    for order in (1, -1):
        classes, offsets = encode([crowd, corners(0.2, 0.2, 0.2, 0.2)][::order], [-1, 2][::order], anchors)
        assert classes.tolist() == [-1, -1, 0, 0, 3] and not offsets[:4].any()
    assert len(preprocess.decode_targets({"classes": classes, "offsets": offsets}, anchors)) == 1


def test_a_batch_is_its_pictures():
    rng = np.random.default_rng(5)
    truth, labels = (np.stack(values) for values in zip(*(random_truth(rng, 6) for _ in range(4))))
    labels[1], labels[2, 3:] = -1, -1
    together = tf.function(lambda *values: preprocess.encode_batch(*values, TINY))(
        tf.constant(truth), tf.constant(labels))
    for i in range(4):
        classes, offsets = encode(truth[i], labels[i], TINY)
        np.testing.assert_array_equal(together["classes"][i], classes)
        # In a graph a division by a constant becomes a product.
        np.testing.assert_allclose(together["offsets"][i], offsets, rtol=1e-6, atol=1e-6)
    assert together["classes"][1].numpy().max() == 0                       # crowds alone


def test_targets_are_decoded_back():
    truth = np.float32([corners(0.3, 0.5, 0.2, 0.2), corners(0.45, 0.5, 0.3, 0.3)])
    classes, offsets = encode(truth, [4, 0])
    decoded = preprocess.decode_targets({"classes": classes, "offsets": offsets}, FOUR)
    assert [(label, len(its_anchors)) for _, label, its_anchors in decoded] == [(4, 1), (0, 1)]
    np.testing.assert_allclose([box for box, *_ in decoded], truth, atol=1e-6)
    np.testing.assert_allclose(decoded[0][2], [corners(0.3, 0.5, 0.2, 0.2)], atol=1e-6)


def test_padding_is_what_the_network_subtracts():
    assert augment.MEAN == models.MEAN


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Records of made-up pictures."""
    root = tmp_path_factory.mktemp("records")
    detection_demo.build(root, splits={"train": 23, "val": 5}, size=96, progress=False)
    return root / "demo"


def batches(folder, count, **arguments):
    arguments = {"anchors": TINY, "image_size": 96, "num_classes": 6, "batch_size": 4, "seed": 1, "workers": 0,
                 **arguments}
    return list(preprocess.training_dataset(folder, **arguments).take(count).as_numpy_iterator())


def same(a, b):
    for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_training_can_start_at_any_step(demo):
    """23 examples, batches of 4: epochs do not end with a batch."""
    whole = batches(demo, 9)
    for step in (5, 6):
        for ours, expected in zip(batches(demo, 9 - step, start_step=step), whole[step:], strict=True):
            same(ours, expected)
    images, targets = whole[0]
    assert images.shape == (4, 96, 96, 3) and images.dtype == np.float32
    assert 0 <= images.min() and images.max() <= 1
    assert targets["classes"].shape == (4, 2390) and targets["offsets"].shape == (4, 2390, 4)
    assert targets["classes"].dtype == np.int32 and targets["classes"].any()
    # Another epoch shows the pictures in another order and differently, another seed too.
    assert not any(np.array_equal(whole[0][0][0], image) for image in whole[6][0])
    assert not np.array_equal(batches(demo, 1, seed=2)[0][0], images)


def test_the_same_batches_for_any_number_of_workers(demo):
    alone = batches(demo, 7)
    for processes in (1, 2, 3):
        for ours, expected in zip(batches(demo, 7, workers=processes), alone, strict=True):
            same(ours, expected)


def test_two_hosts_share_the_batches_of_one(demo):
    """With 22 of the examples, so that both get as many: together they hold what one's batch holds."""
    alone = batches(demo, 6, limit=22)
    shares = [batches(demo, 2, limit=22, batch_size=2, global_batch_size=4, num_workers=2, worker=worker,
                      start_step=4) for worker in (0, 1)]
    for whole, first, second in zip(alone[4:], *shares, strict=True):
        same(tf.nest.map_structure(lambda value: value[0::2], whole), first)
        same(tf.nest.map_structure(lambda value: value[1::2], whole), second)


def test_not_augmented_pictures_are_warped(demo):
    (images, targets), = batches(demo, 1, augmented=False)
    examples = [detection.parse(item["record"]) for item in records.dataset(demo, "train", seed=1).take(4)]
    for i, example in enumerate(examples):
        image = detection.decode_image(example["image_bytes"]) / 255
        np.testing.assert_allclose(images[i], image, atol=8 / 255)            # two JPEG decoders
        classes, offsets = encode(example["boxes_xyxy"], example["labels"], TINY)
        np.testing.assert_array_equal(targets["classes"][i], classes)
        np.testing.assert_allclose(targets["offsets"][i], offsets, rtol=1e-6, atol=1e-6)


def test_evaluation_is_warped_and_not_augmented(demo):
    found = [list(preprocess.evaluation_dataset(demo, "val", image_size=64, batch_size=2).as_numpy_iterator())
             for _ in range(2)]
    for ours, again in zip(*found, strict=True):
        same(ours, again)
    assert [batch["index"].tolist() for batch in found[0]] == [[0, 1], [2, 3], [4, -1]]


def write(folder, examples, labels=("a", "b")):
    with records.RecordWriter(folder, kind="detection", labels=list(labels)) as writer:
        writer.write_split("train", examples)
        writer.publish()
    return folder


def tiny_png(height=40, width=60):
    return tf.io.encode_png(tf.fill([height, width, 3], tf.constant(200, tf.uint8))).numpy()


def test_pictures_without_objects_and_crowds(tmp_path):
    empty = [detection.encode_example(tiny_png(), 40, 60, f"{i}.png", np.zeros([0, 4]), []) for i in range(3)]
    crowd = detection.encode_example(tiny_png(), 40, 60, "crowd.png", [[0.1, 0.1, 0.9, 0.9]], [1], is_crowd=[True])
    folder = write(tmp_path / "empty", [*empty, crowd])
    assert detection_data.most_objects(folder, "train") == 1
    for augmented in (True, False):
        (images, targets), = batches(folder, 1, num_classes=2, augmented=augmented)
        assert images.shape == (4, 96, 96, 3) and not targets["offsets"].any()
        of_crowd = (targets["classes"] < 0).sum(axis=1)
        assert targets["classes"].max() == 0 and np.sort(of_crowd)[:3].tolist() == [0, 0, 0]
        # The crowd covers .64 of the picture, unless augmentation looks past it.
        assert augmented or of_crowd.max() > 0.5 * targets["classes"].shape[1]
    assert detection_data.most_objects(write(tmp_path / "nothing", empty), "train") == 0
    batch, = preprocess.evaluation_dataset(folder, "train", image_size=30, batch_size=4)
    assert batch["images"].shape == (4, 30, 30, 3) and batch["boxes_xyxy"].shape == (4, 1, 4)


def test_the_fullest_picture_sets_the_room(demo, tmp_path):
    entries = records.read_manifest(demo)["splits"]
    for split, entry in entries.items():
        counts = [len(detection.parse(item["record"])["labels"]) for item in records.dataset(demo, split)]
        assert entry["most_objects"] == max(counts) == detection_data.most_objects(demo, split)
    truth, labels = random_truth(np.random.default_rng(0), 60)
    crowded = detection.encode_example(tiny_png(), 40, 60, "a.png", truth, labels % 2)
    (_, targets), = batches(write(tmp_path / "full", [crowded]), 1, num_classes=2, batch_size=1, augmented=False)
    np.testing.assert_array_equal(targets["classes"][0], encode(truth, labels % 2, TINY)[0])


@pytest.mark.parametrize("processes", [0, 1])
def test_bad_records_are_named(tmp_path, processes):
    box = [[0.1, 0.1, 0.9, 0.9]]
    unknown = write(tmp_path / "unknown", [detection.encode_example(tiny_png(), 40, 60, "c.png", box, [2])])
    from_0 = write(tmp_path / "from 0", [detection.encode_example(tiny_png(), 40, 60, "e.png", box, [-1])])
    broken = write(tmp_path / "broken", [detection.encode_example(b"no picture", 40, 60, "d.png", box, [0])])
    for folder, words in ((unknown, "c.png must have classes 0 to 1"),
                          (from_0, "e.png must have classes 0 to 1, and has -1"), (broken, "d.png must be a picture")):
        with pytest.raises(tf.errors.OpError) as caught:
            batches(folder, 1, num_classes=2, batch_size=1, workers=processes)
        original = workers.original_error(caught.value)
        assert isinstance(original, UserError) and words in str(original)


def test_unbuilt_records_name_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="python -m ssd.preprocess --dataset voc2007 --source VOCdevkit"):
        preprocess.ensure_records("voc2007")
    assert preprocess.command("my set") == "python -m ssd.preprocess --dataset 'my set' --source FOLDER"


def test_doctor_counts_objects_without_a_good_anchor(tmp_path):
    """At image_size 100: one box is an anchor, a small one overlaps it by a sixteenth, one has no area."""
    truth = [corners(0.3, 0.5, 0.2, 0.2), corners(0.3, 0.5, 0.05, 0.05), [0.3, 0.3, 0.3, 0.5]]
    contents = detection_doctor.read(write(tmp_path / "set", [
        detection.encode_example(tiny_png(), 40, 60, "a.png", truth, [0] * 3)]), "train")
    best, count = doctor.best_overlaps(np.float32(truth[:2]), FOUR, 0.5)
    np.testing.assert_allclose(best, [1, 1 / 16], rtol=1e-4)
    assert count.tolist() == [1, 0]
    text = doctor.describe({"train": contents}, FOUR, 100, 0.5)
    assert "train: 1 of 2 objects (50.0%) have no anchor that overlaps by 0.5, only their best" in text
    assert "1 of 2 small, 0 of 0 medium" in text and "note: train: the anchors reach" in text


def test_command_line_looks_at_records(demo, tmp_path):
    """--check and --visualize of a set that is built, without building it again."""
    before = (demo / "manifest.json").stat().st_mtime_ns
    command = [sys.executable, "-m", "ssd.preprocess", "--dataset", "demo", "--out", str(demo), "--check",
               "--visualize", "--model", "tiny"]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(preprocess.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (demo / "manifest.json").stat().st_mtime_ns == before
    for words in ("28 pictures, 6 classes", "2390 anchors at image_size 160", "only their best", "targets.png: "):
        assert words in done.stdout
    picture = tf.io.decode_png((demo / "targets.png").read_bytes())
    assert picture.shape == (3 * 480 + 8, 4 * 480 + 12, 3)
