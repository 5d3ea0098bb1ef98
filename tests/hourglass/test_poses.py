"""The pose record: joints without partners, record sets of older times."""

import json

import numpy as np
import pytest
import tensorflow as tf

from common.errors import UserError
from hourglass import poses

LABELS = ["nose", "left_eye", "right_eye", "ear_left", "ear_right"]
JPEG = tf.io.encode_jpeg(np.zeros([80, 100, 3], np.uint8)).numpy()


def build(root, labels, **changes):
    """(the report, what was printed is the caller's) of one person with `labels` for joints."""
    body = poses.Body(labels, [], [], "pck_height")._replace(**changes)
    joints = np.stack([np.arange(len(labels)) * 9.0 + 10, np.arange(len(labels)) * 8.0 + 9], 1)
    person = poses.Person(JPEG, "a.jpg", joints, np.full(len(labels), 2))
    return poses.build_records(poses.Source("mine", body, {"train": [0]}, lambda _: person), root)


def without(folder, key):
    """The record set as before the manifest had `key`."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest[key]
    path.write_text(json.dumps(manifest))
    return folder


def test_names_without_a_partner_stop_mirrors_and_are_said(tmp_path, capsys):
    report = build(tmp_path, LABELS[:4], pairs=[(1, 2)], unpaired=["ear_left"])
    line = "ear_left says a side and has no partner: nothing is mirrored"
    assert f"note: {line}" in capsys.readouterr().out and report.manifest["notes"][0].startswith(line)
    body = poses.body_of(report.folder)
    assert not body.mirrors and list(body.unpaired) == ["ear_left"]
    by_hand = poses.with_pairs(body, [(3, 0)])
    assert by_hand.mirrors and by_hand.pairs == [(3, 0)]
    build(tmp_path / "b", LABELS, pairs=[(1, 2), (3, 4)])
    assert "note" not in capsys.readouterr().out
    build(tmp_path / "c", ["1", "2", "3"])
    assert "note: no pair of joints is left and right: in a mirror all stay what they are" in capsys.readouterr().out


def test_names_of_older_record_sets_are_read_again(tmp_path, capsys):
    """Until then, ear_left and ear_right had no pair."""
    folder = without(build(tmp_path, LABELS, pairs=[(1, 2)]).folder, "unpaired")
    capsys.readouterr()
    for _ in range(2):
        body = poses.body_of(folder)
        assert [tuple(pair) for pair in body.pairs] == [(1, 2), (3, 4)] and body.mirrors
    assert capsys.readouterr().out.count("ear_left and ear_right change places in a mirror, too") == 1
    alone = without(build(tmp_path / "b", LABELS[:4], pairs=[(1, 2)]).folder, "unpaired")
    capsys.readouterr()
    assert not poses.body_of(alone).mirrors and "Ear_left says a side" in capsys.readouterr().out
    same = without(build(tmp_path / "c", LABELS[:3], pairs=[(1, 2)]).folder, "unpaired")
    capsys.readouterr()
    assert poses.body_of(same).mirrors and not capsys.readouterr().out


def test_transparent_and_turned_pictures_are_counted(tmp_path):
    rgba = np.full([80, 100, 4], 200, np.uint8)
    rgba[:9, :9, 3] = 0
    png = tf.io.encode_png(rgba).numpy()
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = JPEG[:2] + b"\xff\xe1\x00\x22Exif\0\0" + tiff + JPEG[2:]
    joints = np.array([[10.0, 20], [30, 60]])

    def load(data):
        return poses.Person(data, "a", joints, np.full(2, 2), size=(80, 100) if data is png else None)

    body = poses.Body(["a", "b"], [], [], "pck_height")
    source = poses.Source("mine", body, {"train": [turned, JPEG]}, load)
    report = poses.build_records(source, tmp_path, progress=False)
    assert report.repaired == {"EXIF orientation not applied: joints count as of the stored pixels": 1}
    with pytest.raises(UserError, match="as large as annotated, 80 x 100, and is 100 x 80"):
        poses.build_records(source._replace(splits={"train": [png]}), tmp_path / "b", progress=False)
    whole = source._replace(splits={"train": [png]}, load=lambda data: load(data)._replace(size=None))
    report = poses.build_records(whole, tmp_path / "c", progress=False)
    assert report.repaired == {"picture with transparency, its colours taken as they are": 1}
