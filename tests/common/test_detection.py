"""The detection record: there and back, foreign records, every kind of picture, boxes mended or refused."""

import io
import pathlib
import re
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from common import building, detection, images, records
from common.errors import UserError

LABELS = ["left", "right"]
RED, GREEN = (200, 30, 60), (10, 180, 90)


def picture(width=60, height=40):
    """Red on the left, green on the right."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, :width // 2], image[:, width // 2:] = RED, GREEN
    return image


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def annotation(image, boxes_xyxy=((5, 5, 25, 35),), labels=None, **more):
    boxes_xyxy = np.reshape(boxes_xyxy, [-1, 4])
    return detection.Annotation(image, more.pop("filename", "a.jpg"), boxes_xyxy,
                                [0] * len(boxes_xyxy) if labels is None else labels, **more)


def build(out, annotations, **options):
    """Writes annotations (or UserErrors to raise) as the split train; returns (report, parsed records)."""
    def load(i):
        if isinstance(annotations[i], Exception):
            raise annotations[i]
        return annotations[i]

    source = detection.Source("set", LABELS, {"train": range(len(annotations))}, load, "a test")
    report = detection.build_records(source, out, progress=False, **options)
    examples = [detection.parse(item["record"]) for item in records.dataset(report.folder, "train")]
    return report, examples


# The record.

def test_there_and_back():
    boxes_xyxy = np.array([[0, 0.25, 0.5, 1], [0.125, 0.5, 0.25, 0.625]], np.float32)
    record = detection.encode_example(
        b"bytes", 400, 600, "näme.jpg", boxes_xyxy, [1, 0], difficult=[True, False], is_crowd=[False, True],
        area=[7, 8], label_names=LABELS)
    example = {key: value.numpy() for key, value in detection.parse(record).items()}
    assert (example["image_bytes"], example["height"], example["width"]) == (b"bytes", 400, 600)
    assert example["filename"].decode() == "näme.jpg"
    np.testing.assert_array_equal(example["boxes_xyxy"], boxes_xyxy)
    assert example["labels"].tolist() == [1, 0] and example["area"].tolist() == [7, 8]
    assert example["difficult"].tolist() == [True, False] and example["is_crowd"].tolist() == [False, True]
    stored = tf.train.Example.FromString(record).features.feature
    assert list(stored["image/object/class/label"].int64_list.value) == [2, 1]  # 0 is the background there
    assert list(stored["image/object/class/text"].bytes_list.value) == [b"right", b"left"]
    assert list(stored["image/object/bbox/ymin"].float_list.value) == [0.25, 0.5]


@pytest.mark.parametrize("count", [0, 1, 500])
def test_records_of_the_object_detection_api_without_optional_lists(count):
    """As its create_pascal_tf_record.py and create_coco_tf_record.py write them."""
    def floats(value):
        return tf.train.Feature(float_list=tf.train.FloatList(value=[value] * count))

    record = tf.train.Example(features=tf.train.Features(feature={
        "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[100])),
        "image/width": tf.train.Feature(int64_list=tf.train.Int64List(value=[200])),
        "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"bytes"])),
        "image/object/bbox/xmin": floats(0.25), "image/object/bbox/xmax": floats(0.5),
        "image/object/bbox/ymin": floats(0.5), "image/object/bbox/ymax": floats(1),
        "image/object/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[3] * count)),
    })).SerializeToString()
    batch = tf.data.Dataset.from_tensors(record).map(detection.parse)  # as in a pipeline, shapes unknown
    example = next(batch.as_numpy_iterator())
    assert example["boxes_xyxy"].tolist() == [[0.25, 0.5, 0.5, 1]] * count
    assert example["labels"].tolist() == [2] * count and example["filename"] == b""
    assert example["difficult"].tolist() == example["is_crowd"].tolist() == [False] * count
    assert example["area"].tolist() == [2500] * count  # of the boxes


def test_lists_of_different_lengths_are_refused():
    boxes_xyxy = [[0, 0, 1, 1]] * 2
    record = detection.encode_example(b"", 1, 1, "a", boxes_xyxy, [0], difficult=[0, 0], is_crowd=[0, 0])
    with pytest.raises(tf.errors.InvalidArgumentError):
        detection.parse(record)
    with pytest.raises(tf.errors.InvalidArgumentError):
        detection.parse(detection.encode_example(b"", 1, 1, "a", boxes_xyxy, [0, 0], difficult=[0, 0, 0]))
    with pytest.raises(tf.errors.InvalidArgumentError):
        detection.parse(b"not an example")


# Fault 26: every kind of picture.

KINDS = {
    "jpeg": encoded(picture(), "JPEG", quality=95, subsampling=0),
    "progressive": encoded(picture(), "JPEG", quality=95, subsampling=0, progressive=True),
    "gray jpeg": encoded(Image.fromarray(picture()).convert("L"), "JPEG"),
    "cmyk jpeg": encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95),
    "rgba png": encoded(Image.fromarray(picture()).convert("RGBA"), "PNG"),
    "gray alpha png": encoded(Image.fromarray(picture()).convert("LA"), "PNG"),
    "palette png": encoded(Image.fromarray(picture()).quantize(8), "PNG"),
    "16-bit png": cv2.imencode(".png", picture()[..., ::-1].astype(np.uint16) * 257)[1].tobytes(),
    "16-bit gray png": cv2.imencode(".png", picture()[..., 1].astype(np.uint16) * 257)[1].tobytes(),
    "gif": encoded(picture(), "GIF"),
    "animation": encoded(picture(), "GIF", save_all=True, append_images=[
        Image.fromarray(np.full((40, 60, 3), i * 9, np.uint8)) for i in range(3)]),
    "bmp": encoded(picture(), "BMP"),
    "gray bmp": encoded(Image.fromarray(picture()).convert("L"), "BMP"),
    "webp": encoded(picture(), "WEBP", quality=95),
    "lossless webp": encoded(picture(), "WEBP", lossless=True),
    "alpha webp": encoded(Image.fromarray(picture()).convert("RGBA"), "WEBP", lossless=True),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_picture_becomes_three_channels(kind):
    header = images.read_header(KINDS[kind])
    assert (header.width, header.height, header.orientation) == (60, 40, 1)
    stored = images.prepare(KINDS[kind], kind)
    assert (stored.width, stored.height) == (60, 40)
    kept = "jpeg" in kind or "png" in kind or kind == "progressive"
    assert (stored.data == KINDS[kind]) == kept == (not stored.repairs)
    decode = {"jpeg": tf.image.decode_jpeg, "png": tf.image.decode_png}[stored.format]
    image = decode(stored.data, channels=3).numpy()  # as others will read it
    np.testing.assert_array_equal(image, images.decode(stored.data))
    expected = [RED, GREEN]
    if "gray" in kind:
        gray = [color[1] for color in expected] if "16-bit" in kind else [
            round(0.299 * r + 0.587 * g + 0.114 * b) for r, g, b in expected]
        expected = [(value,) * 3 for value in gray]
    np.testing.assert_allclose(image[20, [5, 55]], expected, atol=4)  # the lossy formats


# Fault 25: what is no picture, and fault 28: bombs.

def png_header(width, height):
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    return (b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk)) +
            struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)))


BAD = {
    "empty": (b"", "it is empty"),
    "text": (b"<html>no picture</html>", "not a JPEG, PNG, GIF, BMP or WebP"),
    "tiff": (encoded(picture(), "TIFF"), "not a JPEG"),
    "two bytes of jpeg": (b"\xff\xd8", "it has no JPEG frame header"),
    "jpeg cut in its header": (KINDS["jpeg"][:100], "it has no JPEG frame header"),
    "cut jpeg": (KINDS["jpeg"][:-200], "a whole JPEG picture, and cannot be decoded"),
    "jpeg without end": (KINDS["jpeg"][:-2], "a whole JPEG picture, and cannot be decoded"),
    "cut png": (KINDS["rgba png"][:-40], "a whole PNG picture, and cannot be decoded"),
    "cut gif": (KINDS["gif"][:60], "a whole GIF picture, and cannot be decoded"),
    "cut webp": (KINDS["webp"][:40], "a whole WEBP picture, and cannot be decoded"),
    "cut bmp": (KINDS["bmp"][:300], "a whole BMP picture, and cannot be decoded"),
    "png bomb": (png_header(12000, 12000), r"1 to 67,108,864 pixels, and claims 12000 x 12000"),
    "wide bomb": (png_header(2**31 - 1, 1), "pixels, and claims 2147483647 x 1"),
    "no height": (KINDS["bmp"][:22] + bytes(4) + KINDS["bmp"][26:], "pixels, and claims 60 x 0"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_pictures_are_named_and_refused(kind):
    data, words = BAD[kind]
    start = time.perf_counter()
    with pytest.raises(UserError, match=f"folder/{kind}.jpg must .*{words}"):
        images.prepare(data, f"folder/{kind}.jpg")
    assert "bomb" not in kind or time.perf_counter() - start < 0.1  # refused before decoding


def test_bad_files_stop_a_build_or_are_skipped_and_counted(tmp_path, capsys):
    (tmp_path / "cut.jpg").write_bytes(KINDS["jpeg"][:-200])
    entries = [annotation(KINDS["jpeg"]), annotation(tmp_path / "cut.jpg"),
               annotation(tmp_path / "missing.jpg"), UserError("b.xml is broken."),
               annotation(KINDS["jpeg"], filename="last.jpg")]
    with pytest.raises(UserError, match="cut.jpg must be a whole JPEG .*--skip_bad"):
        build(tmp_path / "out", entries)
    assert not (tmp_path / "out").exists()
    report, examples = build(tmp_path / "out", entries, on_bad="skip", num_workers=2)
    assert [example["filename"].numpy() for example in examples] == [b"a.jpg", b"last.jpg"]
    assert [entry["file"] for entry in report.manifest["skipped"]] == ["1", "2", "3"]
    text = building.describe(report)
    for words in ("train 2 pictures, 2 objects", "cut.jpg must be a whole",
                  "missing.jpg must be readable: No such", "b.xml is broken."):
        assert words in text


def test_where_nothing_can_be_used_the_error_says_what_was_skipped(tmp_path):
    with pytest.raises(UserError, match="Not one of the pictures .* skipped: a.xml is broken. skipped: b.xml is cut."):
        build(tmp_path / "out", [UserError("a.xml is broken."), UserError("b.xml is cut.")], on_bad="skip")
    assert not (tmp_path / "out").exists()


def test_what_the_reader_passes_over_is_counted_and_named(tmp_path):
    photos = [pathlib.Path(f"folder/{i}.tif") for i in range(7)]
    source = detection.Source("set", ["dog"], {"train": [annotation(KINDS["jpeg"])]}, lambda item: item,
                              left_out={"pictures of a kind that is not read (.tif)": photos, "nothing": []})
    report = detection.build_records(source, tmp_path, progress=False)
    assert report.manifest["left_out"] == {"pictures of a kind that is not read (.tif)": {
        "count": 7, "names": ["0.tif", "1.tif", "2.tif", "3.tif", "4.tif"]}}
    assert ("left out: 7 pictures of a kind that is not read (.tif): 0.tif, 1.tif, 2.tif, 3.tif, 4.tif, ..."
            in building.describe(report))


# Fault 27: EXIF orientation.

@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_stay_on_the_object_whatever_the_orientation(tmp_path, orientation):
    """The camera stored `raw`; annotated either as stored, or as viewers show it."""
    upright = np.full((48, 64, 3), 255, np.uint8)
    upright[8:24, 16:48] = RED  # the object as it is seen: left 16, top 8, right 48, bottom 24
    exif = Image.Exif()
    exif[0x0112] = orientation
    raw = {1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
           5: upright.swapaxes(0, 1), 6: np.rot90(upright), 7: upright[::-1, ::-1].swapaxes(0, 1),
           8: np.rot90(upright, -1)}[orientation]
    data = encoded(np.ascontiguousarray(raw), "JPEG", exif=exif, quality=95, subsampling=0)
    assert images.read_header(data).orientation == orientation
    red = np.argwhere(raw[..., 1] < 128)
    as_stored = [*red.min(0)[::-1], *red.max(0)[::-1] + 1]
    cases = [annotation(data, [as_stored], size=raw.shape[1::-1])]
    if orientation >= 5:  # below, both sizes are the same, and the boxes are taken to be of the stored pixels
        cases.append(annotation(data, [[16, 8, 48, 24]], size=(64, 48)))
    report, examples = build(tmp_path, cases)
    assert len(report.repaired) == len(cases) - 1
    for example in examples:
        image = detection.decode_image(example["image_bytes"]).numpy()
        assert image.shape[:2] == (example["height"], example["width"])
        pixels = example["boxes_xyxy"][0] * ([image.shape[1], image.shape[0]] * 2)
        left, top, right, bottom = np.rint(pixels).astype(int)
        inside = image[top:bottom, left:right]
        assert (inside[..., 1] < 128).mean() > 0.97 and inside.shape[0] * inside.shape[1] == 512
        assert (image[..., 1] < 128).sum() < 540
    if orientation >= 5:
        assert examples[0]["image_bytes"] == data
        turned = np.asarray(Image.open(io.BytesIO(examples[1]["image_bytes"].numpy())))
        np.testing.assert_allclose(turned.astype(int), upright, atol=30)  # twice JPEG, at the object's edges


# Boxes.

def test_boxes_are_clipped_dropped_and_counted(tmp_path):
    boxes_xyxy = [[-3, 5, 20, 35], [10, 10, 10, 20], [60, 0, 70, 10], [5, 5, 6, 6], [0, 0, 60, 40]]
    entry = annotation(KINDS["jpeg"], boxes_xyxy, [0, 1, 1, 1, 0], difficult=[1, 0, 0, 0, 1],
                       is_crowd=[0, 1, 1, 1, 0], size=(60, 40))
    report, (example,) = build(tmp_path, [entry])
    assert report.repaired == {"box clipped to the picture": 1, "object without area dropped": 1,
                               "object outside the picture dropped": 1} == report.manifest["repaired"]
    np.testing.assert_allclose(example["boxes_xyxy"] * [60, 40, 60, 40],
                               [[0, 5, 20, 35], [5, 5, 6, 6], [0, 0, 60, 40]], atol=1e-5)
    assert example["labels"].numpy().tolist() == [0, 1, 0]
    assert example["difficult"].numpy().tolist() == [True, False, True]
    assert example["is_crowd"].numpy().tolist() == [False, True, False]
    assert example["area"].numpy().tolist() == [600, 1, 2400]


def test_objects_of_less_than_a_pixel_are_counted(tmp_path):
    """Such as fractions among pixels leave: 0.2 x 4 pixels."""
    report, (example,) = build(tmp_path, [annotation(KINDS["jpeg"], [[5, 5, 5.2, 9], [5, 5, 6, 6]])])
    assert report.repaired == {"object of less than a pixel kept": 1} and len(example["labels"]) == 2


def test_records_of_one_source_are_the_same_bytes_in_every_process():
    """Protobuf itself puts a record's features in an order that each process draws anew."""
    record = detection.encode_example(b"x", 10, 10, "a.jpg", [[0, 0, 1, 1]], [0], label_names=["a"])
    names = re.findall(rb"image/[a-z/_]+", record)
    assert names == sorted(names) and len(names) == 15


def test_pictures_without_objects_and_with_many(tmp_path):
    many = np.tile([[5, 5, 25, 35]], (500, 1))
    entries = [annotation(KINDS["jpeg"], []), annotation(KINDS["jpeg"], many)]
    report, (none, all_of_them) = build(tmp_path, entries)
    assert none["boxes_xyxy"].shape == (0, 4) and none["labels"].shape == none["area"].shape == (0,)
    assert len(all_of_them["labels"]) == 500 == report.manifest["splits"]["train"]["objects"]


def test_boxes_of_a_picture_that_was_resized_are_scaled(tmp_path):
    entry = annotation(KINDS["jpeg"], [[10, 10, 50, 70]], size=(120, 80), area=[800])
    report, (example,) = build(tmp_path, [entry])
    np.testing.assert_allclose(example["boxes_xyxy"][0] * [60, 40, 60, 40], [5, 5, 25, 35], atol=1e-5)
    assert example["area"].numpy().tolist() == [200]
    assert report.repaired == {"picture resized after annotating, boxes scaled": 1}


def test_a_size_of_zero_says_nothing(tmp_path):
    _, (example,) = build(tmp_path, [annotation(KINDS["jpeg"], [[5, 5, 25, 35]], size=(0, 0))])
    np.testing.assert_allclose(example["boxes_xyxy"][0] * [60, 40, 60, 40], [5, 5, 25, 35], atol=1e-5)


@pytest.mark.parametrize("entry, words", [
    (annotation(KINDS["jpeg"], size=(61, 80)), "a.jpg must be as large as annotated, 61 x 80, and is 60 x"),
    (annotation(KINDS["jpeg"], size=(40, 60)), "as large as annotated, 40 x 60, and is 60 x 40"),
    (annotation(KINDS["jpeg"], [[0, np.nan, 1, 1]]), "a.jpg must have boxes of finite numbers"),
    (annotation(KINDS["jpeg"], [[0, 0, np.inf, 1]]), "a.jpg must have boxes of finite numbers"),
])
def test_what_cannot_be_mended_is_named(tmp_path, entry, words):
    with pytest.raises(UserError, match=words):
        build(tmp_path, [entry])


def test_any_number_of_workers_and_shards_gives_the_same_records(tmp_path):
    entries = [annotation(KINDS["jpeg"], filename=f"{i}.jpg") for i in range(30)]
    one, first = build(tmp_path / "1", entries, num_workers=1, shards=4)
    four, second = build(tmp_path / "4", entries, num_workers=4, shards=4)
    assert one.manifest == four.manifest and len(one.manifest["splits"]["train"]["shards"]) == 4
    assert [e["filename"].numpy() for e in first] == [b"%d.jpg" % i for i in range(30)]


def test_an_error_in_a_reader_comes_out_as_it_is(tmp_path):
    with pytest.raises(ZeroDivisionError):
        build(tmp_path, [annotation(KINDS["jpeg"]), ZeroDivisionError("reader")], num_workers=2)
    assert not (tmp_path / "set").exists()
    with pytest.raises(ValueError, match="on_bad"):
        build(tmp_path, [annotation(KINDS["jpeg"])], on_bad="ignore")


def test_batches_are_parsed_as_single_records_are():
    rng = np.random.default_rng(0)
    serialized = [detection.encode_example(b"bytes %d" % count, 10, 20, f"{count}.jpg", rng.random([count, 4]),
                                           rng.integers(5, size=count), is_crowd=rng.integers(2, size=count))
                  for count in (2, 0, 5, 1)]
    feature = tf.train.Example.FromString(serialized[0])
    del feature.features.feature["image/object/is_crowd"]     # optional in records of others
    serialized[0] = feature.SerializeToString()
    found = tf.function(detection.parse_batch)(tf.constant(serialized))
    assert found["boxes_xyxy"].shape == (4, 5, 4)
    for i, record in enumerate(serialized):
        expected = detection.parse(record)
        count = len(expected["labels"])
        for key in ("image_bytes", "filename"):
            assert found[key][i] == expected[key]
        for key, behind in (("boxes_xyxy", 0), ("labels", -1), ("is_crowd", False)):
            np.testing.assert_array_equal(found[key][i][:count], expected[key])
            assert (found[key][i][count:].numpy() == behind).all()
    assert detection.parse_batch(serialized[1:2])["boxes_xyxy"].shape == (1, 0, 4)


@pytest.mark.parametrize("key", ["class/label", "bbox/ymax", "is_crowd"])
def test_a_list_of_another_length_is_an_error(key):
    example = tf.train.Example.FromString(
        detection.encode_example(b"", 10, 20, "a.jpg", [[0, 0, 1, 1], [0, 0, 1, 1]], [0, 1]))
    values = example.features.feature[f"image/object/{key}"]
    del (values.float_list if key == "bbox/ymax" else values.int64_list).value[1:]
    good = detection.encode_example(b"", 10, 20, "b.jpg", [[0, 0, 1, 1]] * 3, [0, 1, 2])
    with pytest.raises(tf.errors.InvalidArgumentError):
        detection.parse(example.SerializeToString())
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"image/object/{key} of a record"):
        detection.parse_batch([good, example.SerializeToString()])
