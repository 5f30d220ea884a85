"""Source → dataset: `prepare` writes a folder that `load_dataset` reads, `load_studies` one in the datasets cache.

Which studies are kept is decided in `hf_cxr.data.choice`, files are written in `hf_cxr.data.builder`, the card in
`hf_cxr.data.dataset_card`."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import platform
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import datasets
import filelock
from datasets import DatasetDict

from hf_cxr import __version__
from hf_cxr.data import sources, store
from hf_cxr.data.builder import build
from hf_cxr.data.checks import check_disk, check_output, disk_needed
from hf_cxr.data.choice import PreparationConfig, choose, patients_known
from hf_cxr.data.dataset_card import dataset_card
from hf_cxr.data.images import worker
from hf_cxr.data.prepared import read_splits
from hf_cxr.data.provenance import format_preparation
from hf_cxr.data.scheduler import workers
from hf_cxr.data.selection import BOTH, VIEWS
from hf_cxr.data.splits import SPLITS
from hf_cxr.data.storage import Place, is_url, open_file
from hf_cxr.data.study import StoredImage
from hf_cxr.inference.decoding import decoder
from hf_cxr.utils.files import commit, json_object, staging_folder, staging_of

__all__ = ["format_preparation", "load_studies", "plan", "prepare"]

PLACES = {"root", "images", "reports", "labels"}  # options of sources that are places on this machine
SETTINGS = [field for field in fields(PreparationConfig) if field.name not in ("source", "options")]
Function = TypeVar("Function", bound=Callable[..., Any])


def _with_settings(function: Function) -> Function:
    """The function with the settings in its signature, which its `**options` take: `help` shows them."""
    signature = inspect.signature(function)
    *own, options = signature.parameters.values()
    shown = [
        inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
        for field in SETTINGS
    ]
    vars(function)["__signature__"] = signature.replace(parameters=[*own, *shown, options])
    return function


@_with_settings
def load_studies(
    source: str, *, num_proc: int = 1, cache_dir: str | Path | None = None, **options: Any
) -> DatasetDict:
    """A collection as a `DatasetDict`, prepared once in the datasets cache and again only when its files change.

    The `options` are those of `prepare`. The preparation report is in `dataset["train"].info.description`.
    """
    config = _config(source, options)
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE)
    folder = cache / f"hf_cxr_{source}" / config.fingerprint()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(f"{folder}.lock"):
        if not folder.exists():
            _prepare(config, folder, num_proc, resume=True, overwrite=True)
    dataset = read_splits(folder, cache)
    report = format_preparation(json_object(folder / "prepare.json"))
    for split in dataset.values():
        split.info.description = report
    return dataset


def prepare(
    source: str,
    out: str | Path,
    *,
    section: str = "any",
    size: int = 384,
    split_file: str | Path | None = None,
    views: str | Path | None = None,
    view_columns: Mapping[str, str] | None = None,
    pairs: str = "best",
    require: str = "any",
    seed: int = 0,
    placeholders: str = "drop",
    num_proc: int = 1,
    scheduler: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write a collection as a dataset folder: Parquet, card, preparation report. All of it or, on any failure,
    nothing.

    The same input gives the same bytes, whatever `num_proc` and `scheduler` are, and however often it was interrupted.

    Args:
        source: One of `hf_cxr.data.sources.SOURCES`.
        out: The folder to make. `data/*.parquet`, `README.md`, `prepare.json`, `splits.csv`, `images.csv` and
            `rejects.jsonl` go into it. A split without a study gets no file.
        section: The text that a study must have to be kept: "impression", "findings", "both", or "any" of the two.
        size: Longer side of a stored image in pixels, at most. For the phantom also the size it is drawn in.
        split_file: CSV with the columns `uid` and `split`; studies it does not name are left out.
        views: Table that names the view of images, in place of what the collection says (`view_tables`).
        view_columns: "image" and "view" → the names of these columns in that table, where they are not found.
        pairs: "best", one row per study, or "all", a row for each frontal × lateral pair of images in a study.
        require: "any" view makes a study, or "both" are needed.
        seed: Seed of the split. For the phantom also the seed it is drawn from.
        placeholders: What to do with de-identification placeholders, one of `hf_cxr.data.study.PLACEHOLDER_POLICIES`.
        num_proc: Processes of this machine that read images.
        scheduler: Address of a Dask scheduler whose workers read them instead.
        resume: Go on with the images that an interrupted run into the same `out` has read; if there are none, begin.
        overwrite: Replace `out` if it is a prepared dataset, and delete what an interrupted run has kept that is not
            gone on with.
        options: What the source takes: `root` for a collection on disk, `columns` for a table, `num_studies` for the
            phantom.

    Returns:
        The preparation report, as in `prepare.json`: `source`, `options`, `steps` (`{"step", "kept", "dropped"}`),
        `splits` (name → rows), `studies` (name → studies), `images` (use → images), `placeholders` (kind → how
        many there are in the texts as published), `collection`, `studies_without_a_patient`,
        `likely_patient_columns` (those of a table that seem to name the patient and are not read as that),
        `sections` (name → studies that have it), `text_overlap`, `tables` (name → SHA-256), `images_sha256`,
        `splits_sha256`, `versions`. `format_preparation` prints it.

    Raises:
        FileExistsError: If `out` holds files already, and `overwrite` is not set or they are no prepared dataset; or
            if an interrupted run has kept images, and neither `resume` nor `overwrite` says what to do with them, or
            `resume` does and its collection, options or decoder were others.
        ValueError: For an unknown source or option, a broken table, or if no study can be used.
        OSError: If a collection is missing or `out` cannot be written.
    """
    settings = {
        "section": section,
        "size": size,
        "split_file": split_file,
        "views": views,
        "view_columns": view_columns,
        "pairs": pairs,
        "require": require,
        "seed": seed,
        "placeholders": placeholders,
    }
    config = _config(source, options | settings)
    return _prepare(config, Path(out).resolve(), num_proc, scheduler, resume, overwrite)


@_with_settings
def plan(source: str, *, out: str | Path | None = None, overwrite: bool = False, **options: Any) -> dict[str, Any]:
    """What `prepare` would keep if every image were there and readable; opens tables only and writes nothing.

    It fails where `prepare` would fail before it opens an image: unknown splits, a patient in two splits, columns that
    are missing and, with `out`, a folder that may not be written or a disk that is too small.

    Args:
        source: One of `hf_cxr.data.sources.SOURCES`.
        out: The folder that `prepare` is to make, if that is to be checked.
        overwrite: As in `prepare`.
        options: Those of `prepare`, but for `num_proc`, `scheduler` and `resume`.

    Returns:
        `steps`, `splits`, `studies` and what is known of patients as `prepare` does, and `views`: how many studies
        have both, or only one of them. Views that the collection does not name are decided by names alone. Besides,
        `disk_needed`: about how many bytes.
    """
    if "demand_images" in sources.takes(source):
        options["demand_images"] = False
    config = _config(source, options)
    if out is not None:
        check_output(out := Path(out).resolve(), _read_places(config), overwrite)
    named = config.named_splits()
    planned, about_views = config.plan(named)
    if out is not None:
        check_disk(planned.studies, config.size, staging_of(Path(out)))
    unseen = [[StoredImage(0, 0, "")] * len(study.images) for study in planned.studies]
    choice = choose(config, planned, unseen, [BOTH] if config.require == "both" else [], named)
    rows, found = Counter[str](), Counter[frozenset[str]]()
    kept = [planned.studies[s] for s in choice.kept]
    for s in choice.kept:
        rows[choice.split_of_uid[planned.studies[s].uid]] += len(choice.selections[s].rows)
        found[frozenset(v for v, i in zip(VIEWS, choice.selections[s].rows[0], strict=True) if i is not None)] += 1
    return {
        "steps": planned.steps,
        "views": {"both": found[frozenset(VIEWS)]} | {f"{view} only": found[frozenset((view,))] for view in VIEWS},
        "splits": {name: rows[name] for name in SPLITS},
        "studies": dict(Counter(choice.split_of_uid[study.uid] for study in kept)),
        **patients_known(kept, choice.split_of_uid),
        **about_views,
        "disk_needed": disk_needed(planned.studies, config.size)[0],
    }


def _config(source: str, arguments: Mapping[str, Any]) -> PreparationConfig:
    """The config of arguments of `prepare`; those it has no field for are the source's own."""
    names = {field.name for field in SETTINGS}
    config = PreparationConfig(source, **{name: value for name, value in arguments.items() if name in names})
    # A source that draws its studies takes the same seed and size.
    options: dict[str, Any] = {key: getattr(config, key) for key in ("seed", "size") if key in sources.takes(source)}
    options |= {name: value for name, value in arguments.items() if name not in names and value is not None}
    options = sources.pinned(source, options)
    for name in PLACES & set(options):
        options[name] = options[name] if is_url(options[name]) else str(Path(options[name]).absolute())
    return replace(config, options=options)


def _read_places(config: PreparationConfig) -> list[Any]:
    """The files and folders that a preparation reads."""
    return [config.split_file, config.views, *(config.options.get(name) for name in sorted(PLACES))]


def _prepare(
    config: PreparationConfig,
    out: Path,
    num_proc: int = 1,
    scheduler: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Make the dataset folder: Parquet files, manifest, card."""
    if num_proc < 1:
        raise ValueError(f"num_proc must be at least 1; got {num_proc}")
    check = functools.partial(check_output, out, _read_places(config), overwrite=overwrite)
    check()
    mark = {"settings": config.fingerprint(), "decoder": worker()}
    with staging_folder(out, store.kept) as staging, workers(num_proc, scheduler) as readers:
        store.begin(staging, mark, out, resume, overwrite)
        folder = staging / store.DATASET
        report, info = build(config, staging, readers)
        facts = _facts(config, report)
        facts["splits_sha256"] = _sha256(folder / "splits.csv")
        info.download_size = sum(path.stat().st_size for path in (folder / "data").iterdir())
        info.dataset_size = sum(split.num_bytes for split in info.splits.values())
        dataset_card(facts, info, {name: f"data/{name}-*" for name in info.splits}).save(folder / "README.md")
        text = json.dumps(facts, indent=2, ensure_ascii=False)
        (folder / "prepare.json").write_text(text + "\n", encoding="utf-8")
        commit(folder, out, check)
    return facts


def _facts(config: PreparationConfig, report: Mapping[str, Any]) -> dict[str, Any]:
    """The content of `prepare.json`. Places on this machine are cut to their last part or left out."""
    names = ("section", "size", "seed", "placeholders", "pairs", "require", "view_columns")
    options = {name: getattr(config, name) for name in names}
    for name in ("split_file", "views"):
        options[name] = Path(path).name if (path := getattr(config, name)) else None
    own = {name: value for name, value in config.options.items() if name not in PLACES}
    options["source_options"] = own | ({"preset": Path(own["preset"]).name} if "preset" in own else {})
    versions = {"hf-cxr": __version__, "python": platform.python_version(), "decoder": decoder()}
    versions |= {name: version(name) for name in ("datasets", "pyarrow", "pillow", "numpy")}
    tables = _sha256_of(sources.tables(config.source, **config.options))
    collection = asdict(sources.collection(config.source, **config.options))
    return {
        "source": config.source,
        "collection": collection,
        "options": options,
        **report,
        "tables": tables,
        "versions": versions,
    }


def _sha256_of(tables: Sequence[Place]) -> dict[str, str]:
    """File name → SHA-256; of very many files (Open-i's unpacked reports) one for all."""
    digests = [(PurePosixPath(place).name, _sha256(place)) for place in tables]
    if len(digests) <= 10:
        return dict(digests)
    listing = "".join(f"{digest}  {name}\n" for name, digest in digests)  # as sha256sum prints them
    return {f"{len(tables)} files": hashlib.sha256(listing.encode()).hexdigest()}


def _sha256(place: Place) -> str:
    with open_file(place) as stream:
        digest = hashlib.sha256()
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        return digest.hexdigest()
