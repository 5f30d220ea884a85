"""Images and tables on this machine, in memory, in an S3 bucket and on a web server are read the same way."""

import functools
import http.server
import io
import threading
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from test_images import noise, png

from hf_cxr.cli.parser import main
from hf_cxr.data import storage
from hf_cxr.data.prepare import prepare
from hf_cxr.data.sources import rows
from hf_cxr.data.store import Store

datasets.disable_progress_bars()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def bucket():
    """The address of a bucket on an S3 server of this machine."""
    pytest.importorskip("s3fs", reason="s3fs is absent: pip install s3fs 'moto[s3,server]'")
    server = pytest.importorskip("moto.server", reason="moto is absent: pip install 'moto[s3,server]'")
    running = server.ThreadedMotoServer(port=0)
    running.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*running.get_host_and_port()))
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            patch.setenv(name, "test")
        fsspec.filesystem("s3").mkdir("s3://collection")
        yield "s3://collection"
    running.stop()


@pytest.fixture(params=["here", "memory", "s3"])
def place(request, tmp_path):
    """A folder in each kind of storage."""
    if request.param == "here":
        return str(tmp_path / "in")
    return (
        f"memory://{tmp_path.name}"
        if request.param == "memory"
        else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    )


def fill(place: str, number: int = 12) -> dict[str, bytes]:
    """A table and a folder of images; one that is listed is missing, one is damaged."""
    files = {f"png/{i}.png": png(noise(seed=i)) for i in range(number)}
    files["png/3.png"] = b"<html>"
    rows = [f"s{i},{i}.png,Normal {i}." for i in range(number + 1)]
    files["t.csv"] = "\n".join(["uid,frontal,impression", *rows]).encode()
    system, root = fsspec.core.url_to_fs(place)
    for name, content in files.items():
        system.makedirs(f"{root}/{name}".rpartition("/")[0], exist_ok=True)
        system.pipe_file(f"{root}/{name}", content)
    return files


def test_a_folder_says_the_same_of_its_files_wherever_it_lies(place):
    files = fill(place)
    root = storage.as_place(place)
    assert list(storage.files(root)) == sorted(files, key=lambda name: ("/" in name, name))
    table = storage.join(root, "t.csv")
    assert str(table) == f"{place}/t.csv"
    assert (storage.is_file(table), storage.is_folder(table), storage.is_folder(root)) == (True, False, True)
    assert storage.parent(table) == root
    with storage.open_file(table) as stream:
        stream.seek(4)
        assert stream.read(7) == b"frontal"
    with pytest.raises(FileNotFoundError, match=r"nothing\.csv"):
        storage.open_file(storage.join(root, "nothing.csv"))


@pytest.mark.parametrize("num_proc", [1, 2])
def test_a_collection_at_an_address_gives_the_bytes_of_one_on_this_machine(place, num_proc, tmp_path):
    fill(place)
    fill(str(tmp_path / "copy"))
    prepare("table", tmp_path / "out", root=f"{place}/t.csv", images=f"{place}/png", size=32, num_proc=num_proc)
    prepare("table", tmp_path / "same", root=tmp_path / "copy/t.csv", images=tmp_path / "copy/png", size=32)
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "same")
    assert b"3.png: not an image" in found["images.csv"]
    assert b"image file missing" in found["rejects.jsonl"]
    assert b"12.png" in found["rejects.jsonl"]
    assert {name for name in expected if name not in found or found[name] != expected[name]} <= {
        "rejects.jsonl",
        "images.csv",
    }
    assert found["prepare.json"] == expected["prepare.json"]


@pytest.mark.parametrize("place", ["memory", "s3"], indirect=True)
def test_cells_may_hold_addresses_of_a_store_of_objects(place, tmp_path):
    fill(place)
    fill(str(tmp_path / "copy"))
    own = tmp_path / "copy" / "own.csv"
    rows = [line.split(",") for line in (tmp_path / "copy" / "t.csv").read_text().splitlines()[1:]]
    lines = ["uid,frontal,impression", *(f"{uid},{place}/png/{name},{text}" for uid, name, text in rows)]
    own.write_text("\n".join(lines))
    prepare("table", tmp_path / "out", root=own, size=32)
    prepare("table", tmp_path / "same", root=tmp_path / "copy/t.csv", images=tmp_path / "copy/png", size=32)
    found, expected = contents(tmp_path / "out"), contents(tmp_path / "same")
    assert sum(name.endswith(".parquet") for name in expected) > 0
    for name, content in expected.items():
        assert not name.endswith(".parquet") or found[name] == content, name


@pytest.mark.parametrize("end_point", ["", "http://127.0.0.1:9"])
def test_a_bucket_without_credentials_or_out_of_reach_is_one_line(end_point, tmp_path, monkeypatch, capsys):
    pytest.importorskip("s3fs", reason="s3fs is absent: pip install s3fs 'moto[s3,server]'")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test") if end_point else monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", end_point or "http://127.0.0.1:9")
    fsspec.filesystem("s3").clear_instance_cache()
    place = "s3://nobucket-x/t.csv"
    assert main(["prepare", "table", "--root", place, "--out", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    why = "EndpointConnectionError" if end_point else "NoCredentialsError"
    assert line.startswith(f"hf-cxr prepare: {place}: cannot be read ({why}: ")
    asked = {storage.is_file: "", storage.is_folder: "", storage.open_file: "", storage.matches: "*"}
    for ask, more in (asked | {lambda folder: [*storage.files(folder)]: ""}).items():
        with pytest.raises(OSError, match=r"^s3://nobucket-x/t\.csv\*?: cannot be read"):
            ask(place + more)


class Failing(MemoryFileSystem):
    """A store whose files, when it is out of reach, cannot be read: with an error of its own kind."""

    protocol = "failing"
    gone = False

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(path.replace("failing://", "memory://"))

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        return Unreachable(file.getvalue()) if mode == "rb" else file


class Unreachable(io.BytesIO):
    def read(self, size=-1):
        if Failing.gone:
            raise LookupError("connection\nreset")
        return super().read(size)


@pytest.fixture
def failing(monkeypatch):
    fsspec.register_implementation("failing", Failing, clobber=True)
    monkeypatch.setattr(Failing, "gone", False)
    return fsspec.filesystem("failing")


def test_a_network_that_fails_amid_images_in_cells_keeps_those_that_were_read(failing, tmp_path, monkeypatch, capsys):
    contents = [png(noise(seed=i)) for i in range(40)]
    columns = {"uid": [f"s{i}" for i in range(40)], "impression": [f"Normal {i}." for i in range(40)]}
    written = io.BytesIO()
    pq.write_table(pa.table(columns | {"frontal": contents}), written, row_group_size=5, compression="none")
    failing.pipe("/embedded/t.parquet", written.getvalue())
    add = Store.add

    def add_or_end(self, key, outcome):
        Failing.gone = len(self.found) >= 22
        add(self, key, outcome)

    monkeypatch.setattr(Store, "add", add_or_end)
    place = "failing://embedded/t.parquet"
    assert main(["prepare", "table", "--root", place, "--out", str(tmp_path / "out"), "--size", "32"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    said = f"hf-cxr prepare: {place}, from row 26 on: cannot be read (LookupError: connection reset); "
    assert line == f"{said}25 images of an interrupted run are kept; go on with --resume"


def test_a_table_that_breaks_off_is_one_line(failing):
    failing.pipe("/texts/t.csv", b"uid,frontal,impression\ns1,1.png,Normal.\n")
    Failing.gone = True
    with pytest.raises(OSError, match=r"failing://texts/t\.csv: cannot be read \(LookupError: connection reset\)"):
        list(rows.read_table("failing://texts/t.csv").rows(("uid",), ()))


@pytest.fixture
def web(tmp_path):
    """The address of a web server that has the same files."""
    fill(str(tmp_path / "web"))
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    handler.func.log_message = lambda *_: None
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield "http://{}:{}".format(*server.server_address), server
        server.shutdown()


def test_images_of_a_web_server_are_fetched_and_one_that_stops_answering_ends_the_run_in_one_line(
    web, tmp_path, capsys
):
    address, server = web
    words = [
        "prepare",
        "table",
        "--root",
        str(tmp_path / "web" / "t.csv"),
        "--images",
        f"{address}/png",
        "--size",
        "32",
    ]
    assert main([*words, "--out", str(tmp_path / "out"), "--num-proc", "2"]) == 0
    assert (
        main([*words[:4], *words[6:], "--images", str(tmp_path / "web" / "png"), "--out", str(tmp_path / "same")]) == 0
    )
    assert (tmp_path / "out" / "images.csv").read_bytes() == (tmp_path / "same" / "images.csv").read_bytes()

    fetched = storage.fetched

    def fetch_while_it_answers(address):
        if address.endswith("/6.png"):
            server.shutdown()
            server.server_close()
        return fetched(address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "fetched", fetch_while_it_answers)
        capsys.readouterr()
        assert main([*words, "--out", str(tmp_path / "again")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hf-cxr prepare: {address}/png/6.png: cannot be read (ClientConnectorError: ")
    assert line.endswith("5 images of an interrupted run are kept; go on with --resume")
