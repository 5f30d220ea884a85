"""Parquet files: their rows, and the images that lie in their cells.

Which cells hold images is told without reading them, where the file says so; their bytes are read in one pass. What
a cell means is for `hf_cxr.data.sources.rows`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from hf_cxr.data.storage import Embedded, Place, as_place, open_file

BATCH = 8  # rows of images
AHEAD = 1 << 16  # bytes that are fetched from an address beside what is asked for: images lie between the texts
IMAGE_BYTES = 1 << 23  # of an address, in one request
DAMAGE = (pa.ArrowException, UnicodeDecodeError, OSError)
"""What pyarrow raises on a damaged Parquet file, without its name."""
Record = tuple[str, Mapping[str, Any]]


def columns_of(place: Place) -> list[str]:
    """The names of the columns of a Parquet file, as it spells them; `ValueError` if it is none."""
    with _parquet(place) as file:
        return list(file.schema_arrow.names)


def rows_of(
    place: Place, columns: Mapping[str, str], images: Mapping[str, str], gaps: set[str] | None = None
) -> Iterator[Record]:
    """Every row: "row 1" …, and its values by our name of a column.

    Args:
        columns: Our name → the file's, of columns that are read as they are.
        images: The same of columns whose cells may hold images; bytes in them are an `Embedded` in their place.
        gaps: With it, no image is read where some rows of a column have none and the file does not tell which: the
            column counts as full, and its name is put into this set.
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
                cells = (_cells(file, group, images[name], kinds[name], gaps) for name in filled)
                for _, values, *shapes in zip(numbers, texts, *cells, strict=True):
                    read = {name: values[theirs] for name, theirs in plain.items()}
                    for name, shape in zip(filled, shapes, strict=True):
                        read[name] = _embedded(shape, str(place), row, images[name])
                    row += 1
                    yield f"row {row}", read
        except (ValueError, *DAMAGE) as error:  # a ValueError is a column with fewer rows than the file says
            raise _damaged(place, row + 1, error) from None


def embedded_images(table: str, wanted: Collection[Embedded]) -> Iterator[tuple[Embedded, bytes]]:
    """The images of a Parquet file that are `wanted`, in the order of its rows; in memory is one group of rows
    (some three times its bytes).

    Raises `ValueError` if the file is damaged, and `OSError` if it cannot be read. One that is not there is not given.
    """
    by_row: dict[int, list[Embedded]] = {}
    for image in wanted:
        by_row.setdefault(image.row, []).append(image)
    names = sorted({image.column for image in wanted})
    place, row = as_place(table), 0
    try:
        with _parquet(place, IMAGE_BYTES) as file:
            leaves = [leaf for name in names for leaf in _leaves(file, place, name)[:1]]
            for group in range(file.metadata.num_row_groups):
                end = row + file.metadata.row_group(group).num_rows
                if any(at in by_row for at in range(row, end)):
                    for batch in file.iter_batches(BATCH, [group], leaves):
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


def _cells(file: Any, group: int, column: str, leaves: Sequence[str], gaps: set[str] | None) -> Iterator[Any]:
    """Of each row: `None`, `True` for bytes, {"bytes": True or `None`, "path": …}, or a list of these."""
    leaf, beside = leaves
    facts = file.metadata.row_group(group)
    chunk = next(c for c in map(facts.column, range(facts.num_columns)) if c.path_in_schema == leaf)
    nulls = chunk.statistics.null_count if chunk.statistics and chunk.statistics.has_null_count else None
    if beside:
        # A value that is absent is counted once, be it an empty list, an absent structure or absent bytes in one.
        paths = [row[column] for row in _batches(file, group, [beside], 1024)]
        told = nulls in (sum(map(_absent, paths)), chunk.num_values)
        shapes: Any = (_filled(path, None if nulls == chunk.num_values else True) for path in paths)
    else:
        told = leaf in (column, f"{column}.bytes") and nulls in (0, facts.num_rows)
        shapes = repeat(None if nulls == facts.num_rows else True, facts.num_rows)
    if gaps is not None and not told:
        gaps.add(column)
    if told or gaps is not None:
        yield from shapes
        return
    for batch in file.iter_batches(BATCH, [group], [path for path in leaves if path]):
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
def _parquet(place: Place, at_once: int = 1 << 20) -> Iterator[Any]:
    """The open file; of each column so many bytes are read at once."""
    with open_file(place, AHEAD) as stream:
        try:
            file = pq.ParquetFile(stream, buffer_size=at_once, pre_buffer=False)
        except DAMAGE as error:
            if _is_unread(place, error):
                raise
            raise ValueError(f"{place}: not a Parquet file, or damaged, or it cannot be read") from None
        with file:
            yield file


def _damaged(place: Place, row: int, error: Exception) -> ValueError | OSError:
    if _is_unread(place, error):
        said = " ".join(str(error).removeprefix(f"{place}: ").split())
        return OSError(f"{place}, from row {row} on: {said}")
    return ValueError(f"{place}, from row {row} on: damaged Parquet, or text that is not UTF-8")


def _is_unread(place: Place, error: Exception) -> bool:
    """Whether the file may be whole: the network failed, or the machine. Of damage pyarrow raises `OSError` as well,
    with neither a number nor the place."""
    return isinstance(error, OSError) and (error.errno is not None or str(place) in str(error))
