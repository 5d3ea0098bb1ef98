"""Texts, files and the standard input in; categories with probabilities out."""

import io

import numpy as np
import pytest

from common.errors import UserError
from tests.textclf.small import LABELS, network
from textclf import predict


def read(arguments, **kwargs):
    unreadable = []
    texts = list(predict.read_texts(
        arguments, on_unreadable=lambda name, reason: unreadable.append((name, reason)), **kwargs))
    return texts, unreadable


def test_texts_files_and_standard_input(tmp_path):
    story, lines = tmp_path / "story.txt", tmp_path / "lines.txt"
    story.write_text("Storm\nfloods the coast\n")
    lines.write_bytes("erste\n\nzweite größe\n".encode("latin-1"))
    stdin = io.BytesIO(b"from\na pipe\n")
    assert read(["Bank merges", str(story), "-"], stdin=stdin) == (
        [("", "Bank merges"), (str(story), "Storm\nfloods the coast"), ("stdin", "from\na pipe")], [])
    assert read([str(lines), "-"], lines=True, encoding="latin-1", stdin=io.BytesIO(b"one\ntwo")) == (
        [(f"{lines}:1", "erste"), (f"{lines}:3", "zweite größe"), ("stdin:1", "one"), ("stdin:2", "two")], [])
    with pytest.raises(UserError, match="--encoding must be one that Python knows"):
        read([str(story)], encoding="utf-99")


def test_what_cannot_be_read_is_named_and_the_rest_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "MAX_BYTES", 100)
    for name, content in (("empty", b" \n"), ("latin", b"caf\xe9"), ("long", b"x" * 200), ("good", b"news")):
        (tmp_path / name).write_bytes(content)
    texts, unreadable = read([str(tmp_path / name) for name in ("empty", "latin", "long", "good")] + [
        str(tmp_path), "missing.txt", "Prices up 3.5 %", "x" * 5000])
    assert [text for _, text in texts] == ["news", "Prices up 3.5 %", "x" * 5000]
    assert [reason for _, reason in unreadable] == ["holds no text", "is not utf-8", "longer than 100 bytes",
                                                    "Is a directory", "no such file"]


def test_lines_after_a_bad_one_are_read_and_no_byte_order_mark_is_part_of_a_word(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "MAX_BYTES", 100)
    path = tmp_path / "lines.txt"
    path.write_bytes(b"\xef\xbb\xbfBank rises\n" + b"x" * 250 + b"\ncaf\xe9\n\nlast\n")
    texts, unreadable = read([str(path)], lines=True)
    assert texts == [(f"{path}:1", "Bank rises"), (f"{path}:5", "last")]
    assert unreadable == [(f"{path}:2", "longer than 100 characters"), (f"{path}:3", "is not utf-8")]
    path.write_bytes(b"\xef\xbb\xbfBank rises\n")
    assert read([str(path)]) == ([(str(path), "Bank rises")], [])
    for encoding in ("utf-16", "utf-16-le"):  # a line ends in two bytes
        path.write_bytes("Größe\nĊ Ċ\n".encode(encoding))
        assert read([str(path)], lines=True, encoding=encoding) == (
            [(f"{path}:1", "Größe"), (f"{path}:2", "Ċ Ċ")], [])
    path.write_bytes(b"\xff\xfea\0\n\0\0\xd8x\0\n\0")
    texts, unreadable = read([str(path)], lines=True, encoding="utf-16")
    assert texts == [] and "is not utf-16, and cannot be read from there on" in unreadable[0][1]
    path.write_bytes(b"\n\n")
    assert read([str(path)], lines=True) == ([], [(str(path), "holds no text")])


@pytest.fixture(scope="module")
def classify():
    model, vectorize, *_ = network()
    return predict.make_classify(model, vectorize)


def test_top_three_and_texts_without_a_known_word(classify):
    pairs = [("", "profit profit bank"), ("a.txt", "xyzzy"), ("", "ship and storm")]
    found = list(predict.predict(pairs, classify, LABELS, batch_size=2))
    probs, known = classify([text for _, text in pairs])
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    assert known.tolist() == [one["known"] for one in found] == [True, False, True]
    for row, one, (name, text) in zip(probs, found, pairs):
        assert (one["name"], one["text"]) == (name, text)
        expected = sorted(zip(row, LABELS), reverse=True)[:3]
        assert [category["label"] for category in one["categories"]] == [label for _, label in expected]
        assert [category["probability"] for category in one["categories"]] == pytest.approx(
            [value for value, _ in expected], abs=1e-5)
    line = predict.describe(found[1])
    assert "(no word of it is known)  |  a.txt: xyzzy" in line and line.count("%") == 3
    assert len(list(predict.predict(pairs, classify, LABELS, top=9))[0]["categories"]) == len(LABELS)


def test_a_stream_is_answered_as_it_comes(classify):
    asked = []

    def texts():
        for number in range(3):
            asked.append(number)
            yield "", f"bank {number}"

    answers = predict.predict(texts(), classify, LABELS)
    next(answers)
    assert asked == [0]


def test_other_runs_are_refused(tmp_path):
    with pytest.raises(UserError, match="--run must name a run folder"):
        predict.load_run(None)
    (tmp_path / "config.json").write_text('{"article": "yolov3"}')
    with pytest.raises(UserError, match="must be a run of textclf, and is one of yolov3"):
        predict.load_run(tmp_path)
