"""LiteRT files: what Keras gives in float32, near it in 8 bits, a fraction of the size; the README's program."""

import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
from PIL import Image

from common.errors import UserError
from cyclegan import litert, predict
from tests.cyclegan import small
from tests.cyclegan.domains import write_records

ROOT = pathlib.Path(__file__).parents[2]
pytest.importorskip("ai_edge_litert")
pytest.importorskip("ai_edge_quantizer")

SIZE = 32


@pytest.fixture(scope="module")
def generators():
    return predict.split(small.both_generators())


def pictures(count, first=0):
    """float32 [1, S, S, 3] in 0..1."""
    return [small.picture(SIZE, SIZE, first + i)[None].astype(np.float32) / 255 for i in range(count)]


@pytest.fixture(scope="module")
def exported(generators, tmp_path_factory):
    """(folder, results)."""
    out, sets = tmp_path_factory.mktemp("litert") / "toy", (pictures(6), pictures(3, 50))
    return out, litert.export_files(generators, small.CONFIG, out, pictures={"a2b": sets, "b2a": sets},
                                    report=lambda line: None)


def keras_picture(generator, picture):
    return generator(picture * 2 - 1, training=False).numpy() / 2 + 0.5


def test_float_files_are_the_keras_model(generators, exported):
    out, results = exported
    for way in predict.DIRECTIONS:
        for kind, tolerance in (("float32", 1e-4), ("float16", 0.02)):
            run = litert.Interpreter((out / f"{way}_{kind}.tflite").read_bytes())
            for picture in pictures(2, 90):
                expected = keras_picture(generators[way], picture)
                assert expected.std() > 0.05
                np.testing.assert_allclose(run(picture), expected, atol=tolerance)
        assert results[way]["float32"]["difference"] <= 1e-4
    other = keras_picture(generators["b2a"], picture)
    assert np.abs(other - keras_picture(generators["a2b"], picture)).max() > 0.1  # the directions differ


def test_eight_bits(generators, exported):
    """Eight bits are noise of a 256th and not another picture; the size goes with the weights."""
    _, results = exported
    numbers = generators["a2b"].count_params()
    for way, found in results.items():
        assert set(found) == set(litert.KINDS)
        graph = found["float32"]["bytes"] - 4 * numbers
        assert found["float16"]["bytes"] < 2 * numbers + 2 * graph
        for kind in litert.KINDS[2:]:
            assert found[kind]["bytes"] < found["float32"]["bytes"] - 2.5 * numbers
        assert found["int8_weights"]["psnr"] > 35 and found["int8_weights"]["ssim"] > 0.98
        assert found["int8_dynamic"]["psnr"] > 28 and found["int8"]["psnr"] > 25
        assert found["int8_weights"]["psnr"] > found["int8_dynamic"]["psnr"] > found["int8_full"]["psnr"]


def test_what_is_measured(generators):
    """Against figures worked out here."""
    (_, data), = litert.convert(generators["a2b"], SIZE, ["int8_dynamic"], [])
    run, chosen = litert.Interpreter(data), pictures(2, 70)
    found = litert.measure(data, generators["a2b"], chosen)
    errors = [run(picture) - keras_picture(generators["a2b"], picture) for picture in chosen]
    psnr = [-10 * np.log10(np.mean(np.square(error))) for error in errors]
    assert found["psnr"] == pytest.approx(np.mean(psnr), abs=0.01)
    assert found["lowest_psnr"] == pytest.approx(min(psnr), abs=0.01)
    assert found["difference"] == pytest.approx(np.abs(errors).max(), rel=1e-4)
    assert found["bytes"] == len(data) and 0 < found["seconds"] < 5 and 0 < found["ssim"] < 1


def test_weights_have_a_scale_for_each_channel(exported):
    out, _ = exported
    from ai_edge_litert.interpreter import Interpreter

    reader = Interpreter(model_path=str(out / "a2b_int8.tflite"))
    scales = [len(tensor["quantization_parameters"]["scales"]) for tensor in reader.get_tensor_details()
              if tensor["dtype"] == np.int8 and len(tensor["shape"]) == 4 and tensor["shape"][1] in (3, 7)
              and tensor["shape"][0] != 1]
    assert sorted(set(scales)) == [3, 8, 16, 32]


def test_readme_as_it_stands(generators, exported, tmp_path):
    out, results = exported
    text = (out / "README.md").read_text("utf-8")
    assert text.count("| a2b |") == text.count("| b2a |") == len(litert.KINDS)
    assert f"| {results['b2a']['int8']['psnr']:.1f} |" in text
    code = text[text.index("    import numpy"):]
    (tmp_path / "program.py").write_text("\n".join(line[4:] for line in code.splitlines()))
    (tmp_path / "a2b_float32.tflite").symlink_to(out / "a2b_float32.tflite")
    image = small.picture(SIZE, SIZE, 5)
    cv2.imwrite(str(tmp_path / "photo.jpg"), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    subprocess.run([sys.executable, "program.py"], cwd=tmp_path, check=True, timeout=60)
    read = np.asarray(Image.open(tmp_path / "photo.jpg"))
    expected = keras_picture(generators["a2b"], read[None].astype(np.float32) / 255)[0] * 255
    found = cv2.imread(str(tmp_path / "translated.png"))[..., ::-1]
    assert np.abs(found - expected).max() <= 0.51
    values = json.loads((out / "results.json").read_text())
    assert values["image_size"] == SIZE and values["a2b"]["int8"]["bytes"] == results["a2b"]["int8"]["bytes"]


def test_pictures_of_folders_and_records(tmp_path):
    for side, level in (("A", 40), ("B", 200)):
        (tmp_path / f"train{side}").mkdir()
        for number in range(5):
            cv2.imwrite(str(tmp_path / f"train{side}" / f"{number}.png"), np.full([20, 30, 3], level + number,
                                                                                 np.uint8))
    for way, level in (("a2b", 40), ("b2a", 200)):
        representative, measured = litert.gather({}, way, SIZE, folder=tmp_path, samples=3, measured=4)
        assert [round(float(each.mean() * 255)) for each in representative] == [level, level + 1, level + 2]
        assert [round(float(each.mean() * 255)) for each in measured] == [level + 3, level + 4]
        assert representative[0].shape == (1, SIZE, SIZE, 3)
    (tmp_path / "trainB").rename(tmp_path / "Train_B")
    representative, _ = litert.gather({}, "b2a", SIZE, folder=tmp_path, samples=1)
    assert round(float(representative[0].mean() * 255)) == 200
    representative, measured = litert.gather({}, "b2a", SIZE, folder=tmp_path / "trainA", samples=9)
    assert len(representative) == len(measured) == 5
    with pytest.raises(UserError, match="--representative"):
        litert.gather({"tfrecords": str(tmp_path / "none")}, "a2b", SIZE)
    folder = write_records(tmp_path / "set", {
        "trainA": np.full([3, 40, 40, 3], 60, np.uint8), "testA": np.full([2, 40, 40, 3], 90, np.uint8),
        "trainB": np.zeros([1, 40, 40, 3], np.uint8), "testB": np.zeros([1, 40, 40, 3], np.uint8)})
    representative, measured = litert.gather({"tfrecords": str(folder)}, "a2b", SIZE, samples=2)
    assert [(picture.shape, round(float(picture.mean() * 255))) for picture in representative + measured] == [
        ((1, SIZE, SIZE, 3), 60)] * 2 + [((1, SIZE, SIZE, 3), 90)] * 2
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must be a folder of pictures"):
        litert.gather({}, "a2b", SIZE, folder=tmp_path / "empty")


def test_representative_pictures_are_drawn_from_all(tmp_path):
    """The first of a set may be of one kind: 30 dark pictures and then 30 light ones."""
    folder = write_records(tmp_path, {
        "trainA": np.uint8([50] * 30 + [200] * 30)[:, None, None, None] + np.zeros([1, 8, 8, 3], np.uint8),
        "testA": np.zeros([1, 8, 8, 3], np.uint8), "trainB": np.zeros([1, 8, 8, 3], np.uint8),
        "testB": np.zeros([1, 8, 8, 3], np.uint8)})
    representative, _ = litert.gather({"tfrecords": str(folder)}, "a2b", 8, samples=30)
    levels = [round(float(picture.mean() * 255)) for picture in representative]
    assert len(levels) == 30 and set(levels) == {50, 200} and 8 <= levels.count(50) <= 22


def test_readme_says_what_was_measured_on(generators, tmp_path):
    """How many pictures of each direction, and whether they chose the 8 bits themselves."""
    one, two = pictures(2), pictures(3, 50)
    litert.export_files(generators, small.CONFIG, tmp_path / "out", kinds=["int8_weights"], report=lambda line: None,
                        pictures={"a2b": (one, one[:1]), "b2a": (one, two)})
    text = (tmp_path / "out" / "README.md").read_text("utf-8")
    assert "model, on 1 pictures for a2b, which chose the 8 bits and 3 pictures for b2a; times" in text


def test_a_float_file_that_differs_is_not_written(generators, tmp_path, monkeypatch):
    convert, sets = litert.convert, (pictures(1), pictures(1))
    monkeypatch.setattr(litert, "convert", lambda _, *args: convert(generators["b2a"], *args))
    with pytest.raises(UserError, match="float32 file of a2b must give what the Keras model gives"):
        litert.export_files(generators, small.CONFIG, tmp_path / "out", kinds=["float32"],
                            pictures={"a2b": sets, "b2a": sets})
    assert not (tmp_path / "out").exists()


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_quantizer", None)
    with pytest.raises(UserError, match=r"needs the package ai-edge-quantizer.*\[litert\]"):
        next(litert.convert(None, SIZE, ["int8"], []))


def test_command(tmp_path):
    small.write_run(tmp_path / "run")
    (tmp_path / "photos").mkdir()
    for number in range(2):
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), small.picture(40, 50, number))
    command = [sys.executable, "-m", "cyclegan.export", "--run", tmp_path / "run", "--format", "litert",
               "--out", tmp_path / "out", "--kinds", "int8_dynamic", "--representative", tmp_path / "photos",
               "--image_size", "64"]
    process = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, timeout=240,
                             env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"})
    assert process.returncode == 0, process.stderr[-2000:]
    assert "a2b_int8_dynamic.tflite" in process.stdout and "README.md has the table" in process.stdout
    found = litert.Interpreter((tmp_path / "out" / "b2a_int8_dynamic.tflite").read_bytes())
    assert found(np.zeros([1, 64, 64, 3], np.float32)).shape == (1, 64, 64, 3)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "README.md", "a2b_int8_dynamic.tflite", "b2a_int8_dynamic.tflite", "results.json"]


def test_what_else_lies_in_the_folder_of_pictures_is_said(tmp_path, capsys):
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros([8, 8, 3], np.uint8))
    (tmp_path / "notes.txt").write_text("none")
    assert len(litert.read_folder(tmp_path, 8, 5)) == 1
    assert capsys.readouterr().err == f"note: {tmp_path}: left out: 1 files of another kind (.txt): notes.txt\n"
    (tmp_path / "b.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="--representative must be a folder of pictures, and .*b.png cannot be used"):
        litert.read_folder(tmp_path, 8, 5)
