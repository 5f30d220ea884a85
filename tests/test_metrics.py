import evaluate
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st

import hf_cxr
from hf_cxr import metrics

WORDS = st.lists(
    st.sampled_from("no acute disease . , effusion small 1.2 cm, X-ray (right) left".split()), max_size=12
)
TEXT = WORDS.map(" ".join)


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_bleu_of_every_order_is_that_of_sacrebleu_without_smoothing(pairs):
    predictions, references = map(list, zip(*pairs, strict=True))
    ours = metrics.corpus_bleu(predictions, references)
    for order in range(1, 5):
        theirs = sacrebleu.BLEU(max_ngram_order=order, smooth_method="none", effective_order=False)
        expected = theirs.corpus_score(predictions, [references]).score / 100
        assert ours[f"bleu{order}"] == pytest.approx(expected, abs=1e-9)


def test_identical_texts_score_one_and_unrelated_ones_zero():
    texts = ["No acute cardiopulmonary abnormality.", "Small right pleural effusion is seen."]
    assert metrics.corpus_bleu(texts, texts)["bleu4"] == pytest.approx(1)
    assert metrics.rouge_l(texts, texts) == 1
    assert metrics.finding_scores(texts, texts)["finding_f1_micro"] == 1
    assert metrics.corpus_bleu(["zebra"] * 2, texts)["bleu1"] == 0


def test_empty_predictions_score_zero_and_do_not_fail():
    scores = metrics.corpus_bleu(["", ""], ["No acute disease.", "Clear lungs."])
    assert set(scores.values()) == {0.0}


def test_an_invented_and_a_missed_finding_both_cost_f1():
    truth = ["Cardiomegaly.", "No acute disease.", "Small left pleural effusion."]
    said = ["Cardiomegaly.", "Pulmonary edema.", "No acute disease."]
    scores = metrics.finding_scores(said, truth)
    assert scores["finding_f1_micro"] == pytest.approx(2 / (2 + 1 + 1))
    assert scores["per_finding"]["edema"] == {"n": 0, "precision": 0.0, "recall": None, "f1": 0.0}
    assert scores["per_finding"]["pleural effusion"]["recall"] == 0
    assert scores["finding_f1_macro"] == pytest.approx(0.5), "over the findings that the references hold"


def test_a_corpus_score_is_the_formula_on_summed_statistics():
    rng = np.random.default_rng(0)
    vocabulary = "no acute disease effusion small right left .".split()
    texts = [[" ".join(rng.choice(vocabulary, 6)) for _ in range(50)] for _ in range(2)]
    rows = metrics.bleu_statistics(*texts)
    halves = rows[:25].sum(0) + rows[25:].sum(0)
    assert metrics.bleu_from_statistics(halves)[3] == pytest.approx(metrics.corpus_bleu(*texts)["bleu4"])


@pytest.mark.parametrize(("name", "key"), [("bleu", "bleu4"), ("rouge", "rougeL"), ("finding_f1", "finding_f1_micro")])
def test_metrics_load_through_evaluate_without_network(name, key, tmp_path):
    module = evaluate.load(hf_cxr.metric_path(name), cache_dir=str(tmp_path))
    texts = ["Small right pleural effusion is seen.", "No acute cardiopulmonary abnormality."]
    assert module.compute(predictions=texts, references=texts)[key] == pytest.approx(1)


def test_an_unknown_metric_names_those_there_are():
    with pytest.raises(ValueError, match="bleu, finding_f1, rouge"):
        hf_cxr.metric_path("blue")
