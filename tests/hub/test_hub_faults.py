"""A push that goes wrong at any step leaves the repository as it was, and can be repeated. The Hub is a small one on
this machine that fails on demand; its client is the real one, in processes of its own."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers import copy_folder
from hub_server import PUSH_STEPS, HubServer

STEPS = ({*PUSH_STEPS} - {"settings"}) | {"validate_yaml"}  # test_hub.py fails where a repository becomes public
HOW = ("500", "hang", "drop")
WAYS = [(step, how) for step in sorted(STEPS) for how in HOW]
# Pushes a folder at once to a repository of each user named, and prints what became of it.
WORKER = """
import json, sys
from concurrent.futures import ThreadPoolExecutor
from hf_cxr.hub import push as hub
folder, *users = sys.argv[1:]
def told(user):
    try:
        hub.push(folder, f"{user}/run", token=f"hf_{user}")
    except OSError as error:
        return str(error)
with ThreadPoolExecutor(len(users)) as pool:
    print(json.dumps(dict(zip(users, pool.map(told, users)))))
"""


def user_at(step, how=""):
    return f"at-{step}{how}".replace("_", "")


def start(hub, folder, *users, patience=60):
    quiet = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DOWNLOAD_TIMEOUT": str(patience)}
    words = [sys.executable, "-c", WORKER, str(folder), *users]
    return subprocess.Popen(words, env=hub.env | quiet, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def push(hub, folder, *users, patience=60):
    """User → what went wrong with the push, or None."""
    return json.loads(start(hub, folder, *users, patience=patience).communicate(timeout=120)[0])


def contents(folder):
    from hf_cxr.hub.privacy import files_to_push

    return {name: file.read_bytes() for name, file in files_to_push(folder, "model").items()}


def held(hub, user):
    return {name: content for name, content in hub.files(f"{user}/run").items() if name != ".gitattributes"}


@pytest.fixture(scope="module")
def versions(run_folder, tmp_path_factory):
    """A run, and the run after more training: other weights, another card, one file more and one less."""
    first = copy_folder(run_folder, tmp_path_factory.mktemp("first") / "run")
    (first / "card.json").unlink()  # the card is then pushed as it lies, without seconds of imports
    (first / "figures").mkdir(exist_ok=True)
    (first / "figures" / "look.png").write_bytes(b"\x89PNG look")
    second = copy_folder(first, tmp_path_factory.mktemp("second") / "run")
    weights = bytearray((second / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (second / "model.safetensors").write_bytes(weights)
    (second / "README.md").write_text((second / "README.md").read_text() + "\nTrained longer.\n")
    (second / "figures" / "look.png").rename(second / "figures" / "risk.png")
    return first, second


@pytest.fixture(scope="module", autouse=True)
def storm(versions):
    """Begin to fail in every way, each on the repository of a user of its own; what came of it, as a promise: half a
    minute, in which the client mostly waits before it tries again, and other tests run."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(fail_everywhere, *versions)


def fail_everywhere(first, second):
    users = {way: user_at(*way) for way in WAYS}
    with HubServer(tokens={f"hf_{user}": user for user in users.values()}) as hub:
        assert set(push(hub, first, *users.values()).values()) == {None}
        for (step, how), user in users.items():
            hub.fail(step, how, user=user)
        hanging = [user for (_, how), user in users.items() if how == "hang"]
        with ThreadPoolExecutor(1) as pool:
            waited = pool.submit(push, hub, second, *hanging, patience=1)
            told = push(hub, second, *(user for user in users.values() if user not in hanging)) | waited.result()
        after = {user: (held(hub, user), hub.revisions(f"{user}/run")) for user in users.values()}
        hub.heal()
        again = push(hub, second, *users.values())
        repeated = {user: (held(hub, user), hub.revisions(f"{user}/run")) for user in users.values()}
    return {way: (told[user], *after[user], again[user], *repeated[user]) for way, user in users.items()}


def test_a_first_push_that_fails_leaves_at_most_an_empty_private_repository(versions):
    users = {step: user_at(step) for step in STEPS - {"paths_info"}}  # a new repository has no card to look at
    with HubServer(tokens={f"hf_{user}": user for user in users.values()}) as hub:
        for step, user in users.items():
            hub.fail(step, "507", user=user)  # a status that the client does not try again
        for user, told in push(hub, versions[0], *users.values()).items():
            assert "507" in told
            if hub.revisions(f"{user}/run"):
                assert held(hub, user) == {}
                assert hub.is_private(f"{user}/run")
        assert not hub.revisions(f"{users['create']}/run")


def test_a_killed_push_leaves_the_old_revision_whole_and_can_be_repeated(versions):
    first, second = versions
    users = {step: user_at(step) for step in ("preupload", "lfs_upload", "lfs_verify", "commit")}
    with HubServer(tokens={f"hf_{user}": user for user in users.values()}) as hub:
        push(hub, first, *users.values())
        for step, user in users.items():
            hub.fail(step, "hang", user=user)
        hub.log.clear()
        working = [start(hub, second, user) for user in users.values()]
        deadline = time.monotonic() + 60
        while not set(users.items()) <= set(hub.log) and time.monotonic() < deadline:
            time.sleep(0.05)
        for process in working:
            os.kill(process.pid, signal.SIGKILL)
            process.communicate()
        assert set(users.items()) <= set(hub.log)
        for user in users.values():
            assert held(hub, user) == contents(first)
        hub.heal()
        assert set(push(hub, second, *users.values()).values()) == {None}
        assert all(held(hub, user) == contents(second) for user in users.values())


def test_a_failure_that_passes_is_survived(versions):
    with HubServer(tokens={"hf_a": "a", "hf_b": "b"}) as hub:
        hub.fail("lfs_upload", "503", times=2, user="a")
        hub.fail("preupload", "hang", times=1, user="b")
        assert push(hub, versions[0], "a", "b", patience=3) == {"a": None, "b": None}
        assert held(hub, "a") == held(hub, "b") == contents(versions[0])


def test_a_push_whose_answer_was_lost_is_whole_and_repeating_it_adds_nothing(versions):
    with HubServer(tokens={"hf_a": "a"}) as hub:
        hub.fail("commit", "lost", times=1)
        assert "push again" in push(hub, versions[0], "a")["a"]
        assert held(hub, "a") == contents(versions[0])
        assert push(hub, versions[0], "a") == {"a": None}
        assert len(hub.revisions("a/run")) == 2


def test_a_push_upon_a_later_commit_of_somebody_else_is_refused(versions):
    with HubServer(tokens={"hf_a": "a"}) as hub:
        push(hub, versions[0], "a")
        hub.fail("preupload", "503", times=1)  # time for somebody else, before the client tries again
        working = start(hub, versions[1], "a")
        deadline = time.monotonic() + 60
        while hub.failures[0]["left"] and time.monotonic() < deadline:
            time.sleep(0.05)
        repo = hub.repos["model", "a/run"]
        repo.commit("main", "By somebody else", repo.at("main").tree)
        told = json.loads(working.communicate(timeout=60)[0])["a"]
        assert "somebody else pushed" in told
        assert held(hub, "a") == contents(versions[0])


def test_interrupting_a_push_of_several_files_ends_it_at_once(versions, tmp_path):
    from helpers import LISTEN

    shutil.copytree(versions[0], tmp_path / "run")
    code = LISTEN + "import sys; from hf_cxr.cli.parser import main; sys.exit(main(sys.argv[1:]))"
    with HubServer() as hub:
        hub.fail("lfs_upload", "hang")
        words = [sys.executable, "-c", code, "push", str(tmp_path / "run"), "user/run"]
        working = subprocess.Popen(words, env=hub.env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while hub.log.count(("lfs_upload", "user")) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        working.send_signal(signal.SIGINT)
        told = working.communicate(timeout=30)[1].splitlines()
        assert working.returncode == 130
        assert told[-1] == "hf-cxr push: interrupted"
        assert held(hub, "user") == {}


@pytest.mark.slow
@pytest.mark.parametrize(("step", "how"), WAYS)
def test_a_failed_push_leaves_the_old_revision_whole_and_can_be_repeated(storm, versions, step, how):
    first, second = map(contents, versions)
    told, after, revisions, again, repeated, more = storm.result()[step, how]
    assert after == first
    assert len(revisions) == 2  # the Hub's own, and the first push
    assert "\n" not in told
    assert told.startswith(f"{user_at(step, how)}/run: ")
    assert {"500": f"500: Told to fail at {step}", "hang": "did not answer within 1 s", "drop": "broke"}[how] in told
    assert again is None
    assert repeated == second
    assert len(more) == 3
