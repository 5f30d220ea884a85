"""Two real views, with few real laterals to test on: what a report says of a model that never saw one in training.

    python benchmarks/two_views_real.py --nih nih_real --covid covid_real --encoder dinov2_small --out runs/two_views
        [--studies 150] [--seed 0]

Trained on `--studies` NIH frontals and as many of the synthetic collection (two views) as one dataset, with the recipe
small_collection at 112 pixels a panel and without evaluations on the way, to be quick; tested on the studies of
COVID-era collections that have both views. `--nih` and `--covid` are folders with a `table.csv` and its images,
`--encoder` is a pretrained vision encoder. What is finished is skipped. Prints two reports of the same texts: with the
training studies at hand, which baselines and probes need, and of the test studies alone.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict, concatenate_datasets

import hf_cxr
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.report.tables import report_markdown

PANEL = 112
RECIPE = "small_collection"


def join(nih: Path, phantom: Path, covid: Path, out: Path, studies: int, seed: int) -> Path:
    """One dataset of three: `studies` training studies and the validation split of each of the first two; the third is
    its test split. Made once. Each dataset numbers its patients from 0, so they are numbered anew."""
    if not out.exists():
        parts, first = [], 0
        for folder in (nih, phantom, covid):
            part = load_prepared(folder)
            patients = {name: np.asarray(split["patient"]) + first for name, split in part.items()}
            first = 1 + max(map(max, patients.values()))
            parts.append(
                {name: part[name].remove_columns("patient").add_column("patient", patients[name]) for name in part}
            )
        train = [part["train"].shuffle(seed).take(min(studies, len(part["train"]))) for part in parts[:2]]
        splits = {
            "train": concatenate_datasets(train),
            "validation": concatenate_datasets([part["validation"] for part in parts[:2]]),
            "test": concatenate_datasets(list(parts[2].values())),
        }
        making = out.with_name(f"{out.name}.making")
        (making / "data").mkdir(parents=True, exist_ok=True)
        for name, split in splits.items():
            split.to_parquet(making / "data" / f"{name}-00000-of-00001.parquet")
        making.rename(out)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("nih", "covid", "out"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--studies", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    out, run = options.out, options.out / "run"
    folders = {name: out / name for name in ("nih", "phantom", "covid")}
    given: dict[str, tuple[str, dict[str, Any]]] = {
        "nih": ("table", {"root": options.nih / "table.csv", "columns": {"projection": "view", "tags": "labels"}}),
        "phantom": ("phantom", {"num_studies": 2 * options.studies, "seed": options.seed}),
        "covid": ("table", {"root": options.covid / "table.csv", "require": "both"}),
    }
    for name, (source, arguments) in given.items():
        if not folders[name].exists():
            hf_cxr.prepare(source, folders[name], size=2 * PANEL, **arguments)
    dataset = join(folders["nih"], folders["phantom"], folders["covid"], out / "joined", options.studies, options.seed)
    if not (run / "report.json").is_file():
        before = time.process_time()
        size = {"panel_size": PANEL, "panels": 2, "eval_strategy": "no", "seed": options.seed}
        hf_cxr.train(dataset, run, RECIPE, encoder=options.encoder, restart=True, **size)
        print(f"training and its report: {time.process_time() - before:.0f} CPU seconds")
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    print(f"With the training studies at hand\n\n{report_markdown(report)}")
    alone = DatasetDict({"test": load_prepared(dataset)["test"]})
    report = hf_cxr.evaluate(run, alone, out=out / "alone", seed=options.seed)
    print(f"The test studies alone\n\n{report_markdown(report)}")


if __name__ == "__main__":
    main()
