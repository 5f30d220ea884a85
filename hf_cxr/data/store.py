"""The small images of a collection on disk between reading and writing, and the journal that a run which was
interrupted goes on from. Reading lives in `hf_cxr.data.images`, writing in `hf_cxr.data.builder`."""

from __future__ import annotations

import errno
import hashlib
import json
import mmap
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Any

from hf_cxr.data.study import Key, StoredImage

PARTS = 32  # files of the store, each of consecutive studies, so that it can be deleted bit by bit while it is copied
SYNC = 1.0  # seconds of work that are lost when a run is killed; more where the disk is slow
JOURNAL, PENDING, DATASET = "journal.jsonl", "pending-{}.bin", "dataset"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class Store:
    """The images of the studies of a plan: appended, read and, once copied, deleted.

    A line of the journal tells what an image turned out to be. It is written after the image, so what it tells of is
    there; a last line that was torn is left out.
    """

    def __init__(self, folder: Path, studies: int) -> None:
        self.folder = folder
        self.share = max(1, -(-studies // PARTS))
        self.found: dict[Key, StoredImage | str] = {}
        """What each image that was read turned out to be, or the reason why it could not be read."""
        self._lost: dict[Key, None] = {}  # known, and deleted with their part
        whole = 0
        for line, whole in _whole_lines(folder / JOURNAL):  # noqa: B007
            if "dropped" in line:
                self._lost |= dict.fromkeys(key for key in self.found if self.part(key[0]) < line["dropped"])
            elif "key" in line:
                key, outcome = (line["key"][0], line["key"][1]), line["image"]
                self.found[key] = outcome if isinstance(outcome, str) else StoredImage(*outcome)
                self._lost.pop(key, None)
        os.truncate(folder / JOURNAL, whole)
        self._journal = (folder / JOURNAL).open("ab")
        self._lines: list[dict[str, Any]] = []
        self._parts: dict[int, IO[bytes]] = {}
        self._unsynced: set[int] = set()
        self._next_sync = time.monotonic() + SYNC
        self._reading: tuple[int, IO[bytes]] | None = None
        self._recover()

    def part(self, study: int) -> int:
        """The file that holds the images of a study: later studies are never in an earlier one."""
        return study // self.share

    def add(self, key: Key, outcome: tuple[bytes, str, float | None, str | None] | str) -> None:
        """Append an image (PNG, digest, evidence, hint), or the reason why it cannot be read."""
        if isinstance(outcome, str):
            self.found[key] = outcome
        else:
            png, digest, evidence, hint = outcome
            part = self.part(key[0])
            if part not in self._parts:
                self._parts[part] = self._path(part).open("ab")
            self.found[key] = StoredImage(self._parts[part].tell(), len(png), digest, evidence, hint)
            self._parts[part].write(png)
            self._unsynced.add(part)
        image = self.found[key]
        told = image if isinstance(image, str) else [*vars(image).values()]
        self._lines.append({"key": key, "image": told})
        if time.monotonic() > self._next_sync:
            self.sync()

    def sync(self) -> None:
        """Bring to the disk what was added, images before lines."""
        start = time.monotonic()
        for part in self._unsynced:
            _fsync(self._parts[part])
        self._unsynced.clear()
        lines, self._lines = self._lines, []
        self._journal.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        _fsync(self._journal)
        now = time.monotonic()
        self._next_sync = now + max(SYNC, 10 * (now - start) if SYNC else 0)

    def read(self, study: int, image: StoredImage) -> bytes:
        """The PNG of an image of this study."""
        part = self.part(study)
        if self._reading is None or self._reading[0] != part:
            self._reading = part, self._path(part).open("rb")
        self._reading[1].seek(image.start)
        png = self._reading[1].read(image.length)
        if hashlib.sha256(png).hexdigest() != image.digest:
            raise OSError(errno.EIO, "an image is damaged; start anew (--overwrite)", str(self._path(part)))
        return png

    def drop(self, until: int, written: Iterable[Path], pending: Mapping[str, tuple[bool, list[bytes]]]) -> None:
        """Delete the parts before `until`. What is needed of them was copied to `written` files or is `pending`: by
        the split that waits for it, whether this goes on from the last time, and the images that are new."""
        for file in written:
            with file.open("r+b") as stream:
                os.fsync(stream.fileno())
        for name, (more, images) in pending.items():
            with (self.folder / PENDING.format(name)).open("ab" if more else "wb") as out:
                out.writelines(len(png).to_bytes(4, "little") + png for png in images)
                _fsync(out)
        self._lines.append({"dropped": until})
        self.sync()
        for part in range(until):
            if self._path(part).exists():
                os.truncate(self._path(part), 0)  # a file that is open somewhere keeps its disk when it is deleted
                self._path(part).unlink()

    def close(self) -> None:
        """Bring to the disk what there is room for."""
        with suppress(OSError):
            self.sync()
        for stream in (self._journal, *self._parts.values(), *(self._reading or ())[1:]):
            with suppress(OSError):
                stream.close()

    def _path(self, part: int) -> Path:
        return self.folder / f"images-{part:02d}.bin"

    def _recover(self) -> None:
        """Take back the images of deleted parts from where a run that was killed meanwhile had copied them to."""
        wanted: dict[str, list[Key]] = {}
        for key in self._lost:
            if isinstance(image := self.found[key], StoredImage):
                wanted.setdefault(image.digest, []).append(key)
        copies = (self.folder.glob(place) for place in (f"{DATASET}/data/*.parquet", PENDING.format("*")))
        for file in sorted(chain.from_iterable(copies)):
            if wanted:
                for png in _pngs_in(file):
                    for key in wanted.pop(digest := hashlib.sha256(png).hexdigest(), ()):
                        image = self.found[key]
                        assert isinstance(image, StoredImage)
                        self.add(key, (png, digest, image.evidence, image.hint))
                self.sync()
            file.unlink()
        shutil.rmtree(self.folder / DATASET, ignore_errors=True)


def begin(folder: Path, mark: Mapping[str, str], out: Path, resume: bool, overwrite: bool) -> None:
    """Make the staging folder of `out` ready: for a run that goes on from the images in it, or a new one.

    Args:
        mark: What must be the same for a run to go on.
        resume, overwrite: Those of `hf_cxr.prepare`.

    Raises:
        FileExistsError: If images are there and may neither be gone on from nor deleted.
    """
    before = next((line for line, _ in _whole_lines(folder / JOURNAL)), {})
    if said := kept(folder):
        if not resume and not overwrite:
            raise FileExistsError(f"{out}: {said}, or start anew with --overwrite")
        changed = [name for name in mark if before.get(name) != mark[name]]
        if resume and changed and not overwrite:
            decoders = f"another decoder ({before.get('decoder')}, now {mark['decoder']})"
            why = decoders if "decoder" in changed else "another collection or other options"
            raise FileExistsError(f"{out}: the interrupted run had {why}; start anew with --overwrite")
        if resume and not changed:
            return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    with (folder / JOURNAL).open("wb") as journal:
        journal.write(json.dumps(mark).encode() + b"\n")
        _fsync(journal)


def kept(folder: Path) -> str:
    """What to say of the images that an interrupted run has left; "" if there are none."""
    lines = (line for line, _ in _whole_lines(folder / JOURNAL))
    number = len({tuple(line["key"]) for line in lines if isinstance(line.get("image"), list)})
    what = "1 image" if number == 1 else f"{number:,} images"
    return f"{what} of an interrupted run {'is' if number == 1 else 'are'} kept; go on with --resume" if number else ""


def _whole_lines(journal: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """Each line, and where it ends; none after the first that is torn."""
    if not journal.exists():
        return
    end = 0
    with journal.open("rb") as stream:
        for line in stream:
            end += len(line)
            try:
                content = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                content = None
            if not isinstance(content, dict):
                return
            yield content, end


def _pngs_in(file: Path) -> Iterator[bytes]:
    """Whatever looks like a PNG after its length in 4 bytes, as the values of a plain Parquet column do."""
    if file.stat().st_size == 0:
        return
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_SIGNATURE)
        while at >= 0:
            length = int.from_bytes(content[max(0, at - 4) : at], "little")
            yield content[at : at + length]
            at = content.find(_SIGNATURE, at + 1)


def _fsync(stream: IO[bytes]) -> None:
    stream.flush()
    os.fsync(stream.fileno())
