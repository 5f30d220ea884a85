"""What a step of each recipe in `configs/` needs: memory and time, counted from its model, with nothing downloaded.

    python benchmarks/recipes.py [configs/NAME.yaml ...] [--gpu "RTX 3090"] [--studies 2359] [--out recipes.json]

memory of a step = 4 bytes × parameters (weights) + 12 bytes × trained parameters (gradient, AdamW's two moments)
                 + activations of one study × batch; of the two stages the larger
time of an epoch = FLOPs of a study's step × studies ÷ (utilisation × peak of the GPU)

Parameters, FLOPs (`FlopCounterMode`) and activations (the tensors that autograd saves in an fp32 forward pass of one
study with fused attention, the weights excluded) are counted on the meta device, not measured. Under bf16 autocast
the activations are about half as large; a CUDA context and work space come on top (0.5 to 1 GB). Time is that of
training alone, in the precision of the stated peak (`--bf16 True`, or `--fp16 True` on a T4): evaluations and saving
come on top. With a frozen encoder whose states are computed once, stage two is the decoder's step alone; the states'
bytes on disk are counted too. Pretrained parts are built from their published sizes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    GPT2Config,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
)

from hf_cxr.config import ImpressionConfig, parse_arguments
from hf_cxr.models.encoders import ENCODER_SIZES, PATCH_SIZE, STRETCHED
from hf_cxr.models.lora import adapters
from hf_cxr.models.modeling import DECODER_SIZES, ready_for_trainer
from hf_cxr.training.launch import cut_global_batch

ROOT = Path(__file__).resolve().parents[1]

# Published sizes of pretrained parts: model type and what differs from its configuration class's defaults.
_VIT_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_VIT_SMALL = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536}
_DINOV2_BASE = {"image_size": 518, "patch_size": 14}  # the class's defaults are ViT-B
_SWIN_BASE = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
_SWIN_SMALL = {"embed_dim": 96, "depths": [2, 2, 18, 2], "num_heads": [3, 6, 12, 24]}
PARTS: dict[str, tuple[str, dict[str, Any]]] = {
    # Dosovitskiy et al. 2021, table 1; Touvron et al. 2021, table 1
    "google/vit-base-patch16-224-in21k": ("vit", _VIT_BASE),
    "google/vit-base-patch16-224": ("vit", _VIT_BASE),
    "facebook/deit-base-patch16-224": ("vit", _VIT_BASE),
    "facebook/deit-small-patch16-224": ("vit", _VIT_SMALL),
    # Liu et al. 2021 (Swin), section 3.3; the class's defaults are Swin-T
    "microsoft/swin-tiny-patch4-window7-224": ("swin", {}),
    "microsoft/swin-small-patch4-window7-224": ("swin", _SWIN_SMALL),
    "microsoft/swin-base-patch4-window7-224": ("swin", _SWIN_BASE),
    "microsoft/swin-base-patch4-window7-224-in22k": ("swin", _SWIN_BASE),
    # Siméoni et al. 2025 (DINOv3) and its model card: patches of 16, four register tokens
    "facebook/dinov3-vits16-pretrain-lvd1689m": ("dinov3_vit", {**_VIT_SMALL, "num_register_tokens": 4}),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": ("dinov3_vit", {**_VIT_BASE, "num_register_tokens": 4}),
    # Pérez-García et al. 2025 (RAD-DINO): a DINOv2 ViT-B/14 for images of 518 pixels; Oquab et al. 2024 (DINOv2)
    "microsoft/rad-dino": ("dinov2", _DINOV2_BASE),
    "microsoft/rad-dino-maira-2": ("dinov2", _DINOV2_BASE),
    "facebook/dinov2-base": ("dinov2", _DINOV2_BASE),
    "facebook/dinov2-small": ("dinov2", _DINOV2_BASE | {"hidden_size": 384, "num_attention_heads": 6}),
    # Radford et al. 2019, table 2, and the model card of DistilGPT-2
    "gpt2": ("gpt2", {}),
    "openai-community/gpt2": ("gpt2", {}),
    "gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "openai-community/gpt2-medium": ("gpt2", {"n_embd": 1024, "n_layer": 24, "n_head": 16}),
    "distilgpt2": ("gpt2", {"n_layer": 6}),
    "distilbert/distilgpt2": ("gpt2", {"n_layer": 6}),
}


@dataclass(frozen=True)
class Device:
    """Dense peak in TFLOP/s, memory in GB, and where the figures are from."""

    peak: float
    memory: float
    source: str


DEVICES = {
    "T4": Device(65, 16, "NVIDIA T4 datasheet, fp16 tensor cores (it has no bf16)"),
    "RTX 3090": Device(71, 24, "NVIDIA GA102 whitepaper, fp16 or bf16 tensor cores, fp32 accumulate"),
    "A100": Device(312, 40, "NVIDIA A100 datasheet, bf16 tensor cores"),
    "H100": Device(989, 80, "NVIDIA H100 SXM datasheet, bf16 tensor cores, dense"),
    "H200": Device(989, 141, "NVIDIA H200 SXM datasheet, bf16 tensor cores, dense"),
    "L4": Device(121, 24, "NVIDIA L4 datasheet, bf16 tensor cores, dense (half of what it states, with sparsity)"),
    "RTX 4090": Device(165, 24, "NVIDIA Ada whitepaper, bf16 tensor cores, fp32 accumulate, dense"),
}
# Published: ViT-B/16 at 224 trains 393 images/s on an RTX 3090. At 105 GFLOP an image (three times a forward pass)
# that is 58 % of its peak. A pair with a short-sequence decoder, a vocabulary's loss and an optimiser has less.
UTILISATION = 0.4
STUDIES = 2359  # 70 % of the 3,370 Indiana studies that have an impression and both views
# The longest of 16 Indiana impressions in GPT-2 tokens, the end included, on average over 4,000 draws of 16 from all
# 3,820 (of 2: 27; of 32: 79); a batch is padded to its longest. Memory is counted at `max_target_length` instead.
TOKENS = 66


def build_from_config(kit: ImpressionConfig) -> VisionEncoderDecoderModel:
    """The recipe's model without weights, on the meta device. Raises `ValueError` for a part of unknown sizes."""
    canvas = [kit.panel_size, kit.panels * kit.panel_size]
    if kit.encoder in ENCODER_SIZES:
        encoder = AutoConfig.for_model("vit", patch_size=PATCH_SIZE, **ENCODER_SIZES[kit.encoder])
    else:
        encoder = _published(kit.encoder)
    encoder.image_size = canvas[1] if encoder.model_type in STRETCHED else canvas
    if kit.decoder in DECODER_SIZES:
        positions = max(256, kit.max_target_length + 1)
        ids = {"vocab_size": kit.vocab_size, "bos_token_id": 1, "eos_token_id": 2}
        decoder = GPT2Config(n_positions=positions, **ids, **DECODER_SIZES[kit.decoder])
    else:
        decoder = _published(kit.decoder)
    decoder.is_decoder, decoder.add_cross_attention = True, True
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(encoder, decoder)
    with torch.device("meta"):
        parts = {"encoder": AutoModel.from_config(encoder), "decoder": AutoModelForCausalLM.from_config(decoder)}
        return ready_for_trainer(VisionEncoderDecoderModel(config=config, **parts))


def _published(name: str):
    if name in PARTS:
        kind, sizes = PARTS[name]
        return AutoConfig.for_model(kind, **sizes)
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except OSError as error:
        raise ValueError(f"{name}: its sizes are not known; add them to PARTS in benchmarks/recipes.py") from error


def make_batch(model, canvas: tuple[int, int], tokens: int, states: bool = False) -> dict[str, Any]:
    """One study; with `states`, what a frozen encoder has made of it."""
    ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
    pixels = torch.zeros(1, 3, *canvas, device="meta")
    if not states:
        return {"pixel_values": pixels, "decoder_input_ids": ids}
    with torch.no_grad():
        return {"encoder_outputs": (model.encoder(pixel_values=pixels)[0],), "decoder_input_ids": ids}


def loss_of(model, batch: dict[str, Any]) -> torch.Tensor:
    logits = model(**batch)["logits"].flatten(0, 1).float()
    return torch.nn.functional.cross_entropy(logits, batch["decoder_input_ids"].flatten())


class FusedAttention(torch.autograd.Function):
    """What a GPU's fused kernels keep: queries, keys, values, output and a number per query, no attention matrix."""

    @staticmethod
    def forward(ctx, query, key, value, mask):
        batch, heads, tokens, _ = query.shape
        output = query.new_empty(batch, tokens, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it out
        kept = [] if mask is None else [mask]
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1]), *kept)
        return output


def fused_attention(query, key, value, attn_mask=None, **options) -> torch.Tensor:
    return FusedAttention.apply(query, key, value, attn_mask)


def saved_bytes(model, work) -> int:
    """Bytes that autograd keeps of `work()` for its backward pass: each storage once, the model's own weights not."""
    own = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    saved: dict[int, torch.UntypedStorage] = {}  # kept alive: an address that is freed would be given out again

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            saved[storage._cdata] = storage
        return tensor

    with (
        patch.object(torch.nn.functional, "scaled_dot_product_attention", fused_attention),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
    ):
        work()
    return sum(storage.nbytes() for storage in saved.values())


def step_flops(work) -> int:
    """FLOPs of `work()`, which returns a tensor, and of its backward pass."""
    with FlopCounterMode(display=False) as counter:
        output = work()
        if output.requires_grad:
            output.backward()
    return counter.get_total_flops()


def estimate(config: Path, tokens: int = TOKENS) -> dict[str, Any]:
    """Everything about one recipe that does not depend on the machine. Bytes, FLOPs, counts; per study."""
    kit, args = parse_arguments(config, ["--bf16", "False", "--fp16", "False"])
    cut_global_batch(kit, args)
    tokens = min(tokens, kit.max_target_length)
    model, canvas = build_from_config(kit).train(), (kit.panel_size, kit.panels * kit.panel_size)
    cached = kit.freeze_encoder
    pretrain_on_findings = pretraining_bytes = 0
    with adapters(model, kit.lora_rank, kit.lora_alpha) if kit.lora_rank else contextlib.nullcontext():
        if kit.freeze_encoder:
            model.encoder.requires_grad_(False)
        total = sum(parameter.numel() for parameter in model.parameters())
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        longest = make_batch(model, canvas, kit.max_target_length, cached)
        activations = saved_bytes(model, lambda: loss_of(model, longest))
        batch = make_batch(model, canvas, tokens, cached)
        states_bytes = batch["encoder_outputs"][0].nbytes if cached else 0
        flops = step_flops(lambda: loss_of(model, batch))
    if kit.findings_pretraining_epochs:
        model.encoder.requires_grad_(True)
        pixels = make_batch(model, canvas, 1)["pixel_values"]
        pretrain_on_findings = step_flops(lambda: model.encoder(pixel_values=pixels)[0].sum())
        kept = saved_bytes(model, lambda: model.encoder(pixel_values=pixels)[0].sum())
        pretraining_bytes = 16 * model.encoder.num_parameters() + kept * args.per_device_train_batch_size
    return {
        "recipe": config.name,
        "encoder": kit.encoder,
        "decoder": kit.decoder,
        "parameters": total,
        "trained_parameters": trained,
        "batch": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
        "activation_bytes": activations,
        "memory_bytes": 4 * total + 12 * trained + activations * args.per_device_train_batch_size,
        "findings_pretraining_memory_bytes": pretraining_bytes,
        "states_bytes": states_bytes,
        "padded_target_length": tokens,
        "step_flops": flops,
        "findings_pretraining_flops": pretrain_on_findings,
        "findings_pretraining_epochs": kit.findings_pretraining_epochs,
        "epochs": args.num_train_epochs,
        "encoder_states_once": cached,
    }


def epoch_seconds(flops: float, studies: int, peak_tflops: float, utilisation: float) -> float:
    return flops * studies / (utilisation * peak_tflops * 1e12)


def with_times(row: dict[str, Any], studies: int, peak: float, utilisation: float) -> dict[str, Any]:
    """The row with seconds of an epoch of each stage and hours of the run (training alone, on one GPU)."""
    stage_two = epoch_seconds(row["step_flops"], studies, peak, utilisation)
    stage_one = epoch_seconds(row["findings_pretraining_flops"], studies, peak, utilisation)
    hours = (stage_one * row["findings_pretraining_epochs"] + stage_two * row["epochs"]) / 3600
    return row | {"epoch_seconds": stage_two, "findings_pretraining_epoch_seconds": stage_one, "run_hours": hours}


def table(result: dict[str, Any]) -> str:
    head = "| recipe | parameters (trained), M | batch | activations, MB a study | memory, GB | GFLOP a study | "
    head += "epoch, s | pretraining epoch, s | run, h |"
    lines, notes = [head, "|---" * 9 + "|"], [""]
    for row in result["recipes"]:
        if "error" in row:
            lines.append(f"| {row['recipe']} | {row['error']} |" + " |" * 7)
            continue
        millions = f"{row['parameters'] / 1e6:.1f} ({row['trained_parameters'] / 1e6:.1f})"
        memory = max(row["memory_bytes"], row["findings_pretraining_memory_bytes"])
        lines.append(
            f"| {row['recipe']} | {millions} | {row['batch']} | {row['activation_bytes'] / 1e6:.0f} "
            f"| {memory / 1e9:.1f} | {row['step_flops'] / 1e9:.1f} | {row['epoch_seconds']:.3g} "
            f"| {row['findings_pretraining_epoch_seconds']:.3g} | {row['run_hours']:.2g} |"
        )
        if row["states_bytes"]:
            size, total = row["states_bytes"] / 1e6, row["states_bytes"] * result["studies"] / 1e9
            notes.append(f"{row['recipe']}: states of {size:.1f} MB a study on disk, {total:.1f} GB while it runs.")
    device = result["device"]
    lines += [
        *notes,
        "",
        f"Memory: 4 B × parameters + 12 B × trained + activations (fp32, targets of max_target_length) × batch. Time: "
        f"GFLOP a study (targets padded to {result['tokens']} tokens at most) × {result['studies']} studies ÷ "
        f"({result['utilisation']} × {device['peak']} TFLOP/s); {device['name']}, {device['source']}.",
    ]
    return "\n".join(lines)


def main(words: Sequence[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", type=Path, help="default: every recipe in configs/")
    parser.add_argument("--gpu", choices=tuple(DEVICES), default="RTX 3090")
    parser.add_argument("--peak", type=float, help="TFLOP/s of another device")
    parser.add_argument("--utilisation", type=float, default=UTILISATION)
    parser.add_argument("--studies", type=int, default=STUDIES, help="training studies")
    parser.add_argument("--tokens", type=int, default=TOKENS, help="padded length of the targets, for time")
    parser.add_argument("--out", type=Path, help="JSON file")
    options = parser.parse_args(words)
    device = DEVICES[options.gpu]
    peak = options.peak or device.peak
    named = {"name": options.gpu, "source": device.source, "memory": device.memory}
    if options.peak:
        named = {"name": "as told by --peak", "source": "the command line", "memory": None}
    rows = []
    for config in options.configs or sorted((ROOT / "configs").glob("*.yaml")):
        try:
            rows.append(with_times(estimate(config, options.tokens), options.studies, peak, options.utilisation))
        except (OSError, ValueError, ImportError) as error:
            rows.append({"recipe": config.name, "error": " ".join(str(error).split())})
    result = {
        "recipes": rows,
        "device": {**named, "peak": peak},
        "utilisation": options.utilisation,
        "studies": options.studies,
        "tokens": options.tokens,
    }
    print(table(result))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return result


if __name__ == "__main__":
    main()
