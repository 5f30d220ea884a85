"""Greedy and beam search in numpy, as `generate` of transformers 5.23 does them, so that an exported checkpoint writes
what its model does. Running the graphs lives in `runner.py`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from hf_cxr.inference.sections import SectionOrder

NEVER = -1e9  # the score of a beam that is not there, in transformers
Step = Callable[[np.ndarray, np.ndarray | None], np.ndarray]
"""Tokens (rows, new) and, of beams, the row that each goes on from → logits of what follows, float32 (rows, size)."""


def search(
    step: Step, prompt: np.ndarray, settings: Mapping[str, Any], order: SectionOrder | None
) -> tuple[np.ndarray, np.ndarray]:
    """Texts behind a prompt.

    Args:
        prompt: (studies × beams, before), filled up on the left, the start token among them.
        settings: a generation config with `max_new_tokens`, `num_beams`, `num_return_sequences`, `eos_token_id` (a
            list) and `pad_token_id`.

    Returns tokens (studies, texts, length), padding behind the end, and the log-probability of each text (studies,
    texts).
    """
    process = _Processors(settings, prompt.shape[1], order)
    if settings["num_beams"] == 1:
        tokens, scores = _greedy(step, prompt, settings, process)
        return tokens[:, None], scores[:, None]
    return _beams(step, prompt, settings, process)


class _Processors:
    """What changes the scores of the next token, by what a text holds so far."""

    def __init__(self, settings: Mapping[str, Any], before: int, order: SectionOrder | None) -> None:
        self.penalty = settings.get("repetition_penalty") or 1.0
        self.ngram = settings.get("no_repeat_ngram_size") or 0
        self.before, self.order = before, order

    def __call__(self, tokens: np.ndarray, scores: np.ndarray) -> np.ndarray:
        length = tokens.shape[1]
        if self.penalty != 1 or 0 < self.ngram <= length or self.order:
            scores = scores.copy()
        if self.penalty != 1:
            seen = np.take_along_axis(scores, tokens, 1)
            seen = np.where(seen < 0, seen * np.float32(self.penalty), seen / np.float32(self.penalty))
            np.put_along_axis(scores, tokens, seen, 1)
        if 0 < self.ngram <= length:
            windows = np.lib.stride_tricks.sliding_window_view(tokens, self.ngram, axis=1)
            begun = (windows[..., :-1] == tokens[:, None, length + 1 - self.ngram :]).all(-1)
            rows, places = begun.nonzero()
            scores[rows, windows[rows, places, -1]] = -np.inf
        if self.order:
            scores[self.order.closed[self.order(tokens[:, self.before :])]] = -np.inf
        return scores


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def _greedy(
    step: Step, prompt: np.ndarray, settings: Mapping[str, Any], process: _Processors
) -> tuple[np.ndarray, np.ndarray]:
    tokens, new, scores = prompt, prompt, np.zeros(len(prompt))
    ended = np.zeros(len(prompt), dtype=bool)
    for _ in range(settings["max_new_tokens"]):
        logits = step(new, None)
        chosen = process(tokens, logits).argmax(-1)
        scores += np.where(ended, 0, np.take_along_axis(_log_softmax(logits), chosen[:, None], 1)[:, 0])
        new = np.where(ended, settings["pad_token_id"], chosen)[:, None]
        tokens = np.concatenate([tokens, new], axis=1)
        ended |= np.isin(new[:, 0], settings["eos_token_id"])
        if ended.all():
            break
    return tokens[:, prompt.shape[1] :], scores


def _beams(
    step: Step, prompt: np.ndarray, settings: Mapping[str, Any], process: _Processors
) -> tuple[np.ndarray, np.ndarray]:
    beams, longest, before = settings["num_beams"], settings["max_new_tokens"], prompt.shape[1]
    early, penalty = settings.get("early_stopping") or False, settings.get("length_penalty", 1.0)
    studies, ends = len(prompt) // beams, settings["eos_token_id"]
    keep = max(2, 1 + len(ends)) * beams
    running = prompt.reshape(studies, beams, before)
    running_scores = np.tile(np.array([0] + [NEVER] * (beams - 1), np.float32), (studies, 1))
    running_sums = np.zeros((studies, beams))  # log-probabilities before any processor
    fill = settings["pad_token_id"] or ends[0]  # as there
    done = np.full((studies, beams, before + longest), fill)
    done_scores, done_sums = np.full((studies, beams), NEVER, np.float32), np.zeros((studies, beams))
    finished, hopeful = np.zeros((studies, beams), dtype=bool), np.ones((studies, 1), dtype=bool)
    new, source = prompt, None
    for length in range(1, longest + 1):
        log_probs = _log_softmax(step(new, source))
        size = log_probs.shape[1]
        flat = running.reshape(studies * beams, -1)
        totals = process(flat, log_probs).reshape(studies, beams, -1) + running_scores[..., None]
        scores, places = _top(totals.reshape(studies, -1), keep)
        parents, chosen = places // size, places % size
        texts = np.concatenate([_picked(running, parents), chosen[..., None]], axis=2)
        each = log_probs.reshape(studies, beams, size)[np.arange(studies)[:, None], parents, chosen]
        sums = _picked(running_sums, parents) + each
        stops = np.isin(chosen, ends) | (length == longest)

        running_scores, going = _top(scores + stops * np.float32(NEVER), beams)
        running, running_sums = _picked(texts, going), _picked(sums, going)
        source = (_picked(parents, going) + np.arange(studies)[:, None] * beams).ravel()
        new = running[..., -1].reshape(-1, 1)

        just = stops & (np.arange(keep) < beams)
        full = finished.all(1, keepdims=True) & (early is True)
        ranked = scores / np.float32(length**penalty)
        ranked = ranked + np.float32(NEVER) * (full.astype(np.float32) + ~hopeful + ~just)
        room = np.full((studies, keep, longest - length), fill)
        done_scores, best = _top(np.concatenate([done_scores, ranked], axis=1), beams)
        done = _picked(np.concatenate([done, np.concatenate([texts, room], axis=2)], axis=1), best)
        done_sums = _picked(np.concatenate([done_sums, sums], axis=1), best)
        finished = _picked(np.concatenate([finished, just], axis=1), best)

        hoped = longest if early == "never" and penalty > 0 else length
        possible = running_scores[:, :1] / np.float32(hoped**penalty)
        worst = np.where(finished, done_scores.min(1, keepdims=True), np.float32(NEVER))
        hopeful = hopeful & (possible > worst).any(1, keepdims=True)
        if not hopeful.any() or (finished.all() and early is True) or stops.all():
            break
    texts = settings["num_return_sequences"]
    return done[:, :texts, before:], done_sums[:, :texts]


def _top(values: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """The `number` largest of each row, in order, and their places."""
    places = np.argpartition(-values, number - 1, axis=1)[:, :number]
    places = np.take_along_axis(places, (-np.take_along_axis(values, places, 1)).argsort(1, kind="stable"), 1)
    return np.take_along_axis(values, places, 1), places


def _picked(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Of each study's rows (studies, rows, …) those at `places` (studies, picked)."""
    return values[np.arange(len(values))[:, None], places]
