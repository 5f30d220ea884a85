"""Pixels: read one radiograph to 8-bit grey, and pack the two views of a study on one canvas.

A checkpoint brings this file as remote code, so it imports only the standard library, numpy and Pillow, and
`dicom.py`, which comes with it, when a DICOM file is met. Which file of a study is the frontal view is decided in
`hf_cxr.data.selection`. Safe to call from several threads and processes.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps, UnidentifiedImageError

from .decoding import plain_png
from .levels import eight_bits, levels_of, looked_up, stretch, strips

VIEWS = ("frontal", "lateral")
"""The views of a study, in the order of their panels on a canvas: left, right."""
ViewSource = str | Path | bytes | Image.Image | np.ndarray | Callable[[], Image.Image | np.ndarray]

MAX_PIXELS = 100_000_000
"""Larger images are refused before they are decoded (a decompression bomb). The largest flat-panel detectors for
chest radiography give under 20 million pixels."""

STORED = 384
"""Pixels of the longer side at which `hf-cxr prepare` stores an image where nobody says otherwise."""

# The bitmap formats radiographs are exchanged in. An allow-list, because Pillow would run Ghostscript on an EPS file.
FORMATS = ("PNG", "JPEG", "JPEG2000", "TIFF", "BMP", "GIF", "WEBP", "PPM")


class UnreadableImage(ValueError):
    """An image that cannot be read. The message is one line: which image, and what is wrong with it."""


def read_radiograph(source: ViewSource, *, at_least: int | None = None) -> Image.Image:
    """Read one radiograph as 8-bit grey, upright, as large as it is stored.

    Args:
        source: A path, encoded bytes (PNG, JPEG, TIFF, …, DICOM), a Pillow image of any mode, an array of shape
            (height, width) or (height, width, 1 | 3 | 4), or a callable that returns an image or an array.
        at_least: Allow a JPEG to be decoded at 1/8 of its size, as long as its longer side keeps this many pixels, or
            at 1/4 or 1/2, as long as it keeps half as many again. Other formats ignore it.

    Returns:
        A Pillow image of mode "L": pixels only, no metadata. Colour becomes luma (ITU-R 601-2); transparency is laid
        on black; the EXIF orientation is applied. Eight-bit values are kept as they are; so are those of an array of
        another type that are all from 0 to 255 (integers) or from 0 to 1 (floats, which are multiplied by 255). Deeper
        integers and other floats, and 16-bit images whatever their values, are stretched linearly so that their
        0.5th and 99.5th percentile become 0 and 255: the container's range says little (12 bits in 16), and one hot
        pixel must not darken the rest. There NaN becomes black, and a constant image is black.

        DICOM: modality LUT or rescale, then the first VOI LUT or window, MONOCHROME1 inverted, then stretched in the
        same way whatever the depth; padding is black. The stretch follows a window too, so that the same plate
        exported with and without a window, or with the full-range window that many machines write, gives the same
        image. A window that leaves under a quarter of the pixels unclipped is wrong, and is ignored. Where a spacing
        or the aspect ratio says that pixels are not square, the side on which they are narrower is scaled down until
        they are. PresentationLUTShape says once more what the photometric interpretation says, and is not read.

    Raises:
        UnreadableImage: For every failure: no such file, zero bytes, not an image, truncated, more than `MAX_PIXELS`
            pixels, an array of another shape, several images in one file (pages, animation, DICOM frames), 16-bit
            colour or a coloured DICOM file. Of a DICOM header no word is in the message, nor in a log or a warning.
        TypeError: If `source` is none of the above.
    """
    return read_with_hint(source, at_least=at_least)[0]


def read_with_hint(source: ViewSource, *, at_least: int | None = None) -> tuple[Image.Image, str | None]:
    """What `read_radiograph` returns, and "frontal" or "lateral" where a DICOM header says so, else `None`.

    A weak hint: in the Indiana collection a third of the headers say nothing, and some laterals are called "PA".
    """
    if isinstance(source, (str, Path)):
        return _read_file(Path(source), at_least)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _decode(io.BytesIO(source), "image bytes", at_least)
    if isinstance(source, Image.Image):
        return _to_grey(source, _line(str(getattr(source, "filename", "") or "image"))), None
    if isinstance(source, np.ndarray):
        return _array_to_grey(eight_bits(source), "array"), None
    if callable(source):
        return read_with_hint(called(source))
    raise TypeError(f"a view is a path, bytes, an image, an array or a callable, not {type(source).__name__}")


def called(source: Callable[[], Image.Image | np.ndarray]) -> Image.Image | np.ndarray:
    """The image that a callable returns; `UnreadableImage` if it fails, or returns something else."""
    name = getattr(source, "__name__", type(source).__name__)
    try:
        made = source()
    except Exception as error:
        raise UnreadableImage(_line(f"{name}: {type(error).__name__}: {error}")) from error
    if not isinstance(made, (Image.Image, np.ndarray)):
        raise UnreadableImage(f"{name}: returned {type(made).__name__}, not an image or an array")
    return made


def fit_panel(image: Image.Image, size: int) -> Image.Image:
    """Fit an image into a square panel: aspect ratio kept, centred, black around it. Mode "L", `size` × `size`."""
    _check_size(size)
    if image.mode != "L":
        image = read_radiograph(image)
    width, height = _scaled(image.size, size)
    panel = Image.new("L", (size, size))
    panel.paste(_resize(image, (width, height)), ((size - width) // 2, (size - height) // 2))
    return panel


def shrink(image: Image.Image, size: int) -> Image.Image:
    """Scale an image down until its longer side is `size` pixels; a smaller one is returned as it is."""
    _check_size(size)
    if max(image.size) <= size:
        return image
    return _resize(image, _scaled(image.size, size))


def pack_views(frontal: ViewSource | None, lateral: ViewSource | None, size: int = 224) -> Image.Image:
    """The canvas a model looks at: frontal view on the left panel, lateral view on the right one.

    Args:
        frontal, lateral: Anything `read_radiograph` reads; `None` (a view the study does not have) is a black panel.
        size: Side of one panel in pixels.

    Returns:
        A Pillow image of `2 * size` × `size` pixels (width × height), mode "RGB" with three equal channels, so that a
        stock image processor takes it.

    Raises:
        ValueError: If both views are `None`, or `size` is not a positive integer.
        UnreadableImage: If a view cannot be read.
    """
    return Image.fromarray(pack_array(frontal, lateral, size)).convert("RGB")


def shown_of(views: Mapping[str, Image.Image], size: int, panels: int) -> tuple[Image.Image, list[str]]:
    """What an image processor gets of a study, mode "RGB", and which views that shows: the canvas of both for two
    panels; for one the `single_view` itself, for the image processor to resize or crop.

    Raises `ValueError` for a study without views.
    """
    if panels > 1 or not views:
        return pack_views(views.get("frontal"), views.get("lateral"), size), list(views)
    name = single_view(views)
    return views[name].convert("RGB"), [name]


def single_view(views: Container[str]) -> str:
    """The one view of those that a study has that a checkpoint of one square image is shown: the frontal one, or the
    lateral one where there is no other."""
    return next(name for name in VIEWS if name in views)


def pack_array(frontal: ViewSource | None, lateral: ViewSource | None, size: int = 224) -> np.ndarray:
    """The grey canvas of `pack_views` itself: `uint8`, shape (size, 2 * size)."""
    _check_size(size)
    if frontal is None and lateral is None:
        raise ValueError("a study needs at least one view: both frontal and lateral are None")
    canvas = np.zeros((size, 2 * size), dtype=np.uint8)
    for view, left in ((frontal, 0), (lateral, size)):
        if view is not None:
            canvas[:, left : left + size] = np.asarray(fit_panel(read_radiograph(view, at_least=enough(size)), size))
    return canvas


def single_array(frontal: ViewSource | None, lateral: ViewSource | None, size: int) -> np.ndarray:
    """The `single_view` as the image processor of a checkpoint of one square image, trained here, stretches it:
    `uint8`, shape (size, size)."""
    views = {name: view for name, view in zip(VIEWS, (frontal, lateral), strict=True) if view is not None}
    image = read_radiograph(views[single_view(views)])
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def enough(size: int) -> int:
    """Pixels that the longer side of a JPEG keeps where it will be fitted into `size`.

    A smaller panel asks for as many as `STORED` does, because what a model learned from was stored at that size first.
    One in a hundred may lack: of the commonest detector, 3,056 pixels long, 382 are left for 384.
    """
    size = max(size, STORED)
    return size - size // 100


def _check_size(size: int) -> None:
    if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
        raise ValueError(f"size is a positive number of pixels, not {size!r}")


def _scaled(size: tuple[int, int], longer: int) -> tuple[int, int]:
    """(width, height) with the longer side `longer` and the same aspect ratio; no side below one pixel."""
    scale = longer / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _resize(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    # reducing_gap: a box filter by a whole factor first, bicubic for the rest. Twice as fast as bicubic alone from
    # 1024 to 384 pixels, and within 48 dB (PSNR) of it: one grey level.
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=1.2)


def _read_file(path: Path, at_least: int | None) -> tuple[Image.Image, str | None]:
    name = _line(str(path))
    try:
        with path.open("rb") as stream:
            return _decode(stream, name, at_least)
    except FileNotFoundError:
        raise UnreadableImage(f"{name}: no such file") from None
    except IsADirectoryError:
        raise UnreadableImage(f"{name}: is a folder, not an image") from None
    except UnreadableImage:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path, half a character
        raise UnreadableImage(_line(f"{name}: {getattr(error, 'strerror', None) or error}")) from error


def _decode(stream: BinaryIO, name: str, at_least: int | None) -> tuple[Image.Image, str | None]:
    head = stream.read(132)
    stream.seek(0)
    if not head:
        raise UnreadableImage(f"{name}: zero bytes")
    if head[128:] == b"DICM" or name.lower().endswith((".dcm", ".dicom")):
        return _read_dicom(stream, name)
    try:
        image = Image.open(stream, formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise UnreadableImage(f"{name}: too large (more than {MAX_PIXELS:,} pixels)") from None
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name}: not an image of a known format") from error
    except Exception as error:  # Pillow's plugins raise whatever the broken header makes them raise
        raise UnreadableImage(_line(f"{name}: not an image that can be read ({error})")) from error
    with image:
        try:
            # The further images of an MPO, the JPEG of some cameras, are previews.
            several = getattr(image, "is_animated", False) and image.format != "MPO"
        except Exception as error:
            raise UnreadableImage(_line(f"{name}: truncated or damaged ({error})")) from error
        if several:
            raise UnreadableImage(f"{name}: several images in one file (pages or animation); one is expected")
        if not image.mode.startswith("I") and image.tile and re.search(r";16[BLN]", str(image.tile[0][3])):
            raise UnreadableImage(f"{name}: 16 bits a channel, with colour or alpha, cannot be read; save it as grey")
        _check_pixels(*image.size, name)
        if at_least is not None:
            image.draft("L" if image.mode == "RGB" else image.mode, _draft(image.size, at_least))
        if image.format == "PNG" and (pixels := _png(stream, image.size)) is not None:
            return _array_to_grey(pixels, name), None
        grey = _to_grey(image, name)
        # Pillow knows TIFF's WhiteIsZero for up to eight bits only.
        if image.mode.startswith("I") and getattr(image, "tag_v2", {}).get(262) == 0:
            grey = ImageOps.invert(grey)
        return grey, None


def _draft(size: tuple[int, int], at_least: int) -> tuple[int, int]:
    """The size to decode a JPEG at. Each pixel at 1/8 is the mean of a block: as good a filter as any, and what speaks
    to the antialiasing filter after it at 1/4 or 1/2 (docs/data.md)."""
    scale = next((scale for scale, spare in ((8, 1), (4, 1.5), (2, 1.5)) if max(size) >= scale * spare * at_least), 1)
    return max(1, size[0] // scale), max(1, size[1] // scale)


def _png(stream: BinaryIO, size: tuple[int, int]) -> np.ndarray | None:
    at = stream.tell()
    stream.seek(0)
    pixels = plain_png(stream.read(), size)
    stream.seek(at)
    return pixels


def _check_pixels(width: int, height: int, name: str) -> None:
    if width * height == 0:
        raise UnreadableImage(f"{name}: no pixels")
    if width * height > MAX_PIXELS:
        raise UnreadableImage(f"{name}: too large ({width} × {height}; the limit is {MAX_PIXELS:,} pixels)")


def _to_grey(image: Image.Image, name: str) -> Image.Image:
    _check_pixels(*image.size, name)
    try:
        with _whole_files_only:
            image.load()
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # `exif_transpose` copies even an upright image
            image = ImageOps.exif_transpose(image)
        width, height = image.size

        def strip(part: slice) -> Image.Image:
            return image.crop((0, part.start, width, part.stop))

        if image.mode.startswith(("I", "F")):
            return _stretch(lambda part: np.asarray(strip(part)), (height, width), name)
        if image.mode == "L" and not image.has_transparency_data:
            grey = image.copy()
            grey.info = {}  # comments and colour profiles, which would be saved with it
            return grey
        grey = Image.new("L", image.size)
        for part in strips((height, width)):
            some = strip(part)
            if some.has_transparency_data:
                some = Image.alpha_composite(Image.new("RGBA", some.size, "black"), some.convert("RGBA"))
            elif some.mode not in ("L", "1", "RGB"):
                some = some.convert("RGB")
            grey.paste(some.convert("L"), (0, part.start))
        return grey
    except UnreadableImage:
        raise
    except Exception as error:
        raise UnreadableImage(_line(f"{name}: truncated or damaged ({error})")) from error


class _WholeFilesOnly:
    """Undo `LOAD_TRUNCATED_IMAGES`, which other libraries switch on: half a radiograph filled with grey is a lie.

    The switch belongs to the whole process: the first thread that comes in turns it, the last one out turns it back.
    """

    def __init__(self) -> None:
        self.lock, self.inside, self.before = threading.Lock(), 0, False

    def __enter__(self) -> None:
        with self.lock:
            if self.inside == 0:
                self.before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, False
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if self.inside == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self.before


_whole_files_only = _WholeFilesOnly()
if hasattr(os, "register_at_fork"):  # a forked child must not wait for a thread that only its parent has
    os.register_at_fork(after_in_child=_whole_files_only.__init__)  # type: ignore[misc]


def _array_to_grey(array: np.ndarray, name: str) -> Image.Image:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise UnreadableImage(f"{name}: shape {array.shape} is not (height, width) or (height, width, 1 | 3 | 4)")
    _check_pixels(array.shape[1], array.shape[0], name)
    if array.dtype.kind not in "buif":
        raise UnreadableImage(f"{name}: pixels of type {array.dtype} are not numbers")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == bool:
        array = array.astype(np.uint8) * 255
    if array.dtype == np.uint8:
        return _to_grey(Image.fromarray(np.ascontiguousarray(array)), name)
    if array.ndim == 3 and array.shape[2] == 4:
        raise UnreadableImage(f"{name}: an array with an alpha channel must be uint8, not {array.dtype}")
    luma = np.array([0.299, 0.587, 0.114], dtype=np.float32)
    pixels = array.__getitem__ if array.ndim == 2 else lambda part: array[part].astype(np.float32) @ luma
    return _stretch(pixels, array.shape[:2], name)


def _stretch(pixels: Callable[[slice], np.ndarray], shape: tuple[int, int], name: str) -> Image.Image:
    grey = stretch(pixels, shape)
    if grey is None:
        raise UnreadableImage(f"{name}: no finite pixel value")
    return Image.fromarray(grey)


def _read_dicom(stream: BinaryIO, name: str) -> tuple[Image.Image, str | None]:
    from .dicom import read_frame

    with _whole_files_only:
        frame = read_frame(stream, MAX_PIXELS)
    if isinstance(frame, str):
        raise UnreadableImage(f"{name}: {frame}")
    if frame.places.ndim != 2:  # a damaged header
        raise UnreadableImage(f"{name}: DICOM pixels are not one grey frame")
    levels = levels_of(frame.values, frame.counts)
    levels[frame.counts == 0] = 0
    grey = Image.fromarray(looked_up(levels, frame.places))
    if abs(frame.aspect - 1) >= 0.01:  # pixels that are not square: less of what is narrower
        width, height = grey.width / max(1, frame.aspect), grey.height * min(1, frame.aspect)
        grey = _resize(grey, (max(1, round(width)), max(1, round(height))))
    return grey, frame.view


def _line(text: str) -> str:
    return " ".join(text.split())
