"""Two runs on the same studies: which one scores higher, by how much, and how sure that is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.evaluation.report.tables import COLUMNS, INTERVAL, SCORES, bounds, table, truth_of
from hf_cxr.inference.sections import SECTIONS
from hf_cxr.utils.plots import counted, score

SHOWN = (*COLUMNS, "finding_f1_micro_sided", "normal_accuracy")


def compare(run_a: str, run_b: str, seed: int = 0) -> dict[str, Any]:
    """The paired comparison of two runs from their `predictions.jsonl`.

    Returns `{"a", "b", "n", "patients", "section", "scores": {scalar: {a, b, difference, ci95, p, probability}},
    "signature", "verdict"}`; a difference is B − A (see `bootstrap.paired_difference`). The section is the impression
    where both runs write one. Of two runs that write several, `sections` holds `scores` and `verdict` of each.

    Raises `FileNotFoundError` for a run without predictions, `ValueError` where the two are not of the same studies
    with the same texts by radiologists, or write no section in common.
    """
    a, b = (read_predictions(run) for run in (run_a, run_b))
    uids = sorted(a)
    for uid in sorted(set(a) | set(b)):
        if uid not in a or uid not in b:
            raise ValueError(f"study {uid} is in {run_a if uid in a else run_b} only: compare runs on the same split")
    ours, theirs = (texts_of_row(run[uids[0]]) for run in (a, b))
    common = [name for name in reversed(SECTIONS) if name in ours and name in theirs]
    if not common:
        raise ValueError(
            f"{run_a} holds the {' and '.join(ours)}, {run_b} the {' and '.join(theirs)}: no section of both"
        )
    patients = [str(a[uid].get("patient", uid)) for uid in uids]
    if len(set(patients)) < 2:
        raise ValueError(f"{run_a}: {len(uids)} studies of one patient are too few to compare runs on")
    parts = {
        name: _compared([[texts_of_row(run[uid])[name] for uid in uids] for run in (a, b)], uids, patients, seed)
        for name in common
    }
    return {
        "a": Path(run_a).name,
        "b": Path(run_b).name,
        "n": len(uids),
        "patients": len(set(patients)),
        "section": common[0],
        **parts[common[0]],
        "signature": f"{metrics.signature()}; {bootstrap.BOOTSTRAP_SAMPLES} paired bootstrap samples of patients; "
        f"seed {seed}",
        **({"sections": parts} if len(parts) > 1 else {}),
    }


def texts_of_row(row: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Section → the radiologist's text and the model's."""
    if parts := row.get("sections"):
        return {name: (part["reference"], part["prediction"]) for name, part in parts.items()}
    return {truth_of(row): (row[truth_of(row)], row["prediction"])}


def _compared(
    runs: Sequence[Sequence[tuple[str, str]]], uids: Sequence[str], patients: Sequence[str], seed: int
) -> dict[str, Any]:
    """`scores` and `verdict` of one section."""
    references, others = ([truth for truth, _ in run] for run in runs)
    for uid, truth, other in zip(uids, references, others, strict=True):
        if truth != other:
            raise ValueError(f"study {uid}: the two runs were given different texts by the radiologist")
    first, second = (metrics.study_statistics([said for _, said in run], references) for run in runs)
    scores = bootstrap.paired_difference(first, second, patients, seed)
    return {"scores": scores, "verdict": _verdict(scores, metrics.gain_score(references))}


def read_predictions(run: str) -> dict[str, dict[str, Any]]:
    """uid → row of a run's `predictions.jsonl`."""
    file = Path(run) / "predictions.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no predictions here; make them with hf-cxr evaluate … --out {run}")
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            uid, _ = row["uid"], texts_of_row(row)
        except (ValueError, KeyError, TypeError, AttributeError):
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


def shown(comparison: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Title and numbers of each main score; of two reports those of every section, by its name."""
    if parts := comparison.get("sections"):
        return [(f"{name}: {title}", row) for name, part in parts.items() for title, row in shown(part)]
    return [(SCORES[name], comparison["scores"][name]) for name in SHOWN]


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """A Markdown table of the main scores of both runs and their difference."""
    rows = [
        [
            title,
            *(score(row[run]) for run in ("a", "b")),
            f"{row['difference']:+.3f}",
            bounds(row["ci95"], sign=True),
            score(row["probability"], 2),
        ]
        for title, row in shown(comparison)
    ]
    head = ["", "A", "B", "B − A", INTERVAL, "probability that B is better"]
    studies = counted(comparison["n"], "study", "studies")
    return f"A: {comparison['a']}, B: {comparison['b']}, {studies}\n\n{table(head, rows)}"
