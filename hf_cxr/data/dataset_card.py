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

from hf_cxr.data.leakage import NEAR_WORDS
from hf_cxr.data.licences import LICENCES, UNKNOWN

_INDIANA_LIMITS = """\
- From the hospitals of one region (Indiana, USA); how common findings are there says little of your patients.
- Names, dates and much else were blanked as `XXXX` by a program, which took harmless words too ("new", "likely").
- Half of the impressions open with "no acute …" in some wording, so one constant sentence scores well on word overlap.
- Impressions refer to earlier films that are not here ("unchanged", "improved")."""
LIMITS = {
    "kaggle": _INDIANA_LIMITS,
    "openi": _INDIANA_LIMITS + "\n- The collection names no views: see `frontal_confidence` and `lateral_confidence`.",
    "r2gen": _INDIANA_LIMITS
    + "\n- Only the findings section, and the two images that R2Gen chose, in no stated order.",
    "phantom": "- A drawing, not a radiograph: a model learns nothing of patients from it.",
}
"""Source → what is known to be wrong with it, as Markdown."""

COLUMNS = {
    "uid": "name of the study in its source",
    "frontal": "frontal view (PA or AP), 8-bit grey; empty if the study has none",
    "lateral": "lateral view, 8-bit grey; empty if the study has none",
    "impression": "the radiologist's conclusion",
    "findings": "what the radiologist saw",
    "indication": "why the study was made",
    "tags": "labels that the collection itself gives the study",
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
    licence, note = LICENCES.get(facts["source"], UNKNOWN)
    rows = sum(facts["splits"].values())
    data = DatasetCardData(
        pretty_name=f"Chest radiograph studies ({facts['source']})",
        language="en",
        license=licence,
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
        licence_note=note,
        limits=LIMITS.get(facts["source"], "- Those of your own collection, which hf-cxr does not know."),
        columns=COLUMNS,
        near_words=NEAR_WORDS,
        number="{:,}".format,
    )


def _size_category(total: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if total < bound), "1M<n<10M")
