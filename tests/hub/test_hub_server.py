"""The small Hub that other tests push to does what the real one does, as its real client sees it."""

import json
import signal
import subprocess
import sys

import pytest
from helpers import ROOT
from hub_repos import part_of
from hub_server import HubServer

SERVER = ROOT / "tests" / "hub_server.py"
CLIENT = """
import json, os, sys
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

api, told = HfApi(), {}
def error(name, call, *words, **more):
    try:
        call(*words, **more)
    except Exception as wrong:
        told[name] = type(wrong).__name__
told["user"] = api.whoami()["name"]
api.create_repo("user/model", private=True)
error("twice", api.create_repo, "user/model")
files = [CommitOperationAdd(f"notes/{i}.txt", str(i).encode()) for i in range(5)]
weights = CommitOperationAdd("model.safetensors", bytes(range(256)) * 40)
first = api.create_commit("user/model", [*files, weights], commit_message="one").oid
second = api.create_commit("user/model", [CommitOperationDelete("notes/0.txt"), CommitOperationDelete("notes/1.txt")],
                           commit_message="two", parent_commit=first).oid
error("late", api.create_commit, "user/model", [CommitOperationDelete("notes/2.txt")], commit_message="three",
      parent_commit=first)
error("no such file", api.create_commit, "user/model", [CommitOperationDelete("nothing")], commit_message="three")
told["tree"] = [entry.path for entry in api.list_repo_tree("user/model", recursive=True)]
told["at first"] = sorted(entry.path for entry in api.list_repo_tree("user/model", "notes", revision=first))
told["info"] = [entry.path for entry in api.get_paths_info("user/model", ["notes", "notes/3.txt", "absent"])]
told["log"] = [commit.title for commit in api.list_repo_commits("user/model")]
api.create_branch("user/model", branch="try/this", revision=first)
told["refs"] = sorted((ref.name, ref.target_commit == first) for ref in api.list_repo_refs("user/model").branches)
back = open(api.hf_hub_download("user/model", "model.safetensors"), "rb").read()
told["there and back"] = back == bytes(range(256)) * 40
error("no entry", api.hf_hub_download, "user/model", "absent")
error("no revision", api.hf_hub_download, "user/model", "README.md", revision="absent")
error("absent", api.repo_info, "user/absent")
for name, token in {"stranger": "hf_other", "anonymous": False, "wrong token": "hf_wrong"}.items():
    error(name, api.repo_info, "user/model", token=token)
change = [CommitOperationDelete("notes/2.txt")]
error("reader", api.create_commit, "user/model", change, commit_message="three", token="hf_read")
told["reader sees"] = api.repo_info("user/model", token="hf_read").sha == second
api.update_repo_settings("user/model", private=False)
told["anyone sees"] = api.repo_info("user/model", token=False).private
told["of a folder"] = open(api.hf_hub_download("gpt2", "config.json", token=False)).read()
print(json.dumps(told))
"""


def test_the_real_client_finds_a_hub(tmp_path):
    (tmp_path / "models" / "gpt2").mkdir(parents=True)
    (tmp_path / "models" / "gpt2" / "config.json").write_text("{}")
    tokens = {"hf_test": "user", "hf_other": "other", "hf_read": "user:read"}
    with HubServer(tokens, root=tmp_path) as hub:
        hub.page = 2  # so that a tree comes in several answers
        result = subprocess.run(
            [sys.executable, "-c", CLIENT], env=hub.env, capture_output=True, text=True, timeout=60
        )
        assert result.returncode == 0, result.stderr[-2000:]
        told = json.loads(result.stdout.splitlines()[-1])
        assert hub.revisions("user/model") == ["initial commit", "one", "two"]
        assert set(hub.files("user/model")) == {
            ".gitattributes",
            "model.safetensors",
            *(f"notes/{number}.txt" for number in (2, 3, 4)),
        }
    assert told == {
        "user": "user",
        "twice": "HfHubHTTPError",
        "late": "HfHubHTTPError",
        "no such file": "RemoteEntryNotFoundError",
        "tree": [".gitattributes", "model.safetensors", "notes", "notes/2.txt", "notes/3.txt", "notes/4.txt"],
        "at first": [f"notes/{number}.txt" for number in range(5)],
        "info": ["notes", "notes/3.txt"],
        "log": ["two", "one", "initial commit"],
        "refs": [["main", False], ["try/this", True]],
        "there and back": True,
        "no entry": "RemoteEntryNotFoundError",
        "no revision": "RevisionNotFoundError",
        "absent": "RepositoryNotFoundError",
        "stranger": "RepositoryNotFoundError",
        "anonymous": "RepositoryNotFoundError",
        "wrong token": "HfHubHTTPError",
        "reader": "HfHubHTTPError",
        "reader sees": True,
        "anyone sees": False,
        "of a folder": "{}",
    }


def test_started_by_hand_it_prints_what_to_export_and_stops_when_told():
    words = [sys.executable, str(SERVER), "--port", "0", "--token", "hf_mine:me", "--fail", "whoami=500"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as server:
        lines = [server.stdout.readline().split() for _ in range(2)]
        settings = dict(word.split("=", 1) for line in lines for word in line[1:])
        assert {line[0] for line in lines} == {"export"}
        assert settings["HF_TOKEN"] == "hf_mine"
        assert settings["HF_ENDPOINT"].startswith("http://127.0.0.1:")
        code = "from huggingface_hub import whoami; whoami()"
        with HubServer() as other:
            client = subprocess.run(
                [sys.executable, "-c", code], env=other.env | settings, capture_output=True, text=True
            )
        assert "Told to fail at whoami" in client.stderr
        server.send_signal(signal.SIGTERM)
        assert server.wait(10) == 0


@pytest.mark.parametrize(
    ("asked", "part", "told"),
    [
        ("", b"0123456789", None),
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=8-", b"89", "bytes 8-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
    ],
)
def test_a_range_of_a_file_can_be_asked_for(asked, part, told):
    status, content, headers = part_of(b"0123456789", asked)
    assert (status, content, headers.get("Content-Range")) == (206 if told else 200, part, told)
