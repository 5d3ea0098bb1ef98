"""Crops and targets of the hourglass: hand-worked geometry, painted joints that must follow, batches that
resume."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import cv2
import numpy as np
import pytest
import tensorflow as tf

from common import decoding, heatmaps, records
from common.errors import UserError
from hourglass import augment, crops, demo, doctor, poses, preprocess
from tests.hourglass.folders import entry, write_mpii

BODY = poses.MPII


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Records of made-up figures of 96 pixels."""
    root = tmp_path_factory.mktemp("records")
    poses.build_records(demo.source(size=96, splits={"train": 23, "val": 5}), root, progress=False)
    return root / "demo"


# Geometry.

def test_the_articles_box_by_hand():
    """Joints from (40, 60) to (90, 200), a body of 200 pixels, padding 1/8 of it: 25 pixels on each side."""
    joints = np.array([[40, 100], [90, 60], [70, 200], [0, 0]], float)
    visible = np.array([2, 1, 2, 0])
    assert crops.joints_box(joints, visible, 1.0, 300, 300).tolist() == [15, 35, 115, 225]
    assert crops.joints_box(joints, visible, 1.0, 110, 220).tolist() == [15, 35, 110, 220]   # inside the picture
    assert crops.joints_box(joints, visible, 0.5, 300, 300, 0.3).tolist() == [10, 30, 120, 230]
    assert crops.joints_box(joints, visible * 0, 1.0, 300, 280).tolist() == [0, 0, 300, 280]
    assert crops.square_around((0, 20, 130, 240)) == (-45, 20, 220)       # nothing is stretched
    assert crops.square_around((0, 20, 130, 240), 1.5) == (-100, -35, 330)
    beyond = crops.joints_box(joints + 400, visible, 0.1, 300, 300)
    assert (beyond[2:] > beyond[:2]).all() and beyond.max() <= 300


def test_both_crops_show_a_body_in_the_same_size():
    """Who is as tall as his scale says: one eighth on each side makes 1.25 of the height in both crops."""
    joints, visible = np.array([[100, 50], [120, 250.0]]), np.array([2, 2])
    arguments = joints, visible, (110, 150), 1.0, 900, 900
    assert crops.square_of("article", *arguments) == crops.square_of("center", *arguments) == (-15, 25, 250)
    assert crops.square_of("center", joints, visible, (300, 150), 1.0, 900, 900) == (175, 25, 250)
    assert crops.square_of("article", joints, visible, (300, 150), 1.0, 900, 900) == (-15, 25, 250)


def test_square_for_evaluation():
    assert crops.crop_box((100, 80), 0.64) == (20, 0, 160)                # 200 * 0.64 * 1.25 = 160
    matrix = crops.to_picture((20, 0, 160), 64)
    np.testing.assert_allclose(crops.move(matrix, [[0, 0], [32, 32], [64, 64], [2, 4]]),
                               [[20, 0], [100, 80], [180, 160], [25, 10]])


@pytest.mark.parametrize("degrees, flip", [(0, False), (30, False), (-17, True), (0, True)])
def test_turned_and_mirrored_by_hand(degrees, flip):
    """What is right of the centre turns clockwise, that is down for positive degrees; then it is mirrored."""
    matrix = crops.to_picture((20, 0, 160), 64, degrees, flip)
    back = crops.invert(matrix)
    point = crops.move(back, [[100 + 50, 80.0]])[0] - 32                  # 50 pixels are 20 of the crop
    turn = np.radians(degrees)
    np.testing.assert_allclose(point, [(-1 if flip else 1) * 20 * np.cos(turn), 20 * np.sin(turn)], atol=1e-9)
    points = np.random.default_rng(0).uniform(0, 64, (5, 2))
    np.testing.assert_allclose(crops.move(back, crops.move(matrix, points)), points)


def test_a_crop_of_whole_pixels_is_that_part():
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    np.testing.assert_array_equal(crops.crop(image, (8, 3, 32), 32), image[3:35, 8:40])
    mirrored = crops.warp(image, crops.to_picture((8, 3, 32), 32, flip=True), 32)
    np.testing.assert_array_equal(mirrored, image[3:35, 8:40][:, ::-1])
    outside = crops.crop(image, (-16, -8, 64), 64)
    assert (outside[:8] == 128).all() and (outside[:, :16] == 128).all()
    np.testing.assert_array_equal(outside[8:48, 16:64], image[:, :48])
    half = crops.crop(image, (0, 0, 40), 20)                              # each pixel is the mean of four
    np.testing.assert_allclose(half[5, 5], image[10:12, 10:12].mean((0, 1)), atol=1)


def test_a_side_too_long_for_opencv():
    image = np.repeat(np.array([[[0] * 3, [200] * 3]], np.uint8), 20_000, 1)
    out = crops.crop(np.repeat(image, 8, 0), (19_960, -36, 80), 80)          # rows 36 to 44 of it are picture
    assert (out[40, :38] == 0).all() and (out[40, 42:] == 200).all() and (out[:34] == 128).all()


@pytest.mark.parametrize("shrink", [1, 2, 5, 8, 100])
@pytest.mark.parametrize("size", [(400, 600), (401, 603)])
def test_reduced_decoding_keeps_things_in_place(shrink, size):
    """A white disc around (310.5, 200.5) on black."""
    image = cv2.circle(np.zeros([*size, 3], np.uint8), (310, 200), 60, (255, 255, 255), -1)
    for data in (tf.io.encode_jpeg(image, quality=95).numpy(), tf.io.encode_png(image).numpy()):
        small, factor = decoding.decode_reduced(data, shrink)
        assert factor == min(8, 2 ** int(np.log2(shrink))) and small.shape[1] == -(-size[1] // factor)
        rows, columns = np.nonzero(small[..., 0] > 127)
        np.testing.assert_allclose([(columns.mean() + 0.5) * factor, (rows.mean() + 0.5) * factor], [310.5, 200.5],
                                   atol=0.15 * factor)
        view = crops.view(data, crops.to_picture((110, 0, 400), 50), 50)
        rows, columns = np.nonzero(view[..., 0] > 127)
        np.testing.assert_allclose([columns.mean() + 0.5, rows.mean() + 0.5], [200.5 / 8, 200.5 / 8], atol=0.15)


def test_pictures_that_are_no_jpeg_are_averaged_over_blocks():
    image = np.random.default_rng(0).integers(0, 256, [11, 14, 3], np.uint8)
    small, factor = decoding.decode_reduced(tf.io.encode_png(image).numpy(), 5)
    assert factor == 4 and small.shape == (3, 4, 3)
    whole = np.pad(image, [(0, 1), (0, 2), (0, 0)], "edge").astype(float)    # the last block, filled up
    np.testing.assert_allclose(small, whole.reshape(3, 4, 4, 4, 3).mean((1, 3)), atol=0.51)


# Augmentation.

def dots():
    """(encoded picture 300 x 200, its joints [16, 2], visible): each joint a disc whose grey level tells which."""
    image, rng = np.zeros([200, 300, 3], np.uint8), np.random.default_rng(0)
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(4)), -1).reshape(-1, 2)
    joints = grid * [40, 30] + [70, 40] + rng.integers(-4, 5, (16, 2)) + 0.5
    for k, (x, y) in enumerate(joints):
        cv2.circle(image, (int(x), int(y)), 5, (100 + 8 * k,) * 3, -1)
    return tf.io.encode_png(image).numpy(), joints.astype(np.float32), np.full(16, 2)


def test_joints_follow_the_pixels(monkeypatch):
    """With neutral colours the level at a joint still tells which it is: in a mirror, the other of its pair."""
    monkeypatch.setattr(augment, "GAIN", (1.0, 1.0))
    monkeypatch.setattr(augment, "TINT", (1.0, 1.0))
    data, joints, visible = dots()
    square = crops.square_of("article", joints, visible, (0, 0), 0.6, 300, 200)
    order = augment.mirrored(np.arange(16), BODY.pairs)
    assert order.tolist() == [5, 4, 3, 2, 1, 0, 6, 7, 8, 9, 15, 14, 13, 12, 11, 10]
    flips, seen = set(), 0
    for seed in range(20):
        rng = np.random.default_rng(seed)
        image, moved, now = preprocess.training_crop(data, square, joints, visible, rng, 256, BODY.pairs)
        _, flip = augment.draw_view(square, np.random.default_rng(seed), 256)
        flips.add(flip)
        assert image.shape == (256, 256, 3) and moved.dtype == np.float32 and (now == 2).all()
        for k, (x, y) in enumerate(moved):
            if 4 < x < 252 and 4 < y < 252:
                seen += 1
                assert image[int(y), int(x), 0] == pytest.approx(100 + 8 * (order[k] if flip else k), abs=2)
    assert flips == {True, False} and seen > 250
    assert not any(augment.draw_view(square, np.random.default_rng(seed), 256, flips=False)[1] for seed in range(20))


@pytest.mark.parametrize("rotation, shift", [(30, 0.05), (180, 0.0), (0, 0.2)])
def test_views_stay_in_their_ranges(rotation, shift):
    degrees, sides, places = [], [], []
    for seed in range(300):
        matrix, flip = augment.draw_view((20, 10, 80), np.random.default_rng(seed), 64, rotation=rotation, shift=shift)
        linear = matrix[:, :2] @ np.diag([-1 if flip else 1, 1])
        degrees.append(np.degrees(np.arctan2(linear[0, 1], linear[0, 0])))
        sides.append(64 * np.sqrt(np.linalg.det(linear)))
        places.append((crops.move(matrix, [32, 32]) - [60, 50]) / sides[-1])     # of the middle, in sides
    assert -rotation <= min(degrees) <= -0.95 * rotation and 0.95 * rotation <= max(degrees) <= rotation
    assert 0.75 * 80 <= min(sides) < 0.77 * 80 and 1.23 * 80 < max(sides) <= 1.25 * 80
    assert 0.95 * shift - 1e-9 <= np.abs(places).max() <= shift + 1e-9


def test_colours_are_multiplied_and_cut():
    image = np.tile(np.array([[[10, 100, 250]]], np.uint8), (4, 4, 1))
    for seed in range(5):
        out = augment.recolor(image, np.random.default_rng(seed))[0, 0]
        assert out[2] <= 255 and 10 * 0.5 <= out[0] <= 10 * 1.6 and 100 * 0.53 <= out[1] <= 100 * 1.55
        assert out[0] / 10 == pytest.approx(out[1] / 100, rel=0.3)       # the tint is small
    assert len({augment.recolor(image, np.random.default_rng(seed))[0, 0, 1] for seed in range(9)}) > 5


# Targets.

def test_targets_by_hand():
    joints = np.float32([[[10, 21], [130, 5], [60, 60], [0, 0]]])
    visible = np.array([[2, 2, 1, 0]])
    targets = preprocess.encode_targets(joints, visible, 128)
    maps = targets["heatmaps"].numpy()
    assert maps.shape == (1, 32, 32, 4) and targets["weight"].numpy().tolist() == [[1, 1, 1, 0]]
    assert maps[0, 5, 2, 0] == 1 and maps[0, 15, 15, 2] == 1           # (21, 10) / 4, hidden joints are learnt
    assert not maps[..., 1].any() and not maps[..., 3].any()           # not in the crop, not annotated
    out = preprocess.encode_targets(joints, visible, 128, absent="out of view")
    assert out["weight"].numpy().tolist() == [[1, 1, 1, 1]] and not out["heatmaps"][..., 3].numpy().any()


def batches(folder, count, **arguments):
    arguments = {"image_size": 64, "batch_size": 4, "seed": 1, **arguments}
    return list(preprocess.training_dataset(folder, **arguments).take(count).as_numpy_iterator())


def same(a, b):
    for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_training_batches(small):
    """23 examples, batches of 4: epochs do not end with a batch; training goes on from any step."""
    whole = batches(small, 9)
    images, targets = whole[0]
    assert images.shape == (4, 64, 64, 3) and images.dtype == np.float32 and 0 <= images.min() < images.max() <= 1
    assert targets["heatmaps"].shape == (4, 16, 16, 16) and targets["weight"].shape == (4, 16)
    for step in (5, 8):                         # the last one of the first epoch reaches into the second
        same(batches(small, 1, start_step=step)[0], whole[step])
    others = batches(small, 1, seed=2)[0]
    assert np.abs(others[0] - whole[0][0]).max() > 0.1
    halves = [batches(small, 4, batch_size=2, global_batch_size=4, num_workers=2, worker=worker, start_step=1)
              for worker in (0, 1)]
    one = batches(small, 4, start_step=1, num_workers=1)
    for step in range(3):                                                  # of 22 examples, as two workers have
        pictures = np.concatenate([half[step][0] for half in halves])
        assert sum(np.array_equal(a, b) for a in pictures for b in one[step][0]) == 4
    few = batches(small, 2, limit=4)
    assert sorted(image.sum() for image in few[0][0]) != sorted(image.sum() for image in few[1][0])
    spec = preprocess.training_dataset(small, image_size=64, batch_size=4, seed=0).element_spec
    assert spec[0].shape == (4, 64, 64, 3) and spec[1]["heatmaps"].shape == (4, 16, 16, 16)


def test_nothing_is_mirrored_where_a_partner_is_not_known(small, tmp_path):
    """As with all partners known, but that those who were mirrored are not."""
    folder = tmp_path / "alone"
    shutil.copytree(small, folder)
    manifest = json.loads((folder / records.MANIFEST).read_text())
    (folder / records.MANIFEST).write_text(json.dumps({**manifest, "unpaired": ["left_knee"]}))

    def crops_of(folder):
        return [pair for images, targets in batches(folder, 3)
                for pair in zip(images, heatmaps.peaks(targets["heatmaps"])[0])]

    same_way = []
    for (image, joints), (other, joints_of_other) in zip(crops_of(small), crops_of(folder), strict=True):
        same_way.append(np.abs(image - other).mean() < 1e-6)
        mirrored = image if same_way[-1] else image[:, ::-1]
        assert np.abs(mirrored - other).mean() < 0.01        # OpenCV's weights are multiples of 1/32
        assert np.array_equal(joints, joints_of_other) == same_way[-1]
    assert 2 < sum(same_way) < 10


@pytest.mark.parametrize("crop", crops.CROPS)
def test_not_augmented_training_is_the_crop_as_it_is(small, crop):
    by_sum = {}
    for item in records.dataset(small, "train"):
        example = {key: value.numpy() for key, value in poses.parse(item["record"], 16).items()}
        if crop == "article":
            box = crops.joints_box(example["joints"], example["visible"], example["scale"], 96, 96)
            square = crops.square_around(box)
        else:
            square = crops.crop_box(example["center"].astype(float), example["scale"])
        matrix = crops.to_picture(square, 64)
        image = crops.view(example["image_bytes"], matrix, 64)
        by_sum[int(image.sum())] = image, crops.move(crops.invert(matrix), example["joints"]), example["visible"]
    (images, targets), = batches(small, 1, augmented=False, crop=crop)
    found, scores = heatmaps.peaks(targets["heatmaps"])
    for i in range(4):
        image, joints, visible = by_sum[int(np.rint(images[i] * 255).sum())]
        np.testing.assert_allclose(images[i] * 255, image, atol=1e-3)
        shown = (visible > 0) & ((joints >= 4) & (joints < 60)).all(axis=1)
        np.testing.assert_allclose(found[i][shown] * 4, joints[shown], atol=1.01)    # a quarter of a heatmap pixel
        assert (scores[i].numpy()[shown] == 1).all() and not scores[i].numpy()[visible == 0].any()
    # With the same crop, evaluation sees the very pixels that training saw.
    for batch in preprocess.evaluation_dataset(small, "train", image_size=64, batch_size=4, crop=crop):
        for image in batch["images"].numpy()[batch["index"].numpy() >= 0]:
            np.testing.assert_allclose(image * 255, by_sum[int(np.rint(image * 255).sum())][0], atol=1e-3)


def test_evaluation_batches(small):
    found = list(preprocess.evaluation_dataset(small, "val", image_size=64, batch_size=2, global_batch_size=4)
                 .as_numpy_iterator())
    assert np.concatenate([batch["index"] for batch in found]).tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    for batch in found[:2]:
        assert batch["images"].shape == (2, 64, 64, 3) and batch["to_picture"].shape == (2, 2, 3)
        for i, index in enumerate(batch["index"]):
            image, figure = demo.draw(0, 23 + index, 96)
            inside = figure.visible > 0
            np.testing.assert_allclose(batch["joints"][i][inside], figure.joints_xy[inside], atol=1e-4)
            np.testing.assert_array_equal(batch["visible"][i], figure.visible)
            assert batch["head_size"][i] == pytest.approx(figure.head_size, rel=1e-5)
            side = 250 * batch["scale"][i]
            np.testing.assert_allclose(batch["to_picture"][i][:, :2], np.eye(2) * side / 64, rtol=1e-5, atol=1e-6)
            middle = crops.move(batch["to_picture"][i], [32, 32])
            seen = figure.joints_xy
            assert np.abs(middle - (seen.min(0) + seen.max(0)) / 2).max() < 0.06 * 96
            expected = crops.crop(image, (*(middle - side / 2), side), 64) / 255
            assert np.abs(batch["images"][i] - expected).mean() < 0.03      # JPEG
    assert {"image_id", "person_id", "area", "box", "filename"} <= set(found[0])
    spec = preprocess.evaluation_dataset(small, "val", image_size=64, batch_size=2).element_spec
    assert spec["joints"].shape == (2, 16, 2) and spec["head_size"].shape == (2,)


def test_another_number_of_joints_and_some_missing(tmp_path):
    """LSP's 14 joints; one person with a single joint; a gray picture with the EXIF flag that turns it."""
    data = tf.io.encode_jpeg(np.full([80, 120, 1], 200, np.uint8)).numpy()
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1\x00\x22Exif\0\0" + tiff + data[2:]
    joints = np.random.default_rng(0).uniform(10, 70, (14, 2))

    def load(i):
        visible = np.zeros(14, int) if i == 0 else np.full(14, 2)
        visible[0] = 2
        return poses.Person(turned if i else data, f"{i}.jpg", joints, visible, (40, 40), 0.3)

    source = poses.Source("lsp", poses.LSP, {"train": range(4), "val": range(2)}, load)
    folder = poses.build_records(source, tmp_path, progress=False).folder
    for augmented in (True, False):
        (images, targets), = batches(folder, 1, augmented=augmented)
        assert targets["heatmaps"].shape == (4, 16, 16, 14) and np.isfinite(images).all()
        assert sorted(targets["weight"].sum(1).tolist()) == [1, 14, 14, 14]
    batch, = preprocess.evaluation_dataset(folder, "val", image_size=64, batch_size=2)
    assert batch["images"].numpy()[1, 32, 32, 0] == pytest.approx(200 / 255, abs=0.01)
    np.testing.assert_allclose(batch["joints"][1], joints, atol=1e-5)       # the turn is ignored, joints stay
    findings = doctor.examine(folder)
    assert not findings.problems and any("13 of 56 joints are not annotated" in note for note in findings.notes)


# The doctor and the command line.

def write(root, persons, size=(100, 100)):
    """Records of persons as they are, not mended."""
    data = tf.io.encode_png(np.zeros([*size, 3], np.uint8)).numpy()
    with records.RecordWriter(root, kind="pose", labels=BODY.labels) as writer:
        body = {key: value for key, value in BODY._asdict().items() if key != "labels"}
        writer.manifest.update(body)
        for split, entries in persons.items():
            writer.write_split(split, [
                poses.encode_example(poses.Person(
                    b"", f"{i}.png", joints, np.array(visible), (50, 50), scale), picture or data, *size)
                for i, (joints, visible, scale, picture) in enumerate(entries)])
        writer.publish()
    return root


def test_doctor_finds_what_is_wrong(tmp_path):
    joints = np.stack([np.arange(16) * 5.0 + 10, np.full(16, 50.0)], 1)
    nan, outside, feet = joints.copy(), joints.copy(), joints.copy()
    nan[2, 0], outside[3, 1], feet[5] = np.nan, 100.5, feet[0] + [1.9, 0]     # 2 % of 100 pixels
    seen = [2] * 16
    folder = write(tmp_path / "set", {"train": [
        (joints, seen, 0.5, None), (nan, seen, 0.5, None), (outside, seen, 0.5, None), (joints, seen, 0.0, None),
        (joints, [0] * 16, 0.5, None), (joints, seen, 0.5, b"\x89PNG no picture")], "val": [(feet, seen, 0.5, None)]})
    findings = doctor.examine(folder)
    assert {what: len(names) for what, names in findings.problems.items()} == {
        "joint with NaN or infinity": 1, "joint outside the picture": 1, "scale of 0, or none": 1,
        "person without any annotated joint": 1, "picture that cannot be decoded": 1}
    counts = dict(zip(BODY.pairs, doctor.coinciding(findings.contents["val"], BODY.pairs)))
    assert counts[(5, 0)] == (1, 1) and counts[(4, 1)] == (0, 1)
    text = doctor.describe(findings)
    assert "left_ankle, right_ankle" in text and "val 1 of 1 (100.0%)" in text
    assert "problem: scale of 0, or none: 1 times: train 3.png" in text
    assert any("val: 1 persons are in pictures of train too" in note for note in findings.notes)
    with pytest.raises(UserError, match="must be free of problems; it has 5"):
        doctor.require_sound(findings)


def test_records_of_other_kinds_are_refused(small, tmp_path):
    with records.RecordWriter(tmp_path / "boxes", kind="detection", labels=["a"]) as writer:
        writer.write_split("train", [b"x"])
        writer.publish()
    for function in (poses.body_of, doctor.examine):
        with pytest.raises(UserError, match="of kind 'pose', and its manifest says 'detection'"):
            function(tmp_path / "boxes")
    with pytest.raises(UserError, match="must be a pose record of 14 joints, and cannot be parsed"):
        doctor.read(small, "val", 14)


def test_unbuilt_records_name_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="python -m hourglass.preprocess --dataset mpii --source FOLDER"):
        preprocess.ensure_records("mpii")
    assert preprocess.command("demo") == "python -m hourglass.preprocess --dataset demo"


def run(*arguments, cwd):
    command = [sys.executable, "-m", "hourglass.preprocess", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(preprocess.__file__).parents[1])}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_command_line(real_data, tmp_path):
    """Builds, examines and draws in one go; without a name it says in one line what is missing."""
    done = run("--dataset", "mpii", "--source", real_data("mpii_mmpose"), "--visualize", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("tfrecords/mpii: val 5 persons, 76 joints", "16 joints, 6 pairs, measured by pckh",
                  "4 of 80 joints are not annotated; they are taught as out of view", "targets.png: of 76 annotated"):
        assert words in done.stdout
    picture = tf.io.decode_png((tmp_path / "tfrecords" / "mpii" / "targets.png").read_bytes())
    assert picture.shape == (2 * 256 + 4, 6 * 256 + 20, 3)


@pytest.fixture
def command(monkeypatch, tmp_path):
    """A function that runs the command with arguments, in this process and in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        from absl import flags
        values = flags.FlagValues()
        monkeypatch.setattr(preprocess.cli, "FLAGS", values)
        monkeypatch.setattr(preprocess.cli, "flags", Flags(values))
        preprocess.define_flags()
        values(["preprocess", *map(str, arguments)])
        preprocess.main([])

    return run


@pytest.mark.parametrize("arguments, words", [
    ([], "Give --dataset NAME"), (["--dataset", "demo", "--image_size", "102"], "multiple of 4;?"),
])
def test_mistakes_on_the_command_line(command, arguments, words):
    with pytest.raises(UserError, match=words):
        command(*arguments)


def test_flags_of_the_source(command, tmp_path, capsys):
    """--pairs, --center_shift and --first_pixel reach the records, and are not passed over without a build."""
    source = write_mpii(tmp_path / "in", train=[entry()])
    command("--dataset", "mine", "--source", source, "--pairs", "left_hip:right_hip", "--center_shift", "10",
            "--first_pixel", "1")
    said = capsys.readouterr().out
    for words in ("centres are moved down by 10 times the scale", "pixels of the source count from 1"):
        assert said.count(words) == 1
    manifest = records.read_manifest(tmp_path / "tfrecords" / "mine")
    assert (manifest["pairs"], manifest["center_shift"], manifest["first_pixel"]) == ([[3, 2]], 10, 1)
    command("--dataset", "mine", "--check")
    assert "centres are moved down by 10 times the scale" in capsys.readouterr().out
    with pytest.raises(UserError, match="--center_shift, --pairs must stand beside --source: .*mine is already built"):
        command("--dataset", "mine", "--check", "--pairs", "none", "--center_shift", "0")
    with pytest.raises(UserError, match="'paw' is none of right_ankle"):
        command("--dataset", "mine", "--source", source, "--pairs", "paw:left_hip")


class Flags:
    """absl.flags, defining into other values than the program's."""

    def __init__(self, values):
        self.values = values

    def __getattr__(self, name):
        from absl import flags
        return lambda *arguments, **options: getattr(flags, name)(*arguments, flag_values=self.values, **options)
