"""Scores by kind of study: how many findings, how long a report, which views, PA or AP, and each finding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from hf_cxr.evaluation.bootstrap import study_intervals
from hf_cxr.inference.labeler import ABNORMAL, FINDINGS, NORMAL, UNKNOWN, normality, positive_findings
from hf_cxr.metrics.content import unread_findings
from hf_cxr.metrics.study import Statistics
from hf_cxr.metrics.texts import tokenize_13a

SCORES = ("bleu4", "rougeL", "finding_f1_micro", "normal_accuracy")
OVERLAP = ("bleu4", "rougeL")  # those of words, in whatever language
SMALL = 30  # studies; below this a score says little and is shown in grey


def subgroups(
    statistics: Statistics,
    references: Sequence[str],
    views: Sequence[str],
    patients: Sequence[Any],
    seed: int,
    projections: Sequence[str] | None = None,
    unread: bool = False,
) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of subgroup → name → `{n, small, bleu4, rougeL, finding_f1_micro, normal_accuracy, ci95}`; empty subgroups
    are left out. Where no text states a finding, finding F1 is `None`: there is nothing to find.

    Findings are those that the radiologist's text states; "other" are texts that state none and yet are abnormal
    (something is only possible, or outside the vocabulary), "unknown" those that say neither. "Long" are texts of more
    13a tokens than the median. The intervals are of the bootstrap over the subgroup's patients.

    Args:
        views: "both", "frontal", "lateral", "none" or "" (not known) for each study.
        projections: "PA", "AP" or "" (not known) for each study.
        unread: findings cannot be read from the texts: there are no subgroups by them, and no scores of them.
    """
    masks = subgroup_masks(references, views, projections or views)
    owners = np.asarray(patients)
    return {
        kind: {
            name: _subgroup(statistics.take(mask), owners[mask], seed, unread)
            for name, mask in group.items()
            if mask.any() and not (unread and kind in ("findings", "finding"))
        }
        for kind, group in masks.items()
    }


def with_subgroups(rows: Sequence[dict[str, Any]], section: str) -> list[dict[str, Any]]:
    """The rows of predictions.jsonl with `subgroups`: kind → name, but for those of a single finding."""
    references, views, projections = ([row[name] for row in rows] for name in (section, "views", "projection"))
    groups: list[dict[str, str]] = [{} for _ in rows]
    unread = unread_findings(references)
    for kind, masks in subgroup_masks(references, views, projections).items():
        for name, mask in masks.items():
            for i in np.flatnonzero(mask if kind != "finding" and not (unread and kind == "findings") else ()):
                groups[i][kind] = name
    return [row | {"subgroups": group} for row, group in zip(rows, groups, strict=True)]


def subgroup_masks(
    references: Sequence[str], views: Sequence[str], projections: Sequence[str]
) -> dict[str, dict[str, np.ndarray]]:
    """Kind of subgroup → name → which studies are in it, (studies,); see `subgroups`."""
    stated = [positive_findings(text) for text in references]
    true = np.array([[name in there for name in FINDINGS] for there in stated], dtype=bool).reshape(-1, len(FINDINGS))
    number = true.sum(1)
    said = np.array([normality(text) for text in references])
    lengths = np.array([len(tokenize_13a(text)) for text in references])
    long = lengths > np.median(lengths)
    two = np.asarray(views) == "both"
    return {
        "findings": {
            "normal": (said == NORMAL) & (number == 0),
            "one finding": number == 1,
            "several findings": number > 1,
            "other": (said == ABNORMAL) & (number == 0),
            "unknown": said == UNKNOWN,
        },
        "length": {"short": ~long, "long": long},
        "views": {"one view": ~two & (np.asarray(views) != ""), "two views": two},
        "projection": {name: np.asarray(projections) == name for name in ("PA", "AP")},
        "finding": {FINDINGS[i]: true[:, i] for i in np.argsort(-true.sum(0), kind="stable")},
    }


def _subgroup(statistics: Statistics, patients: np.ndarray, seed: int, unread: bool) -> dict[str, Any]:
    scores, bounds = statistics.scores(), study_intervals(statistics, patients.tolist(), seed)
    shown = [name for name in SCORES if name != "finding_f1_micro" or statistics.findings[..., ::2].any()]
    shown = [name for name in shown if not unread or name in OVERLAP]
    return {
        "n": statistics.n,
        "small": statistics.n < SMALL,
        **{name: float(scores[name]) if name in shown else None for name in SCORES},
        "ci95": {name: bounds[name] for name in shown if name in bounds},
    }
