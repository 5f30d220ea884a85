"""Where each millisecond of one study goes, from two PNG files to an answer, beside the floor of this machine.

    python benchmarks/one_study.py --keep FOLDER [--threads 2] [--rounds 7] [--clock cpu] [--tiny]

ViT-B/16 at 224 × 448 + GPT-2 small, random weights, 20 greedy tokens: the pipeline (torch, fp32) and the exports in
fp32 and int8, which take turns in every round after one that is not counted; medians. Real calls are measured: time in
a part is not counted in the one that calls it, so the parts add up to the whole. FOLDER is that of `serving.py speed
--keep`, and made if it is not there. `--clock cpu` counts CPU time, for machines that others use too.

Floors, of the same run: matrix operations ÷ torch's best fp32 (int8: 8-bit) product, and bytes of weights, and of kept
keys and values, that the tokens have to read ÷ the best matrix-vector product over as many bytes. An export's LM head
is told apart by the share that onnxruntime's profiler gives it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnxruntime
import torch
from preparation import write_study
from serving import TOKENS, checkpoint, export_onnx
from torch.utils.flop_counter import FlopCounterMode

from hf_cxr.inference import answers, generation, inputs, pipeline
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.serving import runner as serving

SIDE = 2048  # pixels, of the two files
PARTS = {  # name: what limits it
    "open two PNG files": "inflating them, in C",
    "is each view what it is called": "numpy on small images",
    "pack the views": "Pillow's resize",
    "pixels": "numpy, once over the canvas",
    "encoder": "matrix operations",
    "keys and values of cross-attention": "matrix operations",
    "tokens: attention and MLP": "memory bandwidth",
    "tokens: LM head": "memory bandwidth",
    "tokens: search around them": "Python",
    "score of the text": "matrix operations",
    "tokens to text, answer": "Python",
    "the rest": "Python, the pipeline around it",
}
PNG, DOUBTS, PACK, PIXELS, ENCODER, CROSS, BLOCKS, HEAD, SEARCH, SCORE, ANSWER, REST = PARTS


class Spans:
    """Seconds in each part, without those of the parts within it; a part within `SCORE` belongs to it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.spent, self.open, self.last = clock, defaultdict[str, float](float), [REST], 0.0

    def lap(self) -> None:
        now = self.clock()
        self.spent[self.open[-1]] += now - self.last
        self.last = now

    def within(self, name: str, work: Callable, *args: Any, **kwargs: Any) -> Any:
        self.lap()
        self.open.append(SCORE if SCORE in self.open else name)
        try:
            return work(*args, **kwargs)
        finally:
            self.lap()
            self.open.pop()

    def of(self, work: Callable[[], Any]) -> dict[str, float]:
        self.spent, self.last = defaultdict(float), self.clock()
        work()
        self.lap()
        return self.spent


def places(pipe: Any, runners: dict[str, Any]) -> list[tuple[Any, str, str]]:
    """The functions that are parts: their owners, their names there, and the part's."""
    model, decoder = pipe.model, pipe.model.decoder
    found: list[tuple[Any, str, str]] = [
        *((inputs, "read_radiograph", PNG), (answers, "doubts", DOUBTS), (answers, "shown_of", PACK)),
        *((pipe, "preprocess", PIXELS), (pipe, "postprocess", ANSWER), (generation, "_log_probabilities", SCORE)),
        *((model, "generate", SEARCH), (model.encoder, "forward", ENCODER), (decoder.lm_head, "forward", HEAD)),
        (decoder.transformer, "forward", BLOCKS),
        *((block.crossattention.c_attn, "forward", CROSS) for block in decoder.transformer.h),
        *((serving, name, ANSWER) for name in ("split_sections", "scored", "finished")),
    ]
    for runner in runners.values():
        found += [(runner, "pixels", PIXELS), (runner, "generate", SEARCH)]
        found += [(runner.encoder, "run_with_ort_values", ENCODER), (runner.decoder, "run_with_ort_values", BLOCKS)]
    return found


def best(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Seconds of the shortest of some calls."""
    times = []
    for _ in range(8):
        began = clock()
        work()
        times.append(clock() - began)
    return min(times)


def floors(model: Any, canvas: tuple[int, ...], clock: Any, side: int) -> dict[int, dict[str, float]]:
    """Seconds of each part at best, by the bytes of a weight: 4 or 1. Prints what they follow from."""
    pixels, ids, flops = torch.zeros(1, 3, *canvas), torch.ones(1, TOKENS, dtype=torch.long), dict[str, int]()
    states, blocks, head = model.encoder(pixels)[0], model.decoder.transformer.h, model.decoder.lm_head.weight.numel()
    cross = [block.crossattention.c_attn for block in blocks]
    for name, work in {
        ENCODER: lambda: model.encoder(pixels),
        CROSS: lambda: [layer(states) for layer in cross],
        SCORE: lambda: model(encoder_outputs=(states,), decoder_input_ids=ids),
    }.items():
        with FlopCounterMode(display=False) as counter:
            work()
        flops[name] = counter.get_total_flops()
    weights = sum(weight.numel() for weight in blocks.parameters()) - sum(layer.weight.numel() for layer in cross)
    kept = 4 * 2 * len(blocks) * states.numel()  # bytes of cross-attention's keys and values, in 32 bits throughout
    flops[SCORE] -= flops[CROSS]
    square, found = torch.ones(side, side), dict[int, dict[str, float]]()
    eights = square.to(torch.int8)
    for size, product in ((4, lambda: square @ square), (1, lambda: torch._int_mm(eights, eights))):
        peak, read = 2 * side**3 / best(product, clock), size * (weights + head) + kept
        matrix, vector = torch.ones(read // 4096, 1024), torch.ones(1024)
        speed = matrix.nbytes / best(partial(torch.mv, matrix, vector), clock)
        found[size] = {name: number / peak for name, number in flops.items()}
        found[size] |= {BLOCKS: TOKENS * (size * weights + kept) / speed, HEAD: TOKENS * size * head / speed}
        print(
            f"{8 * size} bits: {peak / 1e9:.0f} GFLOP/s; {read / 1e6:.0f} MB a token, read at {speed / 1e9:.1f} GB/s"
        )
    print("; ".join(f"{name}: {number / 1e9:.1f} GFLOP" for name, number in flops.items()))
    return found


def head_share(runner: Any, canvas: tuple[int, ...], graph: Path, place: Path) -> float:
    """The LM head's part of a decoder step: what the profiler tells behind the last layer norm."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling, options.profile_file_prefix = 1, True, f"{place}/profile"
    profiled = onnxruntime.InferenceSession(graph, options, ["CPUExecutionProvider"])
    with patch.object(runner, "decoder", profiled):
        runner.generate(np.zeros((1, 3, *canvas), np.float32), max_new_tokens=TOKENS)
    events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    kernels = sorted((event for event in events if event["name"].endswith("kernel_time")), key=lambda one: one["ts"])
    step = kernels[-(len(kernels) // TOKENS) :]
    last = max(place for place, event in enumerate(step) if "LayerNorm" in event["args"]["op_name"])
    return sum(event["dur"] for event in step[last + 1 :]) / sum(event["dur"] for event in step)


def show(name: str, rounds: list[dict[str, float]], floor: dict[str, float], share: float | None) -> None:
    times = {part: statistics.median(each.get(part, 0.0) for each in rounds) for part in PARTS}
    if share is not None:  # its encoder makes the keys and values too, and scores come with the tokens
        times[HEAD], times[BLOCKS] = share * times[BLOCKS], (1 - share) * times[BLOCKS]
        floor = floor | {ENCODER: floor[ENCODER] + floor[CROSS], CROSS: 0, SCORE: 0}
    print(f"\n| {name} | ms | floor, ms | ÷ floor | what limits it |\n|---|---|---|---|---|")
    for part, limit in PARTS.items():
        least = floor.get(part)
        cells = f"{1000 * least:.1f} | {times[part] / least:.2f}" if least else "– | –"
        if times[part]:
            print(f"| {part} | {1000 * times[part]:.1f} | {cells} | {limit} |")
    whole = statistics.median(sum(each.values()) for each in rounds)
    print(f"| whole | {1000 * whole:.1f} | {1000 * sum(floor.values()):.1f} | | |", flush=True)


@torch.inference_mode()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--keep", required=True, help="folder of checkpoint and exports")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads > 1:
        parser.error("--clock cpu adds up the threads: give --threads 1")
    torch.set_num_threads(args.threads)
    clock, place = time.process_time if args.clock == "cpu" else time.perf_counter, Path(args.keep)
    if not (place / "int8").is_dir():
        checkpoint(args.tiny).save_pretrained(place / "run")
        for name, weights in (("fp32", "float32"), ("int8", "int8")):
            export_onnx(place / "run", place / name, weights)
    parts = load_checkpoint(place / "run", dtype="float32")
    models = {"model": parts.model, "tokenizer": parts.tokenizer, "image_processor": parts.image_processor}
    ways: dict[str, Any] = {"torch": pipeline.ImpressionPipeline(**models)}
    runners = {name: serving.Runner(place / name, args.threads) for name in ("fp32", "int8")}
    parts.model.generation_config.eos_token_id = -1  # no text ends early
    for runner in runners.values():
        runner.settings["eos_token_id"] = -1
    spans, spent, canvas = Spans(clock), {name: list[dict[str, float]]() for name in ways | runners}, runner.size
    with tempfile.TemporaryDirectory() as made:
        _, *files, _ = next(study for number in range(99) if all(study := write_study(Path(made), number, SIDE)))
        views = {view: f"{made}/{file}" for view, file in zip(("frontal", "lateral"), files, strict=True)}
        with ExitStack() as stack:
            for owner, name, part in places(ways["torch"], runners):
                stack.enter_context(patch.object(owner, name, partial(spans.within, part, getattr(owner, name))))
            for _ in range(args.rounds + 1):
                for name, way in (ways | runners).items():
                    spent[name].append(spans.of(partial(way, views, max_new_tokens=TOKENS)))
        print(
            f"{args.threads} threads, {args.clock} time, {args.rounds} rounds, files of {SIDE} pixels, {TOKENS} tokens"
        )
        shape = (canvas, 2 * canvas)
        least = floors(parts.model, shape, clock, 64 if args.tiny else 2048)
        shares = {
            name: head_share(one, shape, place / name / "decoder.onnx", Path(made)) for name, one in runners.items()
        }
    for name, rounds in spent.items():
        show(name, rounds[1:], least[1 if name == "int8" else 4], shares.get(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
