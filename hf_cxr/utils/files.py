"""Folders and files that are written whole or not at all: made beside their place, then moved into it. And where the
files lie that come with the package."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

if sys.platform != "win32":
    import fcntl

# How the name of a staging folder begins. One whose process was killed with no chance to clean up can be deleted.
HIDDEN = ".hf-cxr-"
ENDINGS = (signal.SIGINT, signal.SIGTERM)  # what a terminal, a scheduler or `docker stop` sends to end a process


@contextmanager
def staging_folder(out: Path, kept: Callable[[Path], str] | None = None) -> Iterator[Path]:
    """A temporary folder on the disk of `out` (in it, if it is there and empty), gone afterwards whatever happens.

    A process that is asked to end (SIGTERM, as a scheduler or `docker stop` sends) cleans up too.

    Args:
        kept: Folder → what to say of work in it that a later run can go on from, or "". Such a folder stays unless the
            work ends. It is used by one process at a time, and the next run gets the same.

    Raises `OSError`, naming `out`, if nothing can be written there, the disk is full or another process is at work.
    """
    place = _place(out)
    if not place.is_dir():
        raise NotADirectoryError(f"{out}: cannot be made, {place} is a file")
    said = ""
    with ExitStack() as stack:
        try:
            folder = Path(tempfile.mkdtemp(prefix=HIDDEN, dir=place)) if kept is None else _same_folder(out)
        except OSError as error:
            raise type(error)(f"{out}: cannot write to {place} ({error.strerror})") from None
        if kept is not None:
            stack.enter_context(_only_user(folder, out))
        try:
            with _ending_cleanly(folder, kept):
                yield folder
        except BaseException as error:
            said = kept(folder) if kept else ""
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise OSError(f"{out}: no space left on its disk; {said or 'nothing was written'}") from None
            if said and isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(said) from None
            if said and isinstance(error, OSError) and not error.errno and not isinstance(error, FileExistsError):
                raise OSError(f"{error}; {said}") from error
            if said and isinstance(error, ValueError):
                raise ValueError(f"{error}; {said}") from error
            raise
        finally:
            if not said:
                shutil.rmtree(folder, ignore_errors=True)


def _place(out: Path) -> Path:
    return out if out.is_dir() and is_empty(out) else next(parent for parent in out.parents if parent.exists())


def staging_of(out: Path) -> Path:
    """The staging folder that every run into `out` has whose work is kept, wherever it was or will be made."""
    name = f"{HIDDEN}{out.name}-{hashlib.sha256(os.fsencode(out)).hexdigest()[:8]}"
    there = (parent / name for parent in (out, *out.parents) if (parent / name).is_dir())
    return next(there, _place(out) / name)


def _same_folder(out: Path) -> Path:
    folder = staging_of(out)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or (sys.platform != "win32" and folder.stat().st_uid != os.geteuid()):
        raise PermissionError(errno.EPERM, f"{folder.name} there is a link, or another user's")
    return folder


@contextmanager
def _only_user(folder: Path, out: Path) -> Iterator[None]:
    """Lock a folder; `OSError` where another process has. Where folders cannot be locked, nobody is kept out."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        for left in range(10, -1, -1):  # the children of a process that was just killed may hold it for a moment
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not left:
                    raise FileExistsError(f"{out}: another process is preparing it; wait for it, or end it") from None
                time.sleep(0.1)
            except OSError:  # NFS
                break
        if not folder.exists():
            raise FileExistsError(f"{out}: another process has just finished preparing it")
        yield
    finally:
        os.close(handle)


def json_object(file: Path) -> dict[str, Any]:
    """The JSON object that a file holds.

    Raises `ValueError`, naming the file, if it holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: no JSON ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds no JSON object")
    return content


def replace_files(folder: Path, contents: Mapping[str, str | bytes]) -> None:
    """Write files of these names (perhaps in folders) into `folder`, made if need be: each whole or not at all, and
    none before all are written beside their places."""
    partials = {name: (folder / name).with_name(f".{Path(name).name}.partial") for name in contents}
    try:
        for name, partial in partials.items():
            partial.parent.mkdir(parents=True, exist_ok=True)
            content = contents[name]
            partial.write_bytes(content if isinstance(content, bytes) else content.encode())
        for name, partial in partials.items():
            partial.replace(folder / name)
    finally:
        for partial in partials.values():
            partial.unlink(missing_ok=True)


def commit(finished: Path, out: Path, check: Callable[[], None]) -> None:
    """Put `finished`, made in the staging folder of `out`, in its place; what is there already is replaced.

    `check` looks once more whether `out` may be written: someone else may have finished meanwhile.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    with undisturbed(), _alone_in(out.parent):
        check()
        _move(finished, out)


def _move(finished: Path, out: Path) -> None:
    if finished.is_relative_to(out):  # an empty folder, perhaps a mount point, that is filled and not replaced
        moved: list[Path] = []
        try:
            for entry in sorted(finished.iterdir()):
                moved.append(entry.rename(out / entry.name))
        except BaseException:
            for path in moved:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            raise
        return
    if os.path.ismount(out):
        raise OSError(f"{out}: is a mount point with files in it; empty it first, or choose a folder inside")
    replaced = finished.with_name("replaced")
    try:
        if out.exists():
            out.rename(replaced)
        finished.rename(out)
    except BaseException:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process moves something into `folder`. Where folders cannot be locked, nobody waits."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # NFS
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def is_empty(folder: Path) -> bool:
    """Whether a folder holds nothing but staging folders."""
    return all(path.name.startswith(HIDDEN) for path in folder.iterdir())


def check_free(
    out: Path, what: str, mark: str, *, overwrite: bool = True, known: Container[str] | None = None
) -> None:
    """Raise `FileExistsError` unless `out` may be written: nothing is there, an empty folder or, with `overwrite`,
    `what` was written there before: a folder that holds the file `mark` and, where given, only `known` names."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: is a file, not a folder to write to")
    if not out.exists() or is_empty(out):
        return
    if not overwrite:
        raise FileExistsError(f"{out}: holds files already; choose another folder, or overwrite it (--overwrite)")
    other = sorted(path.name for path in out.iterdir() if known is not None and path.name not in known)
    if other or not (out / mark).is_file():
        why = f"it holds {other[0]}" if other else f"no {mark}"
        raise FileExistsError(f"{out}: is not {what} ({why}), so it is not overwritten; choose another folder")


def packaged(name: str) -> Path:
    """A file or folder of the project that the wheel brings too, such as "configs" or "model_card.md": inside the
    package when installed, beside it in a checkout."""
    package = Path(__file__).parents[1]
    return package / name if (package / name).exists() else package.parent / name


@contextmanager
def _ending_cleanly(folder: Path, kept: Callable[[Path], str] | None) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    def end(signum: int, frame: Any) -> NoReturn:
        # No exception: raised amid the locks of a process pool, it could wait for ever.
        for child in multiprocessing.active_children():
            child.kill()
        if said := kept(folder) if kept else "":
            os.write(2, f"\nended by {signal.Signals(signum).name}; {said}\n".encode())
        else:
            shutil.rmtree(folder, ignore_errors=True)
        os._exit(128 + signum)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Put off Ctrl-C and SIGTERM for the moment; a process forked meanwhile hears neither until it says otherwise.

    A signal mask would not do: it holds for one thread, and the system gives the signal to any other of the process.
    """
    if threading.current_thread() is not threading.main_thread():  # the only one that Python interrupts
        yield
        return
    came: list[int] = []
    before = [(number, signal.signal(number, lambda number, frame: came.append(number))) for number in ENDINGS]
    try:
        yield
    finally:
        for number, handler in reversed(before):
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
