"""Made-up words, truths into cells, and the batches that training sees."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf

from common import detection, detection_demo, detection_doctor, records, training
from common.errors import UserError
from yolov1 import preprocess, words

# The objects of the article's listing, a rat and two chats: 14 - 18 / 2 = 5, 22 - 10 / 2 = 17, ...
BOXES = [[5, 17, 23, 27], [23, 18, 47, 28], [40, 30, 64, 40]]
LABELS = [1, 0, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return words.build(tmp_path_factory.mktemp("tfrecords"), splits={"train": 12, "val": 6}, progress=False).folder


def test_every_word_stands_in_its_box_and_its_cell():
    """Nothing of a word is outside its box, its ink touches all four edges, centres are in different cells."""
    counts = np.zeros(3)
    for index in range(300):
        image, boxes_xyxy, labels = words.draw(3, index)
        assert image.shape == (64, 64, 3) and (image == image[..., :1]).all()
        ink, cells = image[..., 0].copy(), set()
        for (left, top, right, bottom), label in zip(boxes_xyxy, labels):
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            part = image[top:bottom, left:right, 0] >= 64
            assert part[0].any() and part[-1].any() and part[:, 0].any() and part[:, -1].any()
            assert ink[top:bottom, left:right].any()                         # no other word was there
            ink[top:bottom, left:right] = 0
            cells.add(((left + right) // 64, (top + bottom) // 64))
            counts[label] += 1
        assert not ink.any() and len(cells) == len(labels)
        counts[2] += 4 - len(labels)
    # A third each, but for the few that find no place; 1,200 draws have a deviation of 16.
    np.testing.assert_allclose(counts, 400, atol=60)


def test_words_look_the_same_in_any_place_and_differ_from_each_other():
    chat, rat = (words.word_picture(word, 32) for word in words.LABELS)
    assert chat.shape == (9, 25) and rat.shape == (9, 15)                    # "at" is in both, "ch" against "r"
    np.testing.assert_allclose(chat[:, -10:].astype(int), rat[:, -10:].astype(int), atol=160)
    seen = {}
    for index in range(20):
        image, boxes_xyxy, labels = words.draw(0, index)
        for (left, top, right, bottom), label in zip(boxes_xyxy, labels):
            crop = image[top:bottom, left:right].tobytes()
            assert seen.setdefault(label, crop) == crop
    assert len(seen) == 2


def test_pictures_depend_on_seed_and_index_alone():
    first, again, other = words.draw(1, 5), words.draw(1, 5), words.draw(2, 5)
    assert all(np.array_equal(a, b) for a, b in zip(first, again))
    assert not np.array_equal(first[0], other[0])


def test_other_words_grids_and_sizes():
    image, boxes_xyxy, labels = words.draw(0, 1, size=144, grid=3, words=("dog", "bird", "ox"))
    assert image.shape == (144, 144, 3) and len(labels) > 2 and set(labels) <= {0, 1, 2}
    cells = (boxes_xyxy[:, :2] + boxes_xyxy[:, 2:]) // 2 // 48
    assert len(np.unique(cells, axis=0)) == len(labels)
    for options, message in (({"size": 65}, "multiple of --grid"), ({"grid": 4}, "at least 20 pixels"),
                             ({"words": ("hippopotamus",)}, "must fit into the picture"),
                             ({"words": ("\u00e9lan",)}, "others cannot be drawn, and '\u00e9lan' is not")):
        with pytest.raises(UserError, match=message):
            words.source(**options)


def test_targets_by_hand():
    """The listing: (14, 22) of 64 pixels is (0.4375, 0.6875) of cell (0, 0); 18 x 10 is 0.28125 x 0.15625."""
    targets = preprocess.encode_targets(np.float32(BOXES) / 64, np.int32(LABELS), grid=2, num_classes=2)
    expected = [[0, 1, 0.4375, 0.6875, 0.28125, 0.15625, 1], [1, 0, 1.09375, 0.71875, 0.375, 0.15625, 1], [0] * 7,
                [1, 0, 1.625, 1.09375, 0.375, 0.15625, 1]]
    np.testing.assert_allclose(targets, expected, atol=1e-6)
    for box_xyxy, label, (column, row) in preprocess.decode_targets(targets):
        index = [(0, 0), (1, 0), (1, 1)].index((column, row))
        np.testing.assert_allclose(box_xyxy * 64, BOXES[index], atol=1e-4)
        assert label == LABELS[index]


def test_borders_crowds_and_crowded_cells():
    """Fault 33: a centre on a border of cells and at the picture's end, no area, crowds, two in a cell, none."""
    boxes_xyxy = np.float32([[0.4, 0.4, 0.6, 0.6], [0.99, 0.99, 1.01, 1.01], [0.1, 0.1, 0.1, 0.2],
                             [0.1, 0.1, 0.3, 0.3], [0.1, 0.2, 0.2, 0.3], [0.1, 0.6, 0.2, 0.8]])
    labels = np.int32([0, 1, 1, -1, 1, 0])
    targets = preprocess.encode_targets(boxes_xyxy, labels, grid=2, num_classes=2).numpy()
    np.testing.assert_array_equal(targets[:, -1], [1, 0, 1, 1])
    np.testing.assert_allclose(targets[3], [1, 0, 1, 1, 0.2, 0.2, 1], atol=1e-6)   # the first of cell (1, 1) stays
    np.testing.assert_allclose(targets[0, 2:4], [0.3, 0.5], atol=1e-6)             # not the flat box nor the crowd
    assert not preprocess.encode_targets(np.zeros([0, 4], np.float32), np.zeros([0], np.int32), 2, 2).numpy().any()


def test_crowds_are_no_objects_and_come_to_the_loss(tmp_path):
    """Beside an object in one picture, alone in the other, whose list is shorter."""
    picture = tf.io.encode_png(np.zeros([20, 20, 3], np.uint8)).numpy()
    boxes_xyxy = [[0.1, 0.6, 0.3, 0.8], [0, 0, 0.5, 1], [0.6, 0.6, 0.9, 0.9]]
    with records.RecordWriter(tmp_path / "set", kind="detection", labels=["a", "b"]) as writer:
        writer.write_split("train", [
            detection.encode_example(picture, 20, 20, "a.png", boxes_xyxy, [1, 0, 0], is_crowd=[0, 1, 0]),
            detection.encode_example(picture, 20, 20, "b.png", boxes_xyxy[1:2], [0], is_crowd=[1])])
        writer.publish()
    dataset = preprocess.training_dataset(tmp_path / "set", grid=2, image_size=32, num_classes=2, batch_size=2, seed=0)
    _, targets, crowds_xyxy = next(iter(dataset))
    both = targets.numpy()[..., -1].sum(axis=1).argmax()
    np.testing.assert_array_equal(targets[both, :, -1], [0, 0, 1, 1])
    assert not targets[1 - both].numpy().any()
    np.testing.assert_allclose(crowds_xyxy[both], [[0] * 4, boxes_xyxy[1], [0] * 4])
    np.testing.assert_allclose(crowds_xyxy[1 - both], [boxes_xyxy[1], [0] * 4, [0] * 4])


def test_an_unknown_class_is_an_error_that_names_the_picture(tmp_path):
    picture = tf.io.encode_png(np.zeros([20, 20, 3], np.uint8)).numpy()
    example = detection.encode_example(picture, 20, 20, "third.png", [[0.1, 0.1, 0.9, 0.9]], [2])
    with records.RecordWriter(tmp_path / "set", kind="detection", labels=["a", "b"]) as writer:
        writer.write_split("train", [example])
        writer.publish()
    dataset = preprocess.training_dataset(tmp_path / "set", grid=2, image_size=32, num_classes=2, batch_size=1, seed=0)
    with pytest.raises(UserError, match="third.png must have classes 0 to 1, and has 2"), training.worker_errors():
        next(iter(dataset))


def test_a_batch_is_its_pictures_with_500_boxes_too():
    rng = np.random.default_rng(0)
    corners = rng.uniform(size=[3, 500, 2, 2]).astype(np.float32)
    boxes_xyxy = np.concatenate([corners.min(2), corners.max(2)], axis=-1)
    labels = rng.integers(-1, 4, [3, 500]).astype(np.int32)
    batch = np.maximum(preprocess.encode_batch(boxes_xyxy, labels, 7, 4).numpy(), 0)       # of the crowds nothing
    for picture in range(3):
        seen = {}
        for box, label in zip(boxes_xyxy[picture], labels[picture]):
            column, row = np.minimum((box[:2] + box[2:]) / 2 * 7, 6).astype(int)
            if label >= 0:
                seen.setdefault(row * 7 + column, (label, box))
        assert sorted(seen) == np.flatnonzero(batch[picture, :, -1]).tolist()
        for cell, (label, box) in seen.items():
            assert batch[picture, cell, label] == 1 == batch[picture, cell, :4].sum()
            np.testing.assert_allclose(batch[picture, cell, 6:8], box[2:] - box[:2], atol=1e-6)


def test_training_batches_go_on_from_any_step(folder):
    options = {"grid": 2, "image_size": 32, "num_classes": 2, "batch_size": 5, "seed": 1}
    whole = [batch for _, batch in zip(range(6), preprocess.training_dataset(folder, **options))]
    later = [batch for _, batch in zip(range(3), preprocess.training_dataset(folder, start_step=3, **options))]
    for (images, targets, _), (other_images, other_targets, _) in zip(whole[3:], later, strict=True):
        assert images.shape == (5, 32, 32, 3) and targets.shape == (5, 4, 7) and images.dtype == tf.float32
        np.testing.assert_array_equal(images, other_images)
        np.testing.assert_array_equal(targets, other_targets)
    assert not np.array_equal(whole[0][0], whole[1][0]) and 0.5 < np.max(whole[0][0]) <= 1
    # 12 pictures in batches of 5: the targets of 60 pictures are those of 5 epochs.
    dataset = preprocess.training_dataset(folder, **options)
    seen = sum(targets.numpy()[..., -1].sum() for _, (_, targets, _) in zip(range(12), dataset))
    assert seen == 5 * records.read_manifest(folder)["splits"]["train"]["objects"]


def test_any_records_will_do(tmp_path):
    """Pictures of another size and shape; what shares a cell is counted, and drawn without it."""
    shapes = detection_demo.build(tmp_path, size=90, splits={"train": 6, "val": 2}, progress=False).folder
    dataset = preprocess.training_dataset(shapes, grid=3, image_size=48, num_classes=6, batch_size=6, seed=0)
    images, targets, _ = next(iter(dataset))
    assert images.shape == (6, 48, 48, 3) and targets.shape == (6, 9, 11)
    learnt = int(targets.numpy()[..., -1].sum())
    contents = {"train": detection_doctor.read(shapes, "train", decode=False)}
    total = len(contents["train"].labels)
    assert f"train: {total - learnt} of {total} objects" in preprocess.crowded(contents, 3)
    counts = preprocess.visualize(shapes, "train", tmp_path / "targets.png", labels=detection_demo.LABELS, grid=3,
                                  image_size=48)
    assert counts == (total, learnt) and (tmp_path / "targets.png").stat().st_size > 1000


def test_evaluation_takes_each_picture_once(folder):
    batches = list(preprocess.evaluation_dataset(folder, "val", image_size=64, batch_size=4))
    assert np.concatenate([batch["index"] for batch in batches]).tolist() == [0, 1, 2, 3, 4, 5, -1, -1]
    image, boxes_xyxy, labels = words.draw(0, 12)                            # the first behind the 12 of train
    np.testing.assert_allclose(batches[0]["images"][0] * 255, image, atol=1e-3)
    np.testing.assert_allclose(batches[0]["boxes_xyxy"][0][:len(labels)] * 64, boxes_xyxy, atol=1e-5)


def test_commands_and_records_on_the_spot(tmp_path, monkeypatch):
    assert preprocess.command("chat_rat") == "python -m yolov1.preprocess --dataset chat_rat"
    assert preprocess.command("mine") == "python -m yolov1.preprocess --dataset mine --source FOLDER"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(words, "SPLITS", {"train": 3, "val": 2})
    assert preprocess.ensure_records("chat_rat") == pathlib.Path("tfrecords/chat_rat")
    assert records.read_manifest("tfrecords/chat_rat")["labels"] == ["chat", "rat"]
    with pytest.raises(UserError, match="--dataset chat_rat is made up and takes no --source"):
        preprocess.find("chat_rat", tmp_path)
    with pytest.raises(UserError, match="--dataset nothing_here"):
        preprocess.ensure_records("nothing_here")
