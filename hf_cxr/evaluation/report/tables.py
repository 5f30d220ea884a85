"""The report as Markdown: the score table that cards, the command line and the README show, and the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hf_cxr.utils.plots import BASELINES, NBSP, score

COLUMNS = {
    "bleu1": "BLEU-1",
    "bleu4": "BLEU-4",
    "rougeL": "ROUGE-L",
    "cider": "CIDEr",
    "finding_f1_micro": "finding F1 (micro)",
    "finding_f1_macro": "finding F1 (macro)",
}
INPUTS = {
    "both_views": "both views",
    "frontal_only": "frontal view alone",
    "lateral_only": "lateral view alone",
    "mean_image": "the mean training image",
}


def baselines(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Row name → scores of everything that stands beside the model, in the order of the table."""
    beside = {"model, images shuffled": report["shuffled"]}
    beside |= {f"baseline: {BASELINES.get(name, name)}": scores for name, scores in report["baselines"].items()}
    beside["oracle: the commonest text with the true findings"] = report.get("oracle", {})
    return {name: scores for name, scores in beside.items() if scores}


def score_table(report: Mapping[str, Any]) -> str:
    """A Markdown table: the model, itself with shuffled images, every baseline and the label oracle, side by side."""
    rows = {"**model**": report} | baselines(report)
    return table(
        ["", *COLUMNS.values()],
        [[name, *(score(scores.get(key)) for key in COLUMNS)] for name, scores in rows.items()],
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bounds(interval: Sequence[float] | None, sign: bool = False) -> str:
    """[0.1, 0.2] → "0.100 to 0.200"."""
    form = "+.3f" if sign else ".3f"
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else "–"


def p_value(p: float | None) -> str:
    """A p-value as it is read: nothing below what 1,000 samples can tell."""
    return "–" if p is None else f"<{NBSP}0.005" if p < 0.005 else f"{p:.3f}"


def counted(n: int, one: str, many: str) -> str:
    """(1, "study", "studies") → "1 study"."""
    return f"{n:,} {one if n == 1 else many}"


def report_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page of Markdown."""
    modal = " ".join(report["modal_output"].replace("`", " ").split()) or "(nothing)"
    parts = [
        f"# {report['verdict']}",
        f"{counted(report['n'], 'study', 'studies')}. Research use only, not for diagnosis.",
        score_table(report),
        f"{counted(report['distinct_outputs'], 'distinct output', 'distinct outputs')}; the commonest goes to "
        f"{report['modal_share']:.0%} of the studies: `{modal}`",
    ]
    if report["ci95"]:
        head = ["score", "model", "95 % interval", "gain over shuffled images", "95 % interval", "p"]
        rows = [
            [
                name,
                score(report[name]),
                bounds(report["ci95"].get(name)),
                f"{report['image_gain'][name]:+.3f}",
                bounds(report["image_gain_ci95"].get(name), sign=True),
                p_value(report["image_gain_p"].get(name)),
            ]
            for name in report["image_gain"]
        ]
        parts += ["## Every score", table(head, rows)]
    if report.get("inputs"):
        rows = [
            [INPUTS[name], str(part["n"]), *(score(part[key]) for key in COLUMNS)]
            for name in INPUTS
            if (part := report["inputs"].get(name))
        ]
        parts += ["## What the model was shown", table(["", "n", *COLUMNS.values()], rows)]
    rows = [
        [name, str(row["n"]), *(score(row[key]) for key in ("precision", "recall", "f1")), bounds(row.get("ci95"))]
        for name, row in sorted(report["per_finding"].items(), key=lambda item: -item[1]["n"])
    ]
    parts += ["## Findings", table(["finding", "n", "precision", "recall", "F1", "95 % interval"], rows)]
    for kind, group in report.get("subgroups", {}).items():
        if kind != "finding":  # told above
            rows = [
                [
                    f"{name}{' (few)' if row['small'] else ''}",
                    str(row["n"]),
                    *(score(row[key]) for key in ("bleu4", "finding_f1_micro")),
                    bounds(row["ci95"].get("finding_f1_micro")),
                ]
                for name, row in group.items()
            ]
            parts += [f"## By {kind}", table(["", "n", "BLEU-4", "finding F1 (micro)", "95 % interval"], rows)]
    if curve := report.get("calibration"):
        parts += [
            "## Calibration",
            f"A score is meant as the chance that {curve['event']}. Expected calibration error "
            f"{curve['ece_before']:.3f} before, {curve['ece_after']:.3f} after calibration; Brier score "
            f"{curve['brier_before']:.3f} and {curve['brier_after']:.3f} ({curve['n']} studies; fitted on "
            f"{curve['n_fit']}).",
        ]
    return "\n\n".join([*parts, f"Signature: {report['signature']}"]) + "\n"
