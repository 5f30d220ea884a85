"""What the values of clinical metrics make: scores for any weighting of the studies. Where they come from is told in
`hf_cxr.evaluation.clinical`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hf_cxr.metrics.content import f1, ratio
from hf_cxr.metrics.study import Statistics


@dataclass(frozen=True)
class Values:
    """Numbers of each study, from which scores follow for any weighting, as from `hf_cxr.metrics.Statistics`."""

    numbers: Mapping[str, np.ndarray]
    """Metric → (studies, 3): true positives, false positives, false negatives; or (studies, 2): value, and whether
    there is one."""
    beside: Statistics | None = None
    """Whose scores come first."""

    def scores(self, weights: np.ndarray | None = None) -> dict[str, Any]:
        """Metric → F1, or mean of the values there are; `weights` as in `Statistics.scores`."""
        scores = self.beside.scores(weights) if self.beside else {}
        for name, numbers in self.numbers.items():
            sums = (np.ones(len(numbers)) if weights is None else weights) @ numbers
            value = f1(sums) if sums.shape[-1] == 3 else ratio(sums[..., 0], sums[..., 1])
            scores[name] = float(value) if weights is None else value
        return scores


def counted_in(numbers: np.ndarray) -> np.ndarray:
    """Which studies have a value, of the numbers of `Values`: bool, (studies,)."""
    return numbers[:, 1] > 0 if numbers.shape[1] == 2 else np.ones(len(numbers), dtype=bool)


def numbers_of(name: str, values: Sequence[Sequence[Any]]) -> list[np.ndarray]:
    """A metric's values of several sets of texts on the same studies → the numbers of `Values`. A study without a
    value in one of them counts in none.

    Raises `ValueError` for what are no values of it.
    """
    try:
        if name == "f1chexbert":
            counts = np.array(values, dtype=np.float64)
            if counts.shape[2:] == (3,) and (counts >= 0).all():
                return list(counts)
        table = np.array([[np.nan if value is None else value for value in each] for each in values], dtype=np.float64)
    except (ValueError, TypeError):
        table = np.empty(0)
    if table.ndim != 2 or name == "f1chexbert":
        raise ValueError(f"the values of the clinical metric {name} are not what it gives: evaluate again")
    there = np.isfinite(table).all(0)
    return [np.stack([np.where(there, each, 0.0), there], axis=1) for each in table]
