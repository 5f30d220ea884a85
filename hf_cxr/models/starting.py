"""A whole checkpoint to continue: one of this kit, or anybody's vision-encoder-decoder for one square image.

One from two parts is built in `hf_cxr.models.modeling`, the encoder brought to the canvas in `hf_cxr.models.encoders`.
"""

from __future__ import annotations

import os

from accelerate import PartialState
from torch import nn
from transformers import VisionEncoderDecoderModel

from hf_cxr.inference.checks import CALIBRATION, SEARCH, TUNED, panel_size_of, panels_of, start_of
from hf_cxr.inference.minimum_risk import RISK
from hf_cxr.inference.sections import PLAIN, Layout
from hf_cxr.models.encoders import PANELS, canvas_processor, on_canvas
from hf_cxr.models.modeling import (
    DROPOUT,
    MAX_NEW_TOKENS,
    Checkpoint,
    fit_decoder,
    load_checkpoint,
    ready_for_trainer,
    set_layout,
    set_special_tokens,
)


def init_from(
    name: str | os.PathLike,
    panel_size: int,
    layout: Layout = PLAIN,
    max_new_tokens: int = MAX_NEW_TOKENS,
    decoder_dropout: float | None = None,
    panels: int = PANELS,
) -> Checkpoint:
    """Load a checkpoint to train it further.

    The encoder of a square image, or of panels of another size, is adapted as `adapt_encoder` does. All other weights
    are kept, and so are the tokenizer and the tokens of start, end and padding; what a layout needs is added.

    Args:
        name: run folder or Hub id.
        panel_size: side of one square panel in pixels.
        layout: the sections that are written and the context that is given from now on.
        max_new_tokens: the longest text that `generate` writes by default.
        decoder_dropout: `None`: the checkpoint's own.
        panels: 2 for both views, 1 for a single square image.

    Raises `OSError` or `ValueError` as `load_checkpoint` does, `UnsupportedPart` for an encoder that cannot work on
    the canvas, and for a decoder with too few positions.
    """
    where, canvas = f"init_from {name}", (panel_size, panels * panel_size)
    checkpoint = load_checkpoint(name, dtype="float32")
    model, tokenizer, images = checkpoint.model, checkpoint.tokenizer, checkpoint.image_processor
    size = panel_size_of(images)
    if size != panel_size and PartialState().is_main_process:
        print(f"{where}: views of {size} × {size} pixels → panels of {panel_size} × {panel_size}", flush=True)
    if panels == 1 or (panels_of(images), size) != (PANELS, panel_size):
        images = canvas_processor(images.to_dict(), canvas)
    model.encoder = on_canvas(model.encoder, canvas, where)
    model.config.encoder = model.encoder.config
    forget_fitted(model)
    vars(model.config).pop("custom_pipelines", None)
    if decoder_dropout is not None:
        _set_dropout(model, decoder_dropout)
    _name_special_tokens(checkpoint)
    fit_decoder(model.decoder, tokenizer, layout, max_new_tokens, where)
    set_special_tokens(model, tokenizer, max_new_tokens)
    set_layout(model, layout)
    return Checkpoint(ready_for_trainer(model), tokenizer, images)


def forget_fitted(model: VisionEncoderDecoderModel) -> None:
    """Take out of the configs what was fitted on a validation split."""
    if hasattr(model.config, SEARCH):
        model.generation_config.update(**dict.fromkeys(TUNED))
    for name in (CALIBRATION, RISK, SEARCH):
        vars(model.config).pop(name, None)


def _name_special_tokens(checkpoint: Checkpoint) -> None:
    """Have the tokenizer call those tokens begin, end and padding that the model was trained with."""
    own, tokenizer = checkpoint.model.generation_config, checkpoint.tokenizer
    ends = own.eos_token_id
    end = ends[0] if isinstance(ends, list) else ends
    ids = {"bos_token": start_of(own), "eos_token": end, "pad_token": own.pad_token_id}
    for kind, token in ids.items():
        if getattr(tokenizer, f"{kind}_id") != token:
            setattr(tokenizer, kind, tokenizer.convert_ids_to_tokens(token))


def _set_dropout(model: VisionEncoderDecoderModel, dropout: float) -> None:
    config = model.decoder.config
    config.update({key: dropout for key in DROPOUT if hasattr(config, key)})
    for part in model.decoder.modules():
        if isinstance(part, nn.Dropout):
            part.p = dropout
        else:  # types that keep it as a number
            vars(part).update({key: dropout for key in DROPOUT if isinstance(vars(part).get(key), float)})
