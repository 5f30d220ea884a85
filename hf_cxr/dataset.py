"""Source → dataset: `load_studies` into the datasets cache, `prepare` into a folder that `load_dataset` reads.

Which studies are kept is decided in `hf_cxr.splits`, pictures are read in `hf_cxr.builder`, the card is written in
`hf_cxr.dataset_card`.
"""

from __future__ import annotations

import csv
import inspect
import json
import logging
import platform
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, DatasetInfo, SplitDict, SplitInfo
from datasets.exceptions import DatasetGenerationError

from hf_cxr import __version__, sources
from hf_cxr.builder import FEATURES, StudyBuilder
from hf_cxr.dataset_card import dataset_card
from hf_cxr.splits import format_waterfall

__all__ = ["FEATURES", "StudyBuilder", "format_waterfall", "load_studies", "prepare"]

SHARD_BYTES = 500_000_000
"""Payload of one Parquet file, as the Hub advises."""


def load_studies(
    source: str,
    *,
    section: str = "impression",
    size: int = 384,
    split_file: str | Path | None = None,
    num_proc: int = 1,
    seed: int = 0,
    scars: str = "drop",
    cache_dir: str | Path | None = None,
    **options: Any,
) -> DatasetDict:
    """A collection as a `DatasetDict`, built once into the datasets cache and again only when its files change.

    The arguments are those of `prepare`. The account of what was left out is in `dataset["train"].info.description`.
    """
    builder = _builder(source, section, size, split_file, seed, scars, cache_dir, options)
    with _plain_errors():
        builder.download_and_prepare(num_proc=num_proc)
    return _datasets(builder)


def prepare(
    source: str,
    out: str | Path,
    *,
    section: str = "impression",
    size: int = 384,
    split_file: str | Path | None = None,
    num_proc: int = 1,
    seed: int = 0,
    scars: str = "drop",
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write a collection as a dataset folder: Parquet, card, account. All of it or, on any failure, nothing.

    The same input gives the same bytes, whatever `num_proc` is.

    Args:
        source: One of `hf_cxr.sources.SOURCES`.
        out: The folder to make. `data/*.parquet`, `README.md`, `prepare.json`, `splits.csv` and `rejects.jsonl`
            go into it. A split without a study gets no file.
        section: "impression", "findings" or "both": the text that a study must have to be kept.
        size: Longer side of a stored image in pixels, at most. For the phantom also the size it is drawn in.
        split_file: CSV with the columns `uid` and `split`; studies it does not name are left out.
        num_proc: Processes that read images.
        seed: Seed of the split. For the phantom also the seed it is drawn from.
        scars: What to do with de-identification scars, one of `hf_cxr.reports.SCAR_POLICIES`.
        overwrite: Replace `out` if it is a prepared dataset.
        options: What the source takes: `root` for a collection on disk, `num_studies` for the phantom.

    Returns:
        The account, as in `prepare.json`: `source`, `options`, `steps` (`{"step", "kept", "dropped"}`, closing),
        `splits` (name → studies), `versions`. `format_waterfall` prints it.

    Raises:
        FileExistsError: If `out` holds files already, and `overwrite` is not set or they are no prepared dataset.
        ValueError: For an unknown source or option, a broken table, or if no study can be used.
        OSError: If a collection is missing or `out` cannot be written.
    """
    out = Path(out).absolute()
    _check_free(out, overwrite)
    with _workshop(out) as workshop, _plain_errors():
        builder = _builder(
            source, section, size, split_file, seed, scars, workshop / "cache", options, config_id="new"
        )
        builder.download_and_prepare(num_proc=num_proc)
        account = json.loads(Path(builder.cache_dir, "account.json").read_text(encoding="utf-8"))
        given = {name: value for name, value in builder.config.options.items() if name != "root"}
        facts = {
            "source": source,
            "options": {
                "section": section,
                "size": size,
                "seed": seed,
                "scars": scars,
                "split_file": Path(split_file).name if split_file is not None else None,
                "source_options": given,
            },
            **account,
            "versions": _versions(),
        }
        finished = workshop / "dataset"
        _write(finished, _datasets(builder), facts)
        shutil.copy(Path(builder.cache_dir, "rejects.jsonl"), finished)
        _move_in(finished, out, overwrite)
    return facts


def _builder(
    source: str,
    section: str,
    size: int,
    split_file: str | Path | None,
    seed: int,
    scars: str,
    cache_dir: str | Path | None,
    options: dict[str, Any],
    config_id: str | None = None,
) -> StudyBuilder:
    """The builder. Without a `config_id` the source is listed once more, and its content names the cache folder."""
    if source in sources.SOURCES:  # a source that draws its studies takes the same seed and size
        takes = inspect.signature(import_module(sources.SOURCES[source]).studies).parameters
        options = {name: value for name, value in (("seed", seed), ("size", size)) if name in takes} | options
    if options.get("root") is None:
        options.pop("root", None)
    else:
        options["root"] = str(Path(options["root"]).absolute())
    return StudyBuilder(
        dataset_name=f"hf_cxr_{source}",
        config_id=config_id,
        cache_dir=None if cache_dir is None else str(cache_dir),
        source=source,
        options=options,
        section=section,
        size=size,
        scars=scars,
        seed=seed,
        split_file=None if split_file is None else str(Path(split_file).absolute()),
    )


def _datasets(builder: StudyBuilder) -> DatasetDict:
    """The splits that hold studies; `datasets` cannot read one that holds none."""
    filled = {name: name for name, split in builder.info.splits.items() if split.num_examples}
    return builder.as_dataset(split=filled)


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Let the reason through that `datasets` wraps, and keep its remarks on small splits to itself."""
    log = logging.getLogger("datasets.builder")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    except DatasetGenerationError as error:
        raise (error.__cause__ or error) from None
    finally:
        log.setLevel(level)


def _check_free(out: Path, overwrite: bool) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise FileExistsError(f"{out}: is a file, not a folder to write a dataset to")
    if any(out.iterdir()):
        if not overwrite:
            raise FileExistsError(f"{out}: holds files already; choose another folder, or overwrite it (--overwrite)")
        if not (out / "prepare.json").is_file():
            raise FileExistsError(f"{out}: is not a prepared dataset (no prepare.json), so it is not overwritten")


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A temporary folder on the disk of `out`, gone afterwards whatever happens."""
    beside = next(parent for parent in out.parents if parent.exists())
    if not beside.is_dir():
        raise NotADirectoryError(f"{out}: cannot be made, {beside} is a file")
    try:
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=beside))
    except OSError as error:
        raise type(error)(f"{out}: cannot write to {beside} ({error.strerror})") from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move_in(finished: Path, out: Path, overwrite: bool) -> None:
    """Rename the finished dataset to `out`: at no moment is half a dataset there."""
    _check_free(out, overwrite)  # someone else may have finished meanwhile
    out.parent.mkdir(parents=True, exist_ok=True)
    replaced = finished.with_name("replaced")
    try:
        if out.exists():
            out.rename(replaced)
        finished.rename(out)
    except BaseException:
        if replaced.exists() and not out.exists():
            replaced.rename(out)
        raise


def _write(folder: Path, dataset: DatasetDict, facts: dict[str, Any]) -> None:
    (folder / "data").mkdir(parents=True)
    infos, data_files = SplitDict(), {}
    for name, split in dataset.items():
        payload = _payload(split)
        shards = max(1, -(-payload // SHARD_BYTES))
        for index in range(shards):
            part = split.shard(num_shards=shards, index=index, contiguous=True)
            part.to_parquet(folder / "data" / f"{name}-{index:05d}-of-{shards:05d}.parquet")
        infos.add(SplitInfo(name=str(name), num_bytes=payload, num_examples=len(split)))
        data_files[str(name)] = f"data/{name}-*"
    stored = sum(path.stat().st_size for path in (folder / "data").iterdir())
    payload = sum(info.num_bytes for info in infos.values())
    info = DatasetInfo(features=FEATURES, splits=infos, download_size=stored, dataset_size=payload)
    dataset_card(facts, info, data_files).save(folder / "README.md")
    (folder / "prepare.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    with (folder / "splits.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(("uid", "split"))
        writer.writerows((uid, name) for name, split in dataset.items() for uid in split["uid"])


def _payload(dataset: Dataset) -> int:
    """Bytes of images and texts, a count that does not depend on how many processes wrote them."""
    total = 0
    for column in dataset.data.columns:
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")
        elif pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
            column = pc.list_flatten(column)
        total += pc.sum(pc.binary_length(column)).as_py() or 0
    return total


def _versions() -> dict[str, str]:
    names = ("datasets", "pyarrow", "pillow", "numpy")
    return {"hf-cxr": __version__, "python": platform.python_version()} | {name: version(name) for name in names}
