"""The report as Markdown: the tables that cards and the README show too, and the whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from hf_cxr.utils.plots import BASELINES, NBSP, PROBES, counted, percent, score

SCORES = {
    **{f"bleu{order}": f"BLEU-{order}" for order in range(1, 5)},
    "sentence_bleu4": "sentence BLEU-4",
    "legacy_bleu4": "legacy BLEU-4 (without meaning, to read old tables)",
    "rougeL": "ROUGE-L",
    "cider": "CIDEr",
    "meteor": "METEOR",
    "exact_match": "exact match",
    "finding_precision_micro": "finding precision",
    "finding_recall_micro": "finding recall",
    "finding_f1_micro": "finding F1 (micro)",
    "finding_f1_macro": "finding F1 (macro)",
    "finding_f1_micro_uncertain": "finding F1 with possible findings",
    "finding_f1_micro_sided": "finding F1 with sides",
    "finding_f1_micro_located": "finding F1 with sides and places",
    "normal_accuracy": "normal or abnormal",
    "length_ratio": "length written / length of the references",
}
"""The scalars of a report (`hf_cxr.metrics.SCALARS`) in words."""
CLINICAL = {
    "f1chexbert": "CheXbert F1 (micro, 14 labels)",
    "radgraph": "RadGraph F1 (partial)",
    "ratescore": "RaTEScore",
    "green": "GREEN",
    "bertscore": "BERTScore (rescaled)",
}
"""The clinical metrics of `hf_cxr.evaluation.clinical` in words."""
COLUMNS = {
    name: SCORES[name] for name in ("bleu1", "bleu4", "rougeL", "cider", "finding_f1_micro", "finding_f1_macro")
}
INPUTS = {
    "both_views": "both views",
    "frontal_only": "frontal view alone",
    "lateral_only": "lateral view alone",
    "mean_image": "the mean training image",
    "without_context": "images alone, no context",
    "context_only": "context alone, mean training image",
}
TITLES = {"age_sex": "age and sex", "report": "whole report"}
"""Sections and context whose names are not words."""
SINGLE_IMAGE = (
    "Single image: the model is shown the frontal view of each study (the lateral where there is no frontal)."
)
NOT_RUN = (
    "So there are no linear probes, no nearest training studies, no scores by view and no confidence score. The texts "
    "stand for the images in the image-shuffle test: what they rest on beside the images counts too."
)
FITTED_HERE = (
    " It was fitted on these very studies, so it looks better here than it is: expect more error on new ones."
)
INTERVAL = f"95{NBSP}% interval"
FEWEST_STATED = 5
"""Studies with a finding below which its table shows no interval: a bootstrap of one or two may give a point."""


def short_name(name: str) -> str:
    """A score in running text: "finding F1", "CIDEr"."""
    return SCORES[name].removesuffix(" (micro)")


WORDS_ALONE = (
    "What is read of them is their words: BLEU, ROUGE-L, CIDEr, METEOR and exact match. Whether the model reads "
    "the images is told by CIDEr. Findings, sides, places and normality are not read, and no score is calibrated."
)


def readable(report: Mapping[str, Any], names: Iterable[str]) -> list[str]:
    """Those of the scores that say something: where findings cannot be read from the texts, those of words."""
    unread = report.get("findings_unread")
    return [name for name in names if not (unread and name.startswith(("finding_", "normal_")))]


def unread_note(report: Mapping[str, Any]) -> str:
    """That findings cannot be read from the texts of a report, and why; empty where they can."""
    reason = report.get("findings_unread")
    return f"Findings cannot be read from these texts, as {reason}: no figure about findings says anything." * bool(
        reason
    )


def truth_of(row: Mapping[str, Any]) -> str:
    """The key of the radiologist's text in a row of predictions.jsonl."""
    return "impression" if "impression" in row else "findings"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; a bar in a cell is escaped."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def bounds(interval: Sequence[float] | None, sign: bool = False) -> str:
    """[0.1, 0.2] → "0.100 to 0.200"."""
    form = "+.3f" if sign else ".3f"
    return f"{interval[0]:{form}} to {interval[1]:{form}}" if interval else "–"


def signed(gain: float | None) -> str:
    """A gain with its sign, or a dash where there is none."""
    return "–" if gain is None else f"{gain:+.3f}"


def p_value(p: float | None) -> str:
    """A p-value as it is read: nothing below what 1,000 samples can tell."""
    return "–" if p is None else f"<{NBSP}0.005" if p < 0.005 else f"{p:.3f}"


def baselines(report: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Row name → scores of everything that stands beside the model, in the order of the table."""
    beside = {"model, images shuffled": report["shuffled"]}
    beside |= {f"model, {what} shuffled": report.get(f"shuffled_{what}", {}) for what in ("context", "both")}
    beside |= {f"baseline: {BASELINES.get(name, name)}": scores for name, scores in report["baselines"].items()}
    beside |= {PROBES[name]: scores for name, scores in report.get("probes", {}).items()}
    beside["oracle: the commonest text with the true findings"] = report.get("oracle", {})
    return {name: scores for name, scores in beside.items() if scores}


def best_blind(report: Mapping[str, Any], name: str) -> tuple[str, float] | None:
    """Name and value of the image-blind baseline of a report with the highest score; `None` where it has none."""
    blind = {key: scores[name] for key, scores in report["baselines"].items() if not key.startswith("nearest")}
    return max(blind.items(), key=lambda item: item[1], default=None)


def score_table(report: Mapping[str, Any]) -> str:
    """The model, itself with shuffled images, every baseline, the probes and the label oracle, side by side."""
    rows, keys = {"**model**": report} | baselines(report), readable(report, COLUMNS)
    cells = [[name, *(score(scores.get(key)) for key in keys)] for name, scores in rows.items()]
    return table(["", *(COLUMNS[key] for key in keys)], cells)


def probe_cells(report: Mapping[str, Any]) -> Cells | None:
    """How well linear probes tell findings and normal from abnormal, and what the model adds; `None` without them."""
    if not (probes := report.get("probes")):
        return None
    rows = []
    for name, probe in probes.items():
        row = [PROBES[name]]
        for key, gain in (("finding_f1_micro", "gain"), ("normal_accuracy", "normal_gain")):
            row += [score(probe[key]), signed(probe[gain]), bounds(probe[f"{gain}_ci95"], sign=True)]
        rows.append([*row, score(probe["normal_auc"])])
    adds = ["the model adds", INTERVAL]
    return ["", "finding F1", *adds, "normal or abnormal", *adds, "AUC of the latter"], rows


def scope(report: Mapping[str, Any]) -> str:
    """What the model writes and is given, where that is not an impression from two views alone, and how many studies
    were left out; empty where there is nothing to say."""
    told = [SINGLE_IMAGE] if report.get("panels") == 1 else []
    if file := report.get("texts_of"):
        told.append(f"The texts are those of {file}, written by a system that was not run here. {NOT_RUN}")
    target, given = report.get("target", "impression"), report.get("context", ())
    if target == "report":
        told.append("The model writes findings and an impression; scores without a name are those of the impression.")
    elif target == "findings":
        told.append("The model writes the findings.")
    if given:
        have = report["with_context"]
        counts = ", ".join(
            f"{TITLES.get(name, name)} ({have.get(name, 0):,} of {report['n']:,} studies)" for name in given
        )
        told.append(f"Beside the images it is given as context: {counts}.")
    if left_out := report.get("left_out"):
        counts = ", ".join(f"{name} {number:,}" for name, number in left_out.items())
        told.append(f"Studies left out, as they lack a section that the model writes: {counts}.")
    return " ".join(told)


Cells = tuple[list[str], list[list[str]]]  # head and rows


def section_cells(report: Mapping[str, Any]) -> Cells | None:
    """Main scores of each section and of the whole, and what images and context add; `None` for one section."""
    if not (parts := report.get("sections")):
        return None
    whats = ["image", "context"] if report.get("context") else ["image"]
    rows = []
    for name in (*(name for name in parts if name != "report"), "report"):
        part, by = parts[name], parts[name]["gain_score"]
        known = readable(part, COLUMNS)
        row = [TITLES.get(name, name), *(score(part[key]) if key in known else "–" for key in COLUMNS)]
        for what in whats:
            gain, interval = part[f"{what}_gain"].get(by), part[f"{what}_gain_ci95"].get(by)
            row += ["–" if gain is None else f"{gain:+.3f} {short_name(by)}", bounds(interval, sign=True)]
            untold = part["permutation_p"] is None or (what == "context" and not part["with_context"])
            answer = ANSWERS[part["reads_images" if what == "image" else "reads_context"]]
            row.append("cannot be told" if untold else answer)
        rows.append(row)
    names = {"image": "images", "context": "context"}
    gains = [cell for what in whats for cell in (f"gain from the {names[what]}", INTERVAL, f"reads the {names[what]}")]
    return ["section", *COLUMNS.values(), *gains], rows


ANSWERS = {True: "yes", False: "no", None: "not shown"}


def context_cells(report: Mapping[str, Any]) -> Cells | None:
    """What images, context and both are worth, in the score of the verdict; `None` for a model without context."""
    if not report.get("shuffled_context"):
        return None
    by, rows = report["gain_score"], [["nothing", score(report[report["gain_score"]]), "–", "–", "–"]]
    for title, what, blind in (
        ("the images", "image", "shuffled"),
        ("the context", "context", "shuffled_context"),
        ("both", "both", "shuffled_both"),
    ):
        interval, p = report[f"{what}_gain_ci95"].get(by), report[f"{what}_gain_p"].get(by)
        gain = f"{report[f'{what}_gain'][by]:+.3f}"
        rows.append([title, score(report[blind][by]), gain, bounds(interval, sign=True), p_value(p)])
    return ["shuffled among the patients", short_name(by), "gain", INTERVAL, "p"], rows


def clinical_cells(report: Mapping[str, Any]) -> Cells | None:
    """The clinical metrics beside shuffled images and the best constant; `None` where none was asked for."""
    rows = []
    for name, part in report.get("clinical", {}).items():
        cells = [f"not available: {part['unavailable']}", *["–"] * 7] if "unavailable" in part else []
        if not cells:
            few = f" (of {part['n']:,} studies)" if part["n"] < report["n"] else ""
            cells = [f"{score(part['score'])}{few}", bounds(part["ci95"])]
            for other, gain in (("shuffled", "image_gain"), ("constant", "constant_gain")):
                cells += [score(part.get(other)), signed(part.get(gain)), bounds(part.get(f"{gain}_ci95"), sign=True)]
        rows.append([CLINICAL[name], *cells])
    beside = [cell for name in ("images shuffled", "best constant") for cell in (name, "gain over it", INTERVAL)]
    return (["clinical metric", "model", INTERVAL, *beside], rows) if rows else None


def extra_tables(report: Mapping[str, Any]) -> dict[str, Cells]:
    """Title → the tables that not every report has: of several sections, of context and of clinical metrics."""
    tables = {"Scores by section": section_cells(report), "Images and context": context_cells(report)}
    tables |= {"Clinical metrics": clinical_cells(report)}
    return {title: cells for title, cells in tables.items() if cells}


def every_score(report: Mapping[str, Any], gain: bool = False) -> str:
    """Every scalar with its interval, beside shuffled images and the best image-blind baseline for that score; with
    `gain` also what the images add to it."""
    head, rows = ["score", "model", INTERVAL, "images shuffled", "best image-blind baseline"], []
    for name in readable(report, SCORES):
        best = best_blind(report, name) if name != "length_ratio" else None
        row = [score(report[name]), bounds(report["ci95"].get(name)), score(report["shuffled"].get(name))]
        rows.append([SCORES[name], *row, score(best and best[1])])
        if gain:
            change, p = bounds(report["image_gain_ci95"].get(name), sign=True), report["image_gain_p"].get(name)
            rows[-1] += [f"{report['image_gain'][name]:+.3f}", change, p_value(p)]
    return table(head + ["gain from the images", INTERVAL, "p"] * gain, rows)


def finding_table(report: Mapping[str, Any]) -> str:
    """Every finding, the commonest first, with the F1 of the same texts permuted at random."""
    rows = []
    for name, row in sorted(report["per_finding"].items(), key=lambda item: -item[1]["n"]):
        shares = (score(row[key], 2) for key in ("precision", "recall", "f1"))
        interval = bounds(row.get("ci95") if row["n"] >= FEWEST_STATED else None)
        rows.append([name, str(row["n"]), *shares, interval, score(chance_f1(row, report["n"]), 2)])
    return table(["finding", "n", "precision", "recall", "F1", INTERVAL, "F1 by chance"], rows)


def chance_f1(row: Mapping[str, Any], studies: int) -> float | None:
    """Mean F1 of a finding over all permutations of the same texts: 2·n·s / (N·(n + s)), where s of the N texts state
    it and it is true of n. `None` where s does not follow from the report."""
    n = row["n"]
    if row["precision"] is None or not n:  # never stated, or never true
        return 0.0
    if not row["precision"]:
        return None
    stated = row["recall"] * n / row["precision"]
    return 2 * n * stated / (studies * (n + stated))


def subgroups_table(report: Mapping[str, Any], small: bool = False) -> str:
    """Scores by subgroup, those of few studies only if `small`. Empty where none is left."""
    unread = bool(report.get("findings_unread"))
    found = ["finding F1", INTERVAL, "normal or abnormal"] * (not unread)
    rows = []
    for kind in ("findings", "length", "views", "projection"):
        for name, row in report.get("subgroups", {}).get(kind, {}).items():
            interval = bounds(row["ci95"].get("finding_f1_micro"))
            cells = [score(row["finding_f1_micro"]), interval, score(row["normal_accuracy"])] * (not unread)
            if small or not row["small"]:
                rows.append([f"{name}{' (few)' if row['small'] else ''}", str(row["n"]), *cells, score(row["bleu4"])])
    return table(["studies", "n", *found, "BLEU-4"], rows) if rows else ""


def report_markdown(report: Mapping[str, Any]) -> str:
    """The report as a page of Markdown."""
    modal = " ".join(report["modal_output"].replace("`", " ").split()) or "(nothing)"
    parts = [
        "# Evaluation report",
        report["verdict"],
        f"{counted(report['n'], 'study', 'studies')}. Research use only, not for diagnosis.",
        *filter(None, [scope(report)]),
        *(f"## {title}\n\n{table(*cells)}" for title, cells in extra_tables(report).items()),
        *["## Beside baselines"] * bool(extra_tables(report)),
        score_table(report),
        *(table(*cells) for cells in filter(None, [probe_cells(report)])),
        f"{counted(report['distinct_outputs'], 'different text')}. The commonest goes to "
        f"{percent(report['modal_share'])} of the studies: `{modal}`",
        *(f"{note} {WORDS_ALONE}" for note in filter(None, [unread_note(report)])),
        "## Every score",
        every_score(report, gain=bool(report["image_gain"])),
    ]
    shown = {title: part for name, title in INPUTS.items() if (part := report.get("inputs", {}).get(name))}
    if shown:
        keys = readable(report, COLUMNS)
        rows = [[title, str(part["n"]), *(score(part[key]) for key in keys)] for title, part in shown.items()]
        parts += ["## Scores by what the model was shown", table(["", "n", *(COLUMNS[key] for key in keys)], rows)]
    if not report.get("findings_unread"):
        parts += ["## Findings", finding_table(report)]
    if groups := subgroups_table(report, small=True):
        parts += ["## Subgroups", groups]
    if curve := report.get("calibration"):
        parts += [
            "## Confidence score",
            f"A score is meant as the chance that {curve['event']}. Expected calibration error "
            f"{curve['ece_before']:.3f} before, {curve['ece_after']:.3f} after calibration; Brier score "
            f"{curve['brier_before']:.3f} and {curve['brier_after']:.3f} ({curve['n']} studies; fitted on "
            f"{curve['n_fit']}).{FITTED_HERE if curve.get('fitted_here') else ''}",
        ]
    return "\n\n".join([*parts, f"Signature: {report['signature']}"]) + "\n"
