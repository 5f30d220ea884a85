"""A prepared dataset, from its folder or the Hub. How one is made lives in `hf_cxr.data.prepare`."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_cxr.data.splits import SPLITS
from hf_cxr.utils.places import check_dataset

DAMAGE = (pa.ArrowException, UnicodeDecodeError, OSError)
"""What pyarrow raises on a damaged Parquet file, without its name."""


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
        dataset = read_splits(folder) if folder.is_dir() else load_dataset(given, revision=revision)
    except (ConnectionError, FileNotFoundError) as error:
        if folder.is_dir():
            raise
        raise FileNotFoundError(f"{given}: no such folder, and not to be had from the Hub ({error})") from error
    for name, split in dataset.items():
        missing = {"uid", "frontal", "lateral", "impression"} - set(split.column_names)
        if missing:
            raise ValueError(f"{given}: split {name} has no column {sorted(missing)[0]!r}; run hf-cxr prepare")
        silent = _first_empty(split.data.column(text)) if text else None
        if silent is not None:
            raise ValueError(
                f"{given}: study {split['uid'][silent]} has no {text}, which is what is learned and scored; "
                f"prepare with --section {text} or both"
            )
    return dataset


def _first_empty(texts: pa.ChunkedArray) -> int | None:
    """The index of the first text that is null or ""."""
    empty = pc.fill_null(pc.equal(pc.binary_length(texts.cast(pa.large_string())), 0), True)
    return None if (index := pc.index(empty, True).as_py()) < 0 else index


def read_splits(folder: Path, cache: Path | None = None) -> DatasetDict:
    """The splits of a folder by its files: `load_dataset(folder)` serves a stale cache after a change."""
    files = {name: sorted(map(str, folder.glob(f"data/{name}-*.parquet"))) for name in SPLITS}
    filled = {name: paths for name, paths in files.items() if paths}
    try:
        return load_dataset("parquet", data_files=filled, cache_dir=None if cache is None else str(cache))
    except (DatasetGenerationError, *DAMAGE) as error:
        for path in (path for paths in filled.values() for path in paths):
            try:
                deque(pq.ParquetFile(path).iter_batches(), maxlen=0)
            except DAMAGE:
                raise ValueError(f"{path}: is damaged; prepare or fetch the dataset again") from error
        raise
