"""Readers of detection data: real folders, layouts told apart, tensorflow-datasets, no wait for a network."""

import tarfile
import time
import types
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from common import detection, detection_coco, detection_sources, records
from common.errors import UserError
from tests.common.layouts import JPEG, SIZE, thing, write_coco, write_voc


# Real data.

@pytest.mark.parametrize("name, place, pictures, objects, classes, first", [
    ("voc2012", "voc2012_small/VOCdevkit", {"train": 342, "val": 83}, 1195, 20, "aeroplane"),
    ("bccd", "bccd", {"train": 205, "val": 87, "test": 72}, 4886, 3, "Platelets"),  # two more have no area
    ("coco2017", "coco2017_128", {"val": 128}, 898, 80, "person"),
])
def test_real_folders(real_data, tmp_path, name, place, pictures, objects, classes, first):
    source = detection_sources.find(name, real_data(place.split("/")[0]).joinpath(*place.split("/")[1:]))
    assert {split: len(items) for split, items in source.splits.items()} == pictures
    assert len(source.labels) == classes and source.labels[0] == first
    few = source._replace(splits={split: items[:20] for split, items in source.splits.items()})
    report = detection.build_records(few, tmp_path, progress=False)
    assert not report.skipped
    items = [item for items in source.splits.values() for item in items]
    boxes_xyxy = np.concatenate([source.load(item).boxes_xyxy for item in items])
    assert (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all(axis=1).sum() == objects
    for item in records.dataset(report.folder, "val").take(3):
        example = detection.parse(item["record"])
        image = detection.decode_image(example["image_bytes"])
        assert image.shape[:2] == (example["height"], example["width"])
        assert np.all((example["boxes_xyxy"] >= 0) & (example["boxes_xyxy"] <= 1))


def test_a_known_box_of_voc(real_data):
    """2007_000027: the XML says 174, 101, 349, 351, pixels from 1, the last one included."""
    source = detection_sources.find("voc2012", real_data("voc2012_small") / "VOCdevkit" / "VOC2012")
    item, = [path for items in source.splits.values() for path in items if path.stem == "2007_000027"]
    entry = source.load(item)
    assert entry.boxes_xyxy.tolist() == [[173, 100, 349, 351]] and entry.size == (486, 500)
    assert [source.labels[label] for label in entry.labels] == ["person"]


def test_layouts_are_found_or_explained(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", {"a": SIZE + thing()})
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"b": SIZE + thing()})
    for place in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        assert detection_sources.find_layout(place, "voc2007") == ("voc", tmp_path / "VOCdevkit" / "VOC2007")
    with pytest.raises(UserError, match="holds VOC2007, VOC2012. Give one of them"):
        detection_sources.find_layout(tmp_path, "mine")
    coco = write_coco(tmp_path / "coco")
    (coco / "annotations" / "captions_val2017.json").write_text("{}")
    layout, (parts, left_out) = detection_sources.find_layout(coco)
    assert (layout, parts) == ("coco", {"val": (coco / "annotations" / "instances_val2017.json", coco / "val2017")})
    assert [path.name for paths in left_out.values() for path in paths] == ["captions_val2017.json"]
    roboflow = tmp_path / "roboflow"
    for split in ("train", "valid"):
        (roboflow / split).mkdir(parents=True)
        (roboflow / split / "_annotations.coco.json").write_text("{}")
        (roboflow / split / "a.jpg").write_bytes(JPEG)
    assert detection_sources.find_layout(roboflow)[1][0] == {
        split: (roboflow / folder / "_annotations.coco.json", roboflow / folder)
        for split, folder in (("train", "train"), ("val", "valid"))}
    (tmp_path / "nothing").mkdir()
    for place, words in ((tmp_path / "nothing", "is neither"), (tmp_path / "none", "does not exist")):
        with pytest.raises(UserError, match=words):
            detection_sources.find("mine", place)
    (tmp_path / "empty" / "Annotations").mkdir(parents=True)
    with pytest.raises(UserError, match="must hold XML files"):
        detection_sources.find("mine", tmp_path / "empty")


# Fault 31: archives are refused, so nothing in them is ever written anywhere.

def test_archives_are_not_opened(tmp_path):
    (tmp_path / "evil").write_text("evil")
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        archive.add(tmp_path / "evil", "../outside")
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("../outside", "evil")
    before = sorted(tmp_path.rglob("*"))
    for name in ("set.tar", "set.zip"):
        with pytest.raises(UserError, match=f"{name} is a file. .*unpack it and give the folder"):
            detection_sources.find("mine", tmp_path / name)
    assert sorted(tmp_path.rglob("*")) == before


# tensorflow-datasets, fault 32: it checks what it downloads; nothing is tried where there is no network.

def test_without_a_network_the_advice_comes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(detection_sources, "reachable", lambda url: False)
    for name, words in (("voc2007", "VOCtest_06-Nov-2007.tar .*--source VOCdevkit"),
                        ("voc2012", "VOCtrainval_11-May-2012.tar .*--source VOCdevkit"),
                        ("coco2017", "annotations_trainval2017.zip .*--source coco")):
        with pytest.raises(UserError, match=f"{name} is not in .*cannot be reached. Download .*{words}"):
            detection_sources.from_tfds(name, data_dir=tmp_path)
    with pytest.raises(UserError, match="--source must name the folder of mine"):
        detection_sources.find("mine")
    assert not list(tmp_path.iterdir())


def test_reachable_never_waits_long(monkeypatch):
    start = time.monotonic()
    assert not detection_sources.reachable("http://127.0.0.1:9/")
    assert not detection_sources.reachable("http://nothing.invalid/")
    monkeypatch.setattr(detection_sources.urllib.request, "urlopen", lambda *args, **options: time.sleep(60))
    assert not detection_sources.reachable("http://slow.example/", seconds=0.2)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("name, one_based", [("voc2007", True), ("coco2017", False)])
def test_what_tensorflow_datasets_has_prepared(tmp_path, monkeypatch, name, one_based):
    """A stand-in for its builder: (top, left, bottom, right) / sides; VOC's pixels count from 1 there."""
    theirs = {"image": JPEG, "image/filename": b"a.jpg", "objects": {
        "bbox": np.array([[6 / 40, 11 / 60, 10 / 40, 20 / 60]], np.float32), "label": np.array([1])}}
    theirs["objects"].update({"is_difficult": np.array([True])} if one_based else
                             {"is_crowd": np.array([True]), "area": np.array([7])})
    empty = {**theirs, "image/filename": b"b.jpg",
             "objects": {key: value[:0] for key, value in theirs["objects"].items()}}

    class Builder:
        info = types.SimpleNamespace(
            features={"objects": {"label": types.SimpleNamespace(names=["dog", "cat"])}},
            splits=dict.fromkeys(("train", "validation", "test"), types.SimpleNamespace(num_examples=2)))

        def as_dataset(self, split, decoders):
            return types.SimpleNamespace(as_numpy_iterator=lambda: iter([theirs, empty]))

    import tensorflow_datasets as tfds
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: Builder())
    folder = tmp_path / detection_sources.DOWNLOADS[name].tfds / "1.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    source = detection_sources.from_tfds(name, ["cat", "dog"], data_dir=tmp_path)
    assert list(source.splits) == (["train", "val", "test"] if one_based else ["train", "val"])
    report = detection.build_records(source, tmp_path / "out", progress=False)
    assert report.manifest["splits"]["val"]["examples"] == 2
    example = detection.parse(next(iter(records.dataset(report.folder, "val")))["record"])
    expected = [10, 5, 20, 10] if one_based else [11, 6, 20, 10]
    np.testing.assert_allclose(example["boxes_xyxy"] * [60, 40, 60, 40], [expected], atol=1e-4)
    assert example["labels"].numpy().tolist() == [0] and bool(example["difficult"][0]) == one_based
    assert bool(example["is_crowd"][0]) != one_based
    with pytest.raises(UserError, match="--labels must name the classes of"):
        detection_sources.from_tfds(name, ["cat"], data_dir=tmp_path)


def test_pictures_published_without_objects_are_no_test_set(tmp_path, monkeypatch):
    """tensorflow-datasets has 10,991 test pictures of VOC2012, each with an empty list of objects."""
    import tensorflow_datasets as tfds
    info = types.SimpleNamespace(
        features={"objects": {"label": types.SimpleNamespace(names=["dog", "cat"])}},
        splits=dict.fromkeys(("train", "validation", "test"), types.SimpleNamespace(num_examples=2)))
    monkeypatch.setattr(tfds, "builder", lambda name, data_dir: types.SimpleNamespace(info=info))
    for name, expected in (("voc2007", ["train", "val", "test"]), ("voc2012", ["train", "val"]),
                           ("coco2017", ["train", "val"])):
        folder = tmp_path / detection_sources.DOWNLOADS[name].tfds / "1.0.0"
        folder.mkdir(parents=True)
        (folder / "dataset_info.json").write_text("{}")
        source = detection_sources.from_tfds(name, data_dir=tmp_path)
        assert list(source.splits) == expected and len(source.notes) == 3 - len(expected)


def test_what_tensorflow_datasets_says_becomes_one_line(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fails(*args, **options):
        raise ValueError("checksum of the archive differs\nlong story")

    monkeypatch.setattr(detection_sources, "reachable", lambda url: True)
    monkeypatch.setattr(tfds, "builder", fails)
    with pytest.raises(UserError, match=r"\(checksum of the archive differs\). Download"):
        detection_sources.from_tfds("voc2007", data_dir=tmp_path)


def test_labels_of_voc_and_coco_names():
    assert len(set(detection_sources.VOC_LABELS)) == 20 and detection_sources.VOC_LABELS == sorted(
        detection_sources.VOC_LABELS)
    assert detection_coco.few("abcdefgh") == "a, b, c, d, e, f, ..."


@pytest.mark.parametrize("error", [OSError("no route"), AttributeError("'NoneType' object has no attribute 'close'")])
def test_whatever_goes_wrong_on_the_way_is_no_connection(monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(detection_sources.urllib.request, "urlopen", fail)
    assert not detection_sources.reachable("https://example.org/")
