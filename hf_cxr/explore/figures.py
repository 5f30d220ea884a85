"""The figures and contact sheets of `hf_cxr.explore`: each as a PNG file, and as it stands in the page.

Colours, the style of figures and their two forms are in `hf_cxr.utils.plots`."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any, cast

from datasets import DatasetDict
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont

from hf_cxr.data.study import TEXTS
from hf_cxr.evaluation.report.page import side_by_side
from hf_cxr.explore.counts import VIEWS, Row, image_bytes
from hf_cxr.inference.views import read_radiograph
from hf_cxr.utils.plots import (
    BACKGROUND,
    BASELINES,
    INK,
    LINE,
    MAIN,
    MUTED,
    QUIET,
    SECOND,
    THIRD,
    bare,
    counted,
    data_address,
    drawn,
    number,
    percent,
    png,
    score,
    subplots,
    svg,
)

PANEL = 192
"""Side of one view on a contact sheet in pixels."""
SHEET_BACKGROUND, SHEET_INK = 18, 200


def draw(facts: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write every figure that `facts` has numbers for as PNG into `folder`; returns name → SVG for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    whole = (_preparation, _views, _images, _sizes, _frequent, _findings, _together, _duplicates, _baselines)
    makers: dict[str, Callable[[Any], Figure | None]] = {make.__name__[1:]: make for make in whole} | {
        "length_words": lambda facts: _lengths(facts, "words"),
        "length_sentences": lambda facts: _lengths(facts, "sentences"),
        "words": lambda facts: _ranked(facts["words"]["words"]),
        "bigrams": lambda facts: _ranked(facts["words"]["bigrams"]),
    }
    images: dict[str, str] = {}
    for name, figure in drawn(makers, facts):
        (folder / f"{name}.png").write_bytes(png(figure))
        images[name] = svg(figure, name)
    return images


# --- kinds of figures ---------------------------------------------------------------------------------------------


def _bars(labels: Sequence[str], parts: Mapping[str, tuple[Sequence[float], str]], notes: Sequence[str]) -> Figure:
    """Horizontal bars from top to bottom, each of one or several parts (name → values, colour), a note at the end."""
    legend = len(parts) > 1
    figure, axes = subplots(0.25 + 0.27 * len(labels) + 0.35 * legend)
    places = range(len(labels))
    ends = [0.0] * len(labels)
    for name, (values, colour) in parts.items():
        axes.barh(places, values, left=ends, height=0.68, color=colour, label=name)
        ends = [end + value for end, value in zip(ends, values, strict=True)]
    longest = max(ends) or 1
    for place, end, note in zip(places, ends, notes, strict=True):
        axes.text(end + 0.012 * longest, place, note, va="center", ha="left", color=MUTED, fontsize=9)
    axes.set_yticks(places, labels)
    width = longest * (1.06 + 0.026 * max(map(len, notes), default=0))
    axes.set(xticks=[], xlim=(0, width), ylim=(len(labels) - 0.4, -0.6))
    bare(axes)
    if legend:
        figure.legend(loc="outside upper left", ncols=len(parts))
    return figure


# --- the figures --------------------------------------------------------------------------------------------------


def _preparation(facts: Mapping[str, Any]) -> Figure | None:
    steps = facts["preparation"]["steps"]
    if not steps:
        return None
    kept, dropped = [step["kept"] for step in steps], [step["dropped"] for step in steps]
    notes = [number(k) + (f"  (−{number(d)})" if d else "") for k, d in zip(kept, dropped, strict=True)]
    return _bars([step["step"] for step in steps], {"kept": (kept, MAIN), "left out": (dropped, THIRD)}, notes)


def _views(facts: Mapping[str, Any]) -> Figure:
    by_split = facts["views"]["by_split"]
    colours = {"both": MAIN, "frontal only": SECOND, "lateral only": THIRD, "no view": QUIET}
    totals = {split: sum(counts.values()) for split, counts in by_split.items()}
    parts = {
        name: ([100 * by_split[split][name] / totals[split] for split in by_split], colour)
        for name, colour in colours.items()
        if facts["views"][name]
    }
    notes = [
        f"{percent(counts['both'] / totals[split])} both, n = {number(totals[split])}"
        for split, counts in by_split.items()
    ]
    return _bars(list(by_split), parts, notes)


def _images(facts: Mapping[str, Any]) -> Figure:
    counts, n = facts["images"]["counts"], facts["images"]["n"]
    labels = [counted(images, "image") for images, _ in counts]
    notes = [f"{number(studies)}  ({percent(studies / n)})" for _, studies in counts]
    return _bars(labels, {"studies": ([studies for _, studies in counts], MAIN)}, notes)


def _sizes(facts: Mapping[str, Any]) -> Figure | None:
    sizes = {view: facts["sizes"][view] for view in VIEWS if facts["sizes"][view]["n"]}
    if all(len(size["shapes"]) == 1 for size in sizes.values()):
        return None
    figure, axes = subplots(2.6)
    for (view, size), colour in zip(sizes.items(), (MAIN, THIRD), strict=False):
        shapes, shares = [shape for shape, _ in size["shapes"]], [count / size["n"] for _, count in size["shapes"]]
        axes.vlines(shapes, 0, shares, color=colour, linewidth=1, alpha=0.35)
        axes.plot(shapes, shares, "o", color=colour, markersize=4.5, label=f"{view}, n = {number(size['n'])}")
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set(xlabel="width / height (1: square)", ylim=0)
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    bare(axes, "y")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _lengths(facts: Mapping[str, Any], unit: str) -> Figure:
    """One histogram a section, over a common axis that ends where 99.5 % of the texts do."""
    texts = {section: facts["text"][section] for section in TEXTS if facts["text"][section]["n"]}
    figure, grid = subplots(0.5 + 1.15 * len(texts), nrows=len(texts), sharex=True, squeeze=False)
    cast(Any, figure.get_layout_engine()).set(h_pad=0.09)
    ends = []
    for axes, (section, text) in zip(grid[:, 0], texts.items(), strict=True):
        numbers = text[unit]
        values, counts = zip(*numbers["counts"], strict=True)
        seen = zip(values, accumulate(counts), strict=True)
        ends.append(next(value for value, texts_seen in seen if texts_seen >= 0.995 * text["n"]))
        axes.bar(values, counts, width=0.85, color=MAIN)
        axes.axvline(numbers["p95"] + 0.5, color=THIRD, linewidth=1.2)
        axes.set_title(f"{section}, n = {number(text['n'])}", loc="left", fontsize=9.5, color=INK, pad=4)
        note = f"median {numbers['median']:g}, 95 % have at most {numbers['p95']}"
        axes.set_title(note, loc="right", fontsize=9, color=MUTED, pad=4)
        axes.set_yticks([])
        bare(axes)
        axes.axhline(0, color=LINE, linewidth=1)
    grid[-1, 0].set(xlabel=f"{unit} per text", xlim=(0.4 if unit == "sentences" else 0, max(ends) + 1.5))
    grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _frequent(facts: Mapping[str, Any]) -> Figure:
    frequent = facts["frequent"]
    ranks, shares = zip(*frequent["curve"], strict=True)
    half = frequent["cover half"]
    figure, axes = subplots(2.9)
    axes.plot(ranks, shares, color=MAIN, linewidth=2)
    axes.plot([half], [frequent["half covers"]], "o", color=THIRD, markersize=6)
    axes.annotate(
        f"the {number(half)} most frequent\ncover half of the studies" if half > 1 else "one text covers half",
        (half, frequent["half covers"]),
        (8, -8),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=INK,
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: number(value))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: percent(value))
    across = f"{facts['dataset']['section']} texts by frequency, of {number(frequent['distinct'])} different ones"
    axes.set(ylim=(0, 1.03), xlabel=across, ylabel=f"share of {number(frequent['n'])} studies")
    bare(axes, "both")
    return figure


def _ranked(rows: Sequence[Sequence[Any]]) -> Figure | None:
    if not rows:
        return None
    counts = [count for _, count in rows]
    return _bars([name for name, _ in rows], {"count": (counts, MAIN)}, [number(count) for count in counts])


def _findings(facts: Mapping[str, Any], top: int = 20) -> Figure | None:
    rows = facts["findings"]["rows"][:top]
    if not rows or facts["findings_unread"]:
        return None
    parts = {
        "stated as present": ([row["positive"] for row in rows], MAIN),
        "stated as possible": ([row["uncertain"] for row in rows], SECOND),
    }
    n = facts["findings"]["n"]
    notes = [f"{number(row['positive'])}  ({percent(row['positive'] / n)})" for row in rows]
    return _bars([row["finding"] for row in rows], parts, notes)


def _together(facts: Mapping[str, Any]) -> Figure | None:
    names, counts = (facts["findings"]["together"][key] for key in ("findings", "counts"))
    if len(names) < 2 or facts["findings_unread"]:
        return None
    figure, axes = subplots(1.6 + 0.27 * len(names))
    largest = max(count / row[y] for y, row in enumerate(counts) for x, count in enumerate(row) if x != y) or 1
    for y, row in enumerate(counts):
        for x, count in enumerate(row):
            if not count:
                continue
            strength = 0.06 + 0.94 * count / row[y] / largest
            colour, alpha = (LINE, 1.0) if x == y else (MAIN, strength)
            axes.add_patch(Rectangle((x - 0.47, y - 0.47), 0.94, 0.94, facecolor=colour, alpha=alpha))
            ink = BACKGROUND if x != y and strength > 0.8 else INK
            axes.text(x, y, str(count), ha="center", va="center", fontsize=8, color=ink)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="left", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", labelcolor=INK)
    axes.set(xlim=(-0.5, len(names) - 0.5), ylim=(len(names) - 0.5, -0.5))
    bare(axes)
    return figure


def _duplicates(facts: Mapping[str, Any]) -> Figure | None:
    overlap = {split: counts for split, counts in facts["duplicates"]["text"].items() if counts["studies"]}
    if not overlap or not facts["n"]["splits"].get("train"):
        return None
    same, near = ([100 * part[kind] / part["studies"] for part in overlap.values()] for kind in ("same", "near"))
    new = [100 - a - b for a, b in zip(same, near, strict=True)]
    parts = {"the same text": (same, THIRD), "nearly the same": (near, QUIET), "new": (new, MAIN)}
    notes = [
        f"{percent(part['same'] / part['studies'])} the same, n = {number(part['studies'])}"
        for part in overlap.values()
    ]
    return _bars(list(overlap), parts, notes)


def _baselines(facts: Mapping[str, Any]) -> Figure | None:
    rows = facts["baselines"]["rows"]
    if not rows:
        return None
    scores = {"bleu4": "BLEU-4", "rougeL": "ROUGE-L", "finding_f1_micro": "finding F1"}
    if facts["findings_unread"]:
        del scores["finding_f1_micro"]
    figure, grid = subplots(0.6 + 0.6 * len(rows), ncols=len(scores), sharex=True, sharey=True)
    cast(Any, figure.get_layout_engine()).set(wspace=0.1)
    for axes, (key, title) in zip(grid, scores.items(), strict=True):
        for y, row in enumerate(rows):
            if row["ci95"]:
                axes.plot(row["ci95"][key], [y, y], color=QUIET, linewidth=4, solid_capstyle="round")
            axes.plot([row[key]], [y], "o", color=MAIN, markersize=4.5)
            axes.text(min(max(row[key], 0.15), 0.85), y - 0.19, score(row[key]), ha="center", va="bottom", fontsize=9)
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        axes.set(xlim=(-0.06, 1.06), ylim=(len(rows) - 0.6, -0.7))
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks(range(len(rows)), [textwrap.fill(BASELINES[row["name"]], 20) for row in rows])
        bare(axes, "x")
    return figure


# --- contact sheets -----------------------------------------------------------------------------------------------


def contact_sheets(
    sheets: Sequence[Mapping[str, Any]], shown: Sequence[Sequence[Row]], dataset: DatasetDict, folder: Path
) -> list[list[str]]:
    """Write a PNG of each sheet into `folder`; returns for each the canvases of its studies as data addresses."""
    addresses = []
    for sheet, rows in zip(sheets, shown, strict=True):
        canvases = [_canvas(row, dataset) for row in rows]
        if canvases:
            path = folder / f"sheet_{re.sub(r'[^a-z]+', '_', sheet['finding'])}.png"
            _sheet(canvases, [row.uid for row in rows]).save(path, optimize=True)
        addresses.append([data_address(canvas) for canvas in canvases])
    return addresses


def _canvas(row: Row, dataset: DatasetDict) -> Image.Image:
    """Both views of a study side by side, read from the dataset only now."""
    record = dataset[row.split].with_format("arrow")[row.index].to_pylist()[0]
    frontal, lateral = (record[view] and read_radiograph(image_bytes(record[view])) for view in VIEWS)
    return side_by_side(frontal, lateral, PANEL)


def _sheet(canvases: Sequence[Image.Image], uids: Sequence[str], columns: int = 4) -> Image.Image:
    gap, caption = 10, 22
    columns = min(columns, len(canvases))
    lines = -(-len(canvases) // columns)
    across, down = 2 * PANEL + gap, PANEL + caption + gap
    sheet = Image.new("L", (columns * across + gap, lines * down + gap), SHEET_BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for place, (canvas, uid) in enumerate(zip(canvases, uids, strict=True)):
        left, top = gap + place % columns * across, gap + place // columns * down
        sheet.paste(canvas, (left, top))
        middle = (left, top + PANEL + caption // 2 + 1)
        draw.text(middle, uid, fill=SHEET_INK, anchor="lm", font=ImageFont.load_default(13))
    return sheet
