"""Placeholders of every collection. The sentences are our own, in each collection's style."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.data.placeholders import PLACEHOLDER_POLICIES, count_placeholders
from hf_cxr.data.study import clean_text
from hf_cxr.inference.labeler import label

MIMIC = [
    ("Unchanged compared to ___.", "Unchanged."),
    (
        "In comparison with the study of ___, there is little change.",
        "In comparison with the study, there is little change.",
    ),
    ("Compared to ___ there is a new effusion.", "There is a new effusion."),
    ("Comparison to ___ at 05:27, the tube is out.", "The tube is out."),
    ("___ chest radiograph. Clear lungs.", "Chest radiograph. Clear lungs."),
    ("Right-sided ___ catheter ends in the SVC.", "Right-sided catheter ends in the SVC."),
    ("Cardiomegaly as on ___ and ___.", "Cardiomegaly."),
    ("Recommend follow-up with Dr. ___.", "Recommend follow-up."),
    ("1. ___, new line. 2. Edema.", "New line. Edema."),
    ("________________ Stable heart.", "Stable heart."),
    ("Edema, new since _ _.", "Edema, new."),
]
NOTES = [
    "Dr. ___ was notified of the findings at 3:15 on ___.",
    "These findings were communicated to ___ at 10:15 on ___ by phone.",
    "Findings were discussed with Dr. ___ by Dr. ___ by telephone at 9:40 a.m. on ___.",
    "NOTIFICATION: The impression was paged to Dr. ___ at 11:02 AM on ___, 2 minutes after discovery.",
    "Findings were entered into the critical results dashboard by Dr. ___ on ___.",
    "Dr. [**Last Name (STitle) 42**] was called with the results at [**Hospital1 18**].",
    "Read by [REDACTED] on [DATE].",
]
OTHERS = [
    ("Compared with [**2101-3-4**], the effusion is larger.", "The effusion is larger."),
    ("Edema, new since <DATE>.", "Edema, new."),
    ("Discussed with Dr. <NAME>. No pneumothorax.", "No pneumothorax."),
    ("No change from *****.", "No change."),
    ("Patchy <unk> opacity near the [LOCATION].", "Patchy opacity near."),
    ("Seen on [&lt;ANON&gt;], stable.", "Seen, stable."),
]


@pytest.mark.parametrize(("published", "cleaned"), MIMIC + OTHERS)
def test_a_placeholder_of_any_kind_goes_and_leaves_grammar_behind(published, cleaned):
    assert clean_text(published) == cleaned


@pytest.mark.parametrize("note", NOTES)
def test_a_note_that_somebody_was_told_goes_whole(note):
    assert clean_text(f"Small effusion. {note} Stable heart.") == "Small effusion. Stable heart."


def test_a_finding_stays_whose_sentence_also_says_who_was_told():
    published = "PICC ends in the SVC, as discussed with Dr. ___ at 9:40 on ___. The left lung was discussed by ___."
    assert clean_text(published) == "PICC ends in the SVC. The left lung was discussed."


@pytest.mark.parametrize(
    "mark", ["XXXX", "___", "_____", "[**Name (NI) 8**]", "<ANON>", "[REDACTED]", "*****", "<name_2>"]
)
def test_one_policy_holds_for_every_kind(mark):
    text = f"Clear lungs. {mark} line."
    assert [clean_text(text, policy) for policy in PLACEHOLDER_POLICIES] == [
        "Clear lungs. Line.",
        "Clear lungs.",
        text,
    ]
    assert label(f"{mark} Pleural effusion since {mark}.") == {"pleural effusion": "positive"}


@pytest.mark.parametrize(
    "text",
    [
        "Effusion < 5 mm > 2 mm.",
        "[localized edema] is old.",
        "<5 mm nodule.",
        "Grade **2**.",
        "A_b, 5 * 3.",
        "Maxxximal.",
    ],
)
def test_marks_that_hide_nothing_stay(text):
    assert not count_placeholders([text])
    assert clean_text(text) == text


def test_placeholders_are_counted_by_kind():
    texts = ["XXXX, XXXX and ___ of [**2101-1-1**]", "", "<ANON> [Name] ****** _ _ _", "Clear."]
    assert count_placeholders(texts) == {
        **{"XXXX": 2, "___": 2, "[** **]": 1},
        **{"<ANON>": 1, "[REDACTED]": 1, "*****": 1},
    }


PIECES = """XXXX ___ [**Name 1**] <DATE> [ID] **** Dr. was told of the findings discussed with at 5:10 on Edema. , ;
a""".split()


@given(st.lists(st.sampled_from(PIECES), max_size=20).map(" ".join), st.sampled_from(PLACEHOLDER_POLICIES))
def test_cleaning_twice_changes_nothing_more(text, policy):
    cleaned = clean_text(text, policy)
    assert clean_text(cleaned, policy) == cleaned
    assert policy == "keep" or not count_placeholders([cleaned])
