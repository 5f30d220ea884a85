"""The `evaluate` module of corpus BLEU; it needs no network."""

from hf_cxr.metrics import corpus_bleu, length_ratio
from hf_cxr.metrics.module import TextMetric


class Bleu(TextMetric):
    """Corpus BLEU-1..4 and the length ratio; the figures are those of `evaluate`'s own `bleu`."""

    names = ("BLEU", "length ratio")
    citation_text = "Papineni et al. 2002, BLEU: a method for automatic evaluation of machine translation."

    def score(self, predictions, references, normalization):
        scores = corpus_bleu(predictions, references, normalization)
        ratio = length_ratio(predictions, references, normalization)
        return {"bleu": scores["bleu4"], **scores, "length_ratio": ratio}
