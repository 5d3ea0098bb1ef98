"""Augmentation of SSD: each change by hand or against the plain way to do it, and boxes that follow the pixels."""

import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

from common import decoding
from common.errors import UserError
from ssd import augment
from ssd.augment import Colors


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def color(*rgb):
    return np.tile(np.uint8(rgb), (2, 3, 1))


def rngs(count):
    return [np.random.default_rng([7, i]) for i in range(count)]


def test_workers_need_no_tensorflow():
    code = "import sys; import ssd.augment; assert 'tensorflow' not in sys.modules"
    root = os.path.dirname(os.path.dirname(augment.__file__))
    environment = {**os.environ, "ZOO_LAZY_TENSORFLOW": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, check=True)


def test_brightness_and_contrast_by_hand():
    np.testing.assert_array_equal(augment.change_brightness(color(10, 100, 250), 30), color(40, 130, 255))
    np.testing.assert_array_equal(augment.change_brightness(color(10, 100, 250), -30), color(0, 70, 220))
    np.testing.assert_array_equal(augment.change_contrast(color(10, 100, 250), 1.5), color(15, 150, 255))
    np.testing.assert_array_equal(augment.change_contrast(color(10, 100, 250), 0.5), color(5, 50, 125))


def test_saturation_by_hand():
    """Of (200, 100, 100) the value is 200 and the saturation 1/2 (128 of 255): half of it leaves 200 - 50."""
    faded = augment.change_saturation_and_hue(color(200, 100, 100), 0.5, 0)
    np.testing.assert_allclose(faded, color(200, 150, 150), atol=1)
    vivid = augment.change_saturation_and_hue(color(200, 100, 100), 1.5, 0)
    np.testing.assert_allclose(vivid, color(200, 50, 50), atol=1)
    np.testing.assert_array_equal(augment.change_saturation_and_hue(color(9, 9, 9), 1.5, 18), color(9, 9, 9))
    np.testing.assert_array_equal(augment.change_saturation_and_hue(color(200, 10, 10), 9.0, 0), color(200, 0, 0))


def test_hue_turns_and_comes_round():
    """60 of 180 is a third of a turn: red, green, blue. Below 0 and above 180 it goes on at the other end."""
    for turn, expected in ((60, (0, 255, 0)), (120, (0, 0, 255)), (-60, (0, 0, 255)), (180, (255, 0, 0))):
        turned = augment.change_saturation_and_hue(color(255, 0, 0), 1, turn)
        np.testing.assert_array_equal(turned, color(*expected))
    # Hue 170 is 20 degrees before red: (255, 0, 85). 20 more is 20 degrees after it: (255, 85, 0).
    before, after = color(255, 0, 85), color(255, 85, 0)
    np.testing.assert_allclose(augment.change_saturation_and_hue(before, 1, 20), after, atol=1)
    np.testing.assert_allclose(augment.change_saturation_and_hue(after, 1, -20), before, atol=1)


@pytest.mark.parametrize("factor,turn", [(1.4, 0), (1, 15), (0.6, -9)])
def test_hue_and_saturation_are_of_channels_not_of_rows(factor, turn):
    """What becomes of a pixel depends on no other: turned around first or afterwards, the same."""
    image = noise(20, 30)
    changed = augment.change_saturation_and_hue(image, factor, turn)
    assert np.abs(changed.astype(int) - image).max() > 20
    np.testing.assert_array_equal(augment.change_saturation_and_hue(image[::-1], factor, turn), changed[::-1])
    np.testing.assert_array_equal(
        augment.change_saturation_and_hue(np.ascontiguousarray(image.swapaxes(0, 1)), factor, turn),
        changed.swapaxes(0, 1))
    before, after = (cv2.cvtColor(each, cv2.COLOR_RGB2HSV)[..., 2] for each in (image, changed))
    np.testing.assert_allclose(after.astype(int), before, atol=1)                         # the value stays


def test_distort_goes_in_the_order_of_caffe():
    image, colors = noise(20, 30), Colors(20, 1.4, 1.3, 12, True)
    np.testing.assert_array_equal(augment.distort(image, Colors()), image)
    bright = augment.change_brightness(image, 20)
    first = augment.change_saturation_and_hue(augment.change_contrast(bright, 1.4), 1.3, 12)
    last = augment.change_contrast(augment.change_saturation_and_hue(bright, 1.3, 12), 1.4)
    np.testing.assert_array_equal(augment.distort(image, colors), first)
    np.testing.assert_array_equal(augment.distort(image, colors._replace(contrast_first=False)), last)
    assert np.abs(first.astype(int) - last).max() > 5


def test_colors_that_are_drawn():
    drawn = [augment.draw_colors(rng) for rng in rngs(2000)]
    ranges = {"brightness": (-32, 32), "contrast": (0.5, 1.5), "saturation": (0.5, 1.5), "hue": (-18, 18)}
    for name, (low, high) in ranges.items():
        values = np.array([getattr(colors, name) for colors in drawn])
        changed = values != getattr(Colors(), name)
        assert changed.mean() == pytest.approx(0.5, abs=0.04)                             # 0.011 is one sigma
        assert low <= values.min() < 0.98 * low + 0.02 * high and 0.02 * low + 0.98 * high < values.max() <= high
    assert np.mean([colors.contrast_first for colors in drawn]) == pytest.approx(0.5, abs=0.04)


def test_expansion_holds_the_picture():
    windows = np.array([augment.draw_expansion(50, 80, rng) for rng in rngs(2000)])
    left, top, right, bottom = windows.T
    assert (left <= 0).all() and (top <= 0).all() and (right >= 80).all() and (bottom >= 50).all()
    ratio = (right - left) / 80
    assert (ratio == 1).mean() == pytest.approx(0.5, abs=0.04) and ratio.max() > 3.9 and ratio.max() <= 4
    np.testing.assert_allclose((bottom - top) / 50, ratio, atol=1 / 50)
    free = ratio > 2
    assert np.mean(-left[free] / (right - left - 80)[free]) == pytest.approx(0.5, abs=0.05)


def test_shapes_of_crops():
    shapes = augment.draw_shapes(np.random.default_rng(0), 5000)
    assert shapes.min() >= -1e-9 and shapes.max() <= 1 + 1e-9
    sides = shapes[:, 2:] - shapes[:, :2]
    scale, aspect = np.sqrt(sides.prod(axis=1)), sides[:, 0] / sides[:, 1]
    assert 0.3 <= scale.min() < 0.31 and 0.99 < scale.max() <= 1
    assert 0.5 - 1e-9 <= aspect.min() < 0.51 and 1.9 < aspect.max() <= 2 + 1e-9


def test_overlaps_by_hand():
    a = np.array([[0, 0, 2, 2], [0, 0, 0, 0]], float)
    b = np.array([[1, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6], [0, 0, 0, 0]], float)
    np.testing.assert_allclose(augment.overlaps(a, b), [[1 / 7, 1, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize("overlap", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("window", [(0, 0, 300, 200), (-40, -90, 460, 310)])
def test_crops_overlap_an_object(overlap, window, monkeypatch):
    monkeypatch.setattr(augment, "OVERLAPS", (overlap,))
    inner = np.array(window) * 0.95 + np.array([*window[2:], *window[:2]]) * 0.05
    truth, cropped = np.float32([inner, [5, 5, 10, 12]]), 0
    for rng in rngs(60):
        crop = augment.draw_crop(truth, window, rng)
        assert window[0] <= crop[0] < crop[2] <= window[2] and window[1] <= crop[1] < crop[3] <= window[3]
        if crop != window:
            cropped += 1
            # The crop was cut to whole pixels after its overlap was measured.
            assert augment.overlaps(np.array([crop], float), truth).max() >= overlap - 0.015
    assert cropped >= 10


def test_the_choice_among_overlaps_is_even():
    """Caffe draws among what succeeds: for a dot no crop and any crop, for the whole picture nearly all."""
    window, dot, whole = (0, 0, 400, 400), np.float32([[200, 200, 202, 202]]), np.float32([[0, 0, 400, 400]])
    share = np.mean([augment.draw_crop(dot, window, rng) == window for rng in rngs(1000)])
    assert share == pytest.approx(1 / 2, abs=0.06)
    share = np.mean([augment.draw_crop(whole, window, rng) == window for rng in rngs(1000)])
    assert share == pytest.approx(1 / 7, abs=0.05)
    nothing = np.zeros([0, 4], np.float32)
    assert all(augment.draw_crop(nothing, window, rng) == window for rng in rngs(20))


@pytest.mark.parametrize("interpolation", augment.INTERPOLATIONS)
def test_view_equals_the_plain_way(interpolation):
    """Colours of the whole picture, then the crop, then the resize."""
    image, nothing = noise(90, 130), (np.zeros([0, 4], np.float32), np.zeros(0, np.int32))
    for window in ((0, 0, 130, 90), (10, 20, 75, 81), (129, 89, 130, 90)):
        # OpenCV's HSV rounds the last pixels of a row differently.
        for colors, atol in ((Colors(-12, 1.3), 0), (Colors(-12, 1.3, 0.7, -7, False), 5)):
            left, top, right, bottom = window
            plain = np.ascontiguousarray(augment.distort(image, colors)[top:bottom, left:right])
            plain = cv2.resize(plain, (64, 64), interpolation=interpolation)
            ours = augment.view(image, *nothing, window, 64, interpolation, colors)[0]
            np.testing.assert_allclose(ours.astype(int), plain, atol=atol)


def test_view_beyond_the_picture_is_the_mean():
    """A canvas of twice the size, resized: the same, where the picture lands on whole pixels."""
    image = noise(40, 60)
    canvas = np.full([80, 120, 3], augment.MEAN, np.uint8)
    canvas[20:60, 36:96] = image
    nothing = np.zeros([0, 4], np.float32), np.zeros(0, np.int32)
    out, *_ = augment.view(image, *nothing, (-36, -20, 84, 60), 40, colors=Colors())
    x1, x2, y1, y2 = 12, 32, 10, 30
    np.testing.assert_array_equal(out, cv2.resize(canvas, (40, 40)))
    out[y1:y2, x1:x2] = augment.MEAN
    assert (out == augment.MEAN).all()
    bright, *_ = augment.view(image, *nothing, (-36, -20, 84, 60), 40, colors=Colors(brightness=30))
    assert (bright[:y1] == augment.MEAN).all() and (bright[y1:y2, x1:x2] >= 30).all()
    out, boxes_xyxy, labels = augment.view(image, np.float32([[0, 0, 9, 9]]), np.array([3]), (60, 0, 90, 40), 40)
    assert (out == augment.MEAN).all() and boxes_xyxy.shape == (0, 4) and labels.shape == (0,)


def test_centre_rule_and_clipping_by_hand():
    """Window (20, 10) to (60, 50), each side 40: of four boxes two have their centre in it, and one is cut."""
    truth = np.float32([[30, 20, 50, 40], [10, 0, 40, 30], [0, 0, 38, 18], [50, 30, 72, 40]])
    out = augment.view(noise(80, 100), truth, np.arange(4), (20, 10, 60, 50), 80)
    assert out[2].tolist() == [0, 1]
    np.testing.assert_allclose(out[1], [[0.25, 0.25, 0.75, 0.75], [0, 0, 0.5, 0.5]], atol=1e-6)


def test_mirror_by_hand():
    image, truth = noise(4, 6), np.float32([[0.1, 0.2, 0.4, 0.9]])
    flipped, moved = augment.mirror(image, truth)
    np.testing.assert_array_equal(flipped, image[:, ::-1])
    np.testing.assert_allclose(moved, [[0.6, 0.2, 0.9, 0.9]], atol=1e-7)
    np.testing.assert_allclose(augment.mirror(flipped, moved)[1], truth, atol=1e-7)


@pytest.mark.parametrize("height,width,box", [(120, 200, (60, 30, 130, 90)), (300, 150, (5, 100, 145, 260))])
def test_augmented_boxes_follow_the_pixels(height, width, box, monkeypatch):
    """A red rectangle on black, found again by its colour, cut where the view ends."""
    monkeypatch.setattr(augment, "draw_colors", lambda rng: Colors())
    image = np.zeros([height, width, 3], np.uint8)
    x1, y1, x2, y2 = box
    image[y1:y2, x1:x2, 0] = 255
    truth, seen = np.float32([box]) / np.float32([width, height] * 2), 0
    for rng in rngs(80):
        out, boxes_xyxy, labels = augment.augment(image, truth, np.array([4]), rng, 160)
        assert out.shape == (160, 160, 3) and out.dtype == np.uint8 and boxes_xyxy.dtype == np.float32
        if len(labels):
            seen += 1
            red = out[..., 0].astype(int) - out[..., 1] > 127
            rows, columns = (np.flatnonzero(red.any(axis=axis)) for axis in (1, 0))
            found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            # A pixel of the picture becomes up to 160 / (0.21 * 120) pixels, of which NEAREST may miss half.
            np.testing.assert_allclose(found, boxes_xyxy[0] * 160, atol=1.01)
    assert seen >= 60


def test_whole_augmentation_is_as_the_generator_says():
    truth = np.float32([[0.1, 0.1, 0.6, 0.7], [0.5, 0.5, 0.9, 0.9]])
    runs = [augment.augment(noise(60, 90), truth, np.array([1, 2]), np.random.default_rng(seed), 64)
            for seed in (3, 3, 4)]
    for a, b in zip(runs[0], runs[1]):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(runs[0][0], runs[2][0])


def test_degenerate_pictures_and_boxes():
    for shape in ((1, 1), (1, 50), (2, 2), (500, 3)):
        for rng in rngs(30):
            out, boxes_xyxy, labels = augment.augment(noise(*shape), [[0, 0, 1, 1]], np.array([0]), rng, 32)
            assert out.shape == (32, 32, 3) and len(labels) == len(boxes_xyxy) <= 1
            assert (boxes_xyxy >= 0).all() and (boxes_xyxy <= 1).all()
            assert (boxes_xyxy[:, 2:] > boxes_xyxy[:, :2]).all()
    pixel = np.float32([[50 / 100, 20 / 80, 51 / 100, 21 / 80]])
    kept = [len(augment.augment(noise(80, 100), pixel, np.array([0]), rng, 64)[2]) for rng in rngs(40)]
    assert 0 < sum(kept) <= 40
    out = augment.augment(noise(80, 100), np.zeros([0, 4]), np.zeros(0, np.int32), np.random.default_rng(0), 64)
    assert out[1].shape == (0, 4) and out[2].shape == (0,)


def encoded(image, extension=".png"):
    return cv2.imencode(extension, image[..., ::-1])[1].tobytes()


def test_payloads():
    truth, labels = np.float32([[0.1, 0.2, 0.3, 0.4], [0, 0, 1, 1]]), np.array([7, 0])
    for count in (2, 0):
        image_bytes, name, boxes_xyxy, out = augment.unpack(
            augment.pack(b"picture", "ä.jpg".encode(), truth[:count], labels[:count]))
        assert (image_bytes, name.decode()) == (b"picture", "ä.jpg") and out.tolist() == [7, 0][:count]
        np.testing.assert_array_equal(boxes_xyxy, truth[:count])


def test_job_of_a_worker():
    image, truth = noise(40, 60), np.float32([[0.1, 0.2, 0.5, 0.9]])
    payload = augment.pack(encoded(image), b"a.png", truth, [5])
    out = augment.prepare(payload, None, size=32, most=3, augmented=False)
    np.testing.assert_array_equal(out["image"], cv2.resize(image, (32, 32)))              # RGB, not BGR
    np.testing.assert_array_equal(out["boxes_xyxy"], [*truth, [0] * 4, [0] * 4])
    assert out["labels"].tolist() == [5, -1, -1]
    ours = augment.prepare(payload, np.random.default_rng(6), size=32, most=3)
    expected = augment.augment(image, truth, np.array([5]), np.random.default_rng(6), 32)
    np.testing.assert_array_equal(ours["image"], expected[0])
    for name, (shape, dtype) in augment.specs(32, 3).items():
        assert ours[name].shape == out[name].shape == shape and ours[name].dtype == out[name].dtype == dtype
    with pytest.raises(UserError, match="a.png must have at most 0 objects, and has 1"):
        augment.prepare(payload, None, size=32, most=0)
    with pytest.raises(UserError, match="b.png must be a picture that OpenCV decodes"):
        augment.prepare(augment.pack(b"nothing", b"b.png", truth, [5]), None, size=32, most=1)


def test_decoding_keeps_the_stored_pixels():
    """EXIF orientation 6 is not applied, gray becomes three channels, alpha goes."""
    image = np.zeros([16, 32, 3], np.uint8)
    image[:, 16:] = 200, 30, 90
    jpeg = encoded(image, ".jpg")
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = jpeg[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + jpeg[2:]
    assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape == (32, 16, 3)
    np.testing.assert_array_equal(decoding.decode(turned), decoding.decode(jpeg))
    np.testing.assert_allclose(decoding.decode(turned)[8, 24], [200, 30, 90], atol=4)
    gray = cv2.imencode(".png", image[..., 0])[1].tobytes()
    np.testing.assert_array_equal(decoding.decode(gray), np.repeat(image[..., :1], 3, axis=-1))
    alpha = cv2.imencode(".png", np.dstack([image[..., ::-1], np.full([16, 32], 7, np.uint8)]))[1].tobytes()
    np.testing.assert_array_equal(decoding.decode(alpha), image)


def test_a_crowd_stays_as_long_as_any_of_it_is_in_view():
    """Its centre is at 45, 20; the window ends at 40. An object of the same box is gone."""
    image = np.zeros([40, 60, 3], np.uint8)
    boxes_xyxy = np.float32([[30, 0, 60, 40], [30, 0, 60, 40], [45, 0, 60, 40]])
    _, found, labels = augment.view(image, boxes_xyxy, np.int32([-1, 0, -1]), (0, 0, 40, 40), 80)
    assert labels.tolist() == [-1]
    np.testing.assert_allclose(found, [[0.75, 0, 1, 1]], atol=1e-6)
