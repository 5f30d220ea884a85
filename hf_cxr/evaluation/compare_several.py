"""More than two runs on the same studies: each one's scores, and every pair's difference in the score that decides.
Two runs are compared in `compare`, which reads the runs for both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.evaluation.compare import facts, read_runs, titles
from hf_cxr.evaluation.report.tables import INTERVAL, TITLES, Cells, bounds, p_value, short_name
from hf_cxr.utils.plots import LINE, MAIN, QUIET, bare, counted, drawn, score, subplots, svg, template

TEMPLATE = Path(__file__).parent / "report" / "compare.html"
SIGNIFICANT = 0.05
SAMPLES_A_PAIR = 400
"""Bootstrap samples for each pair, where that makes more than 1,000: no p-value is below 2 / samples, and this times
the number of pairs stays at 0.005."""


def compare_several(folders: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """The comparison of runs on the same studies from their `predictions.jsonl`.

    Returns `{"runs": [name, …], "n", "patients", "section", "score", "scores": {scalar: [{value, ci95}, …]}, "pairs":
    [{a, b, difference, ci95, p, probability, p_holm}, …], "signature", "verdict"}`. `score` is the one that decides
    (`hf_cxr.metrics.gain_score`). Pairs are of this score, a difference is b − a with an interval of its own, and
    `p_holm` is corrected for the number of pairs. All is from the same bootstrap samples of patients. Of runs that
    write several sections, `sections` holds these parts of each.

    Raises what `compare` does, and `ValueError` for a run that is given twice.
    """
    for place, folder in enumerate(folders):
        if Path(folder).resolve() in [Path(other).resolve() for other in folders[:place]]:
            raise ValueError(f"{folder}: is given twice")
    runs = read_runs(folders)
    samples = max(bootstrap.BOOTSTRAP_SAMPLES, SAMPLES_A_PAIR * len(folders) * (len(folders) - 1) // 2)
    parts = {}
    for section, (references, _) in runs.sections.items():
        statistics = runs.statistics(section)
        drawn_scores = bootstrap.run_samples(statistics, runs.patients, seed, samples)
        by = metrics.gain_score(references)
        parts[section] = _part(runs.names, [run.scores() for run in statistics], drawn_scores, by)
    return {"runs": runs.names, **facts(runs, parts, samples, seed)}


def _part(
    names: Sequence[str], scores: Sequence[Mapping[str, float]], samples: bootstrap.Samples, by: str
) -> dict[str, Any]:
    """What one section's texts say."""
    pairs = [
        {"a": names[a], "b": names[b]}
        | bootstrap.difference_of(scores[a][by], scores[b][by], samples[by][:, a], samples[by][:, b])
        for a, b in combinations(range(len(names)), 2)
    ]
    for pair, p in zip(pairs, bootstrap.holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_holm"] = p
    each: dict[str, list[dict[str, Any]]] = {}
    for name, values in samples.items():
        ends = bootstrap.intervals({run: values[:, i] for i, run in enumerate(names)})
        each[name] = [{"value": row[name], "ci95": ends[run]} for run, row in zip(names, scores, strict=True)]
    part = {"score": by, "scores": each, "pairs": pairs}
    return part | {"verdict": _verdict(names, part)}


def _verdict(names: Sequence[str], part: Mapping[str, Any]) -> str:
    values = [row["value"] for row in part["scores"][part["score"]]]
    best = names[int(np.argmax(values))]
    better = [
        (pair["b"], pair["a"]) if pair["difference"] > 0 else (pair["a"], pair["b"])
        for pair in part["pairs"]
        if pair["p_holm"] <= SIGNIFICANT
    ]
    below = [name for name in names if (best, name) in better]
    level = [name for name in names if name != best and name not in below]
    told = f"In {short_name(part['score'])},"
    if not better:
        told += f" no difference between the {len(names)} runs can be told"
    elif not level:
        told += f" {best} is best ({score(max(values))}), better than each of the others"
    else:
        told += f" {best} is highest ({score(max(values))}), not told apart from {_listed(level)}"
        told += f", better than {_listed(below)}" if below else ""
    if others := [f"{high} is better than {low}" for high, low in better if high != best]:
        told += f"; {_listed(others)}"
    return f"{told} (p ≤ {SIGNIFICANT}, Holm-corrected for {counted(len(part['pairs']), 'pair')})."


def _listed(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


# --- to be read ----------------------------------------------------------------------------------------------------


def parts_of(comparison: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name → what is said of a section; a single one has no name."""
    parts = comparison.get("sections")
    return {TITLES.get(name, name): part for name, part in parts.items()} if parts else {"": comparison}


def pair_cells(part: Mapping[str, Any]) -> Cells:
    """A row for each pair of runs."""
    rows = [
        [
            f"{pair['b']} − {pair['a']}",
            f"{pair['difference']:+.3f}",
            bounds(pair["ci95"], sign=True),
            p_value(pair["p"]),
            p_value(pair["p_holm"]),
        ]
        for pair in part["pairs"]
    ]
    return ["runs", f"difference in {short_name(part['score'])}", INTERVAL, "p", "p (Holm)"], rows


def compare_page(comparison: Mapping[str, Any]) -> str:
    """The comparison as one HTML file: no network, no script."""
    drawings, makers = {}, {"runs": _runs, "pairs": _pairs}
    for i, (name, part) in enumerate(parts_of(comparison).items()):
        figures = drawn(makers, {"runs": comparison["runs"], **part})
        drawings[name] = {key: svg(figure, f"{key}{i}") for key, figure in figures}
    return template(TEMPLATE).render(
        comparison=comparison,
        parts=parts_of(comparison),
        drawings=drawings,
        titles=titles,
        bounds=bounds,
        pair_cells=pair_cells,
        short_name=short_name,
        interval=INTERVAL,
        figures={},
        sentences={},
    )


def _runs(part: Mapping[str, Any]) -> Figure:
    """The score that decides of each run, with its interval."""
    return _dots(part["runs"], [(row["value"], row["ci95"], MAIN) for row in part["scores"][part["score"]]])


def _pairs(part: Mapping[str, Any]) -> Figure:
    """The difference of each pair with its interval; in grey those that are not told apart."""
    pairs = part["pairs"]
    dots = [(row["difference"], row["ci95"], MAIN if row["p_holm"] <= SIGNIFICANT else QUIET) for row in pairs]
    figure = _dots([f"{pair['b']} − {pair['a']}" for pair in pairs], dots)
    figure.axes[0].axvline(0, color=LINE, linewidth=1.5, zorder=0)
    return figure


def _dots(labels: Sequence[str], dots: Sequence[tuple[float, Sequence[float], str]]) -> Figure:
    figure, axes = subplots(0.45 + 0.33 * len(labels))
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.4, -0.6)
    bare(axes, "x")
    for place, (value, ends, colour) in enumerate(dots):
        axes.plot(ends, [place, place], color=colour, linewidth=2, solid_capstyle="round")
        axes.plot([value], [place], "o", color=colour, markersize=5.5)
    return figure
