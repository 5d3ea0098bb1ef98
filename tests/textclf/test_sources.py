"""CSV as the article reads it, R8's format, and what is wrong with rows and files."""

import gzip

import pytest

from common.errors import UserError
from textclf import sources
from textclf.sources import Bad, Row

CSV = r'''"Oil rises\, again. ""Prices"" up",business
plain text,sport

"two
lines \"quoted\"",  health
'''


def rows_of(path, columns=sources.Columns(), encoding="utf-8"):
    return list(sources.read(path, columns, encoding))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_is_read_as_the_article_reads_it(tmp_path):
    path = write(tmp_path / "articles.csv", CSV)
    rows = rows_of(path)
    assert rows == [Row(1, 'Oil rises, again. "Prices" up', "business"), Row(2, "plain text", "sport"),
                    Row(4, 'two\nlines "quoted"', "health")]
    pandas = pytest.importorskip("pandas", reason="pandas, the article's reader, is not installed")
    frame = pandas.read_csv(path, header=None, escapechar="\\", na_filter=False)
    assert [(row.text, row.label) for row in rows] == [(text, label.strip()) for text, label in frame.values]


def test_columns_header_delimiter_encoding(tmp_path):
    text = "id;Kategorie;Titel;Text\n1;Sport;Übermut;tut gut\n2;Politik;Wahl;NA\n"
    path = write(tmp_path / "nachrichten.csv", text.encode("utf-16"))
    columns = sources.Columns(("Titel", "3"), "Kategorie", header=True, delimiter=";", escape="")
    expected = [Row(2, "Übermut tut gut", "Sport"), Row(3, "Wahl NA", "Politik")]
    assert rows_of(path, columns, "utf-16") == expected
    bom = write(tmp_path / "bom.csv", b"\xef\xbb\xbfa,b\n")
    assert rows_of(bom) == [Row(1, "a", "b")]
    with pytest.raises(UserError, match="must have a column Ort; its header has id, Kategorie"):
        rows_of(path, columns._replace(label="Ort"), "utf-16")
    with pytest.raises(UserError, match="Without a header .* must be numbers"):
        rows_of(path, columns._replace(header=False), "utf-16")
    with pytest.raises(UserError, match="--encoding must be one that Python knows"):
        rows_of(path, columns, "utf-99")
    with pytest.raises(UserError, match="must be in utf-16, and is not"):
        rows_of(write(tmp_path / "no16.csv", "a,b\n"), encoding="utf-16")


def test_bad_rows_have_their_line_and_reason(tmp_path):
    content = b'good,a\nonly one\n,b\ntext, \n"closed" late,c\ncaf\xe9,d\ngood,e\n"never closed,f\ngood,g\n'
    found = rows_of(write(tmp_path / "bad.csv", content))
    assert [row for row in found if isinstance(row, Row)] == [Row(1, "good", "a"), Row(7, "good", "e")]
    reasons = {row.line: row.reason for row in found if isinstance(row, Bad)}
    assert set(reasons) == {2, 3, 4, 5, 6, 8}
    assert reasons[2] == "1 fields, and 2 are needed" and reasons[3] == "no text" and reasons[4] == "no category"
    assert reasons[6] == "bytes that are not utf-8" and "unexpected end of data" in reasons[8]


def test_a_quotation_mark_that_is_never_closed_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_CHARACTERS", 1000)
    path = write(tmp_path / "open.csv", 'good,a\n"open,b\n' + "line,c\n" * 400 + "last,d\n")
    found = rows_of(path)
    assert "field larger than field limit (1000)" in found[1].reason and found[1].line == 2
    assert len(found) < 400 and found[-1].text == "last"
    long = write(tmp_path / "long.txt", "a\t" + "x" * 5000 + "\nb\tshort\n")
    assert rows_of(long, None) == [Bad(1, "longer than 1000 characters"), Row(2, "short", "b")]


def test_tabs_and_gzip(tmp_path):
    data = b"earn\tprofit rose\r\nno tab\n\nacq\tbought\tit\n"
    path = write(tmp_path / "news.txt.gz", gzip.compress(data))
    expected = [Row(1, "profit rose", "earn"), Bad(2, "no tab between category and text"),
                Row(4, "bought\tit", "acq")]
    assert rows_of(path, None) == expected
    for number, damaged in enumerate((gzip.compress(data)[:-12], gzip.compress(data)[:-4] + b"abcd", b"no gzip")):
        cut = write(tmp_path / f"cut{number}.txt.gz", damaged)
        with pytest.raises(UserError, match=f"cut{number}.txt.gz cannot be read to its end"):
            rows_of(cut, None)


def test_find(tmp_path):
    file = write(tmp_path / "articles.csv.gz", "")
    assert sources.find(file)[:2] == ({"all": file}, "csv")
    assert sources.find(write(tmp_path / "x.data", ""), "tab")[1] == "tab"
    folder = tmp_path / "r8"
    folder.mkdir()
    write(folder / "SOURCE.txt", "not a split")
    train = write(folder / "r8-train-all-terms.txt.gz", "")
    for source, message in ((folder, "word train in its name and one with test; found: r8-train.*besides: SOURCE.txt"),
                            (tmp_path / "nowhere", "is not there"), (tmp_path / "x.data", "say --format csv or")):
        with pytest.raises(UserError, match=message):
            sources.find(source)
    test = write(folder / "r8-test-all-terms.txt.gz", "")
    others = [write(folder / name, "") for name in ("contest.txt", "evaluation.csv", "latest.csv", "test.xlsx")]
    write(folder / "._test.txt", "")
    files, file_format, left_out = sources.find(folder)
    assert (files, file_format) == ({"train": train, "test": test}, "tab")
    assert left_out == {"files or folders that no split names": [folder / "SOURCE.txt", *others]}
    dev = write(folder / "DEV.TXT", "")
    assert sources.find(folder)[0] == {"train": train, "test": test, "val": dev}
    write(folder / "Training.txt", "")
    with pytest.raises(UserError, match="must hold one train file, and holds"):
        sources.find(folder)


def test_a_row_longer_than_the_first_is_bad_as_pandas_says(tmp_path):
    """An unquoted comma in a title would make its second half a category."""
    path = write(tmp_path / "comma.csv", "Rain,weather\nOil, gas and gold,market\nSnow,weather\n")
    expected = "3 fields, and those before have 2: a delimiter without quotation marks?"
    assert rows_of(path) == [Row(1, "Rain", "weather"), Bad(2, expected), Row(3, "Snow", "weather")]
    pandas = pytest.importorskip("pandas", reason="pandas, the article's reader, is not installed")
    with pytest.raises(pandas.errors.ParserError, match="Expected 2 fields in line 2, saw 3"):
        pandas.read_csv(path, header=None, escapechar="\\", na_filter=False)
    header = write(tmp_path / "header.csv", "text,label,note\na,x\nb,y,n\nc,d,y,n\n")
    found = rows_of(header, sources.Columns(("text",), "label", header=True))
    assert found == [Row(2, "a", "x"), Row(3, "b", "y"), Bad(4, expected.replace("3 fields", "4 fields").replace(
        "those before have 2", "the header has 3"))]


def test_a_first_row_with_a_delimiter_too_many_does_not_make_room_for_others(tmp_path):
    path = write(tmp_path / "first.csv", "Oil, gas and gold,market\nRain,weather\nSun, sea and sand,weather\n")
    assert rows_of(path) == [
        Bad(1, "3 fields, and the next has 2: a delimiter without quotation marks?"), Row(2, "Rain", "weather"),
        Bad(3, "3 fields, and those before have 2: a delimiter without quotation marks?")]
    broken = write(tmp_path / "broken.csv", "only one\na,x,\nb\nc,y\n")
    assert rows_of(broken) == [Bad(1, "1 fields, and 2 are needed"), Row(2, "a", "x"),
                               Bad(3, "1 fields, and 2 are needed"), Row(4, "c", "y")]
    assert rows_of(write(tmp_path / "one.csv", "a,x\n")) == [Row(1, "a", "x")]


def test_a_backslash_that_escapes_nothing_is_a_blank(tmp_path):
    r"""AG's News has "dwindling\band" for a line break between two words, "\$10", and "\\" for two line breaks."""
    path = write(tmp_path / "ag.csv", '"3","Wall St.","Wall Street\'s dwindling\\band of\\nine, \\$10.\\\\""Next"""\n'
                                      'a\\,b,c,one \\"two\\" \\\nthree\n')
    rows = rows_of(path, sources.Columns(("1", "2"), "0"))
    assert rows == [Row(1, 'Wall St. Wall Street\'s dwindling band of nine,  $10.\\"Next"', "3"),
                    Row(2, 'c one "two" \nthree', "a,b")]
    kept = rows_of(path, sources.Columns(("1", "2"), "0", escape=""))
    assert kept[0].text == 'Wall St. Wall Street\'s dwindling\\band of\\nine, \\$10.\\\\"Next"'


def test_tab_files_with_columns_are_delimited_text(tmp_path):
    path = write(tmp_path / "news.tsv", 'category\ttitle\ttext\nsport\t"Goal\tGoal"\t90 minutes\n')
    columns = sources.layout("tab", {"text": ("title", "text"), "label": "category", "header": True})
    assert rows_of(path, columns) == [Row(2, "Goal\tGoal 90 minutes", "sport")]
    assert sources.layout("tab", {"label": "0", "delimiter": "\t"}).delimiter == "\t"
    assert sources.layout("tab", {}) is None and sources.layout("csv", {}) == sources.Columns()
    with pytest.raises(UserError, match="--delimiter and --escape cannot apply to lines of category<TAB>text"):
        sources.layout("tab", {"delimiter": ";", "escape": ""})
    with pytest.raises(UserError, match="--delimiter of tab files can only be a tab; ';' came"):
        sources.layout("tab", {"header": True, "delimiter": ";"})
    twice = write(tmp_path / "twice.csv", "text,label,text\na,x,b\n")
    with pytest.raises(UserError, match="must have one column text, and its header has 2"):
        rows_of(twice, sources.Columns(("text",), "label", header=True))
