"""Record sets: all comes out once, in an order that can be resumed; damage is named; builds are whole."""

import gzip
import json
import multiprocessing
import os
import pathlib
import resource
import signal
import subprocess
import time

import numpy as np
import pytest
import tensorflow as tf

from common import records
from common.errors import UserError

COUNT = 100


def write(folder, count=COUNT, *, size=1000, num_shards=3, split="train"):
    with records.RecordWriter(folder, kind="test", labels=["a"]) as writer:
        writer.write_split(split, payloads(count, size), num_shards=num_shards, total=count)
        writer.publish()
    return folder


def payloads(count, size=1000):
    return (b"%d " % i + np.random.default_rng(i).bytes(size + i) for i in range(count))


def read(folder, split="train", **options):
    """[(epoch, index, number of the example)]."""
    return [(int(item["epoch"]), int(item["index"]), int(item["record"].split(b" ", 1)[0]))
            for item in records.dataset(folder, split, **options).as_numpy_iterator()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("records") / "numbers")


def test_records_come_back_byte_for_byte_in_their_order(folder):
    found = [item["record"] for item in records.dataset(folder, "train").as_numpy_iterator()]
    assert found == list(payloads(COUNT))
    for file in sorted(folder.glob("*.tfrecord")):  # and TensorFlow's own reader takes the files
        count = sum(1 for _ in tf.data.TFRecordDataset(file))
        assert count in (33, 34)
    records.verify(folder)


def test_manifest_counts_every_file(folder):
    manifest = records.read_manifest(folder)
    entry = manifest["splits"]["train"]
    assert (manifest["kind"], manifest["labels"], entry["examples"]) == ("test", ["a"], COUNT)
    assert sum(shard["examples"] for shard in entry["shards"]) == COUNT
    assert {shard["file"]: shard["bytes"] for shard in entry["shards"]} == {
        f"train-{i:05d}-of-00003.tfrecord": (folder / f"train-{i:05d}-of-00003.tfrecord").stat().st_size
        for i in range(3)}
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["manifest.json", "train.offsets"] + [shard["file"] for shard in entry["shards"]])


def test_an_epoch_is_a_permutation_of_seed_and_epoch_alone(folder):
    three = read(folder, seed=5, epochs=3)
    epochs = [[number for epoch, _, number in three if epoch == e] for e in range(3)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [index for _, index, _ in three] == 3 * list(range(COUNT))
    assert read(folder, seed=5, epochs=3) == three
    assert read(folder, seed=6, epochs=1) != three[:COUNT]
    endless = records.dataset(folder, "train", seed=5)
    tenth = next(iter(endless.skip(10 * COUNT)))
    assert (int(tenth["epoch"]), int(tenth["index"])) == (10, 0)


@pytest.mark.parametrize("start", [(0, 1), (1, 57), (3, 0)])
def test_a_stream_starts_anywhere_as_if_it_had_run(folder, start):
    whole = read(folder, seed=5, epochs=3)
    assert read(folder, seed=5, epochs=3, start=start) == whole[start[0] * COUNT + start[1]:]


def test_shuffling_is_uniform_and_across_shards(folder):
    """Mean place of every example over 60 epochs within 5 sigma of the middle; neighbours part."""
    places = np.zeros(COUNT)
    neighbours = 0
    numbers = np.reshape([number for _, _, number in read(folder, seed=1, epochs=60)], [60, COUNT])
    for epoch in numbers:
        places[epoch] += np.arange(COUNT)
        neighbours += np.sum(np.abs(np.diff(epoch)) == 1)
    sigma = COUNT / np.sqrt(12 * 60)
    assert np.abs(places / 60 - (COUNT - 1) / 2).max() < 5 * sigma
    assert abs(neighbours / 60 - 2) < 5 * np.sqrt(2 / 60)  # about Poisson with mean two


def test_a_set_larger_than_memory_is_still_mixed_and_resumed(folder, monkeypatch):
    if not hasattr(records, "_WINDOW_BYTES"):
        pytest.skip("records are permuted as a whole")
    monkeypatch.setattr(records, "_WINDOW_BYTES", 20_000)
    monkeypatch.setattr(records, "_CHUNK_BYTES", 2_500)
    monkeypatch.setattr(records, "_CHUNKS_PER_WINDOW", 2)
    whole = read(folder, seed=5, epochs=2)
    for e in (0, 1):
        assert sorted(number for epoch, _, number in whole if epoch == e) == list(range(COUNT))
    assert [(epoch, index) for epoch, index, _ in whole] == [(e, i) for e in (0, 1) for i in range(COUNT)]
    for start in ((0, 3), (0, 50), (1, 99)):
        assert read(folder, seed=5, epochs=2, start=start) == whole[start[0] * COUNT + start[1]:]
    first = [number for _, _, number in whole[:COUNT // 5]]
    assert max(first) - min(first) > COUNT // 2  # the first fifth comes from all over the set
    assert [number for _, _, number in read(folder)] == list(range(COUNT))


def test_limit_takes_the_first_examples_of_the_set(folder):
    assert [records.count(folder, "train", limit=limit) for limit in (0, 7, 1000)] == [COUNT, 7, COUNT]
    assert [number for _, _, number in read(folder, limit=40)] == list(range(40))
    shuffled = read(folder, limit=40, seed=2, epochs=2)
    for e in (0, 1):
        assert sorted(number for epoch, _, number in shuffled if epoch == e) == list(range(40))


def test_workers_share_an_epoch(folder):
    start = (0, 50)
    whole = read(folder, seed=5, epochs=2, start=start)
    whole = [item for item in whole if item[1] < 98]  # seven times 14 of 100
    parts = [read(folder, seed=5, epochs=2, start=start, num_shards=7, shard_index=i) for i in (0, 6)]
    assert parts == [[item for item in whole if item[1] % 7 == worker] for worker in (0, 6)]
    sequential = [read(folder, num_shards=3, shard_index=i) for i in range(3)]
    assert sorted(number for part in sequential for _, _, number in part) == list(range(COUNT))


def test_bad_workers_are_refused(folder):
    with pytest.raises(ValueError, match="shard_index 3"):
        records.dataset(folder, "train", num_shards=3, shard_index=3)
    with pytest.raises(UserError, match="Each of 200 workers needs an example"):
        records.dataset(folder, "train", seed=0, num_shards=200)


# Fault 24: names that match nothing, empty shards.

def test_what_is_not_built_is_named_with_the_command(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "python -m yolov3.preprocess --dataset voc2007 --source VOCdevkit"
    with pytest.raises(UserError) as error:
        records.resolve("voc2007", kind="test", command=command)
    assert str(error.value) == f"No records match tfrecords/voc2007/train-*. Build them: {command}"
    (tmp_path / "tfrecords" / "voc2007").mkdir(parents=True)  # a folder without a manifest is not a set
    with pytest.raises(UserError, match="No records match"):
        records.resolve("voc2007", kind="test", command=command)
    with pytest.raises(UserError, match="has none: it was not built to the end"):
        records.read_manifest(tmp_path / "tfrecords" / "voc2007")
    with pytest.raises(UserError, match=r"test-\*\. The set holds train"):
        records.resolve(folder, kind="test", split="test")
    with pytest.raises(UserError, match=r"test-\*\. The set holds train"):
        records.dataset(folder, "test")
    monkeypatch.chdir(folder.parent)
    assert records.resolve(str(folder), kind="test") == folder
    pathlib.Path("tfrecords").symlink_to(folder.parent)
    assert records.resolve(folder.name, kind="test") == pathlib.Path("tfrecords") / folder.name


def test_kinds_of_records_do_not_get_in_each_others_way(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="must be a record set of kind 'text', and its manifest says 'test'"):
        records.resolve(folder, kind="text")
    before = sorted((path.name, path.read_bytes()) for path in folder.iterdir())
    with pytest.raises(UserError, match="holds records of kind 'test', and a build of 'text' would replace them"):
        with records.RecordWriter(folder, kind="text") as writer:
            writer.write_split("train", [b"x"])
            writer.publish()
    assert sorted((path.name, path.read_bytes()) for path in folder.iterdir()) == before
    monkeypatch.chdir(tmp_path)
    kinds = ("text", "small pictures")
    for kind in kinds:
        with records.RecordWriter(records.default_folder("demo", kind), kind=kind) as writer:
            writer.write_split("train", [kind.encode()])
            writer.publish()
    assert [str(records.resolve("demo", kind=kind)) for kind in kinds] == [
        "tfrecords/demo_text", "tfrecords/demo_small_pictures"]
    assert [records.name_of(name, "text") for name in ("tfrecords/demo_text", "demo", "a/voc2007")] == [
        "demo", "demo", "voc2007"]


def test_empty_sets_and_shards_are_refused(tmp_path):
    with pytest.raises(UserError, match="needs at least one example"):
        with records.RecordWriter(tmp_path / "none") as writer:
            writer.write_split("train", [])
            writer.publish()
    assert not (tmp_path / "none").exists()
    with records.RecordWriter(tmp_path / "half") as writer:
        writer.write_split("train", [b"x"], num_shards=8)
        writer.write_split("val", [])
        writer.publish()
    assert len(list((tmp_path / "half").glob("train-*"))) == 1  # no shard stays empty
    with pytest.raises(UserError, match="val of .*half is empty"):
        records.dataset(tmp_path / "half", "val")
    with pytest.raises(UserError, match=r"val-\*\. The split is empty\. Build them: make val"):
        records.resolve(tmp_path / "half", kind="", split="val", command="make val")
    manifest = json.loads((tmp_path / "half" / "manifest.json").read_text())
    (tmp_path / "half" / "train-00000-of-00001.tfrecord").write_bytes(b"")
    manifest["splits"]["train"]["shards"][0].update(bytes=0, examples=0)
    (tmp_path / "half" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="train-00000-of-00001.tfrecord holds no example"):
        records.dataset(tmp_path / "half", "train")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99, "splits": {}}', '{"format": 1}'])
def test_a_damaged_manifest_is_named(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(UserError, match="manifest.json .*Build the set again"):
        records.read_manifest(tmp_path)


# Fault 23: cut, flipped, compressed, replaced files; what keeps the length is found when it is read.

def damaged(tmp_path, change):
    folder = write(tmp_path / "damaged")
    path = folder / "train-00001-of-00003.tfrecord"
    path.write_bytes(change(path.read_bytes()))
    return folder


def flip(at):
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1:]


@pytest.mark.parametrize("change", [
    lambda data: data[:-30],  # in a payload
    lambda data: data[:-(3 + 1000 + 66 + 16) + 5],  # in the header of the last record: an end to TensorFlow
    gzip.compress,
    lambda data: gzip.compress(data)[:-8],  # without its trailer
    lambda data: b"",
], ids=["payload", "header", "gzip", "gzip cut", "empty"])
def test_a_file_of_another_length_is_named_at_once(tmp_path, change):
    folder = damaged(tmp_path, change)
    for action in (lambda: records.dataset(folder, "train"), lambda: records.verify(folder)):
        with pytest.raises(UserError, match="train-00001-of-00003.tfrecord is damaged"):
            action()


@pytest.mark.parametrize("change, seed", [
    (flip(20), 3), (flip(5), None), (lambda data: data[:5000] + bytes(len(data) - 5000), 3),
    (lambda data: gzip.compress(data)[:100] + bytes(len(data) - 100), None),
    (lambda data: data[1:] + b"x", 3),
], ids=["payload", "header", "zeros at the end", "gzip", "shifted"])
def test_damage_within_a_file_is_named_when_it_is_read(tmp_path, change, seed):
    folder = damaged(tmp_path, change)
    words = "train-00001-of-00003.tfrecord is damaged: no whole record at byte"
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        read(folder, seed=seed, epochs=1)
    with pytest.raises(UserError, match="train-00001-of-00003.tfrecord is damaged: its sha256"):
        records.verify(folder)


def test_missing_files_and_offsets_are_named(tmp_path):
    folder = write(tmp_path / "set")
    offsets = (folder / "train.offsets").read_bytes()
    (folder / "train.offsets").write_bytes(flip(8)(offsets))
    with pytest.raises(UserError, match="train.offsets is damaged"):
        records.dataset(folder, "train")
    (folder / "train.offsets").write_bytes(offsets)
    (folder / "train-00002-of-00003.tfrecord").unlink()
    with pytest.raises(UserError, match="train-00002-of-00003.tfrecord is missing"):
        records.dataset(folder, "train")


# Publication, and fault 10: a full disk.

def test_rebuilding_replaces_a_set_only_when_complete(tmp_path):
    folder = write(tmp_path / "set", num_shards=3)
    (folder / "notes.txt").write_text("the user's own")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def broken():
        yield b"first"
        raise RuntimeError("reader")

    with pytest.raises(RuntimeError, match="reader"):
        with records.RecordWriter(folder) as writer:
            writer.write_split("train", broken(), total=2)
            writer.publish()
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    with records.RecordWriter(folder) as writer:  # never published
        writer.write_split("train", [b"x"])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write(folder, 10, num_shards=2)
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "notes.txt", "train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord",
        "train.offsets"]
    assert [number for _, _, number in read(folder)] == list(range(10))


def test_a_build_killed_while_it_is_published_leaves_no_set_and_no_litter(tmp_path, monkeypatch):
    """Between the first and the last file moved; the next build removes the shards without a manifest."""
    folder = write(tmp_path / "set", 10, num_shards=3)
    replace, moved = os.replace, []

    def killed(*paths):
        if len(moved) == 2:
            raise SystemExit
        moved.append(paths)
        replace(*paths)

    monkeypatch.setattr(records.os, "replace", killed)
    with pytest.raises(SystemExit):
        write(folder, 20, num_shards=4)
    monkeypatch.undo()
    with pytest.raises(UserError, match="No records match"):
        records.resolve(folder, kind="test")
    write(folder, 5, num_shards=1)
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "train-00000-of-00001.tfrecord", "train.offsets"]
    assert [number for _, _, number in read(folder)] == list(range(5))


def test_one_build_at_a_time(tmp_path):
    with records.RecordWriter(tmp_path / "set"):
        with pytest.raises(UserError, match="Only one build at a time"):
            with records.RecordWriter(tmp_path / "set"):
                pass


def _build_for_ever(folder, started):
    with records.RecordWriter(folder) as writer:
        def endless():
            for i in range(10**9):
                yield bytes(100_000)
                if i == 50:
                    started.set()
                time.sleep(0.001)
        writer.write_split("train", endless(), total=10**9)


def _fill(folder, limit, results):
    """Builds 4 MB where only `limit` bytes fit into a file; None: wherever the disk ends."""
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        write(folder, 400, size=10_000, num_shards=2)
        results.put("built")
    except UserError as error:
        results.put(str(error))


@pytest.fixture(scope="module")
def processes():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.common.test_records"])
    return context


def run(processes, target, *args):
    results = processes.Queue()
    process = processes.Process(target=target, args=(*args, results), daemon=True)
    process.start()
    result = results.get(timeout=60)
    process.join(30)
    return result


def test_a_killed_build_leaves_no_set_and_the_next_one_cleans_up(processes, tmp_path):
    folder, started = tmp_path / "set", processes.Event()
    process = processes.Process(target=_build_for_ever, args=(folder, started), daemon=True)
    process.start()
    assert started.wait(60)
    os.kill(process.pid, signal.SIGKILL)
    process.join(30)
    assert not list(folder.glob("train*")) and not (folder / "manifest.json").exists()
    with pytest.raises(UserError, match="No records match"):
        records.resolve(folder, kind="test")
    write(folder, 5)
    assert len(read(folder)) == 5 and not (folder / ".building").exists()


def test_a_file_that_may_not_grow_leaves_nothing(processes, tmp_path):
    message = run(processes, _fill, tmp_path / "set", 500_000)
    assert "no file was left there" in message and str(tmp_path / "set") in message
    assert not (tmp_path / "set").exists()


def test_a_full_disk_leaves_the_old_set(processes, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True)
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        folder = write(disk / "set", 10)
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        message = run(processes, _fill, folder, None)
        assert "no file was left there: " in message and "No space left" in message
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert "No space left" in run(processes, _fill, disk / "other", None)
        assert not (disk / "other").exists()
    finally:
        subprocess.run(["umount", disk], check=True)
