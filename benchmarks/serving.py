"""What exported checkpoints gain: start to text, speed against eager torch, and what 8-bit numbers do to the texts.

    python benchmarks/serving.py start EXPORT FRONTAL [LATERAL] [--run RUN] [--rounds 5]
    python benchmarks/serving.py speed [--batches 1 32] [--rounds 5] [--threads 2] [--keep FOLDER]
    python benchmarks/serving.py texts RUN DATASET EXPORT [EXPORT …] [--studies 500] [--split test] [--folds 1 2 3]

`start`: `hf-cxr predict` in a new process, start to text: seconds on the wall and of the CPU, medians.
`speed`: ViT-B/16 at 224 × 448 + GPT-2 small, random weights, 20 greedy tokens behind ready pixels. The stock class
(`model.generate`, fp32) and the exports take turns in every round, after one that is not timed. A ratio is an export's
time over torch's in the same round; its median is told, with CPU time beside it for machines that others use too.
"encode" is the encoder (in the exports with the keys and values of cross-attention), "pixels to tokens" all of it, and
"PNG to text" begins with files of canvases and ends with text, in torch as one writes it without the kit.
`texts`: how many texts of a split are the run's own, found by the same search, and the finding F1 of both. With
`--folds` the studies of several runs together: `{}` in the names stands for the fold.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    GPT2Config,
    PreTrainedTokenizerFast,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)

from hf_cxr.models.encoders import image_processor
from hf_cxr.models.modeling import Checkpoint, set_special_tokens, train_tokenizer
from hf_cxr.serving.onnx_export import export_onnx

TOKENS, PANEL = 20, 224


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("start")
    for name in ("export", "frontal"):
        start.add_argument(name)
    start.add_argument("lateral", nargs="?")
    start.add_argument("--run", help="checkpoint to start beside it")
    speed = commands.add_parser("speed")
    speed.add_argument("--batches", type=int, nargs="+", default=[1, 32])
    speed.add_argument("--threads", type=int, default=2)
    speed.add_argument("--tiny", action="store_true", help="a tiny model, to try the script")
    speed.add_argument("--keep", help="folder for checkpoint and exports, used again if it is there")
    for command in (start, speed):
        command.add_argument("--rounds", type=int, default=5)
    texts = commands.add_parser("texts")
    for name in ("run", "dataset"):
        texts.add_argument(name)
    texts.add_argument("exports", nargs="+")
    texts.add_argument("--studies", type=int, default=500)
    texts.add_argument("--split", default="test")
    texts.add_argument("--folds", nargs="+", default=[""])
    args = vars(parser.parse_args())
    works: dict[str, Callable[..., None]] = {"start": start_to_text, "speed": compare_speed, "texts": compare_texts}
    works[args.pop("command")](**args)
    return 0


# --- start to text -----------------------------------------------------------------------------------------------


def start_to_text(export: str, frontal: str, lateral: str | None, run: str | None, rounds: int) -> None:
    views = ["--frontal", frontal, *(["--lateral", lateral] if lateral else [])]
    print("| | wall s | CPU s |\n|---|---|---|")
    for name, checkpoint in {"export": export, "torch": run}.items():
        times = [_process("hf_cxr", "predict", checkpoint, *views) for _ in range(rounds)] if checkpoint else []
        if times:
            print(f"| {name} | {' | '.join(f'{statistics.median(each):.2f}' for each in zip(*times, strict=True))} |")


def _process(*words: str) -> tuple[float, float]:
    import resource

    def spent() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    wall, cpu = time.perf_counter(), spent()
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - wall, spent() - cpu


# --- speed -------------------------------------------------------------------------------------------------------


def compare_speed(batches: Sequence[int], rounds: int, threads: int, tiny: bool, keep: str | None) -> None:
    from hf_cxr.models.modeling import load_checkpoint
    from hf_cxr.serving.runner import Runner

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as made:
        place = Path(keep or made)
        if not (place / "int8").is_dir():
            checkpoint(tiny).save_pretrained(place / "run")
            for name, weights in (("fp32", "float32"), ("int8", "int8")):
                export_onnx(place / "run", place / name, weights)
        parts = load_checkpoint(place / "run", dtype="float32")
        runners = {name: Runner(place / name, threads) for name in ("fp32", "int8")}
        model, never = parts.model.eval(), [-1]
        model.generation_config.eos_token_id = None
        for runner in runners.values():
            runner.settings |= {"eos_token_id": never}
        print(f"{threads} threads, {TOKENS} tokens, {rounds} rounds; median ratio to torch in the same round\n")
        print("| batch | what | torch, s | fp32 ÷ torch | int8 ÷ torch | in CPU time |\n|---|---|---|---|---|---|")
        for batch in batches:
            files = [_png(seed) for seed in range(batch)]
            images = [Image.open(io.BytesIO(file)).convert("RGB") for file in files]
            pixels = next(iter(runners.values())).pixels(images)
            _race(batch, "encode", _encoders(model, runners, pixels), rounds)
            _race(batch, "pixels to tokens", _writers(model, runners, pixels), rounds)
            _race(batch, "PNG to text", _whole(parts, runners, files), rounds)


def checkpoint(tiny: bool = False) -> Checkpoint:
    """ViT-B/16 + GPT-2 small, of random weights."""
    tokenizer: PreTrainedTokenizerFast = train_tokenizer(["No acute cardiopulmonary abnormality."] * 9, 300)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 2} if tiny else {}
    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    panel = 32 if tiny else PANEL
    torch.manual_seed(0)
    encoder = ViTConfig(image_size=(panel, 2 * panel), **(small if tiny else {}))
    decoder = GPT2Config(add_cross_attention=True, is_decoder=True, vocab_size=300 if tiny else 50257, **sizes)
    model = VisionEncoderDecoderModel(VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder))
    set_special_tokens(model, tokenizer, TOKENS)
    return Checkpoint(model.eval(), tokenizer, image_processor("tiny", (panel, 2 * panel)))


def _png(seed: int) -> bytes:
    file = io.BytesIO()
    grey = np.random.default_rng(seed).integers(0, 256, (PANEL, 2 * PANEL), dtype=np.uint8)
    Image.fromarray(grey).save(file, "PNG")
    return file.getvalue()


def _encoders(model: Any, runners: Mapping[str, Any], pixels: np.ndarray) -> dict[str, Callable[[], Any]]:
    ways: dict[str, Callable[[], Any]] = {"torch": lambda: model.encoder(torch.from_numpy(pixels))}
    for name, runner in runners.items():
        ways[name] = partial(runner.encoder.run, None, {"pixel_values": pixels})
    return ways


def _writers(model: Any, runners: Mapping[str, Any], pixels: np.ndarray) -> dict[str, Callable[[], Any]]:
    ways: dict[str, Callable[[], Any]] = {
        "torch": lambda: model.generate(torch.from_numpy(pixels), max_new_tokens=TOKENS)
    }
    for name, runner in runners.items():
        ways[name] = partial(runner.generate, pixels, max_new_tokens=TOKENS)
    return ways


def _whole(parts: Checkpoint, runners: Mapping[str, Any], files: Sequence[bytes]) -> dict[str, Callable[[], Any]]:
    """From PNG files of whole canvases: the stock way has no two views to pack."""

    def opened() -> list[Image.Image]:
        return [Image.open(io.BytesIO(file)).convert("RGB") for file in files]

    def stock() -> list[str]:
        pixels = parts.image_processor(opened(), return_tensors="pt")["pixel_values"]
        return parts.tokenizer.batch_decode(
            parts.model.generate(pixels, max_new_tokens=TOKENS), skip_special_tokens=True
        )

    def exported(runner: Any) -> list[str]:
        tokens, _ = runner.generate(runner.pixels(opened()), max_new_tokens=TOKENS)
        return runner.tokenizer.batch_decode(tokens[:, 0])

    return {"torch": stock} | {name: partial(exported, runner) for name, runner in runners.items()}


def _race(batch: int, what: str, ways: Mapping[str, Callable[[], Any]], rounds: int) -> None:
    spent: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, way in ways.items():
                wall, cpu = time.perf_counter(), time.process_time()
                way()
                if number:
                    spent[name].append((time.perf_counter() - wall, time.process_time() - cpu))

    def ratio(name: str, clock: int) -> str:
        pairs = zip(spent[name], spent["torch"], strict=True)
        return f"{statistics.median(own[clock] / stock[clock] for own, stock in pairs):.2f}"

    stock = statistics.median(pair[0] for pair in spent["torch"])
    cells = [ratio("fp32", 0), ratio("int8", 0), f"{ratio('fp32', 1)}, {ratio('int8', 1)}"]
    print(f"| {batch} | {what} | {stock:.3f} | {' | '.join(cells)} |", flush=True)


# --- texts -------------------------------------------------------------------------------------------------------


def compare_texts(
    run: str, dataset: str, exports: Sequence[str], studies: int, split: str, folds: Sequence[str]
) -> None:
    from hf_cxr.data.prepared import load_prepared
    from hf_cxr.evaluation.prediction import predict
    from hf_cxr.metrics.content import finding_scores
    from hf_cxr.serving.runner import Runner

    references: list[str] = []
    written: dict[str, list[dict[str, Any]]] = {name: [] for name in ("torch", *exports)}
    for fold in folds:
        rows = load_prepared(dataset.format(fold))[split]
        rows = rows.select(range(min(studies, len(rows))))
        references += rows["impression"]
        answers = predict(run.format(fold), rows, batch_size=32, decode="search")
        written["torch"] += [answer[0] for answer in answers]
        for export in exports:
            written[export] += _answers(Runner(export.format(fold)), rows)
    own = written["torch"]
    print("| | same texts | distinct | largest difference of scores | finding F1 (micro) |\n|---|---|---|---|---|")
    for name, answers in written.items():
        same = [one["impression"] == other["impression"] for one, other in zip(own, answers, strict=True)]
        pairs = zip(own, answers, same, strict=True)
        apart = max((abs(one["score"] - other["score"]) for one, other, equal in pairs if equal), default=0.0)
        found = [answer["impression"] for answer in answers]
        f1 = finding_scores(found, references)["finding_f1_micro"]
        print(f"| {name} | {sum(same)} of {len(own)} | {len(set(found))} | {apart:.1e} | {f1:.4f} |", flush=True)


def _answers(runner: Any, rows: Any) -> list[dict[str, Any]]:
    return [answer[0] for answer in runner(rows, batch_size=32)]


if __name__ == "__main__":
    sys.exit(main())
