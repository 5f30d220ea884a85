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
from contextlib import contextmanager, suppress
from itertools import count as counter
from typing import Any, BinaryIO, NamedTuple

import numpy as np

# All that is ever read of a DICOM header: nothing in it names a patient.
TAGS = [
    *("ViewPosition", "PatientOrientation"),
    *("Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "NumberOfFrames", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit", "ModalityLUTSequence", "RescaleSlope", "RescaleIntercept"),
    *("VOILUTSequence", "VOILUTFunction", "WindowCenter", "WindowWidth"),
    *("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"),
]
MAX_ELEMENTS = 10_000  # of a header, nested ones not counted; a file of zeros would have millions
MAX_ASPECT = 4.0  # a pixel so much taller than wide, or wider than tall, is an error of the header

# Pixels that are counted at once, and bytes of a lossless JPEG that are decoded at once: numpy makes 64-bit numbers of
# both on the way.
STRIP, WINDOW = 1 << 20, 1 << 18

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


NO_DICOM = "not a DICOM image, or truncated or damaged"


class Frame(NamedTuple):
    """An image: `values[places]`, brighter where greater. `values[i]` occurs `counts[i]` times, padding 0 times."""

    places: np.ndarray
    values: np.ndarray
    counts: np.ndarray
    view: str | None
    aspect: float = 1.0  # height of a pixel by its width


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
            return f"{NO_DICOM} ({type(error).__name__})"


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
    reader, seen = pydicom.filereader, counter()
    reader.read_preamble(stream, force=True)
    meta = reader.read_dataset(stream, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    start = 0
    if meta.get("TransferSyntaxUID") == "1.2.840.10008.1.2.1.99":
        inflator = zlib.decompressobj(-zlib.MAX_WBITS)
        stream = io.BytesIO(inflator.decompress(stream.read(), limit))
        if inflator.unconsumed_tail:
            raise Refused("too large when inflated")
    elif meta:
        start = stream.tell()
    stream.seek(start)
    if stream.read(2) == b"\0\0":  # a command of group 0, of which pydicom reads any number
        raise Refused(NO_DICOM)
    stream.seek(0)

    def stop(tag: Any, vr: str | None, length: int) -> bool:
        if next(seen) > MAX_ELEMENTS:
            raise Refused(NO_DICOM)
        return False

    header = reader.read_partial(stream, stop, force=True, specific_tags=[pydicom.tag.Tag(name) for name in TAGS])
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


def _aspect(header: Any) -> float:
    """Height of a pixel by its width, as DICOM PS3.3 C.7.6.3.1.7 gives it: by a spacing, else by the aspect ratio."""
    for name in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing", "PixelAspectRatio"):
        try:
            height, width = map(float, header.get(name))
            aspect = height / width
        except Exception:  # not there, or no two numbers
            continue
        if 1 / MAX_ASPECT <= aspect <= MAX_ASPECT:
            return aspect
    return 1.0


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
    number, parts = int(places.max()) + 1, np.array_split(places, 1 + places.size // STRIP)
    counts = np.sum([np.bincount(part.ravel(), minlength=number) for part in parts], axis=0)
    values = np.arange(low, low + len(counts))
    if header.get("PixelPaddingValue") is not None:
        ends = int(header.PixelPaddingValue), int(header.get("PixelPaddingRangeLimit", header.PixelPaddingValue))
        counts[(values >= min(ends)) & (values <= max(ends))] = 0
    if not counts.any():
        raise Refused("a DICOM image of nothing but padding")
    values = _looked_up(values, counts, header).astype(np.float64)
    if not np.isfinite(values).all():
        raise Refused("a DICOM image with a rescale that gives no numbers")
    return Frame(
        places, -values if photometric == "MONOCHROME1" else values, counts, _named_view(header), _aspect(header)
    )


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
            return _stored_bits(_decode_lossless_jpeg(segments), header)
        if decoder == "pillow" and segments.get("frame", b"\x08")[0] != 8:
            raise Refused(f"a JPEG of {segments['frame'][0]} bits, which is not supported: save it uncompressed")
        header.pixel_array_options(decoding_plugin=decoder)
        return _stored_bits(header.pixel_array, header)
    elif 0 < (unused := int(header.HighBit) + 1 - int(header.BitsStored)) <= header.BitsAllocated - header.BitsStored:
        header.BitsStored += unused  # pydicom keeps the lowest bits
        return header.pixel_array >> unused
    if decoder:
        header.pixel_array_options(decoding_plugin=decoder)
    return _stored_bits(header.pixel_array, header)


def _stored_bits(stored: np.ndarray, header: Any) -> np.ndarray:
    """The lowest BitsStored bits: a stream may be deeper than that, with overlays in the bits above."""
    bits = 8 * stored.itemsize
    if not 0 < header.BitsStored <= bits:
        raise ValueError("bits")
    stored = stored << (bits - header.BitsStored)
    stored = stored.view(f"{'i' if header.PixelRepresentation else 'u'}{stored.itemsize}")
    stored >>= bits - header.BitsStored
    return stored


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
        values = values.reshape(height, columns)  # modulo 2^16, as all that follows
        values[:1, :1] += np.uint16(1 << (frame[0] - shift - 1))
        values[:, 0] = values[:, 0].cumsum(dtype=np.uint16)
        values.cumsum(axis=1, dtype=np.uint16, out=image[top : top + height])
    image <<= shift
    return image


def _huffman_differences(data: bytes, count: int, table: bytes) -> np.ndarray:
    """The first `count` differences that lossless JPEG wrote, modulo 2^16: a Huffman code for a number of bits, then
    these bits."""
    lengths, sizes = np.zeros(1 << 16, dtype=np.uint8), np.zeros(1 << 16, dtype=np.uint8)  # by the next 16 bits
    at = 0
    for size, length in zip(table[16:], np.repeat(range(1, 17), list(table[:16])).tolist(), strict=True):
        lengths[at : at + (1 << 16 - length)], sizes[at : at + (1 << 16 - length)] = length, size
        at += 1 << 16 - length
    # How far it is to the next difference, from every bit of a window on: then only a short walk is left to Python.
    advance = lengths + np.where(sizes == 16, 0, sizes).astype(np.uint8)
    octets = np.frombuffer(data.replace(b"\xff\x00", b"\xff") + bytes(6), dtype=np.uint8)
    differences, done, start = np.empty(count, dtype=np.uint16), 0, 0
    while done < count:
        first = start >> 3
        part = octets[first : first + WINDOW + 6].astype(np.uint32)
        three = part[:-2] << 16 | part[1:-1] << 8 | part[2:]
        strides = np.stack([advance[three[:-4] >> 8 - bit & 0xFFFF] for bit in range(8)], axis=1).tobytes()
        at, walked = start & 7, array("I")
        with suppress(IndexError):  # behind the window
            for _ in range(count - done):
                stride = strides[at]
                walked.append(at)
                at += stride
        places = np.frombuffer(walked, dtype=np.uint32).astype(np.int64)
        code = three[places >> 3] >> 8 - (places & 7) & 0xFFFF
        if not walked or 8 * first + at > 8 * (len(octets) - 6) or sizes.max() > 16 or not lengths[code].all():
            raise ValueError("the stream ends early or holds an unknown code")
        places += lengths[code]
        size = sizes[code].astype(np.int64)
        bits = (three[places >> 3] >> 8 - (places & 7) & 0xFFFF).astype(np.int64) >> np.maximum(16 - size, 0)
        signed = np.where(bits < (1 << size >> 1), bits - (1 << size) + 1, bits)
        differences[done : done + len(places)] = np.where(size == 16, 1 << 15, signed)
        done, start = done + len(places), 8 * first + at
    return differences
