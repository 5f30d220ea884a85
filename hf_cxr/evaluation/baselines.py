"""What stands beside a model: image-blind baselines, the nearest training study, and the oracle that knows the
findings. All know the training texts, none the test texts (the oracle knows their findings)."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from hf_cxr import metrics
from hf_cxr.inference.labeler import FINDINGS, positive_findings
from hf_cxr.metrics.content import best_for_all

CONSTANTS = ("most_frequent", "best_constant", "best_findings", "length_matched")
BLIND = (*CONSTANTS, "random_train")
NEAREST = ("nearest_pixels", "nearest_encoder")
_CHUNK = 512  # rows of the similarity matrix at a time


def blind_predictions(train: Sequence[str], validation: Sequence[str], n: int, seed: int) -> dict[str, list[str]]:
    """What image-blind baselines that know the training texts would write for `n` studies; none without such texts.

    Constants are chosen on the validation split (on the training split where there is none): `best_constant` is the
    training text of highest BLEU-4 there, `best_findings` that of highest finding F1 (left out where findings
    cannot be read), `length_matched` the most frequent one of those whose length is the mean length there, which pays
    no brevity penalty.
    """
    if not train:
        return {}
    rng, unread = np.random.default_rng(seed), metrics.unread_findings(train)
    return {
        "most_frequent": [most_frequent(train)] * n,
        "best_constant": [best_constant(train, validation or train)] * n,
        **({} if unread else {"best_findings": [best_findings(train, validation or train)] * n}),
        "length_matched": [length_matched(train, validation or train)] * n,
        "random_train": [train[index] for index in rng.integers(len(train), size=n)],
    }


def most_frequent(texts: Sequence[str]) -> str:
    """The commonest text; of equally common ones the first in the alphabet."""
    return Counter(sorted(texts)).most_common(1)[0][0]


def best_constant(candidates: Sequence[str], references: Sequence[str]) -> str:
    """The candidate that, given as the answer to every study, has the highest corpus BLEU-4 against `references`."""
    reference_tokens = [metrics.tokenize_13a(text) for text in references]
    occurrences: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for tokens in reference_tokens:
        for ngram, count in metrics.ngrams(tokens).items():
            occurrences[ngram].append(count)
    # ngram → (how many references hold it at least k times, k = 1, 2, …), summed: matches of a candidate's k of them
    matches = {
        ngram: [sum(min(held, seen) for seen in counts) for held in range(1, max(counts) + 1)]
        for ngram, counts in occurrences.items()
    }
    reference_length, n = sum(map(len, reference_tokens)), len(references)

    def score(text: str) -> float:
        tokens = metrics.tokenize_13a(text)
        totals = np.zeros(2 * metrics.MAX_ORDER + 2)
        for ngram, count in metrics.ngrams(tokens).items():
            if ngram in matches:
                totals[len(ngram) - 1] += matches[ngram][min(count, len(matches[ngram])) - 1]
        for order in range(metrics.MAX_ORDER):
            totals[metrics.MAX_ORDER + order] = n * max(0, len(tokens) - order)
        totals[-2:] = n * len(tokens), reference_length
        return metrics.bleu_from_statistics(totals)[-1]

    return max(sorted(set(candidates)), key=score)


def best_findings(candidates: Sequence[str], references: Sequence[str]) -> str:
    """The candidate that, given as the answer to every study, has the highest finding F1 (micro) against `references`;
    of several that state the same findings the most frequent."""
    by_findings: dict[frozenset[str], list[str]] = defaultdict(list)
    for text in candidates:
        by_findings[positive_findings(text)].append(text)
    sets = sorted(by_findings, key=sorted)
    stated, true = (
        np.array([[name in found for name in FINDINGS] for found in some])
        for some in (sets, map(positive_findings, references))
    )
    return most_frequent(by_findings[sets[best_for_all(stated, true)]])


def length_matched(candidates: Sequence[str], references: Sequence[str]) -> str:
    """The most frequent candidate of those whose number of 13a tokens is nearest to the references' mean."""
    mean = np.mean([len(metrics.tokenize_13a(text)) for text in references])
    distance = {text: abs(len(metrics.tokenize_13a(text)) - mean) for text in set(candidates)}
    nearest = min(distance.values())
    return most_frequent([text for text in candidates if distance[text] == nearest])


def nearest_predictions(
    train: Sequence[str], embeddings: Mapping[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, list[str]]:
    """The impression of the nearest training study, by each embedding.

    Args:
        embeddings: name → (training studies, dimensions) and (studies, dimensions). Compared by the cosine of what is
            left when the training mean is taken away.
    """
    return {name: [train[i] for i in _nearest(*pair)] for name, pair in embeddings.items() if len(train)}


def _nearest(train: np.ndarray, studies: np.ndarray) -> list[int]:
    mean = train.mean(0, keepdims=True)
    left, right = (_unit(array - mean) for array in (studies, train))
    chunks = (left[start : start + _CHUNK] for start in range(0, len(left), _CHUNK))
    return [index for chunk in chunks for index in (chunk @ right.T).argmax(1).tolist()]


def _unit(array: np.ndarray) -> np.ndarray:
    norm = np.linalg.norm(array, axis=1, keepdims=True)
    return np.divide(array, norm, out=np.zeros_like(array), where=norm > 0)


def oracle_predictions(train: Sequence[str], references: Sequence[str]) -> list[str]:
    """The label oracle: for each reference, the most frequent training text that states the same findings.

    Sides are told apart. Where no training text states just these findings, the nearest set of findings stands
    in (Jaccard similarity, then the commoner set). What a model could gain by knowing every finding, without wording.
    """
    by_findings: dict[frozenset[str], Counter[str]] = defaultdict(Counter)
    for text in train:
        by_findings[positive_findings(text, sided=True)][text] += 1
    if not by_findings:
        return []
    sets = sorted(by_findings, key=lambda names: (-by_findings[names].total(), sorted(names)))
    wanted = [positive_findings(text, sided=True) for text in references]
    unseen = sorted({names for names in wanted if names not in by_findings}, key=sorted)
    nearest = dict(zip(unseen, (sets[place] for place in _most_alike(unseen, sets)), strict=True))
    commonest = {names: min(counts, key=lambda text: (-counts[text], text)) for names, counts in by_findings.items()}
    return [commonest[nearest.get(names, names)] for names in wanted]


def _most_alike(queries: Sequence[frozenset[str]], sets: Sequence[frozenset[str]]) -> list[int]:
    """For each query the place of the first set of highest Jaccard similarity."""
    columns = {name: column for column, name in enumerate(sorted(frozenset().union(*queries, *sets)))}
    left, right = (np.zeros((len(some), len(columns)), dtype=np.float32) for some in (queries, sets))
    for table, some in ((left, queries), (right, sets)):
        for row, names in zip(table, some, strict=True):
            row[[columns[name] for name in names]] = 1
    places: list[int] = []
    for start in range(0, len(left), _CHUNK):
        chunk = left[start : start + _CHUNK]
        shared = (chunk @ right.T).astype(np.float64)
        together = chunk.sum(1)[:, None] + right.sum(1) - shared  # above 0: no query is one of the sets
        places += (shared / together).argmax(1).tolist()
    return places
