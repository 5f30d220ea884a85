"""From texts to counted n-grams: the named normalisations, the tokens of each measure, n-gram counts of whole corpora.

What is computed from the counts lives in `overlap`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

MAX_ORDER = 4

# --- normalisation -----------------------------------------------------------------------------------------------

_WORD = re.compile(r"[^\W_]+")
NORMALIZATIONS: dict[str, Callable[[str], str]] = {
    "none": lambda text: text,
    "lower": str.lower,
    "words": lambda text: " ".join(_WORD.findall(text.lower())),
}
"""What may be done to prediction and reference alike before words are compared: nothing; lower case; lower case with
everything but letters and digits taken for a space, as captioning papers often do. Findings are always read from the
texts as they are: their rules need the full stops."""


def normalize(texts: Sequence[str], normalization: str = "none") -> list[str]:
    """The texts after one of `NORMALIZATIONS`; raises `ValueError` for another name."""
    if normalization not in NORMALIZATIONS:
        raise ValueError(f"no normalization named {normalization!r}; there are {', '.join(NORMALIZATIONS)}")
    return [NORMALIZATIONS[normalization](text) for text in texts]


# --- tokens ------------------------------------------------------------------------------------------------------

# The rules of mteval-v13a.pl for Western languages, in the order of sacreBLEU's and evaluate's tokenizers, but for the
# space in the first class, which only made spaces wider.
_RULES_13A = (
    (re.compile(r"([{-~\[-`!-&(-+:-@/])"), r" \1 "),
    (re.compile(r"([^0-9])([.,])"), r"\1 \2 "),  # full stop and comma, unless a digit comes before
    (re.compile(r"([.,])([^0-9])"), r" \1 \2"),  # … unless a digit comes after
    (re.compile(r"([0-9])(-)"), r"\1 \2 "),
)
_ENTITIES = (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">"))


def tokenize_13a_all(texts: Sequence[str]) -> list[list[str]]:
    """The mteval-13a tokens of each text, equal to sacreBLEU's; case is kept.

    All texts are cut at once, with a line break between two of them, which the rules take as the space that stands
    around a single text. (As in sacreBLEU, and unlike evaluate, white space at the end of a text is dropped first;
    this matters only for a text that ends in a dash and a line break.)
    """
    joined = " " + "\n".join(_one_line(text) for text in texts) + " "
    for pattern, replacement in _RULES_13A:
        joined = pattern.sub(replacement, joined)
    return [line.split() for line in joined.split("\n")] if texts else []


def _one_line(text: str) -> str:
    text = text.rstrip().replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    if "&" in text:
        for entity, character in _ENTITIES:
            text = text.replace(entity, character)
    return text


@lru_cache(maxsize=65536)
def tokenize_13a(text: str) -> tuple[str, ...]:
    """The mteval-13a tokens of one text; evaluate's `bleu` uses the same rules."""
    return tuple(tokenize_13a_all([text])[0])


# What the PTB tokenizer of the COCO caption evaluation drops, in 13a's spelling.
_COCO_PUNCTUATION = frozenset("'' ' `` ` \" ( ) { } . ? ! , : - -- ... ;".split())


def cider_tokens(tokens: Sequence[str]) -> list[str]:
    """13a tokens in lower case without punctuation: what COCO's Java tokenizer leaves of plain prose."""
    return [token.lower() for token in tokens if token not in _COCO_PUNCTUATION]


def cider_tokens_all(texts: Sequence[str]) -> list[list[str]]:
    """`cider_tokens` of each text."""
    return [cider_tokens(tokens) for tokens in tokenize_13a_all(texts)]


_ROUGE_WORD = re.compile(r"[a-z0-9]+")


def rouge_tokens(text: str) -> list[str]:
    """The tokens of the rouge-score package: runs of a-z and 0-9 after lower-casing, no stemming."""
    return _ROUGE_WORD.findall(text.lower())


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """The stem of a word in lower case, by NLTK's Porter stemmer."""
    return str(_stemmer().stem(word))


@lru_cache(maxsize=1)
def _stemmer() -> Any:
    from nltk.stem.porter import PorterStemmer  # imports the whole of NLTK

    return PorterStemmer()


# --- n-grams -----------------------------------------------------------------------------------------------------


def ngrams(tokens: Sequence[str], max_order: int = MAX_ORDER) -> Counter[tuple[str, ...]]:
    """Counts of all n-grams of order 1 to `max_order`."""
    return Counter(
        tuple(tokens[start : start + order])
        for order in range(1, max_order + 1)
        for start in range(len(tokens) - order + 1)
    )


class Grams(NamedTuple):
    """The different n-grams of each text of a corpus: three arrays of equal length, sorted by text and n-gram."""

    text: np.ndarray
    gram: np.ndarray
    times: np.ndarray


class OrderCounts(NamedTuple):
    """The n-grams of one order in predictions and references; n-grams are numbered alike in both."""

    predictions: Grams
    references: Grams
    shared_in_predictions: np.ndarray
    """Indices into `predictions` of the n-grams that the study's reference holds too …"""
    shared_in_references: np.ndarray
    """… and their indices into `references`."""
    n_grams: int
    """How many different n-grams both sides hold together."""


def count_orders(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> Iterator[OrderCounts]:
    """Count the n-grams of order 1, 2, 3, 4 of tokenised predictions and their references, study by study.

    Raises `ValueError` for unequal numbers of them.
    """
    n = len(predictions)
    if n != len(references):
        raise ValueError(f"{n} predictions for {len(references)} references")
    documents = [*predictions, *references]
    vocabulary: dict[str, int] = {}
    tokens = np.array(
        [vocabulary.setdefault(token, len(vocabulary)) for token in chain.from_iterable(documents)], dtype=np.int64
    )
    document = np.repeat(np.arange(2 * n), [len(words) for words in documents])
    grams, start = tokens, np.arange(len(tokens))  # the n-grams of this order and where they start
    n_grams = len(vocabulary)
    for order in range(1, MAX_ORDER + 1):
        if order > 1:
            inside = start + order - 1 < len(tokens)
            start, grams = start[inside], grams[inside]
            inside = document[start] == document[start + order - 1]
            start, grams = start[inside], grams[inside]
            known, grams = np.unique(grams * len(vocabulary) + tokens[start + order - 1], return_inverse=True)
            n_grams = len(known)
        keys, counts = np.unique(document[start] * n_grams + grams, return_counts=True)
        border = int(np.searchsorted(keys, n * n_grams))
        ours, theirs = keys[:border], keys[border:] - n * n_grams
        _, in_ours, in_theirs = np.intersect1d(ours, theirs, assume_unique=True, return_indices=True)
        width = max(n_grams, 1)
        yield OrderCounts(
            Grams(ours // width, ours % width, counts[:border]),
            Grams(theirs // width, theirs % width, counts[border:]),
            in_ours,
            in_theirs,
            n_grams,
        )
