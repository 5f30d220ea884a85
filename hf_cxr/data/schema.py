"""What a prepared dataset holds: its columns, how Parquet stores them, and how the uid of a further row ends."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import datasets

from hf_cxr.data.study import TEXTS, StoredImage, Study
from hf_cxr.inference.views import VIEWS

if TYPE_CHECKING:
    from hf_cxr.data.selection import Selection

FEATURES = datasets.Features(
    {
        "uid": datasets.Value("string"),
        "frontal": datasets.Image(),
        "lateral": datasets.Image(),
        "impression": datasets.Value("string"),
        "findings": datasets.Value("string"),
        "indication": datasets.Value("string"),
        "comparison": datasets.Value("string"),
        "technique": datasets.Value("string"),
        "tags": datasets.List(datasets.Value("string")),
        "uncertain": datasets.List(datasets.Value("string")),
        "projection": datasets.Value("string"),
        "patient": datasets.Value("int32"),
        "frontal_confidence": datasets.Value("float32"),
        "lateral_confidence": datasets.Value("float32"),
    }
)
PERSONAL = {"age": datasets.Value("float32"), "sex": datasets.Value("string")}
"""Columns of a dataset whose collection says them; a push leaves them out unless told otherwise."""
PAIR = re.compile(r"#\d+$")  # how the uid of a further row of a study ends, under `pairs="all"`

_IMAGES = [f"{view}.{part}" for view in VIEWS for part in ("bytes", "path")]
_LISTS = ("tags", "uncertain")
_OTHERS = [f"{name}.list.element" if name in _LISTS else name for name in (*FEATURES, *PERSONAL) if name not in VIEWS]
# What `Dataset.to_parquet` writes: PNG is not compressed again, and chunks follow the content, so that the Hub sends
# only those that changed.
CHUNKS = {"min_chunk_size": 1 << 18, "max_chunk_size": 1 << 20, "norm_level": 0}
PARQUET: dict[str, Any] = {
    "compression": dict.fromkeys(_IMAGES, "none") | dict.fromkeys(_OTHERS, "snappy"),
    "column_encoding": dict.fromkeys(_IMAGES, "PLAIN"),
    "use_dictionary": _OTHERS,
    "use_content_defined_chunking": CHUNKS,
    "write_page_index": True,
}


def features_of(rows: Iterable[Mapping[str, Any]]) -> datasets.Features:
    """`FEATURES`, and those of `PERSONAL` that some row holds."""
    held = {name for row in rows for name in PERSONAL if row[name] not in (None, "")}
    return datasets.Features(FEATURES | {name: kind for name, kind in PERSONAL.items() if name in held})


def rows_of(
    study: Study, patient: int, images: Sequence[StoredImage | str], selection: Selection
) -> Iterator[dict[str, Any]]:
    """Rows of `FEATURES` and `PERSONAL`, each image still in the store.

    The first row keeps the uid of its study; further pairs of images get "uid#2", "uid#3", …
    """
    for number, indices in enumerate(selection.rows, start=1):
        row: dict[str, Any] = {
            "uid": study.uid if number == 1 else f"{study.uid}#{number}",
            **{name: getattr(study, name) for name in (*TEXTS, *PERSONAL)},
            "tags": list(study.tags),
            "uncertain": list(study.uncertain),
            "projection": "" if indices[0] is None else study.images[indices[0]].projection,
            "patient": patient,
        }
        for view, i in zip(VIEWS, indices, strict=True):
            row[view], row[f"{view}_confidence"] = (None, None) if i is None else (images[i], selection.views[i][1])
        yield row
