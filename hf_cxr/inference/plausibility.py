"""Can this image be a chest radiograph at all? Doubts in words; what a model makes of an image lives elsewhere.

A checkpoint brings this file as remote code, so it imports only the standard library, numpy, Pillow and its
neighbours. What the pixels say of the view is in `view_evidence.py`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .levels import eight_bits
from .view_evidence import view_of_pixels

LEAST_SIDE = 32
"""Pixels. Below it a thorax cannot be told from a stamp."""
LARGEST_RATIO = 2.5
"""Longer to shorter side. In the DICOM headers of the Indiana collection (7,469 images) the largest is 1.71."""
LEAST_RANGE = 3
"""Grey levels of 256 between the darkest and the brightest pixel."""
MOST_COLOUR = 12.0
"""Mean distance between the largest and the smallest channel, in levels of 256. Greys have 0, photographs 30 to 80."""
SURE = 3.0
"""Log-odds of the other view from which on an image is taken to show it."""
SAMPLE = 64  # pixels a side of what colour is measured on


def doubts(source: Any, grey: Image.Image, view: str | None = None) -> list[str]:
    """What speaks against `source` being a chest radiograph, or this view of one; empty where nothing does.

    Args:
        source: what was read: a path, bytes, a Pillow image or an array; a callable's result, not the callable.
        grey: `read_radiograph(source)`.
        view: "frontal" or "lateral", as which it is given; `None`: not known.
    """
    found = []
    width, height = grey.size
    if min(grey.size) < LEAST_SIDE:
        found.append(f"only {width} × {height} pixels")
    elif max(grey.size) > LARGEST_RATIO * min(grey.size):
        found.append(f"{width} × {height} pixels, longer than a chest radiograph is")
    if np.ptp(np.asarray(grey)) < LEAST_RANGE:
        found.append("all pixels have one value")
    elif colour(source) > MOST_COLOUR:
        found.append("a colour image, not a radiograph")
    return found or _doubts_of_view(grey, view)


def _doubts_of_view(grey: Image.Image, view: str | None) -> list[str]:
    evidence = view_of_pixels(grey)
    if evidence.neither:
        return ["does not look like an upright chest radiograph"]
    for other, odds in (("frontal", evidence.frontal), ("lateral", -evidence.frontal)):
        if view and view != other and odds > SURE and evidence.chest > 0:
            return [f"looks like a {other} view, not a {view} one"]
    return []


def colour(source: Any) -> float:
    """How coloured an image is: the mean of max − min over its channels, 0 (grey) to 255."""
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] < 3:
            return 0.0
        source = Image.fromarray(_eight_bits(source[:, :, :3]))
    if isinstance(source, Image.Image):
        return _colour(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    if not isinstance(source, (str, Path, io.BytesIO)):
        return 0.0
    try:
        with Image.open(source) as image:
            image.draft("RGB", (SAMPLE, SAMPLE))
            return _colour(image)
    except Exception:  # DICOM, or what `read_radiograph` has its own word for
        return 0.0


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Numbers as `read_radiograph` takes them, all channels alike."""
    array = eight_bits(array)
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    values = array.astype(np.float32)
    low, high = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    levels = (np.nan_to_num(values, nan=low) - low) * (255 / max(high - low, 1e-30))
    return levels.clip(0, 255).astype(np.uint8)


def _colour(image: Image.Image) -> float:
    if image.mode in ("1", "L", "LA", "F") or image.mode.startswith("I"):
        return 0.0
    small = np.asarray(image.convert("RGB").resize((SAMPLE, SAMPLE), Image.Resampling.BOX), dtype=np.float32)
    return float(np.ptp(small, axis=2).mean())
