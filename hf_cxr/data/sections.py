"""Which studies of a dataset have the sections that a model writes."""

from __future__ import annotations

from datasets import Dataset, DatasetDict

from hf_cxr.inference.sections import Layout


def with_sections(dataset: DatasetDict, layout: Layout) -> tuple[DatasetDict, dict[str, int]]:
    """The studies that have a text in every section of the layout, and how many of each split are left out."""
    kept = {name: _complete(split, layout) for name, split in dataset.items()}
    left_out = {name: len(split) - len(kept[name]) for name, split in dataset.items()}
    whole = {name: split.select(kept[name]) if left_out[name] else split for name, split in dataset.items()}
    return DatasetDict(whole), left_out


def _complete(split: Dataset, layout: Layout) -> list[int]:
    if not set(layout.sections) <= set(split.column_names):
        return []
    texts = zip(*(split[section] for section in layout.sections), strict=True)
    return [index for index, parts in enumerate(texts) if all(part and part.strip() for part in parts)]
