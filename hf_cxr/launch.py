"""Start training once per process through accelerate, and cure accelerate's silent single process on CPUs."""

from __future__ import annotations

import os
from collections.abc import Sequence

import psutil
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def is_launched() -> bool:
    """Whether a launcher started this process as one of its workers."""
    return "WORLD_SIZE" in os.environ or "ACCELERATE_MIXED_PRECISION" in os.environ


def launch(words: Sequence[str], processes: int | None = None, config_file: str | None = None) -> None:
    """Run `python -m hf_cxr WORDS` under accelerate, in `processes` processes or as its YAML `config_file` says.

    Raises `OSError` if a worker fails; it has told why.
    """
    options = ["--config_file", config_file] if config_file else []
    if processes:
        options += ["--num_processes", str(processes)]
        if processes > 1:
            options += ["--multi_gpu"]  # torchrun's way: on a machine without a GPU its workers talk through gloo
    try:
        launch_command(launch_command_parser().parse_args([*options, "--module", "hf_cxr", *words]))
    except ChildFailedError as error:
        raise OSError("a worker process failed; its own message is above") from error


def processes_lost_by_accelerate() -> int | None:
    """How many processes `accelerate launch --cpu --num_processes N` was asked for, where it started only this one.

    Without MPI, accelerate (1.15) starts a single process and says nothing; training would run at 1/N of the global
    batch. What it leaves behind is `MASTER_ADDR` without `WORLD_SIZE`; N itself stands in its command line.
    """
    ranks = {"WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"}
    if "MASTER_ADDR" not in os.environ or "ACCELERATE_MIXED_PRECISION" not in os.environ or ranks & set(os.environ):
        return None
    launcher = psutil.Process().parent()
    words = launcher.cmdline() if launcher else []
    start = next((place for place, word in enumerate(words) if word.endswith(("launch", "launch.py"))), None)
    if start is None:
        return None
    asked = launch_command_parser().parse_args(words[start + 1 :])
    if asked.num_processes is None and asked.config_file:
        asked.num_processes = load_config_from_file(asked.config_file).num_processes
    if (asked.num_machines or 1) > 1:
        raise ValueError("accelerate launch --cpu starts no processes on several machines; use torchrun")
    for name in ("MASTER_ADDR", "MASTER_PORT", "ACCELERATE_MIXED_PRECISION"):
        os.environ.pop(name)  # the workers get their own
    return asked.num_processes
