"""The report of texts that some other system wrote: read from a file, scored as a checkpoint's own are. What needs a
model (probes, nearest studies, single views, confidence) is left out."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
from accelerate import PartialState
from datasets import Dataset, DatasetDict

from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sections import with_sections
from hf_cxr.data.sources.rows import Row, Table, read_table
from hf_cxr.data.sources.text_tables import decode, read_bytes
from hf_cxr.evaluation.baselines import blind_predictions
from hf_cxr.evaluation.clinical import Clinical, add_clinical
from hf_cxr.evaluation.evaluate import build_report
from hf_cxr.evaluation.report import write_report
from hf_cxr.evaluation.study_rows import compared_texts, patients_of, texts_of, truths
from hf_cxr.evaluation.subgroups import with_subgroups
from hf_cxr.inference.sections import SECTIONS, TARGETS, Layout
from hf_cxr.inference.views import VIEWS
from hf_cxr.models.modeling import weights_digest

NAMED = 10  # studies that a message names


def evaluate_texts(
    predictions: str | os.PathLike | Sequence[Mapping[str, Any]],
    dataset: str | os.PathLike | DatasetDict | None = None,
    split: str = "test",
    section: str = "impression",
    train_texts: str | os.PathLike | Sequence[str] = (),
    out: str | os.PathLike | None = None,
    seed: int = 0,
    clinical: Clinical | None = None,
) -> dict[str, Any]:
    """The report of any system's texts, as `evaluate` makes that of a checkpoint; written to `out` if given.

    Shuffled images are the texts permuted among the patients, so a text that rests on something else that its system
    was given, such as an indication, counts as reading the images too.

    Args:
        predictions: a table (CSV, JSON lines, …, see `read_table`), or its rows, with columns `uid` and `prediction`.
        dataset: a prepared dataset, or its place; every study of its `split` that has the section needs a text.
            `None`: the radiologists' texts are a column of `predictions`, called `reference` or as the section is;
            then a column `uid` may be missing, and `patient` may be there.
        section: `impression` or `findings`: what the texts are.
        train_texts: without a dataset, the texts that baselines know: a list, a .txt file with one a line, or a table
            with a column `reference` or of the section's name, of which studies in `predictions` are left out.
        out: the folder for `report.json`, `report.html` and `predictions.jsonl`.
        seed: of permutations and bootstrap samples.
        clinical: the clinical metrics that are wanted too (see `clinical`).

    Raises `FileNotFoundError` for a file or dataset that is not there, and `ValueError`, with the first place, for
    studies without a text, of another split, unknown or there twice, and for what `read_table` cannot read.
    """
    if section not in SECTIONS:
        raise ValueError(f"no section {section!r}; there are {', '.join(SECTIONS)}")
    if out is not None and weights_digest(out):
        raise ValueError(f"{out}: holds a checkpoint, whose own report these texts would replace; name another folder")
    table, images = _opened(predictions), None
    left_out: dict[str, int] = {}
    if dataset is None:
        rows = _rows_alone(table, section)
        texts: dict[str, list[str]] = {"train": _train_texts(train_texts, section, {row["uid"] for row in rows})}
    elif train_texts:
        raise ValueError("train_texts are for texts without a dataset, which has its own")
    else:
        opened = load_prepared(os.fspath(dataset)) if isinstance(dataset, (str, os.PathLike)) else dataset
        whole, left_out = with_sections(opened, Layout(TARGETS[section]))
        rows = _rows_of(table, opened, whole, split, section)
        texts = {name: texts_of(whole, name, section) for name in ("train", "validation")}
        studies = whole[split]
        images = lambda index: (studies[index]["frontal"], studies[index]["lateral"])  # noqa: E731
    rows = with_subgroups(rows, section)
    if clinical and PartialState().is_main_process:
        clinical.begin(len(rows))
    known = texts["train"], texts.get("validation", [])
    report = build_report(rows, *known, seed, section=section)
    if clinical and PartialState().is_main_process:
        add_clinical(report, rows, clinical, section, blind_predictions(*known, len(rows), seed), seed)
    told = {"texts_of": Path(table.path).name} | ({"split": split} if dataset is not None else {})
    report |= {"target": section, **told}
    report["signature"] += "".join(f"; {name.replace('_', ' ')} {value}" for name, value in told.items())
    if missing := {name: number for name, number in left_out.items() if number}:
        report["left_out"] = missing
    if out is not None and PartialState().is_main_process:
        write_report(report, rows, out, images)
    return report


def _opened(predictions: str | os.PathLike | Sequence[Mapping[str, Any]]) -> Table:
    if isinstance(predictions, (str, os.PathLike)):
        return read_table(os.fspath(predictions))
    given = list(predictions)
    columns = dict.fromkeys(name for row in given for name in row)
    return Table("the predictions", tuple(columns), lambda *_: ((f"row {n}", row) for n, row in enumerate(given, 1)))


def _texts_by_uid(table: Table, needed: Iterable[str], uid: str | None) -> dict[str, Row]:
    """uid → row; without a column of uids the place of a row stands for it."""
    found: dict[str, Row] = {}
    for row in table.rows([*needed, *([uid] if uid else [])], ()):
        name = row[uid] if uid else row.place
        if not name:
            raise ValueError(f"{table.path}, {row.place}: no uid")
        if name in found:
            raise ValueError(f"{table.path}, {row.place}: study {name!r} is there twice")
        found[name] = row
    if not found:
        raise ValueError(f"{table.path}: no text in it")
    return found


def _rows_of(table: Table, dataset: DatasetDict, whole: DatasetDict, split: str, section: str) -> list[dict[str, Any]]:
    """The rows of `predictions.jsonl` of the studies of a split that have the section (`whole`)."""
    if split not in dataset:
        raise ValueError(f"the dataset has no split {split!r}; it has {', '.join(dataset)}")
    studies = whole[split]
    if not len(studies):
        raise ValueError(f"nothing to evaluate: no study of the split {split!r} has a text in its {section}")
    uid, text = (table.column(name) or name for name in ("uid", "prediction"))
    found = _texts_by_uid(table, [text], uid)
    split_of = {name: part for part in dataset for name in dataset[part]["uid"]}
    if strange := [name for name in found if split_of.get(name) != split]:
        where = f"of the split {split_of[strange[0]]!r}" if strange[0] in split_of else "unknown to the dataset"
        raise ValueError(
            f"{table.path}: {len(strange):,} of {len(found):,} studies are not of the split {split!r} "
            f"({_few(strange)}); the first, in {found[strange[0]].place}, is {where}"
        )
    said = {name: row[text] for name, row in found.items() if row[text]}
    if missing := [name for name in studies["uid"] if name not in said]:
        raise ValueError(
            f"{table.path}: no text for {len(missing):,} of {len(studies):,} studies of the split {split!r} "
            f"({_few(missing)}); scores of fewer studies are not those of the split"
        )
    uids = studies["uid"][:]
    parts = compared_texts(truths(studies, section), [said[name] for name in uids])
    projections = studies["projection"][:] if "projection" in studies.column_names else [""] * len(studies)
    return [
        {"uid": name, "patient": patient, section: part.pop("reference"), **part, "views": shown, "projection": side}
        for name, patient, part, shown, side in zip(
            uids, patients_of(studies), parts, _views(studies), projections, strict=True
        )
    ]


def _rows_alone(table: Table, section: str) -> list[dict[str, Any]]:
    """The same of a table that holds the radiologists' texts too; which views a study has is not known."""
    truth, text = _reference_column(table, section), table.column("prediction") or "prediction"
    patient = table.column("patient")
    found = _texts_by_uid(table, [truth, text, *([patient] if patient else [])], table.column("uid"))
    for name in (truth, text):
        if empty := [row.place for row in found.values() if not row[name]]:
            raise ValueError(
                f"{table.path}: no text in column {name!r} of {len(empty):,} of {len(found):,} rows ({_few(empty)})"
            )
    parts = compared_texts([row[truth] for row in found.values()], [row[text] for row in found.values()])
    return [
        {
            "uid": name,
            "patient": (row[patient] if patient else "") or name,
            section: part.pop("reference"),
            **part,
            "views": "",
            "projection": "",
        }
        for (name, row), part in zip(found.items(), parts, strict=True)
    ]


def _reference_column(table: Table, section: str) -> str:
    found = table.column("reference") or table.column(section)
    if found is None:
        raise ValueError(f"{table.lacks('reference')} (or {section!r}); without a dataset it holds what is right")
    return found


def _train_texts(given: str | os.PathLike | Sequence[str], section: str, but: Collection[str]) -> list[str]:
    """The texts that baselines know, those of the studies `but` left out."""
    if not isinstance(given, (str, os.PathLike)):
        return list(given)
    path = os.fspath(given)
    if path.endswith(".txt"):
        return [line.strip() for line in decode(read_bytes(path), path).split("\n") if line.strip()]
    table = read_table(path)
    truth, uid = _reference_column(table, section), table.column("uid")
    rows = table.rows([truth, *([uid] if uid else [])], ())
    return [row[truth] for row in rows if row[truth] and not (uid and row[uid] in but)]


def _views(studies: Dataset) -> Iterable[str]:
    """Which views each study has; no image is decoded."""
    rows = studies.select_columns([*VIEWS])
    for view in VIEWS:
        rows = rows.cast_column(view, datasets.Image(decode=False))
    for row in rows:
        shown = [view for view in VIEWS if row[view] and row[view]["bytes"]]
        yield "both" if len(shown) == len(VIEWS) else shown[0] if shown else "none"


def _few(uids: Sequence[str]) -> str:
    return ", ".join(uids[:NAMED]) + (", …" if len(uids) > NAMED else "")
