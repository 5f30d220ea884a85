"""Where the decoder's cross-attention went while it wrote: maps over the canvas, and overlays on the views.

A checkpoint brings this file as remote code, so it imports only numpy, Pillow and torch. Attention is no
explanation: it tells what was read, not why a word was chosen.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image

from .views import VIEWS

COLOUR, STRONGEST = (255, 96, 0), 0.7  # of the overlay, and the most that it hides of a view
FULL = 4.0  # times uniform attention: where the overlay is at its strongest; uniform attention and less is not drawn
LARGEST = 512  # pixels of the longer side of an overlay

_one_at_a_time = threading.Lock()  # a second pass would take the first one's "eager" for the usual way, and keep it


def cross_attention(
    model: Any,
    pixel_values: torch.Tensor,
    sequence: torch.Tensor,
    states: torch.Tensor | None = None,
    prompt: Sequence[int] = (),
) -> torch.Tensor:
    """How the decoder's attention was spread over the canvas when it chose each token of a text.

    Args:
        model: a `VisionEncoderDecoderModel`. Its decoder computes attention the eager way during the call, because
            the fused kernels give no weights. Calls wait for each other; meanwhile other threads may `generate` with
            the model, but not train it.
        pixel_values: (1, channels, height, width), the canvas that the text was written for, square or twice as wide
            as high.
        sequence: (length,), the tokens as generated: start token first, padding last.
        states: (1, tokens, hidden), what the encoder made of the canvas; without it the encoder runs once more.
        prompt: the tokens that stood between the start token and the text.

    Returns:
        (length, rows, rows or 2 × rows), float32, on the CPU: the mean over the heads of the last layer. Map `t`
        belongs to the choice of `sequence[t]`; that of the start token, which nobody chose, is zero. A map sums to 1
        less what went to the encoder's class and register tokens, which lie nowhere on the canvas.

    Raises:
        ValueError: if the encoder's tokens are not those of such a canvas.
    """
    decoder = model.decoder
    with torch.inference_mode(), _one_at_a_time:
        usual = decoder.config._attn_implementation
        encoded = (states,) if states is not None else model.encoder(pixel_values.to(model.device, model.dtype))
        decoder.set_attn_implementation("eager")
        try:
            output = model(
                encoder_outputs=encoded,
                decoder_input_ids=torch.cat([sequence[:1], sequence.new_tensor(prompt), sequence[1:-1]])[None].to(
                    model.device
                ),
                output_attentions=True,
                use_cache=False,
            )
        finally:
            decoder.set_attn_implementation(usual)
    weights = output.cross_attentions[-1][0, :, len(prompt) :].float().mean(0).cpu()  # (length - 1, encoder tokens)
    panels = pixel_values.shape[-1] // pixel_values.shape[-2]
    rows, prefix = grid(weights.shape[1], panels)
    maps = weights[:, prefix:].reshape(-1, rows, panels * rows)
    return torch.cat([torch.zeros_like(maps[:1]), maps])


def grid(tokens: int, panels: int = 2) -> tuple[int, int]:
    """(rows, tokens before them) of an encoder's output: `prefix + rows × panels rows`, with few of the former."""
    rows = math.isqrt(tokens // panels)
    prefix = tokens - panels * rows * rows
    if rows == 0 or prefix > 16:
        raise ValueError(f"{tokens} encoder tokens are no grid {'twice as' if panels > 1 else 'as'} wide as high")
    return rows, prefix


def text_map(tokenizer: Any, sequence: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    """The mean map of a text's tokens but the special ones: (rows, 2 × rows)."""
    said = ~torch.isin(sequence.cpu(), torch.tensor(tokenizer.all_special_ids))
    return maps[said].mean(0) if said.any() else torch.zeros_like(maps[0])


def word_maps(
    tokenizer: Any, sequence: torch.Tensor, maps: torch.Tensor, markers: Sequence[int] = ()
) -> list[tuple[str, torch.Tensor]]:
    """Each word of a text, as white space and the `markers` of sections part them, with the mean map of its tokens."""
    special, ids = set(tokenizer.all_special_ids), sequence.tolist()
    cuts = [0, *(place for place, token in enumerate(ids) if token in markers), len(ids)]
    pairs: list[tuple[str, torch.Tensor]] = []
    for start, end in pairwise(cuts):
        found = list[list[torch.Tensor]]()
        for place in range(start, end):
            if ids[place] in special or ids[place] in markers:
                continue
            text = tokenizer.decode(ids[start : place + 1], skip_special_tokens=True)
            begun = len(text.split()) + (text != text.rstrip())  # a token of white space begins the next word
            if begun == 0:  # nothing to be read so far
                continue
            while len(found) < begun:
                found.append([])
            # WordPiece joins "patient ' s" once the s has come.
            found[begun - 1 :] = [[one for own in found[begun - 1 :] for one in own]]
            found[begun - 1].append(maps[place])
        words = tokenizer.decode(ids[start:end], skip_special_tokens=True).split()
        pairs += [(word, torch.stack(own).mean(0)) for word, own in zip(words, found, strict=False) if own]
    return pairs


def overlay(view: Image.Image, heat: np.ndarray, uniform: float) -> Image.Image:
    """A view in grey with what is above uniform attention over it in orange.

    Args:
        view: one view, mode "L", as it was read.
        heat: (rows, rows), attention over the square panel on which the view lies in the middle.
        uniform: what every place would get if attention were spread evenly, so that a flat map stays pale.
    """
    scale = min(1.0, LARGEST / max(view.size))
    width, height = (max(1, round(side * scale)) for side in view.size)
    side = max(width, height)
    above = (heat / max(uniform, 1e-12) - 1) / (FULL - 1)
    strength = Image.fromarray(np.clip(above, 0, 1).astype(np.float32) * 255 * STRONGEST)
    panel = strength.resize((side, side), Image.Resampling.BICUBIC)
    left, top = (side - width) // 2, (side - height) // 2
    mask = Image.fromarray(np.clip(np.asarray(panel), 0, 255).astype(np.uint8))
    mask = mask.crop((left, top, left + width, top + height))
    grey = view.resize((width, height), Image.Resampling.BICUBIC).convert("RGB")
    return Image.composite(Image.new("RGB", grey.size, COLOUR), grey, mask)


def overlays(
    tokenizer: Any,
    sequence: torch.Tensor,
    maps: torch.Tensor,
    views: Mapping[str, Image.Image],
    words: bool = False,
    markers: Sequence[int] = (),
) -> dict[str, Any]:
    """What the pipeline's `return_attention` adds to an answer.

    Returns `attention`, `{view: overlay}` for the whole text, and with `words` also `attention_words`, the same for
    each word: `[(word, {view: overlay}), …]`. Uniform is what all panels of the study's views hold, spread evenly.
    """

    def drawn(canvas: torch.Tensor) -> dict[str, Image.Image]:
        names = VIEWS if canvas.shape[1] > canvas.shape[0] else views
        panels = dict(zip(names, np.split(canvas.numpy(), len(names), axis=1), strict=True))
        uniform = float(np.mean([panels[name] for name in views]))
        return {name: overlay(views[name], panels[name], uniform) for name in views}

    row: dict[str, Any] = {"attention": drawn(text_map(tokenizer, sequence, maps))}
    if words:
        row["attention_words"] = [(word, drawn(own)) for word, own in word_maps(tokenizer, sequence, maps, markers)]
    return row
