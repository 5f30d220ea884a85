import csv

import numpy as np
import pytest

from hf_cxr import metrics
from hf_cxr.data.prepared import load_prepared
from hf_cxr.inference.labeler import FINDINGS, statements
from hf_cxr.metrics.content import _LETTERS, _looks_foreign, _said, content_statistics

TRUTH = ["Cardiomegaly.", "No acute disease.", "Small left pleural effusion."]
SAID = ["Cardiomegaly.", "Pulmonary edema.", "No acute disease."]


def test_an_invented_and_a_missed_finding_both_cost_f1():
    scores = metrics.finding_scores(SAID, TRUTH)
    assert scores["finding_f1_micro"] == pytest.approx(2 / (2 + 1 + 1))
    assert scores["per_finding"]["edema"] == {"n": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert scores["per_finding"]["pleural effusion"]["recall"] == 0
    assert scores["finding_f1_macro"] == pytest.approx(0.5), "over the findings that the references hold"


def test_precision_counts_the_invented_and_recall_the_missed():
    scores = metrics.finding_scores(
        ["Cardiomegaly. Pulmonary edema.", "Cardiomegaly.", "Scoliosis."], ["Cardiomegaly."] * 3
    )
    assert scores["finding_precision_micro"] == pytest.approx(2 / 4)
    assert scores["finding_recall_micro"] == pytest.approx(2 / 3)


def test_finding_statistics_are_counts_by_study_and_finding():
    counts = metrics.finding_statistics(SAID, TRUTH)
    assert counts.shape == (3, len(FINDINGS), 3)
    assert counts[0, FINDINGS.index("cardiomegaly")].tolist() == [1, 0, 0]
    assert counts[1, FINDINGS.index("edema")].tolist() == [0, 1, 0]
    assert counts[2, FINDINGS.index("pleural effusion")].tolist() == [0, 0, 1]
    assert counts.sum() == 3


def test_a_possible_finding_counts_only_in_the_uncertain_reading():
    scores = metrics.finding_scores(["Possible pneumonia."], ["Pneumonia."])
    assert scores["finding_f1_micro"] == 0
    assert scores["finding_f1_micro_uncertain"] == 1


def test_a_right_effusion_called_left_is_an_error_with_sides_only():
    scores = metrics.finding_scores(["Small left pleural effusion."], ["Small right pleural effusion."])
    assert scores["finding_f1_micro"] == 1
    assert scores["finding_f1_micro_sided"] == scores["finding_f1_micro_located"] == 0


def test_an_upper_nodule_called_lower_is_an_error_with_places_only():
    scores = metrics.finding_scores(["Nodule in the right lower lobe."], ["Nodule in the right upper lobe."])
    assert scores["finding_f1_micro"] == scores["finding_f1_micro_sided"] == 1
    assert scores["finding_f1_micro_located"] < 1


def test_invented_and_missed_labels_are_told_apart_in_every_reading():
    compared = content_statistics(["Cardiomegaly. Scoliosis. Small left pleural effusion."], ["Cardiomegaly."])
    assert compared.readings[0].tolist() == [[1, 2, 0]] * 3
    compared = content_statistics(["Cardiomegaly."], ["Cardiomegaly. Scoliosis. Small left pleural effusion."])
    assert compared.readings[0].tolist() == [[1, 0, 2]] * 3


def test_nothing_to_find_and_nothing_found_is_zero_not_an_error():
    scores = metrics.finding_scores(["No acute disease."], ["Normal chest."])
    assert scores.pop("per_finding") == {}
    assert set(scores.values()) == {0.0}


def test_normal_accuracy_asks_whether_both_texts_are_normal():
    said = ["No acute disease.", "No acute disease.", "Cardiomegaly.", "Scoliosis.", ""]
    true = ["Normal chest.", "Cardiomegaly.", "Normal chest.", "Pulmonary edema.", "Normal chest."]
    assert metrics.normal_accuracy(said, true) == pytest.approx(2 / 5)


def test_a_reference_of_unknown_normality_leaves_its_study_out_and_such_a_prediction_is_wrong():
    said = ["No acute disease.", "As above.", "No acute disease.", "As above."]
    true = ["Normal chest.", "Normal chest.", "As above.", "As above."]
    assert metrics.normal_accuracy(said, true) == pytest.approx(1 / 2)
    assert metrics.score_texts(said, true)["normal_accuracy"] == pytest.approx(1 / 2)
    assert metrics.normal_accuracy(["As above."], ["As above."]) == 0
    resampled = metrics.study_statistics(said, true).scores(np.array([[1, 0, 5, 5], [1, 3, 0, 0]]))
    np.testing.assert_allclose(resampled["normal_accuracy"], [1, 1 / 4])


def test_a_second_pass_over_more_texts_than_65536_reads_nothing_again():
    statements.cache_clear()
    texts = [str(number) for number in range(70_000)]
    for text in texts * 2:
        statements(text)
    assert statements.cache_info().misses == len(texts)
    assert statements.cache_info().maxsize == _said.cache_info().maxsize
    statements.cache_clear()


def test_f1_takes_any_leading_axes():
    counts = np.array([[[2, 1, 1], [0, 0, 0]], [[1, 0, 0], [0, 1, 0]]])
    np.testing.assert_allclose(metrics.f1(counts), [[2 / 3, 0], [1, 0]])


@pytest.mark.parametrize(
    "texts",
    [
        ["Sin hallazgos agudos.", "Cardiomegalia leve.", "Derrame pleural derecho con atelectasia de la base."],
        ["Kein Pneumothorax.", "Kardiomegalie.", "Kleiner Pleuraerguss rechts, keine Stauung."],
        ["Pas de pneumothorax.", "Cardiomégalie.", "Épanchement pleural droit sans pneumothorax."],
        ["Sem derrame pleural.", "Cardiomegalia.", "Opacidade no lobo inferior com atelectasia."],
        ["Non versamento pleurico.", "Cardiomegalia.", "Opacità del lobo inferiore, senza pneumotorace."],
        ["Geen pneumothorax.", "Cardiomegalie.", "Pleuravocht rechts zonder longoedeem."],
        ["Cardiomegalia.", "Derrame pleural.", "Normal.", "Atelectasia."],
        ["Pneumothorax rechts.", "Pleuraerguss links."],
        ["Ei pneumothoraxia."],
        ["Ingen pneumothorax.", "Hjärtförstoring utan stas."],
        ["右肺上叶见片状影。", "心影增大。"],
        ["Пневмоторакс не выявлен.", "Кардиомегалия."],
    ],
)
def test_findings_cannot_be_read_from_another_language(texts):
    assert metrics.unread_findings(texts * 5) == "the texts do not look English"


def test_findings_cannot_be_read_where_almost_no_text_states_one():
    assert "almost" in metrics.unread_findings(["No acute disease."] * 200 + ["Cardiomegaly."])
    assert metrics.unread_findings(["No acute disease."] * 20 + ["Cardiomegaly."]) is None
    assert metrics.unread_findings([]) is not None


def test_findings_can_be_read_from_english_however_terse(phantom_folder):
    assert metrics.unread_findings(["Cardiomegaly.", "Left effusion, RLL atelectasis.", "No PTX."]) is None
    assert metrics.unread_findings(["De novo infiltrate.", "No acute disease.", "No change"]) is None
    assert metrics.unread_findings(["Sin atelectasia.", "No pneumothorax. The heart is enlarged."] * 2) is None
    assert metrics.unread_findings(load_prepared(phantom_folder)["train"]["impression"]) is None


def test_findings_can_be_read_from_the_real_reports_and_no_text_of_them_looks_foreign(iu):
    with (iu / "indiana_reports.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for section in ("impression", "findings"):
        texts = [row[section] for row in rows if row[section].strip()]
        assert metrics.unread_findings(texts) is None
        assert not any(_looks_foreign(_LETTERS.findall(text.lower())) for text in texts)


def test_the_area_under_the_curve_counts_pairs_in_the_right_order():
    rng = np.random.default_rng(0)
    scores, truths = rng.integers(5, size=40) / 5, rng.integers(-1, 2, size=40)
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[truths == 1] for b in scores[truths == 0]]
    assert metrics.content.area_under_curve(scores, truths) == pytest.approx(np.mean(pairs))
    assert metrics.content.area_under_curve(scores, np.ones(40)) is None
