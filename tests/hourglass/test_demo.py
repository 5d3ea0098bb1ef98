"""Made-up figures: the same from the same seed, human in shape, and with joints where they are drawn."""

import numpy as np
import pytest

from hourglass import demo, poses

LABELS = poses.MPII.labels


@pytest.fixture(scope="module")
def figures():
    return [demo.draw(3, index) for index in range(60)]


def test_same_seed_same_figure(figures):
    image, figure = demo.draw(3, 7)
    np.testing.assert_array_equal(image, figures[7][0])
    np.testing.assert_array_equal(figure.joints_xy, figures[7][1].joints_xy)
    assert image.shape == (160, 160, 3) and image.dtype == np.uint8
    assert not np.array_equal(image, demo.draw(4, 7)[0])
    assert demo.draw(3, 7, 96)[0].shape == (96, 96, 3)


def test_bodies_have_human_proportions(figures):
    for _, figure in figures:
        joints, height = figure.joints_xy, figure.height
        assert 0.6 * 160 <= height <= 0.88 * 160

        def length(a, b):
            return np.linalg.norm(joints[LABELS.index(a)] - joints[LABELS.index(b)]) / height

        for side in ("left", "right"):
            assert 0.18 < length(f"{side}_hip", f"{side}_knee") < 0.24
            assert 0.19 < length(f"{side}_knee", f"{side}_ankle") < 0.24
            assert 0.12 < length(f"{side}_shoulder", f"{side}_elbow") < 0.17
            assert 0.11 < length(f"{side}_elbow", f"{side}_wrist") < 0.16
        assert length("head_top", "upper_neck") == pytest.approx(0.17, abs=1e-3)
        assert 0.13 * height < figure.head_size < 0.15 * height         # 0.6 * diagonal of 0.14 x 0.17


def test_left_and_right_as_in_a_photo(figures):
    """Who faces us has the left on our right; some show their back. A mirror would exchange both."""
    facing = [np.sign((figure.joints_xy[13] - figure.joints_xy[12])[0]) for _, figure in figures]
    hips = [np.sign((figure.joints_xy[3] - figure.joints_xy[2])[0]) for _, figure in figures]
    assert np.mean(np.equal(facing, hips)) > 0.9 and 0.05 < np.mean(np.equal(facing, -1)) < 0.4


def test_poses_and_visibility_vary(figures):
    visible = np.array([figure.visible for _, figure in figures])
    shares = [(visible == value).mean() for value in (0, 1, 2)]
    assert 0.002 < shares[0] < 0.12 and 0.01 < shares[1] < 0.2 and shares[2] > 0.75
    for image, figure in figures:
        outside = ~((figure.joints_xy >= 0) & (figure.joints_xy < 160)).all(axis=1)
        np.testing.assert_array_equal(figure.visible == 0, outside)
    wrists = np.array([figure.joints_xy[10] - figure.joints_xy[12] for _, figure in figures])
    assert (wrists[:, 1] < -15).mean() > 0.1 and (wrists[:, 1] > 15).mean() > 0.3   # arms up and arms down


def test_joints_lie_on_the_figure(figures, monkeypatch):
    """On a black background the middle of every limb whose ends are visible is painted."""
    monkeypatch.setattr(demo.detection_demo, "background", lambda rng, size: np.zeros([size, size, 3], np.float32))
    monkeypatch.setattr(demo, "_clutter", lambda rng, canvas, count: None)
    hits = []
    for index in range(12):
        image, figure = demo.draw(5, index)
        for a, b in poses.MPII.skeleton:
            if (figure.visible[[a, b]] == 2).all():
                x, y = ((figure.joints_xy[a] + figure.joints_xy[b]) / 2).astype(int)
                hits.append(image[y, x].sum() > 40)
    assert len(hits) > 100 and np.mean(hits) > 0.98     # a dark shirt may be as dark as the noise


def test_source_has_persons_as_annotated():
    source = demo.source(splits={"train": 3, "val": 2}, size=96)
    assert [list(items) for items in source.splits.values()] == [[0, 1, 2], [3, 4]]
    for index in range(5):
        person, repairs = poses.mend(source.load(index), 96, 96, source.body)
        _, figure = demo.draw(0, index, 96)
        assert not repairs and person.head_size == figure.head_size and person.image_id == index
        low, high = figure.joints_xy.min(0), figure.joints_xy.max(0)
        half = 200 * 1.25 * person.scale / 2
        assert (low > np.array(person.center) - half).all() and (high < np.array(person.center) + half).all()
