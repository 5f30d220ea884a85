"""The card (README.md) of a prepared dataset: YAML that the Hub and `load_dataset` read, and the preparation report in
words, which are in `dataset_card.md`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

from hf_cxr.data.collection import collection_of
from hf_cxr.data.leakage import NEAR_WORDS
from hf_cxr.data.licences import licence_on_the_hub

COLUMNS = {
    "uid": "name of the study in its source",
    "frontal": "frontal view (PA or AP), 8-bit grey; empty if the study has none",
    "lateral": "lateral view, 8-bit grey; empty if the study has none",
    "impression": "the radiologist's conclusion",
    "findings": "what the radiologist saw",
    "indication": "why the study was made, as published",
    "comparison": "earlier studies that the radiologist looked at, as published",
    "technique": "how the study was made, as published",
    "tags": "labels that the collection itself gives; none: nothing was found, or the collection has no labels",
    "uncertain": "labels that the collection calls uncertain",
    "projection": "`PA` or `AP` of the frontal view, where the collection says so",
    "age": "age in years",
    "sex": "`F`, `M` or `O`",
    "patient": "a number: rows with the same number are of one patient (a study without one has a number of its own)",
    "frontal_confidence": "how sure it is that this view is the frontal one; 1 where the collection says so",
    "lateral_confidence": "the same for the lateral view",
}


def dataset_card(facts: Mapping[str, Any], info: DatasetInfo, data_files: Mapping[str, str]) -> DatasetCard:
    """The card of a dataset.

    Args:
        facts: The content of `prepare.json`.
        info: Features, splits and sizes.
        data_files: Split → glob of its Parquet files, relative to the dataset folder.
    """
    collection = collection_of(facts)
    rows = sum(facts["splits"].values())
    data = DatasetCardData(
        pretty_name=f"Chest radiograph studies ({collection.name})",
        language=collection.language,
        **licence_on_the_hub(collection.licence),
        task_categories=["image-to-text"],
        tags=["chest-radiograph", "radiology-report-generation", "hf-cxr"],
        size_categories=_size_category(rows),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    paths = [{"split": split, "path": path} for split, path in data_files.items()]
    MetadataConfigs({"default": {"data_files": paths}}).to_dataset_card_data(data)
    return DatasetCard.from_template(
        data,
        template_str=Path(__file__).with_suffix(".md").read_text(encoding="utf-8"),
        **facts,
        rows=rows,
        filled=list(data_files),
        columns={name: what for name, what in COLUMNS.items() if name in (info.features or ())},
        near_words=NEAR_WORDS,
        number="{:,}".format,
    )


def _size_category(total: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if total < bound), "1M<n<10M")
