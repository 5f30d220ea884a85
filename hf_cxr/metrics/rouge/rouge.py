"""Mean ROUGE-L F-measure as an `evaluate` module that needs no network, by the rouge-score package."""

import datasets
import evaluate

from hf_cxr.metrics import rouge_l


class Rouge(evaluate.Metric):
    """`compute(predictions=[...], references=[...])` → `rougeL`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="ROUGE-L F-measure without stemming, mean over studies.",
            citation="Lin 2004, ROUGE: a package for automatic evaluation of summaries.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        return {"rougeL": rouge_l(predictions, references)}
