"""The figures of `throughput.py` on paper: ratios, the machine that they are of, and tables."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

RATIOS = (
    ("kit", "ceiling"),
    ("kit", "tutorial"),
    ("kit", "tutorial, longest"),
    ("kit", "tutorial, small files"),
    ("tutorial, longest", "tutorial"),
    ("tutorial, small files", "tutorial, longest"),
)


def ratios(rates: dict[str, list[float]], pairs: Sequence[tuple[str, str]] = RATIOS) -> dict[str, dict[str, float]]:
    """Quotients of rates, taken within each round (the machine's noise is then in both): median, least, greatest."""
    result = {}
    for upper, lower in pairs:
        quotients = [a / b for a, b in zip(rates[upper], rates[lower], strict=True)]
        result[f"{upper} ÷ {lower}"] = {"median": median(quotients), "min": min(quotients), "max": max(quotients)}
    return result


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    cpu = platform.processor()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        cpu = next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    versions = {
        name: sys.modules[name].__version__ for name in ("torch", "transformers", "datasets", "accelerate", "PIL")
    }
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **versions,
    }


def tables(result: dict[str, Any]) -> str:
    """All figures of a run as Markdown."""
    host, settings = result["machine"], result["settings"]
    device = host["gpu"] or f"CPU {host['cpu']}"
    told = {key: value for key, value in settings.items() if value is not None}
    lines = [
        f"**{settings['model']}** on {device}, {host['cores']} cores, {host['threads']} threads; "
        + ", ".join(f"{name} {host[name]}" for name in ("python", "torch", "transformers", "datasets", "accelerate")),
        "",
        "Settings: " + ", ".join(f"{key} {value}" for key, value in told.items()),
        "",
    ]
    if result["training"]:
        lines += ["| training | studies/s, median | least to greatest |", "|---|---|---|"]
        lines += [_row(name, values) for name, values in result["training"].items()]
        lines += ["", "| ratio | median | least to greatest |", "|---|---|---|"]
        lines += [
            f"| {name} | {value['median']:.3f} | {value['min']:.3f} to {value['max']:.3f} |"
            for name, value in result["ratios"].items()
        ]
        lines.append("")
    lines += ["| once, before training | ms |", "|---|---|"]
    lines += [f"| {name} | {value:.1f} |" for name, value in result["costs_ms"].items()]
    if result["generation"]:
        lines += ["", f"| inference, {settings['new_tokens']} tokens a text | studies/s, median | least to greatest |"]
        lines += ["|---|---|---|", *(_row(name, values) for name, values in result["generation"].items())]
    if result["latency_s"]:
        lines += ["", "| one study, from two files | median s | 95th percentile s | n |", "|---|---|---|---|"]
        lines += [
            f"| {name} | {median(values):.3g} | {np.percentile(values, 95):.3g} | {len(values)} |"
            for name, values in result["latency_s"].items()
            if values
        ]
    return "\n".join(lines)


def _row(name: str, values: list[float]) -> str:
    return f"| {name} | {median(values):.3g} | {min(values):.3g} to {max(values):.3g} |"
