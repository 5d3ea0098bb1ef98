"""From news and their categories to records, and from records to batches of tf-idf rows.

    python -m textclf.preprocess --dataset articles --source articles.csv     builds tfrecords/articles
    python -m textclf.preprocess --dataset r8 --source r8                     a folder with a train and a test file
    python -m textclf.preprocess --dataset articles --check

Article, "Reading CSV" and "The input". The article's slices gave test texts equal to training texts and categories
of other rows; here every row goes to one of train, val and test, by lot within its category (stratified), and the
categories are those of the training rows. Sources and records are read row by row: memory does not grow with
the corpus, but for eight bytes of position per text. records -> parse -> vectorize -> batches.

B batch, V columns of the vocabulary, C categories.
"""

import collections
import pathlib
import shlex
import sys

import numpy as np
import tensorflow as tf

from common import cli, records
from common.errors import UserError
from textclf import demo, sources

KIND = "text"       # of records
MAX_LABELS = 1000   # more are taken for a wrong column
LISTED = 1000       # bad rows that the manifest lists; all are counted
SHOWN = 10          # bad rows that are printed
TEXTS_PER_SHARD = 100_000
_FEATURES = {"text": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64),
             "source": tf.io.FixedLenFeature([], tf.string)}


def encode_example(text, label, source):
    """One serialized record: text str, label int from 0, source str (file and line)."""
    text, source = ([part.encode()] for part in (text, source))
    return tf.train.Example(features=tf.train.Features(feature={
        "text": tf.train.Feature(bytes_list=tf.train.BytesList(value=text)),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        "source": tf.train.Feature(bytes_list=tf.train.BytesList(value=source))})).SerializeToString()


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


class Splitter:
    """Deals the rows of each category out to splits: exact shares, which row by lot, no row kept in memory.

    counts: {label: rows}. shares: {split: share of each category}; what is left, at least one row of each, is
    train. Selection sampling (Knuth, The Art of Computer Programming, vol. 2, 3.4.2, algorithm S).
    """

    def __init__(self, counts, shares, seed):
        self._rng = np.random.default_rng(seed)
        self._left = {}
        for label, count in counts.items():
            quotas, free = {}, count - 1
            for split, share in shares.items():
                quotas[split] = min(int(count * share + 0.5), free)
                free -= quotas[split]
            self._left[label] = {"train": free + 1, **quotas}

    def left(self):
        """{split: rows that are still to come}."""
        return sum(map(collections.Counter, self._left.values()), collections.Counter())

    def split(self, label):
        """The split of the next row of this category."""
        left = self._left[label]
        place = self._rng.random() * sum(left.values())
        for name, quota in left.items():
            if quota and place < quota:
                break
            place -= quota
        left[name] -= 1
        return name


class Corpus:
    """A source that has been read once: its categories, what is bad in it, and its rows by split.

    files: {split: path}, or {"all": path} for one that is to be split. read: function from a path to `Row` and
    `Bad` objects. shares: {"val": share, "test": share} of a file that is to be split; only "val", which is taken
    from the training file, where the source has a test file of its own.
    """

    def __init__(self, files, read, shares, seed):
        self.files, self._read, self._shares, self._seed = files, read, shares, seed
        self.bad, self.num_bad, self._counts = [], 0, {}
        trained = self._first()
        for split, path in sorted(files.items(), key=lambda item: item[0] != trained):
            self._counts[split] = collections.Counter()
            for row in read(path):
                reason = self._reason(split, row)
                if reason:
                    self.num_bad += 1
                    if len(self.bad) < LISTED:
                        self.bad.append({"file": path.name, "line": row.line, "reason": reason})
                    continue
                self._counts[split][row.label] += 1
                if len(self._counts[split]) > MAX_LABELS:
                    raise UserError(f"{path} must have its categories in the column that is read for them, and "
                                    f"there are more than {MAX_LABELS} in it, such as {row.label[:40]!r}. Give "
                                    "--label_column.")
        self.num_rows = self.num_bad + sum(sum(counts.values()) for counts in self._counts.values())
        self.labels = sorted(self._counts[trained])
        if len(self.labels) < 2:
            raise UserError(f"{files[trained]} must have rows of two categories at least, and has {self.labels} "
                            f"in {self.num_rows} rows, {self.num_bad} of them bad. Give --label_column.")

    def splits(self):
        """The splits that hold rows, {split: expected number}."""
        first = self._first()
        found = collections.Counter({split: sum(counts.values())
                                     for split, counts in self._counts.items() if split != first})
        found.update(Splitter(self._counts[first], self._shares, self._seed).left())
        return {split: found[split] for split in ("train", "val", "test") if found[split]}

    def rows(self, split):
        """Yields (text, label, "file:line") of a split in the order of the file, which is read once more."""
        first = self._first()
        dealt = Splitter(self._counts[first], self._shares, self._seed)
        for name, path in self.files.items():
            if name not in (first, split):
                continue
            for row in self._read(path):
                if not self._reason(name, row) and (dealt.split(row.label) if name == first else name) == split:
                    yield row.text, row.label, f"{path.name}:{row.line}"

    def _first(self):
        """The file that training rows come from."""
        return "all" if "all" in self.files else "train"

    def _reason(self, split, row):
        if isinstance(row, sources.Bad):
            return row.reason
        if split != self._first() and row.label not in self._counts[self._first()]:
            return f"category {row.label[:40]!r} is not among those of the training rows"
        return None


def build(name, source=None, folder=None, *, file_format=None, columns=sources.Columns(), encoding="utf-8",
          val_fraction=0.1, test_fraction=0.1, skip_bad=False, shards=None, seed=0):
    """Writes the records of a source, says what was left out, and returns their folder. Raises UserError.

    source: None makes the demo. val_fraction, test_fraction: of each category; test_fraction only where the
    source has no test file of its own. skip_bad: leave bad rows out, listed in the manifest; else they are an
    error.
    """
    folder = pathlib.Path(folder or records.default_folder(name, KIND))
    if source is None and name != records.DEMO:
        raise UserError("Give --source FILE.csv, or a folder with a train and a test file; only the demo is made "
                        "up.")
    if source is None:
        corpus = _Demo(seed)
    else:
        files, file_format = sources.find(source, file_format)
        shares = {"val": val_fraction, "test": test_fraction} if "all" in files else {"val": val_fraction}
        if "val" in files:
            shares = {}
        if sum(shares.values()) >= 1:
            raise UserError("--val_fraction and --test_fraction must leave something to train on; "
                            f"{val_fraction} and {test_fraction} came.")
        corpus = Corpus(files, lambda path: sources.read(path, file_format, columns, encoding), shares, seed)
        _report_bad(corpus, source, skip_bad)
    with records.RecordWriter(folder, kind=KIND, labels=corpus.labels, source=source or f"made up, seed {seed}",
                              builder="textclf.preprocess") as writer:
        for split, expected in corpus.splits().items():
            _write(writer, corpus, split, expected, shards)
        writer.manifest["skipped"] = corpus.bad
        writer.manifest["num_skipped"] = corpus.num_bad
        writer.publish()
    return folder


def _write(writer, corpus, split, expected, shards):
    ids = {label: number for number, label in enumerate(corpus.labels)}
    counts = dict.fromkeys(corpus.labels, 0)

    def serialized():
        for text, label, source in corpus.rows(split):
            counts[label] += 1
            yield encode_example(text, ids[label], source)

    shards = shards or -(-expected // TEXTS_PER_SHARD)
    # `counts` is complete when write_split puts it into the manifest.
    written = writer.write_split(split, serialized(), num_shards=shards, total=expected, categories=counts)
    if written != expected:
        raise UserError(f"The source must stay as it is while it is read, and changed: {split} had {expected} "
                        f"rows, then {written}. Build again.")


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


def _report_bad(corpus, source, skip_bad):
    """Bad rows: listed on stderr and left out with skip_bad, an error otherwise."""
    if not corpus.num_bad:
        return
    lines = [f"{bad['file']} line {bad['line']}: {bad['reason']}" for bad in corpus.bad[:SHOWN]]
    more = f"; and {corpus.num_bad - SHOWN} more" if corpus.num_bad > SHOWN else ""
    if not skip_bad:
        raise UserError(f"{source} has {corpus.num_bad} bad of {corpus.num_rows} rows: {'; '.join(lines)}{more}. "
                        "Correct them, or leave them out, listed, with --skip_bad.")
    print("\n".join(f"left out: {line}" for line in lines) + more.replace("; ", "\n"), file=sys.stderr)
    print(f"{corpus.num_bad} of {corpus.num_rows} rows left out; the manifest lists "
          f"{'them' if corpus.num_bad <= LISTED else f'the first {LISTED}'}", file=sys.stderr)


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
    splits = manifest["splits"]
    width = max(8, *map(len, manifest["labels"]))
    lines = [f"{'category':{width}}" + "".join(f"{split:>9}" for split in splits)]
    for label in manifest["labels"]:
        lines.append(f"{label:{width}}" + "".join(f"{entry['categories'][label]:9d}" for entry in splits.values()))
    lines.append(f"{'all':{width}}" + "".join(f"{entry['examples']:9d}" for entry in splits.values()))
    if manifest["num_skipped"]:
        lines.append(f"{manifest['num_skipped']} bad rows were left out when it was built")
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


def define_flags():
    flags = cli.flags
    flags.DEFINE_string("dataset", None, "Name of the record set: r8, demo, or a name for your own.")
    flags.DEFINE_string("source", None, "File of rows, or folder with a train and a test file (and a val file); "
                        ".csv, or category<TAB>text in .txt or .tsv; perhaps .gz. The demo has none.")
    flags.DEFINE_string("out", None, "Folder of the records; default tfrecords/<dataset>.")
    flags.DEFINE_enum("format", None, list(sources.FORMATS), "csv, or tab (category<TAB>text); default: by the "
                                                             "name.")
    flags.DEFINE_list("text_columns", ["0"], "CSV columns of the text, numbers from 0 or names of the header, "
                      "such as title,text; several are joined by a space.")
    flags.DEFINE_string("label_column", "1", "CSV column of the category.")
    flags.DEFINE_bool("header", False, "The first row of the CSV names the columns.")
    flags.DEFINE_string("delimiter", ",", "Between the fields of the CSV.")
    flags.DEFINE_string("escape", "\\", "Character that takes the next one as it is; empty for none.")
    flags.DEFINE_string("encoding", "utf-8", "Of the source.")
    flags.DEFINE_float("val_fraction", 0.1, "Of each category of the training rows; 0 for no validation split.",
                       lower_bound=0.0, upper_bound=0.9)
    flags.DEFINE_float("test_fraction", 0.1, "Of each category, where the source has no test "
                                             "file.", lower_bound=0.0,
                       upper_bound=0.9)
    flags.DEFINE_bool("skip_bad", False, "Leave out, and list, rows that cannot be used.")
    flags.DEFINE_integer("shards", None, f"Files per split; default one for {TEXTS_PER_SHARD:,} "
                                         "texts.", lower_bound=1)
    flags.DEFINE_bool("check", False, "Examine records that are already built.")
    flags.DEFINE_integer("seed", 0, "Seed of the split and of made-up news.", lower_bound=0)


def main(args):
    cli.no_arguments(args)
    flags = cli.FLAGS
    if not flags.dataset:
        raise UserError("Give --dataset NAME: r8, demo, or a name for a file of your own, which --source then "
                        "names.")
    for name in ("delimiter", "escape"):
        if len(flags[name].value) > 1 or (name == "delimiter" and not flags.delimiter):
            raise UserError(f"--{name} must be one character; {flags[name].value!r} came.")
    folder = pathlib.Path(flags.out or records.default_folder(flags.dataset, KIND))
    if not (flags.check and not flags.source and (folder / records.MANIFEST).is_file()):
        columns = sources.Columns(tuple(flags.text_columns), flags.label_column, flags.header, flags.delimiter,
                                  flags.escape)
        build(flags.dataset, flags.source, folder, file_format=flags.format, columns=columns,
              encoding=flags.encoding, val_fraction=flags.val_fraction, test_fraction=flags.test_fraction,
              skip_bad=flags.skip_bad, shards=flags.shards, seed=flags.seed)
    check(folder)
    print(describe(folder))
    print(folder)


if __name__ == "__main__":
    cli.run(main, define_flags)
