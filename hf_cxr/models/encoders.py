"""Image encoders on the canvas of two panels, or one: from scratch, or a pretrained square one adapted to it.

Which types of transformers work and which cannot is told in `docs/encoders.md` and held by
`tests/models/test_encoders.py`. What leaves this module is a stock encoder with a stock image processor."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch.nn.functional import interpolate
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ViTConfig
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import is_torchvision_available

from hf_cxr.models.loading import load_config, load_model, loading

# From-scratch sizes. `base` is ViT-B/16; the others keep its head width of 32 to 64.
ENCODER_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256},
    "mini": {"hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 768},
    "small": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "intermediate_size": 1536},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072},
}
PATCH_SIZE = 16
PANELS = 2
PANEL_OFFSET_STD = 0.02  # the spread that ViT itself initialises its position embeddings with

# Types whose tables of positions fit the canvas as it is: `image_size` becomes [height, width].
ON_CANVAS = {"vit", "deit", "vit_msn", "ijepa", "swin", "swinv2", "hiera", "dinov3_vit"}
# Types that stretch square tables to the image in every step, and whether they smooth while they do so: `image_size`
# becomes the width of the canvas, and the tables hold what comes out right after the stretch.
STRETCHED = {"beit": False, "data2vec-vision": False, "dinov2": False, "dinov2_with_registers": True}
INSTEAD = "use ViT, DeiT, BEiT, DINOv2, DINOv3-ViT, Swin or Hiera"
WHOLE_CHECKPOINT = "is a whole checkpoint; use --init_from"
CANVAS = "canvas_size"  # in the config of an encoder made here: the [height, width] that its tables fit
UNUSED = {"pooler", "mask_token"}  # the decoder attends to the tokens, and no token is masked


class UnsupportedPart(ValueError):
    """An encoder or decoder that cannot be used on the canvas as a stock part."""


def scratch_encoder(size: str, canvas: tuple[int, int]) -> PreTrainedModel:
    """A ViT of one of `ENCODER_SIZES` with random weights."""
    config = ViTConfig(image_size=list(canvas), patch_size=PATCH_SIZE, **ENCODER_SIZES[size])
    _check_panel(config, canvas[0], f"encoder {size}")
    return AutoModel.from_config(config)


def adapt_encoder(name: str, canvas: tuple[int, int]) -> PreTrainedModel:
    """Load a pretrained encoder onto the canvas: two panels, or one.

    The position table of a square encoder is resized (bicubic) to one panel where needed and tiled, once per panel;
    the lateral panel gets a small random offset, from which training tells the panels apart. A table of relative
    positions keeps its entries and repeats its outermost column for the distances it does not know. All other weights
    are taken as they are. An encoder made for this canvas is taken as it is; one made for a canvas of another size is
    resized, panel by panel, without a new offset.

    Args:
        name: Hub id or local folder.
        canvas: (height, width) in pixels, width = height × panels.

    Raises `UnsupportedPart` for a type that cannot work on the canvas, or for a panel size that it cannot have.
    """
    config, where = load_config(name), f"encoder {name}"
    _check_fit(config, canvas, where)
    return on_canvas(load_model(AutoModel, name, config, dtype=torch.float32), canvas, where)


def on_canvas(pretrained: PreTrainedModel, canvas: tuple[int, int], where: str) -> PreTrainedModel:
    """`adapt_encoder` for an encoder that is loaded. `where` begins the messages."""
    config = pretrained.config
    _check_fit(config, canvas, where)
    made_for = _canvas_of(config)
    if made_for == canvas:
        return pretrained
    single = canvas[0] == canvas[1]
    if single and made_for:
        raise UnsupportedPart(f"{where}: was made for both views; set panels: 2")
    config = _set_canvas(config, canvas)
    model = AutoModel.from_config(config)
    weights, target = pretrained.state_dict(), model.state_dict()
    for norm in ("layernorm.weight", "layernorm.bias"):  # of BEiT: that of the pooled token now serves every token
        if norm in target and norm not in weights:
            weights[norm] = weights.pop(f"pooler.{norm}", target[norm])
    for key in target.keys() & weights.keys():
        if single and config.model_type in STRETCHED:  # of square images it does so itself
            continue
        if key.endswith("position_embeddings"):
            weights[key] = _carry_positions(weights[key], config, made_for, f"{where}: {key}")
        elif key.endswith("relative_position_bias_table") and config.model_type in STRETCHED:
            weights[key] = _carry_relative(weights[key], config, made_for, f"{where}: {key}")
    try:
        model.load_state_dict(weights)
        _states(config, canvas)
    except Exception as error:
        raise UnsupportedPart(
            f"{where}: this {config.model_type!r} model does not work on panels of {canvas[0]} pixels "
            f"({' '.join(str(error).split())[:200]}); {INSTEAD}"
        ) from error
    return model


def freeze_unused(encoder: torch.nn.Module) -> None:
    """Freeze what never reaches the decoder: trainable, it would be an unused parameter to DDP."""
    for name, parameter in encoder.named_parameters():
        if UNUSED & set(name.split(".")):
            parameter.requires_grad_(False)


def image_processor(encoder: str, canvas: tuple[int, int]) -> BaseImageProcessor:
    """The `canvas_processor` of a from-scratch size, a Hub id or a folder."""
    known: dict[str, Any] = {}
    if encoder not in ENCODER_SIZES:
        with loading(encoder):
            known, _ = BaseImageProcessor.get_image_processor_dict(encoder)
        if known.get("image_mean") is None or known.get("image_std") is None:
            raise UnsupportedPart(f"encoder {encoder}: its preprocessor_config.json names no image_mean and image_std")
    return canvas_processor(known, canvas)


def canvas_processor(known: Mapping[str, Any], canvas: tuple[int, int]) -> BaseImageProcessor:
    """A stock ViT image processor with an encoder's own normalisation, set to the canvas.

    The encoder's own class is not kept: some of them crop, and some exist only where torchvision is.
    """
    if is_torchvision_available():
        from transformers import ViTImageProcessor as Processor
    else:
        from transformers import ViTImageProcessorPil as Processor
    own = ["image_mean", "image_std", "do_normalize", "rescale_factor"]
    if canvas[0] != canvas[1]:  # a single view is resized as `views.single_array` did for training
        own.append("resample")
    return Processor(
        size={"height": canvas[0], "width": canvas[1]},
        do_resize=True,
        do_rescale=True,
        do_convert_rgb=True,
        **({} if "resample" in own else {"resample": Image.Resampling.BICUBIC}),
        **{key: known[key] for key in own if known.get(key) is not None},
    )


# --- which types and sizes work ----------------------------------------------------------------------------------


def _reason(config: PreTrainedConfig) -> str:
    """Why a type that is not supported is not, found by trying it without weights."""
    if hasattr(config, "text_config"):
        return "joins images with text, and its image half takes square images only"
    if config.model_type == "vit_mae":
        return "hides a random part of every image"
    try:
        states = _states(_set_canvas(config, (224, 448)), (224, 448))
    except Exception:
        return "does not take an image twice as wide as high"
    if states.ndim != 3:
        return f"gives a map of {states.ndim} dimensions, not the sequence of tokens that a decoder attends to"
    if not hasattr(config, "hidden_size"):
        return "names no hidden_size, which a stock decoder needs"
    return "has not been checked on the canvas"


def _states(config: PreTrainedConfig, canvas: tuple[int, int]) -> torch.Tensor:
    """What a model of this shape gives for a canvas, on torch's meta device: shapes only, no weights, no time."""
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    return model(pixel_values=torch.zeros(1, 3, *canvas, device="meta"))[0]


def _check_fit(config: PreTrainedConfig, canvas: tuple[int, int], where: str) -> None:
    if config.model_type == "vision-encoder-decoder":
        raise UnsupportedPart(f"{where}: {WHOLE_CHECKPOINT}")
    if config.model_type not in ON_CANVAS | STRETCHED.keys():
        raise UnsupportedPart(f"{where}: a {config.model_type!r} model {_reason(config)}; {INSTEAD}")
    _check_panel(config, canvas[0], where)


def _check_panel(config: PreTrainedConfig, panel_size: int, where: str) -> None:
    what, unit = "patch", _patch(config)
    if config.model_type == "hiera":  # each stage but the last halves the grid
        what, unit = "unit", unit * config.query_stride[0] ** (len(config.depths) - 1)
    if unit and panel_size % unit:
        raise UnsupportedPart(
            f"{where}: its {what} of {unit} pixels does not divide the panel of {panel_size}; "
            f"use panel_size {max(unit, panel_size // unit * unit)} or {(panel_size // unit + 1) * unit}"
        )
    if config.model_type == "swin":
        least = config.window_size * unit * 2 ** (len(config.depths) - 1)
        if math.ceil(panel_size / (least // config.window_size)) < config.window_size:
            raise UnsupportedPart(
                f"{where}: its window of {config.window_size} patches does not fit the panel of {panel_size} "
                f"in its last stage; use panel_size {least} or more"
            )


def _patch(config: PreTrainedConfig) -> int:
    """The distance between two tokens, in pixels."""
    patch: Any = getattr(config, "patch_stride", None) or getattr(config, "patch_size", 0)
    return patch[0] if isinstance(patch, (list, tuple)) else patch


def _canvas_of(config: PreTrainedConfig) -> tuple[int, int] | None:
    """The canvas that an encoder was made for, None for a square one."""
    size = getattr(config, CANVAS, None if config.model_type in STRETCHED else config.image_size)
    return tuple(size) if isinstance(size, (list, tuple)) and size[1] == PANELS * size[0] else None


def _set_canvas(config: PreTrainedConfig, canvas: tuple[int, int]) -> PreTrainedConfig:
    config = copy.deepcopy(config)
    if config.model_type not in STRETCHED:
        config.image_size = list(canvas)
    elif canvas[0] != canvas[1]:
        config.image_size = canvas[1]
    setattr(config, CANVAS, list(canvas))
    config.dtype = torch.float32  # whatever the weights were saved in
    if getattr(config, "use_mean_pooling", False):  # BEiT: normalise the tokens themselves, not their mean
        config.use_mean_pooling = False
    return config


# --- positions ---------------------------------------------------------------------------------------------------


def _carry_positions(
    table: torch.Tensor, config: PreTrainedConfig, made_for: tuple[int, int] | None, where: str
) -> torch.Tensor:
    """Absolute positions, (1, prefix + tokens, dim) → the same for the canvas; prefix tokens ([CLS] …) stay."""
    prefix = {"deit": 2, "swin": 0, "swinv2": 0, "hiera": 0, "ijepa": 0}.get(config.model_type, 1)
    smooth = STRETCHED.get(config.model_type)
    (side, width), count = getattr(config, CANVAS), table.shape[1] - prefix
    rows = side // _patch(config)
    height = made_for[0] // _patch(config) if made_for and smooth is None else math.isqrt(count)
    if count % height or (not made_for and height * height != count):
        raise UnsupportedPart(f"{where}: {count} positions are not a square grid")
    grid = table[:, prefix:].reshape(1, height, count // height, -1).permute(0, 3, 1, 2)
    if made_for and smooth is not None:
        grid = _squeeze(height, height // PANELS, "bicubic", smooth) @ grid
    panels = [_resized(panel, rows, rows) for panel in (grid.chunk(PANELS, dim=3) if made_for else [grid])]
    if not made_for and width > side:
        panels.append(panels[0] + torch.randn(1, table.shape[-1], 1, 1) * PANEL_OFFSET_STD)
    tiled = torch.cat(panels, dim=3)
    if smooth is not None:
        tiled = torch.linalg.pinv(_squeeze(PANELS * rows, rows, "bicubic", smooth)) @ tiled
    return torch.cat([table[:, :prefix], tiled.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _carry_relative(
    table: torch.Tensor, config: PreTrainedConfig, made_for: tuple[int, int] | None, where: str
) -> torch.Tensor:
    """BEiT's bias for each distance between two patches, ((2·side − 1)² + 3, heads); the last three are [CLS]'s.

    Up to a panel's width the distances are those of the square encoder. Between panels they may be larger: these take
    the largest that is known.
    """
    rows, side = getattr(config, CANVAS)[0] // _patch(config), math.isqrt(len(table) - 3)
    if side * side != len(table) - 3:
        raise UnsupportedPart(f"{where}: {len(table) - 3} distances are not a square grid")
    high, wide = 2 * rows - 1, 2 * PANELS * rows - 1
    grid = table[:-3].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if made_for:
        grid = _resized(_squeeze(side, side // 2, "bilinear") @ grid, high, wide)
    else:
        grid = _resized(grid, high, high)
        known = (torch.arange(wide) - wide // 2).clamp(-(rows - 1), rows - 1) + rows - 1
        grid = grid[..., known]
    grid = torch.linalg.pinv(_squeeze(wide, high, "bilinear")) @ grid
    return torch.cat([grid.permute(0, 2, 3, 1).flatten(0, 2), table[-3:]])


def _resized(grid: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(1, dim, rows, columns) → (1, dim, height, width)"""
    same = grid.shape[2:] == (height, width)
    return grid if same else interpolate(grid, size=(height, width), mode="bicubic", align_corners=False)


def _squeeze(rows: int, fewer: int, mode: str, smooth: bool = False) -> torch.Tensor:
    """(fewer, rows): the matrix by which a stretched type brings a column of its square table to the canvas's height.

    Its pseudo-inverse writes a column so that exactly the wanted one comes out.
    """
    each = torch.eye(rows)[None, None]
    return interpolate(each, size=(fewer, rows), mode=mode, align_corners=False, antialias=smooth)[0, 0]
