"""BLEU, sacreBLEU and ROUGE as the Hub's modules compute them: several references a text, any order, any tokens.

The kit's own scores, of one reference a text, live in `overlap`."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

import numpy as np

from hf_cxr.metrics.overlap import bleu_from_statistics, longest_common_subsequence
from hf_cxr.metrics.texts import MAX_ORDER, ngrams, rouge_tokens, stem, tokenize_13a

Tokenizer = Callable[[str], Sequence[str]]
ROUGE_TYPES = ("rouge1", "rouge2", "rougeL", "rougeLsum")


def bleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenizer: Tokenizer | None = None,
    max_order: int = MAX_ORDER,
    smooth: bool = False,
) -> dict[str, Any]:
    """The keys of the Hub's `bleu`, and `bleu1` to `bleu4` without smoothing.

    The matches of an n-gram are clipped by the reference that holds most of it; the length is that of the shortest.

    Args:
        references: for each prediction one or more.
        tokenizer: cuts a text into tokens; by default 13a.
        max_order: longest n-gram of `bleu` and `precisions`.
        smooth: add one to matches and n-grams of every order (as tensorflow/nmt does, after Lin and Och 2004).
    """
    cut, orders = tokenizer or tokenize_13a, max(max_order, MAX_ORDER)
    matches, possible = np.zeros(orders), np.zeros(orders)
    written = asked = 0
    for prediction, true in zip(predictions, references, strict=True):
        ours, theirs = list(cut(prediction)), [list(cut(text)) for text in true]
        most = Counter[tuple[str, ...]]()
        for tokens in theirs:
            most |= ngrams(tokens, orders)
        for gram, times in (ngrams(ours, orders) & most).items():
            matches[len(gram) - 1] += times
        possible += np.maximum(len(ours) - np.arange(orders), 0)
        written, asked = written + len(ours), asked + min(map(len, theirs))
    precisions = [(m + smooth) / (p + smooth) if p + smooth else 0.0 for m, p in zip(matches, possible, strict=True)]
    precisions = list(map(float, precisions[:max_order]))
    mean = math.exp(math.fsum(map(math.log, precisions)) / max_order) if min(precisions) > 0 else 0.0
    penalty = (1.0 if written > asked else math.exp(1 - asked / written)) if written else 0.0
    plain = bleu_from_statistics(np.array([*matches[:MAX_ORDER], *possible[:MAX_ORDER], written, asked]))
    return {
        "bleu": mean * penalty,
        "precisions": precisions,
        "brevity_penalty": penalty,
        "length_ratio": written / asked if asked else 0.0,
        "translation_length": written,
        "reference_length": asked,
        **{f"bleu{order}": float(score) for order, score in enumerate(plain, start=1)},
    }


def sacrebleu(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    normalization: str = "none",
    use_effective_order: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """The keys of the Hub's `sacrebleu`, and sacreBLEU's signature, which ends with the `normalization` done before.

    Args:
        references: for each prediction as many.
        options: `smooth_method`, `smooth_value`, `force`, `lowercase` and `tokenize` of `sacrebleu.BLEU`.

    Raises `ValueError` where predictions differ in their number of references.
    """
    from sacrebleu.metrics import BLEU

    if len(numbers := {len(texts) for texts in references}) > 1:
        raise ValueError(f"sacreBLEU takes the same number of references for each prediction; got {sorted(numbers)}")
    metric = BLEU(effective_order=use_effective_order, **options)
    result = metric.corpus_score(list(predictions), [list(texts) for texts in zip(*references, strict=True)])
    suffix = "" if normalization == "none" else f"|normalization:{normalization}"
    names = ("score", "counts", "totals", "precisions", "bp", "sys_len", "ref_len")
    return {name: getattr(result, name) for name in names} | {"signature": f"{metric.get_signature()}{suffix}"}


def rouge(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    rouge_types: Iterable[str] = ROUGE_TYPES,
    tokenizer: Tokenizer | None = None,
) -> dict[str, list[float]]:
    """ROUGE F-measure of each study by type; of several references the one that scores best.

    Raises `ValueError` for a type other than rouge1 to rouge9, rougeL and rougeLsum.
    """
    cut = lru_cache(maxsize=None)(tokenizer or rouge_tokens)
    for kind in rouge_types:
        if not re.fullmatch("rouge([1-9]|L|Lsum)", kind):
            raise ValueError(f"no ROUGE named {kind!r}; there are rouge1 to rouge9, rougeL and rougeLsum")
    pairs = list(zip(predictions, references, strict=True))
    return {
        kind: [max(_rouge(kind, said, text, cut) for text in true) for said, true in pairs] for kind in rouge_types
    }


def stemmed_rouge_tokens(text: str) -> list[str]:
    """`rouge_tokens`, those of more than three letters cut to their stems."""
    return [stem(token) if len(token) > 3 else token for token in rouge_tokens(text)]


def _rouge(kind: str, prediction: str, reference: str, cut: Tokenizer) -> float:
    if kind == "rougeLsum" and "\n" in prediction + reference:
        ours, theirs = ([cut(line) for line in text.split("\n") if line] for text in (prediction, reference))
        hits, length = _lines_in_common(ours, theirs), sum(map(len, (*ours, *theirs)))
    elif kind.startswith("rougeL"):
        said, true = cut(prediction), cut(reference)
        hits, length = longest_common_subsequence(said, true), len(said) + len(true)
    else:
        order = int(kind.removeprefix("rouge"))
        a, b = (Counter(zip(*(cut(text)[i:] for i in range(order)), strict=False)) for text in (prediction, reference))
        hits, length = (a & b).total(), a.total() + b.total()
    return 2 * hits / max(length, 1)


def _lines_in_common(ours: Sequence[Sequence[str]], theirs: Sequence[Sequence[str]]) -> int:
    """How many tokens of the reference's lines are in a longest common subsequence with any line of the prediction
    (Lin 2004, section 3.2); none counts more often than either text holds it."""
    found = Counter(
        line[place] for line in theirs for place in set().union(*(_common_places(line, other) for other in ours))
    )
    return (found & Counter(chain(*ours)) & Counter(chain(*theirs))).total()


def _common_places(reference: Sequence[str], prediction: Sequence[str]) -> set[int]:
    """The places in `reference` of a longest common subsequence; of several the one that rouge-score takes."""
    rows = [[0] * (len(prediction) + 1)]
    for token in reference:
        above, row = rows[-1], [0]
        for j, other in enumerate(prediction):
            row.append(above[j] + 1 if token == other else max(above[j + 1], row[j]))
        rows.append(row)
    places, i, j = set(), len(reference), len(prediction)
    while i and j:
        if reference[i - 1] == prediction[j - 1]:
            i, j = i - 1, j - 1
            places.add(i)
        elif rows[i][j - 1] > rows[i - 1][j]:
            j -= 1
        else:
            i -= 1
    return places
