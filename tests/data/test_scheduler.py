"""Images are read on the workers of a Dask cluster as in processes of this machine."""

import logging
import os
import threading
import zipfile
from functools import partial
from pathlib import Path

import datasets
import pytest
from test_images import noise, png, read_all

from hf_cxr.cli.parser import main
from hf_cxr.data import images, scheduler
from hf_cxr.data.prepare import prepare
from hf_cxr.data.scheduler import in_order, workers
from hf_cxr.data.store import Store
from hf_cxr.data.study import Radiograph, StoredImage, Study

datasets.disable_progress_bars()
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    pytest.importorskip("distributed", reason="Dask is absent: pip install -e '.[cluster]'")
    from dask_cluster import dask_cluster

    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {"PYTHONPATH": path, "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0"}
    with dask_cluster(tmp_path_factory.mktemp("cluster"), 3, **settings) as started:
        yield started


def table(folder: Path, number: int = 40) -> Path:
    folder.mkdir()
    rows = ["uid,frontal,lateral,impression"]
    for i in range(number):
        for view in "ab":
            (folder / f"{i}{view}.png").write_bytes(png(noise(seed=2 * i + (view == "b"))))
        rows.append(f"s{i},{i}a.png,{i}b.png,Normal {i}.")
    (folder / "t.csv").write_text("\n".join(rows))
    return folder / "t.csv"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_cluster_one_of_whose_workers_is_killed_half_way_gives_the_bytes_of_one_machine(
    cluster, tmp_path, monkeypatch
):
    root = table(tmp_path / "in")
    prepare("table", tmp_path / "here", root=root, size=32)
    add, killed = Store.add, []

    def add_and_kill(self, key, outcome):
        if len(self.found) == 20 and not killed:
            killed.append(cluster.readers()[0])
            killed[0].kill()
        add(self, key, outcome)

    monkeypatch.setattr(Store, "add", add_and_kill)
    prepare("table", tmp_path / "there", root=root, size=32, scheduler=cluster.address)
    assert killed
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_an_image_that_kills_every_worker_is_named_and_its_neighbours_are_read(cluster, tmp_path):
    sources = [noise(seed=i) for i in range(12)]
    sources[4] = sources[5] = partial(os._exit, 1)
    studies = [Study(str(i), (Radiograph(source, "frontal", f"{i}.png"),)) for i, source in enumerate(sources)]
    found, _ = read_all(tmp_path / "store", studies, 32, scheduler=cluster.address)
    killed = "every process that read it was killed (out of memory?)"
    assert {i: image for i, (image,) in enumerate(found) if isinstance(image, str)} == {
        i: f"{i}.png: {killed}" for i in (4, 5)
    }
    assert all(isinstance(image, StoredImage) for i, (image,) in enumerate(found) if i not in (4, 5))


def test_a_worker_with_another_decoder_is_refused_in_one_line_and_what_was_read_is_kept(
    cluster, tmp_path, monkeypatch, capsys
):
    words = ["prepare", "table", "--root", str(table(tmp_path / "in", 4)), "--out", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(images, "worker", lambda: "hf-cxr 0, pillow 1")
        assert main([*words, "--scheduler", cluster.address]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "worker on " in line
    assert "it would read with hf-cxr " in line
    assert line.endswith("this process reads with hf-cxr 0, pillow 1")


def test_a_worker_that_does_not_see_the_images_ends_the_run_instead_of_rejecting_them(
    cluster, tmp_path, monkeypatch, capsys
):
    table(tmp_path / "in", 4)
    monkeypatch.chdir(tmp_path / "in")
    here = Path("/proc/self/cwd/t.csv")  # another folder in each process
    if not here.exists():
        pytest.skip("no /proc here")
    rows = here.read_text().splitlines()
    here.write_text("\n".join([rows[0], "s0,/proc/self/cwd/0a.png,,Normal."]))
    words = ["prepare", "table", "--root", "t.csv", "--out", str(tmp_path / "out"), "--scheduler", cluster.address]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("does not see /proc/self/cwd/0a.png; put the images where all workers see them")


def test_a_path_that_only_its_reader_can_judge_rejects_its_study_as_on_one_machine(cluster, tmp_path):
    root = table(tmp_path / "in", 4)
    (tmp_path / "in" / "loop.png").symlink_to("loop.png")
    odd = ["s7,loop.png,,Normal.", f"s8,{'x' * 300}.png,,Normal.", "s9,0a.png/x.png,,Normal."]
    root.write_text("\n".join([root.read_text(), *odd]))
    prepare("table", tmp_path / "here", root=root, size=32)
    prepare("table", tmp_path / "there", root=root, size=32, scheduler=cluster.address)
    assert contents(tmp_path / "there") == contents(tmp_path / "here")
    assert len((tmp_path / "there" / "rejects.jsonl").read_text().splitlines()) == 3


def test_large_images_of_archives_are_sent_without_a_warning_and_the_logs_of_dask_are_left_as_they_were(
    cluster, tmp_path, recwarn
):
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "a.zip", "w") as archive:
        archive.writestr("1.png", png(noise(4000, 3000)))
    (tmp_path / "in" / "t.csv").write_text("uid,frontal,impression\n1,1.png,Normal.\n")
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    before = [logger.level for logger in loggers]
    prepare("table", tmp_path / "out", root=tmp_path / "in" / "t.csv", size=32, scheduler=cluster.address)
    assert [logger.level for logger in loggers] == before
    assert not [str(warning.message) for warning in recwarn if "large graph" in str(warning.message)]


def test_a_cluster_whose_last_worker_is_gone_is_told_once_and_goes_on_with_the_next(tmp_path, monkeypatch, caplog):
    pytest.importorskip("distributed", reason="Dask is absent: pip install -e '.[cluster]'")
    from dask_cluster import dask_cluster

    root, add, gone = table(tmp_path / "in"), Store.add, []
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with dask_cluster(tmp_path, 1, PYTHONPATH=path) as dying:

        def add_and_end(self, key, outcome):
            if len(self.found) == 20 and not gone:
                gone.append(dying.processes[1].terminate())
                dying.processes[1].wait()
                monkeypatch.setattr(scheduler, "WAIT", 0.2)
                threading.Timer(3, dying.add_worker).start()
            add(self, key, outcome)

        monkeypatch.setattr(Store, "add", add_and_end)
        prepare("table", tmp_path / "out", root=root, size=32, scheduler=dying.address)
    told = f"{dying.address}: no worker is left; waiting for one (dask worker {dying.address})"
    assert caplog.messages.count(told) == 1
    assert len((tmp_path / "out" / "splits.csv").read_text().splitlines()) == 41


@pytest.mark.parametrize("there", [True, False])
def test_a_scheduler_that_has_no_worker_or_is_none_is_one_line(tmp_path, monkeypatch, capsys, there):
    pytest.importorskip("distributed", reason="Dask is absent: pip install -e '.[cluster]'")
    from dask_cluster import dask_cluster

    monkeypatch.setattr(scheduler, "WAIT", 2)
    with dask_cluster(tmp_path, 0) as lonely:
        address = lonely.address if there else "tcp://127.0.0.1:1"
        assert main(["prepare", "phantom", "--out", str(tmp_path / "out"), "--scheduler", address]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    said = (
        f"this scheduler has no worker; start one with: dask worker {address}"
        if there
        else "no Dask scheduler answers"
    )
    assert f"{address}: {said}" in line
    assert not (tmp_path / "out").exists()


def test_without_dask_a_scheduler_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert main(["prepare", "phantom", "--out", str(tmp_path / "out"), "--scheduler", "tcp://127.0.0.1:1"]) == 2
    assert "a scheduler needs Dask (pip install 'hf-cxr[cluster]')" in capsys.readouterr().err


@pytest.mark.parametrize("num_proc", [1, 3])
def test_results_come_in_order_and_few_jobs_are_taken_ahead(num_proc):
    taken = []
    jobs = (((n, 0), (n,)) for n in range(200) if taken.append(n) is None)
    with workers(num_proc) as readers:
        for number, (key, result) in enumerate(in_order(abs, jobs, readers)):
            assert (key, result) == ((number, 0), number)
            assert len(taken) - number <= scheduler.AHEAD * num_proc
    assert number == 199


def test_an_error_in_another_process_is_raised_here(tmp_path):
    with workers(2) as readers, pytest.raises(ValueError, match="invalid literal for int"):
        list(in_order(int, [((0, 0), ("x",))], readers))


def test_a_scheduler_that_dies_ends_the_run_in_one_line_and_it_goes_on_elsewhere(tmp_path, monkeypatch, capsys):
    pytest.importorskip("distributed", reason="Dask is absent: pip install -e '.[cluster]'")
    from dask_cluster import dask_cluster

    root, add = table(tmp_path / "in"), Store.add
    words = ["prepare", "table", "--root", str(root), "--out", str(tmp_path / "out"), "--size", "32", "--resume"]
    prepare("table", tmp_path / "here", root=root, size=32)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with dask_cluster(tmp_path, 1, PYTHONPATH=path) as dying, monkeypatch.context() as patch:

        def add_and_kill(self, key, outcome):
            if len(self.found) == 20:
                dying.processes[0].kill()
            add(self, key, outcome)

        patch.setattr(Store, "add", add_and_kill)
        assert main([*words, "--scheduler", dying.address]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith(f"hf-cxr prepare: {dying.address}: the scheduler is gone; ")
        assert line.endswith(" images of an interrupted run are kept; go on with --resume")
    assert main(words) == 0
    assert contents(tmp_path / "out") == contents(tmp_path / "here")
