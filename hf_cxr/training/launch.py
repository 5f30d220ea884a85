"""Start training once per process through accelerate, and refuse or cure what it would do silently wrong.

What it is silent about (accelerate 1.15): `--cpu --num_processes N` starts one process; an FSDP config on a machine
without a GPU trains with plain DDP; workers that were not told to use the CPU do not find each other there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil
import torch
from accelerate import PartialState
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from accelerate.utils import DistributedType
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from transformers import TrainingArguments

from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments
from hf_cxr.utils.files import packaged

RANKS = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}


def is_launched() -> bool:
    """Whether a launcher started this process as one of its workers."""
    return "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def launch(words: Sequence[str], processes: int | None = None, config: str | None = None) -> None:
    """Run `python -m hf_cxr WORDS` under accelerate, in `processes` processes or as the launch set-up `config` says.

    `config` is a YAML file that `accelerate launch --config_file` takes, or the name of one in `configs/accelerate`.
    Raises `OSError` if a worker fails; it has told why.
    """
    options, single = [], True
    if config:
        file = str(accelerate_config(config))
        setup = load_config_from_file(file)
        options += ["--config_file", file]
        processes = processes or setup.num_processes
        single = setup.distributed_type in (DistributedType.NO, DistributedType.MULTI_CPU)
        if setup.use_cpu:
            os.environ["ACCELERATE_USE_CPU"] = "true"
    if processes:
        options += ["--num_processes", str(processes)]
        if processes > 1 and single:
            options += ["--multi_gpu"]  # torchrun's way: on CPUs its workers talk through gloo
    start(launch_command_parser().parse_args([*options, "hf_cxr"]), words)


def accelerate_config(name: str) -> Path:
    """A launch set-up: a file of yours, or one of `configs/accelerate` by its name (`ddp`, `fsdp2`, …)."""
    if Path(name).is_file():
        return Path(name)
    folder = packaged("configs/accelerate")
    file = folder / f"{name.removesuffix('.yaml')}.yaml"
    if not file.is_file():
        names = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
        raise FileNotFoundError(f"{name}: no such accelerate config; your own file, or one of {names}")
    return file


def command_that_lost_processes() -> argparse.Namespace | None:
    """What `accelerate launch --cpu --num_processes N` was asked for, where it started only this one process.

    Without MPI, accelerate starts a single process and says nothing; training would run at 1/N of the global batch.
    What it leaves behind is `MASTER_ADDR` without `WORLD_SIZE`; N and all other options (mixed precision, port, hosts,
    threads …) stand in its command line and its config file. `start` starts what was asked for.
    """
    if "MASTER_ADDR" not in os.environ or "ACCELERATE_MIXED_PRECISION" not in os.environ or RANKS & set(os.environ):
        return None
    launcher = psutil.Process().parent()
    line = launcher.cmdline() if launcher else []
    place = next((place for place, word in enumerate(line) if word.endswith(("launch", "launch.py"))), None)
    if place is None:
        return None
    asked = launch_command_parser().parse_args(line[place + 1 :])
    for name in ("MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(name)  # the workers get their own
    os.environ["ACCELERATE_USE_CPU"] = "true"
    asked.cpu, asked.multi_gpu = False, True  # torchrun's way
    return asked


def start(options: argparse.Namespace, words: Sequence[str]) -> None:
    """Run `python -m hf_cxr WORDS` once per process, with accelerate's launch `options`."""
    options.module, options.training_script, options.training_script_args = True, "hf_cxr", list(words)
    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"  # else the workers would not look for each other
    try:
        launch_command(options)
    except (ChildFailedError, subprocess.CalledProcessError) as error:
        raise OSError("a worker process failed; its own message is above") from error


def check_workers() -> None:
    """Raise `ValueError` where the processes are not joined as the launcher was asked to, before they train apart."""
    state, expected = PartialState(), int(os.environ.get("WORLD_SIZE", "1"))
    if state.num_processes != expected:
        raise ValueError(
            f"{expected} processes were started but this one sees {state.num_processes}: on a machine without a GPU "
            "set use_cpu: true"
        )
    if is_fsdp() and state.distributed_type in (DistributedType.MULTI_CPU, DistributedType.NO):
        raise ValueError("FSDP needs GPUs (accelerate would train with plain DDP here); use configs/accelerate/ddp")
    if is_fsdp() and os.environ.get("FSDP_VERSION", "2") != "2":
        raise ValueError("FSDP version 1 is not supported; set fsdp_version: 2, as configs/accelerate/fsdp2.yaml does")
    if os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3":
        raise ValueError("DeepSpeed ZeRO-3 is not supported; use configs/accelerate/fsdp2.yaml")


def cut_global_batch(kit: ImpressionConfig, args: ImpressionTrainingArguments) -> str:
    """Cut the global batch into equal parts for the devices, and these into accumulated batches; in place.

    Where `per_device_train_batch_size` does not divide a device's part, the next smaller number that does takes its
    place. Returns one line that says what was chosen. Raises `ValueError` where the devices cannot share the global
    batch equally, or `gradient_accumulation_steps` says another one than `global_batch_size`.
    """
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    devices = args.world_size * max(1, args.n_gpu)
    product = batch * accumulation * devices
    given = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    for name, value in (given | {"global_batch_size": kit.global_batch_size}).items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is 1 or more, not {value}")
    whole = kit.global_batch_size or product
    if args.accumulation_given and product != whole:
        raise ValueError(
            f"global_batch_size is {whole}, but gradient_accumulation_steps {accumulation} × per_device_train_batch_"
            f"size {batch} × {devices} device(s) is {product}; leave gradient_accumulation_steps out, or change one"
        )
    part, rest = divmod(whole, devices)
    if rest:
        near = " or ".join(str(size) for size in (whole - rest, whole - rest + devices) if size)
        raise ValueError(f"global_batch_size: {devices} devices cannot share {whole} studies equally; take {near}")
    size = next(size for size in range(min(batch, part), 0, -1) if part % size == 0)
    kit.global_batch_size = whole
    args.per_device_train_batch_size, args.gradient_accumulation_steps = size, part // size
    lowered = f" (per_device_train_batch_size {batch} lowered to {size})" if size < batch else ""
    return f"Global batch: {whole} studies = {size} × {devices} device(s) × {part // size} accumulated{lowered}"


def is_fsdp() -> bool:
    """Whether the launcher asked for fully sharded training."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true"


def is_sharded(args: TrainingArguments) -> bool:
    """Whether launcher or arguments ask for training in pieces: FSDP or DeepSpeed."""
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    return bool(args.fsdp or args.deepspeed) or is_fsdp() or deepspeed
