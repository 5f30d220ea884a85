"""Models that a launcher trains in pieces (FSDP2, DeepSpeed): whole again afterwards, on every process.

Saving, generating over the test split and the second stage then go the same way as with one process.
"""

from __future__ import annotations

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments

from hf_cxr.training import launch


def is_sharded(args: TrainingArguments) -> bool:
    """Whether the launcher or the arguments ask for FSDP or DeepSpeed."""
    return bool(args.fsdp or args.deepspeed) or launch.is_fsdp() or launch.is_deepspeed()


def whole_again(trained: torch.nn.Module, unsharded: torch.nn.Module) -> torch.nn.Module:
    """Return `unsharded`, a copy made before training, with the trained weights, of which each process may hold a
    piece.

    Every process has to call it: the pieces are gathered one weight at a time.
    """
    weights = {
        name: value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in trained.state_dict().items()
    }
    unsharded.load_state_dict(weights)
    return unsharded
