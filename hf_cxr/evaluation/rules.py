"""What the numbers of a report, or of an evaluation in training, show: whether images and context are read or harm,
and what the model beats. Words are made of it in `hf_cxr.evaluation.report.verdict`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hf_cxr.utils.plots import PROBES

READS_P = 0.01  # the p above which a model is not said to read the images, or the context
SMALL_GAIN = {"finding_f1_micro": 0.05, "cider": 0.2}
"""The smallest gain of interest. One finding in twenty: a model worth its name gains several times as much, and some
1,000 studies tell it from none. Of CIDEr, which goes to 10, it is as little as so many studies can tell."""
FEWEST = 60
"""Patients below which no gain is called small, no loss a harm, and a bootstrap's p alone shows nothing: what none of
n does, up to 3 / n may do (the rule of three), and a bootstrap knows nothing of what it has not seen."""


class Rival(NamedTuple):
    """What stands beside the model in the score of the verdict: its name, its score, the model's minus it."""

    name: str
    score: float
    gain: float
    ci95: Sequence[float]
    beaten: bool | None
    """True: shown. False: the gain is nearer to none than to the smallest of interest. None: not shown."""


def reads(report: Mapping[str, Any], what: str = "image") -> bool | None:
    """Whether the images or the context (`what`: "image", "context") are read: true; false where that harms, where all
    texts are one, or where the gain is shown to be smaller than `SMALL_GAIN`; `None` where nothing is shown."""
    by, enough = report["gain_score"], report["patients"] >= FEWEST
    (low, high), small_p = report[f"{what}_gain_ci95"][by], p_of(report, what) <= READS_P
    if report["distinct_outputs"] == 1 or harms(report, what):
        return False
    if low > 0 and small_p:
        return True if enough or "with_context" not in report else None
    return False if enough and low <= 0 and not small_p and high < SMALL_GAIN[by] else None


def p_of(report: Mapping[str, Any], what: str) -> float:
    """Of the permutation test; with context, where permuting texts permutes both, of the bootstrap."""
    return report[f"{what}_gain_p"][report["gain_score"]] if "with_context" in report else report["permutation_p"]


def harms(report: Mapping[str, Any], what: str) -> bool:
    """Whether texts are shown to be better with another study's images or context (`what`: "image", "context")."""
    by = report.get("gain_score", "finding_f1_micro")
    interval, p = (report[f"{what}_gain_{part}"].get(by) for part in ("ci95", "p"))
    return bool(interval) and interval[1] < 0 and p <= READS_P and report["patients"] >= FEWEST


def few_texts(distinct: float, of_truth: float) -> bool:
    """Whether a model writes so few distinct texts, beside the radiologists', that they cannot say what is there."""
    return distinct <= 2 < of_truth or 20 * distinct < of_truth


def is_beaten(gain: float, interval: Sequence[float], by: str, patients: int) -> bool | None:
    """Whether the model is better than what it gains this much on: true where the 95 % interval lies above zero; else,
    of `FEWEST` patients or more, false where the gain is nearer to none than to `SMALL_GAIN[by]`; `None` otherwise."""
    if interval[0] > 0:
        return True
    return False if patients >= FEWEST and gain < SMALL_GAIN[by] / 2 else None


def rivals(report: Mapping[str, Any]) -> list[Rival]:
    """The best constant and the probes, those that a report has."""
    by, patients = report.get("gain_score", "finding_f1_micro"), report["patients"]
    beside = {}
    if gain := report.get("constant_gain"):
        beside["one constant sentence"] = gain[by], report["constant_gain_ci95"].get(by)
    if by == "finding_f1_micro":
        probes = report.get("probes") or {}
        beside |= {PROBES[name]: (probe["gain"], probe.get("gain_ci95")) for name, probe in probes.items()}
    return [
        Rival(name, report[by] - gain, gain, interval, is_beaten(gain, interval, by, patients))
        for name, (gain, interval) in beside.items()
        if interval
    ]
