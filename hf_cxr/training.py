"""Fine-tune in two stages: the encoder learns findings (warm-up), then the whole model learns to write impressions.

Arguments live in `hf_cxr.arguments`, data in `hf_cxr.canvases`, the parts of the model in `hf_cxr.modeling`.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import Seq2SeqTrainer, Trainer, set_seed

from hf_cxr import evaluation, hub, launch
from hf_cxr.arguments import KitArguments, TrainingArguments
from hf_cxr.canvases import IGNORED, CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.dataset import load_prepared
from hf_cxr.modeling import Checkpoint, build
from hf_cxr.sharding import is_sharded, whole_again
from hf_cxr.trainer import EpochCallback, ImpressionTrainer, token_mean_loss
from hf_cxr.warmup import warm_up


def train(kit: KitArguments, args: TrainingArguments) -> dict[str, Any] | None:
    """Train as the arguments say and fill the run folder `args.output_dir`.

    Returns the report on the test split, or `None` where the dataset has no test studies.
    """
    state, started = PartialState(), time.perf_counter()
    output = Path(args.output_dir)
    set_seed(args.seed)
    args.dataloader_pin_memory &= torch.cuda.is_available()
    with state.local_main_process_first():
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
    with state.local_main_process_first():
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
    launch.check_workers()


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

    spare = copy.deepcopy(model) if is_sharded(args) else None
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
    if spare is not None:
        checkpoint.model = whole_again(trainer.accelerator.unwrap_model(trainer.model), spare)
    return trainer
