"""Splits, records, what is learnt from training texts alone, memory, and batches from any step on."""

import gzip
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from common import records, splits, training
from common.errors import UserError
from textclf import corpus, demo, preprocess, tfidf

ROOT = pathlib.Path(__file__).resolve().parents[2]


def texts_of(folder, split):
    """{source: (text, label)} of a split's records."""
    found = {}
    for batch in records.dataset(folder, split, epochs=1).batch(1024):
        example = {key: value.numpy().tolist() for key, value in preprocess.parse(batch["record"]).items()}
        for source, text, label in zip(example["source"], example["text"], example["label"]):
            found[source.decode()] = text.decode(), label
    return found


@pytest.fixture
def articles(tmp_path):
    """100 rows in the article's form: 60 of a, 30 of b, 9 of c, 1 of d; every row has a word of its own."""
    path = tmp_path / "articles.csv"
    labels = ["a"] * 60 + ["b"] * 30 + ["c"] * 9 + ["d"]
    path.write_text("".join(f"common own{number},{label}\n" for number, label in enumerate(labels)))
    return path


def test_nothing_of_the_test_texts_is_learnt(articles, tmp_path):
    """Errata: the article's tokenizer and label encoder must know the training texts alone."""
    folder = preprocess.build("split", articles, tmp_path / "split", val_fraction=0.2, test_fraction=0.2)
    vocabulary = tfidf.learn(preprocess.text_batches(folder, "train"), 1000)
    own = {text.split()[1] for text, _ in texts_of(folder, "train").values()}
    assert set(vocabulary.words) == own | {"common"} and vocabulary.documents == len(own)
    assert vocabulary.document_counts[vocabulary.words.index("common")] == len(own)
    limited = tfidf.learn(preprocess.text_batches(folder, "train", limit=5), 1000)
    assert limited.documents == 5


def test_a_split_of_its_own(tmp_path):
    source = tmp_path / "r8"
    source.mkdir()
    train_rows = "".join(f"{label}\tword{number}\n" for number, label in enumerate(["acq"] * 10 + ["earn"] * 10))
    (source / "train.txt.gz").write_bytes(gzip.compress(train_rows.encode()))
    (source / "test.txt").write_text("acq\tword0\nship\tsinks\nearn\tword1\n")
    with pytest.raises(UserError, match="1 bad of 23 rows: test.txt line 2: category 'ship' is not among"):
        preprocess.build("r8", source, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="--test_fraction is for a source without a test file, and .*test.txt is one"):
        preprocess.build("r8", source, tmp_path / "out", test_fraction=0.2, skip_bad=True)
    (source / "SOURCE.md").write_text("where it is from")
    folder = preprocess.build("r8", source, tmp_path / "out", val_fraction=0.2, skip_bad=True)
    manifest = records.read_manifest(folder)
    assert manifest["labels"] == ["acq", "earn"] and manifest["num_skipped"] == 1
    counts = {split: entry["examples"] for split, entry in manifest["splits"].items()}
    held_out = sum(splits.fraction(f"word{number}") < 0.2 for number in range(20))
    assert counts == {"train": 20 - held_out, "val": held_out, "test": 2} and 0 < held_out < 9
    assert set(texts_of(folder, "test")) == {"test.txt:1", "test.txt:3"}
    # word0 and word1 stand in both files; what is beside these is named
    beside = {("val" if splits.fraction(word) < 0.2 else "train") for word in ("word0", "word1")}
    assert manifest["shared"].keys() == {"test"} and manifest["shared"]["test"].keys() == beside
    assert sum(manifest["shared"]["test"].values()) == 2
    assert manifest["left_out"] == {"files or folders that no split names": {"count": 1, "names": ["SOURCE.md"]}}
    table = preprocess.describe(folder)
    assert "left out: 1 files or folders that no split names: SOURCE.md" in table
    assert "are in " + beside.pop() + " too; scores on them mean little." in table
    whole = preprocess.build("whole", source, tmp_path / "whole", val_fraction=0, skip_bad=True)
    assert set(records.read_manifest(whole)["splits"]) == {"train", "test"}


def test_bad_rows_are_an_error_or_are_listed(articles, tmp_path, capsys):
    with open(articles, "a") as file:
        file.write("no category,\n" + "only one field\n" * 20)
    message = r"has 21 bad of 121 rows: articles.csv line 101: no category; articles.csv line 102: .*and 11 more"
    with pytest.raises(UserError, match=message) as error:
        preprocess.build("a", articles, tmp_path / "a")
    assert "\n" not in str(error.value) and "--skip_bad" in str(error.value)
    folder = preprocess.build("a", articles, tmp_path / "a", skip_bad=True)
    assert "21 of 121 rows left out" in capsys.readouterr().err
    manifest = records.read_manifest(folder)
    assert manifest["num_skipped"] == len(manifest["skipped"]) == 21
    assert manifest["skipped"][0] == {"file": "articles.csv", "line": 101, "reason": "no category"}
    assert sum(entry["examples"] for entry in manifest["splits"].values()) == 100
    assert "21 bad rows were left out" in preprocess.describe(folder)


@pytest.mark.parametrize("content, options, message", [
    ("a,x\nb,x\n", {}, "must have rows of two categories at least, and has .'x'."),
    ("".join(f"text,{number}\n" for number in range(1100)), {}, "more than 1000 in it"),
    ("a,x\nb,y\n", {"val_fraction": 0.5, "test_fraction": 0.5}, "must leave something to train on"),
    ("", {}, "two categories at least, and has .. in 0 rows"),
    ("a,\n,b\n", {"skip_bad": True}, "in 2 rows, 2 of them bad.*Bad: a.csv line 1: no category; a.csv line 2: no text"),
])
def test_mistakes(tmp_path, content, options, message):
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(UserError, match=message):
        preprocess.build("a", tmp_path / "a.csv", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_source_that_changes_while_it_is_read(articles, tmp_path, monkeypatch):
    rows = corpus.Corpus.rows
    monkeypatch.setattr(corpus.Corpus, "rows", lambda self, split: list(rows(self, split))[1:])
    with pytest.raises(UserError, match=r"changed: train had \d+ rows, then"):
        preprocess.build("a", articles, tmp_path / "a")


def test_damaged_records(articles, tmp_path):
    folder = preprocess.build("a", articles, tmp_path / "a")
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["val"]["categories"]["a"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="must hold what its manifest counts for val"):
        preprocess.check(folder)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Records of 50 + 10 + 10 made-up stories."""
    splits, demo.SPLITS = demo.SPLITS, {"train": 50, "val": 10, "test": 10}
    try:
        return preprocess.build("demo", folder=tmp_path_factory.mktemp("records") / "demo")
    finally:
        demo.SPLITS = splits


def index_of(texts):
    """Stands in for vectorize: the texts themselves."""
    return texts


def test_batches_from_any_step_on(small):
    """7 to a batch of 50: batches run over the ends of epochs, and each epoch has every text once."""
    def batches(count, start=0, **kwargs):
        dataset = preprocess.training_dataset(small, index_of, batch_size=7, seed=3, start_step=start, **kwargs)
        return [tuple(value.numpy().tolist() for value in batch) for batch in dataset.take(count)]

    whole = batches(15)
    assert batches(8, 7) == whole[7:] and batches(1, 8) == whole[8:9]
    stream = [text for texts, _ in whole for text in texts]
    assert len(set(stream[:50])) == 50 and set(stream[:50]) == set(stream[50:100])
    assert stream[:50] != stream[50:100]
    labels = dict(texts_of(small, "train").values())
    assert all(labels[text.decode()] == label for texts, numbers in whole for text, label in zip(texts, numbers))
    assert len({text for texts, _ in batches(10, limit=10) for text in texts}) == 10


def test_evaluation_takes_every_text_once_on_any_number_of_replicas(small, two_replicas):
    """Fault 21: 10 texts in batches of 4 leave a last batch of 2."""
    for strategy in (tf.distribute.get_strategy(), two_replicas):
        def make(batch_size, context):
            return preprocess.evaluation_dataset(small, "test", lambda texts: tf.strings.length(texts),
                                                 batch_size=batch_size, global_batch_size=4)

        seen = []
        for batch in training.distribute(strategy, make, 4):
            seen += [part.numpy() for part in strategy.experimental_local_results(batch["index"])]
        index = np.concatenate(seen)
        assert len(index) == 12 and sorted(index[index >= 0]) == list(range(10))


def test_demo_is_made_on_the_spot_and_others_name_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="No records match .*textclf.preprocess --dataset mine --source FILE.csv"):
        preprocess.ensure_records("mine")
    with pytest.raises(UserError, match="Give --source FILE.csv"):
        preprocess.build("mine")
    monkeypatch.setattr(demo, "SPLITS", {"train": 20, "val": 5, "test": 5})
    folder = preprocess.ensure_records("demo")
    assert folder == pathlib.Path("tfrecords/demo_text") and preprocess.ensure_records("demo") == folder
    assert records.read_manifest(folder)["labels"] == sorted(demo.LABELS)


MEMORY = """
import pathlib, resource, sys
sys.path.insert(0, {root!r})
from common import records
from textclf import preprocess, tfidf

records._WINDOW_BYTES = 2**21  # 64 MiB, whatever the corpus: less of it here, so that a small one fills it

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

def run(rows, name):
    folder = pathlib.Path({folder!r})
    filler = " ".join(["x" * 200] * 30)
    with open(folder / f"{{name}}.csv", "w") as file:
        for number in range(rows):
            words = " ".join(f"word{{(number * 7919 + i * 31) % 40000}}" for i in range(30))
            file.write(f"{{words}} {{filler}},{{number % 4}}\\n")
    built = preprocess.build(name, folder / f"{{name}}.csv", folder / name)
    vocabulary = tfidf.learn(preprocess.text_batches(built, "train"), 1000, capacity=20000)
    assert len(vocabulary.words) == 999 and abs(vocabulary.documents / rows - 0.8) < 0.03
    return (folder / f"{{name}}.csv").stat().st_size / 2**20

run(3000, "first")
small = run(3000, "small")
before = peak()
large = run(12000, "large")
print(small, large, before, peak())
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Building records and learning the vocabulary of four times as many texts, 54 MiB more, at the same memory.

    Each run of TensorFlow's pipelines leaves some ten MiB behind, whatever its size.
    """
    script = MEMORY.format(root=str(ROOT), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300,
                          env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert done.returncode == 0, done.stderr[-2000:]
    small, large, before, after = map(float, done.stdout.split())
    assert large - small > 50
    assert after - before < 35, f"{before:.0f} MiB, then {after:.0f}"


def test_r8(real_data, tmp_path):
    folder = preprocess.build("r8", real_data("r8"), tmp_path / "r8", val_fraction=0)
    manifest = records.read_manifest(folder)
    assert manifest["shared"] == {"test": {"train": 4}}  # Reuters had repeated them
    assert manifest["left_out"] == {"files or folders that no split names": {"count": 1, "names": ["SOURCE.txt"]}}
    splits = manifest["splits"]
    assert splits["train"]["categories"] == {"acq": 1596, "crude": 253, "earn": 2840, "grain": 41, "interest": 190,
                                             "money-fx": 206, "ship": 108, "trade": 251}
    assert splits["test"]["categories"] == {"acq": 696, "crude": 121, "earn": 1083, "grain": 10, "interest": 81,
                                            "money-fx": 87, "ship": 36, "trade": 75}


def test_flags_that_cannot_apply_are_refused():
    given = {"text_columns": ["title", "text"], "label_column": "kind", "header": True, "delimiter": "\\t"}
    assert preprocess.columns_of(given) == {"text": ("title", "text"), "label": "kind", "header": True,
                                            "delimiter": "\t"}
    assert preprocess.columns_of({"header": False}) == {} and preprocess.columns_of({"escape": ""}) == {"escape": ""}
    for given, message in (({"delimiter": ""}, "--delimiter must be one character; '' came"),
                           ({"escape": "ab"}, "--escape must be one character"),
                           ({"escape": '"'}, "neither the quotation mark"),
                           ({"escape": ","}, "must be different characters")):
        with pytest.raises(UserError, match=message):
            preprocess.columns_of(given)
