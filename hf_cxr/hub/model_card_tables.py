"""What stands in a model card beside its words: counts, and where the model fails. The tables that the report has too
are in `hf_cxr.evaluation.report.tables`; the card itself is put together in `hf_cxr.hub.model_card`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hf_cxr.evaluation.report.page import choose
from hf_cxr.evaluation.report.tables import table, truth_of
from hf_cxr.utils.plots import score

FAILURES = 6  # of each kind


def parameters(run: Path) -> int:
    """Number of parameters in a run's weights, by their headers; those that two parts share count once."""
    total = 0
    for file in run.glob("model*.safetensors"):
        with safe_open(file, framework="np") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in list(weights.keys())]
            total += sum(map(math.prod, shapes))
    return total


def finding_counts(report: Mapping[str, Any]) -> dict[str, int | None]:
    """Findings in whole numbers: `true` (in the studies' texts), `found` of them, `stated` by the model.

    They follow from the report's precision and recall. `stated` is `None` where it does not: the model states
    findings, and none of them is right.
    """
    true = sum(row["n"] for row in report["per_finding"].values())
    found = round(report["finding_recall_micro"] * true)
    if found:
        return {"true": true, "found": found, "stated": round(found / report["finding_precision_micro"])}
    silent = all(row["precision"] is None for row in report["per_finding"].values())
    return {"true": true, "found": 0, "stated": 0 if silent else None}


def failures(rows: Sequence[Mapping[str, Any]], show_texts: bool) -> dict[str, Any]:
    """Where the model fails: `wrong` (how many texts miss or invent a finding, sides told apart) and two tables,
    `surest` (the wrong texts of highest score) and `worst` (most findings missed or invented, of equal ones the surest
    first). Empty where no text is wrong.

    Args:
        rows: those of predictions.jsonl.
        show_texts: never for texts of patients; the tables then name findings alone.
    """
    wrong = [row for row in rows if row.get("missed") or row.get("invented")]
    if not wrong:
        return {}
    surest = sorted(wrong, key=lambda row: (-row["score"], row["uid"]))[:FAILURES]
    worst = [rows[index] for index in choose(rows)["worst"]][:FAILURES]
    return {
        "wrong": len(wrong),
        "surest": _failure_table(surest, show_texts),
        "worst": _failure_table(worst, show_texts),
    }


def _failure_table(rows: Iterable[Mapping[str, Any]], show_texts: bool) -> str:
    texts = {"": "the study's text", "prediction": "the model's text"} if show_texts else {}
    cells = [
        [
            score(row["score"], 2),
            *(", ".join(row[kind]) or "–" for kind in ("matched", "missed", "invented")),
            *(" ".join(row[text or truth_of(row)].split()) or "–" for text in texts),
        ]
        for row in rows
    ]
    return table(["score", "found", "missed", "invented", *texts.values()], cells)
