"""The `evaluate` module of finding precision, recall and F1; it needs no network."""

from hf_cxr.metrics import finding_scores
from hf_cxr.metrics.module import TextMetric


class FindingF1(TextMetric):
    """Which findings the text states against which the radiologist stated: precision, recall and F1."""

    names = ("finding F1",)

    def score(self, predictions, references, normalization):
        return finding_scores(predictions, references)
