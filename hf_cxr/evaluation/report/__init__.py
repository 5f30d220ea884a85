"""An evaluation on paper: `report.json`, `report.md`, `report.html`, and every study in `predictions.jsonl`.

Numbers come from `hf_cxr.evaluation.evaluate`; nothing is computed here but words, tables and figures.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_cxr.evaluation.report.figures import CARD_FIGURES, draw_png
from hf_cxr.evaluation.report.page import Images, report_page
from hf_cxr.evaluation.report.tables import bounds, report_markdown, score_table, table
from hf_cxr.utils.files import replace_files

__all__ = [
    "CARD_FIGURES",
    "REPORT_FILES",
    "bounds",
    "draw_png",
    "report_markdown",
    "report_page",
    "score_table",
    "table",
    "write_report",
]

REPORT_FILES = ("report.json", "report.md", "report.html", "predictions.jsonl")


def write_report(
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    out: str | os.PathLike,
    images: Images | None = None,
) -> None:
    """Write `REPORT_FILES` into the folder `out`, each whole or not at all.

    Args:
        images: gives frontal and lateral view of a row by its number; without it the page has no images.
    """
    texts = (
        json.dumps(report, indent=2, ensure_ascii=False) + "\n",
        report_markdown(report),
        report_page(report, rows, images),
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    )
    replace_files(Path(out), dict(zip(REPORT_FILES, texts, strict=True)))
