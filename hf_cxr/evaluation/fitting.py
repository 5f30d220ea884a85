"""What is fitted on the validation split and goes into a checkpoint's config: the thresholds of minimum-risk decoding
and what a `score` is worth.

The search itself is `hf_cxr.inference.minimum_risk`, the curve `hf_cxr.evaluation.calibration`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_cxr import metrics
from hf_cxr.evaluation import calibration
from hf_cxr.inference.checks import curve_of
from hf_cxr.inference.labeler import FINDINGS, positive_findings
from hf_cxr.inference.minimum_risk import RISK, SAMPLES

if TYPE_CHECKING:
    from hf_cxr.evaluation.prediction import Writer


def fit_minimum_risk(writer: Writer, studies: Dataset) -> dict[str, Any]:
    """Settings of minimum risk for the writer's checkpoint, put into its model's config.

    The model writes `SAMPLES` texts for each of `studies`; their findings are what it believes of them. A finding pays
    where it is believed more than half of the highest F1 that can be expected with such beliefs (Lipton et al. 2014,
    arXiv:1402.1892). That F1 is the mean of the finding's own and of all findings together (micro), so that common and
    rare findings count. The radiologists' texts are not looked at.

    Raises `ValueError` for no studies, and for texts whose findings cannot be read.
    """
    if not len(studies):
        raise ValueError("decode mbr: its thresholds need a validation split with studies")
    if metrics.unread_findings(studies[writer.layout.top]):
        raise ValueError("decode mbr: findings cannot be read from these texts; leave decode out")
    config = writer.model.config
    setattr(config, RISK, {"samples": SAMPLES, "thresholds": {}})
    sampler = dataclasses.replace(writer, generate_kwargs={**writer.generate_kwargs, "decode": "mbr"}, texts={})
    canvases, prompts = writer.canvases(studies), writer.prompts(studies)
    try:
        written = sampler.write(canvases.canvas, range(len(canvases)), "Sampling texts", prompts.__getitem__)
    finally:
        vars(config).pop(RISK)
    shares = np.array([text.shares for text in written])
    together = expected_f1(shares.ravel())
    thresholds = {
        name: round((together + expected_f1(column)) / 4, 4) for name, column in zip(FINDINGS, shares.T, strict=True)
    }
    settings = {"samples": SAMPLES, "thresholds": thresholds, "studies": len(studies)}
    setattr(config, RISK, settings)
    return settings


def expected_f1(beliefs: np.ndarray) -> float:
    """The highest F1 that can be expected: over all numbers k, that of stating the k most believed ones,
    2 · (their beliefs' sum) / (k + the sum of all beliefs); 0 where nothing is believed."""
    ranked = np.sort(beliefs)[::-1]
    if not ranked.any():
        return 0.0
    return float((2 * ranked.cumsum() / (np.arange(1, len(ranked) + 1) + ranked.sum())).max())


def correct(text: str, truth: str) -> bool:
    """The event of `calibration.EVENT`."""
    return positive_findings(text, sided=True) == positive_findings(truth, sided=True)


def fit_calibration(writer: Writer, dataset: DatasetDict) -> dict[str, Any] | None:
    studies, section = dataset.get("validation", ()), writer.layout.top
    if len(studies) < calibration.MIN_STUDIES or metrics.unread_findings(studies[section]):
        return None
    canvases, prompts = writer.canvases(studies), writer.prompts(studies)
    written = writer.write(canvases.canvas, range(len(canvases)), "Calibrating", prompts.__getitem__)
    right = [correct(text.of(section), truth) for text, truth in zip(written, studies[section], strict=True)]
    curve = calibration.fit([text.probability for text in written], right)
    return curve and curve | {"studies": _digest_of(studies, section)}


def _digest_of(studies: Dataset, section: str) -> str:
    """Tells studies apart, whatever dataset and split they are in."""
    pairs = zip(studies["uid"], studies[section], strict=True)
    return hashlib.sha256(repr(list(pairs)).encode()).hexdigest()[:16]


def calibration_for(writer: Writer, dataset: DatasetDict, split: str) -> tuple[dict[str, Any] | None, str, bool]:
    """The checkpoint's own calibration, or one fitted now, never on the very split that is evaluated; where it is
    from; and whether it was fitted on the very studies that are evaluated (earlier versions did not note which)."""
    if own := curve_of(writer.checkpoint.model.config):
        known = own.get("studies")
        return (
            own,
            "checkpoint",
            known == _digest_of(dataset[split], writer.layout.top) if known else split == "validation",
        )
    return None if split == "validation" else fit_calibration(writer, dataset), "validation split", False
