"""What the `evaluate` modules in the folders beside this file share; each of them says which function scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import datasets
import evaluate

from hf_cxr.metrics import normalize, signature


class TextMetric(evaluate.Metric, ABC):
    """`compute(predictions=[...], references=[...], normalization="none")` → scores by name, and their `signature`.

    Predictions are strings, references as many strings, and in `bleu`, `rouge` and `sacrebleu` also as many lists of
    them; `normalization` is one of `hf_cxr.metrics.NORMALIZATIONS`. Other arguments are those of the module of this
    name on the Hub. It stays abstract so that `evaluate.load`, which takes the first class it finds in a module, takes
    the next.
    """

    names: tuple[str, ...] = ()
    """Its keys in `hf_cxr.metrics.DEFINITIONS`: the definitions that its signature tells."""
    definition = ""
    """In their place, where the scores are others than those."""
    citation_text = ""
    several_references = False
    """Whether a text may have several references: `score` then gets a list of them for each, in words normalised."""

    def _info(self):
        one = {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
        several = one | {"references": datasets.List(datasets.Value("string"))}
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation=self.citation_text,
            inputs_description=TextMetric.__doc__,
            features=[datasets.Features(form) for form in ((several, one) if self.several_references else (one,))],
        )

    @abstractmethod
    def score(self, predictions, references, normalization, *args: Any, **options: Any) -> dict[str, Any]:
        """The scores by name."""

    def _compute(self, predictions, references, normalization="none", **options):
        told = "".join(f"; {name}: {getattr(value, '__name__', value)}" for name, value in options.items())
        meaning = f"{self.definition}; normalization: {normalization}" if self.definition else ""
        meaning = (meaning or signature(normalization, *self.names)) + told
        if self.several_references:
            lists = [[one] if isinstance(one, str) else one for one in references]
            if [] in lists:
                raise ValueError(f"prediction {lists.index([])} has no reference")
            predictions = normalize(predictions, normalization)
            references = [normalize(texts, normalization) for texts in lists]
        return {"signature": meaning} | self.score(predictions, references, normalization, **options)
