"""Boxes of persons out of files: what would be taken for something else is refused, and what is missing is said."""

import json

import numpy as np
import pytest

from common import media
from common.errors import UserError
from hourglass import people


def frame(source, index=0):
    return media.Frame(source, index, np.zeros([90, 90, 3], np.uint8), None)


def write(path, *entries):
    path.write_text("\n".join(json.dumps(entry) for entry in entries))
    return path


def line(file, *boxes, **more):
    return {"file": file, "detections": [{"label": "person", "score": 0.9, "box_xyxy": box} for box in boxes], **more}


@pytest.mark.parametrize("entries, words", [
    ([line("a.jpg", [0.1, 0.2, 0.5, 0.9]), line("b.jpg", [0, 0, 1, 1])], "boxes in pixels, and all of its numbers lie"),
    ([line("a.jpg", [30, 40, 20, 60])], "line 1 is not .*right edge behind the left one"),
    ([line("a.jpg", [30, 40, 50, 9])], "line 1 is not .*bottom below its top"),
    ([line("a.jpg", [1, 2, 30, 40]), line("a.jpg", [1, 2, 30, 40])], "line 2 is not .*frame 0 of a.jpg stands above"),
    ([{"file": "a.jpg", "detections": [{"label": "person", "score": 97, "box_xyxy": [1, 2, 3, 4]}]}],
     "score 97 must lie between 0 and 1"),
])
def test_boxes_that_would_be_taken_for_others(tmp_path, entries, words):
    with pytest.raises(UserError, match=words):
        people.BoxesFile(write(tmp_path / "boxes.jsonl", *entries))


def test_csv_with_more_values_than_columns(tmp_path):
    (tmp_path / "boxes.csv").write_text("file,left,top,right,bottom\na.jpg,1,2,30,40,50\n")
    with pytest.raises(UserError, match="line 2 is not .*more values than columns"):
        people.BoxesFile(tmp_path / "boxes.csv")


def test_classes_in_any_case_and_ids_that_are_floats(tmp_path):
    person = {"label": "Person", "score": 0.9, "box_xyxy": [1, 2, 30, 40]}
    found = people.BoxesFile(write(tmp_path / "a.jsonl", {"file": "a.jpg", "detections": [
        person, {**person, "label": "car"}, {**person, "label": "dog"}]}))
    assert len(found(frame("a.jpg"))) == 1 and "1 boxes of person above 0, 2 of other classes (car, dog)" in (
        found.describe())
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{"image_id": 12.0, "category_id": 1.0, "bbox": [1, 2, 30, 40], "score": 1.0}]))
    assert people.BoxesFile(path)(frame("000012.jpg")) == [{"box_xyxy": [1, 2, 31, 42], "score": 1.0}]


def test_what_the_file_says_nothing_of(tmp_path):
    """A detector that looked at every other frame says nothing of those between; one that found nobody does."""
    found = people.BoxesFile(write(tmp_path / "boxes.jsonl", line("a.mp4", [1, 2, 30, 40]), line("a.mp4", frame=2)))
    persons = [len(found(frame(source, index))) for source, index in (
        ("a.mp4", 0), ("a.mp4", 1), ("a.mp4", 2), ("a.mp4", 3), ("b.jpg", 0))]
    assert persons == [1, 0, 0, 0, 0] and found.unknown == {"a.mp4": 2, "b.jpg": 1}
    (tmp_path / "boxes.csv").write_text("file,frame,left,top,right,bottom\na.mp4,0,1,2,30,40\n")
    found = people.BoxesFile(tmp_path / "boxes.csv")
    assert [len(found(frame("a.mp4", 1))), len(found(frame("b.jpg")))] == [0, 0] and found.unknown == {"b.jpg": 1}
