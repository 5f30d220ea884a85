"""Downloads against a real server on this machine that breaks off, lies, changes its mind and is overloaded."""

import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import filelock
import pytest
from helpers import LISTEN

from hf_cxr.data import download as module
from hf_cxr.data.download import DownloadError, download

REPORTS, PNG = "NLMCXR_reports.tgz", "NLMCXR_png.tgz"


def archive(*files: str, size: int = 200_000) -> bytes:
    """A .tgz of random, so incompressible, files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for name in files or ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size = size
            tar.addfile(info, io.BytesIO(os.urandom(size)))
    return stream.getvalue()


@dataclass
class Remote:
    """A server, and what it does with the next requests: by default what a good one does."""

    files: dict[str, bytes] = field(default_factory=dict)
    plans: dict[str, list[Callable]] = field(default_factory=dict)
    """File name → what is done with its next requests, in order."""
    etag: str | None = '"v1"'
    modified: str | None = "Sun, 01 Nov 2026 10:00:00 GMT"
    asked: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    """(file, Range, If-Range) of every request."""
    url: str = ""

    @property
    def ranges(self) -> list[str | None]:
        return [asked[1] for asked in self.asked]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    remote: Remote

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        name = self.path.rsplit("/", 1)[-1]
        self.remote.asked.append((name, self.headers["Range"], self.headers["If-Range"]))
        plans = self.remote.plans.get(name)
        (plans.pop(0) if plans else good)(self, name)

    def head(self, status: int, **headers: object) -> None:
        self.send_response(status)
        versions = {"ETag": self.remote.etag, "Last-Modified": self.remote.modified}
        for key, value in {**(versions if status < 300 else {}), **headers}.items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(2)


def start_of(handler: Handler) -> int | None:
    """Where the range asked for starts; `None` where the whole file is to be sent."""
    given = handler.headers["Range"]
    fresh = handler.headers["If-Range"] in (None, handler.remote.etag, handler.remote.modified)
    return int(given.removeprefix("bytes=").removesuffix("-")) if given and fresh else None


def good(handler: Handler, name: str, sent: int | None = None, ranges: bool = True, **headers: object) -> None:
    """Answer as RFC 9110 says; `sent`: hang up after so many bytes."""
    if name not in handler.remote.files:
        handler.head(404, Content_Length=0)
        return
    content = handler.remote.files[name]
    start = start_of(handler) if ranges else None
    if start is not None and start >= len(content):
        handler.head(416, Content_Length=0, Content_Range=f"bytes */{len(content)}")
        return
    span = f"bytes {start}-{len(content) - 1}/{len(content)}"
    body = content[start or 0 :]
    given = {"Content_Length": len(body), "Content_Range": None if start is None else span, **headers}
    handler.head(200 if start is None else 206, **given)
    handler.wfile.write(body[:sent])
    if sent is not None:
        handler.hang_up()


def breaks(sent: int = 100_000, **options) -> Callable:
    return lambda handler, name: good(handler, name, sent, **options)


def says(status: int, body: bytes = b"", **headers: object) -> Callable:
    def answer(handler: Handler, name: str) -> None:
        handler.head(status, Content_Length=len(body), **headers)
        handler.wfile.write(body)

    return answer


@pytest.fixture
def remote(monkeypatch) -> Iterator[Remote]:
    monkeypatch.setattr(module, "BACKOFF", 0.01)
    remote = Remote({REPORTS: archive("ecgen-radiology/1.xml", size=500), PNG: archive()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"remote": remote}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    remote.url = f"http://127.0.0.1:{server.server_port}/collections/"
    yield remote
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(remote: Remote, out: Path, *parts: str, **options) -> list[Path]:
    return download("openi", out, accept_licence=True, parts=parts or ["png"], base_url=remote.url, **options)


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def part(out: Path) -> bytes:
    return (out / f"{PNG}.part").read_bytes()


def test_files_come_whole_and_only_once(remote, tmp_path, capsys):
    out = tmp_path / "new" / "folder"
    paths = fetch(remote, out, "png", "reports")
    assert paths == [out / PNG, out / REPORTS]
    assert [path.read_bytes() for path in paths] == [remote.files[PNG], remote.files[REPORTS]]
    assert visible(out) == sorted([PNG, REPORTS])
    assert PNG in capsys.readouterr().err  # the progress bar
    assert fetch(remote, out, "png", "reports", "png") == paths
    assert len(remote.asked) == 2


def test_without_the_licence_nothing_is_fetched_and_it_is_told_in_one_line(remote, tmp_path):
    with pytest.raises(ValueError, match=r"CC BY-NC-ND 4\.0") as caught:
        download("openi", tmp_path / "out", base_url=remote.url)
    line = str(caught.value)
    assert "https://creativecommons.org/licenses/by-nc-nd/4.0/" in line
    assert "no commercial use" in line
    assert "--accept-licence" in line
    assert len(line.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert remote.asked == []


@pytest.mark.parametrize(
    ("collection", "options", "message"),
    [
        ("mimic", {}, "unknown collection 'mimic'; there is openi"),
        ("openi", {"parts": ["png", "jpg"]}, "unknown part 'jpg' of openi; choose from reports, png, dcm"),
        ("openi", {"parts": []}, "no part of openi"),
        ("openi", {"workers": 0}, "workers is a positive number, not 0"),
    ],
)
def test_wrong_arguments_are_told(collection, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        download(collection, tmp_path / "out", accept_licence=True, **options)
    assert not (tmp_path / "out").exists()


def test_the_published_addresses_are_those_of_open_i():
    openi = module.COLLECTIONS["openi"]
    assert openi.url == "https://openi.nlm.nih.gov/imgs/collections/"
    assert openi.files == {"reports": REPORTS, "png": PNG, "dcm": "NLMCXR_dcm.tgz"}


def test_a_broken_connection_is_taken_up_where_it_broke(remote, tmp_path):
    remote.plans[PNG] = [breaks(), breaks(), breaks(50_000)]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    starts = [int(given.removeprefix("bytes=").removesuffix("-")) for given in remote.ranges[1:]]
    assert remote.ranges[0] is None
    assert 0 < starts[0] < starts[1] < starts[2]
    assert starts[0] >= 100_000 - module.CHUNK
    assert {asked[2] for asked in remote.asked[1:]} == {'"v1"'}


def test_a_file_that_breaks_more_often_than_there_are_retries_still_comes(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRIES", 2)
    monkeypatch.setattr(module, "CHUNK", 1 << 14)
    remote.plans[PNG] = [breaks(40_000)] * 8
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert len(remote.asked) == 9


def test_a_later_call_goes_on_from_the_part(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRIES", 1)
    remote.plans[PNG] = [breaks(150_000)]
    with pytest.raises(
        DownloadError, match=rf"{PNG}: .*given up after 1 attempts; [\d,]+ bytes are kept in {PNG}\.part"
    ):
        fetch(remote, tmp_path)
    assert visible(tmp_path) == [f"{PNG}.part"]
    kept = part(tmp_path)
    assert remote.files[PNG].startswith(kept)
    assert len(kept) > 50_000
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.ranges[-1] == f"bytes={len(kept)}-"
    assert visible(tmp_path) == [PNG]


@pytest.mark.parametrize(
    "versions", [('"v1"', None), (None, "Sun, 01 Nov 2026 10:00:00 GMT"), ('W/"weak"', formatdate(0))]
)
def test_a_remote_file_that_changes_between_attempts_is_fetched_anew(remote, tmp_path, versions):
    remote.etag, remote.modified = versions
    old = remote.files[PNG]

    def changes(handler: Handler, name: str) -> None:
        handler.head(200, Content_Length=len(old))
        handler.wfile.write(old[:150_000])
        remote.files[PNG] = archive("other.png", size=len(old) - 1000)
        remote.etag = remote.etag and remote.etag.replace('"', '"new')
        remote.modified = remote.modified and "Mon, 02 Nov 2026 10:00:00 GMT"
        handler.hang_up()

    remote.plans[PNG] = [changes]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG] != old
    assert len(remote.asked) == 2
    assert remote.asked[1][2] == (versions[0] if versions[0] == '"v1"' else versions[1])


@pytest.mark.parametrize("changed", ["etag", "size"])
def test_a_server_that_sends_a_range_of_a_changed_file_is_found_out(remote, tmp_path, changed):
    old = remote.files[PNG]

    def careless(handler: Handler, name: str) -> None:
        remote.files[PNG] = archive("other.png", size=len(old) - (1000 if changed == "size" else 0))
        remote.etag = '"v2"' if changed == "etag" else None
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        new = remote.files[PNG]
        handler.head(206, Content_Length=len(new) - start, Content_Range=f"bytes {start}-{len(new) - 1}/{len(new)}")
        handler.wfile.write(new[start:])

    remote.plans[PNG] = [breaks(), careless]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG] != old
    assert remote.ranges[-1] is None


def test_a_server_without_versions_is_resumed_by_size(remote, tmp_path):
    remote.etag = remote.modified = None
    remote.plans[PNG] = [breaks()]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.asked[1][1].startswith("bytes=")
    assert remote.asked[1][2] is None


def test_a_server_that_ignores_ranges_is_started_over(remote, tmp_path):
    remote.plans[PNG] = [breaks(), lambda handler, name: good(handler, name, ranges=False)]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.asked[1][1] is not None


def test_a_server_that_ignores_ranges_and_breaks_off_is_given_up(remote, tmp_path):
    remote.plans[PNG] = [breaks(ranges=False)] * 50
    with pytest.raises(DownloadError, match=f"given up after {module.RETRIES} attempts"):
        fetch(remote, tmp_path)
    assert len(remote.asked) == module.RETRIES


@pytest.mark.parametrize("told", ["bytes 0-9/{size}", "bytes {start}-9/{size}", "bytes */{size}", "nonsense", None])
def test_a_range_that_was_not_asked_for_is_refused_and_the_part_stays(remote, tmp_path, told):
    def wrong(handler: Handler, name: str) -> None:
        size = len(remote.files[PNG])
        text = told and told.format(start=start_of(handler), size=size)
        handler.head(206, Content_Length=10, Content_Range=text)
        handler.wfile.write(remote.files[PNG][:10])

    remote.plans[PNG] = [breaks(), wrong]
    with pytest.raises(DownloadError, match=r"asked for the bytes from \d+ on, the server sent .*are kept in"):
        fetch(remote, tmp_path)
    assert remote.files[PNG].startswith(part(tmp_path))
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]


@pytest.mark.parametrize("stated", [-1000, 1000])
def test_a_server_that_lies_about_the_length_does_not_get_a_file_into_place(remote, tmp_path, stated):
    size = len(remote.files[PNG]) + stated

    def lies(handler: Handler, name: str) -> None:
        start = start_of(handler) or 0
        span = f"bytes {start}-{size - 1}/{size}" if start else None
        handler.head(206 if start else 200, Content_Length=size - start, Content_Range=span)
        handler.wfile.write(remote.files[PNG][start:])
        handler.hang_up()

    remote.plans[PNG] = [lies] * 50
    with pytest.raises(DownloadError, match="damaged" if stated < 0 else "given up"):
        fetch(remote, tmp_path)
    assert PNG not in visible(tmp_path)


def test_a_range_that_ends_early_is_followed_by_the_rest(remote, tmp_path):
    def short(handler: Handler, name: str) -> None:
        content, start = remote.files[name], start_of(handler)
        span = f"bytes {start}-{len(content) - 1}/{len(content)}"
        handler.head(206, Content_Length=50_000, Content_Range=span)
        handler.wfile.write(content[start : start + 50_000])

    remote.plans[PNG] = [breaks(), short]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert len(remote.asked) == 3


def test_a_size_that_is_learnt_late_is_remembered(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "RETRIES", 1)
    remote.plans[PNG] = [breaks(Content_Length=None, Connection="close"), breaks()]
    for known in (None, len(remote.files[PNG])):
        with pytest.raises(DownloadError, match="damaged" if known is None else "given up"):
            fetch(remote, tmp_path)
        if known is None:  # cut where nothing told the end: seen by the archive alone, so it starts again
            (tmp_path / f"{PNG}.part").write_bytes(remote.files[PNG][:1000])
            (tmp_path / f".{PNG}.json").write_text('{"etag": "\\"v1\\"", "size": null}')
    assert json.loads((tmp_path / f".{PNG}.json").read_text())["size"] == known


def test_a_length_that_is_not_stated_at_all_is_no_obstacle(remote, tmp_path):
    def chunked(handler: Handler, name: str, sent: int = 10**9) -> None:
        start = start_of(handler)
        span = f"bytes {start}-{len(remote.files[name]) - 1}/*"
        handler.head(
            200 if start is None else 206, Transfer_Encoding="chunked", Content_Range=None if start is None else span
        )
        body = remote.files[name][start or 0 :][:sent]
        for i in range(0, len(body), 30_000):
            piece = body[i : i + 30_000]
            handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
        if sent < 10**9:
            handler.hang_up()
        else:
            handler.wfile.write(b"0\r\n\r\n")

    remote.plans[PNG] = [lambda handler, name: chunked(handler, name, 120_000), chunked]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.ranges == [None, "bytes=120000-"]


def test_an_overloaded_server_is_asked_again_after_the_time_it_names(remote, tmp_path):
    soon = formatdate(time.time() + 1.5, usegmt=True)
    remote.plans[PNG] = [
        says(503),
        says(429, Retry_After=0),
        says(500),
        says(503, Retry_After=1),
        says(503, Retry_After=soon),
    ]
    start = time.monotonic()
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert 1 <= time.monotonic() - start < 8
    assert len(remote.asked) == 6


def test_retries_that_bring_nothing_wait_twice_as_long_each_time_and_end(remote, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(module.threading.Event, "wait", lambda self, timeout=None: waits.append(timeout))
    remote.plans[PNG] = [says(503)] * 50
    with pytest.raises(
        DownloadError, match=rf"{PNG}: the server answered 503 .*; given up after {module.RETRIES} attempts$"
    ):
        fetch(remote, tmp_path)
    assert len(remote.asked) == module.RETRIES
    expected = [module.BACKOFF * 2**time for time in range(module.RETRIES - 1)]
    assert [wait for wait in waits if wait in expected] == expected


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_told_at_once_and_the_other_files_come_all_the_same(remote, tmp_path, status):
    remote.plans[REPORTS] = [says(status, b"<html>", Content_Type="text/html")]
    remote.plans[PNG] = [breaks()]
    with pytest.raises(DownloadError, match=rf"{remote.url}{REPORTS}: the server answered {status} \w+"):
        fetch(remote, tmp_path, "reports", "png")
    assert visible(tmp_path) == [PNG]
    assert sum(name == REPORTS for name, *_ in remote.asked) == 1


def test_when_several_files_fail_each_is_told(remote, tmp_path, caplog):
    remote.plans = {REPORTS: [says(403)], PNG: [says(404)]}
    with pytest.raises(DownloadError) as caught:
        fetch(remote, tmp_path, "reports", "png")
    told = f"{caught.value} {caplog.text}"
    assert f"{REPORTS}: the server answered 403" in told
    assert f"{PNG}: the server answered 404" in told


def test_a_web_page_in_place_of_the_archive_does_not_cost_the_part(remote, tmp_path):
    remote.plans[PNG] = [breaks(), says(200, b"<html>Log in</html>", Content_Type="text/html; charset=utf-8")]
    with pytest.raises(DownloadError, match=r"a web page .*are kept in"):
        fetch(remote, tmp_path)
    assert len(part(tmp_path)) > 30_000


def test_nobody_at_home_is_told_in_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "BACKOFF", 0.001)
    with pytest.raises(DownloadError, match=r"connection failed \(ConnectionError: .*refused") as caught:
        download("openi", tmp_path, accept_licence=True, parts=["png"], base_url="http://127.0.0.1:9/")
    assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(DownloadError, match="No scheme supplied"):
        download("openi", tmp_path, accept_licence=True, parts=["png"], base_url="mirror/folder")


def test_a_silent_server_is_given_up_and_taken_up_again(remote, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "TIMEOUT", (1.0, 0.2))

    def silent(handler: Handler, name: str) -> None:
        handler.head(200, Content_Length=len(remote.files[name]))
        handler.wfile.write(remote.files[name][:100_000])
        time.sleep(1)
        handler.hang_up()

    remote.plans[PNG] = [silent]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.ranges[1] is not None


def test_a_gzip_encoding_named_by_mistake_does_not_unpack_the_archive(remote, tmp_path):
    remote.plans[PNG] = [
        breaks(Content_Encoding="x-gzip"),
        lambda handler, name: good(handler, name, Content_Encoding="gzip"),
    ]
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]


def test_content_damaged_on_the_way_is_not_put_in_place(remote, tmp_path):
    true = remote.files[PNG]
    remote.files[PNG] = true[:200_000] + b"\0" * 10 + true[200_010:]
    with pytest.raises(DownloadError, match=r"what came was damaged, and removed: .*damaged or truncated"):
        fetch(remote, tmp_path)
    assert visible(tmp_path) == []
    remote.files[PNG] = true
    assert fetch(remote, tmp_path)[0].read_bytes() == true
    assert remote.ranges == [None, None]


def test_an_unsafe_archive_is_refused_but_not_fetched_again_and_again(remote, tmp_path):
    remote.files[PNG] = archive("good.png", "../bad.png")
    for _ in range(2):
        with pytest.raises(DownloadError, match=r"refused: .*'\.\./bad\.png'"):
            fetch(remote, tmp_path, unpack=True)
    assert visible(tmp_path) == [f"{PNG}.part"]
    assert len(remote.asked) == 1
    assert not (tmp_path.parent / "bad.png").exists()


def test_a_published_checksum_is_held_against_the_file(remote, tmp_path, monkeypatch):
    right = hashlib.sha256(remote.files[PNG]).hexdigest()
    wrong = replace(module.COLLECTIONS["openi"], checksums={PNG: "0" * 64})
    monkeypatch.setitem(module.COLLECTIONS, "openi", wrong)
    with pytest.raises(DownloadError, match=f"SHA-256 is {right}, published is 0000"):
        fetch(remote, tmp_path)
    assert visible(tmp_path) == []
    monkeypatch.setitem(module.COLLECTIONS, "openi", replace(wrong, checksums={PNG: right}))
    assert fetch(remote, tmp_path) == [tmp_path / PNG]


def test_a_file_that_was_there_before_is_taken_if_whole_and_named_if_not(remote, tmp_path):
    (tmp_path / PNG).write_bytes(remote.files[PNG])
    assert fetch(remote, tmp_path) == [tmp_path / PNG]
    (tmp_path / PNG).write_bytes(remote.files[PNG][:1000])
    with pytest.raises(ValueError, match=rf"{PNG}: damaged or truncated .*remove it"):
        fetch(remote, tmp_path)
    assert (tmp_path / PNG).stat().st_size == 1000
    assert remote.asked == []


def test_a_verified_file_is_not_read_again(remote, tmp_path):
    fetch(remote, tmp_path)
    stat = (tmp_path / PNG).stat()
    (tmp_path / PNG).write_bytes(bytes(stat.st_size))
    os.utime(tmp_path / PNG, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert fetch(remote, tmp_path) == [tmp_path / PNG]
    os.utime(tmp_path / PNG)
    with pytest.raises(ValueError, match="remove it"):
        fetch(remote, tmp_path)


def test_a_part_of_unknown_origin_is_not_built_upon(remote, tmp_path):
    (tmp_path / f"{PNG}.part").write_bytes(b"something else")
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.ranges == [None]


@pytest.mark.parametrize("notes", [b"{", b"[]", b"", b'{"size": null}'])
def test_damaged_notes_do_not_damage_the_file(remote, tmp_path, notes):
    (tmp_path / f"{PNG}.part").write_bytes(remote.files[PNG][:1000])
    (tmp_path / f".{PNG}.json").write_bytes(notes)
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]


def test_a_part_that_is_complete_is_put_in_place_without_a_request(remote, tmp_path):
    (tmp_path / f"{PNG}.part").write_bytes(remote.files[PNG])
    (tmp_path / f".{PNG}.json").write_text(json.dumps({"etag": '"v1"', "size": len(remote.files[PNG])}))
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.asked == []


def test_a_part_longer_than_the_remote_file_is_started_over(remote, tmp_path):
    (tmp_path / f"{PNG}.part").write_bytes(bytes(900_000))
    (tmp_path / f".{PNG}.json").write_text(json.dumps({"etag": '"v1"', "size": 1_000_000}))
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.ranges == ["bytes=900000-", None]


def test_unpacking_makes_a_folder_of_the_archives_name_once(remote, tmp_path):
    folders = fetch(remote, tmp_path, "reports", "png", unpack=True)
    assert folders == [tmp_path / "NLMCXR_reports", tmp_path / "NLMCXR_png"]
    assert (folders[0] / "ecgen-radiology" / "1.xml").stat().st_size == 500
    assert visible(folders[1]) == ["a.png", "b.png"]
    (folders[1] / "a.png").unlink()
    assert fetch(remote, tmp_path, "png", unpack=True) == folders[1:]
    assert visible(folders[1]) == ["b.png"]
    assert len(remote.asked) == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_clear_line(remote, tmp_path):
    (tmp_path / f"{PNG}.part").symlink_to("/dev/full")
    with pytest.raises(DownloadError, match=rf"{PNG}: the disk is full; free some space") as caught:
        fetch(remote, tmp_path)
    assert len(str(caught.value).splitlines()) == 1
    assert len(remote.asked) == 1


def test_a_disk_that_is_too_small_is_told_before_it_is_filled(remote, tmp_path):
    def vast(handler: Handler, name: str) -> None:
        handler.head(200, Content_Length=10**16)
        handler.hang_up()

    remote.plans[PNG] = [breaks(), vast]
    with pytest.raises(DownloadError, match=r"bytes are to come, but the disk has [\d,]+ free; [\d,]+ bytes are kept"):
        fetch(remote, tmp_path)


def test_a_second_process_keeps_out(remote, tmp_path):
    lock = str(tmp_path / f".{PNG}.lock")
    code = f"import filelock\nwith filelock.FileLock({lock!r}):\n    print('held', flush=True)\n    input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        holder.stdout.readline()
        with pytest.raises(DownloadError, match=f"{PNG}: another process is fetching it"):
            fetch(remote, tmp_path)
        assert remote.asked == []
    finally:
        holder.communicate(b"\n")
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]


def test_callers_at_the_same_time_do_not_harm_each_other(remote, tmp_path):
    def slow(handler: Handler, name: str) -> None:
        time.sleep(0.2)
        good(handler, name)

    remote.plans[PNG] = [slow, slow, slow]
    results: list[object] = []

    def call() -> None:
        try:
            results.append(fetch(remote, tmp_path))
        except DownloadError as error:
            results.append(str(error))

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [tmp_path / PNG] in results
    assert sum("another process" in str(result) for result in results) == 2
    assert (tmp_path / PNG).read_bytes() == remote.files[PNG]
    assert filelock.FileLock(tmp_path / f".{PNG}.lock", timeout=0).acquire()


def test_files_come_side_by_side(remote, tmp_path):
    meet = threading.Barrier(2, timeout=5)

    def together(handler: Handler, name: str) -> None:
        meet.wait()
        good(handler, name)

    remote.plans = {PNG: [together], REPORTS: [together]}
    assert len(fetch(remote, tmp_path, "reports", "png", workers=2)) == 2


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_and_kill_leave_a_part_to_go_on_from(remote, tmp_path, sent):
    remote.files[PNG] = archive(size=600_000)
    hold = threading.Event()

    def drip(handler: Handler, name: str) -> None:
        content = remote.files[name]
        handler.head(200, Content_Length=len(content))
        for i in range(0, len(content), 10_000):
            handler.wfile.write(content[i : i + 10_000])
            if i > 300_000 and hold.wait(0.05):
                return

    remote.plans[PNG] = [drip]
    options = {
        "accept_licence": True,
        "parts": ["png", "reports"],
        "base_url": remote.url,
        "unpack": True,
        "workers": 1,
    }
    code = f"{LISTEN}from hf_cxr.data.download import download\ndownload('openi', {str(tmp_path)!r}, **{options!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not ((tmp_path / f"{PNG}.part").exists() and len(part(tmp_path)) > 200_000):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(sent)
        errors = process.communicate(timeout=30)[1]
    finally:
        hold.set()
        process.kill()
    assert process.returncode != 0
    assert sent == signal.SIGKILL or "KeyboardInterrupt" in errors
    assert remote.ranges == [None]  # the second file, still waiting, was not begun
    kept = part(tmp_path)
    assert remote.files[PNG].startswith(kept)
    assert fetch(remote, tmp_path)[0].read_bytes() == remote.files[PNG]
    assert remote.ranges[-1] == f"bytes={len(kept)}-"


def test_the_real_report_archive_comes_and_unpacks(remote, tmp_path, iu):
    remote.files[REPORTS] = (iu / REPORTS).read_bytes()
    remote.plans[REPORTS] = [breaks(500_000)]
    [folder] = fetch(remote, tmp_path, "reports", unpack=True)
    assert len(list((folder / "ecgen-radiology").glob("*.xml"))) == 3955


def test_nothing_but_plain_bytes_is_asked_for(remote, tmp_path):
    seen: list[str | None] = []

    def look(handler: Handler, name: str) -> None:
        seen.extend([handler.headers["Accept-Encoding"], handler.headers["User-Agent"]])
        good(handler, name)

    remote.plans[PNG] = [look]
    fetch(remote, tmp_path)
    assert seen[0] == "identity"
    assert re.fullmatch(r"hf-cxr/\S+", str(seen[1]))
    assert gzip.decompress((tmp_path / PNG).read_bytes())
