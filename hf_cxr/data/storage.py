"""Files on this machine or behind an address that fsspec knows (`s3://…`, `hf://…`, `memory://…`), read the same way.

A place on this machine is a `Path`; one behind an address is a text, since `Path` would fold its "//". A path may lead
into a zip (`archive.zip/images/1.png`)."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import IO, Any, cast

Place = str | Path


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


def open_file(place: Place) -> IO[bytes]:
    """The file, open for reading, with `seek`; `OSError` with the place in it where it cannot be read."""
    if not is_url(place):
        if inside := in_zip(place):
            with suppress(KeyError), zipfile.ZipFile(inside[0]) as archive:
                return archive.open(inside[1])  # the zip stays open as long as it is
        return Path(place).open("rb")
    system, path = _system(place)
    try:
        return cast(IO[bytes], system.open(path, "rb"))
    except FileNotFoundError:
        raise FileNotFoundError(f"{place}: no such file") from None


def is_file(place: Place) -> bool:
    """Whether there is such a file."""
    if not is_url(place):
        return inside[1] in _zipped(inside[0]) if (inside := in_zip(place)) else Path(place).is_file()
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
        yield from sorted(name.removeprefix(root) for name in system.find(path))
        return
    seen: set[str] = set()
    for at, below, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(at)) in seen:
            below.clear()
            continue
        seen.add(real)
        below.sort()
        start = os.path.relpath(at, folder)
        prefix = "" if start == "." else start.replace(os.sep, "/") + "/"
        yield from (prefix + name for name in sorted(names))


def names(folder: Place) -> list[str]:
    """The files that lie in a folder itself, sorted; none where there is no such folder."""
    if is_url(folder):
        listed: Iterable[str] = files(folder) if is_folder(folder) else ()
    elif inside := in_zip(Path(folder, "-")):
        start = inside[1].removesuffix("-")
        listed = (name.removeprefix(start) for name in _zipped(inside[0]) if name.startswith(start))
    elif Path(folder).is_dir():
        with os.scandir(folder) as entries:
            listed = [entry.name for entry in entries if entry.is_file()]
    else:
        listed = ()
    return sorted(name for name in listed if "/" not in name)


def in_zip(place: Place) -> tuple[Path, str] | None:
    """The zip that a path leads into, and the rest of the path."""
    if is_url(place):
        return None
    archive = next((p for p in Path(place).parents if p.suffix.lower() == ".zip" and p.is_file()), None)
    return None if archive is None else (archive, Path(place).relative_to(archive).as_posix())


def _zipped(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        raise ValueError(f"{archive}: a damaged zip, or none") from None


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
