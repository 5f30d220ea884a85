"""What a text becomes for a model that learns to write it: target tokens, cut where a sentence ends.

A checkpoint brings this file as remote code; `processor.py` and training take their targets from it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import accumulate
from typing import Any

IGNORED = -100  # the label that torch's cross entropy leaves out
_STOP = re.compile(r"(?<![.!?])[.!?]+\s+(?=\S)")
_NUMBER = re.compile(r"(?i:\bno\.\s+)$")
_NO_STOP = re.compile(r"(?:^|[\s(])(?i:drs?|mrs?|ms|vs|approx|e\.g|i\.e|fig)\.\s+$|^\s*\(?\d{1,2}\.\s+$")


def sentences(text: str) -> list[str]:
    """The sentences of `text`, stripped, an enumeration marker ("2.") staying with its own.

    Splits at ".", "!" and "?" before white space, not inside "1.2 cm" nor after "Dr.", "vs." or "No." before a number.
    """
    found, start = [], 0
    for stop in _STOP.finditer(text):
        number = text[stop.end()].isdigit() and _NUMBER.search(text, max(start, stop.end() - 20), stop.end())
        if not number and not _NO_STOP.search(text[max(start, stop.end() - 20) : stop.end()]):
            found.append(text[start : stop.end()].strip())
            start = stop.end()
    return [s for s in [*found, text[start:].strip()] if s]


def target_ids(tokenizer: Any, texts: Iterable[str], max_length: int) -> list[list[int]]:
    """The target tokens of each text, its end among them, at most `max_length`.

    A longer text is cut at the end of a sentence. One whose first sentence is too long is cut anywhere, and gets no
    end token: a model must not learn that a text ends there.
    """

    def ids_of(texts: list[str]) -> list[list[int]]:
        # A text that happens to hold "<impression>" or "</s>" is that text, no token of ours.
        written = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return [[*ids, tokenizer.eos_token_id] for ids in written]

    texts = list(texts)
    targets = ids_of(texts)
    for place, ids in enumerate(targets):
        if len(ids) > max_length:
            starts = list(accumulate(sentences(texts[place])[:-1], "{} {}".format))
            fitting = [start for start in ids_of(starts) if len(start) <= max_length] if starts else []
            targets[place] = fitting[-1] if fitting else ids[:max_length]
    return targets
