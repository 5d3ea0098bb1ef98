"""The demo's animals: the same again, all different, stripes on one side alone."""

import numpy as np

from cyclegan import demo, sources


def test_animals_follow_from_seed_side_and_index():
    image = demo.draw(3, 1, 17)
    assert image.shape == (64, 64, 3) and image.dtype == np.uint8
    np.testing.assert_array_equal(image, demo.draw(3, 1, 17))
    assert demo.draw(3, 1, 17, size=32).shape == (32, 32, 3)
    many = {demo.draw(seed, side, index).tobytes() for seed in (0, 1) for side in (0, 1) for index in range(6)}
    assert len(many) == 24


def dark_bands(image):
    """How many dark runs the rows through the body have, at most."""
    dark = image[24:40].max(axis=-1) < 85
    return (np.diff(dark.astype(int), axis=1) == 1).sum(axis=1).max()


def test_only_side_b_has_stripes():
    plain, striped = ([dark_bands(demo.draw(0, side, index)) for index in range(40)] for side in (0, 1))
    assert np.median(plain) <= 2 and np.median(striped) >= 4  # A: tail, mane, eye
    assert np.mean(np.array(striped) > np.quantile(plain, 0.9)) > 0.8


def test_nothing_else_tells_the_sides_apart():
    """Grass: the mean colours of the corners, over 80 pictures, differ by no more than chance gives (3 sigma)."""
    colours = [np.array([demo.draw(0, side, index)[-12:, :12].mean(axis=(0, 1)) for index in range(80)])
               for side in (0, 1)]
    error = np.sqrt(sum(side.var(axis=0) / 80 for side in colours))
    assert (np.abs(colours[0].mean(axis=0) - colours[1].mean(axis=0)) < 3 * error).all()


def test_no_picture_is_in_two_splits():
    found = sources.from_demo(0, {"trainA": 3, "trainB": 2, "testA": 2, "testB": 1})
    assert found.splits == {"trainA": [(0, 0), (0, 1), (0, 2)], "testA": [(0, 3), (0, 4)],
                            "trainB": [(1, 0), (1, 1)], "testB": [(1, 2)]}
    data, name = found.load((1, 2))
    assert data[:4] == b"\x89PNG" and name == "B000002.png" and found.labels == ["plain", "striped"]
