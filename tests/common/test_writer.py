"""Files that predict.py leaves behind: their names, that they are whole, and that none of them replaces a source."""

import json
import pathlib

import numpy as np
import pytest

from common import drawing, media, writer
from common.errors import UserError

DRAWN = np.full([16, 16, 3], 9, np.uint8)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing.write_png(path, np.full([16, 16, 3], 200, np.uint8))
    return str(path)


def clip(path):
    with media.VideoWriter(path, 10.0, (16, 16)) as video:
        for _ in range(3):
            video.write(np.full([16, 16, 3], 200, np.uint8))
    return str(video.path)


def draw(arguments, out):
    """Names of what is drawn of the arguments, frame by frame, as the lines say."""
    with writer.Writer(out, "lines.jsonl", arguments) as written:
        for frame in media.frames(arguments, lambda name, reason: pytest.fail(f"{name}: {reason}")):
            written.write(frame, DRAWN, {"more": 1})
    return [json.loads(line)["drawn"] for line in (out / "lines.jsonl").read_text().splitlines()]


def test_sources_of_one_name_get_names_of_their_own(tmp_path):
    sources = [picture(tmp_path / folder / "photo.png") for folder in "abc"]
    assert draw(sources, tmp_path / "out") == ["photo.png", "photo_2.png", "photo_3.png"]
    assert draw(sources, tmp_path / "out") == ["photo.png", "photo_2.png", "photo_3.png"]  # results are replaced


def test_names_differ_by_more_than_case(tmp_path):
    """Some systems have one file for both spellings."""
    sources = [picture(tmp_path / folder / name) for folder, name in (("a", "Photo.png"), ("b", "photo.png"))]
    assert draw(sources, tmp_path / "out") == ["Photo.png", "photo_2.png"]


@pytest.mark.parametrize("folder", [".", "a"])
def test_no_source_is_replaced(tmp_path, monkeypatch, folder):
    """The folder of the sources as --out, or one that holds some of them, also under another spelling."""
    monkeypatch.chdir(tmp_path)
    sources = [picture(tmp_path / "photo.png"), picture(tmp_path / "a" / "photo.png"), clip(tmp_path / "clip"),
               clip(tmp_path / "a" / "clip")]
    before = {source: pathlib.Path(source).read_bytes() for source in sources}
    drawn = draw(["a/../photo.png", str(tmp_path / "a"), "*.mp4"], tmp_path / folder)
    assert {source: pathlib.Path(source).read_bytes() for source in sources} == before
    assert set(drawn) == {"photo_2.png", "photo_3.png", "clip_2.mp4", "clip_3.mp4"}
    for name in drawn:
        assert (tmp_path / folder / name).stat().st_size > 50


@pytest.mark.parametrize("error, left", [(ZeroDivisionError, []), (KeyboardInterrupt, ["clip.mp4"])])
def test_a_video_is_whole_or_not_there(tmp_path, error, left):
    """Ctrl-C is the way to end a camera: what was written until then stays."""
    with pytest.raises(error), media.VideoWriter(tmp_path / "clip", 10.0, (16, 16)) as video:
        video.write(DRAWN)
        raise error
    assert [path.name for path in tmp_path.iterdir()] == left


def test_after_an_error_there_is_neither_video_nor_lines(tmp_path):
    source = clip(tmp_path / "clip")
    with pytest.raises(ZeroDivisionError), writer.Writer(tmp_path / "out", "lines.jsonl", [source]) as written:
        for frame in media.frames([source], print):
            written.write(frame, DRAWN, {})
            if frame.index == 1:
                raise ZeroDivisionError
    assert list((tmp_path / "out").iterdir()) == []


def test_a_file_in_place_of_the_folder_is_one_line(tmp_path):
    picture(tmp_path / "photo.png")
    with pytest.raises(UserError, match="--out .*photo.png cannot be written"):
        with writer.Writer(tmp_path / "photo.png", "lines.jsonl", []):
            pass
    with pytest.raises(UserError, match="photo.png must be a folder, or a place to make one"):
        drawing.write_png(tmp_path / "photo.png" / "curves.png", DRAWN)
