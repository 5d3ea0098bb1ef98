"""Records of two domains, and batches of pictures that do not belong together: anew in each epoch, to the last bit
again from any step and for any number of replicas."""

import io
import pathlib

import cv2
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from absl import flags

from common import images, media, records
from common.errors import UserError
from cyclegan import export as cyclegan_export
from cyclegan import litert, preprocess, sources

COUNTS = {"trainA": 8, "trainB": 6, "testA": 3, "testB": 2}
# The gray of the right half of the first picture; the next have 3 more each.
NUMBERS = {"trainA": 10, "trainB": 150, "testA": 60, "testB": 200}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of plain pictures of 8 x 8, each of another gray, the left half a little darker."""
    root = tmp_path_factory.mktemp("cyclegan")
    for split, count in COUNTS.items():
        (root / "source" / split).mkdir(parents=True)
        for i in range(count):
            image = np.full([8, 8, 3], NUMBERS[split] + 3 * i, np.uint8)
            image[:, :4] -= 1
            cv2.imwrite(str(root / "source" / split / f"{i}.png"), image)
    return preprocess.build("cat2dog", root / "source", root / "records" / "cat2dog", shards=2)


def grays(batch, side):
    """The numbers of the pictures of a side of a batch, from 0."""
    first = NUMBERS[f"train{side.upper()}"]
    return [round((int(image[0, -1, 0]) - first) / 3) for image in preprocess.to_bytes(batch[side])]


def stream(folder, count, **values):
    dataset = preprocess.training_dataset(folder, **{"image_size": 8, "seed": 5, **values})
    found = list(dataset.take(count).as_numpy_iterator())
    return {side: np.concatenate([batch[side] for batch in found]) for side in "ab"}


# Records.

def test_records_say_what_they_hold(folder):
    manifest = records.read_manifest(folder)
    assert {split: entry["examples"] for split, entry in manifest["splits"].items()} == COUNTS
    assert manifest["kind"] == preprocess.KIND and preprocess.domains(folder) == ["cat", "dog"]
    records.verify(folder)
    (item,) = records.dataset(folder, "testB", epochs=1).take(1)
    example = preprocess.parse(item["record"])
    assert (example["height"], example["width"], example["filename"]) == (8, 8, b"0.png")
    assert preprocess.images.decode(example["image_bytes"]).numpy()[0, -1, 0] == 200


def test_records_of_another_kind_are_refused(tmp_path):
    with records.RecordWriter(tmp_path / "other", kind="detection") as writer:
        writer.write_split("trainA", [b"x"])
        writer.publish()
    with pytest.raises(UserError, match="of kind 'unpaired pictures', and its manifest says 'detection'"):
        preprocess.domains(tmp_path / "other")
    with pytest.raises(UserError, match="says 'detection'. Give another set, .* with the article's preprocess.py.$"):
        preprocess.ensure_records(str(tmp_path / "other"))


def encoded(mode, kind, **options):
    image = Image.fromarray(np.kron(np.uint8([[30, 200], [90, 250]]), np.ones((4, 8), np.uint8))).convert(mode)
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_pictures_of_all_kinds(tmp_path, capsys):
    """Gray, CMYK, RGBA, WebP and GIF; what EXIF turns is turned, since there are no boxes to go by."""
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the picture is to be turned clockwise
    contents = {"gray.jpg": encoded("L", "JPEG"), "cmyk.jpg": encoded("CMYK", "JPEG"),
                "alpha.png": encoded("RGBA", "PNG"), "webp.webp": encoded("RGB", "WEBP", lossless=True),
                "gif.gif": encoded("L", "GIF"), "turned.jpg": encoded("RGB", "JPEG", exif=exif, quality=100)}
    for split in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / split).mkdir()
        for name, data in contents.items():
            (tmp_path / split / name).write_bytes(data)
    folder = preprocess.build("mine", tmp_path, tmp_path / "out")
    assert "repaired: picture turned as its EXIF orientation says: 4\n" in capsys.readouterr().out
    found = {}
    for item in records.dataset(folder, "trainA", epochs=1):
        example = preprocess.parse(item["record"])
        image = preprocess.images.decode(example["image_bytes"]).numpy()
        found[example["filename"].numpy().decode()] = image
        assert image.shape == (example["height"], example["width"], 3)
    assert set(found) == set(contents)
    turned = found["turned.jpg"]
    assert turned.shape == (16, 8, 3)
    np.testing.assert_allclose(turned[[2, 2, 13, 13], [1, 6, 1, 6], 0], [90, 30, 250, 200], atol=8)  # JPEG
    np.testing.assert_allclose(found["gray.jpg"][[1, 6], [2, 13], 0], [30, 250], atol=4)


def transparent():
    """A PNG of one colour, 40, 80, 120, whose alpha goes from 0 to 255, and what it is on white by hand."""
    alpha = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.dstack([np.full([16, 16, 3], [40, 80, 120], np.uint8), alpha])
    share = alpha[..., None] / 255
    expected = np.array([40, 80, 120]) * share + 255 * (1 - share)
    return cv2.imencode(".png", image[..., [2, 1, 0, 3]])[1].tobytes(), expected


def test_transparency_lies_on_white(tmp_path, capsys):
    """In records, in those of older sets that kept it, for LiteRT and in the bundle; see predict's and face swap's."""
    data, expected = transparent()
    for split in ("trainA", "trainB", "testA", "testB"):
        (tmp_path / "source" / split).mkdir(parents=True)
        (tmp_path / "source" / split / f"{split}.png").write_bytes(data)
    folder = preprocess.build("mine", tmp_path / "source", tmp_path / "records")
    assert "repaired: picture with transparency laid on white: 4\n" in capsys.readouterr().out
    (item,) = records.dataset(folder, "trainA", epochs=1)
    older = preprocess.encode_example(images.Picture(data, "png", 16, 16, ()), "older.png")
    in_bundle, = cyclegan_export.signatures()["a2b_bytes"].before(tf.constant([data]))
    found = {"records": preprocess.decode(item["record"]), "older records": preprocess.decode(older),
             "litert": litert.read_folder(tmp_path / "source" / "trainB", 16, 9)[0][0] * 255,
             "bundle": cyclegan_export.parse(in_bundle[0]) * 255}
    for name, picture in found.items():
        np.testing.assert_allclose(picture, expected, atol=0.51, err_msg=name)
    assert not records.read_manifest(folder)["skipped"] and images.read_header(
        preprocess.parse(item["record"])["image_bytes"].numpy()).format == "png"


def test_records_are_decoded_as_predict_reads_files(tmp_path):
    """Gray, colours with and without chroma in full, PNG: bit for bit, in a graph too."""
    y, x = np.mgrid[:37, :50]
    image = np.stack([5 * x, 6 * y, 3 * (x + y) + 40 * ((x // 3 + y // 3) % 2)], axis=-1).clip(0, 255).astype(np.uint8)
    for name, mode, options in (("full.jpg", "RGB", {"subsampling": 0}), ("half.jpg", "RGB", {"subsampling": 2}),
                                ("gray.jpg", "L", {}), ("same.png", "RGB", {})):
        path = tmp_path / name
        Image.fromarray(image).convert(mode).save(path, **options)
        record = preprocess.encode_example(images.prepare(path.read_bytes(), name), name)
        found = tf.function(preprocess.decode)(tf.constant(record))
        np.testing.assert_array_equal(found, media.read_picture(path), err_msg=name)


def test_pictures_in_two_splits_are_counted(tmp_path, capsys):
    """By their contents, whatever their names: between train and test, and between the domains."""
    for split, names in {"trainA": "abc", "trainB": "defd", "testA": "cg", "testB": "hgf"}.items():
        (tmp_path / split).mkdir()
        for number, name in enumerate(names):
            image = np.full([4, 4, 3], 7 * ord(name) % 256, np.uint8)
            cv2.imwrite(str(tmp_path / split / f"{number}{split}.png"), image)
    (tmp_path / "notes.txt").touch()
    manifest = records.read_manifest(preprocess.build("mine", tmp_path, tmp_path / "out"))
    assert manifest["shared"] == {"testA": {"trainA": 1}, "testB": {"trainB": 1, "testA": 1}}
    beside = {"count": 1, "names": ["notes.txt"]}
    assert manifest["left_out"] == {"files or folders beside the folders of splits": beside}
    out = capsys.readouterr().out
    assert "left out: 1 files or folders beside the folders of splits: notes.txt\n" in out
    assert [line for line in out.splitlines() if "note" in line and "left out" not in line] == [
        "note: testA: 1 pictures are in trainA too; scores on them mean little.",
        "note: testB: 1 pictures are in trainB too; scores on them mean little.",
        "note: testB: 1 pictures are in testA too, which is of the other domain."]


def test_what_is_no_picture_is_named_or_left_out(tmp_path):
    for split, count in COUNTS.items():
        (tmp_path / split).mkdir()
        for i in range(count):
            (tmp_path / split / f"{i}.jpg").write_bytes(encoded("RGB", "JPEG"))
    (tmp_path / "trainB" / "2.jpg").write_bytes(encoded("RGB", "JPEG")[:90])
    bomb = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (60000).to_bytes(4, "big") * 2 + encoded("L", "PNG")[24:]
    (tmp_path / "testA" / "1.jpg").write_bytes(bomb)
    with pytest.raises(UserError, match=r"trainB/2.jpg must be a whole JPEG|trainB/2.jpg must be .*skip_bad"):
        preprocess.build("mine", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    folder = preprocess.build("mine", tmp_path, tmp_path / "out", skip_bad=True)
    manifest = records.read_manifest(folder)
    assert [manifest["splits"][split]["examples"] for split in COUNTS] == [8, 5, 2, 2]
    assert [entry["split"] for entry in manifest["skipped"]] == ["trainB", "testA"]
    assert manifest["skipped"][0]["file"] == str(tmp_path / "trainB" / "2.jpg")
    assert "claims 60000 x 60000" in manifest["skipped"][1]["reason"]


# Pixels.

def test_range():
    values = np.arange(256, dtype=np.uint8)
    floats = preprocess.to_floats(values)
    assert floats.dtype == tf.float32 and floats[0] == -1 and floats[255] == 1
    np.testing.assert_array_equal(preprocess.to_bytes(floats), values)
    assert preprocess.to_bytes([-2.0, 2.0, 0.0]).tolist() == [0, 255, 128]


@pytest.mark.parametrize("size", [17, 60])
def test_resized_as_pillow_does(size):
    """A smooth picture of 40 x 24, each side on its own; Pillow rounds to whole numbers twice."""
    y, x = np.mgrid[:24, :40]
    image = (127 + 80 * np.sin(x / 5)[..., None] * np.cos(y / 6 + np.arange(3)[:, None, None]).transpose(1, 2, 0))
    image = image.astype(np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((size, size), Image.BICUBIC)).astype(float)
    np.testing.assert_allclose(preprocess.resize(image, size), expected, atol=1.3)
    both = np.asarray(Image.fromarray(image).resize((size, size + 5), Image.BICUBIC)).astype(float)
    np.testing.assert_allclose(preprocess.resize(image, [size + 5, size]), both, atol=1.3)


def test_crops_and_flips():
    """A picture whose pixels say where they are: a crop is a window of the enlarged one, or its mirror image."""
    y, x = np.mgrid[:32, :32]
    image = np.stack([6 * x, 6 * y, np.full_like(x, 40)], axis=-1).astype(np.uint8)
    large = preprocess.resize(image, 36).numpy()  # 32 * 286 / 256 = 35.75
    seen = set()
    for number in range(120):
        found = preprocess.augment(image, tf.constant([3, number], tf.int64), 32).numpy()
        for flipped in (False, True):
            candidate = found[:, ::-1] if flipped else found
            for top in range(5):
                for left in range(5):
                    if np.array_equal(candidate, large[top:top + 32, left:left + 32]):
                        seen.add((top, left, flipped))
        again = preprocess.augment(image, tf.constant([3, number], tf.int64), 32).numpy()
        np.testing.assert_array_equal(found, again)
    assert len(seen) > 40 and {top for top, *_ in seen} == {left for _, left, _ in seen} == set(range(5))
    straight = [preprocess.augment(image, tf.constant([3, i], tf.int64), 32, flip=False) for i in range(20)]
    assert all(each[0, -1, 0] > each[0, 0, 0] for each in straight)


# Order.

def test_pairs_change_and_the_shorter_side_starts_anew(folder):
    """72 pairs: 9 epochs of A's 8, 12 of B's 6 (the original zipped the sides, and shuffled the pairs)."""
    dataset = preprocess.training_dataset(folder, image_size=8, batch_size=1, seed=0, augmented=False)
    pairs = [(grays(batch, "a")[0], grays(batch, "b")[0]) for batch in dataset.take(72).as_numpy_iterator()]
    epochs_a = [tuple(a for a, _ in pairs[i:i + 8]) for i in range(0, 72, 8)]
    epochs_b = [tuple(b for _, b in pairs[i:i + 6]) for i in range(0, 72, 6)]
    assert all(sorted(epoch) == list(range(8)) for epoch in epochs_a)
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs_b)
    assert len(set(epochs_a)) == 9 and len(set(epochs_b)) > 10  # of 720 orders
    partners = {a: {b for other, b in pairs if other == a} for a, _ in pairs}
    assert all(len(found) >= 3 for found in partners.values())  # nine epochs, six pictures of B


def test_sides_of_one_length_have_orders_of_their_own(folder):
    dataset = preprocess.training_dataset(folder, image_size=8, batch_size=5, seed=0, augmented=False, limit=5)
    orders = [(grays(batch, "a"), grays(batch, "b")) for batch in dataset.take(6).as_numpy_iterator()]
    assert all(sorted(a) == sorted(b) == list(range(5)) for a, b in orders)  # limit: of each side
    assert sum(a != b for a, b in orders) >= 5


def test_steps_cover_the_longer_side(folder):
    assert preprocess.steps_per_epoch(folder, 1) == 8 and preprocess.steps_per_epoch(folder, 3) == 2
    assert preprocess.steps_per_epoch(folder, 1, limit=7) == 7 and preprocess.steps_per_epoch(folder, 50) == 1


def test_batches_go_on_from_any_step_and_split_over_replicas_and_workers(folder):
    """Orders, crops and flips, bit by bit: a start at step 9, two replicas' halves, two workers' parts."""
    whole, later = stream(folder, 16, batch_size=4), stream(folder, 7, batch_size=4, start_step=9)
    halves = stream(folder, 32, batch_size=2, global_batch_size=4)
    workers = [stream(folder, 16, batch_size=2, global_batch_size=4, num_workers=2, worker=worker)
               for worker in range(2)]
    resumed = stream(folder, 7, batch_size=2, global_batch_size=4, num_workers=2, worker=1, start_step=9)
    for side in "ab":
        assert whole[side].shape == (64, 8, 8, 3) and whole[side].dtype == np.float32
        np.testing.assert_array_equal(whole[side][36:], later[side])
        np.testing.assert_array_equal(whole[side], halves[side])
        for worker in range(2):
            np.testing.assert_array_equal(whole[side][worker::2], workers[worker][side])
        np.testing.assert_array_equal(workers[1][side][18:], resumed[side])
    assert not np.array_equal(whole["a"], stream(folder, 16, batch_size=4, seed=6)["a"])


def test_evaluation_has_each_picture_once_and_is_filled_up(folder):
    found = list(preprocess.evaluation_dataset(folder, "testA", image_size=12, batch_size=2, global_batch_size=4))
    assert [batch["index"].numpy().tolist() for batch in found] == [[0, 1], [2, -1]]
    assert found[0]["images"].shape == (2, 12, 12, 3)
    means = [image.mean() for batch in found for image in preprocess.to_bytes(batch["images"])]
    np.testing.assert_allclose(means, [59.5, 62.5, 65.5, 59.5], atol=0.3)
    few = preprocess.evaluation_dataset(folder, "trainB", image_size=8, batch_size=4, limit=2)
    assert [batch["index"].numpy().tolist() for batch in few] == [[0, 1, -1, -1]]


# The command line.

def test_demo_is_built_on_the_spot(tmp_path, monkeypatch):
    small = sources.from_demo(0, {"trainA": 4, "trainB": 3, "testA": 1, "testB": 1})
    monkeypatch.setattr(sources, "from_demo", lambda seed: small)
    monkeypatch.chdir(tmp_path)
    folder = preprocess.ensure_records("demo")
    assert preprocess.domains(folder) == ["plain", "striped"]
    assert folder == pathlib.Path("tfrecords/demo_unpaired_pictures")
    assert preprocess.ensure_records("demo") == folder == preprocess.ensure_records(str(folder))
    preprocess.visualize(folder, tmp_path / "drawn.png", image_size=32, columns=3)
    assert cv2.imread(str(tmp_path / "drawn.png")).shape == (4 * 36 - 4, 3 * 36 - 4, 3)


def test_what_is_not_there_says_what_to_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sources, "reachable", lambda url: False)
    for name in ("horse2zebra", "cycle_gan/horse2zebra"):
        with pytest.raises(UserError, match="No records match tfrecords/horse2zebra/trainA-.*--dataset "
                           "horse2zebra --source horse2zebra .not done on the spot: .* be reached") as error:
            preprocess.ensure_records(name)
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--dataset mine --source FOLDER Without a folder, apple2orange, .* demo"):
        preprocess.ensure_records("mine")


class Flags:
    """absl.flags, defining into other values than the program's."""

    def __init__(self, values):
        self.values = values

    def __getattr__(self, name):
        return lambda *arguments, **options: getattr(flags, name)(*arguments, flag_values=self.values, **options)


@pytest.fixture
def preprocess_main(monkeypatch, tmp_path):
    """The command in tmp_path, where folders A and B hold four pictures each."""
    for side in "AB":
        (tmp_path / side).mkdir()
        for i in range(4):
            (tmp_path / side / f"{i}.png").write_bytes(encoded("L", "PNG"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments, args=()):
        values = flags.FlagValues()
        monkeypatch.setattr(preprocess.cli, "FLAGS", values)
        monkeypatch.setattr(preprocess.cli, "flags", Flags(values))
        preprocess.define_flags()
        values(["preprocess", *arguments])
        preprocess.main(args)

    return run


def test_command_line(preprocess_main, capsys):
    """Two folders of one's own, built and drawn; what is built is drawn again without its pictures."""
    preprocess_main("--dataset", "mine", "--source_a", "A", "--source_b", "B", "--labels", "men,women")
    assert "trainA 3 pictures" in capsys.readouterr().out
    assert preprocess.domains("tfrecords/mine") == ["men", "women"]
    preprocess_main("--dataset", "mine", "--visualize", "--image_size", "16")
    assert "pictures.png: rows of men and of women" in capsys.readouterr().out
    assert cv2.imread("tfrecords/mine/pictures.png").shape == (76, 156, 3)


@pytest.mark.parametrize("arguments, args, words", [
    ([], [], "Give --dataset NAME: horse2zebra"),
    (["--dataset", "x"], ["A"], "takes flags only; it came with 'A'"),
    (["--dataset", "x", "--labels", "men", "--source_a", "A", "--source_b", "B"], [], "two different.*'men'"),
    (["--dataset", "x", "--labels", "a,a", "--source_a", "A", "--source_b", "B"], [], "two different.*'a,a'"),
    (["--dataset", "x", "--source_b", "B"], [], "Give --source_a and --source_b"),
])
def test_mistakes_on_the_command_line(preprocess_main, arguments, args, words):
    with pytest.raises(UserError, match=words):
        preprocess_main(*arguments, args=args)
    assert not pathlib.Path("tfrecords").exists()
