"""`hf_cxr.train`: a training run from Python values; what a run does lives in `hf_cxr.training.run`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

from hf_cxr import config
from hf_cxr.training import run


def train(
    dataset: str | os.PathLike,
    output_dir: str | os.PathLike,
    recipe: str | os.PathLike = "demo",
    callbacks: Sequence[TrainerCallback] = (),
    **arguments: Any,
) -> dict[str, Any] | None:
    """Fine-tune on a prepared dataset, as `hf-cxr train` does, in this process.

    Args:
        dataset: a folder made by `prepare`, or a Hub id.
        output_dir: the run folder: checkpoint, resolved config, report, predictions, figures and card.
        recipe: name of a recipe of the kit, as "iu_xray_small", or a YAML file.
        callbacks: `TrainerCallback`s of yours, told of each step, log, evaluation and save of fine-tuning and the
            reward stage.
        arguments: fields of `ImpressionConfig` and `ImpressionTrainingArguments`, by their own names, that differ from
            the recipe; `None` is the field's default.

    Returns the report on the test split, or `None` where the dataset has no test studies.

    Raises `FileNotFoundError` where there is no such dataset or recipe, and `ValueError` for an unknown argument (with
    the nearest name), an unusable value, or an `output_dir` that holds a run and neither `resume` nor `restart`.

    Example:
        >>> report = hf_cxr.train(dataset="data/ours", output_dir="runs/ours", recipe="demo", learning_rate=1e-4)
    """
    wrong = next((one for one in callbacks if not isinstance(one, TrainerCallback)), None)
    if wrong is not None:
        raise ValueError(f"callbacks: {wrong!r} is no TrainerCallback; give instances of subclasses of it")
    given = {"dataset": dataset, "output_dir": output_dir} | arguments
    return run.train(*config.parse_arguments(config.recipe(recipe), arguments=given), callbacks)
