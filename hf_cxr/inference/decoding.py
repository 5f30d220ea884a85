"""Which libraries decode an image file, and the one that decodes a plain PNG faster than Pillow where it is installed.

A checkpoint brings this file beside `views.py`, which says what becomes of the pixels. PNG is lossless: the pixels are
the same whoever decodes them.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from PIL import Image, features

kornia: Any = None
try:
    from kornia_rs import __version__ as kornia_version
    from kornia_rs import io as installed
except ImportError:
    kornia_version = ""
else:
    kornia = installed

# Bits, colour type, compression, filter and interlace of a header: the function that decodes it, and what it is told.
PLAIN = {
    b"\x08\0\0\0\0": ("decode_image_png_u8", "mono"),
    b"\x10\0\0\0\0": ("decode_image_png_u16", "mono"),
    b"\x08\x02\0\0\0": ("decode_image_png_u8", "rgb"),
}
# Chunks that change no pixel. A text may hold the orientation, in one of two well-known forms.
HARMLESS = {b"IHDR", b"IDAT", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"bKGD", b"pHYs", b"tIME"}
TEXTS, ORIENTED = {b"tEXt", b"zTXt", b"iTXt"}, (b"Raw profile type ", b"XML:com.adobe.xmp")


def decoder() -> str:
    """The libraries that pixels, and the bytes of the PNG made of them, may depend on, each with its version."""
    versions = {
        "Pillow": Image.__version__,
        "libjpeg-turbo": features.version_feature("libjpeg_turbo"),
        "OpenJPEG": features.version_codec("jpg_2000"),
        "libtiff": features.version_codec("libtiff"),
        "WebP": features.version_module("webp"),
        "zlib": zlib.ZLIB_RUNTIME_VERSION,
        "kornia-rs": kornia and kornia_version,
    }
    for name in ("numpy", "pydicom", "pyjpegls"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return ", ".join(f"{name} {said}" for name, said in versions.items() if said)


def plain_png(content: bytes, size: tuple[int, int]) -> np.ndarray | None:
    """The pixels of a PNG file, grey (`uint8` or `uint16`) or RGB (`uint8`), decoded three times as fast as by Pillow.

    Args:
        content: The whole file.
        size: (width, height) as Pillow read them.

    Returns:
        Shape (height, width) or (height, width, 3); or `None`, and Pillow is to be asked: another kind of PNG,
        transparent or turned, damaged, or there is no such decoder here.
    """
    function, mode = PLAIN.get(content[24:29], ("", ""))
    decode = getattr(kornia, function, None)
    if decode is None or not _has_nothing_but_pixels(content):
        return None
    try:
        pixels = decode(content, size[::-1], mode)
        return pixels[:, :, 0] if mode == "mono" else pixels
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a panic in Rust is no Exception
        return None


def _has_nothing_but_pixels(content: bytes) -> bool:
    at = 8
    while (kind := content[at + 4 : at + 8]) != b"IEND":
        if kind not in HARMLESS and (kind not in TEXTS or content.startswith(ORIENTED, at + 8)):
            return False
        at += 12 + int.from_bytes(content[at : at + 4], "big")
    return True
