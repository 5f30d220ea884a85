"""The words of `hf_cxr.explore`: what each section's figures mean, in one sentence, and all of it as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from hf_cxr.utils.plots import BASELINES, NBSP, number, percent, score, template

TEMPLATE = Path(__file__).with_name("page.html")
NOUNS = {"impression": ("impression", "impressions"), "findings": ("findings text", "findings texts")}


def page(facts: Mapping[str, Any], figures: Mapping[str, str], images: Sequence[Sequence[str]]) -> str:
    """One HTML file that needs no other: `figures` as SVG by name, `images` as data addresses for each sheet."""
    safe = {name: Markup(svg) for name, svg in figures.items()}  # drawn by us; matplotlib escapes the texts in it
    one, many = NOUNS[facts["dataset"]["section"]]
    return template(TEMPLATE).render(
        facts=facts, figures=safe, images=images, baseline_names=BASELINES, one=one, many=many
    )


def _count(value: int, one: str, many: str = "") -> str:
    return f"{number(value)} {one if value == 1 else many or one + 's'}"


# --- what it means for someone who wants to train ----------------------------------------------------------------


def sentences(facts: Mapping[str, Any]) -> dict[str, str]:
    """Section → one plain sentence, in the order of the page."""
    makers = {
        "preparation": _preparation,
        "views": _views,
        "sizes": _sizes,
        "lengths": _lengths,
        "frequent": _frequent,
        "words": _words,
        "findings": _findings,
        "together": _together,
        "sheets": _sheets,
        "duplicates": _duplicates,
        "placeholders": _placeholders,
        "baselines": _baselines,
    }
    return {name: make(facts) for name, make in makers.items()}


def _preparation(facts: Mapping[str, Any]) -> str:
    steps = facts["preparation"]["steps"]
    if not steps:
        return "What was left out on the way here is not known: there is no prepare.json beside this dataset."
    start, end = steps[0]["kept"], steps[-1]["kept"]
    if start == end:
        return f"Nothing was left out: all {number(start)} studies of the source are in this dataset."
    worst = max(steps, key=lambda step: step["dropped"])
    lost = start - end
    most = (
        f"the other {number(lost)}" if worst["dropped"] == lost else f"most of the others, {number(worst['dropped'])},"
    )
    return (
        f"{number(end)} of the {number(start)} studies of the source ({percent(end / start)}) are in this dataset; "
        f"{most} fell away at the step “{worst['step']}”."
    )


def _views(facts: Mapping[str, Any]) -> str:
    views = facts["views"]
    alone = {name: views[name] for name in ("frontal only", "lateral only", "no view") if views[name]}
    if not alone:
        return f"All {number(views['n'])} studies have both views: a model trained here never meets an empty panel."
    parts = ", ".join(f"{number(count)} {name}" for name, count in alone.items())
    return (
        f"{percent(views['both'] / views['n'])} of the {number(views['n'])} studies have both views; on the others a "
        f"model sees an empty (black) panel and must write from the rest ({parts})."
    )


def _sizes(facts: Mapping[str, Any]) -> str:
    filled = [size for size in facts["sizes"].values() if size["n"]]
    if not filled:
        return "This dataset holds no images."
    longest = max(size["longer side"]["max"] for size in filled)
    return (
        f"Stored images are at most {number(longest)} pixels at their longer side: a larger panel_size only "
        "enlarges them and shows a model nothing more."
    )


def _lengths(facts: Mapping[str, Any]) -> str:
    section = facts["dataset"]["section"]
    words, said = (facts["text"][section][unit] for unit in ("words", "sentences"))
    return (
        f"The median {NOUNS[section][0]} has {_count(words['median'], 'word')}, and 95{NBSP}% have at most "
        f"{number(words['p95'])} in {_count(said['p95'], 'sentence')}: set max_target_length to hold these (a word is "
        "often several tokens), and little is cut."
    )


def _frequent(facts: Mapping[str, Any]) -> str:
    frequent = facts["frequent"]
    one = NOUNS[facts["dataset"]["section"]][0]
    if frequent["distinct"] == frequent["n"]:
        return f"No {one} occurs twice (n = {number(frequent['n'])})."
    ten = frequent["rows"][:10]
    rest = (
        f", and the {len(ten)} most frequent ones of {percent(ten[-1]['cumulative'])}: a model that knows no more "
        "than these already looks good by BLEU"
    )
    return (
        f"One text, “{_short(ten[0]['text'])}”, is the {one} of {percent(ten[0]['share'])} of the "
        f"{_count(frequent['n'], 'study', 'studies')}{rest if len(ten) > 1 else ''}."
    )


def _words(facts: Mapping[str, Any]) -> str:
    words = facts["words"]
    many = NOUNS[facts["dataset"]["section"]][1]
    return (
        f"The {many} know {number(words['distinct'])} different words; the 100 most frequent make up "
        f"{percent(words['share of the 100 most frequent'])} of all that is written, and {number(words['once'])} "
        "occur once, too rarely to be learned."
    )


def _findings(facts: Mapping[str, Any]) -> str:
    findings, train = facts["findings"], facts["n"]["splits"].get("train", 0)
    normal = f"{percent(findings['normal']['share'])} of the {number(findings['n'])} studies are normal"
    if not train or not findings["rows"]:
        return f"{normal}, by what their texts state."
    often = sum(row["by_split"]["train"] >= findings["enough"] for row in findings["rows"])
    return (
        f"{normal}, and {number(often)} of the {_count(len(findings['rows']), 'finding')} met here have the "
        f"{findings['enough']} positive training studies that the findings pretraining asks for; expect little on the "
        "rest."
    )


def _together(facts: Mapping[str, Any]) -> str:
    pairs = facts["findings"]["together"]["pairs"]
    if not pairs:
        return "No study states two findings."
    a, b, count = pairs[0]
    return (
        f"Findings come in company, most often {a} with {b} ({_count(count, 'study', 'studies')}): a model may name "
        "the one because it sees the other."
    )


def _sheets(facts: Mapping[str, Any]) -> str:
    return (
        "Look before you train: the frontal view belongs on the left, upright, bones bright, and the finding named "
        "above the images should be there to see."
    )


def _duplicates(facts: Mapping[str, Any]) -> str:
    overlap = {name: counts for name, counts in facts["duplicates"]["text"].items() if counts["studies"]}
    across = facts["duplicates"]["images"]["across splits"]
    if not facts["n"]["splits"].get("train") or not overlap:
        return "A training split and another one are not both here, so nothing can be shared by the two."
    name = "test" if "test" in overlap else next(iter(overlap))
    counts, many = overlap[name], NOUNS[facts["dataset"]["section"]][1]
    images = (
        f"{_count(across, 'image is', 'images are')} in several splits, which flatters every score"
        if across
        else "no image is in two splits"
    )
    return (
        f"{percent(counts['same'] / counts['studies'])} of the {number(counts['studies'])} {name} {many} also occur "
        f"word for word in training{', so reciting is rewarded' if counts['same'] else ''}; {images}."
    )


def _placeholders(facts: Mapping[str, Any]) -> str:
    section = facts["dataset"]["section"]
    placeholders, many = facts["placeholders"][section], NOUNS[section][1]
    others = {
        name: counts
        for name, counts in facts["placeholders"].items()
        if name != section and counts["with placeholders"]
    }
    inputs = " and ".join(f"{number(counts['with placeholders'])} {name} texts" for name, counts in others.items())
    rest = f"; {inputs} hold some, which matters only if you show them to a model" if others else ""
    if not placeholders["with placeholders"]:
        return f"No de-identification placeholder (XXXX) is left in the {number(placeholders['n'])} {many}{rest}."
    return (
        f"{percent(placeholders['with placeholders'] / placeholders['n'])} of the {number(placeholders['n'])} {many} "
        f"hold a de-identification placeholder (XXXX), which a model learns to write{rest}."
    )


def _baselines(facts: Mapping[str, Any]) -> str:
    baselines = facts["baselines"]
    if not baselines["rows"]:
        return "No baselines: they need a training split, and a test or validation split to be scored on."
    bleu, findings = (max(baselines["rows"], key=lambda row: row[key]) for key in ("bleu4", "finding_f1_micro"))
    return (
        f"Without a look at any image, {BASELINES.get(bleu['name'], bleu['name'])} reaches BLEU-4 "
        f"{score(bleu['bleu4'])} on the {number(baselines['n'])} {baselines['split']} studies, and "
        f"no image-blind baseline gets a finding F1 above {score(findings['finding_f1_micro'])}: "
        "a model has to beat both."
    )


def _short(text: str, longest: int = 120) -> str:
    return text if len(text) <= longest else text[:longest].rstrip() + "…"
