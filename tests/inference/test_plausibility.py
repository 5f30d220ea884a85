import io

import numpy as np
import pytest
from helpers import radiograph
from PIL import Image, ImageDraw, ImageOps

from hf_cxr.data.sources import phantom
from hf_cxr.inference.plausibility import colour, doubts
from hf_cxr.inference.views import read_radiograph


def doubts_of(source):
    return doubts(source, read_radiograph(source))


def photograph(height: int = 80, width: int = 70) -> np.ndarray:
    """A sky above a meadow, with noise."""
    image = np.zeros((height, width, 3), dtype=np.int16)
    image[: height // 2] = (90, 140, 220)
    image[height // 2 :] = (60, 150, 40)
    return (image + radiograph(3, height, width)[:, :, None] // 16).clip(0, 255).astype(np.uint8)


def encoded(image: np.ndarray, format: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format)
    return buffer.getvalue()


def test_a_grey_image_raises_no_doubt_in_whatever_form():
    grey = radiograph(1)
    thrice = np.stack([grey] * 3, axis=2)
    for source in (grey, grey.astype(np.uint16) * 16, thrice, encoded(grey, "PNG"), encoded(thrice, "JPEG")):
        assert doubts_of(source) == []


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_a_colour_photograph_is_doubted_in_whatever_form(format, tmp_path):
    image = photograph()
    (tmp_path / "p").write_bytes(encoded(image, format))
    for source in (image, Image.fromarray(image), encoded(image, format), tmp_path / "p", str(tmp_path / "p")):
        assert doubts_of(source) == ["a colour image, not a radiograph"]


@pytest.mark.parametrize("depth", ["float32", "float64", "uint16", "int32"])
def test_a_colour_photograph_is_doubted_at_any_depth(depth):
    image = photograph().astype(np.float64)
    scaled = (image / 255 if depth.startswith("float") else image * 257).astype(depth)
    assert doubts_of(scaled) == ["a colour image, not a radiograph"]
    assert colour(scaled) == pytest.approx(colour(photograph()), rel=0.5)
    grey = np.stack([radiograph(1)] * 3, axis=2).astype(depth) * 37 + 5
    assert doubts_of(grey) == []
    if depth.startswith("float"):
        scaled[0, 0], grey[0, 0] = (np.nan, np.inf, 1), np.nan
        assert doubts_of(scaled) == ["a colour image, not a radiograph"]
        assert doubts_of(grey) == []


def test_a_small_coloured_mark_on_a_radiograph_is_no_photograph():
    image = np.stack([np.asarray(phantom.draw(0, 1, "frontal", 200))] * 3, axis=2)
    image[:10, :40] = (255, 0, 0)
    assert 0 < colour(image) < 12
    assert doubts_of(image) == []


@pytest.mark.parametrize(
    ("shape", "doubt"),
    [
        ((20, 400), "only 400 × 20 pixels"),
        ((31, 31), "only 31 × 31 pixels"),
        ((40, 101), "101 × 40 pixels, longer than a chest radiograph is"),
        ((101, 40), "40 × 101 pixels, longer than a chest radiograph is"),
    ],
)
def test_wrong_dimensions_are_told(shape, doubt):
    assert doubts_of(radiograph(1, *shape)) == [doubt]


@pytest.mark.parametrize("shape", [(32, 32), (40, 100), (100, 40)])
def test_dimensions_at_the_edge_raise_no_doubt(shape):
    assert doubts_of(radiograph(1, *shape)) == []


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_all_one_value_is_told_at_any_depth(dtype):
    assert doubts_of(np.full((60, 60), 200, dtype=dtype)) == ["all pixels have one value"]


LATERAL, FRONTAL = (phantom.draw(4, 2, view, 256) for view in ("lateral", "frontal"))
NO_FILM = "does not look like an upright chest radiograph"


@pytest.mark.parametrize(
    ("image", "view", "doubt"),
    [
        (LATERAL, "frontal", ["looks like a lateral view, not a frontal one"]),
        (FRONTAL, "lateral", ["looks like a frontal view, not a lateral one"]),
        (FRONTAL, "frontal", []),
        (LATERAL, "lateral", []),
        (ImageOps.flip(FRONTAL), "frontal", [NO_FILM]),
        (LATERAL.rotate(180), "lateral", [NO_FILM]),
        (FRONTAL.rotate(90), None, [NO_FILM]),
        (LATERAL, None, []),
    ],
)
def test_the_other_view_and_a_chest_on_its_head_are_doubted(image, view, doubt):
    assert doubts(image, image, view) == doubt


def test_a_screenshot_of_a_page_is_doubted():
    page = Image.new("L", (700, 900), 255)
    pen = ImageDraw.Draw(page)
    for line in range(40):
        pen.text((60, 60 + 20 * line), "The heart is normal in size. The lungs are clear." * 2, fill=0, font_size=14)
    assert doubts(page, page, "frontal") == [NO_FILM]


def test_what_is_wrong_with_the_file_is_told_in_place_of_what_the_pixels_show():
    assert doubts(photograph(300, 300), Image.fromarray(radiograph(1, 300, 300)), "frontal") == [
        "a colour image, not a radiograph"
    ]


def test_a_real_radiograph_raises_no_doubt(shared_data):
    images = sorted(shared_data.rglob("*.png"))
    assert len(images) > 10
    assert {path.name: doubts_of(path) for path in images if doubts_of(path)} == {}
