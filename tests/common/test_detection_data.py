"""Record sets from the command line of every detector: names that are taken, class names, flags without effect."""

import types

import pytest

from common import detection_data, detection_demo, records
from common.errors import UserError


def flags(**values):
    """As absl has them: both attributes and entries with a value."""
    every = {"dataset": "demo", "source": None, "labels": None, "out": None, "shards": None, "workers": None,
             "skip_bad": False, "check": False, "seed": 0, **values}

    class Flags(types.SimpleNamespace):
        def __getitem__(self, name):
            return types.SimpleNamespace(value=getattr(self, name))

    return Flags(**every)


def test_the_demo_is_never_of_a_users_folder(tmp_path):
    """Whoever trains --demo afterwards would train on it."""
    for options in ({"source": tmp_path}, {"labels": ["cat"]}):
        with pytest.raises(UserError, match="--dataset demo is made up, of disc, .*neither --source nor --labels"):
            detection_data.build("demo", folder=tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_flags_without_effect_are_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(detection_demo, "SPLITS", {"train": 2, "val": 1})
    out = str(tmp_path / "out")
    first = flags(out=out)
    assert detection_data.build_or_find(first, only_look=True) == tmp_path / "out" and first.check
    assert "is only looked at" not in capsys.readouterr().out
    detection_data.build_or_find(flags(out=out, labels="a,b", skip_bad=True), only_look=True)
    assert "is only looked at; without effect: --labels, --skip_bad." in capsys.readouterr().out
    assert records.read_manifest(out)["labels"] == detection_demo.LABELS


def test_class_names(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffcat\n\n  big dog \n".encode())
    assert detection_data.read_labels(str(path)) == ["cat", "big dog"] == detection_data.read_labels("cat, big dog")
    for text, words in (("a,b,a", "names one twice"), ("missing.txt", "is neither")):
        with pytest.raises(UserError, match=words):
            detection_data.read_labels(text)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="names.txt must be a text file with one name per line, and cannot be read"):
        detection_data.read_labels(str(path))
