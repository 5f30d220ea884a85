"""The modules whose names exist on the Hub take its inputs and give its keys and values."""

import random

import evaluate
import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer, scoring

import hf_cxr
from hf_cxr.data.sources import phantom_text
from hf_cxr.metrics import published

SAID = ["No acute disease.", "Small left effusion."]
TRUE = [
    ["No acute cardiopulmonary disease.", "No acute bony disease seen."],
    ["Small left pleural effusion.", "There is a small left effusion."],
]
# Inputs → what the published `bleu` (tensorflow/nmt's compute_bleu on 13a tokens) says of the two.
PUBLISHED_BLEU = {
    (): (0.0, [1.0, 5 / 6, 1 / 4, 0.0]),
    (("max_order", 2), ("smooth", True)): (0.7210294186861093, [1.0, 6 / 7]),
}
PUBLISHED_KEYS = {
    "bleu": {"bleu", "precisions", "brevity_penalty", "length_ratio", "translation_length", "reference_length"},
    "sacrebleu": {"score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len"},
    "rouge": {"rouge1", "rouge2", "rougeL", "rougeLsum"},
    "exact_match": {"exact_match"},
}


@pytest.fixture
def load(tmp_path):
    return lambda name, **options: evaluate.load(hf_cxr.metric_path(name), cache_dir=str(tmp_path), **options)


@pytest.fixture(scope="module")
def pairs():
    """60 texts, some cut, some in lines, some empty, each with three references; the first is its lines reversed."""
    dice = random.Random(4)
    texts = [phantom_text.report(phantom_text.plan(3, i))[0] for i in range(80)]
    said = [" ".join(text.split()[: dice.randint(0, 30)]).replace(". ", dice.choice([". ", ".\n"])) for text in texts]
    true = [["\n\n".join(text.split(". ")[::-1]), *dice.sample(texts, 2)] for text in texts]
    return said[:60], true[:60]


@pytest.mark.parametrize("name", PUBLISHED_KEYS)
def test_the_published_keys_are_there(load, name):
    assert PUBLISHED_KEYS[name] <= set(load(name).compute(predictions=SAID, references=[one[0] for one in TRUE]))


@pytest.mark.parametrize("options", PUBLISHED_BLEU)
def test_bleu_of_several_references_is_the_published_one(load, options):
    scores = load("bleu").compute(predictions=SAID, references=TRUE, **dict(options))
    bleu, precisions = PUBLISHED_BLEU[options]
    assert scores["bleu"] == pytest.approx(bleu, abs=1e-12)
    assert scores["precisions"] == pytest.approx(precisions)
    assert scores["brevity_penalty"] == pytest.approx(0.7788007830714049)
    assert (scores["length_ratio"], scores["translation_length"], scores["reference_length"]) == (0.8, 8, 10)


def test_a_word_that_two_references_hold_once_each_counts_once(load):
    scores = load("bleu").compute(predictions=["no no"], references=[["no a", "no b"]], max_order=1)
    assert scores["precisions"] == [0.5]


def test_bleu_takes_a_tokenizer_and_tells_it(load):
    scores = load("bleu").compute(predictions=SAID, references=TRUE, tokenizer=str.split, max_order=1)
    assert (scores["translation_length"], scores["reference_length"]) == (6, 8)
    assert scores["precisions"] == [1.0]
    assert scores["signature"].endswith("; tokenizer: split; max_order: 1")


def test_bleu_of_one_reference_in_a_list_is_that_of_the_string(load, pairs):
    said, true = pairs[0], [texts[0] for texts in pairs[1]]
    inside = load("bleu").compute(predictions=said, references=[[text] for text in true])
    assert inside == load("bleu").compute(predictions=said, references=true)
    expected = sacrebleu.BLEU(smooth_method="none", force=True).corpus_score(said, [true])
    assert inside["bleu"] == pytest.approx(expected.score / 100) != 0
    assert inside["precisions"] == pytest.approx([precision / 100 for precision in expected.precisions])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lowercase": True, "tokenize": "intl"},
        {"smooth_method": "add-k", "smooth_value": 2, "use_effective_order": True, "force": True},
        {"smooth_method": "floor"},
    ],
)
def test_sacrebleu_is_the_published_one_in_every_key(load, pairs, options):
    said, true = pairs
    scores = load("sacrebleu").compute(predictions=said, references=true, **options)
    theirs = sacrebleu.corpus_bleu(said, [list(texts) for texts in zip(*true, strict=True)], **options)
    assert {key: scores[key] for key in PUBLISHED_KEYS["sacrebleu"]} == {
        key: getattr(theirs, key) for key in PUBLISHED_KEYS["sacrebleu"]
    }
    assert scores["signature"].startswith("nrefs:3|")


def test_a_short_text_scores_by_the_orders_it_has_where_asked(load):
    texts = {"predictions": ["No effusion"], "references": ["No effusion"]}
    assert load("sacrebleu").compute(**texts, use_effective_order=True)["score"] == pytest.approx(100)
    assert load("sacrebleu").compute(**texts)["score"] == 0


def test_sacrebleu_refuses_unequal_numbers_of_references_and_no_text_may_be_without_one(load):
    with pytest.raises(ValueError, match=r"same number of references for each prediction; got \[1, 2\]"):
        load("sacrebleu").compute(predictions=SAID, references=[TRUE[0], TRUE[1][:1]])
    for name in ("bleu", "rouge", "sacrebleu"):
        with pytest.raises(ValueError, match="prediction 1 has no reference"):
            load(name).compute(predictions=SAID, references=[TRUE[0], []])


@pytest.mark.parametrize("use_stemmer", [False, True])
@pytest.mark.parametrize("several", [True, False])
def test_rouge_of_each_study_is_that_of_rouge_score(load, pairs, several, use_stemmer):
    said, true = pairs
    types = ["rouge1", "rouge2", "rouge3", "rougeL", "rougeLsum"]
    scorer = rouge_scorer.RougeScorer(types, use_stemmer=use_stemmer)
    score = scorer.score_multi if several else scorer.score
    true = true if several else [texts[0] for texts in true]
    scores = load("rouge").compute(
        predictions=said, references=true, rouge_types=types, use_aggregator=False, use_stemmer=use_stemmer
    )
    theirs = [score(one, prediction) for one, prediction in zip(true, said, strict=True)]
    for name in types:
        assert scores[name] == pytest.approx([each[name].fmeasure for each in theirs]), name
    if not several:
        assert scores["rougeL"] != scores["rougeLsum"], "some of the texts have lines"


FEW_WORDS = st.lists(st.lists(st.sampled_from("a b c runs run lines".split()), max_size=6).map(" ".join), max_size=4)


@given(FEW_WORDS.map("\n".join), FEW_WORDS.map("\n".join), st.booleans())
def test_rouge_of_lines_that_repeat_words_is_that_of_rouge_score(said, true, use_stemmer):
    kinds = published.ROUGE_TYPES
    theirs = rouge_scorer.RougeScorer(list(kinds), use_stemmer=use_stemmer).score(true, said)
    tokens = published.stemmed_rouge_tokens if use_stemmer else None
    ours = published.rouge([said], [[true]], kinds, tokens)
    assert {kind: ours[kind][0] for kind in kinds} == pytest.approx({kind: theirs[kind].fmeasure for kind in kinds})


def test_rouge_of_the_corpus_is_what_the_published_one_estimates(load, pairs):
    said, true = pairs
    scorer, aggregator = rouge_scorer.RougeScorer(list(PUBLISHED_KEYS["rouge"])), scoring.BootstrapAggregator()
    np.random.seed(0)
    for prediction, texts in zip(said, true, strict=True):
        aggregator.add_scores(scorer.score_multi(texts, prediction))
    theirs = aggregator.aggregate()
    scores = load("rouge").compute(predictions=said, references=true)
    for name in PUBLISHED_KEYS["rouge"]:
        low, middle, high = (bound.fmeasure for bound in theirs[name])
        assert low < scores[name] < high
        assert scores[name] == pytest.approx(middle, abs=0.005), "the median of 1,000 resamples of this mean"


def test_rouge_takes_a_tokenizer_and_refuses_an_unknown_type(load):
    scores = load("rouge").compute(predictions=["A-B c"], references=["A-B d"], tokenizer=str.split)
    assert scores["rouge1"] == 0.5
    with pytest.raises(ValueError, match="no ROUGE named 'rougeW'; there are rouge1 to rouge9, rougeL and rougeLsum"):
        load("rouge").compute(predictions=SAID, references=TRUE, rouge_types=["rougeW"])


def test_exact_match_counts_white_space_as_the_published_one_does_and_words_beside_it(load):
    texts = {"predictions": ["No  effusion.", "Normal."], "references": ["No effusion.", "Normal."]}
    scores = load("exact_match").compute(**texts)
    assert (scores["exact_match"], scores["exact_match_words"]) == (0.5, 1.0)


def test_exact_match_takes_what_to_ignore(load):
    texts = {"predictions": ["cat?", "theater", "yelling", "agent"]}
    texts["references"] = ["the cat", "theater", "YELLING", "agent007"]
    options = {"regexes_to_ignore": ["the ", "yell"], "ignore_case": True, "ignore_punctuation": True}
    module = load("exact_match")  # the examples of the published one's documentation
    assert module.compute(**texts)["exact_match"] == 0.25
    assert module.compute(**texts, **options)["exact_match"] == 0.5
    options["regexes_to_ignore"].append("YELL")
    assert module.compute(**texts, **options)["exact_match"] == 0.75
    assert module.compute(**texts, **options, ignore_numbers=True)["exact_match"] == 1.0


@pytest.mark.parametrize("name", ["bleu", "sacrebleu", "rouge"])
def test_studies_added_one_by_one_or_in_batches_score_as_together(load, name):
    one_by_one, batched, module = load(name), load(name, experiment_id="batched"), load(name)
    for prediction, references in zip(SAID, TRUE, strict=True):
        one_by_one.add(prediction=prediction, reference=references)
        batched.add_batch(predictions=[prediction], references=[references])
    expected = module.compute(predictions=SAID, references=TRUE)
    assert one_by_one.compute() == batched.compute() == expected


def test_modules_combine(load):
    together = evaluate.combine([load("bleu"), load("rouge"), load("sacrebleu")])
    scores = together.compute(predictions=SAID, references=TRUE)
    assert scores["sacrebleu_precisions"][:3] == pytest.approx([100 * one for one in scores["bleu_precisions"][:3]])
    assert {"bleu", "rougeLsum", "score"} <= set(scores)
