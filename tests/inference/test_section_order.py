"""The order of the tokens of sections and context, what is cut of them, and what holds a text to its sections."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TEXTS

from hf_cxr.inference.checks import LAYOUT, UnusableCheckpoint
from hf_cxr.inference.generation import HeldToSections
from hf_cxr.inference.sections import (
    CONTEXT,
    SHORTEST_REPORT,
    Layout,
    SectionOrder,
    context_of,
    layout_of,
    prompt_ids,
    report_ids,
    split_sections,
)
from hf_cxr.models.modeling import train_tokenizer

REPORT = Layout(("findings", "impression"), ("indication", "age_sex"))
FINDINGS, IMPRESSION = "No effusion. Cardiomegaly is stable.", "Large heart. No edema."
MARKER, FORBIDDEN, END, WORD = 5, [6, 7], 2, 3  # tokens of a vocabulary of eight
SPACE, HALF = 0, 1  # two halves are a letter
WORDS = np.array([False, False, True, True, True, True, True, True])


def decode(ids: list[int]) -> str:
    return "".join({SPACE: " ", WORD: "a", 4: "b"}.get(token, "") for token in ids) + "c" * (ids.count(HALF) // 2)


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_tokenizer(TEXTS, 350)
    tokenizer.add_tokens(REPORT.tokens, special_tokens=True)
    return tokenizer


# --- context -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"age": 63.4, "sex": "F "}, {"age_sex": "63 years, F"}),
        ({"age": math.nan, "sex": None}, {}),
        ({"age": 0, "sex": ""}, {"age_sex": "0 years"}),
        ({"age": 5, "age_sex": "five years old"}, {"age_sex": "five years old"}),
        ({"indication": " Cough,\n\tfever ", "comparison": "  "}, {"indication": "Cough, fever"}),
    ],
)
def test_context_is_one_line_of_what_a_row_holds(row, found):
    assert context_of(row) == found


def test_a_prompt_is_the_context_in_the_order_of_the_layout_then_the_first_section(tokenizer):
    given = {"age_sex": "63 years, F", "comparison": "None", "indication": "Small effusion?"}
    told = "<indication>Small effusion?<age_sex>63 years, F<findings>"
    assert tokenizer.decode(prompt_ids(tokenizer, REPORT, given)) == told
    assert tokenizer.decode(prompt_ids(tokenizer, REPORT, {})) == "<findings>"
    assert prompt_ids(tokenizer, Layout(("findings", "impression")), given) == []


@pytest.mark.parametrize(
    "carried",
    [
        {"sections": ["impression", "findings"], "context": []},
        {"sections": ["impression"], "context": ["history"]},
        {"sections": ["impression"]},
        {"sections": None, "context": []},
        ["impression"],
    ],
)
def test_a_layout_that_is_none_of_the_kits_is_refused(carried):
    with pytest.raises(UnusableCheckpoint, match="names no sections or context of this kit"):
        layout_of(SimpleNamespace(**{LAYOUT: carried}))
    for layout in (Layout(), Layout(("findings",), CONTEXT), REPORT):
        assert layout_of(SimpleNamespace(**{LAYOUT: layout.saved()})) == layout


# --- targets -----------------------------------------------------------------------------------------------------


def test_a_report_is_findings_then_impression_and_comes_back_as_both(tokenizer):
    texts = {"findings": [FINDINGS, "Clear."], "impression": [IMPRESSION, "Normal."]}
    for place, ids in enumerate(report_ids(tokenizer, REPORT, texts, 200)):
        both = {name: values[place] for name, values in texts.items()}
        assert tokenizer.decode(ids) == "{findings}<impression>{impression}</s>".format(**both)
        assert split_sections(tokenizer, REPORT, ids) == both
    assert split_sections(tokenizer, REPORT, tokenizer("Clear.").input_ids) == {"findings": "Clear.", "impression": ""}


def test_long_sections_are_cut_at_the_end_of_a_sentence_and_both_stay(tokenizer):
    long = {"findings": [FINDINGS * 20], "impression": [IMPRESSION]}
    one = {"findings": ["No effusion."], "impression": [IMPRESSION * 9]}
    sizes = {text: len(tokenizer(text).input_ids) for text in ("No effusion.", "Large heart.")}
    longest = sizes["No effusion."] + sizes["Large heart."] + 2  # with the marker and the end
    [ids] = report_ids(tokenizer, REPORT, one, longest)
    assert split_sections(tokenizer, REPORT, ids) == {"findings": "No effusion.", "impression": "Large heart."}
    assert (len(ids), ids[-1]) == (longest, tokenizer.eos_token_id)
    sizes = {text: len(tokenizer(text).input_ids) for text in (FINDINGS, "Large heart.", IMPRESSION)}
    longest = sizes[FINDINGS] + sizes["Large heart."] + 2
    assert sizes[IMPRESSION] < longest, "the impression alone would fit"
    [ids] = report_ids(tokenizer, REPORT, {"findings": [FINDINGS], "impression": [IMPRESSION]}, longest)
    assert split_sections(tokenizer, REPORT, ids) == {"findings": FINDINGS, "impression": "Large heart."}
    assert (len(ids), ids[-1]) == (longest, tokenizer.eos_token_id)
    [ids] = report_ids(tokenizer, REPORT, long, 80)
    marker = ids.index(tokenizer.convert_tokens_to_ids("<impression>"))
    assert len(ids) <= 80
    assert marker <= 60, "three quarters are the most that findings take"
    assert tokenizer.eos_token_id not in ids[:marker]
    assert split_sections(tokenizer, REPORT, ids)["impression"] == IMPRESSION


def test_the_shortest_report_is_the_first_length_that_holds_both_sections_and_the_end(tokenizer):
    long = {"findings": ["effusion " * 20], "impression": ["pneumothorax " * 20]}
    marker = tokenizer.convert_tokens_to_ids("<impression>")
    for length in range(SHORTEST_REPORT, 40):
        [ids] = report_ids(tokenizer, REPORT, long, length)
        assert 0 < ids.index(marker) < length - 2, "a token of text and the end fit behind it"
    [ids] = report_ids(tokenizer, REPORT, long, SHORTEST_REPORT - 1)
    assert ids.index(marker) == SHORTEST_REPORT - 3


# --- generation --------------------------------------------------------------------------------------------------


def allowed(*written: int, markers=(MARKER,), longest: int | None = 8) -> set[int]:
    """The tokens that may follow `written`, behind a prompt that holds the marker too."""
    order = HeldToSections(SectionOrder(markers, FORBIDDEN, [END], longest, WORDS, decode), 2)
    before = torch.zeros(1, 8)
    scores = order(torch.tensor([[0, MARKER, *written]]), before)
    assert not before.any(), "the scores of the caller are left alone"
    return {token for token in range(8) if scores[0, token] > -math.inf}


def test_a_text_neither_ends_nor_changes_section_before_each_has_a_word_and_changes_once():
    others = {0, 1, 3, 4}
    assert allowed() == others
    assert allowed(WORD) == others | {MARKER}
    assert allowed(WORD, MARKER) == others
    assert allowed(WORD, MARKER, WORD) == others | {END}


def test_the_first_section_leaves_room_for_the_next():
    assert allowed(*[WORD] * 5) == {0, 1, 3, 4, MARKER}
    assert allowed(*[WORD] * 6) == {MARKER}
    assert allowed(*[WORD] * 6, longest=None) == {0, 1, 3, 4, MARKER}
    assert allowed(*[WORD] * 5, MARKER, WORD) == {0, 1, 3, 4, END}


def test_white_space_and_half_a_letter_are_no_text_of_a_section():
    others = {0, 1, 3, 4}
    assert allowed(SPACE) == allowed(SPACE, SPACE) == allowed(HALF) == others
    assert allowed(HALF, HALF) == allowed(SPACE, WORD) == others | {MARKER}
    assert allowed(WORD, MARKER, SPACE) == allowed(WORD, MARKER, HALF) == others
    assert allowed(WORD, MARKER, HALF, HALF) == others | {END}


def test_a_section_that_is_empty_near_its_limit_gets_a_word():
    assert allowed(*[SPACE] * 4) == {0, 1, 3, 4}
    assert allowed(*[SPACE] * 5) == {3, 4}
    assert allowed(*[SPACE] * 5, WORD) == {MARKER}
    assert allowed(WORD, MARKER, *[SPACE] * 4) == {0, 1, 3, 4}
    assert allowed(WORD, MARKER, *[SPACE] * 5) == {3, 4}
    for longest in range(5, 20):
        text: list[int] = []
        while len(text) < longest and (after := allowed(*text, longest=longest)) != {END}:
            text.append(min(after - {END, MARKER}, default=MARKER))  # white space wherever it may be
        first, second = decode(text[: text.index(MARKER)]), decode(text[text.index(MARKER) :])
        assert first.strip(), longest
        assert second.strip(), longest


def test_one_section_may_end_at_once_but_holds_no_token_of_context():
    assert allowed(markers=()) == {0, 1, 2, 3, 4, MARKER}


def test_each_row_of_a_batch_is_held_to_its_own_sections():
    order = HeldToSections(SectionOrder([MARKER], FORBIDDEN, [END], 8, WORDS, decode), 1)
    ids = torch.tensor([[0, WORD, MARKER, WORD], [0, WORD, WORD, WORD], [0, WORD, WORD, MARKER]])
    scores = order(ids, torch.zeros(3, 8))
    assert (scores[:, END] > -math.inf).tolist() == [True, False, False]
    assert (scores[:, MARKER] > -math.inf).tolist() == [False, True, False]
