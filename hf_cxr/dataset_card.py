"""The card (README.md) of a prepared dataset: YAML that the Hub and `load_dataset` read, and the account in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import DatasetInfo
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCard, DatasetCardData

INDIANA = (
    "cc-by-nc-nd-4.0",
    "The reports and images are the Indiana University chest X-ray collection (Demner-Fushman et al., 2016; Open-i, "
    "U.S. National Library of Medicine), licensed **CC BY-NC-ND 4.0**: attribution, non-commercial use, and **no "
    "redistribution of derivatives**. This folder holds resized images and cleaned text, that is, a derivative: keep "
    "it to yourself, use it for research, and do not publish it.",
)
LICENCES: dict[str, tuple[str, str]] = {
    "kaggle": INDIANA,
    "openi": INDIANA,
    "r2gen": INDIANA,
    "phantom": ("apache-2.0", "Synthetic pictures and texts drawn by hf-cxr; no patient is behind any of them."),
}
"""Source → its licence (a Hub identifier) and what it means for the reader of the card."""
UNKNOWN = ("other", "The licence of the source is not known to hf-cxr: check it before you share this dataset.")

COLUMNS = {
    "uid": "name of the study in its source",
    "frontal": "frontal view (PA or AP), 8-bit grey; empty if the study has none",
    "lateral": "lateral view, 8-bit grey; empty if the study has none",
    "impression": "the radiologist's conclusion",
    "findings": "what the radiologist saw",
    "indication": "why the study was made",
    "tags": "labels that the collection itself gives the study",
}


def dataset_card(facts: Mapping[str, Any], info: DatasetInfo, data_files: Mapping[str, str]) -> DatasetCard:
    """The card of a dataset.

    Args:
        facts: The content of `prepare.json`.
        info: Features, splits and sizes.
        data_files: Split → glob of its Parquet files, relative to the dataset folder.
    """
    licence, note = LICENCES.get(facts["source"], UNKNOWN)
    total = sum(facts["splits"].values())
    data = DatasetCardData(
        pretty_name=f"Chest radiograph studies ({facts['source']})",
        language="en",
        license=licence,
        task_categories=["image-to-text"],
        tags=["chest-radiograph", "radiology-report-generation", "hf-cxr"],
        size_categories=_size_category(total),
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    paths = [{"split": split, "path": path} for split, path in data_files.items()]
    MetadataConfigs({"default": {"data_files": paths}}).to_dataset_card_data(data)
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{_body(facts, note)}")


def _body(facts: Mapping[str, Any], note: str) -> str:
    options = facts["options"]
    split_rule = (
        f"from the split file `{options['split_file']}`"
        if options["split_file"]
        else f"as the source publishes it, else 80/10/10 by a hash of the patient (seed {options['seed']})"
    )
    return f"""# Chest radiograph studies ({facts["source"]})

{sum(facts["splits"].values()):,} studies, each with a report and one or two views, prepared with hf-cxr \
{facts["versions"]["hf-cxr"]}. For research only; not for clinical use.

## Licence

{note}

## Load

```python
from datasets import load_dataset

dataset = load_dataset("path/or/repo")  # {", ".join(name for name, count in facts["splits"].items() if count)}
```

## Columns

{_table(("column", "what it holds"), COLUMNS.items())}

## Splits

{_table(("split", "studies"), ((name, f"{count:,}") for name, count in facts["splits"].items()))}

Split: {split_rule}. No patient is in two splits. `splits.csv` lists every study.

## What was left out

{
        _table(
            ("step", "kept", "dropped"),
            ((step["step"], f"{step['kept']:,}", f"{step['dropped']:,}") for step in facts["steps"]),
        )
    }

`rejects.jsonl` names each study left out, with the reason. A study that lists an image whose file is missing or
damaged is left out whole: an empty view means that the study never had it.

## How it was made

- Section asked for: `{options["section"]}`. De-identification scars (`XXXX`) in impression and findings: policy \
`{options["scars"]}`.
- Images: 8-bit grey PNG, longer side at most {options["size"]} pixels, aspect ratio kept, never enlarged.
- Options of the source: {_options(options["source_options"])}. Everything else is in `prepare.json`.
"""


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in options.items()) or "none"


def _size_category(total: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if total < bound), "1M<n<10M")
