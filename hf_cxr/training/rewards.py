"""What a text is worth beside the radiologist's: plain functions `(predictions, references) → array`, and how a config
names them. Where they are computed is in `hf_cxr.training.reward_pool`, what is learned from them in
`hf_cxr.training.reward`."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from hf_cxr.metrics.content import READINGS, content_statistics, f1, finding_statistics, unread_findings
from hf_cxr.metrics.overlap import CIDER_SIGMA, bleu_statistics, rouge_l_per_study, sentence_bleu_per_study
from hf_cxr.metrics.texts import MAX_ORDER, cider_tokens_all, ngrams

Reward = Callable[[Sequence[str], Sequence[str]], Any]
"""Predictions and as many references → a number for each."""
METRICS = "f1chexbert radgraph ratescore radcliq radgraph_radcliq srrbert temporal green bertscore radeval_bertscore"
"""RadEval's names of its measures for chest radiographs that run on this machine: others would send the texts away."""
REPEATED = 3  # words of the runs that `no_repetition` looks for


def finding_f1(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """F1 of the findings of each study, right and left told apart; 1 where neither text states one."""
    counts = content_statistics(predictions, references).readings[:, READINGS.index("sided")]
    return np.where(counts.sum(1) == 0, 1.0, f1(counts))


def true_findings(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """How many findings of each text the radiologist's states too."""
    return finding_statistics(predictions, references)[..., 0].sum(1)


def false_findings(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """How many findings of each text the radiologist's does not state."""
    return finding_statistics(predictions, references)[..., 1].sum(1)


def bleu(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """Sentence BLEU-4 of each study, smoothed as sacreBLEU does."""
    return sentence_bleu_per_study(bleu_statistics(predictions, references))


def length(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """The number of words of the shorter text / that of the longer one."""
    pairs = [sorted((len(p.split()), len(r.split()))) for p, r in zip(predictions, references, strict=True)]
    return np.array([short / long if long else 1.0 for short, long in pairs])


def no_repetition(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """The share of a text's runs of three words that are not there before; 1 for a text of fewer words."""
    shares = []
    for words in (text.lower().split() for text in predictions):
        runs = [tuple(words[i : i + REPEATED]) for i in range(len(words) - REPEATED + 1)]
        shares.append(len(set(runs)) / len(runs) if runs else 1.0)
    return np.array(shares)


def cider_against(corpus: Sequence[str]) -> Reward:
    """A tenth of `hf_cxr.metrics.overlap.cider_per_study`, words being rare or not in a fixed corpus: what a text is
    worth must not depend on the batch that it is in."""
    frequency: Counter = Counter()
    for tokens in cider_tokens_all(corpus):
        frequency.update(ngrams(tokens).keys())

    @lru_cache(maxsize=4096)
    def weighed(text: str) -> tuple[int, list[dict[tuple[str, ...], float]]]:
        """How many tokens a text has, and for each order the weight of each n-gram."""
        [tokens] = cider_tokens_all([text])
        orders: list[dict[tuple[str, ...], float]] = [{} for _ in range(MAX_ORDER)]
        for gram, times in ngrams(tokens).items():
            orders[len(gram) - 1][gram] = times * math.log(max(1, len(corpus)) / max(1, frequency[gram]))
        return len(tokens), orders

    def score(prediction: str, reference: str) -> float:
        (words, ours), (true_words, theirs) = weighed(prediction), weighed(reference)
        total = 0.0
        for a, b in zip(ours, theirs, strict=True):
            norm = math.sqrt(math.fsum(w * w for w in a.values()) * math.fsum(w * w for w in b.values()))
            shared = math.fsum(min(weight, b[gram]) * b[gram] for gram, weight in a.items() if gram in b)
            total += shared / norm if norm else 0.0
        return math.exp(-((words - true_words) ** 2) / (2 * CIDER_SIGMA**2)) * total / MAX_ORDER

    def cider(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
        return np.array([score(p, r) for p, r in zip(predictions, references, strict=True)])

    return cider


OWN: dict[str, Callable[[Sequence[str]], Reward]] = {
    "finding_f1": lambda corpus: finding_f1,
    "true_findings": lambda corpus: true_findings,
    "false_findings": lambda corpus: false_findings,
    "cider": cider_against,
    "bleu": lambda corpus: bleu,
    "rouge_l": lambda corpus: rouge_l_per_study,
    "length": lambda corpus: length,
    "no_repetition": lambda corpus: no_repetition,
}


def weights_of(words: Sequence[str]) -> dict[str, float]:
    """The weight of each reward that a config's `reward` names, as `NAME=WEIGHT`.

    Raises `ValueError` with one line for a weight that is no number, and where nothing counts.
    """
    weights: dict[str, float] = {}
    for word in words:
        name, _, given = word.rpartition("=")
        try:
            weight = float(given)
        except ValueError:
            weight = math.nan
        if not name or not math.isfinite(weight):
            raise ValueError(f"reward: {word!r} is not NAME=WEIGHT, as finding_f1=0.5")
        if name in weights:
            raise ValueError(f"reward: {name!r} is named twice")
        weights[name] = weight
    if not any(weights.values()):
        raise ValueError("reward: names nothing that counts")
    return weights


def read_rewards(words: Sequence[str], corpus: Sequence[str]) -> dict[str, Reward]:
    """The functions that a config's `reward` names, each tried once.

    Args:
        words: `NAME=WEIGHT`; a name of `OWN`, of a measure of RadEval (`METRIC`, or `METRIC/KEY` where it gives
            several), `module:function` of the user's, or an `evaluate` module (a folder, or a name on the Hub).
        corpus: the training texts.

    Raises `ValueError` with one line for a name that is none, for a function that gives no number for each text, and
    where findings cannot be read from the texts.
    """
    rewards: dict[str, Reward] = {}
    for name in weights_of(words):
        if "finding" in name and name in OWN and (unread := unread_findings(corpus)):
            raise ValueError(f"reward: {name} cannot be read from these texts, as {unread}; name others")
        if name in OWN:
            rewards[name] = OWN[name](corpus)
        elif name.partition("/")[0] in METRICS.split():
            rewards[name] = _measure(name)
        else:
            rewards[name] = _function(name) if ":" in name else _module(name)
    values_of(rewards, corpus[:2], corpus[:2])
    return rewards


def _measure(name: str) -> Reward:
    """A measure as RadEval offers it to reinforcement learning."""
    metric, _, key = name.partition("/")
    try:
        with warnings.catch_warnings():  # RadEval silences all warnings of the process
            import radeval

            # RadEval 2.2.1 imports its RadGraph code as "RadEval", which works on case-insensitive file systems only.
            sys.modules.setdefault("RadEval", radeval)
            from radeval.rewards import make_reward_fn

            score = make_reward_fn(metric, reference_column="references", key=key or None)
    except ImportError as error:
        raise ValueError(f"reward: {name} needs RadEval: pip install RadEval ({_told(error)})") from error
    except Exception as error:  # it raises bare exceptions too
        raise ValueError(f"reward: RadEval cannot load {metric!r}: {_told(error)}") from error
    return lambda predictions, references: score(completions=list(predictions), references=list(references))


def _function(name: str) -> Reward:
    place, _, attribute = name.partition(":")
    if (here := str(Path.cwd())) not in sys.path:  # an installed command does not look where it is started
        sys.path.append(here)
    try:
        found = getattr(importlib.import_module(place), attribute)
    except Exception as error:  # whatever the user's module does
        raise ValueError(f"reward: {name!r} cannot be imported ({_told(error)})") from error
    if not callable(found):
        raise ValueError(f"reward: {name!r} is no function")
    return found


def _module(name: str) -> Reward:
    import evaluate

    try:
        module = evaluate.load(name)
    except (OSError, ImportError, ValueError) as error:
        own = ", ".join(OWN)
        raise ValueError(
            f"reward: {name!r} is none of {own}, no measure of RadEval, no module:function, and evaluate cannot load "
            f"it ({_told(error)[:200]})"
        ) from error

    def scores(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        pairs = zip(predictions, references, strict=True)
        return [_score(name, module.compute(predictions=[p], references=[r])) for p, r in pairs]

    return scores


def _score(name: str, result: Mapping[str, Any]) -> float:
    """The one number that an `evaluate` module gives, or that of its own name."""
    flat = {key: np.ravel(value)[0] for key, value in result.items() if np.size(value) == 1}
    numbers = {key: float(value) for key, value in flat.items() if isinstance(value, (int, float, np.number))}
    own = Path(name).name
    if own not in numbers and len(numbers) != 1:
        keys = ", ".join(numbers) or "no number"
        raise ValueError(f"gives {keys}; name a function of yours that takes one, as module:function")
    return numbers[own] if own in numbers else next(iter(numbers.values()))


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def values_of(rewards: Mapping[str, Reward], predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """What each text is worth by each reward, unweighted: (texts, rewards).

    Raises `ValueError` for a reward that fails, or does not give a finite number for each text.
    """
    values, texts = np.zeros((len(predictions), len(rewards))), len(predictions)
    for place, (name, function) in enumerate(rewards.items() if texts else ()):
        try:
            column = np.asarray(function(predictions, references), dtype=np.float64)
        except Exception as error:  # whatever the user's function does
            raise ValueError(f"reward: {name} failed on {texts} texts ({_told(error)})") from error
        if column.shape != (texts,) or not np.isfinite(column).all():
            gave = f"an array of shape {column.shape}" if column.shape != (texts,) else "nan or infinity"
            raise ValueError(f"reward: {name} gave {gave} for {texts} texts, not a number for each")
        values[:, place] = column
    return values
