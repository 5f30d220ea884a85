"""The published forms of radiograph collections: one reader module per form, each with a `studies(...)` generator.

A reader opens tables, not pictures: what it yields are `Study` records, one per report, none left out.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from hf_cxr.reports import Study

SOURCES: dict[str, str] = {
    "kaggle": "hf_cxr.sources.kaggle",
    "phantom": "hf_cxr.sources.phantom",
}
"""Name of a source → the module that reads it, imported when it is asked for."""


def studies(source: str, **options: Any) -> Iterator[Study]:
    """Every study of a collection, in the collection's own order.

    Args:
        source: One of `SOURCES`.
        options: What that source's own `studies` takes: `root` for a collection on disk, `num_studies`, `seed` and
            `size` for the phantom.

    Raises:
        ValueError: For an unknown source (the message offers the nearest name) or an option the source does not take.
        FileNotFoundError: If the collection is not where it is said to be.
    """
    if source not in SOURCES:
        near = difflib.get_close_matches(str(source), SOURCES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}{hint}")
    reader = import_module(SOURCES[source]).studies
    try:
        inspect.signature(reader).bind(**options)
    except TypeError as error:
        raise ValueError(f"source {source!r}: {error}") from None
    return reader(**options)
