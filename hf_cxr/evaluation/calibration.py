"""Calibration of the `score`: from a text's probability under the model to the chance that its findings are right. The
map comes in the checkpoint's config, and `hf_cxr.inference.pipeline` applies it. Here too: how well calibrated scores
are, and what declining to answer would gain (risk and coverage)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

EVENT = "the text states exactly the findings that the radiologist stated, sides told apart"
BINS = 10
MIN_STUDIES = 50  # fewer tell nothing of a curve
KNOTS = 64
CURVE_POINTS = 100


def isotonic(probabilities: Sequence[float], outcomes: Sequence[bool]) -> tuple[list[float], list[float]]:
    """The non-decreasing map from probability to rate of outcome that is nearest to the data, as knots (x, y).

    Pool-adjacent-violators (Ayer et al. 1955), then linear between the means of the pools, as in Zadrozny and Elkan
    2002. Each pool's rate is drawn towards one half by one study (Laplace), so that no pool claims certainty.

    Raises `ValueError` for no data.
    """
    if not len(probabilities):
        raise ValueError("no studies to calibrate on")
    x, y = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    order = np.lexsort((-y, x))  # of equal probabilities the outcomes come first, so that they end in one pool
    x, y = x[order], y[order]
    pools: list[list[float]] = []  # [studies, sum of outcomes, sum of probabilities]
    for value, outcome in zip(x, y, strict=True):
        pools.append([1.0, outcome, value])
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] >= pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    knots = [(p / n, (s + 1) / (n + 2)) for n, s, p in pools]
    rates = np.maximum.accumulate([rate for _, rate in knots])  # Laplace may reverse a small pool and a large one
    return [float(value) for value, _ in knots], rates.tolist()


def fit(probabilities: Sequence[float], correct: Sequence[bool]) -> dict[str, Any] | None:
    """The calibration that goes into a checkpoint's config: `{"event", "n", "x", "y"}`, at most 64 knots.

    `None` for fewer than 50 studies, where a curve would be noise.
    """
    if len(probabilities) < MIN_STUDIES:
        return None
    x, y = isotonic(probabilities, correct)
    kept = np.unique(np.linspace(0, len(x) - 1, min(KNOTS, len(x))).round().astype(int))
    return {
        "event": EVENT,
        "n": len(probabilities),
        "x": [round(x[i], 6) for i in kept],
        "y": [round(y[i], 6) for i in kept],
    }


# --- how good it is ----------------------------------------------------------------------------------------------


def reliability(scores: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> list[dict[str, Any]]:
    """The reliability curve: bins of equally many studies, `{n, mean_score, rate, ci95}`, lowest scores first.

    `ci95` is Wilson's interval of the rate. Equal scores are never torn apart, so there may be fewer bins.
    """
    scores_, correct_ = np.asarray(scores, dtype=np.float64), np.asarray(correct, dtype=np.float64)
    order = np.argsort(scores_, kind="stable")
    edges = [0]
    for cut in np.linspace(0, len(order), bins + 1).round().astype(int).tolist()[1:]:
        # move a cut behind the studies of equal score
        while 0 < cut < len(order) and scores_[order[cut]] == scores_[order[cut - 1]]:
            cut += 1
        if cut > edges[-1]:
            edges.append(cut)
    curve = []
    for low, high in pairwise(edges):
        chosen = order[low:high]
        rate, n = float(correct_[chosen].mean()), high - low
        curve.append({"n": n, "mean_score": float(scores_[chosen].mean()), "rate": rate, "ci95": wilson(rate, n)})
    return curve


def wilson(rate: float, n: int, z: float = 1.959964) -> list[float]:
    """Wilson's 95 % interval of a rate seen on `n` studies (Wilson 1927)."""
    middle = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z * np.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return [float(max(0.0, middle - half)), float(min(1.0, middle + half))]


def expected_calibration_error(scores: Sequence[float], correct: Sequence[bool], bins: int = BINS) -> float:
    """Mean distance between score and rate over the bins of `reliability`, weighted by their studies (Naeini 2015)."""
    curve = reliability(scores, correct, bins)
    return sum(row["n"] * abs(row["mean_score"] - row["rate"]) for row in curve) / max(1, len(scores))


def brier(scores: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean squared distance between score and outcome (Brier 1950); 0 is perfect."""
    return float(np.mean((np.asarray(scores, dtype=np.float64) - np.asarray(correct, dtype=np.float64)) ** 2))


def risk_coverage(scores: Sequence[float], correct: Sequence[bool]) -> list[dict[str, float]]:
    """What declining the least sure studies gains: for each threshold the share that is answered (`coverage`) and the
    share of wrong ones among the answered (`risk`), from the surest studies to all (El-Yaniv and Wiener 2010).

    At most 100 points. Studies of equal score are answered together.
    """
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    ranked, wrong = np.asarray(scores, dtype=np.float64)[order], 1.0 - np.asarray(correct, dtype=np.float64)[order]
    ends = np.flatnonzero(np.append(ranked[1:] < ranked[:-1], True))
    ends = ends[np.unique(np.linspace(0, len(ends) - 1, min(CURVE_POINTS, len(ends))).round().astype(int))]
    risks = np.cumsum(wrong) / np.arange(1, len(wrong) + 1)
    return [
        {"coverage": float((end + 1) / len(ranked)), "risk": float(risks[end]), "threshold": float(ranked[end])}
        for end in ends
    ]


def area_under_risk_coverage(scores: Sequence[float], correct: Sequence[bool]) -> float:
    """Mean risk over all coverages; that of a score that tells nothing is the error rate itself. Ties are averaged."""
    scores_, wrong = np.asarray(scores, dtype=np.float64), 1.0 - np.asarray(correct, dtype=np.float64)
    values, place = np.unique(-scores_, return_inverse=True)
    means = np.bincount(place, wrong) / np.bincount(place)
    ordered = means[place][np.argsort(place, kind="stable")]
    return float(np.mean(np.cumsum(ordered) / np.arange(1, len(values[place]) + 1)))


def assess(
    probabilities: Sequence[float],
    scores: Sequence[float],
    correct: Sequence[bool],
    source: str,
    n_fit: int,
    fitted_here: bool = False,
) -> dict[str, Any]:
    """The report's `calibration` part on the studies of a split: before (`probabilities`) and after (`scores`).

    Args:
        source: where the calibration is from; `n_fit`: on how many studies it was fitted; `fitted_here`: whether they
            are these very studies, so that it looks better than it is.
    """
    return {
        "event": EVENT,
        "source": source,
        "n_fit": n_fit,
        "fitted_here": fitted_here,
        "n": len(scores),
        "ece_before": expected_calibration_error(probabilities, correct),
        "ece_after": expected_calibration_error(scores, correct),
        "brier_before": brier(probabilities, correct),
        "brier_after": brier(scores, correct),
        "reliability_before": reliability(probabilities, correct),
        "reliability_after": reliability(scores, correct),
        "risk_coverage": risk_coverage(scores, correct),
        "aurc": area_under_risk_coverage(scores, correct),
        "aurc_random": float(1 - np.mean(np.asarray(correct, dtype=np.float64))),
    }
