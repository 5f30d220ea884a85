"""How sure a score is: the bootstrap over patients, the image-shuffle test, and the paired difference of two runs.

Everything here works on `hf_cxr.metrics.Statistics`, per-study arrays from which any weighting of the studies gives
the scores by a matrix product. Nothing here generates text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol

import numpy as np

from hf_cxr.inference.labeler import FINDINGS
from hf_cxr.metrics.content import f1
from hf_cxr.metrics.overlap import permuted_cider
from hf_cxr.metrics.study import Statistics
from hf_cxr.metrics.texts import cider_tokens_all

BOOTSTRAP_SAMPLES = 1000
PERMUTATIONS = 999
SHUFFLES = 5
LEVEL = 0.95
_CHUNK = 250  # bootstrap samples at a time: memory is chunk × studies

Samples = dict[str, np.ndarray]


class Scored(Protocol):
    """Numbers of each study from which scores follow for any weighting, as `Statistics` are."""

    def scores(self, weights: np.ndarray | None = None) -> dict[str, Any]:
        """Scalar → a float, or an array (samples,)."""


def patient_weights(patients: Sequence[Any], samples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each study counts in bootstrap samples of whole patients, in chunks of shape (≤ 250, studies).

    Patients are drawn with replacement, and all studies of a drawn patient come along: two studies of one patient are
    no two independent observations. (The cluster bootstrap: Davison and Hinkley 1997, section 3.8.)
    """
    _, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    n, rng = int(owner.max(initial=-1)) + 1, np.random.default_rng(seed)
    for start in range(0, samples, _CHUNK):
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=min(_CHUNK, samples - start))
        yield drawn[:, owner]


def bootstrap(
    score: Callable[[np.ndarray], Samples], patients: Sequence[Any], seed: int, samples: int = BOOTSTRAP_SAMPLES
) -> Samples:
    """`score(weights)` over bootstrap samples of patients: scalar → array (samples,). The same seed and patients give
    the same samples, so that two calls can be subtracted."""
    parts = [score(weights) for weights in patient_weights(patients, samples, seed)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def intervals(samples: Samples) -> dict[str, list[float]]:
    """95 % percentile intervals, [low, high] by name; a score that is undefined in all samples has none."""
    tail = 100 * (1 - LEVEL) / 2
    return {
        name: np.nanpercentile(values, [tail, 100 - tail]).tolist()
        for name, values in samples.items()
        if not np.isnan(values).all()
    }


def two_sided_p(differences: np.ndarray) -> float:
    """Bootstrap p-value of "the difference is zero": twice the smaller share of samples on either side of zero, never
    below what so many samples can tell."""
    n = len(differences)
    smaller = min((differences <= 0).sum(), (differences >= 0).sum())
    return float(min(1.0, 2 * (smaller + 1) / (n + 1)))


def study_intervals(
    statistics: Scored, patients: Sequence[Any], seed: int, samples: int = BOOTSTRAP_SAMPLES
) -> dict[str, list[float]]:
    """95 % intervals of every scalar; none for fewer than two patients."""
    if len(set(patients)) < 2:
        return {}
    return intervals(bootstrap(statistics.scores, patients, seed, samples))


def finding_intervals(statistics: Statistics, patients: Sequence[Any], seed: int) -> dict[str, list[float]]:
    """95 % interval of each finding's F1; none for fewer than two patients."""
    if len(set(patients)) < 2:
        return {}
    counts = statistics.findings.reshape(statistics.n, -1).astype(np.float64)

    def score(weights: np.ndarray) -> Samples:
        scores = f1((weights @ counts).reshape(len(weights), len(FINDINGS), 3))
        return {name: scores[:, place] for place, name in enumerate(FINDINGS)}

    return intervals(bootstrap(score, patients, seed))


# --- the image-shuffle test -----------------------------------------------------------------------------------------


def derangements(n: int, seed: int, count: int = SHUFFLES) -> Iterator[np.ndarray]:
    """Random permutations of `range(n)` that leave nothing in place (n ≥ 2)."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        order = rng.permutation(n)  # one cycle through all: everybody gets the next one's
        permutation = np.empty(n, dtype=np.int64)
        permutation[order] = np.roll(order, 1)
        yield permutation


def of_other_patients(patients: Sequence[Any], seed: int) -> np.ndarray:
    """For each study the place of one of another patient: a permutation, unless one patient has more than half of the
    studies. The studies of one patient alone are permuted among themselves."""
    rng = np.random.default_rng(seed)
    _, owner, counts = np.unique(np.asarray(patients, dtype=str), return_inverse=True, return_counts=True)
    drawn = rng.permutation(len(owner))
    order = drawn[np.argsort(rng.permutation(len(counts))[owner[drawn]], kind="stable")]  # a patient's side by side
    others = np.empty_like(order)
    others[order] = np.roll(order, -counts.max() if len(counts) > 1 else 1)
    same = owner[others] == owner  # of the patient who has more than half
    if len(counts) > 1 and same.any():
        others[same] = rng.choice(np.flatnonzero(owner != counts.argmax()), same.sum())
    return others


def image_gain(
    real: Scored, shuffled: Sequence[Scored], patients: Sequence[Any], seed: int
) -> dict[str, dict[str, Any]]:
    """What the images are worth: each score minus its mean over runs with the images permuted among the studies.

    Returns `shuffled` and `image_gain` (scalar → number), `image_gain_ci95` (scalar → [low, high]) and `image_gain_p`
    (scalar → two-sided p-value), the last two by a bootstrap over patients, paired: both terms of a difference are
    computed on the same patients.
    """
    scores = real.scores()
    runs = [statistics.scores() for statistics in shuffled]
    means = {name: float(np.mean([run[name] for run in runs])) for name in scores}

    def difference(weights: np.ndarray) -> Samples:
        ours, theirs = real.scores(weights), [statistics.scores(weights) for statistics in shuffled]
        return {name: ours[name] - np.mean([run[name] for run in theirs], axis=0) for name in scores}

    samples = bootstrap(difference, patients, seed) if len(set(patients)) > 1 else {}
    return {
        "shuffled": means,
        "image_gain": {name: float(scores[name] - means[name]) for name in scores},
        "image_gain_ci95": intervals(samples),
        "image_gain_p": {name: two_sided_p(values) for name, values in samples.items()},
    }


def score_gain(
    score: Callable[[np.ndarray], np.ndarray],
    real: np.ndarray,
    shuffled: Sequence[np.ndarray],
    patients: Sequence[Any],
    seed: int,
) -> tuple[float, list[float], float]:
    """One score's gain of `image_gain`, its 95 % interval (both ends 0 for one patient) and two-sided p-value (1 for
    one patient), without any other score.

    Args:
        score: gives the score, (…), of summed per-study numbers, (…, k).
        real, shuffled: those numbers, (studies, k).
    """

    def difference(weights: np.ndarray) -> Samples:
        return {"gain": score(weights @ real) - np.mean([score(weights @ other) for other in shuffled], axis=0)}

    samples = bootstrap(difference, patients, seed) if len(set(patients)) > 1 else {}
    gain, interval = float(difference(np.ones(len(real)))["gain"]), intervals(samples).get("gain", [0.0, 0.0])
    return gain, interval, two_sided_p(samples["gain"]) if samples else 1.0


def permutation_p(stated: np.ndarray, true: np.ndarray, seed: int, permutations: int = PERMUTATIONS) -> float:
    """How likely texts that have nothing to do with their images reach this finding F1 (micro) or more.

    The exact permutation test of "the texts do not depend on the images": the texts are permuted to the studies anew,
    and the share of permutations that do at least as well is counted, the real one among them (Phipson and Smyth
    2010). As permuting leaves how much is stated and how much is true as they are, F1 orders the permutations as true
    positives do.

    Args:
        stated, true: which findings a text states and which are there, bool, (studies, findings).
    """
    rng = np.random.default_rng(seed)
    stated, true = np.ascontiguousarray(stated, dtype=bool), np.ascontiguousarray(true, dtype=bool)
    reached = int((stated & true).sum())
    as_good = sum(int((stated[rng.permutation(len(stated))] & true).sum()) >= reached for _ in range(permutations))
    return (as_good + 1) / (permutations + 1)


def word_permutation_p(
    predictions: Sequence[str], references: Sequence[str], seed: int, permutations: int = PERMUTATIONS
) -> float:
    """`permutation_p` of the mean CIDEr, which needs no finding to be read: it weighs words by how rare they are."""
    rng, n = np.random.default_rng(seed), len(references)
    orders = chain([np.arange(n)], (rng.permutation(n) for _ in range(permutations)))
    tokens = cider_tokens_all(predictions), cider_tokens_all(references)
    reached, *others = (float(values.mean()) for values in permuted_cider(*tokens, orders))
    return (sum(other >= reached - 1e-9 for other in others) + 1) / (permutations + 1)


# --- two runs, or several ------------------------------------------------------------------------------------------


def paired_difference(a: Scored, b: Scored, patients: Sequence[Any], seed: int) -> dict[str, dict[str, Any]]:
    """Scalar → `{a, b, difference (b − a), ci95, p, probability}` of two runs on the same studies.

    `probability` is the share of bootstrap samples of patients in which run B scores higher than run A, ties halved.
    """
    samples = run_samples([a, b], patients, seed)
    first, second = a.scores(), b.scores()
    return {
        name: {
            "a": float(first[name]),
            "b": float(second[name]),
            **difference_of(first[name], second[name], values[:, 0], values[:, 1]),
        }
        for name, values in samples.items()
    }


def run_samples(
    runs: Sequence[Scored], patients: Sequence[Any], seed: int, samples: int = BOOTSTRAP_SAMPLES
) -> Samples:
    """Scalar → its value in each bootstrap sample of patients (the same for all runs) and run: (samples, runs)."""

    def score(weights: np.ndarray) -> Samples:
        scores = [run.scores(weights) for run in runs]
        return {name: np.stack([each[name] for each in scores], axis=1) for name in scores[0]}

    return bootstrap(score, patients, seed, samples)


def difference_of(a: float, b: float, samples_a: np.ndarray, samples_b: np.ndarray) -> dict[str, Any]:
    """`{difference (b − a), ci95, p, probability}` of one score of two runs, from both runs' values in the same
    bootstrap samples."""
    values = samples_b - samples_a
    return {
        "difference": float(b - a),
        "ci95": intervals({"": values})[""],
        "p": two_sided_p(values),
        "probability": float(((values > 0) + 0.5 * (values == 0)).mean()),
    }


def holm(p: Sequence[float]) -> list[float]:
    """p-values of several comparisons, corrected so that the chance of any false one is held (Holm 1979): the smallest
    of m is multiplied by m, the next by m − 1, …; none becomes smaller than one before it."""
    order, corrected, least = np.argsort(p, kind="stable"), [1.0] * len(p), 0.0
    for rank, place in enumerate(order):
        least = max(least, min(1.0, p[place] * (len(p) - rank)))
        corrected[place] = least
    return corrected
