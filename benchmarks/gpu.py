"""Everything that needs a GPU, in one go of under 9 minutes: one JSON and its tables.

    make bench-gpu                                            # python benchmarks/gpu.py --out build/gpu.json
    python benchmarks/gpu.py --smoke --out smoke.json         # tiny sizes on the CPU: that every part runs
    python benchmarks/gpu.py --show build/gpu.json            # the tables again

ViT-B/16 at 224 × 448 + GPT-2 small, random weights: the speed is the same; what must write real texts is the demo's
pair, trained here. Each part says what it measures. It runs in a process of its own, so that one that fails, hangs or
runs out of memory takes no other with it. It begins where the seconds that it may need are left, and is stopped at the
end of the budget. The JSON has the rows of each part, or why there are none. Exit status: 1 where one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import multiprocessing
import os
import platform
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # looking for a GPU must not start CUDA before the forks
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from recipes import DEVICES, ROOT, Device, loss_of, make_batch, step_flops
from serving import checkpoint

from hf_cxr.inference.generation import generate
from hf_cxr.models.modeling import load_checkpoint

SEED = 0
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKAGES = ("torch", "triton", "transformers", "accelerate", "datasets", "onnxruntime", "onnxruntime-gpu", "numpy")
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    tiny: bool = False
    product: int = 8192  # side of the matrices
    copied: int = 1 << 32  # bytes
    batch: int = 32
    target: int = 66  # tokens: see recipes.TOKENS
    steps: int = 30
    batches: tuple[int, ...] = (1, 32, 128)  # of texts
    tokens: int = 20
    repeats: int = 5
    studies: int = 4000
    epochs: int = 10
    panel: int = 96
    sharded: int = 20  # steps
    compiler: str = "inductor"


FULL, SMOKE = Sizes(), Sizes(True, 64, 1 << 16, 2, 8, 1, (1, 2), 4, 1, 60, 1, 32, 2, "eager")


class Unavailable(Exception):
    """What a part needs is not on this machine: nothing failed."""


# --- the parts: each gives the rows of its table ------------------------------------------------------------------


def device(sizes: Sizes, work: Path) -> list[Row]:
    """What it is, and what it does at best: matrix products, and a copy (bytes read and written)."""
    row: Row = {"device": "CPU", "memory, GB": None, "datasheet, TFLOP/s": None, "source": None}
    if DEVICE == "cuda":
        told = torch.cuda.get_device_properties(0)
        row |= {"device": told.name, "memory, GB": told.total_memory / 1e9}
        if known := datasheet(told.name):
            row |= {"datasheet, TFLOP/s": known.peak, "source": known.source}
    for dtype in (torch.bfloat16, torch.float32):
        one, other = (torch.randn(sizes.product, sizes.product, device=DEVICE, dtype=dtype) for _ in range(2))
        seconds = timed(partial(torch.matmul, one, other), 3, 10)
        row[f"{str(dtype).removeprefix('torch.')} product, TFLOP/s"] = 2 * sizes.product**3 / seconds / 1e12
    source = torch.zeros(sizes.copied, dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return [row | {"copy, GB/s": 2 * sizes.copied / timed(lambda: target.copy_(source), 3, 10) / 1e9}]


def train(sizes: Sizes, work: Path, bf16: bool, compiled: bool) -> list[Row]:
    """Forward, loss, backward, clipping, AdamW on ready tensors. MFU: FLOPs of the model (`recipes.step_flops`) over
    the time and the peak of the device's datasheet, which is that of bf16: none is told for fp32."""
    model = checkpoint(sizes.tiny).model.train()
    canvas = tuple(model.config.encoder.image_size)
    counted = copy.deepcopy(model).to("meta")
    counted.decoder.config.pad_token_id = None  # which it would look for among ids that are not there
    flops = step_flops(lambda: loss_of(counted, make_batch(counted, canvas, sizes.target)))
    model.to(DEVICE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    forward = torch.compile(model, backend=sizes.compiler) if compiled else model
    batch = {
        "pixel_values": torch.randn(sizes.batch, 3, *canvas, device=DEVICE),
        "decoder_input_ids": torch.randint(3, 300, (sizes.batch, sizes.target), device=DEVICE),
    }

    def step() -> None:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=bf16):
            loss = loss_of(forward, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    row: Row = {"batch": sizes.batch, "target tokens": sizes.target, "first step, s": timed(step, 0, 1)}
    seconds = timed(step, 3 * compiled + 2, sizes.steps)
    rate = flops * sizes.batch / seconds / 1e12
    known = datasheet(torch.cuda.get_device_name()) if DEVICE == "cuda" else None
    row |= {"a step, ms": 1000 * seconds, "studies/s": sizes.batch / seconds, "TFLOP/s": rate}
    return [row | {"MFU": rate / known.peak if known and bf16 else None, "memory, GB": memory()}]


def write(sizes: Sizes, work: Path, compiled: bool) -> list[Row]:
    """Greedy texts from pixels in bf16: by the kit's `generate`, or by the stock one with a static cache, which
    transformers compiles on a GPU. The kit's scores its texts too."""
    model = checkpoint(sizes.tiny).model.to(DEVICE, torch.bfloat16)
    length: Row = {"min_new_tokens": sizes.tokens, "max_new_tokens": sizes.tokens}
    rows = []
    for batch in sizes.batches:
        pixels = torch.randn(batch, 3, *model.config.encoder.image_size, device=DEVICE, dtype=torch.bfloat16)
        way: Callable[[], Any] = partial(generate, model, pixels, **length)
        if compiled:
            way = torch.inference_mode()(partial(model.generate, pixels, cache_implementation="static", **length))
        row: Row = {"batch": batch, "first, s": timed(way, 0, 1)}
        seconds = timed(way, 1, sizes.repeats)
        row |= {"a batch, ms": 1000 * seconds, "texts/s": batch / seconds, "tokens/s": batch * sizes.tokens / seconds}
        rows.append(row | {"memory, GB": memory()})
    return rows


def train_kit(sizes: Sizes, work: Path) -> list[Row]:
    """Synthetic studies are prepared, and the kit fine-tunes the demo's pair on them in fp32. Later parts use it."""
    from hf_cxr.data.collator import CanvasCollator, CanvasDataset
    from hf_cxr.data.prepare import prepare

    processes = min(os.cpu_count() or 1, 8)
    prepare("phantom", work / "data", size=sizes.panel, seed=SEED, num_studies=sizes.studies, num_proc=processes)
    began = time.perf_counter()
    parts, losses, packed = fine_tuned(sizes, work, {"num_train_epochs": sizes.epochs})
    seconds = time.perf_counter() - began
    canvases = CanvasDataset(packed["test"], sizes.panel)
    pixels = CanvasCollator(parts.image_processor)([canvases[index] for index in range(len(canvases))])["pixel_values"]
    torch.save(pixels, work / "pixels.pt")
    (work / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    parts.save_pretrained(work / "run")
    row = {"steps": len(losses), "first loss": losses[0], "last loss": losses[-1], "with loading, s": seconds}
    return [row | {"memory, GB": memory()}]


def fsdp2(sizes: Sizes, work: Path) -> list[Row]:
    """The first steps of the same training as configs/accelerate/fsdp2.yaml says, by one process."""
    import yaml
    from accelerate import PartialState
    from accelerate.utils import DistributedType

    from hf_cxr.training.launch import accelerate_config, check_workers

    if DEVICE == "cpu":  # accelerate offers FSDP to GPUs alone; as the tests do, tell it that this is one
        sys.path.append(str(ROOT / "tests"))
        import fsdp_on_cpu  # noqa: F401
    setup = yaml.safe_load(accelerate_config("fsdp2").read_text(encoding="utf-8"))["fsdp_config"]
    told = {name.upper(): value if isinstance(value, str) else json.dumps(value) for name, value in setup.items()}
    told |= {"ACCELERATE_USE_FSDP": "true", "ACCELERATE_MIXED_PRECISION": "no", "RANK": "0", "LOCAL_RANK": "0"}
    told |= {"WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    os.environ.update(told)
    PartialState(cpu=DEVICE == "cpu")
    check_workers()
    _, losses, _ = fine_tuned(sizes, work, {"max_steps": sizes.sharded})
    if PartialState().distributed_type is not DistributedType.FSDP:
        raise RuntimeError(f"trained as {PartialState().distributed_type}, not FSDP")
    alone = json.loads((work / "losses.json").read_text(encoding="utf-8"))[: len(losses)]
    apart = max(abs(one - other) / one for one, other in zip(alone, losses, strict=True))
    if apart > 0.01:
        raise ValueError(f"losses are up to {apart:.1%} from those of the process alone")
    return [{"steps": len(losses), "losses apart, at most": apart, "memory, GB": memory()}]


def compare_texts(sizes: Sizes, work: Path) -> list[Row]:
    """Greedy texts of the test studies beside the CPU's in fp32, and the scores of those that agree."""
    ways = {
        "cpu, fp32": ("cpu", torch.float32, False),
        f"{DEVICE}, fp32 anew": (DEVICE, torch.float32, False),
        f"{DEVICE}, fp32 with TF32": (DEVICE, torch.float32, True),
        f"{DEVICE}, bf16": (DEVICE, torch.bfloat16, False),
    }
    rows, own, pixels = list[Row](), None, torch.load(work / "pixels.pt")
    for name, (where, dtype, tf32) in ways.items():
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
        model = load_checkpoint(str(work / "run"), dtype=dtype).model.eval().to(where)
        found = [generate(model, part) for part in pixels.split(32)]
        texts = [written(text) for part in found for text in part["sequences"][:, 0].tolist()]
        scores = torch.cat([part["scores"][:, 0].double() for part in found])
        own = own or (texts, scores)
        same = torch.tensor([one == other for one, other in zip(own[0], texts, strict=True)])
        row = {"way": name, "studies": len(texts), "same texts": int(same.sum()), "distinct": len(set(texts))}
        apart = (own[1] - scores)[same].abs().max().item() if same.any() else None
        rows.append(row | {"scores apart, at most": apart})
    return rows


def onnx(sizes: Sizes, work: Path) -> list[Row]:
    """The run exported, on onnxruntime's CUDA provider, beside torch on the device; all test studies are one batch."""
    import onnxruntime

    from hf_cxr.serving.onnx_export import export_onnx
    from hf_cxr.serving.runner import Runner

    there = onnxruntime.get_available_providers()
    wanted = "CUDAExecutionProvider" if DEVICE == "cuda" else "CPUExecutionProvider"
    if wanted not in there:
        raise Unavailable(f"onnxruntime has no {wanted}, only {', '.join(there)}")
    torch.backends.cudnn.allow_tf32 = False
    export_onnx(str(work / "run"), work / "onnx")
    runner, pixels = Runner(work / "onnx", providers=[wanted] * (DEVICE == "cuda")), torch.load(work / "pixels.pt")
    if (used := runner.encoder.get_providers()[0]) != wanted:
        raise RuntimeError(f"onnxruntime fell back to {used}")
    model = load_checkpoint(str(work / "run"), dtype=torch.float32).model.eval().to(DEVICE)
    ways: dict[str, Callable[[], Any]] = {
        "torch": lambda: generate(model, pixels)["sequences"][:, 0],
        "onnxruntime": lambda: runner.generate(pixels.numpy())[0][:, 0],
    }
    texts = {name: [written(text) for text in way().tolist()] for name, way in ways.items()}
    rows = []
    for name, way in ways.items():
        same = sum(one == other for one, other in zip(texts["torch"], texts[name], strict=True))
        rate = len(pixels) / timed(way, 0, 2)
        rows.append({"way": f"{name}, {DEVICE}", "studies": len(pixels), "same texts": same, "texts/s": rate})
    return rows


PARTS: dict[str, tuple[Callable[[Sizes, Path], list[Row]], int]] = {  # and the seconds that each may need
    "device": (device, 20),
    "training, bf16": (partial(train, bf16=True, compiled=False), 40),
    "training, bf16, compiled": (partial(train, bf16=True, compiled=True), 90),
    "texts, bf16": (partial(write, compiled=False), 40),
    "texts, bf16, static cache, compiled": (partial(write, compiled=True), 90),
    "training by the kit": (train_kit, 80),
    "FSDP2 on one device": (fsdp2, 40),
    "texts beside the CPU's": (compare_texts, 40),
    "ONNX": (onnx, 60),
    "training, fp32": (partial(train, bf16=False, compiled=False), 40),
}


# --- what they share ---------------------------------------------------------------------------------------------


def fine_tuned(sizes: Sizes, work: Path, more: Row) -> tuple[Any, list[float], Any]:
    """Stage two of the demo's recipe: the checkpoint, the loss of each step, the packed dataset. The learning rate is
    constant, so that runs of any length begin alike."""
    from transformers import set_seed

    from hf_cxr.config import parse_arguments
    from hf_cxr.data.collator import pack_dataset
    from hf_cxr.data.prepared import load_prepared
    from hf_cxr.training.beginning import begin
    from hf_cxr.training.checks import asked_of
    from hf_cxr.training.run import fine_tune

    told: Row = {"dataset": work / "data", "output_dir": work / "training", "panel_size": sizes.panel, "seed": SEED}
    told |= {"use_cpu": DEVICE == "cpu", "lr_scheduler_type": "constant", "learning_rate": 1e-3, "warmup_steps": 0}
    told |= {"logging_steps": 1, "disable_tqdm": True, "report_to": "none"}
    words = [word for name, value in (told | more).items() for word in (f"--{name}", str(value))]
    kit, args = parse_arguments(ROOT / "configs" / "demo.yaml", words)
    args.dataloader_pin_memory = DEVICE == "cuda"
    dataset, layout, _ = asked_of(load_prepared(kit.dataset), kit)
    packed = {name: pack_dataset(dataset[name], kit.panel_size) for name in ("train", "test")}
    set_seed(SEED)
    parts = begin(dataset["train"], layout, kit, args)
    trainer = fine_tune(parts, {"train": packed["train"]}, kit, args)
    return parts, [row["loss"] for row in trainer.state.log_history if "loss" in row], packed


def timed(work: Callable[[], Any], warm: int, times: int) -> float:
    """Seconds of one call, the mean of `times` after `warm`; the device has nothing left to do at either end."""
    for number in range(warm + times):
        if number == warm:
            wait()
            began = time.perf_counter()
        work()
    wait()
    return (time.perf_counter() - began) / times


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def memory() -> float | None:
    """The most that tensors of this process took on the device, in GB."""
    return torch.cuda.max_memory_allocated() / 1e9 if DEVICE == "cuda" else None


def written(text: Sequence[int]) -> tuple[int, ...]:
    """Without padding and start token: 0 and 1 in the kit's own tokenizers."""
    return tuple(token for token in text if token > 1)


def datasheet(name: str) -> Device | None:
    """Of the device whose name in `recipes.DEVICES` is the longest within this one; None for slower boards."""
    known = max((key for key in DEVICES if re.search(rf"\b{key}\b", name)), key=len, default=None)
    return DEVICES[known] if known and not re.search("PCIe|NVL", name) else None


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


# --- one part after another --------------------------------------------------------------------------------------


def run_parts(parts: Mapping[str, tuple[Callable, int]], sizes: Sizes, budget: float) -> dict[str, Row]:
    """Of each part its `rows`, or the reason as `skipped` or `error`; and its `seconds`."""
    results, ends = dict[str, Row](), time.monotonic() + budget
    with tempfile.TemporaryDirectory() as name:
        for number, (part, (work, needed)) in enumerate(parts.items()):
            left, began = ends - time.monotonic(), time.monotonic()
            if left < (1 if sizes.tiny else needed):
                results[part] = {"skipped": f"{max(0, left):.0f} s were left of the budget, it may need {needed}"}
            else:
                results[part] = _in_child(work, sizes, Path(name), Path(name) / f"part{number}.json", left)
            results[part]["seconds"] = round(time.monotonic() - began, 1)
            told = {key: value for key, value in results[part].items() if key != "rows"}
            print(part, told, file=sys.stderr, flush=True)
    return results


def _in_child(part: Callable, sizes: Sizes, work: Path, answer: Path, seconds: float) -> Row:
    child = multiprocessing.get_context("fork").Process(target=_child, args=(part, sizes, work, answer))
    child.start()
    assert child.pid
    child.join(seconds)
    stopped = child.is_alive()
    with contextlib.suppress(ProcessLookupError):  # and what it started: the compiler's workers outlive it
        os.killpg(child.pid, signal.SIGKILL)
    child.join()
    if answer.is_file():
        return json.loads(answer.read_text(encoding="utf-8"))
    return {"error": "stopped: the budget was spent" if stopped else f"ended with status {child.exitcode}"}


def _child(part: Callable, sizes: Sizes, work: Path, answer: Path) -> None:
    os.setsid()
    os.dup2(2, 1)  # what the trainers print is no table
    torch.manual_seed(SEED)
    try:
        told = {"rows": part(sizes, work)}
    except Unavailable as reason:
        told = {"skipped": str(reason)}
    except BaseException as error:  # whatever it is, the others go on
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    answer.with_suffix(".new").write_text(json.dumps(told), encoding="utf-8")
    answer.with_suffix(".new").rename(answer)


def tables(result: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items() if number)
    lines = [f"{result['device']}; {versions}; seed {result['seed']}; {result['date']}"]
    for name, part in result["parts"].items():
        lines += ["", f"**{name}** ({part['seconds']} s)", ""]
        if "rows" not in part:
            lines.append(f"skipped: {part['skipped']}" if "skipped" in part else f"FAILED: {part['error']}")
            continue
        lines += [f"| {' | '.join(part['rows'][0])} |", "|---" * len(part["rows"][0]) + "|"]
        lines += [f"| {' | '.join(map(_cell, row.values()))} |" for row in part["rows"]]
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def _version(name: str) -> str | None:
    with contextlib.suppress(PackageNotFoundError):
        return version(name)
    return None


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, on the CPU where there is no GPU")
    parser.add_argument("--budget", type=float, default=510, help="seconds of all parts together")
    parser.add_argument("--parts", nargs="+", choices=tuple(PARTS), default=tuple(PARTS), metavar="PART")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"))
    parser.add_argument("--show", type=Path, help="print the tables of such a file and measure nothing")
    options = parser.parse_args(words)
    if options.show:
        print(tables(json.loads(options.show.read_text(encoding="utf-8"))))
        return 0
    if DEVICE == "cpu" and not options.smoke:
        parser.error("torch sees no GPU here; --smoke tries the parts on the CPU")
    began = datetime.now(UTC).isoformat(timespec="seconds")
    results = run_parts(
        {name: PARTS[name] for name in options.parts}, SMOKE if options.smoke else FULL, options.budget
    )
    rows = results.get("device", {}).get("rows", [{}])
    result: Row = {"device": rows[0].get("device"), "date": began, "seed": SEED, "smoke": options.smoke}
    result |= {"python": platform.python_version(), "versions": {name: _version(name) for name in PACKAGES}}
    result |= {"cuda": torch.version.cuda, "budget_s": options.budget, "parts": results}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    print(tables(result))
    return int(any("error" in part for part in results.values()))


if __name__ == "__main__":
    sys.exit(main())
