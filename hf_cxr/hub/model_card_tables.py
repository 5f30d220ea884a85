"""What stands in a model card beside its words: tables of scores and findings, counts, and where the model fails.

Everything is made of a run's `report.json`, `predictions.jsonl` and weights; the card itself is put together in
`hf_cxr.hub.model_card`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open

from hf_cxr.evaluation.baselines import BLIND
from hf_cxr.evaluation.report import bounds, table
from hf_cxr.evaluation.report.page import choose
from hf_cxr.metrics import SCALARS
from hf_cxr.utils.plots import score

FAILURES = 6  # of each kind
NAMES = {
    **{f"bleu{order}": f"BLEU-{order}" for order in range(1, 5)},
    "sentence_bleu4": "sentence BLEU-4",
    "legacy_bleu4": "legacy BLEU-4 (without meaning, to read old tables)",
    "rougeL": "ROUGE-L",
    "cider": "CIDEr",
    "exact_match": "exact match",
    "finding_precision_micro": "finding precision",
    "finding_recall_micro": "finding recall",
    "finding_f1_micro": "finding F1 (micro)",
    "finding_f1_macro": "finding F1 (macro)",
    "finding_f1_micro_uncertain": "finding F1, possible findings counted",
    "finding_f1_micro_sided": "finding F1, sides told apart",
    "finding_f1_micro_located": "finding F1, sides and places told apart",
    "normal_accuracy": "normal or abnormal, accuracy",
    "length_ratio": "length written / length of the references",
}
"""Scalars of a report in words."""


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


def every_score(report: Mapping[str, Any]) -> str:
    """A table of every scalar with its interval, beside shuffled images and the best guess without any image."""
    blind = [report["baselines"][name] for name in BLIND if name in report["baselines"]]
    rows = []
    for name in SCALARS:
        best = max((scores[name] for scores in blind), default=None) if name != "length_ratio" else None
        values = score(report[name]), bounds(report["ci95"].get(name)), score(report["shuffled"].get(name))
        rows.append([NAMES.get(name, name), *values, score(best)])
    return table(["score", "model", "95 % interval", "images shuffled", "best blind guess"], rows)


def finding_table(report: Mapping[str, Any]) -> str:
    """A table of every finding, the commonest first, with the F1 of the same texts permuted at random."""
    rows = []
    for name, row in sorted(report["per_finding"].items(), key=lambda item: -item[1]["n"]):
        shares = (_two(row[key]) for key in ("precision", "recall", "f1"))
        rows.append([name, str(row["n"]), *shares, bounds(row.get("ci95")), _two(chance_f1(row, report["n"]))])
    return table(["finding", "n", "precision", "recall", "F1", "95 % interval", "F1 by chance"], rows)


def chance_f1(row: Mapping[str, Any], studies: int) -> float | None:
    """Mean F1 of a finding over all ways of dealing the same texts to the studies: 2·n·s / (N·(n + s)), where s of the
    N texts state it and it is true of n. `None` where s does not follow from the report."""
    n = row["n"]
    if row["precision"] is None or not n:  # never stated, or never true
        return 0.0
    if not row["precision"]:
        return None
    stated = row["recall"] * n / row["precision"]
    return 2 * n * stated / (studies * (n + stated))


def _two(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def subgroups_table(report: Mapping[str, Any]) -> str:
    """Scores by kind of study; kinds of few studies are left out. Empty where none is left."""
    rows = [
        [
            name,
            str(row["n"]),
            score(row["finding_f1_micro"]),
            bounds(row["ci95"].get("finding_f1_micro")),
            score(row["normal_accuracy"]),
            score(row["bleu4"]),
        ]
        for kind in ("findings", "length", "views")
        for name, row in report.get("subgroups", {}).get(kind, {}).items()
        if not row["small"]
    ]
    head = ["studies", "n", "finding F1", "95 % interval", "normal or abnormal", "BLEU-4"]
    return table(head, rows) if rows else ""


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
    texts = {"impression": "the study's text", "prediction": "the model's text"} if show_texts else {}
    cells = [
        [
            f"{row['score']:.2f}",
            *(", ".join(row[kind]) or "–" for kind in ("matched", "missed", "invented")),
            *(" ".join(row[text].split()) or "–" for text in texts),
        ]
        for row in rows
    ]
    return table(["score", "found", "missed", "invented", *texts.values()], cells)
