"""Numbers of a prepared dataset for `hf_cxr.explore`: plain counts over its rows, nothing drawn, nothing written."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from hf_cxr import metrics
from hf_cxr.data.leakage import text_overlap
from hf_cxr.data.placeholders import count_placeholders
from hf_cxr.data.study import TEXTS
from hf_cxr.evaluation import baselines, bootstrap
from hf_cxr.inference.labeler import FINDINGS, NEGATIVE, NORMAL, POSITIVE, UNCERTAIN, UNKNOWN, label, normality
from hf_cxr.inference.targets import sentences
from hf_cxr.inference.views import VIEWS

ENOUGH = 10
"""Positive training studies a finding needs for the findings pretraining:
`hf_cxr.training.findings_pretraining.MIN_POSITIVES`, written again here because that module is slow to import."""
FUNCTION_WORDS = frozenset(
    "a an and are as at be been by can for from has have in into is it its may of on or since than that the there"
    " these this to was were which with within".split()
)
"""Left out of the lists of words and bigrams. Negations stay: "no acute" is what such a collection is about."""

_WORD = re.compile(r"[^\W_]+(?:['’./-][^\W_]+)*")


@dataclass(frozen=True)
class Row:
    """One row of the dataset, without its pixels."""

    split: str
    index: int
    uid: str
    texts: Mapping[str, str]
    patient: Any
    sizes: Mapping[str, tuple[int, int]]
    """View → width and height of its image; only the views that are there. So are the two below."""
    digests: Mapping[str, str]
    confidences: Mapping[str, float]
    tags: tuple[str, ...] = ()
    """Labels that the collection gives it."""
    study: str = ""
    """The uid of its study, set by `in_studies`."""


def in_studies(rows: Sequence[Row]) -> list[Row]:
    """The rows with their study: `prepare --pairs all` calls the further ones of study "uid" "uid#2", "uid#3", …"""
    patients = {row.uid: row.patient for row in rows}

    def study_of(row: Row) -> str:
        first = re.sub(r"#\d+$", "", row.uid)
        return first if first in patients and patients[first] == row.patient else row.uid

    return [replace(row, study=study_of(row)) for row in rows]


def image_bytes(stored: Mapping[str, Any]) -> bytes:
    """The encoded image of an `Image` column that is not decoded."""
    return Path(stored["path"]).read_bytes() if stored["bytes"] is None else stored["bytes"]


def count(
    rows: Sequence[Row], everything: Sequence[Row], target: str, seed: int, unnamed: int | None
) -> dict[str, Any]:
    """All counts of `rows`; those that compare splits are of `everything`. `target` is the section that is learned,
    `unnamed` how many studies name no patient, `None` if that is not known."""
    studies, all_studies = first_rows(rows), first_rows(everything)
    texts = [row.texts[target] for row in studies if row.texts[target].strip()]
    splits = list(dict.fromkeys(row.split for row in everything))
    told = [row for row in all_studies if row.texts[target].strip()]
    by_split = {split: [row.texts[target] for row in told if row.split == split] for split in splits}
    return {
        "n": {
            "studies": len(studies),
            "rows": len(rows),
            "images": len({digest for row in rows for digest in row.digests.values()}),
            "splits": {split: sum(row.split == split for row in all_studies) for split in splits},
        },
        "views": _views(studies),
        "sizes": {view: _sizes([row.sizes[view] for row in rows if view in row.sizes]) for view in VIEWS},
        "text": {section: _lengths([row.texts[section] for row in studies]) for section in TEXTS},
        "frequent": _frequent(texts),
        "words": _words(texts),
        "findings": _findings(texts, by_split),
        "findings_unread": metrics.unread_findings(texts),
        "tags": _tags(studies, all_studies),
        "duplicates": {
            "text": text_overlap(by_split),
            "images": _shared(everything),
            "patients_across_splits": _patients(everything, unnamed),
        },
        "placeholders": {section: _placeholders([row.texts[section] for row in studies]) for section in TEXTS},
        "baselines": _baselines(everything, target, seed),
    }


def first_rows(rows: Sequence[Row]) -> list[Row]:
    """One row of each study."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        first.setdefault((row.split, row.study), row)
    return list(first.values())


def histogram(counts: Mapping[Any, int]) -> list[list[Any]]:
    """A histogram as `[[value, count], …]` by value."""
    return [[value, counts[value]] for value in sorted(counts)]


def _views(studies: Sequence[Row]) -> dict[str, Any]:
    names = {VIEWS: "both", VIEWS[:1]: "frontal only", VIEWS[1:]: "lateral only", (): "no view"}
    kinds: dict[str, Counter[str]] = defaultdict(Counter)
    for row in studies:
        kinds[row.split][names[tuple(view for view in VIEWS if view in row.sizes)]] += 1
    total = sum(kinds.values(), Counter())
    sure = [value for row in studies for value in row.confidences.values()]
    return {
        "n": len(studies),
        **{name: total[name] for name in names.values()},
        "by_split": {split: {name: counts[name] for name in names.values()} for split, counts in kinds.items()},
        "confidence": {
            "n": len(sure),
            "stated by the collection": sum(value >= 1 for value in sure),
            "decided with a confidence of 0.9 or more": sum(0.9 <= value < 1 for value in sure),
            "decided with less": sum(value < 0.9 for value in sure),
        },
    }


def _sizes(sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    if not sizes:
        return {"n": 0}
    width, height = np.array(sizes).T
    measures = {"width": width, "height": height, "longer side": np.maximum(width, height), "shape": width / height}
    spread = {
        name: {"min": values.min().item(), "median": float(np.median(values)), "max": values.max().item()}
        for name, values in measures.items()
    }
    shapes = Counter((np.round(measures["shape"] / 0.05) * 0.05).round(2).tolist())
    common = [[*size, count] for size, count in Counter(sizes).most_common(5)]
    return {"n": len(sizes), **spread, "shapes": histogram(shapes), "most frequent": common}


def _lengths(texts: Sequence[str]) -> dict[str, Any]:
    filled = [text for text in texts if text.strip()]
    counts = {
        "words": [len(_WORD.findall(text)) for text in filled],
        "sentences": [len(sentences(text)) for text in filled],
    }
    return {"n": len(filled), "empty": len(texts) - len(filled)} | {
        unit: {
            "mean": float(np.mean(values)),
            "median": float(np.median(values)),
            "p95": int(np.percentile(values, 95, method="inverted_cdf")),  # 95 % have at most so many
            "max": max(values),
            "counts": histogram(Counter(values)),
        }
        for unit, values in counts.items()
        if values
    }


def _frequent(texts: Sequence[str], top: int = 15) -> dict[str, Any]:
    ranked = sorted(Counter(texts).items(), key=lambda item: (-item[1], item[0]))
    covered = list(accumulate(count for _, count in ranked))
    n = len(texts)
    half = next(rank for rank, seen in enumerate(covered, 1) if 2 * seen >= n)
    ranks = sorted({half, *(round(rank) for rank in np.geomspace(1, len(ranked), 60))})
    return {
        "n": n,
        "distinct": len(ranked),
        "once": sum(count == 1 for _, count in ranked),
        "cover half": half,
        "half covers": covered[half - 1] / n,
        "rows": [
            {"text": text, "count": count, "share": count / n, "cumulative": seen / n}
            for (text, count), seen in zip(ranked[:top], covered, strict=False)
            if count > 1  # a text that occurs once is one patient's report
        ],
        "curve": [[rank, covered[rank - 1] / n] for rank in ranks],
    }


def _words(texts: Sequence[str], top: int = 20) -> dict[str, Any]:
    """Words in lower case; bigrams are of neighbours in one sentence, neither of them a function word."""
    words: Counter[str] = Counter()
    bigrams: Counter[str] = Counter()
    for text, times in Counter(texts).items():
        for sentence in sentences(text):
            found = _WORD.findall(sentence.lower())
            words.update({word: times * count for word, count in Counter(found).items()})
            said = Counter(f"{a} {b}" for a, b in pairwise(found) if not {a, b} & FUNCTION_WORDS)
            bigrams.update({pair: times * count for pair, count in said.items()})
    total = sum(words.values())
    return {
        "n": total,
        "texts": len(texts),
        "distinct": len(words),
        "once": sum(count == 1 for count in words.values()),
        "share of the 100 most frequent": sum(sorted(words.values())[-100:]) / total if total else 0.0,
        "words": _ranked({word: count for word, count in words.items() if word not in FUNCTION_WORDS}, top),
        "bigrams": _ranked(bigrams, top),
        "left out": sorted(FUNCTION_WORDS),
    }


def _ranked(counts: Mapping[str, int], top: int) -> list[list[Any]]:
    return [[name, count] for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:top]]


def _findings(texts: Sequence[str], by_split: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Positive, uncertain and negative texts of each finding, how often two are positive together, normal and unknown
    texts."""
    labels = {text: label(text) for text in {*texts, *(text for part in by_split.values() for text in part)}}
    positive = {text: [name for name, status in labels[text].items() if status == POSITIVE] for text in labels}
    status_of = {
        status: Counter(name for text in texts for name, said in labels[text].items() if said == status)
        for status in (POSITIVE, UNCERTAIN, NEGATIVE)
    }
    split_counts = {
        split: Counter(name for text in part for name in positive[text]) for split, part in by_split.items()
    }
    named = [name for name in FINDINGS if status_of[POSITIVE][name] or status_of[UNCERTAIN][name]]
    named.sort(key=lambda name: (-status_of[POSITIVE][name], -status_of[UNCERTAIN][name], name))
    together = Counter(pair for text in texts for pair in combinations(sorted(positive[text]), 2))
    often = [name for name in named[:12] if status_of[POSITIVE][name]]  # as many as the table of pairs has space for
    square = [[status_of[POSITIVE][a] if a == b else together[min(a, b), max(a, b)] for b in often] for a in often]
    pairs = sorted(together.items(), key=lambda item: (-item[1], item[0]))[:10]
    said = {name: Counter(normality(text) for text in part) for name, part in {**by_split, "": texts}.items()}
    return {
        "n": len(texts),
        "splits": {split: len(part) for split, part in by_split.items()},
        **{
            name: {
                "n": said[""][name],
                "share": said[""][name] / len(texts),
                "by_split": {split: said[split][name] for split in by_split},
            }
            for name in (NORMAL, UNKNOWN)
        },
        "rows": [
            {"finding": name}
            | {status: status_of[status][name] for status in (POSITIVE, UNCERTAIN, NEGATIVE)}
            | {"by_split": {split: counts[name] for split, counts in split_counts.items()}}
            for name in named
        ],
        "enough": ENOUGH,
        "together": {"findings": often, "counts": square, "pairs": [[a, b, count] for (a, b), count in pairs]},
    }


def _tags(studies: Sequence[Row], everything: Sequence[Row]) -> list[dict[str, Any]]:
    """The collection's own labels, the commonest first: studies, and training studies, that have each."""
    counts = Counter(tag for row in studies for tag in row.tags)
    train = Counter(tag for row in everything if row.split == "train" for tag in row.tags)
    return [
        {"tag": tag, "n": n, "train": train[tag]} for tag, n in sorted(counts.items(), key=lambda i: (-i[1], i[0]))
    ]


def _shared(rows: Sequence[Row]) -> dict[str, Any]:
    """Images, equal to the byte as stored, that several studies or even several splits have."""
    owners: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        for digest in row.digests.values():
            owners[digest].add((row.split, row.study))
    across = [places for places in owners.values() if len({split for split, _ in places}) > 1]
    touched = sorted({place for places in across for place in places})
    return {
        "n": len(owners),
        "in several studies": sum(len(places) > 1 for places in owners.values()),
        "across splits": len(across),
        "studies across splits": dict(Counter(split for split, _ in touched)),
    }


def _patients(rows: Iterable[Row], unnamed: int | None) -> int | None:
    """Patients with studies in several splits; `None` where that is not known.

    A study that names no patient has a number of its own. How many do, `unnamed` says; where it is `None` too, numbers
    that never occur twice tell nothing.
    """
    studies_of: dict[Any, set[tuple[str, str]]] = defaultdict(set)
    for row in rows:
        if row.patient is not None:
            studies_of[row.patient].add((row.split, row.study))
    if unnamed or (unnamed is None and all(len(studies) < 2 for studies in studies_of.values())):
        return None
    return sum(len({split for split, _ in studies}) > 1 for studies in studies_of.values())


def _placeholders(texts: Sequence[str]) -> dict[str, int]:
    found = [count_placeholders([text]) for text in texts]
    return {
        "n": sum(bool(text.strip()) for text in texts),
        "with placeholders": sum(map(bool, found)),
        "placeholders": sum(count.total() for count in found),
    }


def _baselines(rows: Sequence[Row], target: str, seed: int) -> dict[str, Any]:
    """Scores of image-blind baselines on the test split (the validation split where there is none), as evaluated."""
    by_split: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.texts[target].strip():
            by_split[row.split].append(row.texts[target])
    scored = next((name for name in ("test", "validation") if by_split[name]), None)
    train, validation = by_split["train"], by_split["validation"]
    if scored is None or not train:
        return {"split": None, "n": 0, "rows": []}
    references = by_split[scored]
    found = []
    for name, texts in baselines.blind_predictions(train, validation, len(references), seed).items():
        statistics = metrics.study_statistics(texts, references)
        constant = name != "random_train" and train.count(texts[0]) > 1  # else it is one patient's report
        text = texts[0] if constant else None
        ci95 = bootstrap.study_intervals(statistics, range(len(references)), seed)
        found.append({"name": name, "text": text, **statistics.scores(), "ci95": ci95})
    chosen_on = "validation" if validation else "train"
    return {"split": scored, "n": len(references), "constant chosen on": chosen_on, "rows": found}
