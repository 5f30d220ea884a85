"""Folders and files that are written whole or not at all, and the files that come with the package."""

import errno
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from hf_cxr.utils.files import check_free, commit, is_empty, packaged, staging_folder, undisturbed


@pytest.mark.parametrize("there", [False, True])
def test_of_two_that_finish_at_the_same_moment_one_wins_whole(tmp_path, there):
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def check():
        if out.exists() and not is_empty(out):
            raise FileExistsError("holds files already")
        time.sleep(0.3)  # the other looks too

    def finish(name):
        with staging_folder(out) as folder:
            made = folder / "made"
            (made / "data").mkdir(parents=True)
            for file in ("README.md", "data/train"):
                (made / file).write_text(name)
            try:
                commit(made, out, check)
            except FileExistsError:
                return "says so"
        return name

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(finish, ("one", "other")))
    assert sorted(told) in (["one", "says so"], ["other", "says so"])
    assert {(out / file).read_text() for file in ("README.md", "data/train")} == set(told) - {"says so"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("refused", ["out", "made"])
def test_an_old_result_is_back_in_its_place_if_the_new_one_cannot_be_moved_there(tmp_path, monkeypatch, refused):
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("years of work")
    rename = Path.rename

    def refuse(path, target):
        if path.name == refused:
            raise OSError(errno.EIO, "the disk is ill")
        return rename(path, target)

    with staging_folder(out) as folder:
        (folder / "made").mkdir()
        monkeypatch.setattr(Path, "rename", refuse)
        with pytest.raises(OSError, match="the disk is ill"):
            commit(folder / "made", out, lambda: None)
        monkeypatch.undo()
    assert (out / "old").read_text() == "years of work"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_full_disk_is_one_clear_line(tmp_path):
    def fill():
        with staging_folder(tmp_path / "out") as folder:
            (folder / "half").write_text("")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(OSError, match=r"out: no space left on its disk; nothing was written"):
        fill()
    assert list(tmp_path.iterdir()) == []


def test_only_an_earlier_result_is_overwritten_and_only_when_told(tmp_path):
    out = tmp_path / "out"
    what = ("a page", "page.html")
    check_free(out, *what, overwrite=False)
    out.mkdir()
    check_free(out, *what, overwrite=False)
    (out / "thesis.txt").write_text("years of work")
    with pytest.raises(FileExistsError, match=r"out: is not a page \(no page\.html\), so it is not overwritten"):
        check_free(out, *what)
    (out / "page.html").write_text("")
    check_free(out, *what)
    with pytest.raises(FileExistsError, match=r"holds files already.*--overwrite"):
        check_free(out, *what, overwrite=False)
    with pytest.raises(FileExistsError, match=r"is not a page \(it holds thesis\.txt\)"):
        check_free(out, *what, known={"page.html"})
    with pytest.raises(FileExistsError, match="is a file"):
        check_free(out / "thesis.txt", *what)


def test_files_that_come_with_the_package_are_found():
    assert packaged("model_card.md").is_file()
    assert any(packaged("configs/accelerate").glob("*.yaml"))


@pytest.fixture
def listening():
    """Ctrl-C is heard, which is not so in a job of a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_is_undisturbed_hears_ctrl_c_afterwards_whichever_thread_it_reaches(listening):
    over = threading.Event()
    other = threading.Thread(target=over.wait)
    other.start()
    steps = []

    def interrupted_early():
        with undisturbed():
            signal.pthread_kill(other.ident, signal.SIGINT)
            time.sleep(0.2)
            steps.append("all of it")
        steps.append("and more")

    try:
        with pytest.raises(KeyboardInterrupt):
            interrupted_early()
    finally:
        over.set()
        other.join()
    assert steps == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
