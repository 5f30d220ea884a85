"""Corpus BLEU-1..4 as an `evaluate` module that needs no network; the figures are those of `evaluate`'s own `bleu`."""

import datasets
import evaluate

from hf_cxr.metrics import corpus_bleu


class Bleu(evaluate.Metric):
    """`compute(predictions=[...], references=[...])` → `bleu1` … `bleu4`, and `bleu` = `bleu4`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Corpus BLEU of orders 1 to 4, 13a tokens, one reference, no smoothing.",
            citation="Papineni et al. 2002, BLEU: a method for automatic evaluation of machine translation.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        scores = corpus_bleu(predictions, references)
        return {"bleu": scores["bleu4"], **scores}
