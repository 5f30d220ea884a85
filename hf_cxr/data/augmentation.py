"""Augmentation that is safe for chests: small rotation, scale, shift and contrast of one panel.

Never a flip: the heart's side and the side of a finding are part of the truth. Black stays black, so an empty panel
stays empty and the border of a fitted view does not light up.
"""

from __future__ import annotations

import math

import numpy as np
from PIL import Image

# The largest changes, at strength 1. A patient stands a few degrees askew and nearer or farther; exposure varies.
ROTATION = 7.0  # degrees
SCALE = 0.10  # relative
SHIFT = 0.05  # of the panel's side
GAIN = 0.15  # relative
GAMMA = 0.25  # exponent between 1 / (1 + GAMMA) and 1 + GAMMA


def augment_panel(panel: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """A changed copy of one panel: `uint8`, (side, side), the same shape. All draws come from `rng`."""
    angle, scale, shift_x, shift_y, gain, gamma = rng.uniform(-strength, strength, 6)
    side = panel.shape[0]
    turn, zoom = math.radians(ROTATION * angle), 1 + SCALE * scale
    cosine, sine = math.cos(turn) / zoom, math.sin(turn) / zoom
    centre = (side - 1) / 2
    x, y = centre + SHIFT * side * shift_x, centre + SHIFT * side * shift_y
    # Pillow maps each pixel of the result to the place in the source that it comes from.
    affine = (cosine, sine, centre - cosine * x - sine * y, -sine, cosine, centre + sine * x - cosine * y)
    moved = Image.fromarray(panel).transform((side, side), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)
    return _contrast(1 + GAIN * gain, (1 + GAMMA) ** gamma)[np.asarray(moved)]


def _contrast(gain: float, gamma: float) -> np.ndarray:
    """A table of 256 grey levels that keeps black black."""
    levels = 255 * gain * (np.arange(256) / 255) ** gamma
    return np.clip(np.rint(levels), 0, 255).astype(np.uint8)
