"""Finding F1 as an `evaluate` module: which findings the text states against which the radiologist stated."""

import datasets
import evaluate

from hf_cxr.metrics import finding_scores


class FindingF1(evaluate.Metric):
    """`compute(predictions=[...], references=[...])` → `finding_f1_micro`, `finding_f1_macro`, `per_finding`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Micro, macro and per-finding F1 of the findings that hf_cxr.findings reads from the texts.",
            citation="",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references):
        return finding_scores(predictions, references)
