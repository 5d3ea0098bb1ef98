"""A source of texts as a whole: its categories, what is bad in it, and which rows belong to which split.

The article's slices gave test texts equal to training texts and categories of other rows. Here a row's split follows
from its text and a seed alone (`common/splits.py`): rows that are added or put into another order move no other, and
all rows with one text are in one split. Sources are read row by row, more than once; no text is kept.
"""

import collections

from common import splits
from common.errors import UserError
from textclf import sources

MAX_LABELS = 1000   # more are taken for a wrong column
LISTED = 1000       # bad rows that the manifest lists; all are counted
SHOWN = 10          # bad rows that are printed


class Corpus:
    """A source that has been read through.

    files: {split: path}, or {"all": path} for one that is to be dealt into splits. read: function from a path to
    `Row` and `Bad` objects. shares: {split: about which share of the rows of the training file it gets}.
    """

    def __init__(self, files, read, shares, seed):
        self.files, self.bad, self.num_bad = files, [], 0
        self._read, self._seed = read, seed
        self._shares = {split: share for split, share in shares.items() if share}
        self._first = "all" if "all" in files else "train"  # the file that training rows come from
        self._moved = {}  # fraction of a text -> its split, of the few that the shares' thresholds do not place
        self._counts = self._deal()
        self._known = set().union(*self._counts.values())
        self.labels = sorted(self._known)
        for split in files:
            if split != self._first:
                self._counts[split] = collections.Counter(row.label for row in self._good(split, listed=True))
        self.num_rows = self.num_bad + sum(sum(counts.values()) for counts in self._counts.values())
        if len(self.labels) < 2:
            raise UserError(f"{files[self._first]} must have rows of two categories at least, and has {self.labels} "
                            f"in {self.num_rows} rows, {self.num_bad} of them bad. Give --label_column."
                            + (f" Bad: {'; '.join(bad_lines(self))}." if self.bad else ""))

    def splits(self):
        """The splits that hold rows, {split: their number}."""
        found = {split: sum(self._counts.get(split, {}).values()) for split in splits.SPLITS}
        return {split: count for split, count in found.items() if count}

    def rows(self, split):
        """Yields (text, label, "file:line") of a split in the order of the file, which is read once more."""
        for name, path in self.files.items():
            if name in (self._first, split):
                for row in self._good(name):
                    if name != self._first or self._place(splits.fraction(row.text, self._seed)) == split:
                        yield row.text, row.label, f"{path.name}:{row.line}"

    def _good(self, name, listed=False):
        """The rows of a file that can be used; the others are listed when it is read for the first time."""
        for row in self._read(self.files[name]):
            if isinstance(row, sources.Bad):
                reason = row.reason
            elif name == self._first or row.label in self._known:
                yield row
                continue
            else:
                reason = f"category {row.label[:40]!r} is not among those of the training rows"
            if listed:
                self.num_bad += 1
                if len(self.bad) < LISTED:
                    self.bad.append({"file": self.files[name].name, "line": row.line, "reason": reason})

    def _place(self, where):
        return self._moved.get(where) or splits.place(where, self._shares)

    def _deal(self):
        """{split: Counter of categories} of the training file's rows; fills `_moved`.

        As `splits.deal`: a split that would be empty gets the text nearest to it, and a category without a training
        row gets back the one nearest to training.
        """
        counts, lowest, highest = self._count(listed=True)
        for split in self._shares:
            free = [(where, label) for label, places in lowest.items() if counts["train"][label] > 1
                    for where in places if where not in self._moved]
            if split not in counts and free:
                where, label = min(free)
                self._moved[where] = split
                counts["train"][label] -= 1
        if self._moved:
            counts, _, highest = self._count()
        untrained = {where: "train" for label, where in highest.items() if not counts["train"][label]}
        if untrained:
            self._moved |= untrained
            counts, _, _ = self._count()
        return counts

    def _count(self, listed=False):
        """({split: Counter of categories}, {category: lowest fractions of its training rows}, {category: highest of
        all its rows}) of the training file."""
        counts, lowest, highest = collections.defaultdict(collections.Counter), {}, {}
        for row in self._good(self._first, listed):
            where = splits.fraction(row.text, self._seed)
            split = self._place(where)
            counts[split][row.label] += 1
            highest[row.label] = max(highest.get(row.label, 0.0), where)
            if split == "train":
                lowest[row.label] = sorted({*lowest.get(row.label, ()), where})[:len(self._shares)]
            if len(highest) > MAX_LABELS:
                raise UserError(f"{self.files[self._first]} must have its categories in the column that is read for "
                                f"them, and there are more than {MAX_LABELS} in it, such as {row.label[:40]!r}. Give "
                                "--label_column.")
        return counts, lowest, highest


def bad_lines(corpus):
    """The first bad rows of a corpus, by file and line, and how many more there are."""
    lines = [f"{bad['file']} line {bad['line']}: {bad['reason']}" for bad in corpus.bad[:SHOWN]]
    more = [f"and {corpus.num_bad - SHOWN} more"] if corpus.num_bad > SHOWN else []
    return lines + more
