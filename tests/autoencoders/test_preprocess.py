"""Records of small pictures: IDX files, folders, drawn digits, downloads; batches with their random numbers."""

import gzip
import struct

import cv2
import numpy as np
import pytest
import tensorflow as tf

from autoencoders import digits, preprocess, sources
from common import records
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
    folder = preprocess.build("mnist", tmp_path / "source", tmp_path / "mnist", shards=2)
    assert "train 22 pictures of 5 x 6, 1 channel\n" in capsys.readouterr().out
    manifest = records.read_manifest(folder)
    assert manifest["labels"] == [str(digit) for digit in range(10)] and manifest["image_shape"] == [6, 5, 1]
    records.verify(folder)
    pictures, ids = arrays["train"]
    for split, chosen in (("train", slice(0, 22)), ("val",
                                                    slice(22, 24))):  # a twelfth, the last, is for validation
        found, labels = preprocess.read_split(folder, split)
        np.testing.assert_array_equal(found[..., 0], pictures[chosen])
        np.testing.assert_array_equal(labels, ids[chosen])
    np.testing.assert_array_equal(preprocess.read_split(folder, "test")[0][..., 0], arrays["t10k"][0])
    (item,) = records.dataset(folder, "test", epochs=1).take(1)
    one = preprocess.parse(item["record"])
    np.testing.assert_array_equal(one["image"][..., 0], arrays["t10k"][0][0])
    assert one["label"] == arrays["t10k"][1][0] and one["filename"] == b"test/0"


def test_mnist_as_it_is(real_data):
    train = sources.find("mnist", real_data("mnist"))
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


def test_folder_of_pictures_with_labels(tmp_path):
    written = write_pictures(tmp_path / "mine", count=15)
    found = sources.find("mine", tmp_path / "mine")
    assert found.labels == ["cat", "dog"] and found.image_shape == (7, 9, 1)
    assert {split: count for split, (count, _) in found.splits.items()} == {"train": 26, "val": 2, "test": 2}
    seen = {}
    for _, pictures in found.splits.values():
        for image, label, name in pictures:
            assert f"/{found.labels[label]}/" in name
            seen[name] = image
    assert seen.keys() == written.keys()
    for name, image in seen.items():
        np.testing.assert_array_equal(image[..., 0], written[name])


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
    assert {split: count for split, (count, _) in found.splits.items()} == {"train": 33, "val": 3, "test": 4}


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
