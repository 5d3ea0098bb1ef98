"""Pictures of any size come back translated in their size: whole, in pieces, shrunk, as videos, turned by EXIF."""

import json
import os
import pathlib
import re
import subprocess
import sys
import types

import cv2
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common import media
from common.errors import UserError
from cyclegan import predict, preprocess
from tests.common.test_media import with_orientation
from tests.cyclegan import small
from tests.cyclegan.test_preprocess import transparent

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """(run folder, its generators)."""
    folder = tmp_path_factory.mktemp("runs") / "toy"
    return folder, small.write_run(folder)


@pytest.fixture(scope="module")
def translate(run):
    return predict.make_translate(predict.whole_network(run[1]["a2b"]))


class Flags(types.SimpleNamespace):
    """As absl's flags."""

    def __getitem__(self, name):
        return types.SimpleNamespace(value=getattr(self, name))


def flags(**values):
    return Flags(**{"run": None, "bundle": None, "which": "best", "direction": "a2b", "tile": None,
                    "runtime": "keras", "precision": "float32", **values})


def lines(folder):
    return [json.loads(line) for line in (folder / "translations.jsonl").read_text("utf-8").splitlines()]


def by_keras(generator, image):
    """The translation of a picture uint8 [H, W, 3], mirrored by NumPy up to multiples of 4 from 8."""
    height, width = image.shape[:2]
    missing = [max(-side % 4, 8 - side) for side in (height, width)]
    images = np.pad(image, [(0, missing[0]), (0, missing[1]), (0, 0)], "reflect")[None] / 127.5 - 1
    found = generator(images.astype(np.float32), training=False).numpy()[0, :height, :width]
    return np.rint((found + 1) * 127.5)


@pytest.mark.parametrize("shape", [(40, 60), (37, 63), (64, 33), (7, 30), (1, 1), (2, 9)])
def test_any_size_comes_back(run, translate, shape):
    image = small.picture(*shape)
    found, seconds = translate(image)
    assert found.shape == image.shape and found.dtype == np.uint8 and seconds > 0
    assert np.abs(found - by_keras(run[1]["a2b"], image)).max() <= 1  # a half may be rounded either way


def test_mirrored_is_that_of_numpy():
    for length in range(1, 14):
        image = np.arange(length * 9 * 3).reshape(length, 9, 3)
        missing = max(-length % 4, 8 - length)
        np.testing.assert_array_equal(predict.mirrored(tf.constant(image)),
                                      np.pad(image, [(0, missing), (0, 3), (0, 0)], "reflect"))


def test_every_network_gives_the_same(run):
    pytest.importorskip("openvino")
    generator, image = run[1]["b2a"], small.picture(45, 70).astype(np.float32) / 255
    expected = np.asarray(predict.whole_network(generator)(image))
    assert expected.std() > 0.05
    tiled, compiled = predict.tiled_network(generator, 32)(image), predict.openvino_network(generator)(image)
    np.testing.assert_allclose(tiled, expected, atol=1e-4)
    np.testing.assert_allclose(compiled, expected, atol=0.03)  # OpenVINO calculates in bfloat16 where it can


def test_large_pictures_are_done_in_pieces(run, monkeypatch):
    called = []
    monkeypatch.setattr(predict, "WHOLE", 1000)
    monkeypatch.setattr(predict, "whole_network", lambda generator: lambda image: called.append("whole"))
    monkeypatch.setattr(predict, "tiled_network",
                        lambda generator, tile: lambda image: called.append(tile))
    for tile in (None, 0, 64):
        infer = predict.choose_network(None, tile)
        for shape in ((20, 50), (20, 51)):
            infer(np.zeros([*shape, 3], np.float32))
    assert called == ["whole", predict.TILE, "whole", "whole", 64, 64]


def test_shrunk_for_the_network_and_enlarged_again(run, translate):
    image = small.picture(90, 200)
    found, _ = predict.make_translate(predict.whole_network(run[1]["a2b"]), size=50)(image)
    assert found.shape == image.shape
    # As training pictures are: by Pillow's bicubic. 90 * 50 / 200 is 22.5, and 22 is even.
    reduced = np.asarray(Image.fromarray(image).resize((50, 22), Image.BICUBIC))
    expected = cv2.resize(translate(reduced)[0], (200, 90), interpolation=cv2.INTER_CUBIC)
    assert np.abs(found.astype(int) - expected).max() <= 3                 # Pillow rounds before the network
    given = []
    predict.make_translate(lambda picture: given.append(picture) or picture, size=50)(image)
    np.testing.assert_allclose(given[0] * 255, preprocess.resize(image, [22, 50]), atol=1e-4)
    np.testing.assert_array_equal(predict.make_translate(predict.whole_network(run[1]["a2b"]), 200)(image)[0],
                                  translate(image)[0])


def test_files_lines_and_videos(translate, tmp_path):
    image = small.picture(36, 52)
    jpeg = tf.io.encode_jpeg(image, quality=100, chroma_downsampling=False).numpy()
    (tmp_path / "turned.jpg").write_bytes(with_orientation(jpeg, 6))
    cv2.imwrite(str(tmp_path / "flat.png"), image[..., ::-1])
    (tmp_path / "cut.jpg").write_bytes(jpeg[:200])
    with media.VideoWriter(tmp_path / "clip", 10.0, (52, 36)) as video:
        for _ in range(2):
            video.write(image)
    messages, sources = [], [tmp_path / "turned.jpg", tmp_path / "flat.png", tmp_path / "cut.jpg", video.path]
    result = predict.predict(list(map(str, sources)), translate, tmp_path / "out", values={"direction": "a2b"},
                             side_by_side=True, report=messages.append)
    assert result["images"] == 4 and result["unreadable"] == [str(tmp_path / "cut.jpg")]
    assert "cut.jpg" in messages[0]
    assert 0 < result["network_seconds"] < result["seconds"] and not result["interrupted"]
    assert result["largest"] == 52
    turned, flat, *clip = lines(tmp_path / "out")
    assert turned == {"file": str(tmp_path / "turned.jpg"), "frame": 0, "width": 36, "height": 52,
                      "drawn": "turned.png", "direction": "a2b"}
    assert [line["frame"] for line in clip] == [0, 1] and len({line["drawn"] for line in clip}) == 1
    drawn = cv2.imread(str(tmp_path / "out" / flat["drawn"]))[..., ::-1]
    np.testing.assert_array_equal(drawn, np.concatenate([image, translate(image)[0]], axis=1))
    upright = cv2.imread(str(tmp_path / "out" / "turned.png"))[..., ::-1]
    np.testing.assert_array_equal(upright[:, 36:], translate(upright[:, :36])[0])
    assert np.abs(upright[:, :36].astype(int) - np.rot90(image, -1)).mean() < 3  # but for the JPEG
    frames = list(media.frames([str(tmp_path / "out" / clip[0]["drawn"])], pytest.fail))
    assert len(frames) == 2 and frames[0].image.shape == (36, 104, 3) and frames[0].fps == 10


def test_transparency_lies_on_white(tmp_path):
    data, expected = transparent()
    (tmp_path / "clear.png").write_bytes(data)
    seen = []
    predict.predict([str(tmp_path / "clear.png")], lambda image: (seen.append(image) or image, 0.1), tmp_path / "out")
    np.testing.assert_allclose(seen[0], expected, atol=0.51)


def test_interrupted_camera_keeps_what_it_saw(translate, tmp_path, monkeypatch):
    def camera(*_, **__):
        yield media.Frame("camera 0", 0, small.picture(24, 32), 10.0)
        raise KeyboardInterrupt

    monkeypatch.setattr(media, "frames", camera)
    result = predict.predict(["0"], translate, tmp_path)
    assert result["interrupted"] and result["images"] == 1
    assert len(lines(tmp_path)) == 1 and len(list(tmp_path.iterdir())) == 2


def test_folder_that_is_no_run(run, tmp_path):
    with pytest.raises(UserError, match="--run must name"):
        predict.load_run(None)
    (tmp_path / "config.json").write_text(json.dumps({"article": "ssd"}))
    with pytest.raises(UserError, match="must be a run of cyclegan.*'ssd'"):
        predict.load_run(tmp_path)
    keras.utils.clear_session()
    models, config = predict.load_run(run[0], precision="mixed_bfloat16")
    assert models["b2a"].get_layer("first").compute_dtype == "bfloat16" and config["labels"] == ["horse", "zebra"]
    for way in ("a2b", "b2a"):
        for found, expected in zip(models[way].get_weights(), run[1][way].get_weights()):
            np.testing.assert_array_equal(found, expected)


def test_pictures_that_are_much_larger_than_in_training_are_said():
    for largest, size, expected in (
            (64, 0, None), (65, 0, "up to 65 pixels on the longer side"), (4000, 32, None), (50, 400, None),
            (4000, 128, "up to 128 pixels .* of 32 x 32: .* --size 32 shrinks")):
        note = predict.size_note(largest, size, 32)
        assert note is None if expected is None else re.search(expected, note)


def test_flags_that_do_not_go_together():
    for given, words in (({}, "--run and --bundle"), ({"run": "r", "tile": 20}, "32 pixels at least; 20"),
                         ({"bundle": "b", "tile": 64}, "--tile goes with --run"),
                         ({"run": "r", "runtime": "openvino", "tile": 64}, "--tile goes with --run"),
                         ({"bundle": "b", "runtime": "openvino"}, "openvino goes with --run")):
        with pytest.raises(UserError, match=words):
            predict.load_network(flags(**given))


def test_command(run, tmp_path):
    image = small.picture(50, 70)
    cv2.imwrite(str(tmp_path / "photo.png"), image[..., ::-1])
    command = [sys.executable, "-m", "cyclegan.predict", "--run", run[0], "--direction", "b2a", "--tile", "32",
               "--out", tmp_path / "out", tmp_path / "photo.png", tmp_path / "none.png"]
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240,
                             env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert process.returncode == 0, process.stderr[-2000:]
    (line,) = lines(tmp_path / "out")
    assert (line["direction"], line["source"], line["target"]) == ("b2a", "zebra", "horse")
    assert "1 images from zebra to horse" in process.stdout and "per second" in process.stdout
    assert "up to 70 pixels" in process.stdout
    assert "none.png: no such" in process.stderr
    found = cv2.imread(str(tmp_path / "out" / "photo.png"))[..., ::-1].astype(int)
    assert np.abs(found - by_keras(run[1]["b2a"], image)).max() <= 1
