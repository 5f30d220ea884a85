"""Archives from the network or from colleagues: read in one pass, or unpacked, without trusting a word of them.

Tar (plain, gzip, bzip2, xz) and zip; which one it is, its first bytes decide. The size of a member is what is read,
not what a header declares. Which member belongs to which study is for the sources to say.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from hf_cxr.utils.files import commit, is_empty, staging_folder

SUFFIXES = (".tgz", ".tar.gz", ".tar", ".tar.bz2", ".tar.xz", ".zip")

# Bytes of one member: the largest radiographs have 50 MB, and `members` holds one at a time in memory.
MAX_MEMBER = 1 << 30
MAX_MEMBERS = 1_000_000  # folders included; the largest public chest collections have under half of it
# An archive may unpack to `MAX_MEMBER` bytes and to so many times its own size more. The Open-i reports reach 21.
MAX_RATIO = 200
MAX_EXTRA = 1 << 16  # bytes of the extra header of one tar member (long name, pax records), which tarfile reads whole
MAX_DIRECTORY = 1 << 26  # bytes of the directory of a zip, which zipfile reads whole
CHUNK = 1 << 18

_IMAGE_SUFFIXES = re.compile(r"(?<=.)(\.(png|dcm|dicom|jpe?g|jp2|j2k|tiff?|bmp|gif|webp|p[gnp]m))+$", re.IGNORECASE)
_PREFIX = re.compile(r"^CXR(?=\d)", re.IGNORECASE)
_TWICE = re.compile(r"^(\d+)_\1_(?=IM-)")
_EXTRA_TYPES = {
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
}
_KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
# What the readers of the standard library raise on damaged input, whoever of them meets it first.
_DAMAGE = (
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, ValueError, NotImplementedError, OverflowError),
    RuntimeError,  # and RecursionError: thousands of pax headers in a row
)


class UnsafeArchive(ValueError):
    """A member that no honest archive of images or reports has. The message names the archive and the member."""


def image_key(name: str) -> str:
    """What the published forms of one image have in common: no folder, no prefix "CXR", no image suffix.

    Open-i writes the number of its first study twice ("CXR1_1_IM-0001-3001"), Kaggle once.

    >>> image_key("a/CXR1000_IM-0003-1001.png"), image_key("1000_IM-0003-1001.dcm.png")
    ('1000_IM-0003-1001', '1000_IM-0003-1001')
    """
    stem = _PREFIX.sub("", _IMAGE_SUFFIXES.sub("", re.split(r"[/\\]", name)[-1]))
    return _TWICE.sub(r"\1_", stem)


def is_archive(path: str | Path) -> bool:
    """Whether the name ends like that of an archive (`SUFFIXES`); nothing is opened."""
    return str(path).lower().endswith(SUFFIXES)


def names(path: str | Path) -> list[str]:
    """The names of the files of an archive, in its order; errors as of `members`."""
    return [name for name, _ in _walk(Path(path))]


def members(path: str | Path, wanted: Callable[[str], bool] | None = None) -> Iterator[tuple[str, bytes]]:
    """The files of an archive in its own order: (name, content), in one pass, one content in memory at a time.

    Args:
        path: The archive.
        wanted: Name → whether to read it; all by default. Names have no leading "./". Folders, and the "._x" and
            "__MACOSX/" that macOS adds, are not asked about.

    Raises:
        FileNotFoundError: If there is no such file.
        UnsafeArchive: At the first member, wanted or not, with an absolute path, a drive, "..", a backslash or a
            control character in its name, or that is a link, a device or the like; at the first one too many or too
            large (`MAX_MEMBERS`, `MAX_MEMBER`, `MAX_RATIO`).
        ValueError: If the archive is truncated, damaged (a checksum fails), encrypted, or none at all. A compressed
            tar is known to be whole only when its last member was given out.
    """
    for name, chunks in _walk(Path(path)):
        if wanted is None or wanted(name):
            yield name, b"".join(chunks)


def extract(path: str | Path, out: str | Path, wanted: Callable[[str], bool] | None = None) -> int:
    """Unpack an archive into the new folder `out`: whole, or not at all. Returns the number of files written.

    Only names and contents are taken: no owners, modes or times. `wanted` is that of `members`.

    Raises:
        FileExistsError: If `out` exists and is not an empty folder.
        OSError: If it cannot be written, for example because the disk is full.
        What `members` raises; besides, `UnsafeArchive` if two members have one name.
    """
    path, out = Path(path), Path(out)

    def check() -> None:
        if out.is_symlink() or (out.exists() and not (out.is_dir() and is_empty(out))):
            raise FileExistsError(f"{out}: already there; {path.name} is unpacked into a new folder only")

    check()
    number = 0
    with staging_folder(out.absolute()) as staging:
        root = staging / "root"
        root.mkdir()
        for name, chunks in _walk(path):
            if wanted is None or wanted(name):
                _write(root / name, chunks, path, name, out)
                number += 1
        commit(root, out.absolute(), check)
    return number


def _write(target: Path, chunks: Iterator[bytes], path: Path, name: str, out: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as stream:
            for chunk in chunks:
                stream.write(chunk)
    except (FileExistsError, NotADirectoryError):
        raise UnsafeArchive(f"{path}: member {name!r} is in it twice, or is both a file and a folder") from None
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(f"{out}: the disk is full; {path.name} was not unpacked") from error
        raise OSError(f"{path}: member {name!r} cannot be written to {out}: {error.strerror or error}") from error


def _walk(path: Path) -> Iterator[tuple[str, Iterator[bytes]]]:
    """Name and content of every file, the content to be read before the next file is asked for."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    budget = _Budget(path)
    with path.open("rb") as stream:
        head = stream.read(512)
        stream.seek(0)
        open_tar = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
        if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
            files = _zip_files(path, budget)
        elif open_tar or _is_header(head):
            files = _tar_files(open_tar(stream) if open_tar else stream, budget)
        else:
            page = ", but a web page" if head.lstrip().startswith(b"<") else ""
            raise ValueError(f"{path}: not a tar or zip archive{page} (0 members read)")
        with budget.clear_errors():
            yield from files


class _Budget:
    """What one pass through an archive has read, and may still read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.members = 0
        self.left = MAX_MEMBER + MAX_RATIO * path.stat().st_size

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise UnsafeArchive(f"{self.path}: unpacks to more than {MAX_RATIO} times its size (an archive bomb)")

    def admit(self, name: str, size: int, kind: str) -> str | None:
        """The name, tidied, of a file that is safe; `None` for a folder or an extra of macOS, which are as safe.

        `kind` is "a file", "a folder", or what else the member is.
        """
        self.members += 1
        if self.members > MAX_MEMBERS:
            raise UnsafeArchive(f"{self.path}: more than {MAX_MEMBERS:,} members")
        tidy = PurePosixPath(name)
        faults = {
            kind: kind not in ("a file", "a folder"),
            f"larger than {MAX_MEMBER:,} bytes": size > MAX_MEMBER,
            "smaller than nothing": size < 0,
            "without a name": kind == "a file" and not tidy.parts,
            "an absolute path": name.startswith("/") or re.match(r"[A-Za-z]:", name),
            "named with a backslash": "\\" in name,
            "outside the archive ('..')": ".." in name.split("/"),
            "named with a control character": re.search(r"[\x00-\x1f\x7f]", name),
        }
        if fault := next((fault for fault, found in faults.items() if found), None):
            raise UnsafeArchive(f"{self.path}: refused, member {name[:200]!r} is {fault}")
        if kind == "a folder" or tidy.name.startswith("._") or "__MACOSX" in tidy.parts:
            return None
        return str(tidy)

    @contextmanager
    def clear_errors(self) -> Iterator[None]:
        try:
            yield
        except UnsafeArchive:
            raise
        except (*_DAMAGE, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the disk, not the archive: gzip and bz2 raise theirs without a number
            text = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{self.path}: damaged or truncated after {self.members} members ({text})") from error


class _Header(tarfile.TarInfo):
    """Tar headers without the leniency of tarfile, which takes a damaged one for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise ValueError("no end mark" if not buf else f"tar header: {error}") from None
        if header.type in _EXTRA_TYPES and not 0 <= header.size <= MAX_EXTRA:
            raise ValueError(f"tar header of {header.size:,} bytes")
        return header


class _Metered(io.RawIOBase):
    """A stream whose every byte is charged to the budget, also those that are read over."""

    def __init__(self, stream: IO[bytes], budget: _Budget) -> None:
        self.stream = stream
        self.budget = budget

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.budget.spend(len(data))
        return data


# Not tarfile's own decompression, which does not look at the checksum.
_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {
    b"\x1f\x8b": lambda stream: gzip.GzipFile(fileobj=stream),
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\0": lzma.LZMAFile,
}


def _tar_files(plain: IO[bytes], budget: _Budget) -> Iterator[tuple[str, Iterator[bytes]]]:
    metered = cast(IO[bytes], _Metered(plain, budget))
    with plain, tarfile.open(fileobj=metered, mode="r|", tarinfo=_Header, bufsize=CHUNK) as opened:
        tar: Any = opened
        while member := tar.next():
            tar.members = []  # tarfile remembers each one, even in a stream
            name = budget.admit(member.name, member.size, _tar_kind(member))
            if name is not None:
                yield name, _tar_content(tar, member, budget)
        # Two blocks of zeros end a tar. One alone is a header that was lost, unless nothing follows.
        end = tar.fileobj.tell() - tarfile.BLOCKSIZE
        if tar.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0"):
            raise ValueError(f"zeros in place of the tar header at byte {end:,}")
        # To the end of the stream, where gzip and xz have their checksum. Padding, mostly.
        while chunk := tar.fileobj.read(CHUNK):
            for start in range(0, len(chunk), tarfile.BLOCKSIZE) if chunk.strip(b"\0") else ():
                if _is_header(chunk[start : start + tarfile.BLOCKSIZE]):
                    at = tar.fileobj.tell() - len(chunk) + start
                    raise ValueError(f"a further member at byte {at:,}, behind the end mark at byte {end:,}")


def _is_header(block: bytes) -> bool:
    """Whether a tar with anything in it may begin with this block."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    return True


def _tar_kind(member: tarfile.TarInfo) -> str:
    if member.issparse():
        return "a sparse file"
    if member.isdir():
        return "a folder"
    if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE):
        return "a file"
    return _KINDS.get(member.type, f"of an unknown kind ({member.type!r})")


def _tar_content(tar: tarfile.TarFile, member: tarfile.TarInfo, budget: _Budget) -> Iterator[bytes]:
    with budget.clear_errors():
        content = tar.extractfile(member)
        assert content is not None
        while chunk := content.read(CHUNK):
            yield chunk


class _ZipSource(io.FileIO):
    """A zip on disk whose directory has a limit: zipfile asks for all of it in one call."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise ValueError(f"its directory has {size:,} bytes")
        return super().read(size) or b""


def _zip_files(path: Path, budget: _Budget) -> Iterator[tuple[str, Iterator[bytes]]]:
    with _ZipSource(path) as source, zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            name = budget.admit(member.filename, member.file_size, _zip_kind(member))
            if name is not None:
                yield name, _zip_content(archive, member, budget)


def _zip_kind(member: zipfile.ZipInfo) -> str:
    """By the file mode that zips made on Unix carry; zero in others."""
    mode = member.external_attr >> 16
    if stat.S_ISLNK(mode):
        return "a symbolic link"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a device"
    return "a folder" if member.is_dir() else "a file"


def _zip_content(archive: zipfile.ZipFile, member: zipfile.ZipInfo, budget: _Budget) -> Iterator[bytes]:
    with budget.clear_errors():
        if member.flag_bits & 1:
            raise ValueError(f"member {member.filename!r} is encrypted")
        size = 0
        with archive.open(member) as content:
            while chunk := content.read(CHUNK):
                size += len(chunk)
                budget.spend(len(chunk))
                yield chunk
        if size != member.file_size:
            raise ValueError(f"member {member.filename!r} has {size:,} of {member.file_size:,} bytes")
