"""Whether a model reads the images, where its texts are in a language from which the labeler reads nothing."""

from types import SimpleNamespace

import numpy as np
import pytest

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap, image_use
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.evaluation.report import page, report_markdown

NORMAL = "Sin hallazgos patológicos agudos en el tórax."
ABNORMAL = [
    "Derrame pleural derecho de pequeña cuantía con atelectasia de la base.",
    "Cardiomegalia leve sin signos de insuficiencia cardíaca.",
    "Infiltrado en el lóbulo inferior izquierdo, sugestivo de neumonía.",
    "Neumotórax apical izquierdo. Se recomienda control.",
]
SPANISH = [NORMAL, NORMAL, *ABNORMAL] * 10
TRUTHS = ["Right pleural effusion.", "Cardiomegaly.", "No acute cardiopulmonary abnormality.", "Scoliosis."] * 10


def rows_of(predictions, references):
    return [
        {"uid": str(i), "impression": truth, "prediction": said, "score": 0.5}
        for i, (said, truth) in enumerate(zip(predictions, references, strict=True))
    ]


@pytest.fixture(scope="module")
def mostly_right():
    """84 % of the texts are the radiologist's, the others say that all is normal."""
    rng = np.random.default_rng(0)
    return [text if rng.random() < 0.8 else NORMAL for text in SPANISH]


@pytest.fixture(scope="module")
def spanish(mostly_right):
    return evaluation.build_report(rows_of(mostly_right, SPANISH), SPANISH, SPANISH)


def test_spanish_texts_that_are_mostly_right_read_the_images(spanish):
    assert spanish["exact_match"] > 0.8
    assert spanish["verdict"].startswith("Reads the images: yes")
    assert "CIDEr over shuffled images" in spanish["verdict"]
    assert spanish["reads_images"] is True
    assert spanish["gain_score"] == "cider"
    assert spanish["permutation_p"] == pytest.approx(0.001)
    assert "permutation p: CIDEr" in spanish["signature"]


def test_page_and_markdown_say_that_findings_cannot_be_read_and_show_none_of_their_figures(spanish):
    told = "Findings cannot be read from these texts, as the texts do not look English"
    html, sentences = page.report_page(spanish, []), page.sentences(spanish)
    for text in (html, report_markdown(spanish), spanish["verdict"], *(sentences[k] for k in ("summary", "findings"))):
        assert told in text
    assert "CIDEr falls from" in sentences["image_shuffle"]
    assert "Of 100 findings" not in html
    assert "rightly called normal" not in html
    assert "CIDEr over shuffled images" in html


def test_one_spanish_sentence_for_all_does_not_read_the_images():
    report = evaluation.build_report(rows_of([NORMAL] * len(SPANISH), SPANISH), SPANISH, SPANISH)
    assert report["verdict"].startswith("Does not read the images (+0.00 CIDEr")
    assert report["permutation_p"] == 1


@pytest.mark.parametrize("seed", range(4))
def test_spanish_texts_of_other_studies_are_not_shown_to_read_the_images(seed):
    blind = [SPANISH[i] for i in np.random.default_rng(seed).permutation(len(SPANISH))]
    report = evaluation.build_report(rows_of(blind, SPANISH), SPANISH, SPANISH)
    assert report["reads_images"] is None  # of 60 studies: not shown, which is not the same as "does not"
    assert report["verdict"].startswith("Not shown whether the model reads the images")


def test_a_model_that_says_what_is_not_there_is_harmed_by_the_images():
    truths = TRUTHS * 2
    report = evaluation.build_report(rows_of(truths[1:] + truths[:1], truths))
    assert report["reads_images"] is False
    assert report["verdict"].startswith("Harmed by the images (-0.")


def test_the_gain_told_in_training_is_that_of_the_report_in_either_score(spanish, mostly_right):
    english = evaluation.build_report(rows_of(TRUTHS[1:] + TRUTHS[:1], TRUTHS))
    for report, said, truth in ((spanish, mostly_right, SPANISH), (english, TRUTHS[1:] + TRUTHS[:1], TRUTHS)):
        scores, by = image_use.validation_scores(said, truth), report["gain_score"]
        assert scores["image_gain"] == pytest.approx(report["image_gain"][by])
        assert [scores["image_gain_low"], scores["image_gain_high"]] == pytest.approx(report["image_gain_ci95"][by])


def test_texts_written_from_other_images_take_the_place_of_the_permuted_ones(mostly_right):
    for said, truth in ((mostly_right, SPANISH), (TRUTHS[1:] + TRUTHS[:1], TRUTHS)):
        permuted = [[said[i] for i in order] for order in bootstrap.derangements(len(said), 0)]
        scores = image_use.validation_scores(said, truth)
        assert 0 < scores.pop("permutation_p") <= 1, "of texts written anew it says nothing"
        assert image_use.validation_scores(said, truth, shuffled=permuted) == pytest.approx(scores)
        none = image_use.validation_scores(said, truth, shuffled=[said])
        assert [none[f"image_gain{end}"] for end in ("", "_low", "_high")] == [0, 0, 0]
    said = [*TRUTHS[:30], *["Cardiomegaly."] * 10]
    scores = image_use.validation_scores(said, TRUTHS, shuffled=[["Scoliosis."] * 40, TRUTHS])
    # Findings are in 30 studies of 40, in 10 of them scoliosis: precision 1 / 4, recall 1 / 3; the truth has F1 1.
    assert scores["image_gain"] == pytest.approx(scores["finding_f1_micro"] - (2 / 7 + 1) / 2)
    assert scores["image_gain_low"] < scores["image_gain"] < scores["image_gain_high"]


def test_the_composite_of_spanish_texts_prefers_the_model_that_looks(mostly_right):
    looking, constant = (image_use.validation_scores(said, SPANISH) for said in (mostly_right, [NORMAL] * 60))
    assert looking["composite"] > 2 * constant["composite"]
    assert 0 < looking["composite"] <= 1


def test_an_evaluation_in_training_computes_its_statistics_once_and_in_one_process(monkeypatch):
    calls = []
    monkeypatch.setattr(metrics, "study_statistics", lambda *args: calls.append(args) or plain(*args))
    image_use.validation_scores(TRUTHS, TRUTHS)
    assert len(calls) == 1
    monkeypatch.setattr(image_use, "PartialState", lambda: SimpleNamespace(is_main_process=False))
    monkeypatch.setattr(image_use, "broadcast_object_list", lambda told: [{"of the first process": told}])
    assert image_use.validation_scores(TRUTHS, TRUTHS) == {"of the first process": [None]}
    assert len(calls) == 1


plain = metrics.study_statistics


def test_the_word_permutation_test_tells_texts_that_know_from_blind_ones(mostly_right):
    assert bootstrap.word_permutation_p(mostly_right, SPANISH, 0) == pytest.approx(1 / 1000)
    shuffled = [[SPANISH[i] for i in np.random.default_rng(seed).permutation(60)] for seed in range(40)]
    p = [bootstrap.word_permutation_p(said, SPANISH, seed, 99) for seed, said in enumerate(shuffled)]
    assert sum(value <= 0.05 for value in p) <= 6
    assert 0.3 < np.mean(p) < 0.7


def test_the_two_runs_of_another_language_are_compared_by_their_words(tmp_path, mostly_right):
    import json

    from hf_cxr.evaluation.compare import compare

    for name, said in (("a", [NORMAL] * len(SPANISH)), ("b", mostly_right)):
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(row) + "\n" for row in rows_of(said, SPANISH))
        (tmp_path / name / "predictions.jsonl").write_text(lines)
    assert compare(str(tmp_path / "a"), str(tmp_path / "b"))["verdict"].startswith("In CIDEr B is better")
