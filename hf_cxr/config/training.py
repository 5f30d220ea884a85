"""The arguments of a run with the Trainer's among them: parsed from a config and overrides, and written as a config.

The kit's own arguments, recipes and the reading of a file are in `hf_cxr.config.kit`, which needs no transformers.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from huggingface_hub import get_token
from transformers import HfArgumentParser, Seq2SeqTrainingArguments

from hf_cxr.config.kit import STARTING, ImpressionConfig, closest, read_config


@dataclass
class ImpressionTrainingArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments` with the defaults that this kit needs."""

    output_dir: str = field(default="runs/latest", metadata={"help": "The run folder."})
    predict_with_generate: bool = field(default=True, metadata={"help": "Score generated texts at each evaluation."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The canvases carry no other columns."})
    gradient_accumulation_steps: int = field(
        default=0, metadata={"help": "Batches of a device in a step; default: as many as global_batch_size needs."}
    )
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Studies generated at once."})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "Hide a loss that is no number (and wait for the GPU at each step to know)."}
    )
    disable_tqdm: bool = field(default=False, metadata={"help": "Lines instead of a bar, on a terminal too."})
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Look for unused parameters at each step; no model of this kit has any."}
    )

    def __post_init__(self) -> None:
        if self.metric_for_best_model is None and self.predict_with_generate:  # type: ignore[has-type]
            # Of `hf_cxr.evaluation.evaluate`; BLEU alone rewards one sentence.
            self.metric_for_best_model = "composite"
        self.accumulation_given = self.gradient_accumulation_steps != 0
        self.gradient_accumulation_steps = self.gradient_accumulation_steps or 1
        super().__post_init__()

    def changed(self) -> dict[str, Any]:
        """The Trainer's arguments that differ from its defaults, as plain YAML values.

        Read off the fields: a second instance to compare with would reset the state of the running processes.
        """
        current = {name: str(value) if isinstance(value, Path) else value for name, value in self.to_dict().items()}
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


# Fields that `Seq2SeqTrainingArguments` fills in for itself from the machine and the other fields, and a secret.
DERIVED = {"logging_dir", "local_rank", "accelerator_config", "dataloader_pin_memory", "hub_token"}
DERIVED |= {"do_train", "do_eval", "do_predict"}  # a run does all three; `do_eval` is filled in, the others unread
ARGUMENTS = (ImpressionConfig, ImpressionTrainingArguments)


def resolved_config(kit: ImpressionConfig, args: ImpressionTrainingArguments) -> dict[str, Any]:
    """All of the kit's arguments and the Trainer's changed ones: a config that trains the same model again."""
    config = dataclasses.asdict(kit) | args.changed()
    if kit.global_batch_size:  # says the same on any number of devices
        config.pop("gradient_accumulation_steps", None)
    return {name: value for name, value in config.items() if name not in STARTING}


def argument_names() -> list[str]:
    """Every key that a config may hold."""
    return [item.name for kind in ARGUMENTS for item in dataclasses.fields(kind) if item.init]


def _check_name(name: str, where: str) -> None:
    names = argument_names()
    if name not in names:
        near = closest(name, names)
        raise ValueError(f"{where}: unknown argument {name!r}" + (f"; did you mean {near!r}?" if near else ""))


def check_names(
    config: str | os.PathLike, overrides: Sequence[str] = (), arguments: Iterable[str] = ()
) -> dict[str, Any]:
    """The settings of the YAML file `config`. Raises `ValueError` for a name in any of the three that is unknown."""
    settings = read_config(config)
    for where, names in ((str(config), settings), ("train", arguments)):
        for name in names:
            _check_name(str(name), where)
    for word in overrides:
        if word.startswith("--"):
            _check_name(word[2:].split("=")[0].replace("-", "_"), "command line")
    return settings


def parse_arguments(
    config: str | os.PathLike, overrides: Sequence[str] = (), arguments: Mapping[str, Any] = MappingProxyType({})
) -> tuple[ImpressionConfig, ImpressionTrainingArguments]:
    """The arguments of a run: the YAML file `config`, then values by name, then `--name value` overrides.

    Raises `ValueError` with one line for an unknown name (with the nearest valid one) or an unusable value.
    """
    settings = check_names(config, overrides, arguments)
    words = [word for key, value in (settings | dict(arguments)).items() for word in _as_words(key, value)]
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


def _check_push(args: ImpressionTrainingArguments) -> None:
    """Raise `ValueError` for a push that is certain to fail, or that would upload more than `hf-cxr push` does."""
    if not args.hub_model_id or "/" not in args.hub_model_id:
        raise ValueError("push_to_hub needs hub_model_id: user/name")
    if (strategy := args.hub_strategy) not in ("end", "every_save"):
        raise ValueError(f"hub_strategy: {strategy.value} uploads the optimizer's state; use every_save or end")
    if args.hub_revision:
        raise ValueError("hub_revision: a run is pushed to the main branch; leave it out")
    if not (args.hub_token or get_token()):
        raise ValueError("push_to_hub: no token for the Hub; log in with `hf auth login`, or set HF_TOKEN")


def _as_words(key: str, value: Any) -> list[str]:
    if value is None:
        return []
    if key == "reward" and isinstance(value, dict):
        value = [f"{name}={weight}" for name, weight in value.items()]
    if isinstance(value, (list, tuple)):
        return [f"--{key}", *map(str, value)] if value else []
    value = getattr(value, "value", value)  # of an enum, as IntervalStrategy
    return [f"--{key}", json.dumps(value) if isinstance(value, dict) else str(value)]
