"""The `evaluate` module of normal or abnormal; it needs no network."""

from hf_cxr.metrics import normal_accuracy
from hf_cxr.metrics.module import TextMetric


class NormalAccuracy(TextMetric):
    """Share of studies in which both texts are normal or both abnormal; those whose reference says neither are left
    out, a prediction that says neither is wrong."""

    names = ("normal accuracy",)

    def score(self, predictions, references, normalization):
        return {"normal_accuracy": normal_accuracy(predictions, references)}
