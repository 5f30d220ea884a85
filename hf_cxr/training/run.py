"""A training run from its arguments to a filled run folder: its stages, resumed where they were interrupted.

Stage one lives in `hf_cxr.training.findings_pretraining`, the third in `hf_cxr.training.reward`, the trainer in
`hf_cxr.training.trainer`, whole checkpoints in `hf_cxr.training.checkpoints`, data in `hf_cxr.data.collator`, the
parts of the model in `hf_cxr.models.modeling`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import (
    TrainerCallback,
    TrainerState,
    set_seed,
)

from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments, resolved_config
from hf_cxr.data import licences
from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.collection import collection_of
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sections import whole_texts
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.evaluation.bootstrap import of_other_patients
from hf_cxr.evaluation.fitting import fit_minimum_risk, fit_search
from hf_cxr.evaluation.prediction import Writer, pooled_states
from hf_cxr.hub import model_card
from hf_cxr.hub import push as hub
from hf_cxr.hub.ancestors import ancestors, split_otherwise
from hf_cxr.inference import remote_code
from hf_cxr.inference.checks import CALIBRATION, SEARCH
from hf_cxr.inference.sections import Layout, layout_of
from hf_cxr.models.lora import adapters
from hf_cxr.models.modeling import Checkpoint, load_checkpoint
from hf_cxr.models.starting import forget_fitted
from hf_cxr.training.beginning import (
    RESULTS,
    SAMPLES,
    STATES,
    begin,
    identity,
    remove,
    set_generation,
    start_or_resume,
)
from hf_cxr.training.callbacks import EarlyStopping, EpochCallback, ImageUseCallback
from hf_cxr.training.checkpoints import (
    FINE_TUNED,
    REWARD,
    agreed,
    load_weights,
    only_run_in,
    read_progress,
    whole_again,
    write_progress,
)
from hf_cxr.training.checks import asked_of, check_feasible
from hf_cxr.training.feature_cache import check_disk_space, encode_once
from hf_cxr.training.findings_pretraining import STAGE, pretrain_on_findings
from hf_cxr.training.launch import cut_global_batch, is_sharded
from hf_cxr.training.reward import RewardTrainer, RewardWatch, mean_values, stage_of, write_record
from hf_cxr.training.reward_pool import RewardPool
from hf_cxr.training.samples import SampleCallback
from hf_cxr.training.trainer import ImpressionTrainer, token_mean_loss, validation_scorer
from hf_cxr.utils.files import json_object


def train(
    kit: ImpressionConfig, args: ImpressionTrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> dict[str, Any] | None:
    """Train as the arguments say and fill the run folder `args.output_dir`; `callbacks` are those of the caller.

    Returns the report on the test split, or `None` where the dataset has no test studies.
    """
    state, started = PartialState(), time.perf_counter()
    output = Path(args.output_dir)
    set_seed(args.seed)
    args.dataloader_pin_memory &= torch.cuda.is_available()
    with state.local_main_process_first():
        dataset = load_prepared(kit.dataset)
    # Now: the folders may hold another dataset and another parent when training ends.
    data_facts = model_card.dataset_facts(kit.dataset) | {
        "continued_from": ancestors(model_card.starting_points(kit, args))
    }
    batch = cut_global_batch(kit, args)
    dataset, layout, left_out = asked_of(dataset, kit)
    check_feasible(dataset, kit, args)
    public = args.push_to_hub and args.hub_private_repo is False and state.is_main_process
    known = data_facts["preparation"], data_facts["continued_from"]
    if public and (note := licences.note_on_weights(kit.dataset, *known)):
        print(f"push_to_hub: {note}", file=sys.stderr)
    if state.is_main_process:
        for name in split_otherwise(data_facts):
            where = f"{collection_of(known[0]).name}, split otherwise than here"
            print(f"{name}: learned from {where}: it may have seen the test studies", file=sys.stderr)
        print(batch, *left_out, sep="\n", flush=True)
    config = identity(kit, args, dataset, layout)
    with only_run_in(output) if state.is_main_process else contextlib.nullcontext():
        resumed = kit.resume and read_progress(output) is not None
        stage = agreed(start_or_resume(kit, args, config) if state.is_main_process else None)
        report, file, pooled = None, output / "report.json", dict[bytes, np.ndarray]()
        if stage == "finished":  # a push of it may still be due
            report = json_object(file) if file.is_file() else None
        else:
            if stage == "evaluation":
                checkpoint = load_checkpoint(str(output))
            else:
                checkpoint, pooled = _train_stages(stage, dataset, layout, kit, args, config, callbacks)
            seconds = time.perf_counter() - started
            _fit(checkpoint, dataset, kit, args, output)
            if len(dataset.get("test", ())):
                batch_size = args.per_device_eval_batch_size
                report = evaluation.evaluate(
                    checkpoint, dataset, out=output, batch_size=batch_size, seed=args.seed, pooled=pooled
                )
            if state.is_main_process:
                sizes = {name: len(split) for name, split in dataset.items()}
                facts = model_card.training_facts(kit, args, data_facts, sizes, seconds)
                facts |= model_card.trained_facts(output, args) | {"resumed": resumed}
                model_card.write_model_card(output, facts)
                write_progress(output, "finished", config)
            if state.is_local_main_process:
                for folder in (output / STATES, output / REWARD / STATES):
                    shutil.rmtree(folder, ignore_errors=True)
    if args.push_to_hub and state.is_main_process:
        _push_finished(args)
    return report


def _push_in_progress(folder: str, args: ImpressionTrainingArguments, state: TrainerState) -> None:
    card = hub.card_in_progress(args.hub_model_id, state.global_step, state.max_steps)
    (Path(folder) / hub.CARD).write_text(card, encoding="utf-8")
    hub.push_as_asked(folder, args)


def _push_finished(args: ImpressionTrainingArguments) -> None:
    """Push the run. Raises `OSError` with the command that repeats it."""
    try:
        print(f"Pushed to {hub.push_as_asked(args.output_dir, args)}", flush=True)
    except (OSError, ValueError) as error:
        public = ["--public"] if args.hub_private_repo is False else []
        again = shlex.join(["hf-cxr", "push", args.output_dir, args.hub_model_id, *public])
        raise OSError(f"trained, but not pushed: {error}; repeat with: {again}") from error


def _fit(
    checkpoint: Checkpoint,
    dataset: DatasetDict,
    kit: ImpressionConfig,
    args: ImpressionTrainingArguments,
    output: Path,
) -> None:
    """Fit how texts are chosen, and then what a `score` is worth, on the validation split: the run's config.json and
    generation_config.json."""
    config, generation = checkpoint.model.config, checkpoint.model.generation_config
    forget_fitted(checkpoint.model)
    set_generation(checkpoint, args)
    writer = Writer(checkpoint, args.per_device_eval_batch_size)
    if kit.decode == "mbr":
        fit_minimum_risk(writer, dataset["validation"])
    elif kit.decode == "tuned":
        best, told = fit_search(writer, dataset["validation"], evaluation.validation_scores, args.seed)
        generation.update(**best)
        setattr(config, SEARCH, told)
        if PartialState().is_main_process:
            print(told, flush=True)
    curve = evaluation.calibrate(checkpoint, dataset, args.per_device_eval_batch_size)
    setattr(config, CALIBRATION, curve)
    if PartialState().is_main_process:
        with tempfile.TemporaryDirectory(dir=output, prefix=".saving-") as folder:
            config.save_pretrained(folder)
            generation.save_pretrained(folder)
            for file in sorted(Path(folder).iterdir()):
                file.replace(output / file.name)


def _train_stages(
    stage: str,
    dataset: DatasetDict,
    layout: Layout,
    kit: ImpressionConfig,
    args: ImpressionTrainingArguments,
    config: dict[str, Any],
    callbacks: Sequence[TrainerCallback],
) -> tuple[Checkpoint, dict[bytes, np.ndarray]]:
    """Build, pretrain on findings, fine-tune, reward where that is asked for, and save the run's checkpoint. Beside it
    what a frozen encoder made of the training images (see `prediction.pooled_states`)."""
    state, output, rewarded = PartialState(), Path(args.output_dir), stage == "reward"
    checkpoint = (
        load_checkpoint(str(output / FINE_TUNED), dtype="float32")
        if rewarded
        else begin(dataset["train"], layout, kit, args)
    )
    weights = sum(weight.nbytes for weight in checkpoint.model.parameters())
    copies = (1 if args.save_strategy == "no" else 2 if kit.lora_rank else 4) + bool(kit.reward_epochs)
    check_disk_space(output, weights * copies, "the weights")
    with state.local_main_process_first():
        packed = {
            name: pack_dataset(dataset[name], kit.panel_size, kit.num_proc, kit.panels)
            for name in ("train", "validation")
            if len(dataset.get(name, ()))
        }
    trainer: Any = None
    if not rewarded:
        if start := args.resume_from_checkpoint:
            print(f"Begins from {start}: its encoder needs no findings pretraining", flush=True)
        elif kit.findings_pretraining_epochs:
            pretrain_on_findings(checkpoint, packed["train"], kit, args, packed.get("validation"))
            if state.is_main_process:
                write_progress(output, "impressions", config)
                shutil.rmtree(output / STAGE, ignore_errors=True)
        if args.max_steps > 0 or args.num_train_epochs > 0:
            set_seed(args.seed)  # a resumed run has drawn other numbers so far than an uninterrupted one
            with adapters(checkpoint.model, kit.lora_rank, kit.lora_alpha):
                trainer = fine_tune(checkpoint, packed, kit, args, callbacks)
    if kit.reward_epochs:
        if not rewarded and state.is_main_process:
            save_run(checkpoint, kit, args, trainer.state if trainer else TrainerState(), output / FINE_TUNED)
            write_progress(output, "reward", config)
        trainer = _reward(checkpoint, packed, kit, args, callbacks)
    if state.is_main_process:
        save_run(checkpoint, kit, args, trainer.state, output)
        if kit.reward_epochs:
            write_record(output, kit)
        write_progress(output, "evaluation", config)
    states = trainer.train_dataset.states if len(dataset.get("test", ())) else None
    return checkpoint, pooled_states(checkpoint, dataset["train"], states)


def _reward(
    checkpoint: Checkpoint,
    packed: dict[str, Dataset],
    kit: ImpressionConfig,
    args: ImpressionTrainingArguments,
    callbacks: Sequence[TrainerCallback],
) -> ImpressionTrainer:
    """The reward stage: `checkpoint.model` learns in place what texts are worth."""
    texts = whole_texts(packed["train"], layout_of(checkpoint.model.config))
    set_seed(args.seed)
    kit, args = stage_of(kit, args, judged="validation" in packed)
    start = copy.deepcopy(checkpoint.model) if kit.reward_kl else None
    lora = adapters(checkpoint.model, kit.lora_rank, kit.lora_alpha)
    with RewardPool(kit.reward, texts, kit.num_proc or 1) as rewards, lora:
        told = [RewardWatch(Path(args.output_dir), [*rewards.weights]), *callbacks]
        own: dict[str, Any] = {"samples": kit.reward_samples, "kl": kit.reward_kl, "start": start}
        kind = functools.partial(RewardTrainer, rewards=rewards, references=texts, **own)
        trainer = fine_tune(checkpoint, packed, kit, args, told, kind, functools.partial(mean_values, rewards))
        last, log = trainer.state.global_step, trainer.state.log_history
        if "validation" in packed and not any("eval_reward" in row and row["step"] == last for row in log):
            trainer.evaluate()
    return trainer


def save_run(
    checkpoint: Checkpoint,
    kit: ImpressionConfig,
    args: ImpressionTrainingArguments,
    state: TrainerState,
    output: Path,
) -> None:
    """Write the run's own files: checkpoint, pipeline code, resolved config, trainer state.

    They are written beside and moved in at the end, so that an interruption or a full disk leaves no half checkpoint.
    """
    output.mkdir(parents=True, exist_ok=True)
    remove(output, ".saving-*")
    with tempfile.TemporaryDirectory(dir=output, prefix=".saving-") as name:
        folder = Path(name)
        remote_code.add_pipeline_code(checkpoint.model, folder)
        checkpoint.save_pretrained(folder)
        config = yaml.safe_dump(resolved_config(kit, args), sort_keys=False)
        (folder / "config.yaml").write_text(config, encoding="utf-8")
        state.save_to_json(str(folder / "trainer_state.json"))
        remove(output, *RESULTS)  # they are of other weights
        for file in sorted(folder.iterdir(), key=lambda file: file.suffix == ".safetensors"):  # the weights last
            file.replace(output / file.name)


def fine_tune(
    checkpoint: Checkpoint,
    packed: dict[str, Dataset],
    kit: ImpressionConfig,
    args: ImpressionTrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    kind: Callable[..., ImpressionTrainer] | None = None,
    more: Callable[..., dict[str, float]] | None = None,
) -> ImpressionTrainer:
    """Stage two: train `checkpoint.model` in place, from the last whole checkpoint in `args.output_dir` on.

    The reward stage gives the `kind` of its trainer, and `more` scores of an evaluation (see `validation_scorer`).

    Returns the trainer, with its state and log.
    """
    model, tokenizer, images = checkpoint.model, checkpoint.tokenizer, checkpoint.image_processor
    output, layout, validation = Path(args.output_dir), layout_of(model.config), packed.get("validation")
    canvases = {
        name: CanvasDataset(
            split, kit.panel_size, tokenizer, max_length=kit.max_target_length, seed=args.seed, layout=layout
        )
        for name, split in packed.items()
    }
    studies = canvases["train"]
    studies.context_dropout = kit.context_dropout
    if other := args.resume_from_checkpoint:
        load_weights(model, other, "; name one of the same encoder, decoder and panel_size")
    if kit.freeze_encoder:
        model.encoder.requires_grad_(False)
        greedy = (
            model.generation_config.num_beams or 1
        ) == 1  # beam search would repeat the states it is given, in place
        for split in canvases.values() if greedy else [canvases["train"]]:
            split.states = encode_once(checkpoint, split, output / STATES, args.per_device_eval_batch_size)
        studies.patch_dropout = kit.patch_dropout
    else:
        studies.view_dropout, studies.augmentation = kit.view_dropout, kit.augmentation
    told: list[Any] = [EpochCallback(studies.epoch)]
    compute_metrics, latest = None, list[tuple[str, str]]()
    if validation:
        score = evaluation.validation_scores
        compute_metrics, latest = validation_scorer(checkpoint, validation, args.seed, score, more)
        if layout.context and args.predict_with_generate:
            canvases["validation"].others = of_other_patients(validation["patient"], args.seed).tolist()
        told.append(ImageUseCallback(output, list(validation[layout.top])))
    if kit.early_stopping_patience:
        told.append(EarlyStopping(kit.early_stopping_patience))
    unsharded, generation = copy.deepcopy(model) if is_sharded(args) else None, model.generation_config
    trainer = (kind or ImpressionTrainer)(
        model=model,
        args=args,
        train_dataset=studies,
        eval_dataset=canvases.get("validation"),
        data_collator=CanvasCollator(images, tokenizer.pad_token_id, model.config.decoder_start_token_id),
        processing_class=tokenizer,
        image_processor=images,
        compute_loss_func=token_mean_loss(args.label_smoothing_factor),
        compute_metrics=compute_metrics if args.predict_with_generate else None,
        callbacks=[*told, *callbacks],
        encoder_learning_rate=kit.encoder_learning_rate,
        cross_attention_learning_rate=kit.cross_attention_learning_rate,
        encoder_layer_decay=kit.encoder_layer_decay,
        push=_push_in_progress,
        stage=_title(kit, rewarded=more is not None),
    )
    model.generation_config = generation  # `Seq2SeqTrainer` puts that of the arguments there, without the own tokens
    if kit.log_samples and validation:
        trainer.add_callback(
            SampleCallback(
                canvases["validation"],
                validation["uid"],
                lambda: latest,
                output / SAMPLES,
                kit.log_samples,
                kit.share_samples,
                layout.target,
                trainer.callback_handler.callbacks,
            )
        )
    trainer.resume_or_train(kit.early_stopping_patience, args.resume_from_checkpoint)
    if unsharded is not None:
        checkpoint.model = whole_again(trainer.accelerator.unwrap_model(trainer.model), unsharded)
    return trainer


def _title(kit: ImpressionConfig, rewarded: bool) -> str:
    number = 1 + bool(kit.findings_pretraining_epochs)
    whole, what = number + bool(kit.reward_epochs), "texts are rewarded" if rewarded else "model learns to write"
    return f"stage {number + rewarded} of {whole}: {what}"
