"""Whether a model reads the images: the gain over shuffled images in finding F1, or in words where findings cannot be
read from the texts, that over the best constant, and what is told of both during training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.metrics import MAX_ORDER, SCALARS
from hf_cxr.metrics.content import best_for_all
from hf_cxr.metrics.overlap import permuted_cider
from hf_cxr.metrics.texts import cider_tokens_all

_CIDER = SCALARS.index("cider") - MAX_ORDER  # the column of `Statistics.means`


def validation_scores(
    predictions: Sequence[str],
    references: Sequence[str],
    patients: Sequence[Any] | None = None,
    seed: int = 0,
    shuffled: Sequence[Sequence[str]] | None = None,
) -> dict[str, float]:
    """What is told of each evaluation during training: every scalar, `n`, `patients`, `distinct_outputs`,
    `distinct_references`, `modal_share`, `composite`, and `image_gain`, the gain in `gain_score` over shuffled images,
    with its 95 % interval `image_gain_low`, `image_gain_high`; where it can be told whether the images are read,
    `image_gain_p`, and `permutation_p` unless `shuffled` is given; where findings can be read, `constant_f1`, the
    finding F1 of the reference that has most as the answer to all, and `constant_gain`, the model's minus it, with its
    interval. `shuffled`: texts of all studies, each written from another study's images and the study's own context;
    default: the predictions permuted. The first process computes, the others are told."""
    told: list[Any] = [None]
    if PartialState().is_main_process:
        statistics, by = metrics.study_statistics(predictions, references), metrics.gain_score(references)
        scores = statistics.scores() | metrics.diversity(predictions)
        numbers = {name: float(scores[name]) for name in (*SCALARS, "distinct_outputs", "modal_share")}
        owners = patients or range(len(predictions))
        numbers |= {"patients": len(set(owners)), "distinct_references": float(len(set(references)))}
        gain, (low, high) = 0.0, [0.0, 0.0]
        if len(predictions) > 1:
            others = _shuffled_numbers(statistics, predictions, references, by, seed, shuffled)
            gain, (low, high), p = bootstrap.score_gain(_SCORE[by], _numbers(statistics, by), others, owners, seed)
            exact = permutation_p(statistics, predictions, references, by, seed)
            if exact is not None and numbers["patients"] > 1:
                numbers |= {"image_gain_p": p} | ({"permutation_p": exact} if shuffled is None else {})
            if by != "cider":
                numbers |= _beside_constant(statistics, owners, seed)
        numbers |= {"image_gain": gain, "image_gain_low": low, "image_gain_high": high}
        told = [{"n": len(references)} | numbers | {"composite": composite(numbers, by)}]
    return broadcast_object_list(told)[0]


def composite(scores: Mapping[str, float], by: str = "finding_f1_micro") -> float:
    """What the best checkpoint is best in: the mean of finding F1 (micro), image gain (at least 0) and BLEU-4; where
    findings cannot be read CIDEr stands in, of which 10 is the most.

    BLEU alone prefers a model that says one good sentence to everybody; such a model has no gain over shuffled images.
    """
    return ((scores[by] + max(0.0, scores["image_gain"])) / (10 if by == "cider" else 1) + scores["bleu4"]) / 3


def _numbers(statistics: metrics.Statistics, by: str) -> np.ndarray:
    """The numbers of each study of which, summed, `_SCORE[by]` makes the score: (studies, k)."""
    if by == "cider":
        return np.stack([statistics.means[:, _CIDER], np.ones(statistics.n)], axis=1)
    return statistics.findings.sum(1)


_SCORE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "finding_f1_micro": metrics.f1,
    "cider": lambda sums: sums[..., 0] / sums[..., 1],
}


def _shuffled_numbers(
    statistics: metrics.Statistics,
    predictions: Sequence[str],
    references: Sequence[str],
    by: str,
    seed: int,
    written: Sequence[Sequence[str]] | None,
) -> list[np.ndarray]:
    """`_numbers` with shuffled images."""
    if written is not None:
        return [_numbers(metrics.study_statistics(texts, references), by) for texts in written]
    orders = bootstrap.derangements(len(predictions), seed)
    if by == "cider":
        each = permuted_cider(cider_tokens_all(predictions), cider_tokens_all(references), orders)
        return [np.stack([values, np.ones_like(values)], axis=1) for values in each]
    stated, true = _stated_and_true(statistics)
    return [_counts(stated[order], true) for order in orders]


def _beside_constant(statistics: metrics.Statistics, patients: Sequence[Any], seed: int) -> dict[str, float]:
    _, true = _stated_and_true(statistics)
    sets = np.unique(true, axis=0)
    constant = _counts(np.broadcast_to(sets[best_for_all(sets, true)], true.shape), true)
    real = _numbers(statistics, "finding_f1_micro")
    gain, (low, high), _ = bootstrap.score_gain(metrics.f1, real, [constant], patients, seed)
    names = ("constant_f1", "constant_gain", "constant_gain_low", "constant_gain_high")
    return dict(zip(names, (float(metrics.f1(constant.sum(0))), gain, low, high), strict=True))


def constant_gain(
    statistics: metrics.Statistics,
    constants: Mapping[str, Sequence[str]],
    scores: Mapping[str, Mapping[str, float]],
    references: Sequence[str],
    by: str,
    patients: Sequence[Any],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """The score `by` minus that of the constant baseline that is best in it on these very studies: `constant_gain`,
    `constant_gain_ci95` and `constant_gain_p`, each score → value, by a bootstrap over patients, paired. Empty without
    constants and for one patient. `constants`: name → texts; `scores`: name → theirs."""
    names = ("constant_gain", "constant_gain_ci95", "constant_gain_p")
    if not constants or len(set(patients)) < 2:
        return {name: {} for name in names}
    best = max(constants, key=lambda name: scores[name][by])
    constant = _numbers(metrics.study_statistics(constants[best], references), by)
    found = bootstrap.score_gain(_SCORE[by], _numbers(statistics, by), [constant], patients, seed)
    return {name: {by: value} for name, value in zip(names, found, strict=True)}


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
    """The permutation test of the score `by`; `None` where all references state the same: no order is better then."""
    if by == "cider":
        return bootstrap.word_permutation_p(predictions, references, seed) if len(set(references)) > 1 else None
    stated, true = _stated_and_true(statistics)
    return bootstrap.permutation_p(stated, true, seed) if (true != true[0]).any() else None
