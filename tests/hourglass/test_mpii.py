"""Readers of MPII: every fault of an annotation named or mended, heads and centres by hand."""

import numpy as np
import pytest
import scipy.io

from common import records
from common.errors import UserError
from hourglass import poses, sources
from tests.hourglass.folders import HEAD, JPEG, entry, mended, write_mpii


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


# Centres, first pixels and heads.

def test_flags_go_before_the_rule_of_the_name(tmp_path, capsys):
    root = write_mpii(tmp_path / "in", train=[entry()])
    for name, options, expected, facts in (
            ("mpii", {}, (179.5, 112.0), (1, 15.0)), ("mine", {}, (180.5, 90.5), (0, 0.0)),
            ("mpii", {"center_shift": 0.0}, (179.5, 89.5), (1, 0.0)),
            ("mine", {"center_shift": 10.0, "first_pixel": 1}, (179.5, 104.5), (1, 10.0)),
            ("mpii", {"first_pixel": 0}, (180.5, 113.0), (0, 15.0))):
        source = sources.find(name, root, **options)
        (person, _), = mended(source)
        assert person.center == expected and (source.facts["first_pixel"], source.facts["center_shift"]) == facts
    report = poses.build_records(source, tmp_path / "out")
    assert (report.manifest["first_pixel"], report.manifest["center_shift"]) == (0, 15.0)
    said = capsys.readouterr().out
    assert "pixels of the source count from 0 (--first_pixel)" in said
    assert "centres are moved down by 15 times the scale (--center_shift)" in said
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.full([14, 3, 5], 9)})
    with pytest.raises(UserError, match="--center_shift moves centres of MPII's annotations, and lsp has none"):
        sources.find("lsp", tmp_path, center_shift=15.0)


def write_heads(root, boxes, **others):
    """annot/gt_valid.mat as MPII's download has it; boxes: (left, top, right, bottom) of each person."""
    corners = np.reshape(np.array(boxes, float), [-1, 2, 2])                                # [P, corner, xy]
    scipy.io.savemat(root / "annot" / "gt_valid.mat", {
        "headboxes_src": corners.transpose(1, 2, 0), "dataset_joints": np.array([["rank", "rkne"]], object), **others})
    return root


def test_head_boxes_beside_valid_json(tmp_path, capsys):
    """Boxes of 30 x 40 and 60 x 80 pixels: diagonals of 50 and 100, so heads of 30 and 60."""
    persons = [entry(), entry(joints=[[400 - 10 * k, 50 + 5 * k] for k in range(16)], image="a.jpg"), entry()]
    missing = np.zeros([16, 3], np.uint8)
    missing[5, 1] = missing[0, 0] = 1
    root = write_heads(write_mpii(tmp_path / "in", train=[entry()], valid=persons),
                       [(100, 100, 130, 140), (50, 20, 110, 100), (7, 7, 7, 7)], jnt_missing=missing,
                       pos_gt_src=np.array([person["joints"] for person in persons]).transpose(1, 2, 0) + 0.4)
    source = sources.find("mpii", root)
    assert source.facts["head_boxes"] == {"train": 0, "val": 2}
    (one, first), (two, second), (three, third) = mended(source, "val")
    assert (one.head_size, two.head_size) == (30, 60) and HEAD not in first | second
    assert three.head_size == pytest.approx(np.hypot(10, 5)) and third == {HEAD: 1}      # its box has no size
    assert one.visible.tolist() == [0] + [2] * 15 and two.visible.tolist() == [2] * 5 + [0] + [2] * 10
    assert first == {"joint that gt_valid.mat calls missing, not annotated": 1}
    report = poses.build_records(source, tmp_path / "out")
    assert report.manifest["head_boxes"] == {"train": 0, "val": 2}
    assert "persons with a box of the head: val 2" in capsys.readouterr().out
    heads = [poses.parse(item["record"], 16)["head_size"].numpy() for item in records.dataset(report.folder, "val")
             .take(2)]
    assert heads == [30, 60]


def test_the_head_of_a_single_person(tmp_path):
    """Matlab has no third axis of length one."""
    root = write_mpii(tmp_path, valid=[entry()])
    scipy.io.savemat(root / "annot" / "gt_valid.mat", {
        "headboxes_src": np.array([[100, 100], [106, 108]], np.uint16), "jnt_missing": np.zeros([16, 1]),
        "pos_gt_src": np.array(entry()["joints"])})
    (person, _), = mended(sources.find("mpii", root))
    assert person.head_size == 6


def test_head_boxes_of_other_persons(tmp_path):
    persons = [entry(joints=[[20 + 30 * i + 5 * k, 50 + 5 * k] for k in range(16)]) for i in range(12)]
    root = write_mpii(tmp_path, train=[entry()], valid=persons)
    boxes = [(1, 2, 4, 6)] * 12
    order = np.array([person["joints"] for person in persons[1:] + persons[:1]]).transpose(1, 2, 0)
    for boxes, others, words in (
            (boxes[:11], {}, "gt_valid.mat must have the head of every person of valid.json, and has 11 for 12"),
            (boxes, {"pos_gt_src": order}, "in the same order, and 12 of 12 have other joints there"),
            (boxes, {"jnt_missing": np.zeros([14, 12])}, "16 x 12 numbers in jnt_missing"),
            ([*boxes[:11], (1, 2, np.nan, 3)], {}, "2 x 2 x 12 numbers in headboxes_src")):
        with pytest.raises(UserError, match=words):
            sources.find("mpii", write_heads(root, boxes, **others))
    scipy.io.savemat(root / "annot" / "gt_valid.mat", {"headboxes": np.zeros([2, 2, 12])})
    with pytest.raises(UserError, match="headboxes_src of 2 x 2 x P numbers, and has 0"):
        sources.find("mpii", root)
    (root / "annot" / "gt_valid.mat").write_bytes(b"MATLAB 5.0 MAT-file, but no more")
    with pytest.raises(UserError, match="gt_valid.mat must be a Matlab file"):
        sources.find("mpii", root)


def test_joints_that_are_fractions(tmp_path):
    persons = [entry(joints=[[0.02 * k, 0.05 * k] for k in range(16)])] * 3
    with pytest.raises(UserError, match="train.json must have joints in pixels, and all of its numbers lie between 0"):
        sources.find("mine", write_mpii(tmp_path, train=persons))
    whole = [*persons, entry(joints=[[-1, -1]] * 15 + [[90, 90]], joints_vis=[0] * 15 + [1])]
    assert len(sources.find("mine", write_mpii(tmp_path, train=whole)).splits["train"]) == 4


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
        {"train": 19, "val": 2}, {"train": 17, "val": 4})       # by a hash: at least one picture of 11
    assert source.left_out == {
        "persons without annotated joints": [f"{i:09d}.jpg person 2" for i in range(10)],
        "pictures of the test set, whose joints are not published": ["test.jpg"],
        "pictures without an annotated person": [tmp_path / "images" / "none.jpg"]}
    assert (source.facts["first_pixel"], source.facts["center_shift"]) == (1, 15.0)
    assert source.facts["head_boxes"] == {split: len(items) for split, items in source.splits.items()}
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
    write_mat(tmp_path / "two", {"a.jpg": [rect(points())]})
    scipy.io.savemat(tmp_path / "two" / "mpii_v2.mat", {"RELEASE": {"img_train": np.ones(2)}})
    with pytest.raises(UserError, match="one file of MPII, and .* has .*mpii_human_pose_v1_u12_1.mat and .*mpii_v2"):
        sources.find("mpii", tmp_path / "two")
