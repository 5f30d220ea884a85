"""The arguments of a run. `hf_cxr.config.kit` has the kit's own, the recipes and the reading of a config; it is light.
The Trainer's, in `hf_cxr.config.training`, need transformers; those names are imported when they are first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from hf_cxr.config.kit import ImpressionConfig, recipe

if TYPE_CHECKING:
    from hf_cxr.config.training import ImpressionTrainingArguments, argument_names, parse_arguments, resolved_config

__all__ = [
    "ImpressionConfig",
    "ImpressionTrainingArguments",
    "argument_names",
    "parse_arguments",
    "recipe",
    "resolved_config",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("hf_cxr.config.training"), name)
