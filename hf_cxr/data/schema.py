"""What a prepared dataset holds: its columns, how Parquet stores them, and how the uid of a further row ends."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import datasets

from hf_cxr.data.study import StoredImage, Study
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
        "tags": datasets.List(datasets.Value("string")),
        "patient": datasets.Value("int32"),
        "frontal_confidence": datasets.Value("float32"),
        "lateral_confidence": datasets.Value("float32"),
    }
)
PAIR = re.compile(r"#\d+$")  # how the uid of a further row of a study ends, under `pairs="all"`

_IMAGES = [f"{view}.{part}" for view in VIEWS for part in ("bytes", "path")]
_OTHERS = ["tags.list.element" if name == "tags" else name for name in FEATURES if name not in VIEWS]
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


def rows_of(
    study: Study, patient: int, images: Sequence[StoredImage | str], selection: Selection
) -> Iterator[dict[str, Any]]:
    """Rows of `FEATURES`, each image still in the store.

    The first row keeps the uid of its study; further pairs of images get "uid#2", "uid#3", …
    """
    for number, indices in enumerate(selection.rows, start=1):
        row = {
            "uid": study.uid if number == 1 else f"{study.uid}#{number}",
            "impression": study.impression,
            "findings": study.findings,
            "indication": study.indication,
            "tags": list(study.tags),
            "patient": patient,
        }
        for view, i in zip(VIEWS, indices, strict=True):
            row[view], row[f"{view}_confidence"] = (None, None) if i is None else (images[i], selection.views[i][1])
        yield row
