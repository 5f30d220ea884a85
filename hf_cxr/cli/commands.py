"""What each `hf-cxr` command does with its options: checks them cheaply, calls the module that does the work, and has
`hf_cxr.cli.terminal` print what that gives.

Modules are imported within the commands, after the checks, so that `--help` and most errors need none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hf_cxr.cli.app import run_app
from hf_cxr.cli.options import INTERRUPTED, chosen, clinical_asked
from hf_cxr.cli.predictions import evaluate_predictions, run_export_predictions
from hf_cxr.cli.prepare import run_prepare, table_settings
from hf_cxr.cli.push import run_push
from hf_cxr.cli.serving import run_export
from hf_cxr.cli.terminal import (
    command,
    print_answer,
    print_comparison,
    print_comparison_of_several,
    print_next,
    print_report,
)
from hf_cxr.config.kit import SIZES, closest, read_config, recipe, usual_names
from hf_cxr.utils.places import (
    check_checkpoint,
    check_dataset,
    check_place,
    check_writable,
    is_cached,
    is_export,
    missing,
    unreachable,
)

LAUNCHED = "HF_CXR_LAUNCHED"  # set for the worker processes that `hf-cxr train` starts
IMAGE_ENDINGS = r"(?i:\.(png|jpe?g|jp2|dcm|dicom|tiff?|bmp|gif|webp|pgm))+$"


def run_explore(options: argparse.Namespace) -> None:
    out = Path(options.out)
    check_dataset(options.dataset)
    check_writable(out)
    from hf_cxr.explore import explore

    facts = explore(options.dataset, out, findings=options.findings, split=options.split, seed=options.seed)
    print("\n".join(filter(None, facts["sentences"].values())))
    print(f"Written: {out / 'index.html'}")
    train = command("hf-cxr", "train", "iu_xray_small", "--dataset", options.dataset, "--output_dir", "runs/first")
    print_next(command("open", out / "index.html"), train)


def run_download(options: argparse.Namespace) -> None:
    check_writable(options.out)
    from hf_cxr.data.download import COLLECTIONS, download

    if options.accept_licence and (collection := COLLECTIONS.get(options.collection)):
        print(f"Licence accepted: {collection.licence}, {collection.licence_url}", file=sys.stderr)
    settings = chosen(options, "accept_licence", "parts", "workers", "unpack")
    for path in download(options.collection, options.out, base_url=options.mirror, **settings):
        print(path)
    print_next(command("hf-cxr", "prepare", options.collection, "--root", options.out, "--out", "data/indiana"))


def run_train(options: argparse.Namespace) -> None:
    config = recipe(options.config)
    told = read_config(config) | _values(options.overrides)
    options.out = told.get("output_dir") or "runs/latest"
    try:
        _check_before_training(config, told, options.overrides)
        check_writable(options.out)
    except (OSError, ValueError):
        if told.keys() - usual_names():
            from hf_cxr.config.training import check_names

            check_names(config, options.overrides)  # a misspelt name explains a dataset that is not there
        raise
    import torch
    from torch.distributed.elastic.multiprocessing.api import SignalException

    from hf_cxr.config import parse_arguments
    from hf_cxr.training import launch

    words = ["train", str(config), *options.overrides]
    lost = launch.command_that_lost_processes()
    asked = options.num_processes or options.accelerate_config or torch.cuda.device_count() > 1
    try:
        if lost or (asked and not launch.is_launched()):
            parse_arguments(config, options.overrides)  # a bad config is reported once, not by every process
            os.environ[LAUNCHED] = "1"
            if lost:
                return launch.start(lost, words)
            processes = options.num_processes or (None if options.accelerate_config else torch.cuda.device_count())
            return launch.launch(words, processes, options.accelerate_config)
        kit, args = parse_arguments(config, options.overrides)
        from hf_cxr.training.run import train

        report = train(kit, args)
    except (KeyboardInterrupt, SignalException) as stop:
        if getattr(stop, "sigval", signal.SIGINT) != signal.SIGINT:
            raise
        rank = os.environ.get("RANK")
        if rank and (rank != "0" or LAUNCHED in os.environ):  # the process that started this one tells, or the first
            raise SystemExit(INTERRUPTED) from None
        raise KeyboardInterrupt(_how_to_go_on(options)) from None
    if args.process_index == 0:
        print_report(report, args.output_dir)
    args.distributed_state.destroy_process_group()


def _values(overrides: Sequence[str]) -> dict[str, str]:
    """["--dataset", "d", "--seed=1"] → {"dataset": "d", "seed": "1"}"""
    values = {}
    for word, following in zip(overrides, [*overrides[1:], ""], strict=False):
        name, equals, value = word.partition("=")
        if name.startswith("--"):
            values[name[2:]] = value if equals else following
    return values


def _check_before_training(config: Path, told: dict[str, Any], overrides: Sequence[str]) -> None:
    """What can be seen of a run's dataset and parts before torch is imported."""
    if not told.get("dataset"):
        raise ValueError(f"{config}: names no dataset; write `dataset: FOLDER` there, or add --dataset FOLDER")
    try:
        check_dataset(told["dataset"])
    except OSError as error:
        own = "" if "dataset" in _values(overrides) else "; name your own with --dataset FOLDER"
        raise type(error)(f"{error}{own}") from None
    if told.get("init_from"):  # encoder and decoder are then ignored
        return check_checkpoint(told["init_from"])
    for part in ("encoder", "decoder"):
        name = str(told.get(part, SIZES[0]))
        if "/" in name or Path(name).exists():
            check_place(name, part, "config.json")
        elif name not in SIZES and not is_cached(name) and (reason := unreachable()):  # a Hub id without an owner?
            near = closest(name, SIZES)
            hint = f"; did you mean {near!r}?" if near else f"; sizes from scratch are {', '.join(SIZES)}"
            raise FileNotFoundError(f"{name}: no such {part} here, and not to be had from the Hub ({reason}){hint}")


def _how_to_go_on(options: argparse.Namespace) -> str:
    """The command that continues an interrupted run, or starts it again where nothing was saved."""
    from hf_cxr.training.beginning import trained_so_far
    from hf_cxr.training.checkpoints import read_progress

    if (stage := (read_progress(options.out) or {}).get("stage")) == "finished":
        return ""
    saved = stage and trained_so_far(Path(options.out))
    told = vars(options)
    launching = [f"--{name}={told[name]}" for name in ("num_processes", "accelerate_config") if told[name]]
    same = [word for word in options.overrides if word.split("=")[0] not in ("--restart", "--resume")]
    again = command("hf-cxr", "train", options.config, *launching, *same, *(["--resume"] if saved else []))
    what = f"{options.out} keeps what was trained; continue" if saved else "nothing was saved yet; start again"
    return f"{what} with: {again}"


def run_evaluate(options: argparse.Namespace) -> None:
    if options.predictions:
        return evaluate_predictions(options)
    if not options.dataset or options.section or options.train_texts:
        what = "--section and --train-texts go with" if options.dataset else "name a checkpoint and a dataset, or"
        raise ValueError(f"{what} --predictions FILE")
    clinical = clinical_asked(options)
    check_checkpoint(options.checkpoint)
    check_dataset(options.dataset)
    splits = {file.name.split("-")[0] for file in Path(options.dataset).glob("data/*-*.parquet")}
    if splits and options.split not in splits:
        raise ValueError(f"{options.dataset}: no split {options.split!r}; it has {', '.join(sorted(splits))}")
    if options.out:
        check_writable(options.out)
    from hf_cxr.data.prepared import load_prepared
    from hf_cxr.evaluation.evaluate import evaluate

    dataset = load_prepared(options.dataset, options.dataset_revision)
    settings = chosen(
        options, "batch_size", "seed", "revision", "dtype", "num_beams", "max_new_tokens", "target", "decode"
    )
    settings |= {"probes": not options.no_probes, "clinical": clinical}
    report = evaluate(options.checkpoint, dataset, options.split, options.out, **settings)
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print_report(report, options.out, options.checkpoint)
    if options.out and Path(options.checkpoint).is_dir() and Path(options.out).samefile(options.checkpoint):
        _write_card_anew(options)


def _write_card_anew(options: argparse.Namespace) -> None:
    """The card of a run beside its new report, so that it never tells older scores."""
    from accelerate import PartialState

    from hf_cxr.hub.model_card import evaluated_on, write_model_card

    if PartialState().is_main_process:
        try:
            facts = evaluated_on(options.out, options.dataset, options.split, options.dataset_revision)
        except FileNotFoundError as error:
            print(f"hf-cxr evaluate: {error}", file=sys.stderr)
        else:
            write_model_card(options.out, facts)


def run_compare(options: argparse.Namespace) -> None:
    runs = [options.run_a, options.run_b, *options.more]
    for run in runs:
        if not Path(run).is_dir():
            raise FileNotFoundError(missing(run, "run folder", folders=True))
    out = Path(options.out) if options.out else None
    if out and not options.more and out.is_dir():
        raise IsADirectoryError(f"{out}: is a folder; name a JSON file, such as {out / 'comparison.json'}")
    if out and options.more and out.exists() and not out.is_dir():
        raise FileExistsError(f"{out}: is a file; name a folder for compare.json and compare.html of several runs")
    if out:
        check_writable(out if options.more else out.parent)
    from hf_cxr.evaluation.compare import compare
    from hf_cxr.evaluation.compare_several import compare_page, compare_several
    from hf_cxr.utils.files import replace_files

    comparison = compare_several(runs, options.seed) if options.more else compare(runs[0], runs[1], options.seed)
    text = json.dumps(comparison, indent=2, ensure_ascii=False)
    if out and options.more:
        replace_files(out, {"compare.json": text + "\n", "compare.html": compare_page(comparison)})
    elif out:
        replace_files(out.parent, {out.name: text + "\n"})
    if options.json:
        return print(text)
    if options.more:
        print_comparison_of_several(comparison)
        return print_next(command("open", out / "compare.html")) if out else None
    print_comparison(comparison)
    better = options.run_b if comparison["scores"]["finding_f1_micro"]["difference"] > 0 else options.run_a
    print_next(command("open", Path(better) / "report.html"))


def run_predict(options: argparse.Namespace) -> None:
    if not is_export(options.checkpoint):
        check_checkpoint(options.checkpoint)
    if options.decode and is_export(options.checkpoint):
        raise ValueError(f"{options.checkpoint}: exported, so without --decode; --num-beams searches further")
    studies = _studies_to_predict(options)
    if isinstance(studies, dict):
        _check_readable(studies)
    from hf_cxr.serving.runner import open_checkpoint

    pipe = open_checkpoint(options.checkpoint, options.revision, options.dtype)
    settings = chosen(options, "num_beams", "max_new_tokens", "abstain_below", "decode")
    context = chosen(options, "indication", "comparison", "age", "sex")
    for name in context:
        if not {name, "age_sex" if name in ("age", "sex") else name} & {*pipe.layout.context}:
            article = "an" if name[0] in "ai" else "a"
            print(f"hf-cxr predict: this model does not take {article} {name}; it is not used", file=sys.stderr)
    if isinstance(studies, dict):
        print_answer(None, pipe(studies | context, **settings)[0], options.json)
    else:
        uids: list[str] = []
        answers = pipe(_many(studies, uids), batch_size=options.batch_size, on_unreadable="skip", **settings)
        failed = 0
        for number, answer in enumerate(answers):
            failed += "error" in answer[0]
            print_answer(uids[number], answer[0], options.json)
        if failed:
            raise ValueError(f"{failed} of {len(studies)} studies could not be read")
    if sys.stdout.isatty() and not options.json:  # in a file or a pipe, studies alone
        print_next("--abstain-below SCORE withholds unsure texts", "--json writes for programs")


def _many(studies: Sequence[Any], uids: list[str]) -> Iterator[Any]:
    """What the pipeline reads of each study; its uid goes into `uids`."""
    from hf_cxr.data.study import Study
    from hf_cxr.data.unprepared import views_of

    for uid, views in views_of(studies) if isinstance(studies[0], Study) else studies:
        uids.append(uid)
        yield views


def _check_readable(study: dict[str, str]) -> None:
    """Read the images of one study, which takes less time than loading a model."""
    from hf_cxr.inference.views import UnreadableImage, read_radiograph

    for view, path in study.items():
        if "://" not in path:
            try:
                read_radiograph(path)
            except UnreadableImage as error:
                raise UnreadableImage(f"{view}: {error}") from None


def _studies_to_predict(options: argparse.Namespace) -> dict[str, str] | list[Any]:
    """One study, or many: as (uid, study), or the `Study` of a table."""
    study = {view: getattr(options, view) for view in ("frontal", "lateral") if getattr(options, view)}
    if options.csv and study:
        raise ValueError(f"--csv or --{next(iter(study))}: not both")
    if not study and not options.csv:
        raise ValueError("no image given: use --frontal, --lateral or both, or --csv for many studies")
    are_folders = {Path(path).is_dir() for path in study.values()}
    if (options.csv or True in are_folders) and (given := chosen(options, "indication", "comparison", "age", "sex")):
        raise ValueError(f"--{next(iter(given))} is of one study; of many it is a column of --csv")
    if len(are_folders) == 2:
        raise ValueError("--frontal and --lateral: one is a folder, the other is not")
    for path in (options.csv, *study.values()):
        if path and not re.search(r"\*|://", path) and not Path(path).exists():
            raise FileNotFoundError(missing(path))
    if options.csv:
        from hf_cxr.data.sources import table

        if listed := list(table.studies(options.csv, texts=False, **table_settings(options))):
            return listed
        raise ValueError(f"{options.csv}: no study in it")
    return _studies_in_folders(study) if are_folders == {True} else study


def _studies_in_folders(folders: dict[str, str]) -> list[tuple[str, dict[str, str | None]]]:
    """The files of a folder of each view, as deep as they lie; files whose names differ in what they end with alone
    (.png, .dcm, .dcm.png …) are one study, whose uid is that common name."""
    roots = [Path(folder).resolve() for folder in folders.values()]
    if len(roots) == 2 and (roots[0].is_relative_to(roots[1]) or roots[1].is_relative_to(roots[0])):
        raise ValueError("--frontal and --lateral: one folder lies in the other")
    studies: dict[str, dict[str, str | None]] = {}
    for view, folder in folders.items():
        for name in _files_under(Path(folder)):
            uid, path = re.sub(IMAGE_ENDINGS, "", name), str(Path(folder) / name)
            known = studies.setdefault(uid, {}).setdefault(view, path)
            if known != path:
                raise ValueError(f"{known} and {path}: which of them is the {view} view of {uid}?")
    if not studies:
        raise ValueError(f"{' and '.join(folders.values())}: no files")
    if len(folders) == 2 and all(len(views) == 1 for views in studies.values()):
        print(
            "hf-cxr predict: no file has the same name in both folders: each is a study of one view", file=sys.stderr
        )
    return sorted(studies.items())


def _files_under(folder: Path) -> list[str]:
    """Names of all files that are not hidden, links to nothing among them, relative to `folder`."""
    found = []
    for place, inner, files in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not name.startswith(".")]
        found += [Path(place, name).relative_to(folder).as_posix() for name in files if not name.startswith(".")]
    return sorted(found)


def run_demo(options: argparse.Namespace) -> None:
    check_writable(options.out)
    from hf_cxr.cli.demo import demo

    demo(Path(options.out), seed=options.seed, num_studies=options.num_studies)


WORK = [run_prepare, run_explore, run_download, run_train, run_evaluate, run_compare, run_export_predictions]
WORK += [run_predict, run_push, run_export, run_app, run_demo]
COMMANDS = {function.__name__.removeprefix("run_").replace("_", "-"): function for function in WORK}
