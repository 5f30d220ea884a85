"""Reading DICOM files, and keeping their headers to themselves."""

import importlib.util
import io
import logging
import re
import sys
import threading
import time
import traceback
import tracemalloc
import warnings
import zlib
from array import array
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hf_cxr.inference.dicom import read_frame
from hf_cxr.inference.views import UnreadableImage, read_radiograph, read_with_hint

pydicom = pytest.importorskip("pydicom")

_spec = importlib.util.spec_from_file_location("dicom_files", Path(__file__).parents[2] / "benchmarks" / "dicom.py")
files = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(files)
write_dicom = files.write_dicom

RAMP = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))  # brighter to the right, 64 × 48
DEEP = RAMP.astype(np.uint16) * 16
NOISY = np.random.default_rng(0).integers(0, 4096, (48, 64)).astype(np.uint16)
JPEG, JPEG_12, LOSSLESS, LOSSLESS_ANY = (f"1.2.840.10008.1.2.4.{n}" for n in (50, 51, 70, 57))
JPEG_LS, JPEG_2000, RLE = "1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.5"
DEFLATED, BIG_ENDIAN = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.2"


def grey(content) -> np.ndarray:
    return np.asarray(read_radiograph(content)).astype(int)


def assert_ramp(content, expected=RAMP, tolerance=3):
    assert np.abs(grey(content) - expected).max() <= tolerance


def jpeg_bytes(image, format="JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format, **options)
    return buffer.getvalue()


def lossless_jpeg(image, precision=12, shift=0, lines=0, predictor=1, rows=None) -> bytes:
    """`image` as JPEG Lossless predicted from the left, with a restart marker after every `lines` lines."""
    height, width = image.shape
    values = image.astype(int) >> shift
    scan = b""
    step = lines or height
    for number, top in enumerate(range(0, height, step)):
        part = values[top : top + step]
        above = np.concatenate([[1 << (precision - shift - 1)], part[:-1, 0]])
        before = np.concatenate([above[:, None], part[:, :-1]], axis=1)
        differences = (part - before + 32767) % 65536 - 32767  # -32767 … 32768
        text = ""
        for difference in differences.ravel().tolist():
            size = abs(difference).bit_length()
            text += f"{size:05b}"
            if 0 < size < 16 and difference != 32768:
                text += f"{difference if difference > 0 else difference + (1 << size) - 1:0{size}b}"
        text += "1" * (-len(text) % 8)
        coded = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8)).replace(b"\xff", b"\xff\x00")
        scan += (bytes([0xFF, 0xD0 + (number - 1) % 8]) if number else b"") + coded

    def segment(marker, body):
        return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body

    size = (rows or height).to_bytes(2, "big") + width.to_bytes(2, "big")
    counts = bytes([0, 0, 0, 0, 17, *[0] * 11])  # seventeen codes of five bits
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xC3, bytes([precision]) + size + bytes([1, 1, 0x11, 0])),
            segment(0xC4, bytes([0]) + counts + bytes(range(17))),
            segment(0xDD, (step * width).to_bytes(2, "big")) if lines else b"",
            segment(0xDA, bytes([1, 1, 0, predictor, 0, shift])),
            scan,
            b"\xff\xd9",
        ]
    )


def body_start(content: bytes) -> int:
    """Where the data set begins, behind the file meta information."""
    return 144 + int.from_bytes(content[140:144], "little")


def lossless_dicom(image, precision=12, **options) -> bytes:
    header = {"BitsStored": precision}
    return write_dicom(image, LOSSLESS, lossless_jpeg(image, precision, **options), **header)


# Values


def test_monochrome1_is_inverted():
    assert_ramp(write_dicom(DEEP))
    assert_ramp(write_dicom(DEEP, PhotometricInterpretation="MONOCHROME1"), 255 - RAMP)


def test_the_presentation_lut_shape_does_not_invert_a_second_time():
    twice = {"PhotometricInterpretation": "MONOCHROME1", "PresentationLUTShape": "INVERSE"}
    assert_ramp(write_dicom(DEEP, **twice), 255 - RAMP)


@pytest.mark.parametrize("stored", [8, 10, 12, 14, 15, 16])
@pytest.mark.parametrize("signed", [0, 1])
def test_every_depth_signed_or_not_reads_as_the_same_ramp(stored, signed):
    values = np.rint(RAMP / 255.0 * ((1 << stored) - 1)).astype(int) - (signed << stored - 1)
    header = {"BitsAllocated": 8 if stored == 8 else 16, "BitsStored": stored, "PixelRepresentation": signed}
    assert_ramp(write_dicom(values, **header))


def test_bits_above_and_below_the_stored_ones_are_not_looked_at():
    dirty = DEEP | 0xA000
    assert_ramp(write_dicom(dirty))
    assert_ramp(write_dicom(DEEP << 4 | 7, HighBit=15))
    windowed = {"WindowCenter": 1024, "WindowWidth": 2048}
    assert_ramp(write_dicom(DEEP << 4 | 7, HighBit=15, **windowed), np.clip(RAMP.astype(int) * 2, 0, 255), 4)


def test_rescale_and_modality_lut_come_before_the_window():
    assert_ramp(write_dicom(DEEP, RescaleSlope=-1, RescaleIntercept=4095), 255 - RAMP)
    shifted = {"RescaleSlope": 0.5, "RescaleIntercept": -100, "WindowCenter": 412, "WindowWidth": 1024}
    assert_ramp(write_dicom(DEEP, **shifted), np.clip(RAMP.astype(int) * 2, 0, 255), 4)
    assert_ramp(write_dicom(DEEP, ModalityLUTSequence=[lut(np.arange(4096)[::-1])]), 255 - RAMP)


def lut(table, first=0, bits=16):
    item = pydicom.Dataset()
    item.add_new("LUTDescriptor", "US", [len(table), first, bits])
    item.add_new("LUTData", "US", np.asarray(table).tolist())
    item.ModalityLUTType, item.LUTExplanation = "US", MARK
    return item


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_voi_lut_is_applied_and_goes_before_a_window(photometric):
    root = np.sqrt(np.arange(4096) / 4095) * 65535
    header = {"VOILUTSequence": [lut(root.astype(int)), lut([1, 2])], "WindowCenter": 10, "WindowWidth": 20}
    expected = np.sqrt(RAMP / 255) * 255
    expected = 255 - expected if photometric == "MONOCHROME1" else expected
    assert_ramp(write_dicom(DEEP, PhotometricInterpretation=photometric, **header), expected, 5)
    whole = {"RescaleSlope": "1.0", "RescaleIntercept": "0.0"}  # floats for pydicom, but a table counts in integers
    assert_ramp(write_dicom(DEEP, PhotometricInterpretation=photometric, **header, **whole), expected, 5)


@pytest.mark.parametrize("function", [None, "LINEAR", "LINEAR_EXACT"])
@pytest.mark.parametrize(("centre", "width"), [(1024, 2048), ([1024, 5, 2000], [2048, 7, 8])])
def test_the_first_window_is_applied(function, centre, width):
    content = write_dicom(DEEP, WindowCenter=centre, WindowWidth=width, VOILUTFunction=function)
    assert_ramp(content, np.clip(RAMP.astype(int) * 2, 0, 255), 4)


def test_a_sigmoid_window_is_a_sigmoid():
    content = write_dicom(DEEP, WindowCenter=2048, WindowWidth=1024, VOILUTFunction="SIGMOID")
    curve = 1 / (1 + np.exp(-4 * (DEEP.astype(float) - 2048) / 1024))
    assert_ramp(content, curve * 255, 4)


def test_the_stretch_follows_a_window_so_that_a_window_wider_than_the_image_changes_nothing():
    dull = 1000 + RAMP.astype(np.uint16) * 4
    without = grey(write_dicom(dull))
    assert (without.min(), without.max()) == (0, 255)
    for width in (4096, 65536):
        assert np.array_equal(grey(write_dicom(dull, WindowCenter=width / 2, WindowWidth=width)), without)


@pytest.mark.parametrize(
    "window",
    [
        {"WindowCenter": 60000, "WindowWidth": 2},
        {"WindowCenter": 5, "WindowWidth": 0},
        {"WindowCenter": 2048, "WindowWidth": 100},
        {"WindowCenter": "", "WindowWidth": ""},
        {"WindowCenter": 5},
        {"WindowCenter": 2048, "WindowWidth": 2048, "VOILUTFunction": "WHATEVER"},
    ],
)
def test_a_wrong_window_does_not_spoil_the_image(window):
    assert_ramp(write_dicom(DEEP, **window))


def test_padding_is_black_and_does_not_count():
    padded = DEEP.copy()
    padded[:10] = 4095
    padded[10:] = 100 + RAMP[10:].astype(np.uint16)
    inverted = {"PhotometricInterpretation": "MONOCHROME1", "PixelPaddingValue": 4095}
    back = grey(write_dicom(padded, **inverted))
    assert not back[:10].any()
    assert np.abs(back[10:] - (255 - RAMP[10:])).max() <= 4
    bright = grey(write_dicom(padded, PixelPaddingValue=4095))
    assert not bright[:10].any()
    assert np.abs(bright[10:] - RAMP[10:]).max() <= 4
    padded[:5] = 4000
    ranged = grey(write_dicom(padded, **inverted, PixelPaddingRangeLimit=4000))
    assert np.array_equal(ranged, back)
    signed = (padded.astype(int) - 2048).clip(-2048, None)
    assert np.array_equal(
        grey(
            write_dicom(
                signed, **inverted | {"PixelPaddingValue": 2047}, PixelPaddingRangeLimit=1952, PixelRepresentation=1
            )
        ),
        back,
    )


# Compression


@pytest.mark.parametrize("syntax", [files.EXPLICIT, "1.2.840.10008.1.2", DEFLATED, RLE, JPEG_LS])
def test_an_image_is_the_same_in_every_lossless_transfer_syntax(syntax):
    if syntax == JPEG_LS:
        pytest.importorskip("jpeg_ls")
    assert np.array_equal(grey(write_dicom(NOISY, syntax)), grey(write_dicom(NOISY)))


def test_big_endian_and_a_data_set_without_preamble_are_read(tmp_path):
    data = pydicom.dcmread(io.BytesIO(write_dicom(NOISY)))
    data.file_meta.TransferSyntaxUID = BIG_ENDIAN
    data.PixelData = NOISY.astype(">u2").tobytes()
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, data, implicit_vr=False, little_endian=False)
    assert np.array_equal(grey(buffer.getvalue()), grey(write_dicom(NOISY)))
    for syntax in (files.EXPLICIT, "1.2.840.10008.1.2"):
        whole = write_dicom(NOISY, syntax)
        (tmp_path / "bare.dcm").write_bytes(whole[body_start(whole) :])
        assert np.array_equal(grey(tmp_path / "bare.dcm"), grey(write_dicom(NOISY)))


def test_jpeg_2000_and_baseline_jpeg_are_read():
    sixteen = jpeg_bytes(NOISY, "JPEG2000", no_jp2=True, irreversible=False)
    assert np.array_equal(grey(write_dicom(NOISY, JPEG_2000, sixteen, BitsStored=16)), grey(write_dicom(NOISY)))
    eight = {"BitsAllocated": 8, "BitsStored": 8}
    for syntax in (JPEG, JPEG_12):
        assert_ramp(write_dicom(RAMP, syntax, jpeg_bytes(RAMP, quality=98), **eight), tolerance=5)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 16), st.integers(1, 9), st.integers(1, 9), st.integers(0, 3), st.integers(0, 1), st.integers(0))
def test_lossless_jpeg_gives_back_every_value(precision, rows, columns, lines, shift, seed):
    from hf_cxr.inference.dicom import _decode_lossless_jpeg, _jpeg_segments

    image = np.random.default_rng(seed).integers(0, 1 << precision, (rows, columns)) >> shift << shift
    coded = lossless_jpeg(image, precision, shift, lines)
    assert np.array_equal(_decode_lossless_jpeg(_jpeg_segments(coded)), image)


@pytest.mark.parametrize("missing", [1, 2, 3, 5, 8, 20, 400])
def test_a_lossless_jpeg_that_lacks_its_last_bytes_is_refused(missing):
    whole = lossless_jpeg(NOISY)
    assert whole.endswith(b"\xff\xd9")
    with pytest.raises(UnreadableImage, match="damaged"):
        read_radiograph(write_dicom(NOISY, LOSSLESS, whole[: -2 - missing] + b"\xff\xd9"))


def test_a_lossless_jpeg_with_a_code_that_is_not_in_its_table_is_refused():
    whole = lossless_jpeg(NOISY)
    start = whole.index(b"\xff\xda") + 10
    with pytest.raises(UnreadableImage, match="damaged"):
        read_radiograph(write_dicom(NOISY, LOSSLESS, whole[:start] + b"\xfe" * len(whole) + b"\xff\xd9"))


@pytest.mark.parametrize("syntax", [LOSSLESS, LOSSLESS_ANY])
def test_a_lossless_jpeg_dicom_is_read_signed_or_not(syntax):
    frame = lossless_jpeg(NOISY)
    assert np.array_equal(grey(write_dicom(NOISY, syntax, frame)), grey(write_dicom(NOISY)))
    signed = NOISY.astype(int) - 2048
    frame = lossless_jpeg(signed & 0xFFF)
    header = {"PixelRepresentation": 1}
    assert np.array_equal(grey(write_dicom(signed, syntax, frame, **header)), grey(write_dicom(NOISY)))


def test_a_lossless_jpeg_is_decoded_in_windows_and_in_little_memory(monkeypatch):
    from hf_cxr.inference import dicom

    image = np.random.default_rng(0).integers(0, 4096, (96, 512)).astype(np.uint16)
    image[16:80] = 7  # few bits a pixel
    segments = dicom._jpeg_segments(lossless_jpeg(image))
    for window in (50, 1001, 1 << 18):
        monkeypatch.setattr(dicom, "WINDOW", window)
        assert np.array_equal(dicom._decode_lossless_jpeg(segments), image)
    monkeypatch.setattr(dicom, "WINDOW", 1 << 10)
    tracemalloc.start()
    dicom._decode_lossless_jpeg(segments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * image.size  # 58 bytes a pixel without windows


def test_another_decoder_reads_our_lossless_jpeg_alike():
    pytest.importorskip("gdcm")
    data = pydicom.dcmread(io.BytesIO(lossless_dicom(NOISY)))
    data.pixel_array_options(decoding_plugin="gdcm")
    assert np.array_equal(data.pixel_array, NOISY)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("syntax", [RLE, LOSSLESS, JPEG_LS, JPEG_2000])
def test_overlays_in_the_bits_above_the_stored_ones_of_a_compressed_image_are_not_looked_at(syntax, signed):
    values = NOISY.astype(int) - (2048 if signed else 0)
    clean = write_dicom(values, PixelRepresentation=signed)
    overlay = (values & 0xFFF | np.random.default_rng(1).integers(0, 16, NOISY.shape) << 12).astype(np.uint16)
    if syntax == RLE:
        frame = pydicom.dcmread(io.BytesIO(write_dicom(overlay, RLE, BitsStored=16))).PixelData
        content = write_dicom(
            overlay, RLE, next(pydicom.encaps.generate_frames(frame, number_of_frames=1)), PixelRepresentation=signed
        )
    elif syntax == LOSSLESS:
        content = write_dicom(overlay, LOSSLESS, lossless_jpeg(overlay, 16), PixelRepresentation=signed)
    elif syntax == JPEG_LS:
        coded = bytes(pytest.importorskip("jpeg_ls").encode(overlay))
        content = write_dicom(overlay, JPEG_LS, coded, PixelRepresentation=signed)
    else:
        coded = jpeg_bytes(overlay, "JPEG2000", no_jp2=True, irreversible=False)
        content = write_dicom(overlay, JPEG_2000, coded, PixelRepresentation=signed)
    assert np.array_equal(grey(content), grey(clean))


@pytest.mark.parametrize(
    ("header", "size"),
    [
        ({"PixelAspectRatio": [2, 1]}, (32, 48)),  # pixels twice as tall as wide
        ({"PixelAspectRatio": [1, 2]}, (64, 24)),
        ({"PixelAspectRatio": [1, 1]}, (64, 48)),
        ({"PixelSpacing": [0.2, 0.1]}, (32, 48)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (64, 24)),
        ({"NominalScannedPixelSpacing": [0.15, 0.1]}, (43, 48)),
        ({"PixelSpacing": [0.1, 0.1], "PixelAspectRatio": [2, 1]}, (64, 48)),  # the ratio stands in for a spacing
        ({"PixelSpacing": [0.139, 0.139001]}, (64, 48)),
        ({"PixelAspectRatio": [0, 1]}, (64, 48)),
        ({"PixelAspectRatio": [1, 0]}, (64, 48)),
        ({"PixelAspectRatio": [1000, 1]}, (64, 48)),
        ({"PixelSpacing": [0.1]}, (64, 48)),
        ({"PixelSpacing": ""}, (64, 48)),
    ],
)
def test_pixels_that_are_not_square_are_made_so(header, size):
    content = write_dicom(DEEP, **header)
    assert read_radiograph(content).size == size
    assert (read_with_hint(content)[0].size, read_with_hint(content)[1]) == (size, None)
    shown = grey(content)
    assert np.abs(shown.mean(axis=0) - np.linspace(0, 255, size[0])).max() <= 8  # still the whole ramp


# Refusals


def extended_jpeg(precision: int) -> bytes:
    """A baseline JPEG whose frame header says that it is an extended one of so many bits."""
    coded = jpeg_bytes(RAMP)
    start = coded.index(b"\xff\xc0")
    return coded[:start] + b"\xff\xc1" + coded[start + 2 : start + 4] + bytes([precision]) + coded[start + 5 :]


def deflated(content: bytes) -> bytes:
    whole = write_dicom(DEEP, DEFLATED)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return whole[: body_start(whole)] + packer.compress(content) + packer.flush()


@pytest.mark.parametrize("case", ["zeros", "zeros after the preamble", "zeros in the header", "endless header"])
def test_a_file_of_nothing_is_refused_without_reading_it_all(case, tmp_path):
    (tmp_path / "case.dcm").write_bytes(REFUSED[case][0]())
    with (tmp_path / "case.dcm").open("rb") as stream:
        read_frame(stream, 1_000_000)
        assert stream.tell() < 300_000
    start = time.process_time()
    read_frame(io.BytesIO(REFUSED[case][0]()), 1_000_000)
    assert time.process_time() - start < 0.5


REFUSED = {
    "several frames": (lambda: write_dicom(np.stack([DEEP, DEEP]), NumberOfFrames=2), "several frames"),
    "half": (lambda: write_dicom(DEEP)[:-500], "truncated"),
    "header only": (lambda: write_dicom(DEEP)[:300], "truncated"),
    "no pixels": (lambda: write_dicom(DEEP, PixelData=b""), "without pixels"),
    "unknown colour": (lambda: write_dicom(DEEP, PhotometricInterpretation=MARK), "not greyscale"),
    "palette": (lambda: write_dicom(DEEP, PhotometricInterpretation="PALETTE COLOR"), "not greyscale"),
    "three samples": (lambda: write_dicom(DEEP, SamplesPerPixel=3, PixelData=b"\0" * 48 * 64 * 6), "not greyscale"),
    "too large": (lambda: write_dicom(DEEP, Rows=60000, Columns=60000), "too large"),
    "no rows": (lambda: write_dicom(DEEP, Rows=0), "truncated or damaged"),
    "depth": (lambda: write_dicom(DEEP, BitsStored=99), "truncated or damaged"),
    "broken number": (
        lambda: write_dicom(DEEP, WindowCenter=None).replace(b"US\x02\x00\x0c\x00", b"LO\x02\x00ZZ"),
        "damag",
    ),
    "only padding": (lambda: write_dicom(DEEP * 0, PixelPaddingValue=0), "nothing but padding"),
    "unknown coding": (lambda: write_dicom(DEEP, "1.2.840.10008.1.2.4.201", b"\xff\x4f\xff\x51"), "not supported"),
    "12-bit jpeg": (
        lambda: write_dicom(DEEP, JPEG_12, extended_jpeg(12)),
        "a JPEG of 12 bits, which is not supported",
    ),
    "12-bit as baseline": (lambda: write_dicom(DEEP, JPEG, extended_jpeg(12)), "a JPEG of 12 bits, which is not supp"),
    "8-bit jpeg of 12": (lambda: write_dicom(DEEP, JPEG_12, jpeg_bytes(RAMP)), "damaged"),
    "zeros": (lambda: bytes(3_000_000), "not a DICOM image"),
    "zeros after the preamble": (lambda: write_dicom(DEEP)[:132] + bytes(3_000_000), "not a DICOM image"),
    "zeros in the header": (lambda: write_dicom(DEEP)[:400] + bytes(3_000_000), "not a DICOM image"),
    "zeros, deflated": (lambda: deflated(bytes(3_000_000)), "not a DICOM image"),
    "endless header": (lambda: write_dicom(DEEP)[:144] + b"\x09\0\1\0LO\0\0" * 400_000, "not a DICOM image"),
    "cut jpeg": (lambda: write_dicom(DEEP, JPEG, jpeg_bytes(RAMP)[:-200], BitsAllocated=8, BitsStored=8), "damaged"),
    "cut lossless": (lambda: write_dicom(NOISY, LOSSLESS, lossless_jpeg(NOISY)[:2000]), "damaged"),
    "other prediction": (lambda: write_dicom(DEEP, LOSSLESS_ANY, lossless_jpeg(DEEP, predictor=5)), "not supported"),
    "other size": (lambda: lossless_dicom(DEEP, rows=65535), "not as large as the DICOM header says"),
    "not a jpeg": (lambda: write_dicom(DEEP, LOSSLESS, b"\xff\xd8" + MARK.encode() * 9), "damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_file_that_cannot_be_read_is_refused_in_one_line_that_names_it(case, tmp_path):
    make, what = REFUSED[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (tmp_path / "case.dcm").write_bytes(make())
    with pytest.raises(UnreadableImage, match=what) as caught:
        read_radiograph(tmp_path / "case.dcm")
    assert "case.dcm: " in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deflated_bomb_is_not_inflated(monkeypatch):
    from hf_cxr.inference import views

    monkeypatch.setattr(views, "MAX_PIXELS", 1_000_000)
    small = write_dicom(DEEP, DEFLATED)
    start = body_start(small)
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    bomb = small[:start] + packer.compress(bytes(200_000_000)) + packer.flush()
    assert len(bomb) < 300_000
    with pytest.raises(UnreadableImage, match="too large when inflated"):
        read_radiograph(bomb)


def test_a_compressed_bomb_is_refused_before_it_is_decoded():
    wide = jpeg_bytes(np.zeros((8000, 8000), np.uint8))
    with pytest.raises(UnreadableImage, match="not as large as"):
        read_radiograph(write_dicom(RAMP, JPEG, wide, BitsAllocated=8, BitsStored=8))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from([files.EXPLICIT, DEFLATED, RLE, LOSSLESS]), st.data())
def test_damaged_bytes_raise_nothing_but_unreadable_image(syntax, data):
    frame = lossless_jpeg(NOISY) if syntax == LOSSLESS else None
    whole = write_dicom(NOISY, syntax, frame, WindowCenter=2048, WindowWidth=4096)
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(132, data.draw(st.sampled_from([900, len(damaged) - 1]))))] = data.draw(
            st.integers(0, 255)
        )
    damaged = damaged[: data.draw(st.sampled_from([len(damaged), len(damaged) // 2]))]
    try:
        outcome = read_radiograph(bytes(damaged)).mode
    except UnreadableImage as error:
        outcome = f"{error} {error.__context__}"
    assert outcome == "L" or (outcome.startswith("image bytes: ") and "\n" not in outcome and outcome.endswith("None"))


def test_without_pydicom_or_a_decoder_the_message_says_what_to_install(monkeypatch):
    content = write_dicom(DEEP)
    pytest.importorskip("jpeg_ls")
    coded = write_dicom(DEEP, JPEG_LS)
    monkeypatch.setitem(sys.modules, "jpeg_ls", None)
    assert_ramp(content)
    with pytest.raises(UnreadableImage, match=r"image bytes: .*decoder: pip install pyjpegls"):
        read_radiograph(coded)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadableImage, match=r"image bytes: .*pip install pydicom pyjpegls") as caught:
        read_radiograph(content)
    assert caught.value.__context__ is None


# The view


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom, of what is written here
@pytest.mark.parametrize(
    ("position", "orientation", "view"),
    [
        ("PA", None, "frontal"),
        ("AP", ["L", "F"], "frontal"),
        ("pa erect", None, "frontal"),
        ("LL", None, "lateral"),
        ("RL", ["A", "F"], "lateral"),
        ("LATERAL", ["P", "F"], "lateral"),
        ("LARGE LATERAL", None, "lateral"),
        ("", ["L", "F"], "frontal"),
        ("", ["R", "F"], "frontal"),
        (None, ["A", "F"], "lateral"),
        ("PA", ["A", "F"], None),
        ("LLD", None, None),
        ("AP RLD", ["L", "F"], None),
        ("LATERAL DECUBITUS", None, None),
        ("LAO", None, None),
        ("", None, None),
        (None, None, None),
        ("SECRET^NAME", None, None),
    ],
)
def test_the_header_view_is_what_the_header_says_if_it_says_one_thing(tmp_path, position, orientation, view):
    content = write_dicom(DEEP, ViewPosition=position, PatientOrientation=orientation)
    path = tmp_path / "a.dcm"
    path.write_bytes(content)
    assert read_with_hint(content)[1] == read_with_hint(str(path))[1] == view
    image, hint = read_with_hint(path)
    assert hint == view
    assert np.array_equal(np.asarray(image), np.asarray(read_radiograph(path)))


def test_other_sources_have_no_header_view():
    assert read_with_hint(RAMP)[1] is None
    assert read_with_hint(jpeg_bytes(RAMP))[1] is None
    assert read_with_hint(jpeg_bytes(RAMP, "PNG"))[1] is None
    assert read_with_hint(lambda: Image.fromarray(RAMP))[1] is None


# Privacy

MARK = "SECRET^PATIENT"
TEXT_KINDS = {"AE", "AS", "CS", "DA", "DS", "DT", "IS", "LO", "LT", "PN", "SH", "ST", "TM", "UC", "UI", "UR", "UT"}
LONG = {"UC", "UR", "UT"}


def marked(*kept: str) -> bytes:
    """A file with the mark in every element of the dictionary that can hold a text, but in those `kept`."""
    from pydicom.datadict import DicomDictionary

    content = write_dicom(DEEP)
    start = at = body_start(content)
    elements = {}
    while at < len(content):  # explicit little endian
        tag = int.from_bytes(content[at : at + 2], "little") << 16 | int.from_bytes(content[at + 2 : at + 4], "little")
        long = content[at + 4 : at + 6] in (b"OW", b"OB")
        length = content[at + 8 : at + 12] if long else content[at + 6 : at + 8]
        end = at + (12 if long else 8) + int.from_bytes(length, "little")
        elements[tag], at = content[at:end], end
    value = MARK.encode()
    for tag, entry in DicomDictionary.items():
        if 0x0008 <= tag >> 16 < 0x7FE0 and entry[0] in TEXT_KINDS and entry[4] not in kept:
            number = (tag >> 16).to_bytes(2, "little") + (tag & 0xFFFF).to_bytes(2, "little")
            length = bytes(2) + len(value).to_bytes(4, "little") if entry[0] in LONG else bytes([len(value), 0])
            elements[tag] = number + entry[0].encode() + length + value
    return content[:start] + b"".join(element for _, element in sorted(elements.items()))


def told(error) -> str:
    """All that a chain of exceptions tells, the local variables of every frame included."""
    text, waiting, seen = "", [error], set()
    while waiting:
        error = waiting.pop()
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        stack = traceback.StackSummary.extract(traceback.walk_tb(error.__traceback__), capture_locals=True)
        inside = [frame.locals for frame in stack if "hf_cxr" in frame.filename or "pydicom" in frame.filename]
        text += f"{error!r} {error.args} {error.__dict__} {inside}"
        waiting += [error.__cause__, error.__context__]
    return text


NEEDED = ("PhotometricInterpretation", "NumberOfFrames", "RescaleSlope", "RescaleIntercept")
LEAKS = REFUSED | {
    "broken": (lambda: marked(), ""),
    "broken numbers": (lambda: marked("PhotometricInterpretation", "NumberOfFrames"), ""),
    "readable": (lambda: marked(*NEEDED), ""),
    "bits": (lambda: write_dicom(DEEP, BitsStored=99, PatientName=MARK, PatientID=MARK, ViewPosition=MARK), ""),
}


@pytest.mark.parametrize("case", LEAKS)
def test_no_header_value_leaves_the_reader(case, tmp_path, capfd, caplog, recwarn):
    path = tmp_path / "case.dcm"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path.write_bytes(LEAKS[case][0]().replace(b"1.2.3.4", b"SECRET^"))  # a broken UID, in the file meta too
    capfd.readouterr()
    caplog.clear()
    recwarn.clear()
    warnings.simplefilter("always")
    caplog.set_level(logging.DEBUG)
    pydicom.config.debug(True, default_handler=False)
    try:
        try:
            image, hint = read_with_hint(path)
            said = repr((image.info, image.__dict__, hint))
            assert case == "readable"
        except UnreadableImage as error:
            said = told(error)
    finally:
        pydicom.config.debug(False, default_handler=False)
    said += "".join(capfd.readouterr()) + caplog.text + " ".join(str(w.message) for w in recwarn)
    assert not re.search("SECRET|PATIENT", said.replace(str(tmp_path), ""), re.IGNORECASE)
    assert not caplog.records
    assert not list(recwarn)


def test_the_mark_is_one_that_pydicom_itself_tells(caplog, recwarn):
    """Without the silence the test above would find the mark: it guards something."""
    warnings.simplefilter("always")
    data = pydicom.dcmread(io.BytesIO(marked("PhotometricInterpretation")))
    with pytest.raises(ValueError, match="SECRET"):
        int(data.NumberOfFrames)
    assert MARK in str(data.ViewPosition)
    assert "SECRET" in caplog.text
    assert any("SECRET" in str(warning.message) for warning in recwarn)


def test_logging_and_warnings_are_as_before_after_reading_in_several_threads():
    logger = logging.getLogger("pydicom")
    filters, disabled = list(warnings.filters), logger.disabled
    good, bad = write_dicom(NOISY), write_dicom(DEEP)[:300]
    expected, failures = grey(good), array("i")

    def work():
        for _ in range(15):
            if not np.array_equal(grey(good), expected):
                failures.append(1)
            try:
                read_radiograph(bad)
                failures.append(1)
            except UnreadableImage:
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert (list(warnings.filters), logger.disabled) == (filters, disabled)


# Headers as they occur


# (share of 7,469 in the Indiana collection, header): benchmarks/dicom.py prints the classes.
CLASSES = [
    {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 12, "RescaleType": "LOG_E REL"},
    {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": 12, "WindowCenter": "1940", "WindowWidth": "2762"},
    {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": 12},
    {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": 15, "WindowCenter": "16383.5", "WindowWidth": "32767"},
    {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 15, "WindowCenter": "16384", "WindowWidth": "16384"},
    {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 15, "RescaleType": "P-VALUES"},
    {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": 12, "WindowCenter": "2047", "WindowWidth": "4095"},
    {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 10, "RescaleType": "US"},
    {"PhotometricInterpretation": "MONOCHROME1", "BitsStored": 10, "WindowCenter": "511", "WindowWidth": "1023"},
    {"PhotometricInterpretation": "MONOCHROME2", "BitsStored": 14, "WindowCenter": "8000", "WindowWidth": "9000"},
]


def blobs() -> np.ndarray:
    """A synthetic image with structure at several scales, 160 × 128."""
    y, x = np.mgrid[:160, :128] / 20.0
    image = np.sin(x) * np.cos(y) + 0.4 * np.sin(3 * x + y) + 0.2 * np.cos(9 * y - 4 * x)
    return np.rint((image - image.min()) / np.ptp(image) * 255).astype(np.uint8)


@pytest.mark.parametrize("header", CLASSES, ids=lambda header: "-".join(map(str, header.values())))
def test_the_source_image_comes_back_with_every_class_of_header_that_occurs(header):
    image = blobs()
    rescale = {"RescaleSlope": "1.0", "RescaleIntercept": "0.0"} if "RescaleType" in header else {}
    content = write_dicom(files.stored_values(image, header), **header, **rescale)
    assert files.similarity(np.asarray(read_radiograph(content)), image) > 0.99


def test_real_radiographs_come_back_with_the_headers_that_occur(iu):
    headers = [dict(combination) for combination, _ in files.read_headers(iu / "dicom_headers.csv.gz").most_common()]
    classes = {files.header_class(header): header for header in reversed(headers)}
    assert len(classes) == 16
    paths = sorted((iu / "images").glob("*.png"))
    for number, header in enumerate(classes.values()):
        source = read_radiograph(paths[number % len(paths)])
        source.thumbnail((384, 384))
        image = np.asarray(source)
        back = np.asarray(read_radiograph(write_dicom(files.stored_values(image, header), **header)))
        stretched = np.asarray(read_radiograph(image.astype(np.float32)))
        assert files.similarity(back, stretched) > 0.998, header
        assert files.similarity(back, image) > 0.85, header


def test_the_similarity_is_the_published_one():
    ramp = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))
    y, x = np.mgrid[:48, :64]
    wave = ((x * 7 + y * 13) % 256).astype(np.uint8)
    # scikit-image 0.26: structural_similarity(…, gaussian_weights=True, sigma=1.5, use_sample_covariance=False), its
    # map averaged without a border of 5 pixels
    assert files.similarity(ramp, wave) == pytest.approx(0.1484070492986)
    assert files.similarity(ramp, 255 - ramp) == pytest.approx(-0.0737931208868)
    assert files.similarity(ramp, ramp) == pytest.approx(1)


def test_pixels_of_another_shape_than_an_image_are_refused(monkeypatch):
    import hf_cxr.inference.dicom as dicom

    values = np.arange(4.0)
    frame = dicom.Frame(np.zeros((1, 1, 64), dtype=int), values, np.ones(4), None)
    monkeypatch.setattr(dicom, "read_frame", lambda *_: frame)
    with pytest.raises(UnreadableImage, match="not one grey frame"):
        read_radiograph(bytes(128) + b"DICM" + bytes(200))
