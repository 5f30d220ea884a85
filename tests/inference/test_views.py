"""Reading one radiograph and packing the canvas."""

import io
import subprocess
import sys
import threading
import warnings
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, ImageFile

from hf_cxr.inference import decoding, dicom, levels, views
from hf_cxr.inference.views import (
    UnreadableImage,
    enough,
    fit_panel,
    pack_array,
    pack_views,
    read_radiograph,
    shrink,
)

RAMP = np.tile(np.linspace(0, 255, 64, dtype=np.uint8), (48, 1))  # brighter to the right, 64 × 48


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def rgba(level=255):
    alpha = np.full(RAMP.shape, level, dtype=np.uint8)
    return Image.fromarray(np.dstack([RAMP, RAMP, RAMP, alpha]))


def palette_alpha():
    image = Image.fromarray(RAMP).convert("P")
    return image.convert("PA")


MODES = {
    "1": lambda: Image.fromarray(RAMP > 127),
    "L": lambda: Image.fromarray(RAMP),
    "P": lambda: Image.fromarray(RAMP).convert("P"),
    "LA": lambda: Image.fromarray(RAMP).convert("LA"),
    "PA": palette_alpha,
    "RGB": lambda: Image.fromarray(RAMP).convert("RGB"),
    "RGBA": rgba,
    "CMYK": lambda: Image.fromarray(RAMP).convert("CMYK"),
    "YCbCr": lambda: Image.fromarray(RAMP).convert("YCbCr"),
    "HSV": lambda: Image.fromarray(RAMP).convert("RGB").convert("HSV"),
    "I;16": lambda: Image.fromarray(RAMP.astype(np.uint16) * 16),
    "I;16B": lambda: Image.frombytes("I;16B", (64, 48), (RAMP.astype(np.uint16) * 16).astype(">u2").tobytes()),
    "I": lambda: Image.fromarray(RAMP.astype(np.int32) * 1000 - 7),
    "F": lambda: Image.fromarray(RAMP.astype(np.float32) / 255),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_pixel_mode_reads_as_the_same_grey_ramp(mode):
    image = MODES[mode]()
    assert image.mode == mode
    grey = read_radiograph(image)
    assert (grey.mode, grey.size) == ("L", (64, 48))
    expected = (RAMP > 127) * 255 if mode == "1" else RAMP
    assert np.abs(np.asarray(grey).astype(int) - expected).max() <= (9 if mode == "P" or mode == "PA" else 3)


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 95}),
        ("TIFF", {}),
        ("BMP", {}),
        ("GIF", {}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_the_usual_file_formats_are_read_from_a_path_or_from_bytes(tmp_path, format, options):
    path = tmp_path / "view.bin"
    path.write_bytes(encoded(Image.fromarray(RAMP), format, **options))
    for source in (path, str(path), path.read_bytes()):
        assert np.abs(np.asarray(read_radiograph(source)).astype(int) - RAMP).max() <= 2


def test_eight_bit_values_are_kept_as_they_are():
    dull = np.clip(RAMP, 90, 130)
    for source in (dull, Image.fromarray(dull), encoded(Image.fromarray(dull))):
        assert np.array_equal(np.asarray(read_radiograph(source)), dull)


def test_deep_values_are_stretched_over_their_own_range_not_the_range_of_the_container(tmp_path):
    deep = 1000 + RAMP.astype(np.uint16) * 4  # twelve bits' worth in sixteen
    Image.fromarray(deep).save(tmp_path / "deep.png")
    for source in (deep, deep.astype(np.int64), deep / 7.0, tmp_path / "deep.png"):
        grey = np.asarray(read_radiograph(source))
        assert (grey.min(), grey.max()) == (0, 255)
        assert np.abs(grey.astype(int) - RAMP).max() <= 3


def test_one_hot_pixel_does_not_darken_the_image():
    deep = RAMP.astype(np.uint16) * 4
    deep[0, 0] = 65535
    assert np.abs(np.asarray(read_radiograph(deep)).astype(int)[1:] - RAMP[1:]).max() <= 3


def test_a_small_object_on_an_empty_background_is_not_lost():
    deep = np.zeros((100, 100), dtype=np.uint16)
    deep[3, 4] = 900
    assert np.asarray(read_radiograph(deep))[3, 4] == 255


@pytest.mark.parametrize("value", [0, 7, -3.5, 65535])
def test_a_constant_deep_image_is_black(value):
    assert not np.asarray(read_radiograph(np.full((5, 6), value, dtype=np.float64))).any()


def test_numbers_that_are_not_finite_do_not_spoil_the_rest():
    values = RAMP.astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    grey = np.asarray(read_radiograph(values))
    assert tuple(grey[0, :3]) == (0, 255, 0)
    assert np.abs(grey[1:].astype(int) - RAMP[1:]).max() <= 3
    with pytest.raises(UnreadableImage, match="no finite pixel"):
        read_radiograph(np.full((4, 4), np.nan))


def test_transparency_is_laid_on_black():
    assert np.asarray(read_radiograph(rgba(level=0))).max() == 0
    half = np.asarray(read_radiograph(rgba(level=128))).astype(int)
    assert np.abs(half - RAMP * (128 / 255)).max() <= 2
    keyed = encoded(Image.fromarray(np.full((4, 4), 200, np.uint8)), transparency=200)
    assert np.asarray(read_radiograph(keyed)).max() == 0


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90° clockwise
    upright = read_radiograph(encoded(Image.fromarray(RAMP), "JPEG", quality=95, exif=exif))
    assert upright.size == (48, 64)
    assert np.asarray(upright)[0].mean() < 10 < 245 < np.asarray(upright)[-1].mean()


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1), (5, 6, 3), (5, 6, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, bool, np.uint16, np.float32])
def test_arrays_of_the_usual_shapes_are_read(shape, dtype):
    array = np.full(shape, 1 if dtype in (np.uint8, bool) else 300).astype(dtype)
    if shape[-1] == 4 and dtype not in (np.uint8, bool):
        with pytest.raises(UnreadableImage, match="alpha"):
            read_radiograph(array)
    else:
        assert read_radiograph(array).size == (6, 5)


@pytest.mark.parametrize("shape", [(5, 6), (5, 6, 3), (5, 6, 4)])
def test_eight_bits_are_kept_in_whatever_type_they_come(shape):
    image = np.random.default_rng(0).integers(40, 180, shape, dtype=np.uint8)  # no black and no white
    kept = np.asarray(read_radiograph(image))
    for dtype in (np.int16, np.uint16, np.int64, np.uint64):
        np.testing.assert_array_equal(np.asarray(read_radiograph(image.astype(dtype))), kept)
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(np.asarray(read_radiograph((image / 255).astype(dtype))), kept)
    if len(shape) == 2:
        overshot = (image / 255).astype(np.float32)
        overshot[0, :3] = -1e-7, 1.0001, np.nan
        expected = np.concatenate([[0, 255, 0], kept.ravel()[3:]]).reshape(shape)
        np.testing.assert_array_equal(np.asarray(read_radiograph(overshot)), expected)
        deep = Image.fromarray(image.astype(np.uint16))
        for stretched in (image.astype(np.uint16) * 16, deep, encoded(deep, "PNG"), image * 1.5):
            levels = np.asarray(read_radiograph(stretched))
            assert (levels.min(), levels.max()) == (0, 255)


@pytest.mark.parametrize(
    "array", [np.zeros(5), np.zeros((5, 6, 2)), np.zeros((0, 5)), np.zeros((2, 2), complex), np.array([["a"]])]
)
def test_other_arrays_are_refused(array):
    with pytest.raises(UnreadableImage, match="array: "):
        read_radiograph(array)


def test_a_callable_is_called_and_its_failure_named():
    assert read_radiograph(partial(Image.new, "L", (3, 4))).size == (3, 4)
    assert read_radiograph(lambda: RAMP).size == (64, 48)

    def broken_view():
        raise KeyError("no such case")

    with pytest.raises(UnreadableImage, match="broken_view: KeyError"):
        read_radiograph(broken_view)
    with pytest.raises(UnreadableImage, match="returned NoneType"):
        read_radiograph(lambda: None)
    with pytest.raises(TypeError, match="not int"):
        read_radiograph(3)


def make_broken(folder: Path) -> dict[str, tuple[Path, str]]:
    png = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64), dtype=np.uint8)))
    contents = {
        "empty.png": (b"", "zero bytes"),
        "text.png": (b"<html>404</html>", "not an image"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "header.png": (png[:20], "not an image|truncated"),
        "script.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        "new\nline.png": (b"junk", "not an image"),
        "junk.dcm": (b"junk" * 100, "not a DICOM image|pydicom"),
    }
    for name, (content, _) in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    broken = {name: (folder / name, what) for name, (_, what) in contents.items()}
    broken["folder.png"] = (folder / "folder.png", "is a folder")
    broken["absent.png"] = (folder / "absent.png", "no such file")
    return broken


@pytest.mark.parametrize(
    "name",
    [
        "empty.png",
        "text.png",
        "half.png",
        "header.png",
        "script.png",
        "new\nline.png",
        "junk.dcm",
        "folder.png",
        "absent.png",
    ],
)
def test_a_broken_file_is_named_in_one_line_with_what_is_wrong(tmp_path, name):
    path, what = make_broken(tmp_path)[name]
    with pytest.raises(UnreadableImage, match=what) as caught:
        read_radiograph(path)
    message = str(caught.value)
    assert " ".join(name.split()) in message
    assert "\n" not in message


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]), st.floats(0.01, 0.999))
def test_a_truncated_file_is_refused_or_gives_every_pixel(format, share):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50), dtype=np.uint8))
    whole = encoded(image, format)
    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = True  # as some libraries set it for the whole process
    try:
        grey = read_radiograph(whole[: int(len(whole) * share)])
    except UnreadableImage:
        return
    finally:
        assert ImageFile.LOAD_TRUNCATED_IMAGES is True
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    assert np.array_equal(np.asarray(grey), np.asarray(read_radiograph(whole)))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP"]), st.data())
def test_damaged_bytes_raise_nothing_but_unreadable_image(format, data):
    damaged = bytearray(encoded(Image.fromarray(RAMP), format))
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            outcome = read_radiograph(bytes(damaged)).mode
        except UnreadableImage as error:
            outcome = str(error)
    assert outcome == "L" or ("image bytes: " in outcome and "\n" not in outcome)


def test_a_decompression_bomb_is_refused_before_it_is_decoded(monkeypatch):
    bomb = encoded(Image.new("1", (20_000, 20_000)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UnreadableImage, match="too large"):
            read_radiograph(bomb)
    monkeypatch.setattr(views, "MAX_PIXELS", 1000)
    for source in (RAMP, Image.fromarray(RAMP), encoded(Image.fromarray(RAMP)), RAMP.astype(float)):
        with pytest.raises(UnreadableImage, match="too large"):
            read_radiograph(source)


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")


def png_with(chunk: bytes, image=RAMP) -> bytes:
    """A PNG of `image` with a chunk put in behind its header."""
    whole = encoded(Image.fromarray(image))
    return whole[:33] + chunk + whole[33:]


def test_a_small_file_that_claims_to_be_huge_is_refused():
    size = (60_000).to_bytes(4, "big")
    header = png_chunk(b"IHDR", size + size + bytes([8, 0, 0, 0, 0]))
    rest = png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    with pytest.raises(UnreadableImage, match="too large"):
        read_radiograph(b"\x89PNG\r\n\x1a\n" + header + rest)


def test_a_metadata_bomb_is_refused_and_common_metadata_is_dropped():
    bomb = zlib.compress(bytes(100_000_000), 9)
    for chunk in (png_chunk(b"zTXt", b"Comment\0\0" + bomb), png_chunk(b"iCCP", b"icc\0\0" + bomb)):
        with pytest.raises(UnreadableImage, match="image bytes: "):
            read_radiograph(png_with(chunk))
    named = png_with(
        png_chunk(b"tEXt", b"Comment\0SECRET") + png_chunk(b"iCCP", b"icc\0\0" + zlib.compress(b"SECRET"))
    )
    jpeg = encoded(Image.fromarray(RAMP), "JPEG", comment=b"SECRET", icc_profile=b"SECRET", quality=95)
    for source in (named, jpeg, Image.open(io.BytesIO(named))):
        grey = read_radiograph(source)
        assert np.abs(np.asarray(grey).astype(int) - RAMP).max() <= 2
        assert grey.info == {}
        assert b"SECRET" not in encoded(grey) + encoded(grey, "JPEG")


@pytest.mark.parametrize("format", ["GIF", "PNG", "TIFF", "WEBP"])
def test_several_images_in_one_file_are_refused(format):
    pages = [Image.fromarray(RAMP), Image.fromarray(RAMP[::-1, ::-1].copy())]
    with pytest.raises(UnreadableImage, match="several images in one file"):
        read_radiograph(encoded(pages[0], format, save_all=True, append_images=pages[1:]))


def test_of_the_jpeg_of_a_camera_with_a_preview_the_image_is_read():
    several = encoded(Image.fromarray(RAMP), "MPO", save_all=True, append_images=[Image.new("L", (8, 8))])
    assert Image.open(io.BytesIO(several)).n_frames == 2
    assert read_radiograph(several).size == (64, 48)


def test_sixteen_bit_colour_is_refused_because_only_its_upper_half_could_be_read():
    for kind, channels in ((2, 3), (4, 2), (6, 4)):  # RGB, grey with alpha, RGB with alpha
        header = png_chunk(b"IHDR", (4).to_bytes(4, "big") * 2 + bytes([16, kind, 0, 0, 0]))
        rows = zlib.compress((b"\0" + b"\x03\xff" * channels * 4) * 4)
        content = b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
        with pytest.raises(UnreadableImage, match="16 bits a channel"):
            read_radiograph(content)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_zero_is_white_is_not_read_as_a_negative(dtype):
    values = RAMP.astype(dtype) * (257 if dtype == np.uint16 else 1)
    content = encoded(Image.fromarray(values), "TIFF")
    entry = bytes([6, 1, 3, 0, 1, 0, 0, 0])  # tag 262, PhotometricInterpretation, one short
    assert content.count(entry + b"\x01") == 1
    negative = content.replace(entry + b"\x01", entry + b"\x00")
    assert np.abs(np.asarray(read_radiograph(content)).astype(int) - RAMP).max() <= 3
    assert np.abs(np.asarray(read_radiograph(negative)).astype(int) - (255 - RAMP)).max() <= 3


def test_a_float_tiff_with_holes_and_a_cmyk_jpeg_are_read():
    values = RAMP.astype(np.float32)
    values[0] = np.nan
    grey = np.asarray(read_radiograph(encoded(Image.fromarray(values), "TIFF"))).astype(int)
    assert not grey[0].any()
    assert np.abs(grey[1:] - RAMP[1:]).max() <= 3
    cmyk = encoded(Image.fromarray(RAMP).convert("CMYK"), "JPEG", quality=98)
    assert np.abs(np.asarray(read_radiograph(cmyk)).astype(int) - RAMP).max() <= 4


def test_an_image_that_is_all_in_its_alpha_channel_is_black():
    alone = Image.fromarray(np.dstack([np.zeros_like(RAMP), RAMP]))
    assert alone.mode == "LA"
    assert not np.asarray(read_radiograph(encoded(alone))).any()


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.uint32, np.int64, np.uint64])
def test_integers_at_the_ends_of_their_type_do_not_wrap(dtype):
    info = np.iinfo(dtype)
    for start in (info.min, info.max - 255):
        values = np.array([start + int(level) for level in RAMP.ravel()], dtype=dtype).reshape(RAMP.shape)
        assert np.abs(np.asarray(read_radiograph(values)).astype(int) - RAMP).max() <= 3


def test_the_source_image_is_left_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    source = Image.open(io.BytesIO(encoded(Image.fromarray(RAMP), "JPEG", exif=exif, comment=b"mine")))
    read_radiograph(source)
    assert source.size == (64, 48)
    assert source.info["comment"] == b"mine"
    assert source.getexif()[0x0112] == 6
    plain = Image.fromarray(RAMP)
    read_radiograph(plain).putpixel((0, 0), 99)
    assert plain.getpixel((0, 0)) == 0


@pytest.mark.parametrize("lenient", [False, True])
def test_threads_refuse_truncated_files_and_leave_the_switch_of_pillow_as_it_was(lenient):
    image = Image.fromarray(np.random.default_rng(1).integers(0, 255, (400, 400), dtype=np.uint8))
    half = encoded(image, "JPEG")[:40_000]
    whole = encoded(image)
    accepted = []

    def work():
        for _ in range(30):
            read_radiograph(whole)
            try:
                read_radiograph(half)
                accepted.append(1)
            except UnreadableImage:
                pass

    before = ImageFile.LOAD_TRUNCATED_IMAGES
    ImageFile.LOAD_TRUNCATED_IMAGES = lenient
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert ImageFile.LOAD_TRUNCATED_IMAGES is lenient
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = before
    assert not accepted


def test_aspect_ratio_is_kept_and_the_rest_is_black():
    wide = np.asarray(fit_panel(Image.new("L", (400, 200), 255), 100))
    tall = np.asarray(fit_panel(Image.new("L", (200, 400), 255), 100))
    for panel in (wide, tall.T):
        assert panel.shape == (100, 100)
        assert panel[25:75].min() == 255
        assert panel[:25].max() == panel[75:].max() == 0


def test_fine_stripes_average_out_when_an_image_is_made_small():
    stripes = np.zeros((1000, 1000), dtype=np.uint8)
    stripes[:, ::2] = 200
    panel = np.asarray(fit_panel(Image.fromarray(stripes), 50)).astype(int)
    assert np.abs(panel[5:-5, 5:-5] - 100).max() <= 2


def test_a_jpeg_may_be_decoded_small_without_changing_the_panel():
    smooth = Image.fromarray(RAMP).resize((1600, 1200), Image.Resampling.BICUBIC)
    jpeg = encoded(smooth, "JPEG", quality=95)
    assert read_radiograph(jpeg).size == (1600, 1200)
    assert read_radiograph(jpeg, at_least=128).size == (200, 150)
    difference = pack_array(jpeg, None, 64).astype(int) - pack_array(smooth, None, 64)
    assert np.abs(difference).max() <= 3


@pytest.mark.parametrize(
    ("longer", "size", "decoded"),
    [(3056, 384, 382), (3040, 384, 760), (2496, 384, 624), (2284, 384, 1142), (1144, 384, 572), (1140, 384, 1140)],
)
def test_a_jpeg_is_decoded_small_as_long_as_enough_pixels_are_left(longer, size, decoded):
    """At 1/8 one pixel in a hundred may lack; at 1/4 and 1/2 half as many again are left."""
    jpeg = encoded(Image.new("L", (longer // 4, longer), 99), "JPEG")
    assert max(read_radiograph(jpeg, at_least=enough(size)).size) == decoded


def test_a_jpeg_decoded_at_an_eighth_gives_the_panel_that_all_its_pixels_give(shared_data, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from dicom import similarity

    for path in sorted((shared_data / "iu" / "images").glob("1000*.png")):
        jpeg = encoded(Image.open(path), "JPEG", quality=95)
        small, whole = read_radiograph(jpeg, at_least=312), read_radiograph(jpeg)
        assert max(small.size) == 312 < max(whole.size)
        assert similarity(np.asarray(fit_panel(small, 312)), np.asarray(fit_panel(whole, 312))) >= 0.99


@pytest.mark.parametrize("longer", [1150, 1776, 2270, 3056])
@pytest.mark.parametrize("size", [224, 384])
def test_a_jpeg_gives_the_panel_that_training_made_of_it(iu, monkeypatch, longer, size):
    """`prepare` stores at 384 pixels what a panel of 224 is made of later."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from dicom import similarity

    film = Image.open(iu / "images" / "2_IM-0652-1001.dcm.png").convert("L")
    film = film.resize((longer * film.width // film.height, longer), Image.Resampling.BICUBIC)
    jpeg = encoded(film, "JPEG", quality=95)
    trained_on = fit_panel(shrink(read_radiograph(jpeg, at_least=enough(384)), 384), size)
    assert similarity(np.asarray(trained_on), pack_array(jpeg, None, size)[:, :size]) >= 0.996


def test_shrink_never_enlarges():
    assert shrink(Image.new("L", (300, 600)), 200).size == (100, 200)
    assert shrink(Image.new("L", (30, 60)), 200).size == (30, 60)
    assert shrink(Image.new("L", (1, 5000)), 10).size == (1, 10)


def test_frontal_is_the_left_panel_and_lateral_the_right():
    canvas = pack_array(np.full((8, 8), 50, np.uint8), np.full((8, 8), 200, np.uint8), 16)
    assert (canvas[:, :16] == 50).all()
    assert (canvas[:, 16:] == 200).all()


def test_missing_lateral_is_an_empty_panel():
    canvas = pack_array(np.full((8, 8), 50, np.uint8), None, 16)
    assert (canvas[:, :16] == 50).all()
    assert not canvas[:, 16:].any()
    assert not pack_array(None, np.full((8, 8), 50, np.uint8), 16)[:, :16].any()


def test_a_study_without_any_view_is_an_error():
    with pytest.raises(ValueError, match="at least one view"):
        pack_views(None, None)


@pytest.mark.parametrize("size", [0, -3, 2.5, True, "224"])
def test_a_panel_size_that_is_no_pixel_count_is_an_error(size):
    with pytest.raises(ValueError, match="size is a positive number"):
        pack_views(RAMP, None, size)


images = hnp.arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40)))


@settings(max_examples=80, deadline=None)
@given(st.none() | images, st.none() | images, st.integers(1, 40))
def test_the_canvas_always_has_its_shape_and_panels_do_not_touch(frontal, lateral, size):
    if frontal is None and lateral is None:
        return
    canvas = pack_array(frontal, lateral, size)
    assert (canvas.shape, canvas.dtype) == ((size, 2 * size), np.uint8)
    for view, panel in ((frontal, canvas[:, :size]), (lateral, canvas[:, size:])):
        alone = pack_array(view, None, size)[:, :size] if view is not None else np.zeros((size, size))
        assert np.array_equal(panel, alone)
    image = pack_views(frontal, lateral, size)
    assert (image.mode, image.size) == ("RGB", (2 * size, size))
    assert all(np.array_equal(np.asarray(band), canvas) for band in image.split())


@pytest.mark.parametrize("do_resize", [False, True])
def test_a_stock_image_processor_takes_the_canvas(do_resize):
    transformers = pytest.importorskip("transformers")
    processor = transformers.ViTImageProcessorPil(
        size={"height": 32, "width": 64}, do_resize=do_resize, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    canvas = pack_views(RAMP, RAMP, 32)
    pixels = processor(canvas, return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 64)
    assert np.allclose(pixels[0, 0], np.asarray(canvas)[:, :, 0] / 127.5 - 1, atol=0.02)


def test_the_files_travel_alone_and_ask_for_nothing_but_numpy_and_pillow(tmp_path):
    utils = pytest.importorskip("transformers.dynamic_module_utils")
    for module in (views, decoding, levels, dicom):
        outside = set(utils.get_imports(module.__file__)) - set(sys.stdlib_module_names)
        assert outside <= {"numpy", "PIL"}, module
    assert sorted(utils.get_relative_imports(views.__file__)) == ["decoding", "dicom", "levels"]
    for module in (decoding, levels, dicom):
        assert utils.get_relative_imports(module.__file__) == []
    for module in (views, decoding, levels):
        file = tmp_path / "alone" / Path(module.__file__).name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(Path(module.__file__).read_bytes())
    code = (
        "from alone import views; import sys; views.pack_views(views.np.ones((4, 4)), None, 8);"
        "print(any(n.split('.')[0] in ('hf_cxr', 'torch', 'pydicom') for n in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# Real images


def test_real_radiographs_fill_their_panels(shared_data):
    for path in sorted((shared_data / "iu" / "images").glob("*.png")) + sorted(
        (shared_data / "nih_frontal").glob("*.png")
    ):
        canvas = pack_array(path, None, 96)
        assert canvas[:, :96].std() > 20
        assert np.asarray(read_radiograph(path)).shape[::-1] == Image.open(path).size


@pytest.mark.parametrize("kind", ["rgba", "I;16", "I", "F", "float64 to 1", "float32"])
def test_reading_takes_little_more_memory_than_the_image(kind):
    """Measured in a process of its own: what Pillow takes, Python does not see."""
    code = """
import resource, sys
import numpy as np
from PIL import Image
from hf_cxr.inference.views import read_radiograph
kind, n = sys.argv[1], 3000
ramp = np.tile(np.arange(n, dtype=np.float32), (n, 1))
if kind == "rgba":
    source = Image.merge("RGBA", [Image.fromarray((ramp % 256).astype(np.uint8))] * 4)
elif kind.startswith("float"):
    source = (ramp / n).astype(np.float64) if kind == "float64 to 1" else ramp
else:
    source = Image.fromarray(ramp.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[kind]))
    assert source.mode == kind
del ramp
read_radiograph(np.float32([[0, 1], [2, 3]]))
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) / 1024
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew
before = peak()
grey = read_radiograph(source)
print(peak() - before)
"""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("needs /proc")
    run = subprocess.run([sys.executable, "-c", code, kind], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 9 + 30  # MB: the grey image, and strips


def test_strips_of_an_image_give_what_the_whole_gives(monkeypatch):
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (37, 23, 4), dtype=np.uint8)
    odd = rng.normal(0, 900, (37, 23))
    odd[3:5] = np.nan
    odd[0, 0] = np.inf
    palette = Image.fromarray(colours[:, :, :3]).quantize(16)
    palette.info["transparency"] = 3
    sources = [
        *(
            Image.fromarray(colours),
            Image.fromarray(colours).convert("LA"),
            palette,
            Image.fromarray(colours[..., :3]),
        ),
        *(
            Image.fromarray(colours).convert("CMYK"),
            Image.fromarray(odd.astype(np.float32)),
            odd,
            odd.astype(np.float16),
        ),
        *(Image.fromarray(colours[:, :, 0].astype(np.uint16) * 99), colours[:, :, 0].astype(np.int64) * -7),
        *(
            Image.fromarray(colours[:, :, 0].astype(np.int32) * 9999),
            np.stack([odd] * 3, axis=-1),
            rng.random((37, 23)),
        ),
        Image.fromarray(colours[:, :, 0] > 99),
    ]
    whole = [np.asarray(read_radiograph(source)) for source in sources]
    for size in (1, 50, 400):
        monkeypatch.setattr(levels, "STRIP", size)
        monkeypatch.setattr(levels, "CACHE", 1 + size // 3)
        for source, expected in zip(sources, whole, strict=True):
            assert np.array_equal(np.asarray(read_radiograph(source)), expected)
