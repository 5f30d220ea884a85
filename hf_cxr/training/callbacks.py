"""What is told, and decided, while a model trains: progress, early stopping, and whether it looks at the images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import ProgressCallback, TrainerCallback, TrainerState, TrainingArguments

from hf_cxr.evaluation.report.verdict import patients_needed, shortcomings
from hf_cxr.evaluation.rules import few_texts, harms, reads
from hf_cxr.metrics.content import gain_score
from hf_cxr.utils.files import replace_files
from hf_cxr.utils.progress import ProgressBar

EVALUATIONS = "evaluations.jsonl"
ADVICE = " or lengthen the findings pretraining"
COLLAPSED_SHARE = 0.95  # one sentence for more than this share of the studies, where the radiologists vary more


class StageProgress(ProgressCallback):
    """transformers' bar with the name of the stage and the loss: step of steps, loss, time left.

    In a log file, and where `disable_tqdm` is set, it is a flushed line now and then.
    """

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.stage = stage
        self.prediction_bar: ProgressBar | None = None

    def on_train_begin(self, args, state, control, **kwargs):
        self.current_step = state.global_step  # a resumed run begins here
        if state.is_world_process_zero:
            self.training_bar = self._bar(args, self.stage, state.max_steps, initial=state.global_step, unit="steps")

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        if state.is_world_process_zero and self.prediction_bar is None:
            title = f"evaluation at step {state.global_step}"
            self.prediction_bar = self._bar(args, title, len(eval_dataloader), leave=False, unit="batches")
        super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.training_bar is not None and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}", refresh=False)

    def close(self) -> None:
        """Let go of the line, so that an error gets one of its own."""
        for bar in (self.prediction_bar, self.training_bar):
            if bar is not None:
                bar.close()

    @staticmethod
    def _bar(args: TrainingArguments, title: str, total: int, **settings: Any) -> ProgressBar:
        return ProgressBar(desc=title, total=total, plain=args.disable_tqdm or None, **settings)


class EpochCallback(TrainerCallback):
    """Tells the dataset which epoch it serves, on which its augmentation and view dropout depend.

    Args:
        epoch: that of a `CanvasDataset`, which it shares with the workers.
    """

    def __init__(self, epoch: torch.Tensor) -> None:
        self.epoch = epoch

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.epoch.fill_(int(state.epoch or 0))


class EarlyStopping(TrainerCallback):
    """Stop after `patience` evaluations in a row without a better one.

    Read off the log, so that a resumed run stops where the uninterrupted one would have (transformers'
    `EarlyStoppingCallback` counts from zero again).
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args, state, control, **kwargs):
        control.should_training_stop |= is_exhausted(state, args, self.patience)


def is_exhausted(state: TrainerState, args: TrainingArguments, patience: int) -> bool:
    """Whether the last `patience` evaluations of a log brought nothing better."""
    key = "eval_" + str(args.metric_for_best_model).removeprefix("eval_")
    sign = 1 if args.greater_is_better else -1
    values = [sign * entry[key] for entry in state.log_history if key in entry]
    return 0 < patience < len(values) and len(values) - 1 - values.index(max(values)) >= patience


class ImageUseCallback(TrainerCallback):
    """At each evaluation, says in one line whether the model looks at the images, and warns when it does not.

    Each evaluation's scores are also a line of `evaluations.jsonl` in the run folder.
    """

    def __init__(self, folder: Path, references: Sequence[str]) -> None:
        self.file = folder / EVALUATIONS
        self.by = gain_score(references)
        self.share_of_truth = max(map(references.count, set(references)), default=0) / max(1, len(references))
        self.evaluated = False

    def on_evaluate(self, args, state, control, metrics: dict[str, Any] | None = None, **kwargs):
        if not state.is_world_process_zero or not metrics or "eval_image_gain" not in metrics:
            return
        scores = {"step": state.global_step} | {key.removeprefix("eval_"): value for key, value in metrics.items()}
        # A resumed run evaluates some steps again.
        earlier = [row for row in read_lines(self.file) if row["step"] < state.global_step]
        write_lines(self.file, [*earlier, scores])
        used_before = any(row["image_gain_low"] > 0 for row in earlier)
        warning = warning_of(scores, used_before, self.share_of_truth, self.by)
        ProgressBar.write(scores_line(scores, self.by) + (f"\nWARNING: {warning}" if warning else ""))  # above the bar
        sys.stdout.flush()


def scores_line(scores: dict[str, Any], by: str = "finding_f1_micro") -> str:
    """One line: distinct outputs, modal share and image gain (in the score `by`) of one evaluation, and finding F1
    beside that of one constant sentence."""
    constant = ""
    if "constant_f1" in scores:
        ours, theirs = scores["finding_f1_micro"], scores["constant_f1"]
        constant = f"; finding F1 {ours:.3f}, one constant sentence's {theirs:.3f}"
    return (
        f"step {scores['step']}: composite {scores['composite']:.3f}; {scores['distinct_outputs']:.0f} distinct "
        f"outputs on {scores['n']:.0f} studies, the commonest on {scores['modal_share']:.0%}; image gain "
        f"{scores['image_gain']:+.3f} {'CIDEr' if by == 'cider' else 'finding F1'} over shuffled images "
        f"(95 % CI {scores['image_gain_low']:+.3f} to {scores['image_gain_high']:+.3f}){constant}"
    )


def warning_of(
    scores: dict[str, Any], used_before: bool, share_of_truth: float, by: str = "finding_f1_micro"
) -> str | None:
    """Plain words for a model that does not look at the images, or to no use, or says one sentence; `None` where all
    is well. It weighs as the report's verdict does."""
    if "image_gain_p" not in scores:
        return "whether the model looks at the images cannot be told: all texts state the same, or are of one patient."
    report = _as_report(scores, by)
    interval, read = report["image_gain_ci95"][by], reads(report)
    if read is None:
        since = "is no longer shown to look" if used_before else "is not shown to look (yet)"
        return f"the model {since} at the images: {patients_needed(interval, by, report['patients'])}."
    if not read:
        since, right = "has stopped looking" if used_before else "does not look (yet)", "as right as they are"
        if harms(report, "image"):
            since, right = "is harmed by looking", "more right than they are"
        return (
            f"the model {since} at the images: with the images of other patients its texts would be {right}. If this "
            f"stays so, lower the learning rates{'' if by == 'cider' else ADVICE}."
        )
    if short := shortcomings(report):
        few = few_texts(scores["distinct_outputs"], scores["distinct_references"])
        where = f" where the radiologists wrote {scores['distinct_references']:.0f}" if few else ""
        return f"the model uses the images, but {' and '.join(short)}{where}."
    if scores["modal_share"] > max(COLLAPSED_SHARE, share_of_truth):
        return (
            f"the model says one sentence to {scores['modal_share']:.0%} of the studies; the radiologists' commonest "
            f"sentence goes to {share_of_truth:.0%}."
        )
    return None


def _as_report(scores: dict[str, Any], by: str) -> dict[str, Any]:
    """The numbers of an evaluation as the verdict takes them from a report."""
    report = dict(scores) | {"gain_score": by, "distinct_outputs": int(scores["distinct_outputs"])}
    for name in ("image_gain", "constant_gain"):
        if name in scores:
            interval = [scores[f"{name}_low"], scores[f"{name}_high"]]
            report |= {name: {by: scores[name]}, f"{name}_ci95": {by: interval}}
    if "permutation_p" not in scores:
        report["with_context"] = True
    return report | {"image_gain_p": {by: scores["image_gain_p"]}}


def read_lines(file: Path) -> list[dict[str, Any]]:
    """The rows of a JSON-lines file; none where it does not exist."""
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []


def write_lines(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write a JSON-lines file, whole or not at all."""
    replace_files(file.parent, {file.name: "".join(json.dumps(row) + "\n" for row in rows)})
