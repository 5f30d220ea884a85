"""The `push` command: its options, and what it does with them. The work lives in `hf_cxr.hub`."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

from hf_cxr.cli.options import INTERRUPTED, Parser, chosen
from hf_cxr.cli.terminal import command, print_next, printable
from hf_cxr.utils.places import missing


def define_push(parser: Parser) -> None:
    """Upload a run or a prepared dataset to the Hub in one commit, private unless told otherwise.

    hf-cxr push runs/iu user/name
    hf-cxr push --dataset data/iu user/dataset
    """
    parser.add_argument("folder", help="run folder or prepared dataset; which of them is told from its files")
    parser.add_argument("repo_id", help="user/name on the Hub; what an earlier push left there is brought up to date")
    parser.option("--dataset", "the folder has to be a prepared dataset", action="store_true")
    parser.option("--public", "make the repository public", action="store_true")
    parser.option(
        "--i-hold-the-rights",
        "with --public: you may share this dataset although its licence (such as CC BY-NC-ND, which forbids "
        "derivatives such as resized images) does not allow it, or is not known",
        action="store_true",
        dest="hold_rights",
    )
    history = "with --public, of a repository that was private: its earlier revisions may become public, too"
    parser.option("--with-history", history, action="store_true")
    checked = "push although texts hold what looks like names, record numbers, dates or telephone numbers"
    parser.option("--i-checked-the-texts", checked, action="store_true", dest="texts_checked")
    parser.option("--with-age-and-sex", "push these columns of a dataset too", action="store_true")
    parser.option("--space", "of a run: also make a Space that shows the app (hf-cxr app) of it", action="store_true")
    parser.option("--space-id", "its name (default: that of the run, with -app at its end)", metavar="USER/NAME")
    parser.option("--endpoint", "of a run: add the handler.py that Inference Endpoints call", action="store_true")


def run_push(options: argparse.Namespace) -> None:
    if not Path(options.folder).exists():
        raise FileNotFoundError(missing(options.folder, "folder", folders=True))
    from hf_cxr.hub.patients import PatientsToldOf
    from hf_cxr.hub.push import licence_note, push
    from hf_cxr.hub.space import push_space

    if note := licence_note(options.folder, options.public):
        print(f"hf-cxr push: {note}", file=sys.stderr)
    settings = chosen(options, "public", "dataset", "hold_rights", "with_history", "texts_checked", "with_age_and_sex")
    is_dataset = options.dataset or (Path(options.folder) / "prepare.json").is_file()
    if (options.space or options.space_id) and is_dataset:
        raise ValueError(f"{options.folder}: is a dataset; a Space runs a checkpoint")
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_at_once)
    try:
        print(push(options.folder, options.repo_id, endpoint=options.endpoint, **settings))
        if options.space or options.space_id:
            print(push_space(options.repo_id, options.space_id, options.public))
    except PatientsToldOf as error:
        print("\n".join(map(printable, error.examples)))  # for the eyes of whoever pushes
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if is_dataset:
        print_next(command("hf-cxr", "train", "iu_xray_small", "--dataset", options.repo_id))
    else:
        print_next(command("hf-cxr", "predict", options.repo_id) + " --frontal IMAGE [--lateral IMAGE]")


def _leave_at_once(*signal_and_frame) -> NoReturn:
    # An exception would wait for the Hub client's threads, that is for whole uploads; nothing is lost on the Hub.
    print("hf-cxr push: interrupted", file=sys.stderr, flush=True)
    if callable(
        clean_up := signal.getsignal(signal.SIGTERM)
    ):  # of a staging folder; it ends with this signal's status
        clean_up(*signal_and_frame)
    os._exit(INTERRUPTED)
