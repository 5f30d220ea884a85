"""The Hub: pushing runs and datasets, in one commit, private unless told so, after a look for what must not leave this
machine.

The card of a run lives in `hf_cxr.card`, that of a dataset in `hf_cxr.dataset_card`.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import re
import socket
import struct
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token, set_client_factory
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import _http, validate_repo_id
from safetensors import SafetensorError, safe_open

from hf_cxr import licences
from hf_cxr.travelling import TRAVELLING

# What a pushed run consists of. Predictions hold the reports of the collection, so they stay at home.
CARD, FACTS, CONFIG, ACCOUNT = "README.md", "card.json", "config.json", "prepare.json"
RUN_FILES = (
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    *(CONFIG, "generation_config.json", "preprocessor_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt"),
    *TRAVELLING,
    *(CARD, "report.json", "report.md", "figures/*.png"),
)
DATASET_FILES = ("data/*.parquet", CARD, ACCOUNT, "splits.csv")

# Seconds without a byte from the Hub after which a request is given up: its client would wait for ever.
PATIENCE = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or 60)

TOKEN = r"\bhf_[A-Za-z0-9]{30,}"
SOMEBODYS_HOME = r"(?:/home/|/Users/|[A-Za-z]:\\{1,2}Users\\{1,2})(?!(?:user|username|you|name)\b)[\w.-]+"
# What a program writes into JSON where it names a file of its machine: a whole string.
ABSOLUTE_PATH = r'"(?:file://)?(?:(?:/\w[\w .-]*){2,}/?|[A-Za-z]:(?:\\\\|/)[^"\n]*)"'
LARGEST_TEXT = 25_000_000  # bytes


def push(
    folder: str | os.PathLike,
    repo_id: str,
    public: bool = False,
    dataset: bool = False,
    hold_rights: bool = False,
    token: str | None = None,
) -> str:
    """Upload a run or a prepared dataset in one commit and return its address. Private unless `public`.

    What the repository holds of an earlier push and the folder no longer has is deleted by the same commit. A push
    that fails leaves the repository as it was; a repository made for it stays, empty and private.

    Args:
        folder: A run (config.json and weights), or a prepared dataset (prepare.json).
        repo_id: `user/name`.
        dataset: The folder has to be a dataset; else it is told from its files.
        hold_rights: Make a dataset public although its licence forbids derivatives, or is not known.
        token: Instead of the one of `hf auth login` or HF_TOKEN.

    Raises `FileNotFoundError` for a folder that is neither; `ValueError` for a bad name, a public push that the
    licence forbids, and files that name this machine or hold a token; `OSError` for what Hub or network refuse.
    """
    if not _is_repo_id(repo_id):
        raise ValueError(f"{repo_id!r} is no name on the Hub; write user/name")
    path = Path(folder)
    kind = _kind(path, dataset)
    if public and kind == "dataset" and not hold_rights:
        licences.check_may_be_public(path)
    files = files_to_push(path, kind)
    token = token or get_token()
    texts = {name: read_text(file) for name, file in files.items()}
    if kind == "model":
        texts[CARD] = _card_for(path, repo_id)
    check_nothing_private(texts, path, token)
    if not token:
        raise OSError("no token for the Hub: log in with `hf auth login`, or set HF_TOKEN (it needs write permission)")
    _give_up_waiting()
    try:
        return _send({**files, CARD: texts[CARD].encode()}, repo_id, kind, public, token)
    except (HTTPError, RuntimeError) as error:
        raise OSError(f"{repo_id}: {_told(error)}") from error


def push_as_told(folder: str | os.PathLike, args: Any) -> str:
    """Push a run as the Trainer's arguments say: `hub_model_id`, `hub_token`, and private unless `hub_private_repo` is
    false."""
    return push(folder, args.hub_model_id, public=args.hub_private_repo is False, token=args.hub_token)


def card_in_progress(repo_id: str, step: int, steps: int) -> str:
    """The card of a checkpoint that is pushed while its training goes on."""
    facts = {"library_name": "transformers", "pipeline_tag": "image-to-text", "tags": ["chest-radiograph", "hf-cxr"]}
    return (
        f"---\n{yaml.safe_dump(facts)}---\n\n# {repo_id.split('/')[-1]}\n\n"
        f"**Training in progress, not evaluated** (step {step:,} of {steps:,}). Nothing is known yet of what this "
        "model writes; the card with its scores comes at the end. Research use only, not for diagnosis.\n"
    )


def _is_repo_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _kind(path: Path, dataset: bool) -> str:
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    is_run, is_dataset = (path / CONFIG).is_file(), (path / ACCOUNT).is_file()
    if dataset and not is_dataset:
        what = "this is a run; push it without --dataset" if is_run else f"no prepared dataset (no {ACCOUNT})"
        raise FileNotFoundError(f"{path}: {what}")
    if not is_run and not is_dataset:
        raise FileNotFoundError(f"{path}: neither a checkpoint ({CONFIG}) nor a prepared dataset ({ACCOUNT})")
    return "dataset" if dataset or not is_run else "model"


def files_to_push(path: Path, kind: str) -> dict[str, Path]:
    """Name in the repository → file, of all that is pushed of a `kind` "model" or "dataset".

    Raises `FileNotFoundError` where the card, or weights or data, are missing.
    """
    patterns = RUN_FILES if kind == "model" else DATASET_FILES
    files = {file.relative_to(path).as_posix(): file for pattern in patterns for file in path.glob(pattern)}
    for needed in (CARD, ".safetensors" if kind == "model" else ".parquet"):
        if not any(name.endswith(needed) for name in files):
            raise FileNotFoundError(f"{path}: holds no {needed}: it has not come to its end; nothing was pushed")
    for file in files.values():
        if file.suffix == ".safetensors":
            _check_whole(file)
    return dict(sorted(files.items()))


def _check_whole(weights: Path) -> None:
    try:
        with safe_open(weights, framework="np"):  # reads the header, and compares it with the size
            pass
    except SafetensorError as error:
        raise ValueError(f"{weights}: damaged ({error}); nothing was pushed") from None


def _card_for(run: Path, repo_id: str) -> str:
    """The card, its snippet naming the repository; as it lies there if it was edited, or is not made from facts."""
    there = (run / CARD).read_text(encoding="utf-8")
    if not (run / FACTS).is_file():  # a run of an earlier version, or one on its way
        return there
    from hf_cxr.card import card_text  # which takes seconds to import, and a dataset does not need it

    return card_text(run, repo_id) if there == card_text(run) else there


def _is_ours(name: str, kind: str) -> bool:
    patterns = RUN_FILES if kind == "model" else DATASET_FILES
    return any(PurePosixPath(name).match(one) and name.count("/") == one.count("/") for one in patterns)


# --- what must not leave -----------------------------------------------------------------------------------------


def licence_note(run: str | os.PathLike) -> str | None:
    """What to consider before the weights of a run become public: the licence of what it was trained on."""
    if not (Path(run) / CONFIG).is_file():
        return None
    facts = Path(run) / FACTS
    account = json.loads(facts.read_text(encoding="utf-8"))["account"] if facts.is_file() else {}
    return licences.note_on_weights(_dataset_of(Path(run)), account.get("source"))


def _dataset_of(run: Path) -> str | None:
    config = run / "config.yaml"
    return (yaml.safe_load(config.read_text(encoding="utf-8")) or {}).get("dataset") if config.is_file() else None


def read_text(file: Path) -> str:
    """What can be read in a file: all of it, or the header of weights and the footer of Parquet."""
    with file.open("rb") as stream:
        if file.suffix == ".safetensors":
            length = struct.unpack("<Q", stream.read(8).ljust(8, b"\0"))[0]
        elif file.suffix == ".parquet":
            stream.seek(-8, os.SEEK_END)
            length = struct.unpack("<I", stream.read(4))[0]
            stream.seek(max(0, file.stat().st_size - 8 - length))
        else:
            length = LARGEST_TEXT
        return stream.read(min(length, LARGEST_TEXT)).decode("utf-8", errors="replace")


def check_nothing_private(texts: Mapping[str, str], path: Path, token: str | None = None) -> None:
    """Raise `ValueError` naming the file if a text holds a place on this machine, its name or user, or a token.

    `texts` are those of the folder `path`, by file name; `token` is one in use, of whatever form.
    """
    everywhere = _traces(path)
    in_json = everywhere | {"an absolute path": ABSOLUTE_PATH}
    for name, text in texts.items():
        if re.search(TOKEN, text) or (token and _looks_like_one(token) and token in text):
            raise ValueError(f"{path / name}: holds an access token; take it out, and revoke it if others saw it")
        for what, pattern in (in_json if name.endswith((".json", ".safetensors")) else everywhere).items():
            if match := re.search(pattern, text):
                raise ValueError(f"{path / name}: holds {what} ({match.group()}); take it out there, then push again")


def _looks_like_one(token: str) -> bool:
    """Whether a token is more than a word that any text may hold, such as "wrong" or "secret"."""
    return token.startswith("hf_") or len(token) > 15


def _traces(path: Path) -> dict[str, str]:
    """What would tell of this machine or its user → how to find it."""
    places = {"the place of its folder": path.resolve(), "the working folder": Path.cwd()}
    user = ""  # in a container one may have neither name nor home
    with contextlib.suppress(KeyError, OSError):
        user = getpass.getuser()
    with contextlib.suppress(RuntimeError):
        places["your home"] = Path.home()
    if dataset := _dataset_of(path):
        places["the place of its dataset"] = Path(dataset).resolve()
    traces = {what: rf"(?<![\w.-]){re.escape(str(place))}(?![\w-])" for what, place in places.items() if place.name}
    host = socket.gethostname()
    if len(host) > 5 and re.search(r"[\d.-]", host):  # "radiology" is a word as well as a name
        traces["the name of this machine"] = rf"\b{re.escape(host)}\b"
    if user not in ("", "root"):
        folders = r"(?:(?:file://|(?<![\w:/.]))/(?:[\w.-]+/)*|\b[A-Za-z]:\\{1,2}(?:[\w.-]+\\{1,2})*)"
        traces["a path with your user name"] = rf"{folders}{re.escape(user)}(?![\w-])"
    return traces | {"a home folder": SOMEBODYS_HOME}


# --- the way there -----------------------------------------------------------------------------------------------


def _send(files: Mapping[str, Path | bytes], repo_id: str, kind: str, public: bool, token: str) -> str:
    api = HfApi(token=token)
    # Private first, whatever is asked for: a push that fails has shown nobody anything.
    repo = api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True)
    info: Any = api.repo_info(repo.repo_id, repo_type=kind, timeout=PATIENCE)
    if not public and not info.private:
        raise ValueError(f"{repo_id}: this repository is public already; push with --public, or choose another")
    stale = [one.rfilename for one in info.siblings if one.rfilename not in files and _is_ours(one.rfilename, kind)]
    additions = [CommitOperationAdd(name, file) for name, file in files.items()]
    # Not `upload_folder`: where hf_xet is installed, it makes several commits.
    api.create_commit(
        repo.repo_id,
        operations=[*(CommitOperationDelete(name) for name in stale), *additions],
        commit_message=f"Push {kind} with hf-cxr {version('hf-cxr')}",
        repo_type=kind,
        parent_commit=info.sha,  # so that nobody's later commit is overwritten unseen
    )
    if public and info.private:
        api.update_repo_settings(repo.repo_id, repo_type=kind, private=False)
    return str(repo)


def _give_up_waiting() -> None:
    factory = getattr(_http, "_GLOBAL_CLIENT_FACTORY", _http.default_client_factory)  # perhaps one of the user's
    if not isinstance(factory, _ImpatientFactory):
        set_client_factory(_ImpatientFactory(factory))


class _ImpatientFactory:
    """Makes the Hub's HTTP client, and has it give up on a server that does not answer."""

    def __init__(self, factory: Callable[[], Any]) -> None:
        self.factory = factory

    def __call__(self) -> Any:
        client = self.factory()
        client.timeout = PATIENCE
        return client


def _told(error: BaseException) -> str:
    """An error of the Hub's client in one line: what, and what to do."""
    while isinstance(error, RuntimeError) and error.__cause__:  # "Error while uploading", around the cause
        error = error.__cause__
    again = "nothing there is half pushed; push again"
    if isinstance(error, HfHubHTTPError):
        status, said = error.response.status_code, " ".join((error.server_message or "no reason given").split())
        if status == 401 and not isinstance(error, RepositoryNotFoundError):
            return "the Hub does not know this token (401); log in with `hf auth login --force`, or correct HF_TOKEN"
        if status == 403 or isinstance(error, RepositoryNotFoundError):
            return f"the Hub refuses this token ({status}: {said}); it needs write permission, and this name as owner"
        if status == 412:
            return f"somebody else pushed there meanwhile (412); {again}"
        return f"the Hub failed ({status}: {said}); {again}"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "TimeoutException" in kinds:
        return f"the Hub did not answer within {PATIENCE:g} s; {again} (HF_HUB_DOWNLOAD_TIMEOUT sets the seconds)"
    if "ConnectError" in kinds:
        return f"the Hub cannot be reached at {HfApi().endpoint} ({error}); is there a network? {again}"
    return f"the connection broke ({' '.join(str(error).split()) or type(error).__name__}); {again}"
