"""Scores of generated impressions against the radiologists' ones, as plain functions and as `evaluate` modules.

`texts` cuts texts into tokens and counts n-grams, `overlap` compares words, `content` compares findings, and `study`
gathers every score as a formula over per-study statistics, so that a bootstrap over studies is a matrix product. The
`evaluate` modules are the folders beside this file; they load without network:
`evaluate.load(hf_cxr.metric_path("bleu"))`. Generating texts and building reports lives in
`hf_cxr.evaluation.evaluate`."""

# ruff: noqa: F401  (what is imported here is the public face)
from __future__ import annotations

from pathlib import Path

from hf_cxr.metrics.content import (
    f1,
    finding_scores,
    finding_statistics,
    gain_score,
    normal_accuracy,
    unread_findings,
)
from hf_cxr.metrics.overlap import (
    bleu_from_statistics,
    bleu_statistics,
    cider,
    corpus_bleu,
    diversity,
    exact_match,
    legacy_bleu,
    length_ratio,
    meteor,
    rouge_l,
    rouge_l_per_study,
    sacrebleu,
    sentence_bleu,
)
from hf_cxr.metrics.study import (
    DEFINITIONS,
    SCALARS,
    SIGNATURE,
    Statistics,
    score_sheet,
    score_texts,
    signature,
    study_statistics,
)
from hf_cxr.metrics.texts import MAX_ORDER, NORMALIZATIONS, ngrams, normalize, tokenize_13a


def metric_path(name: str) -> str:
    """The folder to give to `evaluate.load`. Raises `ValueError` for a name that is none of the kit's metrics."""
    folder = Path(__file__).parent / name
    if not (folder / f"{name}.py").is_file():
        names = sorted(path.parent.name for path in Path(__file__).parent.glob("*/*.py"))
        raise ValueError(f"no metric named {name!r}; there are {', '.join(names)}")
    return str(folder)
