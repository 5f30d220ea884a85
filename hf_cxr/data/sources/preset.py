"""What the columns of a table mean to us: a declarative file (`presets/*.yaml`, or a user's own) for a published
collection, or the option `--columns`. The rows are read in `hf_cxr.data.sources.table`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from operator import itemgetter
from pathlib import Path
from typing import Any

from hf_cxr.data.collection import Collection
from hf_cxr.data.sources.rows import Row, Table, did_you_mean

COLUMNS = (
    *("uid", "image", "view", "images", "views", "frontal", "lateral", "projection"),
    *("impression", "findings", "indication", "comparison", "technique", "report"),
    *("patient", "split", "tags", "uncertain", "age", "sex", "time"),
)
"""What a table may hold. Needed: `image`, or `images`, or one of `frontal` and `lateral`; and a text."""

SHIPPED = Path(__file__).with_name("presets")
VIEW_WORDS = ("PA", "AP", "frontal", "lateral", "neither", "unknown")
NEEDED = ("uid", "image", "images", "view", "views", "frontal", "lateral", "patient")
"""Columns that a table must have where a preset names them; for want of another, a cell is empty."""
_FIELD = re.compile(r"\{([^{}]+)\}")
_FACTS = {part.name for part in fields(Collection)}


@dataclass(frozen=True)
class Way:
    """How a cell of ours is read: a column of the table, or a template of several, or what a pattern finds in it."""

    source: str
    pattern: re.Pattern[str] | None = None


@dataclass(frozen=True)
class Preset:
    """What is known of a collection's table. Without arguments: nothing, it is a user's own."""

    columns: Mapping[str, tuple[Way, ...]] = field(default_factory=dict)
    """Our name → how it is read; the first way that gives a text counts."""
    tables: str = ""
    """Which files of a folder are its tables, as a pattern of file names ("*_metadata.json")."""
    views: Mapping[str, str] = field(default_factory=dict)
    """The collection's word for a view, in lower case → one of `VIEW_WORDS`."""
    splits: Mapping[str, str] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    """Columns of a label each: 1 is a tag, -1 uncertain, all else says nothing."""
    empty: frozenset[str] = frozenset()
    """Cells, in lower case, that say nothing."""
    placeholders: tuple[str, ...] = ()
    """What de-identification left in the texts, where no other collection has it."""
    document: str = ""
    """Where the columns are described."""
    collection: Collection = field(default_factory=Collection)


@dataclass(frozen=True)
class Field:
    """A cell of ours as it is read from the rows of one table."""

    name: str
    """The column (or template) of the table, for messages."""
    columns: tuple[str, ...]
    read: Callable[[Row], str]
    plain: str | None = None
    """The column, where the cell is that and nothing else."""


def names() -> list[str]:
    """The presets that the kit brings."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def read_preset(name: str | Path | None) -> Preset:
    """A preset by its name, or from a YAML file; `None`: one that knows nothing.

    Raises `FileNotFoundError` or `ValueError`, in one line, for an unknown name, a key that no preset has (with the
    nearest one that there is), and a value of another kind than the key takes.
    """
    import yaml  # slow, and `--help` needs the names alone

    if name is None:
        return Preset()
    known, path = names(), Path(name)
    if str(name) in known:
        path = SHIPPED / f"{name}.yaml"
    elif path.suffix.lower() not in (".yaml", ".yml"):
        hint = did_you_mean(str(name), known)
        raise ValueError(f"unknown preset {str(name)!r}: one of {', '.join(known)}, or a YAML file of yours{hint}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such preset")
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file ({' '.join(str(error).split())})") from None
    return _preset(given, str(path))


def bind(name: str, ways: Sequence[Way], table: Table, needed: bool) -> Field | None:
    """How `name` is read from the rows of this table; `None`: its columns are not there, and it is not `needed`."""
    bound: list[tuple[Way, dict[str, str]]] = []
    for way in ways:
        found = {wanted: table.column(wanted) for wanted in _FIELD.findall(way.source) or [way.source]}
        lacking = next((wanted for wanted, column in found.items() if column is None), None)
        if lacking is None:
            bound.append((way, {wanted: column for wanted, column in found.items() if column is not None}))
        elif needed and way is ways[-1] and not bound:
            raise ValueError(f"{table.lacks(lacking)} (wanted as {name})")
    if not bound:
        return None
    columns = tuple(dict.fromkeys(column for _, found in bound for column in found.values()))
    plain = columns[0] if len(ways) == 1 and not ways[0].pattern and not _FIELD.search(ways[0].source) else None
    if plain:
        return Field(plain, columns, itemgetter(plain), plain)

    def read(row: Row) -> str:
        return next((text for way, found in bound if (text := _read(row, way, found))), "")

    return Field(bound[0][0].source, columns, read)


def _read(row: Row, way: Way, found: Mapping[str, str]) -> str:
    """A template is empty where one of its columns is; of a pattern the groups count, with "-" between them."""
    if not all(row[column] for column in found.values()):
        return ""
    text = row[found[way.source]] if way.source in found else _FIELD.sub(lambda m: row[found[m[1]]], way.source)
    if way.pattern is None:
        return text
    match = way.pattern.search(text)
    return "-".join(filter(None, match.groups() or (match[0],))) if match else ""


def ways_of(value: Any, place: str) -> tuple[Way, ...]:
    """The ways that a preset gives for a column: a name, a template, `{from, pattern}`, or a list of these."""
    listed = value if isinstance(value, list) and value else [value]
    made = []
    for one in listed:
        source, pattern = one, None
        if isinstance(one, dict):
            _check_keys(one, ("from", "pattern"), place)
            source, pattern = one.get("from"), one.get("pattern")
        if not isinstance(source, str) or not source.strip() or not isinstance(pattern, str | None):
            raise ValueError(f"{place}: expected the name of a column, or from and pattern, or a list of these")
        try:
            made.append(Way(source, re.compile(pattern) if pattern else None))
        except re.error as error:
            raise ValueError(f"{place}: {pattern!r} is no regular expression ({error})") from None
    return tuple(made)


def _preset(given: Any, place: str) -> Preset:
    known = {part.name for part in fields(Preset)} - {"collection"} | _FACTS
    if not isinstance(given, dict):
        raise ValueError(f"{place}: expected keys and values, as in `columns: {{image: path}}`")
    _check_keys(given, sorted(known), place)
    columns = _mapping(given, "columns", place)
    _check_keys(columns, COLUMNS, f"{place}, columns")
    views = {str(word).lower(): said for word, said in _mapping(given, "views", place).items()}
    for word, said in views.items():
        if said not in VIEW_WORDS:
            raise ValueError(f"{place}, views: {word!r} is {said!r}, none of {', '.join(VIEW_WORDS)}")
    facts = {name: given[name] for name in _FACTS & set(given)}
    for name, value in (facts | {name: given.get(name, "") for name in ("tables", "document")}).items():
        kind = bool if name == "published_ids" else str
        if not isinstance(value, kind):
            raise ValueError(f"{place}: {name} must be {'true or false' if kind is bool else 'a text'}; got {value!r}")
    return Preset(
        columns={name: ways_of(value, f"{place}, column {name}") for name, value in columns.items()},
        tables=given.get("tables", ""),
        views=views,
        splits={str(word).lower(): str(split) for word, split in _mapping(given, "splits", place).items()},
        labels=_texts(given, "labels", place),
        empty=frozenset(text.lower() for text in _texts(given, "empty", place)),
        placeholders=_texts(given, "placeholders", place),
        document=given.get("document", ""),
        collection=Collection(**facts),
    )


def _check_keys(given: Mapping[Any, Any], known: Sequence[str], place: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{place}: {name!r} is none of {', '.join(known)}{did_you_mean(str(name), known)}")


def _mapping(given: Mapping[str, Any], name: str, place: str) -> dict[Any, Any]:
    if not isinstance(value := given.get(name, {}), dict):
        raise ValueError(f"{place}: {name} must be names with values (`{name}: {{theirs: ours}}`); got {value!r}")
    return value


def _texts(given: Mapping[str, Any], name: str, place: str) -> tuple[str, ...]:
    value = given.get(name, [])
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"{place}: {name} must be a list of texts; got {value!r}")
    return tuple(value)
