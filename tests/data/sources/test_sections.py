"""Sections of free-text reports: every layout of `forms/layouts.py`, and what no text may do."""

import time

import pytest
from forms.layouts import LAYOUTS
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.data.sources.sections import sections

NAMES = {"impression", "findings", "indication", "comparison", "technique", "last_paragraph"}


@pytest.mark.parametrize(("text", "truth"), [pytest.param(text, truth, id=name) for name, text, truth in LAYOUTS])
def test_sections_of_a_layout(text: str, truth: dict[str, str]) -> None:
    assert sections(text) == dict.fromkeys(NAMES, "") | truth


def test_layouts_are_many_and_each_its_own() -> None:
    assert len(LAYOUTS) >= 40
    assert len({text for _, text, _ in LAYOUTS}) == len({name for name, _, _ in LAYOUTS}) == len(LAYOUTS)


WORDS = st.sampled_from(
    ["IMPRESSION", "Findings", ":", " ", "\n", "\n \n", "\t", "___", "______", "FINAL REPORT", "WET READ", "ADDENDUM:"]
)
OTHERS = st.sampled_from(["lungs clear", "PFI", "5:20", "CHEST", "and", "/", "(", ".", "é", "\r"])


@given(st.lists(WORDS | OTHERS, max_size=30).map("".join) | st.text(max_size=200))
def test_sections_hold_words_of_the_report_alone(text: str) -> None:
    found = sections(text)
    assert set(found) == NAMES
    words = " ".join(text.split())
    for name, said in found.items():
        assert said == " ".join(said.split())
        if name != "indication":  # joined of history and indication
            assert said in words or all(word in words for word in said.split())


@pytest.mark.parametrize("unit", ["IMPRESSION: a\n", "A ", "_" * 4, " ", "\t", "FINDINGS AND ", "a. IMPRESSION "])
def test_sections_of_a_huge_text_take_no_longer_than_its_length(unit: str) -> None:
    start = time.process_time()
    sections(unit * (400_000 // len(unit)))
    assert time.process_time() - start < 5
