"""Draws docs/overview.png from a finished demo: the images of one study, what the model wrote about them, the verdict.

The study is the first of the test split with both views and two findings or more of which the model found one or more.
`python docs/overview.py runs/demo`
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.report.verdict import plain
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.inference.views import pack_views
from hf_cxr.utils.plots import INK, MAIN, MUTED, QUIET, STYLE, THIRD

SHOWN = {  # of the report's baselines
    "most_frequent": "most frequent sentence",
    "best_constant": "best constant sentence",
    "nearest_pixels": "nearest training study",
}


def draw(run: Path, out: Path) -> None:
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    predictions = {row["uid"]: row for row in map(json.loads, (run / "predictions.jsonl").open(encoding="utf-8"))}
    study = next(
        row
        for row in load_prepared(run / "dataset")["test"]
        if row["frontal"] and row["lateral"] and len(positive_findings(row["impression"])) > 1
        if predictions[row["uid"]]["matched"]
    )
    answer = predictions[study["uid"]]
    verdict = textwrap.fill(plain(report), 48)
    heads = (
        (0.02, "Input", "Both views of one study"),
        (0.36, "Output", "The impression"),
        (0.65, "Verdict", verdict),
    )
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=(12, 3.7))
        for left, head, below in heads:
            figure.text(left, 0.93, f"{head}  →" if head != "Verdict" else head, fontsize=16, weight="bold", va="top")
            figure.text(left, 0.83, below, fontsize=11, color=MAIN if below == verdict else MUTED, va="top")
        images = figure.add_axes((0.02, 0.06, 0.31, 0.68), anchor="NW")
        images.imshow(pack_views(study["frontal"], study["lateral"], size=288))
        images.axis("off")
        words(figure.add_axes((0.36, 0.06, 0.28, 0.68)), answer)
        bars(figure.add_axes((0.83, 0.16, 0.155, 0.58)), report)
        figure.savefig(out, dpi=100, pil_kwargs={"optimize": True})


def words(axis: plt.Axes, answer: dict) -> None:
    """The model's text above the radiologist's, and how their findings agree."""
    axis.axis("off")
    place = 1.0
    shown = (
        ("The model wrote", answer["prediction"], MAIN),
        ("The report of this study says", answer["impression"], INK),
    )
    for title, text, colour in shown:
        axis.text(0, place, title, fontsize=10, color=MUTED, va="top")
        lines = textwrap.wrap(text, 31)
        axis.text(0, place - 0.1, "\n".join(lines), fontsize=11, color=colour, va="top", weight="bold")
        place -= 0.18 + 0.1 * len(lines)
    for kind in ("matched", "missed", "invented"):
        axis.text(0, place, f"{kind}: {', '.join(answer[kind]) or '–'}", fontsize=9.5, color=MUTED, va="top")
        place -= 0.09


def bars(axis: plt.Axes, report: dict) -> None:
    """Finding F1 of the model, of the model with other patients' images, and of baselines."""
    rows = {"the model": report, "… given other patients' images": report["shuffled"]}
    rows |= {f"baseline: {name}": report["baselines"][key] for key, name in SHOWN.items()}
    values = [row["finding_f1_micro"] for row in rows.values()]
    axis.barh(list(rows), values, color=[MAIN, THIRD, *[QUIET] * len(SHOWN)])
    for place, value in enumerate(values):
        axis.text(value + 0.02, place, f"{value:.2f}", va="center", fontsize=9.5)
    axis.set(xlim=(0, 1), xticks=(0, 0.5, 1), xlabel=f"finding F1 on {report['n']} test studies")
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(__file__).with_suffix(".png"))
