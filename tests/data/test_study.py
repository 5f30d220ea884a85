"""Cleaning of report texts. The phrases are our own; the runs over the real impressions skip where they are absent."""

import csv
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.data.study import PLACEHOLDER_POLICIES, Radiograph, Study, clean_text, few_words
from hf_cxr.inference.targets import sentences

PLACEHOLDER = re.compile(r"X{3,}")
# An enumeration, seen independently of the code.
MARKER = re.compile(r"(?:^|(?<=\s))\d{1,2}[.)],?(?:\s*(?=[^\W\d])|\s+(?=[\d.]+ ?[cm]m))")
PIECES = """No no pleural effusion. pneumothorax 1. 2. 3) #2 XXXX XXXX. x-XXXX XXXX, XXXXPM , . .. of the a an in to
compared and 1.2 cm T12 C5-6 5th rib 10 mm nodule. Dr. vs. change most less heart <BR> &lt; ( ) [ ] ; : No. view. (2)
p.m. at"""
WORDS = st.sampled_from(PIECES.split())
TEXTS = st.lists(WORDS, max_size=25).map(" ".join) | st.text(max_size=60)


def test_a_study_needs_only_a_uid():
    assert Study("7").impression == ""


NAMES = ("Smith", "Jones", "Miller", "Brown")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"seitlich": 1, "AP_horizontal2": 30, "dev2": 1}, "'AP_horizontal2' (30), 'seitlich' (1), 'dev2' (1)"),
        ({f"code{number}": 200 for number in range(4)}, "'code0' (200), 'code1' (200), 'code2' (200), 'code3' (200)"),
        ({"UNK": 2, "John Smith DOB 1.1.1": 9}, "'UNK' (2), …"),
        ({"Große_Aufnahme_von_vorn": 2}, "1 different, not shown, as they may be text or names"),
        ({"12345678": 1, "1.1.1980": 1}, "2 different, not shown, as they may be text or names"),
        (dict.fromkeys(NAMES, 1), "4 different, not shown, as they may be text or names"),
        ({f"code{number}": 200 for number in range(11)}, "11 different, not shown, as they may be text or names"),
        ({f"Name{number}": 1 for number in range(1200)}, "1,200 different, not shown, as they may be text or names"),
    ],
)
def test_of_the_words_of_a_column_a_message_repeats_codes_but_no_names_and_no_text(words, said):
    assert few_words(words) == said


@pytest.mark.parametrize(
    ("published", "cleaned"),
    [
        ("1. No effusion. 2. Small nodule.", "No effusion. Small nodule."),
        ("1) No effusion. 2) Small nodule.", "No effusion. Small nodule."),
        ("#1 No effusion #2 Small nodule", "No effusion. Small nodule."),
        ("1. No effusion 2. Small nodule", "No effusion. Small nodule."),
        ("1.No effusion. 2., Mild scar", "No effusion. Mild scar."),
        ("Chest. 1. Clear lungs. Abdomen. 1. Normal gas.", "Chest. Clear lungs. Abdomen. Normal gas."),
        ("3. Stable nodule.", "Stable nodule."),
        ("1. 2. Stable nodule.", "Stable nodule."),
        ("1. 8 mm nodule. 2. 1.2 cm mass.", "8 mm nodule. 1.2 cm mass."),
    ],
)
def test_enumeration_markers_go(published, cleaned):
    assert clean_text(published) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "Healed fracture of the right 5th rib.",
        "Wedge deformity of T12.",
        "A 1.2 cm nodule.",
        "A nodule of .5 cm.",
        "2 views.",
        "Fusion of C5-6.",
        "A 10 mm nodule at the base.",
        "Fracture of rib 7. Clear lungs.",
        "1. Fracture of rib 2. Clear lungs.",
        "Seen on image No. 2.",
        "Catheter No. 2. Clear lungs.",
        "Effusion < 5 mm.",
        "Grade 1. Stable.",
        "1. Acute fractures of left ribs 1 and 2. No pneumothorax.",
        "1. Fractures of ribs 1, 2. No pneumothorax.",
        "1. Wedging of grade 1 to 2. No pneumothorax.",
        "1. Postoperative day 2. No pneumothorax.",
    ],
)
def test_numbers_that_mean_something_stay(text):
    assert clean_text(text) == text.removeprefix("1. ")


@pytest.mark.parametrize(
    ("published", "cleaned"),
    [
        ("No acute disease..", "No acute disease."),
        ("No acute disease. .", "No acute disease."),
        ("No acute disease", "No acute disease."),
        ("  No\n acute \t disease .", "No acute disease."),
        ("Stable , clear lungs,", "Stable, clear lungs."),
        ("Heart normal.No effusion.", "Heart normal. No effusion."),
        ("[&lt;Clear lungs.&gt;] Old scar", "Clear lungs. Old scar."),
        ("Nodules<BR>in both lungs", "Nodules in both lungs."),
        ("", ""),
        (" . ", ""),
        ("Sin hallazgos…", "Sin hallazgos…"),
        ("未见异常。", "未见异常。"),
        ("Unchanged (see above.)", "Unchanged (see above.)"),
        ("&amp;amp;lt; 5 mm", "< 5 mm."),
    ],
)
def test_punctuation_and_white_space(published, cleaned):
    assert clean_text(published) == cleaned


@pytest.mark.parametrize(
    ("published", "cleaned"),
    [
        ("XXXX XXXX opacity", "Opacity."),
        ("Opacity in the XXXX lung.", "Opacity in the lung."),
        ("Unchanged compared to XXXX.", "Unchanged."),
        ("Unchanged since XXXX, XXXX and clear.", "Unchanged and clear."),
        ("Seen at XXXX hours on XXXX/XXXX.", "Seen."),
        ("Dilatation of the XXXX and descending aorta.", "Dilatation of the descending aorta."),
        ("No XXXX of active disease.", "No active disease."),
        ("Fracture through the XXXX of the scaphoid.", "Fracture through the scaphoid."),
        ("A XXXX opacity and an XXXX nodule.", "An opacity and a nodule."),
        ("Normal chest x-XXXX.", "Normal chest x-ray."),
        ("Opacity, most XXXX scar, less XXXX mass.", "Opacity, most likely scar, less likely mass."),
        ("Fractures of the 3rd-5XXXX ribs.", "Fractures of the 3rd-5 ribs."),
        ("Edema is possible but less XXXX.", "Edema is possible but less likely."),
        ("Comparison XXXX, XXXX. Clear lungs.", "Clear lungs."),
        ("Nodule. Dr. XXXX XXXX was told the results at XXXX hours. Stable heart.", "Nodule. Stable heart."),
        ("Density. Dr. XXXX notified of the left lung mass.", "Density. Dr. notified of the left lung mass."),
        ("1. XXXX left effusion. 2. XXXX scar.", "Left effusion. Scar."),
    ],
)
def test_a_dropped_scar_leaves_grammar_behind(published, cleaned):
    assert clean_text(published, "drop") == cleaned


def test_a_scar_before_change_takes_the_change_along():
    # What is hidden may be "no": the word alone would say the opposite.
    assert clean_text("XXXX change in the left effusion. Stable heart.") == "The left effusion. Stable heart."


def test_a_text_of_scars_alone_comes_back_empty():
    assert clean_text("XXXX. No XXXX.") == ""


def test_sentences_with_scars_can_be_dropped_or_kept():
    text = "1. XXXX left effusion. 2. No pneumothorax."
    assert clean_text(text, "drop_sentence") == "No pneumothorax."
    assert clean_text("1. Clear. 2. XXXX scar. 3. Stable.", "drop_sentence") == "Clear. Stable."
    assert clean_text(text, "keep") == "XXXX left effusion. No pneumothorax."


def test_an_unknown_policy_is_named_in_the_error():
    with pytest.raises(ValueError, match="'erase'"):
        clean_text("Clear lungs.", "erase")


def test_impressions_are_cleaned_like_any_text():
    assert clean_text("1. Clear lungs") == "Clear lungs."


@pytest.mark.parametrize(
    "whole", ["A 1.2 cm nodule.", "Seen by Dr. Smith.", "Scar vs. mass.", "No. 2 is clear.", "2. Clear lungs."]
)
def test_sentences_do_not_break_inside(whole):
    assert sentences(f"Heart normal. {whole} Stable.") == ["Heart normal.", whole, "Stable."]


@given(TEXTS, st.sampled_from(PLACEHOLDER_POLICIES))
def test_cleaning_twice_changes_nothing_more(text, placeholders):
    once = clean_text(text, placeholders)
    assert clean_text(once, placeholders) == once


@given(st.lists(WORDS.filter(lambda w: not re.search(r"^\(?#?\d+[.)]?$|&lt", w)), max_size=25).map(" ".join))
def test_digits_outside_enumerations_stay(text):
    assert re.findall(r"\d", clean_text(text)) == re.findall(r"\d", text)


@pytest.mark.parametrize(
    "text",
    [
        *("pulmonary " * 20000, "XXXX " * 20000, "as when " * 20000, "&" + "amp;" * 20000),
        *(
            "as when " * 20000 + "XXXX",
            "XXXX, " * 20000,
            "XXXX. " * 20000,
            "Dr. " * 20000,
            "1. A " * 20000,
            "(" * 20000,
        ),
        *("," * 20000, ". " * 20000),
        *("___ " * 20000, "_ " * 20000, "[**" * 20000, "<name " * 20000, "_" * 20000 + "x", "as the " * 20000 + "___"),
        *("at 5:10 on " * 10000 + "___", "discussed with ___ " * 5000, "___" + " " * 20000 + "."),
    ],
    ids=lambda text: text[:12],
)
def test_cleaning_takes_a_time_in_proportion_to_the_text(text):
    start = time.process_time()
    clean_text(text)
    assert time.process_time() - start < 1


@given(st.lists(st.from_regex(r"[A-Z][a-z]{3,9}( [a-z]{4,9}){1,4}\.", fullmatch=True), min_size=1, max_size=4))
def test_plain_sentences_come_back_as_they_are(parts):
    text = " ".join(parts)
    assert clean_text(text) == text
    assert sentences(text) == parts


@given(
    st.from_regex(r"[A-Z][a-z]{3,9}( [A-Za-z0-9]{1,9}){0,4}", fullmatch=True).filter(lambda t: "xxx" not in t.lower())
)
def test_a_sentence_without_scars_is_never_emptied(text):
    for placeholders in PLACEHOLDER_POLICIES:
        assert clean_text(f"XXXX. {text} seen. XXXX", placeholders)


@pytest.fixture(scope="module")
def impressions(iu):
    with (iu / "indiana_reports.csv").open(newline="", encoding="utf-8") as file:
        return [row["impression"] for row in csv.DictReader(file) if row["impression"].strip()]


def test_real_impressions_keep_their_words_and_numbers(impressions):
    start = time.perf_counter()
    for text in impressions:
        kept = clean_text(text, "keep")
        cleaned = clean_text(text)
        assert clean_text(cleaned) == cleaned
        assert clean_text(kept, "keep") == kept
        assert not PLACEHOLDER.search(cleaned)
        assert cleaned[-1] in ".!?"
        numbers = re.findall(r"\d", MARKER.sub("", text))
        assert re.findall(r"\d", MARKER.sub("", kept)) == numbers
        if not PLACEHOLDER.search(text):
            words = re.findall(r"[a-z]+", MARKER.sub("", text).lower())
            assert [w for w in words if w not in ("br", "lt", "gt")] == re.findall(r"[a-z]+", cleaned.lower())
    assert time.perf_counter() - start < 10


def test_no_real_impression_is_emptied(impressions):
    assert all(clean_text(text) for text in impressions)


def test_an_image_is_called_by_its_name_or_its_files():
    assert Radiograph("folder/a.png").label == "a.png"
    assert Radiograph("folder/a.png", name="b.png").label == "b.png"
    assert Radiograph(lambda: None).label == "image"
