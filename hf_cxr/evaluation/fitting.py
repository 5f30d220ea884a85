"""What is fitted on the validation split and goes into a checkpoint's configs: the thresholds of minimum risk, the
settings of a search, and what a `score` is worth.

The search itself is `hf_cxr.inference.minimum_risk`, the curve `hf_cxr.evaluation.calibration`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset, DatasetDict

from hf_cxr import metrics
from hf_cxr.evaluation import calibration
from hf_cxr.evaluation.bootstrap import of_other_patients
from hf_cxr.inference.checks import curve_of
from hf_cxr.inference.labeler import FINDINGS, positive_findings
from hf_cxr.inference.minimum_risk import RISK, SAMPLES

if TYPE_CHECKING:
    from hf_cxr.evaluation.prediction import Writer

TRIED_ON = 1000  # studies; of more so many are drawn at random
WORTH = 0.005  # less of the composite is chance: the search stays as it is
# What a search is tried with beside its own settings: of beams the length penalty first.
LENGTHS: list[dict[str, Any]] = [{"length_penalty": 0.0}, {"length_penalty": 0.5}, {"length_penalty": 2.0}]
REPEATS: list[dict[str, Any]] = [{"no_repeat_ngram_size": 2}, {"no_repeat_ngram_size": 3}]
REPEATS += [{"repetition_penalty": 1.1}, {"repetition_penalty": 1.2}]


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


def fit_search(
    writer: Writer, studies: Dataset, score: Callable[..., dict[str, float]], seed: int = 0
) -> tuple[dict[str, Any], str]:
    """The options of `generate` by which the writer's checkpoint is best in the composite (see `image_use.composite`)
    on `studies`, or on `TRIED_ON` of them drawn by the seed: none where none gains `WORTH`; and a line that tells what
    was tried. `score`: `hf_cxr.evaluation.evaluate.validation_scores`.

    Raises `ValueError` for no studies.
    """
    if not len(studies):
        raise ValueError("decode tuned: its settings need a validation split with studies")
    drawn = np.random.default_rng(seed).permutation(len(studies))[:TRIED_ON]
    studies = studies.select(np.sort(drawn))
    canvases, prompts, everybody = writer.canvases(studies), writer.prompts(studies), range(len(studies))
    references = studies[writer.layout.top][:]
    patients = studies["patient" if "patient" in studies.column_names else "uid"][:]
    places = list(zip(everybody, everybody, strict=True))
    if writer.layout.context:  # also from the images of others, as at each evaluation in training
        places += zip(of_other_patients(patients, seed).tolist(), everybody, strict=True)
    beams = writer.generate_kwargs.get("num_beams") or writer.model.generation_config.num_beams or 1
    best, tried = dict[str, Any](), list[tuple[float, dict[str, Any]]]()
    for more in (LENGTHS, REPEATS) if beams > 1 else (REPEATS,):
        searches = [best | one for one in more] if tried else [{}, *more]
        for search, texts in zip(searches, writer.try_searches(searches, canvases, prompts, places), strict=True):
            said, *elsewhere = (texts[start : start + len(studies)] for start in range(0, len(places), len(studies)))
            tried.append((score(said, references, patients, seed, elsewhere or None)["composite"], search))
        value, best = max(tried, key=itemgetter(0))  # of equal ones the first
        if value - tried[0][0] < WORTH:
            value, best = tried[0]
    told = ", ".join(f"{_named(search)} {score:.4f}" for score, search in tried)
    chosen = f"taken: {_named(best)} ({value - tried[0][0]:+.4f})"
    return best, f"search tuned by the composite on {len(studies)} validation studies: {told}; {chosen}"


def _named(search: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in search.items()) or "unchanged"


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
