"""The sections and the context of a dataset's studies: which have what a model writes, and what each is given."""

from __future__ import annotations

from datasets import Dataset, DatasetDict

from hf_cxr.inference.sections import CONTEXT, Layout, context_of


def with_sections(dataset: DatasetDict, layout: Layout) -> tuple[DatasetDict, dict[str, int]]:
    """The studies that have a text in every section of the layout, and how many of each split are left out."""
    kept = {name: _complete(split, layout) for name, split in dataset.items()}
    left_out = {name: len(split) - len(kept[name]) for name, split in dataset.items()}
    whole = {name: split.select(kept[name]) if left_out[name] else split for name, split in dataset.items()}
    return DatasetDict(whole), left_out


def _complete(split: Dataset, layout: Layout) -> list[int]:
    if not set(layout.sections) <= set(split.column_names):
        return []
    texts = zip(*section_texts(split, layout).values(), strict=True)
    return [index for index, parts in enumerate(texts) if all(part and part.strip() for part in parts)]


def section_texts(split: Dataset, layout: Layout) -> dict[str, list[str]]:
    """Section → the radiologists' texts of a split."""
    return {section: list(split[section]) for section in layout.sections}


def whole_texts(split: Dataset, layout: Layout) -> list[str]:
    """All that a radiologist wrote for a study in the sections of the layout."""
    return [" ".join(parts) for parts in zip(*section_texts(split, layout).values(), strict=True)]


def contexts(studies: Dataset) -> list[dict[str, str]]:
    """The context that each study of a split has (see `context_of`)."""
    columns = [name for name in (*CONTEXT, "age", "sex") if name in studies.column_names]
    return [context_of(row) for row in studies.select_columns(columns)] if columns else [{}] * len(studies)
