"""Frontal, lateral or no upright chest film at all: what the pixels say, by a small fitted network in plain numpy.

A checkpoint brings this file as remote code. The weights are in `view_weights.py`, which
`benchmarks/fit_view_evidence.py` writes; how names and headers are weighed with them is in `hf_cxr.data.view_labels`.
"""

from __future__ import annotations

import base64
import math
from functools import cache
from typing import NamedTuple

import numpy as np
from PIL import Image

from .view_weights import SHAPES, WEIGHTS

GRID = 64
"""Pixels a side of what the network sees."""
LEAST_SIDE = 24
"""Pixels. A smaller image says nothing."""
LEAST_NEITHER = 128
"""Pixels a side. A smaller image, a stamp of a film perhaps, is never called no chest film."""
MOST = 4.0
"""Bound of the log-odds of a frontal view."""
NEITHER = -3.0
"""Log-odds of a chest film below which an image counts as none."""


class ViewEvidence(NamedTuple):
    """Log-odds (natural logarithm); 0 says nothing."""

    frontal: float
    """Frontal against lateral, -`MOST` to `MOST`."""
    chest: float
    """An upright chest film of either view against anything else."""

    @property
    def neither(self) -> bool:
        """Whether it is surely no upright chest film."""
        return self.chest < NEITHER


def view_of_pixels(image: Image.Image) -> ViewEvidence:
    """What the pixels of an image (mode "L", any size) say of its view. About 1 ms; the same for its mirror image."""
    grid = standard_grid(image)
    if grid is None:
        return ViewEvidence(0.0, 0.0)
    both = np.stack([grid, grid[:, ::-1]])
    frontal, chest = network(both).mean(0).tolist()
    frontal = max(-MOST, min(MOST, frontal)) / (1 + math.exp(-chest))  # of what may be no chest it says less
    return ViewEvidence(frontal, chest if min(image.size) >= LEAST_NEITHER else max(0.0, chest))


def pixel_evidence(image: Image.Image) -> float:
    """Log-odds that an image (mode "L") is frontal, at most `MOST`; NaN for what is surely no upright chest film."""
    evidence = view_of_pixels(image)
    return float("nan") if evidence.neither else evidence.frontal


def standard_grid(image: Image.Image) -> np.ndarray | None:
    """The image without flat borders as `GRID` × `GRID` ranks of brightness, -1 to 1; `None` where it shows nothing.

    Ranks do not change with brightness, contrast or gamma. The aspect ratio is not kept.
    """
    if min(image.size) < LEAST_SIDE:
        return None
    small = image.resize((2 * GRID, 2 * GRID), Image.Resampling.BOX, reducing_gap=1.0)
    levels = np.asarray(small, dtype=np.float32)
    flat = max(1.0, 0.02 * float(np.ptp(levels)))
    rows, columns = (np.flatnonzero(levels.std(axis) > flat) for axis in (1, 0))
    if min(len(rows), len(columns)) < GRID // 2:
        return None
    box = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    pixels = np.asarray(small.resize((GRID, GRID), Image.Resampling.BOX, box=box)).ravel()
    counts = np.bincount(pixels, minlength=256)
    ranks = (counts.cumsum() - 0.5 * (counts + 1)) * (2 / pixels.size) - 1
    return ranks[pixels].astype(np.float32).reshape(GRID, GRID)


def network(grids: np.ndarray) -> np.ndarray:
    """Log-odds (images, 2), frontal and chest, of grids (images, `GRID`, `GRID`)."""
    states, layers = grids[..., None], _layers()
    for weights, bias in layers:
        if weights.ndim == 4:  # a convolution of stride 2: (side, side, inputs, outputs)
            side = weights.shape[0]
            edge = (side // 2, side // 2)
            padded = np.pad(states, ((0, 0), edge, edge, (0, 0)))
            patches = np.lib.stride_tricks.sliding_window_view(padded, (side, side), (1, 2))[:, ::2, ::2]
            states = patches.transpose(0, 1, 2, 4, 5, 3).reshape(*patches.shape[:3], -1)
            weights = weights.reshape(-1, weights.shape[-1])
        else:
            states = states.reshape(len(states), -1)
        states = states @ weights + bias
        if weights is not layers[-1][0]:
            np.maximum(states, 0, out=states)
    return states


@cache
def _layers() -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and bias of each layer. In the text they are, of each, a scale and a bias per output (float32), then
    the weights (int8)."""
    content, start, layers = base64.b85decode("".join(WEIGHTS.split())), 0, []
    for shape in SHAPES:
        outputs, number = shape[-1], int(np.prod(shape))
        scale, bias = np.frombuffer(content, "<f4", 2 * outputs, start).reshape(2, outputs)
        weights = np.frombuffer(content, np.int8, number, start + 8 * outputs).reshape(shape)
        layers.append((weights * scale, bias))
        start += 8 * outputs + number
    return layers
