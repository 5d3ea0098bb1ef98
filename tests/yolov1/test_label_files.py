"""The article's label files: there and back, folders and splits, every fault named with its line."""

import hashlib

import numpy as np
import pytest
import tensorflow as tf

from common import detection, records
from common.errors import UserError
from yolov1 import label_files, preprocess, words

LISTING = """\
; cell (0,0)
0 1 0 ; class of box (the type of the object )
14 22 18 10 ; bounding box of the object
1 ; confidence of an object here
; cell (1,0)
1 0 0
35 23 24 10
; cell (0,1)
0 0 1
16 48 32 32
; cell (1,1)
1 0 0
52 35 24 10
"""
# The listing's objects, a rat and two chats: 14 - 18 / 2 = 5, 22 - 10 / 2 = 17, ...
BOXES = [[5, 17, 23, 27], [23, 18, 47, 28], [40, 30, 64, 40]]
LABELS = [1, 0, 0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return words.build(tmp_path_factory.mktemp("tfrecords"), splits={"train": 12, "val": 6}, progress=False).folder


def examples(folder, split):
    return [{key: value.numpy() for key, value in detection.parse(item["record"]).items()}
            for item in records.dataset(folder, split, epochs=1)]


def test_the_articles_listing(tmp_path):
    path = tmp_path / "0.txt"
    path.write_text(LISTING)
    cells, num_classes = label_files.read(path)
    assert num_classes == 2 and [cell.label for cell in cells] == [1, 0, None, 0]
    assert cells[0].box_cxcywh == (14, 22, 18, 10) and cells[2].box_cxcywh == (16, 48, 32, 32)
    label_files.write(path, cells, 2)
    assert label_files.read(path) == (cells, 2)
    lines = [line for line in path.read_text().splitlines() if line[0] != ";"]
    # As the author's generator wrote it: a confidence in every cell, and a line of its own at the end.
    assert lines == ["0 1 0", "14 22 18 10", "1", "1 0 0", "35 23 24 10", "1", "0 0 1", "16 48 32 32", "0",
                     "1 0 0", "52 35 24 10", "1", "---"]


def test_four_classes_are_not_mistaken_for_boxes(tmp_path):
    """With three words and none a class has as many numbers as a box, and only their order tells them apart."""
    path = tmp_path / "0.txt"
    cells = [label_files.Cell(2, (16.0, 16.5, 8.0, 4.0)), *[label_files.Cell(None, (1.0, 0.0, 0.0, 0.0))] * 3]
    label_files.write(path, cells, 3)
    assert label_files.read(path) == (cells, 3)
    path.write_text("".join(line + "\n" for line in path.read_text().splitlines() if len(line) > 1))
    assert label_files.read(path) == (cells, 3)                              # without confidences


@pytest.mark.parametrize("content, message", [
    ("", "has 0"),
    ("0 1 0\n1 2 3 4\n" * 3, "square grid, and has 3"),
    ("0 1 0\n14 22 18\n", r"0.txt:2 must be a box.*14 22 18\b"),
    ("0 1 0\n", "0.txt:1 must be a box.*missing"),
    ("0 2 0\n14 22 18 10\n", "0.txt:1 must be the class of a cell, 3 numbers.*0 2 0"),
    ("0 1 0\n14 22 18 10\n1\n0 1\n1 2 3 4\n", "0.txt:4 must be the class"),
    ("0 1 0\n14 x 18 10\n", "0.txt:2 must hold numbers.*14 x 18 10"),
    ("0 1 0\n14 nan 18 10\n", "0.txt:2 must hold numbers"),
    ("0 0 1\n16 16 32 32\n1\n", "confidence 0, because its class is none"),
    ("0 1 0\n14 22 18 10\n0\n", "confidence 1, because its class is 1"),
])
def test_bad_label_files_are_named_with_their_line(tmp_path, content, message):
    (tmp_path / "0.txt").write_text(content)
    with pytest.raises(UserError, match=message):
        label_files.read(tmp_path / "0.txt")


def write_articles_folder(folder, count=10):
    """Pictures and label files as the author's generator leaves them: Images/0.PNG, Labels/0.txt."""
    for place in ("Images", "Labels"):
        (folder / place).mkdir(parents=True)
    for index in range(count):
        pixels = np.full([64, 64, 3], index, np.uint8)
        (folder / "Images" / f"{index}.PNG").write_bytes(tf.io.encode_png(pixels).numpy())
        (folder / "Labels" / f"{index}.txt").write_text(LISTING + "---\n")


def test_records_from_the_articles_folder(tmp_path):
    write_articles_folder(tmp_path / "words")
    source = preprocess.find("mine", tmp_path / "words")
    report = detection.build_records(source, tmp_path / "tfrecords", progress=False)
    assert source.labels == ["chat", "rat"]
    # By hand: the first 16 digits of md5("0\nImages/<number>.PNG") below a tenth of 16^16; none is, so the nearest.
    places = {i: int(hashlib.md5(f"0\nImages/{i}.PNG".encode()).hexdigest()[:16], 16) / 16**16 for i in range(10)}
    assert [pair[0].stem for pair in source.splits["val"]] == [
        str(i) for i in range(10) if places[i] < max(.1, min(places.values()) + 1e-9)]
    assert sum(map(len, source.splits.values())) == 10 and source.notes == [detection.DEALT]
    for example in examples(report.folder, "train"):
        np.testing.assert_allclose(example["boxes_xyxy"] * 64, BOXES, atol=1e-5)
        np.testing.assert_array_equal(example["labels"], LABELS)
    (tmp_path / "words" / "Images" / "3.PNG").unlink()
    with pytest.raises(UserError, match=r"Images/3\.png must be readable"):
        detection.build_records(preprocess.find("mine", tmp_path / "words"), tmp_path / "again", progress=False)


def test_names_of_the_classes(tmp_path):
    write_articles_folder(tmp_path, 2)
    assert preprocess.find("mine", tmp_path, ["cat", "mouse"]).labels == ["cat", "mouse"]
    with pytest.raises(UserError, match="2 classes besides none; --labels named 3"):
        preprocess.find("mine", tmp_path, ["a", "b", "c"])
    (tmp_path / "classes.txt").write_text("chien\nsouris\n")
    assert preprocess.find("mine", tmp_path).labels == ["chien", "souris"]
    (tmp_path / "classes.txt").unlink()
    for path in (tmp_path / "Labels").glob("*.txt"):
        path.write_text("0 1 0 0\n14 22 18 10\n")
    with pytest.raises(UserError, match="3 classes besides none, and no classes.txt"):
        preprocess.find("mine", tmp_path)


def test_records_to_label_files_and_back(folder, tmp_path):
    counts = label_files.export(folder, tmp_path / "out", grid=2)
    manifest = records.read_manifest(folder)
    objects = sum(entry["objects"] for entry in manifest["splits"].values())
    assert counts == {"pictures": 18, "objects": objects, "difficult": 0, "crowds": 0}
    report = detection.build_records(preprocess.find("back", tmp_path / "out"), tmp_path, progress=False)
    for split in ("train", "val"):
        for ours, theirs in zip(examples(report.folder, split), examples(folder, split), strict=True):
            assert ours["image_bytes"] == theirs["image_bytes"]
            order, other = (np.lexsort(example["boxes_xyxy"].T) for example in (ours, theirs))
            np.testing.assert_allclose(ours["boxes_xyxy"][order], theirs["boxes_xyxy"][other], atol=1e-6)
            np.testing.assert_array_equal(ours["labels"][order], theirs["labels"][other])
    with pytest.raises(UserError, match="one object in a cell .* two in cell .*larger --grid"):
        label_files.export(folder, tmp_path / "one", grid=1)


def test_other_layouts_are_left_to_the_readers_of_all_detectors(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "notes.txt").write_text("not a label file")
    assert preprocess.find("mine", tmp_path) is None and preprocess.find("demo") is None
    assert preprocess.find("voc2007") is None


def test_crowds_and_difficult_objects_have_no_place_in_label_files(tmp_path):
    """A crowd is no object of the article's; a difficult object is one like all others there, and both are said."""
    picture = tf.io.encode_png(np.zeros([64, 64, 3], np.uint8)).numpy()
    source = detection.Source("set", ["chat", "rat"], {"train": [0]}, lambda _: detection.Annotation(
        picture, "a.png", np.array([*BOXES, [0, 0, 64, 64]]), [*LABELS, 0], difficult=[True, False, False, False],
        is_crowd=[False, False, False, True]))
    report = detection.build_records(source, tmp_path, progress=False)
    counts = label_files.export(report.folder, tmp_path / "out", grid=2)
    assert counts == {"pictures": 1, "objects": 3, "difficult": 1, "crowds": 1}
    cells, _ = label_files.read(tmp_path / "out" / "train" / "Labels" / "000000.txt")
    assert [cell.label for cell in cells] == [1, 0, None, 0]
    with pytest.raises(UserError, match="out must be a new or empty folder, and has files"):
        label_files.export(report.folder, tmp_path / "out", grid=2)


def named(source):
    return {reason: [path.name for path in paths] for reason, paths in source.left_out.items() if paths}


def test_whatever_is_left_out_is_named(tmp_path):
    write_articles_folder(tmp_path, 3)
    for name in ("Images/3.jpg", "Images/4.tif", "Images/._0.PNG", "preview.png", "README.md", "classes.txt"):
        (tmp_path / name).write_bytes(b"chat\nrat")
    (tmp_path / "Labels" / ".ipynb_checkpoints").mkdir()
    (tmp_path / "more").mkdir()
    assert named(preprocess.find("mine", tmp_path)) == {
        "pictures without a label file": ["3.jpg", "preview.png"], "files of another kind (.md)": ["README.md"],
        "pictures of a kind that is not read (.tif)": ["4.tif"], "folders beside pictures and label files": ["more"]}
    (tmp_path / "Images" / "2.jpg").write_bytes(b"")
    with pytest.raises(UserError, match="2.txt must have one picture, and there are 2.PNG, 2.jpg"):
        preprocess.find("mine", tmp_path)
    side = tmp_path / "more"
    (side / "a.jpe").write_bytes(b"")
    (side / "b.txt").write_text("a note")
    (side / "a.txt").write_text(LISTING)
    source = preprocess.find("mine", side)
    assert source.splits == {"train": [(side / "a.jpe", side / "a.txt")]}
    assert named(source) == {"files of another kind (.txt)": ["b.txt"]}


def test_folders_of_splits_in_any_case_and_test_pictures_are_never_trained_on(tmp_path):
    for name in ("Train", "VALID", "test"):
        write_articles_folder(tmp_path / name, 2)
    (tmp_path / "cats").mkdir()
    source = preprocess.find("mine", tmp_path)
    assert {split: {picture.parent.parent.name for picture, _ in pairs} for split, pairs in source.splits.items()} == {
        "train": {"Train"}, "val": {"VALID"}, "test": {"test"}}
    assert named(source) == {"files or folders beside the folders of splits": ["cats"]}
    write_articles_folder(tmp_path / "one", 12)
    write_articles_folder(tmp_path / "one" / "Test", 1)
    source = preprocess.find("mine", tmp_path / "one")
    assert [path.parent.parent.name for path, _ in source.splits["test"]] == ["Test"]
    assert sum(len(source.splits[split]) for split in ("train", "val")) == 12


def test_boxes_that_are_all_fractions_are_refused(tmp_path):
    write_articles_folder(tmp_path, 2)
    fractions = LISTING.replace("14 22 18 10", ".2 .3 .3 .2").replace("35 23 24 10", ".5 .4 .4 .2").replace(
        "52 35 24 10", ".8 .5 .4 .2")
    (tmp_path / "Labels" / "0.txt").write_text(fractions)
    assert preprocess.find("mine", tmp_path)
    (tmp_path / "Labels" / "1.txt").write_text(fractions)
    with pytest.raises(UserError, match="must have boxes in pixels, and all of its numbers lie between 0 and 1"):
        preprocess.find("mine", tmp_path)
