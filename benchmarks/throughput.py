"""Studies per second: the tutorial way, this kit, and the model alone on ready tensors, side by side; then inference.

    python benchmarks/throughput.py --model demo --out demo.json
    python benchmarks/throughput.py --model vit_gpt2 --out vit_gpt2.json         # weights random: speed is the same
    python benchmarks/throughput.py --model vit_gpt2 --batch 32 --workers 8 --bf16 [--compile --warm 30]    # one GPU
    python benchmarks/throughput.py --show demo.json                             # the tables again

All contestants train the same model object with the same settings (optimiser, clipping, logging, data loader workers,
threads), in turn, several rounds. A rate counts the steps after the warm ones, from the end of one step to the end of
another, so that the time in which a step waits for its data is in it. The dataset is longer than the run: at the end
of the clock the workers have as many batches ready as they had at its start.

- `tutorial`: stock `Seq2SeqTrainer`, `VisionEncoderDecoderModel`, image processor and collator; each epoch decodes and
  resizes both full-size PNG files, and texts are padded to the greatest length.
- `tutorial, longest`: the same, texts padded to the longest of the batch.
- `tutorial, small files`: the same, and the PNG files were shrunk to the panel once, before.
- `kit`: `hf_cxr.training.run.fine_tune` with the recipe's settings, on canvases prepared and packed once, before.
- `ceiling`: forward, loss, backward, clip and optimiser step on the very batches that the kit trained on, in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import gc
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from datasets import concatenate_datasets, disable_progress_bars
from PIL import Image
from preparation import write_collection
from throughput_tables import machine, ratios, tables
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    DataCollatorForSeq2Seq,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Seq2SeqTrainer,
    Trainer,
    TrainerCallback,
    default_data_collator,
    set_seed,
)
from tutorial import VIEWS, TutorialDataset, panel

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.prepare import prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources.phantom_text import plan, report
from hf_cxr.inference import pipeline
from hf_cxr.inference.targets import IGNORED
from hf_cxr.models.modeling import Checkpoint, build, train_tokenizer
from hf_cxr.training import run as training
from hf_cxr.training.trainer import ImpressionTrainer, token_mean_loss

ROOT = Path(__file__).resolve().parents[1]
RECIPES = {"demo": ROOT / "configs" / "demo.yaml", "vit_gpt2": ROOT / "configs" / "iu_xray_vit_gpt2.yaml"}
DEFAULTS = {"demo": {"batch": 32, "steps": 30}, "vit_gpt2": {"batch": 2, "steps": 6}}
CONTESTANTS = ("tutorial", "tutorial, longest", "tutorial, small files", "kit", "ceiling")
BATCHES, BEAMS = (1, 8, 32), (1, 4)
GPT2_TOKENS = 50257
TEXTS = 4000  # phantom impressions that a tokenizer is trained on; they cost no image


# --- what is trained ---------------------------------------------------------------------------------------------


def make_checkpoint(options: argparse.Namespace, kit: Any, folder: Path) -> Checkpoint:
    """The recipe's model. Pretrained parts are replaced by random weights of the same sizes: the speed is theirs."""
    texts = [report(plan(1, index))[0] for index in range(TEXTS)]
    decoder = kit.decoder
    if options.model == "vit_gpt2":
        decoder = str(folder / "gpt2")
        _gpt2_tokenizer(options.vocabulary, texts).save_pretrained(decoder)
        GPT2LMHeadModel(GPT2Config(vocab_size=GPT2_TOKENS)).save_pretrained(decoder)
    encoder = "base" if options.model == "vit_gpt2" else kit.encoder
    return build(encoder, decoder, kit.panel_size, texts, kit.vocab_size, kit.max_target_length)


def _gpt2_tokenizer(vocabulary: Path, texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """GPT-2's own where its two files are at hand, else one trained here; the model has 50,257 tokens either way."""
    end = {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}
    if not (vocabulary / "vocab.json").is_file():
        print(f"{vocabulary}: no vocab.json here; lengths of texts are those of a tokenizer trained on phantom texts")
        tokenizer = train_tokenizer(texts, 4000)
        tokenizer.add_special_tokens(end)
        tokenizer.pad_token = None
        return tokenizer
    bpe = Tokenizer(models.BPE.from_file(str(vocabulary / "vocab.json"), str(vocabulary / "merges.txt")))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, **end)


@dataclass
class Material:
    """What all contestants share, and what making it cost."""

    checkpoint: Checkpoint
    kit: Any  # ImpressionConfig
    packed: Any  # the kit's canvases, each study as often as the run needs
    studies: list[dict[str, str]]  # the tutorial's, in the same order: paths of files, text
    small: list[dict[str, str]]  # the same with files of the panel's size
    costs: dict[str, float] = field(default_factory=dict)


def make_material(options: argparse.Namespace, folder: Path) -> Material:
    """Draw the full-size files (unless `--folder` holds them), prepare and pack them, and build the model."""
    costs, started = {}, 0.0

    def lap(name: str, count: int) -> None:
        nonlocal started
        costs[name] = 1000 * (time.perf_counter() - started) / count
        started = time.perf_counter()

    kit, _ = arguments(options, str(folder / "unused"))
    files = (options.folder or folder) / str(options.image_size)
    write_collection(files, options.studies, options.image_size, os.cpu_count() or 1)
    with (files / "studies.csv").open(encoding="utf-8", newline="") as stream:
        table = {row["uid"]: row for row in csv.DictReader(stream)}
    images = sorted({str(files / row[view]) for row in table.values() for view in VIEWS if row[view]})
    for image in images:  # into the disk cache, for all
        Path(image).read_bytes()

    started = time.perf_counter()
    for image in images:
        with Image.open(image) as opened:
            opened.load()
    lap("decode one full-size PNG", len(images))
    (folder / "small").mkdir()
    for image in images:
        panel(image, kit.panel_size).save(folder / "small" / Path(image).name)
    lap("shrink the files of one study for the tutorial way", len(table))
    stored = max(32, kit.panel_size) if options.model == "demo" else 384  # as `hf-cxr demo` and `prepare` have it
    prepare("table", folder / "dataset", root=files / "studies.csv", size=stored)
    lap("prepare one study for the kit", len(table))
    prepared = concatenate_datasets(list(load_prepared(str(folder / "dataset")).values()))
    started = time.perf_counter()
    packed = pack_dataset(prepared, kit.panel_size)
    lap("pack one study for the kit", len(packed))

    rows = [table[uid] for uid in packed["uid"]]
    needed = options.batch * (options.warm + options.steps + 2 * max(1, options.workers) + 1)
    times = -(-needed // len(rows))
    studies, small = (
        [{"text": row["impression"]} | {view: str(base / row[view]) for view in VIEWS if row[view]} for row in rows]
        for base in (files, folder / "small")
    )
    packed = concatenate_datasets([packed] * times)
    return Material(make_checkpoint(options, kit, folder), kit, packed, studies * times, small * times, costs)


# --- training, timed ---------------------------------------------------------------------------------------------


class Clock(TrainerCallback):
    """Seconds from the end of the last warm step to the end of the last step."""

    def __init__(self, warm: int) -> None:
        self.warm, self.started, self.seconds = warm, 0.0, 0.0

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.warm:
            self.started = now()
        elif state.global_step == state.max_steps:
            self.seconds = now() - self.started


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def arguments(options: argparse.Namespace, folder: str) -> tuple[Any, Any]:
    """The recipe's arguments, cut to the run that is measured. Both trainers take these."""
    words = {
        "output_dir": folder,
        "max_steps": options.warm + options.steps,
        "per_device_train_batch_size": options.batch,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": options.workers,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": options.bf16,
        "torch_compile": options.compile,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "report_to": "none",
        "disable_tqdm": True,
    }
    kit, args = parse_arguments(
        RECIPES[options.model], [word for key, value in words.items() for word in (f"--{key}", str(value))]
    )
    args.dataloader_pin_memory = torch.cuda.is_available()  # as `hf_cxr.training.run.train` does
    return kit, args


@contextlib.contextmanager
def fresh(model: Any, seed: int) -> Iterator[None]:
    """Let a contestant begin as the others did: same random state, no gradients, no leftovers of the one before."""
    set_seed(seed)
    model.train()
    model.requires_grad_(True)
    for name, parameter in model.encoder.named_parameters():  # as `ready_for_trainer` left it
        parameter.requires_grad_(not name.startswith("pooler."))
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # the trainers' logs
            yield
    finally:
        model.zero_grad(set_to_none=True)
        model.__dict__.pop("forward", None)  # accelerate's autocast wrapper
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def time_tutorial(options: argparse.Namespace, material: Material, studies: list[dict[str, str]], pad: bool) -> float:
    checkpoint, clock = material.checkpoint, Clock(options.warm)
    with tempfile.TemporaryDirectory() as folder:
        kit, args = arguments(options, folder)
        # Stock defaults: with either of the recipe's values, the stock trainer fails on this dataset or this model.
        args.label_smoothing_factor = 0.0
        data = TutorialDataset(studies, checkpoint, kit.panel_size, kit.max_target_length, pad)
        longest = DataCollatorForSeq2Seq(checkpoint.tokenizer, label_pad_token_id=IGNORED)

        def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
            if pad:
                return default_data_collator(items)
            labels = longest([{"input_ids": [0], "labels": item["labels"]} for item in items])["labels"]
            return {"pixel_values": torch.stack([item["pixel_values"] for item in items]), "labels": labels}

        trainer = Seq2SeqTrainer(
            model=checkpoint.model, args=args, train_dataset=data, data_collator=collate, callbacks=[clock]
        )
        trainer.train()
    return clock.seconds


def time_kit(options: argparse.Namespace, material: Material, batches: list[dict[str, Any]]) -> float:
    """`fine_tune` itself, with a clock in its trainer; the batches of the run are kept in `batches`."""
    clock = Clock(options.warm)

    class TimedTrainer(ImpressionTrainer):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            self.add_callback(clock)

        def training_step(self, model, inputs, *args, **kwargs):
            kept = inputs if not batches else inputs | {"pixel_values": batches[0]["pixel_values"]}  # one image serves
            batches.append(dict(kept))
            return super().training_step(model, inputs, *args, **kwargs)

    with tempfile.TemporaryDirectory() as folder, patch.object(training, "ImpressionTrainer", TimedTrainer):
        kit, args = arguments(options, folder)
        training.fine_tune(material.checkpoint, {"train": material.packed}, kit, args)
    return clock.seconds


def time_ceiling(options: argparse.Namespace, material: Material, batches: list[dict[str, Any]]) -> float:
    with tempfile.TemporaryDirectory() as folder:
        _, args = arguments(options, folder)
    model = material.checkpoint.model
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(args)
    optimizer, loss_of = kind(parameters, **settings), token_mean_loss(args.label_smoothing_factor)
    forward = torch.compile(model) if options.compile else model
    ready = [{name: value.to(model.device) for name, value in batch.items()} for batch in batches]
    started = 0.0
    for step, batch in enumerate(ready):
        if step == options.warm:
            started = now()
        labels = batch.pop("labels")
        with torch.autocast(model.device.type, torch.bfloat16, enabled=options.bf16):
            outputs = forward(**batch)
        loss_of(outputs, labels).backward()
        torch.nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    return now() - started


def measure_training(options: argparse.Namespace, material: Material) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Studies/s of each contestant in each round, and the mean length of the targets that kit and ceiling saw."""
    rates: dict[str, list[float]] = {name: [] for name in CONTESTANTS}
    batches: list[dict[str, Any]] = []
    contests: dict[str, Callable[[], float]] = {
        "tutorial": lambda: time_tutorial(options, material, material.studies, True),
        "tutorial, longest": lambda: time_tutorial(options, material, material.studies, False),
        "tutorial, small files": lambda: time_tutorial(options, material, material.small, False),
        "kit": lambda: time_kit(options, material, batches),
        "ceiling": lambda: time_ceiling(options, material, batches),
    }
    for number in range(options.rounds):
        batches.clear()
        for name, contest in contests.items():
            with fresh(material.checkpoint.model, number):
                seconds = contest()
            rates[name].append(options.batch * options.steps / seconds)
        told = ", ".join(f"{name} {values[-1]:.3g}" for name, values in rates.items())
        print(f"round {number + 1} of {options.rounds}, studies/s: {told}", flush=True)
    mean_length = float(np.mean([batch["labels"].shape[1] for batch in batches]))
    return rates, {"padded_target_length": mean_length, "max_target_length": material.kit.max_target_length}


# --- inference, timed --------------------------------------------------------------------------------------------


def measure_generation(options: argparse.Namespace, material: Material) -> dict[str, list[float]]:
    """Studies/s by batch size and beams, every text of `new_tokens` tokens, from normalised canvases in memory."""
    model, canvases = material.checkpoint.model.eval(), CanvasDataset(material.packed, material.kit.panel_size)
    collate = CanvasCollator(material.checkpoint.image_processor)
    pixels = collate([canvases[index % len(canvases)] for index in range(max(options.batches))])["pixel_values"]
    tokens = {"min_new_tokens": options.new_tokens, "max_new_tokens": options.new_tokens}
    rates: dict[str, list[float]] = {}
    pipeline.generate(model, pixels[:1], **tokens)
    for _ in range(options.rounds):
        for beams in BEAMS:
            for batch in options.batches:
                started, done = now(), 0
                while done == 0 or now() - started < options.least_seconds:
                    pipeline.generate(model, pixels[:batch], num_beams=beams, **tokens)
                    done += batch
                name = f"batch {batch}, {'greedy' if beams == 1 else f'beam {beams}'}"
                rates.setdefault(name, []).append(done / (now() - started))
    return rates


def measure_latency(options: argparse.Namespace, material: Material, folder: Path) -> dict[str, list[float]]:
    """Seconds from two full-size files to one text: in a running Python, and the whole command."""
    checkpoint = material.checkpoint
    checkpoint.model.generation_config.update(min_new_tokens=options.new_tokens, max_new_tokens=options.new_tokens)
    checkpoint.save_pretrained(folder)
    pairs = [
        {view: study[view] for view in VIEWS} for study in material.studies if all(view in study for view in VIEWS)
    ]
    seconds: dict[str, list[float]] = {"pipeline": [], "hf-cxr predict": []}

    def lap(name: str, work: Callable[[], Any]) -> None:
        started = now()
        work()
        seconds[name].append(now() - started)

    pipe = transformers.pipeline("cxr-impression", model=str(folder))
    pipe(pairs[0])
    for study in islice(cycle(pairs), options.latency_runs):
        lap("pipeline", partial(pipe, study))
    command = [str(Path(sys.executable).with_name("hf-cxr")), "predict", str(folder)]
    for study in islice(cycle(pairs), options.command_runs):
        words = [*command, "--frontal", study["frontal"], "--lateral", study["lateral"]]
        lap("hf-cxr predict", partial(subprocess.run, words, check=True, capture_output=True))
    return seconds


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(RECIPES), default="demo")
    parser.add_argument("--studies", type=int, default=24, help="different studies; they are repeated as needed")
    parser.add_argument("--image-size", type=int, default=2048, help="side of the full-size files in pixels")
    parser.add_argument("--folder", type=Path, help="where the full-size files are drawn, or were by an earlier run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--warm", type=int, default=2, help="steps before the clock starts")
    parser.add_argument("--steps", type=int, help=f"steps on the clock; default by model: {DEFAULTS}")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--workers", type=int, default=0, help="data loader workers, of the tutorial way and the kit")
    parser.add_argument("--bf16", action="store_true", help="train in bf16 autocast, generate with bf16 weights")
    parser.add_argument("--compile", action="store_true", help="train the compiled model; give it more --warm steps")
    parser.add_argument("--new-tokens", type=int, default=20, help="of every generated text")
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES, help="batch sizes of inference")
    parser.add_argument("--least-seconds", type=float, default=1.0, help="repeat a generation at least so long")
    parser.add_argument("--latency-runs", type=int, default=20, help="studies through the pipeline, one by one")
    parser.add_argument("--command-runs", type=int, default=5, help="runs of hf-cxr predict")
    parser.add_argument("--skip", choices=("training", "inference"), help="leave out one half")
    parser.add_argument(
        "--vocabulary",
        type=Path,
        default=Path(os.environ.get("HF_CXR_SHARED_DATA", ROOT.parent / "shared" / "data")) / "gpt2",
        help="folder of GPT-2's vocab.json and merges.txt",
    )
    parser.add_argument("--out", type=Path, help="JSON file for all figures, every round")
    parser.add_argument("--show", type=Path, help="print the tables of such a file and measure nothing")
    return parser


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = make_parser()
    options = parser.parse_args(words)
    if options.show:
        result = json.loads(options.show.read_text(encoding="utf-8"))
        print(tables(result))
        return result
    for name, value in DEFAULTS[options.model].items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    if options.warm < 1:
        parser.error("--warm: the clock starts at the end of a step, so at least one is warm")
    disable_progress_bars()
    settings = {
        key: value for key, value in vars(options).items() if key not in ("out", "show", "folder", "vocabulary")
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        material = make_material(options, folder)
        result = {"settings": settings, "machine": machine(), "costs_ms": material.costs}
        result |= {"training": {}, "ratios": {}, "generation": {}, "latency_s": {}}
        if options.skip != "training":
            rates, lengths = measure_training(options, material)
            result |= {"training": rates, "ratios": ratios(rates), "targets": lengths}
        if options.skip != "inference":
            if options.bf16:
                material.checkpoint.model.to(torch.bfloat16)
            result["generation"] = measure_generation(options, material)
            result["latency_s"] = measure_latency(options, material, folder / "checkpoint")
    print("\n" + tables(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
