"""What each `hf-cxr` command does with its options: calls the module that does the work, and prints what that gives.

Modules are imported within the commands, so that `--help` and errors of usage need none of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

INTERRUPTED = 130
IMAGE_ENDINGS = r"(?i:\.(png|jpe?g|jp2|dcm|dicom|tiff?|bmp|gif|webp|pgm))+$"
RESEARCH_USE = "Research use only, not for diagnosis."


def run_prepare(options: argparse.Namespace) -> None:
    from hf_cxr.data.prepare import format_preparation, plan, prepare

    shared = ("section", "split_file", "views", "pairs", "require", "seed")
    chosen: dict[str, Any] = {name: getattr(options, name) for name in shared}
    optional = ("root", "num_studies", "placeholders", "images", "encoding")
    chosen |= {name: value for name in optional if (value := getattr(options, name)) is not None}
    if options.columns:
        chosen["columns"] = _pairs_of(options.columns)
    if options.plan:
        preparation = plan(options.source, **chosen)
        print(format_preparation(preparation))
        print("studies with " + ", ".join(f"{name}: {count:,}" for name, count in preparation["views"].items()))
        return
    if options.out is None:
        raise ValueError("--out is missing: the folder to make (or use --plan, which makes none)")
    settings = {name: getattr(options, name) for name in ("size", "num_proc", "overwrite")}
    print(format_preparation(prepare(options.source, options.out, **settings, **chosen)))


def _pairs_of(words: Sequence[str]) -> dict[str, str]:
    """["frontal=PA file"] → {"frontal": "PA file"}"""
    pairs = {}
    for word in words:
        ours, equals, yours = word.partition("=")
        if not equals:
            raise ValueError(f"--columns {word}: expected OURS=YOURS, as in frontal=pa_file")
        pairs[ours.strip()] = yours.strip()
    return pairs


def run_explore(options: argparse.Namespace) -> None:
    from hf_cxr.explore import explore

    out = Path(options.out)
    facts = explore(options.dataset, out, findings=options.findings, split=options.split, seed=options.seed)
    print("\n".join(facts["sentences"].values()))
    print(f"Written: {out / 'index.html'}")


def run_download(options: argparse.Namespace) -> None:
    from hf_cxr.data.download import COLLECTIONS, download

    if options.accept_licence and (collection := COLLECTIONS.get(options.collection)):
        print(f"Licence accepted: {collection.licence}, {collection.licence_url}", file=sys.stderr)
    fetched = download(
        options.collection,
        options.out,
        accept_licence=options.accept_licence,
        parts=options.parts,
        workers=options.workers,
        unpack=options.unpack,
        base_url=options.mirror,
    )
    for path in fetched:
        print(path)


def run_train(options: argparse.Namespace) -> None:
    import torch

    from hf_cxr.config import parse_arguments
    from hf_cxr.training import launch

    words = ["train", options.config, *options.overrides]
    lost = launch.command_that_lost_processes()
    asked = options.num_processes or options.accelerate_config or torch.cuda.device_count() > 1
    if lost or (asked and not launch.is_launched()):
        parse_arguments(options.config, options.overrides)  # a bad config is line once, not by every process
        if lost:
            return launch.start(lost, words)
        processes = options.num_processes
        if not processes and not options.accelerate_config:
            processes = torch.cuda.device_count()
        return launch.launch(words, processes, options.accelerate_config)
    kit, args = parse_arguments(options.config, options.overrides)
    from hf_cxr.training.run import train

    report = train(kit, args)
    if args.process_index == 0:
        print_report(report, args.output_dir)
    args.distributed_state.destroy_process_group()


def run_evaluate(options: argparse.Namespace) -> None:
    from hf_cxr.data.prepare import load_prepared
    from hf_cxr.evaluation.evaluate import evaluate
    from hf_cxr.models.modeling import load_checkpoint

    checkpoint = load_checkpoint(options.checkpoint, options.revision)
    report = evaluate(
        checkpoint,
        load_prepared(options.dataset, options.dataset_revision),
        options.split,
        options.out,
        batch_size=options.batch_size,
        seed=options.seed,
        num_beams=options.num_beams,
    )
    if options.json:
        print(json.dumps(report, ensure_ascii=False))
    else:
        print_report(report, options.out)
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
    from hf_cxr.evaluation.compare import compare, comparison_table

    comparison = compare(options.run_a, options.run_b, options.seed)
    text = json.dumps(comparison, indent=2, ensure_ascii=False)
    if options.out:
        partial = Path(options.out).with_name(f".{Path(options.out).name}.partial")
        partial.write_text(text + "\n", encoding="utf-8")
        partial.replace(options.out)
    print(text if options.json else f"{comparison_table(comparison)}\n\n{comparison['verdict']}")


def run_predict(options: argparse.Namespace) -> None:
    studies = _studies_to_predict(options)
    from hf_cxr.inference.pipeline import ImpressionPipeline
    from hf_cxr.models.modeling import load_checkpoint

    parts = load_checkpoint(options.checkpoint, options.revision)
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    settings = {name: getattr(options, name) for name in ("num_beams", "max_new_tokens", "abstain_below")}
    settings = {name: value for name, value in settings.items() if value is not None}
    if isinstance(studies, dict):
        _print_answer(None, pipe(studies, **settings)[0], options.json)
        return
    many = (study for _, study in studies)
    answers = pipe(many, batch_size=options.batch_size, on_unreadable="skip", **settings)
    failed = 0
    for (uid, _), answer in zip(studies, answers, strict=True):
        failed += "error" in answer[0]
        _print_answer(uid, answer[0], options.json)
    if failed:
        raise ValueError(f"{failed} of {len(studies)} studies could not be read")


def _print_answer(uid: str | None, answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        row = {"uid": uid} | answer
        line = json.dumps({key: value for key, value in row.items() if value is not None}, ensure_ascii=False)
        print(line, flush=True)
        return
    prefix = f"{uid}\t" if uid is not None else ""
    warnings = list(answer.get("warnings", ()))
    if answer.get("truncated"):
        warnings.append("the text was cut short, by --max-new-tokens or by the checkpoint's own limit")
    for warning in warnings:
        print(f"{prefix}warning: {warning}", file=sys.stderr)
    print(prefix + answer_line(answer), flush=True)


def answer_line(row: dict[str, Any]) -> str:
    if "error" in row:
        return f"not read: {row['error']}"
    return f"abstained (score {row['score']:.2f})" if row.get("abstained") else row["impression"]


def _studies_to_predict(options: argparse.Namespace) -> dict[str, str] | list[tuple[str, dict[str, str | None]]]:
    """One study, or many as (uid, study)."""
    study = {view: getattr(options, view) for view in ("frontal", "lateral") if getattr(options, view)}
    if options.csv and study:
        raise ValueError(f"--csv or --{next(iter(study))}: not both")
    if options.csv:
        return _read_study_table(Path(options.csv))
    if not study:
        raise ValueError("no image given: use --frontal, --lateral or both, or --csv for many studies")
    are_folders = {Path(path).is_dir() for path in study.values()}
    if len(are_folders) == 2:
        raise ValueError("--frontal and --lateral: one is a folder, the other is not")
    return _studies_in_folders(study) if are_folders == {True} else study


def _read_study_table(path: Path) -> list[tuple[str, dict[str, str | None]]]:
    """Rows of a table; paths are relative to the file."""
    from hf_cxr.data.sources.rows import read_table

    table, views = read_table(path), ("frontal", "lateral")
    if not set(views) & set(table.columns):
        raise ValueError(f"{path}: neither a column 'frontal' nor a column 'lateral'")
    return [
        (row["uid"] or str(number), {view: str(path.parent / row[view]) if row[view] else None for view in views})
        for number, row in enumerate(table.rows(optional=("uid", *views)), start=1)
    ]


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


def run_push(options: argparse.Namespace) -> None:
    from hf_cxr.hub.push import licence_note, push

    if options.public and not options.dataset and (note := licence_note(Path(options.folder))):
        print(f"hf-cxr push: {note}", file=sys.stderr)
    settings = {name: getattr(options, name) for name in ("public", "dataset", "hold_rights", "with_history")}
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave_at_once)
    try:
        print(push(options.folder, options.repo_id, **settings))
    finally:
        signal.signal(signal.SIGINT, before)


def _leave_at_once(*_) -> NoReturn:
    # An exception would wait for the Hub client's threads, that is for whole uploads; the Hub holds all of a push or
    # none of it, so nothing is lost.
    print("hf-cxr push: interrupted", file=sys.stderr, flush=True)
    os._exit(INTERRUPTED)


def run_demo(options: argparse.Namespace) -> None:
    from hf_cxr.cli.demo import demo

    demo(Path(options.out), seed=options.seed, num_studies=options.num_studies)


def print_report(report: dict[str, Any] | None, folder: str | None) -> None:
    """The score table and the verdict, as a person reads them."""
    from hf_cxr.evaluation.report import score_table

    if report is None:
        print("Not evaluated: the dataset has no test studies.")
    else:
        print(f"\n{score_table(report)}\n\n{report['distinct_outputs']} distinct outputs on {report['n']} studies.")
        print(report["verdict"])
    print(f"{f'Written to {folder}. ' if folder else ''}{RESEARCH_USE}")


COMMANDS = {
    "prepare": run_prepare,
    "explore": run_explore,
    "download": run_download,
    "train": run_train,
    "evaluate": run_evaluate,
    "compare": run_compare,
    "predict": run_predict,
    "push": run_push,
    "demo": run_demo,
}
