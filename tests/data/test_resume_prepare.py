"""A preparation that was interrupted goes on where it stopped, and needs hardly more disk than its result."""

import json
import os
import subprocess
import sys
import zipfile
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_IMODE, S_ISREG

import datasets
import pytest
from test_images import noise, png

import hf_cxr
from hf_cxr.cli.parser import main
from hf_cxr.data import builder, images, splits
from hf_cxr.data.prepare import prepare
from hf_cxr.data.store import JOURNAL, PARTS, Store
from hf_cxr.inference.decoding import decoder

datasets.disable_progress_bars()
PHANTOM = {"num_studies": 120, "size": 32}
ROWS, SHARD = 5, 8_000  # of a row group, bytes of a file: small, so that a small collection has many


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def staged(tmp_path: Path) -> Path:
    (folder,) = tmp_path.glob(".hf-cxr-*")
    return folder


def journal(tmp_path: Path) -> list[dict]:
    return [json.loads(line) for line in (staged(tmp_path) / JOURNAL).read_text().splitlines()]


@pytest.fixture(scope="module")
def small_files():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "BATCH", ROWS)
        patch.setattr(builder, "SHARD_BYTES", SHARD)
        yield


@pytest.fixture(scope="module")
def peace(small_files, tmp_path_factory) -> dict[str, bytes]:
    """The files of a run that nobody interrupted."""
    out = tmp_path_factory.mktemp("peace") / "out"
    prepare("phantom", out, **PHANTOM)
    return contents(out)


@pytest.fixture
def decoded(monkeypatch) -> list[str]:
    """The images that are decoded from here on, in this process."""
    sources: list[str] = []
    read = images._read_one
    monkeypatch.setattr(images, "_read_one", lambda source, *rest: sources.append(repr(source)) or read(source, *rest))
    return sources


@contextmanager
def ended_by(error: BaseException, number: int):
    """The run in here ends with `error` once that many images were read."""
    add = Store.add

    def add_or_end(self, key, outcome):
        if len(self.found) == number:
            raise error
        add(self, key, outcome)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "add", add_or_end)
        yield


def interrupt(out: Path, number: int, error: type[BaseException] = KeyboardInterrupt) -> None:
    with ended_by(error("told"), number), pytest.raises(error):
        prepare("phantom", out, **PHANTOM)


KILLED = """
import os, signal, datasets
from hf_cxr.data import builder, store
from hf_cxr.data.prepare import prepare
datasets.disable_progress_bars()
builder.BATCH, builder.SHARD_BYTES, store.SYNC = {rows}, {shard}, 0
number, calls = {number}, 0
def counting(self, *arguments, before={owner}.{method}):
    global calls
    calls += 1
    if calls == number:
        os.kill(os.getpid(), signal.SIGKILL)
    return before(self, *arguments)
{owner}.{method} = counting
prepare("phantom", {out!r}, resume=True, num_proc={num_proc}, **{options!r})
"""


def kill_at(out: Path, owner: str, method: str, number: int, num_proc: int = 1) -> None:
    """Run `prepare --resume` in a process that is killed outright at the call of that number."""
    code = KILLED.format(
        rows=ROWS,
        shard=SHARD,
        number=number,
        owner=owner,
        method=method,
        out=str(out),
        num_proc=num_proc,
        options=PHANTOM,
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(hf_cxr.__file__).parents[1], capture_output=True)
    assert done.returncode == -9, done.stderr


def test_a_run_that_is_killed_again_and_again_decodes_nothing_twice_and_ends_with_the_same_bytes(
    peace, decoded, tmp_path
):
    out = tmp_path / "out"
    kill_at(out, "store.Store", "add", 40)
    assert len(journal(tmp_path)) == 1 + 39
    kill_at(out, "store.Store", "add", 60, num_proc=2)  # further images: what was read is not read again
    assert len({tuple(line["key"]) for line in journal(tmp_path)[1:]}) == len(journal(tmp_path)) - 1 == 39 + 59
    kill_at(out, "builder._SplitFiles", "add", 70)  # while the images are copied to Parquet and deleted
    assert len(list(staged(tmp_path).glob("images-*.bin"))) < PARTS - 12
    total = len([line for line in journal(tmp_path) if "image" in line])
    kill_at(out, "store.Store", "drop", 9)
    prepare("phantom", out, **PHANTOM, resume=True)
    assert decoded == []
    assert total == len(peace["images.csv"].splitlines()) - 1
    assert contents(out) == peace
    assert names_in(tmp_path) == ["out"]


def test_an_image_is_decoded_again_only_if_the_journal_does_not_tell_of_it_in_a_whole_line(peace, decoded, tmp_path):
    interrupt(tmp_path / "out", 50)
    told = (staged(tmp_path) / JOURNAL).read_bytes()
    (staged(tmp_path) / JOURNAL).write_bytes(told[:-7])
    before = [*decoded]
    decoded.clear()
    prepare("phantom", tmp_path / "out", **PHANTOM, resume=True)
    assert [image for image in before if image in decoded] == before[49:]
    assert len(before) == 51
    assert contents(tmp_path / "out") == peace


def test_what_an_interrupted_run_keeps_is_told_and_a_new_start_asks_what_to_do_with_it(
    peace, decoded, tmp_path, monkeypatch, capsys
):
    words = ["prepare", "phantom", "--out", str(tmp_path / "out"), "--num-studies", "120", "--size"]
    kept = "30 images of an interrupted run are kept; go on with --resume"
    with ended_by(KeyboardInterrupt(), 30):
        assert main([*words, "32"]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"hf-cxr prepare: interrupted; {kept}"
    assert main([*words, "32"]) == 2
    asked = f"hf-cxr prepare: {tmp_path}/out: {kept}, or start anew with --overwrite\n"
    assert capsys.readouterr().err == asked
    assert main([*words, "40", "--resume"]) == 2
    assert "another collection or other options; start anew with --overwrite" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(splits, "__version__", "9.0")  # as an upgrade does
        patch.setattr("hf_cxr.data.prepare.worker", lambda: f"hf-cxr 9.0, {decoder()}")
        assert main([*words, "32", "--resume"]) == 2
        told = capsys.readouterr().err
        assert f"another decoder (hf-cxr {hf_cxr.__version__}, " in told
        assert told.endswith(f"now hf-cxr 9.0, {decoder()}); start anew with --overwrite\n")
    decoded.clear()
    assert main([*words, "32", "--resume"]) == 0
    assert len(decoded) == len(peace["images.csv"].splitlines()) - 1 - 30
    assert contents(tmp_path / "out") == peace


def test_overwrite_starts_anew_and_resume_with_nothing_there_starts(peace, decoded, tmp_path):
    with ended_by(KeyboardInterrupt(), 30), pytest.raises(KeyboardInterrupt, match="30 images of an interrupted run"):
        prepare("phantom", tmp_path / "out", **PHANTOM, resume=True)
    decoded.clear()
    prepare("phantom", tmp_path / "out", **PHANTOM, overwrite=True)
    assert len(decoded) == len(peace["images.csv"].splitlines()) - 1
    assert contents(tmp_path / "out") == peace
    assert names_in(tmp_path) == ["out"]


def test_where_nothing_was_read_nothing_is_kept(tmp_path):
    for error in (KeyboardInterrupt, ValueError):
        interrupt(tmp_path / "out", 0, error)
        assert names_in(tmp_path) == []


def test_a_damaged_archive_among_several_costs_no_image_that_was_read(decoded, tmp_path, capsys):
    rows = ["uid,image,impression"]
    for name in "ab":
        (tmp_path / "in").mkdir(exist_ok=True)
        with zipfile.ZipFile(tmp_path / "in" / f"{name}.zip", "w") as archive:
            for i in range(10):
                archive.writestr(f"{name}{i}.png", png(noise(seed=ord(name) + 100 * i)))
                rows.append(f"{name}{i},{name}{i}.png,Normal.")
    (tmp_path / "in" / "t.csv").write_text("\n".join(rows))
    words = ["prepare", "table", "--root", str(tmp_path / "in" / "t.csv"), "--size", "32", "--out"]
    assert main([*words, str(tmp_path / "peace")]) == 0
    whole = (tmp_path / "in" / "b.zip").read_bytes()
    time = (tmp_path / "in" / "b.zip").stat().st_mtime_ns
    at = whole.index(b"b5.png") + 40
    for content, code in ((whole[:at] + bytes(64) + whole[at + 64 :], 2), (whole, 0)):
        (tmp_path / "in" / "b.zip").write_bytes(content)
        os.utime(tmp_path / "in" / "b.zip", ns=(time, time))
        decoded.clear()
        capsys.readouterr()
        assert main([*words, str(tmp_path / "out"), "--resume"]) == code
    assert len(decoded) == 5
    assert contents(tmp_path / "out") == contents(tmp_path / "peace")


def test_a_staging_folder_is_for_its_user_alone_and_a_link_in_its_place_is_refused(tmp_path, capsys):
    interrupt(tmp_path / "out", 5)
    folder = staged(tmp_path)
    assert S_IMODE(folder.stat().st_mode) == 0o700
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    before = contents(tmp_path / "elsewhere")
    words = ["prepare", "phantom", "--num-studies", "3", "--size", "32", "--out", str(tmp_path / "out")]
    assert main([*words, "--overwrite"]) == 2
    said = f"{tmp_path}/out: cannot write to {tmp_path} ({folder.name} there is a link, or another user's)\n"
    assert capsys.readouterr().err == f"hf-cxr prepare: {said}"
    assert contents(tmp_path / "elsewhere") == before


def test_a_run_that_is_terminated_says_what_is_kept(tmp_path):
    code = KILLED.replace("SIGKILL", "SIGTERM").format(
        rows=ROWS,
        shard=SHARD,
        number=30,
        owner="store.Store",
        method="add",
        out=str(tmp_path / "out"),
        num_proc=1,
        options=PHANTOM,
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(hf_cxr.__file__).parents[1], capture_output=True, text=True
    )
    assert done.returncode == 128 + 15
    said = "ended by SIGTERM; 29 images of an interrupted run are kept; go on with --resume"
    assert done.stderr.splitlines()[-1] == said


def test_an_image_that_was_damaged_meanwhile_is_told_without_the_advice_to_go_on(tmp_path, capsys):
    interrupt(tmp_path / "out", 30)
    part = staged(tmp_path) / "images-00.bin"
    part.write_bytes(bytes(part.stat().st_size))
    words = ["prepare", "phantom", "--num-studies", "120", "--size", "32", "--out", str(tmp_path / "out"), "--resume"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"hf-cxr prepare: {part}: an image is damaged; start anew (--overwrite)"


def test_a_full_disk_ends_a_run_with_one_line_and_it_can_go_on(peace, tmp_path, capsys):
    words = ["prepare", "phantom", "--out", str(tmp_path / "out"), "--num-studies", "120", "--size", "32", "--resume"]
    interrupt(tmp_path / "out", 100)
    full = next(file for n in range(PARTS) if not (file := staged(tmp_path) / f"images-{n:02d}.bin").exists())
    full.symlink_to("/dev/full")
    capsys.readouterr()
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"hf-cxr prepare: {tmp_path}/out: no space left on its disk; ")
    assert line.endswith(" images of an interrupted run are kept; go on with --resume")
    full.unlink()
    assert main(words) == 0
    assert contents(tmp_path / "out") == peace


def test_a_second_run_into_the_same_folder_is_told_of_the_first(tmp_path, monkeypatch, capsys):
    add = Store.add

    def add_after_another_start(self, key, outcome):
        if len(self.found) == 5:
            words = ["prepare", "phantom", "--out", str(tmp_path / "out"), "--num-studies", "3", "--size", "32"]
            for more in ("--overwrite", "--resume"):
                capsys.readouterr()
                assert main([*words, more]) == 2
                (line,) = capsys.readouterr().err.splitlines()
                assert (
                    line == f"hf-cxr prepare: {tmp_path}/out: another process is preparing it; wait for it, or end it"
                )
        add(self, key, outcome)

    monkeypatch.setattr(Store, "add", add_after_another_start)
    prepare("phantom", tmp_path / "out", num_studies=8, size=32)
    assert names_in(tmp_path) == ["out"]


def test_a_run_needs_at_most_a_fifth_more_disk_than_its_result(small_files, tmp_path, monkeypatch):
    most, add = [0], builder._SplitFiles.add

    def add_and_measure(self, row):
        add(self, row)
        files = (path for path in staged(tmp_path).rglob("*") if path.is_file() and path.name != JOURNAL)
        held = 0  # by files that are deleted and still open
        for file in Path("/proc/self/fd").glob("*"):
            with suppress(FileNotFoundError):
                stat = file.stat()
                held += stat.st_size if S_ISREG(stat.st_mode) and stat.st_nlink == 0 else 0
        most[0] = max(most[0], held + sum(path.stat().st_size for path in files))

    monkeypatch.setattr(builder._SplitFiles, "add", add_and_measure)
    monkeypatch.setattr(builder, "SHARD_BYTES", 10**9)
    prepare("phantom", tmp_path / "out", num_studies=160, size=96)
    result = sum(map(len, contents(tmp_path / "out").values()))
    assert 0.9 < most[0] / result < 1.2
