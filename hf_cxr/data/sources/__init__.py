"""The published forms of radiograph collections: one reader module per form, each with a `studies(...)` generator,
a list of the `tables(...)` it reads, and what is known of the `collection(...)`.

A reader opens tables, not images: what it yields are `Study` records, one per report, none left out.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from hf_cxr.data.collection import Collection
from hf_cxr.data.sources.rows import did_you_mean
from hf_cxr.data.storage import Place
from hf_cxr.data.study import Study

SOURCES = ("openi", "kaggle", "r2gen", "mimic", "table", "hub", "phantom")
"""Names of the sources, each that of the module here that reads it, imported when it is asked for."""


def studies(source: str, **options: Any) -> Iterator[Study]:
    """Every study of a collection, in the collection's own order.

    Args:
        source: One of `SOURCES`.
        options: What that source's own `studies` takes: `root` for a collection on disk, `columns` for a table,
            `num_studies`, `seed` and `size` for the phantom.

    Raises:
        ValueError: For an unknown source (the message offers the nearest name) or an option the source does not take.
        FileNotFoundError: If the collection is not where it is said to be.
    """
    module = reader(source)
    taken = inspect.signature(module.studies)
    try:
        taken.bind(**options)
    except TypeError as error:
        needed = [name for name, option in taken.parameters.items() if option.default is option.empty]
        lacking = " ".join(f"--{name} …" for name in needed if name not in options)
        raise ValueError(f"source {source!r}: {error}" + (f"; give {lacking}" if lacking else "")) from None
    return module.studies(**options)


def tables(source: str, **options: Any) -> list[Place]:
    """The files that a source reads its records from (not its images); none for a source that draws its studies."""
    module = reader(source)
    return module.tables(**{name: options[name] for name in takes(source, "tables") if name in options})


def collection(source: str, **options: Any) -> Collection:
    """What is known of the collection that these options read."""
    module = reader(source)
    return module.collection(**{name: options[name] for name in takes(source, "collection") if name in options})


def pinned(source: str, options: dict[str, Any]) -> dict[str, Any]:
    """The options with the commit of a dataset on the Hub, which may change, in place of its branch."""
    module = reader(source)
    return options | module.pinned(**options) if hasattr(module, "pinned") and "root" in options else options


def takes(source: str, function: str = "studies") -> tuple[str, ...]:
    """The names of the options that a source takes."""
    return tuple(inspect.signature(getattr(reader(source), function)).parameters)


def reader(source: str) -> ModuleType:
    """The module that reads `source`; `ValueError` for an unknown one, with the nearest name."""
    if source not in SOURCES:
        hint = did_you_mean(str(source), SOURCES)
        raise ValueError(f"unknown source {source!r}: choose one of {', '.join(SOURCES)}{hint}")
    return import_module(f"{__name__}.{source}")
