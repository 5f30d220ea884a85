"""The `evaluate` module of sentence BLEU; it needs no network."""

from hf_cxr.metrics import sentence_bleu
from hf_cxr.metrics.module import TextMetric


class SentenceBleu(TextMetric):
    """Mean over studies of sacreBLEU's sentence BLEU-4."""

    names = ("sentence BLEU-4",)
    citation_text = "Chen and Cherry 2014, A systematic comparison of smoothing techniques for sentence-level BLEU."

    def score(self, predictions, references, normalization):
        return {"sentence_bleu4": sentence_bleu(predictions, references, normalization)}
