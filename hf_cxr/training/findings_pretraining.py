"""Stage one, the findings pretraining: the encoder learns to tell findings before the decoder learns to write
sentences. The epoch is kept that tells them best on unseen studies.

The labels are read from the training texts themselves, or are the dataset's tags (`hf_cxr.training.findings_targets`);
the head that tells them is dropped afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import EvalPrediction, TrainerCallback, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments
from hf_cxr.data.collator import CanvasCollator, CanvasDataset
from hf_cxr.data.sections import whole_texts
from hf_cxr.inference.remote_code import share_weights
from hf_cxr.inference.sections import Layout, layout_of
from hf_cxr.inference.targets import IGNORED
from hf_cxr.metrics.content import area_under_curve, unread_findings
from hf_cxr.models.layer_decay import blocks_above, decay_layers
from hf_cxr.models.lora import adapters
from hf_cxr.models.modeling import Checkpoint
from hf_cxr.training.callbacks import EpochCallback
from hf_cxr.training.checkpoints import (
    ENCODER,
    RECORD,
    STAGE,
    ResumableTrainer,
    agreed,
    checkpoints,
    step_in_name,
    whole_again,
    whole_weights,
)
from hf_cxr.training.findings_targets import MIN_POSITIVES, finding_targets, tag_targets
from hf_cxr.training.launch import is_sharded
from hf_cxr.utils.files import replace_files, staging_folder
from hf_cxr.utils.progress import ProgressBar

MIN_KNOWN = 5  # a finding is judged where so many validation studies have it, and as many have not
MAX_WEIGHT = 10
BEST = "best-*.safetensors"  # among the checkpoints of stage one: the encoder after the best step so far


class FindingsModel(torch.nn.Module):
    """The encoder with a multi-label head on its pooled token states. The head is dropped after findings pretraining.

    The pool is the mean and the maximum over the tokens: a large finding moves the mean, a small one the maximum.
    """

    accepts_loss_kwargs = False
    frozen = False  # the head alone learns

    def __init__(self, encoder: Any, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self._no_split_modules = encoder._no_split_modules  # where FSDP cuts
        self.head = torch.nn.Linear(2 * encoder.config.hidden_size, labels)

    def forward(self, pixel_values: torch.Tensor) -> SequenceClassifierOutput:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            states = self.encoder(pixel_values=pixel_values)[0]
        return SequenceClassifierOutput(logits=self.head(torch.cat([states.mean(1), states.amax(1)], dim=-1)))


class FreezeCallback(TrainerCallback):
    """The encoder of `model` is frozen in the first `steps` steps, which are whole epochs."""

    def __init__(self, model: FindingsModel, steps: int) -> None:
        self.model, self.steps = model, steps

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.model.frozen = state.global_step < self.steps


def finding_loss(
    outputs: SequenceClassifierOutput,
    labels: torch.Tensor,
    num_items_in_batch: torch.Tensor | None = None,
    kind: str = "bce",
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross entropy summed over the known labels, divided by their number in the *global* batch.

    As `hf_cxr.training.trainer.token_mean_loss`, it does not depend on how a global batch is cut. `labels`: (batch,
    findings) of 1, 0, or `IGNORED` where the report leaves it open.

    `kind` "focal" weighs each label by the square of how wrong it is told (Lin et al. 2017); "asymmetric" weighs the
    negatives alone, by the fourth power, and forgives them 0.05 (Ridnik et al. 2021: γ+ = 0, γ- = 4, m = 0.05).
    `weights`: (findings,), what a positive counts.
    """
    known = labels != IGNORED
    logits, truths = outputs["logits"][known].float(), labels[known]
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, truths, reduction="none")
    if kind == "focal":
        losses = losses * (logits.sigmoid() - truths).abs().square()
    elif kind == "asymmetric":
        wrong = (logits.sigmoid() - 0.05).clamp(min=0)
        losses = torch.where(truths == 1, losses, -(wrong**4) * torch.log1p(-wrong))
    if weights is not None:
        losses = losses * torch.where(truths == 1, weights.to(losses.device).expand_as(labels)[known], 1.0)
    count = known.sum() if num_items_in_batch is None else num_items_in_batch
    return losses.sum() / torch.as_tensor(count).clamp(min=1)  # a small batch may hold nothing that is known


def class_weights(targets: np.ndarray) -> torch.Tensor:
    """What a positive counts: negatives / positives of its finding, `MAX_WEIGHT` at most. `targets`: (studies, names),
    with one positive at least of each."""
    ratios = (targets == 0).sum(0) / (targets == 1).sum(0)
    return torch.from_numpy(ratios.clip(max=MAX_WEIGHT)).float()


def judged_findings(names: list[str], targets: np.ndarray) -> dict[str, dict[str, int]]:
    """The findings that have `MIN_KNOWN` positive and negative studies, and how many. `targets`: (studies, names)."""
    counts = {
        name: {"positives": int((column == 1).sum()), "negatives": int((column == 0).sum())}
        for name, column in zip(names, targets.T, strict=True)
    }
    return {name: count for name, count in counts.items() if min(count.values()) >= MIN_KNOWN}


def best_step(log: list[dict[str, Any]], until: float = math.inf) -> int:
    """The step of the highest mean AUC in a log, the earliest of equal ones; 0 where there is none."""
    scored = [(row["eval_mean_auc"], -row["step"]) for row in log if "eval_mean_auc" in row and row["step"] <= until]
    return -max(scored, default=(0.0, 0))[1]


class FindingsTrainer(ResumableTrainer):
    """A trainer that scores the validation split after each epoch (`args.eval_steps` steps) and keeps the encoder's
    weights of the best epoch, as a file: a run that is resumed finds them, and a GPU need not hold them twice.

    Args:
        names: findings, in the order of the labels.
        judged: those of them whose AUC is taken, with their counts.
        layer_decay: the learning rate of a block of the encoder / that of the next.
    """

    def __init__(
        self, *args, names: list[str], judged: dict[str, dict[str, int]], layer_decay: float = 1.0, **kwargs
    ) -> None:
        super().__init__(*args, compute_metrics=self.aucs, **kwargs)
        self.names, self.judged, self.layer_decay = names, judged, layer_decay

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.layer_decay != 1:
            decay_layers(optimizer, blocks_above(self.model.encoder), self.layer_decay)
        return optimizer

    def aucs(self, prediction: EvalPrediction) -> dict[str, float]:
        scores: Any = prediction.predictions
        columns = {name: self.names.index(name) for name in self.judged}
        aucs: dict[str, Any] = {
            f"auc_{name}": area_under_curve(scores[:, column], prediction.label_ids[:, column])
            for name, column in columns.items()
        }
        return aucs | {"mean_auc": float(np.mean(list(aucs.values())))}

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with torch.random.fork_rng(devices=[]):  # training draws the numbers that it would draw without evaluations
            metrics = super().evaluate(*args, **kwargs)
        log, step, folder = self.state.log_history, self.state.global_step, Path(self.args.output_dir)
        best = best_step(log)
        if best == step:
            encoder = self.accelerator.unwrap_model(self.model, keep_torch_compile=False).encoder
            main = self.is_world_process_zero()  # the others gather along, and keep nothing
            weights = {name: value.contiguous() for name, value in whole_weights(encoder) if main}
            if main:
                _save(weights, folder / BEST.replace("*", str(step)))
        if self.is_world_process_zero():
            saved = next(
                (step_in_name(path) for path in reversed(checkpoints(folder))), 0
            )  # where a resumed run goes on
            for file in folder.glob(BEST):
                if step_in_name(file) not in (best, best_step(log, until=saved)):
                    file.unlink()
            self.write_record(folder.parent)
        return metrics

    def write_record(self, folder: Path) -> None:
        """Tell the last evaluation in a line, and write all of them to `RECORD`, whole or not at all."""
        log, in_an_epoch = self.state.log_history, self.args.eval_steps
        epochs = [
            {
                "epoch": row["step"] / in_an_epoch,
                "mean_auc": row["eval_mean_auc"],
                "findings": {name: {"auc": row[f"eval_auc_{name}"]} | counts for name, counts in self.judged.items()},
            }
            for row in log
            if "eval_mean_auc" in row
        ]
        last, studies = epochs[-1], len(self.eval_dataset)
        (low, worst), *_ = aucs = sorted((row["auc"], name) for name, row in last["findings"].items())
        high, easiest = aucs[-1]
        ProgressBar.write(
            f"epoch {last['epoch']:g}: mean AUC {last['mean_auc']:.3f} over {len(aucs)} finding"
            f"{'s' * (len(aucs) > 1)} on {studies} validation studies, {low:.2f} ({worst}) to {high:.2f} ({easiest})"
        )
        sys.stdout.flush()
        record = {"kept_epoch": best_step(log) / in_an_epoch, "validation_studies": studies, "epochs": epochs}
        replace_files(folder, {RECORD: json.dumps(record, indent=2, ensure_ascii=False) + "\n"})

    def load_best(self, encoder: torch.nn.Module) -> None:
        """Give `encoder` the weights of the best epoch, which it has already where that is the last one."""
        step = best_step(self.state.log_history)
        if step and self.is_world_process_zero():
            print(f"findings pretraining: epoch {step / self.args.eval_steps:g} is kept", flush=True)
        if step not in (0, self.state.global_step):
            self.accelerator.wait_for_everyone()
            encoder.load_state_dict(load_file(Path(self.args.output_dir) / BEST.replace("*", str(step))))


def _save(weights: dict[str, torch.Tensor], file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    try:
        save_file(weights, partial)
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        raise OSError(f"{file}: could not be written ({' '.join(str(error).split())})") from error


def _labels(
    packed: Dataset, kit: ImpressionConfig, texts: list[str], names: list[str] | None = None
) -> tuple[list[str], np.ndarray]:
    if kit.findings_labels == "tags":
        return tag_targets(packed["tags"], packed["uncertain"] if "uncertain" in packed.column_names else None, names)
    return finding_targets(texts, names)


def _unseen(
    validation: Dataset | None, kit: ImpressionConfig, layout: Layout, names: list[str]
) -> tuple[dict[str, dict[str, int]], CanvasDataset | None]:
    """The findings that can be judged, and the studies to judge them by; a line where there are none."""
    judged, unseen = {}, None
    if validation is not None:
        _, truths = _labels(validation, kit, whole_texts(validation, layout), names)
        judged, unseen = judged_findings(names, truths), CanvasDataset(validation, kit.panel_size, targets=truths)
    if not judged and PartialState().is_main_process:
        why = f"no finding has {MIN_KNOWN} positive and {MIN_KNOWN} negative" if unseen else "there are no"
        print(f"findings pretraining: its last epoch is kept, as {why} validation studies", flush=True)
    return judged, unseen


def pretrain_on_findings(
    checkpoint: Checkpoint,
    packed: Dataset,
    kit: ImpressionConfig,
    args: ImpressionTrainingArguments,
    validation: Dataset | None = None,
) -> None:
    """Stage one: train `checkpoint.model.encoder` in place to tell the findings of the training studies.

    After each epoch the findings are told of the `validation` studies. The epoch of the highest mean AUC is kept; the
    last, where no finding can be judged.

    The encoder is then saved to `findings_encoder` in the run folder, with its image processor: a stock checkpoint
    that another run may name as its `encoder`. Where that folder exists it is loaded instead;
    `hf_cxr.training.run` deletes it before a run that is no continuation.
    """
    saved = Path(args.output_dir) / ENCODER
    if agreed(saved.is_dir()):
        encoder = checkpoint.model.encoder
        encoder.load_state_dict(type(encoder).from_pretrained(saved).state_dict())  # a file's names are not a module's
        return
    layout = layout_of(checkpoint.model.config)
    texts = whole_texts(packed, layout)
    unread = kit.findings_labels == "text" and unread_findings(texts)
    if unread:
        print(f"findings pretraining skipped: findings cannot be read from the texts, as {unread}", flush=True)
        if "tags" in packed.column_names and any(packed["tags"]):
            print("the collection has labels of its own: findings_labels: tags learns from them", flush=True)
        return
    names, targets = _labels(packed, kit, texts)
    if not names:
        what = "tag" if kit.findings_labels == "tags" else "finding"
        print(f"findings pretraining skipped: no {what} has {MIN_POSITIVES} positive training studies", flush=True)
        return
    canvases = CanvasDataset(
        packed,
        kit.panel_size,
        targets=targets,
        view_dropout=kit.view_dropout,
        augmentation=kit.augmentation,
        seed=args.seed,
    )
    judged, unseen = _unseen(validation, kit, layout, names)
    model = FindingsModel(checkpoint.model.encoder, len(names))
    if args.gradient_checkpointing:  # the wrapper is no `PreTrainedModel`, so the encoder is told itself
        checkpoint.model.encoder.gradient_checkpointing_enable()
    unsharded = copy.deepcopy(checkpoint.model.encoder) if is_sharded(args) else None
    set_seed(args.seed)  # a resumed run has drawn other numbers so far than an uninterrupted one
    with adapters(model, kit.lora_rank, kit.lora_alpha):
        trainer = FindingsTrainer(
            model=model,
            args=_stage_arguments(kit, args, len(packed), bool(judged)),
            train_dataset=canvases,
            eval_dataset=unseen,
            data_collator=CanvasCollator(checkpoint.image_processor),
            compute_loss_func=functools.partial(
                finding_loss,
                kind=kit.findings_loss,
                weights=class_weights(targets) if kit.findings_class_weights else None,
            ),
            callbacks=[EpochCallback(canvases.epoch)],
            stage=f"stage 1 of {3 if kit.reward_epochs else 2}: encoder learns findings",
            names=names,
            judged=judged,
            layer_decay=kit.encoder_layer_decay,
        )
        if kit.findings_frozen_epochs:
            trainer.add_callback(FreezeCallback(model, kit.findings_frozen_epochs * int(trainer.args.eval_steps or 0)))
        trainer.resume_or_train()
        if unsharded is not None:
            checkpoint.model.encoder = whole_again(trainer.accelerator.unwrap_model(trainer.model).encoder, unsharded)
        trainer.load_best(checkpoint.model.encoder)
    if unsharded is not None:
        dataclasses.replace(args)  # resets accelerate's state, which remembers how this model was cut
    if PartialState().is_main_process:
        save_encoder(checkpoint, saved)
    trainer.accelerator.wait_for_everyone()


def _stage_arguments(
    kit: ImpressionConfig, args: ImpressionTrainingArguments, studies: int, judged: bool
) -> ImpressionTrainingArguments:
    """The arguments of a run as stage one takes them. It is evaluated by steps: at the last step of an epoch an
    evaluation comes before a checkpoint, which then knows of it."""
    rate, batch = kit.findings_pretraining_learning_rate, args.train_batch_size * args.world_size
    batches = studies // batch if args.dataloader_drop_last else math.ceil(studies / batch)
    changes: dict[str, Any] = {
        "output_dir": str(Path(args.output_dir) / STAGE),
        "num_train_epochs": kit.findings_pretraining_epochs,
        "learning_rate": args.learning_rate if rate is None else rate,
        "max_steps": -1,
        "eval_strategy": "steps" if judged else "no",
        "eval_steps": math.ceil(batches / args.gradient_accumulation_steps),
        "eval_delay": 0,
        "label_names": ["labels"],
        "ddp_find_unused_parameters": bool(kit.findings_frozen_epochs) or args.ddp_find_unused_parameters,
        "predict_with_generate": False,
        "metric_for_best_model": None,
        "save_strategy": "epoch" if args.save_strategy == "best" else args.save_strategy,
        "save_total_limit": 1,
        "load_best_model_at_end": False,
        "resume_from_checkpoint": None,
        "eval_on_start": False,
        "label_smoothing_factor": 0.0,
        "neftune_noise_alpha": None,  # acts on a decoder's embeddings
        "gradient_checkpointing": False,
        "activation_checkpointing": False,  # the same under the name that transformers fills in beside it
        "push_to_hub": False,
    }
    return dataclasses.replace(args, **changes)


def save_encoder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the encoder and its image processor as a stock checkpoint, whole or not at all."""
    with staging_folder(folder) as staging:
        checkpoint.model.encoder.save_pretrained(staging / ENCODER)
        checkpoint.image_processor.save_pretrained(staging / ENCODER)
        share_weights(staging / ENCODER)
        (staging / ENCODER).replace(folder)
