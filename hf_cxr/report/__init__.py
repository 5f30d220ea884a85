"""An evaluation on paper: `report.json`, `report.md`, `report.html`, and every study in `predictions.jsonl`.

Numbers come from `hf_cxr.evaluation`; nothing is computed here but words, tables and figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cxr.report.page import Pictures, report_page
from hf_cxr.report.tables import report_markdown, score_table

__all__ = ["REPORT_FILES", "report_markdown", "report_page", "score_table", "write_report"]

REPORT_FILES = ("report.json", "report.md", "report.html", "predictions.jsonl")


def write_report(
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    out: str | os.PathLike,
    pictures: Pictures | None = None,
) -> None:
    """Write `REPORT_FILES` into the folder `out`, each whole or not at all.

    Args:
        pictures: gives frontal and lateral view of a row by its number; without it the page has no pictures.
    """
    texts = (
        json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        report_markdown(report),
        report_page(report, rows, pictures),
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    partials = [folder / f".{name}.partial" for name in REPORT_FILES]
    try:
        for partial, text in zip(partials, texts, strict=True):
            partial.write_text(text, encoding="utf-8")
        for partial, name in zip(partials, REPORT_FILES, strict=True):
            partial.replace(folder / name)
    finally:
        for partial in partials:
            partial.unlink(missing_ok=True)
