"""The `evaluate` module of sacreBLEU; it needs no network."""

from hf_cxr.metrics import sacrebleu
from hf_cxr.metrics.module import TextMetric


class Sacrebleu(TextMetric):
    """sacreBLEU's corpus BLEU, 0 to 100, with sacreBLEU's own signature."""

    citation_text = "Post 2018, A call for clarity in reporting BLEU scores."

    def score(self, predictions, references, normalization):
        return sacrebleu(predictions, references, normalization)
