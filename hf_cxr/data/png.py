"""The PNG file that a prepared dataset stores of an image: byte for byte Pillow's, in half of its time."""

from __future__ import annotations

import zlib

import numpy as np
from PIL import Image

IDAT = 1 << 16  # bytes of a chunk of pixels


def png_of(image: Image.Image) -> bytes:
    """An image of mode "L" as PNG, compressed with zlib's run-length strategy: ten times as fast as its default, and
    no larger (docs/data.md)."""
    deflate = zlib.compressobj(strategy=zlib.Z_RLE, memLevel=9)
    pixels = deflate.compress(_filtered(np.asarray(image)).tobytes()) + deflate.flush()
    length = max(IDAT, 4 * image.width)
    header = image.width.to_bytes(4, "big") + image.height.to_bytes(4, "big") + b"\x08\0\0\0\0"
    chunks = [pixels[at : at + length] for at in range(0, len(pixels), length)]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (_chunk(b"IHDR", header), *(_chunk(b"IDAT", some) for some in chunks), _chunk(b"IEND", b""))
    )


def _chunk(kind: bytes, content: bytes) -> bytes:
    return len(content).to_bytes(4, "big") + kind + content + zlib.crc32(kind + content).to_bytes(4, "big")


def _filtered(grey: np.ndarray) -> np.ndarray:
    """`uint8`, (height, 1 + width): each row by that filter, whose number leads it, that leaves the least numbers."""
    height, width = grey.shape
    padded = np.zeros((height + 1, width + 1), dtype=np.int16)
    padded[1:, 1:] = grey
    left, above, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    by_left, by_above, paeth = left - corner, above - corner, padded[1:, 1:] - corner
    far, from_left, from_above = np.abs(by_left + by_above), np.abs(by_above), np.abs(by_left)
    is_left = (from_left <= from_above) & (from_left <= far)
    paeth -= by_left * is_left  # products are five times as fast here as np.where
    paeth -= by_above * ((from_above <= far) > is_left)
    kinds = {0: grey, 2: grey - padded[:-1, 1:].astype(np.uint8), 1: grey - left.astype(np.uint8)}
    kinds[4] = paeth.astype(np.uint8)
    sums = [np.minimum(kind, -kind).sum(axis=1, dtype=np.int64) for kind in kinds.values()]
    best = np.argmin(sums, axis=0)  # the first of equals, in Pillow's order
    rows = np.empty((height, width + 1), dtype=np.uint8)
    for order, (number, kind) in enumerate(kinds.items()):
        chosen = best == order
        rows[chosen, 0], rows[chosen, 1:] = number, kind[chosen]
    return rows
