"""Rows of text and category from CSV files and from R8's own format, one at a time; what is bad, by line.

Article, "Reading CSV": `pandas.read_csv("articles.csv", header=None, escapechar="\\", na_filter=False)`, title and
text in the first field, category in the second. R8's files are `category<TAB>text`. Both may be gzip'ed.
"""

import codecs
import csv
import gzip
import pathlib
import re
import zlib
from typing import NamedTuple

from common import files
from common.errors import UserError

FORMATS = ("csv", "tab")
MAX_CHARACTERS = 2**20  # of a field: a quotation mark that is never closed must not swallow a whole file
_SURROGATE = re.compile("[\ud800-\udfff]")
_SUFFIXES = {".csv": "csv", ".txt": "tab", ".tsv": "tab", ".tab": "tab"}


class Row(NamedTuple):
    """One text with its category; `line` counts from 1, of the line where the row starts."""

    line: int
    text: str
    label: str


class Bad(NamedTuple):
    """A row that cannot be used, and why."""

    line: int
    reason: str


class Columns(NamedTuple):
    """Which fields of a CSV file are read; `text` and `label` are names (with a header) or numbers from 0."""

    text: tuple = ("0",)  # joined by a space
    label: str = "1"
    header: bool = False
    delimiter: str = ","
    escape: str = "\\"


def find(source, file_format=None):
    """{split: path} of a source, and its format: a file is {"all": file}; a folder with its own split must hold
    one file whose name has "train" in it and one with "test", and may hold one with "val".

    file_format: csv or tab; None goes by the name: .csv, or .txt and .tsv (tab), perhaps with .gz behind.
    """
    source = pathlib.Path(source)
    if not source.exists():
        raise UserError(f"--source must be a file, or a folder with a train and a test file; {source} is not "
                        "there.")
    if source.is_file():
        found = {"all": source}
    else:
        found = {}
        for path in sorted(source.iterdir()):
            split = re.search("train|test|val", path.name.lower())
            if split and _format(path):
                if split[0] in found:
                    raise UserError(f"{source} must hold one {split[0]} file, and holds {found[split[0]].name} "
                                    f"and {path.name}. Give --source a folder with one of them.")
                found[split[0]] = path
        if not {"train", "test"} <= set(found):
            raise UserError(f"{source} must hold a .csv, .txt or .tsv file with train in its name and one with "
                            "test; "
                            f"found: {', '.join(path.name for path in found.values()) or 'none'}. For one file "
                            "that is to be split, give --source the file.")
    formats = {file_format or _format(path) for path in found.values()}
    if len(formats) > 1 or None in formats:
        names = ", ".join(path.name for path in found.values())
        raise UserError(f"The format of {names} must be clear from .csv, .txt or .tsv; say --format csv or "
                        "--format tab.")
    return found, formats.pop()


def read(path, file_format, columns=Columns(), encoding="utf-8"):
    """Yields a `Row` or `Bad` for each row of a file; no more than one row is in memory.

    Blank lines are passed over, as pandas does. Raises UserError for what concerns the file as a whole: it cannot
    be opened, is cut (gzip), or is in another encoding.
    """
    reader = _read_csv if file_format == "csv" else _read_tab
    try:
        encoding = "utf-8-sig" if codecs.lookup(encoding).name == "utf-8" else encoding
    except LookupError:
        raise UserError(f"--encoding must be one that Python knows (utf-8, latin-1, cp1252, utf-16, ...); "
                        f"{encoding!r} came.") from None
    try:
        # Bytes that are not of the encoding become surrogates, which no text holds: the row is known, and bad.
        opened = gzip.open if path.suffix.lower() == ".gz" else open
        with opened(path, "rt", encoding=encoding, errors="surrogateescape", newline="") as file:
            for row in reader(file, path, columns):
                yield _checked(row, encoding)
    except UnicodeError as error:
        raise UserError(f"{path} must be in {encoding}, and is not ({error}). Give --encoding.") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read to its end ({files.reason(error)}). Put back a whole "
                        "copy.") from None


def _format(path):
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return _SUFFIXES.get(suffixes[-1]) if suffixes else None


def _checked(row, encoding):
    if isinstance(row, Bad):
        return row
    row = row._replace(text=row.text.strip(), label=row.label.strip())
    if _SURROGATE.search(row.text) or _SURROGATE.search(row.label):
        return Bad(row.line, f"bytes that are not {encoding.removesuffix('-sig')}")
    if not row.text or not row.label:
        return Bad(row.line, "no category" if row.text else "no text")
    return row


def _read_csv(file, path, columns):
    csv.field_size_limit(MAX_CHARACTERS)
    reader = csv.reader(file, delimiter=columns.delimiter, escapechar=columns.escape or None, strict=True)
    wanted = None if columns.header else _numbers(columns)
    line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Bad(line, str(error))
            line = reader.line_num + 1
            continue
        start, line = line, reader.line_num + 1
        if not fields:
            continue
        if wanted is None:
            wanted = _positions(fields, columns, path)
        elif len(fields) <= max(wanted):
            yield Bad(start, f"{len(fields)} fields, and {max(wanted) + 1} are needed")
        else:
            *text, label = (fields[number] for number in wanted)
            yield Row(start, " ".join(text), label)


def _numbers(columns):
    names = [*columns.text, columns.label]
    if not all(re.fullmatch("[0-9]+", name) for name in names):
        raise UserError(f"Without a header --text_columns and --label_column must be numbers from 0; "
                        f"{', '.join(names)} came. If the first row names the columns, add --header.")
    return [int(name) for name in names]


def _positions(header, columns, path):
    """Where the wanted columns are; a name that is no column may be a number."""
    found = []
    for name in [*columns.text, columns.label]:
        if name in header:
            found.append(header.index(name))
        elif re.fullmatch("[0-9]+", name) and int(name) < len(header):
            found.append(int(name))
        else:
            raise UserError(f"{path} must have a column {name}; its header has {', '.join(header)}. Give "
                            "--text_columns and --label_column.")
    return found


def _read_tab(file, path, columns):
    line = 0
    while content := file.readline(MAX_CHARACTERS):
        line += 1
        if len(content) == MAX_CHARACTERS and not content.endswith("\n"):
            yield Bad(line, f"longer than {MAX_CHARACTERS} characters")
            while content and not content.endswith("\n"):
                content = file.readline(MAX_CHARACTERS)
            continue
        content = content.rstrip("\r\n")
        if not content:
            continue
        label, tab, text = content.partition("\t")
        yield Row(line, text, label) if tab else Bad(line, "no tab between category and text")
