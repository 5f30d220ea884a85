"""Runs `hf-cxr` commands and Python snippets one after another, each in a process of its own, forked from one that has
imported everything: as separate as a user's, without five seconds of imports each.

Reads JSON lines `{"words": ["predict", …]}` or `{"code": "…"}` from stdin and answers each with
`{"status", "stdout", "stderr"}`. Working directory and environment are those it was started with.
"""

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path


def work(task: dict) -> int:
    if "code" in task:
        exec(compile(task["code"], "<documentation>", "exec"), {"__name__": "__main__"})
        return 0
    from hf_cxr.cli.parser import main

    sys.argv = ["hf-cxr", *task["words"]]
    return main(task["words"])


def in_a_fork(task: dict) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / name for name in ("stdout", "stderr")]
        if (child := os.fork()) == 0:
            status = 1
            try:
                for number, file in enumerate(files, start=1):
                    os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), number)
                status = work(task)
            except SystemExit as exit:
                status = exit.code if isinstance(exit.code, int) else 1
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        told = {file.name: file.read_text(encoding="utf-8", errors="replace") for file in files}
    return {"status": status} | told


if __name__ == "__main__":
    import hf_cxr.evaluation.compare
    import hf_cxr.evaluation.evaluate
    import hf_cxr.explore
    import hf_cxr.hub.push
    import hf_cxr.training.run  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(in_a_fork(json.loads(line))), flush=True)
