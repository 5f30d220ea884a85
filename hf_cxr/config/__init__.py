"""The arguments of a run. `hf_cxr.config.kit` has the kit's own, the recipes and the reading of a config; it is light.
The Trainer's, in `hf_cxr.config.training`, need transformers; those names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_cxr.config.kit import KitArguments as KitArguments
from hf_cxr.config.kit import read_config as read_config
from hf_cxr.config.kit import recipe as recipe

if TYPE_CHECKING:
    from hf_cxr.config.training import TrainingArguments as TrainingArguments
    from hf_cxr.config.training import argument_names as argument_names
    from hf_cxr.config.training import parse_arguments as parse_arguments
    from hf_cxr.config.training import resolved_config as resolved_config


def __getattr__(name: str) -> Any:
    if name not in ("TrainingArguments", "argument_names", "parse_arguments", "resolved_config"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("hf_cxr.config.training"), name)
