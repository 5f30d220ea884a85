"""Token sequences and their texts from canvases and prompts: what the pipeline and the evaluation share.

A checkpoint brings this file as remote code. What a prompt and a section are lives in `sections.py`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache, LogitsProcessor, LogitsProcessorList
from transformers.modeling_outputs import BaseModelOutput

from .checks import check_options, first_position, positions_of, start_of
from .minimum_risk import CodePoints, choose, settings_of
from .sections import PLAIN, Layout, SectionOrder, layout_of, order_of, split_sections

LOGITS = 1 << 24  # of them in memory at once when texts are scored: 64 MB
STATES = 1 << 26  # numbers that cross-attention keeps in memory at once when texts are sampled: 256 MB


def generate(
    model,
    pixel_values: torch.Tensor,
    prompts: Sequence[Sequence[int]] | None = None,
    tokenizer: Any = None,
    states: Any = None,
    **generate_kwargs,
) -> dict[str, torch.Tensor]:
    """Generate token sequences for a batch of canvases.

    Args:
        pixel_values: (batch, channels, height, width), normalised by the checkpoint's image processor.
        prompts: the tokens that stand before each text (see `prompt_ids`), of any lengths; default: none. One that
            leaves no room for `max_new_tokens` is cut before its last token.
        tokenizer: needed where the model's layout has special tokens.
        states: what the encoder made of the canvases (batch, tokens, hidden), where that is known.
        generate_kwargs: passed on to `model.generate`; its `generation_config` gives the defaults. `decode` "mbr" or
            "search" asks for minimum risk (see `minimum_risk`) or against it; default: as the checkpoint says.

    Returns `sequences` (batch, texts, length), which begin with the start token and hold no prompt, `scores` and
    `truncated` (batch, texts), what the encoder made of the canvases, `states` (batch, tokens, hidden), and the
    `prompts` as they were used; of minimum risk also `shares` (batch, findings), see `choose`. A score is
    the probability that the model gives to the whole text, however it was searched or sampled: the product of its
    tokens' probabilities, its end among them. A text that was cut short has no end; its score is 0.

    Raises `ValueError` for options out of bounds, and for a generation config that does not work.
    """
    check_options(model, generate_kwargs)
    risk = settings_of(model.config, generate_kwargs)
    generate_kwargs.pop("decode", None)
    with torch.inference_mode():
        prompts = _cut(model, prompts or [()] * len(pixel_values), generate_kwargs)
        if states is None:
            states = model.encoder(pixel_values.to(model.device, model.dtype))[0]
        if risk:
            found = _of_least_risk(model, states, prompts, tokenizer, risk, generate_kwargs)
        else:
            found = _searched(model, states, prompts, tokenizer, generate_kwargs)
    return {**found, "states": states, "prompts": prompts}


def _searched(
    model, states: torch.Tensor, prompts: Sequence[Sequence[int]], tokenizer: Any, options: Mapping[str, Any]
) -> dict[str, torch.Tensor]:
    """The texts that the stock `generate` finds."""
    prompt = prompt_inputs(model, prompts, len(states))
    before = prompt["decoder_input_ids"].shape[1] if prompt else 1
    order = section_order(model, tokenizer, before, options)
    with _one_line():
        found = model.generate(
            encoder_outputs=BaseModelOutput(states),
            logits_processor=order,
            **prompt,
            **{**options, "return_dict_in_generate": True},
        )
    return _scored(model, states, found.sequences, before, prompt, _cross_attention(found, states))


def _cross_attention(found: Mapping[str, Any], states: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Key and value of each layer's cross-attention, (studies, heads, tokens, size), as a search has left them; none
    where it kept none."""
    layers = getattr(getattr(found.get("past_key_values"), "cross_attention_cache", None), "layers", [])
    kept = [(layer.keys, layer.values) for layer in layers]
    if any(keys is None or keys.shape[2] != states.shape[1] or keys.device != states.device for keys, _ in kept):
        return []
    return [(keys[:: len(keys) // len(states)], values[:: len(keys) // len(states)]) for keys, values in kept]


def _scored(
    model,
    states: torch.Tensor,
    sequences: torch.Tensor,
    before: int,
    prompt: Mapping[str, torch.Tensor],
    cross: Sequence[tuple[torch.Tensor, torch.Tensor]] = (),
) -> dict[str, torch.Tensor]:
    """What `generate` gives of token sequences: those behind the first `before` tokens, and their scores."""
    written = sequences[:, before:]
    ends = torch.isin(written, torch.as_tensor(model.generation_config.eos_token_id, device=states.device))
    padding = ends.cumsum(1) - ends.long() > 0
    # Beam search fills up with the end token where the padding is token 0.
    written[padding] = model.generation_config.pad_token_id
    chances = _log_probabilities(model, states, sequences, before, prompt, cross)
    scores = chances.masked_fill(padding, 0.0).sum(1).exp()
    batch, truncated = len(states), ~ends.any(1)
    sequences = torch.cat([torch.full_like(written[:, :1], start_of(model.generation_config)), written], 1)
    return {
        "sequences": sequences.reshape(batch, -1, sequences.shape[1]).cpu(),
        "scores": scores.masked_fill(truncated, 0.0).reshape(batch, -1).cpu(),
        "truncated": truncated.reshape(batch, -1).cpu(),
    }


@contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"this model writes nothing with these settings ({told})") from error


def _of_least_risk(
    model,
    states: torch.Tensor,
    prompts: Sequence[Sequence[int]],
    tokenizer: Any,
    risk: Mapping[str, Any],
    options: Mapping[str, Any],
) -> dict[str, torch.Tensor]:
    """One text of each study by minimum risk: a few studies at once, whose prompts are of one length."""
    layout, decoder, found = layout_of(model.config), model.decoder.config, dict[int, dict[str, torch.Tensor]]()
    ends = torch.as_tensor(model.generation_config.eos_token_id, device=states.device)
    number, rows = risk["samples"] + 1, {len(prompt): list[int]() for prompt in prompts}
    for row, prompt in enumerate(prompts):
        rows[len(prompt)].append(row)
    kept = number * states.shape[1] * decoder.hidden_size * 2 * decoder.num_hidden_layers  # numbers for one study
    most = max(1, STATES // kept)
    for some in (part[start : start + most] for part in rows.values() for start in range(0, len(part), most)):
        seen = states[some]
        ids = [[start_of(model.generation_config), *prompts[row]] for row in some]
        start = torch.tensor(ids, device=states.device)
        before = start.shape[1]
        order = section_order(model, tokenizer, before, options)
        with _one_line():
            order.append(CodePoints(len(some), risk["samples"]))
            sequences = _sampled(model, seen, start, number, order, options)
        for place, row in enumerate(some):
            own = sequences[place * number : (place + 1) * number]
            written = own[:, before:]
            texts = [" ".join(split_sections(tokenizer, layout, ids).values()) for ids in written.tolist()]
            best, shares = choose(texts, torch.isin(written, ends).any(1).tolist(), risk)
            scored = _scored(model, seen[place : place + 1], own[best : best + 1], before, {})
            found[row] = scored | {"shares": torch.tensor(shares)[None]}
    longest = max(part["sequences"].shape[2] for part in found.values())
    for part in found.values():
        short, pad = longest - part["sequences"].shape[2], model.generation_config.pad_token_id
        part["sequences"] = torch.nn.functional.pad(part["sequences"], (0, short), value=pad)
    return {name: torch.cat([found[row][name] for row in range(len(states))]) for name in found[0]}


def _sampled(
    model,
    states: torch.Tensor,
    start: torch.Tensor,
    number: int,
    processors: LogitsProcessorList,
    options: Mapping[str, Any],
) -> torch.Tensor:
    """`number` texts of each study by greedy search with processors. What the decoder makes of the encoder's states is
    computed once for a study, where the stock class would project them for each text and step."""
    decoder = model.decoder
    if hasattr(model, "enc_to_dec_proj"):
        states = model.enc_to_dec_proj(states)
    first = EncoderDecoderCache(DynamicCache(), DynamicCache())
    decoder(start, encoder_hidden_states=states, past_key_values=first, use_cache=True)
    shared = first.cross_attention_cache
    shared.batch_repeat_interleave(number)
    start = start.repeat_interleave(number, 0)
    known = inspect.signature(decoder.forward).parameters
    places = {name.removeprefix("decoder_"): ids for name, ids in _places(model, torch.ones_like(start)).items()}
    settings = copy.deepcopy(model.generation_config)
    settings.update(**{**options, "num_beams": 1, "do_sample": False, "num_return_sequences": 1})
    return decoder.generate(
        start,
        **{name: ids for name, ids in places.items() if name in known},
        encoder_hidden_states=states[:1].expand(len(start), -1, -1),  # of which only the size is read from here on
        past_key_values=EncoderDecoderCache(DynamicCache(), shared),
        generation_config=settings,
        logits_processor=processors,
    )


def _cut(model, prompts: Sequence[Sequence[int]], options: Mapping[str, Any]) -> list[list[int]]:
    room = max(1, positions_of(model.decoder) - 1 - (_longest(model, options) or 0))
    return [list(ids) if len(ids) <= room else [*ids[: room - 1], ids[-1]] for ids in prompts]


def _longest(model, options: Mapping[str, Any]) -> int | None:
    return options.get("max_new_tokens") or model.generation_config.max_new_tokens


def prompt_inputs(model, prompts: Sequence[Sequence[int]] | None, batch: int) -> dict[str, torch.Tensor]:
    """Prompts of unequal lengths as `generate` of the stock class takes them: filled up on the left, with the mask and
    the positions that make each text what it is alone. Nothing where no study has a prompt."""
    if not prompts or not any(prompts):
        return {}
    if len(prompts) != batch:
        raise ValueError(f"{len(prompts)} prompts for {batch} studies")
    longest, pad = max(map(len, prompts)), model.generation_config.pad_token_id
    if "position_ids" not in inspect.signature(model.decoder.forward).parameters:
        kind = model.config.decoder.model_type
        raise ValueError(f"a {kind!r} decoder takes no positions, so no context; GPT-2 or a BERT-style decoder does")
    rows = [[pad] * (longest - len(ids)) + [start_of(model.generation_config), *ids] for ids in prompts]
    mask = torch.tensor([[0] * (longest - len(ids)) + [1] * (len(ids) + 1) for ids in prompts], device=model.device)
    return {"decoder_input_ids": torch.tensor(rows, device=model.device)} | _places(model, mask)


def _places(model, mask: torch.Tensor) -> dict[str, torch.Tensor]:
    """The mask of padded sequences, and where each token stands: padding counts for nothing."""
    first = first_position(model.decoder)
    return {"decoder_attention_mask": mask, "decoder_position_ids": first + (mask.cumsum(1) - 1).clamp(min=0)}


class HeldToSections(LogitsProcessor):
    """`SectionOrder` of texts behind `before` tokens, as `generate` takes it."""

    def __init__(self, order: SectionOrder, before: int) -> None:
        self.order, self.before, self.closed = order, before, torch.from_numpy(order.closed)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        states = self.order(input_ids[:, self.before :].cpu().numpy())
        self.closed = self.closed.to(scores.device)
        return scores.masked_fill(self.closed[states], float("-inf"))  # type: ignore[return-value]


def section_order(model, tokenizer: Any, before: int, options: Mapping[str, Any]) -> LogitsProcessorList:
    """What holds a text to the sections of the model's layout, after `before` tokens; empty for one plain section."""
    ends, size = model.generation_config.eos_token_id, model.config.decoder.vocab_size
    order = order_of(tokenizer, layout_of(model.config), ends, size, _longest(model, options))
    return LogitsProcessorList([HeldToSections(order, before)] if order else [])


def _log_probabilities(
    model,
    states: torch.Tensor,
    sequences: torch.Tensor,
    before: int,
    prompt: Mapping[str, torch.Tensor],
    cross: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """The log-probability of each token behind the first `before`, by one pass over the finished texts, a few at a
    time: `generate` would keep the logits of every beam and step for it, gigabytes of them. Where the search has left
    its keys and values of cross-attention (see `_cross_attention`), they are not computed anew."""
    texts, length = len(sequences) // len(states), sequences.shape[1] - 1
    most = max(1, LOGITS // (texts * sequences.shape[1] * model.config.decoder.vocab_size))  # studies at once
    around: dict[str, torch.Tensor] = {}
    if prompt:
        mask = prompt["decoder_attention_mask"].repeat_interleave(texts, 0)
        around = _places(model, torch.cat([mask, mask.new_ones(len(mask), length - before)], 1))
    steps = []
    for start in range(0, len(states), most):
        seen = states[start : start + most].repeat_interleave(texts, 0)
        rows = slice(start * texts, (start + most) * texts)
        written, options = sequences[rows], dict[str, Any]((name, value[rows]) for name, value in around.items())
        options["use_cache"] = bool(cross)
        if cross:
            own = [[part[start : start + most].repeat_interleave(texts, 0) for part in layer] for layer in cross]
            options["past_key_values"] = EncoderDecoderCache(DynamicCache(), DynamicCache(own))
        logits = (
            model(encoder_outputs=(seen,), decoder_input_ids=written[:, :-1], **options)
            .logits[:, before - 1 :]
            .float()
        )
        steps.append(logits.gather(-1, written[:, before:, None])[..., 0] - logits.logsumexp(-1))
    return torch.cat(steps)


def decode(tokenizer, sequences: torch.Tensor, scores: torch.Tensor, layout: Layout = PLAIN) -> list[dict[str, Any]]:
    """The texts of one study, (texts, length) and (texts,), as `[{section: str, …, "score": float}]`."""
    rows = zip(sequences.tolist(), scores.tolist(), strict=True)
    return [split_sections(tokenizer, layout, ids) | {"score": score} for ids, score in rows]
