"""An evaluation in files: `report.json`, `report.md`, `report.html`, and every study in `predictions.jsonl`.

Numbers come from `hf_cxr.evaluation.evaluate`; here they only become words, tables and figures."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cxr.evaluation.report.tables import report_markdown, score_table
from hf_cxr.utils.files import replace_files

__all__ = ["REPORT_FILES", "report_markdown", "score_table", "write_report"]

REPORT_FILES = ("report.json", "report.md", "report.html", "predictions.jsonl")


def write_report(
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    out: str | os.PathLike,
    images: Callable[[int], tuple[Any, Any]] | None = None,
) -> None:
    """Write `REPORT_FILES` into the folder `out`, each whole or not at all.

    Args:
        images: gives frontal and lateral view of a row by its number; without it the page has no images.
    """
    from hf_cxr.evaluation.report.page import report_page  # draws, which is slow to import

    texts = (
        json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        report_markdown(report),
        report_page(report, rows, images),
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    )
    replace_files(Path(out), dict(zip(REPORT_FILES, texts, strict=True)))
