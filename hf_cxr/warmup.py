"""Stage one, the findings warm-up: the encoder learns to tell findings before the decoder learns to write sentences.

The labels are read from the training impressions themselves; the head that tells them is dropped afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import Trainer
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_cxr import findings
from hf_cxr.arguments import KitArguments, TrainingArguments
from hf_cxr.canvases import IGNORED, CanvasCollator, CanvasDataset
from hf_cxr.modeling import Checkpoint
from hf_cxr.sharding import is_sharded, whole_again
from hf_cxr.trainer import EpochCallback

MIN_POSITIVES = 10  # a finding with fewer positive training studies cannot be learned in the warm-up


class FindingsModel(torch.nn.Module):
    """The encoder with a multi-label head on its pooled token states. The head is dropped after the warm-up.

    The pool is the mean and the maximum over the tokens: a large finding moves the mean, a small one the maximum.
    """

    accepts_loss_kwargs = False

    def __init__(self, encoder: Any, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self._no_split_modules = encoder._no_split_modules  # where FSDP cuts
        self.head = torch.nn.Linear(2 * encoder.config.hidden_size, labels)

    def forward(self, pixel_values: torch.Tensor) -> SequenceClassifierOutput:
        states = self.encoder(pixel_values=pixel_values)[0]
        return SequenceClassifierOutput(logits=self.head(torch.cat([states.mean(1), states.amax(1)], dim=-1)))


def finding_loss(
    outputs: SequenceClassifierOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None
) -> torch.Tensor:
    """Binary cross entropy summed over the known labels, divided by their number in the *global* batch.

    As `hf_cxr.trainer.token_mean_loss`, it does not depend on how a global batch is cut. `labels`: (batch, findings)
    of 1, 0, or `IGNORED` where the report leaves it open.
    """
    known = labels != IGNORED
    total = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs["logits"][known].float(), labels[known], reduction="sum"
    )
    return total / (known.sum() if num_items_in_batch is None else num_items_in_batch)


def finding_targets(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Labels for the warm-up, read from the training impressions themselves.

    Returns the sided finding names with at least `MIN_POSITIVES` positive studies, and a float32 array of shape
    (studies, names): 1 stated, 0 denied or not mentioned, `IGNORED` uncertain.
    """
    labelled = [findings.sided_label(text) for text in texts]
    counts = Counter(name for labels in labelled for name, status in labels.items() if status == "positive")
    names = sorted(name for name, count in counts.items() if count >= MIN_POSITIVES)
    value = {"positive": 1.0, "uncertain": float(IGNORED)}
    rows = [[value.get(labels.get(name, ""), 0.0) for name in names] for labels in labelled]
    return names, np.array(rows, dtype=np.float32).reshape(len(texts), len(names))


def warm_up(checkpoint: Checkpoint, packed: Dataset, kit: KitArguments, args: TrainingArguments) -> None:
    """Stage one: train `checkpoint.model.encoder` in place to tell the findings of the training impressions."""
    names, targets = finding_targets(list(packed["impression"]))
    if not names:
        print(f"findings warm-up skipped: no finding has {MIN_POSITIVES} positive training studies", flush=True)
        return
    changes: dict[str, Any] = {
        "output_dir": str(Path(args.output_dir) / "findings_warmup"),
        "num_train_epochs": kit.findings_warmup_epochs,
        "learning_rate": kit.findings_warmup_learning_rate or args.learning_rate,
        "max_steps": -1,
        "eval_strategy": "no",
        "save_strategy": "no",
        "load_best_model_at_end": False,
        "resume_from_checkpoint": None,
        "eval_on_start": False,
        "label_smoothing_factor": 0.0,
        "gradient_checkpointing": False,
        "activation_checkpointing": False,  # the same under the name that transformers fills in beside it
    }
    stage = dataclasses.replace(args, **changes)
    canvases = CanvasDataset(packed, kit.panel_size, targets=targets, view_dropout=kit.view_dropout, seed=args.seed)
    spare = copy.deepcopy(checkpoint.model.encoder) if is_sharded(args) else None
    trainer = Trainer(
        model=FindingsModel(checkpoint.model.encoder, len(names)),
        args=stage,
        train_dataset=canvases,
        data_collator=CanvasCollator(checkpoint.image_processor),
        compute_loss_func=finding_loss,
        callbacks=[EpochCallback(canvases)],
    )
    if args.gradient_checkpointing:  # the wrapper is no `PreTrainedModel`, so the encoder is told itself
        checkpoint.model.encoder.gradient_checkpointing_enable()
    try:
        trainer.train()
        if spare is not None:
            trained = trainer.accelerator.unwrap_model(trainer.model)
            checkpoint.model.encoder = whole_again(trained.encoder, spare)
            dataclasses.replace(args)  # resets accelerate's state, which remembers how this model was cut
    finally:
        if PartialState().is_main_process:
            shutil.rmtree(stage.output_dir, ignore_errors=True)
