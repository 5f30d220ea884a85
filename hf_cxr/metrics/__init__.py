"""Scores of generated impressions against the radiologists' ones, as plain functions and as `evaluate` modules.

Each score is a formula over sums of per-study statistics, so that a bootstrap over studies is a matrix product.
The `evaluate` modules are the folders beside this file; they load without network:
`evaluate.load(hf_cxr.metric_path("bleu"))`. Generating texts and building reports lives in `hf_cxr.evaluation`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hf_cxr.findings import FINDINGS, positive_findings

MAX_ORDER = 4
SIGNATURE = (
    "BLEU: corpus, 13a tokens, case kept, no smoothing (= evaluate's bleu); ROUGE-L: F-measure, no stemming, mean "
    "over studies; finding F1: positives of hf_cxr.findings in the text, side ignored, uncertain ones left out"
)


def metric_path(name: str) -> str:
    """The folder to give to `evaluate.load`. Raises `ValueError` for a name that is none of the kit's metrics."""
    folder = Path(__file__).parent / name
    if not (folder / f"{name}.py").is_file():
        names = sorted(path.parent.name for path in Path(__file__).parent.glob("*/*.py"))
        raise ValueError(f"no metric named {name!r}; there are {', '.join(names)}")
    return str(folder)


# --- BLEU --------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=200_000)
def tokenize_13a(text: str) -> tuple[str, ...]:
    """The mteval-13a tokens of a text, by sacreBLEU; evaluate's `bleu` uses the same rules."""
    return tuple(_tokenizer_13a()(text.rstrip()).split())


@lru_cache(maxsize=1)
def _tokenizer_13a():
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()


def ngrams(tokens: Sequence[str]) -> Counter[tuple[str, ...]]:
    """Counts of all n-grams of order 1 to 4."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, MAX_ORDER + 1)
        for start in range(len(tokens) - order + 1)
    )


def bleu_statistics(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Per study: clipped matches of order 1..4, n-grams of order 1..4, candidate length, reference length.

    Returns an int64 array of shape (studies, 10).
    """
    rows = np.zeros((len(predictions), 2 * MAX_ORDER + 2), dtype=np.int64)
    for row, prediction, reference in zip(rows, predictions, references, strict=True):
        candidate, truth = tokenize_13a(prediction), tokenize_13a(reference)
        for ngram, count in (ngrams(candidate) & ngrams(truth)).items():
            row[len(ngram) - 1] += count
        row[MAX_ORDER : 2 * MAX_ORDER] = [max(0, len(candidate) - order) for order in range(MAX_ORDER)]
        row[-2:] = len(candidate), len(truth)
    return rows


def bleu_from_statistics(totals: np.ndarray) -> np.ndarray:
    """BLEU-1..4 (Papineni et al. 2002, equation 3, one reference, no smoothing) from summed `bleu_statistics`.

    Takes an array of shape (..., 10), returns (..., 4), each score between 0 and 1.
    """
    totals = np.asarray(totals, dtype=np.float64)
    matches, possible = totals[..., :MAX_ORDER], totals[..., MAX_ORDER : 2 * MAX_ORDER]
    candidate, reference = totals[..., -2], totals[..., -1]
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(np.where(possible > 0, matches / possible, 0.0))
        orders = np.arange(1, MAX_ORDER + 1)
        geometric_mean = np.exp(np.cumsum(log_precision, axis=-1) / orders)
        brevity = np.where(candidate > reference, 1.0, np.exp(1.0 - reference / candidate))
    brevity = np.where(candidate > 0, brevity, 0.0)
    return np.nan_to_num(geometric_mean) * brevity[..., None]


def corpus_bleu(predictions: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu1` to `bleu4` of a corpus, each between 0 and 1."""
    scores = bleu_from_statistics(bleu_statistics(predictions, references).sum(0))
    return {f"bleu{order}": float(score) for order, score in enumerate(scores, start=1)}


# --- ROUGE-L -----------------------------------------------------------------------------------------------------


def rouge_l_per_study(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """ROUGE-L F-measure (Lin 2004, by the rouge-score package, no stemming) of each study, shape (studies,)."""
    return np.array([_rouge_l(p, r) for p, r in zip(predictions, references, strict=True)], dtype=np.float64)


@lru_cache(maxsize=200_000)
def _rouge_l(prediction: str, reference: str) -> float:
    return _rouge_scorer().score(reference, prediction)["rougeL"].fmeasure


@lru_cache(maxsize=1)
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


def rouge_l(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Mean ROUGE-L F-measure, between 0 and 1."""
    return float(rouge_l_per_study(predictions, references).mean())


# --- findings ----------------------------------------------------------------------------------------------------


def finding_statistics(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Per study and finding of `FINDINGS`: true positive, false positive, false negative.

    Returns an int64 array of shape (studies, findings, 3).
    """
    stated = _indicators(predictions)
    true = _indicators(references)
    return np.stack([stated & true, stated & ~true, ~stated & true], axis=-1).astype(np.int64)


def _indicators(texts: Sequence[str]) -> np.ndarray:
    found = [positive_findings(text) for text in texts]
    return np.array([[name in positives for name in FINDINGS] for positives in found], dtype=bool).reshape(
        len(texts), len(FINDINGS)
    )


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 = 2·TP / (2·TP + FP + FN) along the last axis (TP, FP, FN); 0 where there is nothing to find or found."""
    counts = np.asarray(counts, dtype=np.float64)
    denominator = 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
    return np.divide(2 * counts[..., 0], denominator, out=np.zeros_like(denominator), where=denominator > 0)


def finding_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """Finding F1: micro, macro (over the findings that the references hold), and per finding with its counts."""
    counts = finding_statistics(predictions, references).sum(0)
    scores = f1(counts)
    per_finding = {}
    for name, (tp, fp, fn), score in zip(FINDINGS, counts.tolist(), scores.tolist(), strict=True):
        if tp or fp or fn:
            per_finding[name] = {
                "n": tp + fn,
                "precision": tp / (tp + fp) if tp + fp else None,
                "recall": tp / (tp + fn) if tp + fn else None,
                "f1": score,
            }
    in_references = counts[:, 0] + counts[:, 2] > 0
    return {
        "finding_f1_micro": float(f1(counts.sum(0))),
        "finding_f1_macro": float(scores[in_references].mean()) if in_references.any() else 0.0,
        "per_finding": per_finding,
    }


def diversity(predictions: Sequence[str]) -> dict[str, Any]:
    """How many different texts there are, and which share of studies gets the commonest one."""
    modal, count = Counter(predictions).most_common(1)[0]
    return {"distinct_outputs": len(set(predictions)), "modal_output": modal, "modal_share": count / len(predictions)}
