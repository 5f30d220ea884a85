"""Cheap checks of what a user names, before anything heavy is imported: files and folders that should exist, Hub ids
that can be fetched, folders that can be written. No model or dataset is opened here."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import tempfile
import threading
from collections.abc import Iterable
from pathlib import Path

EXPORT = "export.json"  # marks the folder of an exported checkpoint, and tells how it was made
SECONDS = 3
"""How long the Hub has to answer at all."""
FULL, REFUSED = (errno.ENOSPC, errno.EDQUOT), (errno.EACCES, errno.EPERM, errno.EROFS)


def missing(given: str | os.PathLike, what: str = "file", folders: bool = False) -> str:
    """One line about a path that does not exist: the nearest name that does, or how far the path exists."""
    path, parts = Path(given).absolute(), Path(given).parts
    there = next(parent for parent in path.parents if parent.exists())
    absent = path.relative_to(there).parts
    listed = there.iterdir() if there.is_dir() and os.access(there, os.R_OK) else ()
    names = [entry.name for entry in listed if entry.is_dir() or not folders]
    if near := difflib.get_close_matches(absent[0], names, n=1):
        found = Path(*parts[: -len(absent)], near[0])
        whole = found.joinpath(*absent[1:])
        return f"{given}: no such {what}; did you mean {str(whole if whole.exists() else found)!r}?"
    if there != path.parent:
        return f"{given}: no such {what}; {there} has no {absent[0]!r}"
    few = f"; {there.name} has {', '.join(sorted(names))}" if 0 < len(names) < 6 else ""
    return f"{given}: no such {what}{few}"


def check_checkpoint(given: str | os.PathLike) -> None:
    """`check_place` for a checkpoint, whose weights lie beside its config."""
    if is_export(given):
        raise FileNotFoundError(
            f"{given}: an exported checkpoint, which hf-cxr predict and app run; name the run itself"
        )
    check_place(given, "checkpoint", "config.json")
    if Path(given).is_dir() and not [*Path(given).glob("*.safetensors*")]:
        if pickles := sorted(path.name for path in Path(given).glob("*.bin")):
            why = f"are a pickle ({pickles[0]}), which could run code"
            raise FileNotFoundError(
                f"{given}: its weights {why}; save them as safetensors (load, then save_pretrained)"
            )
        raise FileNotFoundError(f"{given}: its weights (model.safetensors) are missing; copy the whole folder again")


def is_export(given: str | os.PathLike) -> bool:
    """Whether a folder holds an exported checkpoint."""
    return (Path(given) / EXPORT).is_file()


def folder_of(checkpoint: str | os.PathLike, files: Iterable[str], revision: str | None = None) -> Path:
    """The folder of a checkpoint, or one with those `files` that its repository on the Hub holds."""
    if Path(checkpoint).is_dir():
        return Path(checkpoint)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(checkpoint), revision=revision, allow_patterns=list(files)))


def check_dataset(given: str | os.PathLike) -> None:
    """`check_place` for a prepared dataset."""
    check_place(given, "prepared dataset", "data/*.parquet", "; run hf-cxr prepare")


def check_place(given: str | os.PathLike, what: str, files: str = "*", otherwise: str = "") -> None:
    """Check that `given` is a folder with `files` in it, or a Hub id that is in the cache or may be had from the Hub.

    The Hub is asked for nothing that may be meant as a path: a name with no slash or several, one that starts with a
    dot or `~`, or with the name of a folder that is here.

    Args:
        what: the word for it in messages.
        otherwise: what to do about a folder without the files.

    Raises `OSError` with one line: the nearest name of a path, or why the Hub gives nothing.
    """
    name = str(given)
    if not name.strip():
        raise FileNotFoundError(f"no {what} is named")
    if Path(name).is_file():
        raise NotADirectoryError(f"{name}: is a file, not a folder with a {what}")
    if Path(name).exists():
        if not any(Path(name).glob(files)):
            raise FileNotFoundError(f"{name}: no {what} here ({files} is missing){otherwise}")
        return
    if is_cached(name):
        return
    owner, *rest = name.split("/")
    if len(rest) != 1 or not owner or not rest[0] or owner[0] in ".~" or "\\" in name:
        message = missing(name, what, folders=True)
        raise FileNotFoundError(message + ("" if message[-1] == "?" else "; and not a Hub id (user/name)"))
    if Path(owner).is_dir():
        why = f"taken for a path: the folder {owner!r} is here"
        raise FileNotFoundError(f"{missing(name, what, folders=True)} ({why})")
    if reason := unreachable():
        raise FileNotFoundError(f"{name}: no such {what} here, and not to be had from the Hub ({reason})")


def is_cached(name: str) -> bool:
    from huggingface_hub import constants

    folders = Path(constants.HF_HUB_CACHE)
    return any((folders / f"{kind}--{name.replace('/', '--')}").is_dir() for kind in ("models", "datasets"))


def unreachable() -> str | None:
    """Why the Hub cannot be reached, told within seconds; `None` if it can."""
    import ssl
    import urllib.error
    import urllib.request

    from huggingface_hub import constants

    if constants.is_offline_mode():
        return "not in the cache, and HF_HUB_OFFLINE forbids to ask"
    answer = f"did not answer within {SECONDS} s"

    def ask() -> None:
        nonlocal answer
        try:
            urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=SECONDS).close()
            answer = ""
        except urllib.error.HTTPError:
            answer = ""
        except OSError as error:
            reason = getattr(error, "reason", error)
            certificate = isinstance(reason, ssl.SSLError)  # there is a server; the rest is for the Hub's client
            answer = "" if certificate else f"cannot be reached: {getattr(reason, 'strerror', None) or reason}"

    asking = threading.Thread(target=ask, daemon=True)  # looking up a name knows no time limit
    asking.start()
    asking.join(SECONDS + 1)
    return f"{constants.ENDPOINT} {answer}" if answer else None


def check_writable(folder: str | os.PathLike) -> None:
    """Check that `folder`, or the one that it would be made in, takes files. Makes nothing.

    Raises `OSError` with one line that names the folder.
    """
    out = Path(folder)
    place = next(path for path in (out, *out.absolute().parents) if path.exists())
    if not place.is_dir():
        raise NotADirectoryError(f"{folder}: cannot be written to, {place} is a file, not a folder")
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
    except OSError as error:
        raise OSError(f"{folder}: cannot be written to ({advice(error, place)})") from None


def advice(error: OSError, place: str | os.PathLike) -> str:
    """What the system says of a file or folder that could not be written, and what to do."""
    if error.errno in FULL:
        return f"the disk of {place} is full; free some space, or choose another folder"
    advised = error.errno in REFUSED or os.path.isdir(place)  # noqa: PTH112 (a name too long is an error to pathlib)
    hint = "; choose another folder, or change its permissions" if advised else ""
    return f"{place}: {(error.strerror or str(error)).lower()}{hint}"


def is_full(error: Exception, place: str | os.PathLike) -> bool:
    """Whether an error came of a disk of `place` without space left. Not every library says so."""
    if isinstance(error, OSError):
        return error.errno in FULL or "Not enough disk space" in str(error)
    there = next(path for path in (Path(place), *Path(place).absolute().parents) if path.exists())
    return "os error 28" in str(error) or (isinstance(error, RuntimeError) and shutil.disk_usage(there).free < 1 << 20)
