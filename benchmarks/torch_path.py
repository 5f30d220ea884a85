"""What makes greedy texts faster in torch, beside the stock class in eager fp32: which of it costs nothing?

    python benchmarks/torch_path.py [--batches 1 32] [--rounds 5] [--threads 2] [--ways NAME …] [--tiny]

ViT-B/16 at 224 × 448 + GPT-2 small, random weights (so that texts differ: its position embeddings are of weight 1), 20
tokens from ready pixels. All take turns in every round, after one that is not timed: what that one takes longer is the
wait, for compiling. A ratio is a way's time over the stock one's in the same round; the median is told, of the clock
and of the CPU's time, which tells more on a machine that others use.

- `kit`: `hf_cxr.inference.generation.generate`, which scores the texts too; `kit, scored anew`: the same with keys and
  values of cross-attention computed a second time for the scores, as it was before.
- `bare loop`: the decoder itself, without `generate`, its processors and criteria; logits of the last token alone.
- `static cache`, alone and with the decoder compiled; `compiled` also compiles the encoder.
- `plain matrices`: GPT-2's transposed matrices (`Conv1D`) as `Linear`, which other kernels multiply.
- `channels last`: the patches' convolution; `bf16`: weights and all else, in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from serving import TOKENS, checkpoint
from transformers import DynamicCache, EncoderDecoderCache
from transformers.pytorch_utils import Conv1D

from hf_cxr.inference import generation

Way = Callable[[torch.Tensor], torch.Tensor]
LENGTH: dict[str, Any] = {"min_new_tokens": TOKENS, "max_new_tokens": TOKENS}


def stock(model: Any, pixels: torch.Tensor, **options: Any) -> torch.Tensor:
    return model.generate(pixels.to(model.dtype), **LENGTH, **options)[:, 1:]


def kit(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    return generation.generate(model, pixels, **LENGTH)["sequences"][:, 0, 1:]


def scored_anew(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    with patch.object(generation, "_cross_attention", lambda *_: []):
        return kit(model, pixels)


def bare_loop(model: Any, pixels: torch.Tensor) -> torch.Tensor:
    states, cache = model.encoder(pixels)[0], EncoderDecoderCache(DynamicCache(), DynamicCache())
    token = torch.full((len(pixels), 1), model.config.decoder_start_token_id)
    found, end = [], model.generation_config.eos_token_id
    for _ in range(TOKENS):
        logits = model.decoder(token, encoder_hidden_states=states, past_key_values=cache, use_cache=True).logits
        logits[..., end] = float("-inf")
        token = logits[:, -1].argmax(-1, keepdim=True)
        found.append(token)
    return torch.cat(found, 1)


def compiled(model: Any, encoder: bool) -> Any:
    model = copy.deepcopy(model)
    model.decoder.forward = torch.compile(model.decoder.forward)
    if encoder:
        model.encoder.forward = torch.compile(model.encoder.forward)
    return model


def with_linear(model: Any) -> Any:
    model = copy.deepcopy(model)
    for module in list(model.decoder.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                layer = torch.nn.Linear(*child.weight.shape)
                layer.weight.data, layer.bias.data = child.weight.data.t().contiguous(), child.bias.data
                setattr(module, name, layer)
    return model


WAYS: dict[str, Callable[[Any], Way]] = {
    "stock": lambda model: partial(stock, model),
    "kit": lambda model: partial(kit, model),
    "kit, scored anew": lambda model: partial(scored_anew, model),
    "bare loop": lambda model: partial(bare_loop, model),
    "static cache": lambda model: partial(stock, model, cache_implementation="static"),
    "static cache, compiled decoder": lambda model: partial(
        stock, compiled(model, False), cache_implementation="static"
    ),
    "static cache, compiled": lambda model: partial(stock, compiled(model, True), cache_implementation="static"),
    "plain matrices": lambda model: partial(stock, with_linear(model)),
    "channels last": lambda model: partial(stock, copy.deepcopy(model).to(memory_format=torch.channels_last)),
    "bf16": lambda model: partial(stock, copy.deepcopy(model).to(torch.bfloat16)),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="+", choices=tuple(WAYS), default=tuple(WAYS), metavar="NAME")
    parser.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = checkpoint(args.tiny).model
    torch.nn.init.normal_(model.decoder.transformer.wpe.weight)
    ways = {name: WAYS[name](model) for name in dict.fromkeys(["stock", *args.ways])}
    print(f"{args.threads} threads, {TOKENS} tokens, {args.rounds} rounds; stock: seconds; the others: ÷ stock\n")
    print("| batch | way | by the clock | in CPU time | same texts | first call, s more |\n|---|---|---|---|---|---|")
    for batch in args.batches:
        pixels = torch.randn(batch, 3, *model.config.encoder.image_size, generator=torch.Generator().manual_seed(0))
        race(batch, pixels, ways, args.rounds)
    return 0


@torch.inference_mode()
def race(batch: int, pixels: torch.Tensor, ways: dict[str, Way], rounds: int) -> None:
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    texts = {}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            texts[name] = way(pixels)
            spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    for name, times in spent.items():
        told = []
        for clock in (0, 1):
            pairs = zip(times[1:], spent["stock"][1:], strict=True)
            told.append(statistics.median(own[clock] / (1 if own is one else one[clock]) for own, one in pairs))
        same = int((texts[name] == texts["stock"]).all(1).sum())
        wait = times[0][0] - statistics.median(each[0] for each in times[1:])
        print(f"| {batch} | {name} | {told[0]:.2f} | {told[1]:.2f} | {same} of {batch} | {wait:.1f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
