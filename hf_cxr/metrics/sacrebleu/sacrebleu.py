"""The `evaluate` module of sacreBLEU; it needs no network."""

from hf_cxr.metrics.module import TextMetric
from hf_cxr.metrics.published import sacrebleu


class Sacrebleu(TextMetric):
    """sacreBLEU's corpus BLEU, 0 to 100, with inputs and keys of the Hub's `sacrebleu`, and its own signature."""

    citation_text = "Post 2018, A call for clarity in reporting BLEU scores."
    several_references = True

    def score(self, predictions, references, normalization, **options):
        return sacrebleu(predictions, references, normalization, **options)
