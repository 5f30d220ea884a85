"""Tables on disk as rows of text, and of images: CSV, TSV, JSON lines, JSON, Parquet, each in one file or in several.
What a column means is for the caller.

Files of text are read in `text_tables`, Parquet in `hf_cxr.data.embedded`.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from ast import literal_eval
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

from hf_cxr.data import storage
from hf_cxr.data.sources.text_tables import TEXT_SUFFIXES, kind_of, open_text
from hf_cxr.data.storage import Embedded, Place

SUFFIXES = (*TEXT_SUFFIXES, ".parquet")
"""The kinds of tables, known by the name alone; all but Parquet may be gzipped (`.csv.gz`) or zipped (`.csv.zip`)."""

EMPTY = frozenset(
    "nan NaN NAN -nan -NaN None NONE NULL Null null nil NaT N/A n/a NA #N/A #NA <NA>"
    " - -- --- – — [] {} _ __ ___ ____".split()
)
"""Cells that hold nothing, whatever their column: what pandas and databases write for a missing value, and what people
do. Only a whole cell counts, in exactly this spelling: "None." and "none" are a text."""

MAX_ROWS = 5_000_000
"""More rows than that are no table of studies."""


class ImageCell(NamedTuple):
    """One image that a cell names or holds."""

    path: str
    """As written: a path, an address or, of bytes, the name that they came with; may be "" then."""
    embedded: Embedded | None = None
    """Where its bytes lie, for one that the table itself holds."""


class Row(dict[str, str]):
    """The cells of one row by column name, stripped; an absent, null or `EMPTY` cell is "".

    `place` is where the row starts: "line 17" of a text file, "row 17" (from 1) of JSON or Parquet; with the name of
    the file before it where the table has several. `images` has the cells of the columns that were asked for as
    images.
    """

    __slots__ = ("images", "place")

    def __init__(self, cells: Mapping[str, str], place: str, images: Mapping[str, tuple[ImageCell, ...]]) -> None:
        super().__init__(cells)
        self.place, self.images = place, images


@dataclass(frozen=True)
class Table:
    """A table whose header has been read."""

    path: Place
    columns: tuple[str, ...]
    load: Callable[[Sequence[str], Sequence[str], set[str] | None], Iterable[tuple[str, Mapping[str, Any]]]]
    """Names of columns, of columns of images, `gaps` of `rows` → (place, raw values) of each row, in order."""

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

    def rows(
        self,
        required: Sequence[str] = (),
        optional: Sequence[str] | None = None,
        images: Sequence[str] = (),
        gaps: set[str] | None = None,
        lists: Collection[str] = (),
    ) -> list[Row]:
        """Every row, in order, with the cells of the named columns.

        Args:
            required: Columns that must be there.
            optional: Columns that are "" in every row where the table lacks them. `None`: all that there are.
            images: Columns whose cells are paths or images, for `Row.images` alone: each cell is a text (several
                paths in it separated as in `split_cell`), bytes, {"bytes", "path"}, or a list of these. Bytes in
                Parquet are not read.
            gaps: With it, no byte of an image is read even to learn which rows have none, where the file does not
                tell: such a column of `images` counts as full, and its name is put into this set.
            lists: Columns whose lists stay lists, as JSON: an empty item keeps its place (`split_cell` with `gaps`).

        Raises:
            ValueError: If a required column or one of `images` is missing, a cell of a named column is not text, a
                number, a date or a list of these, or there are more than `MAX_ROWS`.
        """
        for name in (*required, *images):
            if name not in self.columns:
                raise ValueError(self.lacks(name))
        wanted = dict.fromkeys([*required, *(self.columns if optional is None else optional)])
        texts = [name for name in wanted if name not in images]
        made: list[Row] = []
        for place, values in self.load([name for name in texts if name in self.columns], images, gaps):
            cells, shown, name = {}, {}, ""
            try:
                for name in texts:
                    value = values.get(name)
                    if name in lists and isinstance(value, (list, tuple)):
                        value = json.dumps([_cell(item) for item in value])
                    cells[name] = _cell(value)
                for name in images:
                    shown[name] = tuple(_images(values.get(name)))
            except ValueError as error:
                raise ValueError(f"{self.path}, {place}: column {name!r} holds {error}") from None
            made.append(Row(cells, place, shown))
            if len(made) > MAX_ROWS:
                raise ValueError(f"{self.path}: more than {MAX_ROWS:,} rows")
        return made


def read_rows(
    path: Place, required: Sequence[str] = (), optional: Sequence[str] | None = None, encoding: str | None = None
) -> list[Row]:
    """The rows of a table as text: `read_table(path, encoding).rows(required, optional)`."""
    return read_table(path, encoding).rows(required, optional)


def read_table(path: Place, encoding: str | None = None) -> Table:
    """Open a table of one of the `SUFFIXES`, of one or several files (`table_files`).

    Text is decoded as its byte-order mark says, else as `encoding`, else as UTF-8; nothing is guessed. Lines end in
    LF, CRLF or CR, all as the header does. CSV, TSV and TXT are cut at the comma, semicolon, tab or "|", whichever
    cuts its header into more names; it may quote cells, with newlines in them. Lines of empty cells are no rows. A row
    that is too short is filled with "". Columns without a name are not read. A JSON file is a list of objects, or an
    object of objects, whose keys become the column `key` where they have none of that name. In JSON and Parquet 1000.0
    is read as "1000", true as "true", null and NaN as "", a list as its items with newlines between (`split_cell` cuts
    it again).

    Raises:
        FileNotFoundError, IsADirectoryError, OSError: If the file cannot be read.
        ValueError: With the line where there is one: an unknown kind of table, an empty file, bytes of another
            encoding, NUL, two columns of one name, a row longer than the header, a broken quote, malformed JSON or
            Parquet, a zip with several tables in it, or more than it may hold (`text_tables`). Some of them only from
            `Table.rows`.
    """
    files = table_files(path)
    words = {file: _split_word(file) for file in files}
    words = words if all(words.values()) else dict.fromkeys(files, "")
    return joined(path, words, lambda file: read_file(file, encoding))


def joined(path: Place, files: Mapping[Place, str], opened: Callable[[Place], Table]) -> Table:
    """Files with the same columns as one table, called `path`, one after the other, each `opened` when it is its turn.

    Where they are of several splits (`files` maps each to its own) and have no column `split`, they get one.
    """
    first = opened(next(iter(files)))
    if len(files) == 1:
        return first
    folder = os.path.commonprefix([str(file) for file in files]).rpartition("/")[0]  # noqa: RUF071 (cut at a "/")
    splits = len(set(files.values())) > 1 and first.column("split") is None

    def load(
        columns: Sequence[str], images: Sequence[str], gaps: set[str] | None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        for file, split in files.items():
            table = first if file == first.path else opened(file)
            own = [name for name in columns if not (splits and name == "split")]
            for name in (*own, *images):
                if name not in table.columns:
                    raise ValueError(table.lacks(name))
            said = {"split": split} if splits else {}
            shown = str(file).removeprefix(f"{folder}/")
            for place, values in table.load(own, images, gaps):
                yield f"{shown}, {place}", {**values, **said}

    return Table(path, (*first.columns, *(["split"] if splits else [])), load)


def table_files(root: Place) -> list[Place]:
    """The files of a table: itself; all that a pattern with "*" names; of a folder, the one table in it or, where it
    has Parquet files alone, all of these, and where it has none, those of its folder `data`.

    Raises:
        FileNotFoundError, IsADirectoryError: If there is none.
        ValueError: If a folder has several tables.
    """
    if "*" in str(root) and not (storage.is_file(root) or storage.is_folder(root)):
        found = [file for file in storage.matches(root) if kind_of_name(file)]
        if not found:
            raise FileNotFoundError(f"{root}: no table of such a name")
        return found
    if not storage.is_folder(root):
        return [root]
    for folder in (root, storage.join(root, "data")):
        found = _tables_in(folder) if storage.is_folder(folder) else []
        if len(found) > 1 and not all(str(file).lower().endswith(".parquet") for file in found):
            names = ", ".join(str(file).rpartition("/")[2] for file in found)
            raise ValueError(f"{folder}: several tables ({names}); name the one to read")
        if found:
            return found
    if kind_of_name(root):
        raise IsADirectoryError(f"{root}: is a folder, not a table")
    raise FileNotFoundError(f"{root}: no table in it ({', '.join(SUFFIXES)})")


def _tables_in(folder: Place) -> list[Place]:
    listed = storage.files(folder) if storage.is_url(folder) else sorted(p.name for p in Path(folder).iterdir())
    found = (
        storage.join(folder, n) for n in listed if "/" not in n and n[0] not in "._" and kind_of_name(n) != ".txt"
    )
    return [file for file in found if kind_of_name(file) and storage.is_file(file)]


def kind_of_name(file: Place) -> str:
    """The suffix of a table without that of its compression; "" for a name that is no table's."""
    name = str(file).lower()
    kinds = [
        kind
        for kind in SUFFIXES
        if name.endswith(kind) or (kind in TEXT_SUFFIXES and name.endswith((f"{kind}.gz", f"{kind}.zip")))
    ]
    return kinds[0] if kinds else ""


def _split_word(file: Place) -> str:
    """The split that the name of a shard says, as `datasets` names them (`train-00000-of-00005.parquet`, or a file in
    a folder `train`); "" if it says none."""
    folder, _, name = str(file).rpartition("/")
    for word in (name, folder.rpartition("/")[2]):
        if said := re.match(r"(train|training|validation|valid|val|dev|test|testing)(?![A-Za-z])", word):
            return said[1]
    return ""


def read_file(path: Place, encoding: str | None = None) -> Table:
    """`read_table` of one file."""
    name = str(path).lower()
    if not kind_of_name(path) and not name.endswith(".zip"):
        raise ValueError(f"{path}: not a known kind of table; save it as {', '.join(SUFFIXES)}")
    if storage.is_folder(path):
        raise IsADirectoryError(f"{path}: is a folder, not a table")
    if not storage.is_file(path):
        raise FileNotFoundError(f"{path}: no such file")
    if name.endswith(".parquet"):
        return _parquet(path)
    columns, rows = open_text(path, kind_of(path), encoding)
    return Table(path, _unique(path, columns), lambda columns, images, gaps: rows())


def _parquet(path: Place) -> Table:
    from hf_cxr.data import embedded  # pyarrow, which not every table needs

    names = {name.strip(): name for name in _unique(path, embedded.columns_of(path))}

    def load(
        columns: Sequence[str], images: Sequence[str], gaps: set[str] | None
    ) -> Iterator[tuple[str, Mapping[str, Any]]]:
        texts, cells = ({name: names[name] for name in chosen} for chosen in (columns, images))
        return embedded.rows_of(path, texts, cells, gaps)

    return Table(path, tuple(names), load)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """ "; did you mean 'uid'?" with the nearest of the names, in any case of letters; "" where none is near."""
    lower = {known.lower(): known for known in reversed(list(names))}
    near = difflib.get_close_matches(name.lower(), lower, n=1)
    return f"; did you mean {lower[near[0]]!r}?" if near else ""


def split_cell(cell: str, gaps: bool = False) -> list[str]:
    """The parts of a cell with several values: separated by ";" or "|", the items of a JSON or Parquet list, or those
    of a list that pandas or numpy wrote as text ("['a.png', 'b.png']"). Parts that are `EMPTY` are none;
    with `gaps`, they are ""."""
    parts = re.split(r"[;|\n]", cell) if not (cell[:1] == "[" and cell[-1:] == "]") else _items(cell)
    parts = ["" if part.strip() in EMPTY else part.strip() for part in parts]
    return parts if gaps else list(filter(None, parts))


def _items(cell: str) -> list[str]:
    """The items of a list as JSON, Python or numpy write it; numpy puts no comma between them."""
    try:
        items = json.loads(cell, parse_int=str)
        if not any(isinstance(item, (list, dict)) for item in items):
            return ["" if item is None else str(item) for item in items]
    except (ValueError, RecursionError):
        pass
    quoted = re.findall(r"""'(?:[^'\\]|\\.)*(?:'|$)|"(?:[^"\\]|\\.)*(?:"|$)""", cell)  # to the end: in linear time
    try:
        return [literal_eval(item) for item in quoted] if quoted else re.split(r"[,;|\n]", cell[1:-1])
    except (ValueError, SyntaxError):
        return [item[1:-1] for item in quoted]


def only_file(folder: Path, kind: str, endings: tuple[str, ...], none: str) -> Path:
    """The one file of a folder with such an ending; the error of another number names them, or says `none`."""
    found = sorted(path for path in folder.iterdir() if path.name.lower().endswith(endings) and path.is_file())
    if not found:
        raise FileNotFoundError(f"{folder}: {none}")
    if len(found) > 1:
        raise ValueError(f"{folder}: several {kind} ({', '.join(path.name for path in found)}); name the one to read")
    return found[0]


def text_fault(text: str) -> str:
    """What JSON lets into a text and neither a file name nor Parquet can hold; "" if there is no such thing."""
    if not text.isascii() and re.search(r"[\ud800-\udfff]", text):
        return "half a character (a lone surrogate)"
    return "a NUL character" if "\0" in text else ""


def _unique(path: Place, names: Iterable[str]) -> tuple[str, ...]:
    """The names; `ValueError` for one that occurs twice: nobody could say which of the two is meant."""
    listed = tuple(names)
    seen: dict[str, int] = {}
    for place, name in enumerate(listed, start=1):
        if seen.setdefault(name.strip(), place) != place:
            shown = repr(name.strip()) if len(name) <= 64 else "of one name"
            raise ValueError(f"{path}: column {shown} occurs twice (columns {seen[name.strip()]} and {place})")
    return listed


def _cell(value: Any) -> str:
    try:
        text = _text(value).strip()
    except (TypeError, UnicodeDecodeError):
        raise ValueError(f"a {type(value).__name__}, not text, a number, a date or a list of these") from None
    if fault := text_fault(text):
        raise ValueError(fault)
    return "" if text in EMPTY else text


def _images(value: Any) -> Iterator[ImageCell]:
    """The images of a cell, in order."""
    if isinstance(value, Embedded):
        yield ImageCell("", value)
    elif isinstance(value, Mapping):
        source, path = value.get("bytes"), _cell(value.get("path"))
        if not {"bytes", "path"} & set(value) or not (source is None or isinstance(source, Embedded)):
            raise ValueError("a structure that is no image ({bytes, path})")
        if path or source:
            yield ImageCell(path, source)
    elif isinstance(value, (list, tuple)):
        for item in value:
            if isinstance(item, (list, tuple)):
                raise ValueError("a list of lists")
            yield from _images(item)
    else:
        yield from map(ImageCell, split_cell(_cell(value)))


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
