"""The `evaluate` module of METEOR; it needs no network."""

from hf_cxr.metrics import meteor
from hf_cxr.metrics.module import TextMetric


class Meteor(TextMetric):
    """METEOR, 0 to 1, of exact and stem matches; the figures are those of NLTK without WordNet on the same tokens."""

    names = ("METEOR",)
    citation_text = "Banerjee and Lavie 2005, METEOR: an automatic metric for MT evaluation with improved correlation."

    def score(self, predictions, references, normalization):
        return {"meteor": meteor(predictions, references, normalization)}
