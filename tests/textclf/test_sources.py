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


def rows_of(path, *args, **kwargs):
    return list(sources.read(path, *args, **kwargs))


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_csv_is_read_as_the_article_reads_it(tmp_path):
    path = write(tmp_path / "articles.csv", CSV)
    rows = rows_of(path, "csv")
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
    assert rows_of(path, "csv", columns, "utf-16") == expected
    bom = write(tmp_path / "bom.csv", b"\xef\xbb\xbfa,b\n")
    assert rows_of(bom, "csv") == [Row(1, "a", "b")]
    with pytest.raises(UserError, match="must have a column Ort; its header has id, Kategorie"):
        rows_of(path, "csv", columns._replace(label="Ort"), "utf-16")
    with pytest.raises(UserError, match="Without a header .* must be numbers"):
        rows_of(path, "csv", columns._replace(header=False), "utf-16")
    with pytest.raises(UserError, match="--encoding must be one that Python knows"):
        rows_of(path, "csv", columns, "utf-99")
    with pytest.raises(UserError, match="must be in utf-16, and is not"):
        rows_of(write(tmp_path / "no16.csv", "a,b\n"), "csv", encoding="utf-16")


def test_bad_rows_have_their_line_and_reason(tmp_path):
    content = b'good,a\nonly one\n,b\ntext, \n"closed" late,c\ncaf\xe9,d\ngood,e\n"never closed,f\ngood,g\n'
    found = rows_of(write(tmp_path / "bad.csv", content), "csv")
    assert [row for row in found if isinstance(row, Row)] == [Row(1, "good", "a"), Row(7, "good", "e")]
    reasons = {row.line: row.reason for row in found if isinstance(row, Bad)}
    assert set(reasons) == {2, 3, 4, 5, 6, 8}
    assert reasons[2] == "1 fields, and 2 are needed" and reasons[3] == "no text" and reasons[4] == "no category"
    assert reasons[6] == "bytes that are not utf-8" and "unexpected end of data" in reasons[8]


def test_a_quotation_mark_that_is_never_closed_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "MAX_CHARACTERS", 1000)
    path = write(tmp_path / "open.csv", 'good,a\n"open,b\n' + "line,c\n" * 400 + "last,d\n")
    found = rows_of(path, "csv")
    assert "field larger than field limit (1000)" in found[1].reason and found[1].line == 2
    assert len(found) < 400 and found[-1].text == "last"
    long = write(tmp_path / "long.txt", "a\t" + "x" * 5000 + "\nb\tshort\n")
    assert rows_of(long, "tab") == [Bad(1, "longer than 1000 characters"), Row(2, "short", "b")]


def test_tabs_and_gzip(tmp_path):
    data = b"earn\tprofit rose\r\nno tab\n\nacq\tbought\tit\n"
    path = write(tmp_path / "news.txt.gz", gzip.compress(data))
    expected = [Row(1, "profit rose", "earn"), Bad(2, "no tab between category and text"),
                Row(4, "bought\tit", "acq")]
    assert rows_of(path, "tab") == expected
    for number, damaged in enumerate((gzip.compress(data)[:-12], gzip.compress(data)[:-4] + b"abcd", b"no gzip")):
        cut = write(tmp_path / f"cut{number}.txt.gz", damaged)
        with pytest.raises(UserError, match=f"cut{number}.txt.gz cannot be read to its end"):
            rows_of(cut, "tab")


def test_find(tmp_path):
    file = write(tmp_path / "articles.csv.gz", "")
    assert sources.find(file) == ({"all": file}, "csv")
    assert sources.find(write(tmp_path / "x.data", ""), "tab")[1] == "tab"
    folder = tmp_path / "r8"
    folder.mkdir()
    write(folder / "SOURCE.txt", "not a split")
    train = write(folder / "r8-train-all-terms.txt.gz", "")
    for source, message in ((folder, "must hold a .csv, .txt or .tsv file with train in its name and one with"),
                            (tmp_path / "nowhere", "is not there"), (tmp_path / "x.data", "say --format csv or")):
        with pytest.raises(UserError, match=message):
            sources.find(source)
    test = write(folder / "r8-test-all-terms.txt.gz", "")
    assert sources.find(folder) == ({"train": train, "test": test}, "tab")
    write(folder / "train2.txt", "")
    with pytest.raises(UserError, match="must hold one train file, and holds"):
        sources.find(folder)
