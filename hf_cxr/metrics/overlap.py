"""Word overlap between prediction and reference: BLEU in its several readings, ROUGE-L, CIDEr, METEOR, exact match.

Tokens and n-gram counts come from `texts`; clinical content is compared in `content`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from hf_cxr.metrics.texts import (
    MAX_ORDER,
    cider_tokens_all,
    count_orders,
    normalize,
    rouge_tokens,
    stem,
    tokenize_13a_all,
)

# --- BLEU --------------------------------------------------------------------------------------------------------


def bleu_statistics(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Per study: clipped matches of order 1..4, n-grams of order 1..4, candidate length, reference length.

    Returns an int64 array of shape (studies, 10).
    """
    return token_statistics(tokenize_13a_all(predictions), tokenize_13a_all(references))


def token_statistics(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """`bleu_statistics` of texts that are tokens already."""
    rows = np.zeros((len(predictions), 2 * MAX_ORDER + 2), dtype=np.int64)
    lengths = np.array([len(tokens) for tokens in predictions], dtype=np.int64)
    for order, counts in enumerate(count_orders(predictions, references)):
        ours, theirs = counts.shared_in_predictions, counts.shared_in_references
        clipped = np.minimum(counts.predictions.times[ours], counts.references.times[theirs])
        rows[:, order] = np.bincount(counts.predictions.text[ours], clipped, minlength=len(rows))
        rows[:, MAX_ORDER + order] = np.maximum(lengths - order, 0)
    rows[:, -2] = lengths
    rows[:, -1] = [len(tokens) for tokens in references]
    return rows


def bleu_from_statistics(totals: np.ndarray) -> np.ndarray:
    """BLEU-1..4 (Papineni et al. 2002, equation 3, one reference, no smoothing) from summed `bleu_statistics`.

    Takes an array of shape (..., 10), returns (..., 4), each score between 0 and 1.
    """
    totals = np.asarray(totals, dtype=np.float64)
    matches, possible = totals[..., :MAX_ORDER], totals[..., MAX_ORDER : 2 * MAX_ORDER]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(np.where(possible > 0, matches / possible, 0.0))
        geometric_mean = np.exp(np.cumsum(log_precision, axis=-1) / np.arange(1, MAX_ORDER + 1))
    return np.nan_to_num(geometric_mean) * _brevity(totals)[..., None]


def _brevity(totals: np.ndarray) -> np.ndarray:
    """The brevity penalty (equation 2); 0 for a candidate without tokens."""
    candidate, reference = totals[..., -2], totals[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        penalty = np.where(candidate > reference, 1.0, np.exp(1.0 - reference / candidate))
    return np.where(candidate > 0, penalty, 0.0)


def _pairs(predictions: Sequence[str], references: Sequence[str], normalization: str) -> tuple[list[str], list[str]]:
    return normalize(predictions, normalization), normalize(references, normalization)


def corpus_bleu(
    predictions: Sequence[str], references: Sequence[str], normalization: str = "none"
) -> dict[str, float]:
    """`bleu1` to `bleu4` of a corpus, each between 0 and 1."""
    scores = bleu_from_statistics(bleu_statistics(*_pairs(predictions, references, normalization)).sum(0))
    return {f"bleu{order}": float(score) for order, score in enumerate(scores, start=1)}


def length_ratio(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> float:
    """13a tokens in the predictions for each one in the references; 0 where the references hold none."""
    ours, theirs = (sum(map(len, tokenize_13a_all(side))) for side in _pairs(predictions, references, normalization))
    return ours / theirs if theirs else 0.0


def sentence_bleu_per_study(statistics: np.ndarray) -> np.ndarray:
    """BLEU-4 of each study by itself, from rows of `bleu_statistics`; shape (studies,), 0 to 1.

    As `sacrebleu.sentence_bleu`: "exp" smoothing (method 3 of Chen and Cherry 2014: the k-th order without a match
    counts 1/2^k matches), orders longer than the candidate left out, 0 where no word matches.
    """
    statistics = np.asarray(statistics, dtype=np.float64)
    matches, possible = statistics[..., :MAX_ORDER], statistics[..., MAX_ORDER : 2 * MAX_ORDER]
    there = possible > 0
    missed = there & (matches == 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), matches)
    log_precision = np.log(np.where(there, smoothed, 1.0) / np.where(there, possible, 1.0))
    orders = np.maximum(there.sum(-1), 1)
    scores = _brevity(statistics) * np.exp(log_precision.sum(-1) / orders)
    return np.where(matches[..., 0] > 0, scores, 0.0)


def sentence_bleu(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> float:
    """Mean of `sentence_bleu_per_study`, between 0 and 1."""
    pairs = _pairs(predictions, references, normalization)
    return float(sentence_bleu_per_study(bleu_statistics(*pairs)).mean())


def sacrebleu_score(statistics: np.ndarray, normalization: str = "none") -> dict[str, float | str]:
    """sacreBLEU's own corpus BLEU (0 to 100, "exp" smoothing) from rows of `bleu_statistics`, with its signature.

    A `normalization` done before is told at the end of the signature.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    metric.corpus_score([""], [[""]])  # its signature asks for the number of references of the last call
    totals = [int(total) for total in statistics.sum(0)]
    result = metric.compute_bleu(
        totals[:MAX_ORDER], totals[MAX_ORDER : 2 * MAX_ORDER], totals[-2], totals[-1], metric.smooth_method
    )
    suffix = "" if normalization == "none" else f"|normalization:{normalization}"
    return {"score": float(result.score), "signature": f"{metric.get_signature()}{suffix}"}


def sacrebleu(
    predictions: Sequence[str], references: Sequence[str], normalization: str = "none"
) -> dict[str, float | str]:
    """`score` (0 to 100) and `signature` of sacreBLEU with its default settings."""
    return sacrebleu_score(bleu_statistics(*_pairs(predictions, references, normalization)), normalization)


def legacy_bleu_per_study(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """A measure without meaning, kept to read old tables: what the well-known student project on this collection
    reports as "BLEU". Shape (studies,); its mean is their figure.

    It is NLTK's `sentence_bleu` up to version 3.2.5, which skips n-gram orders without a match and leaves the weights
    of the others at 1/4, on texts whose markers of begin and end count as words: a text that shares no word with its
    reference scores too, and the shorter the match, the less is asked. Tokens are split at white space.
    """
    pairs = [[["<start>", *text.split(), "<end>"] for text in texts] for texts in (predictions, references)]
    return np.array([legacy(*row) for row in token_statistics(*pairs).tolist()], dtype=np.float64)


@lru_cache(maxsize=65536)
def legacy(*row: int) -> float:
    """The legacy measure of one study from its row of `token_statistics`."""
    orders = zip(row[:MAX_ORDER], row[MAX_ORDER : 2 * MAX_ORDER], strict=True)
    terms = [0.25 * math.log(match / possible) for match, possible in orders if match]
    candidate, reference = row[-2:]
    brevity = 1.0 if candidate > reference else math.exp(1 - reference / candidate)
    return brevity * math.exp(math.fsum(terms))


def legacy_bleu(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> float:
    """Mean of `legacy_bleu_per_study`: a figure to recognise, not to report."""
    return float(legacy_bleu_per_study(*_pairs(predictions, references, normalization)).mean())


# --- ROUGE-L -----------------------------------------------------------------------------------------------------


def rouge_l_per_study(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F-measure (Lin 2004; the tokens of the rouge-score package, no stemming), shape (studies,), 0 to 1."""
    pairs = [(rouge_tokens(p), rouge_tokens(r)) for p, r in zip(predictions, references, strict=True)]
    scores = [2 * longest_common_subsequence(p, r) / max(len(p) + len(r), 1) for p, r in pairs]
    return np.array(scores, dtype=np.float64)


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest common subsequence, by bit vectors (Hyyrö 2004): one step for each token of `b`."""
    places: dict[str, int] = {}
    for i, token in enumerate(a):
        places[token] = places.get(token, 0) | 1 << i
    everywhere = (1 << len(a)) - 1
    open_places = everywhere
    for token in b:
        hits = open_places & places.get(token, 0)
        open_places = ((open_places + hits) | (open_places - hits)) & everywhere
    return len(a) - open_places.bit_count()


def rouge_l(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> float:
    """Mean ROUGE-L F-measure, between 0 and 1."""
    return float(rouge_l_per_study(*_pairs(predictions, references, normalization)).mean())


# --- CIDEr -------------------------------------------------------------------------------------------------------

CIDER_SIGMA = 6.0  # of the length penalty, in tokens


def cider_per_study(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """CIDEr of each study from tokens, shape (studies,), 0 to 10; rare words weigh more, by the given references.

    Equal to `pycocoevalcap.cider` with document frequencies of the corpus, which despite its name computes the paper's
    CIDEr-D (Vedantam et al. 2015, section 6) without stemming: cosines of tf-idf vectors with clipped counts, a
    Gaussian penalty on the difference in length with σ = 6, mean over n = 1..4, times 10. A single study scores 0,
    as nothing is rare in a corpus of one.
    """
    return next(permuted_cider(predictions, references, [np.arange(len(references))]))


def permuted_cider(
    predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], orders: Iterable[np.ndarray]
) -> Iterator[np.ndarray]:
    """`cider_per_study` for each of `orders`, permutations in which study i gets the prediction of study order[i]."""
    n, counted = len(references), []
    for counts in count_orders(predictions, references):
        frequency = np.bincount(counts.references.gram, minlength=counts.n_grams)
        idf = np.log(max(n, 1)) - np.log(np.maximum(frequency, 1))
        weights = [side.times * idf[side.gram] for side in (counts.predictions, counts.references)]
        counted.append((counts, *weights))
    lengths = [np.array([len(tokens) for tokens in side]) for side in (predictions, references)]
    for order in orders:
        total, study = np.zeros(n), np.argsort(order)
        for counts, ours, theirs in counted:
            place, keys = study[counts.predictions.text], counts.references.text * counts.n_grams
            wanted, keys = place * counts.n_grams + counts.predictions.gram, keys + counts.references.gram
            there = np.searchsorted(keys, wanted)
            here = there < len(keys)
            here[here] = keys[there[here]] == wanted[here]
            there = there[here]
            cosine = np.bincount(place[here], np.minimum(ours[here], theirs[there]) * theirs[there], minlength=n)
            norm = np.sqrt(
                np.bincount(place, ours**2, minlength=n) * np.bincount(counts.references.text, theirs**2, minlength=n)
            )
            total += np.divide(cosine, norm, out=np.zeros(n), where=norm > 0)
        penalty = np.exp(-((lengths[0][order] - lengths[1]) ** 2) / (2 * CIDER_SIGMA**2))
        yield 10 * penalty * total / MAX_ORDER


def cider(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> float:
    """Mean CIDEr of texts, 0 to 10, on 13a tokens in lower case without punctuation."""
    return float(cider_per_study(*map(cider_tokens_all, _pairs(predictions, references, normalization))).mean())


# --- METEOR ------------------------------------------------------------------------------------------------------


def meteor_per_study(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> np.ndarray:
    """METEOR (Banerjee and Lavie 2005) of each study from tokens, exact and stem matches only; (studies,), 0 to 1.

    Equal to NLTK's `single_meteor_score` without WordNet: a word is matched with the same word, then one with the same
    stem, from the ends of the texts on. F = 10 P R / (R + 9 P) of the shares of matched words, times
    1 − 0.5 (chunks / matches)³, where a chunk is a run of matches that is one in both texts.
    """
    return np.array([_meteor(*pair) for pair in zip(predictions, references, strict=True)], dtype=np.float64)


def _meteor(prediction: Sequence[str], reference: Sequence[str]) -> float:
    partner: dict[int, int] = {}  # place of a matched word in the prediction → in the reference
    for form in (str, stem):
        free: dict[str, list[int]] = {}
        taken = set(partner.values())
        for place, word in enumerate(reference):
            if place not in taken:
                free.setdefault(form(word), []).append(place)
        for place in range(len(prediction) - 1, -1, -1):
            if place not in partner and (places := free.get(form(prediction[place]))):
                partner[place] = places.pop()
    if not (matches := len(partner)):
        return 0.0
    chunks = sum(partner.get(place - 1) != other - 1 for place, other in partner.items())
    precision, recall = matches / len(prediction), matches / len(reference)
    return 10 * precision * recall / (recall + 9 * precision) * (1 - 0.5 * (chunks / matches) ** 3)


def meteor(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> float:
    """Mean METEOR of texts, 0 to 1, on 13a tokens in lower case without punctuation."""
    return float(meteor_per_study(*map(cider_tokens_all, _pairs(predictions, references, normalization))).mean())


# --- the whole text ----------------------------------------------------------------------------------------------


def exact_matches(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Whether the two texts of a study are the same but for white space, shape (studies,)."""
    return np.array([p.split() == r.split() for p, r in zip(predictions, references, strict=True)], dtype=bool)


def exact_match(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> float:
    """Share of studies whose two texts are the same but for white space."""
    return float(exact_matches(*_pairs(predictions, references, normalization)).mean())


def diversity(predictions: Sequence[str], normalization: str = "none") -> dict[str, Any]:
    """How many different texts there are, and which share of studies gets the commonest one."""
    texts = normalize(predictions, normalization)
    modal, count = Counter(texts).most_common(1)[0]
    return {"distinct_outputs": len(set(texts)), "modal_output": modal, "modal_share": count / len(texts)}
