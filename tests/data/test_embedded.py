"""Images in the cells of a Parquet file are given as they were written, in one pass and little memory."""

import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_cxr.data.embedded import embedded_images
from hf_cxr.data.sources.rows import read_table
from hf_cxr.data.study import Embedded

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


@pytest.mark.parametrize("group", [1, 7, 99])
def test_images_come_in_the_order_of_rows_with_their_bytes(tmp_path, group):
    rows = range(40)
    columns = {
        "uid": [str(row) for row in rows],
        "b": pa.array([None if row % 3 == 0 else b"b%d" % row for row in rows]),
        "a": pa.array([{"bytes": b"a%d" % row, "path": "x"} for row in rows], IMAGE),
        "several": pa.array([[{"bytes": b"s%d" % item} for item in range(row % 4)] for row in rows], pa.list_(IMAGE)),
        "large": pa.array([[b"l%d" % row] for row in rows], pa.large_list(pa.large_binary())),
    }
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=group)
    read = read_table(path).rows(("uid",), (), ("b", "a", "several", "large"))
    listed = [cell.embedded for row in read for name in ("a", "b", "large", "several") for cell in row.images[name]]
    assert len(listed) == 40 + 26 + 40 + 60
    found = list(embedded_images(str(path), listed[::-1]))
    assert [image for image, _ in found] == listed
    said = {"a": b"a%d", "b": b"b%d", "large": b"l%d"}
    assert all(
        content == (b"s%d" % e.item if e.column == "several" else said[e.column] % e.row) for e, content in found
    )

    few = [listed[100], listed[3]]
    assert [image for image, _ in embedded_images(str(path), few)] == [listed[3], listed[100]]


def test_what_is_not_there_is_not_given(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": pa.array([None, b"1"]), "list": pa.array([[b"x"], None])}), path)
    places = [("image", 0, 0), ("image", 1, 0), ("image", 9, 0), ("list", 0, 1), ("list", 1, 0)]
    wanted = [Embedded(str(path), row, column, item) for column, row, item in places]
    assert list(embedded_images(str(path), wanted)) == [(wanted[1], b"1")]


def test_a_damaged_file_is_named_with_the_row(tmp_path):
    path = tmp_path / "t.parquet"
    pq.write_table(
        pa.table({"image": [bytes([n]) * 5000 for n in range(9)]}), path, compression="zstd", row_group_size=3
    )
    raw = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    raw[start : start + 60] = bytes(60)
    path.write_bytes(raw)
    given = []
    with pytest.raises(ValueError, match=r"t\.parquet, from row 4 on: damaged Parquet"):
        given.extend(embedded_images(str(path), [Embedded(str(path), row, "image") for row in range(9)]))
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"t\.parquet: not a Parquet file, or damaged"):
        list(embedded_images(str(path), [Embedded(str(path), 0, "image")]))


MEASURED = """
import resource, sys
from hf_cxr.data.embedded import embedded_images
from hf_cxr.data.sources.rows import read_table
path = sys.argv[1]
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows = read_table(path).rows(("uid",), (), ("a", "b"))
wanted = [cell.embedded for row in rows for name in ("a", "b") for cell in row.images[name]]
size = sum(len(content) for _, content in embedded_images(path, wanted))
print(size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_images_are_never_all_in_memory(tmp_path):
    path, one = tmp_path / "t.parquet", 2_000_000
    with pq.ParquetWriter(
        path, pa.schema({"uid": pa.string(), "a": pa.binary(), "b": IMAGE}), compression="none"
    ) as writer:
        records = [{"uid": str(n), "a": bytes(one) if n % 2 else None, "b": {"bytes": bytes(one)}} for n in range(100)]
        writer.write_table(pa.Table.from_pylist(records, writer.schema))  # one group of rows of 300 MB
    done = subprocess.run([sys.executable, "-c", MEASURED, path], capture_output=True, text=True, check=True)
    size, peak = map(int, done.stdout.split())
    assert size == 150 * one
    assert peak < 150_000, f"{peak} kB for 300,000 kB of images"
