"""The `evaluate` module of exact match; it needs no network."""

from hf_cxr.metrics import exact_match
from hf_cxr.metrics.module import TextMetric


class ExactMatch(TextMetric):
    """Share of studies whose two texts are the same but for white space."""

    names = ("exact match",)

    def score(self, predictions, references, normalization):
        return {"exact_match": exact_match(predictions, references, normalization)}
