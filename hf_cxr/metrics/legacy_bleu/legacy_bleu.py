"""The `evaluate` module of the legacy measure; it needs no network."""

from hf_cxr.metrics import legacy_bleu
from hf_cxr.metrics.module import TextMetric


class LegacyBleu(TextMetric):
    """A measure without meaning that old tables on this collection call BLEU; for reading those tables only."""

    names = ("legacy BLEU-4",)

    def score(self, predictions, references, normalization):
        return {"legacy_bleu4": legacy_bleu(predictions, references, normalization)}
