"""Readers: real VOC and COCO folders, every fault of an annotation named or mended, no wait for a network."""

import json
import tarfile
import time
import types
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from common import detection, detection_coco, detection_sources, records
from common.errors import UserError

JPEG = tf.io.encode_jpeg(np.zeros((40, 60, 3), np.uint8)).numpy()
BOX = "<xmin>11</xmin><ymin>6</ymin><xmax>20</xmax><ymax>10</ymax>"
SIZE = "<size><width>60</width><height>40</height></size>"


def thing(name="cat", box=BOX, more=""):
    return f"<object><name>{name}</name>{more}<bndbox>{box}</bndbox></object>"


def write_voc(root, xmls, lists=None):
    """`xmls`: {stem: what stands in <annotation>, or a whole document}."""
    for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / part).mkdir(parents=True, exist_ok=True)
    for stem, text in xmls.items():
        whole = text if text.startswith(("<?", "<!")) else f"<annotation>{text}</annotation>"
        (root / "Annotations" / f"{stem}.xml").write_text(whole)
        (root / "JPEGImages" / f"{stem}.jpg").write_bytes(JPEG)
    for name, stems in (lists or {}).items():
        (root / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return root


def write_coco(root, *, split="val", **changes):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40},
                   {"id": 9, "file_name": "b.jpg", "width": 60, "height": 40}],
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 3, "name": "car"}],
        "annotations": changed(1, iscrowd=1),
        **changes}
    content = {key: value for key, value in content.items() if value is not None}
    (root / "annotations").mkdir(parents=True, exist_ok=True)
    (root / f"{split}2017").mkdir(exist_ok=True)
    for name in "ab":
        (root / f"{split}2017" / f"{name}.jpg").write_bytes(JPEG)
    (root / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))
    return root


def changed(index=0, **fields):
    """The annotations of `write_coco` with one changed; None takes a key away."""
    entries = [{"id": 1, "image_id": 7, "category_id": 90, "bbox": [10, 5, 10, 5], "area": 30},
               {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60, 40], "area": 9}]
    entries[index] = {key: value for key, value in {**entries[index], **fields}.items() if value is not None}
    return entries


def loaded(source, split=None):
    """{file name: Annotation, its boxes mended for a picture of 60 x 40}, Counter of repairs."""
    found, total = {}, {}
    for item in source.splits[split or next(iter(source.splits))]:
        entry, repairs = detection.repair_boxes(source.load(item), 60, 40)
        found[entry.filename] = entry
        total.update(repairs)
    return found, total


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


# VOC.

def test_voc_objects(tmp_path):
    part = f"<part><name>head</name><bndbox>{BOX}</bndbox></part>"
    dog = thing("dog", more="<difficult>1</difficult>" + part)
    write_voc(tmp_path, {"a": SIZE + dog + thing(), "b": SIZE},
              {"train": ["b", "a"], "val": ["a"], "aeroplane_train": ["a -1"]})
    source = detection_sources.find("mine", tmp_path)
    assert source.labels == ["cat", "dog"]  # parts of objects are none
    assert [path.stem for path in source.splits["train"]] == ["b", "a"] and len(source.splits) == 2
    found, repairs = loaded(source)
    assert found["a.jpg"].boxes_xyxy.tolist() == [[10, 5, 20, 10]] * 2
    assert found["a.jpg"].labels.tolist() == [1, 0]
    assert found["a.jpg"].difficult.tolist() == [True, False] and found["a.jpg"].size == (60, 40)
    assert found["b.jpg"].boxes_xyxy.shape == (0, 4) and not repairs
    given = detection_sources.find("mine", tmp_path, ["dog", "cat"])
    assert given.load(given.splits["val"][0]).labels == [0, 1]


@pytest.mark.parametrize("text, words", [
    ("<!DOCTYPE a [<!ENTITY b 'bb'><!ENTITY c '&b;&b;'>]><annotation>&c;</annotation>", "plain XML"),
    ("<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><annotation>&b;</annotation>", "plain XML"),
    (SIZE + "<object>", "be XML, and cannot be read"),
    (SIZE + thing("yeti"), "use the classes cat, dog, and object 1 is 'yeti'"),
    (SIZE + thing() + f"<object><bndbox>{BOX}</bndbox></object>", "object 2 is 'without <name>'"),
    (SIZE + "<object><name>cat</name></object>", "in <xmin> of <bndbox> of object 1, and it is missing"),
    (SIZE + thing(box=BOX.replace("20", "wide")), "in <xmax> of <bndbox> of object 1, and it is 'wide'"),
    (SIZE + thing(box=BOX.replace("20", "nan")), "number in <xmax> of <bndbox> of object 1, and it is 'nan'"),
    ("<size><width>60</width></size>" + thing(), "a number in <height> of <size>, and it is missing"),
])
def test_broken_xml_is_named(tmp_path, text, words):
    write_voc(tmp_path, {"good": SIZE + thing(), "bad": text}, {"train": ["good", "bad"]})
    source = detection_sources.find("mine", tmp_path, ["cat", "dog"])
    with pytest.raises(UserError, match=f"bad.xml must .*{words}"):
        source.load(source.splits["train"][1])
    report = detection.build_records(source, tmp_path / "out", on_bad="skip", progress=False)
    assert [entry["file"].endswith("bad.xml") for entry in report.skipped] == [True]
    assert report.manifest["splits"]["train"]["examples"] == 1


@pytest.mark.parametrize("box, kept, repaired", [
    ((20, 10, 11, 6), [[10, 5, 20, 10]], {"xmax below xmin or ymax below ymin: swapped": 1}),
    ((11, 6, 11, 10), [], {"object without area dropped": 1}),
    ((11, 6, 12, 7), [[10, 5, 12, 7]], {}),
    ((-4, 6, 20, 50), [[0, 5, 20, 40]], {"box clipped to the picture": 1}),
    ((0, 0, 60, 40), [[0, 0, 60, 40]], {"box clipped to the picture": 1}),  # counts from 0
    ((1, 1, 60, 40), [[0, 0, 60, 40]], {}),
    ((61, 6, 70, 10), [], {"object outside the picture dropped": 1}),
])
def test_voc_boxes_are_mended_as_documented(tmp_path, box, kept, repaired):
    text = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    source = detection_sources.find("mine", write_voc(tmp_path, {"a": SIZE + thing(box=text)}))
    found, repairs = loaded(source)
    assert found["a.jpg"].boxes_xyxy.tolist() == kept and repairs == repaired


def test_voc_without_a_size_or_a_picture(tmp_path):
    nothing = "<size><width>0</width><height>0</height></size>"
    write_voc(tmp_path, {"a": thing(), "b": nothing + thing(), "c": ""},
              {"train": ["a", "b", "c", "d"]})
    (tmp_path / "JPEGImages" / "c.jpg").unlink()
    source = detection_sources.find("mine", tmp_path)
    for item in source.splits["train"][:2]:
        entry = source.load(item)
        assert entry.size is None and entry.repairs == ("annotation without the size of its picture",)
    with pytest.raises(UserError, match="c.xml must have its picture .*JPEGImages/c.jpg"):
        source.load(source.splits["train"][2])
    with pytest.raises(UserError, match="d.xml is listed in ImageSets/Main and is missing"):
        source.load(source.splits["train"][3])


def test_splits_of_voc(tmp_path):
    xmls = {f"{i}": SIZE + thing() for i in range(30)}
    alone = write_voc(tmp_path / "alone", xmls)
    splits = detection_sources.voc(alone).splits
    assert [len(splits[split]) for split in ("train", "val")] == [27, 3]
    assert {path.stem for path in splits["train"]} | {path.stem for path in splits["val"]} == set(xmls)
    assert detection_sources.voc(alone).splits == splits
    both = write_voc(tmp_path / "both", xmls, {"trainval": ["1", "2", "2"], "test": ["0"]})
    splits = detection_sources.voc(both).splits
    assert {split: len(items) for split, items in splits.items()} == {"train": 2, "test": 1}
    hidden = write_voc(tmp_path / "hidden", xmls, {"train": ["1"], "test": ["without", "annotations"]})
    assert list(detection_sources.voc(hidden).splits) == ["train"]
    other = write_voc(tmp_path / "other", xmls, {"mine": ["1"]})
    with pytest.raises(UserError, match="must hold train.txt, val.txt or test.txt"):
        detection_sources.voc(other)
    outside = write_voc(tmp_path / "outside", xmls, {"train": ["../../secret"]})
    with pytest.raises(UserError, match="names without folders, and has ../../secret"):
        detection_sources.voc(outside)


def test_layouts_are_found_or_explained(tmp_path):
    write_voc(tmp_path / "VOCdevkit" / "VOC2007", {"a": SIZE + thing()})
    write_voc(tmp_path / "VOCdevkit" / "VOC2012", {"b": SIZE + thing()})
    for place in (tmp_path, tmp_path / "VOCdevkit", tmp_path / "VOCdevkit" / "VOC2007"):
        assert detection_sources.find_layout(place, "voc2007") == ("voc", tmp_path / "VOCdevkit" / "VOC2007")
    with pytest.raises(UserError, match="holds VOC2007, VOC2012. Give one of them"):
        detection_sources.find_layout(tmp_path, "mine")
    coco = write_coco(tmp_path / "coco")
    (coco / "annotations" / "captions_val2017.json").write_text("{}")
    assert detection_sources.find_layout(coco) == (
        "coco", {"val": (coco / "annotations" / "instances_val2017.json", coco / "val2017")})
    roboflow = tmp_path / "roboflow"
    for split in ("train", "valid"):
        (roboflow / split).mkdir(parents=True)
        (roboflow / split / "_annotations.coco.json").write_text("{}")
        (roboflow / split / "a.jpg").write_bytes(JPEG)
    assert detection_sources.find_layout(roboflow) == ("coco", {
        split: (roboflow / folder / "_annotations.coco.json", roboflow / folder)
        for split, folder in (("train", "train"), ("val", "valid"))})
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


# COCO, fault 30.

def test_coco_objects(tmp_path):
    source = detection_sources.find("mine", write_coco(tmp_path))
    assert source.labels == ["car", "toothbrush"]  # by the order of their ids, 3 and 90
    found, repairs = loaded(source)
    entry = found["a.jpg"]
    assert entry.boxes_xyxy.tolist() == [[10, 5, 20, 10], [0, 0, 60, 40]] and entry.labels.tolist() == [1, 0]
    assert entry.is_crowd.tolist() == [False, True] and entry.area.tolist() == [30, 9] and not repairs
    assert found["b.jpg"].boxes_xyxy.shape == (0, 4)  # a picture without an object
    report = detection.build_records(source, tmp_path / "out", progress=False)
    assert report.manifest["splits"]["val"]["objects"] == 2


@pytest.mark.parametrize("changes, words", [
    ({"annotations": changed(image_id=8)}, "annotation 1 is of image 8, which it does not list"),
    ({"annotations": changed(image_id=None)}, "whole entries in annotations, and .*lacks 'image_id'"),
    ({"annotations": changed(category_id=[1])}, "whole entries in annotations"),
    ({"annotations": changed(1, id=1)}, "annotation ids that differ, and repeats 1"),
    ({"annotations": ["x"]}, "whole entries in annotations"),
    ({"annotations": None}, 'must have a list "annotations"'),
    ({"categories": None}, 'must have a list "categories"'),
    ({"categories": [{"id": 3}]}, "whole entries in categories, and .*lacks 'name'"),
    ({"categories": [{"id": 3, "name": "a"}, {"id": 90, "name": "a"}]}, "Classes must have different names"),
    ({"images": [{"id": 7, "file_name": "a.jpg"}] * 2}, "ids that differ in images, and repeats 7"),
    ({"images": [{"id": 7}]}, "whole entries in images, and .*lacks 'file_name'"),
    ({"images": [{"id": 7, "file_name": "../../a.jpg"}]}, "pictures inside .*, and names ../../a.jpg"),
    ({"images": [{"id": 7, "file_name": "/etc/passwd"}]}, "pictures inside .*, and names /etc/passwd"),
])
def test_a_broken_coco_file_is_named_at_once(tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        detection_sources.find("mine", write_coco(tmp_path, **changes))
    assert "instances_val2017.json" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "[" * 100_000])
def test_what_is_no_coco_file_is_named(tmp_path, text):
    write_coco(tmp_path)
    (tmp_path / "annotations" / "instances_val2017.json").write_text(text)
    with pytest.raises(UserError, match="instances_val2017.json must"):
        detection_sources.find("mine", tmp_path)


@pytest.mark.parametrize("fields, words", [
    ({"bbox": [10, 5, -10, 5]}, "none negative in size, and annotation 1 of a.jpg has"),
    ({"bbox": [10, float("nan"), 10, 5]}, "of finite numbers"), ({"bbox": [10, 5, 10]}, "of finite numbers"),
    ({"bbox": ["10", 5, 10, 5]}, "of finite numbers"), ({"bbox": None}, "of finite numbers"),
    ({"category_id": 5}, "use the categories car, toothbrush, and annotation 1 of a.jpg is 5"),
])
def test_broken_coco_objects_are_named_or_skipped_with_their_picture(tmp_path, fields, words):
    source = detection_sources.find("mine", write_coco(tmp_path, annotations=changed(**fields)))
    with pytest.raises(UserError, match=f"instances_val2017.json must .*{words}"):
        source.load(source.splits["val"][0])
    report = detection.build_records(source, tmp_path / "out", on_bad="skip", progress=False)
    assert [entry["file"] for entry in report.skipped] == ["a.jpg"]


def test_coco_objects_are_mended_as_documented(tmp_path):
    twice = changed() + changed()[:1]
    found, repairs = loaded(detection_sources.find("mine", write_coco(tmp_path, annotations=twice)))
    assert len(found["a.jpg"].labels) == 2 and repairs == {"object listed twice, taken once": 1}
    empty = changed(bbox=[10, 5, 0, 5])
    found, repairs = loaded(detection_sources.find("mine", write_coco(tmp_path, annotations=empty)))
    assert len(found["a.jpg"].labels) == 1 and repairs == {"object without area dropped": 1}
    no_area = changed(area=None, iscrowd=None)
    found, _ = loaded(detection_sources.find("mine", write_coco(tmp_path, annotations=no_area)))
    assert found["a.jpg"].area.tolist() == [50, 9]
    with pytest.raises(UserError, match="use the categories car, and annotation 1"):
        loaded(detection_sources.find("mine", tmp_path, ["car"]))


def test_categories_of_the_splits_must_agree(tmp_path):
    write_coco(tmp_path, split="train")
    write_coco(tmp_path, categories=[{"id": 90, "name": "car"}, {"id": 3, "name": "toothbrush"}])
    with pytest.raises(UserError, match="categories of the other splits, and calls"):
        detection_sources.find("mine", tmp_path)


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
