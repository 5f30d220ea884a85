"""The `evaluate` module of ROUGE-L; it needs no network."""

from hf_cxr.metrics import rouge_l
from hf_cxr.metrics.module import TextMetric


class Rouge(TextMetric):
    """Mean ROUGE-L F-measure; the figures are those of the rouge-score package."""

    names = ("ROUGE-L",)
    citation_text = "Lin 2004, ROUGE: a package for automatic evaluation of summaries."

    def score(self, predictions, references, normalization):
        return {"rougeL": rouge_l(predictions, references, normalization)}
