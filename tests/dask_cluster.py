"""A Dask scheduler and workers on this machine, each in a process of its own, as `dask scheduler` and `dask worker`
start them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil


class Cluster:
    """Its address, and the processes of its workers."""

    def __init__(self, folder: Path, number: int, **environment: str) -> None:
        self.file, self.log = folder / "scheduler.json", (folder / "log").open("ab")
        self.environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
        quiet = ["--scheduler-file", str(self.file), "--no-dashboard"]
        self.processes = [self.start("scheduler", *quiet, "--port", "0", "--host", "127.0.0.1")]
        deadline = time.monotonic() + 60
        while not self.file.exists():
            assert self.processes[0].poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        self.address = json.loads(self.file.read_text())["address"]
        for _ in range(number):
            self.add_worker()

    def start(self, what: str, *words: str) -> subprocess.Popen:
        command = [sys.executable, "-m", f"distributed.cli.dask_{what}", *words]
        return subprocess.Popen(command, env=self.environment, stdout=self.log, stderr=self.log)

    def add_worker(self, *words: str) -> None:
        """One with a nanny, which starts another in its place when it dies."""
        words = ("--nthreads", "1", "--no-dashboard", "--memory-limit", "0", *words)
        folder = self.file.parent / f"worker{len(self.processes)}"
        self.processes.append(self.start("worker", self.address, *words, "--local-directory", str(folder)))

    def readers(self) -> list[psutil.Process]:
        """The processes that do the work, not their nannies."""
        nannies = (psutil.Process(process.pid) for process in self.processes[1:] if process.poll() is None)
        return [
            child
            for nanny in nannies
            for child in nanny.children()
            if "resource_tracker" not in " ".join(child.cmdline())
        ]


@contextmanager
def dask_cluster(folder: Path, number: int, **environment: str) -> Iterator[Cluster]:
    cluster = Cluster(folder, number, **environment)
    try:
        yield cluster
    finally:
        for process in reversed(cluster.processes):
            for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
                child.kill()
            process.kill()
            process.wait()
        cluster.log.close()
