"""Rows of text and category from CSV files and from R8's own format, one at a time; what is bad, by line.

Article, "Reading CSV": `pandas.read_csv("articles.csv", header=None, escapechar="\\", na_filter=False)`, title and
text in the first field, category in the second. There a backslash takes whatever follows as it is, and goes; that is
right where whoever wrote the file put it before quotation marks, delimiters and backslashes, as MySQL does. Elsewhere
it is a line break (AG's News: "dwindling\\band"), and two words would be joined: so here it escapes the quotation
mark, the delimiter, itself and the end of a line, and is a blank before anything else.

R8's files are `category<TAB>text`. Both may be gzip'ed.
"""

import codecs
import csv
import gzip
import pathlib
import re
import zlib
from typing import NamedTuple

from common import files, splits
from common.errors import UserError

FORMATS = ("csv", "tab")
MAX_CHARACTERS = 2**20  # of a field: a quotation mark that is never closed must not swallow a whole file
SURROGATE = re.compile("[\ud800-\udfff]")  # what surrogateescape makes of a byte that is not of the encoding
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
    """Which fields of delimited text are read; `text` and `label` are names (with a header) or numbers from 0."""

    text: tuple = ("0",)  # joined by a space
    label: str = "1"
    header: bool = False
    delimiter: str = ","
    escape: str = "\\"  # see above; empty for none


def find(source, file_format=None):
    """({split: path} of a source, its format, {reason: [paths]} of what else is in the folder).

    A file is {"all": file}. A folder with its own split must hold one file whose name has the word train or training
    in it and one with test or testing, and may hold one with val, valid, validation or dev.

    file_format: csv or tab; None goes by the name: .csv, or .txt, .tsv and .tab (tab), perhaps with .gz behind.
    """
    source = pathlib.Path(source)
    if not source.exists():
        raise UserError(f"--source must be a file, or a folder with a train and a test file; {source} is not "
                        "there.")
    left_out = []
    if source.is_file():
        found = {"all": source}
    else:
        found = {}
        for path in splits.entries(source):
            split = splits.of_name(path.name) if path.is_file() and _format(path) else None
            if split is None:
                left_out.append(path)
            elif split in found:
                raise UserError(f"{source} must hold one {split} file, and holds {found[split].name} "
                                f"and {path.name}. Give --source a folder with one of them.")
            else:
                found[split] = path
        if not {"train", "test"} <= set(found):
            raise UserError(f"{source} must hold a .csv, .txt or .tsv file with the word train in its name and one "
                            f"with test; found: {', '.join(path.name for path in found.values()) or 'none'}; besides: "
                            f"{', '.join(path.name for path in left_out) or 'nothing'}. For one file that is to be "
                            "split, give --source the file.")
    formats = {file_format or _format(path) for path in found.values()}
    if len(formats) > 1 or None in formats:
        names = ", ".join(path.name for path in found.values())
        raise UserError(f"The format of {names} must be clear from .csv, .txt or .tsv; say --format csv or "
                        "--format tab.")
    return found, formats.pop(), {"files or folders that no split names": left_out}


def layout(file_format, given):
    """The `Columns` of a file, None for R8's lines. given: {field of Columns: value} of what the user has said.

    Tab files are R8's unless columns or a header are named: then they are delimited text with tabs. Raises UserError
    for what cannot apply.
    """
    columns = Columns(**given)
    if file_format == "csv":
        return columns
    if given.keys() & {"text", "label", "header"}:
        if given.get("delimiter", "\t") != "\t":
            raise UserError(f"--delimiter of tab files can only be a tab; {columns.delimiter!r} came. Leave it out, or "
                            "add --format csv.")
        return columns._replace(delimiter="\t")
    if given:
        raise UserError(f"{' and '.join(f'--{name}' for name in sorted(given))} cannot apply to lines of "
                        "category<TAB>text. Add --format csv, or say with --header, --text_columns and --label_column "
                        "which columns of a tab file to read.")
    return None


def read(path, columns=Columns(), encoding="utf-8"):
    """Yields a `Row` or `Bad` for each row of a file; no more than two rows are in memory.

    columns: None for R8's lines, see `layout`.

    Blank lines are passed over, as pandas does. Raises UserError for what concerns the file as a whole: it cannot
    be opened, is cut (gzip), or is in another encoding.
    """
    reader = _read_tab if columns is None else _read_csv
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
    if SURROGATE.search(row.text) or SURROGATE.search(row.label):
        return Bad(row.line, f"bytes that are not {encoding.removesuffix('-sig')}")
    if not row.text or not row.label:
        return Bad(row.line, "no category" if row.text else "no text")
    return row


def _read_csv(file, path, columns):
    """Rows of delimited text, all as long as the first or shorter, as pandas has them.

    A first row that is longer than the second has a delimiter too many itself, unless it is a header.
    """
    wanted, width, waiting = None if columns.header else _numbers(columns), None, None
    for line, fields in _fields(file, columns):
        usable = not isinstance(fields, str)
        if waiting:
            if usable and max(wanted) < len(fields) < width:
                width = len(fields)
            yield _row(*waiting, wanted, width, "the next has")
            waiting = None
        if not usable:
            yield Bad(line, fields)
        elif wanted is None:
            wanted, width = _positions(fields, columns, path), len(fields)
        elif width is None and len(fields) > max(wanted):
            waiting, width = (line, fields), len(fields)
        else:
            yield _row(line, fields, wanted, width, "the header has" if columns.header else "those before have")
    if waiting:
        yield _row(*waiting, wanted, width, "")


def _fields(file, columns):
    """Yields (line, the fields of a row, or why there are none)."""
    csv.field_size_limit(MAX_CHARACTERS)
    reader = csv.reader(_escaped(file, columns), delimiter=columns.delimiter, escapechar=columns.escape or None,
                        strict=True)
    line = 1
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            fields = str(error)
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _escaped(lines, columns):
    """The lines, with a blank for each escape character that escapes nothing."""
    if not columns.escape:
        return lines
    stray = re.compile(re.escape(columns.escape) + rf'([{re.escape(columns.escape + columns.delimiter)}"\r\n])?')
    return (stray.sub(lambda found: found[0] if found[1] else " ", line) if columns.escape in line else line
            for line in lines)


def _row(line, fields, wanted, width, other):
    if width and len(fields) > width:
        return Bad(line, f"{len(fields)} fields, and {other} {width}: a delimiter without quotation marks?")
    if len(fields) <= max(wanted):
        return Bad(line, f"{len(fields)} fields, and {max(wanted) + 1} are needed")
    *text, label = (fields[number] for number in wanted)
    return Row(line, " ".join(text), label)


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
        if header.count(name) > 1:
            raise UserError(f"{path} must have one column {name}, and its header has {header.count(name)}. Give its "
                            "number, from 0.")
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
