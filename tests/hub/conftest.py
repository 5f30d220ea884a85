"""A Hub of its own for each test file, and a user of it."""

import json
import subprocess
import sys

import pytest
from helpers import ROOT
from hub_server import HubServer


@pytest.fixture(scope="module")
def site():
    with HubServer(tokens={"hf_test": "user", "hf_read": "user:read"}) as site:
        yield site


@pytest.fixture(scope="module")
def ask(site):
    """Runs an `hf-cxr` command as a user of that Hub, in a process of its own; returns status, stdout and stderr."""
    words = [sys.executable, str(ROOT / "tests" / "command_runner.py")]
    env = site.env | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as runner:

        def run(*words, token="hf_test", **environment):
            code = f"import os; os.environ.update({environment | {'HF_TOKEN': token}})\n"
            code += f"import sys; from hf_cxr.cli.parser import main; sys.exit(main({list(map(str, words))}))"
            runner.stdin.write(json.dumps({"code": code}) + "\n")
            runner.stdin.flush()
            answer = json.loads(runner.stdout.readline())
            return answer["status"], answer["stdout"], answer["stderr"]

        yield run
        runner.stdin.close()


@pytest.fixture(scope="module")
def cxr(ask):
    """The same; returns status and stderr."""

    def run(*words, **environment):
        status, _, stderr = ask(*words, **environment)
        return status, stderr

    return run
