"""The command `hf-cxr prepare`: its options, and what it does with them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from hf_cxr.cli.options import Parser, chosen, count
from hf_cxr.cli.terminal import command, print_next
from hf_cxr.utils.places import missing

PAIRS, REQUIRE = ("best", "all"), ("any", "both")  # of hf_cxr.data.selection, whose import would be slow


def define_prepare(parser: Parser) -> None:
    """Turn a collection into a small dataset (Parquet and a card) that load_dataset reads.

    hf-cxr prepare kaggle --root indiana/ --out data/indiana --size 384 --num-proc 4
    """
    parser.add_argument(
        "source",
        help="openi, kaggle or r2gen (the published forms of the Indiana collection), table (your own CSV, JSONL or "
        "Parquet), or phantom (the embedded synthetic collection, needs no --root)",
    )
    option = parser.option
    option("--root", "folder or archive of the collection; for a table, its file (no default; phantom needs none)")
    option("--out", "folder to make, which must not hold files yet (no default; --plan needs none)")
    option("--plan", "only count what would be kept, and check --out; no image is opened", action="store_true")
    option("--section", "text a study must have", default="impression", choices=("impression", "findings", "both"))
    option("--size", "longer side of a stored image in pixels", type=count, default=384)
    option("--split-file", "CSV with columns uid and split (default: a hash of the uid decides)")
    option("--views", "table with columns of image names and of views (default: what the collection says)")
    option("--view-columns", "their names, as in image=dicom_id view=ViewPosition (default: found)", nargs="+")
    option("--pairs", "one row per study (best), or every frontal × lateral pair (all)", default="best", choices=PAIRS)
    option("--require", "views that a study must have", default="any", choices=REQUIRE)
    option(
        "--columns",
        "table only: names of its columns, as in frontal=pa_file (default: ours)",
        nargs="+",
        metavar="OURS=YOURS",
    )
    option("--images", "table, r2gen: folder that image paths are relative to (default: beside the table)")
    option("--encoding", "table only: encoding of its text (default: UTF-8)")
    option("--placeholders", "XXXX de-identification placeholders: drop, drop_sentence or keep (default: drop)")
    option("--seed", "seed of the split, and of the phantom", type=int, default=0)
    option("--num-studies", "phantom only: how many studies (default: 5000)", type=count)
    option("--num-proc", "processes that read images", type=count, default=1)
    option("--overwrite", "replace a prepared dataset in --out", action="store_true")


def run_prepare(options: argparse.Namespace) -> None:
    from hf_cxr.data.sources import reader

    reader(options.source)
    if options.root and not Path(options.root).exists():
        raise FileNotFoundError(missing(options.root, "file or folder"))
    from hf_cxr.data.prepare import format_preparation, plan, prepare

    given = chosen(options, "section", "split_file", "views", "pairs", "require", "seed")
    given |= chosen(options, "root", "num_studies", "placeholders", "images", "encoding", "size", "overwrite")
    for name in ("columns", "view_columns"):
        if words := getattr(options, name):
            given[name] = _pairs_of(words, name)
    if options.plan:
        preparation = plan(options.source, out=options.out, **given)
        print(format_preparation(preparation))
        print("studies with " + ", ".join(f"{name}: {count:,}" for name, count in preparation["views"].items()))
        print(f"on disk: about {preparation['disk_needed'] / 1e9:,.2f} GB")
        print_next("the same " + ("with --out FOLDER, " if options.out is None else "") + "without --plan")
        return
    if options.out is None:
        raise ValueError("--out is missing: the folder to make (or use --plan, which makes none)")
    given |= chosen(options, "num_proc")
    print(format_preparation(prepare(options.source, options.out, **given)))
    recipe_name = "demo" if options.source == "phantom" else "iu_xray_small"
    print_next(
        command("hf-cxr", "explore", options.out, "--out", "runs/explore"),
        command("hf-cxr", "train", recipe_name, "--dataset", options.out, "--output_dir", "runs/first"),
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
