"""What --check says of records whose places, sizes or persons are not what their owner thinks."""

import numpy as np
import pytest
import tensorflow as tf

from common import records
from hourglass import doctor, poses

JOINTS = np.stack([np.arange(16) * 8.0 + 40, np.arange(16) * 10.0 + 30], 1)      # 120 x 150 pixels, middle (100, 105)


def examine(root, *persons, body=poses.MPII, **manifest):
    """`Findings` of records of `poses.Person`s as they are, in pictures of 250 x 250 that differ."""
    with records.RecordWriter(root / "set", kind="pose", labels=body.labels) as writer:
        writer.manifest.update({key: value for key, value in body._asdict().items() if key != "labels"}, **manifest)
        pictures = [np.full([250, 250, 3], 9 * person.image_id, np.uint8) for person in persons]
        writer.write_split("train", [poses.encode_example(person, tf.io.encode_png(image).numpy(), 250, 250)
                                     for person, image in zip(persons, pictures)])
        writer.publish()
    return doctor.examine(root / "set")


def person(**changes):
    return poses.Person(**{"image": b"", "filename": "a.png", "joints_xy": JOINTS, "visible": np.full(16, 2),
                           "center": (100, 105), "scale": 0.75, "head_size": 30.0, "area": 900.0} | changes)


def notes(root, *persons, **manifest):
    return examine(root, *persons, **manifest).notes


def test_a_sound_set_has_no_notes(tmp_path):
    assert notes(tmp_path, person(), person(image_id=1, joints_xy=JOINTS + 1, center=(101, 106))) == []


@pytest.mark.parametrize("below, words", [
    (-11.8, "train: centres lie 12 times the scale above the middles of the joints"),
    (15, "train: centres lie 15 times the scale below the middles"), (3.2, None), (-5, None)])
def test_centres_that_lie_elsewhere(tmp_path, below, words):
    """MPII's centres, not moved, lie 12 times the scale too high; those of Leeds, moved as MPII's are, 15 too low."""
    found = notes(tmp_path, *(person(image_id=i, center=(100, 105 + below * 0.75)) for i in range(3)))
    assert [note.startswith(words) for note in found] == [True] * bool(words)


@pytest.mark.parametrize("scale, share", [(150.0, "0.00"), (0.75 / 2, "2.00"), (0.75, None), (1.0, None)])
def test_scales_that_are_no_heights(tmp_path, scale, share):
    """Joints of 150 pixels; a scale of 150 is the height itself, and not one 200th of it."""
    found = [note for note in notes(tmp_path, person(scale=scale)) if "what their scales say" in note]
    assert [f"as tall as {share} of" in note for note in found] == [True] * (share is not None)


def test_corners_doubles_and_sizes(tmp_path):
    corner = JOINTS.copy()
    corner[[3, 7]] = 0.5
    found = examine(tmp_path, person(), person(), person(image_id=1), person(image_id=2, joints_xy=corner),
                    person(image_id=3, head_size=-1.0), person(image_id=4, area=np.inf), head_boxes={"train": 0})
    assert "train: 1 persons are there twice, the same joints in the same picture." in found.notes
    assert any(note.startswith("train: 2 annotated joints are at the corner (0, 0)") for note in found.notes)
    assert any("PCKh is not MPII's" in note for note in found.notes)
    assert {what: len(names) for what, names in found.problems.items()} == {
        "head size or area that is negative, NaN or infinite": 2}
    body = poses.MPII._replace(metric="oks", sigmas=[0.1] * 16)
    assert notes(tmp_path / "oks", person(area=0.0), person(image_id=1), body=body) == [
        "train: 1 of 2 persons have no area; OKS leaves them out."]


def test_what_a_set_takes_for_granted_is_said_of_built_sets(tmp_path):
    found = examine(tmp_path, person(), first_pixel=1, center_shift=15.0, head_boxes={"train": 1}, notes=["a note"])
    text = doctor.describe(found)
    for words in ("pixels of the source count from 1", "moved down by 15 times the scale", "box of the head: train 1",
                  "note: a note"):
        assert words in text and words not in doctor.describe(found, built=True)
