"""Loading what others made: no code of theirs is run, and whatever is wrong with their files is one line. What is made
of the parts lives in `hf_cxr.models.modeling` and `hf_cxr.models.encoders`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, PreTrainedConfig
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils.hub import get_checkpoint_shard_files

from hf_cxr.inference.checks import UnusableCheckpoint
from hf_cxr.utils.files import json_object

MOST = {"layer": 1000, "depth": 1000, "expert": 1000, "labels": 50_000}
"""Numbers of a config.json, by a part of their name: so many parts are made one by one before any weights are read."""
MORE = 100_000_000
"""Numbers that a model may have beyond the bytes of its weights' files: tables that no file holds, as masks."""
QUIET = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
FILES = ("config.json", "preprocessor_config.json")
"""What every checkpoint has beside its weights (the second may be a part of processor_config.json), and those of two
views these, too:"""
OUR_FILES = ("generation_config.json", "tokenizer_config.json")
PROCESSOR = "processor_config.json"
MORE_FILES = ("tokenizer.json", "special_tokens_map.json", "added_tokens.json", PROCESSOR)
"""Each of them is a JSON object, and so are these where there are any."""
NEVER_READ = re.compile(
    r"\b(?:pooler|mask_token|position_ids|relative_position_index|relative_coords_table)\b"
    r"|\.h\.\d+\.(?:attn|crossattention)\.(?:masked_)?bias$"
)
"""Names of weights that no text depends on: they may be absent, or left over from an earlier transformers."""


def check_files(folder: Path, names: Sequence[str] = FILES) -> None:
    """Check that a checkpoint's folder holds all small files, whole. Raises `OSError` or `ValueError` naming one."""
    there = {
        path.name: json_object(path)
        for path in (folder / name for name in (*FILES, *OUR_FILES, *MORE_FILES))
        if path.is_file()
    }
    for name in names:
        if name not in there and not (name == FILES[1] and "image_processor" in there.get(PROCESSOR, {})):
            raise FileNotFoundError(f"{folder}: {name} is missing; copy the whole checkpoint")
    if (index := folder / "model.safetensors.index.json").is_file():
        places = json_object(index).get("weight_map")
        if not isinstance(places, dict) or not all(
            isinstance(file, str) and Path(file).name == file and (folder / file).is_file() for file in places.values()
        ):
            raise ValueError(f"{index}: its weight_map does not name files of this folder")


def load(kind: Any, name: str | os.PathLike, **options: Any) -> Any:
    """`kind.from_pretrained(name, **options)` without code of the folder or repository `name`.

    Raises `ValueError` or `OSError` of one line that begins with the name.
    """
    with loading(name):
        return kind.from_pretrained(name, trust_remote_code=False, **options)


def load_model(kind: Any, name: str | os.PathLike, config: PreTrainedConfig, **options: Any) -> Any:
    """`load` for a model, refused before it takes memory if its config asks for more than its files hold."""
    with loading(name):
        with torch.device("meta"):
            model = getattr(kind, "from_config", kind)(config)
        numbers = sum(part.numel() for part in (*model.parameters(), *model.buffers()))
        most = MORE + sum(Path(file).stat().st_size for file in _weights(name, options.get("revision")))
        if numbers > most:
            few = "and its weights are far fewer; copy the whole checkpoint again"
            raise ValueError(f"{name}: its config.json asks for {numbers:,} numbers, {few}")
    return load(kind, name, config=config, **options)


def _weights(name: str | os.PathLike, revision: str | None) -> list[str]:
    """The files of weights that `from_pretrained` reads, fetched where they are on the Hub."""
    for file in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME):
        if found := cached_file(name, file, revision=revision, **QUIET):
            shards = file in (SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME)
            return get_checkpoint_shard_files(name, found, revision=revision)[0] if shards else [found]
    return []


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
    except UnusableCheckpoint as error:
        raise UnusableCheckpoint(f"{name}: {error}") from error
    except Exception as error:
        told = " ".join(str(error).split())
        if "trust_remote_code" in told:
            raise ValueError(f"{name}: needs code of its own (auto_map), and the kit runs none of it") from error
        if told.startswith(f"{name}: "):
            raise
        kind = OSError if isinstance(error, OSError) else ValueError
        what = "a file cannot be read" if kind is OSError else "not a checkpoint, or a damaged one"
        if isinstance(error, SafetensorError):
            what = "its model.safetensors is damaged"
        elif "ignore_mismatched_sizes" in told:  # which goes on about a report that nobody sees
            raise ValueError(f"{name}: its weights have other sizes than its config.json says") from error
        raise kind(f"{name}: {what} ({type(error).__name__}: {told[:300]})") from error


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
