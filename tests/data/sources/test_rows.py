"""Tables of every kind and make are read as the rows that were written, or refused with the line that is wrong."""

import codecs
import csv
import gzip
import io
import json
import math
import zipfile
from datetime import date
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hf_cxr.data.sources import rows as rows_module
from hf_cxr.data.sources import text_tables
from hf_cxr.data.sources.rows import EMPTY, Row, read_rows, read_table, split_cell
from hf_cxr.data.sources.text_tables import MAX_CELL

NAMES = st.lists(
    st.from_regex(r"[A-Za-zé_][A-Za-z0-9_ ]{0,8}[a-z0-9]", fullmatch=True), min_size=1, max_size=5, unique=True
)
LATIN = st.text(st.characters(codec="cp1252", exclude_characters="\0"), max_size=20)
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
AWKWARD = st.sampled_from(
    ['"', '""', "a,b;c\td|e", "line\nbreak", "line\r\nbreak", 'x "y", z', "", " ", "'", "nan", "1.0"]
)


@st.composite
def a_table(draw, text=ANY):
    names = draw(NAMES)
    cells = st.lists(text | AWKWARD, min_size=len(names), max_size=len(names))
    return names, draw(st.lists(cells, max_size=6))


def as_read(names, rows):
    """What must come back: stripped cells, "" for what means nothing; a line of empty cells is no row."""
    return [
        {name: plain(cell) for name, cell in zip(names, row, strict=True)} for row in rows if any(map(str.strip, row))
    ]


def plain(cell):
    return "" if cell.strip() in EMPTY else cell.strip()


def written(names, rows, **dialect) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, **dialect).writerows([names, *rows])
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tables")


anything = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@anything
@given(
    table=a_table(),
    delimiter=st.sampled_from(",;\t|"),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
)
def test_a_table_of_any_dialect_is_read_as_it_was_written(folder, table, delimiter, end, quoting, encoding):
    names, rows = table
    if len(names) == 1:  # its header does not tell the delimiter
        delimiter = ","
    if quoting == csv.QUOTE_MINIMAL:  # Python 3.11's writer does not quote a line end of another kind
        rows = [["".join(c for c in cell if c not in "\r\n" or c in end) for cell in row] for row in rows]
    text = written(names, rows, delimiter=delimiter, lineterminator=end, quoting=quoting)
    (folder / "t.csv").write_bytes(text.encode(encoding))
    assert read_table(folder / "t.csv").columns == tuple(names)
    assert read_rows(folder / "t.csv") == as_read(names, rows)


@anything
@given(table=a_table(LATIN))
def test_windows_text_is_read_right_when_said_and_never_wrong_when_not(folder, table):
    raw = written(*table, quoting=csv.QUOTE_ALL).encode("cp1252")
    (folder / "t.csv").write_bytes(raw)
    assert read_rows(folder / "t.csv", encoding="cp1252") == as_read(*table)
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        with pytest.raises(ValueError, match=r"line \d+: byte 0x.* is not utf-8"):
            read_rows(folder / "t.csv")


@anything
@given(table=a_table(), end=st.sampled_from(["\n", "\r\n", "\r"]), ascii_only=st.booleans())
def test_json_lines_json_and_parquet_are_read_as_they_were_written(folder, table, end, ascii_only):
    names, rows = table
    records = [dict(zip(names, row, strict=True)) for row in rows]
    expected = [{name: plain(cell) for name, cell in record.items()} for record in records]
    pq.write_table(
        pa.table({name: pa.array([r[name] for r in records], pa.string()) for name in names}), folder / "t.parquet"
    )
    assert read_rows(folder / "t.parquet") == expected
    if records:
        lines = end.join(json.dumps(record, ensure_ascii=ascii_only) for record in records)
        (folder / "t.jsonl").write_bytes(lines.encode())
        (folder / "t.json").write_text(json.dumps(records), encoding="utf-8")
        assert read_rows(folder / "t.jsonl") == read_rows(folder / "t.json") == expected


@anything
@given(
    raw=st.binary(max_size=60) | st.text('",;\n\ra{}[]:1', max_size=30).map(str.encode),
    suffix=st.sampled_from(["csv", "jsonl", "json", "parquet", "csv.gz"]),
)
def test_bytes_of_any_kind_are_rows_or_a_one_line_error(folder, raw, suffix):
    path = folder / f"t.{suffix}"
    path.write_bytes(raw)
    error = None
    try:
        assert all(isinstance(row, Row) for row in read_rows(path))
    except ValueError as caught:
        error = str(caught)
    assert error is None or (error.startswith(str(path)) and "\n" not in error)


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "NULL", "null", "N/A", "NA", "<NA>", "-", "--", "[]", "___"])
def test_what_means_nothing_is_empty_in_every_column_and_kind_of_table(folder, word):
    expected = [{"uid": "", "text": "", "more": "x"}]
    assert read_rows(table(folder, f"uid,text,more\n{word},{word},x\n")) == expected
    records = [{"uid": word, "text": word, "more": "x"}]
    assert read_rows(table(folder, json.dumps(records), "t.json")) == expected
    pq.write_table(pa.table({name: [value] for name, value in records[0].items()}), folder / "t.parquet")
    assert read_rows(folder / "t.parquet") == expected


def test_only_a_whole_cell_in_that_spelling_is_empty(folder):
    texts = ["None.", "none", "na", "NA of the lung", "no - or -", "[] none", "0", "___ year old"]
    assert [row["text"] for row in read_rows(table(folder, "text\n" + "\n".join(texts)))] == texts


def test_a_row_knows_the_line_it_starts_on(folder):
    path = table(folder, 'uid,text\n\n1,"two\nlines"\r\n2,x\n,\n3,y\n')
    assert [(row["uid"], row.place) for row in read_rows(path)] == [("1", "line 3"), ("2", "line 5"), ("3", "line 7")]
    path = table(folder, '{"uid": 1}\n\n{"uid": 2}', "t.jsonl")
    assert [row.place for row in read_rows(path)] == ["line 1", "line 3"]
    path = table(folder, '[{"uid": 1},\n\n{"uid": 2}]', "t.json")
    assert [row.place for row in read_rows(path)] == ["row 1", "row 2"]


def test_columns_are_chosen_and_absent_optional_ones_are_empty(folder):
    path = table(folder, "uid,text,more\n1,a,b\n")
    assert read_rows(path, ("uid",), ("text", "comment")) == [{"uid": "1", "text": "a", "comment": ""}]
    assert read_rows(path, ("uid",), ()) == [{"uid": "1"}]


def test_a_missing_column_is_answered_with_those_there_are_and_the_nearest(folder):
    path = table(folder, "StudyUID,Impresion\n1,a\n")
    with pytest.raises(
        ValueError, match=r"t\.csv: no column 'impression'; it has StudyUID, Impresion; did you mean 'Imp"
    ):
        read_rows(path, ("impression",))
    for number, more in ((30, ""), (31, ", …")):
        names = [f"c{place}" for place in range(number)]
        with pytest.raises(ValueError, match=f"it has {', '.join(names[:30])}{more}$"):
            read_rows(table(folder, ",".join(names) + "\n1\n"), ("impression",))


def test_a_table_without_a_header_does_not_put_a_report_into_the_message(folder):
    path = table(folder, f"1,{'No acute cardiopulmonary abnormality. ' * 3}\n")
    with pytest.raises(ValueError, match="its first line is no header") as caught:
        read_rows(path, ("uid",))
    assert "acute" not in str(caught.value)


def test_a_column_is_found_in_any_case_unless_two_could_be_meant(folder):
    assert read_table(table(folder, "UID,Text\n1,a\n")).column("uid") == "UID"
    assert read_table(table(folder, "UID,uid\n1,a\n")).column("uid") == "uid"
    assert read_table(table(folder, "UID,Text\n1,a\n")).column("findings") is None
    with pytest.raises(ValueError, match="columns 'UID' and 'Uid' could both be 'uid'"):
        read_table(table(folder, "UID,Uid\n1,a\n")).column("uid")


def test_only_a_header_is_a_table_without_rows(folder):
    assert read_rows(table(folder, "uid,text\n"), ("uid",)) == []


def test_columns_without_a_name_are_not_read_but_count(folder):
    path = table(folder, ",uid,text,\n0,1,a,\n1,2,b,\n")
    assert read_rows(path) == [{"uid": "1", "text": "a"}, {"uid": "2", "text": "b"}]


def test_spaces_after_the_delimiter_do_not_break_quotes(folder):
    assert read_rows(table(folder, 'uid, text\n1, "a, b"\n')) == [{"uid": "1", "text": "a, b"}]


def test_a_cell_beyond_the_csv_modules_limit_is_read_and_the_limit_is_left_as_it_was(folder):
    before = csv.field_size_limit()
    long = "word " * 50_000
    assert read_rows(table(folder, f"uid,text\n1,{long}\n"))[0]["text"] == long.strip()
    with pytest.raises(ValueError, match=r"line 2: field larger than field limit"):
        read_rows(table(folder, f'uid,text\n1,"{"x" * (MAX_CELL + 1)}\n'))
    assert csv.field_size_limit() == before


def zipped(files: dict[str, str]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return stream.getvalue()


def damaged_zip(files: dict[str, str]) -> bytes:
    raw = bytearray(zipped(files))
    raw[40] ^= 0xFF
    return bytes(raw)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"", "an empty file"),
        ("t.csv", codecs.BOM_UTF8 + b" \r\n", "an empty file"),
        ("t.jsonl", b"\n", "an empty file"),
        ("t.csv", b"uid,text\n1,a\n2,caf\xe9\n", r"line 3: byte 0xe9 at 18 is not utf-8; save it as UTF-8, or give"),
        ("t.csv", codecs.BOM_UTF16_LE + b"u\0i\0d\0\n\0\x00\xd8", r"line 2: byte 0x00 at 10 is not utf-16-le$"),
        ("t.csv", b"uid,text\n1,a\n2,\0\n", "line 3: a NUL byte"),
        ("t.csv", "uid\n1\n".encode("utf-16-le"), "line 1: a NUL byte .*give encoding utf-16"),
        ("t.csv", b"uid,text,uid\n", r"column 'uid' occurs twice \(columns 1 and 3\)"),
        ("t.csv", b"uid,text\n1,a\n2,no effusion, clear\n", "line 3: 3 cells under 2 columns"),
        ("t.csv", b'uid,text\n1,"a\n2,b\n', "line 2: .*quote that is not closed"),
        ("t.csv", b'"uid,text\n1,a\n', "line 1: .*quote that is not closed"),
        ("t.csv", b'uid,text\n1,"large" heart\n', "line 2: .*quote"),
        ("t.csv", b"uid,text\n1,no\reffusion\n", "line 2: new-line character seen in unquoted field .a quote"),
        ("t.csv", b"uid,text\r1,no\neffusion\r", "line 2: new-line character seen in unquoted field .a quote"),
        ("t.json", b'{"uid": 1}', "not a JSON list of objects"),
        ("t.json", b'"uid"', "not a JSON list of objects"),
        ("t.json", b'{"a": {"uid": 1}, "b": 2}', "row 2: not a JSON object"),
        ("t.json", b'{"a": {"uid": 1}\n "b": {}}', "line 2: malformed JSON .',' or '}' is missing"),
        ("t.json", b'{"a": {"uid": 1},\n 7: {}}', "line 2: malformed JSON .a name in quotes"),
        ("t.json", b'[{"uid": 1}] x', "malformed JSON .something follows the end"),
        ("t.json", b'[{"uid": 1},\n{"uid": "no effusion}]', "line 2: malformed JSON .Unterminated string"),
        ("t.json", b'[{"uid": 1},\n{"uid": 1, "uid": 2}]', "line 2: malformed JSON .a key occurs twice"),
        ("t.json", b'[{"uid": 1},\n\0]', "line 2: a NUL byte"),
        ("t.json", b'[{"uid": 1}, 2]', "row 2: not a JSON object"),
        ("t.json", b"[" * 100_000, "malformed JSON"),
        ("t.jsonl", b'{"uid": 1}\n{"uid": 2\n', r"line 2: malformed JSON \(column"),
        ("t.jsonl", b'{"uid": 1}\n[1]\n', "line 2: not a JSON object"),
        ("t.jsonl", b'{"uid": 1, "uid": 2}\n', "line 1: malformed JSON .a key occurs twice"),
        ("t.jsonl", b'{"uid": 1, "uid ": 2}\n', "line 1: a key occurs twice"),
        ("t.jsonl", b'{"uid": {"a": 1}}\n', "line 1: column 'uid' holds a dict"),
        ("t.jsonl", b'{"uid": "a\\u0000"}\n', "line 1: column 'uid' holds a NUL"),
        ("t.jsonl", b'{"uid": "\\ud800"}\n', "line 1: column 'uid' holds half a character"),
        ("t.parquet", b"PAR1 and nothing more", "not a Parquet file, or damaged"),
        ("t.parquet", b"", "not a Parquet file, or damaged"),
        ("t.csv.gz", gzip.compress(b"uid,text\n1,a\n" * 99, mtime=0)[:-9], "damaged or truncated gzip"),
        ("t.csv.gz", b"uid,text\n", "damaged or truncated gzip"),
        ("t.csv.zip", b"PK\3\4 and nothing more", "damaged, truncated or encrypted zip"),
        ("t.csv.zip", zipped({"t.csv": "uid,text\n1,a\n" * 999})[:-40], "damaged, truncated or encrypted zip"),
        ("t.csv.zip", damaged_zip({"t.csv": "uid,text\n1,a\n" * 999}), "damaged, truncated or encrypted zip"),
        ("t.zip", zipped({"a.csv": "uid\n", "b/c.json": "[]"}), r"2 tables in it .a\.csv, b/c\.json.; unpack it"),
        ("t.zip", zipped({"a.png": "", "b.parquet": ""}), "no table in it"),
        ("t.xlsx", b"PK", "not a known kind of table; save it as .csv"),
        ("t.parquet.gz", b"", "not a known kind of table"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_file_and_line(folder, name, content, message):
    path = table(folder, content, name)
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert "effusion" not in str(caught.value)  # of a cell nothing is told


def test_a_byte_order_mark_goes_before_the_encoding_that_is_given(folder):
    path = table(folder, codecs.BOM_UTF8 + "uid\né\n".encode())
    assert read_rows(path, encoding="cp1252") == [{"uid": "é"}]


def test_an_encoding_that_does_not_fit_or_exist_is_an_error(folder):
    path = table(folder, "uid\né\n")
    for encoding in ("latin-9000", "base64"):
        with pytest.raises(ValueError, match=f"unknown encoding '{encoding}'"):
            read_rows(path, encoding=encoding)
    with pytest.raises(ValueError, match=r"line 2: byte 0xc3 at 4 is not ascii$"):
        read_rows(path, encoding="ascii")


def test_a_gzipped_table_is_read(folder):
    assert read_rows(table(folder, gzip.compress(b"uid\n1\n"), "t.csv.gz")) == [{"uid": "1"}]


@pytest.mark.parametrize("name", ["t.csv.zip", "t.zip"])
def test_the_one_table_in_a_zip_is_read(folder, name):
    beside = {"README.txt": "about", "__MACOSX/._t.csv": "x", "images/a.png": ""}
    path = table(folder, zipped(beside | {"deep/t.csv": "uid|text\n1|a, b\n"}), name)
    assert read_rows(path) == [{"uid": "1", "text": "a, b"}]
    assert read_rows(table(folder, zipped({"t.jsonl": '{"uid": 1}'}), name)) == [{"uid": "1"}]
    assert read_rows(table(folder, zipped({"t.txt": "uid\n1\n"}), name)) == [{"uid": "1"}]


def test_a_zip_that_unpacks_to_too_much_is_refused_before_it_fills_the_memory(folder, monkeypatch):
    monkeypatch.setattr(text_tables, "MAX_BYTES", 10_000)
    with pytest.raises(ValueError, match="more than 10,000 bytes"):
        read_rows(table(folder, zipped({"t.csv": "uid,text\n" + "1,a\n" * 10_000}), "t.csv.zip"))
    monkeypatch.undo()
    monkeypatch.setattr(text_tables, "MAX_RECORD", 1000)
    for name, content in (("t.csv", "uid\n" + "x" * 2000), ("t.json", '[{"uid": "' + "x" * 300_000)):
        with pytest.raises(ValueError, match="more than 1,000 characters without an end"):
            read_rows(table(folder, zipped({name: content}), "t.zip"))
    monkeypatch.setattr(rows_module, "MAX_ROWS", 10)
    with pytest.raises(ValueError, match="more than 10 rows"):
        read_rows(table(folder, "uid\n" + "1\n" * 11))


def test_an_object_of_objects_is_a_table_whose_keys_are_a_column(folder):
    text = '{"p1_a": {"Findings": "clear", "ImagePath": ["a.png", "b.png"]},\n "p2_b": {"Findings": null}}'
    assert read_table(table(folder, text, "t.json")).columns == ("key", "Findings", "ImagePath")
    assert read_rows(folder / "t.json") == [
        {"key": "p1_a", "Findings": "clear", "ImagePath": "a.png\nb.png"},
        {"key": "p2_b", "Findings": "", "ImagePath": ""},
    ]
    assert read_rows(table(folder, '{"1": {"key": "own"}}', "t.json")) == [{"key": "own"}]
    assert read_rows(table(folder, "{}", "t.json")) == []


@anything
@given(table=a_table(), chunk=st.integers(1, 7), as_object=st.booleans(), indent=st.sampled_from([None, 1]))
def test_json_read_in_pieces_of_any_size_is_the_same(folder, table, chunk, as_object, indent):
    names, rows = table
    records = [{"key": str(i)} | dict(zip(names, row, strict=True)) for i, row in enumerate(rows)]
    content = {record["key"]: record for record in records} if as_object else records
    (folder / "t.json").write_text(json.dumps(content, indent=indent), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(text_tables, "CHUNK", chunk)
        assert read_rows(folder / "t.json") == [{k: plain(v) for k, v in record.items()} for record in records]


def test_shards_are_one_table_in_the_order_of_their_names(folder):
    for number in (1, 0):
        pq.write_table(
            pa.table({"uid": [f"{number}a", f"{number}b"]}), folder / f"train-0000{number}-of-00002.parquet"
        )
    expected = [("0a", "row 1"), ("0b", "row 2"), ("1a", "row 1"), ("1b", "row 2")]
    for root in (folder, folder / "train-*.parquet", folder / "*.parquet"):
        assert [(row["uid"], row.place.split(", ")[1]) for row in read_rows(root)] == expected
        assert len({row.place for row in read_rows(root)}) == 4
    assert read_table(folder).columns == ("uid",)  # one split is no split
    (folder / "data").mkdir()
    for path in folder.glob("*.parquet"):
        path.rename(folder / "data" / path.name)
    assert [row["uid"] for row in read_rows(folder)] == ["0a", "0b", "1a", "1b"]


def test_shards_of_several_splits_tell_their_split_where_no_column_does(folder):
    pq.write_table(pa.table({"uid": ["a"]}), folder / "train-00000-of-00001.parquet")
    pq.write_table(pa.table({"uid": ["b"]}), folder / "valid.parquet")
    assert read_table(folder).columns == ("uid", "split")
    assert [(row["uid"], row["split"]) for row in read_rows(folder)] == [("a", "train"), ("b", "valid")]
    pq.write_table(pa.table({"uid": ["c"]}), folder / "training_notes.parquet")
    assert [row["split"] for row in read_rows(folder)] == ["train", "training", "valid"]
    pq.write_table(pa.table({"uid": ["c"]}), folder / "others.parquet")
    assert read_table(folder).columns == ("uid",)
    for path in folder.iterdir():
        pq.write_table(pa.table({"uid": ["a"], "Split": ["mine"]}), path)
    assert read_rows(folder)[0] == {"uid": "a", "Split": "mine"}


def test_a_shard_without_a_column_of_the_first_is_named(folder):
    pq.write_table(pa.table({"uid": ["a"], "text": ["x"]}), folder / "a.parquet")
    pq.write_table(pa.table({"uid": ["b"]}), folder / "b.parquet")
    with pytest.raises(ValueError, match=r"b\.parquet: no column 'text'; it has uid"):
        read_rows(folder)
    assert len(read_rows(folder, ("uid",), ())) == 2


def test_a_pattern_that_names_no_table_is_an_error(folder):
    with pytest.raises(FileNotFoundError, match=r"\*\.parquet: no table of such a name"):
        read_table(folder / "*.parquet")


def cells(path: Path, *names: str) -> list[list]:
    """Of each row: path, and number and item of what is embedded, of each image of a column."""
    read = read_table(path).rows(optional=(), images=names)
    told = [
        [(c.path, c.embedded and (c.embedded.row, c.embedded.item)) for n in names for c in r.images[n]] for r in read
    ]
    assert all(c.embedded is None or c.embedded.table == str(path) for r in read for n in names for c in r.images[n])
    return told


def test_paths_of_images_are_read_from_every_way_to_write_them(folder):
    ways = ["a.png;b.png", "a.png | b.png", "['a.png', 'b.png']", "['a.png'\n 'b.png']", '["a.png", "b.png"]',
            "[a.png, b.png]", "['a.png', nan, None, 'b.png']"]  # fmt: skip
    text = written(["image"], [[way] for way in [*ways, "nan", "[]", "['it\\'s.png']"]])
    both = [("a.png", None), ("b.png", None)]
    assert cells(table(folder, text), "image") == [both] * len(ways) + [[], [], [("it's.png", None)]]
    lines = [["a.png", "b.png"], [{"path": "a.png"}, None, {"path": "b.png", "bytes": None}], "a.png;b.png", [], None]
    path = table(folder, "\n".join(json.dumps({"image": line}) for line in lines), "t.jsonl")
    assert cells(path, "image") == [both] * 3 + [[], []]


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("group", [1, 2, 99])
def test_images_in_parquet_are_pointed_at_wherever_they_lie(folder, group):
    columns = {
        "bare": pa.array([b"1", None, b"3", b"4"]),
        "whole": pa.array([b"1", b"2", b"3", b"4"], pa.large_binary()),
        "none": pa.array([None] * 4, pa.binary()),
        "image": pa.array([{"bytes": b"1", "path": "a"}, None, {"bytes": b"3"}, {"path": "d"}], IMAGE),
        "paths": pa.array([{"path": "a"}, {"path": "nan"}, None, {"path": "d"}], IMAGE),
        "several": pa.array(
            [[{"bytes": b"1", "path": "a"}, None, {"bytes": b"2"}], [], None, [{"path": "d"}]], pa.list_(IMAGE)
        ),
        "bytes_only": pa.array([{"bytes": b"1"}, None, {"bytes": None}, {"bytes": b"4"}]),
        "list": pa.array([[b"1", b"2"], [], [None, b"3"], None], pa.list_(pa.binary())),
        "text": pa.array(["a.png;b.png", None, "nan", "d.png"]),
        "texts": pa.array([["a.png", "b.png"], [], None, ["d.png"]]),
    }  # fmt: skip
    path = folder / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=group)
    expected = {
        "bare": [[("", (0, 0))], [], [("", (2, 0))], [("", (3, 0))]],
        "whole": [[("", (n, 0))] for n in range(4)],
        "none": [[], [], [], []],
        "image": [[("a", (0, 0))], [], [("", (2, 0))], [("d", None)]],
        "paths": [[("a", None)], [], [], [("d", None)]],
        "several": [[("a", (0, 0)), ("", (0, 2))], [], [], [("d", None)]],
        "bytes_only": [[("", (0, 0))], [], [], [("", (3, 0))]],
        "list": [[("", (0, 0)), ("", (0, 1))], [], [("", (2, 1))], []],
        "text": [[("a.png", None), ("b.png", None)], [], [], [("d.png", None)]],
        "texts": [[("a.png", None), ("b.png", None)], [], [], [("d.png", None)]],
    }
    assert {name: cells(path, name) for name in columns} == expected
    together = [[cell for name in columns for cell in expected[name][row]] for row in range(4)]
    assert cells(path, *columns) == together


def test_structures_that_are_no_images_are_refused_in_one_line(folder):
    kinds = {
        "box": pa.array([{"x": 1}]),
        "nested": pa.array([{"bytes": {"deep": b"x"}}]),
        "lists": pa.array([[[b"x"]]]),
    }
    pq.write_table(pa.table(kinds), folder / "t.parquet")
    for name in kinds:
        with pytest.raises(ValueError, match=f"column '{name}' holds .*, no images"):
            cells(folder / "t.parquet", name)
    for value in ({"x": 1}, {"bytes": "iVBO"}, [["a.png"]], {"path": {"a": 1}}, ["a\0.png"]):
        with pytest.raises(ValueError, match="line 1: column 'image' holds a"):
            cells(table(folder, json.dumps({"image": value}), "t.jsonl"), "image")


def test_a_table_that_would_fill_the_memory_is_refused(folder, monkeypatch):
    monkeypatch.setattr(text_tables, "MAX_BYTES", 10_000)
    path = table(folder, gzip.compress(b"uid,text\n" + b"1,a\n" * 10_000), "t.csv.gz")
    with pytest.raises(ValueError, match="more than 10,000 bytes"):
        read_rows(path)


def test_a_file_that_cannot_be_opened_is_an_error_of_its_kind(folder):
    for name in ("none.csv", "none.jsonl", "none.parquet"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            read_rows(folder / name)
    for name in ("folder.csv", "folder.parquet"):
        (folder / name).mkdir()
        with pytest.raises(IsADirectoryError, match="is a folder"):
            read_rows(folder / name)


def test_parquet_numbers_and_gaps_become_plain_text(folder):
    columns = {
        "uid": pa.array([1000, None, 3], pa.int64()),
        "gap": pa.array([1000.0, None, math.nan]),
        "share": [0.5, -2.0, 1e300],
        "flag": [True, False, None],
        "day": [date(2020, 1, 2), None, None],
        "price": pa.array([Decimal("12.00"), Decimal("12.50"), None], pa.decimal128(6, 2)),
        "listed": [["a ", "b"], [], None],
        "bytes": [b"text", None, None],
        "kind": pa.array(["x", "x", None]).dictionary_encode(),
    }
    pq.write_table(pa.table(columns), folder / "t.parquet")
    read = read_rows(folder / "t.parquet")
    assert list(read[0].values()) == ["1000", "1000", "0.5", "true", "2020-01-02", "12", "a\nb", "text", "x"]
    assert list(read[1].values()) == ["", "", "-2", "false", "", "12.50", "", "", "x"]
    assert [read[2][name] for name in ("uid", "gap", "share")] == ["3", "", "1e+300"]


def test_json_numbers_and_gaps_become_plain_text(folder):
    values = (
        '{"a": 12345678901234567890123, "b": 1000.0, "c": null, "d": NaN, "e": true, "f": [1, null, "x"], "g": 0.5,'
        ' "h": 9007199254740991.0, "i": 9007199254740994.0}'  # from 2 ** 53 on a float is not exact
    )
    read = read_rows(table(folder, values, "t.jsonl"))
    assert list(read[0].values()) == [
        *("12345678901234567890123", "1000", "", "", "true", "1\nx", "0.5"),
        *("9007199254740991", "9007199254740994.0"),
    ]


def test_a_parquet_column_nobody_asks_for_may_hold_anything(folder):
    image = pa.array([{"bytes": b"\xff", "path": "a.png"}])
    pq.write_table(pa.table({"uid": ["1"], "image": image}), folder / "t.parquet")
    assert read_rows(folder / "t.parquet", ("uid",), ()) == [{"uid": "1"}]
    with pytest.raises(ValueError, match="row 1: column 'image' holds a dict"):
        read_rows(folder / "t.parquet")


def test_a_parquet_file_damaged_anywhere_is_read_or_named(folder):
    pq.write_table(pa.table({"uid": ["a"], "frontal": ["b"]}), folder / "t.parquet")
    whole, messages = (folder / "t.parquet").read_bytes(), []
    for place in range(0, len(whole), 3):
        (folder / "t.parquet").write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
        try:
            read_rows(folder / "t.parquet")
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 30
    assert all("t.parquet" in message and "\n" not in message for message in messages)


def test_a_parquet_file_damaged_in_its_middle_is_an_error(folder):
    pq.write_table(pa.table({"uid": [str(i) for i in range(5000)]}), folder / "t.parquet", compression="zstd")
    raw = bytearray((folder / "t.parquet").read_bytes())
    raw[10:3000] = bytes(2990)
    (folder / "t.parquet").write_bytes(raw)
    with pytest.raises(ValueError, match="damaged Parquet"):
        read_rows(folder / "t.parquet")


def test_a_cell_of_several_values_is_cut_at_each_kind_of_separator():
    assert split_cell(" a.png; b.png|c.png\nd.png;; ") == ["a.png", "b.png", "c.png", "d.png"]
    assert split_cell("") == []
    assert split_cell("['PA', 'LATERAL']") == split_cell('["PA","LATERAL"]') == ["PA", "LATERAL"]
