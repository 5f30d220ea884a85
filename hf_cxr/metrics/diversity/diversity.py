"""The `evaluate` module of distinct outputs and modal share; it needs no network."""

from hf_cxr.metrics import diversity
from hf_cxr.metrics.module import TextMetric


class Diversity(TextMetric):
    """How many different texts were written, and which share of studies got the commonest one."""

    names = ("diversity",)

    def score(self, predictions, references, normalization):
        return diversity(predictions, normalization)
