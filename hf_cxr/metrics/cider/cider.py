"""The `evaluate` module of CIDEr; it needs no network."""

from hf_cxr.metrics import cider
from hf_cxr.metrics.module import TextMetric


class Cider(TextMetric):
    """CIDEr, 0 to 10; the figures are those of pycocoevalcap on the same tokens."""

    names = ("CIDEr",)
    citation_text = "Vedantam et al. 2015, CIDEr: consensus-based image description evaluation."

    def score(self, predictions, references, normalization):
        return {"cider": cider(predictions, references, normalization)}
