"""What a training run can be told: the kit's own arguments beside the Trainer's, from a flat YAML file and overrides.

An argument has one name everywhere: as a field here, as a key in the YAML file, and as `--name` on the command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from huggingface_hub import get_token
from transformers import HfArgumentParser, Seq2SeqTrainingArguments


@dataclass
class KitArguments:
    """Data, parts and stages. The optimisation is the Trainer's: see `TrainingArguments`."""

    dataset: str = field(metadata={"help": "Prepared dataset: a folder made by `hf-cxr prepare`, or a Hub id."})
    encoder: str = field(default="mini", metadata={"help": "Hub id, folder, or from-scratch size: tiny … base."})
    decoder: str = field(default="mini", metadata={"help": "Hub id, folder, or from-scratch size: tiny … base."})
    panel_size: int = field(default=224, metadata={"help": "Side of one square panel in pixels; the canvas has two."})
    vocab_size: int = field(default=4000, metadata={"help": "Most tokens of a tokenizer trained from scratch."})
    max_target_length: int = field(default=128, metadata={"help": "Longest impression in tokens, the end included."})
    findings_pretraining_epochs: float = field(default=0.0, metadata={"help": "Epochs of stage one; 0 skips it."})
    findings_pretraining_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of stage one; default: learning_rate."}
    )
    findings_labels: str = field(
        default="text",
        metadata={
            "choices": ["text", "tags"],
            "help": "What stage one learns: findings read from the impressions, or the dataset's column tags.",
        },
    )
    encoder_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the encoder in stage two; default: learning_rate."}
    )
    cross_attention_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the decoder's new cross-attention; default: learning_rate."}
    )
    view_dropout: float = field(default=0.0, metadata={"help": "Probability of emptying one panel of a pair."})
    augmentation: float = field(
        default=0.0, metadata={"help": "Strength of rotation, scale, shift and contrast, 0 (none) to 1."}
    )
    freeze_encoder: bool = field(
        default=False,
        metadata={"help": "No encoder training in stage two; its states (of unchanged images) are computed once."},
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
    num_proc: int | None = field(default=None, metadata={"help": "Processes for packing the canvases."})


@dataclass
class TrainingArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the defaults that this kit needs."""

    output_dir: str = field(default="runs/latest", metadata={"help": "The run folder."})
    predict_with_generate: bool = field(default=True, metadata={"help": "Score generated texts at each evaluation."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The canvases carry no other columns."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Studies generated at once."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide a loss that is no number (and wait for the GPU at each step to know)."}
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for unused parameters at each step; no model of this kit has any."}
    )

    def __post_init__(self) -> None:
        if self.metric_for_best_model is None and self.predict_with_generate:  # type: ignore[has-type]
            self.metric_for_best_model = (
                "composite"  # of `hf_cxr.evaluation.evaluate`; BLEU alone rewards one sentence
            )
        super().__post_init__()

    def changed(self) -> dict[str, Any]:
        """The Trainer's arguments that differ from its defaults, as plain YAML values.

        Read off the fields: a second instance to compare with would reset the state of the running processes.
        """
        current = self.to_dict()
        defaults = {
            item.name: item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            for item in dataclasses.fields(self)
            if item.init
        }
        return {"output_dir": self.output_dir} | {
            name: current[name]
            for name, default in defaults.items()
            if name not in DERIVED
            and current[name] not in ([], {}, default, getattr(default, "value", default))
            and (current[name] or default)
        }


# Told on the command line of one start, no part of what the run is.
STARTING = ("resume", "restart")

# Fields that `Seq2SeqTrainingArguments` fills in for itself from the machine and the other fields, and a secret.
DERIVED = {"logging_dir", "local_rank", "accelerator_config", "dataloader_pin_memory", "disable_tqdm", "hub_token"}


ARGUMENTS = (KitArguments, TrainingArguments)


def resolved_config(kit: KitArguments, args: TrainingArguments) -> dict[str, Any]:
    """All of the kit's arguments and the Trainer's changed ones: a config that trains the same model again."""
    config = dataclasses.asdict(kit) | args.changed()
    return {name: value for name, value in config.items() if name not in STARTING}


def argument_names() -> list[str]:
    """Every key that a config may hold."""
    return [item.name for kind in ARGUMENTS for item in dataclasses.fields(kind) if item.init]


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """Read a flat YAML config. Raises `FileNotFoundError` or `ValueError` naming the file and the key."""
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such config file")
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"{file}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file}: a config is a flat mapping of argument names to values")
    for key in config:
        _check_name(str(key), str(file))
    return config


def _check_name(name: str, where: str) -> None:
    names = argument_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise ValueError(f"{where}: unknown argument {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def parse_arguments(
    config: str | os.PathLike, overrides: Sequence[str] = (), arguments: Mapping[str, Any] = MappingProxyType({})
) -> tuple[KitArguments, TrainingArguments]:
    """The arguments of a run: the YAML file `config`, then values by name, then `--name value` overrides.

    Raises `ValueError` with one line for an unknown name (with the nearest valid one) or an unusable value.
    """
    words: list[str] = []
    for name in arguments:
        _check_name(name, "train")
    for key, value in (read_config(config) | dict(arguments)).items():
        words += _as_words(key, value)
    for word in overrides:
        if word.startswith("--"):
            _check_name(word[2:].split("=")[0].replace("-", "_"), "command line")
    parser = HfArgumentParser(ARGUMENTS, allow_abbrev=False)

    def fail(message: str):
        raise ValueError(f"{config}: {message}")

    parser.error = fail
    kit, args, rest = parser.parse_args_into_dataclasses(words + list(overrides), return_remaining_strings=True)
    if args.push_to_hub:
        _check_push(args)
    if rest:
        raise ValueError(f"command line: {rest[0]!r} belongs to no argument")
    return kit, args


def _check_push(args: TrainingArguments) -> None:
    """Raise `ValueError` for a push that is certain to fail, or that would upload more than `hf-cxr push` does."""
    if not args.hub_model_id or "/" not in args.hub_model_id:
        raise ValueError("push_to_hub needs hub_model_id: user/name")
    if args.hub_strategy not in ("end", "every_save"):
        raise ValueError(
            f"hub_strategy: {args.hub_strategy.value} uploads the optimizer's state; use every_save or end"
        )
    if args.hub_revision:
        raise ValueError("hub_revision: a run is pushed to the main branch; leave it out")
    if not (args.hub_token or get_token()):
        raise ValueError("push_to_hub: no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")


def _as_words(key: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, (list, tuple)):
        return [f"--{key}", *map(str, value)]
    value = getattr(value, "value", value)  # of an enum, as IntervalStrategy
    return [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
