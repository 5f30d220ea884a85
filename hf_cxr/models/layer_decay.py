"""Layer-wise learning-rate decay (Clark et al. 2020, Bao et al. 2022): the earlier a block of an encoder, the less it
learns. How the groups of an optimizer come about otherwise is the business of the trainers."""

from __future__ import annotations

from collections.abc import Mapping

import torch


def blocks_above(encoder: torch.nn.Module) -> dict[torch.nn.Parameter, int]:
    """How many blocks follow the one that a parameter belongs to.

    Blocks are the items of the innermost module lists, so that those of a Swin's stages count through. What stands
    before the first one (embeddings) is below all of them; anything later belongs to the block before it.
    """
    lists = {name: module for name, module in encoder.named_modules() if isinstance(module, torch.nn.ModuleList)}
    innermost = [name for name in lists if not any(other.startswith(f"{name}.") for other in lists)]
    blocks = [f"{name}.{place}." for name in innermost for place in range(len(lists[name]))]
    depths, begun = {}, 0
    for name, parameter in encoder.named_parameters():
        begun = next((place for place, block in enumerate(blocks, 1) if name.startswith(block)), begun)
        depths[parameter] = len(blocks) - begun
    return depths


def decay_layers(optimizer: torch.optim.Optimizer, depths: Mapping[torch.nn.Parameter, int], decay: float) -> None:
    """Cut the optimizer's groups by depth: each has its learning rate × `decay` to the power of the blocks above."""
    groups = list(optimizer.param_groups)
    optimizer.param_groups.clear()
    for group in groups:
        for depth in sorted({depths.get(parameter, 0) for parameter in group["params"]}):
            members = [parameter for parameter in group["params"] if depths.get(parameter, 0) == depth]
            optimizer.add_param_group(group | {"params": members, "lr": group["lr"] * decay**depth})
