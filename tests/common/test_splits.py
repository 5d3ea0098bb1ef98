import hashlib

import numpy as np
import pytest

from common import splits
from common.errors import UserError


@pytest.mark.parametrize("name, split", [
    ("instances_val2017.json", "val"), ("Train.csv", "train"), ("TESTING", "test"), ("trainA", "train"),
    ("dev.tsv", "val"), ("my-valid-set", "val"), ("latest.csv", None), ("evaluation.csv", None),
    ("contest.csv", None), ("trainer", None), ("train_test.csv", None), ("TestData", "test"), ("greatest_hits", None)])
def test_split_words_are_whole_words(name, split):
    assert splits.of_name(name) == split


def test_folders_in_any_case_and_what_lies_beside_them(tmp_path):
    for name in ("Training", "VALID", "cat", ".ipynb_checkpoints", "__MACOSX"):
        (tmp_path / name).mkdir()
    (tmp_path / "._x.jpg").touch()
    (tmp_path / "notes.txt").touch()
    found, others = splits.folders(tmp_path)
    assert found == {"train": tmp_path / "Training", "val": tmp_path / "VALID"}
    assert others == [tmp_path / "cat", tmp_path / "notes.txt"]
    (tmp_path / "validation").mkdir()
    with pytest.raises(UserError, match="VALID and validation for val"):
        splits.folders(tmp_path)


def test_walk_follows_links_once_and_passes_over_hidden_things(tmp_path):
    elsewhere, root = tmp_path / "elsewhere", tmp_path / "root"
    (elsewhere / "deep").mkdir(parents=True)
    (root / ".Trash").mkdir(parents=True)
    for path in (elsewhere / "deep" / "a.jpg", root / "b.TIF", root / "c.jpg", root / ".Trash" / "d.jpg",
                 root / "._c.jpg"):
        path.touch()
    (root / "linked").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(root)
    found = splits.walk(root)
    assert found == [root / "b.TIF", root / "c.jpg", root / "linked" / "deep" / "a.jpg"]
    chosen, left_out = splits.of_kinds(found, {".jpg"})
    assert chosen == found[1:] and left_out == {"pictures of a kind that is not read (.tif)": [root / "b.TIF"]}


def test_what_lies_beside_what_is_used(tmp_path):
    for name in ("annotations/more", "images/train/deep", "images/extra", "images/train/.cache", "test2017", ".git"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("annotations/a.json", "annotations/b.json", "images/train/1.jpg"):
        (tmp_path / name).touch()
    used = [tmp_path / "annotations" / "a.json", tmp_path / "images" / "train", tmp_path / "images" / "train" / "deep"]
    names = [path.relative_to(tmp_path).as_posix() for path in splits.beside(tmp_path, used)]
    assert names == ["annotations/b.json", "annotations/more", "images/extra", "test2017"]
    assert splits.beside(tmp_path, [tmp_path, *used]) == []


def test_what_is_dealt_keeps_its_place():
    names, shares = [f"{i}.jpg" for i in range(2000)], {"test": 0.1, "val": 0.1}
    parts = splits.deal(names, shares)
    # The standard deviation of a binomial of 2,000 and 0.1 is 13.4.
    assert abs(len(parts["val"]) - 200) < 54 and abs(len(parts["test"]) - 200) < 54
    assert sorted(sum(parts.values(), [])) == sorted(names)
    assert parts["train"] == sorted(parts["train"], key=names.index)
    other = splits.deal([*(f"new {i}" for i in range(500)), *names[::-1][:1500]], shares)
    for split, items in parts.items():
        assert set(items) & set(names[500:]) == set(other[split]) & set(names)
    assert splits.deal(names, shares, seed=1) != parts


def test_fraction_by_hand():
    assert splits.fraction("a.jpg") == int(hashlib.md5(b"0\na.jpg").hexdigest()[:16], 16) / 16**16
    assert splits.fraction(b"a.jpg") == splits.fraction("a.jpg")
    assert splits.place(0.05, {"test": 0.1, "val": 0.1}) == "test" and splits.place(0.1, {"test": 0.1}) == "train"


def test_small_sets_have_all_splits_and_every_category_can_be_learnt():
    assert {split: len(part) for split, part in splits.deal(["a", "b", "c"], {"val": 0.01, "test": 0.01}).items()} == {
        "train": 1, "val": 1, "test": 1}
    assert splits.deal(["a"], {"val": 0.5}) == {"train": ["a"]}
    items = [(kind, i) for kind in "xyz" for i in range(3)]
    parts = splits.deal(items, {"val": 0.9}, category=lambda item: item[0])
    assert {kind for kind, _ in parts["train"]} == set("xyz") and parts["val"]


def test_items_in_two_splits_are_counted():
    keys = {"train": np.array([0.1, 0.2, 0.2, 0.3]), "val": np.array([0.3, 0.4, 0.3]), "test": np.array([0.2, 0.4])}
    found = splits.shared(keys)
    assert found == {"val": {"train": 2}, "test": {"train": 1, "val": 1}}
    assert splits.shared_lines(found, "texts")[0] == "note: val: 2 texts are in train too; scores on them mean little."
    assert splits.shared({"train": [0.1], "test": [0.2]}) == {}
