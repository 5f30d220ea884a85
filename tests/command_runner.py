"""Runs `hf-cxr` commands and Python snippets one after another, each in a process of its own, forked from one that has
imported everything: as separate as a user's, without five seconds of imports each.

Reads JSON lines `{"words": ["predict", …]}`, `{"script": ["scripts/train.py", …]}` or `{"code": "…"}` from stdin and
answers each with `{"status", "stdout", "stderr"}`. Working directory and environment are those it was started with, or
`"folder"` and `"environment"` of the task. With `"processes": 2` as many do the task at once, joined as `torchrun`
joins them; the status is then the first that is not 0.
"""

import json
import os
import runpy
import signal
import socket
import sys
import tempfile
import traceback
from pathlib import Path


def work(task: dict) -> int:
    if "code" in task:
        exec(compile(task["code"], "<documentation>", "exec"), {"__name__": "__main__"})
        return 0
    if "script" in task:
        sys.argv = task["script"]
        sys.path[0] = str(Path(sys.argv[0]).parent.absolute())
        runpy.run_path(sys.argv[0], run_name="__main__")
        return 0
    from hf_cxr.cli.parser import main

    sys.argv = ["hf-cxr", *task["words"]]
    return main(task["words"])


def fork(task: dict, files: list[Path], ranks: dict[str, str]) -> int:
    """Start the task in a process of its own that writes into the two files; returns its id."""
    if child := os.fork():
        return child
    status = 1
    try:
        for number, file in enumerate(files, start=1):
            os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.environ.update(ranks)
        os.chdir(task.get("folder", "."))
        status = work(task)
    except SystemExit as exit:
        status = exit.code if isinstance(exit.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def in_forks(task: dict) -> dict:
    if "environment" in task:
        os.environ.clear()
        os.environ.update(task["environment"])
    status = 0
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        children = {fork(task, files, ranks) for ranks in as_torchrun(task.get("processes", 1))}
        while children:
            child, ended = os.wait()
            children.remove(child)
            status = status or os.waitstatus_to_exitcode(ended)
            for other in children if status else ():  # they would wait for the one that failed
                os.kill(other, signal.SIGKILL)
        told = {file.name: file.read_text(encoding="utf-8", errors="replace") for file in files}
    return {"status": status} | told


def as_torchrun(processes: int) -> list[dict[str, str]]:
    """What `torchrun` tells each process of one host; nothing to a single one."""
    if processes == 1:
        return [{}]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(listener.getsockname()[1])}
    number = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
    return [place | number | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]


if __name__ == "__main__":
    import hf_cxr.evaluation.compare
    import hf_cxr.evaluation.evaluate
    import hf_cxr.explore
    import hf_cxr.hub.push
    import hf_cxr.training.run  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(in_forks(json.loads(line))), flush=True)
