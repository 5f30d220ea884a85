"""Work on local files asks no name server and connects to nothing beyond this machine."""

import json
import os
import subprocess
import sys

import pytest
from helpers import TINY_RECIPE, radiograph, write_config
from PIL import Image

from hf_cxr.cli.commands import COMMANDS

# Every command in one process, where whoever looks up a name or connects is refused, and told of.
WATCHED = """
import json, socket, sys
asked, running = [], ""

def watch(name):
    def refuse(first, *rest, **options):
        place = rest[0] if name.startswith("connect") else first
        host = place[0] if isinstance(place, tuple) else place
        if host not in (None, "", "localhost", "127.0.0.1", "::1") and not str(host).startswith(("/", "\\0")):
            asked.append(f"{running}: {name} {host}")
            raise OSError("no network in this test")
        return real(first, *rest, **options)
    owner = socket.socket if name.startswith("connect") else socket
    real = getattr(owner, name)
    setattr(owner, name, refuse)

for name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex", "connect", "connect_ex"):
    watch(name)
try:
    socket.create_connection(("name.invalid", 80))
except OSError:
    caught = len(asked)
asked.clear()
import hf_cxr.cli.demo as demo
from hf_cxr.cli.parser import main
whole = demo.arguments  # a demo of one step
short = ["--max_steps", "1", "--findings_pretraining_epochs", "0"]
demo.arguments = lambda out, number, words=(): whole(out, number, [*words, *short])
import types
import hf_cxr.serving.app as app
def end(*_):
    raise KeyboardInterrupt
app.threading = types.SimpleNamespace(Event=lambda: types.SimpleNamespace(wait=end))  # it would wait for visitors
statuses = {}
for words in json.load(sys.stdin):
    running = words[0]
    statuses[running] = main(words)
print(json.dumps({"caught": caught, "statuses": statuses, "asked": asked}))
"""


@pytest.mark.slow
def test_no_command_on_local_files_looks_up_a_name_or_connects(phantom_folder, run_folder, tmp_path):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    (tmp_path / "table.csv").write_text("uid,frontal,impression\na,f.png,No acute disease.\n")
    config = write_config(
        tmp_path / "config.yaml",
        **TINY_RECIPE | {"max_steps": 1, "findings_pretraining_epochs": 0, "per_device_train_batch_size": 2},
        dataset=str(phantom_folder),
        output_dir=str(tmp_path / "run"),
    )
    commands = [
        ["prepare", "table", "--root", tmp_path / "table.csv", "--out", tmp_path / "data"],
        ["explore", phantom_folder, "--out", tmp_path / "page"],
        ["train", config],
        ["evaluate", tmp_path / "run", phantom_folder, "--split", "validation", "--out", tmp_path / "again"],
        ["compare", run_folder, tmp_path / "run"],
        ["export-predictions", "radeval", run_folder, phantom_folder, tmp_path / "texts.json"],
        ["predict", run_folder, "--frontal", tmp_path / "f.png"],
        ["export", run_folder, tmp_path / "onnx"],
        ["app", run_folder],
        ["demo", "--out", tmp_path / "demo", "--num-studies", 30],
    ]
    assert {words[0] for words in commands} == set(COMMANDS) - {"download", "push"}, "those two are for the network"
    offline = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_UPDATE_DOWNLOAD_COUNTS")
    environment = {name: value for name, value in os.environ.items() if name not in offline}
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        input=json.dumps([[str(word) for word in words] for words in commands]),
        capture_output=True,
        text=True,
        env=environment | {"HF_HOME": str(tmp_path / "hub")},
        timeout=500,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["caught"] == 1, "the watch works"
    assert told["asked"] == []
    assert told["statuses"] == {words[0]: 0 for words in commands} | {"app": 130}, done.stderr[-2000:]
