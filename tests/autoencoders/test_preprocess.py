"""Records of small pictures: IDX files, folders, drawn digits, downloads; batches with their random numbers."""

import gzip
import pathlib
import struct
import sys
import types

import cv2
import numpy as np
import pytest
import tensorflow as tf

from autoencoders import digits, preprocess, sources
from common import records, splits
from common.errors import UserError

RNG = np.random.default_rng(0)


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def write_idx(folder, train=24, test=5, gz=True, dot="-"):
    """A folder as MNIST's; returns its arrays."""
    folder.mkdir(exist_ok=True)
    arrays = {}
    for prefix, count in (("train", train), ("t10k", test)):
        pictures, ids = RNG.integers(0, 256, (count, 6, 5), np.uint8), RNG.integers(0, 10, count).astype(np.uint8)
        arrays[prefix] = pictures, ids
        for kind, array in (("images", pictures), ("labels", ids)):
            name = f"{prefix}-{kind}{dot}idx{array.ndim}-ubyte{'.gz' if gz else ''}"
            (folder / name).write_bytes(gzip.compress(idx(array)) if gz else idx(array))
    return arrays


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Records of 10 digits for training, 5 and 4 others."""
    root = tmp_path_factory.mktemp("tfrecords")
    made_up = sources.from_digits(0, {"train": 10, "val": 5, "test": 4})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "find", lambda *args, **kwargs: made_up)
        return preprocess.build("demo", folder=root / "demo")


@pytest.mark.parametrize("gz, dot", [(True, "-"), (False, "."), (False, "-")])
def test_idx_files_become_records_byte_for_byte(tmp_path, gz, dot, capsys):
    arrays = write_idx(tmp_path / "source", gz=gz, dot=dot)
    (tmp_path / "source" / "photo.png").touch()
    folder = preprocess.build("mnist", tmp_path / "source", tmp_path / "mnist", shards=2)
    pictures, ids = arrays["train"]
    where = np.array([splits.fraction(picture.tobytes()) for picture in pictures])
    held_out = np.flatnonzero(where < 1 / 12) if where.min() < 1 / 12 else np.array([where.argmin()])
    parts = {"train": np.delete(np.arange(24), held_out), "val": held_out}
    printed = capsys.readouterr().out
    assert f"train {len(parts['train'])} pictures of 5 x 6, 1 channel\n" in printed
    assert "left out: 1 files or folders beside the IDX files: photo.png" in printed
    manifest = records.read_manifest(folder)
    assert manifest["labels"] == [str(digit) for digit in range(10)] and manifest["image_shape"] == [6, 5, 1]
    records.verify(folder)
    for split, chosen in parts.items():
        found, labels = preprocess.read_split(folder, split)
        np.testing.assert_array_equal(found[..., 0], pictures[chosen])
        np.testing.assert_array_equal(labels, ids[chosen])
    np.testing.assert_array_equal(preprocess.read_split(folder, "test")[0][..., 0], arrays["t10k"][0])
    (item,) = records.dataset(folder, "test", epochs=1).take(1)
    one = preprocess.parse(item["record"])
    np.testing.assert_array_equal(one["image"][..., 0], arrays["t10k"][0][0])
    assert one["label"] == arrays["t10k"][1][0] and one["filename"] == b"test/0"


def test_pictures_of_arrays_keep_their_places():
    """Sorted by label, added to, in another order: a picture's split is the same, and copies are together."""
    pictures = RNG.integers(0, 256, (600, 4, 4), np.uint8)
    pictures[300:] = pictures[:300]
    ids = np.arange(600) % 300 // 100

    def dealt(order):
        found = sources.from_arrays({"train": (pictures[order], ids[order])}, ["a", "b", "c"], "here")
        return {split: {picture.tobytes() for picture, _, _ in items} for split, (_, items) in found.splits.items()}

    whole = dealt(np.arange(600))
    assert whole.keys() == {"train", "val"} and not whole["train"] & whole["val"]
    assert abs(len(whole["val"]) - 300 / 12) < 5 * 4.8
    few = dealt(np.arange(200)[::-1])
    first = {picture.tobytes() for picture in pictures[:200]}
    assert few == {split: items & first for split, items in whole.items()}


def test_the_published_sets_keep_their_last_pictures_for_validation():
    pictures = np.zeros([60_000, 1, 1], np.uint8)
    pictures[55_000:] = 1
    found = sources.from_arrays({"train": (pictures, None)}, None, "MNIST", published=True)
    assert {split: (count, {int(picture[0, 0, 0]) for picture, _, _ in items})
            for split, (count, items) in found.splits.items()} == {"train": (55_000, {0}), "val": (5_000, {1})}


def test_mnist_as_it_is(real_data):
    train = sources.find("mnist", real_data("mnist"))
    assert real_data("mnist") / "SOURCE.txt" in train.left_out["files or folders beside the IDX files"]
    assert {split: count for split, (count, _) in train.splits.items()} == {"train": 55_000, "val": 5_000,
                                                                            "test": 10_000}
    assert train.image_shape == (28, 28, 1)
    image, label, _ = next(iter(train.splits["train"][1]))
    assert label == 5 and image.sum() == 27525  # the first digit of MNIST


@pytest.mark.parametrize("damage, message", [
    (lambda data: data[:-1], "must have 150 bytes behind its header.*and has 149"),
    (lambda data: data + b"x", "must have 150 bytes behind its header.*and has 151"),
    (lambda data: b"PK\3\4" + data, "first bytes are 50 4b 03 04, not 00 00 08 03"),
    (lambda data: b"", "first bytes are missing"),
    (lambda data: gzip.compress(data)[:-9], "whole IDX file, plain or gzip, and cannot be read"),
    (lambda data: gzip.compress(data)[:30] + b"zzzz" + gzip.compress(data)[34:], "cannot be read|must have"),
])
def test_damaged_idx_files_are_one_clear_line(tmp_path, damage, message):
    write_idx(tmp_path, gz=False)
    path = tmp_path / "t10k-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=message) as error:
        preprocess.build("mnist", tmp_path, tmp_path / "out")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_as_many_labels_as_pictures(tmp_path):
    write_idx(tmp_path, gz=False)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(23, np.uint8)))
    with pytest.raises(UserError, match="a label for each of the 24 pictures.*has 23"):
        preprocess.build("mnist", tmp_path, tmp_path / "out")


def write_pictures(folder, count=6, size=(7, 9), color=False):
    """Folder/{cat,dog}/<n>.png; returns the arrays by name."""
    written = {}
    for label in ("cat", "dog"):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            image = RNG.integers(0, 256, (*size, 3) if color else size, np.uint8)
            cv2.imwrite(str(folder / label / f"{i}.png"), image)
            written[str(folder / label / f"{i}.png")] = image if image.ndim == 2 else image[..., ::-1]
    return written


def names_of(found, folder):
    """{split: {path in the folder: label or None}} of a Source."""
    return {split: {str(pathlib.Path(name).relative_to(folder)): found.labels[label] if label >= 0 else None
                    for _, label, name in items} for split, (_, items) in found.splits.items()}


def test_folder_of_pictures_with_labels(tmp_path):
    written = write_pictures(tmp_path / "mine", count=60)
    found = sources.find("mine", tmp_path / "mine")
    assert found.labels == ["cat", "dog"] and found.image_shape == (7, 9, 1)
    seen, order = {}, []
    for split, (count, pictures) in found.splits.items():
        for image, label, name in pictures:
            where = splits.fraction(str(pathlib.Path(name).relative_to(tmp_path / "mine")))
            assert split == ("test" if where < 1 / 12 else "val" if where < 2 / 12 else "train")
            assert f"/{found.labels[label]}/" in name
            order += [label] if split == "train" else []
            seen[name] = image
    assert found.splits.keys() == {"train", "val", "test"} and seen.keys() == written.keys()
    for name, image in seen.items():
        np.testing.assert_array_equal(image[..., 0], written[name])
    assert 5 < sum(order[:20]) < 15  # the first pictures, which --limit takes, are of all labels


@pytest.mark.parametrize("names, expected", [
    # what is no folder of a split is for training, where there is none
    (["cat/1", "dog/2", "test/cat/3"], {"train": {"cat/1": "cat", "dog/2": "dog"}, "test": {"test/cat/3": "cat"}}),
    (["Train/cat/1", "Test/dog/2"], {"train": {"Train/cat/1": "cat"}, "test": {"Test/dog/2": "dog"}}),
    (["Training/1", "valid/2", "TESTING/3"], {"train": {"Training/1": None}, "val": {"valid/2": None},
                                              "test": {"TESTING/3": None}}),
    (["train/a/1", "validation/a/2"], {"train": {"train/a/1": "a"}, "val": {"validation/a/2": "a"}}),
    (["cat/train/1", "cat/test/2", "dog/Train/3", "dog/dev/4"],
     {"train": {"cat/train/1": "cat", "dog/Train/3": "dog"}, "val": {"dog/dev/4": "dog"},
      "test": {"cat/test/2": "cat"}}),
    (["big/cat/1", "small/cat/2", "test/3"], {"train": {"big/cat/1": "big/cat", "small/cat/2": "small/cat"},
                                              "test": {"test/3": None}}),
    ([".ipynb_checkpoints/0", "__MACOSX/a/0", "a/._1", "a/.Trash/2", "a/1", "test/a/3"],
     {"train": {"a/1": "a"}, "test": {"test/a/3": "a"}}),
    (["latest/1", "testbed/2", "val/3", "test/4"], {"train": {"latest/1": "latest", "testbed/2": "testbed"},
                                                    "val": {"val/3": None}, "test": {"test/4": None}})])
def test_folders_of_splits(tmp_path, names, expected):
    """Nothing is pooled, dropped or trained on that belongs to another split; one picture in a split is not dealt."""
    for number, name in enumerate(names):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full([4, 5], 9 * number, np.uint8))
    found = names_of(sources.find("mine", tmp_path), tmp_path)
    if "val" not in expected:  # dealt from the training pictures
        found["train"] |= found.pop("val", {})
    assert found == {split: {f"{name}.png": label for name, label in items.items()}
                     for split, items in expected.items()}


def test_what_is_left_out_is_named(tmp_path, capsys):
    write_pictures(tmp_path / "mine" / "train", count=3)
    write_pictures(tmp_path / "mine" / "test" / "x", count=1)
    cv2.imwrite(str(tmp_path / "mine" / "test" / "same.png"),
                cv2.imread(str(tmp_path / "mine" / "train" / "cat" / "0.png"), cv2.IMREAD_UNCHANGED))
    write_pictures(tmp_path / "elsewhere", count=1)
    (tmp_path / "mine" / "train" / "linked").symlink_to(tmp_path / "elsewhere")
    for name in ("old/a.png", "notes.txt", "train/b.TIF", "train/cat/c.heic", "train/d.csv", "val/.x.png"):
        (tmp_path / "mine" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "mine" / name).touch()
    folder = preprocess.build("mine", tmp_path / "mine", tmp_path / "out")
    manifest, printed = records.read_manifest(folder), capsys.readouterr().out
    assert manifest["left_out"] == {
        "files of another kind (.csv)": {"count": 1, "names": ["d.csv"]},
        "files or folders beside the folders of splits": {"count": 2, "names": ["notes.txt", "old"]},
        "folders of splits without pictures": {"count": 1, "names": ["val"]},
        "pictures of a kind that is not read (.heic)": {"count": 1, "names": ["c.heic"]},
        "pictures of a kind that is not read (.tif)": {"count": 1, "names": ["b.TIF"]}}
    assert "left out: 2 files or folders beside the folders of splits: notes.txt, old" in printed
    assert manifest["labels"] == ["cat", "dog", "linked/cat", "linked/dog", "x/cat", "x/dog"]
    counts = {split: entry["examples"] for split, entry in manifest["splits"].items()}
    assert counts["test"] == 3 and counts["train"] + counts["val"] == 8
    assert "note: test: no picture has the label cat, dog, linked/cat, linked/dog." in printed
    assert "note: test: 1 of 3 pictures have no label." in printed
    (other,) = manifest["shared"]["test"]  # same.png
    assert manifest["shared"] == {"test": {other: 1}}
    assert f"note: test: 1 pictures are in {other} too; scores on them mean little." in printed


def test_transparency_lies_on_white(tmp_path, capsys):
    """A black digit on a transparent ground whose hidden colour is black, too: all black without the alpha."""
    rgba = np.zeros([6, 6, 4], np.uint8)
    rgba[2:4, 2:4, 3] = 255
    rgba[0, 0, 3] = 51
    write_pictures(tmp_path / "mine", count=2, size=(6, 6))
    cv2.imwrite(str(tmp_path / "mine" / "cat" / "clear.png"), rgba)
    folder = preprocess.build("mine", tmp_path / "mine", tmp_path / "out")
    assert "repaired: picture with transparency laid on white: 1\n" in capsys.readouterr().out
    assert records.read_manifest(folder)["repaired"] == {"picture with transparency laid on white": 1}
    stored = [image for split in records.read_manifest(folder)["splits"]
              for image in preprocess.read_split(folder, split)[0]]
    expected = np.full([6, 6, 1], 255, np.uint8)
    expected[2:4, 2:4] = 0
    expected[0, 0] = 204  # a fifth of black
    assert sum(np.array_equal(image, expected) for image in stored) == 1


@pytest.mark.parametrize("size, shape", [((12, 18), (4, 6)), ((13, 19), (4, 6)), ((3, 4), (8, 10)),
                                         ((40, 5), (10, 10)), ((6, 6), (6, 6))])
def test_pictures_are_averaged_where_they_shrink(size, shape):
    """Box averages by hand; a side that shrinks is averaged even where the other grows."""
    picture = RNG.integers(0, 256, (*size, 3), np.uint8)
    found = sources.fit(picture, (*shape, 3)).astype(float)
    expected = picture.astype(float)
    for axis, (have, want) in enumerate(zip(size, shape)):
        if want < have:
            edges = np.arange(want + 1) * have / want
            sums = np.concatenate([np.zeros_like(expected.take([0], axis)), np.cumsum(expected, axis)], axis)
            low = np.minimum(np.floor(edges).astype(int), have - 1)
            part = np.expand_dims(edges - low, tuple(range(1, 3 - axis)))
            part = part.reshape([-1 if each == axis else 1 for each in range(3)])
            at = sums.take(low, axis) + part * expected.take(low, axis)
            expected = np.diff(at, axis=axis) * want / have
    for axis, (have, want) in enumerate(zip(size, shape)):
        if want > have:
            place = np.clip((np.arange(want) + 0.5) * have / want - 0.5, 0, have - 1)
            low = np.minimum(place.astype(int), have - 2)
            part = (place - low).reshape([-1 if each == axis else 1 for each in range(3)])
            expected = expected.take(low, axis) * (1 - part) + expected.take(low + 1, axis) * part
    np.testing.assert_allclose(found, expected, atol=1.1)  # whole levels, after each of two steps


def test_folder_with_splits_colours_and_another_size(tmp_path):
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        write_pictures(tmp_path / split, count=count, color=True)
    found = sources.find("mine", tmp_path, image_size=(4, 5))
    assert found.image_shape == (4, 5, 3)
    assert {split: count for split, (count, _) in found.splits.items()} == {"train": 6, "val": 4, "test": 2}
    assert sources.find("mine", tmp_path, channels=1).image_shape == (7, 9, 1)


def test_folder_mistakes(tmp_path):
    write_pictures(tmp_path / "mine")
    cv2.imwrite(str(tmp_path / "mine" / "cat" / "wide.png"), np.zeros([7, 30], np.uint8))
    with pytest.raises(UserError, match="must have one size.*--image_size WIDTHxHEIGHT"):
        sources.find("mine", tmp_path / "mine")
    (tmp_path / "mine" / "dog" / "bad.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="bad.png must be a .* picture.*--skip_bad"):
        sources.find("mine", tmp_path / "mine", image_size=(7, 7))
    found = sources.find("mine", tmp_path / "mine", image_size=(7, 7), skip_bad=True)
    assert [entry["file"] for entry in found.skipped] == [str(tmp_path / "mine" / "dog" / "bad.png")]
    assert sum(count for count, _ in found.splits.values()) == 13
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="must hold pictures"):
        sources.find("mine", tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        sources.find("mine", tmp_path / "nowhere")
    with pytest.raises(UserError, match="up to 512 x 512"):
        sources.find("mine", tmp_path / "mine", image_size=(7, 600), skip_bad=True)
    write_idx(tmp_path / "idx")
    with pytest.raises(UserError, match="--image_size and --channels are for folders of pictures"):
        sources.find("mine", tmp_path / "idx", image_size=(7, 7))


def test_skip_bad_with_nothing_left_shows_what_it_skipped(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.png").write_bytes(b"no picture")
    (tmp_path / "a" / "2.tif").touch()
    with pytest.raises(UserError, match="none could be used. left out: 1 pictures of a kind that is not read (.tif): "
                       "2.tif skipped: .*1.png must be a".replace("(", "[(]").replace(")", "[)]")):
        sources.find("mine", tmp_path, skip_bad=True)


def test_offline_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(sources, "reachable", lambda url: False)
    with pytest.raises(UserError, match="mnist is not in .* cannot be reached. Put train-images-idx3-ubyte.gz"):
        preprocess.build("mnist", folder=tmp_path / "mnist")
    with pytest.raises(UserError, match="kmnist is not in .* there is no connection. Give --source"):
        preprocess.build("kmnist", folder=tmp_path / "kmnist")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="No records match .*--dataset fashion_mnist --source FOLDER .not done on "
                       "the spot"):
        preprocess.ensure_records("fashion_mnist")
    with pytest.raises(UserError, match="No records match .*--dataset mine"):
        preprocess.ensure_records("mine")


def test_downloaded_sets(monkeypatch):
    """keras.datasets with a stand-in for the download."""
    pictures, ids = RNG.integers(0, 256, (36, 28, 28), np.uint8), np.arange(36) % 10
    monkeypatch.setattr(sources, "reachable", lambda url: True)
    monkeypatch.setattr(sources.keras.datasets.fashion_mnist, "load_data",
                        lambda: ((pictures, ids), (pictures[:4], ids[:4])))
    found = sources.find("fashion_mnist")
    assert found.labels[9] == "ankle boot" and found.image_shape == (28, 28, 1)
    counts = {split: count for split, (count, _) in found.splits.items()}
    assert counts["train"] + counts["val"] == 36 and 0 < counts["val"] < 12 and counts["test"] == 4


def test_tensorflow_datasets(monkeypatch):
    """A stand-in with a split that is none of ours: it is named."""
    pictures = RNG.integers(0, 256, (20, 4, 4, 1), np.uint8)
    info = types.SimpleNamespace(splits=["train", "validation", "extra"],
                                 features={"label": types.SimpleNamespace(names=["a", "b"])})
    builder = types.SimpleNamespace(info=info, download_and_prepare=lambda: None,
                                    as_dataset=lambda split, batch_size: {"image": pictures, "label": np.arange(20) % 2})
    stand_in = types.SimpleNamespace(builder=lambda name, data_dir: builder, as_numpy=lambda found: found)
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", stand_in)
    monkeypatch.setattr(sources, "reachable", lambda url: True)
    found = sources.find("svhn")
    assert {split: count for split, (count, _) in found.splits.items()} == {"train": 20, "val": 20}
    assert found.left_out == {"other splits of the set": ["extra"]} and found.labels == ["a", "b"]


def test_digits_are_digits():
    image, label = digits.draw(3, 17)
    assert image.shape == (28, 28, 1) and image.dtype == np.uint8 and label == 7
    np.testing.assert_array_equal(image, digits.draw(3, 17)[0])
    drawn = np.stack([digits.draw(0, index)[0] for index in range(40)])
    assert len({picture.tobytes() for picture in drawn}) == 40
    assert (drawn.max(axis=(1, 2, 3)) > 150).all() and (0.03 < drawn.mean(axis=(1, 2, 3)) / 255).all()
    edges = drawn[:, [0, -1]].max(), drawn[:, :, [0, -1]].max()
    assert max(edges) < 120  # nothing is cut off


def test_pictures_are_divided_by_255(folder):
    batch = next(iter(preprocess.evaluation_dataset(folder, "val", image_shape=(28, 28, 1), batch_size=5)))
    pictures, labels = preprocess.read_split(folder, "val")
    np.testing.assert_allclose(batch["images"], pictures / np.float32(255), rtol=1e-6)
    assert batch["images"].numpy().max() <= 1
    np.testing.assert_array_equal(batch["label"], labels)
    np.testing.assert_array_equal(batch["inputs"], batch["images"])


def stream(folder, count, **values):
    dataset = preprocess.training_dataset(folder, image_shape=(28, 28, 1), seed=5, latent_dim=3, noise=0.2,
                                          **values)
    found = [batch for batch in dataset.take(count).as_numpy_iterator()]
    return {name: np.concatenate([batch[name] for batch in found]) for name in found[0]}


def test_batches_go_on_from_any_step_and_split_over_replicas(folder):
    """Order and random numbers follow from the position: a start at step 3, and two replicas' half batches."""
    whole = stream(folder, 8, batch_size=4)
    later = stream(folder, 5, batch_size=4, start_step=3)
    halves = stream(folder, 16, batch_size=2, global_batch_size=4)
    workers = [stream(folder, 8, batch_size=2, global_batch_size=4, num_workers=2, worker=worker)
               for worker in range(2)]
    for name in ("images", "inputs", "epsilon"):
        np.testing.assert_array_equal(whole[name][12:], later[name])
        np.testing.assert_array_equal(whole[name], halves[name])
        np.testing.assert_array_equal(whole[name][0::2], workers[0][name])
        np.testing.assert_array_equal(whole[name][1::2], workers[1][name])
    assert len(np.unique(whole["epsilon"][:, 0])) == 32  # of each example and epoch its own
    other = preprocess.training_dataset(folder, image_shape=(28, 28, 1), seed=6, latent_dim=3, batch_size=4)
    assert not np.isin(next(iter(other))["epsilon"], whole["epsilon"]).any()


def test_noise_is_normal_and_cut(folder):
    found = stream(folder, 25, batch_size=4)
    added = (found["inputs"] - found["images"])[(found["images"] > 0) & (found["images"] < 1)]
    assert found["inputs"].min() == 0 and found["inputs"].max() == 1
    inside = np.random.default_rng(0).normal(size=100_000) * 0.2
    np.testing.assert_allclose(preprocess.add_noise(tf.fill([100_000], 0.5), inside, 1.0).numpy().std(),
                               np.clip(0.5 + inside, 0, 1).std(), rtol=1e-3)
    assert 0.05 < added.std() < 0.2  # cut at the ends
    black = found["inputs"][found["images"] == 0]
    assert (black > 0).mean() == pytest.approx(0.5, abs=0.02)
    assert found["epsilon"].mean() == pytest.approx(0, abs=0.2)
    assert found["epsilon"].std() == pytest.approx(1, abs=0.15)


def test_records_of_another_kind_are_refused(tmp_path):
    with records.RecordWriter(tmp_path / "other", kind="detection") as writer:
        writer.write_split("train", [b"x"])
        writer.publish()
    with pytest.raises(UserError, match="of kind 'small pictures', and its manifest says 'detection'"):
        preprocess.image_shape(tmp_path / "other")


@pytest.mark.parametrize("text, size", [("28", (28, 28)), ("32x24", (24, 32)), (None, None)])
def test_size_is_width_times_height(text, size):
    assert preprocess.parse_size(text) == size


@pytest.mark.parametrize("text", ["0", "28x", "a", "28x28x1", "-3"])
def test_a_size_that_is_none(text):
    with pytest.raises(UserError, match="--image_size must be a side"):
        preprocess.parse_size(text)
