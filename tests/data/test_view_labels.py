"""Frontal or lateral: decided from names, pixels and DICOM header."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from hf_cxr.data.archives import image_key
from hf_cxr.data.sources import phantom
from hf_cxr.data.view_labels import (
    MOST,
    SUFFIXES,
    decide_views,
    name_evidence,
    pixel_evidence,
    view_of,
)
from hf_cxr.inference.views import read_radiograph, shrink

BLOCKS = st.sampled_from([*SUFFIXES, "0001-0001", "x"])
NAMES = st.lists(
    st.builds("CXR7_IM-{:04d}-{}".format, st.integers(0, 20), BLOCKS), min_size=1, max_size=6, unique=True
)


def views(*names, **evidence):
    return "".join(view[0] for view, _ in decide_views(names, **evidence))


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["1_IM-0001-1001", "1_IM-0001-2001"], "fl"),
        (["1_IM-0001-1001", "1_IM-0001-4004"], "lf"),
        (["1_IM-0001-2001", "1_IM-0001-4004"], "lf"),
        (["1_IM-0001-2002", "1_IM-0001-3003"], "fl"),
        (["1_IM-0001-0001-0001", "1_IM-0001-0001-0002"], "fl"),
        (["a", "b"], "fl"),
        (["b", "a"], "lf"),  # the first in sorted order
        (["1_IM-0001-1001"], "f"),
        (["1_IM-0001-2001"], "l"),
    ],
)
def test_names_decide_where_there_is_nothing_else(names, expected):
    assert views(*names) == expected


def test_two_images_are_two_views_and_pixels_that_object_make_it_less_sure():
    assert views("a", "b", pixels=[3.0, 3.0]) == "fl"  # two frontals and no lateral are one study in 200
    (_, sure), (_, unsure) = (decide_views(["a", "b"], [3.0, evidence])[1] for evidence in (-3.0, 3.0))
    assert sure > 0.99 > 0.8 > unsure
    assert views("a", "b", "c", pixels=[3.0, 3.0, -3.0]) == "ffl"


def test_pixels_go_before_names_and_a_lateral_header_before_both():
    names = ["1_IM-0001-1001", "1_IM-0001-2001"]
    assert views(*names, pixels=[-3.0, 3.0]) == "lf"
    assert views(*names, hints=["lateral", None]) == "lf"
    assert views(*names, hints=["frontal", "frontal"]) == "fl"
    assert views(*names, hints=[None, "frontal"]) == "fl"  # a third of such headers are wrong


@given(NAMES, st.sampled_from(["", "images/", "x/y/"]), st.sampled_from(["", ".png", ".dcm", ".dcm.png", ".JPG"]))
def test_folder_and_suffix_do_not_matter(names, folder, suffix):
    assert decide_views([f"{folder}{name}{suffix}" for name in names]) == decide_views(names)


@given(NAMES, st.data())
def test_evidence_of_nothing_changes_nothing_and_confidence_is_a_probability(names, data):
    plain = decide_views(names)
    assert decide_views(names, [0.0] * len(names), [None] * len(names)) == plain
    assert decide_views(names, [None] * len(names)) == plain
    pixels = data.draw(st.lists(st.floats(-MOST, MOST), min_size=len(names), max_size=len(names)))
    hints = data.draw(
        st.lists(st.sampled_from(["frontal", "lateral", None]), min_size=len(names), max_size=len(names))
    )
    decided = decide_views(names, pixels, hints)
    assert len(decided) == len(names)
    assert all(view in ("frontal", "lateral") and 0.5 <= confidence <= 1 for view, confidence in decided)


@given(NAMES, st.data())
def test_more_evidence_for_a_view_never_makes_it_less_likely(names, data):
    index = data.draw(st.integers(0, len(names) - 1))
    low, high = sorted(data.draw(st.tuples(st.floats(-MOST, MOST), st.floats(-MOST, MOST))))

    def share(evidence):
        pixels = [evidence if i == index else 0.0 for i in range(len(names))]
        view, confidence = decide_views(names, pixels)[index]
        return confidence if view == "frontal" else 1 - confidence

    assert share(low) <= share(high) + 1e-9


def test_a_study_of_very_many_images_is_decided_at_once():
    start = time.perf_counter()
    assert len(decide_views([f"1_IM-0001-{i}" for i in range(300)])) == 300
    assert time.perf_counter() - start < 1


def test_most_phantom_views_are_told_by_their_pixels_bright_dark_or_inverted():
    drawn = [(r.source(), r.view) for study in phantom.studies(60, seed=2, size=192) for r in study.images]
    for change in (lambda image: image, lambda image: image.point(lambda v: v // 2), ImageOps.invert):
        right = [(pixel_evidence(change(image)) > 0) == (view == "frontal") for image, view in drawn]
        assert np.mean(right) > 0.9


def test_real_images_are_told_by_their_pixels(iu):
    laterals = {"1000_IM-0003-2001", "2_IM-0652-2001", "54_IM-2145-1002", "300_IM-1385-1002", "905_IM-2410-0001-0002"}
    for path in sorted((iu / "images").glob("*.png")):
        evidence = pixel_evidence(shrink(read_radiograph(path), 384))
        assert (evidence < 0) == (image_key(path.name) in laterals), path.name


STRIP = Image.fromarray(np.random.default_rng(0).integers(0, 256, (2, 500), dtype=np.uint8))


@pytest.mark.parametrize(
    "image", [Image.new("L", (40, 40)), Image.new("L", (1, 1), 9), Image.new("L", (500, 2), 3), STRIP]
)
def test_an_image_of_nothing_is_evidence_of_nothing(image):
    assert pixel_evidence(image) == 0


def test_pixel_evidence_is_bounded_and_cheap():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (384, 384), dtype=np.uint8))
    times = []
    for image in [noise, *(phantom.draw(0, index, "frontal", 384) for index in range(5))]:
        start = time.perf_counter()
        assert abs(pixel_evidence(image)) <= MOST
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005  # about 0.7 ms alone on a core


def test_names_beat_the_first_is_frontal_rule_on_the_real_collection(iu):
    from hf_cxr.data.sources.rows import read_rows

    studies: dict[str, list] = {}
    for row in read_rows(iu / "indiana_projections.csv"):
        studies.setdefault(row["uid"], []).append((row["filename"], row["projection"].lower()))
    pairs = [sorted(images) for images in studies.values() if len(images) == 2]

    def right(decide):
        return np.mean([decide([name for name, _ in pair]) == [view for _, view in pair] for pair in pairs])

    first = right(lambda names: ["frontal", "lateral"])
    assert first == pytest.approx(0.89, abs=0.005)
    assert right(lambda names: [view for view, _ in decide_views(names)]) > first + 0.015


def test_name_evidence_of_an_unknown_block_is_nothing():
    assert name_evidence("anything.png") == 0
    assert name_evidence("1_IM-0001-1001.png") > 2 > -2 > name_evidence("1_IM-0001-2001.dcm.png")


# Words for views


@pytest.mark.parametrize(
    ("words", "means"),
    [
        ("PA|pa|Posteroanterior|POSTERO-ANTERIOR|posterior anterior|CHEST PA|PA erect", ("frontal", "PA")),
        ("AP|AP Supine|AP_horizontal|AP semi erect|ANTEROPOSTERIOR|antero-posterior|PORTABLE AP", ("frontal", "AP")),
        ("Frontal|F|frontal view|AP/PA", ("frontal", "")),
        ("L|LL|RL|LAT|Lateral|LATERAL|left lateral|XTABLE LATERAL|Cross-table lateral", ("lateral", "")),
        ("AP LLD|PA RLD|LLD|Left Lateral Decubitus|decub|LATERAL DECUBITUS", ("neither", "")),
        ("LAO|RPO|LLO|oblique|PA oblique|Left anterior oblique", ("neither", "")),
        ("AP LORDOTIC|AP AXIAL|Axial|Coronal|SWIMMERS|Swimmer's|COSTAL|EXCLUDE|ABDOMEN AP|KUB", ("neither", "")),
        ("|UNK|unknown|nan|PA and lateral|XYZ|apex|palm|flat", (None, "")),
    ],
)
def test_the_words_of_the_collections_say_view_and_projection(words, means):
    assert {word: view_of(word) for word in words.split("|")} == dict.fromkeys(words.split("|"), means)
