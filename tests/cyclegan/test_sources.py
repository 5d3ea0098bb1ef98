"""Where the two domains come from: folders, CelebA's lists, tensorflow-datasets, and every mistake in one line."""

import hashlib
import zipfile

import cv2
import numpy as np
import pytest

from common.errors import UserError
from cyclegan import sources

RNG = np.random.default_rng(0)


def write_pictures(folder, names, size=(6, 8)):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        cv2.imwrite(str(folder / name), RNG.integers(0, 256, (*size, 3), np.uint8))


def write_layout(root, counts):
    for split, count in counts.items():
        write_pictures(root / split, [f"{split}{i:02d}.jpg" for i in range(count)])
    return root


def sizes(found):
    return {split: len(items) for split, items in found.splits.items()}


# CycleGAN's layout.

def test_the_papers_layout(tmp_path):
    counts = {"trainA": 4, "trainB": 3, "testA": 2, "testB": 1}
    root = write_layout(tmp_path / "unpacked" / "horse2zebra", counts)
    (root / "trainA" / "._trainA00.jpg").write_bytes(b"what macOS leaves in archives")
    (root / "trainA" / "notes.txt").write_text("no picture")
    for source in (root, root.parent):
        found = sources.find("horse2zebra", source)
        assert sizes(found) == counts and found.labels == ["horse", "zebra"]
    path, name = found.load(found.splits["trainB"][1])
    assert path == root / "trainB" / "trainB01.jpg" and name == "trainB01.jpg"
    assert sources.find("mine", root, labels=["cat", "dog"]).labels == ["cat", "dog"]


def test_without_tests_a_tenth_by_a_hash_that_nothing_moves(tmp_path):
    """The name's own md5 below a tenth, whatever else there is; the other side has its own test."""
    root = write_layout(tmp_path, {"trainA": 60, "trainB": 9, "testB": 2})
    found = sources.find("mine", root)
    names = [f"trainA/trainA{i:02d}.jpg" for i in range(60)]
    places = {name: int.from_bytes(hashlib.md5(f"0\n{name}".encode()).digest()[:8]) / 2**64 for name in names}
    expected = [name for name in names if places[name] < 0.1]
    assert [path.relative_to(root).as_posix() for path in found.splits["testA"]] == expected and len(expected) > 2
    assert sizes(found) == {"trainA": 60 - len(expected), "trainB": 9, "testA": len(expected), "testB": 2}
    (root / "trainA" / "trainA07.jpg").unlink()
    write_pictures(root / "trainA", [f"a{i}.jpg" for i in range(30)])
    later = set(sources.find("mine", root).splits["testA"])
    assert {path for path in later if path.name[0] == "t"} == {root / name for name in expected} - {
        root / "trainA" / "trainA07.jpg"}
    assert set(sources.find("mine", root, seed=1).splits["testA"]) != later


def test_val_stands_in_for_test_and_is_named_beside_one(tmp_path):
    write_layout(tmp_path, {"trainA": 4, "trainB": 3, "valA": 2, "testB": 1, "valB": 3})
    found = sources.find("mine", tmp_path)
    assert sizes(found) == {"trainA": 4, "trainB": 3, "testA": 2, "testB": 1}
    assert left_out(found) == {"pictures for validation, as there are others for testing":
                               ["valB00.jpg", "valB01.jpg", "valB02.jpg"]}


def left_out(found):
    named = {reason: [getattr(each, "name", each) for each in paths] for reason, paths in found.left_out.items()}
    return {reason: names for reason, names in named.items() if names}


def test_splits_by_any_of_their_words_in_any_case(tmp_path):
    write_layout(tmp_path, {"TrainA": 4, "training_B": 3, "TEST A": 2, "Validation-B": 1})
    assert sizes(sources.find("mine", tmp_path)) == {"trainA": 4, "trainB": 3, "testA": 2, "testB": 1}
    write_layout(tmp_path, {"trainB": 1})
    with pytest.raises(UserError, match="one folder for trainB, and has trainB and training_B. Move one away"):
        sources.find("mine", tmp_path)


def test_whatever_is_left_out_is_named(tmp_path):
    """Beside the splits, in them, beside the set; hidden things are nothing, linked folders are followed."""
    root = write_layout(tmp_path / "sets" / "mine", {"trainA": 2, "trainB": 2, "testA": 1, "testB": 1, "more": 1})
    write_pictures(tmp_path / "elsewhere", ["linked.jpg"])
    (root / "trainA" / "link").symlink_to(tmp_path / "elsewhere")
    write_pictures(root / "trainB" / ".ipynb_checkpoints", ["old.jpg"])
    write_pictures(tmp_path / "sets" / "__MACOSX" / "trainA", ["x.jpg"])
    for name in ("trainA/photo.HEIC", "trainA/scan.tif", "trainB/notes.txt", ".DS_Store"):
        (root / name).touch()
    (tmp_path / "sets" / "other").mkdir()
    found = sources.find("mine", root.parent)
    assert sizes(found) == {"trainA": 3, "trainB": 2, "testA": 1, "testB": 1}
    assert left_out(found) == {"files or folders beside the folders of splits": ["more", "other"],
                               "pictures of a kind that is not read (.heic)": ["photo.HEIC"],
                               "pictures of a kind that is not read (.tif)": ["scan.tif"],
                               "files of another kind (.txt)": ["notes.txt"]}
    write_layout(tmp_path / "sets" / "other", {"trainA": 1, "trainB": 1})
    with pytest.raises(UserError, match="holds several, in mine, other. Give one of them"):
        sources.find("mine", root.parent)


@pytest.mark.parametrize("name, labels", [
    ("horse2zebra", ["horse", "zebra"]), ("summer2winter_yosemite", ["summer", "winter"]),
    ("cat2dog", ["cat", "dog"]), ("maps", ["aerial photo", "map"]), ("mine", ["A", "B"]), ("a2a", ["A", "B"])])
def test_names_of_the_domains(name, labels):
    assert sources.names_of(name) == labels


# Two folders.

def test_any_two_folders(tmp_path):
    write_pictures(tmp_path / "cats" / "tabby", [f"{i}.png" for i in range(11)])
    write_pictures(tmp_path / "dogs", ["x.jpg"])
    found = sources.find("mine", source_a=tmp_path / "cats", source_b=tmp_path / "dogs")
    assert sizes(found) == {"trainA": 10, "trainB": 1, "testA": 1} and found.labels == ["cats", "dogs"]
    assert not left_out(found)
    named = sources.find("tom2spike", source_a=tmp_path / "cats", source_b=tmp_path / "dogs")
    assert named.labels == ["tom", "spike"]


def test_splits_in_the_folder_of_a_side_are_splits(tmp_path):
    """Test pictures are not for training; beside a folder of training pictures all else is named."""
    for name, count in (("cats/Train", 5), ("cats/test", 2), ("cats/extra", 1), ("dogs", 4), ("dogs/Testing", 2),
                        ("birds/blue/train", 3), ("birds/blue/valid", 1), ("birds/red", 2)):
        write_pictures(tmp_path / name, [f"{name.replace('/', '_')}{i}.png" for i in range(count)])
    found = sources.find("mine", source_a=tmp_path / "cats", source_b=tmp_path / "dogs")
    assert sizes(found) == {"trainA": 5, "trainB": 4, "testA": 2, "testB": 2}
    assert all("test" in path.name.lower() for side in "AB" for path in found.splits[f"test{side}"])
    assert left_out(found) == {"files or folders beside the folders of splits": ["extra"]}
    deeper = sources.find("mine", source_a=tmp_path / "birds", source_b=tmp_path / "dogs" / "Testing")
    assert sizes(deeper) == {"trainA": 5, "trainB": 1, "testA": 1, "testB": 1} and deeper.labels == ["birds", "dogs"]
    assert deeper.splits["testA"][0].parent.name == "valid"
    for one, other in (("cats", "cats"), ("cats", "cats/extra"), ("cats/extra", "cats")):
        with pytest.raises(UserError, match="must not share pictures, and .* are one folder, or one is in the other"):
            sources.find("mine", source_a=tmp_path / one, source_b=tmp_path / other)


@pytest.mark.parametrize("choices, words", [
    ({"source": "nowhere"}, "--source must be a folder with trainA and trainB, and nowhere does not exist"),
    ({"source": "a.zip"}, "a.zip is a file; unpack it first"),
    ({"source": "empty"}, "with list_attr_celeba.txt .CelebA., and empty is neither. .* --source_a and"),
    ({"source": "hollow"}, "hollow/trainA must hold pictures .* for training, and holds none. left out: 1 pictures of"),
    ({"source_a": "empty"}, "Give --source_a and --source_b, a folder for each"),
    ({"source": "empty", "source_a": "empty", "source_b": "empty"}, "or --source alone"),
    ({"source_a": "empty", "source_b": "nowhere"}, "--source_b must be a folder .*, and nowhere does not"),
    ({"source": "hollow", "attribute": "Young"}, "--attribute is one of CelebA.*; hollow came"),
])
def test_mistakes(tmp_path, monkeypatch, choices, words):
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("a.zip", "w"):
        pass
    for folder in ("empty", "hollow/trainA", "hollow/trainB"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "hollow" / "trainA" / "scan.tiff").touch()
    with pytest.raises(UserError, match=words) as error:
        sources.find("mine", **choices)
    assert "\n" not in str(error.value)


# CelebA.

ATTRIBUTES = "Bald Male Smiling"
FACES = {"000001.jpg": "-1 -1  1", "000002.jpg": " 1  1 -1", "000003.jpg": "-1  1  1", "000004.jpg": "-1 -1 -1",
         "000005.jpg": "-1  1  1", "000006.jpg": "-1 -1 -1"}
PARTITION = "000001.jpg 0\n000002.jpg 0\n000003.jpg 2\n000004.jpg 2\n000005.jpg 1\n000006.jpg 0\n"


def write_celeba(root, *, count=6, rows=FACES, partition=PARTITION, lists=".", faces="img_align_celeba"):
    write_pictures(root / faces, rows, (22, 18))
    (root / lists).mkdir(parents=True, exist_ok=True)
    text = "".join(f"{name} {values}\n" for name, values in rows.items())
    (root / lists / "list_attr_celeba.txt").write_text(f"{count}\n{ATTRIBUTES} \n{text}")
    if partition:
        (root / "list_eval_partition.txt").write_text(partition)
    return root


def named(found):
    return {split: [path.name[:-4].lstrip("0") for path in items] for split, items in found.splits.items()}


def test_celeba_by_male(tmp_path):
    found = sources.find("celeba", write_celeba(tmp_path))
    assert found.labels == ["male", "female"]  # article: male -> female
    assert named(found) == {"trainA": ["2"], "trainB": ["1", "6"], "testA": ["3"], "testB": ["4"]}
    path, name = found.load(found.splits["testA"][0])
    assert path.is_file() and name == "000003.jpg"
    assert left_out(found) == {"pictures for validation, as there are others for testing": ["000005.jpg"]}
    (tmp_path / "img_align_celeba" / "000006.jpg").unlink()
    write_pictures(tmp_path / "img_align_celeba", ["000007.jpg", "._000001.jpg"])
    found = sources.find("celeba", tmp_path)
    assert named(found) == {"trainA": ["2"], "trainB": ["1"], "testA": ["3"], "testB": ["4"]}
    assert left_out(found) == {"pictures for validation, as there are others for testing": ["000005.jpg"],
                               "rows of list_attr_celeba.txt without their picture": ["000006.jpg"],
                               "pictures without a row in list_attr_celeba.txt": ["000007.jpg"]}


def test_celeba_by_another_attribute(tmp_path):
    found = sources.find("celeba", write_celeba(tmp_path, lists="Anno", faces="Img/img_align_celeba"),
                         attribute="Smiling")
    assert found.labels == ["Smiling", "no Smiling"]
    assert named(found) == {"trainA": ["1"], "trainB": ["2", "6"], "testA": ["3"], "testB": ["4"]}


def test_celeba_as_kaggle_has_it(tmp_path):
    write_pictures(tmp_path / "img_align_celeba" / "img_align_celeba", FACES)
    rows = "".join(f"{name},{','.join(values.split())}\n" for name, values in FACES.items())
    (tmp_path / "list_attr_celeba.csv").write_text(f"\ufeffimage_id,{','.join(ATTRIBUTES.split())}\n{rows}", "utf-8")
    (tmp_path / "list_eval_partition.csv").write_text("image_id,partition\n" + PARTITION.replace(" ", ","))
    found = sources.find("celeba", tmp_path)
    assert named(found) == {"trainA": ["2"], "trainB": ["1", "6"], "testA": ["3"], "testB": ["4"]}


def test_celeba_without_a_partition(tmp_path):
    rows = {f"{i:06d}.jpg": "-1 1 1" if i % 2 else "-1 -1 1" for i in range(40)}
    found = sources.find("celeba", write_celeba(tmp_path, count=40, rows=rows, partition=None))
    places = {name: int.from_bytes(hashlib.md5(f"0\n{name}".encode()).digest()[:8]) / 2**64 for name in rows}
    expected = {side: [name for name in rows if places[name] < 0.1 and int(name[:6]) % 2 == odd]
                for side, odd in (("A", 1), ("B", 0))}
    for side, names in expected.items():
        assert names and [path.name for path in found.splits[f"test{side}"]] == names
        assert len(found.splits[f"train{side}"]) == 20 - len(names)


def test_celeba_with_validation_alone(tmp_path):
    found = sources.find("celeba", write_celeba(tmp_path, partition=PARTITION.replace("2\n", "1\n")))
    assert named(found) == {"trainA": ["2"], "trainB": ["1", "6"], "testA": ["3", "5"], "testB": ["4"]}


@pytest.mark.parametrize("change, words", [
    ({"count": 7}, "list_attr_celeba.txt must list 7 pictures, and lists 6: it is cut"),
    ({"rows": {**FACES, "000006.jpg": "-1 -1"}}, "3 whole numbers in each line, and one is '000006.jpg -1 -1'"),
    ({"rows": {**FACES, "000006.jpg": "-1 -1 x"}}, "whole numbers in each line"),
    ({"partition": PARTITION[:-13]}, "list_eval_partition.txt must list every picture .*, and lacks 000006.jpg"),
    ({"rows": {name: "-1 -1 1" for name in FACES}}, "Both domains need pictures, .* lists none with Male"),
    ({"attribute": "Mail"}, "--attribute must be one of CelebA's, and 'Mail' is none .*: Bald, Male, Smiling"),
    ({"faces": "photos"}, "must be in .*img_align_celeba, and are not. Unpack"),
])
def test_damaged_celeba(tmp_path, change, words):
    attribute = change.pop("attribute", None) if "attribute" in change else None
    write_celeba(tmp_path, **change)
    with pytest.raises(UserError, match=words) as error:
        sources.find("celeba", tmp_path, attribute=attribute)
    assert "\n" not in str(error.value)


# tensorflow-datasets.

def test_without_a_network_the_advice_comes_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "reachable", lambda url: False)
    with pytest.raises(UserError, match="monet2photo is not in .* cannot be reached. Download "
                       "https://.*/monet2photo.zip, unpack it here, and run python -m cyclegan.preprocess "
                       "--dataset monet2photo --source monet2photo$"):
        sources.from_tfds("cycle_gan/monet2photo", data_dir=tmp_path)
    with pytest.raises(UserError, match="only apple2orange, .*iphone2dslr_flower .* can be had; 'cat2dog' came"):
        sources.find("cat2dog")


def test_all_names_of_tensorflow_datasets():
    from tensorflow_datasets.image_classification import cycle_gan
    assert set(sources.TFDS) == set(cycle_gan._DATA_OPTIONS)
    assert all(sources._HOST in url for url in cycle_gan._DL_URLS.values())


def test_what_tensorflow_datasets_prepares(tmp_path, monkeypatch):
    """Its own builder, with a folder in place of the archive that it would download."""
    import tensorflow_datasets as tfds
    counts = {"trainA": 3, "trainB": 2, "testA": 1, "testB": 1}
    root = write_layout(tmp_path / "archive" / "horse2zebra", counts)
    monkeypatch.setattr(sources, "reachable", lambda url: True)
    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", lambda self, url: str(root.parent))
    for _ in range(2):  # prepared, and then found
        found = sources.from_tfds("horse2zebra", data_dir=tmp_path / "tfds")
        assert sizes(found) == counts and found.labels == ["horse", "zebra"]
        pictures = dict(found.load(item)[::-1] for item in found.splits["trainA"])
        assert set(pictures) == {"trainA/000000", "trainA/000001", "trainA/000002"}
        assert set(pictures.values()) == {path.read_bytes() for path in (root / "trainA").iterdir()}
        monkeypatch.setattr(sources, "reachable", lambda url: False)


def test_what_tensorflow_datasets_says_becomes_one_line(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fails(*args, **options):
        raise ValueError("checksum of the archive differs\nlong story")

    monkeypatch.setattr(sources, "reachable", lambda url: True)
    monkeypatch.setattr(tfds, "builder", fails)
    with pytest.raises(UserError, match=r"could not be had .*\(checksum of the archive differs\). Download"):
        sources.from_tfds("maps", data_dir=tmp_path)


def test_the_folder_at_hand(real_data):
    found = sources.find("horse2zebra", real_data("horse2zebra_built"))
    assert sizes(found) == {"trainA": 467, "trainB": 313, "testA": 60, "testB": 60}
