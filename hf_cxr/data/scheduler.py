"""Where images are read: in this process, in several of this machine, or on the workers of a Dask cluster; with
results in the order of the jobs. What a job is lives in `hf_cxr.data.images`."""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from queue import SimpleQueue
from typing import Any

from hf_cxr.data.study import Key
from hf_cxr.utils.files import ENDINGS, undisturbed

log = logging.getLogger(__name__)

AHEAD = 8  # jobs in work or waiting per process: bounds the memory, whatever the size of the collection
WAIT = 60  # seconds for a cluster to answer, and to have a worker
PR_SET_PDEATHSIG = 1  # linux/prctl.h

Result = Callable[[], Any]  # waits for what a job gives; `None`: every process that worked on it was killed


@dataclass(frozen=True)
class Workers:
    """Those who do the jobs."""

    submit: Callable[..., Result]  # of a function and its arguments
    ahead: Callable[[], int]  # how many jobs may be in work or waiting
    remote: bool = False


@contextmanager
def workers(num_proc: int = 1, scheduler: str | None = None) -> Iterator[Workers]:
    """Processes of this machine, or the workers of the Dask scheduler at the address `scheduler`.

    Raises:
        OSError: If no scheduler answers there, or it has no worker.
        ImportError: If Dask is not installed.
    """
    if scheduler is not None:
        with _cluster(scheduler) as found:
            yield found
    elif num_proc <= 1:
        yield Workers(_at_once, lambda: 1)
    else:
        processes = _Processes(num_proc)
        try:
            yield Workers(processes.submit, lambda: AHEAD * num_proc)
        finally:
            processes.close()


def in_order(
    function: Callable[..., Any], jobs: Iterable[tuple[Key, tuple[Any, ...]]], workers: Workers
) -> Iterator[tuple[Key, Any]]:
    """`(key, function(*arguments))` of each job, in the order of the jobs, never more than a few of them in memory.

    Where a process is killed, what it was working on is done again elsewhere. A job that kills there too gives `None`.
    """
    waiting: deque[tuple[Key, Result]] = deque()
    for key, arguments in jobs:
        waiting.append((key, workers.submit(function, *arguments)))
        while len(waiting) >= workers.ahead():
            first, result = waiting.popleft()
            yield first, result()
    for first, result in waiting:
        yield first, result()


def _at_once(function: Callable[..., Any], *arguments: Any) -> Result:
    result = function(*arguments)
    return lambda: result


class _Processes:
    """Processes of this machine. Each has a pipe of its own, so that nothing but its job is lost with one of them, and
    a thread here that waits at the other end."""

    def __init__(self, number: int) -> None:
        self.forks = "fork" in multiprocessing.get_all_start_methods()  # as `datasets` does it
        self.context: Any = multiprocessing.get_context("fork" if self.forks else None)
        self.lock = threading.Lock()
        self.running: dict[BaseProcess, Connection] = {}
        self.idle: SimpleQueue[BaseProcess] = SimpleQueue()  # as many as threads that are not waiting for one
        self.closed = False
        with undisturbed():
            for _ in range(number):
                self.idle.put(self._start())
        self.threads = ThreadPoolExecutor(number)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Result:
        return self.threads.submit(self._work, function, arguments).result

    def _work(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        killed = 0
        while killed < 2:
            process = self.idle.get()
            pipe, sent = self.running[process], False
            try:
                pipe.send((function, arguments))
                sent = True
                failed, outcome = pipe.recv()
            except (EOFError, OSError):
                killed += sent
                process = self._start(instead_of=process)
                continue
            finally:
                self.idle.put(process)
            if failed:
                raise outcome
            return outcome
        return None

    def _start(self, instead_of: BaseProcess | None = None) -> BaseProcess:
        with self.lock:  # a process forked at this moment would keep the far end of the pipe open
            if self.closed:
                raise CancelledError
            if instead_of is not None:
                self.running.pop(instead_of).close()
                instead_of.kill()
                instead_of.join()
            pipe, theirs = self.context.Pipe()
            inherited = [*self.running.values(), pipe] if self.forks else []
            process = self.context.Process(target=_serve, args=(theirs, inherited), daemon=True)
            process.start()
            theirs.close()
            self.running[process] = pipe
        return process

    def close(self) -> None:
        with self.lock:
            self.closed = True
            for process in self.running:
                process.kill()
        self.threads.shutdown(cancel_futures=True)
        for process, pipe in self.running.items():
            process.join()
            pipe.close()


def _serve(pipe: Connection, inherited: Iterable[Connection]) -> None:
    """A reading process ends when its pipe does, and with its parent, whatever ends that; never on its own."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in ENDINGS:  # put off when this process was forked, and without effect from here on
        signal.signal(number, signal.SIG_IGN)
    for other in inherited:
        other.close()
    with suppress(EOFError):
        while True:
            function, arguments = pipe.recv()
            try:
                answer = False, function(*arguments)
            except Exception as error:
                answer = True, error
            pipe.send(answer)


@contextmanager
def _cluster(address: str) -> Iterator[Workers]:
    try:
        from distributed import Client
    except ImportError as error:
        raise ImportError(f"a scheduler needs Dask (pip install 'hf-cxr[cluster]'): {error}") from None
    with _dask_quiet():
        try:
            client = Client(address, timeout=WAIT)
        except (OSError, ValueError) as error:  # ValueError: no such protocol
            raise OSError(f"{address}: no Dask scheduler answers there ({' '.join(str(error).split())})") from None
        with client:
            try:
                client.wait_for_workers(1, timeout=WAIT)
            except TimeoutError:
                said = f"{address}: this scheduler has no worker; start one with: dask worker {address}"
                raise OSError(said) from None
            yield _dask(client, address)


@contextmanager
def _dask_quiet() -> Iterator[None]:
    """Dask would bury our one line in tracebacks, and warns of images from archives, which are sent as they are."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client")]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")
        try:
            for logger in loggers:
                logger.setLevel(logging.CRITICAL)
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _dask(client: Any, address: str) -> Workers:
    """Dask itself does again what a worker was killed over (`distributed.scheduler.allowed-failures` times). It counts
    what waited at that worker too; so what it gives up is done once more with nothing of ours beside it."""
    from distributed import KilledWorker, TimeoutError, wait
    from distributed.comm import CommClosedError

    waiting: dict[Any, None] = {}
    fetched: dict[Any, Any] = {}
    counted = [0.0, 0]  # when, and how many threads

    def start(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        future = client.submit(function, *arguments, pure=False)
        waiting[future] = None
        return future

    def finish(futures: list[Any]) -> None:
        told = False
        while True:
            try:
                wait(futures, timeout=WAIT)
                return
            except TimeoutError:
                if not told and not sum(client.nthreads().values()):
                    log.warning("%s: no worker is left; waiting for one (dask worker %s)", address, address)
                    told = True

    def outcome(future: Any) -> Any:
        if not future.done():
            finish([future])
        if future in waiting and future.status == "finished":  # and with it all others that are, in one go
            done = [other for other in waiting if other.status == "finished"]
            fetched.update(zip(done, client.gather(done), strict=True))
            for other in done:
                del waiting[other]
        waiting.pop(future, None)
        return fetched.pop(future) if future in fetched else future.result()

    def submit(function: Callable[..., Any], *arguments: Any) -> Result:
        first = start(function, arguments)

        def result() -> Any:
            try:
                with suppress(KilledWorker):
                    return outcome(first)
                finish(list(waiting))
                with suppress(KilledWorker):
                    return outcome(start(function, arguments))
                return None
            except ImportError as error:
                raise OSError(f"a worker of {address} cannot read images: {error}") from None
            except (CancelledError, CommClosedError):
                raise OSError(f"{address}: the scheduler is gone") from None

        return result

    def ahead() -> int:
        if time.monotonic() - counted[0] > 1:  # workers come and go
            with suppress(OSError):  # then a result tells that it is gone
                counted[:] = time.monotonic(), sum(client.nthreads().values())
        return AHEAD * max(1, int(counted[1]))

    return Workers(submit, ahead, remote=True)
