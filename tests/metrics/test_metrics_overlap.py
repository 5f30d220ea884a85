import math
import random
import time
from collections import Counter
from itertools import takewhile

import numpy as np
import pytest
import sacrebleu
from hypothesis import given
from hypothesis import strategies as st
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from hf_cxr import metrics
from hf_cxr.data.sources import phantom_text
from hf_cxr.metrics import overlap, texts

WORDS = st.lists(
    st.sampled_from("no acute disease . , effusion small 1.2 cm, X-ray (right) left".split()), max_size=12
)
TEXT = WORDS.map(" ".join)
MARKS = [*".,-  '\"05ab\n\t&;<%(é", "&amp;", "&lt;", "<skipped>", "-\n"]
MARKED = st.lists(st.sampled_from(MARKS), max_size=30).map("".join)
TEXTS = ["No acute cardiopulmonary abnormality.", "Small right pleural effusion is seen."]


def make_pairs(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Phantom impressions against each other, cut, shuffled, noisy, equal, of one word and empty."""
    dice = random.Random(seed)
    impressions = [phantom_text.report(phantom_text.plan(seed, i))[0] for i in range(n)]
    noise = 'no acute disease . , ; small 1.2 cm, (right) left-sided 3-4 5. X-ray &amp; A/P "mild" it\'s ...'.split()
    predictions, references = [], []
    for truth in impressions:
        words = truth.split()
        predictions.append(
            dice.choice(
                [
                    truth,
                    "",
                    dice.choice(words),
                    dice.choice(impressions),
                    dice.choice(impressions),
                    " ".join(words[: dice.randint(1, len(words))]),
                    " ".join(dice.sample(words, len(words))),
                    " ".join(dice.choices(noise + words, k=dice.randint(1, 30))),
                ]
            )
        )
        references.append(truth if dice.random() < 0.95 else dice.choice(["", "Normal.", " ".join(noise)]))
    return predictions, references


@pytest.fixture(scope="module")
def pairs():
    return make_pairs(2500, seed=5)


# --- tokens ------------------------------------------------------------------------------------------------------


@given(st.lists(MARKED, max_size=6))
def test_tokens_cut_together_are_those_of_sacrebleu_one_by_one(lines):
    expected = [Tokenizer13a()(line.rstrip()).split() for line in lines]
    assert texts.tokenize_13a_all(lines) == expected
    assert [list(metrics.tokenize_13a(line)) for line in lines] == expected


def test_cider_tokens_are_lower_case_words_without_punctuation():
    assert (
        texts.cider_tokens(metrics.tokenize_13a('No "acute" disease, (see 1.5 cm).'))
        == "no acute disease see 1.5 cm".split()
    )


def of_order(counts, order):
    return {gram: count for gram, count in counts.items() if len(gram) == order}


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=6))
def test_ngrams_of_a_corpus_are_counted_as_text_by_text(pairs):
    predictions, references = zip(*pairs, strict=True)
    for order, counts in enumerate(texts.count_orders(predictions, references), start=1):
        for i, (said, true) in enumerate(pairs):
            ours, theirs = (of_order(metrics.ngrams(words), order) for words in (said, true))
            here = counts.predictions.text == i
            assert sorted(counts.predictions.times[here].tolist()) == sorted(ours.values())
            shared = counts.predictions.text[counts.shared_in_predictions] == i
            assert shared.sum() == len(ours.keys() & theirs.keys())


# --- BLEU --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=8))
def test_bleu_of_every_order_is_that_of_sacrebleu_without_smoothing(pairs):
    predictions, references = map(list, zip(*pairs, strict=True))
    ours = metrics.corpus_bleu(predictions, references)
    for order in range(1, 5):
        theirs = sacrebleu.BLEU(max_ngram_order=order, smooth_method="none", effective_order=False, force=True)
        expected = theirs.corpus_score(predictions, [references]).score / 100
        assert ours[f"bleu{order}"] == pytest.approx(expected, abs=1e-9)


def test_bleu_of_thousands_of_pairs_is_that_of_sacrebleu(pairs):
    ours = metrics.corpus_bleu(*pairs)
    for order in range(1, 5):
        theirs = sacrebleu.BLEU(max_ngram_order=order, smooth_method="none", force=True)
        assert ours[f"bleu{order}"] == pytest.approx(theirs.corpus_score(pairs[0], [pairs[1]]).score / 100, abs=1e-9)


@pytest.mark.parametrize("n", [1, 2, 7, 2500])
def test_sacrebleu_is_its_own_score_and_signature(pairs, n):
    predictions, references = pairs[0][:n], pairs[1][:n]
    theirs = sacrebleu.BLEU(force=True)
    expected = theirs.corpus_score(predictions, [references]).score
    ours = metrics.sacrebleu(predictions, references)
    assert ours["score"] == pytest.approx(expected, abs=1e-9)
    assert ours["signature"] == str(theirs.get_signature())
    assert metrics.sacrebleu(predictions, references, "words")["signature"].endswith("|normalization:words")


def test_sentence_bleu_is_that_of_sacrebleu_for_every_pair(pairs):
    ours = overlap.sentence_bleu_per_study(metrics.bleu_statistics(*pairs))
    theirs = [sacrebleu.sentence_bleu(p, [r]).score / 100 for p, r in zip(*pairs, strict=True)]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert metrics.sentence_bleu(*pairs) == pytest.approx(np.mean(theirs))


def test_identical_texts_score_one_and_unrelated_ones_zero():
    assert metrics.corpus_bleu(TEXTS, TEXTS)["bleu4"] == pytest.approx(1)
    assert metrics.sentence_bleu(TEXTS, TEXTS) == pytest.approx(1)
    assert metrics.rouge_l(TEXTS, TEXTS) == 1
    assert metrics.cider(TEXTS, TEXTS) == pytest.approx(10)
    assert metrics.exact_match(TEXTS, TEXTS) == 1
    unrelated = ["zebra"] * 2
    assert metrics.corpus_bleu(unrelated, TEXTS)["bleu1"] == 0
    assert metrics.sentence_bleu(unrelated, TEXTS) == metrics.cider(unrelated, TEXTS) == 0


def test_empty_predictions_score_zero_and_do_not_fail():
    empty = ["", ""]
    assert set(metrics.corpus_bleu(empty, TEXTS).values()) == {0.0}
    for score in (metrics.sentence_bleu, metrics.rouge_l, metrics.cider, metrics.exact_match, metrics.length_ratio):
        assert score(empty, TEXTS) == 0
        assert score(TEXTS, empty) == 0


def test_a_corpus_score_is_the_formula_on_summed_statistics():
    rng = np.random.default_rng(0)
    vocabulary = "no acute disease effusion small right left .".split()
    texts = [[" ".join(rng.choice(vocabulary, 6)) for _ in range(50)] for _ in range(2)]
    rows = metrics.bleu_statistics(*texts)
    halves = rows[:25].sum(0) + rows[25:].sum(0)
    assert metrics.bleu_from_statistics(halves)[3] == pytest.approx(metrics.corpus_bleu(*texts)["bleu4"])


def test_length_ratio_counts_13a_tokens():
    assert metrics.length_ratio(["No disease."], ["No acute disease, none."]) == 3 / 6


# --- the legacy measure ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prediction", "reference", "value"),
    [
        ("no acute cardiopulmonary abnormality", "no acute disease", 0.5081327481546147),
        (
            "mild bibasilar infiltrates versus atelectasis",
            "cardiomegaly with mild bibasilar infiltrates versus atelectasis",
            0.631914561891573,
        ),
    ],
)
def test_legacy_measure_has_its_two_published_values_exactly(prediction, reference, value):
    assert metrics.legacy_bleu([prediction], [reference]) == value


def test_legacy_measure_is_nltk_that_stops_at_the_first_order_without_a_match(pairs):
    from nltk.translate.bleu_score import sentence_bleu

    def old_nltk(p_n, **_):
        return list(takewhile(lambda p: p.numerator, p_n))

    expected = [
        sentence_bleu(
            [["<start>", *true.split(), "<end>"]],
            ["<start>", *said.split(), "<end>"],
            smoothing_function=old_nltk,
        )
        for said, true in zip(*pairs, strict=True)
    ]
    np.testing.assert_allclose(overlap.legacy_bleu_per_study(*pairs), expected, rtol=0, atol=1e-12)


def test_legacy_measure_rewards_texts_without_a_word_in_common():
    """Why it is called meaningless: the two markers alone are worth something."""
    assert metrics.legacy_bleu(["zebra"], ["clear lungs"]) > 0.4


# --- ROUGE-L -----------------------------------------------------------------------------------------------------


def test_rouge_l_is_that_of_the_rouge_score_package(pairs):
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    theirs = [scorer.score(r, p)["rougeL"].fmeasure for p, r in zip(*pairs, strict=True)]
    np.testing.assert_allclose(metrics.rouge_l_per_study(*pairs), theirs, rtol=0, atol=1e-9)


@given(st.lists(st.sampled_from("abcd"), max_size=80), st.lists(st.sampled_from("abcd"), max_size=80))
def test_longest_common_subsequence_is_that_of_the_table(a, b):
    row = [0] * (len(b) + 1)
    for x in a:
        above = row
        row = [0]
        for j, y in enumerate(b):
            row.append(above[j] + 1 if x == y else max(above[j + 1], row[j]))
    assert overlap.longest_common_subsequence(a, b) == row[-1]


# --- CIDEr -------------------------------------------------------------------------------------------------------

# (prediction, reference, CIDEr), the values by pycocoevalcap 1.2 (pip install --no-deps pycocoevalcap)
GOLDEN = [
    ("no acute disease", "no acute cardiopulmonary disease", 2.446912758933649),
    (
        "small left pleural effusion",
        "small left pleural effusion with mild left basilar atelectasis",
        4.128702723679561,
    ),
    ("no acute disease", "mild cardiomegaly no acute disease", 5.085374772773976),
    ("mild cardiomegaly mild cardiomegaly mild cardiomegaly", "mild cardiomegaly", 1.1391202087241563),
    ("", "clear lungs", 0.0),
    ("cardiomegaly", "cardiomegaly", 2.5),
    ("right lower lobe consolidation may be pneumonia", "right lower lobe consolidation may be pneumonia", 10.0),
    ("zebra", "", 0.0),
]


def naive_cider(predictions, references):
    """The formulas of the paper's CIDEr-D, one reference each, n-gram by n-gram."""
    frequency = Counter(gram for words in references for gram in metrics.ngrams(words))
    scores = []
    for said, true in zip(predictions, references, strict=True):
        total = 0.0
        for order in range(1, 5):
            vectors = [
                {
                    gram: count * (math.log(len(references)) - math.log(max(1, frequency[gram])))
                    for gram, count in of_order(metrics.ngrams(words), order).items()
                }
                for words in (said, true)
            ]
            norms = [math.sqrt(sum(value**2 for value in vector.values())) for vector in vectors]
            product = sum(
                min(value, vectors[1].get(gram, 0)) * vectors[1].get(gram, 0) for gram, value in vectors[0].items()
            )
            total += product / norms[0] / norms[1] if norms[0] and norms[1] else 0
        delta = max(len(said) - 1, 0) - max(len(true) - 1, 0)
        scores.append(10 * total / 4 * math.exp(-(delta**2) / (2 * 6**2)))
    return scores


def cider_tokens(side):
    return [texts.cider_tokens(tokens) for tokens in texts.tokenize_13a_all(side)]


def test_cider_has_the_values_of_pycocoevalcap():
    predictions, references, values = zip(*GOLDEN, strict=True)
    ours = overlap.cider_per_study([p.split() for p in predictions], [r.split() for r in references])
    np.testing.assert_allclose(ours, values, rtol=0, atol=1e-9)
    assert metrics.cider(predictions, references) == pytest.approx(np.mean(values))


@pytest.mark.parametrize("n", [2, 30, 2500])
def test_cider_is_the_formula_of_the_paper(pairs, n):
    sides = [cider_tokens(side[:n]) for side in pairs]
    np.testing.assert_allclose(overlap.cider_per_study(*sides), naive_cider(*sides), rtol=0, atol=1e-9)


def test_cider_is_that_of_pycocoevalcap(pairs):
    module = pytest.importorskip("pycocoevalcap.cider.cider_scorer", reason="pycocoevalcap is not installed")
    sides = [cider_tokens(side) for side in pairs]
    scorer = module.CiderScorer()
    for said, true in zip(*sides, strict=True):
        scorer += (" ".join(said), [" ".join(true)])
    np.testing.assert_allclose(overlap.cider_per_study(*sides), scorer.compute_score()[1], rtol=0, atol=1e-9)


def test_cider_gives_rare_words_more_weight_than_common_ones():
    references = ["no disease"] * 9 + ["no pneumothorax"]
    common, rare = ["no x"] * 10, ["y pneumothorax"] * 10
    assert metrics.cider(rare, references) > metrics.cider(common, references)


# --- the whole text ----------------------------------------------------------------------------------------------


def test_exact_match_looks_past_white_space_only():
    assert (
        metrics.exact_match(["No  acute disease. ", "Normal.", "normal."], ["No acute disease.", "Normal", "Normal."])
        == 1 / 3
    )
    assert metrics.exact_match(["Normal.", "normal"], ["Normal", "Normal."], "words") == 1


def test_diversity_names_the_commonest_text_and_its_share():
    expected = {"distinct_outputs": 3, "modal_output": "b", "modal_share": 0.5}
    assert metrics.diversity(["a", "b", "b", "B"]) == expected
    assert metrics.diversity(["a", "b", "b", "B"], "lower") == expected | {"distinct_outputs": 2, "modal_share": 0.75}


@pytest.mark.parametrize(
    ("normalization", "text", "expected"),
    [
        ("none", "No  ACUTE (disease).", "No  ACUTE (disease)."),
        ("lower", "No  ACUTE (disease).", "no  acute (disease)."),
        ("words", "No  ACUTE (disease), 1.5 cm.", "no acute disease 1 5 cm"),
    ],
)
def test_normalizations(normalization, text, expected):
    assert metrics.normalize([text], normalization) == [expected]


def test_an_unknown_normalization_names_those_there_are():
    with pytest.raises(ValueError, match="none, lower, words"):
        metrics.corpus_bleu(TEXTS, TEXTS, "Lower")
    with pytest.raises(ValueError, match="none, lower, words"):
        metrics.signature("Lower")


def test_unequal_numbers_of_texts_are_refused():
    for score in (metrics.corpus_bleu, metrics.cider, metrics.rouge_l, metrics.exact_match, metrics.legacy_bleu):
        with pytest.raises(ValueError, match=r"2 predictions for 1 references|shorter"):
            score(TEXTS, TEXTS[:1])


def test_cider_of_permuted_texts_is_that_of_the_texts_themselves():
    rng = np.random.default_rng(0)
    references = [phantom_text_of(rng) for _ in range(40)]
    said = [references[i] for i in rng.integers(40, size=40)]
    orders = [np.arange(40), *(rng.permutation(40) for _ in range(5))]
    tokens = texts.cider_tokens_all(said), texts.cider_tokens_all(references)
    for order, values in zip(orders, overlap.permuted_cider(*tokens, orders), strict=True):
        assert values.mean() == pytest.approx(metrics.cider([said[i] for i in order], references))


def phantom_text_of(rng) -> str:
    return " ".join(
        rng.choice("no acute disease small right left effusion of the lung".split(), size=rng.integers(1, 12))
    )


class NoWordNet:
    def synsets(self, word):
        return []


def nltk_meteor(said, true):
    return single_meteor_score(true, said, wordnet=NoWordNet())


def test_meteor_is_nltks_without_wordnet():
    said, true = map(texts.cider_tokens_all, make_pairs(300, 5))
    expected = [nltk_meteor(*pair) for pair in zip(said, true, strict=True)]
    np.testing.assert_allclose(overlap.meteor_per_study(said, true), expected, rtol=0, atol=1e-12)
    assert len({round(value, 6) for value in expected}) > 60, "the texts tell scores apart"


@given(
    st.tuples(*[st.lists(st.sampled_from("effusion effusions effused no of the lungs lung".split()), max_size=9)] * 2)
)
def test_meteor_matches_repeated_words_and_stems_as_nltk_does(pair):
    assert overlap.meteor_per_study(*[[words] for words in pair])[0] == pytest.approx(nltk_meteor(*pair), abs=1e-12)


def test_meteor_by_hand():
    """Two of three words written and two of four asked for, by their stems, in two chunks."""
    f = 10 * (2 / 3) * (2 / 4) / (2 / 4 + 9 * 2 / 3)
    assert metrics.meteor(["Effusions, small today."], ["Small bilateral pleural effusion."]) == pytest.approx(f * 0.5)
    assert metrics.meteor([""], ["No effusion."]) == metrics.meteor(["a"], [""]) == 0


def test_meteor_of_3000_studies_takes_less_than_a_second():
    said, true = map(texts.cider_tokens_all, make_pairs(300, 6))
    overlap.meteor_per_study(said, true)  # imports the stemmer
    begun = time.process_time()
    overlap.meteor_per_study(said * 10, true * 10)
    assert time.process_time() - begun < 1
