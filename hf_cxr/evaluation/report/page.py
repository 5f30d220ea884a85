"""The report as one HTML file that needs no other: sentences for the figures, and the studies that are shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from hf_cxr.evaluation.calibration import MIN_STUDIES
from hf_cxr.evaluation.report import browse, figures
from hf_cxr.evaluation.report.tables import (
    COLUMNS,
    FITTED_HERE,
    INPUTS,
    INTERVAL,
    SCORES,
    SINGLE_IMAGE,
    TITLES,
    WORDS_ALONE,
    baselines,
    best_blind,
    bounds,
    extra_tables,
    p_value,
    probe_cells,
    readable,
    scope,
    short_name,
    truth_of,
    unread_note,
)
from hf_cxr.evaluation.report.verdict import plain, shortcomings
from hf_cxr.inference.views import fit_panel
from hf_cxr.utils.plots import BASELINES, counted, data_address, percent, score, template

TEMPLATE = Path(__file__).with_name("page.html")
SHOWN = 6
PANEL = 224  # pixels a view
COVERAGES = (1.0, 0.9, 0.8, 0.5, 0.25)
Images = Callable[[int], tuple[Image.Image | None, Image.Image | None]]


def report_page(report: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], images: Images | None = None) -> str:
    """One HTML file: no network, and no script but that of `browse`, without which it can be read as well. `images`
    gives frontal and lateral view of a row by its number."""
    browsed = browse.chosen(rows, lambda index: _study(rows, index, images, browse.QUALITY))
    return template(TEMPLATE).render(
        report=report,
        figures=figures.draw(report),
        sentences=sentences(report),
        weak=bool(shortcomings(report)),
        columns={key: COLUMNS[key] for key in readable(report, COLUMNS)},
        names={key: SCORES[key] for key in readable(report, SCORES)},
        gain=report.get("gain_score", "finding_f1_micro"),
        baselines=baselines(report),
        inputs=INPUTS,
        interval=INTERVAL,
        scope=scope(report),
        titles=TITLES,
        extra_tables=extra_tables(report),
        probes=probe_cells(report),
        bounds=bounds,
        most=figures.MOST_FINDINGS,
        p_value=p_value,
        thresholds=thresholds(report),
        browsed=browsed,
        tags_of=browse.tags_of,
        filters=browse.filters(browsed.values()),
        script=browse.SCRIPT,
        script_hash=browse.SCRIPT_HASH,
        of=len(rows),
        studies={name: [_study(rows, i, images) for i in chosen] for name, chosen in choose(rows).items()},
    )


def choose(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """The numbers of the rows that are shown.

    "worst": most findings missed or invented, of equal ones the surest first. "best": all findings matched, none
    invented, most first; normal studies are not among them.
    """
    known = [i for i, row in enumerate(rows) if "missed" in row]
    wrong = {i: len(rows[i]["missed"]) + len(rows[i]["invented"]) for i in known}
    sure = [row.get("score", 0.0) for row in rows]
    worst = sorted((i for i in known if wrong[i]), key=lambda i: (-wrong[i], -sure[i], rows[i]["uid"]))
    right = (i for i in known if not wrong[i] and rows[i]["matched"])
    best = sorted(right, key=lambda i: (-len(rows[i]["matched"]), -sure[i], rows[i]["uid"]))
    return {"worst": worst[:SHOWN], "best": best[:SHOWN]}


def _study(rows: Sequence[Mapping[str, Any]], index: int, images: Images | None, quality: int = 85) -> dict[str, Any]:
    views = images(index) if images else (None, None)
    row = rows[index]
    texts = {f", {name}": (part["reference"], part["prediction"]) for name, part in row.get("sections", {}).items()}
    return dict(row) | {
        "texts": texts or {"": (row[truth_of(row)], row["prediction"])},
        "image": data_address(side_by_side(*views), quality) if any(views) else None,
    }


def side_by_side(frontal: Image.Image | None, lateral: Image.Image | None, panel: int = PANEL) -> Image.Image:
    """Both views of a study for a reader; a missing one is said to be missing."""
    canvas = Image.new("L", (2 * panel, panel))
    for name, view, left in (("frontal", frontal, 0), ("lateral", lateral, panel)):
        if view is not None:
            canvas.paste(fit_panel(view, panel), (left, 0))
        else:
            middle, font = (left + panel // 2, panel // 2), ImageFont.load_default(13)
            ImageDraw.Draw(canvas).text(middle, f"no {name} view", fill=130, anchor="mm", font=font)
    return canvas


def thresholds(report: Mapping[str, Any]) -> list[dict[str, float]]:
    """The points of the risk–coverage curve nearest to some round coverages, each once.

    Their thresholds are cut to three places, not rounded: studies of just that score are to be answered.
    """
    points = (report.get("calibration") or {}).get("risk_coverage", [])
    nearest = [min(points, key=lambda p: abs(p["coverage"] - goal)) for goal in COVERAGES] if points else []
    once = [point for i, point in enumerate(nearest) if point not in nearest[:i]]
    return [point | {"threshold": math.floor(1000 * point["threshold"]) / 1000} for point in once]


# --- what the figures mean ---------------------------------------------------------------------------------------


def _summary(report: Mapping[str, Any]) -> str:
    said = [note] if (note := unread_note(report)) else []
    if not said and any(row["n"] for row in report["per_finding"].values()):
        here = f"Of 100 findings in the radiologists' texts it states {100 * report['finding_recall_micro']:.0f}"
        if (blind := report["shuffled"].get("finding_recall_micro")) is not None:
            there = f"{100 * blind:.0f}"
            here += f" when it is shown the right images, and {there} when it is shown those of other patients"
        said.append(f"{here}.")
    if best := best_blind(report, "bleu4"):
        said.append(f"Its BLEU-4 is {_beside(report['bleu4'], best[1])} that of the best image-blind baseline.")
    return " ".join(said)


def _beside(ours: float, theirs: float) -> str:
    return "level with" if score(ours) == score(theirs) else "above" if ours > theirs else "below"


def _image_shuffle(report: Mapping[str, Any]) -> str:
    if not report["shuffled"]:
        return "One study alone cannot tell whether the model looks at it."
    by = report.get("gain_score", "finding_f1_micro")
    if by not in report["image_gain_ci95"] or report["permutation_p"] is None:
        return "Whether the model reads the images cannot be told from these studies."
    name, real, blind = short_name(by), score(report[by]), score(report["shuffled"][by])
    if "shuffled_context" in report:
        context, both = score(report["shuffled_context"][by]), score(report["shuffled_both"][by])
        return (
            f"{name[0].upper()}{name[1:]} is {real} with the right images and context, {blind} with the images of "
            f"other patients, {context} with the context of other patients, and {both} with both of them."
        )
    if report["reads_images"]:
        return (
            f"With the images of other patients, {name} falls from {real} to {blind}. Texts that have nothing to "
            f"do with their images would do as well with probability {score(report.get('permutation_p'))}."
        )
    if report[by] > report["shuffled"][by] and real != blind:
        return (
            f"{name[0].upper()}{name[1:]} is {real} with the right images and {blind} with those of other patients, a "
            "difference that chance alone could make."
        )
    return (
        f"With the images of other patients, {name} is {blind}. That is no worse than the {real} with the right "
        "images."
    )


def _inputs(report: Mapping[str, Any]) -> str:
    by = report.get("gain_score", "finding_f1_micro")
    parts = {key: part[by] for key, part in report.get("inputs", {}).items()}
    if report.get("panels") == 1:
        return SINGLE_IMAGE
    if not parts:
        return "What each view adds was not measured here."
    if not {"both_views", "frontal_only", "lateral_only"} <= set(parts):
        return "No study of this split has both views, so what each view adds cannot be told."
    both, frontal, lateral = (parts[name] for name in ("both_views", "frontal_only", "lateral_only"))
    better, worse = ("frontal", "lateral") if frontal >= lateral else ("lateral", "frontal")
    alone = max(frontal, lateral)
    if not any((both, frontal, lateral)):
        sentence = f"it gets {'no finding' if by != 'cider' else 'nothing'} right from either"
    elif score(both) == score(alone):
        sentence = f"the {better} view alone does as well as both"
    elif both > alone:
        sentence = f"taking the {worse} view away costs {both - alone:.3f}"
    else:
        sentence = f"the {better} view alone does better than both"
    return (
        f"In {counted(report['inputs']['both_views']['n'], 'study', 'studies')} with both views, {short_name(by)} is "
        f"{score(both)} with both, {score(frontal)} with the frontal and {score(lateral)} with the lateral view "
        f"alone: {sentence}."
    )


def _scores(report: Mapping[str, Any]) -> str:
    if not (best := best_blind(report, "bleu4")):
        return "There is no training split here, so no baseline stands beside the model."
    name, theirs, ours = *best, report["bleu4"]
    text = (
        f"BLEU-4 is {score(ours)}. That is {_beside(ours, theirs)} the {score(theirs)} that {BASELINES[name]} reaches "
        "without any image."
    )
    if oracle := report.get("oracle"):
        text += (
            f" An oracle that knows every true finding and copies the commonest wording reaches "
            f"{score(oracle['bleu4'])}, with a finding F1 of {score(oracle['finding_f1_micro'])}."
        )
    among = report.get("nearest_among", {"studies": 0, "of": 0})
    if among["studies"] < among["of"]:
        text += f" The nearest training study is that of {among['studies']:,} drawn from {among['of']:,}."
    return text


def _findings(report: Mapping[str, Any]) -> str:
    rows = {name: row for name, row in report["per_finding"].items() if row["n"]}
    if note := unread_note(report):
        note += f" {WORDS_ALONE}"
    if not rows:
        return f"No text of this split states a finding. {note}".strip()
    if note:
        return note
    order = sorted(rows, key=lambda name: (-rows[name]["n"], name))
    missed = [name for name in order if not rows[name]["recall"]]
    commonest = order[0]
    text = (
        f"{counted(len(rows), 'finding is', 'findings are')} stated here. The model states "
        f"{percent(rows[commonest]['recall'] or 0.0)} of the commonest, {commonest} (n = {rows[commonest]['n']:,})."
    )
    if not missed:
        return f"{text} It states each finding at least once where it is true."
    names = ("first of all " if len(missed) > 3 else "") + ", ".join(missed[:3])
    where = "it is" if len(missed) == 1 else "they are"
    return f"{text} {len(missed)} of {len(rows)} it never states where {where} true ({names})."


def _subgroups(report: Mapping[str, Any]) -> str:
    if note := unread_note(report):
        return note
    subgroups = report.get("subgroups", {})
    groups = subgroups.get("findings", {})
    grey = any(row["small"] for kind, group in subgroups.items() if kind != "finding" for row in group.values())
    note = " Grey: fewer than 30 studies, too few to say much." if grey else ""
    one, several = groups.get("one finding"), groups.get("several findings")
    if not one or not several:
        return f"This split does not hold both studies with one finding and with several.{note}"
    a, b = (row["ci95"].get("finding_f1_micro") for row in (one, several))
    if not a or not b or one["small"] or several["small"]:
        sentence = "Too few studies to say whether several findings are harder than one"
    elif b[1] < a[0]:
        sentence = "Studies with several findings are harder than those with one"
    elif b[0] > a[1]:
        sentence = "Studies with several findings are easier than those with one"
    else:
        sentence = (
            "Studies with several findings are not clearly harder or easier than those with one, as intervals overlap"
        )
    values = f"{score(several['finding_f1_micro'])} and {score(one['finding_f1_micro'])}"
    return f"{sentence} (finding F1 {values}).{note}"


def _calibration(report: Mapping[str, Any]) -> str:
    curve = report.get("calibration")
    if report.get("texts_of"):
        return "The texts came without a score, so there is nothing to calibrate."
    if not curve:
        return (
            "No calibration here: the score is the text's plain probability. Calibration needs a checkpoint that has "
            f"one, or {MIN_STUDIES} validation studies other than these, from whose texts findings can be read."
        )
    before, after = curve["ece_before"], curve["ece_after"]
    return (
        f"A score is the chance that {curve['event']}. It is off by {percent(after)} on average; the text's plain "
        f"probability is off by {percent(before)}.{FITTED_HERE if curve.get('fitted_here') else ''}"
    )


def _risk(report: Mapping[str, Any]) -> str:
    points = (report.get("calibration") or {}).get("risk_coverage", [])
    part = [point for point in points if point["coverage"] < 1]
    if not part:
        return "All studies have the same score, so there are none to decline first."
    half, everybody = min(part, key=lambda point: abs(point["coverage"] - 0.5)), points[-1]
    share, fewer, all_wrong = (percent(value) for value in (half["coverage"], half["risk"], everybody["risk"]))
    if not everybody["risk"]:
        return "No text is wrong here, so declining gains nothing."
    if fewer != all_wrong and half["risk"] < everybody["risk"]:
        return (
            f"If it answers only the {share} it is surest of, {fewer} of its texts are wrong in place of {all_wrong}."
        )
    return f"Declining gains nothing here. Of the {share} it is surest of, {fewer} are wrong; of all, {all_wrong}."


def sentences(report: Mapping[str, Any]) -> dict[str, str]:
    """Section → what it means, in plain words made of the numbers."""
    makers = (_summary, _image_shuffle, _inputs, _scores, _findings, _subgroups, _calibration, _risk)
    return {"verdict": plain(report), **{make.__name__[1:]: make(report) for make in makers}}
