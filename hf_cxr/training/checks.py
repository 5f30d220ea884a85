"""What cannot end well in a run, told in one line before any time is spent and before anything is deleted.

Processes and the global batch are looked after in `hf_cxr.training.launch`, weights in `hf_cxr.training.checkpoints`.
"""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import torch
import yaml
from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer, Seq2SeqTrainer, Trainer, TrainerState, get_scheduler
from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from hf_cxr import metrics
from hf_cxr.config import ImpressionConfig, ImpressionTrainingArguments, resolved_config
from hf_cxr.data.sections import contexts, whole_texts, with_sections
from hf_cxr.inference.sections import CONTEXT, SHORTEST_REPORT, TARGETS, Layout
from hf_cxr.metrics import SCALARS
from hf_cxr.models.encoders import ENCODER_SIZES
from hf_cxr.models.loading import load, loading
from hf_cxr.models.modeling import DECODER_SIZES
from hf_cxr.training.checkpoints import checkpoints, read_progress
from hf_cxr.training.launch import check_workers, is_sharded
from hf_cxr.training.rewards import read_rewards
from hf_cxr.utils.files import json_object
from hf_cxr.utils.places import check_checkpoint, check_writable, missing

NOT_SELECTABLE = ("legacy_bleu4", "length_ratio")  # more of them is not better
SELECTABLE = ("composite", "loss", "image_gain", *(name for name in SCALARS if name not in NOT_SELECTABLE))
WHOLE_SPLIT = "texts are scored over the whole split, on every process"
# The Trainer's arguments that break a run of this kit, or that nothing reads here, and why. All others work.
UNUSABLE = {
    "accelerator_config": "it would change the global batch or its order, and the resolved config does not hold it",
    "auto_find_batch_size": "it would change the global batch; lower per_device_train_batch_size, which keeps it",
    "batch_eval_metrics": WHOLE_SPLIT,
    "bf16_full_eval": "evaluations in training have the training's precision; set bf16",
    "enable_jit_checkpoint": "it ends a run as if it were finished; a killed run goes on with --resume",
    "eval_do_concat_batches": WHOLE_SPLIT,
    "eval_use_gather_object": WHOLE_SPLIT,
    "fp16_full_eval": "evaluations in training have the training's precision; set fp16",
    "generation_max_length": "texts have max_target_length tokens at most",
    "hub_always_push": "each push is waited for",
    "include_for_metrics": "scores are read off the texts alone",
    "include_num_input_tokens_seen": "it would count pixels",
    "label_names": "the labels of this kit's models are called labels",
    "length_column_name": "lengths are counted in tokens of the texts",
    "parallelism_config": "models are shared out by DDP, FSDP2 or ZeRO-2: see --accelerate_config",
    "prediction_loss_only": "for evaluations without texts set predict_with_generate: false",
    "remove_unused_columns": "it would remove the images",
    "restore_callback_states_from_checkpoint": "--resume restores what this kit's callbacks know",
    "sortish_sampler": "transformers no longer reads it; set train_sampling_strategy",
    "use_liger_kernel": "there are no Liger kernels for this kind of model",
}


def check_feasible(dataset: DatasetDict, kit: ImpressionConfig, args: ImpressionTrainingArguments) -> None:
    """Raise `ValueError` or `OSError` for what would fail later on, do nothing, or be lost at the end."""
    if not len(dataset.get("train", ())):
        raise ValueError(f"{kit.dataset}: there are no training studies")
    _check_context(dataset["train"], kit)
    if (args.eval_strategy != "no" or args.eval_on_start) and not len(dataset.get("validation", ())):
        raise ValueError(f"{kit.dataset}: no validation studies to evaluate on; set eval_strategy: no")
    if kit.decode != "search":
        _check_decoding(dataset.get("validation"), kit)
    if kit.panels == 1 and kit.view_dropout:
        raise ValueError("view_dropout empties one of two panels; leave it out with panels: 1")
    by_tags = kit.findings_pretraining_epochs and kit.findings_labels == "tags"
    if by_tags and "tags" not in dataset["train"].column_names:
        raise ValueError(f"{kit.dataset}: findings_labels: tags, but the dataset has no column 'tags'")
    check_workers()
    _check_values(kit, args)
    _check_together(kit, args)
    _check_selection(kit, args)
    _check_rewards(dataset["train"], kit, args)
    _check_tools(args)
    _check_steps(len(dataset["train"]), kit, args)
    try:
        yaml.safe_dump(resolved_config(kit, args))  # is written when all is trained
    except yaml.YAMLError as error:
        raise ValueError(f"an argument is no plain value and cannot be written to config.yaml: {error}") from error
    check_writable(args.output_dir)


def asked_of(dataset: DatasetDict, kit: ImpressionConfig) -> tuple[DatasetDict, Layout, list[str]]:
    """The studies that have what is to be learned, its layout, and a line on each split that lacks some of it.

    Raises `ValueError` for a context that the kit does not know, and where no training study has the sections.
    """
    for place, name in enumerate(kit.context):
        if name not in CONTEXT or name in kit.context[:place]:
            what = "is named twice" if name in CONTEXT else f"is none of {', '.join(CONTEXT)}"
            raise ValueError(f"context: {name!r} {what}")
    layout = Layout(TARGETS[kit.target], tuple(kit.context))
    complete, left_out = with_sections(dataset, layout)
    lack = " or no ".join(layout.sections)
    if len(dataset.get("train", ())) and not len(complete["train"]):
        raise ValueError(
            f"{kit.dataset}: target: {kit.target}, but every training study has no {lack}; choose another target"
        )
    told = [
        f"{name}: {number:,} of {len(dataset[name]):,} studies have no {lack} and are left out"
        for name, number in left_out.items()
        if number
    ]
    return complete, layout, told


def _check_decoding(validation: Dataset | None, kit: ImpressionConfig) -> None:
    if not validation:
        what = "thresholds" if kit.decode == "mbr" else "a search"
        raise ValueError(f"{kit.dataset}: no validation studies to fit {what} on; leave out decode: {kit.decode}")
    if kit.decode == "mbr" and metrics.unread_findings(validation[Layout(TARGETS[kit.target]).top]):
        raise ValueError(f"{kit.dataset}: findings cannot be read from its texts; leave out decode: mbr")


def _check_context(train: Dataset, kit: ImpressionConfig) -> None:
    if kit.context_dropout and not kit.context:
        raise ValueError("context_dropout needs a context, as context: [indication]")
    found = {name for given in contexts(train) for name in given} if kit.context else set()
    for name in kit.context:
        columns = [name, "age", "sex"] if name == "age_sex" else [name]
        if not set(columns) & set(train.column_names):
            lacks = "neither a column 'age' nor 'sex'" if name == "age_sex" else f"no column {name!r}"
            raise ValueError(f"{kit.dataset}: context: {name}, but the dataset has {lacks}")
        if name not in found:
            raise ValueError(f"{kit.dataset}: context: {name}, but no training study has one")


def _check_values(kit: ImpressionConfig, args: ImpressionTrainingArguments) -> None:
    for item in dataclasses.fields(args):
        if (why := UNUSABLE.get(item.name)) and item.name != "accelerator_config":
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            if getattr(args, item.name) != default:
                raise ValueError(f"{item.name} cannot be set here: {why}")
    if args.accelerator_config != type(args.accelerator_config)():
        raise ValueError(f"accelerator_config cannot be set here: {UNUSABLE['accelerator_config']}")
    if args.mixed_precision == "fp16" and args.device.type == "cpu":
        raise ValueError("fp16 needs a GPU, a CPU would train without it; leave it out, or set bf16: true")
    values = vars(args) | vars(kit)
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} is a finite number, not {value}")
    shares = ("view_dropout", "augmentation", "context_dropout", "decoder_dropout", "label_smoothing_factor")
    for name in (*shares, "patch_dropout"):
        if not 0 <= (values[name] or 0) <= 1:
            raise ValueError(f"{name} is between 0 and 1, not {values[name]}")
    if not 0 < kit.encoder_layer_decay <= 1:
        raise ValueError(f"encoder_layer_decay is above 0 and at most 1, not {kit.encoder_layer_decay}")
    counts = ("log_samples", "lora_rank", "early_stopping_patience", "findings_pretraining_epochs")
    for name in (*counts, "findings_frozen_epochs"):
        if values[name] < 0:
            raise ValueError(f"{name} is 0 or more, not {values[name]}")
    if kit.max_target_length < 2:
        raise ValueError(f"max_target_length is 2 or more, a token and the end, not {kit.max_target_length}")
    if kit.target == "report" and kit.max_target_length < SHORTEST_REPORT:
        raise ValueError(
            f"max_target_length is {SHORTEST_REPORT} or more for target: report, so that both sections and the end "
            f"have room, not {kit.max_target_length}"
        )
    if args.train_sampling_strategy in ("group_by_length", "batch_rebalance"):
        raise ValueError(
            f"train_sampling_strategy: {args.train_sampling_strategy} makes batches of like length, which teach the "
            "commonest text (docs/training.md); use random"
        )
    if args.per_device_eval_batch_size < 1:
        raise ValueError(f"per_device_eval_batch_size is 1 or more, not {args.per_device_eval_batch_size}")


def _check_together(kit: ImpressionConfig, args: ImpressionTrainingArguments) -> None:
    if 0 < kit.findings_frozen_epochs >= kit.findings_pretraining_epochs:
        epochs = f"findings_pretraining_epochs: {kit.findings_pretraining_epochs:g}"
        raise ValueError(f"findings_frozen_epochs: {kit.findings_frozen_epochs}, but {epochs}: no encoder would learn")
    if kit.decode == "mbr" and (args.generation_num_beams or 1) > 1:
        raise ValueError("decode: mbr writes without beams: leave out generation_num_beams")
    if kit.resume and kit.restart:
        raise ValueError("resume or restart: not both")
    if kit.init_from and args.resume_from_checkpoint:
        raise ValueError("init_from or resume_from_checkpoint: a run begins from one of them, not both")
    if kit.init_from:
        check_checkpoint(kit.init_from)
    if kit.resume and (args.save_only_model or args.ignore_data_skip):
        raise ValueError("resume needs save_only_model: false and ignore_data_skip: false")
    if kit.freeze_encoder and not kit.findings_pretraining_epochs and (kit.view_dropout or kit.augmentation):
        raise ValueError(
            "freeze_encoder: view_dropout and augmentation act in the findings pretraining only, and there is none"
        )
    if kit.patch_dropout and not kit.freeze_encoder:
        raise ValueError("patch_dropout is of a frozen encoder's states: set freeze_encoder: true")
    if kit.lora_rank and not kit.init_from and (kit.encoder in ENCODER_SIZES or kit.decoder in DECODER_SIZES):
        raise ValueError("lora_rank adapts pretrained parts: a from-scratch part has to be trained in full")
    if args.push_to_hub and args.hub_strategy == "every_save" and (kit.lora_rank or is_sharded(args)):
        raise ValueError("hub_strategy: every_save pushes whole weights; lora_rank and FSDP have them at the end only")
    if kit.lora_rank and is_sharded(args):
        raise ValueError("lora_rank with FSDP or DeepSpeed is not supported: with adapters plain DDP is enough")
    if args.dataloader_drop_last and (args.eval_strategy != "no" or args.eval_on_start):
        raise ValueError("dataloader_drop_last leaves studies out of the evaluations, too; set eval_strategy: no")


def _check_selection(kit: ImpressionConfig, args: ImpressionTrainingArguments) -> None:
    """What an evaluation is asked for is what it gives; `Trainer` looks the metric up in each, whatever it is for."""
    if args.load_best_model_at_end and args.save_strategy == "steps" and args.save_steps != args.eval_steps:
        raise ValueError("load_best_model_at_end needs each evaluation's checkpoint: save_steps equal to eval_steps")
    if kit.early_stopping_patience and not args.load_best_model_at_end:
        raise ValueError("early_stopping_patience needs load_best_model_at_end: true and an eval_strategy")
    if args.eval_strategy == "no":
        if args.save_strategy == "best":
            raise ValueError("save_strategy: best needs an eval_strategy")
        return
    best = str(args.metric_for_best_model).removeprefix("eval_")
    made = SELECTABLE if args.predict_with_generate else ("loss",)
    if args.metric_for_best_model is not None and best not in made:
        texts = "" if args.predict_with_generate else "; the others need predict_with_generate: true"
        raise ValueError(f"metric_for_best_model: {best!r} is none of {', '.join(made)}{texts}")
    if args.metric_for_best_model is not None and args.greater_is_better == best.endswith("loss"):
        raise ValueError(f"greater_is_better: {args.greater_is_better} would select the worst by {best}; leave it out")


def _check_rewards(train: Dataset, kit: ImpressionConfig, args: ImpressionTrainingArguments) -> None:
    if kit.reward_epochs < 0 or kit.reward_kl < 0 or (kit.reward_learning_rate or 0) < 0:
        raise ValueError("reward_epochs, reward_kl and reward_learning_rate are 0 or more")
    if kit.reward_samples < 1:
        raise ValueError(f"reward_samples is 1 or more, not {kit.reward_samples}")
    if not kit.reward_epochs:
        return
    if is_sharded(args):
        raise ValueError(
            "reward_epochs with FSDP or DeepSpeed is not supported: texts are drawn by whole models (DDP)"
        )
    if kit.findings_pretraining_epochs and not (args.num_train_epochs if args.max_steps < 0 else args.max_steps):
        raise ValueError("findings_pretraining_epochs needs fine-tuning before the reward stage: set num_train_epochs")
    read_rewards(kit.reward, whole_texts(train, Layout(TARGETS[kit.target], tuple(kit.context))))


def _check_tools(args: ImpressionTrainingArguments) -> None:
    """Optimizer, schedule, trackers and generation config are made or loaded once, as stage two will do."""
    absent = {*args.report_to} - {*get_available_reporting_integrations(), "azure_ml", "flyte"}
    get_reporting_integration_callbacks(args.report_to)  # names those that it knows
    if absent:
        names = f"{', '.join(sorted(absent))} {'is' if len(absent) == 1 else 'are'}"
        raise ValueError(f"report_to: {names} not installed; install what is missing, or set report_to: none")
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args)
        optimizer = kind([torch.nn.Parameter(torch.zeros(1))], **options)
        get_scheduler(args.lr_scheduler_type, optimizer, 1, 2, dict(args.lr_scheduler_kwargs or {}))
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        names = f"optimizer ({args.optim.value}) or schedule ({args.lr_scheduler_type.value})"
        raise ValueError(f"{names}: {reason}") from error
    if args.generation_config:
        try:
            Seq2SeqTrainer.load_generation_config(args.generation_config)
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"generation_config: {args.generation_config} cannot be loaded: {reason}") from error


def _check_steps(studies: int, kit: ImpressionConfig, args: ImpressionTrainingArguments) -> None:
    """Count the steps as `Trainer` does; there is one left to train at least, and an evaluation to select by."""
    batch = args.train_batch_size * args.world_size
    batches = studies // batch if args.dataloader_drop_last else math.ceil(studies / batch)
    if not batches:
        raise ValueError(f"dataloader_drop_last: {studies} training studies are fewer than a batch of {batch}")
    steps = args.max_steps
    if steps < 0:
        steps = math.ceil(args.num_train_epochs * math.ceil(batches / args.gradient_accumulation_steps))
    start = args.resume_from_checkpoint
    if kit.reward_epochs and kit.init_from and not steps:
        return  # the reward stage alone
    done = step_of(start) if start and not (kit.resume and read_progress(args.output_dir)) else 0
    if done >= steps:
        where = f"resume_from_checkpoint: {start} has {done} step{'s' * (done != 1)}; " if start else ""
        raise ValueError(f"{where}the run ends at step {steps}: nothing to train; raise num_train_epochs or max_steps")
    last = steps if args.eval_strategy == "steps" else args.num_train_epochs if args.max_steps < 0 else math.inf
    if args.load_best_model_at_end and args.eval_delay > last:
        raise ValueError(
            f"eval_delay: {args.eval_delay} lies behind the end, and load_best_model_at_end selects nothing"
        )


def step_of(start: str) -> int:
    """The step of a checkpoint of another run. Raises `OSError` or `ValueError` for what is none to go on from."""
    folder, told = Path(start), f"resume_from_checkpoint: {start}"
    if not folder.is_dir():
        absent = missing(start, "checkpoint", folders=True)
        raise FileNotFoundError(f"resume_from_checkpoint: {absent}; to go on in output_dir use --resume")
    if not any(path for pattern in ("optimizer*", "global_step*") for path in folder.glob(pattern)):
        inside, progress = checkpoints(folder), read_progress(folder) or {}
        hint = f"name a checkpoint of it: {inside[-1]}" if inside else "it keeps no checkpoint to go on from"
        what = "is a finished run" if progress.get("stage") == "finished" else "holds no optimizer state"
        raise ValueError(f"{told} {what}; {hint}")
    for name in ("model.safetensors", "trainer_state.json", "tokenizer_config.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{told} is no whole checkpoint ({name} is missing); name another one")
    for name in ("tokenizer_config.json", "trainer_state.json"):
        written = json_object(folder / name)
    step = written.get("global_step")
    if type(step) is not int or step < 0:
        raise ValueError(f"{told}: its trainer_state.json has no global_step, a whole number; name another one")
    with loading(start):
        TrainerState.load_from_json(str(folder / "trainer_state.json"))
    if load(AutoTokenizer, start).pad_token_id is None:
        raise ValueError(f"{told}: its tokenizer is damaged, it has no padding; name another one")
    return step
