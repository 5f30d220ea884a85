"""Frontal or lateral: decided from names, pixels and DICOM header."""

import csv
import json
import time
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from hf_cxr.data.archives import image_key
from hf_cxr.data.prepare import prepare
from hf_cxr.data.sources import phantom
from hf_cxr.data.view_labels import (
    SUFFIXES,
    decide_views,
    name_evidence,
    view_of,
)
from hf_cxr.inference.view_evidence import MOST, pixel_evidence
from hf_cxr.inference.views import read_radiograph, shrink

BLOCKS = st.sampled_from([*SUFFIXES, "0001-0001", "x"])
LATERALS = {"1000_IM-0003-2001", "2_IM-0652-2001", "54_IM-2145-1002", "300_IM-1385-1002", "905_IM-2410-0001-0002"}
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


def test_two_images_are_two_views_unless_the_pixels_of_both_object():
    (_, sure), (_, unsure) = (decide_views(["a", "b"], [3.0, evidence])[1] for evidence in (-3.0, 1.0))
    assert sure > 0.99 > 0.8 > unsure
    assert views("a", "b", pixels=[3.0, 1.0]) == "fl"
    assert views("a", "b", pixels=[4.0, None]) == "fl"  # nothing speaks of the second
    assert views("a", "b", "c", pixels=[3.0, 3.0, -3.0]) == "ffl"


def test_two_images_of_one_view_are_so_where_the_pixels_of_both_say_it():
    """That two images are two views was a prior of 200 to 1, Indiana's, which no pixels could outweigh."""
    assert views("a", "b", pixels=[3.0, 3.0]) == views("b", "a", pixels=[3.0, 3.0]) == "ff"
    assert views("a", "b", pixels=[-3.0, -3.0]) == "ll"
    assert views("a", "b", "c", pixels=[MOST, MOST, MOST]) == "fff"


def test_studies_of_two_real_images_are_told(iu):
    """Any two of the Indiana images with files: two frontals, two laterals, and one of each in either order."""
    odds = {
        path.name: pixel_evidence(shrink(read_radiograph(path), 384)) for path in sorted((iu / "images").glob("*.png"))
    }
    for (a, first), (b, second) in permutations(odds.items(), 2):
        expected = "".join("l" if image_key(name) in LATERALS else "f" for name in (a, b))
        assert views("x0", "x1", pixels=[first, second]) == expected, (a, b)


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


def test_real_images_are_told_by_their_pixels(iu):
    for path in sorted((iu / "images").glob("*.png")):
        evidence = pixel_evidence(shrink(read_radiograph(path), 384))
        assert (evidence < 0) == (image_key(path.name) in LATERALS), path.name


def test_an_image_that_is_no_chest_film_is_neither_and_the_others_are_decided_without_it():
    nothing = float("nan")
    assert decide_views(["a", "b", "c"], [nothing, 3.0, -3.0])[1:] == decide_views(["b", "c"], [3.0, -3.0])
    (view, sure), *_ = decide_views(["a", "b"], [nothing, None])
    assert (view, sure) == ("neither", 0.95)
    assert views("a", "b", pixels=[nothing, nothing]) == "nn"


def test_a_header_that_names_a_view_keeps_an_image_whose_pixels_say_it_is_no_chest_film():
    assert views("a", pixels=[float("nan")], hints=["lateral"]) == "l"
    assert views("a", pixels=[float("nan")], hints=["frontal"]) == "f"
    assert views("a", "b", pixels=[float("nan"), 3.0], hints=["lateral", None]) == "lf"


def test_a_page_in_place_of_a_film_of_unknown_view_is_not_used_and_told(tmp_path):
    """A collection that names no views: one study with a page among its films, one of the page alone."""
    page = Image.new("L", (400, 520), 255)
    for line in range(24):
        ImageDraw.Draw(page).text((30, 30 + 20 * line), "Heart size is normal. No effusion." * 2, font_size=11)
    films = {view: phantom.draw(3, 1, view, 256) for view in ("frontal", "lateral")}
    studies = {"CXR1_IM-1": (page, films["lateral"], films["frontal"]), "CXR2_IM-2": (page,)}
    entries = []
    for uid, images in studies.items():
        (tmp_path / "r2gen" / "images" / uid).mkdir(parents=True)
        paths = [f"{uid}/{i}.png" for i in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            image.save(tmp_path / "r2gen" / "images" / path)
        entries.append({"id": uid, "report": "No acute disease.", "image_path": paths, "split": "train"})
    (tmp_path / "r2gen" / "annotation.json").write_text(json.dumps({"train": entries, "val": [], "test": []}))
    prepare("r2gen", tmp_path / "out", root=tmp_path / "r2gen", section="findings", size=256)
    with (tmp_path / "out" / "images.csv").open() as stream:
        said = [(row["uid"], row["image"], row["view"], row["use"]) for row in csv.DictReader(stream)]
    assert said == [
        ("CXR1_IM-1", "CXR1_IM-1/0.png", "neither", "unused"),
        ("CXR1_IM-1", "CXR1_IM-1/1.png", "lateral", "used"),
        ("CXR1_IM-1", "CXR1_IM-1/2.png", "frontal", "used"),
        ("CXR2_IM-2", "CXR2_IM-2/0.png", "neither", "study left out"),
    ]


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
