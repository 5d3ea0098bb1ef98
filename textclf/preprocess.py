"""From news and their categories to records, and from records to batches of tf-idf rows.

    python -m textclf.preprocess --dataset articles --source articles.csv     builds tfrecords/articles
    python -m textclf.preprocess --dataset r8 --source r8                     a folder with a train and a test file
    python -m textclf.preprocess --dataset articles --check

Article, "Reading CSV" and "The input". Sources (sources.py, corpus.py) and records are read row by row: memory does
not grow with the corpus, but for sixteen bytes per text, its position and a number that stands for it. records ->
parse -> vectorize -> batches.

B batch, V columns of the vocabulary, C categories.
"""

import array
import collections
import pathlib
import shlex
import sys

import tensorflow as tf

from common import building, cli, records, splits
from common.errors import UserError
from textclf import corpus, demo, sources

KIND = "text"       # of records
TEXTS_PER_SHARD = 100_000
_FEATURES = {"text": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64),
             "source": tf.io.FixedLenFeature([], tf.string)}


def encode_example(text, label, source):
    """One serialized record: text str, label int from 0, source str (file and line)."""
    text, source = ([part.encode()] for part in (text, source))
    return tf.train.Example(features=tf.train.Features(feature={
        "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=text)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "source": tf.train.Feature(bytes_list=tf.train.BytesList(value=source))})).SerializeToString(deterministic=True)


def parse(serialized):
    """Records string [B] as {"text": string [B], "label": int64 [B], "source": string [B]}."""
    return tf.io.parse_example(serialized, _FEATURES)


def text_batches(folder, split, *, limit=0, batch_size=256):
    """Every text of a split once, in string tensors [B]: what the vocabulary is learnt from."""
    stream = records.dataset(folder, split, epochs=1, limit=limit).batch(batch_size)
    return stream.map(lambda batch: parse(batch["record"])["text"], num_parallel_calls=2).prefetch(1)


def training_dataset(folder, vectorize, *, batch_size, seed, start_step=0, global_batch_size=None, limit=0,
                     num_workers=1, worker=0):
    """Endless batches (rows float32 [B, V], labels int64 [B]) for the loss.

    Step k takes the examples k * global_batch_size onwards of the endless stream of epochs, so that training can
    start at any step; the order depends on (seed, epoch) alone. batch_size is a replica's.
    """
    per_epoch = records.count(folder, "train", limit=limit) // num_workers * num_workers
    start = divmod(start_step * (global_batch_size or batch_size), max(per_epoch, 1))
    stream = records.dataset(folder, "train", seed=seed, limit=limit, start=start, num_shards=num_workers,
                             shard_index=worker)

    def prepare(batch):
        example = parse(batch["record"])
        return vectorize(example["text"]), example["label"]

    dataset = stream.batch(batch_size, drop_remainder=True)
    return dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(folder, split, vectorize, *, batch_size, global_batch_size=None, limit=0):
    """Batches {"rows" [B, V], "label" [B], "index" [B]} of a split in its order, each example once.

    index -1 fills the last global batch up.
    """
    def prepare(batch):
        example = parse(batch["record"])
        return {"rows": vectorize(example["text"]), "label": example["label"], "index": batch["index"]}

    stream = records.dataset(folder, split, epochs=1, limit=limit)
    count = records.count(folder, split, limit=limit)
    filler = stream.take(1).map(lambda item: {**item, "index": tf.constant(-1, tf.int64)})
    stream = stream.concatenate(filler.repeat(-count % (global_batch_size or batch_size)))
    dataset = stream.batch(batch_size, drop_remainder=True)
    return dataset.map(prepare, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def build(name, source=None, folder=None, *, file_format=None, columns=None, encoding="utf-8", val_fraction=None,
          test_fraction=None, skip_bad=False, shards=None, seed=0):
    """Writes the records of a source, says what was left out, and returns their folder. Raises UserError.

    source: None makes the demo. columns: {field of `sources.Columns`: value} where it is not the default.
    val_fraction, test_fraction: about which share of the rows of a file that has no file for that split beside it;
    default a tenth. skip_bad: leave bad rows out, listed in the manifest; else they are an error.
    """
    folder = pathlib.Path(folder or records.default_folder(name, KIND))
    if source is None and name != records.DEMO:
        raise UserError("Give --source FILE.csv, or a folder with a train and a test file; only the demo is made "
                        "up.")
    found, left_out = _Demo(seed), {}
    if source is not None:
        files, file_format, left_out = sources.find(source, file_format)
        columns, shares = sources.layout(file_format, columns or {}), _shares(files, val_fraction, test_fraction)
        found = corpus.Corpus(files, lambda path: sources.read(path, columns, encoding), shares, seed)
        _report_bad(found, source, skip_bad)
    with records.RecordWriter(folder, kind=KIND, labels=found.labels, source=source or f"made up, seed {seed}",
                              builder="textclf.preprocess") as writer:
        keys = {split: _write(writer, found, split, expected, shards) for split, expected in found.splits().items()}
        writer.manifest.update(skipped=found.bad, num_skipped=found.num_bad, left_out=building.summarize(left_out),
                               shared=splits.shared(keys))
        writer.publish()
    return folder


def _shares(files, val_fraction, test_fraction):
    """{split: share} of what is dealt from the training file."""
    given = {"test": test_fraction, "val": val_fraction}
    for split, share in given.items():
        if split in files and share is not None:
            raise UserError(f"--{split}_fraction is for a source without a {split} file, and {files[split]} is one. "
                            "Leave it out, or move the file away.")
    shares = {split: 0.1 if share is None else share for split, share in given.items() if split not in files}
    if sum(shares.values()) >= 1:
        raise UserError("--val_fraction and --test_fraction must leave something to train on; "
                        f"{val_fraction} and {test_fraction} came.")
    return shares


def _write(writer, found, split, expected, shards):
    """Writes a split; returns a number for each of its texts, the same for the same text."""
    ids = {label: number for number, label in enumerate(found.labels)}
    counts, keys = dict.fromkeys(found.labels, 0), array.array("d")

    def serialized():
        for text, label, source in found.rows(split):
            counts[label] += 1
            keys.append(splits.fraction(text))
            yield encode_example(text, ids[label], source)

    shards = shards or -(-expected // TEXTS_PER_SHARD)
    # `counts` is complete when write_split puts it into the manifest.
    written = writer.write_split(split, serialized(), num_shards=shards, total=expected, categories=counts)
    if written != expected:
        raise UserError(f"The source must stay as it is while it is read, and changed: {split} had {expected} "
                        f"rows, then {written}. Build again.")
    return keys


class _Demo:
    """Made-up news in the form of a `Corpus`."""

    labels, bad, num_bad = demo.LABELS, [], 0

    def __init__(self, seed):
        self._seed = seed

    def splits(self):
        return demo.SPLITS

    def rows(self, split):
        names = list(demo.SPLITS)
        first = sum(demo.SPLITS[name] for name in names[:names.index(split)])
        for index in range(first, first + demo.SPLITS[split]):
            yield *demo.story(self._seed, index), f"story {index}"


def _report_bad(found, source, skip_bad):
    """Bad rows of a Corpus: listed on stderr and left out with skip_bad, an error otherwise."""
    if not found.num_bad:
        return
    lines = corpus.bad_lines(found)
    if not skip_bad:
        raise UserError(f"{source} has {found.num_bad} bad of {found.num_rows} rows: {'; '.join(lines)}. "
                        "Correct them, or leave them out, listed, with --skip_bad.")
    print("\n".join(f"left out: {line}" for line in lines), file=sys.stderr)
    print(f"{found.num_bad} of {found.num_rows} rows left out; the manifest lists "
          f"{'them' if found.num_bad <= corpus.LISTED else f'the first {corpus.LISTED}'}", file=sys.stderr)


def ensure_records(name):
    """The folder of the record set `name` (or a path); the demo is made on the spot."""
    try:
        return records.resolve(name, kind=KIND, command=command(name))
    except UserError:
        if name != records.DEMO:
            raise
        return build(name)


def command(name):
    """The command line that builds the record set `name`."""
    name = records.name_of(name, KIND)
    source = "" if name == records.DEMO else f" --source {'r8' if name == 'r8' else 'FILE.csv'}"
    return f"python -m textclf.preprocess --dataset {shlex.quote(name)}{source}"


def describe(folder):
    """The texts of each category in each split, as a table."""
    manifest = records.read_manifest(folder)
    entries = manifest["splits"]
    width = max(8, *map(len, manifest["labels"]))
    lines = [f"{'category':{width}}" + "".join(f"{split:>9}" for split in entries)]
    for label in manifest["labels"]:
        lines.append(f"{label:{width}}" + "".join(f"{entry['categories'][label]:9d}" for entry in entries.values()))
    lines.append(f"{'all':{width}}" + "".join(f"{entry['examples']:9d}" for entry in entries.values()))
    if manifest["num_skipped"]:
        lines.append(f"{manifest['num_skipped']} bad rows were left out when it was built")
    lines += building.left_out_lines(manifest.get("left_out", {}))
    lines += splits.shared_lines(manifest.get("shared", {}), "texts")
    return "\n".join(lines)


def check(folder):
    """Compares the files with their sha256, and what the records hold with the manifest. Raises UserError."""
    records.verify(folder)
    manifest = records.read_manifest(folder)
    for split, entry in manifest["splits"].items():
        found = collections.Counter()
        for batch in records.dataset(folder, split, epochs=1).batch(4096):
            found.update(parse(batch["record"])["label"].numpy().tolist())
        expected = {number: entry["categories"][label] for number, label in enumerate(manifest["labels"])}
        if {number: count for number, count in expected.items() if count} != found:
            raise UserError(f"{folder} must hold what its manifest counts for {split}, and does not. Build it "
                            f"again: {command(folder)}")


# Flags that say how a source is read: without one they would be ignored.
OF_SOURCES = ("format", "text_columns", "label_column", "header", "delimiter", "escape", "encoding", "val_fraction",
              "test_fraction", "skip_bad")


def define_flags():
    flags = cli.flags
    flags.DEFINE_string("dataset", None, "Name of the record set: r8, demo, or a name for your own.")
    flags.DEFINE_string("source", None, "File of rows, or folder with a train and a test file (and a val file); "
                        ".csv, or category<TAB>text in .txt or .tsv; perhaps .gz. The demo has none.")
    flags.DEFINE_string("out", None, "Folder of the records; default tfrecords/<dataset>.")
    flags.DEFINE_enum("format", None, list(sources.FORMATS), "csv, or tab (category<TAB>text); default: by the "
                                                             "name.")
    flags.DEFINE_list("text_columns", ["0"], "Columns of the text, numbers from 0 or names of the header, "
                      "such as title,text; several are joined by a space.")
    flags.DEFINE_string("label_column", "1", "Column of the category.")
    flags.DEFINE_bool("header", False, "The first row names the columns. With this or one of the two before it, a tab "
                      "file is delimited text, too.")
    flags.DEFINE_string("delimiter", ",", "Between the fields; in a tab file a tab.")
    flags.DEFINE_string("escape", "\\", "Takes the quotation mark, the delimiter or itself behind it as they are, and "
                        "is a blank before anything else; empty for none.")
    flags.DEFINE_string("encoding", "utf-8", "Of the source.")
    flags.DEFINE_float("val_fraction", 0.1, "About which share of the rows, where the source has no val file; 0 for no "
                       "validation split.", lower_bound=0.0, upper_bound=0.9)
    flags.DEFINE_float("test_fraction", 0.1, "The same of test.", lower_bound=0.0, upper_bound=0.9)
    flags.DEFINE_bool("skip_bad", False, "Leave out, and list, rows that cannot be used.")
    flags.DEFINE_integer("shards", None, f"Files per split; default one for {TEXTS_PER_SHARD:,} "
                                         "texts.", lower_bound=1)
    flags.DEFINE_bool("check", False, "Examine records that are already built.")
    flags.DEFINE_integer("seed", 0, "Seed of the split and of made-up news.", lower_bound=0)


def columns_of(given):
    """{field of `sources.Columns`: value} of the flags that were given, {name: value}."""
    columns = {field: given[name] for field, name in (("text", "text_columns"), ("label", "label_column"),
               ("header", "header"), ("delimiter", "delimiter"), ("escape", "escape")) if name in given}
    if "text" in columns:
        columns["text"] = tuple(columns["text"])
    if not columns.get("header", True):
        del columns["header"]  # --noheader says what is so without it
    if columns.get("delimiter") == "\\t":
        columns["delimiter"] = "\t"
    whole = sources.Columns(**columns)
    for name, longest in (("delimiter", (1,)), ("escape", (0, 1))):
        if len(getattr(whole, name)) not in longest:
            raise UserError(f"--{name} must be one character; {getattr(whole, name)!r} came.")
    if len({whole.delimiter, whole.escape, '"'}) < 3:
        raise UserError("--delimiter and --escape must be different characters, and neither the quotation mark; "
                        f"{whole.delimiter!r} and {whole.escape!r} came.")
    return columns


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if not flags.dataset:
        raise UserError("Give --dataset NAME: r8, demo, or a name for a file of your own, which --source then "
                        "names.")
    given = {name: flags[name].value for name in OF_SOURCES if not flags[name].using_default_value}
    if given and not flags.source:
        raise UserError(f"{' and '.join(f'--{name}' for name in given)} must say how to read a source, and there is "
                        "none. Add --source.")
    folder = pathlib.Path(flags.out or records.default_folder(flags.dataset, KIND))
    if not (flags.check and not flags.source and (folder / records.MANIFEST).is_file()):
        build(flags.dataset, flags.source, folder, file_format=flags.format, columns=columns_of(given),
              encoding=flags.encoding, val_fraction=given.get("val_fraction"),
              test_fraction=given.get("test_fraction"), skip_bad=flags.skip_bad, shards=flags.shards, seed=flags.seed)
    check(folder)
    print(describe(folder))
    print(folder)


if __name__ == "__main__":
    cli.run(main, define_flags)
