"""The card (README.md) of a prepared dataset: YAML that the Hub and `load_dataset` read, and the preparation report in
words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    "patient": "a number: rows with the same number are of one patient (it says nothing else of the patient)",
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
    limits = LIMITS.get(facts["source"], "")
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
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n\n{_body(facts, note, limits)}")


def _body(facts: Mapping[str, Any], note: str, limits: str) -> str:
    options = facts["options"]
    split_rule = (
        f"from the split file `{options['split_file']}`"
        if options["split_file"]
        else f"as the source publishes it, else 80/10/10 by a hash of the patient (seed {options['seed']})"
    )
    return f"""# Chest radiograph studies ({facts["source"]})

{sum(facts["studies"].values()):,} studies{_rows(facts)}, each with a report and one or two views, prepared with \
hf-cxr {facts["versions"]["hf-cxr"]}. For research only; not for clinical use.

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

{_table(("split", "studies", "rows"), _sizes(facts))}

Split: {split_rule}. No patient and no image is in two splits{_tied(facts)}{
        _unnamed(facts)
    }. `splits.csv` lists every row; its SHA-256 is \
`{facts["splits_sha256"]}`.

Reports repeat themselves, across splits too: a model that recites training reports scores on these.

{_table(("split", "rows", "same text in train", "nearly the same"), _overlap(facts["text_overlap"]))}

The same: but for case and punctuation. Nearly: at least {
        NEAR_WORDS
    } words, equal once at most one word of each is left out.

## What was left out

{
        _table(
            ("step", "kept", "dropped"),
            ((step["step"], f"{step['kept']:,}", f"{step['dropped']:,}") for step in facts["steps"]),
        )
    }

`rejects.jsonl` names each study left out, with the reason, and `images.csv` says of each of the \
{sum(facts["images"].values()):,} images what became of it ({
        _uses(facts["images"])
    }). A study whose only image of a view is \
missing or damaged is left out whole: an empty view means that the study never had it.

## How it was made

- Section asked for: `{
        options["section"]
    }`. De-identification placeholders (`XXXX`) in impression and findings: policy \
`{options["placeholders"]}`.
- Images: 8-bit grey PNG, longer side at most {options["size"]} pixels, aspect ratio kept, never enlarged.
- Which two: {_pair_rule(options)}
- Options of the source: {_options(options["source_options"])}. Everything else is in `prepare.json`.

## Known limits

{limits or "- Those of your own collection, which hf-cxr does not know."}
"""


def _table(head: tuple[str, ...], rows: Any) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _rows(facts: Mapping[str, Any]) -> str:
    rows = sum(facts["splits"].values())
    return "" if rows == sum(facts["studies"].values()) else f" in {rows:,} rows (every pair of views)"


def _sizes(facts: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for split, rows in facts["splits"].items():
        yield split, f"{facts['studies'][split]:,}", f"{rows:,}"


def _tied(facts: Mapping[str, Any]) -> str:
    tied = facts["patients_tied_by_an_image"]
    if not tied["patients"]:
        return ""
    return (
        f"; {tied['patients']:,} patients share an image with another and are kept together, "
        f"{tied['largest_group']:,} in the largest group"
    )


def _unnamed(facts: Mapping[str, Any]) -> str:
    count = facts["studies_without_a_patient"]
    return f" ({count:,} studies name no patient; each counts as a patient of its own)" if count else ""


def _overlap(overlap: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, ...]]:
    for split, counts in overlap.items():
        yield split, *(f"{counts[name]:,}" for name in ("studies", "same", "near"))


def _uses(images: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in images.items()) or "none"


def _pair_rule(options: Mapping[str, Any]) -> str:
    rule = "the surest frontal and the surest lateral image of a study, the first of equals."
    if options["pairs"] == "all":
        rule = (
            "every frontal with every lateral image of a study is a row; further rows are called `uid#2`, `uid#3`, …"
        )
    named = f" Views are named by the table `{options['views']}`." if options["views"] else ""
    return rule + named + (" Studies without both views are left out." if options["require"] == "both" else "")


def _options(options: Mapping[str, Any]) -> str:
    return ", ".join(f"`{name}={value}`" for name, value in options.items()) or "none"


def _size_category(total: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if total < bound), "1M<n<10M")
