"""The words of `hf_cxr.explore`: what each figure means, in a sentence or two, and the whole page as HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cxr.evaluation.report.tables import unread_note
from hf_cxr.utils.plots import BASELINES, NBSP, counted, number, percent, score, template

TEMPLATE = Path(__file__).with_name("page.html")
NOUNS = {"impression": ("impression", "impressions"), "findings": ("findings text", "findings texts")}


def page(facts: Mapping[str, Any], figures: Mapping[str, str], images: Sequence[Sequence[str]]) -> str:
    """One HTML file that needs no other: `figures` as SVG by name, `images` as data addresses for each sheet."""
    one, many = NOUNS[facts["dataset"]["section"]]
    return template(TEMPLATE).render(
        facts=facts,
        sentences=facts["sentences"],
        figures=figures,
        images=images,
        baseline_names=BASELINES,
        one=one,
        many=many,
    )


# --- what it means for someone who wants to train ----------------------------------------------------------------


def _preparation(facts: Mapping[str, Any]) -> str:
    steps = facts["preparation"]["steps"]
    if not steps:
        return "What was left out is not known: there is no prepare.json beside this dataset."
    start, end = steps[0]["kept"], steps[-1]["kept"]
    if start == end:
        return f"Nothing was left out: all {number(start)} studies of the source are in this dataset."
    worst = max(steps, key=lambda step: step["dropped"])
    most = worst["dropped"]
    left_out = "All others were" if most == start - end else f"Most others ({number(most)}) were"
    return (
        f"{number(end)} of the {number(start)} studies of the source ({percent(end / start)}) are in this dataset. "
        f"{left_out} left out at the step “{worst['step']}”."
    )


def _views(facts: Mapping[str, Any]) -> str:
    views = facts["views"]
    alone = {name: views[name] for name in ("frontal only", "lateral only", "no view") if views[name]}
    if not alone:
        return f"All {number(views['n'])} studies have both views. A model trained here never sees an empty panel."
    parts = ", ".join(f"{number(count)} {name}" for name, count in alone.items())
    return (
        f"{percent(views['both'] / views['n'])} of the {number(views['n'])} studies have both views. In the others "
        f"({parts}) a missing view is a black panel."
    )


def _sizes(facts: Mapping[str, Any]) -> str:
    filled = [size for size in facts["sizes"].values() if size["n"]]
    if not filled:
        return "This dataset holds no images."
    longest = max(size["longer side"]["max"] for size in filled)
    return (
        f"The longer side of a stored image is at most {number(longest)} pixels. A panel_size above that shows a "
        "model nothing more."
    )


def _lengths(facts: Mapping[str, Any]) -> str:
    section = facts["dataset"]["section"]
    words, said = (facts["text"][section][unit] for unit in ("words", "sentences"))
    return (
        f"The median {NOUNS[section][0]} has {counted(words['median'], 'word')}. 95{NBSP}% have at most "
        f"{counted(words['p95'], 'word')} and {counted(said['p95'], 'sentence')}. Choose max_target_length so that "
        f"these fit; a word is often several tokens.{_without(facts)}"
    )


def _without(facts: Mapping[str, Any]) -> str:
    """What is left out of the counts of texts."""
    section = facts["dataset"]["section"]
    if not (empty := facts["text"][section]["empty"]):
        return ""
    who = counted(empty, "study has", "studies have")
    return f" {who} no {NOUNS[section][0]} and {'is' if empty == 1 else 'are'} left out of what is said of texts."


def _frequent(facts: Mapping[str, Any]) -> str:
    frequent = facts["frequent"]
    one = NOUNS[facts["dataset"]["section"]][0]
    if frequent["distinct"] == frequent["n"]:
        return f"No {one} occurs twice (n = {number(frequent['n'])})."
    ten = frequent["rows"][:10]
    rest = (
        f" The {len(ten)} most frequent texts cover {percent(ten[-1]['cumulative'])}. A model that writes nothing "
        "else already has a good BLEU."
    )
    return (
        f"“{textwrap.shorten(ten[0]['text'], 120, placeholder='…')}” is the {one} of {percent(ten[0]['share'])} of "
        f"the {counted(frequent['n'], 'study', 'studies')}.{rest if len(ten) > 1 else ''}"
    )


def _words(facts: Mapping[str, Any]) -> str:
    words = facts["words"]
    many = NOUNS[facts["dataset"]["section"]][1]
    return (
        f"The {many} use {counted(words['distinct'], 'different word')}. The 100 most frequent make up "
        f"{percent(words['share of the 100 most frequent'])} of the text. {number(words['once'])} occur once, which "
        "is too rare to be learned."
    )


def _findings(facts: Mapping[str, Any]) -> str:
    if note := unread_note(facts):
        often = sum(row["train"] >= facts["findings"]["enough"] for row in facts["tags"])
        labels = (
            f" The collection has {counted(len(facts['tags']), 'label')} of its own; {number(often)} of them name at "
            f"least {facts['findings']['enough']} training studies, as findings pretraining on them needs "
            "(findings_labels: tags)."
        )
        return note + labels * bool(facts["tags"])
    findings, train = facts["findings"], facts["n"]["splits"].get("train", 0)
    normal = f"{percent(findings['normal']['share'])} of the {number(findings['n'])} studies are normal"
    normal += f", {percent(findings['unknown']['share'])} say neither that nor a finding" * bool(
        findings["unknown"]["n"]
    )
    if not train or not findings["rows"]:
        return f"{normal}, by what their texts state."
    often = sum(row["by_split"]["train"] >= findings["enough"] for row in findings["rows"])
    named = len(findings["rows"])
    return (
        f"{normal}. {number(often)} of the {counted(named, 'finding')} stated here have at least {findings['enough']} "
        f"positive training studies, as findings pretraining needs.{' Expect little on the others.' * (often < named)}"
    )


def _together(facts: Mapping[str, Any]) -> str:
    if facts["findings_unread"]:
        return ""
    pairs = facts["findings"]["together"]["pairs"]
    if not pairs:
        return "No study states two findings."
    a, b, count = pairs[0]
    return (
        f"The most frequent pair is {a} with {b} ({counted(count, 'study', 'studies')}). A model may state one "
        "finding because it sees the other."
    )


def _sheets(facts: Mapping[str, Any]) -> str:
    named = "The collection's own label" if facts["findings_unread"] else "The finding"
    return (
        "Look before you train. The frontal view belongs on the left, upright, with bright bones. "
        f"{named} named above the images should be visible."
    )


def _duplicates(facts: Mapping[str, Any]) -> str:
    overlap = {name: counts for name, counts in facts["duplicates"]["text"].items() if counts["studies"]}
    across = facts["duplicates"]["images"]["across splits"]
    if not facts["n"]["splits"].get("train") or not overlap:
        return "Overlap needs a training split and another one, which are not both here."
    name = "test" if "test" in overlap else next(iter(overlap))
    counts, many = overlap[name], NOUNS[facts["dataset"]["section"]][1]
    images = (
        f"{counted(across, 'image is', 'images are')} in several splits, which raises every score"
        if across
        else "No image is in two splits"
    )
    return (
        f"{percent(counts['same'] / counts['studies'])} of the {number(counts['studies'])} {name} {many} also occur "
        f"word for word in training{', so reciting pays' if counts['same'] else ''}. {images}."
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
    rest = f" {inputs} hold some, which matters only if a model is shown them." if others else ""
    published = facts["preparation"]["placeholders"] or {}
    kinds = ", ".join(f"{kind} {number(count)} times" for kind, count in published.items())
    before = f"The texts as published hold {kinds}. " if kinds else ""
    if not placeholders["with placeholders"]:
        return f"{before}No de-identification placeholder is left in the {number(placeholders['n'])} {many}.{rest}"
    return (
        f"{before}{percent(placeholders['with placeholders'] / placeholders['n'])} of the {number(placeholders['n'])} "
        f"{many} hold a de-identification placeholder, which a model learns to write.{rest}"
    )


def _baselines(facts: Mapping[str, Any]) -> str:
    baselines = facts["baselines"]
    if not baselines["rows"]:
        return "No baselines: they need a training split and a test or validation split."
    bleu, findings = (max(baselines["rows"], key=lambda row: row[key]) for key in ("bleu4", "finding_f1_micro"))
    text = (
        f"Without any image, {BASELINES.get(bleu['name'], bleu['name'])} reaches BLEU-4 {score(bleu['bleu4'])} on the "
        f"{number(baselines['n'])} {baselines['split']} studies."
    )
    if facts["findings_unread"]:
        return f"{text} A model has to beat that."
    best = score(findings["finding_f1_micro"])
    return f"{text} No image-blind baseline has a finding F1 above {best}. A model has to beat both."


def sentences(facts: Mapping[str, Any]) -> dict[str, str]:
    """Section → what it means, in plain words; empty where nothing can be said."""
    makers = (_preparation, _views, _sizes, _sheets, _lengths, _frequent, _words, _findings, _together)
    return {make.__name__[1:]: make(facts) for make in (*makers, _duplicates, _placeholders, _baselines)}
