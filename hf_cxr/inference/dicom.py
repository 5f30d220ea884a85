"""One greyscale image out of a DICOM file, and the view its header names. Nothing else leaves this file.

It comes with a checkpoint beside `views.py`, which calls it: standard library and numpy, and pydicom (the extra
`dicom`) when a file is read. What becomes of the values, 8-bit grey, is decided in `views.py`.
"""

from __future__ import annotations

import io
import logging
import os
import re
import threading
import warnings
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, NamedTuple

import numpy as np

# All that is ever read of a DICOM header: nothing in it names a patient.
TAGS = [
    *("ViewPosition", "PatientOrientation"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
]

# Which decoder is asked for a compressed image, whatever else is installed: the pixels must not depend on that. GDCM
# is not among them: on damaged JPEG Lossless, JPEG 2000 and baseline frames it aborts the whole process.
# fmt: off
DECODERS = {
    "1.2.840.10008.1.2": "", "1.2.840.10008.1.2.1": "", "1.2.840.10008.1.2.2": "",  # not compressed
    "1.2.840.10008.1.2.1.99": "",  # deflated: inflated in `_header`
    "1.2.840.10008.1.2.5": "pydicom",  # RLE
    "1.2.840.10008.1.2.4.50": "pillow", "1.2.840.10008.1.2.4.51": "pillow",  # JPEG of 8 bits; Pillow reads no 12
    "1.2.840.10008.1.2.4.57": "lossless", "1.2.840.10008.1.2.4.70": "lossless",  # here `_decode_lossless_jpeg`
    "1.2.840.10008.1.2.4.80": "pyjpegls", "1.2.840.10008.1.2.4.81": "pyjpegls",  # JPEG-LS
    "1.2.840.10008.1.2.4.90": "pillow", "1.2.840.10008.1.2.4.91": "pillow",  # JPEG 2000
}
# fmt: on

# Every logger of pydicom and of the decoders: to switch off a parent would not silence its children.
LOGGERS = (
    *("pydicom", "pydicom.pixels.utils", "pydicom.pixels.decoders.base", "pydicom.pixels.encoders.base"),
    *("jpeg_ls", "jpeg_ls.CharLS", "jpeg_ls._CharLS", "PIL"),
)


class Frame(NamedTuple):
    """An image: `values[places]`, brighter where greater. `values[i]` occurs `counts[i]` times, padding 0 times."""

    places: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    view: str | None


class Refused(ValueError):
    """Says what is wrong with a file without a word of its header; never leaves this module."""


def read_frame(stream: BinaryIO, max_pixels: int) -> Frame | str:
    """The image of a DICOM file, or in a few words why there is none.

    The reason is returned, not raised: pydicom's exceptions quote header values, and neither the cause nor the context
    of what the caller raises may lead back to them.
    """
    with _silence():
        try:
            return _frame(stream, max_pixels)
        except Refused as error:
            return str(error)
        except Exception as error:
            return f"not a DICOM image, or truncated or damaged ({type(error).__name__})"


def _pydicom() -> Any:
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.filereader
        import pydicom.pixels
    except ImportError:
        raise Refused("DICOM needs pydicom: pip install pydicom pyjpegls") from None
    return pydicom


@contextmanager
def _silence() -> Iterator[None]:
    """No warning and no log record of pydicom, which would quote the header.

    Both switches belong to the whole process: one thread at a time.
    """
    with _one_thread, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = [(logger := logging.getLogger(name), logger.disabled) for name in LOGGERS]
        for logger, _ in before:
            logger.disabled = True
        try:
            yield
        finally:
            for logger, disabled in before:
                logger.disabled = disabled


def _fresh_lock() -> None:
    global _one_thread
    _one_thread = threading.Lock()


_one_thread = threading.Lock()
if hasattr(os, "register_at_fork"):  # a forked child must not wait for a thread that only its parent has
    os.register_at_fork(after_in_child=_fresh_lock)


def _header(stream: BinaryIO, limit: int) -> Any:
    """The data set with no more than `TAGS`. A deflated file is inflated here, because pydicom sets it no limit."""
    pydicom = _pydicom()
    pydicom.filereader.read_preamble(stream, force=True)
    meta = pydicom.filereader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == "1.2.840.10008.1.2.1.99":
        inflator = zlib.decompressobj(-zlib.MAX_WBITS)
        stream = io.BytesIO(inflator.decompress(stream.read(), limit))
        if inflator.unconsumed_tail:
            raise Refused("too large when inflated")
    stream.seek(0)
    header = pydicom.dcmread(stream, force=True, specific_tags=TAGS)
    if not header.file_meta.get("TransferSyntaxUID"):  # the bare data set of old archives, or inflated
        implicit = header.original_encoding[0]
        header.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1"
    return header


def _named_view(header: Any) -> str | None:
    """What the header says of the view, if it says one thing. A decubitus or oblique view is neither."""
    words = set(re.findall("[A-Z]+", str(header.get("ViewPosition") or "").upper()))
    if words & {"LLD", "RLD", "DECUB", "DECUBITUS", "OBLIQUE", "LAO", "RAO", "LPO", "RPO", "LLO", "RLO"}:
        return None
    named = {"frontal"} if words & {"AP", "PA", "FRONTAL"} else set()
    named |= {"lateral"} if words & {"LL", "RL", "LAT", "LATERAL"} else set()
    rows = str((header.get("PatientOrientation") or [""])[0])  # where the rows of pixels point to
    if rows in ("L", "R", "A", "P"):
        named.add("frontal" if rows in "LR" else "lateral")
    return named.pop() if len(named) == 1 else None


def _frame(stream: BinaryIO, max_pixels: int) -> Frame:
    header = _header(stream, 3 * max_pixels)
    rows, columns = int(header.Rows), int(header.Columns)
    if not header.get("PixelData"):
        raise Refused("a DICOM file without pixels, or truncated")
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise Refused("a DICOM file of several frames; one radiograph is expected")
    photometric = str(header.PhotometricInterpretation)
    if photometric not in ("MONOCHROME1", "MONOCHROME2") or int(header.get("SamplesPerPixel") or 1) != 1:
        raise Refused("a DICOM image that is not greyscale (MONOCHROME1 or MONOCHROME2)")
    if rows * columns > max_pixels:
        raise Refused(f"too large (the limit is {max_pixels:,} pixels)")
    stored = _stored_values(header)
    if int(stored.max()) - int(stored.min()) >= 1 << 16:
        raise Refused("a DICOM image of more than 16 bits")

    low = int(stored.min())
    places = (stored - stored.dtype.type(low)).view(f"u{stored.dtype.itemsize}")  # a signed difference may wrap
    counts = np.bincount(places.ravel())
    values = np.arange(low, low + len(counts))
    if header.get("PixelPaddingValue") is not None:
        ends = int(header.PixelPaddingValue), int(header.get("PixelPaddingRangeLimit", header.PixelPaddingValue))
        counts[(values >= min(ends)) & (values <= max(ends))] = 0
    if not counts.any():
        raise Refused("a DICOM image of nothing but padding")
    values = _looked_up(values, counts, header).astype(np.float64)
    if not np.isfinite(values).all():
        raise Refused("a DICOM image with a rescale that gives no numbers")
    return Frame(places, -values if photometric == "MONOCHROME1" else values, counts, _named_view(header))


def _looked_up(values: np.ndarray, counts: np.ndarray, header: Any) -> np.ndarray:
    """Stored values through the modality LUT or rescale, and the first VOI LUT or window if it shows the image."""
    pixels = _pydicom().pixels
    values = pixels.apply_modality_lut(values, header)
    try:
        windowed = pixels.apply_voi_lut(values, header)
    except Exception:  # a window of zero width, a broken table
        return values
    return windowed if _unclipped(windowed, counts) >= _unclipped(values, counts) / 4 else values


def _unclipped(values: np.ndarray, counts: np.ndarray) -> int:
    """How many pixels lie between the least and the greatest value that occurs."""
    occurring = values[counts > 0]
    inside = (values > occurring.min()) & (values < occurring.max())
    return int(counts[inside].sum())


def _stored_values(header: Any) -> np.ndarray:
    """The pixels as stored, decompressed, with the unused bits cleared: integers of shape (rows, columns)."""
    decoder = DECODERS.get(str(header.file_meta.TransferSyntaxUID))
    if decoder is None:
        raise Refused("a DICOM compression that is not supported")
    if decoder == "pyjpegls":
        try:
            import jpeg_ls  # noqa: F401
        except ImportError:
            raise Refused("this DICOM compression needs a decoder: pip install pyjpegls") from None
    if decoder in ("pillow", "pyjpegls", "lossless"):
        segments = _jpeg_segments(_pydicom().encaps.get_frame(header.PixelData, 0, number_of_frames=1))
        size = segments.get("frame", b"")[1:5]  # JPEG 2000 has no such segment; Pillow sets its own limit there
        if size and size != int(header.Rows).to_bytes(2, "big") + int(header.Columns).to_bytes(2, "big"):
            raise Refused("the compressed image is not as large as the DICOM header says")
        if decoder == "lossless":
            stored = _decode_lossless_jpeg(segments)
            if header.PixelRepresentation:
                unused = 16 - int(header.BitsStored)
                stored = (stored << unused).view(np.int16) >> unused
            return stored
    elif 0 < (unused := int(header.HighBit) + 1 - int(header.BitsStored)) <= header.BitsAllocated - header.BitsStored:
        header.BitsStored += unused  # pydicom keeps the lowest bits
        return header.pixel_array >> unused
    if decoder:
        header.pixel_array_options(decoding_plugin=decoder)
    return header.pixel_array


def _jpeg_segments(content: bytes) -> dict[str, Any]:
    """What stands before the pixels of a JPEG or JPEG-LS stream, and the rest as "data"; nothing for other streams."""
    found: dict[str, Any] = {}
    at = 2
    while content[:2] == b"\xff\xd8" and "data" not in found:
        while content[at + 1] == 0xFF:  # fill bytes
            at += 1
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        body = content[at + 4 : end]
        if marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            found |= {"coding": marker, "frame": body}
        elif marker == 0xC4:
            while body:
                length = 17 + sum(body[1:17])
                found[f"table {body[0]}"], body = body[1:length], body[length:]
        elif marker == 0xDD:
            found["restart"] = int.from_bytes(body, "big")
        elif marker == 0xDA:
            found |= {"scan": body, "data": content[end:]}
        at = end
    return found


def _decode_lossless_jpeg(segments: dict[str, Any]) -> np.ndarray:
    """`uint16` pixels of JPEG Lossless (ITU-T T.81, process 14), of one component and predicted from the left.

    The coding most hospital archives use. No decoder under a permissive licence survives damaged data in it.
    """
    frame, scan = segments["frame"], segments["scan"]
    if segments["coding"] != 0xC3 or frame[5] != 1 or scan[0] != 1 or scan[3] != 1:
        raise Refused("a kind of JPEG Lossless that is not supported")
    rows, columns = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    shift = scan[5] & 15
    data = re.split(rb"\xff+[^\x00\xff\xd0-\xd7]", segments["data"], maxsplit=1)[0]
    parts = re.split(rb"\xff[\xd0-\xd7]", data)
    lines = segments.get("restart", 0) // columns or rows
    image = np.empty((rows, columns), dtype=np.uint16)
    for top, part in zip(range(0, rows, lines), parts, strict=True):
        height = min(lines, rows - top)
        values = _huffman_differences(part, height * columns, segments[f"table {scan[2] >> 4}"])
        values = values.reshape(height, columns)
        values[0, 0] += 1 << (frame[0] - shift - 1)
        values[:, 0] = values[:, 0].cumsum()
        image[top : top + height] = (values.cumsum(axis=1) << shift) & 0xFFFF
    return image


def _huffman_differences(data: bytes, count: int, table: bytes) -> np.ndarray:
    """The first `count` differences that lossless JPEG wrote: a Huffman code for a number of bits, then these bits."""
    lengths, sizes = np.zeros(1 << 16, dtype=np.uint8), np.zeros(1 << 16, dtype=np.uint8)  # by the next 16 bits
    at = 0
    for size, length in zip(table[16:], np.repeat(range(1, 17), list(table[:16])).tolist(), strict=True):
        lengths[at : at + (1 << 16 - length)], sizes[at : at + (1 << 16 - length)] = length, size
        at += 1 << 16 - length
    octets = np.frombuffer(data.replace(b"\xff\x00", b"\xff") + bytes(6), dtype=np.uint8).astype(np.uint32)
    three = octets[:-2] << 16 | octets[1:-1] << 8 | octets[2:]
    # How far it is to the next difference, from every bit of the stream on: then only a short walk is left to Python.
    advance = lengths + np.where(sizes == 16, 0, sizes).astype(np.uint8)
    strides = np.stack([advance[three >> 8 - bit & 0xFFFF] for bit in range(8)], axis=1).tobytes()
    at, walked = 0, array("Q")
    for _ in range(count):
        walked.append(at)
        at += strides[at]
    places = np.frombuffer(walked, dtype=np.uint64).astype(np.int64)
    code = three[places >> 3] >> 8 - (places & 7) & 0xFFFF
    if at > 8 * (len(octets) - 6) or sizes.max() > 16 or not lengths[code].all():
        raise ValueError("the stream ends early or holds an unknown code")
    places += lengths[code]
    size = sizes[code].astype(np.int64)
    bits = (three[places >> 3] >> 8 - (places & 7) & 0xFFFF).astype(np.int64) >> np.maximum(16 - size, 0)
    return np.where(size == 16, 1 << 15, np.where(bits < (1 << size >> 1), bits - (1 << size) + 1, bits))
