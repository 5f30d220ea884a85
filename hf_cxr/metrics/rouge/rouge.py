"""The `evaluate` module of ROUGE; it needs no network."""

import statistics

from hf_cxr.metrics.module import TextMetric
from hf_cxr.metrics.published import ROUGE_TYPES, rouge, stemmed_rouge_tokens


class Rouge(TextMetric):
    """ROUGE F-measures with inputs and keys of the Hub's `rouge`. They are means over studies; the Hub's are medians
    of 1,000 random resamples of such a mean, and so differ a little from run to run."""

    definition = "ROUGE: F-measure, tokens of rouge-score, mean over studies, best of several references"
    citation_text = "Lin 2004, ROUGE: a package for automatic evaluation of summaries."
    several_references = True

    def score(
        self,
        predictions,
        references,
        normalization,
        rouge_types=None,
        use_aggregator=True,
        use_stemmer=False,
        tokenizer=None,
    ):
        cut = stemmed_rouge_tokens if use_stemmer and not tokenizer else tokenizer
        scores = rouge(predictions, references, rouge_types or ROUGE_TYPES, cut)
        return {kind: statistics.fmean(values) for kind, values in scores.items()} if use_aggregator else scores
