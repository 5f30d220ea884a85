"""What can be seen to fail before an image is opened: the folder to make, and the disk that it needs.

Which records can be used, and in which split, is checked in `hf_cxr.data.choice`."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hf_cxr.data.storage import is_url
from hf_cxr.data.study import Study
from hf_cxr.utils.files import HIDDEN, check_free

DENSITY = 0.4
"""Bytes that a stored image takes per pixel of a square of its longer side: 0.30 to 0.44 at 224 and 384, real ones."""
GROWTH = 2.5
"""An image that is no larger than it is stored takes at most so many times its own file; small JPEG take 2.4."""
PEAK = 1.2
"""What a preparation needs at its height, in sizes of its result."""
SURE = 3
"""The estimate is never so many times too large, where files of images could be looked at."""
SAMPLE = 200

log = logging.getLogger(__name__)


def check_output(out: Path, places: Iterable[Any], overwrite: bool = False) -> None:
    """Raise `OSError` (`FileExistsError`) unless `out` may be made or replaced: see `hf_cxr.utils.files.check_free`.
    It must not hold any of the `places` that are read, which would be replaced with it."""
    inside = next((p for p in places if p and not is_url(p) and Path(p).resolve().is_relative_to(out.resolve())), None)
    if inside is not None:
        raise FileExistsError(f"{out}: holds {inside}, which is to be read; choose another folder")
    check_free(out, "a prepared dataset", "prepare.json", overwrite=overwrite)
    parent = _existing(out)
    if not parent.is_dir():
        raise NotADirectoryError(f"{out}: cannot be made, {parent} is a file")
    if not os.access(parent, os.W_OK):
        raise PermissionError(f"{out}: cannot write to {parent}")


def disk_needed(studies: Sequence[Study], size: int) -> tuple[int, bool]:
    """Bytes that the images take, each with a longer side of at most `size` pixels, and whether files of some were
    looked at. Files that are not there count as none."""
    sources = [radiograph.source for study in studies for radiograph in study.images]
    files = [source for source in sources if isinstance(source, (str, Path)) and not is_url(source)]
    each = DENSITY * size**2
    if not files:
        return round(PEAK * each * len(sources)), False
    looked_at = files[:: max(1, len(files) // SAMPLE)]
    share = sum(min(each, GROWTH * _length(file)) for file in looked_at) / len(looked_at)
    return round(PEAK * (share * len(files) + each * (len(sources) - len(files)))), True


def check_disk(studies: Sequence[Study], size: int, folder: Path) -> None:
    """Warn if the disk of `folder`, or of its staging folder, has less than `disk_needed`; `OSError` if it has so
    little that this is sure. What lies there already, an interrupted run has written, and is not needed again."""
    needed, sure = disk_needed(studies, size)
    written = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    place = _existing(folder)
    free = shutil.disk_usage(place).free + written
    if free >= needed:
        return
    said = f"{place}: its disk has {free / 1e9:,.2f} GB free, and about {needed / 1e9:,.2f} GB are needed"
    if sure and free * SURE < needed:
        raise OSError(f"{said}; choose another disk, or a smaller --size")
    log.warning(said)


def _length(file: str | Path) -> int:
    try:
        return Path(file).stat().st_size
    except (OSError, ValueError):  # ValueError: a NUL in its name
        return 0


def _existing(path: Path) -> Path:
    """The path itself, or the nearest around it that there is and that is no staging folder."""
    path = path.absolute()
    return next(p for p in (path, *path.parents) if p.exists() and not any(n.startswith(HIDDEN) for n in p.parts))
