"""Low-rank adapters (LoRA, Hu et al. 2021) in the pretrained layers, by peft; merged at the end of each stage.

What is new to a pretrained pair is trained in full: the cross-attention, and the positions that tell the two panels
apart. What leaves this module is the stock model again: nobody who loads the checkpoint needs peft.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from hf_cxr.models.modeling import CROSS_ATTENTION

# Trained in full beside the adapters.
NEW_OR_SMALL = (*CROSS_ATTENTION, "position_embeddings", "relative_position_bias_table", "head.")


@contextmanager
def adapters(module: torch.nn.Module, rank: int, alpha: int) -> Iterator[None]:
    """Within the block, `module` (changed in place) trains adapters of this rank in place of its linear layers.

    `rank` 0 changes nothing. On leaving the block the adapters are merged into the weights and taken out.
    Raises `ImportError` without peft.
    """
    if not rank:
        yield
        return
    try:
        from peft import LoraConfig
        from peft.tuners.lora import LoraModel
    except ImportError as error:
        raise ImportError("lora_rank needs peft: pip install peft") from error
    trainable = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
    targets = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Conv1D"  # GPT-2's transposed linear layer
        if not any(mark in f"{name}." for mark in (*NEW_OR_SMALL, "lm_head", "pooler"))
    ]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0, bias="none")
    tuner = LoraModel(module, config, "default")
    for name, parameter in module.named_parameters():
        if any(mark in name for mark in NEW_OR_SMALL) and name in trainable:
            parameter.requires_grad_(True)
    try:
        yield
    finally:
        tuner.merge_and_unload()
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name in trainable)
