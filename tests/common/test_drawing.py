"""Drawing: what is painted, where, and that files are whole."""

import os

import cv2
import numpy as np
import pytest

from common import drawing
from common.errors import UserError


def test_box_has_the_colour_of_its_class_and_input_is_untouched():
    image = np.full([200, 300, 3], 90, np.uint8)
    drawn = drawing.draw_boxes(image, [[50, 60, 200, 150]], ["cat"], [0.97], [3])
    assert (image == 90).all()
    assert drawn.shape == image.shape and drawn.dtype == np.uint8
    np.testing.assert_array_equal(drawn[150, 120], drawing.class_color(3))
    np.testing.assert_array_equal(drawn[100, 200], drawing.class_color(3))
    # Inside the frame, below the tag, and outside of both nothing is painted.
    assert (drawn[70:140, 60:190] == 90).all() and (drawn[160:] == 90).all()


@pytest.mark.parametrize(
    "box", [[0, 0, 20, 20], [280, 0, 299, 20], [-50, -50, 400, 300], [290, 190, 299, 199]]
)
def test_tags_stay_inside_the_picture(box, monkeypatch):
    texts = []
    original = cv2.putText

    def put_text(image, text, origin, font, scale, *rest):
        (width, height), baseline = cv2.getTextSize(text, font, scale, 1)
        texts.append(text)
        assert origin[0] >= 0 and origin[0] + width <= image.shape[1]
        assert origin[1] - height >= 0 and origin[1] + baseline <= image.shape[0]
        return original(image, text, origin, font, scale, *rest)

    monkeypatch.setattr(drawing.cv2, "putText", put_text)
    image = np.zeros([200, 300, 3], np.uint8)
    drawing.draw_boxes(image, [box], ["bicycle"], [0.5])
    drawing.draw_boxes(image, [box], ["a label much longer than the picture is wide, with many words"], [0.5])
    assert texts[0] == "bicycle 50%" and len(texts) == 2


def test_degenerate_boxes():
    image = np.zeros([40, 50, 3], np.uint8)
    assert (drawing.draw_boxes(image, np.zeros([0, 4]), []) == 0).all()
    assert (drawing.draw_boxes(image, [[np.nan, 0, 5, 5]], ["x"]) == 0).all()
    drawing.draw_boxes(np.zeros([4, 3, 3], np.uint8), [[1, 1, 1, 1]], ["one pixel"], [1.0])


def test_lines_grow_with_the_picture():
    def line(size):
        image = np.zeros([size, size, 3], np.uint8)
        drawn = drawing.draw_boxes(image, [[size / 4, size / 4, size / 2, size / 2]], ["a"], class_ids=[0])
        return np.any(drawn[int(size * 0.4), int(size * 0.45):int(size * 0.55)] > 100, axis=-1).sum()

    assert line(200) >= 1 and line(2100) >= 5


def test_letters_that_the_font_lacks():
    assert drawing.ascii_text("Größe été 猫") == "Gro?e ete ?"


def test_colours_differ():
    colors = np.array([drawing.class_color(i) for i in range(20)], int)
    distances = np.abs(colors[:, None] - colors[None]).sum(-1) + 1000 * np.eye(20, dtype=int)
    assert distances.min() > 20


def test_grid():
    pictures = [np.full([10, 20, 3], i, np.uint8) for i in range(1, 6)] + [np.full([6, 8, 3], 9, np.uint8)]
    picture = drawing.grid(pictures, columns=4, gap=2)
    assert picture.shape == (22, 86, 3)
    assert (picture[0:10, 22:42] == 2).all() and (picture[:, 20:22] == 255).all()
    assert (picture[14:20, 28:36] == 9).all() and (picture[12:, 44:] == 255).all()
    assert drawing.grid(pictures[:1]).shape == (10, 20, 3)
    with pytest.raises(ValueError):
        drawing.grid([])


def test_png_round_trip_is_rgb(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, [7, 5, 3], np.uint8)
    drawing.write_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "new" / "a.png"))[..., ::-1], image)
    assert os.listdir(tmp_path / "new") == ["a.png"]


def test_png_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    drawing.write_png(path, np.zeros([2, 2, 3], np.uint8))
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"a.png cannot be written \(No space left"):
        drawing.write_png(path, np.ones([2, 2, 3], np.uint8))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.png"]


def test_curves(tmp_path):
    lines = {"cat": ([0, 0.5, 1], [1, 0.7, np.nan]), "one point": ([0.5], [0.5])}
    drawing.curves(tmp_path / "pr.png", lines, title="t", xlabel="recall", ylabel="precision", ylim=(0, 1.02))
    assert cv2.imread(str(tmp_path / "pr.png")).std() > 5
    drawing.curves(tmp_path / "empty.png", {})
    assert cv2.imread(str(tmp_path / "empty.png")) is not None


def test_skeletons_by_hand():
    """Three joints of one person; of the second person nothing reaches the threshold."""
    black = np.zeros((40, 60, 3), np.uint8)
    joints = np.array([[[10.5, 10.5], [50.5, 10.5], [10.5, 30.5]], [[30.5, 35.5]] * 3])
    scores = np.array([[0.9, 0.5, 0.1], [0.1, 0.1, 0.1]])
    colors = [(200, 0, 0), (0, 200, 0), (0, 0, 200)]
    out = drawing.draw_skeletons(black, joints, scores, [(0, 1), (0, 2)], threshold=0.5, colors=colors)
    assert not black.any() and out[10, 10].tolist() == [200, 0, 0] and out[10, 50].tolist() == [0, 200, 0]
    red, green, blue = out[10, 30]                                      # a smoothed line loses some of its colour
    assert 80 < red == green <= 100 and blue == 0                       # the limb has the mean of its ends
    assert not out[15:].any()                                           # joint 2 and its limb are not drawn
    shown = drawing.draw_skeletons(black, joints, np.ones([2, 3]), [(0, 1), (0, 2)])
    assert shown[20, 10].any() and shown[35, 30].tolist() == list(drawing.class_color(2))


def test_skeletons_of_nobody_and_far_outside():
    black = np.zeros((20, 20, 3), np.uint8)
    none = drawing.draw_skeletons(black, np.zeros([0, 3, 2]), np.zeros([0, 3]), [(0, 1)])
    assert not none.any() and none is not black
    joints = np.array([[[np.nan, 5], [1e12, 5], [5.5, 5.5]]])
    out = drawing.draw_skeletons(black, joints, np.ones([1, 3]), [(0, 1), (1, 2)])
    assert out[5, 5].any() and not out[15:].any()
