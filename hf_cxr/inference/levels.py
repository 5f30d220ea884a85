"""Numbers of any range as 8-bit grey levels; the rule stands in `views.read_radiograph`. No image file is met here.

A checkpoint brings this file beside `views.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import accumulate

import numpy as np

STRIP = 1 << 20  # pixels that are worked on at once, so that what is made of them on the way takes little memory
CACHE = 1 << 15  # pixels that are looked up at once


def eight_bits(array: np.ndarray) -> np.ndarray:
    """An array as `uint8` where its numbers are those of an 8-bit image in a larger type; else as it is. Floats may
    leave 0 to 1 a little, as interpolated ones do; NaN becomes 0."""
    if array.dtype.kind not in "iuf" or array.dtype == np.uint8 or not array.size or array.ndim < 2:
        return array
    # The least and the greatest number; NaN, which compares false, if there is none.
    least, most = (reduce.reduce(array, axis=None) for reduce in (np.fmin, np.fmax))
    if array.dtype.kind == "f" and least >= -1e-3 and most <= 1 + 1e-3:
        return _in_strips(array.shape, lambda part: np.rint(np.nan_to_num(array[part], nan=0).clip(0, 1) * 255))
    return array.astype(np.uint8) if array.dtype.kind != "f" and least >= 0 and most <= 255 else array


def stretch(pixels: Callable[[slice], np.ndarray], shape: tuple[int, int]) -> np.ndarray | None:
    """Numbers of any range as grey, `uint8` of this shape; `None` if none of them is finite.

    Args:
        pixels: Gives some of the rows.
    """
    parts = list(strips(shape))
    dtype = pixels(parts[0]).dtype
    if dtype == np.uint16:
        return _by_counts(pixels, shape, 1 << 16)
    if dtype.kind in "iu":
        least = min(int(pixels(part).min()) for part in parts)
        most = max(int(pixels(part).max()) for part in parts)
        if most - least < 1 << 16:

            def index(part: slice) -> np.ndarray:
                some = pixels(part)
                unsigned = (some - some.dtype.type(least)).view(f"u{some.itemsize}")  # a signed difference may wrap
                return unsigned.astype(np.uint16, copy=False)  # earlier numpys count no 64-bit values without a sign

            return _by_counts(index, shape, most - least + 1)

    def finite(part: slice) -> np.ndarray:
        some = pixels(part).astype(np.float32)
        return some[np.isfinite(some)]

    seen = [0, *accumulate(finite(part).size for part in parts)]
    if not seen[-1]:
        return None
    step = max(1, seen[-1] // 1_000_000)
    sample = np.concatenate([finite(part)[-i % step :: step].copy() for part, i in zip(parts, seen, strict=False)])
    low, high = (float(value) for value in np.percentile(sample, (0.5, 99.5)))
    if low == high:  # almost all of it is background
        low = min(float(finite(part).min(initial=low)) for part in parts)
        high = max(float(finite(part).max(initial=high)) for part in parts)
    return _in_strips(shape, lambda part: _spread(pixels(part).astype(np.float32), low, high))


def _by_counts(places: Callable[[slice], np.ndarray], shape: tuple[int, int], number: int) -> np.ndarray:
    """The same of `uint16` numbers below `number`, exactly."""
    counts = np.zeros(number, dtype=np.int64)
    for part in strips(shape):
        counts += np.bincount(places(part).ravel(), minlength=number)
    levels = levels_of(np.arange(number), counts)
    return _in_strips(shape, lambda part: looked_up(levels, places(part)))


def strips(shape: tuple[int, ...]) -> Iterator[slice]:
    """The rows of an image, as many at a time as `STRIP` pixels need."""
    rows = max(1, STRIP // max(1, math.prod(shape[1:])))
    return (slice(top, min(top + rows, shape[0])) for top in range(0, shape[0], rows))


def _in_strips(shape: tuple[int, ...], make: Callable[[slice], np.ndarray]) -> np.ndarray:
    """`uint8` of this shape, made some rows at a time."""
    made = np.empty(shape, dtype=np.uint8)
    for part in strips(shape):
        made[part] = make(part)
    return made


def levels_of(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """What `stretch` makes of each of `values`, where `values[i]` occurs `counts[i]` times; not all counts are 0."""
    values = values.astype(np.float64)
    occurring = np.sort(values[counts > 0])
    order = np.argsort(values, kind="stable")
    below = counts[order].cumsum()
    low, high = (values[order[np.searchsorted(below, share * below[-1])]] for share in (0.005, 0.995))
    if low == high:
        low, high = occurring[0], occurring[-1]
    return _spread(values, low, high)


def looked_up(levels: np.ndarray, places: np.ndarray) -> np.ndarray:
    """`levels[places]`, a cache of them at a time: numpy makes 64-bit numbers of places."""
    made, places = np.empty(places.shape, dtype=np.uint8), np.ascontiguousarray(places)
    for some, to in zip(*(np.split(a.ravel(), range(CACHE, a.size, CACHE)) for a in (places, made)), strict=True):
        levels.take(some, out=to, mode="clip")
    return made


def _spread(values: np.ndarray, low: float, high: float) -> np.ndarray:
    if low == high:
        return np.zeros(values.shape, dtype=np.uint8)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return np.rint((np.clip(values, low, high) - low) * (255 / (high - low))).astype(np.uint8)
