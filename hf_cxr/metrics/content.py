"""Clinical content of the texts: findings stated against findings there, with sides and places, and normal or not.

What a text states is read by `hf_cxr.inference.labeler`; word overlap lives in `overlap`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from hf_cxr.inference.labeler import CACHED, FINDINGS, UNKNOWN, located_findings, normality, positive_findings

_INDEX = {name: i for i, name in enumerate(FINDINGS)}


READINGS = ("uncertain", "sided", "located")


_Said = tuple[str, frozenset[str], tuple[frozenset[str], ...]]
_KEPT: dict[_Said, _Said] = {}  # many texts say the same: one object for all of them


@lru_cache(maxsize=CACHED)
def _said(text: str) -> _Said:
    """What is compared of one text: its normality, the findings it states, and those of each of `READINGS`."""
    uncertain, sided = positive_findings(text, uncertain=True), positive_findings(text, sided=True)
    said = normality(text), positive_findings(text), (uncertain, sided, located_findings(text))
    return _KEPT.setdefault(said, said)


class Content(NamedTuple):
    """Per-study counts of true positives, false positives, false negatives."""

    findings: np.ndarray
    """Plain names, positive mentions: int64, (studies, findings, 3)."""
    readings: np.ndarray
    """Over all labels of a reading of `READINGS`: int64, (studies, readings, 3)."""
    normal: np.ndarray
    """Whether the reference says normal or abnormal and the prediction the same, whether the reference says either:
    int64, (studies, 2)."""


def content_statistics(predictions: Sequence[str], references: Sequence[str]) -> Content:
    """Compare what predictions and references state, study by study."""
    n = len(predictions)
    counts = np.zeros((n, len(FINDINGS), 3), dtype=np.int64)
    readings = np.zeros((n, len(READINGS), 3), dtype=np.int64)
    normal = np.zeros((n, 2), dtype=np.int64)
    for i, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        (our_normal, ours, our_readings), (their_normal, theirs, their_readings) = _said(prediction), _said(reference)
        decided = their_normal != UNKNOWN
        normal[i] = decided and our_normal == their_normal, decided
        for name in ours | theirs:
            missed, invented = name not in ours, name not in theirs
            counts[i, _INDEX[name], 2 * missed + invented] = 1
        for k, (a, b) in enumerate(zip(our_readings, their_readings, strict=True)):
            readings[i, k] = len(a & b), len(a - b), len(b - a)
    return Content(counts, readings, normal)


def finding_statistics(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Per study and finding of `FINDINGS`: true positive, false positive, false negative.

    Returns an int64 array of shape (studies, findings, 3).
    """
    return content_statistics(predictions, references).findings


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    numerator, denominator = np.asarray(numerator, dtype=np.float64), np.asarray(denominator, dtype=np.float64)
    return np.divide(numerator, denominator, out=np.zeros_like(denominator), where=denominator > 0)


def precision(counts: np.ndarray) -> np.ndarray:
    """TP / (TP + FP) along the last axis (TP, FP, FN); 0 where nothing was stated."""
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 1])


def recall(counts: np.ndarray) -> np.ndarray:
    """TP / (TP + FN) along the last axis (TP, FP, FN); 0 where there is nothing to find."""
    return ratio(counts[..., 0], counts[..., 0] + counts[..., 2])


def f1(counts: np.ndarray) -> np.ndarray:
    """F1 = 2·TP / (2·TP + FP + FN) along the last axis (TP, FP, FN); 0 where there is nothing to find or found."""
    return ratio(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2])


def best_for_all(stated: np.ndarray, true: np.ndarray) -> int:
    """The row of `stated` that, given as the answer to every study, has the highest finding F1 (micro); of equal ones
    the first.

    Args:
        stated, true: which findings an answer states and which are there, bool, (…, findings).
    """
    hits = stated @ true.sum(0)
    return int(np.argmax(2 * hits / np.maximum(1, stated.sum(1) * len(true) + true.sum())))


def area_under_curve(scores: np.ndarray, truths: np.ndarray) -> float | None:
    """The share of pairs of a positive and a negative study in which the positive has the higher score, a tie being
    half a pair: the area under the ROC curve, as the rank statistic of Mann and Whitney.

    Args:
        scores, truths: (studies,); a truth is 1, 0, or something else, which is left out.

    Returns `None` where there is no pair.
    """
    positives, negatives = scores[truths == 1], np.sort(scores[truths == 0])
    if not len(positives) or not len(negatives):
        return None
    below, not_above = (np.searchsorted(negatives, positives, side) for side in ("left", "right"))
    return float((below + not_above).mean() / (2 * len(negatives)))


def macro_f1(counts: np.ndarray) -> np.ndarray:
    """Mean F1 over the findings that the references hold; counts of shape (..., findings, 3)."""
    held = counts[..., 0] + counts[..., 2] > 0
    return ratio(np.where(held, f1(counts), 0.0).sum(-1), held.sum(-1))


def per_finding(counts: np.ndarray) -> dict[str, dict[str, Any]]:
    """Finding → `{n, precision, recall, f1}` from summed counts (findings, 3); findings that nobody states are left
    out, and a ratio without a denominator is `None`."""
    table: dict[str, dict[str, Any]] = {}
    for name, (tp, fp, fn), score in zip(FINDINGS, counts.tolist(), f1(counts).tolist(), strict=True):
        if tp or fp or fn:
            table[name] = {
                "n": tp + fn,
                "precision": tp / (tp + fp) if tp + fp else None,
                "recall": tp / (tp + fn) if tp + fn else None,
                "f1": score,
            }
    return table


def finding_scores(predictions: Sequence[str], references: Sequence[str]) -> dict[str, Any]:
    """The finding scores of `SCALARS`, and `per_finding` with its counts."""
    compared = content_statistics(predictions, references)
    counts, readings = compared.findings.sum(0), f1(compared.readings.sum(0))
    micro = counts.sum(0)
    return {
        "finding_precision_micro": float(precision(micro)),
        "finding_recall_micro": float(recall(micro)),
        "finding_f1_micro": float(f1(micro)),
        "finding_f1_macro": float(macro_f1(counts)),
        **{f"finding_f1_micro_{name}": float(score) for name, score in zip(READINGS, readings, strict=True)},
        "per_finding": per_finding(counts),
    }


def normal_accuracy(predictions: Sequence[str], references: Sequence[str]) -> float:
    """Share of the studies whose reference is normal or abnormal by `normality` in which the prediction is the same.

    A prediction that is neither is wrong; a reference that is neither leaves its study out. 0 where all are left out.
    """
    return float(ratio(*content_statistics(predictions, references).normal.sum(0)))


# --- whether findings can be read at all -----------------------------------------------------------------------------

ENGLISH = frozenset(
    "the of and is are with there or to for has have be was were this that from not without acute change disease "
    "heart lungs chest right left".split()
)
OTHERS = frozenset(
    # Spanish, French, German, Portuguese, Italian, Dutch, Nordic, Finnish: what no English report writes
    "el los las del en sin que se por una un es le les des du et est une dans pas sans avec aux sur der das "
    "und ist mit kein keine keinen ohne dem nicht eine ein einer zum zur bei von dos com sem uma um não il lo gli "
    "di della dei delle nel nella senza è het een geen zonder niet ingen ikke inte och uden utan ei "
    "derrame droit droite gauche rechts links derecho derecha izquierdo izquierda destro destra sinistro "
    "sinistra".split()
)
_OTHERS = re.compile(r".*[^a-z].*|.+(?:(?:megal|lectas)i[ae]|guss|thoraxi.*|torax|zion[ei]|[a-z]{2}ad[oa]s?)")  # words
_LETTERS = re.compile(r"[^\W\d_]+")
SAMPLED, FEWEST = 2000, 0.01  # texts that are looked at, and the share of them that has to state a finding


def unread_findings(texts: Sequence[str]) -> str | None:
    """Why findings cannot be read from a collection's texts, in words that complete "because"; `None` where they can.

    They can be read from English texts, some of which state a finding. A text looks English by its words: common ones,
    and no endings and letters of other languages.
    """
    looked = list(texts)[:: len(texts) // SAMPLED + 1]
    words = [_LETTERS.findall(text.lower()) for text in looked]
    other = sum(_looks_foreign(text) for text in words)
    if other > sum(any(word in ENGLISH for word in text) and not _looks_foreign(text) for text in words):
        return "the texts do not look English"
    if sum(bool(positive_findings(text)) for text in looked) < FEWEST * len(looked) or not looked:
        return "(almost) none of the texts states one that is known"
    return None


def gain_score(references: Sequence[str]) -> str:
    """The score whose gain over shuffled images tells whether a model reads the images: finding F1, or CIDEr, the
    score of words, where findings cannot be read from the references."""
    return "cider" if unread_findings(references) else "finding_f1_micro"


def _looks_foreign(words: Sequence[str]) -> bool:
    return sum(word in OTHERS or bool(_OTHERS.fullmatch(word)) for word in words) > sum(
        word in ENGLISH for word in words
    )
