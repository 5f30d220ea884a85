"""Every image of a collection, read once: in parallel, and in one pass through each archive.

What comes out goes into a store on disk (`hf_cxr.data.store`). How one image is decoded lives in
`hf_cxr.inference.views`; who does it in `hf_cxr.data.scheduler`.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import stat
from collections.abc import Container, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets.utils import tqdm

from hf_cxr import __version__
from hf_cxr.data import archives, storage
from hf_cxr.data.embedded import embedded_images
from hf_cxr.data.png import png_of
from hf_cxr.data.scheduler import Workers, in_order
from hf_cxr.data.store import Store
from hf_cxr.data.study import MISSING, Archived, Embedded, Key, Radiograph, StoredImage, Study
from hf_cxr.inference.decoding import decoder
from hf_cxr.inference.view_evidence import pixel_evidence
from hf_cxr.inference.views import UnreadableImage, enough, read_with_hint, shrink

KILLED = "every process that read it was killed (out of memory?)"


@functools.cache
def worker() -> str:
    """What reads here: what the bytes of an image depend on, besides its file. All machines of a run have the same."""
    return f"hf-cxr {__version__}, {decoder()}"


def read_images(
    studies: Sequence[Study], size: int, store: Store, workers: Workers
) -> list[tuple[StoredImage | str, ...]]:
    """Read every image of every study that `store` does not know, and put it there: shrunk, as 8-bit grey PNG.

    Args:
        studies: Records with images, not opened.
        size: Longer side of a stored image in pixels, at most.
        store: Where they go, and perhaps some are.
        workers: Those who read. The result does not depend on them.

    Returns:
        For each study, in order, for each of its images: a `StoredImage`, or the reason why it cannot be read. That
        two processes were killed over it is one.

    Raises:
        ValueError: If an archive is broken or unsafe.
        OSError: If the store cannot be written, an archive or an address cannot be read, or a worker has another
            decoder or does not see the images.
    """
    total = sum(len(study.images) for study in studies)
    read = functools.partial(_read_elsewhere, worker()) if workers.remote else _read_one
    with tqdm(total=total, initial=len(store.found), desc="Reading images", unit=" images") as progress:
        for (s, i), outcome in in_order(read, jobs(studies, size, store.found), workers):
            if outcome != "":
                store.add((s, i), outcome or f"{studies[s].images[i].label}: {KILLED}")
            progress.update()
    store.sync()
    return [
        tuple(store.found.get((s, i), not_found(radiograph)) for i, radiograph in enumerate(study.images))
        for s, study in enumerate(studies)
    ]


def jobs(studies: Sequence[Study], size: int, known: Container[Key]) -> Iterator[tuple[Key, tuple[Any, ...]]]:
    """What is to be read: first the images that lie open, then each archive and each table in one pass."""
    wanted: dict[Path, dict[str, list[Key]]] = {}
    tables: dict[str, dict[Embedded, list[Key]]] = {}

    def job(key: Key, source: Any) -> tuple[Key, tuple[Any, ...]]:
        radiograph = studies[key[0]].images[key[1]]
        return key, (source, radiograph.label, radiograph.view is None, size)

    for s, study in enumerate(studies):
        for i, radiograph in enumerate(study.images):
            source = radiograph.source
            if (s, i) in known:
                continue
            if isinstance(source, Archived):
                wanted.setdefault(source.archive, {}).setdefault(source.key, []).append((s, i))
            elif isinstance(source, Embedded):
                tables.setdefault(source.table, {}).setdefault(source, []).append((s, i))
            elif not isinstance(source, (str, Path)) or storage.is_url(source) or _is_there(source):
                yield job((s, i), source)
    while wanted:
        archive = next(iter(wanted))
        missing = wanted.pop(archive)
        for keys, content in _members(archive, missing):
            for key in keys:
                yield job(key, content)
        for name, keys in missing.items():  # what it did not hold, another archive may
            for s, i in keys:
                places = _archives(studies[s].images[i])
                for place in places[places.index(archive) + 1 :][:1]:
                    wanted.setdefault(place, {}).setdefault(name, []).append((s, i))
    for table, images in tables.items():
        for image, content in embedded_images(table, images):
            for key in images[image]:
                yield job(key, content)


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


def not_found(radiograph: Radiograph) -> str:
    source = radiograph.source  # one that is known by its whole path is missing in an archive as it is in a folder
    archives = () if isinstance(source, Archived) and "/" in source.key else _archives(radiograph)
    places = " or ".join(archive.name for archive in archives) or radiograph.searched
    return f"{MISSING}{f' in {places}' if places else ''}: {radiograph.label}"


def _read_one(
    source: Any, label: str, unlabelled: bool, size: int
) -> tuple[bytes, str, float | None, str | None] | str:
    """PNG, digest, evidence and hint of an image, or the reason why it cannot be read; "" if it is not there."""
    try:
        if isinstance(source, str) and storage.is_url(source):
            source = storage.fetched(source)
        image, hint = read_with_hint(source, at_least=enough(size))
    except FileNotFoundError:
        return ""
    except UnreadableImage as error:
        said = str(source) if isinstance(source, (str, Path)) else "image bytes"
        return str(error).replace(said, label)
    image = shrink(image, size)
    low, high = image.getextrema()
    if low == high:
        return f"{label}: blank, every pixel has the same value"
    evidence = float(pixel_evidence(image)) if unlabelled else None
    png = png_of(image)
    return png, hashlib.sha256(png).hexdigest(), evidence, hint if unlabelled else None


def _read_elsewhere(expected: str, source: Any, *arguments: Any) -> Any:
    """`_read_one` on another machine, if that is like this one."""
    if (found := worker()) != expected:
        raise OSError(f"worker on {platform.node()}: it would read with {found}; this process reads with {expected}")
    if isinstance(source, (str, Path)) and not storage.is_url(source) and not _is_there(source):
        raise OSError(f"worker on {platform.node()}: does not see {source}; put the images where all workers see them")
    return _read_one(source, *arguments)
