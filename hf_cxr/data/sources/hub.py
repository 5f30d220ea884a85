"""A dataset on the Hub whose rows hold images: its files are read where they lie, at one commit, and not kept on disk.

Which files are its splits, `datasets` says; what its columns mean, `hf_cxr.data.sources.table`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hf_cxr.data.collection import Collection
from hf_cxr.data.sources import table
from hf_cxr.data.sources.rows import Table, joined, kind_of_name, read_file
from hf_cxr.data.storage import Place, join, parent
from hf_cxr.data.study import Study
from hf_cxr.utils.places import unreachable

log = logging.getLogger(__name__)

HUB = "hf://datasets/"
SPLITS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing")
LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
GATED = f"gated: accept its terms on its page on the Hub; {LOG_IN}"
FILE_NAME = "file_name"
"""The column of paths in the `metadata.csv` of a folder of images, which `datasets` gives out as `image`."""


@dataclass(frozen=True)
class _Repository:
    """A dataset at a commit."""

    name: str
    commit: str
    card: Mapping[str, Any] = field(compare=False)

    @property
    def address(self) -> str:
        return f"{HUB}{self.name}@{self.commit}"


def studies(
    root: str,
    columns: Mapping[str, str] | None = None,
    images: str | None = None,
    encoding: str | None = None,
    preset: str | Path | None = None,
    revision: str | None = None,
    config: str | None = None,
    demand_images: bool = True,
) -> Iterator[Study]:
    """The studies of a dataset's table, as `table.studies` makes them, in the order of its splits and files.

    Read are Parquet files with images in them (`Image()` or bytes), and tables of other kinds, `metadata.csv` among
    them, that name image files of the repository. Splits called train, validation (valid, val, dev) or test are kept
    where there are several; rows of other splits are not read then.

    Args:
        root: "user/dataset".
        columns, encoding, preset: As in `table.studies`.
        images: Folder of the repository that relative paths start from.
        revision: Branch, tag or commit.
        config: The configuration (subset), where the dataset has several.
        demand_images: Without it no byte of an image is read: a column of bytes with gaps in it then counts as full.

    Raises:
        FileNotFoundError: If the Hub cannot be reached, or has no such dataset, revision or configuration for you.
        ValueError: If the dataset holds no table that can be read (see `table.studies`).
    """
    repository = _find(root, revision)
    files = _files(repository, config)
    folders = {str(parent(file)) for file in files}
    base = folders.pop() if len(folders) == 1 else repository.address
    base = str(join(repository.address, images)) if images else base

    def opened(file: Place) -> Table:
        read = read_file(file, encoding)
        return _with_images(read, str(parent(file)).removeprefix(f"{base}").strip("/"), gaps)

    gaps: set[str] | None = None if demand_images else set()
    yield from table.of_table(joined(repository.address, files, opened), base, columns, preset)
    if gaps:
        said = "has gaps, and which studies lack that image shows when images are read: all count as having it"
        log.warning("%s: column %s %s", repository.name, ", ".join(sorted(gaps)), said)


def _with_images(read: Table, folder: str, gaps: set[str] | None) -> Table:
    """A file's table with the column `file_name` of a folder of images as `image`, from the base of all paths."""
    rename = (
        read.column("image") is None
        and FILE_NAME in read.columns
        and str(read.path).rpartition("/")[2].startswith("metadata.")
    )

    def load(columns: Sequence[str], images: Sequence[str], _: object) -> Iterator[tuple[str, Mapping[str, Any]]]:
        texts, shown = ([FILE_NAME if rename and n == "image" else n for n in names] for names in (columns, images))
        for place, values in read.load(texts, shown, gaps):
            if rename and (name := values.get(FILE_NAME)):
                values = {**values, "image": f"{folder}/{name}".lstrip("/")}
            yield place, values

    return replace(read, columns=(*read.columns, *(["image"] if rename else [])), load=load)


def pinned(root: str, revision: str | None = None, images: str | None = None, **options: object) -> dict[str, str]:
    """The options that name the same dataset for ever: the commit in place of a branch."""
    repository = _find(root, revision)
    found = {"root": repository.address, "revision": repository.commit}
    return found | ({"images": str(join(repository.address, images))} if images else {})


def tables(root: str, **options: object) -> list[Place]:
    """None that lies on this machine: the commit says what was read."""
    return []


def collection(root: str, revision: str | None = None, preset: str | Path | None = None) -> Collection:
    """What the card of the dataset states, or the preset."""
    if preset is not None:
        return table.collection(preset=preset)
    repository = _find(root, revision)
    card = repository.card
    licence = _first(card.get("license")) or "other"
    if licence == "other":
        licence = _first(card.get("license_name")) or "other"
    language = _first(card.get("language"))
    said = f"its card states the licence **{licence}**" if licence != "other" else "its card states no known licence"
    return Collection(
        f"{_first(card.get('pretty_name')) or repository.name} ({repository.name} on the Hub)",
        licence,
        f"Prepared from the dataset {repository.name} on the Hub, at commit {repository.commit}; {said}. Check it "
        "before you share this dataset.",
        language if language and re.fullmatch("[a-z]{2}", language) else None,
    )


def _first(stated: Any) -> str:
    """A fact of a card, which may be a list."""
    listed = stated if isinstance(stated, list) else [stated]
    return str(listed[0]).strip() if listed and listed[0] else ""


@lru_cache(maxsize=8)
def _find(root: str, revision: str | None) -> _Repository:
    """The dataset at its present commit; an address that `pinned` made says which."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name, _, commit = root.removeprefix(HUB).partition("@")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ValueError(f"{root}: not the name of a dataset on the Hub (user/dataset)")
    if reason := unreachable():
        raise FileNotFoundError(f"{name}: not to be had from the Hub ({reason})")
    try:
        found = HfApi().dataset_info(name, revision=commit or revision)
    except GatedRepoError:
        raise FileNotFoundError(f"{name}: {GATED}") from None
    except RepositoryNotFoundError:
        raise FileNotFoundError(f"{name}: no such dataset on the Hub, or a private one; {LOG_IN}") from None
    except RevisionNotFoundError:
        raise FileNotFoundError(f"{name}: no revision {revision!r} on the Hub") from None
    except (OSError, HFValidationError) as error:
        raise FileNotFoundError(f"{name}: not to be had from the Hub ({_line(error)})") from None
    card = found.card_data.to_dict() if found.card_data else {}
    return _Repository(name, str(found.sha), card)


@lru_cache(maxsize=8)
def _files(repository: _Repository, config: str | None) -> dict[Place, str]:
    """The tables of a configuration → their split, "" where there is one alone."""
    import datasets

    name = repository.name
    try:
        builder = datasets.load_dataset_builder(name, config, revision=repository.commit)
        listed = builder.config.data_files or {}
    except datasets.exceptions.DatasetNotFoundError as error:
        reason = GATED if "gated" in str(error) else _line(error)
        raise FileNotFoundError(f"{name}: {reason}") from None
    except ValueError as error:
        known = re.search(r"\[(.+?)\]", str(error))
        if "onfig" not in str(error) or not known:
            raise ValueError(f"{name}: {_line(error)}") from None
        wrong = f"no configuration {config!r}" if config else "it has several configurations"
        raise ValueError(f"{name}: {wrong}; choose one with --config: {known[1]}") from None
    except (OSError, RuntimeError) as error:  # a RuntimeError is for a dataset that is a script
        raise FileNotFoundError(f"{name}: cannot be read ({_line(error)})") from None
    tables = {str(split): [f for f in files if kind_of_name(f) not in ("", ".txt")] for split, files in listed.items()}
    known_splits = [split for split in tables if split.lower() in SPLITS and tables[split]]
    if others := [split for split in tables if split not in known_splits and known_splits and tables[split]]:
        log.warning("%s: its splits %s are none that are read; name them in a split file", name, ", ".join(others))
    found = {f: split for split in known_splits or tables for f in tables[split]}
    if not found:
        raise ValueError(
            f"{name}: no table in it that can be read (Parquet, CSV or JSON), but {type(builder).__name__}"
        )
    return found if known_splits else dict.fromkeys(found, "")


def _line(error: Exception) -> str:
    """The first sentence of an error, on one line."""
    return " ".join(str(error).split("\n")[0].split()).rstrip(".") or type(error).__name__
