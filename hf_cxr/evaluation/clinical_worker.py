"""One clinical metric of RadEval on pairs of texts. Run as a plain file by the Python of the environment that holds
RadEval, so it imports nothing of the kit; `hf_cxr.evaluation.clinical` starts it and reads the answer.

Stdin: one line of JSON, `{"metric", "predictions", "references"}`; when it is closed before the end, whoever asked is
gone, and so is this process with its children. Stdout: `{"values", "made_by"}`, or `{"error", "message", "loading"}`.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

FEWEST_SIGNS = 3  # RaTEScore passes over shorter texts, and gives all that follow the values of their neighbours
KEYS = {"radgraph": "radgraph_partial", "ratescore": "ratescore", "green": "green", "bertscore": "bertscore"}
"""Metric → RadEval's name of its value for one pair."""
Score = Callable[[list[str], list[str]], list[Any]]


def load(metric: str) -> Score:
    """A function (predictions, references) → a value for each pair, with the metric's models loaded."""
    with contextlib.suppress(ImportError):
        import nltk

        nltk.download = lambda *args, **settings: False  # RadEval fetches at import what none of these metrics reads
    import radeval

    # RadEval 2.2.1 imports its RadGraph code as "RadEval", which works on case-insensitive file systems only.
    sys.modules.setdefault("RadEval", radeval)
    if metric == "f1chexbert":
        import torch
        from radeval.metrics.f1chexbert.f1chexbert import F1CheXbert

        # RadEval's own way asks for a GPU whatever the machine has, and gives an accuracy for each pair, of which no
        # F1 can be made.
        labeler = F1CheXbert(device="cuda" if torch.cuda.is_available() else "cpu")
        return lambda *texts: list(map(counts, *map(labeler.get_labels, texts)))
    scorer = radeval.RadEval(metrics=[metric], per_sample=True, show_progress=False)
    return lambda said, true: readable_alone(lambda a, b: scorer(refs=b, hyps=a)[KEYS[metric]], said, true)


def counts(said: list[int], true: list[int]) -> list[int]:
    """Labels stated and true, stated alone, true alone."""
    pairs = list(zip(said, true, strict=True))
    return [pairs.count(kind) for kind in ((1, 1), (1, 0), (0, 1))]


def readable_alone(score: Score, said: list[str], true: list[str]) -> list[float | None]:
    """The values of the pairs; 0 where there is nothing to read in one of the texts, of which no metric is asked."""
    values: list[float | None] = [0.0] * len(said)
    asked = [i for i in range(len(said)) if min(len(text.strip()) for text in (said[i], true[i])) >= FEWEST_SIGNS]
    found = score([said[i] for i in asked], [true[i] for i in asked]) if asked else []
    if len(found) != len(asked):
        raise ValueError(f"gave {len(found)} values for {len(asked)} pairs of texts")
    for i, value in zip(asked, found, strict=True):
        values[i] = None if value is None else float(value)
    return values


def end_with_stdin() -> None:
    """Wait until whoever asked is gone."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)  # its own group: it was started as the first of a session


def main() -> None:
    """Read one task, answer it."""
    task = json.loads(sys.stdin.buffer.readline())
    if hasattr(os, "killpg"):
        threading.Thread(target=end_with_stdin, daemon=True).start()
    answer = os.dup(1)  # for the answer alone: what RadEval prints goes to stderr
    os.dup2(2, 1)
    warnings.simplefilter("ignore")
    loading = True
    try:
        score = load(task["metric"])
        loading = False
        versions = []
        for name in ("RadEval", "torch", "transformers"):
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                versions.append(f"{name} {importlib.metadata.version(name)}")
        values = score(task["predictions"], task["references"])
        told: dict[str, Any] = {"values": values, "made_by": ", ".join(versions)}
    except Exception as error:  # RadEval raises bare exceptions too
        message = next(iter(str(error).splitlines()), "")
        told = {"error": type(error).__name__, "message": message, "loading": loading}
    with os.fdopen(answer, "w", encoding="ascii") as file:
        json.dump(told, file)


if __name__ == "__main__":
    main()
