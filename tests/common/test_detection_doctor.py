"""The doctor finds every fault that was put into a record set, counts right, finds none in a sound set."""

import json

import numpy as np
import pytest
import tensorflow as tf

from common import detection, detection_doctor, records
from common.errors import UserError

LABELS = ["cat", "dog", "owl"]
SOUND = [0.1, 0.2, 0.6, 0.7]


def png(value, shape=(100, 200)):
    return tf.io.encode_png(tf.fill([*shape, 3], tf.constant(value, tf.uint8))).numpy()


def record(name, boxes_xyxy, labels, *, image=None, size=(100, 200), **more):
    image = png(sum(name.encode()) % 256) if image is None else image
    return detection.encode_example(image, *size, name, boxes_xyxy, labels, **more)


def write(folder, splits, labels=LABELS, kind="detection", objects=None):
    with records.RecordWriter(folder, kind=kind, labels=labels) as writer:
        for split, serialized in splits.items():
            writer.write_split(split, serialized, **(objects or {}))
        writer.publish()
    return folder


@pytest.fixture(scope="module")
def sick(tmp_path_factory):
    """One fault of each kind, among sound records."""
    cut = tf.io.encode_jpeg(np.random.default_rng(0).integers(0, 256, (100, 200, 3), np.uint8)).numpy()[:2000]
    train = [
        record("sound", [SOUND, [0, 0, 1, 1]], [0, 1], difficult=[1, 0], is_crowd=[0, 1], area=[500, 20000]),
        record("flat", [[0.3, 0.3, 0.3, 0.6], SOUND], [0, 0]),
        record("turned", [[0.5, 0.5, 0.4, 0.6]], [0]),
        record("outside", [[-0.1, 0.2, 0.5, 0.5]], [1]),
        record("rounded", [[0.2, 0.2, 1 + 1e-7, 1]], [1]),
        record("nan", [[np.nan, 0.2, 0.5, 0.5]], [1]),
        record("unknown", [SOUND, [0.3, 0.3, 0.4, 0.5]], [3, -1]),
        record("cut", [SOUND], [0], image=cut),
        record("text", [], [], image=b"no picture"),
        record("other size", [SOUND], [0], size=(200, 100)),
        record("doubled", [SOUND, SOUND, SOUND], [0, 0, 1]),
        record("empty", [], []),
    ]
    val = [record("sound", [SOUND], [0]), record("new", [[0, 0, 0.15, 0.3]], [1])]
    return write(tmp_path_factory.mktemp("records") / "sick", {"train": train, "val": val})


def test_every_problem_is_found(sick):
    findings = detection_doctor.examine(sick)
    assert findings.problems == {
        "box without area": ["train flat", "train turned"],
        "box outside the picture": ["train outside"],
        "box with NaN or infinity": ["train nan"],
        "class id outside the 3 labels": ["train unknown", "train unknown"],
        "picture that cannot be decoded": ["train cut", "train text"],
        "picture of another size than its record says": ["train other size"],
    }
    with pytest.raises(UserError, match="it has 9, listed above"):
        detection_doctor.require_sound(findings)
    without_decoding = detection_doctor.examine(sick, decode=False).problems
    assert not any(what.startswith("picture") for what in without_decoding)


def test_notes(sick):
    notes = "\n".join(detection_doctor.examine(sick).notes)
    # "text" and "empty"
    assert "train: 2 pictures without any object; they teach what is background." in notes
    without = detection_doctor.examine(sick, without_objects="they have no loss").notes
    assert "train: 2 pictures without any object; they have no loss." in without
    assert "train: 1 objects have class and box of another" in notes
    assert "val: 1 pictures are in train too" in notes                     # "sound"
    assert "train: no object of 1 classes: owl" in notes


def test_description(sick):
    text = detection_doctor.describe(detection_doctor.examine(sick))
    assert "12 pictures, 15 objects (1.2 per picture, at most 3), 1 difficult, 1 crowds" in text
    assert "problem: class id outside the 3 labels: 2 times: train unknown" in text
    dog, = (line for line in text.splitlines() if line.startswith("  dog"))
    # Five in train, one in val; 15 of the 17 objects have a class of the manifest's.
    assert dog.split() == ["dog", "train", "5", "val", "1", "40.0%"]
    # "new" has 30 x 30 pixels, "sound" 100 x 50.
    assert "val: 50.0% small (under 32 x 32 pixels), 50.0% medium, 0.0% large" in text


def test_size_bounds_are_those_of_coco():
    small, medium, large = detection_doctor.size_masks(np.array([1023, 1024, 9215, 9216]))
    assert small.tolist() == [True, False, False, False]
    assert medium.tolist() == [False, True, True, False] and large.tolist() == [False, False, False, True]


def test_contents_are_in_the_order_of_the_records(sick):
    contents = detection_doctor.read(sick, "train")
    assert contents.filenames[:3].tolist() == ["sound", "flat", "turned"]
    assert contents.picture[:5].tolist() == [0, 0, 1, 1, 2]
    np.testing.assert_allclose(contents.boxes_xyxy[0], SOUND)
    assert contents.area[:2].tolist() == [500, 20000]
    assert contents.sizes[0].tolist() == [100, 200] == contents.found[0].tolist()


def test_sound_set_has_no_problems(tmp_path):
    train = [record(name, [SOUND], [i]) for i, name in enumerate("abc")]
    folder = write(tmp_path / "sound", {"train": train, "val": []})
    findings = detection_doctor.examine(folder)
    assert findings.problems == {} and findings.notes == []
    detection_doctor.require_sound(findings)
    assert "problem:" not in detection_doctor.describe(findings)


def test_a_set_without_any_object(tmp_path):
    folder = write(tmp_path / "none", {"train": [record("a", [], [])]})
    text = detection_doctor.describe(detection_doctor.examine(folder))
    assert "1 pictures, 0 objects" in text and "no object of 3 classes" in text


def test_damaged_file_is_named(tmp_path):
    folder = write(tmp_path / "set", {"train": [record("a", [SOUND], [0])]})
    shard, = folder.glob("*.tfrecord")
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(UserError, match=shard.name):
        detection_doctor.examine(folder)


def test_manifest_with_other_counts(tmp_path):
    folder = write(tmp_path / "set", {"train": [record("a", [SOUND], [0])]}, objects={"objects": 4})
    assert "number of objects, 1, unlike the manifest's, 4" in detection_doctor.examine(folder).problems
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["examples"] = 2
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="counts 2 examples"):
        detection_doctor.examine(folder)


def test_other_records_are_refused(tmp_path):
    folder = write(tmp_path / "poses", {"train": [record("a", [SOUND], [0])]}, kind="pose")
    with pytest.raises(UserError, match="must be a record set of kind 'detection'"):
        detection_doctor.examine(folder)
    folder = write(tmp_path / "garbage", {"train": [record("a", [SOUND], [0]), b"garbage"]})
    with pytest.raises(UserError, match="Record 1 of train .* must be a detection record"):
        detection_doctor.examine(folder)
