"""A Space on the Hub that runs the app (`hf-cxr app`) from a pushed checkpoint: its files, and their way there."""

from __future__ import annotations

import sys
from importlib.metadata import requires, version
from pathlib import Path

import yaml
from packaging.requirements import Requirement

import hf_cxr
from hf_cxr.hub.privacy import CARD
from hf_cxr.hub.push import pinned, send

APP = '''"""The app of {repo_id}: hf-cxr app {repo_id}"""

import os
import sys

from hf_cxr.__main__ import main

port = os.environ.get("GRADIO_SERVER_PORT", "7860")
sys.argv = ["hf-cxr", "app", "{repo_id}", "--host", "0.0.0.0", "--port", port]
sys.exit(main())
'''
KIT = {".py", ".html", ".js", ".css", ".yaml", ".md", ".txt"}  # of the kit nothing else leaves this machine
TEXT = """
# {title}

Writes the impression of a two-view chest radiograph with [{repo_id}](https://huggingface.co/{repo_id}).

**Research use only, not for diagnosis.** Do not upload images of patients unless you may.

Images are held in memory, after a moment in a private folder, until the page is closed, or for 15 minutes. Nothing is
logged.

If the model is private, give this Space a secret `HF_TOKEN` that may read it. The folder runs anywhere else, too:
`pip install -r requirements.txt`, then `python app.py`. `hf_cxr/` is the kit itself, version {version}.
"""


def push_space(repo_id: str, space_id: str | None = None, public: bool = False, token: str | None = None) -> str:
    """Make or renew the Space that runs the app of the checkpoint `repo_id`, in one commit, and return its address.

    Args:
        space_id: default: `repo_id` with "-app" at its end.
        public: else it is private, and so stays a Space that is.

    Raises as `push` does.
    """
    space_id = space_id or f"{repo_id}-app"
    return send(space_files(repo_id, space_id), space_id, "space", public, False, token)


def space_files(repo_id: str, space_id: str) -> dict[str, Path | bytes]:
    """Name → file of all that the Space is made of: the app, the kit as it is here, what both need, and a card."""
    package = Path(hf_cxr.__file__).parent
    kit = [path for path in sorted(package.rglob("*")) if path.suffix in KIT and path.is_file()]
    facts = {
        "title": space_id.split("/")[-1],
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "models": [repo_id],
        "tags": ["chest-radiograph", "hf-cxr"],
    }
    text = TEXT.format(repo_id=repo_id, title=facts["title"], version=hf_cxr.__version__)
    return {
        "app.py": APP.format(repo_id=repo_id).encode(),
        "requirements.txt": requirements("", "app", "dicom").encode(),
        CARD: f"---\n{yaml.safe_dump(facts, sort_keys=False)}---\n{text}".encode(),
        **{f"{package.name}/{path.relative_to(package).as_posix()}": path for path in kit},
    }


def requirements(*extras: str) -> str:
    """What the kit asks for itself and for its `extras`, each in the version that is installed here.

    Not what those ask for in turn: a Space adds packages of its own, which may want other versions of them.
    """
    needed = map(Requirement, requires("hf-cxr") or ())
    asked = [one for one in needed if not one.marker or any(one.marker.evaluate({"extra": name}) for name in extras)]
    return "".join(f"{pinned(one.name)}\n" for one in asked)
