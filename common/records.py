"""Sharded TFRecord files with a manifest: written whole or not at all, read in an order that can be resumed.

A record set is a folder, usually `tfrecords/<name>/`:

    train-00000-of-00004.tfrecord ...   the records, in the order in which they were given, shard after shard
    train.offsets                       int64, little-endian: where each record starts in its shard
    manifest.json                       counts, bytes and sha256 of every file, labels, source, what was skipped

The manifest is written last, so a folder with a manifest is a complete set. Because the offsets are known, a reader
takes the records of an epoch in any order and starts at any of them without touching the others; each epoch is one
permutation of the whole set, whatever its size. Every record that is asked for must come out: a file that was cut,
flipped, compressed or replaced is an error that names it, never a shorter epoch.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import tensorflow as tf

from common.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
_FRAMING = 16  # bytes around a payload: length, its checksum, checksum of the payload
_BUILDING = ".building"


class RecordWriter:
    """Builds one record set; nothing appears under a final name before `publish`.

        with records.RecordWriter("tfrecords/voc2007", name="voc2007", kind="detection", labels=labels) as writer:
            writer.write_split("train", serialized_examples, num_shards=4)
            writer.publish()

    Leaving the block without `publish` (an exception, Ctrl-C) removes what was written and keeps an older set as it
    was. What a killed process left behind is removed by the next build. `manifest` may be filled with anything that
    JSON can hold. A full disk is a UserError.
    """

    def __init__(self, folder, *, name=None, kind="", labels=(), source="", builder=""):
        self.folder = pathlib.Path(folder)
        self.manifest = {"format": FORMAT, "kind": kind, "name": name or self.folder.name, "labels": list(labels),
                         "source": str(source), "builder": builder, "tensorflow": tf.__version__, "splits": {},
                         "skipped": []}
        self._building = self.folder / _BUILDING
        self._lock = None
        self._created = []  # folders that were not there before, innermost first

    def __enter__(self):
        with self._disk_errors():
            self._created = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.folder, os.O_RDONLY)
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(self._lock)
                raise UserError(f"Only one build at a time may write {self.folder}, and another is running. "
                                "Wait for it, or stop it.") from None
            shutil.rmtree(self._building, ignore_errors=True)
            self._building.mkdir()
        return self

    def __exit__(self, *exception):
        shutil.rmtree(self._building, ignore_errors=True)
        os.close(self._lock)
        for path in self._created:
            with contextlib.suppress(OSError):
                path.rmdir()  # only where nothing was published

    def write_split(self, split, serialized, *, num_shards=1, total=None, **facts):
        """Writes an iterable of serialized examples (bytes) as one split and returns how many there were.

        `total` is the number expected (default `len(serialized)`): record i goes to shard i * num_shards // total.
        Shards that stay empty are left out. `facts` go into the split's entry of the manifest.
        """
        total = max(1, len(serialized) if total is None else total)
        num_shards = max(1, min(num_shards, total))
        offsets, shards, writer, current, position = [], [], None, -1, 0
        try:
            for i, record in enumerate(serialized):
                shard = min(i * num_shards // total, num_shards - 1)
                with self._disk_errors():
                    if shard != current:
                        if writer is not None:
                            writer.close()
                        path = self._building / f"{split}-{shard:05d}"
                        writer, current, position = tf.io.TFRecordWriter(str(path)), shard, 0
                        shards.append({"file": path.name, "examples": 0})
                    writer.write(record)
                offsets.append(position)
                position += len(record) + _FRAMING
                shards[-1]["examples"] += 1
        finally:
            with self._disk_errors():
                if writer is not None:
                    writer.close()
        with self._disk_errors():
            for i, shard in enumerate(shards):
                name = f"{split}-{i:05d}-of-{len(shards):05d}.tfrecord"
                os.rename(self._building / shard["file"], self._building / name)
                shard.update(file=name, **_sync_and_hash(self._building / name))
            file = f"{split}.offsets"
            (self._building / file).write_bytes(np.asarray(offsets, "<i8").tobytes())
            self.manifest["splits"][split] = {
                "examples": len(offsets), **facts, "shards": shards,
                "offsets": {"file": file, **_sync_and_hash(self._building / file)}}
        return len(offsets)

    def publish(self):
        """Moves the finished files to their names, the manifest last; files of an older set that are left over go."""
        if not any(split["examples"] for split in self.manifest["splits"].values()):
            raise UserError(f"A record set needs at least one example, and none was left for {self.folder}. "
                            "Look at what was skipped above.")
        with self._disk_errors():
            new = [name for split in self.manifest["splits"].values() for name in _files(split)]
            text = json.dumps(self.manifest, indent=1, ensure_ascii=False)
            (self._building / MANIFEST).write_text(text + "\n", encoding="utf-8")
            _sync_and_hash(self._building / MANIFEST)
            try:
                old = [name for split in read_manifest(self.folder)["splits"].values() for name in _files(split)]
            except (UserError, KeyError, TypeError):
                old = []
            (self.folder / MANIFEST).unlink(missing_ok=True)  # from here to the end there is no set
            for name in new:
                os.replace(self._building / name, self.folder / name)
            for name in set(old) - set(new):
                (self.folder / pathlib.Path(name).name).unlink(missing_ok=True)
            os.replace(self._building / MANIFEST, self.folder / MANIFEST)
            os.fsync(self._lock)

    @contextlib.contextmanager
    def _disk_errors(self):
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if isinstance(error, tf.errors.OpError):
                reason = error.message
            else:
                reason = f"{error.strerror or error} ({error.filename or self.folder})"
            raise UserError(f"The records of {self.folder} could not be written and no file was left there: {reason}. "
                            "Free some space or choose another folder, and build again.") from error


def read_manifest(folder):
    """The manifest of a record set as a dict; a UserError if the folder holds none or a damaged one."""
    path = pathlib.Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"A record set has a {MANIFEST}, and {folder} has none: it was not built to the end. "
                        "Build it again with the article's preprocess.py.") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}). Build the set again.") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT or "splits" not in manifest:
        raise UserError(f"{path} must be a manifest of format {FORMAT}, and is not. Build the set again.")
    return manifest


def resolve(name_or_path, *, root="tfrecords", split="train", command=None):
    """The folder of the record set `name_or_path`: a name under `root`, or a path.

    Without one a UserError: what was looked for, and `command`, the command line that builds it.
    """
    folders = [pathlib.Path(root) / name_or_path, pathlib.Path(name_or_path)]
    for folder in folders:
        if (folder / MANIFEST).is_file():
            if split in read_manifest(folder)["splits"]:
                return folder
            held = ", ".join(read_manifest(folder)["splits"])
            raise UserError(_no_match(folder, split, f"The set holds {held}. {_build(command)}"))
    folder = folders[1] if folders[1].is_dir() else folders[0]
    raise UserError(_no_match(folder, split, _build(command)))


def count(folder, split, *, limit=0):
    """How many examples `dataset` gives per epoch."""
    examples = _entry(folder, split)["examples"]
    return min(limit, examples) if limit else examples


def dataset(folder, split, *, seed=None, start=(0, 0), epochs=None, limit=0, num_shards=1, shard_index=0):
    """A tf.data.Dataset of {"record": serialized example, "index": int64, "epoch": int64}.

    With a `seed` each epoch is a permutation of the examples that depends on (seed, epoch) alone, and one epoch flows
    into the next, `epochs` times or without end (None). Without a seed it is the order of the set, `epochs` times, once
    by default. "index" is the position in the order of its epoch.

    start: (epoch, index) of the first example to come; nothing before it is read. `epochs` counts from epoch 0.
    limit: take only the first N examples of the set; 0 takes all.
    num_shards, shard_index: this worker takes the positions with index % num_shards == shard_index; with a seed the
        last examples of an epoch are left out, so that every worker gets as many as the others.

    Missing, empty or cut files are a UserError at once. A record that is damaged is a tf.errors.InvalidArgumentError
    with the name of the file and the position, when it is reached.
    """
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index {shard_index} must be in 0..{num_shards - 1}")
    files, shard_of, offsets = _open(folder, split)
    total = min(limit, len(offsets)) if limit else len(offsets)
    epochs = 1 if epochs is None and seed is None else epochs
    usable = total if seed is None else total // num_shards * num_shards
    if not usable:
        raise UserError(f"Each of {num_shards} workers needs an example, and {folder} gives {total} for {split}.")
    files = tf.constant([str(file) for file in files])
    shard_of, offsets = tf.constant(shard_of), tf.constant(offsets)

    def order(epoch):
        if seed is None:
            examples = tf.range(total, dtype=tf.int64)
        else:
            key = tf.stack([tf.constant(seed, tf.int64), epoch])
            examples = tf.argsort(tf.random.stateless_uniform([total], key, None, None, tf.uint64), stable=True)
            examples = tf.cast(examples, tf.int64)
        index = tf.range(shard_index, usable, num_shards, dtype=tf.int64)
        if start[1]:
            index = index[tf.where(epoch == start[0], _first(start[1], num_shards, shard_index), 0):]
        chosen = tf.gather(examples, index)
        return tf.data.Dataset.from_tensor_slices(
            (tf.gather(files, tf.gather(shard_of, chosen)), tf.gather(offsets, chosen), index,
             tf.fill(tf.shape(index), epoch)))

    last = tf.int64.max if epochs is None else epochs
    stream = tf.data.Dataset.range(start[0], last).flat_map(order).flat_map(_read_one)
    if epochs is not None:
        per_epoch = len(range(shard_index, usable, num_shards))
        left = (epochs - start[0]) * per_epoch - _first(start[1], num_shards, shard_index)
        stream = stream.apply(tf.data.experimental.assert_cardinality(max(0, left)))
    return stream


def verify(folder):
    """Compares every file with its sha256 in the manifest; a UserError names the first that differs."""
    folder = pathlib.Path(folder)
    for split, entry in read_manifest(folder)["splits"].items():
        if entry["examples"]:
            _open(folder, split)
        for file in [entry["offsets"], *entry["shards"]]:
            if _hash(folder / file["file"]) != file["sha256"]:
                raise UserError(f"{folder / file['file']} is damaged: its sha256 is not the manifest's. "
                                "Build the set again.")


def _first(start_index, num_shards, shard_index):
    """How many of a worker's positions lie before `start_index`."""
    return max(0, -((shard_index - start_index) // num_shards))


def _read_one(file, offset, index, epoch):
    """A dataset of the one record at `offset`; reading it fails where TensorFlow finds none or a wrong checksum."""
    variant = tf.raw_ops.TFRecordDatasetV2(filenames=[file], compression_type="", buffer_size=tf.constant(0, tf.int64),
                                           byte_offsets=[offset])
    record = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).ignore_errors()
    damage = tf.data.Dataset.from_tensors((file, offset)).map(_fail)  # reached only if the record did not come
    return record.concatenate(damage).take(1).map(
        lambda record: {"record": record, "index": index, "epoch": epoch})


def _fail(file, offset):
    message = tf.strings.join([file, " is damaged: no whole record at byte ", tf.strings.as_string(offset),
                               ". Build the set again."])
    with tf.control_dependencies([tf.debugging.Assert(False, [message])]):
        return tf.identity("")


def _entry(folder, split, command=None):
    splits = read_manifest(folder)["splits"]
    if split not in splits:
        raise UserError(_no_match(folder, split, f"The set holds {', '.join(splits)}. {_build(command)}"))
    return splits[split]


def _open(folder, split):
    """(files, shard of each example [N] int32, offset of each example [N] int64), checked against the manifest."""
    folder = pathlib.Path(folder)
    entry = _entry(folder, split)
    if not entry["examples"]:
        raise UserError(f"A split needs at least one example, and {split} of {folder} is empty. Build the set again "
                        "with pictures for it.")
    for file in [entry["offsets"], *entry["shards"]]:
        path = folder / file["file"]
        if not path.is_file():
            raise UserError(f"{path} is missing. Build the set again.")
        if path.stat().st_size != file["bytes"]:
            raise UserError(f"{path} is damaged: {path.stat().st_size} bytes, and the manifest says {file['bytes']}. "
                            "Build the set again.")
        if not file.get("examples", 1):
            raise UserError(f"{path} holds no example. Build the set again.")
    path = folder / entry["offsets"]["file"]
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["offsets"]["sha256"]:
        raise UserError(f"{path} is damaged: its sha256 is not the manifest's. Build the set again.")
    offsets = np.frombuffer(content, "<i8")
    counts = [shard["examples"] for shard in entry["shards"]]
    if not len(offsets) == sum(counts) == entry["examples"]:
        raise UserError(f"{folder / MANIFEST} counts {entry['examples']} examples of {split}, its shards {sum(counts)} "
                        f"and {path.name} {len(offsets)}. Build the set again.")
    shard_of = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    return [folder / shard["file"] for shard in entry["shards"]], shard_of, offsets


def _files(entry):
    return [shard["file"] for shard in entry["shards"]] + [entry["offsets"]["file"]]


def _hash(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_and_hash(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": path.stat().st_size, "sha256": _hash(path)}


def _no_match(folder, split, then):
    return f"No records match {folder}/{split}-*. {then}".rstrip()


def _build(command):
    return f"Build them: {command}" if command else "Build them with the article's preprocess.py."
