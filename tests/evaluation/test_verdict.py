"""Planted models of each kind get the verdict that they earn, at each number of studies, in the report and while they
train."""

import re
from functools import cache

import numpy as np
import pytest

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap, image_use
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.evaluation.report import page, report_markdown
from hf_cxr.evaluation.report.verdict import plain, verdict
from hf_cxr.evaluation.rules import FEWEST, SMALL_GAIN, few_texts, harms, is_beaten, reads
from hf_cxr.training.callbacks import scores_line, warning_of

NORMAL, PNEUMONIA = "No acute cardiopulmonary abnormality.", "Findings consistent with pneumonia."
MORE = ("Pleural effusion.", "Cardiomegaly.", "Pulmonary edema.", "Atelectasis.", "Lung nodule.")


def truth(rng):
    """As in the real radiographs: half are normal, and all the others have one finding in common."""
    return " ".join([PNEUMONIA, *(text for text in MORE if rng.random() < 0.25)]) if rng.random() < 0.5 else NORMAL


RNG = np.random.default_rng(0)
TRUTHS = [truth(RNG) for _ in range(1000)]
TRAIN = [truth(RNG) for _ in range(300)]


def told_apart(text, rng, right_of_abnormal, right_of_normal):
    abnormal = rng.random() < (1 - right_of_normal if text == NORMAL else right_of_abnormal)
    return PNEUMONIA if abnormal else NORMAL


MODELS = {
    "blind": lambda text, rng: TRAIN[rng.integers(len(TRAIN))],
    "constant": lambda text, rng: PNEUMONIA,
    "normal for all": lambda text, rng: NORMAL,
    "two sentences": lambda text, rng: told_apart(text, rng, 0.5, 0.85),
    "normal or abnormal": lambda text, rng: told_apart(text, rng, 0.95, 0.95),
    "good": lambda text, rng: text if rng.random() < 0.8 else truth(rng),
}


def planted(name, n):
    rng = np.random.default_rng(1)
    return [MODELS[name](text, rng) for text in TRUTHS[:n]], TRUTHS[:n]


@cache
def report_of(name, n):
    said, true = planted(name, n)
    rows = [
        {"uid": str(i), "impression": text, "prediction": words, "score": 0.5}
        for i, (words, text) in enumerate(zip(said, true, strict=True))
    ]
    return evaluation.build_report(rows, TRAIN, TRAIN)


YES, NO = "Reads the images: yes (", "Does not read the images ("
UNSURE = "Not shown whether the model reads the images"
USES, FEW = "Uses the images, but ", "writes only 2 distinct texts ("
NO_BETTER, UNSURE_BETTER = "states findings no better than one", "is not shown to state findings better than one"


@pytest.mark.parametrize(
    ("name", "n", "reads", "told"),
    [
        ("blind", 30, None, f"{UNSURE} ("),
        ("blind", 1000, False, NO),
        ("constant", 30, False, NO),
        ("constant", 250, False, NO),
        ("normal for all", 30, False, NO),
        ("two sentences", 30, None, f"{UNSURE} ("),
        ("two sentences", 250, True, f"{USES}{NO_BETTER} constant sentence and {FEW}"),
        ("two sentences", 1000, True, f"{USES}{NO_BETTER} constant sentence and {FEW}"),
        ("normal or abnormal", 30, True, f"{USES}{UNSURE_BETTER} constant sentence and {FEW}"),
        ("normal or abnormal", 250, True, f"{USES}{FEW}"),
        ("good", 30, True, YES),
        ("good", 250, True, YES),
        ("good", 1000, True, YES),
    ],
)
def test_each_planted_model_gets_the_verdict_that_it_earns(name, n, reads, told):
    report = report_of(name, n)
    assert (report["reads_images"], report["verdict"][: len(told)]) == (reads, told)
    score, gain = report["finding_f1_micro"], report["constant_gain"]["finding_f1_micro"]
    assert f"finding F1 {score:.3f} against {score - gain:.3f} of one constant sentence" in report["verdict"]
    assert f"{report['distinct_outputs']} distinct text" in report["verdict"]
    assert ("about" in report["verdict"]) == ("ot shown" in report["verdict"])
    said = page.sentences(report)["verdict"]
    assert not re.search(r"\d\.\d", said)
    assert report["verdict"] in report_markdown(report)
    html = page.report_page(report, [])
    assert f"<title>{said}</title>" in html
    assert ('class="yes"' in html.split("</h1>")[0]) == (told == YES)


def test_the_constant_that_a_model_is_measured_by_is_the_best_in_findings_not_in_words():
    report = report_of("two sentences", 250)
    baselines = report["baselines"]
    assert baselines["most_frequent"]["finding_f1_micro"] == 0
    assert baselines["best_findings"]["finding_f1_micro"] == pytest.approx(
        report["finding_f1_micro"] - report["constant_gain"]["finding_f1_micro"]
    )
    low, high = report["constant_gain_ci95"]["finding_f1_micro"]
    assert low < report["constant_gain"]["finding_f1_micro"] < high < 0


def probe(report, gain, interval):
    scores = {
        "finding_f1_micro": report["finding_f1_micro"] - gain,
        "gain": gain,
        "gain_ci95": interval,
        "gain_p": 0.5,
    }
    return scores | {"normal_accuracy": 0.8}


def test_probes_are_weighed_in_the_first_sentence():
    report = report_of("good", 250)
    probes = {"encoder": probe(report, -0.03, [-0.1, 0.04]), "pixels": probe(report, 0.3, [0.2, 0.4])}
    told = verdict(report | {"probes": probes})
    said = told["verdict"]
    assert told["reads_images"] is True
    start = "Uses the images, but states findings no better than a linear probe on its own encoder (finding F1 "
    assert said.startswith(start)
    score = report["finding_f1_micro"]
    assert f"{score:.3f} against {score + 0.03:.3f} of a linear probe on its own encoder, difference -0.03" in said
    assert f"against {score - 0.3:.3f} of a linear probe on 16 × 16 pixels, difference +0.30" in said
    unsure = verdict(report | {"probes": {"encoder": probe(report, 0.03, [-0.04, 0.1])}})["verdict"]
    assert "is not shown to state findings better than a linear probe on its own encoder (" in unsure
    assert "too few to tell with 250 patients, about 2,000 would tell" in unsure
    level = verdict(report | {"probes": {"encoder": probe(report, 0.01, [-0.02, 0.04])}})["verdict"]
    assert level.startswith(start), "a gain that is shown to be small"
    assert verdict(report | {"probes": {}})["verdict"] == report["verdict"]


BY = "finding_f1_micro"


def weighed(interval, p, patients, **more):
    """What `rules` asks of a report."""
    gain = {"image_gain_ci95": {BY: interval}, "image_gain_p": {BY: p}, "permutation_p": p}
    return {"gain_score": BY, "patients": patients, "distinct_outputs": 9} | gain | more


def test_a_gain_is_called_small_only_where_the_interval_the_p_and_the_patients_say_so():
    small = SMALL_GAIN[BY]
    assert reads(weighed([0.01, 0.3], 0.001, 30)) is True
    assert reads(weighed([0.01, 0.3], 0.02, 30)) is None
    assert reads(weighed([-0.1, small - 0.001], 0.5, FEWEST)) is False
    assert reads(weighed([-0.1, small], 0.5, FEWEST)) is None
    assert reads(weighed([0.0, 0.0], 1.0, FEWEST - 1)) is None, "a bootstrap of few says nothing"
    assert reads(weighed([0.005, 0.04], 0.02, 1000)) is None, "the interval says that a gain is there"
    assert reads(weighed([-0.001, 0.04], 0.004, 1000)) is None, "the permutation test says so"
    assert reads(weighed([0.005, 0.04], 0.004, 1000)) is True


@pytest.mark.parametrize("patients", [8, FEWEST - 1, FEWEST])
def test_few_patients_show_neither_a_harm_nor_by_a_bootstrap_alone_a_gain(patients):
    enough = patients >= FEWEST
    harmed = weighed([-0.3, -0.1], 0.002, patients)
    assert harms(harmed, "image") == enough
    assert reads(harmed | {"permutation_p": 1.0}) is (False if enough else None)
    context = {"context_gain_ci95": {BY: [0.5, 1.0]}, "context_gain_p": {BY: 0.002}, "with_context": {"indication": 2}}
    both = weighed([0.5, 1.0], 0.002, patients, **context)
    assert reads(both) is reads(both, "context") is (True if enough else None)
    assert reads(weighed([0.5, 1.0], 0.002, patients)) is True, "the permutation test is exact"


def test_no_better_is_a_gain_nearer_to_none_than_to_the_smallest_of_interest():
    wide = [-0.08, 0.06]
    assert is_beaten(-0.012, wide, BY, 252) is False, "finding F1 0.415 against 0.427"
    assert is_beaten(-0.001, wide, BY, 252) is is_beaten(0.001, wide, BY, 252) is False, "one and the same"
    assert is_beaten(SMALL_GAIN[BY] / 2, wide, BY, 252) is None
    assert is_beaten(0.02, [0.001, 0.04], BY, 2) is True
    assert is_beaten(-0.3, [-0.5, -0.1], BY, FEWEST - 1) is None
    assert is_beaten(-0.3, [-0.5, -0.1], BY, FEWEST) is False


def test_a_model_level_with_the_best_constant_is_told_so_and_how_many_patients_would_show_it():
    report = report_of("normal or abnormal", 250)
    own, beside = report[BY] - 0.415, {"constant_gain": {BY: -0.012}, "constant_gain_ci95": {BY: [-0.08, 0.06]}}
    said = verdict(report | beside | {BY: report[BY] - own})["verdict"]
    assert said.startswith(f"{USES}{NO_BETTER} constant sentence and {FEW}finding F1 0.415 against 0.427 of one")
    assert "95 % CI -0.08 to +0.06: too few to tell with 250 patients, about 2,000 would tell" in said
    two = report | {BY: 0.5, "constant_gain": {BY: -0.2}, "constant_gain_ci95": {BY: [-0.4, -0.1]}, "patients": 2}
    assert NO_BETTER not in verdict(two)["verdict"]


def test_patients_are_counted_not_studies():
    said, true = planted("blind", 90)
    rows = [
        {"uid": str(i), "patient": i // 3, "impression": text, "prediction": words, "score": 0.5}
        for i, (words, text) in enumerate(zip(said, true, strict=True))
    ]
    verdict_of_30 = evaluation.build_report(rows, TRAIN, TRAIN)["verdict"]
    assert "too few to tell with 30 patients, about " in verdict_of_30
    assert "with 90" not in verdict_of_30
    scores = evaluation.validation_scores(said, true, [row["patient"] for row in rows])
    assert "too few to tell with 30 patients, about " in warning_of({"step": 1} | scores, False, 0.5)


def test_where_all_radiologists_state_the_same_nothing_can_be_told():
    said, true = ["Pneumonia.", "Consistent with pneumonia."] * 40, ["Pneumonia.", "Findings of pneumonia."] * 40
    rows = [
        {"uid": str(i), "impression": text, "prediction": words, "score": 0.5}
        for i, (words, text) in enumerate(zip(said, true, strict=True))
    ]
    report = evaluation.build_report(rows, TRAIN, TRAIN)
    assert (report["finding_f1_micro"], report["permutation_p"], report["reads_images"]) == (1, None, None)
    told = "All radiologists' texts state the same, so whether the model reads the images cannot be told."
    assert told in report["verdict"]
    assert plain(report) == "These studies cannot tell whether the model reads the images."
    assert "cannot be told from these studies" in page.report_page(report, [])
    assert told in report_markdown(report)
    scores = {"step": 1} | evaluation.validation_scores(said, true)
    assert "permutation_p" not in scores
    assert "cannot be told: all texts state the same" in warning_of(scores, True, 0.5)


def test_the_heading_says_harmed_where_the_verdict_does():
    report = report_of("good", 250)
    harmed = {"image_gain_ci95": {BY: [-0.3, -0.1]}, "image_gain_p": {BY: 0.002}, "permutation_p": 1.0}
    told = report | harmed | {"image_gain": {BY: -0.2}}
    told |= verdict(told)
    assert told["verdict"].startswith("Harmed by the images (")
    assert plain(told) == "This model is harmed by the images."
    assert plain(told | {"reads_context": True}) == "This model is harmed by the images, and reads the context."


def test_a_gain_that_is_there_but_next_to_nothing_is_told():
    report = report_of("good", 250)
    tiny = report | {"image_gain_ci95": report["image_gain_ci95"] | {"finding_f1_micro": [0.01, 0.03]}}
    assert verdict(tiny)["verdict"].startswith("Uses the images, but gains next to nothing from them (")


def test_few_texts_are_few_beside_those_of_the_radiologists():
    assert few_texts(2, 3)
    assert few_texts(12, 600)
    assert not few_texts(2, 2)
    assert not few_texts(12, 100)


def evaluation_of(name, n):
    said, true = planted(name, n)
    return {"step": 1} | evaluation.validation_scores(said, true), true


SAME = {
    "the model uses the images, but": USES,
    "the model is not shown to look (yet) at the images: too few to tell with": UNSURE,
    "the model does not look (yet) at the images": NO,
}


@pytest.mark.parametrize(
    ("name", "n"),
    [
        *((name, n) for name in MODELS for n in (30, 250)),
        ("blind", 1000),
        ("two sentences", 1000),
    ],
)
def test_training_warns_of_what_the_verdict_says(name, n):
    scores, _ = evaluation_of(name, n)
    warning, said = warning_of(scores, used_before=False, share_of_truth=0.5), report_of(name, n)["verdict"]
    if warning is None:
        assert said.startswith(YES)
        return
    [told] = [told for start, told in SAME.items() if warning.startswith(start)]
    assert said.startswith(told)
    for part in (NO_BETTER, UNSURE_BETTER, "writes only 2 distinct texts"):
        assert (part in warning) == (part in said.split("(")[0])


def test_training_says_that_looking_harms_where_the_verdict_does():
    said = [NORMAL if text != NORMAL else PNEUMONIA for text in TRUTHS[:100]]
    scores = {"step": 1} | evaluation.validation_scores(said, TRUTHS[:100])
    assert warning_of(scores, False, 0.5).startswith("the model is harmed by looking at the images")
    few = {"step": 1} | evaluation.validation_scores(said[:30], TRUTHS[:30])
    assert "is not shown to look" in warning_of(few, False, 0.5)


def test_texts_written_from_other_images_are_weighed_by_the_bootstrap_as_in_the_report():
    said, true = planted("good", 100)
    scores = {"step": 1} | evaluation.validation_scores(said, true, shuffled=[said[1:] + said[:1]])
    assert warning_of(scores, False, 0.5) is None
    assert "is not shown to look (yet)" in warning_of(scores | {"image_gain_p": 0.02}, False, 0.5)
    few = evaluation.validation_scores(said[:30], true[:30], shuffled=[said[1:30] + said[:1]])
    assert "is not shown to look (yet)" in warning_of({"step": 1} | few, False, 0.5)


@pytest.mark.parametrize("by", ["finding_f1_micro", "cider"])
def test_the_gain_over_the_best_constant_is_that_of_the_whole_paired_bootstrap(by):
    said, true = planted("two sentences", 60)
    statistics, constants = metrics.study_statistics(said, true), {"best_constant": [NORMAL] * 60, "other": said}
    scores = {"best_constant": {by: 1.0}, "other": {by: 0.0}}
    found = image_use.constant_gain(statistics, constants, scores, true, by, range(60), 3)
    row = bootstrap.paired_difference(metrics.study_statistics([NORMAL] * 60, true), statistics, range(60), 3)[by]
    assert found["constant_gain"][by] == pytest.approx(row["difference"])
    assert found["constant_gain_ci95"][by] == pytest.approx(row["ci95"])
    assert found["constant_gain_p"][by] == pytest.approx(row["p"])


def test_the_constant_of_an_evaluation_in_training_is_the_best_one_of_the_split():
    scores, true = evaluation_of("two sentences", 250)
    best = max(metrics.f1(metrics.finding_statistics([text] * 250, true).sum((0, 1))) for text in set(true))
    assert scores["constant_f1"] == pytest.approx(best)
    assert scores["constant_gain"] == pytest.approx(scores["finding_f1_micro"] - best)
    assert scores["constant_gain_low"] < scores["constant_gain"] < scores["constant_gain_high"]
    assert f"one constant sentence's {best:.3f}" in scores_line(scores)
