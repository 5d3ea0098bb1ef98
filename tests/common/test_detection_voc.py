"""VOC folders: what becomes of objects, splits by lists, folders and names; every fault named or mended."""

import hashlib

import pytest

from common import detection, detection_sources, detection_voc
from common.errors import UserError
from tests.common.layouts import BOX, JPEG, SIZE, loaded, thing, write_voc


def test_voc_objects(tmp_path):
    part = f"<part><name>head</name><bndbox>{BOX}</bndbox></part>"
    dog = thing("dog", more="<difficult>1</difficult>" + part)
    write_voc(tmp_path, {"a": SIZE + dog + thing(), "b": SIZE},
              {"train": ["b", "a"], "val": ["a"], "aeroplane_train": ["a -1"]})
    source = detection_sources.find("mine", tmp_path)
    assert source.labels == ["cat", "dog"]  # parts of objects are none
    assert [path.stem for path in source.splits["train"]] == ["b", "a"] and len(source.splits) == 2
    found, repairs = loaded(source)
    assert found["a.jpg"].boxes_xyxy.tolist() == [[10, 5, 20, 10]] * 2
    assert found["a.jpg"].labels.tolist() == [1, 0]
    assert found["a.jpg"].difficult.tolist() == [True, False] and found["a.jpg"].size == (60, 40)
    assert found["b.jpg"].boxes_xyxy.shape == (0, 4) and not repairs
    given = detection_sources.find("mine", tmp_path, ["dog", "cat"])
    assert given.load(given.splits["val"][0]).labels == [0, 1]


@pytest.mark.parametrize("text, words", [
    ("<!DOCTYPE a [<!ENTITY b 'bb'><!ENTITY c '&b;&b;'>]><annotation>&c;</annotation>", "plain XML"),
    ("<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><annotation>&b;</annotation>", "plain XML"),
    (SIZE + "<object>", "be XML, and cannot be read"),
    (SIZE + thing("yeti"), "use the classes cat, dog, and object 1 is 'yeti'"),
    (SIZE + thing() + f"<object><bndbox>{BOX}</bndbox></object>", "object 2 is 'without <name>'"),
    (SIZE + "<object><name>cat</name></object>", "in <xmin> of <bndbox> of object 1, and it is missing"),
    (SIZE + thing(box=BOX.replace("20", "wide")), "in <xmax> of <bndbox> of object 1, and it is 'wide'"),
    (SIZE + thing(box=BOX.replace("20", "nan")), "number in <xmax> of <bndbox> of object 1, and it is 'nan'"),
    ("<size><width>60</width></size>" + thing(), "a number in <height> of <size>, and it is missing"),
])
def test_broken_xml_is_named(tmp_path, text, words):
    write_voc(tmp_path, {"good": SIZE + thing(), "bad": text}, {"train": ["good", "bad"]})
    source = detection_sources.find("mine", tmp_path, ["cat", "dog"])
    with pytest.raises(UserError, match=f"bad.xml must .*{words}"):
        source.load(source.splits["train"][1])
    report = detection.build_records(source, tmp_path / "out", on_bad="skip", progress=False)
    assert [entry["file"].endswith("bad.xml") for entry in report.skipped] == [True]
    assert report.manifest["splits"]["train"]["examples"] == 1


@pytest.mark.parametrize("box, kept, repaired", [
    ((20, 10, 11, 6), [[10, 5, 20, 10]], {"xmax below xmin or ymax below ymin: swapped": 1}),
    ((11, 6, 11, 10), [], {"object without area dropped": 1}),
    ((11, 6, 12, 7), [[10, 5, 12, 7]], {}),
    ((-4, 6, 20, 50), [[0, 5, 20, 40]], {"box clipped to the picture": 1}),
    ((0, 0, 60, 40), [[0, 0, 60, 40]], {"box clipped to the picture": 1}),  # counts from 0
    ((1, 1, 60, 40), [[0, 0, 60, 40]], {}),
    ((61, 6, 70, 10), [], {"object outside the picture dropped": 1}),
])
def test_voc_boxes_are_mended_as_documented(tmp_path, box, kept, repaired):
    text = "".join(f"<{tag}>{value}</{tag}>" for tag, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
    source = detection_sources.find("mine", write_voc(tmp_path, {"a": SIZE + thing(box=text)}))
    found, repairs = loaded(source)
    assert found["a.jpg"].boxes_xyxy.tolist() == kept and repairs == repaired


def test_voc_without_a_size_or_a_picture(tmp_path):
    nothing = "<size><width>0</width><height>0</height></size>"
    write_voc(tmp_path, {"a": thing(), "b": nothing + thing(), "c": ""},
              {"train": ["a", "b", "c", "d"]})
    (tmp_path / "JPEGImages" / "c.jpg").unlink()
    source = detection_sources.find("mine", tmp_path)
    for item in source.splits["train"][:2]:
        entry = source.load(item)
        assert entry.size is None and entry.repairs == ("annotation without the size of its picture",)
    with pytest.raises(UserError, match="c.xml must have its picture .*JPEGImages/c.jpg"):
        source.load(source.splits["train"][2])
    with pytest.raises(UserError, match="d.xml is listed in ImageSets/Main and is missing"):
        source.load(source.splits["train"][3])


def test_splits_of_voc(tmp_path):
    xmls = {f"{i}": SIZE + thing() for i in range(30)}
    source = detection_voc.voc(write_voc(tmp_path / "alone", xmls))
    # By hand: the first 16 digits of md5("0\nAnnotations/<stem>.xml") below a tenth of 16^16.
    val = [stem for stem in sorted(xmls) if int(
        hashlib.md5(f"0\nAnnotations/{stem}.xml".encode()).hexdigest()[:16], 16) < 16**16 // 10]
    assert [path.stem for path in source.splits["val"]] == val and 1 <= len(val) <= 6
    assert [path.stem for path in source.splits["train"]] == [stem for stem in sorted(xmls) if stem not in val]
    assert source.notes == [detection.DEALT]
    more = write_voc(tmp_path / "alone", {f"new {i}": SIZE + thing() for i in range(40)})
    for split, items in detection_voc.voc(more).splits.items():
        assert [path for path in items if "new" not in path.stem] == source.splits[split]
    both = write_voc(tmp_path / "both", xmls, {"trainval": ["1", "2", "2"], "test": ["0"]})
    splits = detection_voc.voc(both).splits
    assert {split: len(items) for split, items in splits.items()} == {"train": 2, "test": 1}
    hidden = write_voc(tmp_path / "hidden", xmls, {"train": ["1"], "test": ["without", "annotations"]})
    assert list(detection_voc.voc(hidden).splits) == ["train"]
    other = write_voc(tmp_path / "other", xmls, {"mine": ["1"]})
    with pytest.raises(UserError, match="must hold train.txt, val.txt or test.txt"):
        detection_voc.voc(other)
    outside = write_voc(tmp_path / "outside", xmls, {"train": ["../../secret"]})
    with pytest.raises(UserError, match="names without folders, and has ../../secret"):
        detection_voc.voc(outside)


@pytest.mark.parametrize("text, expected", [
    ("1", True), ("True", True), (" TRUE ", True), ("yes", True), ("0", False), ("False", False), ("no", False),
    ("", False), (None, False), ("2", None), ("perhaps", None)])
def test_difficult_in_words(tmp_path, text, expected):
    more = "" if text is None else f"<difficult>{text}</difficult>"
    source = detection_voc.voc(write_voc(tmp_path, {"a": SIZE + thing(more=more + "<truncated>maybe</truncated>")}))
    if expected is None:
        with pytest.raises(UserError, match=f"a.xml must have 0 or 1 in <difficult> of object 1, and it is '{text}'"):
            loaded(source)
    else:
        assert loaded(source)[0]["a.jpg"].difficult.tolist() == [expected]


def test_boxes_that_are_all_fractions_are_refused(tmp_path):
    box = "<xmin>0.25</xmin><ymin>0.1</ymin><xmax>0.5</xmax><ymax>1.0</ymax>"
    fractions = write_voc(tmp_path / "fractions", {"a": SIZE + thing(box=box), "b": SIZE + thing(box=box), "c": "<"})
    for labels in (None, ["cat"]):
        with pytest.raises(UserError, match="fractions must have boxes in pixels, and all .* between 0 and 1"):
            detection_voc.voc(fractions, labels=labels)
    write_voc(fractions, {"b": SIZE + thing()})  # one object of less than a pixel among others
    assert sum(map(len, detection_voc.voc(fractions).splits.values())) == 3


def named(source):
    """{reason: names} of what a Source has left out."""
    return {reason: [path if isinstance(path, str) else path.name for path in paths]
            for reason, paths in source.left_out.items() if paths}


def test_whatever_is_left_out_is_named(tmp_path):
    root = write_voc(tmp_path, {stem: SIZE + thing() for stem in "abcde"}, {"train": ["a", "b", "a"], "val": ["e"]})
    pictures, annotations = root / "JPEGImages", root / "Annotations"
    (pictures / "b.jpg").rename(pictures / "b.JPE")
    (pictures / "c.jpg").rename(pictures / "c.tif")
    (annotations / "e.xml").rename(annotations / "e.XML")
    for path in (pictures / "f.png", pictures / "g.heic", pictures / "._a.jpg", pictures / "Thumbs.db",
                 annotations / "._a.xml", annotations / "notes.csv", root / "a.jpg"):
        path.write_bytes(JPEG)
    for folder in (root / "SegmentationClass", root / "more", annotations / "old", pictures / ".ipynb_checkpoints"):
        folder.mkdir()
    (pictures / ".ipynb_checkpoints" / "d.jpg").write_bytes(JPEG)
    source = detection_voc.voc(root)
    assert {split: [path.name for path in items] for split, items in source.splits.items()} == {
        "train": ["a.xml", "b.xml"], "val": ["e.XML"]}
    assert named(source) == {
        "XML files that no list in ImageSets/Main names": ["c.xml", "d.xml"],
        "names that train.txt has more than once": ["a"],
        "pictures without an XML file": ["f.png"],
        "pictures of a kind that is not read (.heic)": ["g.heic"],
        "files of another kind (.csv)": ["notes.csv"],
        "pictures of a name that one in another folder has": ["a.jpg"],
        "folders beside XML files and pictures": ["old", "more"]}
    (found, _), (val, _) = loaded(source), loaded(source, "val")
    assert list(found) == ["a.jpg", "b.JPE"] and list(val) == ["e.jpg"]
    report = detection.build_records(source, tmp_path / "out", progress=False)
    assert report.manifest["left_out"]["pictures without an XML file"] == {"count": 1, "names": ["f.png"]}


def test_an_annotated_picture_of_a_kind_that_is_not_read_is_an_error(tmp_path):
    root = write_voc(tmp_path, {"a": SIZE + thing(), "b": SIZE + thing()}, {"train": ["a", "b"]})
    (root / "JPEGImages" / "b.jpg").unlink()
    (root / "JPEGImages" / "b.tif").write_bytes(b"II*\0" + bytes(100))
    report = detection.build_records(detection_voc.voc(root), tmp_path / "out", on_bad="skip", progress=False)
    assert len(report.skipped) == 1 and "b.tif must be a JPEG, PNG, GIF, BMP or WebP" in report.skipped[0]["reason"]


def test_two_pictures_of_one_name(tmp_path):
    root = write_voc(tmp_path, {"a": SIZE + thing() + "<filename>a.png</filename>", "b": SIZE + thing()})
    for stem in "ab":
        (root / "JPEGImages" / f"{stem}.png").write_bytes(JPEG)
    source = detection_voc.voc(root)
    first, second = sorted(path for items in source.splits.values() for path in items)
    assert source.load(first).image.name == "a.png"
    with pytest.raises(UserError, match="b.xml must have one picture, or name it .*there are b.jpg, b.png"):
        source.load(second)


def write_beside(folder, stems, more=""):
    """XML files beside their pictures, as Roboflow and LabelImg leave them."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem in stems:
        (folder / f"{stem}.xml").write_text(f"<annotation>{SIZE}{thing()}{more}</annotation>")
        (folder / f"{stem}.jpg").write_bytes(JPEG)
    return folder


def test_folders_of_splits_in_any_case(tmp_path):
    for name, stems in (("Train", "abc"), ("VALID", "de"), ("cat", "x")):
        write_beside(tmp_path / name, stems)
    write_voc(tmp_path / "testing", {"f": SIZE + thing()})
    (tmp_path / "testing").rename(tmp_path / "elsewhere")
    (tmp_path / "Testing").symlink_to(tmp_path / "elsewhere")  # linked folders are followed
    (tmp_path / ".Trash").mkdir()
    (tmp_path / "README.txt").touch()
    source = detection_sources.find("mine", tmp_path)
    assert {split: [path.stem for path in items] for split, items in source.splits.items()} == {
        "train": ["a", "b", "c"], "val": ["d", "e"], "test": ["f"]}
    assert named(source) == {"files or folders beside the folders of splits": ["README.txt", "cat", "elsewhere"]}
    assert [name for split in source.splits for name in loaded(source, split)[0]] == [f"{s}.jpg" for s in "abcdef"]


def test_test_pictures_are_never_trained_on(tmp_path):
    """A folder for testing beside Annotations, alone, and one without XML files."""
    root = write_voc(tmp_path / "mine", {f"{i}": SIZE + thing() for i in range(20)})
    write_beside(root / "Test", ["t"])
    (root / "val").mkdir()
    source = detection_sources.find("mine", root)
    assert [path.stem for path in source.splits["test"]] == ["t"] and len(source.splits["train"]) < 20
    assert sum(map(len, source.splits.values())) == 21 and source.notes == [detection.DEALT]
    assert named(source) == {"folders of splits without XML files": ["val"]}
    write_voc(tmp_path / "alone" / "test", {"a": SIZE + thing()})
    assert list(detection_sources.find("mine", tmp_path / "alone").splits) == ["test"]


def test_xml_beside_the_pictures_of_one_folder_is_dealt(tmp_path):
    write_beside(tmp_path, [f"{i}" for i in range(12)])
    (tmp_path / "classes.txt").write_text("cat\n")
    source = detection_sources.find("mine", tmp_path)
    assert list(source.splits) == ["train", "val"] and sum(map(len, source.splits.values())) == 12
    assert named(source) == {"files of another kind (.txt)": ["classes.txt"]}


def test_lists_by_the_one_rule_of_names(tmp_path):
    xmls = {stem: SIZE + thing() for stem in ("a", "b", "c", "my photo")}
    source = detection_voc.voc(write_voc(tmp_path / "1", xmls, {"Train": ["\ufeffa", "my photo"], "valid": ["b"],
                                                                "contest": ["c"]}))
    assert {split: [path.stem for path in items] for split, items in source.splits.items()} == {
        "train": ["a", "my photo"], "val": ["b"]}
    source = detection_voc.voc(write_voc(tmp_path / "2", xmls, {"trainval": ["a", "b"], "val": ["b"]}))
    assert {split: [path.stem for path in items] for split, items in source.splits.items()} == {
        "train": ["a"], "val": ["b"]}  # what is val is not for training
    source = detection_voc.voc(write_voc(tmp_path / "3", xmls, {"train": ["a"], "test": ["x", "y"]}))
    assert named(source)["names of test.txt without an XML file"] == ["x", "y"]
    with pytest.raises(UserError, match="one list for a split, and has val.txt and valid.txt for val"):
        detection_voc.voc(write_voc(tmp_path / "4", xmls, {"train": ["a"], "valid": ["b"], "val": ["c"]}))
    write_voc(tmp_path / "5", xmls)
    (tmp_path / "5" / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(UserError, match="train.txt must be a list of names, and cannot be read"):
        detection_voc.voc(tmp_path / "5")


def test_the_names_of_the_published_sets_are_theirs(tmp_path):
    write_voc(tmp_path / "VOC2012", {"a": SIZE + thing()})
    with pytest.raises(UserError, match="--dataset voc2007 must be built of its own folder, and .* holds VOC2012"):
        detection_sources.find("voc2007", tmp_path)
    assert detection_sources.find("mine", tmp_path).labels == ["cat"]


def test_classes_of_one_name_in_two_spellings_are_said(tmp_path, capsys):
    source = detection_voc.voc(write_voc(tmp_path, {"a": SIZE + thing("Cat") + thing("cat")}))
    report = detection.build_records(source, tmp_path / "out")
    assert report.manifest["notes"] == ["classes that differ in upper and lower case alone are not the same: cat."]
    assert "note: classes that differ" in capsys.readouterr().out
    with pytest.raises(UserError, match="Classes must have different names"):
        detection.build_records(source._replace(labels=["cat", "cat"]), tmp_path / "out", progress=False)


def test_folders_in_lower_case(tmp_path):
    root = write_voc(tmp_path, {"a": SIZE + thing()})
    (root / "Annotations").rename(root / "annotations")
    (root / "JPEGImages").rename(root / "images")
    source = detection_sources.find("mine", root)
    assert source.load(source.splits["train"][0]).image == root / "images" / "a.jpg" and not named(source)
