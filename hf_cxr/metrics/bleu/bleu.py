"""The `evaluate` module of corpus BLEU; it needs no network."""

from hf_cxr.metrics.module import TextMetric
from hf_cxr.metrics.published import bleu


class Bleu(TextMetric):
    """Corpus BLEU with inputs and keys of the Hub's `bleu`, and BLEU-1 to BLEU-4."""

    names = ("BLEU", "length ratio")
    citation_text = "Papineni et al. 2002, BLEU: a method for automatic evaluation of machine translation."
    several_references = True

    def score(self, predictions, references, normalization, **options):
        return bleu(predictions, references, **options)
