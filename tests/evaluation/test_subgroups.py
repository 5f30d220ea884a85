import pytest

from hf_cxr import metrics
from hf_cxr.evaluation.subgroups import SMALL, subgroups

TRUTH = [
    "No acute cardiopulmonary abnormality.",
    "Cardiomegaly.",
    "Cardiomegaly. Small left pleural effusion. Stable since the last examination of the chest.",
    "Possible pneumonia.",
] * 10
SAID = ["No acute cardiopulmonary abnormality.", "Cardiomegaly.", "No acute disease.", "No acute disease."] * 10


@pytest.fixture
def found():
    views = ["both", "frontal", "both", "lateral"] * 10
    return subgroups(metrics.study_statistics(SAID, TRUTH), TRUTH, views, range(len(TRUTH)), seed=0)


def test_every_study_is_in_one_stratum_of_each_kind(found):
    assert {name: s["n"] for name, s in found["findings"].items()} == {
        "normal": 10,
        "one finding": 10,
        "several findings": 10,
        "other": 10,
    }
    for kind in ("length", "views"):
        assert sum(s["n"] for s in found[kind].values()) == len(TRUTH)
    assert found["length"]["long"]["n"] == 20, "more than the median of 4 tokens"
    assert found["views"]["two views"]["n"] == 20
    assert found["finding"]["cardiomegaly"]["n"] == 20
    assert list(found["finding"]) == ["cardiomegaly", "pleural effusion"], "the commonest first, absent ones left out"


def test_a_text_that_says_neither_normal_nor_abnormal_is_unknown():
    truth = ["As above.", "Normal chest.", "Possible pneumonia."]
    groups = subgroups(metrics.study_statistics(truth, truth), truth, ["both"] * 3, range(3), seed=0)["findings"]
    assert {name: group["n"] for name, group in groups.items()} == {"normal": 1, "other": 1, "unknown": 1}


def test_a_stratum_is_scored_on_its_own_studies(found):
    assert found["findings"]["one finding"]["finding_f1_micro"] == 1
    assert found["findings"]["several findings"]["finding_f1_micro"] == 0
    assert found["findings"]["normal"]["bleu4"] == pytest.approx(1)
    assert found["findings"]["normal"]["normal_accuracy"] == 1
    chosen = [i for i, text in enumerate(TRUTH) if "Cardiomegaly" in text]
    alone = metrics.corpus_bleu([SAID[i] for i in chosen], [TRUTH[i] for i in chosen])["bleu4"]
    assert found["finding"]["cardiomegaly"]["bleu4"] == pytest.approx(alone)


def test_where_there_is_nothing_to_find_there_is_no_finding_f1(found):
    assert found["findings"]["normal"]["finding_f1_micro"] is None
    assert "finding_f1_micro" not in found["findings"]["normal"]["ci95"]
    assert "bleu4" in found["findings"]["normal"]["ci95"]


def test_small_subgroups_are_marked_and_have_wide_intervals(found):
    assert SMALL == 30
    assert found["findings"]["normal"]["small"]
    low, high = found["finding"]["cardiomegaly"]["ci95"]["finding_f1_micro"]
    assert low < found["finding"]["cardiomegaly"]["finding_f1_micro"] < high


def test_a_stratum_of_one_patient_has_no_interval():
    found = subgroups(metrics.study_statistics(SAID[:4], TRUTH[:4]), TRUTH[:4], ["both"] * 4, ["p"] * 4, 0)
    assert found["findings"]["normal"]["ci95"] == {}
    assert list(found["views"]) == ["two views"]


def test_studies_whose_frontal_view_is_known_to_be_pa_or_ap_are_scored_apart():
    views, projections = ["both"] * 40, ["PA", "PA", "AP", ""] * 10
    statistics = metrics.study_statistics(SAID, TRUTH)
    found = subgroups(statistics, TRUTH, views, range(40), 0, projections)["projection"]
    assert {name: group["n"] for name, group in found.items()} == {"PA": 20, "AP": 10}
    assert found["PA"]["finding_f1_micro"] == 1
    assert found["AP"]["finding_f1_micro"] == 0
    assert found["PA"]["ci95"]["bleu4"]
    assert subgroups(statistics, TRUTH, views, range(40), 0, [""] * 40)["projection"] == {}


def test_where_findings_cannot_be_read_no_subgroup_has_a_score_of_them():
    found = subgroups(metrics.study_statistics(SAID, TRUTH), TRUTH, ["both"] * 40, range(40), 0, unread=True)
    assert [kind for kind, groups in found.items() if groups] == ["length", "views"]
    for group in (*found["length"].values(), *found["views"].values()):
        assert (group["finding_f1_micro"], group["normal_accuracy"]) == (None, None)
        assert set(group["ci95"]) == {"bleu4", "rougeL"}
