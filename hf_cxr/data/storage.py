"""Files on this machine or behind an address that fsspec knows (`s3://…`, `hf://…`, `memory://…`), read the same way.

A place on this machine is a `Path`; one behind an address is a text, since `Path` would fold its "//"."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import IO, Any, cast

Place = str | Path


@dataclass(frozen=True)
class Embedded:
    """An image that lies in a cell of a table."""

    table: str
    """Path or address of a Parquet file (`hf_cxr.data.embedded` reads it)."""
    row: int  # from 0
    column: str
    item: int = 0  # of a cell that holds several


def is_url(place: Place) -> bool:
    """Whether it is an address rather than a path of this machine."""
    return isinstance(place, str) and "://" in place


def as_place(given: Place) -> Place:
    """An address as it is, anything else as a `Path`."""
    return given if is_url(given) else Path(given)


def join(folder: Place, name: str) -> Place:
    """`name` within `folder`; an absolute path, or an address, stands for itself."""
    if is_url(name):
        return name
    if isinstance(folder, str) and is_url(folder):
        return f"{folder.rstrip('/')}/{name.replace(os.sep, '/').lstrip('/')}"
    return Path(folder) / name


def parent(place: Place) -> Place:
    """The folder that holds it."""
    return place.rstrip("/").rpartition("/")[0] if isinstance(place, str) and is_url(place) else Path(place).parent


def open_file(place: Place, ahead: int | None = None) -> IO[bytes]:
    """The file, open for reading, with `seek`; `OSError` with the place in it where it cannot be read.

    `ahead` is how many bytes beyond what is asked for are fetched from an address (default: megabytes)."""
    if not is_url(place):
        return Path(place).open("rb")
    system, path = _system(place)
    try:
        return cast(IO[bytes], system.open(path, "rb", block_size=ahead))
    except FileNotFoundError:
        raise FileNotFoundError(f"{place}: no such file") from None


def fetched(address: str) -> bytes:
    """The content at an address, in one request: `FileNotFoundError` only if it is known not to be there, `OSError`
    for all else that may fail."""
    system, path = _system(address)
    try:
        return cast(bytes, system.cat_file(path))
    except FileNotFoundError:
        raise FileNotFoundError(f"{address}: no such file") from None
    except Exception as error:  # of whichever library fetches it
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(f"{address}: cannot be read ({said})") from None


def is_file(place: Place) -> bool:
    """Whether there is such a file."""
    if not is_url(place):
        return Path(place).is_file()
    system, path = _system(place)
    return bool(system.isfile(path))


def is_folder(place: Place) -> bool:
    """Whether there is such a folder."""
    if not is_url(place):
        return Path(place).is_dir()
    system, path = _system(place)
    return bool(system.isdir(path))


def files(folder: Place) -> Iterator[str]:
    """Names of all files below `folder`, relative to it, with "/", sorted within each folder; links that lead back
    are followed once."""
    if is_url(folder):
        system, path = _system(folder)
        root = path.rstrip("/") + "/"
        paths = (name.removeprefix(root).split("/") for name in system.find(path))
        # files of a folder before its subfolders, as on this machine
        ordered = sorted(paths, key=lambda parts: [*((True, part) for part in parts[:-1]), (False, parts[-1])])
        yield from map("/".join, ordered)
        return
    seen: set[tuple[int, int]] = set()
    root = os.path.join(folder, "")  # noqa: PTH118 (with the separator at its end)
    for at, below, names in os.walk(folder, followlinks=True):
        found = os.stat(at)  # noqa: PTH116 (three hundred thousand folders)
        if (found.st_dev, found.st_ino) in seen:
            below.clear()
            continue
        seen.add((found.st_dev, found.st_ino))
        below.sort()
        start = at.removeprefix(root).replace(os.sep, "/")
        prefix = "" if at == str(folder) else f"{start}/"
        yield from (prefix + name for name in sorted(names))


def matches(pattern: Place) -> list[Place]:
    """The files that a pattern with "*" names, sorted."""
    if not is_url(pattern):
        found = glob(str(pattern), recursive=True)  # noqa: PTH207 (Path.glob takes no absolute pattern)
        return sorted(path for path in map(Path, found) if path.is_file())
    system, path = _system(pattern)
    return [system.unstrip_protocol(name) for name in sorted(system.glob(path))]


def _system(place: Place) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    try:
        return url_to_fs(place)
    except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
        raise ValueError(f"{place}: {error}") from None
