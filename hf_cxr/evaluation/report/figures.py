"""The figures of the report page and of the model card; none where there is nothing to draw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hf_cxr.evaluation.report.tables import INPUTS, SCORES, readable
from hf_cxr.utils.plots import BACKGROUND, INK, LINE, MAIN, MUTED, QUIET, THIRD, bare, drawn, png, score, subplots, svg

GAINS = "finding_f1_micro finding_f1_micro_sided normal_accuracy rougeL bleu1 bleu4 exact_match".split()
MOST_FINDINGS = 24
EDGES = (-0.02, 1.02)  # of an axis from 0 to 1
CARD_FIGURES = {
    "image_shuffle": "Scores of the model beside those with the images permuted among the patients",
    "findings": "F1 of each finding with its 95 % interval",
    "reliability": "Score against the share of texts that were right, before and after calibration",
    "risk": "Share of wrong texts among those answered, by the share of studies answered",
}
"""Figures of a model card → what is to be seen."""


def draw(report: Mapping[str, Any]) -> dict[str, Markup]:
    """Name → SVG of every figure that the report has numbers for."""
    return {name: svg(figure, name) for name, figure in drawn(MAKERS, report)}


def draw_png(report: Mapping[str, Any]) -> dict[str, bytes]:
    """Name → PNG of the figures of a card; no image and no text of a patient is on them."""
    makers = {name: make for name, make in MAKERS.items() if name in CARD_FIGURES}
    return {name: png(figure) for name, figure in drawn(makers, report)}


def _rows(height: float, labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A row for each label over a common axis of scores."""
    figure, axes = subplots(0.45 + height * len(labels))
    axes.set_yticks(range(len(labels)), labels)
    axes.set(ylim=(len(labels) - 0.4, -0.6), xlim=EDGES)
    bare(axes, "x")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return figure, axes


def _image_shuffle(report: Mapping[str, Any]) -> Figure | None:
    """Real (a dot) and shuffled (a ring around it where they are equal), joined by a line, for each score."""
    if not report["shuffled"]:
        return None
    shown = readable(report, GAINS)
    figure, axes = _rows(0.33, [SCORES[name] for name in shown])
    for place, name in enumerate(shown):
        real, blind = report[name], report["shuffled"][name]
        axes.plot([blind, real], [place, place], color=LINE, linewidth=4, solid_capstyle="round", zorder=1)
        if interval := report["ci95"].get(name):
            axes.plot(interval, [place, place], color=MAIN, linewidth=1.4, zorder=2)
        axes.plot([real], [place], "o", color=MAIN, markersize=5.5, label="right images", zorder=3)
        ring: dict[str, Any] = {"markersize": 10, "markerfacecolor": "none", "markeredgewidth": 1.6, "zorder": 4}
        axes.plot([blind], [place], "o", color=THIRD, label="other patients' images", **ring)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles[:2], names[:2], loc="outside upper left", ncols=2)
    return figure


def _inputs(report: Mapping[str, Any]) -> Figure | None:
    """Finding F1 by what the model was shown."""
    parts = {name: report["inputs"][name] for name in INPUTS if name in report.get("inputs", {})}
    if not parts or report.get("findings_unread"):
        return None
    figure, axes = _rows(0.36, [INPUTS[name] for name in parts])
    values = [part["finding_f1_micro"] for part in parts.values()]
    colours = [MAIN if name == "both_views" else QUIET for name in parts]
    axes.barh(range(len(parts)), values, height=0.62, color=colours)
    for place, value in enumerate(values):
        colour, side, gap = (BACKGROUND, "right", -0.015) if value > 0.8 else (MUTED, "left", 0.015)
        axes.text(value + gap, place, score(value), va="center", ha=side, color=colour, fontsize=9)
    return figure


def _findings(report: Mapping[str, Any]) -> Figure | None:
    """F1 of each finding that a radiologist stated, with its interval; few studies in grey."""
    rows = sorted(((n, row) for n, row in report["per_finding"].items() if row["n"]), key=lambda item: -item[1]["n"])
    rows = rows[:MOST_FINDINGS]
    if not rows or report.get("findings_unread"):
        return None
    small = {name for name, row in report.get("subgroups", {}).get("finding", {}).items() if row["small"]}
    figure, axes = _rows(0.25, [f"{name} ({row['n']})" for name, row in rows])
    for place, (name, row) in enumerate(rows):
        colour = QUIET if name in small else MAIN
        if row.get("ci95"):
            axes.plot(row["ci95"], [place, place], color=colour, linewidth=2, alpha=0.6, solid_capstyle="round")
        axes.plot([row["f1"]], [place], "o", color=colour, markersize=5.5)
    return figure


def _reliability(report: Mapping[str, Any]) -> Figure | None:
    """Score against the share that came true, before and after calibration."""
    if not (curve := report.get("calibration")):
        return None
    figure, axes = subplots(3.6)
    axes.plot([0, 1], [0, 1], color=LINE, linewidth=1.2)
    for key, colour, label in (("before", THIRD, "plain probability"), ("after", MAIN, "score")):
        points = curve[f"reliability_{key}"]
        x, y = ([point[name] for point in points] for name in ("mean_score", "rate"))
        for point, value in zip(points, x, strict=True):
            axes.plot([value, value], point["ci95"], color=colour, linewidth=1.2, alpha=0.5)
        axes.plot(x, y, "o-", color=colour, markersize=5, linewidth=1.2, label=label)
    axes.set(xlabel="score of the text", ylabel="share of right texts", xlim=EDGES, ylim=EDGES, aspect="equal")
    bare(axes, "both")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _risk(report: Mapping[str, Any]) -> Figure | None:
    """Share of wrong texts among those answered, by the share that is answered."""
    if not (curve := report.get("calibration")):
        return None
    figure, axes = subplots(3.6)
    points = curve["risk_coverage"]
    coverage, risk = ([point[name] for point in points] for name in ("coverage", "risk"))
    axes.plot(coverage, risk, color=MAIN, linewidth=2)
    axes.plot([0, 1], [curve["aurc_random"]] * 2, color=QUIET, linewidth=1.2)
    high = curve["aurc_random"] > 0.9
    axes.text(0, curve["aurc_random"], " declining at random", color=MUTED, fontsize=9, va="top" if high else "bottom")
    axes.plot(coverage[-1:], risk[-1:], "o", color=INK, markersize=5)
    axes.set(xlabel="share of studies answered", ylabel="share of wrong texts among them", xlim=EDGES, ylim=EDGES)
    bare(axes, "both")
    return figure


MAKERS = {make.__name__[1:]: make for make in (_image_shuffle, _inputs, _findings, _reliability, _risk)}
