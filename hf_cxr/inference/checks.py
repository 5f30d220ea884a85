"""Whether the parts of a checkpoint fit together, and whether options of a text make sense: what does not is an error
of one line, before memory or time is spent on it.

A checkpoint brings this file as remote code, so it imports only the standard library, numpy and Pillow, and torch
where a model is tried. How parts are loaded lives in `hf_cxr.models.loading`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from PIL import Image

logger = logging.getLogger(__name__)

CALIBRATION = "cxr_calibration"  # where a checkpoint's config carries what a score is worth
SEARCH = "cxr_search"  # where it carries what was tried to choose these settings of its generation config, one line
TUNED = ("length_penalty", "no_repeat_ngram_size", "repetition_penalty")
LAYOUT = "cxr_layout"  # where it carries its sections and context; one without it writes an impression
LARGEST_PANEL = 2048  # pixels a side; a canvas of it takes 100 MB
MOST_TEXTS = 64  # beams, or texts of a study
DEFAULT_TOKENS = 20  # that the stock `generate` writes where nothing says how long a text may be
WHOLE = "a whole number of at least 1"
GENERATE_OPTIONS: dict[str, tuple[Any, Any, str]] = {
    "max_new_tokens": (Integral, 1, WHOLE),
    "num_beams": (Integral, 1, WHOLE),
    "num_return_sequences": (Integral, 1, WHOLE),
    "do_sample": (bool, 0, "True or False"),
    "temperature": (Real, 1e-6, "a number of at least 1e-6"),
    "top_p": (Real, 0, "a number from 0 to 1"),
    "top_k": (Integral, 0, "a whole number of at least 0"),
    "decode": (str, "", "mbr or search"),
}
"""The options of `generate` that may be given, what they are and at least."""


class UnusableCheckpoint(ValueError):
    """Parts that cannot write a text together. The message is one line that goes on after the checkpoint's name."""


def check_parts(model: Any, tokenizer: Any, image_processor: Any) -> None:
    """Check that a `VisionEncoderDecoderModel` and its companions can write a text.

    A checkpoint of one square image need not say all that ours say: what its generation config lacks is filled in here
    from its config, or as the stock `generate` would.

    Raises `UnusableCheckpoint` for images of another shape, an image processor that gives no canvas, an encoder that
    does not read it, a tokenizer of another model, generation settings that are missing or absurd, or a calibration
    that is no curve.
    """
    size, panels = panel_size_of(image_processor), panels_of(image_processor)
    try:
        with np.errstate(all="ignore"):  # a view is seldom square
            image = Image.new("RGB", (2 * size if panels > 1 else size + size // 4, size))
            canvas = image_processor(image, return_tensors="np")
        pixels = np.asarray(canvas["pixel_values"])
    except Exception as error:  # whatever numpy and Pillow make of wrong settings
        raise UnusableCheckpoint(f"its preprocessor_config.json does not work ({_line(error)})") from error
    if pixels.shape != (1, 3, size, panels * size) or not np.isfinite(pixels).all():
        kind = f"a canvas of {size} × {2 * size}" if panels > 1 else f"an image of {size} × {size}"
        raise UnusableCheckpoint(f"its preprocessor_config.json does not give {kind} numbers")
    if panels == 1:
        _check_encoder(model, pixels)
        _complete(model, tokenizer)
    settings, vocabulary = model.generation_config, model.config.decoder.vocab_size
    if settings.max_new_tokens is None and settings.max_length is None:
        raise UnusableCheckpoint(
            "its generation_config.json is missing or damaged: nothing says how long a text may be"
        )
    try:
        check_options(model, settings.to_dict())
    except ValueError as error:
        raise UnusableCheckpoint(f"its generation_config.json does not work: {error}") from error
    ends = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
    for token in (start_of(settings), settings.pad_token_id, *ends):
        if not isinstance(token, int) or not 0 <= token < vocabulary:
            there = f"there are 0 to {vocabulary - 1}"
            raise UnusableCheckpoint(f"its generation_config.json names the token {token!r}; {there}")
    if tokenizer.pad_token_id != settings.pad_token_id and panels > 1:
        raise UnusableCheckpoint("its tokenizer is damaged or another model's: its padding is not that of the texts")
    curve_of(model.config)


def _check_encoder(model: Any, pixels: np.ndarray) -> None:
    """Encode one black image: encoders of others are of any kind."""
    import torch

    kind = model.config.encoder.model_type
    try:
        with torch.inference_mode():
            states = model.encoder(torch.from_numpy(pixels).to(model.device, model.dtype))[0]
    except Exception as error:  # whatever an encoder makes of an image of another size
        raise UnusableCheckpoint(f"its {kind!r} encoder does not read such an image ({_line(error)})") from error
    if states.ndim != 3:
        raise UnusableCheckpoint(no_tokens(kind))


def no_tokens(kind: str) -> str:
    """What is wrong with an encoder of a convolutional type."""
    return f"its {kind!r} encoder gives a map of features, not the sequence of tokens that the stock class attends to"


def _complete(model: Any, tokenizer: Any) -> None:
    settings, configs = model.generation_config, (model.config, model.config.decoder)
    lacking = [name for name in ("eos_token_id", "pad_token_id") if getattr(settings, name) is None]
    if start_of(settings) is None:
        lacking.append("decoder_start_token_id")
    for name in lacking:
        told = (value for config in configs if (value := getattr(config, name, None)) is not None)
        setattr(settings, name, next(told, None))
    if settings.pad_token_id is None:
        end = settings.eos_token_id
        settings.pad_token_id = end[0] if isinstance(end, list) and end else end
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token_id = settings.pad_token_id
    if settings.max_new_tokens is None:
        most = positions_of(model.decoder) - 1
        if settings.max_length is None:
            logger.warning("nothing says how long a text of this checkpoint may be: %d tokens", DEFAULT_TOKENS)
            settings.max_new_tokens = min(DEFAULT_TOKENS, most)
        else:  # the start token is counted in it
            settings.max_new_tokens, settings.max_length = min(settings.max_length - 1, most), None


def start_of(settings: Any) -> Any:
    """The token that a text begins with, by a generation config."""
    return settings.bos_token_id if settings.decoder_start_token_id is None else settings.decoder_start_token_id


def panel_size_of(image_processor: Any) -> int:
    """The side of one square panel, in pixels, that a checkpoint was made for. Raises as `panels_of` does."""
    return _sides(image_processor)[0]


def panels_of(image_processor: Any) -> int:
    """How many panels a checkpoint was made for: 2 for a canvas of both views, 1 for one square image.

    Raises `UnusableCheckpoint` if its image size is of neither shape.
    """
    height, width = _sides(image_processor)
    return width // height


def _sides(image_processor: Any) -> tuple[int, int]:
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", None) else image_processor.size
    known = {side: size.get(side) for side in ("height", "width", "shortest_edge")} if hasattr(size, "get") else {}
    height, width = (known.get(side) or known.get("shortest_edge") for side in ("height", "width"))
    if not isinstance(height, int) or width not in (height, 2 * height) or height < 1:
        raise UnusableCheckpoint(
            f"not a checkpoint of one or two views: its images are {height or '?'} × {width or '?'} pixels (height × "
            "width), neither square nor twice as wide as high"
        )
    if height > LARGEST_PANEL:
        raise UnusableCheckpoint(f"its images are {height} × {width} pixels; a view of {LARGEST_PANEL} is the most")
    return height, width


def check_options(model: Any, options: Mapping[str, Any]) -> None:
    """Check what `options` hold of `GENERATE_OPTIONS`, as a user or a generation config gives them; `None` is unset.

    Raises `ValueError` for a value of a wrong kind or out of bounds.
    """
    check_values(options, positions_of(model.decoder) - (1 if getattr(model.config, LAYOUT, None) is None else 2))


def check_values(options: Mapping[str, Any], longest: int) -> None:
    """`check_options` for a model that writes `longest` tokens at most."""
    most = {"num_beams": MOST_TEXTS, "num_return_sequences": MOST_TEXTS, "top_p": 1}
    for name, (kind, least, what) in GENERATE_OPTIONS.items():
        if (value := options.get(name)) is None:
            continue
        if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)) or not value >= least:
            raise ValueError(f"{name} is {what}, not {value!r}")
        if name == "max_new_tokens" and value > longest:
            raise ValueError(f"max_new_tokens {value}: this decoder writes 1 to {longest}")
        if name in most and value > most[name]:
            raise ValueError(f"{name} is at most {most[name]}, not {value!r}")


def first_position(decoder: Any) -> int:
    """The position of the first token: 0, or in a decoder of RoBERTa's kind the one behind its padding token's."""
    tables = [part for name, part in decoder.named_modules() if name.endswith("embeddings.position_embeddings")]
    return sum(table.padding_idx + 1 for table in tables if getattr(table, "padding_idx", None) is not None)


def positions_of(decoder: Any) -> int:
    """The longest sequence that a decoder can hold, in tokens."""
    return decoder.config.max_position_embeddings - first_position(decoder)


def curve_of(config: Any) -> dict[str, Any] | None:
    """The calibration that a model's config carries, or None. Raises `UnusableCheckpoint` for what is no curve."""
    curve = getattr(config, CALIBRATION, None)
    if curve is None:
        return None
    try:
        x, y = (np.asarray(curve[axis], dtype=np.float64) for axis in "xy")
        whole = isinstance(curve["n"], Integral) and x.ndim == 1 and x.shape == y.shape and len(x) > 0
        sound = whole and bool((np.diff(x) >= 0).all() and (np.abs([x, y]) <= 1).all() and (y >= 0).all())
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise UnusableCheckpoint(f"the {CALIBRATION} of its config.json is no curve from probability to chance")
    return curve


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
