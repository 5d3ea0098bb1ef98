"""Which reader reads what, and Leeds Sports Poses."""

import json

import numpy as np
import pytest
import scipy.io

from common.errors import UserError
from hourglass import poses, sources
from tests.hourglass.folders import entry, write_mpii


def test_real_lsp_as_json_and_mat(real_data):
    """The JSON has 2,000 of the 10,000 persons of joints.mat, with two joints computed."""
    root = real_data("lspet_2k")
    as_json, as_mat = sources.find("lspet_2k", root), sources.find("lsp", root)
    assert as_json.facts == {"first_pixel": 0, "center_shift": 0.0, "head_boxes": {"train": 0, "val": 0}}
    assert [file.name for file in as_json.left_out["annotation files of no split, or of something else"]] == [
        "joints.mat"]
    assert [len(items) for items in as_json.splits.values()] == [1600, 400]
    assert sum(map(len, as_mat.splits.values())) == 10_000 and abs(len(as_mat.splits["val"]) - 1000) < 100
    assert as_mat.body.metric == "pck" and len(as_mat.body.labels) == 14
    person = as_json.load(as_json.splits["train"][0])
    item, = (item for items in as_mat.splits.values() for item in items if item == person.filename)
    twin = as_mat.load(item)
    order = [as_json.body.labels.index(name) for name in as_mat.body.labels[:12]] + [8, 9]
    np.testing.assert_allclose(person.joints_xy[order], twin.joints_xy, atol=0.006)
    (mine, _), (theirs, _) = (poses.mend(each, 400, 400, source.body)
                              for each, source in ((person, as_json), (twin, as_mat)))
    assert mine.scale == pytest.approx(theirs.scale, rel=0.02)


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
    assert sorted(names)[0] == ("im00001.jpg" if extended else "im0001.jpg") and len(source.splits["val"]) < 8
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
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.full([3, 14, 2000], 9)})
    splits = sources.find("lsp", tmp_path).splits
    assert (splits["train"][-1], splits["val"][0], len(splits["val"])) == ("im1000.jpg", "im1001.jpg", 1000)
    scipy.io.savemat(tmp_path / "joints.mat", {"joints": np.ones([16, 3, 5])})
    with pytest.raises(UserError, match="3 x 14 x N or 14 x 3 x N numbers, and has 16 x 3 x 5"):
        sources.find("lsp", tmp_path)


def test_no_file_is_left_out_silently(tmp_path):
    for folder in ("lsp", "lspet"):
        (tmp_path / folder).mkdir()
        scipy.io.savemat(tmp_path / folder / "joints.mat", {"joints": np.full([14, 3, 5], 9)})
    with pytest.raises(UserError, match="must hold one joints.mat, and .* has .*lsp/joints.mat, .*lspet/joints.mat"):
        sources.find("lsp", tmp_path)
    assert len(sources.find("lsp", tmp_path / "lspet").splits["train"])
    root = write_mpii(tmp_path / "mpii", train=[entry()], valid={"no": "list"})
    with pytest.raises(UserError, match="valid.json must be a list of persons, as the other split is"):
        sources.find("mpii", root)
    odd = write_mpii(tmp_path / "odd", train=[entry()], test=[1, 2], trainval=[entry()])
    source = sources.find("mpii", odd)
    assert list(source.splits) == ["train"]
    assert [file.name for file in source.left_out["annotation files of no split, or of something else"]] == [
        "test.json", "trainval.json"]
    write_mpii(odd, validation=[entry()], val=[entry()])
    with pytest.raises(UserError, match="one list of persons per split, and .* has val.json and validation.json for"):
        sources.find("mpii", odd)


def test_hidden_files_are_no_data(tmp_path):
    root = write_mpii(tmp_path, train=[entry()])
    for name in (".ipynb_checkpoints", "__MACOSX"):
        (root / name).mkdir()
        (root / name / "joints.mat").write_bytes(b"")
        (root / name / "mpii_human_pose.mat").write_bytes(b"")
    (root / "annot" / "._valid.json").write_bytes(b"\0\5\x16\7")
    (root / "images" / "._a.jpg").write_bytes(b"\0\5\x16\7")
    source = sources.find("mine", root)
    assert list(source.splits) == ["train"] and not any(source.left_out.values())
    with pytest.raises(UserError, match="holds nothing that lsp could be"):
        sources.find("lsp", root)


def test_pictures_without_persons_are_named(tmp_path):
    root = write_mpii(tmp_path, train=[entry()], valid=[entry(image="b/c.jpg")],
                      test=[{"image": "d.jpg", "center": [9, 9], "scale": 1.0}])
    (root / "images" / "b").mkdir()
    for name in ("b/c.jpg", "d.jpg", "e.PNG", "f.tif", "notes.txt"):
        (root / "images" / name).write_bytes(b"")
    source = sources.find("mine", root)
    assert list(source.splits) == ["train", "val"]
    assert {reason: list(map(str, names)) for reason, names in source.left_out.items() if names} == {
        "persons of the test set, whose joints are not published": ["test.json entry 0"],
        "pictures without an annotated person": [f"{root}/images/e.PNG"],
        "pictures of a kind that is not read (.tif)": [f"{root}/images/f.tif"]}


def test_a_list_of_no_split_is_dealt_by_the_names_of_its_pictures(tmp_path):
    """Persons of a picture stay together, and keep their split when others are added, removed or reordered."""
    persons = [entry(image=f"{k // 2}.jpg") for k in range(200)]
    root = write_mpii(tmp_path, poses=persons)

    def val(**parts):
        source = sources.find("mine", write_mpii(tmp_path, **parts))
        assert len(source.splits["train"]) > 5 * len(source.splits["val"]) and "one picture in ten" in source.notes[0]
        return {item.load().filename for item in source.splits["val"]}

    held_out = val(poses=persons)
    assert 3 < len(held_out) < 25 and not held_out & {
        item.load().filename for item in sources.find("mine", root).splits["train"]}
    more = [entry(image=f"new {k}.jpg") for k in range(50)]
    assert {name for name in val(poses=more + persons[::-1]) if "new" not in name} == held_out
    other = sources.find("mine", root, seed=1).splits["val"]
    assert {item.load().filename for item in other} != held_out
    source = sources.find("mine", write_mpii(tmp_path, val=[entry()]))         # then nothing is dealt
    assert (len(source.splits["train"]), len(source.splits["val"]), source.notes) == (250, 1, [])


# What all share.

def test_pairs_named_by_hand(tmp_path):
    root = write_mpii(tmp_path, train=[entry()])
    assert sources.find("mine", root, pairs="none").body.pairs == []
    source = sources.find("mine", root, pairs="left_hip:right_hip")
    assert source.body.pairs == [(3, 2)] and source.body.mirrors
    assert source.notes == []                       # their names have partners, --pairs says otherwise
    with pytest.raises(UserError, match="'paw' is none of right_ankle"):
        sources.find("mine", root, pairs="paw:left_hip")

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
