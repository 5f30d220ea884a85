"""The studies of the report page that a reader steps through: which they are, and what they are filtered by. How one
is shown lives in `page`, the script that filters and steps in `browse.js`."""

from __future__ import annotations

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from markupsafe import Markup

MOST = 300
ROOM = 3_600_000
"""Bytes of their images and texts, so that the page stays under 5 MB."""
QUALITY = 60  # of the JPEGs
MARKUP = 1500  # bytes around the texts of a study
SCRIPT = Markup(Path(__file__).with_name("browse.js").read_text(encoding="utf-8"))
SCRIPT_HASH = f"'sha256-{base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()}'"
"""What the page's policy allows to run: this script and no other."""


def chosen(rows: Sequence[Mapping[str, Any]], study: Callable[[int], dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The number of a row → `study` of it, at most `MOST` and what `ROOM` holds: most findings missed or invented
    first, of equal ones the least sure first."""
    known = [i for i, row in enumerate(rows) if "missed" in row]
    found, room = {}, ROOM
    for i in sorted(known, key=lambda i: (-_wrong(rows[i]), rows[i].get("score", 0.0), rows[i]["uid"]))[:MOST]:
        shown = study(i)
        texts = "".join([*chain(*shown["texts"].values()), *shown.get("context", {}).values()])
        room -= MARKUP + len(shown["image"] or "") + len(texts.encode())
        if room < 0:
            break
        found[i] = shown
    return found


def _wrong(row: Mapping[str, Any]) -> int:
    return len(row["missed"]) + len(row["invented"])


def tags_of(row: Mapping[str, Any]) -> list[str]:
    """What a study can be filtered by, as "missed: edema", "findings: normal", "views: two views"."""
    return [f"{kind}: {name}" for kind in ("missed", "invented") for name in row.get(kind, ())] + [
        f"{kind}: {name}" for kind, name in row.get("subgroups", {}).items()
    ]


def filters(browsed: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, int]]]:
    """Title of a choice → kind → tag's name → how many of the browsed studies have it, the commonest first."""
    counts: dict[str, dict[str, int]] = {}
    for tag, number in Counter(tag for row in browsed for tag in tags_of(row)).most_common():
        kind, name = tag.split(": ", 1)
        counts.setdefault(kind, {})[name] = number
    parts = {"finding": ("missed", "invented"), "subgroup": ("findings", "length", "views", "projection")}
    return {title: {kind: counts[kind] for kind in kinds if kind in counts} for title, kinds in parts.items()}
