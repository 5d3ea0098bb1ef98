"""COCO's keypoint files as tools write them: every fault named, nothing taken for something else."""

import json

import numpy as np
import pytest

from common.errors import UserError
from hourglass import coco, poses, sources
from tests.hourglass.folders import JPEG, mended

NAMES = ["nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
         "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
         "right_ankle"]


def annotation(**changes):
    keypoints = [[10 * k + 5, 7 * k + 3, 2] for k in range(17)]
    keypoints[3] = [0, 0, 0]
    keypoints[4][2] = 1
    whole = {"id": 1, "image_id": 7, "category_id": 1, "iscrowd": 0, "num_keypoints": 16, "area": 900.0,
             "bbox": [0, 10, 200, 120], "keypoints": np.ravel(keypoints).tolist()} | changes
    return {key: value for key, value in whole.items() if value is not None}


def write_coco(root, annotations, **changes):
    content = {"images": [{"id": 7, "file_name": "a.jpg", "width": 600, "height": 400}],
               "categories": [{"id": 1, "name": "person", "keypoints": NAMES, "skeleton": [[16, 14], [14, 12]]},
                              {"id": 2, "name": "car"}], "annotations": annotations} | changes
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    (root / "val2017" / "a.jpg").write_bytes(JPEG)
    (root / "annotations" / "instances_val2017.json").write_text("{}")      # not the one to take
    (root / "annotations" / "person_keypoints_val2017.json").write_text(json.dumps(content))
    return root


def test_coco_keypoints(tmp_path):
    root = write_coco(tmp_path / "in", [
        annotation(), annotation(id=2, iscrowd=1, keypoints=[0] * 51), annotation(id=3, num_keypoints="0"),
        annotation(id=4, num_keypoints=None, keypoints=[0] * 51), {"id": 5, "image_id": 7, "category_id": 2},
        annotation(id=6, bbox=[0, 0, 0, 5])])
    source = sources.find("coco_keypoints", root)
    assert [len(items) for items in source.splits.values()] == [2]
    name = "person_keypoints_val2017.json"
    assert {reason: names for reason, names in source.left_out.items() if names} == {
        "crowds": [f"{name} annotation 2"], "persons without annotated joints": [f"{name} annotation 4"],
        "persons with joints whose num_keypoints is 0": [f"{name} annotation 3"],
        "objects of a category without joints": [f"{name} annotation 5"],
        "JSON files that are of no split, or not COCO's objects": [root / "annotations" / "instances_val2017.json"]}
    (person, _), (flat, repairs) = mended(source)
    np.testing.assert_allclose(person.joints_xy[1], [15.5, 10.5])           # COCO counts from 0
    assert person.visible.tolist() == [2, 2, 2, 0, 1] + [2] * 12
    assert person.center == (100, 70) and person.scale == 1.0 and person.area == 900 and person.image_id == 7
    assert person.box == (0, 10, 200, 120) and person.person_id == 1 and person.head_size == 0
    assert flat.scale == 160 / 200 and repairs
    body = source.body
    assert body.skeleton == [(15, 13), (13, 11)] and (body.metric, body.absent) == ("oks", "unknown")
    assert body.pairs[0] == (1, 2) and len(body.pairs) == 8 and body.torso == [5, 12]
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    np.testing.assert_allclose(body.sigmas, cocoeval.Params("keypoints").kpt_oks_sigmas)
    report = poses.build_records(source, tmp_path / "out", progress=False)
    assert poses.body_of(report.folder).sigmas == body.sigmas and report.left_out["crowds"]["count"] == 1
    assert report.manifest["unpaired"] == [] and report.manifest["first_pixel"] == 0


@pytest.mark.parametrize("changes, words", [
    ({"image_id": 8}, "of image 8, which it does not list"),
    ({"keypoints": None}, "1 lacks keypoints"),
    ({"bbox": None}, "1 lacks bbox"),
    ({"id": "x"}, "whole entries with an id in annotations"),
    ({"category_id": "1"}, "of category '1', which it does not list"),
    ({"category_id": 3}, "of category 3, which it does not list"),
    ({"iscrowd": "perhaps"}, "0 or 1 for iscrowd, and annotation 1 has 'perhaps'"),
    ({"iscrowd": "1"}, "with joints, and none is left. val: all 1 objects are crowds"),
    ({"keypoints": [0.2, 0.9, 2] * 17}, "joints in pixels, and all of its numbers lie between 0 and 1"),
    ({"bbox": [0.1, 0.2, 0.5, 0.7]}, "boxes in pixels, and all of its numbers lie between 0 and 1"),
])
def test_a_broken_coco_file_is_named_at_once(tmp_path, changes, words):
    with pytest.raises(UserError, match=words) as error:
        sources.find("coco_keypoints", write_coco(tmp_path, [annotation(**changes)]))
    assert "person_keypoints_val2017.json" in str(error.value)


@pytest.mark.parametrize("changes, words", [
    ({"keypoints": [1, 2, 2]}, "51 finite numbers in keypoints"),
    ({"keypoints": [float("nan"), 2, 2] * 17}, "51 finite numbers in keypoints"),
    ({"keypoints": [1, 2, 3] * 17}, "visibilities 0, 1 or 2"),
    ({"bbox": [1, 2, -3, 4]}, "a box with positive sides"),
    ({"bbox": [1, 2, float("inf"), 4]}, "4 finite numbers in bbox"),
])
def test_a_broken_coco_person_is_named(tmp_path, changes, words):
    source = sources.find("coco_keypoints", write_coco(tmp_path, [annotation(**changes)]))
    with pytest.raises(UserError, match=f"annotation 1 of .*{words}"):
        source.load(source.splits["val"][0])


@pytest.mark.parametrize("changes, words", [
    ({"images": None}, 'a list "images"'),
    ({"images": [{"id": 7, "file_name": "../a.jpg"}]}, "name a picture inside"),
    ({"images": [{"id": 7, "file_name": "a.jpg", "width": "wide", "height": 400}]},
     "the size of a.jpg in whole pixels, and has width 'wide'"),
    ({"images": [{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}]}, "ids that differ in images"),
    ({"categories": [{"id": 1, "name": "person"}]}, "one list of keypoints in its categories, and has 0"),
    ({"categories": [{"id": 1, "keypoints": NAMES, "skeleton": [[0, 1]]}]}, "pairs of joints 1 to 17"),
    ({"categories": [{"id": 1, "keypoints": ["nose", "eye", "eye"]}]}, "keypoints of different names"),
])
def test_broken_parts_of_coco(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        sources.find("coco_keypoints", write_coco(tmp_path, [annotation()], **changes))


def test_flags_sizes_and_areas_as_tools_write_them(tmp_path):
    """iscrowd as text made every object a crowd; a size that is a float, or text, was taken for none."""
    persons = [annotation(id=1, iscrowd="0"), annotation(id=2, iscrowd="false", area="450.5"),
               annotation(id=3, iscrowd=False, area=None), annotation(id=4, iscrowd="1"),
               annotation(id=5, iscrowd=None)]
    source = sources.find("mine", write_coco(tmp_path, persons, images=[
        {"id": 7, "file_name": "a.jpg", "width": "1200.0", "height": 800.0}]))
    assert [item.number for item in source.splits["val"]] == [1, 2, 3, 5] and len(source.left_out["crowds"]) == 1
    found = mended(source)
    resized = "picture resized after annotating, joints scaled"
    assert all(repairs[resized] == 1 for _, repairs in found)              # the picture is 600 x 400: by one half
    np.testing.assert_allclose(found[0][0].joints_xy[1], [7.75, 5.25])
    assert [person.area for person, _ in found] == [225, 450.5 / 4, 200 * 120 / 4, 225]
    assert found[2][1] == {resized: 1, "person without an area, that of the box taken": 1}


def test_a_picture_turned_after_annotating(tmp_path):
    """Annotated upright, 400 x 600; stored 600 x 400 with the EXIF flag that turns it: only the size tells."""
    root = write_coco(tmp_path / "in", [annotation()], images=[
        {"id": 7, "file_name": "a.jpg", "width": 400.0, "height": "600"}])
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = JPEG[:2] + b"\xff\xe1\x00\x22Exif\0\0" + tiff + JPEG[2:]
    (root / "val2017" / "a.jpg").write_bytes(turned)
    report = poses.build_records(sources.find("mine", root), tmp_path / "out", progress=False)
    assert report.repaired == {"picture turned as its EXIF orientation says": 1}
    root = write_coco(tmp_path / "none", [annotation()], images=[{"id": 7, "file_name": "a.jpg"}])
    (root / "val2017" / "a.jpg").write_bytes(turned)
    report = poses.build_records(sources.find("mine", root), tmp_path / "out", progress=False)
    assert report.repaired == {"EXIF orientation not applied: joints count as of the stored pixels": 1,
                               "annotation without the size of its picture": 1}


def test_most_of_a_set_being_crowds_is_said(tmp_path, capsys):
    source = sources.find("mine", write_coco(tmp_path / "in", [annotation(), annotation(id=2, iscrowd=1),
                                                               annotation(id=3, iscrowd="1")]))
    report = poses.build_records(source, tmp_path)
    assert report.manifest["notes"][0].startswith("val: 2 of 3 objects are crowds (iscrowd 1)")
    said = capsys.readouterr().out
    assert "note: val: 2 of 3 objects are crowds" in said
    assert "left out: 2 crowds: person_keypoints_val2017.json annotation 2, " in said


def body(labels):
    return coco.body_of(labels, [])


def test_sigmas_whatever_the_side_of_the_name():
    found = body(["left_hip", "hip_right", "left-hip", "LHip", "HIP_L", "nose", "leftEyeInner", "tail", "hip_shoulder",
                  "Lear", "Rear", "wrist2"])
    assert found.sigmas == [.107, .107, .107, .107, .107, .026, .025, .062, .062, .035, .035, .062]
    found = body(["hipR", "hipL", "shoulderL", "shoulderR", "leftKnee"])
    assert (found.pairs, found.torso, found.unpaired, found.mirrors) == ([(1, 0), (2, 3)], [2, 0], ["leftKnee"], False)


def test_a_file_of_no_split_is_dealt_by_pictures(tmp_path):
    root = write_coco(tmp_path, [annotation(id=k, image_id=7 + k // 2) for k in range(100)], images=[
        {"id": 7 + k, "file_name": f"{k}.jpg", "width": 600, "height": 400} for k in range(50)])
    (root / "annotations" / "person_keypoints_val2017.json").rename(root / "annotations" / "person_keypoints_all.json")
    source = sources.find("mine", root)
    pictures = {split: {item.file.picture(item.number) for item in items} for split, items in source.splits.items()}
    assert sum(map(len, pictures.values())) == 50 and sum(map(len, source.splits.values())) == 100
    assert 1 <= len(pictures["val"]) < 15 and not pictures["val"] & pictures["train"]
    assert source.notes[0].startswith("one picture in ten")
