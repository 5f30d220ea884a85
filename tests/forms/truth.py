"""What the makers of published forms know of the trees they make, and the images and tables in them."""

from __future__ import annotations

import csv
import functools
import io
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass
class Truth:
    """One study as a reader of its collection should find it."""

    uid: str
    patient: str
    texts: dict[str, str]
    images: list[tuple[str, str | None, str]]  # name, view, projection
    split: str | None = None
    tags: tuple[str, ...] = ()
    age: float | None = None
    sex: str = ""
    turn: int = 0  # which of the patient's studies it is
    left_out: str = ""  # the step of the preparation report that it does not pass
    extra: dict = field(default_factory=dict)


@functools.cache
def pixels(key: str, deep: bool = False) -> bytes:
    """A PNG of its own for each key, of 64 × 64 pixels of 8 or 16 bits."""
    random = np.random.default_rng(zlib.crc32(key.encode()))
    grey = random.integers(0, 4096 if deep else 256, (64, 64), dtype=np.uint16 if deep else np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(grey).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_csv(path: Path, rows: Iterable[dict]) -> None:
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
