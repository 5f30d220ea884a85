"""The model-based clinical measures of RadEval (CheXbert, RadGraph, RaTEScore, GREEN …), passed through.

    pip install RadEval
    python -m hf_cxr.metrics.clinical RUN [METRIC ...]

scores the predictions of a run folder and prints JSON. RadEval downloads the models of a measure when it is first
used, so nothing else in the kit calls it. A run is read from its predictions.jsonl: RadEval may live in an environment
of its own. It must where RaTEScore is wanted: RadEval 2.2.1 gets that from a spaCy built for numpy 1, so it needs
"numpy<2" and "pandas<3". Beside a CPU build of torch, remove the torchvision that RadEval brings: PyPI's is built for
CUDA, and transformers cannot import its models beside a torchvision that does not fit.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

METRICS = tuple(
    "f1chexbert radgraph ratescore radcliq radgraph_radcliq srrbert temporal green bertscore radeval_bertscore".split()
)
"""RadEval's names of its measures for chest radiographs that run on this machine. Those that ask a language model over
the network (crimson, mammo_green, radfact_ct) are left out: they would send the reports to another company."""


def clinical_scores(
    predictions: Sequence[str], references: Sequence[str], metrics: Sequence[str] = ("f1chexbert", "radgraph")
) -> dict[str, Any]:
    """What RadEval says of predictions against references: its own keys and values.

    Args:
        metrics: names from `METRICS`. Each downloads its models on first use; "green" is a model of 7 billion weights.

    Raises:
        ImportError: RadEval is not installed.
        ValueError: no texts, unequal numbers of them, or a name that is not in `METRICS`.
        OSError: RadEval cannot load a measure, mostly because its models cannot be downloaded.
    """
    if len(predictions) != len(references) or not len(references):
        raise ValueError(f"{len(predictions)} predictions for {len(references)} references")
    for name in metrics:
        if name not in METRICS:
            raise ValueError(f"no local clinical measure named {name!r}; there are {', '.join(METRICS)}")
    radeval = _radeval()
    logger.warning("RadEval downloads the models of %s where they are not in its cache yet", ", ".join(metrics))
    scores: dict[str, Any] = {}
    with warnings.catch_warnings():  # RadEval silences all warnings of the process
        for name in metrics:
            try:
                measure = radeval.RadEval(metrics=[name], show_progress=False)
            except Exception as error:  # it raises bare exceptions too
                reason = next(iter(str(error).splitlines()), "") or type(error).__name__
                message = f"RadEval cannot load {name!r}, which needs a network on first use: {reason}"
                raise OSError(message) from error
            scores |= measure(refs=list(references), hyps=list(predictions))
    return scores


def _radeval() -> Any:
    if importlib.util.find_spec("radeval") is None:
        raise ImportError("RadEval is not installed: pip install RadEval (needs Python 3.11)")
    with warnings.catch_warnings():
        import radeval
    # RadEval 2.2.1 imports its RadGraph code as "RadEval", which works on case-insensitive file systems only (its
    # issue 27).
    sys.modules.setdefault("RadEval", radeval)
    return radeval


def reward_function(metric: str, key: str | None = None) -> Callable[[Sequence[str], Sequence[str]], list[float]]:
    """A measure as RadEval offers it to reinforcement learning: predictions and references → a number for each.

    Args:
        metric: a name from `METRICS`.
        key: which of its values per text, where it gives several.

    Raises `ImportError` and `OSError` as `clinical_scores`, the function that is returned `ValueError` for a key that
    is missing or none.
    """
    _radeval()
    from radeval.rewards import make_reward_fn

    try:
        score = make_reward_fn(metric, reference_column="references", key=key)
    except Exception as error:  # it raises bare exceptions too
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise OSError(f"RadEval cannot load {metric!r}, which needs a network on first use: {reason}") from error

    def rewards(predictions: Sequence[str], references: Sequence[str]) -> list[float]:
        with warnings.catch_warnings():
            return score(completions=list(predictions), references=list(references))

    return rewards


def main(argv: Sequence[str] | None = None) -> None:
    """Print the clinical scores of a run folder as JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m hf_cxr.metrics.clinical", description=(__doc__ or "").split("\n\n")[0]
    )
    parser.add_argument("run", type=Path, help="folder with predictions.jsonl, or that file")
    parser.add_argument("metrics", nargs="*", default=["f1chexbert", "radgraph"], help=f"of {', '.join(METRICS)}")
    args = parser.parse_args(argv)
    path = args.run / "predictions.jsonl" if args.run.is_dir() else args.run
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        scores = clinical_scores(
            [row["prediction"] for row in rows], [row["impression"] for row in rows], args.metrics
        )
    except (ImportError, ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(json.dumps(scores, indent=2, default=float))


if __name__ == "__main__":
    main()
