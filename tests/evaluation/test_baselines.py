import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_cxr import metrics
from hf_cxr.evaluation import baselines
from hf_cxr.inference.labeler import positive_findings

NORMAL = "No acute cardiopulmonary abnormality."
TRAIN = [NORMAL] * 3 + ["Cardiomegaly."] * 2 + ["No acute disease. Heart size is normal. Lungs are clear."]


TEXT = st.lists(st.sampled_from(["no", "acute", "disease", "."]), min_size=1, max_size=9).map(" ".join)


@given(st.lists(TEXT, min_size=1, max_size=6), st.lists(TEXT, min_size=1, max_size=6))
def test_the_best_constant_beats_every_other_training_sentence(train, validation):
    chosen = baselines.best_constant(train, validation)
    scores = {text: metrics.corpus_bleu([text] * len(validation), validation)["bleu4"] for text in train}
    assert scores[chosen] == pytest.approx(max(scores.values()))


def test_constants_are_chosen_on_the_validation_split():
    validation = ["No acute disease. Heart size is normal. Lungs are clear."] * 3
    said = baselines.blind_predictions(TRAIN, validation, 1, seed=0)
    assert said["best_constant"] == said["length_matched"] == [TRAIN[-1]]
    assert baselines.blind_predictions(TRAIN, [], 1, seed=0)["best_constant"] == [NORMAL]


def test_image_blind_baselines_never_see_the_test_texts():
    said = baselines.blind_predictions(TRAIN, ["Cardiomegaly."], 7, seed=0)
    assert tuple(said) == baselines.BLIND
    assert all(len(texts) == 7 and set(texts) <= set(TRAIN) for texts in said.values())
    assert baselines.blind_predictions(TRAIN, [NORMAL], 7, 0) == baselines.blind_predictions(TRAIN, [NORMAL], 7, 0)
    assert baselines.blind_predictions([], [NORMAL], 7, 0) == {}


def test_the_length_matched_constant_pays_no_brevity_penalty():
    validation = ["one two three four five six seven eight nine ten eleven twelve thirteen."] * 4
    assert baselines.length_matched(TRAIN, validation) == TRAIN[-1]
    assert baselines.length_matched(TRAIN, ["Clear."]) == "Cardiomegaly."


def test_the_nearest_training_study_lends_its_text():
    train, studies = np.eye(3) * 7, np.array([[0.0, 2.0, 0.1], [3.0, 0.0, 0.0]])
    said = baselines.nearest_predictions(["a", "b", "c"], {"nearest_pixels": (train, studies)})
    assert said == {"nearest_pixels": ["b", "a"]}


def test_neighbours_are_sought_around_the_mean_image():
    train = np.array([[10.0, 1.0], [20.0, -1.0]])
    study = np.array([[18.0, 0.9]])  # nearer to the first by its direction from zero
    assert baselines.nearest_predictions(["a", "b"], {"x": (train, study)}) == {"x": ["b"]}


def test_many_studies_are_matched_in_pieces_alike(monkeypatch):
    rng = np.random.default_rng(0)
    pair = rng.random((30, 4)), rng.random((50, 4))
    whole = baselines.nearest_predictions([str(i) for i in range(30)], {"x": pair})
    monkeypatch.setattr(baselines, "_CHUNK", 7)
    assert baselines.nearest_predictions([str(i) for i in range(30)], {"x": pair}) == whole


def test_the_oracle_says_the_commonest_text_of_the_very_findings():
    train = ["Cardiomegaly.", "Stable cardiomegaly.", "Stable cardiomegaly.", NORMAL, "Left pleural effusion."]
    references = ["There is cardiomegaly.", "Clear lungs.", "Moderate left pleural effusion.", "Cardiomegaly."]
    assert baselines.oracle_predictions(train, references) == [
        "Stable cardiomegaly.",
        NORMAL,
        "Left pleural effusion.",
        "Stable cardiomegaly.",
    ]


def test_the_oracle_takes_the_nearest_findings_where_the_very_ones_are_new():
    train = ["Cardiomegaly. Left pleural effusion.", "Scoliosis.", NORMAL]
    said = baselines.oracle_predictions(train, ["Cardiomegaly. Left pleural effusion. Pulmonary edema."])
    assert said == [train[0]]
    assert baselines.oracle_predictions([], [NORMAL]) == []


def test_the_oracle_takes_the_set_of_highest_jaccard_similarity_then_the_commoner(monkeypatch):
    rng, names = np.random.default_rng(0), list("abcdefgh")
    sets = list({frozenset(name for name in names if rng.random() < 0.4) for _ in range(60)})
    queries, sets = sets[:20], sets[20:]
    monkeypatch.setattr(baselines, "_CHUNK", 7)
    expected = [max(sets, key=lambda other: len(query & other) / len(query | other)) for query in queries]
    assert [sets[place] for place in baselines._most_alike(queries, sets)] == expected


@pytest.mark.parametrize("text", ["Right pleural effusion.", "Left pleural effusion."])
def test_the_oracle_knows_the_side(text):
    said = baselines.oracle_predictions(["Right pleural effusion."] * 5 + ["Left pleural effusion."], [text])
    assert positive_findings(said[0], sided=True) == positive_findings(text, sided=True)
