import importlib

import evaluate
import numpy as np
import pytest
import sacrebleu

import hf_cxr
from hf_cxr import metrics
from hf_cxr.data.sources import phantom_text

TEXTS = ["Small right pleural effusion is seen.", "No acute cardiopulmonary abnormality."]
MODULES = {  # module → (key, value on equal texts)
    "bleu": ("bleu4", 1),
    "sacrebleu": ("score", 100),
    "sentence_bleu": ("sentence_bleu4", 1),
    "legacy_bleu": ("legacy_bleu4", 1),
    "rouge": ("rougeL", 1),
    "cider": ("cider", 10),
    "meteor": ("meteor", 1 - 0.5 * (6**-3 + 4**-3) / 2),  # words are one chunk of six, and of four
    "exact_match": ("exact_match", 1),
    "finding_f1": ("finding_f1_micro", 1),
    "normal_accuracy": ("normal_accuracy", 1),
    "diversity": ("distinct_outputs", 2),
}


@pytest.fixture(scope="module")
def pairs():
    """Impressions of 60 synthetic studies against those of their neighbours and, every third, against themselves."""
    texts = [phantom_text.report(phantom_text.plan(3, i))[0] for i in range(61)]
    return [texts[i if i % 3 else i + 1] for i in range(60)], texts[:60]


@pytest.fixture(scope="module")
def statistics(pairs):
    return metrics.study_statistics(*pairs)


# --- per-study statistics ----------------------------------------------------------------------------------------


def test_every_scalar_is_the_plain_function_of_the_texts(pairs, statistics):
    expected = {
        **metrics.corpus_bleu(*pairs),
        "sentence_bleu4": metrics.sentence_bleu(*pairs),
        "legacy_bleu4": metrics.legacy_bleu(*pairs),
        "rougeL": metrics.rouge_l(*pairs),
        "cider": metrics.cider(*pairs),
        "meteor": metrics.meteor(*pairs),
        "exact_match": metrics.exact_match(*pairs),
        **metrics.finding_scores(*pairs),
        "normal_accuracy": metrics.normal_accuracy(*pairs),
        "length_ratio": metrics.length_ratio(*pairs),
    }
    del expected["per_finding"]
    scores = statistics.scores()
    assert tuple(scores) == tuple(expected) == metrics.SCALARS
    assert scores == pytest.approx(expected)
    assert all(type(value) is float for value in scores.values())
    assert len({round(value, 6) for value in scores.values()}) > 12, "the texts tell the scores apart"


def test_a_weight_of_two_counts_a_study_twice(pairs, statistics):
    weights = np.random.default_rng(0).integers(0, 3, 60)
    repeated = [[text for text, times in zip(side, weights, strict=True) for _ in range(times)] for side in pairs]
    again = metrics.study_statistics(*repeated).scores()
    weighted = statistics.scores(weights)
    del again["cider"], weighted["cider"]  # its idf is that of the references given
    assert weighted == pytest.approx(again)


def test_cider_of_a_sample_keeps_the_document_frequencies_of_all_references(pairs, statistics):
    chosen = np.arange(10)
    tokens = [[metrics.texts.cider_tokens(metrics.tokenize_13a(text)) for text in side] for side in pairs]
    expected = metrics.overlap.cider_per_study(*tokens)[chosen].mean()
    assert statistics.take(chosen).scores()["cider"] == pytest.approx(expected)


def test_rows_of_weights_give_one_score_each(statistics):
    weights = np.random.default_rng(1).integers(0, 4, (5, 60))
    together = statistics.scores(weights)
    assert {value.shape for value in together.values()} == {(5,)}
    for i, row in enumerate(weights):
        assert {name: value[i] for name, value in together.items()} == pytest.approx(statistics.scores(row))


def test_chosen_studies_are_those_of_weight_one(statistics):
    mask = np.arange(60) % 4 == 0
    chosen = statistics.take(mask)
    assert chosen.n == 15
    assert chosen.scores() == pytest.approx(statistics.scores(mask))


def test_findings_are_read_from_the_text_before_normalization():
    texts = ["No effusion. Cardiomegaly."]
    assert metrics.study_statistics(texts, texts, "words").scores()["finding_f1_micro"] == 1


def test_normalization_is_for_words():
    said, true = ["SMALL EFFUSION"], ["Small effusion."]
    assert metrics.study_statistics(said, true).scores()["bleu1"] == 0
    scores = metrics.study_statistics(said * 2, true * 2, "words").scores()
    assert scores["bleu2"] == scores["rougeL"] == scores["exact_match"] == scores["length_ratio"] == 1


@pytest.mark.parametrize(("said", "true"), [([], []), (["a"], []), (["a"], ["a", "b"])])
def test_no_texts_or_unequal_numbers_of_them_are_refused(said, true):
    with pytest.raises(ValueError, match=f"{len(said)} predictions for {len(true)} references"):
        metrics.study_statistics(said, true)


# --- the whole score sheet ---------------------------------------------------------------------------------------


def test_score_texts_holds_every_score_of_a_report(pairs):
    scores = metrics.score_texts(*pairs)
    extra = {"sacrebleu", "per_finding", "distinct_outputs", "modal_output", "modal_share"}
    assert set(scores) == {*metrics.SCALARS, *extra}
    assert scores["sacrebleu"]["score"] == pytest.approx(sacrebleu.corpus_bleu(pairs[0], [pairs[1]]).score)
    assert scores["per_finding"] == metrics.finding_scores(*pairs)["per_finding"] != {}
    assert scores["modal_output"] in pairs[0]


def test_the_signature_tells_the_normalization_and_every_definition():
    text = metrics.signature("words")
    assert text.endswith("normalization: words")
    assert all(f"{name}: " in text for name in metrics.DEFINITIONS)
    assert "legacy BLEU-4: without meaning" in text
    assert "\n" not in text
    assert metrics.signature() == metrics.SIGNATURE


# --- evaluate modules --------------------------------------------------------------------------------------------


@pytest.fixture
def no_network(monkeypatch):
    import socket

    def refuse(*_, **__):
        raise AssertionError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.parametrize(("name", "expected"), MODULES.items())
def test_metrics_load_through_evaluate_without_network(name, expected, tmp_path, no_network):
    module = evaluate.load(hf_cxr.metric_path(name), cache_dir=str(tmp_path))
    key, value = expected
    scores = module.compute(predictions=TEXTS, references=TEXTS)
    assert scores[key] == pytest.approx(value)
    assert scores["signature"]
    assert len(module.description) > 20


@pytest.mark.parametrize("name", MODULES)
def test_modules_take_a_normalization_and_tell_it(name, tmp_path):
    module = evaluate.load(hf_cxr.metric_path(name), cache_dir=str(tmp_path))
    texts = {"predictions": ["NO PLEURAL EFFUSION SEEN", "no pleural effusion seen"]}
    texts["references"] = ["No pleural effusion seen."] * 2
    plain = module.compute(**texts)
    scores = module.compute(**texts, normalization="words")
    assert scores["signature"].endswith("normalization:words" if name == "sacrebleu" else "normalization: words")
    by_words = {"bleu", "sacrebleu", "sentence_bleu", "legacy_bleu", "exact_match", "diversity"}
    changed = {key for key in scores if key != "signature" and scores[key] != plain[key]}
    assert bool(changed) == (name in by_words), "ROUGE-L and CIDEr ignore case and marks; findings are read as is"
    with pytest.raises(ValueError, match="none, lower, words"):
        module.compute(predictions=TEXTS, references=TEXTS, normalization="nothing")


@pytest.mark.parametrize("normalization", metrics.NORMALIZATIONS)
@pytest.mark.parametrize("name", MODULES)
def test_modules_give_the_scores_of_the_report(name, normalization, pairs, tmp_path):
    predictions, references = [text.upper() for text in pairs[0]], pairs[1]
    module = evaluate.load(hf_cxr.metric_path(name), cache_dir=str(tmp_path))
    scores = module.compute(predictions=predictions, references=references, normalization=normalization)
    report = metrics.score_texts(predictions, references, normalization)
    expected = report["sacrebleu"] if name == "sacrebleu" else report | {"bleu": report["bleu4"]}
    del scores["signature"]
    shared = {key: score for key, score in scores.items() if key in expected}
    assert shared, "beside the keys that are the Hub's alone"
    for key, score in shared.items():
        assert score == (pytest.approx(expected[key]) if isinstance(score, float) else expected[key])


def test_bleu_module_answers_as_the_published_one_does(tmp_path):
    """`bleu` and `length_ratio` are the keys of evaluate's own module."""
    module = evaluate.load(hf_cxr.metric_path("bleu"), cache_dir=str(tmp_path))
    scores = module.compute(predictions=["No acute disease."], references=["No acute bony disease seen."])
    assert scores["bleu"] == scores["bleu4"] == 0
    assert scores["length_ratio"] == 4 / 6


def test_every_module_folder_is_tested_and_found():
    from pathlib import Path

    folders = {path.parent.name for path in Path(metrics.__file__).parent.glob("*/*.py")}
    assert folders == set(MODULES)


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(ValueError, match=r"bleu, cider, diversity, .*, sacrebleu, sentence_bleu"):
        hf_cxr.metric_path("blue")


def test_metrics_are_imported_without_torch_or_evaluate():
    import subprocess
    import sys

    code = (
        "import sys, hf_cxr.metrics; print([m for m in ('torch', 'evaluate', 'datasets', 'nltk') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert importlib.import_module("hf_cxr.metrics") is metrics
