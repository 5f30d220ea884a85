"""Do a static cache, torch.compile and ONNX write the same tokens as the stock model, and how fast?

python benchmarks/interoperability.py CHECKPOINT DATASET [--onnx EXPORT] [--studies 96] [--rounds 5]

EXPORT is a folder of `hf-cxr export`. Studies are those of the test split with one view only
(up to a quarter), then the first of the others. Contestants take turns in every round, after one round that is not
timed (it compiles). A ratio is the stock model's time in a round over a contestant's in the same; the median is told.
Tokens have to be equal up to the end of the text, or the exit status is 1; where texts are all one that says little.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch

from hf_cxr.data.prepared import load_prepared
from hf_cxr.inference.checks import panel_size_of, start_of
from hf_cxr.inference.views import pack_views
from hf_cxr.models.modeling import Checkpoint, load_checkpoint
from hf_cxr.serving.runner import NO_START, Runner

Writer = Callable[[torch.Tensor], list[list[int]]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("dataset")
    parser.add_argument("--onnx")
    parser.add_argument("--studies", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--backend", default="inductor", help="of torch.compile; 'eager' needs no C++ compiler")
    args = parser.parse_args()
    checkpoint = load_checkpoint(args.checkpoint)
    pixels, single = canvases(checkpoint, args.dataset, args.studies)
    print(f"{len(pixels)} studies, {single} of one view, {torch.get_num_threads()} threads, {args.backend}\n")
    model = checkpoint.model.eval()
    compiled = copy.deepcopy(model)
    compiled.decoder.forward = torch.compile(compiled.decoder.forward, backend=args.backend)
    runner = Runner(args.onnx, threads=torch.get_num_threads()) if args.onnx else None
    print(
        "| beams | batch | contestant | same tokens | distinct texts | its speed ÷ stock, median | least to greatest |"
    )
    print("|---|---|---|---|---|---|---|")
    equal = True
    for beams in args.beams:
        contestants: dict[str, Writer] = {
            "stock": partial(generated, model, num_beams=beams),
            "static cache": partial(generated, model, num_beams=beams, cache_implementation="static"),
            "static cache, compiled": partial(generated, compiled, num_beams=beams, cache_implementation="static"),
        }
        if runner:
            contestants["ONNX"] = partial(exported, runner, num_beams=beams)
        for size in args.batches:
            texts, seconds = race(contestants, pixels.split(size), model.generation_config.eos_token_id, args.rounds)
            for name in list(contestants)[1:]:
                same = sum(a == b for a, b in zip(texts["stock"], texts[name], strict=True))
                equal &= same == len(pixels)
                ratios = [stock / own for stock, own in zip(seconds["stock"], seconds[name], strict=True)]
                distinct = len(set(map(tuple, texts["stock"])))
                told = f"{distinct} | {statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f}"
                print(f"| {beams} | {size} | {name} | {same} of {len(pixels)} | {told} |", flush=True)
    return 0 if equal else 1


def canvases(checkpoint: Checkpoint, dataset: str, number: int) -> tuple[torch.Tensor, int]:
    """Normalised canvases (studies, 3, height, width), and how many of them show one view."""
    rows = list(load_prepared(dataset)["test"].select_columns(["frontal", "lateral"]))
    single = [row for row in rows if None in row.values()][: number // 4]
    studies = single + [row for row in rows if None not in row.values()][: number - len(single)]
    size = panel_size_of(checkpoint.image_processor)
    packed = [pack_views(row["frontal"], row["lateral"], size=size) for row in studies]
    return checkpoint.image_processor(packed, return_tensors="pt")["pixel_values"], len(single)


def exported(runner: Runner, batch: torch.Tensor, num_beams: int) -> list[list[int]]:
    start = start_of(SimpleNamespace(**NO_START | runner.settings))
    return [[start, *text] for text in runner.generate(batch.numpy(), num_beams=num_beams)[0][:, 0].tolist()]


def generated(model, batch: torch.Tensor, **options) -> list[list[int]]:
    with torch.inference_mode():
        return model.generate(batch, **options).tolist()


def race(contestants: dict[str, Writer], batches, end: int, rounds: int):
    """Each contestant's texts, and its seconds in every timed round."""
    texts: dict[str, list[list[int]]] = {}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, write in contestants.items():
            started = time.perf_counter()
            texts[name] = [up_to(end, text) for batch in batches for text in write(batch)]
            if number:
                seconds[name].append(time.perf_counter() - started)
    return texts, seconds


def up_to(end: int, text: list[int]) -> list[int]:
    """A text without what fills its row. Its first token is no end, though the two may be the same (GPT-2's are)."""
    return text[: text.index(end, 1) + 1] if end in text[1:] else text


if __name__ == "__main__":
    sys.exit(main())
