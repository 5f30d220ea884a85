"""Whether a model reads the images: the gain over shuffled images in finding F1, or in words where findings cannot be
read from the texts, and what is told of it, and of the gain over the best constant, during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
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
    """What is told of each evaluation during training: every scalar, `n`, `distinct_outputs`, `distinct_references`,
    `modal_share`, `composite`, and `image_gain`, the gain in `gain_score` over shuffled images, with its 95 % interval
    `image_gain_low`, `image_gain_high`; where findings can be read, `constant_f1`, the finding F1 of the reference
    that has most as the answer to all, and `constant_gain`, the model's minus it, with its interval. `shuffled`: texts
    of all studies, each written from another study's images and the study's own context; default: the predictions
    permuted. The first process computes, the others are told."""
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
            if by != "cider":
                numbers |= _beside_constant(statistics, owners, seed)
        numbers |= {"image_gain": gain, "image_gain_low": low, "image_gain_high": high}
        numbers["distinct_references"] = float(len(set(references)))
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
    others = [_stated_and_true(metrics.study_statistics(texts, references))[0] for texts in written or ()]
    others = [_counts(said, true) for said in (*(stated[order] for order in orders), *others)]
    return _counts(stated, true), others, metrics.f1


def _beside_constant(statistics: metrics.Statistics, patients: Sequence[Any], seed: int) -> dict[str, float]:
    stated, true = _stated_and_true(statistics)
    sets = np.unique(true, axis=0)
    hits = sets @ true.sum(0)  # of each set of findings, given as the answer to all studies
    best = sets[np.argmax(2 * hits / np.maximum(1, sets.sum(1) * len(true) + true.sum()))]
    constant = _counts(np.broadcast_to(best, true.shape), true)
    gain, (low, high) = bootstrap.score_gain(metrics.f1, _counts(stated, true), [constant], patients, seed)
    names = ("constant_f1", "constant_gain", "constant_gain_low", "constant_gain_high")
    return dict(zip(names, (float(metrics.f1(constant.sum(0))), gain, low, high), strict=True))


def _counts(stated: np.ndarray, true: np.ndarray) -> np.ndarray:
    """True positives, false positives, false negatives of each study, (studies, 3)."""
    return np.stack([(stated & true).sum(1), (stated & ~true).sum(1), (true & ~stated).sum(1)], axis=1)


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
    """The permutation test of the score `by`; `None` where all references are the same, or state the same findings."""
    if by != "cider":
        stated, true = _stated_and_true(statistics)
        return bootstrap.permutation_p(stated, true, seed) if (true != true[0]).any() else None
    return bootstrap.word_permutation_p(predictions, references, seed) if len(set(references)) > 1 else None
