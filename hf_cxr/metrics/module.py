"""What the `evaluate` modules in the folders beside this file share; each of them says which function scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import datasets
import evaluate

from hf_cxr.metrics import signature


class TextMetric(evaluate.Metric, ABC):
    """`compute(predictions=[...], references=[...], normalization="none")` → scores by name, and their `signature`.

    Predictions and references are as many strings; `normalization` is one of `hf_cxr.metrics.NORMALIZATIONS`. It stays
    abstract so that `evaluate.load`, which takes the first class it finds in a module, takes the next.
    """

    names: tuple[str, ...] = ()
    """Its keys in `hf_cxr.metrics.DEFINITIONS`: the definitions that its signature tells."""
    citation_text = ""

    def _info(self):
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=self.citation_text,
            inputs_description=TextMetric.__doc__,
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    @abstractmethod
    def score(self, predictions: list[str], references: list[str], normalization: str) -> dict[str, Any]:
        """The scores by name."""

    def _compute(self, predictions, references, normalization="none"):
        meaning = {"signature": signature(normalization, *self.names)}
        return meaning | self.score(predictions, references, normalization)
