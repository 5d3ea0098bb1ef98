"""Targets and augmentation of YOLOv3: hand-worked cells, a slow twin, round trips, painted rectangles."""

import os
import pathlib
import shlex
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from common import detection, detection_data, detection_demo, detection_doctor, records, training
from common.errors import UserError
from tests.yolov3 import asked
from yolov3 import darknet_cfg, doctor, preprocess
from yolov3 import model as models

STRIDES = (8, 16, 32)


def encode(boxes_xyxy, labels, *, anchors=models.ANCHORS, strides=STRIDES, size=416, num_classes=3):
    grids = preprocess.encode_targets(
        np.array(boxes_xyxy, np.float32).reshape(-1, 4), np.array(labels, np.int32), anchors, strides, size,
        num_classes)
    return [np.asarray(grid) for grid in grids]


def slow_targets(boxes_xyxy, labels, anchors, strides, size, num_classes):
    """The same in plain Python, box after box, so that later boxes overwrite earlier ones."""
    grids = [np.zeros([size // s, size // s, len(anchors[0]), 5 + num_classes]) for s in strides]
    for (x1, y1, x2, y2), label in zip(np.asarray(boxes_xyxy, np.float64), labels):
        width, height = (x2 - x1) * size, (y2 - y1) * size
        if width <= 0 or height <= 0:
            continue
        overlaps = []
        for w, h in np.asarray(anchors, np.float64).reshape(-1, 2):
            shared = min(w, width) * min(h, height)
            overlaps.append(shared / (w * h + width * height - shared))
        scale, anchor = divmod(int(np.argmax(overlaps)), len(anchors[0]))
        cells = len(grids[scale])
        x, y = (x1 + x2) / 2 * cells, (y1 + y2) / 2 * cells
        column, row = min(int(x), cells - 1), min(int(y), cells - 1)
        cell = grids[scale][row, column, anchor]
        w, h = anchors[scale][anchor]
        cell[:5] = x - column, y - row, np.log(width / w), np.log(height / h), 1
        cell[5 + label] = 1
    return grids


def random_truth(rng, count, num_classes=3):
    """Boxes of all sizes that lie in the picture; sides from 2 to 400 of 416 pixels."""
    sizes = np.exp(rng.uniform(np.log(2 / 416), np.log(400 / 416), (count, 2)))
    corners = rng.uniform(size=(count, 2)) * (1 - sizes)
    boxes_xyxy = np.concatenate([corners, corners + sizes], 1).astype(np.float32)
    return boxes_xyxy, rng.integers(num_classes, size=count)


def test_one_box_by_hand():
    # 60 x 120 pixels centred on (104, 250): anchor (59, 119) fits best, the last of stride 16 (26 x 26).
    # x = 104 / 16 = 6.5, y = 250 / 16 = 15.625.
    box = np.array([104 - 30, 250 - 60, 104 + 30, 250 + 60]) / 416
    small, medium, large = encode([box], [1])
    assert small.shape == (52, 52, 3, 8) and medium.shape == (26, 26, 3, 8) and large.shape == (13, 13, 3, 8)
    expected = [0.5, 0.625, np.log(60 / 59), np.log(120 / 119), 1, 0, 1, 0]
    np.testing.assert_allclose(medium[15, 6, 2], expected, atol=1e-5)
    assert not small.any() and not large.any() and (medium != 0).sum() == (medium[15, 6, 2] != 0).sum()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name,size", [("yolov3", 416), ("tiny", 320)])
def test_equals_the_slow_twin(name, size, seed):
    anchors = models.TINY_ANCHORS if name == "tiny" else models.ANCHORS
    truth, labels = random_truth(np.random.default_rng(seed), 60)
    ours = encode(truth, labels, anchors=anchors, strides=models.STRIDES[name], size=size)
    for a, b in zip(ours, slow_targets(truth, labels, anchors, models.STRIDES[name], size, 3)):
        np.testing.assert_allclose(a, b, atol=2e-4)    # float32: 52 cells, 1e-7 of that per step


def test_cell_of_a_corner():
    """x = k / 13 is the left edge of cell k; x // (1 / 13) puts some into cell k - 1, x = 1 into cell 13."""
    tenth = np.float32(1) / np.float32(13)
    assert any(np.float32(k) / np.float32(13) // tenth != k for k in range(1, 13))
    half = 0.5 * np.array([116, 90]) / 416                                 # the first anchor of stride 32
    for k in range(14):
        x = np.float32(k) / np.float32(13)
        large = encode([[x - half[0], x - half[1], x + half[0], x + half[1]]], [0])[2]
        (row, column, anchor), = np.argwhere(large[..., 4])
        center = (np.float32(x - half[0]) + np.float32(x + half[0])) / 2
        expected = min(int(np.floor(center * np.float32(13))), 12)
        assert column == row == expected and abs(column - min(k, 12)) <= 1
        np.testing.assert_allclose(column + large[row, column, anchor, 0], k, atol=1e-5)
    # Where the corners are exact in float32 the cell is so too: eighths on a grid of 8 (size 256).
    for k in range(9):
        box = [k / 8 - 0.25, k / 8 - 0.125, k / 8 + 0.25, k / 8 + 0.125]
        (row, column, _), = np.argwhere(encode([box], [0], size=256)[2][..., 4])
        assert column == row == min(k, 7)


@pytest.mark.parametrize("same_scale", [True, False])
def test_two_truths_stay_apart(same_scale):
    """Each keeps its own corners, whatever the order: none of their coordinates are sorted."""
    second = [0.6, 0.1, 0.9, 0.35] if same_scale else [0.6, 0.1, 0.63, 0.14]
    truth = np.array([[0.1, 0.55, 0.42, 0.8], second], np.float32)
    for order in ([0, 1], [1, 0]):
        grids = encode(truth[order], np.array([0, 2])[order])
        boxes_xyxy, scores = models.decode(logits_of(grids), models.ANCHORS, (416, 416))
        found = np.asarray(boxes_xyxy)[0][np.asarray(scores)[0].max(-1) > 0.5]
        np.testing.assert_allclose(found[np.argsort(found[:, 0])], truth, atol=1e-5)


def test_two_boxes_in_one_cell_and_anchor():
    """The later box stays, with the classes of both, as Darknet's code has it."""
    first, second = [0.50, 0.50, 0.70, 0.70], [0.505, 0.505, 0.70, 0.70]
    grids = encode([first, second], [0, 2])
    (row, column, anchor), = np.argwhere(grids[2][..., 4])
    alone = encode([second], [2])[2][row, column, anchor]
    np.testing.assert_array_equal(grids[2][row, column, anchor, :5], alone[:5])
    np.testing.assert_array_equal(grids[2][row, column, anchor, 5:], [1, 0, 1])
    # Three of them, and two of one class.
    grid = encode([first, second, first], [0, 2, 0])[2]
    alone = encode([first], [0])[2][row, column, anchor]
    np.testing.assert_array_equal(grid[row, column, anchor, :5], alone[:5])
    np.testing.assert_array_equal(grid[row, column, anchor, 5:], [1, 0, 1])


def test_no_object_one_pixel_no_area_and_the_border():
    assert not any(grid.any() for grid in encode([], []))
    pixel = encode([np.array([200, 100, 201, 101]) / 416], [0])[0]
    assert np.argwhere(pixel[..., 4]).tolist() == [[12, 25, 0]]       # 100.5 / 8, 200.5 / 8, smallest anchor
    flat = [[0.2, 0.3, 0.2, 0.6], [0.2, 0.3, 0.6, 0.3], [0.6, 0.3, 0.2, 0.6], [0.0] * 4]
    assert not any(grid.any() for grid in encode(flat, [0] * 4))
    whole = encode([[0, 0, 1, 1]], [1])[2]
    assert np.argwhere(whole[..., 4]).tolist() == [[6, 6, 2]]
    edge = encode([[1 - 1 / 416, 1 - 1 / 416, 1, 1]], [1])[0]
    assert np.argwhere(edge[..., 4]).tolist() == [[51, 51, 0]]


def test_five_hundred_boxes():
    truth, labels = random_truth(np.random.default_rng(9), 500)
    for a, b in zip(encode(truth, labels), slow_targets(truth, labels, models.ANCHORS, STRIDES, 416, 3)):
        np.testing.assert_array_equal(a[..., 4:], b[..., 4:])


def logits_of(grids):
    """Logits that decode to the target boxes, certain of what is there and what is not; with a batch axis."""
    logits = []
    for grid in grids:
        offsets = np.clip(grid[..., 0:2].astype(np.float64), 1e-7, 1 - 1e-7)
        offsets = np.log(offsets / (1 - offsets))
        logits.append(np.concatenate([offsets, grid[..., 2:4], 40 * grid[..., 4:] - 20], axis=-1))
    return [tf.constant(x[None], tf.float32) for x in logits]


@pytest.mark.parametrize("size", [320, 416, 608])
def test_round_trip_through_decode(size):
    truth, labels = random_truth(np.random.default_rng(size), 25)
    grids = encode(truth, labels, size=size)
    decoded = models.decode(logits_of(grids), models.ANCHORS, (size, size))
    boxes_xyxy, scores = (np.asarray(value)[0] for value in decoded)
    kept = scores.max(-1) > 0.5
    assert kept.sum() == sum(grid[..., 4].sum() for grid in grids) >= 23   # some may share a cell and anchor
    for box, label in zip(boxes_xyxy[kept], scores[kept].argmax(-1)):
        distance = np.abs(truth - box).max(-1)
        assert distance.min() < 1e-5 and labels[distance.argmin()] == label


def test_sizes_of_multi_scale_training():
    assert preprocess.multi_scale_sizes(416) == list(range(320, 640, 32))  # Darknet: 320, 352, ..., 608
    for size in (32, 64, 160, 320, 608):
        sizes = preprocess.multi_scale_sizes(size)
        assert size in sizes and all(side % 32 == 0 and side > 0 for side in sizes)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """Records of made-up pictures."""
    root = tmp_path_factory.mktemp("records")
    detection_demo.build(root, splits={"train": 23, "val": 5}, size=96, progress=False)
    return root / "demo"


def batches(folder, count, **arguments):
    arguments = {"anchors": models.TINY_ANCHORS, "strides": (16, 32), "image_size": 96, "num_classes": 6,
                 "batch_size": 4, "seed": 1, **arguments}
    return list(preprocess.training_dataset(folder, **arguments).take(count).as_numpy_iterator())


def same(a, b):
    for x, y in zip(tf.nest.flatten(a), tf.nest.flatten(b), strict=True):
        np.testing.assert_array_equal(x, y)


def test_training_can_start_at_any_step(demo):
    """23 examples, batches of 4: epochs do not end with a batch."""
    whole = batches(demo, 9)
    for step in (1, 5, 6, 8):
        for ours, expected in zip(batches(demo, 9 - step, start_step=step), whole[step:], strict=True):
            same(ours, expected)
    images, targets = whole[0]
    assert images.shape == (4, 96, 96, 3) and [grid.shape for grid in targets["grids"]] == [
        (4, 6, 6, 3, 11), (4, 3, 3, 3, 11)]
    assert targets["boxes_xyxy"].shape[::2] == (4, 4)
    # Another epoch shows the pictures in another order and differently.
    assert not any(np.array_equal(whole[0][0][0], image) for image in whole[6][0])


def test_order_and_augmentation_follow_the_seed(demo):
    same(batches(demo, 1)[0], batches(demo, 1)[0])
    assert not np.array_equal(batches(demo, 1)[0][0], batches(demo, 1, seed=2)[0][0])


def test_multi_scale_batches_have_one_size(demo):
    sizes = [images.shape[1] for images, _ in batches(demo, 45, multi_scale=True, augmented=False)]
    assert all(len(set(sizes[start:start + preprocess.STEPS_PER_SIZE])) == 1
               for start in range(0, 45, preprocess.STEPS_PER_SIZE))
    assert len(set(sizes)) > 1 and set(sizes) <= set(preprocess.multi_scale_sizes(96))
    resumed = batches(demo, 2, multi_scale=True, augmented=False, start_step=19)
    assert [images.shape[1] for images, _ in resumed] == sizes[19:21]


def test_two_workers_share_the_batches_of_one(demo):
    """With 22 of the examples, so that both get as many: together they hold what one's batch holds."""
    alone = batches(demo, 3, limit=22)
    shares = [batches(demo, 3, limit=22, batch_size=2, global_batch_size=4, num_workers=2, worker=worker)
              for worker in (0, 1)]
    for whole, first, second in zip(alone, *shares):
        np.testing.assert_array_equal(whole[0][0::2], first[0])
        np.testing.assert_array_equal(whole[0][1::2], second[0])


def test_evaluation_is_not_augmented(demo):
    """Letterboxed pictures in the order of the records, each once, twice the same, the last batch full."""
    def read():
        dataset = preprocess.evaluation_dataset(demo, "val", image_size=64, batch_size=2)
        return list(dataset.as_numpy_iterator())

    first = read()
    for ours, again in zip(first, read(), strict=True):
        same(ours, again)
    assert [batch["index"].tolist() for batch in first] == [[0, 1], [2, 3], [4, -1]]
    raw = [detection.parse(item["record"]) for item in records.dataset(demo, "val")]
    images = np.concatenate([batch["images"] for batch in first])
    for image, example in zip(images, raw):
        expected = tf.image.resize(detection.decode_image(example["image_bytes"]), [64, 64]) / 255
        np.testing.assert_allclose(image, expected, atol=1e-5)
    boxes_xyxy = [box for batch in first for box in batch["boxes_xyxy"]]
    for box, example in zip(boxes_xyxy, raw):
        np.testing.assert_array_equal(box[:len(example["boxes_xyxy"])], example["boxes_xyxy"])


def tiny_png(value=200, shape=(40, 60)):
    return tf.io.encode_png(tf.fill([*shape, 3], tf.constant(value, tf.uint8))).numpy()


def test_pictures_and_batches_without_objects(tmp_path):
    with records.RecordWriter(tmp_path / "empty", kind="detection", labels=["a"]) as writer:
        serialized = [detection.encode_example(tiny_png(), 40, 60, f"{i}.png", np.zeros([0, 4]), [])
                      for i in range(4)]
        writer.write_split("train", serialized)
        writer.publish()
    for augmented in (True, False):
        (images, targets), = batches(tmp_path / "empty", 1, num_classes=1, augmented=augmented)
        assert images.shape == (4, 96, 96, 3) and targets["boxes_xyxy"].shape == (4, 0, 4)
        assert not any(grid.any() for grid in targets["grids"])
    batch, = preprocess.evaluation_dataset(tmp_path / "empty", "train", image_size=64, batch_size=4)
    assert batch["boxes_xyxy"].shape == (4, 0, 4)


def test_a_picture_that_cannot_be_decoded_is_named(tmp_path):
    """Fault 25, in a thread of tf.data: one line, not twenty of TensorFlow's."""
    with records.RecordWriter(tmp_path / "bad", kind="detection", labels=["a"]) as writer:
        writer.write_split("train", [detection.encode_example(data, 40, 60, name, np.zeros([0, 4]), [])
                                     for data, name in ((tiny_png(), "good.png"), (b"no picture", "bad.jpg"))])
        writer.publish()
    with pytest.raises(UserError, match="^bad.jpg must be a picture that OpenCV decodes"), training.worker_errors():
        batches(tmp_path / "bad", 1, num_classes=1, batch_size=2)


def test_records_of_others_without_optional_keys(tmp_path):
    """The Object Detection API's records need no difficult, crowd, area or text."""
    feature = {
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[tiny_png()])),
        "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[40])),
        "image/width": tf.train.Feature(int64_list=tf.train.Int64List(value=[60])),
        **{f"image/object/bbox/{key}": tf.train.Feature(float_list=tf.train.FloatList(value=[value]))
           for key, value in (("xmin", 0.1), ("ymin", 0.2), ("xmax", 0.6), ("ymax", 0.7))},
        "image/object/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[2])),
    }
    record = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    example = detection.parse(tf.constant(record))
    np.testing.assert_allclose(example["boxes_xyxy"], [[0.1, 0.2, 0.6, 0.7]])
    assert example["labels"].numpy().tolist() == [1]
    assert not example["difficult"].numpy().any() and not example["is_crowd"].numpy().any()
    with records.RecordWriter(tmp_path / "others", kind="detection", labels=["a", "b"]) as writer:
        writer.write_split("train", [record])
        writer.publish()
    (images, targets), = batches(tmp_path / "others", 1, num_classes=2, batch_size=1, augmented=False)
    assert images.shape == (1, 96, 96, 3) and images.dtype == np.uint8
    # The picture fills the width; 16 rows above and below it.
    np.testing.assert_allclose(targets["boxes_xyxy"][0] * 96, [[0.1 * 96, 0.2 * 64 + 16, 0.6 * 96, 0.7 * 64 + 16]],
                               rtol=1e-5)
    decoded, = preprocess.decode_targets([grid[0] for grid in targets["grids"]], models.TINY_ANCHORS, 96)
    assert decoded[1].tolist() == [1]


def test_targets_are_decoded_back():
    truth = np.array([[0.1, 0.2, 0.15, 0.3], [0.3, 0.1, 0.9, 0.95]], np.float32)
    decoded = preprocess.decode_targets(encode(truth, [2, 0]), models.ANCHORS, 416)
    assert [(ids.tolist(), scale, anchor) for _, ids, scale, anchor in decoded] == [([2], 0, 1), ([0], 2, 2)]
    np.testing.assert_allclose([box for box, *_ in decoded], truth, atol=1e-6)


def test_labels_of_the_command_line(tmp_path):
    assert detection_data.read_labels("cat, dog,traffic light") == ["cat", "dog", "traffic light"]
    (tmp_path / "my.names").write_text("cat\ndog\n\n")
    assert detection_data.read_labels(str(tmp_path / "my.names")) == ["cat", "dog"]
    for text in ("", "cat,dog,cat", "missing.names"):
        with pytest.raises(UserError, match="--labels must be"):
            detection_data.read_labels(text)


def test_unbuilt_records_name_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="python -m yolov3.preprocess --dataset voc2007 --source VOCdevkit"):
        preprocess.ensure_records("voc2007")
    assert preprocess.command("my set") == "python -m yolov3.preprocess --dataset 'my set' --source FOLDER"
    assert preprocess.command("demo") == "python -m yolov3.preprocess --dataset demo"


def run(*arguments, cwd):
    command = [sys.executable, "-m", "yolov3.preprocess", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(preprocess.__file__).parents[1])}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120)


def test_command_line_looks_at_records(demo, tmp_path, monkeypatch):
    """--check, --kmeans and --visualize of a set that is built, without building it again.

    The very line that --kmeans prints begins a training: an array was asked for its truth there.
    """
    before = (demo / "manifest.json").stat().st_mtime_ns
    done = run("--dataset", "demo", "--out", demo, "--check", "--kmeans", "--visualize", "--image_size", 96,
               cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (demo / "manifest.json").stat().st_mtime_ns == before
    for words in ("28 pictures, 6 classes", "best possible recall", "fall on the cell and anchor of another",
                  "k-means anchors", "targets.png: of "):
        assert words in done.stdout
    line, = (line for line in done.stdout.splitlines() if line.startswith("python -m yolov3.train"))
    pairs = line.split('"')[1].split()
    assert len(pairs) == 9 and all(float(side) >= 1 for pair in pairs for side in pair.split(","))
    config = asked.configuration(shlex.split(line)[3:], monkeypatch, tmp_path)
    assert darknet_cfg.text_of(config["anchors"]).split() == pairs and np.shape(config["anchors"]) == (3, 3, 2)
    assert (config["image_size"], config["model"], config["weight_decay"]) == (96, "yolov3", 0.05)
    picture = tf.io.decode_png((demo / "targets.png").read_bytes())
    assert picture.shape == (3 * 96 + 8, 4 * 96 + 12, 3)


def test_mistakes_on_the_command_line_are_one_line(tmp_path):
    for arguments, words in ((["--image_size", "100", "--dataset", "demo"], "multiple of 32; 100 came"),):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.splitlines()[-1].startswith("error: ") and words in done.stderr
        assert "Traceback" not in done.stderr


def test_doctor_counts_lost_objects(tmp_path):
    """In a 200 x 100 picture: two boxes on one cell and anchor, one alone, one without area."""
    same = [0.50, 0.50, 0.60, 0.80]                                        # 41.6 x 62.4 pixels at 416
    boxes_xyxy = [same, [0.502, 0.502, 0.602, 0.802], [0.1, 0.1, 0.4, 0.9], [0.3, 0.3, 0.3, 0.5]]
    with records.RecordWriter(tmp_path / "set", kind="detection", labels=["a"]) as writer:
        writer.write_split("train", [
            detection.encode_example(tiny_png(shape=(100, 200)), 100, 200, "a.png", boxes_xyxy, [0] * 4),
            detection.encode_example(tiny_png(shape=(200, 100)), 200, 100, "b.png", [same], [0])])
        writer.publish()
    contents = detection_doctor.examine(tmp_path / "set").contents
    sizes = doctor.network_sizes(contents.values(), 416)
    # The wide picture fills 416 x 208, the high one 208 x 416.
    np.testing.assert_allclose(sizes, [[41.6, 62.4], [41.6, 62.4], [124.8, 166.4], [20.8, 124.8]], atol=1e-3)
    text = doctor.describe(contents, models.ANCHORS, STRIDES, 416)
    assert "train: 1 of 5 objects (20.00%) fall on the cell and anchor of another" in text
    with pytest.raises(UserError, match="too few or too alike"):
        doctor.find_anchors(contents.values(), 3, 3, 416)
    assert darknet_cfg.text_of(np.array([[[10, 13], [16, 30]]], np.float32)) == "10,13 16,30"


def write_voc(root, boxes_of_splits):
    """A folder in VOC layout of made-up pictures; VOC counts pixels from 1 and includes the last one."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / part).mkdir(parents=True)
    for split, count in boxes_of_splits.items():
        names = [f"{split}{i}" for i in range(count)]
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        for i, name in enumerate(names):
            image, boxes_xyxy, labels = detection_demo.draw(len(split), i, 96)
            (root / "JPEGImages" / f"{name}.jpg").write_bytes(tf.io.encode_jpeg(image).numpy())
            objects = "".join(
                f"<object><name>{detection_demo.LABELS[label]}</name><difficult>0</difficult><bndbox><xmin>{x1 + 1:g}"
                f"</xmin><ymin>{y1 + 1:g}</ymin><xmax>{x2:g}</xmax><ymax>{y2:g}</ymax></bndbox></object>"
                for (x1, y1, x2, y2), label in zip(boxes_xyxy, labels))
            (root / "Annotations" / f"{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename><size><width>96</width><height>96</height>"
                f"<depth>3</depth></size>{objects}</annotation>")


def test_build_from_a_folder_in_voc_layout(tmp_path, capsys):
    pytest.importorskip("common.detection_sources")
    write_voc(tmp_path / "voc", {"train": 5, "val": 2})
    (tmp_path / "voc" / "JPEGImages" / "train3.jpg").write_bytes(b"no picture")
    with pytest.raises(UserError, match="train3.jpg"):
        detection_data.build("mine", tmp_path / "voc", tmp_path / "out" / "mine", labels=detection_demo.LABELS)
    folder = detection_data.build("mine", tmp_path / "voc", tmp_path / "out" / "mine", labels=detection_demo.LABELS,
                              skip_bad=True)
    assert "train3" in capsys.readouterr().out
    findings = detection_doctor.examine(folder)
    assert findings.problems == {} and findings.manifest["labels"] == detection_demo.LABELS
    train = findings.contents["train"]
    assert [pathlib.Path(name).stem for name in train.filenames] == ["train0", "train1", "train2", "train4"]
    _, expected, labels = detection_demo.draw(len("train"), 4, 96)
    mine = train.picture == 3
    np.testing.assert_allclose(train.boxes_xyxy[mine] * 96, expected, atol=1e-4)
    assert train.labels[mine].tolist() == labels.tolist()


def written(folder, example, labels=("a", "b")):
    with records.RecordWriter(folder, kind="detection", labels=list(labels)) as writer:
        writer.write_split("train", [example])
        writer.publish()
    return folder


def one_batch(folder, **options):
    options = {"anchors": models.TINY_ANCHORS, "strides": (16, 32), "image_size": 64, "num_classes": 2,
               "batch_size": 1, "seed": 0, "augmented": False, **options}
    with training.worker_errors():
        return next(iter(preprocess.training_dataset(folder, **options)))


def test_crowds_are_marked_and_no_anchors_are_sought_for_them(tmp_path):
    picture = tf.io.encode_png(np.zeros([40, 40, 3], np.uint8)).numpy()
    example = detection.encode_example(
        picture, 40, 40, "crowd.png", [[0, 0, 1, 0.9], [0.2, 0.2, 0.5, 0.6]], [1, 0], is_crowd=[True, False])
    folder = written(tmp_path / "set", example)
    _, targets = one_batch(folder)
    np.testing.assert_array_equal(targets["is_crowd"], [[True, False]])
    assert sum(grid.numpy()[..., 4].sum() for grid in targets["grids"]) == 1
    contents = {"train": detection_doctor.read(folder, "train", decode=False)}
    np.testing.assert_allclose(doctor.network_sizes(contents.values(), 64), [[0.3 * 64, 0.4 * 64]], rtol=1e-5)
    assert preprocess.visualize(folder, "train", tmp_path / "targets.png", labels=["a", "b"],
                                anchors=models.TINY_ANCHORS, strides=(16, 32), image_size=64, count=1)[0] == 1


@pytest.mark.parametrize("label", [2, -1])
def test_an_unknown_class_is_an_error_that_names_the_picture(tmp_path, label):
    """In training it would be an object of no class or, as -1, a crowd, and in evaluation it would be gone."""
    picture = tf.io.encode_png(np.zeros([20, 20, 3], np.uint8)).numpy()
    example = detection.encode_example(picture, 20, 20, "third.png", [[0.1, 0.1, 0.9, 0.9]], [label])
    folder = written(tmp_path / "set", example)
    words = f"third.png must have classes 0 to 1, and has {label} "
    with pytest.raises(UserError, match=words):
        one_batch(folder)
    with pytest.raises(UserError, match=words), training.worker_errors():
        next(iter(preprocess.evaluation_dataset(folder, "train", image_size=64, batch_size=1)))
