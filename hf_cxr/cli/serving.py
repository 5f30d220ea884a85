"""`hf-cxr export`: a checkpoint in a form that runs without torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from hf_cxr.cli.options import Parser, chosen
from hf_cxr.cli.terminal import command, print_next
from hf_cxr.utils.places import check_checkpoint, check_dataset, check_writable


def define_export(parser: Parser) -> None:
    """Export a checkpoint to ONNX: hf-cxr predict then runs it without torch, and starts in a second.

    hf-cxr export runs/iu runs/iu_onnx --int8
    """
    parser.add_argument("checkpoint", help="run folder or Hub id")
    parser.add_argument("out", help="folder to make")
    parser.option("--revision", "branch, tag or commit of a checkpoint on the Hub (default: its main branch)")
    parser.option("--int8", "matrices as 8-bit numbers: a quarter of the size, and faster", action="store_true")
    parser.option("--fp16", "all numbers as 16-bit numbers: half the size", action="store_true")
    parser.option(
        "--calibrate",
        "--int8 only: prepared folder or Hub id, whose validation split sets how the decoder's inputs are rounded "
        "(default: each input by its own range)",
        metavar="DATASET",
    )


def run_export(options: argparse.Namespace) -> None:
    if options.int8 and options.fp16:
        raise ValueError("--int8 or --fp16: not both")
    if options.calibrate and not options.int8:
        raise ValueError("--calibrate goes with --int8")
    check_checkpoint(options.checkpoint)
    if options.calibrate:
        check_dataset(options.calibrate)
    check_writable(options.out)
    from hf_cxr.serving.onnx_export import export_onnx

    weights = "int8" if options.int8 else "float16" if options.fp16 else "float32"
    export_onnx(options.checkpoint, options.out, weights, **chosen(options, "revision", "calibrate"))
    size = sum(file.stat().st_size for file in Path(options.out).rglob("*") if file.is_file()) / 1e6
    print(f"Written: {options.out}, {size:,.0f} MB, {weights}, opset and versions in export.json")
    print_next(f"{command('hf-cxr', 'predict', options.out)} --frontal IMAGE [--lateral IMAGE]")
