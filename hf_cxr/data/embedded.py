"""Parquet files: their rows, and the images that lie in their cells.

Which cells hold images is told without reading them, where the file says so; their bytes are read in one pass. What
a cell means is for `hf_cxr.data.sources.rows`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_cxr.data.storage import Place, as_place, is_url, open_file
from hf_cxr.data.study import Embedded

IMAGES_AT_ONCE = 8  # in memory
DAMAGE = (pa.ArrowException, UnicodeDecodeError, OSError)
"""What pyarrow raises on a damaged Parquet file, without its name."""
Record = tuple[str, Mapping[str, Any]]


def columns_of(place: Place) -> list[str]:
    """The names of the columns of a Parquet file, as it spells them; `ValueError` if it is none."""
    with _parquet(place) as file:
        return list(file.schema_arrow.names)


def rows_of(
    place: Place, columns: Mapping[str, str], images: Mapping[str, str], look: bool = True
) -> Iterator[Record]:
    """Every row: "row 1" …, and its values by our name of a column.

    Args:
        columns: Our name → the file's, of columns that are read as they are.
        images: The same of columns whose cells may hold images; bytes in them are an `Embedded` in their place.
        look: Read a column of bytes in which some rows have none, where the file's statistics do not tell which;
            without it every row counts as having an image.
    """
    row = 0
    with _parquet(place) as file:
        kinds = {name: _leaves(file, place, theirs) for name, theirs in images.items()}
        filled = [name for name, leaves in kinds.items() if leaves[0]]
        plain = {name: theirs for name, theirs in images.items() if name not in filled} | dict(columns)
        try:
            for group in range(file.metadata.num_row_groups):
                numbers = range(file.metadata.row_group(group).num_rows)
                texts = _batches(file, group, list(plain.values()), 1024) if plain else repeat({}, len(numbers))
                cells = (_cells(file, group, images[name], kinds[name], look) for name in filled)
                for _, values, *shapes in zip(numbers, texts, *cells, strict=True):
                    read = {name: values[theirs] for name, theirs in plain.items()}
                    for name, shape in zip(filled, shapes, strict=True):
                        read[name] = _embedded(shape, str(place), row, images[name])
                    row += 1
                    yield f"row {row}", read
        except (ValueError, *DAMAGE) as error:  # a ValueError is a column with fewer rows than the file says
            raise _damaged(place, row + 1, error) from None


def embedded_images(table: str, wanted: Collection[Embedded]) -> Iterator[tuple[Embedded, bytes]]:
    """The images of a Parquet file that are `wanted`, in the order of its rows, few of them in memory at once.

    Raises `ValueError` if the file is damaged, and `OSError` if it cannot be read. One that is not there is not given.
    """
    by_row: dict[int, list[Embedded]] = {}
    for image in wanted:
        by_row.setdefault(image.row, []).append(image)
    names = sorted({image.column for image in wanted})
    place, row = as_place(table), 0
    try:
        with _parquet(place) as file:
            leaves = [leaf for name in names for leaf in _leaves(file, place, name)[:1]]
            for group in range(file.metadata.num_row_groups):
                end = row + file.metadata.row_group(group).num_rows
                if any(at in by_row for at in range(row, end)):
                    for batch in file.iter_batches(IMAGES_AT_ONCE, [group], leaves):
                        for at in range(batch.num_rows):
                            for image in sorted(by_row.get(row + at, ()), key=lambda e: (e.column, e.item)):
                                content = _content(batch.column(image.column)[at], image.item)
                                if content is not None:
                                    yield image, content
                        row += batch.num_rows
                row = end
    except DAMAGE as error:
        raise _damaged(place, row + 1, error) from None


def _content(cell: Any, item: int) -> bytes | None:
    """The bytes of a cell, or of an item of it."""
    if isinstance(cell, (pa.ListScalar, pa.LargeListScalar, pa.FixedSizeListScalar)):
        if not cell.is_valid or item >= len(cell):
            return None
        cell = cell[item]
    if isinstance(cell, pa.StructScalar):
        if not cell.is_valid:
            return None
        cell = cell["bytes"]
    return cell.as_py()


def _embedded(shape: Any, table: str, row: int, column: str, item: int = 0) -> Any:
    """A shape of `_cells` with `Embedded` where bytes are."""
    if isinstance(shape, list):
        return [_embedded(part, table, row, column, place) for place, part in enumerate(shape)]
    if isinstance(shape, dict):
        return shape | {"bytes": _embedded(shape["bytes"], table, row, column, item)}
    return Embedded(table, row, column, item) if shape else None


def _leaves(file: Any, place: Place, column: str) -> tuple[str, ...]:
    """Where a column holds bytes, and where it holds what else there is of an image, as paths into the schema; ""
    for a column that holds none. `ValueError` for a column of structures that are no images."""
    kind = file.schema_arrow.field(column).type
    item = kind.value_type if pa.types.is_list(kind) or pa.types.is_large_list(kind) else kind
    fields = [item.field(i).name for i in range(item.num_fields)] if pa.types.is_struct(item) else []
    if pa.types.is_nested(item) and ("bytes" not in fields or not _is_binary(item.field("bytes").type)):
        raise ValueError(f"{place}: column {column!r} holds {item}, no images")
    if not fields and not _is_binary(item):
        return ("", "")
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    paths = [path for path in paths if path == column or path.startswith(f"{column}.")]
    beside = [path for path in paths if path.endswith(".path")] if "path" in fields else []
    return next(path for path in paths if not fields or path.endswith(".bytes")), *(beside or [""])


def _is_binary(kind: Any) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _cells(file: Any, group: int, column: str, leaves: Sequence[str], look: bool) -> Iterator[Any]:
    """Of each row: `None`, `True` for bytes, {"bytes": True or `None`, "path": …}, or a list of these."""
    leaf, beside = leaves
    facts = file.metadata.row_group(group)
    chunk = next(c for c in map(facts.column, range(facts.num_columns)) if c.path_in_schema == leaf)
    known = chunk.statistics is not None and chunk.statistics.has_null_count
    nulls = chunk.statistics.null_count if known else -1
    if not beside:
        if leaf == column and (nulls in (0, facts.num_rows) or not look):
            yield from repeat(None if nulls == facts.num_rows else True, facts.num_rows)
            return
    elif known or not look:
        # A value that is absent is counted once, be it an empty list, an absent structure or absent bytes in one.
        shapes = [row[column] for row in _batches(file, group, [beside], 1024)]
        without = sum(map(_absent, shapes))
        if nulls in (without, chunk.num_values) or not look:
            filled = None if nulls == chunk.num_values else True
            yield from (_filled(shape, filled) for shape in shapes)
            return
    for batch in file.iter_batches(IMAGES_AT_ONCE, [group], [path for path in leaves if path]):
        yield from map(_shape, batch.column(0))


def _absent(shape: Any) -> int:
    if isinstance(shape, list):
        return sum(map(_absent, shape)) or int(not shape)
    return int(shape is None)


def _filled(shape: Any, bytes: bool | None) -> Any:
    if isinstance(shape, list):
        return [_filled(part, bytes) for part in shape]
    return None if shape is None else {"bytes": bytes, "path": shape["path"]}


def _shape(cell: Any) -> Any:
    if not cell.is_valid:
        return None
    if isinstance(cell, (pa.ListScalar, pa.LargeListScalar)):
        return [_shape(part) for part in cell]
    if isinstance(cell, pa.StructScalar):
        path = cell["path"].as_py() if "path" in cell else None
        return {"bytes": cell["bytes"].is_valid or None, "path": path}
    return True


def _batches(file: Any, group: int, columns: Sequence[str], size: int) -> Iterator[Mapping[str, Any]]:
    for batch in file.iter_batches(size, [group], columns):
        yield from batch.to_pylist()


@contextmanager
def _parquet(place: Place) -> Iterator[Any]:
    with open_file(place) if is_url(place) else Path(place).open("rb") as stream:
        try:
            # Read as it is asked for, not a whole group of rows in advance: that may be gigabytes of images.
            file = pq.ParquetFile(stream, buffer_size=1 << 20, pre_buffer=False)
        except DAMAGE:
            raise ValueError(f"{place}: not a Parquet file, or damaged, or it cannot be read") from None
        with file:
            yield file


def _damaged(place: Place, row: int, error: Exception) -> ValueError:
    what = f"cannot be read ({error})" if is_url(place) else "damaged Parquet, or text that is not UTF-8"
    return ValueError(f"{place}, from row {row} on: {' '.join(what.split())}")
