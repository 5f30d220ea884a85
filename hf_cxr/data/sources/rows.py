"""Tables on disk as rows of text: CSV, TSV, JSON lines, a JSON list, Parquet. What a column means is for the caller.

Parquet is read by pyarrow. Text is read by `csv` and `json`, as the readers of pandas and pyarrow know no line
numbers, and rename doubled columns, shift a row that is too long or take broken quotes without a word.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import io
import json
import math
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json", ".parquet")
"""The kinds of tables, known by the name alone; all but Parquet may be gzipped (`.csv.gz`)."""

MAX_BYTES = 1 << 30
"""A text table larger than this is refused: at 1 kB a report it would hold a million studies."""
MAX_CELL = 1 << 24
"""Characters in one cell; more means that a quote was never closed. The csv module's own limit is 131,072."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_LINE_END = re.compile(r"\r\n?|\n")


class Row(dict[str, str]):
    """The cells of one row by column name, stripped; an absent or null cell is "".

    `place` is where the row starts: "line 17" of a text file, "row 17" (from 1) of a JSON list or a Parquet file.
    """

    __slots__ = ("place",)

    def __init__(self, cells: Mapping[str, str], place: str) -> None:
        super().__init__(cells)
        self.place = place


@dataclass(frozen=True)
class Table:
    """A table whose header has been read."""

    path: Path
    columns: tuple[str, ...]
    load: Callable[[Sequence[str]], Iterable[tuple[str, Mapping[str, Any]]]]
    """Column names → (place, raw values) of each row, in order."""

    def column(self, name: str) -> str | None:
        """This table's spelling of `name`: itself, else the one column that differs in case alone, else `None`.

        Raises `ValueError` if several columns differ in case alone.
        """
        if name in self.columns:
            return name
        found = [column for column in self.columns if column.lower() == name.lower()]
        if len(found) > 1:
            raise ValueError(f"{self.path}: columns {' and '.join(map(repr, found))} could both be {name!r}")
        return found[0] if found else None

    def lacks(self, name: str) -> str:
        """The one line to say when there is no column `name`: which there are, and the nearest of them."""
        if any(len(column) > 64 for column in self.columns):  # then it is text of a report, not for a message
            return f"{self.path}: no column {name!r}: its first line is no header of column names"
        listed = ", ".join(self.columns[:30]) + (", …" if len(self.columns) > 30 else "")
        return f"{self.path}: no column {name!r}; it has {listed or 'none'}{did_you_mean(name, self.columns)}"

    def rows(self, required: Sequence[str] = (), optional: Sequence[str] | None = None) -> list[Row]:
        """Every row, in order, with the cells of the named columns.

        Args:
            required: Columns that must be there.
            optional: Columns that are "" in every row where the table lacks them. `None`: all that there are.

        Raises:
            ValueError: If a required column is missing, or a cell of a named column is not text, a number, a date or
                a list of these.
        """
        for name in required:
            if name not in self.columns:
                raise ValueError(self.lacks(name))
        wanted = list(dict.fromkeys([*required, *(self.columns if optional is None else optional)]))
        return [
            Row({name: _cell(values.get(name), f"{self.path}, {place}: column {name!r}") for name in wanted}, place)
            for place, values in self.load([name for name in wanted if name in self.columns])
        ]


def read_rows(
    path: str | Path, required: Sequence[str] = (), optional: Sequence[str] | None = None, encoding: str | None = None
) -> list[Row]:
    """The rows of a table as text: `read_table(path, encoding).rows(required, optional)`."""
    return read_table(path, encoding).rows(required, optional)


def read_table(path: str | Path, encoding: str | None = None) -> Table:
    """Open a table of one of the `SUFFIXES`.

    Text is decoded as its byte-order mark says, else as `encoding`, else as UTF-8; nothing is guessed. Lines end in
    LF, CRLF or CR, all as the header does. A CSV, TSV or TXT file is cut at the comma, semicolon or tab, whichever
    cuts its header into more names; it may quote cells, with newlines in them. Lines of empty cells are no rows. A row
    that is too short is filled with "". Columns without a name are not read. In the other formats 1000.0 is read as
    "1000", true as "true", null and NaN as "", a list as its items with newlines between (`split_cell` cuts it again).

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: If the file cannot be read.
        ValueError: With the line where there is one: an unknown kind of table, an empty file, bytes of another
            encoding, NUL, two columns of one name, a row longer than the header, a broken quote, malformed JSON or
            Parquet, or more than `MAX_BYTES`.
    """
    path = Path(path)
    suffix = Path(path.stem if path.suffix.lower() == ".gz" else path.name).suffix.lower()
    if suffix not in SUFFIXES or (suffix == ".parquet" and path.suffix.lower() == ".gz"):
        raise ValueError(f"{path}: not a known kind of table; save it as {', '.join(SUFFIXES)}")
    if path.is_dir():
        raise IsADirectoryError(f"{path}: is a folder, not a table")
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if suffix == ".parquet":
        return _parquet(path)
    text = decode(read_bytes(path), path, encoding)
    if not text.strip():
        raise ValueError(f"{path}: an empty file, without even a header")
    if suffix == ".json":
        return _json_list(path, text)
    return _json_lines(path, text) if suffix in (".jsonl", ".ndjson") else _delimited(path, text)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """ "; did you mean 'uid'?" with the nearest of the names, in any case of letters; "" where none is near."""
    lower = {known.lower(): known for known in reversed(list(names))}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


def split_cell(cell: str) -> list[str]:
    """The parts of a cell with several values: separated by ";" or "|", or the items of a JSON or Parquet list."""
    return [part for part in (part.strip() for part in re.split(r"[;|\n]", cell)) if part]


def only_file(folder: Path, kind: str, endings: tuple[str, ...], none: str) -> Path:
    """The one file of a folder with such an ending; the error of another number names them, or says `none`."""
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(endings) and path.is_file())
    if not found:
        raise FileNotFoundError(f"{folder}: {none}")
    if len(found) > 1:
        raise ValueError(f"{folder}: several {kind} ({', '.join(path.name for path in found)}); name the one to read")
    return found[0]


def read_bytes(path: Path) -> bytes:
    """A whole file, unzipped if it ends in `.gz`; errors as in `read_table`."""
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise ValueError(f"{path}: a damaged or truncated gzip file") from None
    except OSError as error:
        raise type(error)(f"{path}: {error.strerror or 'cannot be read'}") from None
    if len(raw) > MAX_BYTES:
        raise ValueError(f"{path}: more than {MAX_BYTES:,} bytes; save so large a table as Parquet")
    return raw


def decode(raw: bytes, path: str | Path, encoding: str | None = None) -> str:
    """Bytes → text without its byte-order mark, by the rule of `read_table`; `path` is for messages."""
    mark, chosen = next((pair for pair in _BOMS if raw.startswith(pair[0])), (b"", encoding or "utf-8"))
    raw = raw[len(mark) :]
    try:
        text = raw.decode(chosen)
    except (LookupError, TypeError):
        raise ValueError(f"{path}: unknown encoding {encoding!r}") from None
    except UnicodeDecodeError as error:
        line = _line_of(raw[: error.start].decode(chosen, "replace"))
        hint = "" if mark or encoding else "; save it as UTF-8, or give its encoding (cp1252 if it comes from Windows)"
        what = f"byte 0x{raw[error.start]:02x} at {len(mark) + error.start} is not {chosen}"
        raise ValueError(f"{path}, line {line}: {what}{hint}") from None
    if "\0" in text:
        line = _line_of(text[: text.index("\0")])
        raise ValueError(f"{path}, line {line}: a NUL byte (UTF-16 without a byte-order mark? give encoding utf-16)")
    return text


def parse_json(text: str, place: str) -> Any:
    """JSON, with integers as text, digit by digit. `ValueError`, starting with `place`, for malformed JSON or a key
    that occurs twice in one object (the json module would keep the last and say nothing)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(made := dict(pairs)) < len(pairs):
            raise ValueError(f"{place}: malformed JSON (a key occurs twice in one object)")
        return made

    try:
        return json.loads(text, object_pairs_hook=unique, parse_int=str)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"{place}: malformed JSON ({where}column {error.colno}: {error.msg})") from None
    except RecursionError:
        raise ValueError(f"{place}: malformed JSON (nested too deeply)") from None


def text_fault(text: str) -> str:
    """What JSON lets into a text and neither a file name nor Parquet can hold; "" if there is no such thing."""
    if not text.isascii() and re.search(r"[\ud800-\udfff]", text):
        return "half a character (a lone surrogate)"
    return "a NUL character" if "\0" in text else ""


def _delimited(path: Path, text: str) -> Table:
    records: list[tuple[str, Mapping[str, str]]] = []
    names: list[str] = []
    line = 1
    before = csv.field_size_limit(MAX_CELL)
    try:
        reader = _cut(text, max(",;\t", key=lambda delimiter: _header_length(text, delimiter)), strict=True)
        for cells in reader:
            cells, place, line = [cell.strip() for cell in cells], f"line {line}", reader.line_num + 1
            if not any(cells):
                continue
            if not names:
                names = cells
            elif any(cells[len(names) :]):
                more = f"{len(cells)} cells under {len(names)} columns (text with a comma needs quotes)"
                raise ValueError(f"{path}, {place}: {more}")
            else:
                records.append((place, {name: cell for name, cell in zip(names, cells, strict=False) if name}))
    except csv.Error as error:
        what = str(error).split(" - ")[0]  # what follows is advice to programmers
        raise ValueError(f"{path}, line {line}: {what} (a quote that is not closed or not doubled?)") from None
    finally:
        csv.field_size_limit(before)
    return Table(path, _unique(path, filter(None, names)), lambda columns: records)


def _cut(text: str, delimiter: str, strict: bool) -> Any:
    # Lines end as the header does. A bare CR in an unquoted cell of a file of LF lines (pandas writes such files) is
    # then an error of the csv module; with its own line splitting it would silently begin a row.
    first = _LINE_END.search(text)
    end = "\r" if first and first[0] == "\r" else "\n"
    lines = (line + end for line in text.split(end))
    return csv.reader(lines, delimiter=delimiter, strict=strict, skipinitialspace=True)


def _header_length(text: str, delimiter: str) -> int:
    try:
        return len(next(cells for cells in _cut(text, delimiter, strict=False) if any(map(str.strip, cells))))
    except (csv.Error, StopIteration):
        return 0


def _json_lines(path: Path, text: str) -> Table:
    lines = enumerate(io.StringIO(text, newline=None), start=1)
    return _objects(path, ((f"line {n}", parse_json(line, f"{path}, line {n}")) for n, line in lines if line.strip()))


def _json_list(path: Path, text: str) -> Table:
    listed = parse_json(text, str(path))
    if not isinstance(listed, list):
        raise ValueError(f"{path}: not a JSON list of objects (one object a line is called .jsonl)")
    return _objects(path, ((f"row {number}", record) for number, record in enumerate(listed, start=1)))


def _objects(path: Path, records: Iterable[tuple[str, Any]]) -> Table:
    named = []
    for place, record in records:
        if not isinstance(record, dict):
            raise ValueError(f"{path}, {place}: not a JSON object of column names and values")
        named.append((place, {name.strip(): value for name, value in record.items()}))
        if len(named[-1][1]) < len(record):
            raise ValueError(f"{path}, {place}: a key occurs twice in one object")
    columns = dict.fromkeys(name for _, record in named for name in record if name)
    return Table(path, tuple(columns), lambda columns: named)


def _parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        listed = pq.read_schema(path).names
    except (pa.ArrowException, UnicodeDecodeError, OSError):
        raise ValueError(f"{path}: not a Parquet file, or damaged, or it cannot be read") from None
    names = {name.strip(): name for name in _unique(path, listed)}

    def load(columns: Sequence[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        number = count(1)
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(columns=[names[name] for name in columns]):
                    for record in batch.to_pylist():
                        yield f"row {next(number)}", {name: record[names[name]] for name in columns}
        except (pa.ArrowException, UnicodeDecodeError, OSError):
            where = f"{path}, from row {next(number)} on"
            raise ValueError(f"{where}: damaged Parquet, or text that is not UTF-8") from None

    return Table(path, tuple(names), load)


def _unique(path: Path, names: Iterable[str]) -> tuple[str, ...]:
    """The names; `ValueError` for one that occurs twice: nobody could say which of the two is meant."""
    listed = tuple(names)
    seen: dict[str, int] = {}
    for place, name in enumerate(listed, start=1):
        if seen.setdefault(name.strip(), place) != place:
            shown = repr(name.strip()) if len(name) <= 64 else "of one name"
            raise ValueError(f"{path}: column {shown} occurs twice (columns {seen[name.strip()]} and {place})")
    return listed


def _cell(value: Any, place: str) -> str:
    try:
        text = _text(value).strip()
    except (TypeError, UnicodeDecodeError):
        kind = type(value).__name__
        raise ValueError(f"{place} holds a {kind}, not text, a number, a date or a list of these") from None
    if fault := text_fault(text):
        raise ValueError(f"{place} holds {fault}")
    return text


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (float, Decimal)):  # a column of whole numbers with a gap is stored as floats
        whole = math.isfinite(value) and int(value) == value and abs(int(value)) < 2**53
        return str(int(value)) if whole else str(value)
    if isinstance(value, (int, date, time)):
        return str(value)
    if isinstance(value, bytes):  # some writers store text without saying that it is text
        return value.decode("utf-8")
    if isinstance(value, (list, tuple)) and not any(isinstance(item, (list, tuple, dict)) for item in value):
        return "\n".join(filter(None, (_text(item).strip() for item in value)))
    raise TypeError


def _line_of(before: str) -> int:
    return 1 + len(_LINE_END.findall(before))
