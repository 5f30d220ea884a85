"""Tables of text on disk or behind an address: CSV and its kin, JSON lines, JSON, plain, gzipped or zipped, read as a
stream. What a cell means is for `hf_cxr.data.sources.rows`.

Text is read by `csv` and `json`, as the readers of pandas and pyarrow know no line numbers, and rename doubled
columns, shift a row that is too long or take broken quotes without a word.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from io import TextIOWrapper
from typing import IO, Any, cast

from hf_cxr.data.storage import Place, open_file

TEXT_SUFFIXES = (".csv", ".tsv", ".txt", ".jsonl", ".ndjson", ".json")
MAX_BYTES = 1 << 32
"""A text table that unpacks to more is refused: at 1 kB a report it would hold four million studies."""
MAX_CELL = 1 << 24
"""Characters in one cell; more means that a quote was never closed. The csv module's own limit is 131,072."""
MAX_RECORD = 1 << 26
"""Characters of one line, or of one object of a JSON file."""
DELIMITERS = ",;\t|"
HEAD = 1 << 20  # characters that tell the delimiter and how lines end
CHUNK = 1 << 18

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before UTF-16, whose mark it starts with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DAMAGE = (EOFError, gzip.BadGzipFile, zlib.error, zipfile.BadZipFile, NotImplementedError, RuntimeError)
_LINE_END = re.compile(r"\r\n?|\n")
_SPACE = re.compile(r"[ \t\n\r]*")

Record = tuple[str, Mapping[str, Any]]
"""Where a row starts ("line 17", or "row 17" of JSON), and its values by column."""
Opened = tuple[list[str], Callable[[], Iterator[Record]]]
"""The names of the columns, and what reads all rows, from the start at each call."""


def open_text(place: Place, suffix: str, encoding: str | None) -> Opened:
    """A text table with such a suffix (`kind_of`), whose columns have been read; errors as in `rows.read_table`."""
    if suffix == ".json":
        return _objects(place, encoding, lambda: _json(place, encoding))
    if suffix in (".jsonl", ".ndjson"):
        return _objects(place, encoding, lambda: _json_lines(place, encoding))
    return _delimited(place, encoding)


def kind_of(place: Place) -> str:
    """The suffix of a table, without that of its compression; of a zip that of the one table in it."""
    name = str(place).lower()
    if name.endswith(".zip"):
        with _told(place), open_file(place) as stream, zipfile.ZipFile(stream) as archive:
            name = _member(place, archive).filename.lower()
    return "." + name.removesuffix(".gz").rpartition(".")[2]


def read_bytes(place: Place) -> bytes:
    """A whole file, unpacked if it ends in `.gz` or `.zip`; errors as in `rows.read_table`."""
    with _binary(place) as stream:
        raw = stream.read(MAX_BYTES + 1)
    if len(raw) > MAX_BYTES:
        raise _too_large(place)
    return raw


def decode(raw: bytes, path: Place, encoding: str | None = None) -> str:
    """Bytes → text without its byte-order mark, by the rule of `rows.read_table`; `path` is for messages."""
    mark, chosen = _mark(raw, encoding)
    raw = raw[mark:]
    try:
        text = raw.decode(chosen)
    except (LookupError, TypeError):
        raise ValueError(f"{path}: unknown encoding {encoding!r}") from None
    except UnicodeDecodeError as error:
        line = 1 + len(_LINE_END.findall(raw[: error.start].decode(chosen, "replace")))
        hint = "" if mark or encoding else "; save it as UTF-8, or give its encoding (cp1252 if it comes from Windows)"
        what = f"byte 0x{raw[error.start]:02x} at {mark + error.start} is not {chosen}"
        raise ValueError(f"{path}, line {line}: {what}{hint}") from None
    if "\0" in text:
        raise _nul(path, 1 + len(_LINE_END.findall(text[: text.index("\0")])))
    return text


def parse_json(text: str, place: str) -> Any:
    """JSON, with integers as text, digit by digit. `ValueError`, starting with `place`, for malformed JSON or a key
    that occurs twice in one object (the json module would keep the last and say nothing)."""
    try:
        return _parsed(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, " if "\n" in text.strip() else ""
        raise ValueError(f"{place}: malformed JSON ({where}column {error.colno}: {error.msg})") from None
    except _Doubled:
        raise ValueError(f"{place}: malformed JSON (a key occurs twice in one object)") from None
    except RecursionError:
        raise ValueError(f"{place}: malformed JSON (nested too deeply)") from None


# --- CSV and its kin -----------------------------------------------------------------------------------------------


def _delimited(place: Place, encoding: str | None) -> Opened:
    with _text(place, encoding, "") as stream:
        head = stream.read(HEAD)
        head += stream.read(1) if head.endswith("\r") else ""  # whether that is half of a line end
    # Lines end as the header does. A bare CR in an unquoted cell of a file of LF lines (pandas writes such files) is
    # then an error of the csv module; with its own line splitting it would silently begin a row.
    first = _LINE_END.search(head)
    end = "\r" if first and first[0] == "\r" else "\n"
    lines = [line + end for line in head.split(end)]
    delimiter = max(DELIMITERS, key=lambda delimiter: _header_length(lines, delimiter))

    def cells_of_rows() -> Iterator[tuple[str, list[str]]]:
        line = 1
        before = csv.field_size_limit()
        with _text(place, encoding, end) as stream:
            reader = csv.reader(_lines(place, stream), delimiter=delimiter, strict=True, skipinitialspace=True)
            while True:
                try:
                    csv.field_size_limit(MAX_CELL)
                    cells = next(reader, None)
                except csv.Error as error:
                    what = str(error).split(" - ")[0]  # what follows is advice to programmers
                    raise ValueError(
                        f"{place}, line {line}: {what} (a quote that is not closed or not doubled?)"
                    ) from None
                finally:
                    csv.field_size_limit(before)
                if cells is None:
                    return
                cells, at, line = [cell.strip() for cell in cells], f"line {line}", reader.line_num + 1
                if any(cells):
                    yield at, cells

    def rows() -> Iterator[Record]:
        read = cells_of_rows()
        next(read)
        for at, cells in read:
            if any(cells[len(names) :]):
                more = f"{len(cells)} cells under {len(names)} columns (text with a comma needs quotes)"
                raise ValueError(f"{place}, {at}: {more}")
            yield at, dict(zip(names, cells, strict=False))

    _, names = next(cells_of_rows(), ("", []))
    if not names:
        raise ValueError(f"{place}: an empty file, without even a header")
    return list(filter(None, names)), rows


def _header_length(lines: list[str], delimiter: str) -> int:
    rows = csv.reader(lines, delimiter=delimiter, skipinitialspace=True)
    try:
        return len(next(cells for cells in rows if any(map(str.strip, cells))))
    except (csv.Error, StopIteration):
        return 0


# --- JSON ----------------------------------------------------------------------------------------------------------


class _Doubled(ValueError):
    """A key that occurs twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise _Doubled
    return made


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_int=str)
_parsed = _decoder.decode


def _json_lines(place: Place, encoding: str | None) -> Iterator[tuple[str, Any]]:
    with _text(place, encoding, None) as stream:
        for number, line in enumerate(_lines(place, stream), start=1):
            if line.strip():
                yield f"line {number}", parse_json(line, f"{place}, line {number}")


def _json(place: Place, encoding: str | None) -> Iterator[tuple[str, Any]]:
    """The items of a JSON list, or the values of an object, each with its key as a field `key`."""
    with _text(place, encoding, None) as stream:
        text = _Growing(place, stream)
        if not (opening := text.sign()):
            return
        if opening not in "[{":
            raise ValueError(f"{place}: {_NO_TABLE}")
        close, number = {"[": "]", "{": "}"}[opening], 0
        if (sign := text.sign(peek=True)) == close:
            text.sign()
            sign = ""
        while sign != "":
            number += 1
            key = None
            if opening == "{":
                key = text.value() if text.sign(peek=True) == '"' else None
                if key is None or text.sign() != ":":
                    raise text.malformed("a name in quotes and a colon are missing")
            value = text.value()
            if key is not None and not isinstance(value, dict) and number == 1:
                raise ValueError(f"{place}: {_NO_TABLE}")
            yield f"row {number}", value if key is None or not isinstance(value, dict) else {"key": key} | value
            if (sign := text.sign()) == close:
                break
            if sign != ",":
                raise text.malformed(f"',' or {close!r} is missing")
        if text.sign():
            raise text.malformed("something follows the end")


_NO_TABLE = "not a JSON list of objects, nor an object of objects (one object a line is called .jsonl)"


class _Growing:
    """The text of a JSON file, of which as much is in memory as its present value needs."""

    def __init__(self, place: Place, stream: IO[str]) -> None:
        self.place, self.stream = place, stream
        self.text, self.at, self.line, self.size = "", 0, 1, 0

    def more(self) -> bool:
        """Read on, as much again as there is; whether there was anything."""
        self.line += self.text.count("\n", 0, self.at)
        self.text, self.at = self.text[self.at :], 0
        if len(self.text) > MAX_RECORD:
            raise self.malformed(f"more than {MAX_RECORD:,} characters without an end")
        chunk = self.stream.read(max(CHUNK, len(self.text)))
        self.size += len(chunk)
        if self.size > MAX_BYTES:
            raise _too_large(self.place)
        if "\0" in chunk:
            raise _nul(self.place, self.line + (self.text + chunk[: chunk.index("\0")]).count("\n"))
        self.text += chunk
        return bool(chunk)

    def sign(self, peek: bool = False) -> str:
        """The next character that is no space, and go past it; "" at the end."""
        while True:
            self.at = cast(re.Match, _SPACE.match(self.text, self.at)).end()
            if self.at < len(self.text):
                found = self.text[self.at]
                self.at += not peek
                return found
            if not self.more():
                return ""

    def value(self) -> Any:
        self.sign(peek=True)
        while True:
            start = self.at
            try:
                value, end = _decoder.raw_decode(self.text, start)
            except json.JSONDecodeError as error:
                if not self.more():
                    raise self.malformed(error.msg, error.pos - start) from None
            except _Doubled:
                raise self.malformed("a key occurs twice in one object") from None
            except RecursionError:
                raise self.malformed("nested too deeply") from None
            else:
                self.at = end
                return value

    def malformed(self, what: str, at: int | None = None) -> ValueError:
        line = self.line + self.text.count("\n", 0, self.at if at is None else at)
        return ValueError(f"{self.place}, line {line}: malformed JSON ({what})")


def _objects(place: Place, encoding: str | None, records: Callable[[], Iterator[tuple[str, Any]]]) -> Opened:
    def rows() -> Iterator[Record]:
        for at, record in records():
            if not isinstance(record, dict):
                raise ValueError(f"{place}, {at}: not a JSON object of column names and values")
            named = {name.strip(): value for name, value in record.items()}
            if len(named) < len(record):
                raise ValueError(f"{place}, {at}: a key occurs twice in one object")
            yield at, named

    columns: dict[str, None] = {}
    any_row = False
    for _, record in rows():
        columns.update(dict.fromkeys(record))
        any_row = True
    if not any_row and not decode(read_bytes(place), place, encoding).strip():
        raise ValueError(f"{place}: an empty file, without even a header")
    return list(filter(None, columns)), rows


# --- bytes and lines -----------------------------------------------------------------------------------------------


@contextmanager
def _told(place: Place) -> Iterator[None]:
    """One line about a file that cannot be read or unpacked."""
    try:
        yield
    except _DAMAGE:
        what = (
            "damaged, truncated or encrypted zip"
            if str(place).lower().endswith(".zip")
            else "damaged or truncated gzip"
        )
        raise ValueError(f"{place}: a {what} file") from None
    except OSError as error:
        if error.strerror is None:  # it says all, as `open_file` does
            raise
        raise type(error)(f"{place}: {error.strerror}") from None


@contextmanager
def _binary(place: Place) -> Iterator[IO[bytes]]:
    name = str(place).lower()
    with _told(place), open_file(place) as stream:
        if name.endswith(".gz"):
            with gzip.open(stream) as unpacked:
                yield cast(IO[bytes], unpacked)
        elif name.endswith(".zip"):
            with zipfile.ZipFile(stream) as archive, archive.open(_member(place, archive)) as unpacked:
                yield unpacked
        else:
            yield stream


def _member(place: Place, archive: zipfile.ZipFile) -> zipfile.ZipInfo:
    """The one table in a zip; a .txt is none where there is another."""
    names = [m for m in archive.infolist() if not re.search(r"(?:^|/)(?:\._|__MACOSX/)", m.filename)]
    for endings in (tuple(set(TEXT_SUFFIXES) - {".txt"}), (".txt",)):
        found = [member for member in names if member.filename.lower().endswith(endings)]
        if len(found) == 1:
            return found[0]
        if found:
            few = ", ".join(member.filename for member in found[:5])
            raise ValueError(f"{place}: {len(found)} tables in it ({few}); unpack it, and name the one to read")
    raise ValueError(f"{place}: no table in it ({', '.join(TEXT_SUFFIXES)})")


@contextmanager
def _text(place: Place, encoding: str | None, newline: str | None) -> Iterator[IO[str]]:
    """The text behind its byte-order mark; `newline` is that of `open`."""
    with _binary(place) as stream:
        mark, chosen = _mark(stream.read(4), encoding)
    with _binary(place) as stream:
        stream.read(mark)
        try:
            yield TextIOWrapper(stream, chosen, newline=newline)
        except LookupError:
            raise ValueError(f"{place}: unknown encoding {encoding!r}") from None
        except UnicodeDecodeError:
            decode(read_bytes(place), place, encoding)  # tells where
            raise


def _mark(raw: bytes, encoding: str | None) -> tuple[int, str]:
    """Length of the byte-order mark, and the encoding."""
    mark, chosen = next((pair for pair in _BOMS if raw.startswith(pair[0])), (b"", encoding or "utf-8"))
    return len(mark), chosen


def _lines(place: Place, stream: IO[str]) -> Iterator[str]:
    size = 0
    for number, line in enumerate(iter(partial(stream.readline, MAX_RECORD), ""), start=1):
        if "\0" in line:
            raise _nul(place, number)
        if len(line) == MAX_RECORD:
            raise ValueError(f"{place}, line {number}: more than {MAX_RECORD:,} characters without an end")
        if (size := size + len(line)) > MAX_BYTES:
            raise _too_large(place)
        yield line


def _too_large(place: Place) -> ValueError:
    return ValueError(f"{place}: more than {MAX_BYTES:,} bytes; save so large a table as Parquet")


def _nul(place: Place, line: int) -> ValueError:
    return ValueError(f"{place}, line {line}: a NUL byte (UTF-16 without a byte-order mark? give encoding utf-16)")
