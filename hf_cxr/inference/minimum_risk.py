"""Minimum-Bayes-risk decoding: of the texts sampled for a study, the one that states what most of them state.

A checkpoint brings this file as remote code. The stock `generate` has no such search: it gives the text that the
checkpoint's generation config says. The thresholds are fitted in `hf_cxr.evaluation.fitting`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from .labeler import FINDINGS, positive_findings

RISK = "cxr_minimum_risk"  # where a checkpoint's config carries its samples and thresholds
DECODE = ("mbr", "search")
SEARCHES = ("num_beams", "num_return_sequences", "do_sample")
SAMPLES, MOST_SAMPLES = 32, 1024


class CodePoints(LogitsProcessor):
    """Leaves each row one token, so that greedy search gives the greedy text of each study and behind it `samples`,
    spread evenly over the model's distribution, the same on every machine and in every batch.

    Arithmetic sampling (Vilnis et al. 2023, arXiv:2210.15458): a sample is a point between 0 and 1. Each step cuts
    what is left of this interval as the probabilities say, and the piece that holds the point is the next token. A
    piece that is narrower than the points lie apart holds one at most. Its point goes on with a fixed random number in
    each step: there errors of rounding, which batches of another size bring, would decide.
    """

    def __init__(self, studies: int, samples: int) -> None:
        points = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples
        points = torch.cat([torch.full((1,), torch.nan, dtype=torch.float64), points])
        self.studies, self.samples, self.points = studies, samples, points.repeat(studies)[:, None]
        self.widths = torch.ones_like(self.points)
        self.random = torch.Generator().manual_seed(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        points, shares = self.points, scores.cpu().double().softmax(-1)  # some devices have no such numbers
        ends = shares.cumsum(-1)
        sampled = torch.searchsorted(ends, points.nan_to_num(0) * ends[:, -1:], right=True)
        token = torch.where(points.isnan(), shares.argmax(-1, keepdim=True), sampled)
        share, end = shares.gather(1, token), ends.gather(1, token)
        self.widths = self.widths * share
        inside = ((points * ends[:, -1:] - end + share) / share).clamp(0, 1 - 1e-12)
        fresh = torch.rand(self.samples + 1, generator=self.random, dtype=torch.float64).repeat(self.studies)[:, None]
        self.points = torch.where(self.widths * self.samples < 1, fresh + 0 * points, inside)
        return torch.full_like(scores, -torch.inf).scatter(1, token.to(scores.device), 0.0)


def settings_of(config: Any, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """How a text is chosen: the settings of minimum risk, or `None` where the stock `generate` is to search.

    Minimum risk is taken where `decode` asks for it, or the checkpoint has it and `options` name no other search.

    Raises `ValueError` for another `decode`, beside another search, and where the checkpoint has no thresholds.
    """
    own, decode = getattr(config, RISK, None), options.get("decode")
    others = [name for name in SEARCHES if options.get(name) is not None]
    if decode not in (None, *DECODE):
        raise ValueError(f"decode is {' or '.join(DECODE)}, not {decode!r}")
    if decode == "mbr" and others:
        raise ValueError(f"decode mbr samples texts of its own: leave out {others[0]}")
    if decode == "mbr" and own is None:
        raise ValueError("decode mbr: this checkpoint has no thresholds; train it with decode: mbr")
    if own is not None and not _sound(own):
        raise ValueError(f"the {RISK} of its config.json holds no samples and thresholds")
    return None if decode == "search" or others else own


def _sound(settings: Any) -> bool:
    try:
        return 1 <= settings["samples"] <= MOST_SAMPLES and all(0 <= t <= 1 for t in settings["thresholds"].values())
    except (AttributeError, KeyError, TypeError):
        return False


def choose(texts: Sequence[str], whole: Sequence[bool], settings: Mapping[str, Any]) -> tuple[int, np.ndarray]:
    """Which of the texts of a study to give, and the share of samples that state each of `FINDINGS`.

    The text whose findings have the largest sum of share - threshold; of equal ones that which is written most often,
    then the first. One that was cut short is given only where all were.

    Args:
        texts, whole: the greedy text and then the samples, and whether each came to its end.
    """
    stated = np.array([[name in found for name in FINDINGS] for found in map(positive_findings, texts)], dtype=float)
    shares = stated[1:].mean(0)
    thresholds = np.array([settings["thresholds"].get(name, 0.0) for name in FINDINGS])
    gains = (stated @ (shares - thresholds)).round(9)
    often = np.array([texts.count(text) for text in texts])
    order = np.lexsort((-np.arange(len(texts)), often, gains, np.asarray(whole)))
    return int(order[-1]), shares
