"""Pictures, folders, globs, videos and cameras as frames; what cannot be read is named."""

import resource
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from common import images, media, writer
from common.errors import UserError


def picture(height=12, width=20):
    """Left half red, right half blue."""
    image = np.zeros([height, width, 3], np.uint8)
    image[:, :width // 2] = [250, 10, 10]
    image[:, width // 2:] = [10, 10, 250]
    return image


def save(path, image, *options):
    cv2.imwrite(str(path), image[..., ::-1] if image.ndim == 3 else image, *options)


def read(arguments):
    """(frames, {unreadable name: reason}) of the arguments."""
    unreadable = {}
    return list(media.frames(list(map(str, arguments)), unreadable.__setitem__)), unreadable


def with_orientation(jpeg, orientation):
    """The JPEG with an EXIF segment that holds nothing but the orientation."""
    tiff = b"MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)
    segment = b"Exif\0\0" + tiff
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + jpeg[2:]


def png_bomb(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = b""
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return b"\x89PNG\r\n\x1a\n" + chunks


def test_files_folders_and_globs_in_order(tmp_path):
    folder = tmp_path / "folder"
    (folder / "below").mkdir(parents=True)
    for name in ("b10.png", "b2.PNG", ".hidden.png", "below/c.png"):
        save(folder / (name.replace("PNG", "png")), picture())
    (folder / "b2.png").rename(folder / "b2.PNG")
    (folder / "notes.txt").write_text("not a picture")
    found, unreadable = read([folder, tmp_path / "**/c*.png", folder / "b10.png"])
    names = [frame.source.removeprefix(str(tmp_path) + "/") for frame in found]
    assert names == ["folder/b2.PNG", "folder/b10.png", "folder/below/c.png", "folder/b10.png"]
    np.testing.assert_array_equal(found[0].image, picture())
    assert found[0].index == 0 and found[0].fps is None and all(frame.first for frame in found)


def test_what_is_left_out_of_a_folder_is_named(tmp_path):
    for name in ("scan.TIF", "IMG_1", "IMG_2", ".hidden"):
        (tmp_path / name).write_bytes(b"anything")
    (tmp_path / "below").mkdir()
    save(tmp_path / "a.png", picture())
    said = []
    (frame,) = media.frames([str(tmp_path)], lambda *what: said.append(what))
    assert frame.source == str(tmp_path / "a.png")
    assert said == [(str(tmp_path), line) for line in (
        "left out: 2 files of another kind (without suffix): IMG_1, IMG_2",
        "left out: 1 folders (not looked into): below",
        "left out: 1 pictures of a kind that is not read (.tif): scan.TIF")]


@pytest.mark.parametrize("kind", ["gray", "alpha", "16 bits", "gif", "webp", "bmp", "jpg"])
def test_all_kinds_become_three_channels(kind, tmp_path):
    image = picture()
    path = tmp_path / f"a.{kind if len(kind) < 5 and kind != 'gray' else 'png'}"
    if kind == "gray":
        image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        save(path, image)
        image = np.repeat(image[..., None], 3, -1)
    elif kind == "alpha":
        cv2.imwrite(str(path), np.dstack([image[..., ::-1], np.full(image.shape[:2], 100, np.uint8)]))
    elif kind == "16 bits":
        save(path, image.astype(np.uint16) * 257)
    else:
        save(path, image)
    (frame,), unreadable = read([path])
    assert not unreadable and frame.image.dtype == np.uint8 and frame.image.shape == image.shape
    # The lossy formats smear the colours a little, and GIF is dithered with a fixed palette.
    tolerance = {"gif": 80, "webp": 30, "jpg": 30}.get(kind, 0)
    np.testing.assert_allclose(frame.image[:, [2, -3]].astype(int), image[:, [2, -3]], atol=tolerance)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation, tmp_path):
    image = np.zeros([24, 40, 3], np.uint8)
    image[:8, :8] = 255  # stored top left
    jpeg = cv2.imencode(".jpg", image)[1].tobytes()
    path = tmp_path / "a.jpg"
    path.write_bytes(with_orientation(jpeg, orientation))
    shown = media.read_picture(path)
    # EXIF 2.3, table 6: where the 0th row and 0th column of the stored picture are seen.
    row, column = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0),
                   5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}[orientation]
    assert shown.shape == ((24, 40, 3) if orientation < 5 else (40, 24, 3))
    assert shown[row, column].min() > 200 and (shown > 128).mean() < 0.1


def test_what_cannot_be_read_is_named_and_the_rest_goes_on(tmp_path):
    save(tmp_path / "good.png", picture())
    jpeg = cv2.imencode(".jpg", np.random.default_rng(0).integers(0, 255, [64, 64, 3], np.uint8))[1].tobytes()
    (tmp_path / "cut.jpg").write_bytes(jpeg[:len(jpeg) // 2])
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "bomb.png").write_bytes(png_bomb(12_000, 12_000))
    (tmp_path / "bad.mp4").write_bytes(b"no video" * 100)
    (tmp_path / "folder").mkdir()
    names = ("cut.jpg", "empty.jpg", "text.png", "bomb.png", "bad.mp4", "folder", "missing.jpg", "none*.jpg")
    found, unreadable = read([tmp_path / name for name in (*names, "good.png")])
    assert [frame.source for frame in found] == [str(tmp_path / "good.png")]
    assert list(unreadable) == [str(tmp_path / name) for name in names]
    reasons = [unreadable[str(tmp_path / name)] for name in names]
    for reason, expected in zip(
        reasons,
        ("JPEG", "empty", "not a picture", "12000 x 12000", "video", "no pictures", "no such", "no such"),
    ):
        assert expected in reason


def test_camera_that_is_not_there():
    found, unreadable = read(["99"])
    assert not found and unreadable == {"99": "the camera cannot be opened"}


def test_video_round_trip(tmp_path):
    with media.VideoWriter(tmp_path / "out" / "clip", 12.0, (64, 48)) as writer:
        for shade in (0, 100, 200):
            writer.write(np.full([48, 64, 3], [shade, 0, 0], np.uint8))
        writer.write(np.full([24, 32, 3], [0, 0, 250], np.uint8))  # resized
        assert not writer.path.exists()
    assert [path.name for path in (tmp_path / "out").iterdir()] == [writer.path.name]
    found, unreadable = read([tmp_path / "out"])
    assert not unreadable and [frame.index for frame in found] == [0, 1, 2, 3]
    assert all(frame.fps == pytest.approx(12.0) and frame.image.shape == (48, 64, 3) for frame in found)
    assert abs(int(found[2].image[20, 20, 0]) - 200) < 15 and found[3].image[20, 20, 2] > 200  # lossy codec


def broken_clip(path, broken, count=60):
    """A film of `count` frames, frame i as bright as 4 i; those in `broken` are no JPEG any more."""
    made = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 25, (64, 48))
    for index in range(count):
        made.write(np.full([48, 64, 3], 4 * index, np.uint8))
    made.release()
    data = bytearray(path.read_bytes())
    place = data.index(b"movi") + 4
    for index in range(count):
        assert data[place:place + 4] == b"00dc"
        length = int.from_bytes(data[place + 4:place + 8], "little")
        if index in broken:
            data[place + 8:place + 8 + length] = bytes(length)
        place += 8 + length + length % 2
    path.write_bytes(data)
    return str(path)


@pytest.mark.parametrize("broken", [{30}, {0}, {0, 1, 30, *range(40, 50), 59}, set(range(1, 60)), set()])
def test_video_goes_on_behind_frames_that_cannot_be_decoded(broken, tmp_path):
    clip = broken_clip(tmp_path / "a.avi", broken)
    found, unreadable = read([clip])
    assert [frame.index for frame in found] == sorted(set(range(60)) - broken)  # the places they have in the film
    assert [frame.first for frame in found] == [True] + [False] * (len(found) - 1)
    for frame in found:
        assert abs(frame.image.mean() - 4 * frame.index) < 3
    reason = f"{60 - len(broken)} of its 60 frames could be decoded, the others are left out"
    assert unreadable == ({clip: reason} if broken else {})


def test_video_that_ends_too_early(tmp_path):
    path = tmp_path / "a.avi"
    clip = broken_clip(path, {10})
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    found, unreadable = read([clip])
    assert 10 < len(found) < 35
    assert unreadable == {clip: f"{len(found)} of its 60 frames could be decoded, the others are left out"}
    assert read([broken_clip(path, range(60))]) == ([], {clip: "it has no frame that can be decoded"})


def test_videos_without_their_first_frames_are_drawn_apart(tmp_path):
    clips = [broken_clip(tmp_path / name, {0, 2}, 4) for name in ("a.avi", "b.avi")]
    with writer.Writer(tmp_path / "out", "lines.jsonl", clips) as written:
        for frame in media.frames(clips, lambda *_: None):
            written.write(frame, frame.image, {})
    drawn = sorted(path for path in (tmp_path / "out").iterdir() if path.suffix != ".jsonl")
    assert [path.stem for path in drawn] == ["a", "b"]
    assert [len(read([path])[0]) for path in drawn] == [2, 2]


def test_a_video_that_the_disk_does_not_take_is_an_error(tmp_path):
    """OpenCV writes on without a word."""
    rng = np.random.default_rng(0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, before[1]))
    try:
        with pytest.raises(UserError, match="clip.mp4 must hold the 40 frames .* and holds [0-9]+. Free some space"):
            with media.VideoWriter(tmp_path / "clip", 10.0, (64, 48)) as made:
                for _ in range(40):
                    made.write(rng.integers(0, 256, [48, 64, 3], np.uint8))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_animated_picture_gives_its_first_and_says_so(kind, tmp_path):
    frames = [Image.fromarray(np.full([8, 8, 3], shade, np.uint8)) for shade in (40, 120, 200)]
    path = tmp_path / f"a.{kind}"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    (frame,), unreadable = read([path])
    assert abs(frame.image.mean() - 40) < 3
    assert unreadable == {str(path): "1 of its 3 pictures is read, the first; a video of them would give all"}
    built = images.prepare(path.read_bytes(), str(path))
    assert built.repairs == (f"{kind} stored as png", "first of several pictures in a file taken")
    frames[0].save(path)
    assert read([path])[1] == {} and len(images.prepare(path.read_bytes(), str(path)).repairs) == 1
