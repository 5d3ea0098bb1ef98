"""Overlays come to the keypoints that their anchors name, are blended as their alpha says, and leave the rest."""

import json

import cv2
import numpy as np
import pytest

from common.errors import UserError
from cyclegan import faces, overlays
from tests.cyclegan import drawn_face

EYES = {"right_eye": (2.0, 4.0), "left_eye": (6.0, 4.0)}


def face(**points):
    """A face with these keypoints (x, y); the others are far away."""
    found = [points.get(name, (-999.0, -999.0)) for name in faces.KEYPOINTS]
    return faces.Face(np.array([0.0, 0.0, 10.0, 10.0]), np.array(found, np.float64), 0.9)


def overlay(image, anchors=EYES, transform="similarity"):
    return overlays.Overlay("test", np.asarray(image, np.uint8), anchors, transform)


def moved(matrix, points):
    return np.asarray(points) @ matrix[:, :2].T + matrix[:, 2]


def test_two_anchors_turn_and_scale():
    # A quarter turn and twice as large: (2, 4), (6, 4) -> (20, 10), (20, 18).
    found = overlays.place(overlay(np.zeros([8, 8, 4])), face(right_eye=(20, 10), left_eye=(20, 18)))
    np.testing.assert_allclose(found, [[0, -2, 28], [2, 0, 6]], atol=1e-9)


def test_three_anchors_stretch_and_four_come_as_near_as_they_can():
    anchors = {**EYES, "mouth": (4.0, 8.0)}
    stretched = face(right_eye=(10, 10), left_eye=(14, 10), mouth=(13, 20))
    found = overlays.place(overlay(np.zeros([9, 9, 4]), anchors, "affine"), stretched)
    np.testing.assert_allclose(moved(found, list(anchors.values())), [(10, 10), (14, 10), (13, 20)], atol=1e-9)
    # A similarity keeps the shape.
    alike = overlays.place(overlay(np.zeros([9, 9, 4]), anchors), stretched)
    np.testing.assert_allclose([alike[0, 0], alike[0, 1]], [alike[1, 1], -alike[1, 0]])
    random = np.random.default_rng(0)
    source, target = random.normal(size=(2, 6, 2))
    for fit, basis in ((overlays.similarity, 4), (overlays.affine, 6)):
        best = fit(source, target)
        error = np.square(moved(best, source) - target).sum()
        for _ in range(50):  # no other of its kind is nearer
            other = best + (random.normal(size=(2, 3)) if basis == 6 else _similar(random)) * 1e-3
            assert np.square(moved(other, source) - target).sum() >= error


def _similar(random):
    a, b, x, y = random.normal(size=4)
    return np.array([[a, -b, x], [b, a, y]])


@pytest.mark.parametrize("mouth", [(12.2, 10.1), (12, -5)])
def test_faces_from_the_side_are_not_stretched(mouth):
    anchors = {**EYES, "mouth": (4.0, 8.0)}
    squeezed = face(right_eye=(10, 10), left_eye=(14, 10), mouth=mouth)
    found = overlays.place(overlay(np.zeros([9, 9, 4]), anchors, "affine"), squeezed)
    np.testing.assert_allclose([found[0, 0], found[0, 1]], [found[1, 1], -found[1, 0]])


def test_blended_by_alpha_and_nothing_else_changes():
    image = np.zeros([4, 5, 4])
    image[...] = 200, 100, 0, 255
    image[0, 0, 3], image[1, 1, 3] = 0, 51  # a fifth
    image[0, 0, :3] = 255  # what cannot be seen
    picture = np.full([20, 30, 3], 50, np.uint8)
    before = picture.copy()
    found = overlays.lay(picture, overlay(image), np.array([[1.0, 0, 7], [0, 1, 9]]))
    expected = picture.copy()
    expected[9:13, 7:12] = 200, 100, 0
    expected[9, 7] = 50
    expected[10, 8] = 0.2 * np.array([200, 100, 0]) + 0.8 * 50
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(picture, before)


def test_shrunk_overlays_are_averaged():
    image = np.zeros([64, 64, 4])
    image[..., :3], image[..., 3] = 255, 255 * (np.indices((64, 64)).sum(0) % 2)
    found = overlays.lay(np.zeros([8, 8, 3], np.uint8), overlay(image), np.array([[1 / 8, 0, 0], [0, 1 / 8, 0]]))
    assert np.abs(found[1:-1, 1:-1].astype(int) - 127.5).max() <= 1  # the border is soft


@pytest.mark.parametrize("x, y", [(-9, 3), (30, 3), (3, 20), (3, -9), (1e7, 1e7)])
def test_beside_the_picture(x, y):
    picture = np.full([20, 30, 3], 50, np.uint8)
    image = np.full([8, 8, 4], 255)
    for matrix in ([[1.0, 0, x], [0, 1, y]], [[0.0, 0, 5], [0, 0, 5]]):
        np.testing.assert_array_equal(overlays.lay(picture, overlay(image), np.array(matrix)), picture)
    partly = overlays.lay(picture, overlay(image), np.array([[1.0, 0, -4], [0, 1, 16]]))
    assert (partly != 50).any(axis=2).sum() == 4 * 4


@pytest.mark.parametrize("name", overlays.SAMPLES)
def test_samples_cover_what_they_should(name):
    found = overlays.draw(name)
    assert found.image.shape == (512, 512, 4) and found.image.dtype == np.uint8
    alpha = found.image[..., 3].astype(float) / 255

    def at(x, y):
        """Mean alpha about a place in eye distances from the middle between the eyes."""
        column, row = round(256 + 128 * x), round(240 + 128 * y)
        return alpha[row - 3:row + 4, column - 3:column + 4].mean()

    covered = {"hair": [(0, -1.4), (-1.3, 0), (1.3, 0.3)], "beard": [(-0.6, 1.4), (0.6, 1.4), (0, 1.6), (0, 0.86)],
               "eyeliner": [(-0.5, -0.11), (0.5, -0.11)]}[name]
    clear = {"hair": [(0, 0.3), (-0.5, 0), (0.5, 0), (0, 1.05)], "eyeliner": [(0, 0), (-0.5, 0), (0, 1.05)],
             "beard": [(0, 1.06), (-0.5, 0), (0.5, 0), (0, 0.5)]}[name]
    assert min(at(*place) for place in covered) > 0.5 and max(at(*place) for place in clear) < 0.02
    edge = np.concatenate([alpha[0], alpha[:, 0], alpha[:, -1], alpha[-1]])
    assert edge.max() == 0  # nothing is cut
    np.testing.assert_array_equal(found.image, overlays.draw(name).image)


def test_sample_on_the_face(real_face):
    beard = overlays.draw("beard")
    laid = overlays.lay(drawn_face.face(), beard, overlays.place(beard, real_face))
    chin, eye = ((np.array(place) * drawn_face.EYE_DISTANCE + drawn_face.MIDDLE).astype(int)
                 for place in ((0, 1.6), (-0.5, 0)))
    changed = np.abs(laid.astype(int) - drawn_face.face()).max(axis=2)
    assert changed[chin[1], chin[0]] > 60 and changed[:eye[1] + 20].max() == 0


@pytest.fixture
def real_face():
    return face(**{name: drawn_face.keypoint(name) for name in drawn_face.KEYPOINTS})


def test_own_overlays_from_files(tmp_path):
    sample = overlays.draw("beard")
    path = overlays.write(sample, tmp_path / "own")
    found = overlays.load(str(path))
    assert (found.name, found.anchors, found.transform) == ("beard", sample.anchors, "affine")
    seen = sample.image[..., 3] > 0
    np.testing.assert_array_equal(found.image[seen], sample.image[seen])
    path.with_suffix(".json").write_text(json.dumps({"anchors": EYES}))
    assert overlays.load(str(path)).transform == "similarity"


@pytest.mark.parametrize("text", [
    None, "", "{}", "[1]", '{"anchors": {"right_eye": [1, 2]}}', '{"anchors": {"eye": [1, 2], "nose": [3, 4]}}',
    '{"anchors": {"nose": [1, 2], "mouth": [1, 2]}}', '{"anchors": {"nose": [1], "mouth": [1, 2]}}',
    '{"anchors": {"nose": [1, 1], "mouth": [2, 2], "left_eye": [3, 3]}}',
    '{"anchors": {"nose": [1, NaN], "mouth": [1, 2]}}',
    '{"anchors": {"nose": [1, 1], "mouth": [2, 2]}, "transform": "affine"}',
    '{"anchors": {"nose": [1, 1], "mouth": [2, 2]}, "transform": "bend"}'])
def test_anchors_that_say_nothing(tmp_path, text):
    path = overlays.write(overlay(np.zeros([4, 4, 4])), tmp_path)
    path.with_suffix(".json").unlink()
    if text is not None:
        path.with_suffix(".json").write_text(text)
    with pytest.raises(UserError, match="test.json must"):
        overlays.load(str(path))


def test_pictures_that_are_no_overlays(tmp_path):
    with pytest.raises(UserError, match="hair, eyeliner, beard or a PNG file, and there is no wig"):
        overlays.load("wig")
    path = tmp_path / "flat.png"
    cv2.imwrite(str(path), np.zeros([4, 4, 3], np.uint8))
    for _ in range(2):
        with pytest.raises(UserError, match="flat.png must be a PNG file with transparency"):
            overlays.load(str(path))
        path.write_bytes(b"")
