"""Source → dataset: `load_studies` into the datasets cache, `prepare` into a folder that `load_dataset` reads.

Which studies are kept is decided in `hf_cxr.data.splits`, images are read in `hf_cxr.data.builder`, the card is
written in `hf_cxr.data.dataset_card`."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import platform
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import DatasetDict, DatasetInfo, SplitDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_cxr import __version__
from hf_cxr.data import sources
from hf_cxr.data.builder import FEATURES, StudyBuilder
from hf_cxr.data.dataset_card import dataset_card
from hf_cxr.data.images import StoredImage
from hf_cxr.data.provenance import add_steps, format_preparation
from hf_cxr.data.selection import BOTH, VIEWS, select
from hf_cxr.data.splits import SPLITS, assign
from hf_cxr.utils.files import commit, is_empty, staging_folder
from hf_cxr.utils.places import check_dataset

__all__ = ["FEATURES", "StudyBuilder", "format_preparation", "load_prepared", "load_studies", "plan", "prepare"]

PLACES = {"root", "images"}
"""Options of sources that are folders on this machine."""
SHARD_BYTES = 500_000_000
"""Payload of one Parquet file, as the Hub advises."""


def load_studies(
    source: str,
    *,
    section: str = "impression",
    size: int = 384,
    split_file: str | Path | None = None,
    views: str | Path | None = None,
    pairs: str = "best",
    require: str = "any",
    seed: int = 0,
    placeholders: str = "drop",
    num_proc: int = 1,
    cache_dir: str | Path | None = None,
    **options: Any,
) -> DatasetDict:
    """A collection as a `DatasetDict`, built once into the datasets cache and again only when its files change.

    The arguments are those of `prepare`. The preparation report of what was left out is in
    `dataset["train"].info.description`.
    """
    settings = _settings(section, size, split_file, views, pairs, require, seed, placeholders)
    builder = _builder(source, settings, options, cache_dir=cache_dir)
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
    views: str | Path | None = None,
    pairs: str = "best",
    require: str = "any",
    seed: int = 0,
    placeholders: str = "drop",
    num_proc: int = 1,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write a collection as a dataset folder: Parquet, card, preparation report. All of it or, on any failure,
    nothing.

    The same input gives the same bytes, whatever `num_proc` is.

    Args:
        source: One of `hf_cxr.data.sources.SOURCES`.
        out: The folder to make. `data/*.parquet`, `README.md`, `prepare.json`, `splits.csv`, `images.csv` and
            `rejects.jsonl` go into it. A split without a study gets no file.
        section: "impression", "findings" or "both": the text that a study must have to be kept.
        size: Longer side of a stored image in pixels, at most. For the phantom also the size it is drawn in.
        split_file: CSV with the columns `uid` and `split`; studies it does not name are left out.
        views: CSV that names the view of images, in place of what the collection says (`view_labels`).
        pairs: "best", one row per study, or "all", a row for each frontal × lateral pair of images in a study.
        require: "any" view makes a study, or "both" are needed.
        seed: Seed of the split. For the phantom also the seed it is drawn from.
        placeholders: What to do with de-identification placeholders, one of `hf_cxr.data.study.PLACEHOLDER_POLICIES`.
        num_proc: Processes that read images.
        overwrite: Replace `out` if it is a prepared dataset.
        options: What the source takes: `root` for a collection on disk, `columns` for a table, `num_studies` for the
            phantom.

    Returns:
        The preparation report, as in `prepare.json`: `source`, `options`, `steps` (`{"step", "kept", "dropped"}`,
        closing), `splits` (name → rows), `studies` (name → studies), `images` (use → images),
        `studies_without_a_patient`, `text_overlap`, `tables` (name → SHA-256), `images_sha256`, `splits_sha256`,
        `versions`. `format_preparation` prints it.

    Raises:
        FileExistsError: If `out` holds files already, and `overwrite` is not set or they are no prepared dataset.
        ValueError: For an unknown source or option, a broken table, or if no study can be used.
        OSError: If a collection is missing or `out` cannot be written.
    """
    out = Path(out).resolve()
    _check_free(out, overwrite)
    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1; got {num_proc}")
    settings = _settings(section, size, split_file, views, pairs, require, seed, placeholders)
    with staging_folder(out) as folder, _plain_errors():
        builder = _builder(source, settings, options, cache_dir=folder / "cache", config_id="new")
        built, finished = folder / "built", folder / "dataset"
        builder.download_and_prepare(str(built), file_format="parquet", max_shard_size=SHARD_BYTES, num_proc=num_proc)
        facts = _facts(builder, json.loads((built / "preparation.json").read_text(encoding="utf-8")))
        _arrange(built, finished, builder.info.splits, facts)
        commit(finished, out, lambda: _check_free(out, overwrite))
    return facts


def plan(
    source: str,
    *,
    section: str = "impression",
    split_file: str | Path | None = None,
    views: str | Path | None = None,
    pairs: str = "best",
    require: str = "any",
    seed: int = 0,
    placeholders: str = "drop",
    **options: Any,
) -> dict[str, Any]:
    """What `prepare` would keep if every image were there and readable; opens tables only and writes nothing.

    Returns:
        `steps` and `splits` as `prepare` does, and `views`: how many studies have both, or only one of them. Views
        that the collection does not name are decided by names alone.
    """
    if "demand_images" in sources.takes(source):
        options["demand_images"] = False
    settings = _settings(section, 384, split_file, views, pairs, require, seed, placeholders)
    config = _builder(source, settings, options, config_id="plan").config
    planned = config.plan()
    selections = [
        select(study, [StoredImage(0, 0, "")] * len(study.images), pairs, require) for study in planned.studies
    ]
    kept = [study for study, selection in zip(planned.studies, selections, strict=True) if selection.rows]
    rejects = [{"step": selection.step} for selection in selections if selection.step]
    add_steps(planned.steps, [BOTH] if require == "both" else [], rejects)
    split_of_uid = assign(kept, {study.uid: () for study in kept}, seed, config.named_splits())
    rows = Counter[str]()
    for study, selection in zip(planned.studies, selections, strict=True):
        if selection.rows:
            rows[split_of_uid[study.uid]] += len(selection.rows)
    found = Counter(frozenset(view for view, _ in selection.views) for selection in selections if selection.rows)
    return {
        "steps": planned.steps,
        "views": {
            "both": found[frozenset(VIEWS)],
            **{f"{view} only": found[frozenset((view,))] for view in VIEWS},
        },
        "splits": {name: rows[name] for name in SPLITS},
    }


def load_prepared(
    path_or_repo: str | Path, revision: str | None = None, text: str | None = "impression"
) -> DatasetDict:
    """Load a prepared dataset from a folder or the Hub and check that it is one.

    Raises `FileNotFoundError` for a folder without Parquet splits, `ValueError` for a dataset without our columns, or
    with a study that lacks the `text` which is to be learned and scored (`None`: that does not matter).
    """
    folder, given = Path(path_or_repo), str(path_or_repo)
    check_dataset(given)
    try:
        if folder.is_dir():  # by its files, not by its name: load_dataset(folder) serves a stale cache after a change
            files = {name: sorted(map(str, folder.glob(f"data/{name}-*.parquet"))) for name in SPLITS}
            dataset = load_dataset("parquet", data_files={name: paths for name, paths in files.items() if paths})
        else:
            dataset = load_dataset(given, revision=revision)
    except (ConnectionError, FileNotFoundError) as error:
        if folder.is_dir():
            raise
        raise FileNotFoundError(f"{given}: no such folder, and not to be had from the Hub ({error})") from error
    for name, split in dataset.items():
        missing = {"uid", "frontal", "lateral", "impression"} - set(split.column_names)
        if missing:
            raise ValueError(f"{given}: split {name} has no column {sorted(missing)[0]!r}; run hf-cxr prepare")
        silent = (
            next((uid for uid, said in zip(split["uid"], split[text], strict=True) if not said), None)
            if text
            else None
        )
        if silent is not None:
            raise ValueError(
                f"{given}: study {silent} has no {text}, which is what is learned and scored; "
                f"prepare with --section {text} or both"
            )
    return dataset


def _settings(
    section: str,
    size: int,
    split_file: str | Path | None,
    views: str | Path | None,
    pairs: str,
    require: str,
    seed: int,
    placeholders: str,
) -> dict[str, Any]:
    """The fields of `StudyConfig` that do not depend on the source."""
    return {
        "section": section,
        "size": size,
        "seed": seed,
        "placeholders": placeholders,
        "split_file": None if split_file is None else str(Path(split_file).absolute()),
        "views": None if views is None else str(Path(views).absolute()),
        "pairs": pairs,
        "require": require,
    }


def _builder(
    source: str,
    settings: dict[str, Any],
    options: dict[str, Any],
    cache_dir: str | Path | None = None,
    config_id: str | None = None,
) -> StudyBuilder:
    """The builder. Without a `config_id` the source is listed once more, and its content names the cache folder."""
    # A source that draws its studies takes the same seed and size.
    options = {name: settings[name] for name in ("seed", "size") if name in sources.takes(source)} | options
    options = {name: value for name, value in options.items() if value is not None}
    for name in PLACES & set(options):
        options[name] = str(Path(options[name]).absolute())
    return StudyBuilder(
        dataset_name=f"hf_cxr_{source}",
        config_id=config_id,
        cache_dir=None if cache_dir is None else str(cache_dir),
        source=source,
        options=options,
        **settings,
    )


def _facts(builder: StudyBuilder, preparation: dict[str, Any]) -> dict[str, Any]:
    """The content of `prepare.json`. Places on this machine are cut to their last part or left out."""
    config = builder.config
    options = {
        "section": config.section,
        "size": config.size,
        "seed": config.seed,
        "placeholders": config.placeholders,
    }
    options |= {"pairs": config.pairs, "require": config.require}
    options |= {
        name: Path(path).name if path else None for name in ("split_file", "views") for path in [getattr(config, name)]
    }
    options["source_options"] = {name: value for name, value in config.options.items() if name not in PLACES}
    tables = sources.tables(config.source, **config.options)
    return {
        "source": config.source,
        "options": options,
        **preparation,
        "tables": _sha256_of(tables),
        "versions": _versions(),
    }


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
    if not is_empty(out):
        if not overwrite:
            raise FileExistsError(f"{out}: holds files already; choose another folder, or overwrite it (--overwrite)")
        if not (out / "prepare.json").is_file():
            raise FileExistsError(f"{out}: is not a prepared dataset (no prepare.json), so it is not overwritten")


def _arrange(built: Path, folder: Path, splits: SplitDict, facts: dict[str, Any]) -> None:
    """Make the dataset folder of what the builder wrote: files by the names the Hub expects, manifest, card."""
    (folder / "data").mkdir(parents=True)
    filled = SplitDict({name: split for name, split in splits.items() if split.num_examples})
    with (folder / "splits.csv").open("w", encoding="utf-8", newline="") as manifest:
        writer = csv.writer(manifest, lineterminator="\n")
        writer.writerow(("uid", "split"))
        for name in filled:
            shards = sorted(built.glob(f"*-{name}*.parquet"))
            for index, shard in enumerate(shards):
                renamed = shard.rename(folder / "data" / f"{name}-{index:05d}-of-{len(shards):05d}.parquet")
                writer.writerows((uid, name) for uid in pq.read_table(renamed, columns=["uid"])["uid"].to_pylist())
    facts["splits_sha256"] = _sha256(folder / "splits.csv")
    stored = sum(path.stat().st_size for path in (folder / "data").iterdir())
    payload = sum(split.num_bytes for split in filled.values())
    info = DatasetInfo(features=FEATURES, splits=filled, download_size=stored, dataset_size=payload)
    dataset_card(facts, info, {name: f"data/{name}-*" for name in filled}).save(folder / "README.md")
    (folder / "prepare.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for name in ("rejects.jsonl", "images.csv"):
        (built / name).rename(folder / name)


def _sha256_of(tables: list[Path]) -> dict[str, str]:
    """File name → SHA-256; of very many files (Open-i's unpacked reports) one for all."""
    if len(tables) <= 10:
        return {path.name: _sha256(path) for path in tables}
    listing = "".join(f"{_sha256(path)}  {path.name}\n" for path in tables)  # as sha256sum prints them
    return {f"{len(tables)} files": hashlib.sha256(listing.encode()).hexdigest()}


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        digest = hashlib.sha256()
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    names = ("datasets", "pyarrow", "pillow", "numpy")
    return {"hf-cxr": __version__, "python": platform.python_version()} | {name: version(name) for name in names}
