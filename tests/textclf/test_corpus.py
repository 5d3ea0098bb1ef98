"""Rows dealt into splits by their texts: the same place for ever, copies together, no category untrained."""

import hashlib

from common import splits
from textclf import corpus, sources


def dealt(path, content, val=0.2, test=0.1, seed=0):
    """({split: its texts, in order}, the corpus) of a CSV file with this content."""
    path.write_text(content)
    found = corpus.Corpus({"all": path}, sources.read, {"test": test, "val": val}, seed)
    rows = {split: [text for text, _, _ in found.rows(split)] for split in found.splits()}
    assert {split: len(texts) for split, texts in rows.items()} == found.splits()
    return rows, found


def test_rows_are_dealt_by_their_texts_and_the_seed(tmp_path):
    """Thresholds .1 and .3 of a hash; rows that are added or reordered move no other; copies stay together."""
    rows = [f"common own{number % 250},{'abc'[number % 3]}\n" for number in range(300)]
    one, found = dealt(tmp_path / "a.csv", "".join(rows))
    assert sorted(sum(one.values(), [])) == sorted(row.partition(",")[0] for row in rows)
    for text in {text for texts in one.values() for text in texts}:
        where = int(hashlib.md5(f"0\n{text}".encode()).hexdigest()[:16], 16) / 16**16
        split = "test" if where < 0.1 else "val" if where < 0.1 + 0.2 else "train"
        assert [name for name in one if text in one[name]] == [split]  # 50 of them come twice
    # Of 250 texts a fifth and a tenth: standard deviations 6.3 and 4.7.
    assert abs(len(set(one["val"])) - 50) < 25 and abs(len(set(one["test"])) - 25) < 19
    more, _ = dealt(tmp_path / "a.csv", "".join(rows[::-1] + [f"new {number},a\n" for number in range(40)]))
    assert {split: sorted(text for text in texts if "new" not in text) for split, texts in more.items()} == {
        split: sorted(texts) for split, texts in one.items()}
    other, _ = dealt(tmp_path / "a.csv", "".join(rows), seed=1)
    assert set(other["test"]) != set(one["test"]) and found.labels == ["a", "b", "c"]


def test_every_category_can_be_learnt(tmp_path):
    content = "".join(f"text {number},kind {number}\n" for number in range(60)) + "text 7,twice\n"
    rows, found = dealt(tmp_path / "rare.csv", content, val=0.3, test=0.3)
    # The row of a category of its own is for training; a text of two categories is one text.
    assert rows.keys() == {"train"} and found.splits() == {"train": 61} and len(found.labels) == 61
    rows, _ = dealt(tmp_path / "two.csv", content + content.replace("text", "story"), val=0.3, test=0.3)
    for number in range(60):
        last = max((f"text {number}", f"story {number}"), key=splits.fraction)
        assert last in rows["train"]


def test_the_smallest_sources_have_all_splits(tmp_path):
    rows, _ = dealt(tmp_path / "few.csv", "a,x\nb,x\nc,x\nd,y\n", val=0.01, test=0.01)
    places = sorted("abc", key=splits.fraction)
    assert {split: set(texts) for split, texts in rows.items()} == {
        "test": {places[0]}, "val": {places[1]}, "train": {places[2], "d"}}
    rows, _ = dealt(tmp_path / "few.csv", "a,x\na,x\nd,y\n", val=0.01, test=0)
    assert rows == {"train": ["a", "a", "d"]}  # copies are one text, and that has to be learnt
    rows, _ = dealt(tmp_path / "few.csv", "a,x\nb,x\nd,y\n", val=0, test=0)
    assert rows == {"train": ["a", "b", "d"]}
