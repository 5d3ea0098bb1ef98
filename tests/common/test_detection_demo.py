"""Made-up pictures: the same for the same numbers, boxes tight on what is drawn, every class there."""

import numpy as np
import pytest

from common import detection, detection_demo, records


@pytest.fixture(scope="module")
def drawn():
    return [detection_demo.draw(0, i, 160) for i in range(150)]


def test_pictures_follow_from_seed_and_index(drawn):
    again = detection_demo.draw(0, 3, 160)
    for ours, theirs in zip(again, drawn[3]):
        np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(detection_demo.draw(1, 3, 160)[0], again[0])
    assert not np.array_equal(detection_demo.draw(0, 4, 160)[0], again[0])


def test_pictures_hold_one_to_four_objects_of_all_classes_and_sizes(drawn):
    for image, boxes_xyxy, labels in drawn:
        assert image.shape == (160, 160, 3) and image.dtype == np.uint8
        assert boxes_xyxy.shape == (len(labels), 4) and 1 <= len(labels) <= 4
        assert (boxes_xyxy >= 0).all() and (boxes_xyxy <= 160).all()
    counts = np.bincount(np.concatenate([labels for *_, labels in drawn]), minlength=6)
    assert counts.min() > 0.5 * counts.mean()
    boxes_xyxy = np.concatenate([boxes for _, boxes, _ in drawn])
    sides = (boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]).max(axis=1) / 160
    assert 0.14 < sides.min() < 0.2 and 0.5 < sides.max() < 0.62


@pytest.mark.parametrize("size", [64, 160])
@pytest.mark.parametrize("label", range(6))
def test_boxes_are_tight_on_the_drawn_pixels(monkeypatch, size, label):
    """Each object alone on black: the box of the pixels at least half as bright as the object."""
    black = np.zeros((size, size, 3), np.float32)
    monkeypatch.setattr(detection_demo, "background", lambda rng, size: black)
    found = 0
    for index in range(60):
        image, boxes_xyxy, labels = detection_demo.draw(7, index, size)
        if len(labels) > 1 or labels[0] != label:
            continue
        bright = image.max(axis=2).astype(int)
        drawn = bright > bright.max() * 0.35  # edges are half covered, colours shaded, and noise is added
        columns, rows = np.flatnonzero(drawn.any(axis=0)), np.flatnonzero(drawn.any(axis=1))
        seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(boxes_xyxy[0], seen, atol=1)
        found += 1
    assert found


def test_shapes_do_not_hide_each_other(drawn):
    for _, boxes_xyxy, _ in drawn:
        for i, a in enumerate(boxes_xyxy):
            for b in boxes_xyxy[:i]:
                sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
                smaller = min(np.prod(box[2:] - box[:2]) for box in (a, b))
                assert np.prod(np.maximum(sides, 0)) <= 0.1 * smaller + 1e-3


def test_records_of_the_demo(tmp_path):
    options = dict(size=64, splits={"train": 12, "val": 4}, progress=False)
    report = detection_demo.build(tmp_path / "a", num_workers=1, **options)
    other = detection_demo.build(tmp_path / "b", num_workers=3, **options)
    assert report.manifest == other.manifest  # sha256 of every file: any number of workers gives the same
    assert report.manifest["labels"] == detection_demo.LABELS and not report.skipped and not report.repaired
    items = list(records.dataset(report.folder, "val").as_numpy_iterator())
    names = set()
    for i, item in enumerate(items):
        example = detection.parse(item["record"])
        image, boxes_xyxy, labels = detection_demo.draw(0, 12 + i, 64)
        np.testing.assert_allclose(example["boxes_xyxy"] * 64, boxes_xyxy, atol=1e-4)
        np.testing.assert_array_equal(example["labels"], labels)
        stored = detection.decode_image(example["image_bytes"]).numpy().astype(int)
        assert np.abs(stored - image).mean() < 6  # JPEG
        names.add(example["filename"].numpy())
    assert len(names) == 4 == report.manifest["splits"]["val"]["examples"]
