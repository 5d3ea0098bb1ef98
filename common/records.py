"""Sharded TFRecord files with a manifest: written whole or not at all, read in an order that can be resumed.

A record set is a folder, usually `tfrecords/<name>/`:

    train-00000-of-00004.tfrecord ...   the records, in the order in which they were given, shard after shard
    train.offsets                       int64, little-endian: where each record starts in its shard
    manifest.json                       counts, bytes and sha256 of every file, labels, source, skipped files

The manifest is written last, so a folder with a manifest is a complete set. Because the offsets are known, a
reader starts anywhere in the order of an epoch, a permutation of the whole set, without reading what comes
before. Every record that is asked for must come out: a file that was cut, flipped, compressed or replaced is
an error that names it, never a shorter epoch.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import pathlib
import re
import shutil
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from common.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
DEMO = "demo"
_FRAMING = 16  # bytes around a payload: length, its checksum, checksum of the payload
_BUILDING = ".building"

# Examples are read in chunks of neighbours. An epoch is the chunks in random order, cut into windows of some
# hundred chunks, each window shuffled as a whole: files are read in pieces that disks and networks like, a
# set below _WINDOW_BYTES is permuted perfectly, and each example's place is known without reading the others.
_CHUNK_BYTES = 2**18
_CHUNK_EXAMPLES = 256
_WINDOW_BYTES = 2**26  # up to four of this size are in memory
_CHUNKS_PER_WINDOW = 16  # at least, for records of many megabytes
_READS = 8  # chunks read at a time


class _Shard(NamedTuple):
    file: pathlib.Path
    bytes: int
    offsets: np.ndarray  # [examples] int64


class _Plan(NamedTuple):
    chunks: dict  # "file" string, "offset", "bytes" int64 and "count" int32 of each, all [num_chunks]
    num_chunks: int
    per_chunk: int  # examples, at most
    per_window: int  # chunks
    seed: int | None


class RecordWriter:
    """Builds one record set; nothing appears under a final name before `publish`.

        with records.RecordWriter("tfrecords/voc2007", kind="detection", labels=labels) as writer:
            writer.write_split("train", serialized_examples, num_shards=4)
            writer.publish()

    Leaving the block without `publish` (an exception, Ctrl-C) removes what was written and keeps an older set
    as it was. What a killed process left behind is removed by the next build. `manifest` may be filled with
    anything that JSON can hold. A full disk is a UserError, and so is a folder with records of another kind.
    """

    def __init__(self, folder, *, name=None, kind="", labels=(), source="", builder=""):
        self.folder = pathlib.Path(folder)
        self.manifest = {"format": FORMAT, "kind": kind, "name": name or self.folder.name,
                         "labels": list(labels), "source": str(source), "builder": builder,
                         "tensorflow": tf.__version__, "splits": {}, "skipped": []}
        self._building = self.folder / _BUILDING
        self._lock = None
        self._created = []  # folders that were not there before, innermost first

    def __enter__(self):
        self._spare_other_kinds()
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

    def _spare_other_kinds(self):
        try:
            held = read_manifest(self.folder).get("kind")
        except UserError:
            return  # nothing there, or nothing whole
        if held and self.manifest["kind"] not in ("", held):
            raise UserError(f"{self.folder} holds records of kind {held!r}, and a build of {self.manifest['kind']!r} "
                            "would replace them. Give another name or --out, or remove the folder.")

    def write_split(self, split, serialized, *, num_shards=1, total=None, **facts):
        """Writes an iterable of serialized examples (bytes) as one split and returns how many there were.

        `total` is the number expected (default `len(serialized)`): record i goes to shard i * num_shards //
        total. Shards that stay empty are left out. `facts` go into the split's entry of the manifest.
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
        """Moves the finished files to their names, the manifest last; removes what an older set leaves."""
        if not any(split["examples"] for split in self.manifest["splits"].values()):
            raise UserError(f"A record set needs at least one example, and none was left for {self.folder}. "
                            "Look at what was skipped above.")
        with self._disk_errors():
            new = [name for split in self.manifest["splits"].values() for name in _files(split)]
            text = json.dumps(self.manifest, indent=1, ensure_ascii=False)
            (self._building / MANIFEST).write_text(text + "\n", encoding="utf-8")
            _sync_and_hash(self._building / MANIFEST)
            try:
                splits = read_manifest(self.folder)["splits"].values()
                old = [name for split in splits for name in _files(split)]
            except (UserError, KeyError, TypeError):
                old = []
            (self.folder / MANIFEST).unlink(missing_ok=True)  # from here to the end there is no set
            for name in new:
                os.replace(self._building / name, self.folder / name)
            # A build that was killed right here has left shards without a manifest; their names show it.
            old += [path.name for split in self.manifest["splits"]
                    for path in self.folder.glob(f"{split}-[0-9]????-of-[0-9]????.tfrecord")]
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
            raise UserError(f"The records of {self.folder} could not be written and no file was left there: "
                            f"{reason}. Free some space or choose another folder, then build again."
                            ) from error


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


def require_kind(folder, kind):
    """The manifest of a record set of this kind; a UserError where it is of another."""
    manifest = read_manifest(folder)
    if manifest.get("kind") != kind:
        raise UserError(f"{folder} must be a record set of kind {kind!r}, and its manifest says "
                        f"{manifest.get('kind')!r}. Give another set, or build one under another name with the "
                        "article's preprocess.py.")
    return manifest


def default_folder(name, kind):
    """tfrecords/<name>. Every kind of records has its demo, so that "demo" is a folder of each kind."""
    return pathlib.Path("tfrecords") / (f"{DEMO}_{kind.replace(' ', '_')}" if name == DEMO else name)


def name_of(folder, kind):
    """The name of the set in `folder`, or of the set so called: what `default_folder` is given."""
    name = pathlib.Path(folder).name
    return DEMO if name == default_folder(DEMO, kind).name else name


def resolve(name_or_path, *, kind, split="train", command=None):
    """The folder of the record set `name_or_path`: a name (see `default_folder`), or a path.

    Without one, or where `split` is missing or empty, a UserError: what was looked for, and `command`, the
    command line that builds it. A UserError as well where the set is of another kind.
    """
    folders = [default_folder(name_or_path, kind), pathlib.Path(name_or_path)]
    for folder in folders:
        if (folder / MANIFEST).is_file():
            require_kind(folder, kind)
            if not _entry(folder, split, command)["examples"]:
                raise UserError(_no_match(folder, split, f"The split is empty. {_build(command)}"))
            return folder
    folder = folders[1] if folders[1].is_dir() else folders[0]
    raise UserError(_no_match(folder, split, _build(command)))


def count(folder, split, *, limit=0):
    """How many examples `dataset` gives per epoch."""
    examples = _entry(folder, split)["examples"]
    return min(limit, examples) if limit else examples


def dataset(folder, split, *, seed=None, start=(0, 0), epochs=None, limit=0, num_shards=1, shard_index=0):
    """A tf.data.Dataset of {"record": serialized example, "index": int64, "epoch": int64}.

    With a `seed` each epoch is a permutation of the examples that depends on (seed, epoch) alone, and one
    epoch flows into the next, `epochs` times or without end (None). Without a seed it is the order of the
    set, `epochs` times, once by default. "index" is the position in the order of its epoch.

    start: (epoch, index) of the first example to come; of those before it, only its window's are read.
        `epochs` counts from epoch 0.
    limit: take only the first N examples of the set; 0 takes all.
    num_shards, shard_index: this worker takes the positions with index % num_shards == shard_index. With a
        seed the last examples of an epoch are left out, so that every worker gets as many as the others.
        Each worker reads all of the files, since the order must not depend on the number of workers.

    Missing, empty or cut files are a UserError at once. A record that is damaged is a
    tf.errors.InvalidArgumentError with the name of the file and the byte, when its window is reached.
    """
    if not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index {shard_index} must be in 0..{num_shards - 1}")
    shards = _open(folder, split)
    held = sum(len(shard.offsets) for shard in shards)
    total = min(limit, held) if limit else held
    epochs = 1 if epochs is None and seed is None else epochs
    usable = total if seed is None else total // num_shards * num_shards
    if not usable:
        raise UserError(f"Each of {num_shards} workers needs an example, and {folder} gives {total} for "
                        f"{split}. Use fewer workers, or a higher limit.")
    plan = _plan(shards, total, seed)

    def windows(epoch):
        begin = tf.where(epoch == start[0], tf.constant(start[1], tf.int64), 0)
        return _windows(plan, epoch, begin)

    def read(window):
        examples, index = _read_window(plan, window)
        mine = (index >= window["begin"]) & (index < usable) & (index % num_shards == shard_index)
        index = tf.boolean_mask(index, mine)
        epoch = tf.fill(tf.shape(index), window["epoch"])
        return {"record": examples(mine), "index": index, "epoch": epoch}

    last = tf.int64.max if epochs is None else epochs
    stream = tf.data.Dataset.range(start[0], last).flat_map(windows).map(read).prefetch(1)
    stream = stream.flat_map(tf.data.Dataset.from_tensor_slices)
    if epochs is not None:
        per_epoch = len(range(shard_index, usable, num_shards))
        left = (epochs - start[0]) * per_epoch - _first(start[1], num_shards, shard_index)
        stream = stream.apply(tf.data.experimental.assert_cardinality(max(0, left)))
    return stream


def damage(error):
    """The line about a damaged record in a TensorFlow error that `dataset` raised; None for any other error."""
    found = re.search(r"assertion failed: \[(.* is damaged: .*? again\.)", error.message)
    return found[1] if found else None


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


def _plan(shards, total, seed):
    """The first `total` examples of the shards as a `_Plan`."""
    mean = max(1, sum(shard.bytes for shard in shards) // sum(len(shard.offsets) for shard in shards))
    per_chunk = min(max(_CHUNK_BYTES // mean, 1), _CHUNK_EXAMPLES)
    window_bytes = _WINDOW_BYTES if seed is not None else _WINDOW_BYTES // 16  # nothing to shuffle
    columns = {"file": [], "offset": [], "bytes": [], "count": []}
    for shard in shards:
        count = min(total, len(shard.offsets))
        total -= count
        edges = np.append(shard.offsets, shard.bytes)
        for first in range(0, count, per_chunk):
            last = min(first + per_chunk, count)
            row = str(shard.file), edges[first], edges[last] - edges[first], last - first
            for column, value in zip(columns.values(), row):
                column.append(value)
    kinds = {"file": tf.string, "offset": tf.int64, "bytes": tf.int64, "count": tf.int32}
    chunks = {key: tf.constant(column, kinds[key]) for key, column in columns.items()}
    per_window = max(window_bytes // (per_chunk * mean), _CHUNKS_PER_WINDOW)
    return _Plan(chunks, len(columns["count"]), per_chunk, per_window, seed)


def _permutation(plan, size, epoch, number):
    """0 .. size - 1 in the order number `number` of an epoch."""
    if plan.seed is None:
        return tf.range(size)
    key = tf.stack([tf.constant(plan.seed, tf.int64), epoch])
    key = tf.random.experimental.stateless_fold_in(key, number)
    return tf.argsort(tf.random.stateless_uniform([size], key, None, None, tf.uint64), stable=True)


def _windows(plan, epoch, begin):
    """A dataset of the windows of an epoch that hold the example at `begin` or a later one."""
    number = -(-plan.num_chunks // plan.per_window)
    order = _permutation(plan, plan.num_chunks, epoch, 0)
    order = tf.pad(order, [[0, number * plan.per_window - plan.num_chunks]], constant_values=-1)
    order = tf.sort(tf.reshape(order, [number, plan.per_window]), axis=1)  # files from front to back
    counts = tf.where(order < 0, 0, tf.gather(plan.chunks["count"], tf.maximum(order, 0)))
    ends = tf.cumsum(tf.cast(tf.reduce_sum(counts, axis=1), tf.int64))
    window = tf.range(tf.reduce_sum(tf.cast(ends <= begin, tf.int32)), number)
    first = tf.gather(tf.concat([[tf.constant(0, tf.int64)], ends[:-1]], axis=0), window)
    shape = tf.shape(window)
    return tf.data.Dataset.from_tensor_slices({
        "window": window, "chunks": tf.gather(order, window), "first": first,
        "epoch": tf.fill(shape, epoch), "begin": tf.fill(shape, begin)})


def _read_window(plan, window):
    """(function from a mask [W] to those of the window's records, their positions in the epoch [W])."""
    chosen = tf.boolean_mask(window["chunks"], window["chunks"] >= 0)
    chosen = {key: tf.gather(value, chosen) for key, value in plan.chunks.items()}
    read = tf.data.Dataset.from_tensor_slices(chosen).map(_read_chunk, num_parallel_calls=_READS)
    examples = read.padded_batch(plan.per_window, [plan.per_chunk]).get_single_element()
    place = tf.where(tf.sequence_mask(chosen["count"], plan.per_chunk))  # of the records [W, 2]
    size = tf.shape(place)[0]
    place = tf.gather(place, _permutation(plan, size, window["epoch"], window["window"] + 1))
    index = window["first"] + tf.range(tf.cast(size, tf.int64))
    return lambda mask: tf.gather_nd(examples, tf.boolean_mask(place, mask)), index


def _read_chunk(chunk):
    """The records [count] of a chunk; fewer, or a wrong checksum, is an error that names the file."""
    variant = tf.raw_ops.TFRecordDatasetV2(filenames=[chunk["file"]], compression_type="",
                                           buffer_size=chunk["bytes"], byte_offsets=[chunk["offset"]])
    found = tf.data.experimental.from_variant(variant, tf.TensorSpec([], tf.string)).ignore_errors()
    end = tf.data.Dataset.from_tensors("")  # so that there is something to batch
    count = tf.cast(chunk["count"], tf.int64)
    found = found.take(count).concatenate(end).batch(count + 1).get_single_element()[:-1]
    byte = chunk["offset"] + tf.reduce_sum(tf.cast(tf.strings.length(found), tf.int64) + _FRAMING)
    message = tf.strings.join([chunk["file"], " is damaged: no whole record at byte ",
                               tf.strings.as_string(byte), ". Build the set again."])
    with tf.control_dependencies([tf.debugging.Assert(tf.shape(found)[0] == chunk["count"], [message])]):
        return tf.identity(found)


def _entry(folder, split, command=None):
    splits = read_manifest(folder)["splits"]
    if split not in splits:
        held = f"The set holds {', '.join(splits)}, as its source does: add {split} there."
        raise UserError(_no_match(folder, split, f"{held} {_build(command)}"))
    return splits[split]


def _open(folder, split):
    """The `_Shard`s of a split, checked against the manifest."""
    folder = pathlib.Path(folder)
    entry = _entry(folder, split)
    if not entry["examples"]:
        raise UserError(_no_match(folder, split, f"{split} of {folder} is empty. {_build()}"))
    for file in [entry["offsets"], *entry["shards"]]:
        path = folder / file["file"]
        if not path.is_file():
            raise UserError(f"{path} is missing. Build the set again.")
        if path.stat().st_size != file["bytes"]:
            raise UserError(f"{path} is damaged: it has {path.stat().st_size} bytes, and had {file['bytes']}."
                            " Build the set again.")
        if not file.get("examples", 1):
            raise UserError(f"{path} holds no example. Build the set again.")
    path = folder / entry["offsets"]["file"]
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != entry["offsets"]["sha256"]:
        raise UserError(f"{path} is damaged: its sha256 is not the manifest's. Build the set again.")
    offsets = np.frombuffer(content, "<i8")
    counts = [shard["examples"] for shard in entry["shards"]]
    if not len(offsets) == sum(counts) == entry["examples"]:
        raise UserError(f"{folder / MANIFEST} counts {entry['examples']} examples of {split}, its shards "
                        f"{sum(counts)} and {path.name} {len(offsets)}. Build the set again.")
    return [_Shard(folder / shard["file"], shard["bytes"], own)
            for shard, own in zip(entry["shards"], np.split(offsets, np.cumsum(counts)[:-1]))]


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


def _build(command=None):
    return f"Build them: {command}" if command else "Build them with the article's preprocess.py."
