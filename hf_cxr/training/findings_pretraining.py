"""Stage one, the findings pretraining: the encoder learns to tell findings before the decoder learns to write
sentences.

The labels are read from the training texts themselves, or are the dataset's tags; the head that tells them is
dropped afterwards.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments
from hf_cxr.data.collator import CanvasCollator, CanvasDataset
from hf_cxr.data.sections import whole_texts
from hf_cxr.inference import labeler
from hf_cxr.inference.remote_code import share_weights
from hf_cxr.inference.sections import layout_of
from hf_cxr.inference.targets import IGNORED
from hf_cxr.metrics.content import unread_findings
from hf_cxr.models.lora import adapters
from hf_cxr.models.modeling import Checkpoint
from hf_cxr.training.callbacks import EpochCallback
from hf_cxr.training.checkpoints import ENCODER, STAGE, ResumableTrainer, agreed, whole_again
from hf_cxr.training.launch import is_sharded
from hf_cxr.utils.files import staging_folder

MIN_POSITIVES = 10  # a finding with fewer positive training studies cannot be learned in findings pretraining
# Tags of a study of which nothing is known: the kit's own, Indiana's, PadChest's.
UNTAGGED = {"unlabelled", "no indexing", "technical quality of image unsatisfactory", "exclude", "suboptimal study"}
SAME = "unchanged"  # PadChest's: what was there before is still there, whatever it was


class FindingsModel(torch.nn.Module):
    """The encoder with a multi-label head on its pooled token states. The head is dropped after findings pretraining.

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

    As `hf_cxr.training.trainer.token_mean_loss`, it does not depend on how a global batch is cut. `labels`: (batch,
    findings) of 1, 0, or `IGNORED` where the report leaves it open.
    """
    known = labels != IGNORED
    total = torch.nn.functional.binary_cross_entropy_with_logits(
        outputs["logits"][known].float(), labels[known], reduction="sum"
    )
    count = known.sum() if num_items_in_batch is None else num_items_in_batch
    return total / torch.as_tensor(count).clamp(min=1)  # a small batch may hold nothing that is known


def finding_targets(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Labels for findings pretraining, read from the training texts themselves.

    Returns the sided finding names with at least `MIN_POSITIVES` positive studies, and a float32 array of shape
    (studies, names): 1 stated, 0 denied or not mentioned, `IGNORED` uncertain.
    """
    return _table([labeler.sided_label(text) for text in texts])


Tags = Sequence[Sequence[str] | None]


def tag_targets(tags: Tags, uncertain: Tags | None = None) -> tuple[list[str], np.ndarray]:
    """Labels for findings pretraining from the dataset's own tags, in the form of `finding_targets`.

    A study without tags is normal. One that nobody tagged ("no indexing" in the Indiana collection) is all `IGNORED`,
    as are the tags that the collection calls uncertain, and those that an "unchanged" study may have.
    """
    said = [dict.fromkeys(study or (), "positive") for study in tags]
    for study, doubted in zip(said, uncertain or (), strict=bool(uncertain)):
        study.update(dict.fromkeys(doubted or (), "uncertain"))
    names, targets = _table(said)
    for row, study in zip(targets, said, strict=True):
        if UNTAGGED & set(study):
            row[:] = IGNORED
        elif SAME in study:
            row[row == 0] = IGNORED
    known = [place for place, name in enumerate(names) if name not in {*UNTAGGED, SAME}]
    return [names[place] for place in known], targets[:, known]


def _table(labelled: Sequence[dict[str, str]]) -> tuple[list[str], np.ndarray]:
    counts = Counter(name for labels in labelled for name, status in labels.items() if status == "positive")
    names = sorted(name for name, count in counts.items() if count >= MIN_POSITIVES)
    value = {"positive": 1.0, "uncertain": float(IGNORED)}
    rows = [[value.get(labels.get(name, ""), 0.0) for name in names] for labels in labelled]
    return names, np.array(rows, dtype=np.float32).reshape(len(labelled), len(names))


def pretrain_on_findings(
    checkpoint: Checkpoint, packed: Dataset, kit: ImpressionConfig, args: ImpressionTrainingArguments
) -> None:
    """Stage one: train `checkpoint.model.encoder` in place to tell the findings of the training studies.

    The encoder is then saved to `findings_encoder` in the run folder, with its image processor: a stock checkpoint
    that another run may name as its `encoder`. Where that folder exists it is loaded instead;
    `hf_cxr.training.run` deletes it before a run that is no continuation.
    """
    saved = Path(args.output_dir) / ENCODER
    if agreed(saved.is_dir()):
        encoder = checkpoint.model.encoder
        encoder.load_state_dict(type(encoder).from_pretrained(saved).state_dict())  # a file's names are not a module's
        return
    texts = whole_texts(packed, layout_of(checkpoint.model.config))
    unread = kit.findings_labels == "text" and unread_findings(texts)
    if unread:
        print(f"findings pretraining skipped: findings cannot be read from the texts, as {unread}", flush=True)
        if "tags" in packed.column_names and any(packed["tags"]):
            print("the collection has labels of its own: findings_labels: tags learns from them", flush=True)
        return
    if kit.findings_labels == "tags":
        names, targets = tag_targets(
            packed["tags"], packed["uncertain"] if "uncertain" in packed.column_names else None
        )
    else:
        names, targets = finding_targets(texts)
    if not names:
        what = "tag" if kit.findings_labels == "tags" else "finding"
        print(f"findings pretraining skipped: no {what} has {MIN_POSITIVES} positive training studies", flush=True)
        return
    rate = kit.findings_pretraining_learning_rate
    changes: dict[str, Any] = {
        "output_dir": str(Path(args.output_dir) / STAGE),
        "num_train_epochs": kit.findings_pretraining_epochs,
        "learning_rate": args.learning_rate if rate is None else rate,
        "max_steps": -1,
        "eval_strategy": "no",
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
    canvases = CanvasDataset(
        packed,
        kit.panel_size,
        targets=targets,
        view_dropout=kit.view_dropout,
        augmentation=kit.augmentation,
        seed=args.seed,
    )
    model = FindingsModel(checkpoint.model.encoder, len(names))
    if args.gradient_checkpointing:  # the wrapper is no `PreTrainedModel`, so the encoder is told itself
        checkpoint.model.encoder.gradient_checkpointing_enable()
    unsharded = copy.deepcopy(checkpoint.model.encoder) if is_sharded(args) else None
    set_seed(args.seed)  # a resumed run has drawn other numbers so far than an uninterrupted one
    with adapters(model, kit.lora_rank, kit.lora_alpha):
        trainer = ResumableTrainer(
            model=model,
            args=dataclasses.replace(args, **changes),
            train_dataset=canvases,
            data_collator=CanvasCollator(checkpoint.image_processor),
            compute_loss_func=finding_loss,
            callbacks=[EpochCallback(canvases)],
            stage="stage 1 of 2: encoder learns findings",
        )
        trainer.resume_or_train()
    if unsharded is not None:
        checkpoint.model.encoder = whole_again(trainer.accelerator.unwrap_model(trainer.model).encoder, unsharded)
        dataclasses.replace(args)  # resets accelerate's state, which remembers how this model was cut
    if PartialState().is_main_process:
        save_encoder(checkpoint, saved)
    trainer.accelerator.wait_for_everyone()


def save_encoder(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the encoder and its image processor as a stock checkpoint, whole or not at all."""
    with staging_folder(folder) as staging:
        checkpoint.model.encoder.save_pretrained(staging / ENCODER)
        checkpoint.image_processor.save_pretrained(staging / ENCODER)
        share_weights(staging / ENCODER)
        (staging / ENCODER).replace(folder)
