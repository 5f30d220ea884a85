"""Planted models of each kind get the verdict that they earn, at each number of studies, in the report and while they
train."""

import re
from functools import cache

import numpy as np
import pytest

from hf_cxr import metrics
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.evaluation.report import page, report_markdown
from hf_cxr.evaluation.report.verdict import FEWEST, SMALL_GAIN, few_texts, is_shown, verdict
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
    plain = page.sentences(report)["verdict"]
    assert not re.search(r"\d\.\d", plain)
    assert report["verdict"] in report_markdown(report)
    html = page.report_page(report, [])
    assert f"<title>{plain}</title>" in html
    assert ('class="yes"' in html.split("</h1>")[0]) == (told == YES)


@pytest.mark.parametrize("said", [lambda i: PNEUMONIA, lambda i: (NORMAL, PNEUMONIA)[i % 2]], ids=["right", "mixed"])
def test_studies_that_all_have_the_same_findings_cannot_tell_whether_images_are_read(said):
    """However many there are: the text of another patient is as right as one's own."""
    rows = [
        {"uid": str(i), "impression": f"{PNEUMONIA} Cause {i % 7}.", "prediction": said(i), "score": 0.5}
        for i in range(80)
    ]
    report = evaluation.build_report(rows, TRAIN, TRAIN)
    assert (report["reads_images"], report["permutation_p"]) == (None, None)
    told = "so whether the model reads the images cannot be told, and it states findings no better than one constant "
    assert f"{told}sentence (finding F1 " in report["verdict"]
    assert "against 1.000 of one constant sentence" in report["verdict"]
    assert "would tell a gain" not in report["verdict"], "no number of such studies would"
    assert "cannot be told" in page.sentences(report)["image_shuffle"]


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
    assert "too few to tell with 250 studies, about 2,000 would tell" in unsure
    level = verdict(report | {"probes": {"encoder": probe(report, 0.01, [-0.02, 0.04])}})["verdict"]
    assert level.startswith(start), "a gain that is shown to be small"
    assert verdict(report | {"probes": {}})["verdict"] == report["verdict"]


def test_a_gain_is_called_small_only_where_the_interval_and_the_patients_say_so():
    small = SMALL_GAIN["finding_f1_micro"]
    assert is_shown([0.01, 0.3], "finding_f1_micro", 30) is True
    assert is_shown([0.01, 0.3], "finding_f1_micro", 30, p=0.02) is None
    assert is_shown([-0.1, small - 0.001], "finding_f1_micro", FEWEST) is False
    assert is_shown([-0.1, small], "finding_f1_micro", FEWEST) is None
    assert is_shown([0.0, 0.0], "finding_f1_micro", FEWEST - 1) is None, "a bootstrap of few says nothing"


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


@pytest.mark.parametrize(
    ("name", "n", "told"),
    [
        ("blind", 30, "the model is not shown to look (yet) at the images: too few to tell with 30 studies, about "),
        ("blind", 1000, "the model does not look (yet) at the images"),
        ("constant", 30, "the model does not look (yet) at the images"),
        ("two sentences", 250, "the model uses the images, but states findings no better than one constant sentence "),
        (
            "normal or abnormal",
            250,
            "the model uses the images, but writes only 2 distinct texts where the",
        ),
        ("good", 30, None),
        ("good", 250, None),
    ],
)
def test_training_warns_of_what_the_verdict_would_say(name, n, told):
    scores, _ = evaluation_of(name, n)
    warning = warning_of(scores, used_before=False, share_of_truth=0.5)
    assert warning is None if told is None else warning.startswith(told)


def test_the_constant_of_an_evaluation_in_training_is_the_best_one_of_the_split():
    scores, true = evaluation_of("two sentences", 250)
    best = max(metrics.f1(metrics.finding_statistics([text] * 250, true).sum((0, 1))) for text in set(true))
    assert scores["constant_f1"] == pytest.approx(best)
    assert scores["constant_gain"] == pytest.approx(scores["finding_f1_micro"] - best)
    assert scores["constant_gain_low"] < scores["constant_gain"] < scores["constant_gain_high"]
    assert f"one constant sentence's {best:.3f}" in scores_line(scores)
