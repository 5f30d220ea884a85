"""The `hf-cxr` command: arguments in, one clear line out when something is wrong; `hf_cxr.cli.commands` does the
work."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from hf_cxr import __version__
from hf_cxr.cli.commands import COMMANDS, INTERRUPTED, RESEARCH_USE

BAD_INPUT = 2
PAIRS, REQUIRE = ("best", "all"), ("any", "both")  # as in hf_cxr.data.selection, whose import would make --help slow


class Parser(argparse.ArgumentParser):
    """An argument parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _count(text: str) -> int:
    """An argument that is 1 or more."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def make_parser() -> Parser:
    """The whole command line. Heavy imports wait until a command runs."""
    parser = Parser(prog="hf-cxr", description=f"Impressions of two-view chest radiographs. {RESEARCH_USE}")
    parser.add_argument("--version", action="version", version=f"hf-cxr {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, help: str, example: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(
            name,
            help=help,
            description=help,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        return sub

    prepare = command(
        "prepare",
        "Turn a collection into a small dataset (Parquet and a card) that load_dataset reads.",
        "hf-cxr prepare kaggle --root indiana/ --out data/indiana --size 384 --num-proc 4",
    )
    prepare.add_argument(
        "source",
        help="openi, kaggle or r2gen (the published forms of the Indiana collection), table (your own CSV, JSONL or "
        "Parquet), or phantom (the embedded synthetic collection, needs no --root)",
    )
    prepare.add_argument("--root", help="folder of the collection; for a table, its file")
    prepare.add_argument("--out", help="folder to make; must not hold files yet")
    prepare.add_argument("--plan", action="store_true", help="only count what would be kept; no image is opened")
    prepare.add_argument("--section", default="impression", choices=("impression", "findings", "both"))
    prepare.add_argument("--size", type=int, default=384, help="longer side of a stored image in pixels (default 384)")
    prepare.add_argument("--split-file", help="CSV with columns uid and split, instead of the hash split")
    prepare.add_argument("--views", help="CSV with columns image and view, instead of what the collection says")
    prepare.add_argument(
        "--pairs",
        default="best",
        choices=PAIRS,
        help="one row per study (best), or every frontal × lateral pair (all)",
    )
    prepare.add_argument("--require", default="any", choices=REQUIRE, help="views a study must have (default any)")
    prepare.add_argument(
        "--columns", nargs="+", metavar="OURS=YOURS", help="table only: names of its columns, as in frontal=pa_file"
    )
    prepare.add_argument("--images", help="table only: folder that its image paths are relative to")
    prepare.add_argument("--encoding", help="table only: encoding of its text, if it is not UTF-8")
    prepare.add_argument(
        "--placeholders", help="what to do with XXXX de-identification placeholders: drop, drop_sentence or keep"
    )
    prepare.add_argument("--seed", type=int, default=0, help="seed of the split, and of the phantom")
    prepare.add_argument("--num-studies", type=int, help="phantom only: how many studies (default 5000)")
    prepare.add_argument("--num-proc", type=int, default=1, help="processes that read images")
    prepare.add_argument("--overwrite", action="store_true", help="replace a prepared dataset in --out")

    explore = command(
        "explore",
        "Show a prepared dataset in figures and images: an HTML page, PNG files and the same numbers as JSON.",
        "hf-cxr explore data/indiana --out runs/explore",
    )
    explore.add_argument("dataset", help="prepared folder or Hub id")
    explore.add_argument("--out", required=True, help="folder to make")
    explore.add_argument(
        "--findings", nargs="+", default=(), help="findings to show images of (default: the commonest)"
    )
    explore.add_argument("--split", default="all", help="describe this split only (default: all)")
    explore.add_argument("--seed", type=int, default=0, help="seed of the studies that are shown")

    download = command(
        "download",
        "Fetch a public collection; an interrupted download goes on where it stopped.",
        "hf-cxr download openi --out indiana/ --accept-licence",
    )
    download.add_argument("collection", help="openi (the Indiana University collection)")
    download.add_argument("--out", required=True, help="folder for the archives")
    download.add_argument(
        "--parts", nargs="+", default=["reports", "png"], help="reports, png, dcm (default: reports png)"
    )
    download.add_argument("--accept-licence", action="store_true", help="you have read the licence and accept it")
    download.add_argument("--unpack", action="store_true", help="also unpack them; prepare reads archives as they are")
    download.add_argument("--mirror", metavar="URL", help="take the archives from this address, not the publisher's")
    download.add_argument("--workers", type=int, default=4, help="files at a time (default 4)")

    train = command(
        "train",
        "Fine-tune as a YAML config says; any argument of the config can be overridden (docs/training.md lists them). "
        "--resume continues an interrupted run in its output_dir, --restart deletes it and begins anew.",
        "hf-cxr train configs/iu_xray_vit_gpt2.yaml --dataset data/indiana --output_dir runs/iu --seed 1",
    )
    train.add_argument("config", help="flat YAML file of argument names and values (see configs/)")
    train.add_argument("--num_processes", type=_count, help="launch so many processes through accelerate")
    train.add_argument(
        "--accelerate_config",
        help="launch through accelerate with this YAML, or one of configs/accelerate by its name: ddp, fsdp2, …",
    )

    evaluate = command(
        "evaluate",
        "Score a checkpoint on a split, beside image-blind baselines and shuffled images.",
        "hf-cxr evaluate runs/iu data/indiana --split test --out runs/iu",
    )
    evaluate.add_argument("checkpoint", help="run folder or Hub id")
    evaluate.add_argument("dataset", help="prepared folder or Hub id")
    evaluate.add_argument("--split", default="test")
    evaluate.add_argument("--revision", help="branch, tag or commit of a checkpoint on the Hub")
    evaluate.add_argument("--dataset-revision", help="the same of a dataset on the Hub")
    evaluate.add_argument("--out", help="folder for report.html, .md, .json and predictions.jsonl")
    evaluate.add_argument("--batch-size", type=_count, default=32)
    evaluate.add_argument("--num-beams", type=_count, default=1)
    evaluate.add_argument("--seed", type=int, default=0, help="seed of baselines, shuffles and intervals")
    evaluate.add_argument("--json", action="store_true", help="print the report as JSON, and nothing else, to stdout")

    compare = command(
        "compare",
        "Compare two evaluated runs on the same studies: the difference of each score, its interval and probability.",
        "hf-cxr compare runs/a runs/b",
    )
    compare.add_argument("run_a", help="folder with the predictions.jsonl of run A")
    compare.add_argument("run_b", help="folder with the predictions.jsonl of run B")
    compare.add_argument("--out", help="JSON file to write")
    compare.add_argument("--seed", type=int, default=0, help="seed of the bootstrap")
    compare.add_argument(
        "--json", action="store_true", help="print the comparison as JSON, and nothing else, to stdout"
    )

    predict = command(
        "predict",
        f"Write the impression of one study, or of many. {RESEARCH_USE}",
        "hf-cxr predict runs/iu --frontal frontal.png --lateral lateral.png",
    )
    predict.add_argument("checkpoint", help="run folder or Hub id")
    predict.add_argument("--revision", help="branch, tag or commit of a checkpoint on the Hub")
    predict.add_argument(
        "--frontal",
        help="frontal radiograph (PNG, JPEG or DICOM); or a folder of many, and --lateral likewise: the files of a "
        "study have the same name in both",
    )
    predict.add_argument("--lateral", help="lateral radiograph, or a folder of them")
    predict.add_argument("--csv", help="many studies: a table with columns frontal and/or lateral (paths), and uid")
    predict.add_argument("--batch-size", type=_count, default=8, help="of many studies, so many at once (default 8)")
    predict.add_argument("--num-beams", type=_count, default=1)
    predict.add_argument("--max-new-tokens", type=_count, help="longest text, in tokens")
    predict.add_argument(
        "--abstain-below",
        type=float,
        metavar="SCORE",
        help="write nothing where the score (0 to 1) is lower; a run's report.html shows what each threshold gains",
    )
    predict.add_argument("--json", action="store_true", help="one JSON object per study on stdout")

    push = command(
        "push",
        "Upload a run or a prepared dataset to the Hub in one commit, private unless told otherwise.",
        "hf-cxr push runs/iu user/name\n  hf-cxr push --dataset data/iu user/dataset",
    )
    push.add_argument("folder", help="run folder or prepared dataset; which of them is told from its files")
    push.add_argument("repo_id", help="user/name on the Hub; what an earlier push left there is brought up to date")
    push.add_argument("--dataset", action="store_true", help="the folder has to be a prepared dataset")
    push.add_argument("--public", action="store_true", help="make the repository public")
    push.add_argument(
        "--i-hold-the-rights",
        action="store_true",
        dest="hold_rights",
        help="with --public: you may share this dataset although its licence (such as CC BY-NC-ND, which forbids "
        "derivatives such as resized images) does not allow it, or is not known",
    )
    push.add_argument(
        "--with-history",
        action="store_true",
        help="with --public, of a repository that was private: its earlier revisions may become public, too",
    )

    demo = command(
        "demo",
        "The whole way on the embedded collection: prepare, pretrain, fine-tune, evaluate, card, three studies shown.",
        "hf-cxr demo --out runs/demo",
    )
    demo.add_argument("--out", default="runs/demo", help="run folder (default runs/demo)")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--num-studies", type=int, default=8000)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0 success, 2 bad usage or input, 130 interrupted."""
    parser = make_parser()
    options, rest = parser.parse_known_args(argv)
    if rest and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.command == "train":
        options.overrides = rest
    return guarded(COMMANDS[options.command], options)


def guarded(command, options: argparse.Namespace) -> int:
    """Call `command(options)`; turn an error of the input into one line on stderr."""
    try:
        _be_quiet()
        command(options)
        return 0
    except KeyboardInterrupt:
        print(f"hf-cxr {options.command}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        if options.debug or not _is_input_error(error):
            raise
        print(f"hf-cxr {options.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return BAD_INPUT


def _is_input_error(error: Exception) -> bool:
    # A TypeError or RuntimeError is a bug of ours, whose traceback is wanted.
    return isinstance(error, (ValueError, OSError, ImportError))


def _be_quiet() -> None:
    """Keep transformers' notices out of the way: they bury the one line that matters."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
