"""The card (README.md) of a prepared dataset: YAML that the Hub and `load_dataset` read, and the preparation report in
words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    options, splits, studies = facts["options"], facts["splits"], facts["studies"]
    rows, kept = sum(splits.values()), sum(studies.values())
    in_rows = f" in {rows:,} rows (every pair of views)" if rows != kept else ""
    names = ", ".join(name for name, count in splits.items() if count)
    sizes = _table(("split", "studies", "rows"), ((name, studies[name], count) for name, count in splits.items()))
    overlap = _table(
        ("split", "rows", "same text in train", "nearly the same"),
        (
            (name, *(counts[of] for of in ("studies", "same", "near")))
            for name, counts in facts["text_overlap"].items()
        ),
    )
    steps = _table(
        ("step", "kept", "dropped"), ((step["step"], step["kept"], step["dropped"]) for step in facts["steps"])
    )
    uses = ", ".join(f"{name}: {count:,}" for name, count in facts["images"].items()) or "none"
    of_source = ", ".join(f"`{name}={value}`" for name, value in options["source_options"].items()) or "none"
    return f"""# Chest radiograph studies ({facts["source"]})

{kept:,} studies{in_rows}, each with a report and one or two views, prepared with \
hf-cxr {facts["versions"]["hf-cxr"]}. For research only; not for clinical use.

## Licence

{note}

## Load

```python
from datasets import load_dataset

dataset = load_dataset("path/or/repo")  # {names}
```

## Columns

{_table(("column", "what it holds"), COLUMNS.items())}

## Splits

{sizes}

Split: {_split_rule(facts)}. `splits.csv` lists every row; its SHA-256 is \
`{facts["splits_sha256"]}`.

Reports repeat themselves, across splits too: a model that recites training reports scores on these.

{overlap}

The same: but for case and punctuation. Nearly: at least {NEAR_WORDS} words, equal once at most one word of each is \
left out.

## What was left out

{steps}

`rejects.jsonl` names each study left out, with the reason, and `images.csv` says of each of the \
{sum(facts["images"].values()):,} images what became of it ({uses}). A study whose only image of a view is \
missing or damaged is left out whole: an empty view means that the study never had it.

## How it was made

- Section asked for: `{options["section"]}`. De-identification placeholders (`XXXX`) in impression and findings: \
policy `{options["placeholders"]}`.
- Images: 8-bit grey PNG, longer side at most {options["size"]} pixels, aspect ratio kept, never enlarged.
- Which two: {_pair_rule(options)}
- Options of the source: {of_source}. Everything else is in `prepare.json`.

## Known limits

{limits or "- Those of your own collection, which hf-cxr does not know."}
"""


def _split_rule(facts: Mapping[str, Any]) -> str:
    table, tied = facts["options"]["split_file"], facts["patients_tied_by_an_image"]
    unnamed = facts["studies_without_a_patient"]
    published = f"as the source publishes it, else 80/10/10 by a hash of the patient (seed {facts['options']['seed']})"
    rule = f"from the split file `{table}`" if table else published
    rule += ". No patient and no image is in two splits"
    if tied["patients"]:
        rule += f"; {tied['patients']:,} patients share an image with another and are kept together"
        rule += f", {tied['largest_group']:,} in the largest group"
    return rule + (f" ({unnamed:,} studies name no patient; each counts as a patient of its own)" if unnamed else "")


def _pair_rule(options: Mapping[str, Any]) -> str:
    rule = "the surest frontal and the surest lateral image of a study, the first of equals."
    if options["pairs"] == "all":
        rule = (
            "every frontal with every lateral image of a study is a row; further rows are called `uid#2`, `uid#3`, …"
        )
    named = f" Views are named by the table `{options['views']}`." if options["views"] else ""
    return rule + named + (" Studies without both views are left out." if options["require"] == "both" else "")


def _table(head: tuple[str, ...], rows: Iterable[tuple[str | int, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        f"| {' | '.join(cell if isinstance(cell, str) else f'{cell:,}' for cell in cells)} |" for cells in lines
    )


def _size_category(total: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if total < bound), "1M<n<10M")
