"""Two runs on the same studies: which one scores higher, by how much, and how sure that is. What runs on the same
studies wrote is read here too; more than two are compared in `compare_several`."""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.evaluation.report.tables import CLINICAL, COLUMNS, INTERVAL, SCORES, bounds, table, truth_of
from hf_cxr.inference.sections import SECTIONS
from hf_cxr.metrics.clinical import Values, counted_in, numbers_of
from hf_cxr.utils.plots import counted, score

SHOWN = (*COLUMNS, "meteor", "finding_f1_micro_sided", "normal_accuracy")


class Runs(NamedTuple):
    """What runs on the same studies wrote of them."""

    names: list[str]
    """Of the runs: of each folder as much of its path as tells it apart."""
    uids: list[str]
    patients: list[str]
    sections: dict[str, tuple[list[str], list[list[str]]]]
    """Section → the radiologists' texts, and those of each run; the impression first."""
    clinical: dict[str, dict[str, list[np.ndarray]]]
    """Section → the clinical metrics that all runs have of it, and the numbers of each run (see `Values`)."""

    def statistics(self, section: str) -> list[Values]:
        """What scores of each run follow from."""
        (references, said), numbers = self.sections[section], self.clinical[section]
        return [
            Values({name: each[run] for name, each in numbers.items()}, metrics.study_statistics(texts, references))
            for run, texts in enumerate(said)
        ]


def compare(run_a: str, run_b: str, seed: int = 0) -> dict[str, Any]:
    """The paired comparison of two runs from their `predictions.jsonl`; of more see `compare_several`.

    Returns `{"a", "b", "n", "patients", "section", "scores": {scalar: {a, b, difference, ci95, p, probability}},
    "signature", "verdict"}`; a difference is B − A (see `bootstrap.paired_difference`). The section is the impression
    where both runs write one. Of two runs that write several, `sections` holds `scores` and `verdict` of each.

    Raises `FileNotFoundError` for a run without predictions, `ValueError` where the two are not of the same studies
    with the same texts by radiologists, or write no section in common.
    """
    runs, parts = read_runs([run_a, run_b]), {}
    for section, (references, _) in runs.sections.items():
        first, second = runs.statistics(section)
        scores = bootstrap.paired_difference(first, second, runs.patients, seed)
        parts[section] = {"scores": scores, "verdict": _verdict(scores, metrics.gain_score(references))}
    return {"a": runs.names[0], "b": runs.names[1], **facts(runs, parts, bootstrap.BOOTSTRAP_SAMPLES, seed)}


def facts(runs: Runs, parts: Mapping[str, Mapping[str, Any]], samples: int, seed: int) -> dict[str, Any]:
    """What every comparison says: of which studies it is, the first section's part on top, and how it was made."""
    top, *others = parts
    return {
        "n": len(runs.uids),
        "patients": len(set(runs.patients)),
        "section": top,
        **parts[top],
        "signature": f"{metrics.signature()}; {samples} paired bootstrap samples of patients; seed {seed}",
        **({"sections": parts} if others else {}),
    }


def read_runs(folders: Sequence[str]) -> Runs:
    """The texts of two runs or more, in one order; raises what `compare` does."""
    rows = [read_predictions(folder) for folder in folders]
    for folder, run in zip(folders[1:], rows[1:], strict=True):
        for uid in sorted(rows[0].keys() ^ run.keys()):
            where = folders[0] if uid in rows[0] else folder
            raise ValueError(f"study {uid} is in {where} only: compare runs on the same split")
    uids = sorted(rows[0])
    written = [texts_of_row(run[uids[0]]) for run in rows]
    common = [name for name in reversed(SECTIONS) if all(name in texts for texts in written)]
    if not common:
        held = (f"{run} holds the {' and '.join(texts)}" for run, texts in zip(folders, written, strict=True))
        raise ValueError(f"{', '.join(held)}: no section of {'both' if len(rows) == 2 else 'all'}")
    patients = [str(rows[0][uid].get("patient", uid)) for uid in uids]
    if len(set(patients)) < 2:
        raise ValueError(f"{folders[0]}: {len(uids)} studies of one patient are too few to compare runs on")
    sections, clinical = {}, {}
    for name in common:
        texts = [[texts_of_row(run[uid])[name] for uid in uids] for run in rows]
        for uid, *truths in zip(uids, *([truth for truth, _ in run] for run in texts), strict=True):
            if len(set(truths)) > 1:
                raise ValueError(f"study {uid}: the runs were given different texts by the radiologist")
        sections[name] = [truth for truth, _ in texts[0]], [[said for _, said in run] for run in texts]
        clinical[name] = _clinical([[run[uid] for uid in uids] for run in rows], name)
    return Runs(_names(folders), uids, patients, sections, clinical)


def _clinical(runs: Sequence[Sequence[Mapping[str, Any]]], section: str) -> dict[str, list[np.ndarray]]:
    """The clinical metrics that every row of all runs has, where it has them of this section."""
    values = [[row.get("clinical", {}) if truth_of(row) == section else {} for row in run] for run in runs]
    names = [name for name in CLINICAL if all(name in each for run in values for each in run)]
    found = {name: numbers_of(name, [[each[name] for each in run] for run in values]) for name in names}
    return {name: numbers for name, numbers in found.items() if counted_in(numbers[0]).any()}


def _names(folders: Sequence[str]) -> list[str]:
    """The last parts of the folders' paths, of those with the same end so many as tell them apart."""
    paths, names = [Path(folder).absolute().parts for folder in folders], []
    for path in paths:
        others = [other for other in paths if other != path]
        parts = next((k for k in range(1, len(path)) if all(o[-k:] != path[-k:] for o in others)), len(path))
        names.append("/".join(path[-parts:]).replace("//", "/"))
    return names


def texts_of_row(row: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Section → the radiologist's text and the model's."""
    if parts := row.get("sections"):
        return {name: (part["reference"], part["prediction"]) for name, part in parts.items()}
    return {truth_of(row): (row[truth_of(row)], row["prediction"])}


def read_predictions(run: str) -> dict[str, dict[str, Any]]:
    """uid → row of a run's `predictions.jsonl`."""
    file = Path(run) / "predictions.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no predictions here; make them with hf-cxr evaluate … --out {run}")
    rows: dict[str, dict[str, Any]] = {}
    text = file.read_text(encoding="utf-8")  # whose texts may hold other ends of lines
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            row = json.loads(line)
            uid, _ = row["uid"], texts_of_row(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"{file}, line {number}: not a row with uid, impression and prediction") from None
        if uid in rows:
            raise ValueError(f"{file}, line {number}: study {uid} is there twice")
        rows[uid] = row
    if not rows:
        raise ValueError(f"{file}: empty")
    return rows


def _verdict(scores: Mapping[str, Mapping[str, Any]], name: str) -> str:
    row = scores[name]
    low, high = row["ci95"]
    better = "no difference can be told" if low <= 0 <= high else f"{'B' if row['difference'] > 0 else 'A'} is better"
    return (
        f"In {SCORES[name]} {better}: B − A {row['difference']:+.3f} (95 % CI {low:+.3f} to {high:+.3f}, "
        f"probability that B is better {row['probability']:.2f})."
    )


def shown(comparison: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Title and numbers of each main score; of two reports those of every section, by its name."""
    if parts := comparison.get("sections"):
        return [(f"{name}: {title}", row) for name, part in parts.items() for title, row in shown(part)]
    return [(title, comparison["scores"][name]) for name, title in titles(comparison["scores"]).items()]


def titles(scores: Container[str]) -> dict[str, str]:
    """Name → title of the main scores, and of the clinical metrics that are there."""
    return {name: SCORES[name] for name in SHOWN} | {name: CLINICAL[name] for name in CLINICAL if name in scores}


def comparison_table(comparison: Mapping[str, Any]) -> str:
    """A Markdown table of the main scores of both runs and their difference."""
    rows = [
        [
            title,
            *(score(row[run]) for run in ("a", "b")),
            f"{row['difference']:+.3f}",
            bounds(row["ci95"], sign=True),
            score(row["probability"], 2),
        ]
        for title, row in shown(comparison)
    ]
    head = ["", "A", "B", "B − A", INTERVAL, "probability that B is better"]
    studies = counted(comparison["n"], "study", "studies")
    return f"A: {comparison['a']}, B: {comparison['b']}, {studies}\n\n{table(head, rows)}"
