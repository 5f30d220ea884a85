"""Linear probes: what a logistic regression reads of the images, from the states of the run's own encoder or from
16 × 16 grey pixels of each view. They learn from the findings of the training texts, and write no text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.inference.labeler import ABNORMAL, FINDINGS, UNKNOWN, normality, positive_findings
from hf_cxr.metrics.content import area_under_curve, f1, macro_f1, per_finding, precision, ratio, recall

FOLDS = 5
LEAST = 5  # training studies with a finding, and without it, that are left when any fold is taken away
RIDGES = (0.01, 0.1, 1.0, 10.0)  # times the number of studies: the penalty of a squared weight, halved
PLACES = 6  # of a probability; those behind may depend on the number of threads


class Probe(NamedTuple):
    """What a probe says of studies. The columns are `FINDINGS` and, last, abnormal: (studies, findings + 1)."""

    probabilities: np.ndarray
    stated: np.ndarray
    threshold: float
    studies: int
    dimensions: int


def fit_probes(
    texts: Sequence[str], patients: Sequence[Any], embeddings: Mapping[str, tuple[np.ndarray, np.ndarray]], seed: int
) -> dict[str, Probe]:
    """A probe by each embedding; none where findings cannot be read from the texts, or too few state any.

    Each finding, and abnormal, has an L2-regularised logistic regression on features standardised by the training
    studies. Its penalty is that of least log loss on held-out folds of patients. One threshold for all findings, that
    of highest F1 (micro) on these folds, makes statements of probabilities; abnormal is what is as likely as not. A
    finding that too few studies have has the same probability everywhere: its share of the training studies.

    Args:
        texts, patients: of the training studies.
        embeddings: name → (training studies, dimensions) and (studies, dimensions).
    """
    if not embeddings or metrics.unread_findings(texts):
        return {}
    labels, known = targets(texts)
    fold = folds(patients, seed)
    sides = [np.stack([known & labels, known & ~labels])[:, fold != held].sum(1) for held in range(FOLDS)]
    learned = np.min(sides, axis=(0, 1)) >= LEAST
    if not learned[:-1].any():
        return {}
    return {name: _fit_probe(*pair, labels, known, fold, learned) for name, pair in embeddings.items()}


def targets(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """What texts state, as scores take it, and whether they say so either way: bool, (texts, findings + 1) each."""
    state, normal = [positive_findings(text) for text in texts], [normality(text) for text in texts]
    labels = [
        [*(name in stated for name in FINDINGS), said == ABNORMAL] for stated, said in zip(state, normal, strict=True)
    ]
    known = np.ones((len(texts), len(FINDINGS) + 1), dtype=bool)
    known[:, -1] = [said != UNKNOWN for said in normal]
    return np.asarray(labels, dtype=bool), known


def folds(patients: Sequence[Any], seed: int) -> np.ndarray:
    """The fold of each study, 0 to `FOLDS` - 1: a patient is in one."""
    names, owner = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    return (np.random.default_rng(seed).permutation(len(names)) % FOLDS)[owner]


def _fit_probe(
    train: np.ndarray,
    studies: np.ndarray,
    labels: np.ndarray,
    known: np.ndarray,
    fold: np.ndarray,
    learned: np.ndarray,
) -> Probe:
    n, columns = len(train), np.arange(learned.sum())
    train, studies = principal_axes(train, studies)
    truth, counted = labels[:, learned], known[:, learned]
    seen = counted[:, None] & (fold[:, None] != np.arange(FOLDS))[..., None]  # (studies, folds, columns)
    every = np.repeat(truth[:, None], FOLDS, axis=1)
    left = n - np.bincount(fold, minlength=FOLDS)  # studies that each fold's regression learns from
    outside = np.empty((len(RIDGES), n, len(columns)))  # probabilities of studies that were held out
    for place, ridge in enumerate(RIDGES):
        penalty = ridge * np.repeat(left, len(columns))
        weights = logistic_regression(train, every.reshape(n, -1), seen.reshape(n, -1), penalty)
        outside[place] = _probabilities(train, weights).reshape(every.shape)[np.arange(n), fold]
    likelihood = np.clip(np.where(truth, outside, 1 - outside), 10.0**-PLACES, 1)
    best = (np.log(likelihood) * counted).sum(1).argmax(0)
    weights = logistic_regression(train, truth, counted, np.asarray(RIDGES)[best] * n)
    shares = ratio((labels & known).sum(0), known.sum(0))
    held_out, found = np.tile(shares, (n, 1)), np.tile(shares, (len(studies), 1))
    held_out[:, learned], found[:, learned] = outside[best, :, columns].T, _probabilities(studies, weights)
    threshold = best_threshold(held_out[:, :-1], labels[:, :-1])
    stated = found >= np.append(np.full(len(FINDINGS), threshold), 0.5)
    return Probe(found, stated, threshold, n, train.shape[1])


def principal_axes(train: np.ndarray, studies: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features standardised by the training studies and turned to the principal axes of these, float64.

    Turning changes no penalised regression, but makes it quick to fit. Features that are constant there are left out.
    """
    train, studies = train.astype(np.float64), studies.astype(np.float64)
    mean, spread = train.mean(0), train.std(0)
    kept = spread > 1e-6 * np.abs(train).max(0)
    train, studies = ((part[:, kept] - mean[kept]) / spread[kept] for part in (train, studies))
    few = len(train) < train.shape[1]
    sizes, axes = np.linalg.eigh(train @ train.T if few else train.T @ train)
    kept = sizes > 1e-10 * sizes.max(initial=0)
    sizes, axes = sizes[kept], axes[:, kept]
    axes = train.T @ (axes / np.sqrt(sizes)) if few else axes
    return train @ axes, studies @ axes


def logistic_regression(
    features: np.ndarray, labels: np.ndarray, counted: np.ndarray, ridge: float | np.ndarray
) -> np.ndarray:
    """Weights of least log loss + ridge / 2 · their squares, of many regressions at once; the intercept is free.

    L-BFGS on weights that are scaled by what the second derivative would be on uncorrelated features, as those on
    principal axes are: some ten steps.

    Args:
        features: (studies, dimensions), float64.
        labels, counted: (studies, regressions); studies that are not counted are left out of a regression.
        ridge: of all regressions, or of each.

    Returns (1 + dimensions, regressions), the intercept first.
    """
    x = torch.nn.functional.pad(torch.from_numpy(features), (1, 0), value=1.0)
    y, weight = (torch.from_numpy(part.astype(np.float64)) for part in (labels, counted))
    share = (weight * y).sum(0) / weight.sum(0)
    penalty = torch.as_tensor(ridge, dtype=torch.float64).expand(x.shape[1], y.shape[1]).clone()
    penalty[0] = 0
    curvature = (x * x).mean(0)[:, None] * share * (1 - share) * weight.sum(0)
    scale = (curvature + penalty).rsqrt()
    scaled = torch.zeros_like(scale)
    scaled[0] = torch.logit(share) / scale[0]
    solver = torch.optim.LBFGS(
        [scaled.requires_grad_()], max_iter=500, tolerance_grad=1e-5, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        weights = scaled * scale
        logits = x @ weights
        misfit = weight * (torch.nn.functional.softplus(logits) - y * logits)
        total = misfit.sum() + (penalty * weights * weights).sum() / 2
        total.backward()
        return total

    with torch.enable_grad():
        solver.step(loss)
    return (scaled * scale).detach().numpy()


def _probabilities(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    return np.round(1 / (1 + np.exp(-(features @ weights[1:] + weights[0]))), PLACES)


def best_threshold(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The probability from which on stating all findings has the highest F1 (micro); of equal ones the highest."""
    order = np.argsort(-probabilities, axis=None, kind="stable")
    ranked, right = probabilities.ravel()[order], np.cumsum(labels.ravel()[order])
    score = 2 * right / (np.arange(1, len(ranked) + 1) + labels.sum())
    ends = np.append(ranked[1:] < ranked[:-1], True)  # equal probabilities are stated together
    return float(ranked[ends][score[ends].argmax()])


# --- scores ------------------------------------------------------------------------------------------------------


def probe_scores(
    probe: Probe, references: Sequence[str], model: metrics.Statistics, patients: Sequence[Any], seed: int
) -> dict[str, Any]:
    """A probe's part of a report: its statements scored as those of a text are, and what the model gains on it.

    `gain` is of finding F1 (micro), `normal_gain` of `normal_accuracy`, model minus probe; each has `_ci95` and `_p`
    by the paired bootstrap over patients, `None` for one patient. `auc` and `normal_auc` are areas under the ROC curve
    of the probabilities, `None` where all studies are of one kind. What is told of normal or abnormal is of the
    `normal_n` studies whose text says either, `None` where there is none.
    """
    truth, known = targets(references)
    said, odds, either = probe.stated, probe.probabilities, known[:, -1]
    counts = np.stack([said & truth, said & ~truth, ~said & truth], axis=-1)[:, :-1].astype(np.int64)
    normal = np.stack([either & (said == truth)[:, -1], either], axis=-1).astype(np.int64)
    table, summed = per_finding(counts.sum(0)), counts.sum((0, 1))
    for name, row in table.items():
        place = FINDINGS.index(name)
        row["auc"] = area_under_curve(odds[:, place], truth[:, place])
    # per study true and false positives, false negatives; right and decided on normal or abnormal
    ours, theirs = (np.hstack([a.sum(1), b]) for a, b in ((model.findings, model.normal), (counts, normal)))

    def difference(weights: np.ndarray) -> bootstrap.Samples:
        a, b = weights @ ours, weights @ theirs
        right = ratio(a[..., 3], a[..., 4]) - ratio(b[..., 3], b[..., 4])
        return {"gain": f1(a[..., :3]) - f1(b[..., :3]), "normal_gain": right}

    samples = bootstrap.bootstrap(difference, patients, seed) if len(set(patients)) > 1 else {}
    bounds, gains = bootstrap.intervals(samples), dict[str, Any]()
    for name, value in difference(np.ones(len(references))).items():
        gains |= {name: float(value), f"{name}_ci95": bounds.get(name)}
        gains[f"{name}_p"] = bootstrap.two_sided_p(samples[name]) if samples else None
    if not either.any():
        gains |= dict.fromkeys(("normal_gain", "normal_gain_ci95", "normal_gain_p"))
    return {
        "finding_precision_micro": float(precision(summed)),
        "finding_recall_micro": float(recall(summed)),
        "finding_f1_micro": float(f1(summed)),
        "finding_f1_macro": float(macro_f1(counts.sum(0))),
        "normal_accuracy": float(ratio(*normal.sum(0))) if either.any() else None,
        "normal_auc": area_under_curve(odds[either, -1], truth[either, -1]),
        "normal_n": int(either.sum()),
        "per_finding": table,
        **gains,
        "threshold": probe.threshold,
        "studies": probe.studies,
        "dimensions": probe.dimensions,
    }


def signature(probes: Mapping[str, Probe]) -> str:
    """What a report's signature says of the probes; nothing where there is none."""
    if not probes:
        return ""
    studies = next(iter(probes.values())).studies
    return (
        f"; probes: L2-regularised logistic regression per finding on {studies} training studies, the penalty of "
        f"least log loss and one threshold of highest finding F1 (micro) on {FOLDS} folds of patients"
    )
