"""What a model is asked and told: sections learned alone and together, and whether it reads the context or the images.

    python benchmarks/targets_and_context.py --out runs/targets [--only targets context] [--studies 4000] [--seed 0]

Trains the demo recipe on the synthetic collection once for each row of `RUNS`, skips what is finished, prints a table
and writes `OUT/results.json`. `parrot` is trained on a dataset whose training images are dealt to other studies, so
that only the indication can help it; it is tested on whole studies. `--max_steps` is for a try.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from datasets import concatenate_datasets

import hf_cxr
from hf_cxr.data.prepare import prepare
from hf_cxr.data.prepared import load_prepared

TOLD = {"context": ["indication"], "context_dropout": 0.2}
# Part → run → the arguments in which it differs from the recipe.
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "targets": {name: {"target": name} for name in ("impression", "findings", "report")},
    "context": {
        "impression": {},
        "context": TOLD,
        "context_half": TOLD | {"context_dropout": 0.5},
        "parrot": TOLD,
    },
}
SCORE = "finding_f1_micro"
ASKED = ("shuffled", "image_gain", "shuffled_context", "context_gain", "shuffled_both", "both_gain", "inputs")


def deal_images(folder: Path, out: Path, seed: int) -> Path:
    """A copy of the dataset whose training studies have each other's images; made once."""
    if not out.exists():
        train = load_prepared(folder)["train"]
        order = np.random.default_rng(seed).permutation(len(train))
        views = ["frontal", "lateral"]
        images = train.select_columns(views).select(order)
        dealt = concatenate_datasets([train.remove_columns(views).flatten_indices(), images.flatten_indices()], axis=1)
        made = out.with_name(f"{out.name}.making")
        shutil.rmtree(made, ignore_errors=True)
        shutil.copytree(folder, made)
        for file in (made / "data").glob("train-*"):
            file.unlink()
        dealt.select_columns(train.column_names).to_parquet(made / "data" / "train-00000-of-00001.parquet")
        made.rename(out)
    return out


def finished(run: Path, dataset: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """The report of a run, trained now unless it is there."""
    if not (run / "report.json").is_file():
        hf_cxr.train(dataset=dataset, output_dir=run, recipe="demo", **arguments)
    report: dict[str, Any] = json.loads((run / "report.json").read_text(encoding="utf-8"))
    return report


def scores(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report, or of one of its sections, that this benchmark asks for."""
    kept = {"n": report["n"], SCORE: report[SCORE], "verdict": report["verdict"]}
    kept[f"{SCORE}_ci95"] = report["ci95"].get(SCORE)
    for name in ASKED:
        kept |= {key: report[key] for key in (name, f"{name}_ci95", f"{name}_p") if key in report}
    return kept


def both_sections(run: Path, most: int = 300) -> dict[str, int]:
    """How many of the first `most` test studies have a text for each section."""
    lines = (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()[:most]
    sections = [json.loads(line)["sections"].values() for line in lines]
    return {"n": len(lines), "with both": sum(all(text["prediction"].strip() for text in row) for row in sections)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_steps", type=int)
    options = parser.parse_args()
    dataset = options.out / "dataset"
    if not dataset.exists():
        prepare("phantom", dataset, num_studies=options.studies, seed=options.seed, size=128)
    common: dict[str, Any] = {"seed": options.seed}
    if options.max_steps:
        common |= {"max_steps": options.max_steps, "findings_pretraining_epochs": 0}
    results: dict[str, Any] = {}
    for name, arguments in {name: given for part in options.only for name, given in RUNS[part].items()}.items():
        source = deal_images(dataset, options.out / "dealt", options.seed) if name == "parrot" else dataset
        run = options.out / name
        report = finished(run, source, common | arguments)
        results[name] = {key: scores(part) for key, part in (report.get("sections") or {"": report}).items()}
        if name == "report":
            results[name]["both sections"] = both_sections(run)
        (options.out / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")

    print(f"{'run':12} {'section':11} {'F1':>6} {'image gain':>26} {'context gain':>26}")
    for name, parts in results.items():
        for section, row in parts.items():
            if section == "both sections":
                print(f"{name:12} both sections in {row['with both']} of {row['n']} texts")
                continue
            gains = []
            for what in ("image", "context"):
                if value := row.get(f"{what}_gain", {}).get(SCORE):
                    low, high = row[f"{what}_gain_ci95"][SCORE]
                    gains.append(f"{value:+.3f} ({low:+.3f} to {high:+.3f})")
            print(f"{name:12} {section:11} {row[SCORE]:6.3f} {' '.join(f'{gain:>26}' for gain in gains)}")


if __name__ == "__main__":
    main()
