"""What two splits share: report texts that are the same, or nearly.

A model that recites training reports scores well on such studies, so their number belongs beside every score.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

NEAR_WORDS = 10
"""Texts of at least so many words are near-duplicates if they are equal once at most one word of each is left out."""


def text_overlap(splits: Mapping[str, Sequence[str]]) -> dict[str, dict[str, int]]:
    """How many texts of each other split also occur in "train".

    Returns:
        Split → `{"studies", "same", "near"}`: all its texts; those that equal a training text but for case and
        punctuation; and those of at least `NEAR_WORDS` words that equal one once at most one word of each is left out.
    """
    train = {_words(text) for text in splits.get("train", ())}
    near_train = {variant for words in train if len(words) >= NEAR_WORDS - 1 for variant in _one_less(words)}
    overlap = {}
    for name, texts in splits.items():
        if name == "train":
            continue
        words = [_words(text) for text in texts]
        unseen = [text for text in words if text not in train]
        near = sum(len(text) >= NEAR_WORDS and not near_train.isdisjoint(_one_less(text)) for text in unseen)
        overlap[str(name)] = {"studies": len(words), "same": len(words) - len(unseen), "near": near}
    return overlap


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"\w+", text.lower()))


def _one_less(words: tuple[str, ...]) -> Iterator[int]:
    """Hashes of the text itself and of every text with one of its words left out."""
    yield hash(words)
    for i in range(len(words)):
        yield hash(words[:i] + words[i + 1 :])
