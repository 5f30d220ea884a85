"""A prepared dataset read back: what it lacks is said, and a damaged file is named."""

import datasets
import pyarrow.parquet as pq
import pytest
from helpers import copy_folder

from hf_cxr.data import prepared
from hf_cxr.data.prepared import load_prepared

datasets.disable_progress_bars()


def write(folder, **columns):
    plain = {"uid": ["a", "b", "c"], "frontal": [None] * 3, "lateral": [None] * 3, "impression": ["x"] * 3}
    (folder / "data").mkdir(parents=True)
    datasets.Dataset.from_dict(plain | columns).to_parquet(folder / "data" / "test-00000-of-00001.parquet")
    return folder


@pytest.mark.parametrize("silent", [None, ""])
def test_a_study_may_lack_a_section(tmp_path, silent):
    folder = write(tmp_path / "data", impression=["x", silent, silent], findings=[silent, "y", "z"])
    assert load_prepared(folder)["test"]["impression"] == ["x", silent, silent]


def test_texts_that_are_all_there_pass(tmp_path):
    assert load_prepared(write(tmp_path / "data"))["test"].num_rows == 3


def test_a_dataset_without_our_columns_is_told(tmp_path):
    folder = write(tmp_path / "data")
    file = folder / "data" / "test-00000-of-00001.parquet"
    datasets.Dataset.from_dict({"uid": ["a"], "frontal": [None], "impression": ["x"]}).to_parquet(file)
    with pytest.raises(ValueError, match="split test has no column 'lateral'; run hf-cxr prepare"):
        load_prepared(folder)


@pytest.mark.parametrize("where", ["footer", "pages", "end", "nothing left"])
def test_a_damaged_parquet_file_is_named(phantom_folder, tmp_path, where):
    folder = copy_folder(phantom_folder, tmp_path / "data")
    file = next((folder / "data").glob("validation-*"))
    content = bytearray(file.read_bytes())
    columns = pq.ParquetFile(file).metadata.row_group(0)
    pages = {columns.column(i).path_in_schema: columns.column(i).data_page_offset for i in range(columns.num_columns)}
    start = {"footer": -60, "pages": pages["impression"]}.get(where, 0)
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content[: {"end": -100, "nothing left": 0}.get(where, len(content))])
    with pytest.raises(ValueError, match=rf"{file.name}: is damaged; prepare or fetch the dataset again"):
        load_prepared(folder)


def test_rows_are_checked_without_being_made(tmp_path, monkeypatch):
    """50,000 texts as Python objects take a second."""
    folder = write(tmp_path / "data")
    loaded = prepared.read_splits(folder)
    monkeypatch.setattr(prepared, "read_splits", lambda folder: loaded)
    monkeypatch.setattr(datasets.Dataset, "__getitem__", lambda *_: pytest.fail("a column was read"))
    load_prepared(folder)
