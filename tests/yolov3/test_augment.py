"""Augmentation of YOLOv3: painted rectangles, TensorFlow's resampling, colours by hand."""

import cv2
import numpy as np
import pytest
import tensorflow as tf

from common import boxes
from yolov3 import augment

GREY = augment.GREY


def rectangle(height=120, width=200, box=(60, 30, 130, 90), color=(250, 10, 10)):
    """A black picture with a filled rectangle, and its box in fractions."""
    image = np.zeros([height, width, 3], np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2] = color
    return image, np.array([[x1 / width, y1 / height, x2 / width, y2 / height]], np.float32)


def measure(image):
    """Where the red rectangle is, (left, top, right, bottom): grey and black have no more red than green."""
    red = image[..., 0].astype(float) - image[..., 1]
    edges = []
    for axis in (0, 1):
        profile = red.max(axis=axis)
        covered = np.flatnonzero(profile > profile.max() / 2)
        edges.append((covered[0], covered[-1] + 1))
    (x1, x2), (y1, y2) = edges
    return np.array([x1, y1, x2, y2])


def canvas(size):
    """Where `place` draws; what it leaves out would show."""
    return np.full([size, size, 3], 77, np.uint8)


def augmented(image, truth, labels, seed, size):
    out = canvas(size)
    return out, *augment.augment(image, truth, np.asarray(labels), np.random.default_rng(seed), out)


def scaled(image, height, width):
    """TensorFlow's bilinear resampling, not rounded."""
    return tf.image.resize(image, [height, width]).numpy()


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, [height, width, 3], np.uint8)


@pytest.mark.parametrize("shape", [(120, 200), (200, 120), (150, 150)])
def test_augmented_boxes_follow_the_pixels(shape):
    image, truth = rectangle(*shape, box=(40, 30, 100, 90))
    seen, sides = 0, set()
    for seed in range(25):
        out, boxes_xyxy, labels = augmented(image, truth, [7], seed, 160)
        if len(labels):
            seen += 1
            assert labels.tolist() == [7] and boxes_xyxy.dtype == np.float32
            np.testing.assert_allclose(measure(out), boxes_xyxy[0] * 160, atol=1)
            assert (boxes_xyxy >= 0).all() and (boxes_xyxy <= 1).all()
            sides.add(round(float(boxes_xyxy[0, 2] - boxes_xyxy[0, 0]), 3))
    assert seen >= 15 and len(sides) >= 10


def test_half_of_the_pictures_are_mirrored():
    """Red is left of blue in the picture."""
    image = np.zeros([60, 60, 3], np.uint8)
    image[:, :30, 0], image[:, 30:, 2] = 255, 255
    mirrored = 0
    for seed in range(60):
        out = augmented(image, np.zeros([0, 4]), [], seed, 64)[0].astype(int)
        red, blue = (np.argwhere(out[..., a] > out[..., b] + 60)[:, 1].mean() for a, b in ((0, 2), (2, 0)))
        mirrored += red > blue
    assert 15 <= mirrored <= 45    # 60 throws of a coin: outside once in 20,000 times


def test_picture_at_its_own_size_keeps_its_pixels():
    image, truth = noise(64, 64), np.array([[0.25, 0.0, 0.5, 1.0]], np.float32)
    out = canvas(64)
    np.testing.assert_array_equal(augment.place(image, truth, (0, 0, 64, 64), out), truth)
    np.testing.assert_array_equal(out, image)
    np.testing.assert_array_equal(augment.place(image, truth, (0, 0, 64, 64), out, flip=True), [[0.5, 0, 0.75, 1]])
    np.testing.assert_array_equal(out, image[:, ::-1])


def test_grey_around_a_picture_that_fits_in():
    """40 x 80 doubled to a quarter of the way in, mirrored: 10 pixels of the 30 left over are left of it."""
    image = noise(20, 40)
    out = canvas(110)
    moved = augment.place(image, [[0, 0, 1, 1], [0, 0, 0.5, 0.5]], (20, 30, 100, 70), out, flip=True)
    np.testing.assert_allclose(moved * 110, [[10, 30, 90, 70], [50, 30, 90, 50]], atol=1e-4)
    np.testing.assert_allclose(out[30:70, 10:90], scaled(image, 40, 80)[:, ::-1], atol=1)    # rounding
    outside = np.ones([110, 110], bool)
    outside[30:70, 10:90] = False
    assert (out[outside] == GREY).all()


def test_part_of_a_picture_that_is_larger_than_the_view():
    """Doubled, with 20 of its 100 pixels left of the view: what is seen is what TensorFlow's whole picture has."""
    image = noise(50, 50)
    out = canvas(64)
    moved = augment.place(image, [[0.2, 0.5, 0.4, 1.0]], (-20, -30, 80, 70), out)
    np.testing.assert_allclose(moved * 64, [[0, 20, 20, 70]], atol=1e-4)
    inner = slice(2, 62)    # at the border the samples have no neighbour
    np.testing.assert_allclose(out[inner, inner], scaled(image, 100, 100)[30:94, 20:84][inner, inner], atol=1)


@pytest.mark.parametrize("landing", [(-37, 5, 91, 50), (3, -61, 40, 200), (-10, -10, 75, 75), (63, 63, 64, 64)])
@pytest.mark.parametrize("shape", [(120, 200), (3, 2), (1, 1), (333, 41)])
def test_any_landing_fills_the_view_and_boxes_end_where_pixels_do(landing, shape):
    """A white picture: exactly the box of the whole picture, cut at the view, is white."""
    out = canvas(64)
    (x1, y1, x2, y2), = augment.place(np.full([*shape, 3], 255, np.uint8), [[0, 0, 1, 1]], landing, out) * 64
    expected = np.full([64, 64, 3], GREY)
    x1, y1, x2, y2 = np.rint(np.clip([x1, y1, x2, y2], 0, 64)).astype(int)
    expected[y1:y2, x1:x2] = 255
    np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal([x1, y1, x2, y2], np.clip(landing, 0, 64))


@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (64, 64), (200, 3), (1, 1)])
def test_letterbox_is_that_of_evaluation(shape):
    image, truth = noise(*shape), np.array([[0.1, 0.2, 0.7, 0.9]], np.float32)
    out = canvas(64)
    moved = augment.letterbox(image, truth, out)
    np.testing.assert_allclose(out, boxes.letterbox(image, 64) * 255, atol=1)                # 127.5 and 128
    np.testing.assert_allclose(moved, boxes.letterbox_boxes(truth, *shape, 64), atol=1e-6)


def test_long_side():
    """Left half black, right half white, 40,000 pixels wide: more than OpenCV's warps take."""
    image = np.repeat(np.repeat(np.array([[0, 255]], np.uint8), 20_000, 1), 4, 0)[..., None].repeat(3, -1)
    out = canvas(80)
    augment.place(image, np.zeros([0, 4]), (0, 38, 80, 42), out)
    assert (out[38:42, :40] == 0).all() and (out[38:42, 40:] == 255).all()


def test_landings_stay_within_their_bounds():
    """0.6 to 1.6 times what fits in, 1.3 at most between the sides, inside the view or covering it."""
    rng, scales, ratios = np.random.default_rng(0), [], []
    for _ in range(300):
        left, top, right, bottom = augment.draw_landing(300, 400, rng, 416)
        across, down = right - left, bottom - top
        for start, end in ((left, right), (top, bottom)):
            assert (start >= 0 and end <= 416) or (start <= 0 and end >= 416)
        scales.append(np.sqrt(across * down / (416 * 312)))
        ratios.append(across / down * 3 / 4)
    assert 0.595 < min(scales) < 0.65 and 1.5 < max(scales) < 1.605
    assert 1 / 1.31 < min(ratios) < 0.82 and 1.22 < max(ratios) < 1.31
    assert abs(np.mean(np.log(scales)) - np.log(0.6 * 1.6) / 2) < 0.06


def test_same_seed_same_result():
    image, truth = rectangle()
    runs = [augmented(image, truth, [1], seed, 96) for seed in (8, 8, 9)]
    for one, other in zip(*runs[:2]):
        np.testing.assert_array_equal(one, other)
    assert not np.array_equal(runs[0][0], runs[2][0])


def test_objects_that_leave_the_view_are_no_truths():
    image, _ = rectangle()
    truth = np.array([[0.0, 0.0, 0.02, 0.02], [0.4, 0.4, 0.6, 0.6], [0.98, 0.98, 1.0, 1.0]], np.float32)
    counts = set()
    for seed in range(30):
        _, boxes_xyxy, labels = augmented(image, truth, np.arange(3), seed, 96)
        assert len(boxes_xyxy) == len(labels) and (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all()
        counts.add(len(labels))
    assert len(counts) > 1
    out, boxes_xyxy, labels = augmented(image, truth[:0], [], 1, 96)
    assert boxes_xyxy.shape == (0, 4) and labels.shape == (0,)


def test_a_quarter_of_an_object_must_be_in_view(monkeypatch):
    """The left half of the picture is out of view: of the boxes a fifth, a third and nothing of the width remain."""
    monkeypatch.setattr(augment, "draw_landing", lambda *_: (-50, 0, 50, 100))
    monkeypatch.setattr(augment, "color_matrix", lambda *_: None)
    truth = np.array([[0.3, 0, 0.55, 1], [0.3, 0, 0.6, 1], [0.1, 0, 0.4, 1]], np.float32)
    for seed in range(4):    # mirrored or not
        _, boxes_xyxy, labels = augmented(noise(100, 100), truth, [0, 1, 2], seed, 100)
        assert labels.tolist() == [1] and boxes_xyxy[0, 2] - boxes_xyxy[0, 0] == pytest.approx(0.1, abs=1e-5)


# Colours.

BYTE = 1.5  # rounding to a byte, and a matrix of Y'IQ whose rows are given to four digits


def recolored(image, *draws):
    """The picture after the colours of the augmentation alone, in its own place."""
    out = canvas(len(image))
    augment.place(image, np.zeros([0, 4]), (0, 0, len(image), len(image)), out, colors=augment.color_matrix(*draws))
    return out.astype(float)


def test_neutral_draws_change_no_colour():
    image = noise(8, 8)
    np.testing.assert_allclose(recolored(image, 0.5, 0.5, 0.5), image, atol=BYTE)


def test_hue_and_saturation_keep_grey_grey():
    grey = np.tile(np.linspace(0, 255, 8).astype(np.uint8)[None, :, None], [8, 1, 3])
    for draws in ((0.5, 1.0, 0.0), (0.5, 0.0, 1.0)):
        np.testing.assert_allclose(recolored(grey, *draws), grey, atol=BYTE)
    np.testing.assert_allclose(recolored(grey, 1.0, 0.5, 0.5), np.minimum(1.5 * grey, 255), atol=BYTE)


@pytest.mark.parametrize("exposure, level", [(0.0, 85), (0.5, 128), (1.0, 192)])
def test_bars_are_exposed_as_the_picture_is(exposure, level):
    """As in Darknet, which distorts the whole network input: 128 / 1.5, 128, 128 * 1.5."""
    out = canvas(40)
    colors = augment.color_matrix(exposure, 0.9, 0.1)
    augment.place(np.full([20, 20, 3], GREY, np.uint8), np.zeros([0, 4]), (5, 5, 25, 25), out, colors=colors)
    np.testing.assert_allclose(out, level, atol=1)


def test_colours_turn_and_fade():
    """Red fades towards its luma with less saturation, and turns towards yellow or magenta with the hue."""
    red = np.tile(np.array([200, 60, 60], np.uint8), [8, 8, 1])
    luma = 0.299 * 200 + 0.701 * 60
    faded = recolored(red, 0.5, 0.0, 0.5)[4, 4]
    np.testing.assert_allclose(faded, luma + (red[4, 4] - luma) / 1.5, atol=BYTE)
    one, other = (recolored(red, 0.5, 0.5, hue)[4, 4] for hue in (0.0, 1.0))
    assert (one[1] - one[2]) * (other[1] - other[2]) < 0
    for color in (one, other):
        assert color @ [0.299, 0.587, 0.114] == pytest.approx(luma, abs=BYTE)


@pytest.mark.parametrize("draw, direction", [(0.0, 1), (1.0, -1)])
def test_hue_turns_as_far_as_it_says(draw, direction):
    """0.05 of a turn is 9 of OpenCV's 180, from orange towards yellow or, the way from I to Q, towards purple.

    A rotation in Y'IQ comes near to one in HSV, no more: hence 5 to 13.
    """
    color = np.tile(np.array([150, 110, 90], np.uint8), [8, 8, 1])
    before, after = (cv2.cvtColor(image.astype(np.uint8), cv2.COLOR_RGB2HSV)[4, 4, 0].astype(int)
                     for image in (color, recolored(color, 0.5, 0.5, draw)))
    turned = (after - before + 90) % 180 - 90
    assert 5 <= direction * turned <= 13


def test_a_crowd_stays_as_long_as_any_of_it_is_in_view(monkeypatch):
    """The picture lands 90 pixels to the left of the view of 100: a tenth of the boxes is in view."""
    monkeypatch.setattr(augment, "draw_landing", lambda *_: (-90, 0, 10, 100))
    image, truth = np.zeros([100, 100, 3], np.uint8), np.float32([[0, 0, 1, 1], [0, 0, 1, 1]])
    rng = np.random.default_rng(0)
    _, labels = augment.augment(image, truth, np.int32([-1, 0]), rng, canvas(100))
    assert labels.tolist() == [-1]
