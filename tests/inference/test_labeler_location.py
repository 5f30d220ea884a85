"""Where `hf_cxr.inference.labeler` reads that a finding is: sides and heights. The phrases are our own."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr.inference.labeler import (
    FINDINGS,
    PLACED,
    SIDED,
    located_findings,
    located_label,
    mentions,
    positive_findings,
    sided_label,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Right pleural effusion and left basilar atelectasis.", {"right pleural effusion", "left atelectasis"}),
        ("Right-sided pneumothorax.", {"right pneumothorax"}),
        ("Pneumonia in the right lower lobe.", {"right pneumonia"}),
        ("RLL consolidation; LUL nodule.", {"right consolidation", "left nodule"}),
        ("Lingular scarring.", {"left scar"}),
        ("Right middle lobe atelectasis.", {"right atelectasis"}),
        ("Atelectasis in the left base.", {"left atelectasis"}),
        ("There is a small effusion on the left.", {"left pleural effusion"}),
        ("Right effusion and atelectasis in the left base.", {"right pleural effusion", "left atelectasis"}),
        ("Effusion and atelectasis in the left base.", {"left pleural effusion", "left atelectasis"}),
        ("Right lower lobe pneumonia with effusion.", {"right pneumonia", "right pleural effusion"}),
        ("Bilateral pleural effusions.", {"right pleural effusion", "left pleural effusion"}),
        ("Nodules in both lungs.", {"right nodule", "left nodule"}),
        ("Bibasilar atelectasis.", {"right atelectasis", "left atelectasis"}),
        ("Biapical scarring.", {"right scar", "left scar"}),
        ("Effusions, right greater than left.", {"right pleural effusion", "left pleural effusion"}),
        ("Right and left effusions.", {"right pleural effusion", "left pleural effusion"}),
        ("Right upper and left lower lobe consolidation.", {"right consolidation", "left consolidation"}),
        ("Consolidation of the right upper and left lower lobe.", {"right consolidation", "left consolidation"}),
        ("Left pneumothorax and a right pleural effusion.", {"left pneumothorax", "right pleural effusion"}),
        ("Fracture of the right 5th rib.", {"right rib fracture"}),
        ("Within the right lung, there is a nodule.", {"right nodule"}),
        ("Pleural effusion.", {"pleural effusion"}),
        ("Cardiomegaly with right effusion.", {"cardiomegaly", "right pleural effusion"}),
        ("Left chest wall pacemaker.", {"pacemaker"}),
        ("Effusion. Right effusion.", {"right pleural effusion"}),
        ("Old granulomatous disease with a granuloma in the right lung.", {"right granuloma"}),
    ],
)
def test_sides(text, expected):
    assert positive_findings(text, sided=True) == expected


def test_a_side_does_not_reach_across_a_negation_or_a_sentence():
    assert sided_label("Left effusion without pneumothorax. Nodule.") == {
        "left pleural effusion": "positive",
        "pneumothorax": "negative",
        "nodule": "positive",
    }


def test_a_denied_side_stays_beside_the_stated_one():
    assert sided_label("Right effusion. No left effusion.") == {
        "right pleural effusion": "positive",
        "left pleural effusion": "negative",
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Right lower lobe opacity.", {"right lower lung opacity"}),
        ("Upper lobe nodule.", {"upper nodule"}),
        ("Small left pleural effusion at the base, cardiomegaly.", {"left pleural effusion", "cardiomegaly"}),
        ("RUL nodule; LLL scar.", {"right upper nodule", "left lower scar"}),
        ("RML opacity.", {"right middle lung opacity"}),
        ("Bibasilar atelectasis.", {"right lower atelectasis", "left lower atelectasis"}),
        ("Biapical scarring.", {"right upper scar", "left upper scar"}),
        ("Lingular scarring.", {"left middle scar"}),
        ("Left midlung granuloma.", {"left middle granuloma"}),
        ("Nodule in the right mid lung zone.", {"right middle nodule"}),
        ("Right perihilar opacity.", {"right middle lung opacity"}),
        ("Left suprahilar mass.", {"left middle lung lesion"}),
        ("Left retrocardiac opacity.", {"left lower lung opacity"}),
        ("Small left apical pneumothorax.", {"left upper pneumothorax"}),
        ("Opacity in the medial right lung base.", {"right lower lung opacity"}),
        ("Upper thoracic spine, lower lung volumes, nodule.", {"nodule"}),
        # which height goes with which side
        ("Right upper and left lower lobe consolidation.", {"right upper consolidation", "left lower consolidation"}),
        ("Right apical and left basilar calcified granulomas.", {"right upper granuloma", "left lower granuloma"}),
        ("Right and left lower lobe opacities.", {"right lower lung opacity", "left lower lung opacity"}),
        ("Right upper and lower lobe scarring.", {"right upper scar", "right lower scar"}),
        ("Scarring in the upper and lower lobes of the left lung.", {"left upper scar", "left lower scar"}),
        ("Scarring in the upper lobes bilaterally.", {"right upper scar", "left upper scar"}),
        ("Opacities in the right lung and left base.", {"right lung opacity", "left lower lung opacity"}),
        ("Scar in the right middle lobe/lingula.", {"right middle scar", "left middle scar"}),
        ("Opacity in the middle lobe and lingula.", {"right middle lung opacity", "left middle lung opacity"}),
        ("Bilateral opacities, greatest in the left base.", {"right lung opacity", "left lower lung opacity"}),
        ("Bilateral opacities, most notable in the bases.", {"right lower lung opacity", "left lower lung opacity"}),
        (
            "Bilateral opacities, most notable in the left base, likely edema.",
            {"right lung opacity", "left lower lung opacity"},
        ),
        (
            "Right upper and lower lobe and left basilar scar.",
            {"right upper scar", "right lower scar", "left lower scar"},
        ),
        (
            "Scar in the upper and lower lobes of the right lung and the left base.",
            {"right upper scar", "right lower scar", "left lower scar"},
        ),
        (
            "Opacity seen on lateral view involving both middle lobe and lingula.",
            {"right middle lung opacity", "left middle lung opacity"},
        ),
        ("Collapse of the left upper lobe.", {"left upper atelectasis"}),
        ("Nodule at the cardiac apex.", {"nodule"}),
        ("Right hilar enlargement.", {"right hilar enlargement"}),
        # which mention it belongs to
        ("Left hilar calcification and dense nodule in the left lung.", {"left nodule"}),
        ("Right effusion and basilar atelectasis.", {"right pleural effusion", "right lower atelectasis"}),
        ("Left basilar atelectasis, right pneumonia.", {"left lower atelectasis", "right pneumonia"}),
        ("Apical nodule and left opacity.", {"upper nodule", "left lung opacity"}),
        ("Right upper lobe scar. Nodule.", {"right upper scar", "nodule"}),
        ("Atelectasis and scar at the left base.", {"left lower atelectasis", "left lower scar"}),
        ("Nodule/mass in the right apex.", {"right upper nodule", "right upper lung lesion"}),
        ("Opacity left lung base, likely scar.", {"left lower lung opacity"}),
        ("Opacities left lung base may be scar.", {"left lower lung opacity"}),
        ("Calcified hilum, left base calcified granuloma.", {"left lower granuloma"}),
        # no side, but both
        ("Scarring in the lung apices.", {"right upper scar", "left upper scar"}),
        ("Opacities in the lower lobes.", {"right lower lung opacity", "left lower lung opacity"}),
        ("Scarring in the left apices.", {"left upper scar"}),
        ("Basilar scarring.", {"lower scar"}),
        ("Left sided patchy and streaky opacities in the bases.", {"left lower lung opacity"}),
        (
            "Opacity seen on the right in the base with effusion.",
            {"right lower lung opacity", "right pleural effusion"},
        ),
        (
            "Left effusion with opacities in the lung bases.",
            {"left pleural effusion", "right lower lung opacity", "left lower lung opacity"},
        ),
        (
            "Left mass, opacities in the lung bases, cardiomegaly, nodule.",
            {
                "cardiomegaly",
                "left lung lesion",
                "right lower lung opacity",
                "left lower lung opacity",
                "right lower nodule",
                "left lower nodule",
            },
        ),
        # several mentions
        ("Pneumonia. Right lower lobe pneumonia.", {"right lower pneumonia"}),
        ("Right pneumonia. Lower lobe pneumonia.", {"right pneumonia", "lower pneumonia"}),
        ("Right lower lobe and right upper lobe scar.", {"right lower scar", "right upper scar"}),
    ],
)
def test_sides_and_heights(text, expected):
    assert located_findings(text) == expected


def test_side_of_a_finding_beats_one_inherited_from_afar():
    text = "Left pneumonia, and minimal scar or atelectasis in the right base."
    assert sided_label(text) == {
        "left pneumonia": "positive",
        "right scar": "uncertain",
        "right atelectasis": "uncertain",
    }


def test_two_words_for_one_thing_share_both_sides():
    said = "Right lower lobe and left lower lobe interstitial infiltrates."
    assert located_findings(said) == {"right lower lung opacity", "left lower lung opacity", "interstitial disease"}


def test_most_confluent_on_one_side_is_a_side_where_none_was_stated():
    assert positive_findings("Opacities most confluent in the left lung.", sided=True) == {"left lung opacity"}
    both = positive_findings("Bilateral opacities, most confluent in the left lung.", sided=True)
    assert both == {"right lung opacity", "left lung opacity"}


def test_located_findings_can_include_the_possible_ones():
    text = "Left lower lobe atelectasis or scar. No nodule in the apex."
    assert located_findings(text) == set()
    assert located_findings(text, uncertain=True) == {"left lower atelectasis", "left lower scar"}
    assert located_label(text)["upper nodule"] == "negative"


def test_a_denied_or_possible_height_stays_beside_the_stated_one():
    assert located_label("Right scar. Possible right upper lobe scar. No left scar.") == {
        "right scar": "positive",
        "right upper scar": "uncertain",
        "left scar": "negative",
    }


WHERE = ("", "right ", "left ", "bilateral ", "right upper lobe ", "lower lobe ", "basilar ", "RUL ", "lingular ")
BEHIND = (
    "",
    " on the left",
    " in the right base",
    " in both apices",
    " in the lower lobes",
    ", greatest on the right",
)
PHRASES = st.lists(
    st.builds(
        "{}{}{}{}{}".format,
        st.sampled_from(("", "No ", "Possible ", "Unlikely ", "Stable ")),
        st.sampled_from(WHERE),
        st.sampled_from(
            ("nodule", "opacity", "effusion", "cardiomegaly", "scar", "pneumonia", "rib fracture", "XXXX")
        ),
        st.sampled_from(BEHIND),
        st.sampled_from((".", ",", " and", " or", "/", "; ", " with", " but", "")),
    ),
    max_size=7,
).map(" ".join)
HEIGHTS = ("upper", "middle", "lower")


def split(key: str) -> tuple[str, str, str]:
    """Side, height and plain name of a located key."""
    side, _, rest = key.partition(" ") if key.startswith(("right ", "left ")) else ("", "", key)
    height, _, name = rest.partition(" ") if rest.startswith(HEIGHTS) else ("", "", rest)
    return side, height, name


@given(PHRASES | st.text(max_size=80))
def test_located_keys_hold_a_side_and_a_height_only_where_a_finding_has_them(text):
    for side, height, name in map(split, located_label(text)):
        assert name in FINDINGS
        assert not side or name in SIDED
        assert not height or name in PLACED


@given(PHRASES | st.text(max_size=80), st.booleans())
def test_located_findings_without_heights_are_the_sided_ones(text, uncertain):
    """And those without sides are the plain ones."""
    parts = [split(key) for key in located_findings(text, uncertain)]
    sided = {(side, name) for side, _, name in parts}
    told = {name for side, name in sided if side}
    keys = {f"{side} {name}".strip() for side, name in sided if side or name not in told}
    plain_besides = {name for side, name in sided if not side and name in told}
    stated = positive_findings(text, sided=True, uncertain=uncertain)
    # "lower scar. right scar": the first may or may not be the second, so its height is kept without a side.
    assert keys <= stated <= keys | plain_besides
    assert {name for _, _, name in parts} == positive_findings(text, uncertain=uncertain)


@given(PHRASES)
def test_a_mention_pairs_its_sides_with_its_heights(text):
    for mention in mentions(text):
        assert {side for side, _ in mention.places if side} == set(mention.sides)
        assert len(set(mention.places)) == len(mention.places)
        assert ({"", *HEIGHTS} if mention.finding in PLACED else {""}) >= {height for _, height in mention.places}


@given(PHRASES)
def test_no_key_is_said_less_exactly_beside_an_equally_sure_one(text):
    keys = [split(key) for key in located_findings(text)]
    for side, height, name in keys:
        finer = [k for k in keys if k[2] == name and k != (side, height, name)]
        assert not any(side in ("", s) and height in ("", h) for s, h, _ in finer)


@given(PHRASES.filter(lambda text: "RUL" not in text and "lingula" not in text))
def test_mirrored_words_give_mirrored_labels(text):
    turn = {"right": "left", "left": "right"}
    mirrored = re.sub("right|left", lambda m: turn[m.group()], text)
    assert located_label(mirrored) == {
        re.sub("^(right|left)", lambda m: turn[m.group()], key): status for key, status in located_label(text).items()
    }
