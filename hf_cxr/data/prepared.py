"""A prepared dataset, from its folder or the Hub. How one is made lives in `hf_cxr.data.prepare`."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError

from hf_cxr.data.splits import SPLITS
from hf_cxr.utils.places import check_dataset

DAMAGE = (pa.ArrowException, UnicodeDecodeError, OSError)
"""What pyarrow raises on a damaged Parquet file, without its name."""


def load_prepared(path_or_repo: str | Path, revision: str | None = None) -> DatasetDict:
    """Load a prepared dataset from a folder or the Hub and check that it is one.

    A study may lack a section: `hf_cxr.data.sections.with_sections` gives those that have what is asked for. Raises
    `FileNotFoundError` for a folder without Parquet splits, `ValueError` for a dataset without our columns.
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
    return dataset


def read_splits(folder: Path, cache: Path | None = None) -> DatasetDict:
    """The splits of a folder by its files: `load_dataset(folder)` serves a stale cache after a change, and tells a
    public host of every use."""
    files = {name: sorted(map(str, folder.glob(f"data/{name}-*.parquet"))) for name in SPLITS}
    filled = {name: paths for name, paths in files.items() if paths}
    try:
        return DatasetDict.from_parquet(filled, cache_dir=None if cache is None else str(cache))
    except (DatasetGenerationError, *DAMAGE) as error:
        for path in (path for paths in filled.values() for path in paths):
            try:
                deque(pq.ParquetFile(path).iter_batches(), maxlen=0)
            except DAMAGE:
                raise ValueError(f"{path}: is damaged; prepare or fetch the dataset again") from error
        raise
