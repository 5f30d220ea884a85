"""Is a preparation the same however it is interrupted and wherever it runs, and how much disk and time does it need?

    python benchmarks/large_collections.py [--kills 20] [--seed 0] [--studies 2000] [--rounds 3]

1. Disk: the most that a run has in its staging folder, beside the size of its result.
2. `--kills` times: `prepare --resume` in a process of its own, killed (SIGKILL) at random moments until it ends. Every
   file must equal those of the run in peace, and no image that the journal tells of may be decoded again.
3. A Dask scheduler with three workers on this machine, one killed in the middle: the same files again.
4. CPU time and wall time of two workers of a cluster beside `--num-proc 2`, in turn, on images of `--pixels`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import datasets
import psutil
from PIL import Image
from preparation import write_collection

from hf_cxr.data import images
from hf_cxr.data.prepare import prepare
from hf_cxr.data.store import JOURNAL

ROOT = Path(__file__).parents[1]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def size_of(folder: Path) -> int:
    """Bytes on the disk; files may vanish meanwhile."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                total += Path(place, name).stat().st_blocks * 512
    return total


def in_peace(folder: Path, words: dict[str, Any]) -> tuple[float, float]:
    """Seconds, and the most bytes in `folder` for each of the result, asked every 5 ms."""
    most, ended = [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            most[0] = max(most[0], size_of(folder))

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    prepare(**words, out=folder / "out")
    seconds = time.perf_counter() - start
    ended.set()
    watcher.join()
    return seconds, most[0] / size_of(folder / "out")


READ = images._read_one
LOG: list[TextIO] = []


def read_and_tell(source: Any, label: str, *rest: Any) -> Any:
    LOG[0].write(f"{label}\n")
    return READ(source, label, *rest)


def start(words: dict[str, Any], out: Path, decoded: Path) -> int:
    """Fork a process that prepares, and writes a line for each image that it decodes."""
    child = os.fork()
    if child == 0:
        LOG.append(decoded.open("a", buffering=1))
        vars(images)["_read_one"] = read_and_tell
        try:
            prepare(**words, out=out, resume=True)
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            os._exit(1)
    return child


def kill_again_and_again(
    folder: Path, words: dict[str, Any], seconds: float, draw: random.Random, peace: dict
) -> tuple[int, str]:
    """How many kills one run took until it ended, and what is wrong with it ("": nothing)."""
    out, decoded, kills = folder / "out", folder / "decoded", 0
    told: set[str] = set()
    while True:
        child = start(words, out, decoded)
        moment = draw.uniform(0.02, 1.0) * seconds / (1 + kills % 3)
        deadline = time.monotonic() + moment
        code = None
        while code is None and time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            code = os.waitstatus_to_exitcode(status) if ended else None
            time.sleep(0.002)
        if code is None:
            os.kill(child, signal.SIGKILL)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        names = decoded.read_text().splitlines() if decoded.exists() else []
        if twice := told & set(names):
            return kills, f"decoded again: {sorted(twice)[:3]}"
        if code == 0 or (out / "prepare.json").exists():
            break
        if code != -signal.SIGKILL:
            return kills, f"exit {code}"
        kills += 1
        told |= labels_told(folder)
        decoded.unlink(missing_ok=True)
    return kills, "" if contents(out) == peace else "other bytes"


def labels_told(folder: Path) -> set[str]:
    """The names of the images that the journal of an interrupted run tells of."""
    known = set()
    for journal in folder.glob(f".hf-cxr-*/{JOURNAL}"):
        for line in journal.read_bytes().split(b"\n")[1:-1]:
            if key := json.loads(line).get("key"):
                known.add(ORDER[tuple(key)])
    return known


ORDER: dict[tuple[int, int], str] = {}  # (index of the study, of the image) → name of its file


def remember_order(root: Path) -> None:
    from hf_cxr.data.choice import PreparationConfig

    planned, _ = PreparationConfig("table", {"root": str(root)}).plan(None)
    for s, study in enumerate(planned.studies):
        ORDER.update({(s, i): image.label for i, image in enumerate(study.images)})


@contextmanager
def cluster(folder: Path, number: int) -> Iterator[tuple[str, list[subprocess.Popen]]]:
    """The address of a Dask scheduler with so many workers, and the processes: the scheduler, and the nannies."""
    file, environment = folder / "scheduler.json", os.environ | {"OMP_NUM_THREADS": "1"}
    python, log = [sys.executable, "-m"], (folder / "log").open("ab")

    def run(*command: str) -> subprocess.Popen:
        return subprocess.Popen([*python, *command], env=environment, stdout=log, stderr=log)

    listen = ("--port", "0", "--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file))
    processes = [run("distributed.cli.dask_scheduler", *listen)]
    try:
        while not file.exists():
            time.sleep(0.05)
        address = json.loads(file.read_text())["address"]
        alone = (
            "--nthreads",
            "1",
            "--no-dashboard",
            "--memory-limit",
            "0",
            "--local-directory",
            str(folder / "scratch"),
        )
        processes += [run("distributed.cli.dask_worker", address, *alone) for _ in range(number)]
        yield address, processes
    finally:
        for process in reversed(processes):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
            process.kill()
            process.wait()
        log.close()


def enlarged(folder: Path, out: Path, pixels: int) -> Path:
    """A table of 100 images of a collection, each made so large: to draw them would take longer than to read them."""
    out.mkdir()
    rows = ["uid,frontal,impression"]
    for number, file in enumerate(sorted(folder.glob("*.png"))[:100]):
        with Image.open(file) as image:
            image.convert("L").resize((pixels, pixels)).save(out / f"{number}.png", compress_level=1)
        rows.append(f"s{number},{number}.png,Normal {number}.")
    (out / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    return out / "t.csv"


def cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def with_children(processes: list[subprocess.Popen]) -> list[psutil.Process]:
    parents = [psutil.Process(process.pid) for process in processes]
    return [*parents, *(child for parent in parents for child in parent.children(recursive=True))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", type=int, default=2000, help="of part 1; the other parts have a tenth")
    parser.add_argument("--pixels", type=int, default=1024, help="of the images of part 4")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    datasets.disable_progress_bars()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("disk", "few", "large"):
            (folder / part).mkdir()
        write_collection(folder / "in", options.studies, 160, 1)
        root: dict[str, Any] = {"source": "table", "root": folder / "in" / "studies.csv"}
        _, peak = in_peace(folder / "disk", {**root, "size": 160})
        print(f"1. Most disk in use, {options.studies} studies: {peak:.2f} of the result", flush=True)

        write_collection(folder / "small", options.studies // 10, 160, 1)
        few: dict[str, Any] = {"source": "table", "root": folder / "small" / "studies.csv", "size": 96}
        remember_order(few["root"])
        seconds, _ = in_peace(folder / "few", few)
        peace, failures, kills, runs = contents(folder / "few" / "out"), 0, 0, 0
        while kills < options.kills:
            runs += 1
            place = folder / f"run{runs}"
            place.mkdir()
            times, wrong = kill_again_and_again(place, few | {"num_proc": 1 + runs % 2}, seconds, draw, peace)
            kills, failures = kills + times, failures + bool(wrong)
            print(f"   run {runs}: killed {times} times, then {wrong or 'the same bytes'}", flush=True)
            shutil.rmtree(place)
        print(
            f"2. {kills} kills, {runs - failures} of {runs} runs with the same bytes, no image decoded twice",
            flush=True,
        )

        (folder / "cluster").mkdir()
        with cluster(folder / "cluster", 3) as (address, processes):
            prepare(**few, out=folder / "three", scheduler=address)
            victim = psutil.Process(processes[1].pid).children()[-1]
            timer = threading.Timer(seconds / 3, victim.kill)
            timer.start()
            prepare(**few, out=folder / "killed", scheduler=address)
            timer.cancel()
            same = [contents(folder / out) == peace for out in ("three", "killed")]
            print(
                f"3. Three workers: same bytes {same[0]}; one killed ({not victim.is_running()}): {same[1]}",
                flush=True,
            )
        failures += not all(same)

        full: dict[str, Any] = {"source": "table", "root": enlarged(folder / "small", folder / "full", options.pixels)}
        (folder / "cluster2").mkdir()
        spent: dict[str, list[tuple[float, float]]] = {"2 workers of Dask": [], "--num-proc 2": []}
        with cluster(folder / "cluster2", 2) as (address, processes):
            prepare(**few, out=folder / "warm", scheduler=address)
            ways: list[dict[str, Any]] = [{"scheduler": address}, {"num_proc": 2}]
            for number in range(options.rounds):
                for what, how in zip(spent, ways, strict=True):
                    own, others = os.times(), cpu(with_children(processes))
                    begun = time.perf_counter()
                    prepare(**full, out=folder / "large" / f"{number}{what[:3]}", **how)
                    wall, after = time.perf_counter() - begun, os.times()
                    used = sum(after[:4]) - sum(own[:4]) + cpu(with_children(processes)) - others
                    spent[what].append((wall, used))
        for what, times_ in spent.items():
            wall, used = (median(column) for column in zip(*times_, strict=True))
            print(f"4. {what}: {wall:.2f} s, {used:.2f} CPU s (median of {options.rounds})")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
