"""Fetch the archives of a public collection: resumed where they stopped, and put in place only when whole.

While NAME is fetched there is NAME.part; `.NAME.json` says which version of the remote file it is a part of, and
`.NAME.lock` keeps a second process out. Whatever interrupts a download, the next call goes on from there.
Our own, since none of huggingface_hub, fsspec, pooch, parfive and pypdl sends If-Range or looks at Content-Range.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import filelock
import requests
import urllib3
from tqdm.auto import tqdm

from hf_cxr import __version__
from hf_cxr.data import archives
from hf_cxr.utils.files import json_object, replace_files

RETRIES = 6  # attempts in a row that bring no byte more before a file is given up
BACKOFF = 1.0  # seconds before the first of them is repeated; doubled each time
LONGEST_WAIT = 300.0  # seconds at most, whatever a server's Retry-After asks for
TIMEOUT = (15.0, 30.0)  # seconds for a connection to open, and for a silent one to be given up
CHUNK = 1 << 16

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Collection:
    """Where a collection is published, and on which terms."""

    url: str  # the folder of the files
    files: Mapping[str, str]  # part → file name
    licence: str
    licence_url: str
    terms: str  # what the licence forbids, in the words of a warning
    checksums: Mapping[str, str] = field(default_factory=dict)  # file name → SHA-256, where the publisher states one


# As many projects use them; the publisher's page is https://openi.nlm.nih.gov/faq. It states no checksum, so a file is
# verified by the length that the server states and by the archive's own checksum. Each report names the licence.
COLLECTIONS = {
    "openi": Collection(
        url="https://openi.nlm.nih.gov/imgs/collections/",
        files={"reports": "NLMCXR_reports.tgz", "png": "NLMCXR_png.tgz", "dcm": "NLMCXR_dcm.tgz"},
        licence="CC BY-NC-ND 4.0",
        licence_url="https://creativecommons.org/licenses/by-nc-nd/4.0/",
        terms="no commercial use, and no passing on of anything made from it, such as resized images, cleaned texts "
        "or a prepared dataset",
    ),
}


class DownloadError(OSError):
    """A file that could not be fetched. The message is one line: which file, why, and what is kept."""


class _Broken(Exception):
    """An attempt that failed in a way that another one may not: (the reason, the seconds to wait if a server says)."""


def download(
    collection: str,
    out: str | Path,
    *,
    accept_licence: bool = False,
    parts: Sequence[str] = ("reports", "png"),
    workers: int = 4,
    unpack: bool = False,
    base_url: str | None = None,
) -> list[Path]:
    """Fetch parts of a collection into the folder `out`, several files at a time.

    A file that an earlier call has verified is not read again. One that came otherwise is taken if it is whole.

    Args:
        collection: One of `COLLECTIONS`.
        out: Folder, made if need be.
        accept_licence: You have read the licence and accept it. Without that nothing is fetched.
        parts: Which of the collection's files.
        workers: Files at a time, each over one connection.
        unpack: Also unpack each archive, into the folder of its name without ".tgz"; one that is there stays.
        base_url: A mirror: another folder with files of the same names.

    Returns:
        The archives, or with `unpack` the folders, in the order of `parts`.

    Raises:
        ValueError: For an unknown collection or part, if the licence is not accepted, or if a file in `out` that was
            not fetched by us is damaged.
        DownloadError: If a file cannot be had. The others are fetched all the same.
    """
    if collection not in COLLECTIONS:
        raise ValueError(f"unknown collection {collection!r}; there is {', '.join(COLLECTIONS)}")
    chosen = COLLECTIONS[collection]
    parts = list(dict.fromkeys(parts))
    unknown = next((part for part in parts if part not in chosen.files), None)
    if unknown or not parts:
        what = f"unknown part {unknown!r}" if unknown else "no part"
        raise ValueError(f"{what} of {collection}; choose from {', '.join(chosen.files)}")
    if workers < 1:
        raise ValueError(f"workers is a positive number, not {workers!r}")
    if not accept_licence:
        raise ValueError(
            f"{collection} is licensed {chosen.licence} ({chosen.licence_url}): {chosen.terms}; "
            "read it and accept it with --accept-licence"
        )
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    url = (base_url or chosen.url).rstrip("/") + "/"
    stop = threading.Event()
    names = [chosen.files[part] for part in parts]
    fetches = [_Fetch(url + name, out / name, chosen.checksums.get(name), i, stop) for i, name in enumerate(names)]
    errors: list[BaseException] = []
    with ThreadPoolExecutor(min(workers, len(fetches))) as pool:
        jobs = [pool.submit(fetch.run, unpack) for fetch in fetches]
        try:
            for number, job in enumerate(as_completed(jobs), start=1):
                if error := job.exception():
                    errors.append(error)
                    if number < len(jobs):
                        log.error("%s (the other files go on)", error)
        except BaseException:  # Ctrl-C: the threads end at their next chunk, the parts stay
            stop.set()
            raise
    if errors:
        raise errors[-1]
    return [job.result() for job in jobs]


class _Fetch:
    """One file on its way from `url` to `target`."""

    def __init__(self, url: str, target: Path, checksum: str | None, position: int, stop: threading.Event) -> None:
        self.url, self.target, self.checksum, self.position, self.stop = url, target, checksum, position, stop
        self.part = target.with_name(f"{target.name}.part")
        self.notes = target.with_name(f".{target.name}.json")

    def run(self, unpack: bool) -> Path:
        """Fetch, verify, put in place, and unpack; returns where it is."""
        lock = filelock.FileLock(self.target.with_name(f".{self.target.name}.lock"), timeout=0)
        try:
            with lock:
                if not self.is_verified():
                    self.fetch()
                return self.unpacked() if unpack else self.target
        except filelock.Timeout:
            raise DownloadError(f"{self.target}: another process is fetching it; nothing was done") from None
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            hint = "free some space and run it again to go on"
            raise DownloadError(f"{self.target}: the disk is full; {hint}") from error

    def is_verified(self) -> bool:
        """Whether the file is in place: fetched by us, or found whole."""
        if not self.target.exists():
            return False
        stat = self.target.stat()
        if self.read_notes().get("verified") != [stat.st_size, stat.st_mtime_ns]:
            try:
                self.verify(self.target)
            except ValueError as error:
                raise ValueError(f"{error}; it was there before: remove it to have it fetched") from error
            self.seal()
        return True

    def fetch(self) -> None:
        """Attempt after attempt, as long as they bring the file forward."""
        with tqdm(desc=self.target.name, unit="B", unit_scale=True, position=self.position) as bar:
            best, failures = self.size(), 0
            while True:
                try:
                    self.attempt(bar)
                    break
                except _Broken as broken:
                    reason, delay = broken.args
                    # A server that breaks off and ignores ranges makes progress each time, but never more.
                    failures = 1 if self.size() > best else failures + 1
                    best = max(best, self.size())
                    if failures >= RETRIES:
                        raise self.error(f"{reason}; given up after {failures} attempts") from broken
                    delay = min(BACKOFF * 2 ** (failures - 1) if delay is None else delay, LONGEST_WAIT)
                    bar.set_postfix_str(f"{reason}; again in {delay:.0f} s")
                    self.stop.wait(delay)
            bar.set_postfix_str("verifying")
            try:
                self.verify(self.part)
            except archives.UnsafeArchive as error:
                raise self.error(f"fetched, and refused: {error}") from error
            except ValueError as error:
                self.discard()
                raise DownloadError(f"{self.url}: what came was damaged, and removed: {error}") from error
            bar.set_postfix_str("")
        self.part.replace(self.target)
        self.seal()

    def attempt(self, bar: tqdm[Any]) -> None:
        """One request for what is missing. Returns when `part` is complete; raises `_Broken` where trying again may
        help, `DownloadError` where it will not."""
        self.check_stop()
        bar.set_postfix_str("")
        notes, have = self.read_notes(), self.size()
        whole = notes.get("size")
        if have and have == whole:
            return
        if have and (not notes or (whole is not None and have > whole)):
            self.discard()  # not known to be a part of anything
            have = 0
        headers = {"User-Agent": f"hf-cxr/{__version__}", "Accept-Encoding": "identity"}
        if have:
            headers["Range"] = f"bytes={have}-"
            etag = notes.get("etag") or "W/"  # If-Range takes no weak ETag
            if validator := (notes.get("modified") if etag.startswith("W/") else etag):
                headers["If-Range"] = validator
        try:
            with requests.get(self.url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
                size = self.accept(answer, have, notes)
                bar.reset(size)
                bar.update(self.size())
                self.receive(answer, bar)
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            if isinstance(error, ValueError):
                raise self.error(str(error)) from error  # an address that is none
            raise _Broken(f"connection failed ({type(error).__name__}: {_cause(error)})", None) from error
        if size is not None and self.size() != size:
            raise _Broken(f"connection closed after {self.size():,} of {size:,} bytes", None)

    def accept(self, answer: requests.Response, have: int, notes: dict[str, Any]) -> int | None:
        """Make `part` and the notes ready for the body of an answer; returns the size of the whole file, if known."""
        status, headers = answer.status_code, answer.headers
        if status == 416:
            self.discard()
            raise _Broken("the remote file is shorter than what was fetched of it", None)
        if status in (408, 425, 429) or status >= 500:
            wait = None
            with suppress(urllib3.exceptions.InvalidHeader):
                wait = urllib3.Retry().get_retry_after(answer.raw)
            raise _Broken(f"the server answered {status} {answer.reason[:99]}", wait)
        if status not in (200, 206):
            raise self.error(f"the server answered {status} {answer.reason}")
        if headers.get("Content-Type", "").startswith("text/html"):
            raise self.error("the server answered with a web page (of a proxy or a log-in?)")
        new: dict[str, Any] = {"etag": headers.get("ETag"), "modified": headers.get("Last-Modified")}
        if status == 200:
            new["size"] = size = _number(headers.get("Content-Length"))
        else:
            sent = headers.get("Content-Range", "nothing")
            match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", sent.strip())
            size = _number(match[3]) if match else None
            if not match or not have or int(match[1]) != have or (size is not None and int(match[2]) != size - 1):
                raise self.error(f"asked for the bytes from {have} on, the server sent {sent[:80]!r}")
            new["size"] = size
            if any(None not in (notes.get(name), value) and notes[name] != value for name, value in new.items()):
                self.discard()
                raise _Broken("the remote file has changed", 0.0)
            size = notes.get("size") or size
            new = {**notes, "size": size}
        needed, free = (size or 0) - have, shutil.disk_usage(self.target.parent).free
        if needed > free:
            raise self.error(f"{needed:,} bytes are to come, but the disk has {free:,} free")
        if status == 200:
            self.notes.unlink(missing_ok=True)
            self.part.write_bytes(b"")
        self.write_notes(new)
        return size

    def receive(self, answer: requests.Response, bar: tqdm[Any]) -> None:
        # Unbuffered: whatever ends the process, what came is in the file. As sent: some servers call a .tgz a
        # gzip-encoded tar, and decoding that would give another file.
        with self.part.open("ab", buffering=0) as stream:
            for chunk in answer.raw.stream(CHUNK, decode_content=False):
                self.check_stop()
                if stream.write(chunk) != len(chunk):
                    raise OSError(errno.ENOSPC, "short write")
                bar.update(len(chunk))

    def verify(self, path: Path) -> None:
        """`ValueError` unless the file is a whole archive with the published checksum, if there is one."""
        if self.checksum:
            digest = hashlib.sha256()
            with path.open("rb") as stream:
                while chunk := stream.read(1 << 20):
                    digest.update(chunk)
                    self.check_stop()
            if digest.hexdigest() != self.checksum:
                raise ValueError(f"{path}: SHA-256 is {digest.hexdigest()}, published is {self.checksum}")
        for _ in archives.members(path, lambda name: self.check_stop()):
            pass

    def unpacked(self) -> Path:
        folder = self.target.with_name(re.sub(r"(\.tar)?\.[^.]+$", "", self.target.name))
        if not folder.is_dir() or not any(folder.iterdir()):
            archives.extract(self.target, folder, lambda name: not self.check_stop())
        return folder

    def check_stop(self) -> bool:
        if self.stop.is_set():
            raise CancelledError
        return False

    def size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def discard(self) -> None:
        self.notes.unlink(missing_ok=True)
        self.part.unlink(missing_ok=True)

    def read_notes(self) -> dict[str, Any]:
        try:
            return json_object(self.notes)
        except (FileNotFoundError, ValueError):
            return {}

    def write_notes(self, notes: dict[str, Any]) -> None:
        replace_files(self.notes.parent, {self.notes.name: json.dumps(notes)})

    def seal(self) -> None:
        """Note that the file in place is whole."""
        stat = self.target.stat()
        self.write_notes({"verified": [stat.st_size, stat.st_mtime_ns]})

    def error(self, reason: str) -> DownloadError:
        kept = f"; {self.size():,} bytes are kept in {self.part.name}" if self.size() else ""
        return DownloadError(f"{self.url}: {reason}{kept}")


def _number(text: str | None) -> int | None:
    return int(text) if text and text.strip().isdecimal() else None


def _cause(error: BaseException) -> str:
    """The innermost reason, which requests and urllib3 wrap several times."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    return " ".join(str(error).split())[:150] or type(error).__name__
