"""What a model is asked: the sections that it writes, and the context that it is given before it writes.

A token sequence is: start, for each given context its token and text, the token of the first section (only where a
model takes context), that section's text, and for each further section its token and text; then the end. A model of
one section without context has none of these tokens. A checkpoint brings this file as remote code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from .checks import LAYOUT, UnusableCheckpoint
from .targets import target_ids

SECTIONS = ("findings", "impression")
TARGETS: dict[str, tuple[str, ...]] = {"impression": ("impression",), "findings": ("findings",), "report": SECTIONS}
CONTEXT = ("indication", "comparison", "age_sex")
CONTEXT_TOKENS = 64  # of one context's text; what is longer is cut
FIRST_SHARE = 0.75  # of the tokens of a text: the most that its first section may take where there is another
SHORTEST_REPORT = 9  # tokens: the first length whose share leaves the second its token, a token of text and the end


@dataclass(frozen=True)
class Layout:
    """The sections that a model writes, in order, and the context that it takes, in order."""

    sections: tuple[str, ...] = ("impression",)
    context: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """The name that a config gives to these sections: `impression`, `findings` or `report`."""
        return next(name for name, sections in TARGETS.items() if sections == self.sections)

    @property
    def top(self) -> str:
        """The section that a model is judged by first: the conclusion where it writes one."""
        return self.sections[-1]

    @property
    def tokens(self) -> list[str]:
        """The special tokens that its tokenizer needs."""
        marked = self.sections if self.context else self.sections[1:]
        return [token_of(name) for name in (*self.context, *marked)]

    def saved(self) -> dict[str, list[str]] | None:
        """What a config carries of it; None for the default."""
        return None if self == Layout() else {"sections": list(self.sections), "context": list(self.context)}


PLAIN = Layout()  # an impression, without context


def token_of(name: str) -> str:
    """The special token that stands before a section or a context."""
    return f"<{name}>"


def layout_of(config: Any) -> Layout:
    """The layout that a model's config carries. Raises `UnusableCheckpoint` for what is none."""
    carried = getattr(config, LAYOUT, None)
    if carried is None:
        return PLAIN
    try:
        layout = Layout(tuple(carried["sections"]), tuple(carried["context"]))
        known = layout.sections in TARGETS.values() and set(layout.context) <= set(CONTEXT)
    except (KeyError, TypeError):
        known = False
    if not known:
        raise UnusableCheckpoint(f"the {LAYOUT} of its config.json names no sections or context of this kit")
    return layout


def checked_layout(config: Any, tokenizer: Any) -> Layout:
    """`layout_of` a model whose tokenizer has the layout's tokens. Raises `UnusableCheckpoint` where it lacks one."""
    layout, known, size = layout_of(config), tokenizer.get_vocab(), config.decoder.vocab_size
    if lacking := [token for token in layout.tokens if known.get(token, size) >= size]:
        raise UnusableCheckpoint(
            f"its tokenizer is damaged or another model's: it lacks {', '.join(lacking)}, which its {LAYOUT} needs"
        )
    return layout


def context_of(row: Mapping[str, Any]) -> dict[str, str]:
    """The context that a row of a dataset, or a study of the pipeline, gives; what it lacks is left out.

    `age_sex` is made of `age` (years) and `sex`, as "63 years, F"; one that is given as such is taken.
    """
    age, sex = row.get("age"), row.get("sex")
    years = f"{float(age):.0f} years" if age not in (None, "") and math.isfinite(float(age)) else ""
    made = {"age_sex": ", ".join(filter(None, (years, str(sex or "").strip())))}
    found = {name: " ".join(str(row.get(name) or made.get(name) or "").split()) for name in CONTEXT}
    return {name: text for name, text in found.items() if text}


def prompt_ids(tokenizer: Any, layout: Layout, context: Mapping[str, str]) -> list[int]:
    """The tokens before the text, the start token not among them; none for a model that takes no context."""
    if not layout.context:
        return []
    ids: list[int] = []
    for name in layout.context:
        text = context.get(name, "")
        if written := tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]:
            ids += [tokenizer.convert_tokens_to_ids(token_of(name)), *written[:CONTEXT_TOKENS]]
    return [*ids, tokenizer.convert_tokens_to_ids(token_of(layout.sections[0]))]


def report_ids(tokenizer: Any, layout: Layout, texts: Mapping[str, Iterable[str]], max_length: int) -> list[list[int]]:
    """The target tokens of each study, its end among them, at most `max_length`.

    Args:
        texts: section → the text of each study.

    A first section longer than its share is cut as `target_ids` cuts, but another always follows.
    """
    *firsts, last = layout.sections
    targets = [list[int]() for _ in list(texts[last])]
    for name, following in zip(firsts, layout.sections[1:], strict=True):
        marker = tokenizer.convert_tokens_to_ids(token_of(following))
        share = int(max_length * FIRST_SHARE)
        for place, ids in enumerate(target_ids(tokenizer, texts[name], share)):
            closed = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
            targets[place] += [*closed, marker]
    for place, ids in enumerate(target_ids(tokenizer, texts[last], max_length)):
        room = max_length - len(targets[place])
        targets[place] += ids if len(ids) <= room else target_ids(tokenizer, [list(texts[last])[place]], room)[0]
    return targets


def split_sections(tokenizer: Any, layout: Layout, ids: Sequence[int]) -> dict[str, str]:
    """Section → text of the tokens that a model wrote, its prompt not among them; "" for a section that is missing."""
    parts: dict[str, list[int]] = {layout.sections[0]: []}
    markers = {tokenizer.convert_tokens_to_ids(token_of(name)): name for name in layout.sections[1:]}
    current = layout.sections[0]
    for token in map(int, ids):
        if token in markers:
            current = markers[token]
            parts.setdefault(current, [])
        else:
            parts[current].append(token)
    texts = {name: tokenizer.decode(part, skip_special_tokens=True).strip() for name, part in parts.items()}
    return {name: texts.get(name, "") for name in layout.sections}


@lru_cache(maxsize=4)
def words_of(tokenizer: Any, size: int) -> np.ndarray:
    """Which of the first `size` tokens are text that is not white space, alone: bool, (size,)."""
    ids = sorted(token for token in tokenizer.get_vocab().values() if token < size)
    texts = tokenizer.batch_decode([[token] for token in ids], skip_special_tokens=True)
    words = np.zeros(size, dtype=bool)
    words[ids] = [bool(text.replace("\ufffd", "").strip()) for text in texts]  # no half characters
    return words


class SectionOrder:
    """Holds a text to its sections: each marker once, nothing ends before the last section has begun, each has a text
    that is not white space, and the first leaves room for the next. Of fewer than 5 tokens the last may have no room.

    Called with what texts hold so far, int (texts, length), it gives for each the row of `closed` (5, vocabulary),
    bool, that tells which tokens may not follow.

    Args:
        markers: the tokens that begin the second and further sections, in order.
        forbidden: tokens that a text never holds: those of context and of the first section, padding and the like.
        ends: the end tokens.
        longest: most tokens of a text; `None`: no limit is known.
        words: which tokens are text alone (see `words_of`), bool, (vocabulary,).
        decode: gives the text of tokens, as of letters that are several tokens.
    """

    LAST, FIRST, EMPTY, EMPTY_LATE, FULL = range(5)

    def __init__(
        self,
        markers: Sequence[int],
        forbidden: Sequence[int],
        ends: Sequence[int],
        longest: int | None,
        words: np.ndarray,
        decode: Callable[[list[int]], str],
    ) -> None:
        self.markers, self.decode = list(markers), decode  # a report has two sections, so one marker
        self.longest = math.inf if longest is None else longest
        self.room = math.inf if longest is None else int(longest * FIRST_SHARE)
        self.words = words.copy()
        self.words[[*self.markers, *forbidden, *ends]] = False
        self.closed = np.zeros((5, len(words)), dtype=bool)
        self.closed[:, list(forbidden)] = True
        if self.markers:
            self.closed[: self.FULL, self.markers] = True
            self.closed[self.FIRST, self.markers] = False
            self.closed[self.FIRST :, list(ends)] = True
            self.closed[self.EMPTY_LATE] |= ~self.words
            self.closed[self.FULL] = True
            self.closed[self.FULL, self.markers] = False

    def __call__(self, written: np.ndarray) -> np.ndarray:
        if not self.markers:
            return np.full(len(written), self.LAST)
        length, [marker] = written.shape[1], self.markers
        begun, empty = (written == marker).any(1), self._empty(written, marker)
        ends_late = np.where(begun, length >= self.longest - 1, length >= self.room - 1)
        first = self.FULL if length >= self.room else self.FIRST
        states = np.where(ends_late, self.EMPTY_LATE, self.EMPTY)
        return np.where(empty, states, np.where(begun, self.LAST, first))

    def _empty(self, written: np.ndarray, marker: int) -> np.ndarray:
        """Whether the section that each text is in has no text yet, bool, (texts,)."""
        marks = (written == marker).cumsum(1)
        inside = (marks == marks[:, -1:]) & (written != marker)
        empty = ~(self.words[written] & inside).any(1)
        for row in empty.nonzero()[0]:
            empty[row] = not self.decode(written[row][inside[row]].tolist()).strip()
        return empty


def order_of(
    tokenizer: Any, layout: Layout, ends: int | Sequence[int], size: int, longest: int | None
) -> SectionOrder | None:
    """What holds a text of at most `longest` tokens of a vocabulary of `size` to a layout; nothing for one plain
    section."""
    if not layout.tokens:
        return None
    markers = [tokenizer.convert_tokens_to_ids(token_of(name)) for name in layout.sections[1:]]
    ends = [ends] if isinstance(ends, int) else list(ends)
    special = {*tokenizer.all_special_ids, *tokenizer.convert_tokens_to_ids(layout.tokens)} - {*markers, *ends}
    forbidden = sorted(token for token in special if token < size)
    text = partial(tokenizer.decode, skip_special_tokens=True)
    return SectionOrder(markers, forbidden, ends, longest, words_of(tokenizer, size), text)
