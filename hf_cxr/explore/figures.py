"""The figures and contact sheets of `hf_cxr.explore`.

Each figure is drawn once and kept twice: as a PNG on white paper, and as an SVG whose colours are the page's own
(`var(--ink)` …), so that it follows the page from light to dark. The colours are Okabe and Ito's, which colour-blind
people can tell apart.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import matplotlib
from datasets import DatasetDict
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator, NullLocator
from PIL import Image, ImageDraw, ImageFont, ImageOps

from hf_cxr.explore.counts import SECTIONS, VIEWS, Row, image_bytes
from hf_cxr.inference.views import fit_panel, read_radiograph
from hf_cxr.utils.plots import (
    BACKGROUND,
    INK,
    LINE,
    MAIN,
    MUTED,
    QUIET,
    SECOND,
    STYLE,
    THIRD,
    bare,
    data_address,
    subplots,
    svg,
)

BASELINE_LABELS = {
    "most_frequent": "most frequent\ntraining impression",
    "best_constant": "constant of\nbest BLEU-4",
    "length_matched": "constant of\nmatched length",
    "random_train": "random training\nimpression",
}
PANEL = 192
"""Side of one view on a contact sheet in pixels."""
SHEET_BACKGROUND, SHEET_INK = 18, 200


def draw(facts: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write every figure that `facts` has numbers for as PNG into `folder`; returns name → SVG for the page."""
    folder.mkdir(parents=True, exist_ok=True)
    makers: dict[str, Callable[[Mapping[str, Any]], Figure | None]] = {
        "preparation": _preparation,
        "views": _views,
        "images": _images,
        "sizes": _sizes,
        "length_words": lambda facts: _lengths(facts, "words"),
        "length_sentences": lambda facts: _lengths(facts, "sentences"),
        "frequent": _frequent,
        "words": lambda facts: _ranked(facts["words"]["words"]),
        "bigrams": lambda facts: _ranked(facts["words"]["bigrams"]),
        "findings": _findings,
        "together": _together,
        "duplicates": _duplicates,
        "baselines": _baselines,
    }
    drawn = {}
    for name, make in makers.items():
        with matplotlib.rc_context(cast(Any, STYLE)):
            figure = make(facts)
            if figure is not None:
                FigureCanvasAgg(figure)
                stream = io.BytesIO()
                figure.savefig(stream, dpi=160, facecolor=BACKGROUND)
                with Image.open(stream) as image:
                    ImageOps.expand(image.convert("RGB"), 20, BACKGROUND).save(folder / f"{name}.png", optimize=True)
                drawn[name] = svg(figure, name)
    return drawn


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
    axes.set_xticks([])
    axes.set_xlim(0, longest * (1.06 + 0.026 * max(map(len, notes), default=0)))
    axes.set_ylim(len(labels) - 0.4, -0.6)
    bare(axes)
    if legend:
        figure.legend(loc="outside upper left", ncols=len(parts))
    return figure


def _number(value: float) -> str:
    return f"{value:,.0f}"


# --- the figures --------------------------------------------------------------------------------------------------


def _preparation(facts: Mapping[str, Any]) -> Figure | None:
    steps = facts["preparation"]["steps"]
    if not steps:
        return None
    kept, dropped = [step["kept"] for step in steps], [step["dropped"] for step in steps]
    notes = [_number(k) + (f"  (−{_number(d)})" if d else "") for k, d in zip(kept, dropped, strict=True)]
    return _bars([step["step"] for step in steps], {"kept": (kept, MAIN), "left out here": (dropped, THIRD)}, notes)


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
        f"{_percent(counts['both'] / totals[split])} both, n = {_number(totals[split])}"
        for split, counts in by_split.items()
    ]
    return _bars(list(by_split), parts, notes)


def _images(facts: Mapping[str, Any]) -> Figure:
    counts, n = facts["images"]["counts"], facts["images"]["n"]
    labels = [f"{images} image{'s' * (images != 1)}" for images, _ in counts]
    notes = [f"{_number(studies)}  ({_percent(studies / n)})" for _, studies in counts]
    return _bars(labels, {"studies": ([studies for _, studies in counts], MAIN)}, notes)


def _sizes(facts: Mapping[str, Any]) -> Figure | None:
    sizes = {view: facts["sizes"][view] for view in VIEWS if facts["sizes"][view]["n"]}
    if all(len(size["shapes"]) == 1 for size in sizes.values()):
        return None
    figure, axes = subplots(2.6)
    for (view, size), colour in zip(sizes.items(), (MAIN, THIRD), strict=False):
        shapes, shares = [shape for shape, _ in size["shapes"]], [count / size["n"] for _, count in size["shapes"]]
        axes.vlines(shapes, 0, shares, color=colour, linewidth=1, alpha=0.35)
        axes.plot(shapes, shares, "o", color=colour, markersize=4.5, label=f"{view}, n = {_number(size['n'])}")
    axes.axvline(1, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set_xlabel("width / height (1: square)")
    axes.yaxis.set_major_formatter(lambda value, _: _percent(value))
    axes.set_ylim(0)
    bare(axes, "y")
    figure.legend(loc="outside upper left", ncols=2)
    return figure


def _lengths(facts: Mapping[str, Any], unit: str) -> Figure:
    """One histogram a section, over a common axis that ends where 99.5 % of the texts do."""
    texts = {section: facts["text"][section] for section in SECTIONS if facts["text"][section]["n"]}
    figure, grid = subplots(0.5 + 1.15 * len(texts), nrows=len(texts), sharex=True, squeeze=False)
    cast(Any, figure.get_layout_engine()).set(h_pad=0.09)
    ends = []
    for axes, (section, text) in zip(grid[:, 0], texts.items(), strict=True):
        numbers = text[unit]
        seen = 0
        for value, count in numbers["counts"]:
            seen += count
            if seen >= 0.995 * text["n"]:
                ends.append(value)
                break
        values, counts = zip(*numbers["counts"], strict=True)
        axes.bar(values, counts, width=0.85, color=MAIN)
        axes.axvline(numbers["p95"] + 0.5, color=THIRD, linewidth=1.2)
        axes.set_title(f"{section}, n = {_number(text['n'])}", loc="left", fontsize=9.5, color=INK, pad=4)
        note = f"median {numbers['median']:g}, 95 % have at most {numbers['p95']}"
        axes.set_title(note, loc="right", fontsize=9, color=MUTED, pad=4)
        axes.set_yticks([])
        bare(axes)
        axes.axhline(0, color=LINE, linewidth=1)
    grid[-1, 0].set_xlim(0.4 if unit == "sentences" else 0, max(ends) + 1.5)
    grid[-1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    grid[-1, 0].set_xlabel(f"{unit} a text")
    return figure


def _frequent(facts: Mapping[str, Any]) -> Figure:
    frequent = facts["frequent"]
    ranks, shares = zip(*frequent["curve"], strict=True)
    half = frequent["cover half"]
    figure, axes = subplots(2.9)
    axes.plot(ranks, shares, color=MAIN, linewidth=2)
    axes.plot([half], [frequent["half covers"]], "o", color=THIRD, markersize=6)
    axes.annotate(
        f"the {_number(half)} most frequent\ncover half of the studies" if half > 1 else "one text covers half",
        (half, frequent["half covers"]),
        (8, -8),
        textcoords="offset points",
        va="top",
        fontsize=9,
        color=INK,
    )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: _number(value))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(lambda value, _: _percent(value))
    axes.set_ylim(0, 1.03)
    axes.set_xlabel(
        f"{facts['dataset']['section']} texts by frequency, of {_number(frequent['distinct'])} different ones"
    )
    axes.set_ylabel(f"share of {_number(frequent['n'])} studies")
    bare(axes, "both")
    return figure


def _ranked(rows: Sequence[Sequence[Any]]) -> Figure | None:
    if not rows:
        return None
    counts = [count for _, count in rows]
    return _bars([name for name, _ in rows], {"count": (counts, MAIN)}, [_number(count) for count in counts])


def _findings(facts: Mapping[str, Any], top: int = 20) -> Figure | None:
    rows = facts["findings"]["rows"][:top]
    if not rows:
        return None
    parts = {
        "stated as present": ([row["positive"] for row in rows], MAIN),
        "held possible": ([row["uncertain"] for row in rows], SECOND),
    }
    n = facts["findings"]["n"]
    notes = [f"{_number(row['positive'])}  ({_percent(row['positive'] / n)})" for row in rows]
    return _bars([row["finding"] for row in rows], parts, notes)


def _together(facts: Mapping[str, Any]) -> Figure | None:
    names, counts = (facts["findings"]["together"][key] for key in ("findings", "counts"))
    if len(names) < 2:
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
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    bare(axes)
    return figure


def _duplicates(facts: Mapping[str, Any]) -> Figure | None:
    overlap = {split: counts for split, counts in facts["duplicates"]["text"].items() if counts["studies"]}
    if not overlap or not facts["n"]["splits"].get("train"):
        return None
    names = {"the same text": THIRD, "all but the same": QUIET, "new": MAIN}
    same = [100 * counts["same"] / counts["studies"] for counts in overlap.values()]
    near = [100 * counts["near"] / counts["studies"] for counts in overlap.values()]
    new = [100 - a - b for a, b in zip(same, near, strict=True)]
    parts = {name: (part, names[name]) for name, part in zip(names, (same, near, new), strict=True)}
    notes = [
        f"{share:.0f} % the same, n = {_number(c['studies'])}" for share, c in zip(same, overlap.values(), strict=True)
    ]
    return _bars(list(overlap), parts, notes)


def _baselines(facts: Mapping[str, Any]) -> Figure | None:
    rows = facts["baselines"]["rows"]
    if not rows:
        return None
    scores = {"bleu4": "BLEU-4", "rougeL": "ROUGE-L", "finding_f1_micro": "finding F1"}
    figure, grid = subplots(0.5 + 0.6 * len(rows), ncols=len(scores), sharex=True, sharey=True)
    longest = max(max([row[key], *row["ci95"].get(key, ())]) for row in rows for key in scores) or 1
    for axes, (key, title) in zip(grid, scores.items(), strict=True):
        for y, row in enumerate(rows):
            if row["ci95"]:
                axes.plot(row["ci95"][key], [y, y], color=QUIET, linewidth=4, solid_capstyle="round")
            axes.plot([row[key]], [y], "o", color=MAIN, markersize=6)
            axes.text(max(row[key], 0.07 * longest), y - 0.19, f"{row[key]:.3f}", ha="center", va="bottom", fontsize=9)
        axes.axvline(0, color=LINE, linewidth=1, zorder=0)
        axes.set_title(title, loc="left", fontsize=9.5, color=INK)
        axes.set_xlim(-0.09 * longest, 1.15 * longest)
        axes.set_xticks([])
        axes.set_ylim(len(rows) - 0.6, -0.7)
        axes.set_yticks(range(len(rows)), [BASELINE_LABELS.get(row["name"], row["name"]) for row in rows])
        bare(axes)
    return figure


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if share >= 0.095 or not share else f"{100 * share:.1f} %"


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
    """Both views of a study side by side, read from the dataset only now; a missing view is said to be missing."""
    canvas = Image.new("L", (2 * PANEL, PANEL))
    record = dataset[row.split].with_format("arrow")[row.index].to_pylist()[0]
    for view, left in zip(VIEWS, (0, PANEL), strict=True):
        if record[view] is None:
            place = (left + PANEL // 2, PANEL // 2)
            ImageDraw.Draw(canvas).text(place, f"no {view} view", fill=130, anchor="mm", font=_font(13))
        else:
            canvas.paste(fit_panel(read_radiograph(image_bytes(record[view])), PANEL), (left, 0))
    return canvas


def _sheet(canvases: Sequence[Image.Image], uids: Sequence[str], columns: int = 4) -> Image.Image:
    gap, caption = 10, 22
    columns = min(columns, len(canvases))
    lines = -(-len(canvases) // columns)
    across, down = 2 * PANEL + gap, PANEL + caption + gap
    sheet = Image.new("L", (columns * across + gap, lines * down + gap), SHEET_BACKGROUND)
    for number, (canvas, uid) in enumerate(zip(canvases, uids, strict=True)):
        left, top = gap + number % columns * across, gap + number // columns * down
        sheet.paste(canvas, (left, top))
        place = (left, top + PANEL + caption // 2 + 1)
        ImageDraw.Draw(sheet).text(place, uid, fill=SHEET_INK, anchor="lm", font=_font(13))
    return sheet


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
