"""Age and sex of patients, which a push leaves out of a dataset unless told otherwise.

Ids are replaced in `hf_cxr.hub.pseudonyms`; the columns are named in `hf_cxr.data.schema`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
from datasets import Features
from huggingface_hub import DatasetCard

from hf_cxr.data.schema import PARQUET, PERSONAL
from hf_cxr.hub.privacy import CARD


def held(files: Mapping[str, Path]) -> list[str]:
    """The columns of `PERSONAL` that some table of a dataset has."""
    names = {name for file in _tables(files).values() for name in pq.read_schema(file).names}
    return [name for name in PERSONAL if name in names]


def left_out(files: Mapping[str, Path], columns: Sequence[str], target: Path) -> dict[str, Path]:
    """The files of a push without these columns, written to the folder `target`; the others as they are."""
    copies = dict(files)
    for name, file in _tables(files).items():
        copies[name] = target / name
        copies[name].parent.mkdir(parents=True, exist_ok=True)
        source = pq.ParquetFile(file)
        given = source.schema_arrow
        features = Features.from_arrow_schema(given)
        kept = Features({column: kind for column, kind in features.items() if column not in columns})
        schema = kept.arrow_schema
        schema = schema.with_metadata({**(given.metadata or {}), **(schema.metadata or {})})
        with pq.ParquetWriter(copies[name], schema, **PARQUET) as writer:
            for group in range(source.num_row_groups):
                writer.write_table(source.read_row_group(group, columns=list(kept)).cast(schema))
    copies[CARD] = target / CARD
    copies[CARD].write_text(_card(files[CARD].read_text(encoding="utf-8"), columns), encoding="utf-8")
    return copies


def _tables(files: Mapping[str, Path]) -> dict[str, Path]:
    return {name: file for name, file in files.items() if name.endswith(".parquet")}


def _card(text: str, columns: Sequence[str]) -> str:
    """The card, which says what was left out; its head is what `load_dataset` expects of the tables."""
    card = DatasetCard(text)
    info = card.data.get("dataset_info")
    if isinstance(info, dict):
        info["features"] = [one for one in info.get("features", ()) if one.get("name") not in columns]
    lines = [line for line in card.text.split("\n") if not line.startswith(tuple(f"| {name} |" for name in columns))]
    said = f"Left out of this copy, though the collection has them: {', '.join(columns)} of the patients."
    place = next((i for i, line in enumerate(lines) if line.startswith("## Splits")), len(lines))
    card.text = "\n".join([*lines[:place], said, "", *lines[place:]])
    return str(card)
