"""Who decodes a file makes no difference: the fast decoder of plain PNG against Pillow, and what is said of both."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin, features

from hf_cxr.inference import decoding
from hf_cxr.inference.views import UnreadableImage, read_radiograph

kornia = pytest.importorskip("kornia_rs")
GREY = np.random.default_rng(0).integers(0, 256, (40, 56), dtype=np.uint8).cumsum(axis=1, dtype=np.uint8)
KINDS = {
    "grey": Image.fromarray(GREY),
    "16 bits": Image.fromarray(GREY.astype(np.uint16) * 99 + 7),
    "colour": Image.fromarray(np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])),
}


def png(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def outcome(content):
    try:
        return np.asarray(read_radiograph(content)).tolist()
    except UnreadableImage as error:
        return str(error)


def with_pillow_alone(content):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "kornia", None)
        assert decoding.plain_png(content, (56, 40)) is None
        return outcome(content)


@pytest.mark.parametrize("kind", KINDS)
def test_a_plain_png_is_decoded_fast_and_to_the_same_pixels(kind):
    content = png(KINDS[kind])
    pixels = decoding.plain_png(content, KINDS[kind].size)
    assert pixels.dtype == np.asarray(KINDS[kind]).dtype
    assert np.array_equal(pixels, np.asarray(KINDS[kind]))
    assert outcome(content) == with_pillow_alone(content)


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return png(KINDS["grey"], exif=exif)


def with_text(key):
    info = PngImagePlugin.PngInfo()
    info.add_text(key, "x" * 30)
    return png(KINDS["grey"], pnginfo=info)


@pytest.mark.parametrize(
    "content",
    [
        turned(),
        with_text("XML:com.adobe.xmp"),
        with_text("Raw profile type exif"),
        png(KINDS["grey"], transparency=7),
        png(KINDS["grey"].convert("P")),
        png(KINDS["grey"].convert("LA")),
        png(KINDS["grey"].convert("1")),
        png(KINDS["grey"])[:-14],
        png(KINDS["grey"])[:-1000],
    ],
    ids="turned xmp exif transparent palette alpha bits no-end truncated".split(),
)
def test_every_other_png_is_left_to_pillow(content):
    assert decoding.plain_png(content, (56, 40)) is None
    assert outcome(content) == with_pillow_alone(content)


def test_a_comment_does_not_make_a_png_slow():
    assert decoding.plain_png(with_text("Software"), (56, 40)) is not None


@settings(max_examples=150, deadline=None)
@given(kind=st.sampled_from(sorted(KINDS)), at=st.integers(8, 10**6), value=st.integers(1, 255))
def test_a_damaged_png_has_the_same_outcome_whoever_decodes_it(kind, at, value):
    content = bytearray(png(KINDS[kind]))
    content[at % len(content)] ^= value
    fast, slow = outcome(bytes(content)), with_pillow_alone(bytes(content))
    assert fast == slow


def test_a_decoder_that_panics_leaves_the_file_to_pillow(monkeypatch):
    class Panic(BaseException):
        """As a panic in Rust arrives."""

    def panic(*arguments):
        raise Panic

    monkeypatch.setattr(decoding.kornia, "decode_image_png_u8", panic)
    content = png(KINDS["grey"])
    assert np.array_equal(outcome(content), GREY)


def test_the_name_of_the_decoder_holds_all_that_pixels_depend_on(monkeypatch):
    name = decoding.decoder()
    assert f"Pillow {Image.__version__}" in name
    assert f"kornia-rs {kornia.__version__}" in name
    assert (features.version_feature("libjpeg_turbo") or "") in name
    assert all(re.fullmatch(r"\S+ \S+", part) for part in name.split(", "))
    monkeypatch.setattr(decoding, "kornia", None)
    assert decoding.decoder() == name.replace(f", kornia-rs {kornia.__version__}", "")


def test_real_png_files_have_the_same_pixels(shared_data: Path):
    for path in sorted((shared_data / "iu" / "images").glob("*.png")):
        pixels = decoding.plain_png(path.read_bytes(), Image.open(path).size)
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(Image.open(path)))
