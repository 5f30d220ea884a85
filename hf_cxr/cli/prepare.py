"""The command `hf-cxr prepare`: its options, and what it does with them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_cxr.cli.options import Parser, chosen, count
from hf_cxr.cli.terminal import command, print_next
from hf_cxr.data.sources import preset
from hf_cxr.utils.places import missing

PAIRS, REQUIRE = ("best", "all"), ("any", "both")  # of hf_cxr.data.selection, whose import would be slow


def define_prepare(parser: Parser) -> None:
    """Turn a collection into a small dataset (Parquet and a card) that load_dataset reads.

    hf-cxr prepare kaggle --root indiana/ --out data/indiana --size 384 --num-proc 4
    """
    parser.add_argument(
        "source",
        help="openi, kaggle or r2gen (the published forms of the Indiana collection; r2gen also reads R2Gen's "
        "MIMIC-CXR), mimic (MIMIC-CXR), table (your own CSV, JSON or Parquet, or a --preset), hub (a dataset on the "
        "Hub with images in it), or phantom (the embedded synthetic collection, needs no --root)",
    )
    option = parser.option
    root = "folder or archive of the collection; table: its file; hub: user/dataset; mimic: folder of its tables"
    option("--root", f"{root} (default of mimic: beside the images; no other default)")
    option("--out", "folder to make, which must not hold files yet (no default; --plan needs none)")
    option("--plan", "only count what would be kept, and check --out; no image is opened", action="store_true")
    sections = ("any", "impression", "findings", "both")
    option("--section", "text a study must have (any: at least one of the two)", default="any", choices=sections)
    option("--size", "longer side of a stored image in pixels", type=count, default=384)
    option("--split-file", "CSV with columns uid and split (default: a hash of the uid decides)")
    option("--views", "table with columns of image names and of views (default: what the collection says)")
    option("--view-columns", "their names, as in image=dicom_id view=ViewPosition (default: found)", nargs="+")
    option("--pairs", "one row per study (best), or every frontal × lateral pair (all)", default="best", choices=PAIRS)
    option("--require", "views that a study must have", default="any", choices=REQUIRE)
    table_options(
        parser,
        "table and hub only",
        "mimic: folder of the images; table, hub, r2gen: folder that image paths are relative to (default: its own)",
    )
    option(
        "--reports", "mimic only: mimic-cxr-reports.zip, a folder of .txt files, or a table of sections (no default)"
    )
    option("--labels", "mimic only: another table of labels (default: mimic-cxr-…-chexpert.csv beside the images)")
    option("--revision", "hub only: branch, tag or commit (default: the main branch)")
    option("--config", "hub only: the configuration, of a dataset with several (no default)")
    option("--placeholders", "XXXX, ___ and other placeholders: drop, drop_sentence or keep (default: drop)")
    option("--seed", "seed of the split, and of the phantom", type=int, default=0)
    option("--num-studies", "phantom only: how many studies (default: 5000)", type=count)
    option("--num-proc", "processes that read images", type=count, default=1)
    option("--scheduler", "address of a Dask scheduler whose workers read images (default: this machine reads them)")
    option("--resume", "go on where an interrupted run into --out stopped", action="store_true")
    option("--overwrite", "replace a prepared dataset, or an interrupted run, in --out", action="store_true")


def table_options(parser: Parser, where: str, images: str) -> None:
    """The options that say how a table is read."""
    ours = ", ".join(preset.COLUMNS)
    columns = f"{where}: names of its columns, as in frontal=pa_file; ours, the default: {ours}"
    parser.option("--columns", columns, nargs="+", metavar="OURS=YOURS")
    known = ", ".join(preset.names())
    parser.option("--preset", f"{where}: a published collection ({known}), or a YAML file of yours (no default)")
    parser.option("--images", images)
    parser.option("--encoding", f"{where}: encoding of its text (default: UTF-8)")


def table_settings(options: argparse.Namespace) -> dict[str, Any]:
    """What these options say, as arguments of `hf_cxr.data.sources.table.studies`."""
    given = chosen(options, "images", "encoding", "preset")
    return given | ({"columns": _pairs_of(options.columns, "columns")} if options.columns else {})


def run_prepare(options: argparse.Namespace) -> None:
    from hf_cxr.data.sources import reader

    reader(options.source)
    elsewhere = options.source == "hub" or re.search(r"\*|://", options.root or "")
    if options.root and not elsewhere and not Path(options.root).exists():
        raise FileNotFoundError(missing(options.root, "file or folder"))
    from hf_cxr.data.prepare import format_preparation, plan, prepare

    given = chosen(options, "section", "split_file", "views", "pairs", "require", "seed")
    given |= chosen(options, "root", "num_studies", "placeholders", "reports", "labels", "revision", "config")
    given |= chosen(options, "size", "overwrite")
    given |= table_settings(options)
    if options.view_columns:
        given["view_columns"] = _pairs_of(options.view_columns, "view_columns")
    if options.plan:
        preparation = plan(options.source, out=options.out, **given)
        print(format_preparation(preparation))
        print("studies with " + ", ".join(f"{name}: {count:,}" for name, count in preparation["views"].items()))
        print(f"on disk: about {preparation['disk_needed'] / 1e9:,.2f} GB")
        print_next("the same " + ("with --out FOLDER, " if options.out is None else "") + "without --plan")
        return
    if options.out is None:
        raise ValueError("--out is missing: the folder to make (or use --plan, which makes none)")
    given |= chosen(options, "num_proc", "scheduler", "resume")
    preparation = prepare(options.source, options.out, **given)
    print(format_preparation(preparation))
    target = () if preparation["sections"]["impression"] else ("--target", "findings")
    recipe_name = "demo" if options.source == "phantom" else "iu_xray_small"
    print_next(
        command("hf-cxr", "explore", options.out, "--out", "runs/explore"),
        command("hf-cxr", "train", recipe_name, "--dataset", options.out, *target, "--output_dir", "runs/first"),
    )


def _pairs_of(words: Sequence[str], option: str) -> dict[str, str]:
    """["frontal=PA file"] → {"frontal": "PA file"}"""
    pairs = {}
    for word in words:
        ours, equals, yours = word.partition("=")
        if not equals:
            raise ValueError(f"--{option.replace('_', '-')} {word}: expected OURS=YOURS, as in frontal=pa_file")
        pairs[ours.strip()] = yours.strip()
    return pairs
