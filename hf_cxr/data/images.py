"""Every image of a collection, read once: in parallel, and in one pass through each archive.

What comes out are small PNG files one after the other in a store on disk, and per image what the rest of the kit
needs to know of it. How one image is decoded lives in `hf_cxr.inference.views`.
"""

from __future__ import annotations

import ctypes
import hashlib
import multiprocessing
import signal
import stat
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datasets.utils import tqdm

from hf_cxr.data import archives
from hf_cxr.data.png import png_of
from hf_cxr.data.study import MISSING, Archived, Radiograph, StoredImage, Study
from hf_cxr.data.view_labels import pixel_evidence
from hf_cxr.inference.views import UnreadableImage, enough, read_with_hint, shrink
from hf_cxr.utils.files import ENDINGS, undisturbed

AHEAD = 8  # images in work or waiting per process: bounds the memory, whatever the size of the collection
PR_SET_PDEATHSIG = 1  # linux/prctl.h
KILLED = "the process that read it was killed, twice (out of memory?)"

Key = tuple[int, int]  # (index of the study, index of the image in it)


def read_images(
    studies: Sequence[Study], size: int, store: Path, num_proc: int = 1
) -> list[tuple[StoredImage | str, ...]]:
    """Read every image of every study and append it, shrunk and as 8-bit grey PNG, to the file `store`.

    Args:
        studies: Records with images, not opened.
        size: Longer side of a stored image in pixels, at most.
        store: The file to make.
        num_proc: Processes that read. The result does not depend on it.

    Returns:
        For each study, in order, for each of its images: a `StoredImage`, or the reason why it cannot be read. That
        two processes were killed over it is one.

    Raises:
        ValueError: If an archive is broken or unsafe.
        OSError: If the store cannot be written or an archive cannot be read.
    """
    found: dict[Key, StoredImage | str] = {}
    total = sum(len(study.images) for study in studies)
    with store.open("wb") as stream, tqdm(total=total, desc="Reading images", unit=" images") as progress:
        start = 0
        for key, outcome in _in_order(_read_one, _jobs(studies, size), num_proc):
            result, reason = outcome or (None, f"{studies[key[0]].images[key[1]].label}: {KILLED}")
            if result is None:
                found[key] = reason
            else:
                png, digest, evidence, hint = result
                stream.write(png)
                found[key] = StoredImage(start, len(png), digest, evidence, hint)
                start += len(png)
            progress.update()
    return [
        tuple(found.get((s, i), _not_found(radiograph)) for i, radiograph in enumerate(study.images))
        for s, study in enumerate(studies)
    ]


def _jobs(studies: Sequence[Study], size: int) -> Iterator[tuple[Key, tuple[Any, ...]]]:
    """What is to be read: first the images that lie open, then each archive in one pass."""
    wanted: dict[Path, dict[str, list[Key]]] = {}
    for s, study in enumerate(studies):
        for i, radiograph in enumerate(study.images):
            source = radiograph.source
            if isinstance(source, Archived):
                wanted.setdefault(source.archive, {}).setdefault(source.key, []).append((s, i))
            elif not isinstance(source, (str, Path)) or _is_there(source):
                yield (s, i), (source, radiograph.label, radiograph.view is None, size)
    while wanted:
        archive = next(iter(wanted))
        missing = wanted.pop(archive)
        for keys, content in _members(archive, missing):
            for s, i in keys:
                radiograph = studies[s].images[i]
                yield (s, i), (content, radiograph.label, radiograph.view is None, size)
        for name, keys in missing.items():  # what it did not hold, another archive may
            for s, i in keys:
                places = _archives(studies[s].images[i])
                for place in places[places.index(archive) + 1 :][:1]:
                    wanted.setdefault(place, {}).setdefault(name, []).append((s, i))


def _is_there(path: str | Path) -> bool:
    """Whether to open it. What speaks against reading it (too long a name, no permission), the reader says."""
    try:
        mode = Path(path).stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError):
        return True
    return stat.S_ISREG(mode) or stat.S_ISDIR(mode)  # to open a pipe would wait for ever


def _members(archive: Path, missing: dict[str, list[Key]]) -> Iterator[tuple[list[Key], bytes]]:
    """One pass: who asks for a member of the archive (no longer in `missing` then), and its content."""

    def asked_for(name: str) -> str | None:
        parts = name.split("/")
        spellings = (*("/".join(parts[i:]) for i in range(len(parts))), archives.image_key(name))
        return next((key for key in spellings if key in missing), None)

    for name, content in archives.members(archive, lambda name: asked_for(name) is not None):
        yield missing.pop(str(asked_for(name))), content  # of two members of one name the first is taken


def _archives(radiograph: Radiograph) -> tuple[Path, ...]:
    source = radiograph.source
    return (source.archive, *source.others) if isinstance(source, Archived) else ()


def _not_found(radiograph: Radiograph) -> str:
    places = " or ".join(archive.name for archive in _archives(radiograph))
    return f"{MISSING}{f' in {places}' if places else ''}: {radiograph.label}"


def _read_one(source: Any, label: str, unlabelled: bool, size: int) -> tuple[tuple | None, str]:
    """(PNG, digest, evidence, hint), or `None` and the reason; runs in a process of its own."""
    try:
        image, hint = read_with_hint(source, at_least=enough(size))
    except UnreadableImage as error:
        said = str(source) if isinstance(source, (str, Path)) else "image bytes"
        return None, str(error).replace(said, label)
    image = shrink(image, size)
    low, high = image.getextrema()
    if low == high:
        return None, f"{label}: blank, every pixel has the same value"
    evidence = pixel_evidence(image) if unlabelled else None
    png = png_of(image)
    return (png, hashlib.sha256(png).hexdigest(), evidence, hint if unlabelled else None), ""


def _in_order(
    function: Callable[..., Any], jobs: Iterable[tuple[Key, tuple[Any, ...]]], num_proc: int
) -> Iterator[tuple[Key, Any]]:
    """`(key, function(*arguments))` of each job, in the order of the jobs, never more than a few of them in memory.

    Where a process is killed, the jobs that were in work or waiting are done again, each alone in a process of its
    own. One that kills two of these gives `None`.
    """
    if num_proc <= 1:
        for key, arguments in jobs:
            yield key, function(*arguments)
        return
    jobs = iter(jobs)
    waiting: deque[tuple[Key, tuple[Any, ...], Future | None]] = deque()
    while True:
        with suppress(BrokenProcessPool), _workers(num_proc) as pool:
            for key, arguments in jobs:
                waiting.append((key, arguments, None))  # before `submit`, which may find the pool broken
                waiting[-1] = key, arguments, pool.submit(function, *arguments)
                if len(waiting) >= AHEAD * num_proc:
                    yield _first(waiting)
            while waiting:
                yield _first(waiting)
            return
        while waiting:
            key, arguments, future = waiting.popleft()
            if future is None or not future.done() or future.exception():
                yield key, _alone(function, arguments)
            else:
                yield key, future.result()


def _first(waiting: deque[tuple[Key, tuple[Any, ...], Any]]) -> tuple[Key, Any]:
    """Key and result of the first job, which waits no more; it stays if its process was killed."""
    key, _, future = waiting[0]
    result = future.result()
    waiting.popleft()
    return key, result


def _alone(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    for _ in range(2):  # it may have waited only while another job killed the process
        with suppress(BrokenProcessPool), _workers(1) as pool:
            return pool.submit(function, *arguments).result()
    return None


def _serve() -> None:
    """A reading process ends when its pool does, and with its parent, whatever ends that; never on its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in ENDINGS:  # put off when this process was forked, and without effect from here on
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _workers(num_proc: int) -> Iterator[ProcessPoolExecutor]:
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else None  # as `datasets` does it
    pool = ProcessPoolExecutor(num_proc, multiprocessing.get_context(method), initializer=_serve)
    try:
        with undisturbed():  # half started, or with a child that was ended before it listens, the pool would hang
            pool.submit(int)  # starts the processes
        yield pool
    finally:
        for process in list((getattr(pool, "_processes", None) or {}).values()):
            process.kill()  # it may wait for a lock that another held when it was killed
        pool.shutdown(cancel_futures=True)
