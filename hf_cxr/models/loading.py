"""Loading what others made: no code of theirs is run, and whatever is wrong with their files is one line. What is made
of the parts lives in `hf_cxr.models.modeling` and `hf_cxr.models.encoders`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig

MOST = {"layer": 1000, "depth": 1000, "expert": 1000, "labels": 50_000}
"""Numbers of a config.json, by a part of their name: so many parts are made one by one before any weights are read."""


def load(kind: Any, name: str | os.PathLike, **options: Any) -> Any:
    """`kind.from_pretrained(name, **options)` without code of the folder or repository `name`.

    Raises `ValueError` or `OSError` of one line that begins with the name.
    """
    with loading(name):
        return kind.from_pretrained(name, trust_remote_code=False, **options)


def load_config(name: str | os.PathLike, revision: str | None = None) -> PreTrainedConfig:
    """The config of a model, whose parts, built from it, ask for no code either. Raises as `load` does."""
    with loading(name):
        written, _ = PreTrainedConfig.get_config_dict(name, revision=revision)
        for place, value in _walked(written):
            most = next((most for part, most in MOST.items() if part in place), value)
            if isinstance(value, (int, float)) and value > most:
                raise ValueError(f"{name}: {place} is {value} in its config.json, where {most} is the most")
    config = load(AutoConfig, name, revision=revision)
    for part in (config, *(value for value in vars(config).values() if isinstance(value, PreTrainedConfig))):
        vars(part).pop("auto_map", None)
    return config


@contextmanager
def loading(name: str | os.PathLike) -> Iterator[None]:
    """Whatever fails in this block as one line: files of others make libraries raise errors of any kind."""
    try:
        yield
    except Exception as error:
        told = " ".join(str(error).split())
        if "trust_remote_code" in told:
            raise ValueError(f"{name}: needs code of its own (auto_map), and the kit runs none of it") from error
        kind = OSError if isinstance(error, OSError) else ValueError
        if told.startswith(f"{name}: "):
            raise kind(told) from error
        what = "a file cannot be read" if kind is OSError else "not a checkpoint, or a damaged one"
        if isinstance(error, SafetensorError):
            what = "its model.safetensors is damaged"
        raise kind(f"{name}: {what} ({type(error).__name__}: {told[:200]})") from error


def _walked(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Each leaf of nested dicts and lists, with the last name on the way to it."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _walked(inner, str(name))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _walked(inner, place)
    else:
        yield place, value
