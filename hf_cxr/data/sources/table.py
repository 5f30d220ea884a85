"""The user's own collection: one CSV, TSV, JSON, JSONL or Parquet table with a row per study, and image files.

Only the table is read here; images are opened by whoever asks for them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from hf_cxr.data.collection import Collection
from hf_cxr.data.sources.rows import SUFFIXES, Row, Table, did_you_mean, only_file, read_table, split_cell
from hf_cxr.data.study import Radiograph, Study, plain_tags
from hf_cxr.inference.views import VIEWS

COLUMNS = ("uid", "frontal", "lateral", "impression", "findings", "indication", "patient", "split", "tags")
"""What a table may hold. Needed: `uid`, one of `frontal` and `lateral`, one of `impression` and `findings`."""
MAX_PATH, MAX_NAME = 4096, 255
"""Bytes of a path and of a name in it, on most systems; a longer cell is text in the wrong column."""

# Columns that name the patient, in lower case and without what is no letter.
_PATIENT_COLUMN = re.compile(
    r"(?:deid|anon|pseudo)?(?:patient|subject|person|pat|pt|participant|paciente|patienten)s?"
    r"(?:id|uid|key|no|nr|num|number|code|name|hash|identifier)?|(?:id)?paciente|mrn|pid|emrn|medicalrecord(?:no|number)"
    r"|empi(?:id|anon)?|(?:hospital|nhs)(?:id|no|number)"
)
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def studies(
    root: str | Path,
    columns: Mapping[str, str] | None = None,
    images: str | Path | None = None,
    encoding: str | None = None,
) -> Iterator[Study]:
    """One study per row, in the order of the table.

    The cells of `frontal` and `lateral` are paths of PNG, JPEG or DICOM files: absolute, or relative to the folder of
    the table (or to `images`). A path may lead anywhere with "..", as an absolute one may: the table is the user's
    own. "\\" in a relative path is read as "/". A cell may hold several paths, separated by ";" or "|" (in JSON and
    Parquet also as a list); an empty one means that the study has no such view. Tags are separated in the same way,
    put in lower case, and "normal" is no tag.

    A row that cannot be used is a study with a `problem`: no uid (then it is called "line 17" or "row 17"), an
    address such as `file://` or `https://` in place of a path, text in place of a path, an image listed twice. A uid
    that occurs twice is an error, because nobody could say which of the two rows a split file or a score means.

    Args:
        root: The table, or a folder with exactly one table in it.
        columns: Our name → the name of the column in the table, for those of `COLUMNS` that are called otherwise
            there. The others are looked for under their own name, in any case of letters.
        images: The folder that relative paths start from.
        encoding: Of a text table that is neither UTF-8 nor marked as UTF-16, e.g. "cp1252".

    Raises:
        FileNotFoundError: If the table or the folder `images` is missing.
        ValueError: If the table cannot be read (see `rows`), lacks a column, or gives a uid twice.
    """
    path = _locate(Path(root))
    base = path.parent if images is None else Path(images)
    if not base.is_dir():
        raise FileNotFoundError(f"{base}: no such folder of images")
    table = read_table(path, encoding)
    theirs = _columns(table, columns or {})
    likely = [] if "patient" in theirs else [name for name in table.columns if _may_name_patients(name)]
    likely = [name for name in likely if name not in theirs.values()]

    seen: dict[str, str] = {}
    try:
        rows = table.rows([*theirs.values(), *likely], ())
    except ValueError:  # a column that nobody asks for may hold anything
        rows, likely = table.rows(list(theirs.values()), ()), []
    for row in rows:
        said = tuple((name, row[name]) for name in likely if row[name])
        study = replace(_study(row, theirs, base), likely_patient=said)
        if (before := seen.setdefault(study.uid, row.place)) != row.place:
            hint = "a row is a study: several images of one view go into one cell, separated by ;"
            raise ValueError(f"{path}: uid {study.uid!r} occurs twice ({before} and {row.place}); {hint}")
        yield study


def collection() -> Collection:
    """Nothing is known of it."""
    return Collection()


def tables(root: str | Path, **options: object) -> list[Path]:
    """The file `studies` reads."""
    return [_locate(Path(root))]


def _locate(root: Path) -> Path:
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such table or folder")
    if not root.is_dir():
        return root
    endings = tuple(ending for suffix in SUFFIXES if suffix != ".txt" for ending in (suffix, f"{suffix}.gz"))
    return only_file(root, "tables", endings, f"no table in it ({', '.join(SUFFIXES)})")


def _columns(table: Table, given: Mapping[str, str]) -> dict[str, str]:
    """Our name → the table's, for those it has; `ValueError` where that is not enough."""
    theirs: dict[str, str] = {}
    for name in given:
        if name not in COLUMNS:
            raise ValueError(f"columns: {name!r} is none of {', '.join(COLUMNS)}{did_you_mean(name, COLUMNS)}")
    for name in COLUMNS:
        found = table.column(given.get(name, name))
        if found is not None:
            theirs[name] = found
        elif name in given:
            raise ValueError(f"{table.lacks(given[name])} (wanted as {name})")
    for needed in (("uid",), VIEWS, ("impression", "findings")):
        if not any(name in theirs for name in needed):
            other = f" nor {needed[1]!r}" if len(needed) > 1 else ""
            line = table.lacks(needed[0]).replace(f"column {needed[0]!r}", f"column {needed[0]!r}{other}", 1)
            raise ValueError(f"{line}; if it is called otherwise there, map it (columns: {needed[0]}=…)")
    return theirs


def _may_name_patients(column: str) -> bool:
    return bool(_PATIENT_COLUMN.fullmatch(re.sub(r"[^a-z]", "", column.lower())))


def _study(row: Row, theirs: Mapping[str, str], base: Path) -> Study:
    cell = {name: row[theirs[name]] if name in theirs else "" for name in COLUMNS}
    if not cell["uid"]:
        return Study(uid=row.place, problem="no uid")
    listed = [(view, part) for view in VIEWS for part in split_cell(cell[view])]
    problem = next((reason for view, part in listed if (reason := _problem(view, part))), "")
    paths = [base / (part if Path(part).is_absolute() else part.replace("\\", "/")) for _, part in listed]
    if not problem and len({os.path.normpath(path) for path in paths}) < len(paths):
        problem = "an image is listed twice"
    if problem:
        return Study(uid=cell["uid"], problem=problem)
    return Study(
        uid=cell["uid"],
        images=tuple(Radiograph(path, view, path.name) for path, (view, _) in zip(paths, listed, strict=True)),
        impression=cell["impression"],
        findings=cell["findings"],
        indication=cell["indication"],
        tags=plain_tags(split_cell(cell["tags"])),
        patient=cell["patient"] or None,
        split=cell["split"] or None,
    )


def _problem(view: str, part: str) -> str:
    """Why a part of a cell is no path; what it says stays unsaid, because it may be text of a report."""
    if _ADDRESS.match(part):
        return f"{view}: an address (https://, file://) where a path is expected"
    names = re.split(r"[/\\]", part)
    if len(os.fsencode(part)) > MAX_PATH or any(len(os.fsencode(name)) > MAX_NAME for name in names):
        return f"{view}: too long for a path; is it the text of another column?"
    if not names[-1] or names[-1] in (".", ".."):
        return f"{view}: a folder where a file is expected"
    return ""
