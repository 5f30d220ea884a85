"""Files on this machine or behind an address that fsspec knows (`s3://…`, `hf://…`, `memory://…`), read the same way.

A place on this machine is a `Path`; one behind an address is a text, since `Path` would fold its "//". A path may lead
into a zip (`archive.zip/images/1.png`)."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

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
    """The file, open for reading, with `seek`; `OSError` with the place in it where it cannot be read, then or later.

    `ahead` is how many bytes beyond what is asked for are fetched from an address (default: megabytes)."""
    if not is_url(place):
        if inside := in_zip(place):
            with suppress(KeyError), zipfile.ZipFile(inside[0]) as archive:
                return archive.open(inside[1])  # the zip stays open as long as it is
        return Path(place).open("rb")
    with _reached(place) as (system, path):
        return io.BufferedReader(_Stream(place, system.open(path, "rb", block_size=ahead)))


def fetched(address: str) -> bytes:
    """The content at an address, in one request: `FileNotFoundError` only if it is known not to be there, `OSError`
    for all else that may fail."""
    with _reached(address) as (system, path):
        return cast(bytes, system.cat_file(path))


def is_file(place: Place) -> bool:
    """Whether there is such a file."""
    if not is_url(place):
        return inside[1] in _zipped(inside[0]) if (inside := in_zip(place)) else Path(place).is_file()
    with suppress(FileNotFoundError), _reached(place) as (system, path):
        return bool(system.info(path)["type"] == "file")  # `isfile` would say no whatever fails
    return False


def is_folder(place: Place) -> bool:
    """Whether there is such a folder."""
    if not is_url(place):
        return Path(place).is_dir()
    with _reached(place) as (system, path):
        return bool(system.isdir(path))


def files(folder: Place) -> Iterator[str]:
    """Names of all files below `folder`, relative to it, with "/", sorted within each folder; links that lead back
    are followed once."""
    if is_url(folder):
        with _reached(folder) as (system, path):
            found = system.find(path)
        root = path.rstrip("/") + "/"
        paths = (name.removeprefix(root).split("/") for name in found)
        # files of a folder before its subfolders, as on this machine
        ordered = sorted(paths, key=lambda parts: [*((True, part) for part in parts[:-1]), (False, parts[-1])])
        yield from map("/".join, ordered)
        return
    seen: set[tuple[int, int]] = set()
    root = os.path.join(folder, "")  # noqa: PTH118 (with the separator at its end)
    for at, below, names in os.walk(folder, followlinks=True):
        entry = os.stat(at)  # noqa: PTH116 (three hundred thousand folders)
        if (entry.st_dev, entry.st_ino) in seen:
            below.clear()
            continue
        seen.add((entry.st_dev, entry.st_ino))
        below.sort()
        start = at.removeprefix(root).replace(os.sep, "/")
        prefix = "" if at == str(folder) else f"{start}/"
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
    with _reached(pattern) as (system, path):
        return [system.unstrip_protocol(name) for name in sorted(system.glob(path))]


@contextmanager
def _reached(place: Place) -> Iterator[tuple[Any, str]]:
    """The file system of an address, and the path there. Of whichever library reaches it, errors are `OSError`."""
    from fsspec.core import url_to_fs

    try:
        system, path = url_to_fs(place)
    except (ImportError, ValueError) as error:  # no such protocol, or its package is not installed
        raise ValueError(f"{place}: {error}") from None
    with _told(place):
        yield system, path


@contextmanager
def _told(place: Place) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(f"{place}: no such file") from None
    except Exception as error:
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise OSError(f"{place}: cannot be read ({said})") from None


class _Stream(io.RawIOBase):
    """A file at an address, whose errors are `OSError` too."""

    def __init__(self, place: Place, stream: IO[bytes]) -> None:
        self.place = place
        self.stream = stream

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return self.stream.seekable()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self.stream.seek(offset, whence)

    def readinto(self, buffer: WriteableBuffer) -> int:
        with _told(self.place):
            content = self.stream.read(memoryview(buffer).nbytes)
        memoryview(buffer).cast("B")[: len(content)] = content
        return len(content)

    def close(self) -> None:
        self.stream.close()
        super().close()
