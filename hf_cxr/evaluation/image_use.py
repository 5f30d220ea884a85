"""Whether a model reads the images: the gain over shuffled images in finding F1, or in words where findings cannot be
read from the texts. What is told of it during training, and the verdict of a report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.evaluation.report.tables import beside_blind, short_name, unread_note
from hf_cxr.metrics import SCALARS
from hf_cxr.metrics.overlap import permuted_cider
from hf_cxr.metrics.texts import cider_tokens_all


def validation_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    patients: Sequence[Any] | None = None,
    seed: int = 0,
    shuffled: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """What is told of each evaluation during training: every scalar, `n`, `distinct_outputs`, `modal_share`,
    `composite`, and `image_gain`, the gain in `gain_score` over shuffled images, with its 95 % interval
    `image_gain_low`, `image_gain_high`. `shuffled`: texts of all studies, each written from another study's images and
    the study's own context; default: the predictions permuted. The first process computes, the others are told."""
    told: list[Any] = [None]
    if PartialState().is_main_process:
        statistics, by = metrics.study_statistics(predictions, references), metrics.gain_score(references)
        scores = statistics.scores() | metrics.diversity(predictions)
        numbers = {name: float(scores[name]) for name in (*SCALARS, "distinct_outputs", "modal_share")}
        gain, (low, high) = 0.0, [0.0, 0.0]
        if len(predictions) > 1:
            real, others, score = _shuffled_numbers(statistics, predictions, references, by, seed, shuffled)
            owners = patients or range(len(predictions))
            gain, (low, high) = bootstrap.score_gain(score, real, others, owners, seed)
        numbers |= {"image_gain": gain, "image_gain_low": low, "image_gain_high": high}
        told = [{"n": len(references)} | numbers | {"composite": composite(numbers, by)}]
    return broadcast_object_list(told)[0]


def composite(scores: Mapping[str, float], by: str = "finding_f1_micro") -> float:
    """What the best checkpoint is best in: the mean of finding F1 (micro), image gain (at least 0) and BLEU-4; where
    findings cannot be read CIDEr stands in, of which 10 is the most.

    BLEU alone prefers a model that says one good sentence to everybody; such a model has no gain over shuffled images.
    """
    return ((scores[by] + max(0.0, scores["image_gain"])) / (10 if by == "cider" else 1) + scores["bleu4"]) / 3


def _shuffled_numbers(
    statistics: metrics.Statistics,
    predictions: Sequence[str],
    references: Sequence[str],
    by: str,
    seed: int,
    written: Sequence[Sequence[str]] | None,
) -> tuple[np.ndarray, list[np.ndarray], Callable[[np.ndarray], np.ndarray]]:
    """What `bootstrap.score_gain` takes: per-study numbers, the same with shuffled images, and the score they make."""
    orders = bootstrap.derangements(len(predictions), seed) if written is None else []
    if by == "cider":
        own, true_tokens = np.arange(len(predictions)), cider_tokens_all(references)
        each = list(permuted_cider(cider_tokens_all(predictions), true_tokens, [own, *orders]))
        for texts in written or ():
            each += permuted_cider(cider_tokens_all(texts), true_tokens, [own])
        real, *shuffled = (np.stack([values, np.ones_like(values)], axis=1) for values in each)
        return real, shuffled, lambda sums: sums[..., 0] / sums[..., 1]
    stated, true = _stated_and_true(statistics)

    def counts(said: np.ndarray) -> np.ndarray:
        return np.stack([(said & true).sum(1), (said & ~true).sum(1), (true & ~said).sum(1)], axis=1)

    others = [_stated_and_true(metrics.study_statistics(texts, references))[0] for texts in written or ()]
    return counts(stated), [counts(said) for said in (*(stated[order] for order in orders), *others)], metrics.f1


def _stated_and_true(statistics: metrics.Statistics) -> tuple[np.ndarray, np.ndarray]:
    """Which findings each text states and which are there, bool, (studies, findings)."""
    return statistics.findings[..., :2].sum(-1) > 0, statistics.findings[..., ::2].sum(-1) > 0


def image_shuffle(
    statistics: metrics.Statistics,
    predictions: Sequence[str],
    references: Sequence[str],
    patients: Sequence[Any],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """`bootstrap.image_gain` of texts. A text depends on its own image alone: permuting images permutes texts."""
    shuffled = [
        metrics.study_statistics([predictions[i] for i in order], references)
        for order in bootstrap.derangements(len(predictions), seed)
    ]
    return bootstrap.image_gain(statistics, shuffled, patients, seed)


def permutation_p(
    statistics: metrics.Statistics, predictions: Sequence[str], references: Sequence[str], by: str, seed: int
) -> float | None:
    """The permutation test of the score `by`; `None` where all references are the same."""
    if by != "cider":
        return bootstrap.permutation_p(*_stated_and_true(statistics), seed)
    return bootstrap.word_permutation_p(predictions, references, seed) if len(set(references)) > 1 else None


def verdict(report: Mapping[str, Any]) -> dict[str, Any]:
    """`reads_images` (true, false, or `None`: cannot be told) and `verdict`, one plain sentence that says so.

    A model reads the images if the 95 % interval of its gain in finding F1 over shuffled images lies above zero and
    the permutation test of the same has p ≤ 0.01; where findings cannot be read from the texts, in CIDEr. One whose
    interval lies below zero is harmed by them.
    """
    by, p = report["gain_score"], report["permutation_p"]
    interval, unread = report["image_gain_ci95"].get(by), unread_note(report)
    if interval is None:
        return {"reads_images": None, "verdict": "Too few studies to say whether the model reads the images."}
    if p is None:
        return {
            "reads_images": None,
            "verdict": f"{unread} All texts are the same, so whether the model reads the images cannot be told.",
        }
    reads = interval[0] > 0 and p <= bootstrap.READS_P
    lead = "Reads the images: yes" if reads else "Does not read the images"
    sentence = (
        f"{'Harmed by the images' if bootstrap.harms(report, 'image') else lead} ({report['image_gain'][by]:+.2f} "
        f"{short_name(by)} over shuffled images, 95 % CI {interval[0]:+.2f} to {interval[1]:+.2f}, permutation "
        f"p = {p:.3f})"
    )
    return {"reads_images": reads, "verdict": f"{sentence}{beside_blind(report)}. {unread}".strip()}
