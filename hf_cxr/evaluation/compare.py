"""Two runs on the same studies: which one scores higher, by how much, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.evaluation.report.tables import COLUMNS, INTERVAL, SCORES, bounds, table
from hf_cxr.utils.plots import counted, score

SHOWN = (*COLUMNS, "finding_f1_micro_sided", "normal_accuracy")


def compare(run_a: str, run_b: str, seed: int = 0) -> dict[str, Any]:
    """The paired comparison of two runs from their `predictions.jsonl`.

    Returns `{"a", "b", "n", "patients", "scores": {scalar: {a, b, difference, ci95, p, probability}}, "signature",
    "verdict"}`; a difference is B − A (see `bootstrap.paired_difference`).

    Raises `FileNotFoundError` for a run without predictions, `ValueError` where the two are not of the same studies
    with the same texts by radiologists.
    """
    a, b = (read_predictions(run) for run in (run_a, run_b))
    uids = sorted(a)
    for uid in sorted(set(a) | set(b)):
        if uid not in a or uid not in b:
            raise ValueError(f"study {uid} is in {run_a if uid in a else run_b} only: compare runs on the same split")
        if a[uid]["impression"] != b[uid]["impression"]:
            raise ValueError(f"study {uid}: the two runs were given different texts by the radiologist")
    references = [a[uid]["impression"] for uid in uids]
    patients = [str(a[uid].get("patient", uid)) for uid in uids]
    if len(set(patients)) < 2:
        raise ValueError(f"{run_a}: {len(uids)} studies of one patient are too few to compare runs on")
    first, second = (metrics.study_statistics([run[uid]["prediction"] for uid in uids], references) for run in (a, b))
    scores = bootstrap.paired_difference(first, second, patients, seed)
    return {
        "a": Path(run_a).name,
        "b": Path(run_b).name,
        "n": len(uids),
        "patients": len(set(patients)),
        "scores": scores,
        "signature": f"{metrics.signature()}; {bootstrap.BOOTSTRAP_SAMPLES} paired bootstrap samples of patients; "
        f"seed {seed}",
        "verdict": _verdict(scores, metrics.gain_score(references)),
    }


def read_predictions(run: str) -> dict[str, dict[str, Any]]:
    """uid → row of a run's `predictions.jsonl`."""
    file = Path(run) / "predictions.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no predictions here; make them with hf-cxr evaluate … --out {run}")
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            uid, _, _ = row["uid"], row["impression"], row["prediction"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{file}, line {number}: not a row with uid, impression and prediction") from None
        if uid in rows:
            raise ValueError(f"{file}, line {number}: study {uid} is there twice")
        rows[uid] = row
    if not rows:
        raise ValueError(f"{file}: empty")
    return rows


def _verdict(scores: Mapping[str, Mapping[str, Any]], name: str) -> str:
    row = scores[name]
    low, high = row["ci95"]
    better = "no difference can be told" if low <= 0 <= high else f"{'B' if row['difference'] > 0 else 'A'} is better"
    return (
        f"In {SCORES[name]} {better}: B − A {row['difference']:+.3f} (95 % CI {low:+.3f} to {high:+.3f}, "
        f"probability that B is better {row['probability']:.2f})."
    )


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """A Markdown table of the main scores of both runs and their difference."""
    rows = [
        [
            SCORES[name],
            *(score(row[run]) for run in ("a", "b")),
            f"{row['difference']:+.3f}",
            bounds(row["ci95"], sign=True),
            score(row["probability"], 2),
        ]
        for name, row in ((name, comparison["scores"][name]) for name in SHOWN)
    ]
    head = ["", "A", "B", "B − A", INTERVAL, "probability that B is better"]
    studies = counted(comparison["n"], "study", "studies")
    return f"A: {comparison['a']}, B: {comparison['b']}, {studies}\n\n{table(head, rows)}"
