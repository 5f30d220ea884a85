"""The folder of a Space in an environment that has only its own requirements, with a Hub on this machine: does it
start, and answer?

    python benchmarks/space.py runs/demo [--place DIR] [--port N]

It makes a virtual environment and installs `requirements.txt` there: minutes, and the package registry is asked.
Without `--place` all of it is in a temporary folder, and gone at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from pathlib import Path

import httpx
from app_load import ask, studies

from hf_cxr.hub.privacy import files_to_push
from hf_cxr.hub.space import space_files

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from hub_server import HubServer


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, help="run folder")
    parser.add_argument("--place", type=Path, help="folder to fill (default: a temporary one)")
    parser.add_argument("--port", type=int, default=0, help="of the app (default: a free one)")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as made:
        try_space(options.run, (options.place or Path(made)).absolute(), options.port or free_port())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def try_space(run: Path, place: Path, port: int) -> None:
    os.environ.pop("PYTHONPATH", None)  # what starts from here has its own packages alone
    space, clean, stored = (place / name for name in ("space", "environment", "hub"))
    for name, content in space_files("user/name", "user/name-app").items():
        (space / name).parent.mkdir(parents=True, exist_ok=True)
        (space / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())
    for name, file in files_to_push(run, "model").items():
        target = stored / "models" / "user" / "name" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    python = clean / "bin" / "python"
    if not python.exists():
        venv.create(clean, with_pip=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", space / "requirements.txt"], check=True)
    with HubServer(tokens={"hf_test": "user"}, root=stored) as hub:
        environment = hub.env | {"PATH": os.defpath, "GRADIO_SERVER_PORT": str(port)}
        words = [str(python), "app.py"]
        with subprocess.Popen(words, cwd=space, env=environment, stdout=subprocess.PIPE, text=True) as app:
            try:
                assert app.stdout
                print(app.stdout.readline().strip())
                with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
                    for study in studies(3):
                        print(json.dumps(answer := ask(client, (study.get("frontal"), study.get("lateral")))))
                        assert answer.get("impression"), "no text"
                    verdict = json.loads((run / "report.json").read_text(encoding="utf-8"))["verdict"]
                    told = json.dumps(client.get("/config").json(), ensure_ascii=False)
                    print("the verdict is on the page:", verdict[:40] in told)
                installed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True)
                print(f"{len(installed.stdout.splitlines()) - 2} packages installed")
            finally:
                app.terminate()


if __name__ == "__main__":
    main()
