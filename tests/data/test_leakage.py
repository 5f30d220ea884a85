"""How many texts of a split also occur in training."""

from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.data.leakage import text_overlap

LONG = "There is a small right pleural effusion with some overlying atelectasis"


def test_the_same_text_is_the_same_whatever_its_case_and_punctuation():
    splits = {"train": ["No acute disease."], "test": ["no acute disease", "No, acute disease!", "No disease."]}
    assert text_overlap(splits) == {"test": {"studies": 3, "same": 2, "near": 0}}


def test_a_long_text_is_nearly_the_same_when_one_word_differs():
    near = [LONG.replace("right", "left"), LONG.replace("some ", ""), LONG + " today"]
    far = [LONG.replace("right", "left").replace("small", "large"), "Small right effusion"]
    assert text_overlap({"train": [LONG], "test": near + far})["test"] == {"studies": 5, "same": 0, "near": 3}


def test_a_short_text_of_which_one_word_differs_is_another():
    assert text_overlap({"train": ["No acute disease"], "test": ["No active disease"]})["test"]["near"] == 0


def test_a_text_of_nine_words_is_too_short_to_be_near():
    nine = " ".join(LONG.split()[:9])
    assert text_overlap({"train": [nine + " effusion"], "test": [nine]})["test"]["near"] == 0
    assert text_overlap({"train": [nine], "test": [nine + " effusion"]})["test"]["near"] == 1


@given(st.lists(st.text("ab ", max_size=30)), st.lists(st.text("ab ", max_size=30)))
def test_the_counts_never_exceed_the_studies(train, test):
    counts = text_overlap({"train": train, "validation": [], "test": test})
    assert counts["validation"] == {"studies": 0, "same": 0, "near": 0}
    assert counts["test"]["studies"] == len(test)
    assert counts["test"]["same"] >= sum(text in train for text in test)
    assert counts["test"]["same"] + counts["test"]["near"] <= len(test)
