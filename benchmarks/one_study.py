"""Where each millisecond of one study goes, from two PNG files to an answer, beside the floor that this machine allows.

    python benchmarks/one_study.py [--threads 2] [--rounds 7] [--side 2048] [--keep FOLDER] [--clock cpu] [--tiny]

ViT-B/16 at 224 × 448 + GPT-2 small, random weights, 20 greedy tokens: the pipeline (torch, fp32), and the exports in
fp32 and int8. Real calls are measured: what a part calls that is a part itself is not counted twice, so the parts add up
to the whole. Medians of rounds in which the three take turns, after one that is not counted. `--keep` is the folder of
`serving.py speed --keep`, made if it is not there. `--clock cpu` counts CPU time, for machines that others use too.

Floors, of the same run: matrix operations ÷ the best fp32 product (int8: the best 8-bit product of onnxruntime), and
bytes of weights, and of keys and values, that a token has to read ÷ the best matrix-vector product over as many bytes.
The export's LM head is told apart by the share that onnxruntime's profiler gives it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from preparation import write_study
from serving import TOKENS, checkpoint, export_onnx
from torch.utils.flop_counter import FlopCounterMode

from hf_cxr.inference import answers, generation, inputs, pipeline
from hf_cxr.models.modeling import Checkpoint, load_checkpoint
from hf_cxr.serving import runner as serving

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PNG, DOUBTS, PACK, PIXELS = "open two PNG files", "views: is each what it is called", "pack the views", "pixels"
ENCODER, CROSS = "encoder", "keys and values of cross-attention"
BLOCKS, HEAD = f"{TOKENS} tokens: attention and MLP", f"{TOKENS} tokens: LM head"
SEARCH, SCORE, ANSWER = f"{TOKENS} tokens: search around them", "score of the text", "tokens to text, answer"
REST = "the rest"
LIMITS = {
    PNG: "inflating the files, in C",
    DOUBTS: "numpy on small images",
    PACK: "Pillow's resize",
    PIXELS: "numpy, once over the pixels",
    ENCODER: "matrix operations",
    CROSS: "matrix operations",
    BLOCKS: "memory bandwidth",
    HEAD: "memory bandwidth",
    SEARCH: "Python",
    SCORE: "matrix operations: one pass over the text",
    ANSWER: "Python",
    REST: "Python: the pipeline around it",
}


class Spans:
    """Seconds in each part, without those of the parts within it; a part within `SCORE` belongs to it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock, self.spent, self.open, self.last = clock, Counter[str](), [REST], 0.0

    def lap(self) -> None:
        now = self.clock()
        self.spent[self.open[-1]] += now - self.last
        self.last = now

    def wrapped(self, work: Callable, name: str) -> Callable:
        def measured(*args: Any, **kwargs: Any) -> Any:
            self.lap()
            self.open.append(SCORE if SCORE in self.open else name)
            try:
                return work(*args, **kwargs)
            finally:
                self.lap()
                self.open.pop()

        return measured

    def of(self, work: Callable[[], Any]) -> Counter[str]:
        self.spent, self.last = Counter(), self.clock()
        work()
        self.lap()
        return self.spent


@contextmanager
def measured(spans: Spans, pipe: Any, runners: dict[str, Any]) -> Iterator[None]:
    """Meanwhile each part tells `spans` when it begins and ends."""
    model = pipe.model
    places: list[tuple[Any, str, str]] = [
        *((inputs, "read_radiograph", PNG), (answers, "doubts", DOUBTS), (answers, "shown_of", PACK)),
        *((pipe, "preprocess", PIXELS), (pipe, "postprocess", ANSWER), (generation, "_log_probabilities", SCORE)),
        *((model, "generate", SEARCH), (model.encoder, "forward", ENCODER), (model.decoder.lm_head, "forward", HEAD)),
        (model.decoder.transformer, "forward", BLOCKS),
        *((block.crossattention.c_attn, "forward", CROSS) for block in model.decoder.transformer.h),
        *((serving, name, ANSWER) for name in ("split_sections", "scored", "finished")),
    ]
    for runner in runners.values():
        places += [(runner, "pixels", PIXELS), (runner, "generate", SEARCH)]
        places += [(runner.encoder, "run_with_ort_values", ENCODER), (runner.decoder, "run_with_ort_values", BLOCKS)]
    with ExitStack() as stack:
        for owner, name, part in places:
            stack.enter_context(patch.object(owner, name, spans.wrapped(getattr(owner, name), part)))
        yield


# --- floors ------------------------------------------------------------------------------------------------------


def best(work: Callable[[], Any], clock: Callable[[], float]) -> float:
    """Seconds of the shortest of some calls."""
    times = []
    for _ in range(8):
        began = clock()
        work()
        times.append(clock() - began)
    return min(times)


def reading(size: float, clock: Callable[[], float]) -> float:
    """Bytes a second of a matrix-vector product over `size` bytes."""
    matrix, vector = torch.ones(int(size / 4096), 1024), torch.ones(1024)
    return matrix.nbytes / best(lambda: torch.mv(matrix, vector), clock)


def product_8bit(side: int, threads: int) -> Callable[[], Any]:
    import onnxruntime
    from onnx import TensorProto, helper

    shape = [side, side]
    given, out = (helper.make_tensor_value_info(*each, shape) for each in (("a", TensorProto.UINT8), ("c", 6)))
    weights = helper.make_tensor("b", TensorProto.INT8, shape, np.ones(shape, np.int8).tobytes(), raw=True)
    node = helper.make_node("MatMulInteger", ["a", "b"], ["c"])
    model = helper.make_model(helper.make_graph([node], "product", [given], [out], [weights]))
    model.opset_import[0].version, model.ir_version = 20, 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda: session.run(None, {"a": np.ones(shape, np.uint8)})


def floors(parts: Checkpoint, pixels: torch.Tensor, threads: int, clock: Callable[[], float], side: int) -> Any:
    """Seconds of the matrix parts, by the bytes of a weight: 4 or 1; and what they were counted from, in words."""
    model, flops = parts.model, dict[str, int]()
    states = model.encoder(pixels)[0]
    blocks, head = model.decoder.transformer.h, model.decoder.lm_head.weight.numel()
    cross = [block.crossattention.c_attn for block in blocks]
    ids = torch.ones(1, TOKENS, dtype=torch.long)
    for name, work in {
        ENCODER: lambda: model.encoder(pixels),
        CROSS: lambda: [layer(states) for layer in cross],
        SCORE: lambda: model(encoder_outputs=(states,), decoder_input_ids=ids),
    }.items():
        with FlopCounterMode(display=False) as counter:
            work()
        flops[name] = counter.get_total_flops()
    weights = sum(weight.numel() for weight in blocks.parameters()) - sum(layer.weight.numel() for layer in cross)
    kept = 4 * 2 * len(blocks) * states.numel()  # keys and values of cross-attention stay in 32 bits
    one, other = torch.ones(side, side), torch.ones(side, side)
    peaks = {
        4: 2 * side**3 / best(lambda: one @ other, clock),
        1: 2 * side**3 / best(product_8bit(side, threads), clock),
    }
    told, found = [], dict[int, dict[str, float]]()
    for size, peak in peaks.items():
        per_second = reading(size * (weights + head) + kept, clock)
        found[size] = {name: number / peak for name, number in flops.items()}
        found[size] |= {BLOCKS: TOKENS * (size * weights + kept) / per_second, HEAD: TOKENS * size * head / per_second}
        bits, read = 8 * size, (size * (weights + head) + kept) / 1e6
        told.append(f"{bits} bits: {peak / 1e9:.0f} GFLOP/s; {read:.0f} MB a token at {per_second / 1e9:.1f} GB/s")
    told.append(", ".join(f"{name} {number / 1e9:.1f} GFLOP" for name, number in flops.items()))
    return found, "; ".join(told)


def head_share(runner: Any, pixels: np.ndarray, folder: Path) -> float:
    """The LM head's part of a decoder step: what the profiler tells behind the last layer norm."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(folder / "profile")
    session = onnxruntime.InferenceSession(folder / "decoder.onnx", options, ["CPUExecutionProvider"])
    with patch.object(runner, "decoder", session):
        runner.generate(pixels, max_new_tokens=TOKENS)
    file = Path(session.end_profiling())
    events = [event for event in json.loads(file.read_text()) if event["name"].endswith("kernel_time")]
    file.unlink()
    step = sorted(events, key=lambda event: event["ts"])[-(len(events) // TOKENS) :]
    last = max(place for place, event in enumerate(step) if "LayerNorm" in event["args"]["op_name"])
    return sum(event["dur"] for event in step[last + 1 :]) / sum(event["dur"] for event in step)


# --- the study ---------------------------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--side", type=int, default=2048, help="of the two files, in pixels")
    parser.add_argument("--keep", help="folder of checkpoint and exports")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    args = parser.parse_args()
    if args.clock == "cpu" and args.threads > 1:
        parser.error("--clock cpu adds up the threads: give --threads 1")
    torch.set_num_threads(args.threads)
    clock = CLOCKS[args.clock]
    with tempfile.TemporaryDirectory() as made, torch.inference_mode():
        place = Path(args.keep or made)
        if not (place / "int8").is_dir():
            checkpoint(args.tiny).save_pretrained(place / "run")
            for name, weights in (("fp32", "float32"), ("int8", "int8")):
                export_onnx(place / "run", place / name, weights)
        study = write_study(Path(made), 0, args.side)[1:3]
        parts = load_checkpoint(place / "run", dtype="float32")
        pipe: Any = pipeline.ImpressionPipeline(
            model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor
        )
        parts.model.generation_config.eos_token_id = -1  # no text ends early
        runners = {name: serving.Runner(place / name, args.threads) for name in ("fp32", "int8")}
        for runner in runners.values():
            runner.settings["eos_token_id"] = -1
        views = dict(zip(("frontal", "lateral"), (Path(made) / name for name in study), strict=True))
        ways = {
            name: lambda way=way: way(views, max_new_tokens=TOKENS) for name, way in {"torch": pipe, **runners}.items()
        }
        spans = Spans(clock)
        spent: dict[str, list[Counter[str]]] = {name: [] for name in ways}
        with measured(spans, pipe, runners):
            for _ in range(args.rounds + 1):
                for name, way in ways.items():
                    spent[name].append(spans.of(way))
        pixels = runners["fp32"].pixels([Image.new("RGB", (2 * runners["fp32"].size, runners["fp32"].size))])
        least, told = floors(parts, torch.from_numpy(pixels), args.threads, clock, 64 if args.tiny else 2048)
        shares = {name: head_share(runner, pixels, place / name) for name, runner in runners.items()}
    print(f"{args.threads} threads, {args.clock} time, {args.rounds} rounds, files of {args.side} pixels\n\n{told}")
    for name, rounds in spent.items():
        show(name, rounds[1:], least[1 if name == "int8" else 4], shares.get(name))
    return 0


def show(name: str, rounds: list[Counter[str]], floor: dict[str, float], share: float | None) -> None:
    times = {part: statistics.median(each[part] for each in rounds) for part in LIMITS}
    if share is not None:  # the encoder's graph makes the keys and values too
        times[HEAD], times[BLOCKS] = share * times[BLOCKS], (1 - share) * times[BLOCKS]
        floor = floor | {ENCODER: floor[ENCODER] + floor[CROSS]}
    print(f"\n| {name} | ms | floor, ms | ÷ floor | what limits it |\n|---|---|---|---|---|")
    for part, limit in LIMITS.items():
        if times[part]:
            least = floor.get(part)
            cells = f"{1000 * least:.1f} | {times[part] / least:.2f}" if least else "– | –"
            label = f"{ENCODER}, with {CROSS}" if share is not None and part == ENCODER else part
            print(f"| {label} | {1000 * times[part]:.1f} | {cells} | {limit} |")
    whole = statistics.median(each.total() for each in rounds)
    print(f"| whole | {1000 * whole:.1f} | {1000 * sum(map(floor.get, floor)):.1f} | | |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
