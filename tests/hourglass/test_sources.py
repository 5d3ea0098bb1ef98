"""Readers of MPII, LSP and COCO keypoints: real files, every fault of an annotation named or mended."""

import json

import numpy as np
import pytest
import scipy.io
import tensorflow as tf

from common import records
from common.errors import UserError
from hourglass import poses, sources

JPEG = tf.io.encode_jpeg(np.zeros((400, 600, 3), np.uint8)).numpy()

HEAD = "head size not given: the distance of the head's two ends taken, which is not MPII's"


def entry(**changes):
    """A person of MPII's JSON whose joint k is at (100 + 10 k, 50 + 5 k); None takes a key away."""
    whole = {"joints": [[100 + 10 * k, 50 + 5 * k] for k in range(16)], "joints_vis": [1] * 16, "image": "a.jpg",
             "scale": 1.5, "center": [180.0, 90.0]} | changes
    return {key: value for key, value in whole.items() if value is not None}


def write_mpii(root, **parts):
    """A folder with annot/<part>.json and the picture a.jpg, 600 x 400."""
    (root / "annot").mkdir(parents=True, exist_ok=True)
    (root / "images").mkdir(exist_ok=True)
    (root / "images" / "a.jpg").write_bytes(JPEG)
    for part, entries in parts.items():
        (root / "annot" / f"{part}.json").write_text(json.dumps(entries))
    return root


def mended(source, split=None, size=(600, 400)):
    """[(Person, Counter of repairs)] of a split."""
    items = source.splits[split or next(iter(source.splits))]
    return [poses.mend(source.load(item), *size, source.body) for item in items]


def first(path, num_joints, split="train"):
    item = next(iter(records.dataset(path, split)))
    return {key: value.numpy() for key, value in poses.parse(item["record"], num_joints).items()}


# MPII as JSON.

def test_pixels_centre_and_head_of_mpii_json(tmp_path):
    """Pixel 100 of a file that counts from 1 has its middle at 99.5; the centre moves down by 15 * scale."""
    root = write_mpii(tmp_path, train=[entry()], valid=[entry(joints_vis=[0] + [1] * 15)])
    source = sources.find("mpii", root)
    assert list(source.splits) == ["train", "val"] and source.body.labels[9] == "head_top"
    (person, repairs), = mended(source)
    np.testing.assert_allclose(person.joints_xy[[0, 15]], [[99.5, 49.5], [249.5, 124.5]])
    assert person.center == (179.5, 90 + 15 * 1.5 - 0.5) and person.scale == 1.5
    assert repairs == {HEAD: 1} and person.head_size == pytest.approx(np.hypot(10, 5)) and (person.visible == 2).all()
    (person, _), = mended(source, "val")
    assert person.visible.tolist() == [0] + [2] * 15 and person.joints_xy[0].tolist() == [0, 0]
    (person, _), = mended(sources.find("mine", root))          # a folder of one's own counts from 0
    np.testing.assert_allclose(person.joints_xy[0], [100.5, 50.5])
    assert person.center == (180.5, 90.5)
    (person, _), = mended(sources.find("mine", root, first_pixel=1))
    np.testing.assert_allclose(person.joints_xy[0], [99.5, 49.5])


def test_real_mpii_json(real_data, tmp_path):
    source = sources.find("mpii", real_data("mpii_mmpose"))
    assert [len(items) for items in source.splits.values()] == [5]
    report = poses.build_records(source, tmp_path, progress=False)
    assert not report.skipped and report.repaired == {HEAD: 5}     # JSON has no boxes of heads
    example = first(report.folder, 16, "val")
    np.testing.assert_allclose(example["joints"][9], [962 - 0.5, 80 - 0.5], atol=1)
    assert example["scale"] == pytest.approx(4.718488) and example["filename"] == b"005808361.jpg"
    manifest = report.manifest
    assert (manifest["kind"], manifest["metric"], manifest["pairs"][0]) == ("pose", "pckh", (3, 2))
    assert manifest["splits"]["val"]["joints"] == 16 * 5 - 4     # two persons whose ankles are out of view
    assert poses.body_of(report.folder).absent == "out of view"


def test_real_lsp_as_json_and_mat(real_data):
    """The JSON has 2,000 of the 10,000 persons of joints.mat, with two joints computed."""
    root = real_data("lspet_2k")
    as_json, as_mat = sources.find("lspet_2k", root), sources.find("lsp", root)
    assert [len(items) for items in as_json.splits.values()] == [1600, 400]
    assert sum(map(len, as_mat.splits.values())) == 10_000 and len(as_mat.splits["val"]) == 1000
    assert as_mat.body.metric == "pck" and len(as_mat.body.labels) == 14
    person = as_json.load(as_json.splits["train"][0])
    item, = (item for items in as_mat.splits.values() for item in items if item == person.filename)
    twin = as_mat.load(item)
    order = [as_json.body.labels.index(name) for name in as_mat.body.labels[:12]] + [8, 9]
    np.testing.assert_allclose(person.joints_xy[order], twin.joints_xy, atol=0.006)
    (mine, _), (theirs, _) = (poses.mend(each, 400, 400, source.body)
                              for each, source in ((person, as_json), (twin, as_mat)))
    assert mine.scale == pytest.approx(theirs.scale, rel=0.02)


@pytest.mark.parametrize("changes, words", [
    ({"joints": None}, "lacks joints"),
    ({"image": None, "scale": None}, "lacks image, scale"),
    ({"joints": [[1, 2]] * 15}, "must have 16 x 2 numbers in joints"),
    ({"joints_vis": [1] * 17}, "must have 16 numbers in joints_vis"),
    ({"joints": [["a", 2]] * 16}, "must have 16 x 2 numbers in joints"),
    ({"joints": [[float("nan"), 2]] + [[5, 5]] * 15}, "joints of finite numbers, and has one with NaN"),
    ({"scale": "tall"}, "must have one numbers in scale"),
    ({"center": [1]}, "must have 2 numbers in center"),
    ({"image": "../a.jpg"}, "must name a picture inside .*'../a.jpg'"),
    ({"image": "/etc/a.jpg"}, "must name a picture inside"),
    ({"image": "b.jpg"}, "b.jpg must be readable"),
    ({"joints_vis": [0] * 16}, "must have an annotated joint"),
    ({"joints": [[5000, 5000]] * 16}, "must have an annotated joint in the picture"),
    ({"joints": [[50, 50]] * 16, "scale": 0}, "a positive scale, or joints apart"),
])
def test_broken_persons_are_named(tmp_path, changes, words):
    source = sources.find("mine", write_mpii(tmp_path / "in", train=[entry(), entry(**changes)]))
    with pytest.raises(UserError, match=words) as error:
        poses.build_records(source, tmp_path / "out", progress=False)
    assert "--skip_bad" in str(error.value) and not (tmp_path / "out").exists()
    report = poses.build_records(source, tmp_path / "out", on_bad="skip", progress=False)
    assert [skipped["file"] for skipped in report.skipped] == ["train.json entry 1"]
    assert report.manifest["splits"]["train"]["examples"] == 1


@pytest.mark.parametrize("changes, expected, repair", [
    ({"scale": 0}, {"scale": 150 / 200}, "scale that is none"),
    ({"scale": -1, "center": [-1, -1]}, {"scale": 0.75, "center": (175.5, 88.0)}, "centre that is none"),
    ({"center": [float("nan"), 5]}, {"center": (175.5, 88.0)}, "centre that is none"),
    ({"joints": [[700, 50]] + entry()["joints"][1:]}, {"visible": [0] + [2] * 15}, "outside the picture"),
    ({"joints": [[-0.9, 50]] + entry()["joints"][1:]}, {"visible": [2] * 16}, None),
])
def test_what_can_be_mended(tmp_path, changes, expected, repair):
    (person, repairs), = mended(sources.find("mine", write_mpii(tmp_path, train=[entry(**changes)])))
    for key, value in expected.items():
        np.testing.assert_allclose(getattr(person, key), value, err_msg=key)
    assert (person.joints_xy >= 0).all() and person.joints_xy[:, 0].max() <= 600
    assert repairs.pop(HEAD) == 1
    assert bool(repairs) == bool(repair) and all(repair in what or "none" in what for what in repairs)


def test_a_resized_picture_scales_everything():
    person = poses.Person(b"", "a.jpg", np.tile([[100.0, 60.0]], [16, 1]) + np.arange(16)[:, None], np.full(16, 2),
                          (100, 60), 1.0, (1200, 800), (10, 20, 30, 40), 600.0, 50.0)
    half, repairs = poses.mend(person, 600, 400, poses.MPII)
    np.testing.assert_allclose(half.joints_xy, person.joints_xy / 2)
    assert half.center == (50, 30) and half.scale == 0.5 and half.box == (5, 10, 15, 20)
    assert half.area == 150 and half.head_size == 25 and repairs
    with pytest.raises(UserError, match="as large as annotated, 1200 x 800, and is 600 x 600"):
        poses.mend(person, 600, 600, poses.MPII)
    with pytest.raises(UserError, match="visibilities 0, 1 or 2"):
        poses.mend(person._replace(visible=np.full(16, 3)), 1200, 800, poses.MPII)


# MPII's own file.

def rect(points, **fields):
    """An annorect as Matlab has it; points: [(id, x, y, is_visible)]."""
    keys = ("x", "y", "id", "is_visible")
    point = np.array([tuple(each[key] for key in keys) for each in points], [(key, "O") for key in keys])
    whole = {"x1": 150.0, "y1": 20.0, "x2": 180.0, "y2": 60.0, "scale": 1.2,
             "objpos": {"x": 170.0, "y": 150.0}, "annopoints": {"point": point}} | fields
    return {key: value for key, value in whole.items() if value is not None}


def points(**changes):
    found = [{"id": k, "x": 101.0 + k, "y": 51.0 + 2 * k, "is_visible": k % 2} for k in range(16)]
    for k in (8, 9):                                  # as in the real file
        found[k]["is_visible"] = np.zeros([0, 0])
    return [point | changes.get(f"joint{point['id']}", {}) for point in found if point["id"] != 3]


def write_mat(root, pictures, train=None):
    """A file in the structure of mpii_human_pose_v1_u12_1.mat; pictures: {name: [annorect]}."""
    (root / "images").mkdir(parents=True)
    annolist = np.zeros(len(pictures), [("image", "O"), ("annorect", "O")])
    for i, (name, rects) in enumerate(pictures.items()):
        (root / "images" / name).write_bytes(JPEG)
        keys = sorted({key for each in rects for key in each})
        array = np.zeros(len(rects), [(key, "O") for key in keys] or [("x1", "O")])
        for j, each in enumerate(rects):
            for key in keys:
                array[j][key] = each.get(key, np.zeros([0, 0]))
        annolist[i] = ({"name": name}, array if rects else np.zeros([0, 0]))
    train = np.ones(len(pictures)) if train is None else np.array(train, float)
    release = {"annolist": annolist, "img_train": train, "version": "12"}
    scipy.io.savemat(root / "mpii_human_pose_v1_u12_1.mat", {"RELEASE": release})
    return root


def test_mpii_mat(tmp_path):
    pictures = {f"{i:09d}.jpg": [rect(points()), rect(points(), scale=None, objpos=None), {"x1": 5.0}]
                for i in range(10)}
    pictures["one.jpg"] = [rect(points(joint0={"is_visible": "0"}, joint1={"is_visible": "1"}))]
    pictures["none.jpg"], pictures["test.jpg"] = [], [{"scale": 1.0}]
    source = sources.find("mpii", write_mat(tmp_path, pictures, [1] * 12 + [0]))
    assert {split: len(items) for split, items in source.splits.items()} in (
        {"train": 19, "val": 2}, {"train": 20, "val": 1})       # a tenth of 11 pictures is one of them
    assert source.left_out == {"train": {"persons without annotated joints": 10}}
    items = {str(item): item for items in source.splits.values() for item in items}
    person, _ = poses.mend(source.load(items["000000000.jpg person 0"]), 600, 400, source.body)
    np.testing.assert_allclose(person.joints_xy[15], [116 - 0.5, 81 - 0.5])
    assert person.visible.tolist() == [1, 2, 1, 0, 1, 2, 1, 2, 2, 2, 1, 2, 1, 2, 1, 2]
    assert person.head_size == pytest.approx(0.6 * 50) and person.scale == 1.2
    assert person.center == (169.5, 150 + 18 - 0.5)
    person, repairs = poses.mend(source.load(items["000000000.jpg person 1"]), 600, 400, source.body)
    assert person.scale == 30 / 200 and not repairs             # not said, so taken from the joints
    person = source.load(items["one.jpg person 0"])
    assert person.visible[:2].tolist() == [1, 2]


def test_broken_mpii_mat(tmp_path):
    for i, (changes, words) in enumerate((({"joint5": {"x": np.nan}}, "finite number in x"),
                                          ({"joint5": {"id": 16}}, "joints 0 to 15, and has 16"))):
        source = sources.find("mpii", write_mat(tmp_path / str(i), {"a.jpg": [rect(points(**changes))]}))
        with pytest.raises(UserError, match=words):
            source.load(source.splits["train"][0])
    (tmp_path / "mpii_bad.mat").write_bytes(b"MATLAB 5.0 MAT-file, but no more")
    with pytest.raises(UserError, match="must be a Matlab file, and cannot be read"):
        sources.find("mpii", tmp_path / "mpii_bad.mat")
    scipy.io.savemat(tmp_path / "mpii_half.mat", {"RELEASE": {"img_train": np.ones(2)}})
    with pytest.raises(UserError, match="must have an annolist and as many img_train, and has 0 and 2"):
        sources.find("mpii", tmp_path / "mpii_half.mat")


# Leeds Sports Poses.

@pytest.mark.parametrize("extended", [False, True])
def test_lsp_mat(tmp_path, extended):
    """The third row is 1 where a joint is hidden in LSP, and where it is visible in the extended set."""
    rng = np.random.default_rng(0)
    joints = np.concatenate([rng.uniform(20, 300, (14, 2, 20)), np.ones([14, 1, 20])], axis=1)
    joints[3, 2] = 0
    (tmp_path / "images").mkdir()
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": joints if extended else joints.swapaxes(0, 1)})
    source = sources.find("lsp", tmp_path)
    names = [name for items in source.splits.values() for name in items]
    assert sorted(names)[0] == ("im00001.jpg" if extended else "im0001.jpg") and len(source.splits["val"]) == 2
    number = int(names[0][2:-4]) - 1
    person = source.load(names[0])
    offset = 0.5 if extended else -0.5
    np.testing.assert_allclose(person.joints_xy, joints[:, :2, number] + offset)
    assert person.visible.tolist() == ([2] * 3 + [0] + [2] * 10 if extended else [1] * 3 + [2] + [1] * 10)
    whole, _ = poses.mend(person, 400, 400, source.body)
    shown = person.joints_xy[person.visible > 0]
    assert whole.scale == pytest.approx((shown.max(0) - shown.min(0)).max() / 200)
    assert source.body.pairs == [(3, 2), (4, 1), (5, 0), (9, 8), (10, 7), (11, 6)] and len(source.body.labels) == 14


def test_lsp_has_its_own_test_set(tmp_path):
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.ones([3, 14, 2000])})
    splits = sources.find("lsp", tmp_path).splits
    assert (splits["train"][-1], splits["val"][0], len(splits["val"])) == ("im1000.jpg", "im1001.jpg", 1000)
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.ones([16, 3, 5])})
    with pytest.raises(UserError, match="3 x 14 x N or 14 x 3 x N numbers, and has 16 x 3 x 5"):
        sources.find("lsp", tmp_path)


def test_no_file_is_left_out_silently(tmp_path):
    for folder in ("lsp", "lspet"):
        (tmp_path / folder).mkdir()
        scipy.io.savemat(tmp_path / folder / "joints.mat", {"joints": np.ones([14, 3, 5])})
    with pytest.raises(UserError, match="must hold one joints.mat, and .* has .*lsp/joints.mat, .*lspet/joints.mat"):
        sources.find("lsp", tmp_path)
    assert len(sources.find("lsp", tmp_path / "lspet").splits["train"])
    root = write_mpii(tmp_path / "mpii", train=[entry()], valid={"no": "list"})
    with pytest.raises(UserError, match="valid.json must be a list of persons, as the other split is"):
        sources.find("mpii", root)
    assert list(sources.find("mpii", write_mpii(tmp_path / "odd", train=[entry()], test=[1, 2])).splits) == ["train"]


# COCO.

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
        annotation(), annotation(id=2, iscrowd=1, keypoints=[0] * 51), annotation(id=3, num_keypoints=0),
        annotation(id=4, num_keypoints=None, keypoints=[0] * 51), {"id": 5, "image_id": 7, "category_id": 2},
        annotation(id=6, bbox=[0, 0, 0, 5])])
    source = sources.find("coco_keypoints", root)
    assert [len(items) for items in source.splits.values()] == [2]
    assert source.left_out["val"] == {"crowds": 1, "persons without annotated joints": 2,
                                      "objects of a category without joints": 1}
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
    assert poses.body_of(report.folder).sigmas == body.sigmas and report.manifest["left_out"] == source.left_out


@pytest.mark.parametrize("changes, words", [
    ({"image_id": 8}, "of image 8, which it does not list"),
    ({"keypoints": None}, "1 lacks keypoints"),
    ({"bbox": None}, "1 lacks bbox"),
    ({"id": "x"}, "whole entries with an id in annotations"),
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
    ({"images": [{"id": 7, "file_name": "../a.jpg"}]}, "name pictures inside"),
    ({"images": [{"id": 7, "file_name": "a"}, {"id": 7, "file_name": "b"}]}, "ids that differ in images"),
    ({"categories": [{"id": 1, "name": "person"}]}, "one list of keypoints in its categories, and has 0"),
    ({"categories": [{"id": 1, "keypoints": NAMES, "skeleton": [[0, 1]]}]}, "pairs of joints 1 to 17"),
])
def test_broken_parts_of_coco(tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        sources.find("coco_keypoints", write_coco(tmp_path, [annotation()], **changes))


# What all share.

def test_what_is_not_found_is_explained(tmp_path):
    with pytest.raises(UserError, match="--source must name the folder of mpii"):
        sources.find("mpii")
    with pytest.raises(UserError, match="nowhere does not exist"):
        sources.find("mpii", tmp_path / "nowhere")
    with pytest.raises(UserError, match="holds nothing that lsp could be"):
        sources.find("lsp", write_mpii(tmp_path, train=[entry()]))
    (tmp_path / "annot" / "train.json").write_text("[{")
    with pytest.raises(UserError, match="train.json must be a JSON file"):
        sources.find("mpii", tmp_path)


def test_pairs_are_found_by_name():
    assert poses.pairs_of(["nose", "left_eye", "right_eye", "left_ear"]) == [(1, 2)]
    assert poses.pairs_of(["r_paw", "l_paw", "tail", "right hip", "left hip"]) == [(1, 0), (4, 3)]
    assert poses.pairs_of(["L_Eye", "R_Eye", "Nose", "Left Hand", "Right Hand"]) == [(0, 1), (3, 4)]
    labels = poses.MPII.labels
    assert sorted(map(sorted, poses.MPII.pairs)) == [[0, 5], [1, 4], [2, 3], [10, 15], [11, 14], [12, 13]]
    for body in (poses.MPII, poses.LSP):
        assert {joint for limb in body.skeleton for joint in limb} == set(range(len(body.labels)))
    assert labels[13].startswith("left") and labels[2].startswith("right")   # the torso that PCK takes
