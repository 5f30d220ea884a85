"""Texts that come from elsewhere or go there: `hf-cxr evaluate --predictions` and `hf-cxr export-predictions`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from hf_cxr.cli.options import Parser, chosen, clinical_asked
from hf_cxr.cli.terminal import command, print_next, print_report
from hf_cxr.utils.places import check_checkpoint, check_dataset, check_writable, missing

FORMATS = ("rexrank", "radeval", "cxrmate", "vlm")  # those of hf_cxr.evaluation.export, whose import would be slow


def evaluate_predictions(options: argparse.Namespace) -> None:
    """`hf-cxr evaluate --predictions`: one place that is given is that of the dataset."""
    if options.dataset:
        raise ValueError(f"--predictions takes a dataset and no checkpoint; {options.checkpoint!r} is one too many")
    for name in ("target", "num_beams", "decode", "max_new_tokens", "dtype", "revision", "no_probes"):
        if getattr(options, name):
            raise ValueError(
                f"--{name.replace('_', '-')} is of a checkpoint; --predictions takes texts that are written"
            )
    dataset, clinical = options.checkpoint, clinical_asked(options)
    for file in filter(None, (options.predictions, options.train_texts)):
        if not Path(file).exists():
            raise FileNotFoundError(missing(file))
    if dataset:
        check_dataset(dataset)
    if options.out:
        check_writable(options.out)
    from hf_cxr.data.prepared import load_prepared
    from hf_cxr.evaluation.external import evaluate_texts

    opened = load_prepared(dataset, options.dataset_revision) if dataset else None
    settings = chosen(options, "split", "section", "out", "seed", "train_texts")
    report = evaluate_texts(options.predictions, opened, **settings, clinical=clinical)
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print_report(report, options.out)


def define_export_predictions(parser: Parser) -> None:
    """Write the texts of a run in the form that a leaderboard or another kit reads.

    hf-cxr export-predictions radeval runs/iu data/indiana texts.json
    hf-cxr export-predictions rexrank runs/iu ReXRank_IUXray_test.json texts.json --images images/
    """
    parser.add_argument("format", choices=FORMATS, help="whose form: " + ", ".join(FORMATS))
    parser.add_argument("run", help="run folder: its predictions.jsonl or, for a JSON file of ReXrank, its checkpoint")
    parser.add_argument("dataset", help="prepared folder or Hub id that was evaluated; or a JSON file of ReXrank")
    parser.add_argument("out", help="file to write")
    parser.option("--images", "a JSON file of ReXrank only: folder of its images (default: that of the file)")


def run_export_predictions(options: argparse.Namespace) -> None:
    out, theirs = Path(options.out), options.dataset.endswith(".json")
    if theirs and options.format != "rexrank":
        raise ValueError(f"{options.dataset}: a JSON file of studies is read for rexrank alone; name a dataset")
    if options.images and not theirs:
        raise ValueError("--images goes with a JSON file of ReXrank; a prepared dataset holds its images")
    if theirs and not Path(options.dataset).is_file():
        raise FileNotFoundError(missing(options.dataset))
    if not theirs:
        check_dataset(options.dataset)
    else:
        check_checkpoint(options.run)
    if out.is_dir():
        raise IsADirectoryError(f"{out}: is a folder; name a file, such as {out / options.format}.json")
    check_writable(out.parent)
    from hf_cxr.evaluation.export import answer_rexrank, export_predictions

    if theirs:
        number = answer_rexrank(options.run, options.dataset, out, options.images)
    else:
        number = export_predictions(options.format, options.run, options.dataset, out)
    print(f"{number:,} texts written to {out}.")
    print_next(command("less", out))
