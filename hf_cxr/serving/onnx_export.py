"""`export_onnx`: a checkpoint as two ONNX graphs and everything that `Runner` needs to write what the pipeline writes.

`encoder.onnx` gives the keys and values that the decoder's cross-attention reads of the encoder's states;
`decoder.onnx` takes them, the past and one or more tokens. Each weight is stored once. What runs them lives in
`runner.py`.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache, EncoderDecoderCache

from hf_cxr.inference.checks import CALIBRATION, first_position, panel_size_of, panels_of, positions_of
from hf_cxr.inference.generation import generate
from hf_cxr.inference.minimum_risk import RISK
from hf_cxr.models.modeling import Checkpoint, load_checkpoint
from hf_cxr.serving.page import REPORT
from hf_cxr.serving.runner import NO_CROP, Runner, check_installed, pixels_of
from hf_cxr.utils.files import check_free, commit, replace_files, staging_folder
from hf_cxr.utils.places import EXPORT, folder_of

OPSET = 20
ATTENTION = "hf_cxr_export"
COPIED = ("README.md", "card.json", *REPORT)  # who made it of what, under which licence, and how good it is
KNOWN = {
    *("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "max_new_tokens", "max_length"),
    *("num_beams", "num_return_sequences", "length_penalty", "early_stopping", "no_repeat_ngram_size"),
    *("repetition_penalty", "do_sample", "use_cache", "temperature", "top_k", "top_p", "transformers_version"),
}
"""What a generation config may set for `hf_cxr.serving.search` to do the same; sampling only if it is off."""
NUMBERS = 6  # canvases of noise on which graphs and model are compared


class CannotExport(ValueError):
    """A checkpoint that has no exported form which writes the same. The message is one line."""


def export_onnx(
    checkpoint: str | os.PathLike,
    out: str | os.PathLike,
    weights: str = "float32",
    revision: str | None = None,
    calibrate: str | Path | None = None,
) -> dict[str, Any]:
    """Export a checkpoint to the folder `out`, whole or not at all.

    Args:
        checkpoint: run folder or Hub id.
        weights: "float32", "float16" (half the size) or "int8" (matrices as 8-bit numbers, a quarter of the size).
        calibrate: with "int8", a prepared dataset: what some studies of its validation split give sets how the inputs
            of each matrix of the decoder are rounded. Default: each input by its own range, as it comes.

    Returns what export.json tells. Raises `CannotExport` for what has no exported form, `FileExistsError` for a folder
    with something else in it.
    """
    check_installed("onnx", "onnxscript", "onnxruntime")
    out = Path(out)
    check_free(out, "an exported checkpoint", EXPORT)
    parts = load_checkpoint(checkpoint, revision, dtype=torch.float32)
    parts.model.eval()
    try:
        _check(parts)
    except CannotExport as error:
        raise CannotExport(f"{checkpoint}: {error}") from None
    if vars(parts.model.config).pop(RISK, None):
        vars(parts.model.config).pop(CALIBRATION, None)
        what = "chooses among samples (decode mbr); exported it writes the greedy text, without calibration"
        print(f"{checkpoint}: {what}", file=sys.stderr)
    facts = _facts(parts, f"{weights}, calibrated" if calibrate else weights)
    told = folder_of(checkpoint, COPIED, revision)
    with _quiet(), staging_folder(out) as staging:
        folder = staging / "export"
        folder.mkdir()
        _write_graphs(parts, folder)
        _write_parts(parts, folder, facts, told)
        _compare(parts, folder)
        if weights != "float32":
            from hf_cxr.serving.quantize import feeds_of, shrink_graphs

            shrink_graphs(folder, weights, feeds_of(Runner(folder), calibrate) if calibrate else None)
            Runner(folder)  # it loads
        for file in folder.glob("*.data"):  # onnx writes them for their owner alone
            shutil.copymode(folder / EXPORT, file)
        commit(folder, out, lambda: check_free(out, "an exported checkpoint", EXPORT))
    return facts


def _facts(parts: Checkpoint, weights: str) -> dict[str, Any]:
    made_with = ("hf-cxr", "torch", "transformers", "onnx", "onnxscript", "onnxruntime")
    return {
        "weights": weights,
        "opset": OPSET,
        "made_with": {name: version(name) for name in made_with},
        "vocabulary": parts.model.config.decoder.vocab_size,
        "positions": positions_of(parts.model.decoder),
        "first_position": first_position(parts.model.decoder),
        "special_ids": sorted(parts.tokenizer.all_special_ids),
        "clean_up": _cleans_up(parts.tokenizer),
    }


def _cleans_up(tokenizer: Any) -> bool:
    """Whether its texts lose the spaces before their stops, as those of old BERT tokenizers do."""
    return bool(tokenizer.clean_up_tokenization_spaces) and type(tokenizer.backend_tokenizer.model).__name__ != "BPE"


def _check(parts: Checkpoint) -> None:
    """Raise `CannotExport` for what the runner would do in another way."""
    settings = parts.model.generation_config
    if settings.max_new_tokens is None:
        raise CannotExport("its generation_config.json has no max_new_tokens; say how long a text may be")
    told = {name for name, value in settings.to_diff_dict().items() if value is not None}
    if settings.do_sample or told - KNOWN:
        what = "do_sample" if settings.do_sample else min(told - KNOWN)
        raise CannotExport(f"its generation_config.json sets {what}, which an exported checkpoint does not do")
    if not getattr(parts.tokenizer, "is_fast", False):
        raise CannotExport("its tokenizer has no tokenizer.json")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (91, 77, 3), dtype=np.uint8))
    expected = parts.image_processor(image, return_tensors="np")["pixel_values"][0]
    try:
        found = pixels_of(image, _settings(parts.image_processor))
        same = found.shape == expected.shape and np.abs(found - expected).max() < 1e-5
    except (AttributeError, KeyError, TypeError, ValueError):
        same = False
    if not same:
        raise CannotExport("its image processor does more than to resize, crop, scale and normalise")


def _settings(image_processor: Any) -> SimpleNamespace:
    return SimpleNamespace(**NO_CROP | image_processor.to_dict())


def _write_parts(parts: Checkpoint, folder: Path, facts: dict[str, Any], run: Path) -> None:
    config = parts.model.config.to_dict()
    for name in ("custom_pipelines", "auto_map", "_name_or_path"):
        config.pop(name, None)
    for part in (parts.tokenizer, parts.image_processor, parts.model.generation_config):
        part.save_pretrained(folder)
    for name in COPIED:
        if (file := run / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(file, folder / name)
    texts = {"config.json": config, EXPORT: facts}
    replace_files(folder, {name: json.dumps(value, indent=2) + "\n" for name, value in texts.items()})


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch and onnxruntime tell of their own ways out of the terminal."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# --- the graphs --------------------------------------------------------------------------------------------------


class _Encode(torch.nn.Module):
    """Canvases → key, turned, and value of each layer's cross-attention, as the decoder itself makes them."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
        states = self.model.encoder(pixel_values)[0]
        tokens = torch.zeros(len(states), 1, dtype=torch.long)
        self.model(encoder_outputs=(states,), decoder_input_ids=tokens, past_key_values=cache, use_cache=True)
        return tuple(part for one in cache.cross_attention_cache.layers for part in (one.keys.mT, one.values))


class _Step(torch.nn.Module):
    """Tokens, their positions, a mask to add, the past and what `_Encode` gives → logits of the last, all past."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.decoder

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        mask: torch.Tensor,
        past: list[torch.Tensor],
        cross: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        own, seen = (DynamicCache(list(zip(both[::2], both[1::2], strict=True))) for both in (past, cross))
        cache = EncoderDecoderCache(own, seen)
        cache.is_updated = dict.fromkeys(range(len(past) // 2), True)
        output = self.decoder(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=mask,
            encoder_hidden_states=cross[1][:, 0],  # not read: that there are some tells the decoder to look at them
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return (output.logits[:, -1], *(part for one in own.layers for part in (one.keys, one.values)))


def _write_graphs(parts: Checkpoint, folder: Path) -> None:
    model, config = parts.model, parts.model.config.decoder
    auto, heads = torch.export.Dim.AUTO, config.num_attention_heads
    size = _settings(parts.image_processor)
    pixels = torch.from_numpy(pixels_of(Image.new("RGB", (9, 9)), size))[None].repeat(2, 1, 1, 1)
    # Two studies, three tokens behind five: an axis whose example is 1 long would be fixed at 1.
    past = [torch.zeros(2, heads, 5, config.hidden_size // heads) for _ in range(2 * config.num_hidden_layers)]
    names = [str(number) for number in range(len(past))]
    with torch.no_grad(), _attention(model, turned=False):
        cross = [f"cross.{name}" for name in names]
        _write(_Encode(model), (pixels,), ({0: auto},), ["pixel_values"], cross, folder / "encoder.onnx")
        seen = list(_Encode(model)(pixels))
    example = (
        torch.zeros(2, 3, dtype=torch.long),
        torch.arange(5, 8).repeat(2, 1),
        torch.zeros(2, 1, 3, 8),
        past,
        seen,
    )
    axes = ({0: auto, 1: auto}, {0: auto, 1: auto}, {0: auto, 2: auto, 3: auto})
    grown = ([{0: auto, 2: auto}] * len(past), [{0: auto}] * len(past))
    inputs = ["input_ids", "position_ids", "mask", *(f"past.{name}" for name in names), *cross]
    outputs = ["logits", *(f"present.{name}" for name in names)]
    with torch.no_grad(), _attention(model, turned=True):
        _write(_Step(model), example, (*axes, *grown), inputs, outputs, folder / "decoder.onnx")


def _write(part: Any, example: tuple, axes: tuple, inputs: list[str], outputs: list[str], file: Path) -> None:
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    try:
        program = torch.onnx.export(
            part.eval(),
            example,
            dynamo=True,
            dynamic_shapes=axes,
            input_names=inputs,
            output_names=outputs,
            opset_version=OPSET,
            verbose=False,
        )
    except Exception as error:  # whatever torch makes of a kind of model that it cannot trace
        told = " ".join(str(error).split())[:200]
        raise CannotExport(f"torch cannot make {file.name} of it ({type(error).__name__}: {told})") from error
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)  # stack traces, with paths of this machine
    onnx_ir.save(program.model, file, external_data=f"{file.name}.data")


@contextmanager
def _attention(model: Any, turned: bool) -> Iterator[None]:
    """Attention as few plain operations: masks are added as they come, and keys of cross-attention may be `turned`
    already, (batch, heads, size, tokens), which no step then has to do again."""

    def attend(module, query, key, value, mask, scaling=None, **_):
        cross = getattr(module, "is_cross_attention", type(module).__name__.endswith("CrossAttention"))
        key = key if turned and cross else key.mT
        scores = torch.matmul(query * (query.shape[-1] ** -0.5 if scaling is None else scaling), key)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        return torch.matmul(weights, value).transpose(1, 2), weights

    AttentionInterface.register(ATTENTION, attend)
    parts = [part for part in (model.encoder, model.decoder) if part._supports_attention_backend]
    usual = [part.config._attn_implementation for part in parts]
    try:
        for part in parts:
            part.set_attn_implementation(ATTENTION)
        yield
    finally:
        for part, name in zip(parts, usual, strict=True):
            part.set_attn_implementation(name)


def _compare(parts: Checkpoint, folder: Path) -> None:
    """Raise `CannotExport` where the graphs do not write what the model does, on noise."""
    noise = np.random.default_rng(0).integers(0, 256, (NUMBERS, *_canvas_shape(parts), 3), dtype=np.uint8)
    runner = Runner(folder)
    pixels = runner.pixels(map(Image.fromarray, noise))
    prompts = [[parts.tokenizer.convert_tokens_to_ids(name) for name in runner.layout.tokens[-1:]]] * NUMBERS
    prompts = prompts if runner.layout.context else [[]] * NUMBERS
    told = generate(parts.model, torch.from_numpy(pixels), prompts, parts.tokenizer)
    tokens, sums = runner.generate(pixels, prompts)
    scores = told["scores"].numpy()
    same = told["sequences"].shape[2] == tokens.shape[2] + 1 and (told["sequences"][..., 1:].numpy() == tokens).all()
    if not same or not np.allclose(np.exp(sums) * (scores > 0), scores, rtol=1e-2, atol=1e-6):
        raise CannotExport("onnxruntime writes something other than torch on noise")


def _canvas_shape(parts: Checkpoint) -> tuple[int, int]:
    side = panel_size_of(parts.image_processor)
    return side, side * panels_of(parts.image_processor)
