"""COCO's JSON files: what becomes of objects, pictures, splits and folders; every fault named or mended."""

import hashlib
import json

import pytest

from common import detection, detection_coco, detection_sources
from common.errors import UserError
from tests.common.layouts import JPEG, changed, loaded, write_coco


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


@pytest.mark.parametrize("value, expected", [
    ("0", False), ("false", False), ("False", False), ("no", False), ("", False), (0.0, False), (False, False),
    ("1", True), ("true", True), (1, True), (True, True)])
def test_crowds_in_words(tmp_path, value, expected):
    found, _ = loaded(detection_sources.find("mine", write_coco(tmp_path, annotations=changed(iscrowd=value))))
    assert found["a.jpg"].is_crowd.tolist() == [expected, False]


@pytest.mark.parametrize("width, height", [("120", "80"), (120.0, 80.0), ("120.0", 80)])
def test_sizes_as_text_and_floats_scale_the_boxes(tmp_path, width, height):
    """The picture has 60 x 40, half of what was annotated: [10, 5, 10, 5] becomes 5, 2.5, 10, 5."""
    entry = {"id": 7, "file_name": "a.jpg", "width": width, "height": height}
    source = detection_sources.find("mine", write_coco(tmp_path, images=[entry], annotations=changed()[:1]))
    found, repairs = loaded(source)
    assert found["a.jpg"].boxes_xyxy.tolist() == [[5, 2.5, 10, 5]]
    assert found["a.jpg"].area.tolist() == [30 / 4] and repairs == {"picture resized after annotating, boxes scaled": 1}


def test_pictures_without_a_size_are_counted(tmp_path):
    source = detection_sources.find("mine", write_coco(tmp_path, images=[{"id": 7, "file_name": "a.jpg", "width": 0}]))
    assert loaded(source)[1] == {"annotation without the size of its picture": 1}


@pytest.mark.parametrize("changes, words", [
    ({"annotations": changed(iscrowd="perhaps")}, "0 or 1 for iscrowd, and annotation 1 of a.jpg has 'perhaps'"),
    ({"annotations": changed(iscrowd=2)}, "0 or 1 for iscrowd, and annotation 1 of a.jpg has '2'"),
    ({"images": [{"id": 7, "file_name": "a.jpg", "width": "wide", "height": 40}]},
     "the size of a.jpg in whole pixels, and has width 'wide'"),
])
def test_flags_and_sizes_that_are_none_are_named(tmp_path, changes, words):
    source = detection_sources.find("mine", write_coco(tmp_path, **changes))
    with pytest.raises(UserError, match=f"instances_val2017.json must have {words}"):
        source.load(source.splits["val"][0])


def test_boxes_that_are_all_fractions_are_refused(tmp_path):
    fractions = [dict(entry, bbox=[0.1, 0.25, 0.5, 0.75]) for entry in changed()]
    with pytest.raises(UserError, match="instances_val2017.json must have boxes in pixels, and all .* between 0 and 1"):
        detection_sources.find("mine", write_coco(tmp_path / "1", annotations=fractions))
    one = [fractions[0], changed()[1]]
    assert detection_sources.find("mine", write_coco(tmp_path / "2", annotations=one))


def test_sets_of_crowds_are_said(tmp_path, capsys):
    crowds = [dict(entry, iscrowd="1") for entry in changed()]
    source = detection_sources.find("mine", write_coco(tmp_path, annotations=crowds))
    report = detection.build_records(source, tmp_path / "out")
    assert "note: val: all 2 objects are crowds (iscrowd 1)" in capsys.readouterr().out
    assert len(report.manifest["notes"]) == 1
    assert not detection_sources.find("mine", write_coco(tmp_path / "half")).notes


def test_pictures_listed_twice_are_refused(tmp_path):
    """Each entry would teach that the objects of the other are background."""
    images = [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "./a.jpg"}]
    with pytest.raises(UserError, match="every picture once, and lists a.jpg as images 7 and 9"):
        detection_sources.find("mine", write_coco(tmp_path, images=images))


def test_classes_stand_in_the_order_of_their_ids_even_as_text(tmp_path):
    categories = [{"id": number, "name": name} for number, name in (("10", "ten "), (9, "nine"), ("x", "other"))]
    annotations = [dict(entry, category_id="10") for entry in changed()]
    source = detection_sources.find("mine", write_coco(tmp_path, categories=categories, annotations=annotations))
    assert source.labels == ["nine", "ten", "other"]


def test_whatever_is_left_out_is_named(tmp_path):
    root = write_coco(tmp_path)
    (root / "annotations" / "captions_val2017.json").write_text("{}")
    (root / "old").mkdir()
    (root / "old" / "instances.json").write_text("{}")
    for path in ("val2017/c.jpg", "val2017/d.tif", "val2017/deep/e.JFIF", "val2017/.ipynb_checkpoints/a.jpg",
                 "test2017/f.jpg", "g.png", "README.txt", "annotations/._instances_train.json", ".Trash/train.json"):
        (root / path).parent.mkdir(exist_ok=True)
        (root / path).write_bytes(JPEG)
    source = detection_sources.find("mine", root)
    assert {split: len(items) for split, items in source.splits.items()} == {"val": 2}
    found = {reason: [path.name for path in paths] for reason, paths in source.left_out.items() if paths}
    assert found == {
        "JSON files that are of no split, or not COCO's objects": ["captions_val2017.json", "instances.json"],
        "folders and pictures beside those of the splits": ["g.png", "test2017"],
        "pictures that no JSON file names": ["c.jpg", "e.JFIF"],
        "pictures of a kind that is not read (.tif)": ["d.tif"]}


def write_flat(root, name, stems):
    """A JSON file beside its pictures, as Label Studio and Roboflow leave them."""
    root.mkdir(parents=True, exist_ok=True)
    images = [{"id": i, "file_name": f"{stem}.jpg", "width": 60, "height": 40} for i, stem in enumerate(stems)]
    annotations = [{"id": i, "image_id": i, "category_id": 1, "bbox": [10, 5, 10, 5]} for i in range(len(stems))]
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cat"}]}
    (root / name).write_text(json.dumps(content))
    for stem in stems:
        (root / f"{stem}.jpg").write_bytes(JPEG)
    return root


@pytest.mark.parametrize("name", ["latest.json", "contest.json", "result.json", "instances_default.json"])
def test_a_file_without_a_split_is_dealt_and_keeps_its_places(tmp_path, name):
    (tmp_path / "notes.json").write_text("[]")
    root = write_flat(tmp_path, name, [f"{i:02d}" for i in range(30)])
    source = detection_sources.find("mine", root)
    # By hand: the first 16 digits of md5("0\n<name>") below a tenth of 16^16.
    val = [f"{i:02d}.jpg" for i in range(30)
           if int(hashlib.md5(f"0\n{i:02d}.jpg".encode()).hexdigest()[:16], 16) < 16**16 // 10]
    assert [str(item) for item in source.splits["val"]] == val and len(source.splits["train"]) == 30 - len(val) > 20
    assert list(source.splits) == ["train", "val"] and source.notes == [detection.DEALT]
    more = detection_sources.find("mine", write_flat(tmp_path, name, [f"{i:02d}" for i in range(60, -1, -1)]))
    assert {str(item) for item in more.splits["val"]} >= set(val)
    assert not {str(item) for item in more.splits["val"]} & {str(item) for item in source.splits["train"]}


def test_folders_of_splits_in_any_case(tmp_path):
    for folder, stems in (("Train", "ab"), ("Valid", "c"), ("Test", "d")):
        write_flat(tmp_path / folder, "_annotations.coco.json", stems)
    write_flat(tmp_path / "cats", "_annotations.coco.json", "x")
    source = detection_sources.find("mine", tmp_path)
    assert {split: [str(item) for item in items] for split, items in source.splits.items()} == {
        "train": ["a.jpg", "b.jpg"], "val": ["c.jpg"], "test": ["d.jpg"]}
    assert [source.load(items[0]).image.parent.name for items in source.splits.values()] == ["Train", "Valid", "Test"]
    assert {path.as_posix() for paths in source.left_out.values() for path in paths} == {
        f"{tmp_path.as_posix()}/cats/x.jpg", f"{tmp_path.as_posix()}/cats/_annotations.coco.json"}


def test_pictures_in_folders_of_any_case(tmp_path):
    write_flat(tmp_path / "annotations", "instances_train.json", "ab")
    (tmp_path / "Images" / "Training").mkdir(parents=True)
    for stem in "ab":
        (tmp_path / "annotations" / f"{stem}.jpg").rename(tmp_path / "Images" / "Training" / f"{stem}.jpg")
    source = detection_sources.find("mine", tmp_path)
    assert source.load(source.splits["train"][0]).image == tmp_path / "Images" / "Training" / "a.jpg"


def test_several_files_without_a_split_are_refused(tmp_path):
    write_flat(tmp_path, "a.json", "ab")
    write_flat(tmp_path, "b.json", "cd")
    with pytest.raises(UserError, match="one JSON file per split, and .* has a.json and b.json for training, or"):
        detection_sources.find("mine", tmp_path)
