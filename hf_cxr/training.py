"""Fine-tune in two stages: the encoder learns findings (warm-up), then the whole model learns to write impressions.

Arguments live in `hf_cxr.arguments`, data in `hf_cxr.canvases`, the parts of the model in `hf_cxr.modeling`.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import Seq2SeqTrainer, Trainer, TrainerCallback, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_cxr import evaluation, findings, hub
from hf_cxr.arguments import KitArguments, TrainingArguments
from hf_cxr.canvases import IGNORED, CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.dataset import load_prepared
from hf_cxr.modeling import Checkpoint, build

MIN_POSITIVES = 10  # a finding with fewer positive training studies cannot be learned in the warm-up


def train(kit: KitArguments, args: TrainingArguments) -> dict[str, Any] | None:
    """Train as the arguments say and fill the run folder `args.output_dir`.

    Returns the report on the test split, or `None` where the dataset has no test studies.
    """
    state, started = PartialState(), time.perf_counter()
    output = Path(args.output_dir)
    set_seed(args.seed)
    args.dataloader_pin_memory &= torch.cuda.is_available()
    with state.main_process_first():
        dataset = load_prepared(kit.dataset)
    check_feasible(dataset, kit, args)
    checkpoint = build(
        kit.encoder,
        kit.decoder,
        kit.panel_size,
        texts=evaluation.texts_of(dataset, "train"),
        vocab_size=kit.vocab_size,
        max_new_tokens=kit.max_target_length,
    )
    with state.main_process_first():
        packed = {
            name: pack_dataset(dataset[name], kit.panel_size, kit.num_proc)
            for name in ("train", "validation")
            if len(dataset.get(name, ()))
        }
    if kit.findings_warmup_epochs:
        warm_up(checkpoint, packed["train"], kit, args)
    trainer = fine_tune(checkpoint, packed, kit, args)
    seconds = time.perf_counter() - started
    if state.is_main_process:
        save_run(checkpoint, kit, args, trainer, output)
    report = None
    if len(dataset.get("test", ())):
        report = evaluation.evaluate(
            checkpoint, dataset, out=output, batch_size=args.per_device_eval_batch_size, seed=args.seed
        )
    if state.is_main_process:
        facts = hub.training_facts(kit, args, {name: len(split) for name, split in dataset.items()}, seconds)
        hub.write_model_card(output, facts, report)
    return report


def check_feasible(dataset: DatasetDict, kit: KitArguments, args: TrainingArguments) -> None:
    """Raise `ValueError`, before any time is spent, for what would fail later on."""
    if not len(dataset.get("train", ())):
        raise ValueError(f"{kit.dataset}: there are no training studies")
    if args.eval_strategy != "no" and not len(dataset.get("validation", ())):
        raise ValueError(f"{kit.dataset}: no validation studies to evaluate on; set eval_strategy: no")
    sharded = {"ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED"} & set(os.environ)
    if args.fsdp or args.deepspeed or sharded:
        raise ValueError("FSDP and DeepSpeed are not supported yet (generation could hang); use plain DDP")


def save_run(
    checkpoint: Checkpoint, kit: KitArguments, args: TrainingArguments, trainer: Trainer, output: Path
) -> None:
    """Write the run's own files: checkpoint, pipeline code, resolved config, trainer state.

    They are written beside and moved in at the end, so that an interruption or a full disk leaves no half checkpoint.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output, prefix=".saving-") as name:
        folder = Path(name)
        hub.add_pipeline_code(checkpoint.model, folder)
        checkpoint.save_pretrained(folder)
        config = dataclasses.asdict(kit) | args.changed()
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        for stale in ("report.json", "report.md", "predictions.jsonl", "README.md"):  # they told of other weights
            (output / stale).unlink(missing_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".safetensors"):  # the weights last
            file.replace(output / file.name)


# --- stage one: findings -----------------------------------------------------------------------------------------


class FindingsModel(torch.nn.Module):
    """The encoder with a multi-label head on its pooled token states. The head is dropped after the warm-up.

    The pool is the mean and the maximum over the tokens: a large finding moves the mean, a small one the maximum.
    """

    accepts_loss_kwargs = False

    def __init__(self, encoder: Any, labels: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = torch.nn.Linear(2 * encoder.config.hidden_size, labels)

    def forward(self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None) -> SequenceClassifierOutput:
        """`labels`: (batch, findings) of 1, 0, or NaN where the report leaves it open; those do not count."""
        states = self.encoder(pixel_values=pixel_values)[0]
        logits = self.head(torch.cat([states.mean(1), states.amax(1)], dim=-1))
        loss = None
        if labels is not None:
            known = ~labels.isnan()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits[known], labels[known])
        return SequenceClassifierOutput(loss=loss, logits=logits)


def finding_targets(texts: list[str]) -> tuple[list[str], np.ndarray]:
    """Labels for the warm-up, read from the training impressions themselves.

    Returns the sided finding names with at least `MIN_POSITIVES` positive studies, and a float32 array of shape
    (studies, names): 1 stated, 0 denied or not mentioned, NaN uncertain.
    """
    labelled = [findings.sided_label(text) for text in texts]
    counts = Counter(name for labels in labelled for name, status in labels.items() if status == "positive")
    names = sorted(name for name, count in counts.items() if count >= MIN_POSITIVES)
    value = {"positive": 1.0, "uncertain": np.nan}
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
    trainer = Trainer(
        model=FindingsModel(checkpoint.model.encoder, len(names)),
        args=stage,
        train_dataset=canvases,
        data_collator=CanvasCollator(checkpoint.image_processor),
        callbacks=[EpochCallback(canvases)],
    )
    if args.gradient_checkpointing:  # the wrapper is no `PreTrainedModel`, so the encoder is told itself
        checkpoint.model.encoder.gradient_checkpointing_enable()
    try:
        trainer.train()
    finally:
        if PartialState().is_main_process:
            shutil.rmtree(stage.output_dir, ignore_errors=True)


# --- stage two: impressions --------------------------------------------------------------------------------------


class EpochCallback(TrainerCallback):
    """Tells the dataset which epoch it serves, on which its view dropout depends."""

    def __init__(self, canvases: CanvasDataset) -> None:
        self.canvases = canvases

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.canvases.epoch.fill_(int(state.epoch or 0))


class ImpressionTrainer(Seq2SeqTrainer):
    """`Seq2SeqTrainer` that evaluates every study exactly once under several processes, and can give the encoder a
    learning rate of its own: after the warm-up it knows its task, while a new decoder starts from noise."""

    def __init__(self, *args, encoder_learning_rate: float | None = None, **kwargs) -> None:
        self.encoder_learning_rate = encoder_learning_rate
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args, **kwargs) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(*args, **kwargs)
        if self.encoder_learning_rate is not None:
            encoder = set(self.model.encoder.parameters())
            groups = list(optimizer.param_groups)
            optimizer.param_groups.clear()
            for group in groups:
                for mine, rate in ((True, self.encoder_learning_rate), (False, group["lr"])):
                    members = [parameter for parameter in group["params"] if (parameter in encoder) is mine]
                    if members:
                        optimizer.add_param_group(group | {"params": members, "lr": rate})
        return optimizer

    def evaluation_loop(self, *args, **kwargs):
        # The stock class gathers with `gather`, which keeps the samples that pad the last batch.
        self.gather_function = self.accelerator.gather_for_metrics
        return super().evaluation_loop(*args, **kwargs)


def token_mean_loss(label_smoothing: float):
    """Cross entropy summed over the micro-batch, divided by the target tokens of the *global* batch.

    Given to `Trainer` as `compute_loss_func`, it makes loss and gradients independent of how a global batch is cut
    into processes and accumulation steps, also where the pieces hold different numbers of tokens.
    """

    def loss(outputs, labels: torch.Tensor, num_items_in_batch: torch.Tensor | None = None) -> torch.Tensor:
        logits = outputs["logits"]
        total = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).float(),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
        count = labels.ne(IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        return total / count

    return loss


def fine_tune(
    checkpoint: Checkpoint, packed: dict[str, Dataset], kit: KitArguments, args: TrainingArguments
) -> Seq2SeqTrainer:
    """Stage two: train `checkpoint.model` in place. Returns the trainer, with its state and log."""
    model, tokenizer = checkpoint.model, checkpoint.tokenizer
    if kit.freeze_encoder:
        model.encoder.requires_grad_(False)
    canvases = {
        name: CanvasDataset(
            split,
            kit.panel_size,
            tokenizer,
            max_length=kit.max_target_length,
            view_dropout=kit.view_dropout if name == "train" else 0.0,
            seed=args.seed,
        )
        for name, split in packed.items()
    }

    def compute_metrics(prediction) -> dict[str, float]:
        predicted, labels = (
            tokenizer.batch_decode(np.where(ids == IGNORED, tokenizer.pad_token_id, ids), skip_special_tokens=True)
            for ids in (prediction.predictions, prediction.label_ids)
        )
        scores = evaluation.score_texts([text.strip() for text in predicted], labels)
        return {"n": len(labels)} | {key: value for key, value in scores.items() if isinstance(value, (int, float))}

    trainer = ImpressionTrainer(
        model=model,
        args=args,
        train_dataset=canvases["train"],
        eval_dataset=canvases.get("validation"),
        data_collator=CanvasCollator(
            checkpoint.image_processor, tokenizer.pad_token_id, model.config.decoder_start_token_id
        ),
        processing_class=tokenizer,
        compute_loss_func=token_mean_loss(args.label_smoothing_factor),
        compute_metrics=compute_metrics if args.predict_with_generate else None,
        callbacks=[EpochCallback(canvases["train"])],
        encoder_learning_rate=kit.encoder_learning_rate,
    )
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    return trainer
