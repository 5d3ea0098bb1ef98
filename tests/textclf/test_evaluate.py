"""The report: figures, disagreements with second choices, pictures."""

import csv
import json

import cv2
import numpy as np
import pytest

from common import records
from textclf import evaluate, preprocess, report

LABELS = ["acq", "earn", "ship"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five test texts, acq, earn, earn, ship, acq; one with a comma, quotation marks and letters beyond ASCII."""
    source = tmp_path_factory.mktemp("source")
    (source / "train.txt").write_text("acq\ta\nearn\tb\nship\tc\n")
    (source / "test.txt").write_text(
        'acq\tfirst\nearn\tsecond, "größer"\nearn\tthird\nship\tfourth\nacq\tlast\n')
    return preprocess.build("five", source, source / "records", val_fraction=0)


FOUND = evaluate.Found(np.array([0, 1, 1, 2, 0]), np.float32(
    [[0.8, 0.1, 0.1], [0.3, 0.1, 0.6], [0.05, 0.9, 0.05], [0.9, 0.02, 0.08], [0.34, 0.36, 0.3]]))


def test_figures_by_hand():
    summary = evaluate.summarize(FOUND, LABELS)
    assert summary["accuracy"] == pytest.approx(0.4) and summary["texts"] == 5
    assert summary["confusion"] == [[1, 1, 0], [0, 1, 1], [1, 0, 0]]
    assert summary["categories"]["earn"] == {"texts": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert summary["categories"]["ship"]["f1"] == 0 and summary["macro_f1"] == pytest.approx(1 / 3)
    assert summary["crossentropy"] == pytest.approx(-np.mean(np.log([0.8, 0.1, 0.9, 0.08, 0.34])), rel=1e-6)
    # Bins of a fifteenth: .8 right, .6, .9 with one of two right, .36 wrong
    assert summary["ece"] == pytest.approx((0.2 + 0.6 + 2 * 0.4 + 0.36) / 5, rel=1e-5)
    assert summary["always"] == {"category": "acq", "accuracy": 0.4}
    text = report.table(summary)
    assert "accuracy 40.00 % of 5 texts (always acq: 40.00 %), macro F1" in text and "no texts of" not in text
    assert "earn            2      0.500   0.500  0.500" in text
    assert json.loads(json.dumps(summary)) == summary


def test_a_category_without_texts_has_no_figures_and_is_named():
    """No text of ship, and nothing is taken for acq: 0 would read as a failure."""
    found = evaluate.Found(np.array([0, 1]), np.float32([[0.2, 0.5, 0.3], [0.1, 0.2, 0.7]]))
    summary = evaluate.summarize(found, LABELS)
    assert summary["categories"] == {"acq": {"texts": 1, "precision": None, "recall": 0, "f1": 0},
                                     "earn": {"texts": 1, "precision": 0, "recall": 0, "f1": 0},
                                     "ship": {"texts": 0, "precision": 0, "recall": None, "f1": None}}
    lines = report.table(summary).splitlines()
    assert lines[1].split() == ["acq", "1", "-", "0.000", "0.000"]
    assert lines[3].split() == ["ship", "0", "0.000", "-", "-"]
    assert "no texts of ship: macro F1 is the mean of the other categories" in lines
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_disagreements_are_sorted_and_have_a_second_choice(folder, tmp_path):
    rows = evaluate.disagreements(folder, "test", FOUND, LABELS)
    assert [(row.source, row.category, row.prediction, row.second_choice) for row in rows] == [
        ("test.txt:4", "ship", "acq", "ship"), ("test.txt:2", "earn", "ship", "acq"),
        ("test.txt:5", "acq", "earn", "acq")]
    assert [row.probability for row in rows] == pytest.approx([0.9, 0.6, 0.36])
    assert [row.second_probability for row in rows] == pytest.approx([0.08, 0.3, 0.34])
    assert [row.category_probability for row in rows] == pytest.approx([0.08, 0.1, 0.34])
    paths = report.write_disagreements(tmp_path, "test", rows)
    with open(paths[0], newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert table[1] == {"source": "test.txt:2", "category": "earn", "category_probability": "0.1000",
                        "prediction": "ship", "probability": "0.6000", "second_choice": "acq",
                        "second_probability": "0.3000", "text": 'second, "größer"'}
    text = paths[1].read_text("utf-8")
    assert "3 texts of test whose category and prediction differ" in text
    assert "90.0 % acq; category ship 8.0 %, its second choice  [test.txt:4]" in text
    assert "60.0 % ship; category earn 10.0 %, then acq 30.0 %  [test.txt:2]" in text
    assert "and 2 more" in report.disagreement_table(rows, "test", shown=1)
    right = evaluate.Found(FOUND.labels, np.eye(3, dtype=np.float32)[FOUND.labels])
    assert evaluate.disagreements(folder, "test", right, LABELS) == []
    assert "agrees with the category of every text" in report.disagreement_table([], "test")


@pytest.mark.parametrize("num_classes", [3, 40])
def test_pictures(tmp_path, num_classes):
    labels = [f"category {number}" for number in range(num_classes)]
    probs = np.float32(np.random.default_rng(0).dirichlet(np.ones(num_classes), 100))
    paths = report.draw(tmp_path, evaluate.Found(np.arange(100) % num_classes, probs), labels, prefix="test_")
    assert [path.name for path in paths] == ["test_confusion.png", "test_reliability.png"]
    for path in paths:
        image = cv2.imread(str(path))
        assert min(image.shape[:2]) > 400 and image.std() > 10


def test_sources_are_kept_in_the_records(folder):
    assert records.read_manifest(folder)["splits"]["test"]["categories"] == {"acq": 2, "earn": 2, "ship": 1}
