"""Every score of a set of texts, from per-study statistics that can be weighted, and the signature that defines it.

The comparisons of one study live in `overlap` (words) and `content` (findings).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from hf_cxr.inference.labeler import FINDINGS
from hf_cxr.metrics import content, overlap
from hf_cxr.metrics.content import READINGS
from hf_cxr.metrics.texts import MAX_ORDER, cider_tokens, normalize, tokenize_13a_all

_MEANS = ("sentence_bleu4", "legacy_bleu4", "rougeL", "cider", "meteor", "exact_match")
SCALARS: tuple[str, ...] = (
    *(f"bleu{order}" for order in range(1, MAX_ORDER + 1)),
    *_MEANS,
    "finding_precision_micro",
    "finding_recall_micro",
    "finding_f1_micro",
    "finding_f1_macro",
    *(f"finding_f1_micro_{reading}" for reading in READINGS),
    "normal_accuracy",
    "length_ratio",
)
"""The scores that are one number each, in the order of a report."""

DEFINITIONS: dict[str, str] = {
    "BLEU": "corpus, 13a tokens, case kept, no smoothing (= evaluate's bleu)",
    "sentence BLEU-4": "mean over studies of sacreBLEU's sentence BLEU (13a, exp smoothing, effective order)",
    "legacy BLEU-4": "without meaning, to read old tables: mean over studies of NLTK ≤ 3.2.5's sentence BLEU (orders "
    "without a match skipped, begin and end markers counted, split at white space)",
    "ROUGE-L": "F-measure, tokens of rouge-score, no stemming, mean over studies",
    "CIDEr": "pycocoevalcap's cider (clipped, Gaussian length penalty, × 10), 13a tokens lower-cased without "
    "punctuation, no stemming, idf of the references scored",
    "METEOR": "Banerjee and Lavie 2005 as NLTK computes it (alpha 0.9, beta 3, gamma 0.5), exact and stem matches "
    "only (Porter), tokens of CIDEr, mean over studies",
    "exact match": "equal but for white space",
    "finding F1": "positives of hf_cxr.inference.labeler in the text as it is, side ignored, uncertain ones left out; "
    "macro: mean over the findings that the references hold; uncertain: possible ones counted as stated; sided: "
    "right, left and no side are three labels; located: side and place are part of the label",
    "normal accuracy": "normality of hf_cxr.inference.labeler agrees; a prediction of unknown normality is wrong, "
    "a study whose reference is unknown is left out",
    "length ratio": "13a tokens written / in the references",
    "diversity": "different texts, and the share of the commonest",
}


def signature(normalization: str = "none", *names: str) -> str:
    """What the scores mean, in one line: every definition of `DEFINITIONS` or those named, and the normalisation."""
    normalize([], normalization)
    parts = [f"{name}: {DEFINITIONS[name]}" for name in names or DEFINITIONS]
    return "; ".join([*parts, f"normalization: {normalization}"])


SIGNATURE = signature("none")


@dataclass(frozen=True)
class Statistics:
    """Per-study statistics of predictions against references, from which scores follow for any weighting of studies.

    CIDEr's idf is that of all references given to `study_statistics`, also in a subgroup or a bootstrap sample.
    """

    bleu: np.ndarray
    """As `bleu_statistics`: int64, (studies, 10)."""
    means: np.ndarray
    """Scores that are means over studies: float64, (studies, 6) in the order of `SCALARS`."""
    findings: np.ndarray
    """True positives, false positives, false negatives of each of `FINDINGS`: int64, (studies, findings, 3)."""
    readings: np.ndarray
    """The same counts over all labels of each of `READINGS`: int64, (studies, 3, 3)."""
    normal: np.ndarray
    """Whether prediction and reference agree on normal or abnormal, whether the reference says either: int64,
    (studies, 2)."""

    @property
    def n(self) -> int:
        """How many studies there are."""
        return len(self.bleu)

    def take(self, chosen: np.ndarray) -> Statistics:
        """The statistics of some studies: a mask or indices."""
        return Statistics(**{field.name: getattr(self, field.name)[chosen] for field in fields(self)})

    def scores(self, weights: np.ndarray | None = None) -> dict[str, Any]:
        """Every scalar of `SCALARS`.

        Args:
            weights: how often each study counts, shape (n,) or (samples, n); once each by default.

        Returns:
            Scalar → a float, or an array (samples,) for weights of two dimensions.
        """
        weights = np.ones(self.n) if weights is None else np.asarray(weights, dtype=np.float64)
        leading = weights.shape[:-1]
        bleu, means = weights @ self.bleu, weights @ self.means
        counts = (weights @ self.findings.reshape(self.n, -1)).reshape(*leading, len(FINDINGS), 3)
        readings = (weights @ self.readings.reshape(self.n, -1)).reshape(*leading, len(READINGS), 3)
        number, micro = weights.sum(-1), counts.sum(-2)
        values = [
            *np.moveaxis(overlap.bleu_from_statistics(bleu), -1, 0),
            *(means[..., i] / number for i in range(len(_MEANS))),
            content.precision(micro),
            content.recall(micro),
            content.f1(micro),
            content.macro_f1(counts),
            *np.moveaxis(content.f1(readings), -1, 0),
            content.ratio(*np.moveaxis(weights @ self.normal, -1, 0)),
            content.ratio(bleu[..., -2], bleu[..., -1]),
        ]
        return {name: value if leading else float(value) for name, value in zip(SCALARS, values, strict=True)}


def study_statistics(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> Statistics:
    """Compare each prediction with its reference in every way of `SCALARS`.

    Args:
        normalization: one of `NORMALIZATIONS`, done to both before words are compared; findings are read as they are.

    Raises:
        ValueError: no texts, unequal numbers of them, or an unknown normalisation.
    """
    if len(predictions) != len(references) or not len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    said, true = normalize(predictions, normalization), normalize(references, normalization)
    tokens = tokenize_13a_all(said), tokenize_13a_all(true)
    words = [[cider_tokens(text) for text in side] for side in tokens]
    bleu = overlap.token_statistics(*tokens)
    means = {
        "sentence_bleu4": overlap.sentence_bleu_per_study(bleu),
        "legacy_bleu4": overlap.legacy_bleu_per_study(said, true),
        "rougeL": overlap.rouge_l_per_study(said, true),
        "cider": overlap.cider_per_study(*words),
        "meteor": overlap.meteor_per_study(*words),
        "exact_match": overlap.exact_matches(said, true),
    }
    compared = content.content_statistics(predictions, references)
    return Statistics(bleu, np.stack([means[name] for name in _MEANS], axis=1), *compared)


def score_texts(predictions: Sequence[str], references: Sequence[str], normalization: str = "none") -> dict[str, Any]:
    """All scores of one set of texts, by their `report.json` names: `SCALARS`, `per_finding`, `distinct_outputs`,
    `modal_output`, `modal_share`, and `sacrebleu` with its own signature."""
    return score_sheet(study_statistics(predictions, references, normalization), predictions, normalization)


def score_sheet(statistics: Statistics, predictions: Sequence[str], normalization: str = "none") -> dict[str, Any]:
    """`score_texts` of texts whose statistics are at hand."""
    return {
        **statistics.scores(),
        "sacrebleu": overlap.sacrebleu_score(statistics.bleu, normalization),
        "per_finding": content.per_finding(statistics.findings.sum(0)),
        **overlap.diversity(predictions, normalization),
    }
