"""What a training run can be told: the kit's own arguments, the recipes by name, the reading of a flat YAML config.

An argument has one name everywhere: as a field here, as a key in the YAML file, and as `--name` on the command line.
Nothing here imports torch or transformers; the Trainer's arguments are in `hf_cxr.config.training`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SIZES = ("tiny", "mini", "small", "base")
"""Encoders and decoders that are trained from scratch."""

# Given on the command line of one start, no part of what the run is.
STARTING = ("resume", "restart")

# What other kits call it → our names: that of an argument of a run, then those of other commands' options.
FOREIGN: dict[str, tuple[str, ...]] = {
    word: tuple(ours.split())
    for words, ours in {
        "lr base_lr learning_rates": "learning_rate",
        "epochs epoch num_epochs n_epochs max_epochs train_epochs": "num_train_epochs",
        "steps num_steps max_train_steps num_train_steps": "max_steps",
        "batch_size bs train_batch_size per_gpu_train_batch_size": "per_device_train_batch_size batch_size",
        "eval_batch_size val_batch_size per_gpu_eval_batch_size": "per_device_eval_batch_size batch_size",
        "accumulate_grad_batches grad_accum accumulation_steps": "gradient_accumulation_steps",
        "model model_name model_id model_name_or_path pretrained_model_name_or_path": "encoder checkpoint",
        "encoder_name encoder_name_or_path encoder_model_name_or_path vision_model vision_encoder": "encoder",
        "decoder_name decoder_name_or_path decoder_model_name_or_path text_model text_decoder": "decoder",
        "tokenizer tokenizer_name tokenizer_name_or_path": "decoder",
        "train_file validation_file test_file data data_dir data_path": "dataset root",
        "dataset_name dataset_path dataset_dir dataset_name_or_path": "dataset root",
        "max_length max_len max_seq_length max_seq_len max_target_len": "max_target_length max_new_tokens",
        "image_size img_size input_size resolution": "panel_size size",
        "out output output_path output_folder save_dir outdir": "output_dir out",
        "warmup warmup_ratio num_warmup_steps warmup_proportion": "warmup_steps",
        "wd": "weight_decay",
        "optimizer": "optim",
        "scheduler lr_scheduler lr_schedule": "lr_scheduler_type",
        "grad_clip clip_grad gradient_clip_val max_norm": "max_grad_norm",
        "label_smoothing": "label_smoothing_factor",
        "precision mixed_precision amp": "bf16",
        "patience": "early_stopping_patience",
        "evaluation_strategy": "eval_strategy",
        "log_steps log_interval log_every": "logging_steps",
        "save_every save_interval": "save_steps",
        "eval_every eval_interval val_check_interval": "eval_steps",
        "num_workers workers n_jobs jobs preprocessing_num_workers": "dataloader_num_workers num_proc workers",
        "gpus n_gpus num_gpus devices nproc_per_node": "num_processes",
        "cpu no_cuda": "use_cpu",
        "random_seed": "seed",
        "beams beam_size num_beams": "generation_num_beams num_beams",
        "freeze freeze_backbone freeze_vision": "freeze_encoder",
        "lora_r rank": "lora_rank",
        "continue continue_training": "resume",
        "overwrite_output_dir": "restart overwrite",
    }.items()
    for word in words.split()
}


@dataclass
class ImpressionConfig:
    """Data, parts and stages. The optimisation is the Trainer's: see `ImpressionTrainingArguments`."""

    dataset: str = field(metadata={"help": "Prepared dataset: a folder made by `hf-cxr prepare`, or a Hub id."})
    encoder: str = field(default="mini", metadata={"help": "Hub id, folder, or from-scratch size: tiny … base."})
    decoder: str = field(default="mini", metadata={"help": "Hub id, folder, or from-scratch size: tiny … base."})
    init_from: str | None = field(
        default=None,
        metadata={
            "help": "Whole checkpoint (run folder or Hub id) to continue, not encoder and decoder; default: none."
        },
    )
    target: str = field(
        default="impression",
        metadata={
            "choices": ["impression", "findings", "report"],
            "help": "What is learned; report: findings, then impression.",
        },
    )
    context: list[str] = field(
        default_factory=list,
        metadata={
            "help": "What the model is told before it writes: indication, comparison, age_sex; default: nothing."
        },
    )
    context_dropout: float = field(
        default=0.0, metadata={"help": "Probability of leaving out each context of a study in training."}
    )
    panel_size: int = field(default=224, metadata={"help": "Side of one square panel in pixels."})
    panels: int = field(
        default=2,
        metadata={
            "choices": [1, 2],
            "help": "2: both views on one canvas; 1: one square image, the frontal view, where there are no laterals.",
        },
    )
    vocab_size: int = field(default=4000, metadata={"help": "Most tokens of a tokenizer trained from scratch."})
    max_target_length: int = field(default=128, metadata={"help": "Longest text in tokens, the end among them."})
    decoder_dropout: float | None = field(
        default=None, metadata={"help": "Dropout of the decoder; default: a pretrained one's own, none from scratch."}
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Studies of a step on all devices together, kept by accumulation; default: per_device_train_batch_"
            "size × gradient_accumulation_steps × devices."
        },
    )
    findings_pretraining_epochs: float = field(default=0.0, metadata={"help": "Epochs of stage one; 0 skips it."})
    findings_pretraining_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of stage one; default: learning_rate."}
    )
    findings_labels: str = field(
        default="text",
        metadata={
            "choices": ["text", "tags"],
            "help": "What stage one learns: findings read from the texts, or the dataset's column tags.",
        },
    )
    findings_loss: str = field(
        default="bce",
        metadata={
            "choices": ["bce", "focal", "asymmetric"],
            "help": "Loss of stage one: cross entropy, or one that counts what is told already less.",
        },
    )
    findings_class_weights: bool = field(
        default=False,
        metadata={"help": "In stage one a positive counts negatives / positives of its finding times, 10 at most."},
    )
    findings_frozen_epochs: int = field(
        default=0, metadata={"help": "First epochs of stage one that train the head alone, the encoder frozen."}
    )
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the encoder in stage two; default: learning_rate."}
    )
    encoder_layer_decay: float = field(
        default=1.0,
        metadata={"help": "Learning rate of an encoder block / that of the next block, in both stages; 1: the same."},
    )
    cross_attention_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the decoder's new cross-attention; default: learning_rate."}
    )
    reward_epochs: float = field(default=0.0, metadata={"help": "Epochs of the reward stage; 0 skips it."})
    reward: list[str] = field(
        default_factory=lambda: ["finding_f1=0.5", "cider=0.3", "length=0.2"],
        metadata={
            "help": "What texts are rewarded for, as NAME=WEIGHT: finding_f1, true_findings, false_findings, cider, "
            "bleu, rouge_l, length, no_repetition, a measure of RadEval, an evaluate module, or your module:function."
        },
    )
    reward_samples: int = field(
        default=1,
        metadata={"help": "Texts drawn for a study in the reward stage; 1: judged beside the greedy one (SCST)."},
    )
    reward_kl: float = field(
        default=0.0, metadata={"help": "What leaving the start of the reward stage costs (KL divergence); 0: nothing."}
    )
    reward_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the reward stage; default: a tenth of learning_rate."}
    )
    view_dropout: float = field(default=0.0, metadata={"help": "Probability of emptying one panel of a pair."})
    augmentation: float = field(
        default=0.0, metadata={"help": "Strength of rotation, scale, shift and contrast, 0 (none) to 1."}
    )
    freeze_encoder: bool = field(
        default=False,
        metadata={"help": "No encoder training in stage two; its states (of unchanged images) are computed once."},
    )
    patch_dropout: float = field(
        default=0.0, metadata={"help": "Share of a frozen encoder's states that the decoder is not shown in training."}
    )
    decode: str = field(
        default="search",
        metadata={
            "choices": ["search", "tuned", "mbr"],
            "help": "How the finished model writes. search: as generate does; tuned: the same, with length penalty "
            "and limits on repetition chosen on validation; mbr: of sampled texts, that of findings most agreed on "
            "(minimum Bayes risk).",
        },
    )
    lora_rank: int = field(
        default=0, metadata={"help": "Train low-rank adapters of this rank in pretrained parts; needs peft."}
    )
    lora_alpha: int = field(default=16, metadata={"help": "Scale of the adapters: lora_alpha / lora_rank."})
    early_stopping_patience: int = field(
        default=0, metadata={"help": "Stop after so many evaluations without a better one; 0: never."}
    )
    log_samples: int = field(default=4, metadata={"help": "Validation studies shown at each evaluation; 0: none."})
    share_samples: bool = field(
        default=False, metadata={"help": "Send those images and texts to trackers on other machines, too."}
    )
    resume: bool = field(default=False, metadata={"help": "Continue an interrupted run in output_dir."})
    restart: bool = field(default=False, metadata={"help": "Delete the run in output_dir and begin anew."})
    num_proc: int | None = field(default=None, metadata={"help": "Processes for packing the canvases; default: one."})


def closest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that was meant by a word that is none of them: by another kit's name for it, or misspelt."""
    known = list(names)
    ours = [own for own in FOREIGN.get(name, ()) if own in known]
    return next(iter(ours or difflib.get_close_matches(name, known, n=1)), None)


def recipe(name: str | os.PathLike) -> Path:
    """The config of a run: a YAML file of yours, or a recipe of the kit by its name (`demo`, `iu_xray_vit_gpt2`, …).

    Raises `FileNotFoundError` with the nearest name, or `IsADirectoryError` for a folder.
    """
    given = Path(name)
    if given.is_file():
        return given
    recipes = _recipes()
    if str(name) in recipes:
        return recipes[str(name)]
    if given.is_dir():
        own = f"; use {given / 'config.yaml'}" if (given / "config.yaml").is_file() else ""
        raise IsADirectoryError(f"{name}: is a folder, not a config file{own}")
    beside_it = sorted(map(str, given.parent.glob("*.y*ml")))
    near = difflib.get_close_matches(str(name), beside_it, n=1) or difflib.get_close_matches(given.stem, recipes, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise FileNotFoundError(f"{name}: no such config file, and none of the recipes {', '.join(recipes)}{hint}")


def _recipes() -> dict[str, Path]:
    inside, beside = Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs"  # wheel, checkout
    return {file.stem: file for file in sorted((inside if inside.is_dir() else beside).glob("*.yaml"))}


def usual_names() -> set[str]:
    """The kit's arguments and those of the Trainer's that the recipes set: known without importing transformers."""
    return {*ImpressionConfig.__dataclass_fields__}.union(*map(read_config, _recipes().values()))


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """Read a flat YAML config; an empty one holds no argument. Raises `OSError` or `ValueError` with the file."""
    import yaml

    file = Path(path)
    if file.is_dir():
        raise IsADirectoryError(f"{file}: is a folder, not a config file")
    if not file.exists():
        raise FileNotFoundError(f"{file}: no such config file")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 at byte {error.start}; save it as UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: a config is a flat mapping of argument names to values")
    return config
