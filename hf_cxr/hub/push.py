"""The Hub: pushing runs and datasets, in one commit, private unless asked otherwise, after a look for what must not
leave this machine.

What may be pushed is decided in `hf_cxr.hub.privacy` and `patients`, ids are hashed in `pseudonyms`, age and sex left
out in `personal`; the card of a run lives in `hf_cxr.hub.model_card`, that of a dataset in
`hf_cxr.data.dataset_card`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status, validate_repo_id

from hf_cxr.data import licences
from hf_cxr.hub import patients, personal, privacy, pseudonyms
from hf_cxr.hub.privacy import CARD
from hf_cxr.utils.files import staging_folder

PUSHED = "Push"  # how the title of each of our commits begins
# Seconds without a byte from the Hub after which a request is given up: its client would wait for ever.
PATIENCE = float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or 60)


def push(
    folder: str | os.PathLike,
    repo_id: str,
    public: bool = False,
    dataset: bool = False,
    hold_rights: bool = False,
    with_history: bool = False,
    texts_checked: bool = False,
    with_age_and_sex: bool = False,
    endpoint: bool = False,
    token: str | None = None,
) -> str:
    """Upload a run or a prepared dataset in one commit and return its address. Private unless `public`.

    What the repository holds of an earlier push and the folder no longer has is deleted by the same commit. A push
    that fails leaves the repository as it was; a repository made for it stays, empty and private.

    Args:
        folder: A run (config.json and weights), or a prepared dataset (prepare.json).
        repo_id: `user/name`.
        dataset: The folder has to be a dataset; else it is told from its files.
        hold_rights: Make a dataset public although its licence forbids derivatives, or is not known (not
            credentialed data, which never is).
        with_history: Make a private repository public although its earlier revisions become public with it.
        texts_checked: Push although texts hold what looks like names, record numbers, dates or telephone numbers.
        with_age_and_sex: Push the columns `age` and `sex` of a dataset too.
        endpoint: Add the handler that Inference Endpoints call to a run. Later pushes renew it without being told.
        token: Instead of the one of `hf auth login` or HF_TOKEN.

    Study and patient ids of a collection that does not publish them are replaced by salted hashes (`pseudonyms`).

    Raises `FileNotFoundError` for a folder that is neither, or not whole; `ValueError` for a bad name, damaged files,
    a public push that the licence forbids or that would show earlier revisions, and files that name this machine, tell
    of patients or hold a token; `OSError` for what Hub or network refuse.
    """
    try:
        validate_repo_id(repo_id if "/" in repo_id else "")
    except HFValidationError:
        raise ValueError(f"{repo_id!r} is no name on the Hub; write user/name") from None
    path = Path(folder)
    kind = privacy.kind_of(path, dataset)
    if endpoint and kind == "dataset":
        raise ValueError(f"{folder}: is a dataset; an endpoint runs a checkpoint")
    if public and kind == "dataset":
        licences.check_may_be_public(path, hold_rights)
    files = privacy.files_to_push(path, kind)
    token = token or get_token()
    hidden = kind == "dataset" and pseudonyms.wanted(path)
    dropped = [] if with_age_and_sex or kind == "model" else personal.held(files)
    with staging_folder(pseudonyms.map_of(path)) if hidden or dropped else nullcontext(path) as staging:
        if not texts_checked:
            reports, uids = privacy.reports_of(files)
            patients.check_texts(path, reports, uids if hidden else ())
        if dropped:
            files = personal.left_out(files, dropped, staging / "kept")
        if hidden:
            files = pseudonyms.hashed_copy(files, path, staging / "hashed")
        texts = {name: privacy.read_text(file) for name, file in files.items()}
        if kind == "model":
            texts[CARD] = _card_for(path, repo_id)
        privacy.check_nothing_private(texts, path, token)
        added = _endpoint() if endpoint else {}
        return send({**files, **added, CARD: texts[CARD].encode()}, repo_id, kind, public, with_history, token)


def _endpoint() -> dict[str, Path | bytes]:
    """What Inference Endpoints call, and the versions of what a checkpoint's own code imports."""
    needed = "".join(f"{pinned(name)}\n" for name in ("transformers", "pillow", "pydicom"))
    return {"handler.py": Path(__file__).with_name("handler.py"), "requirements.txt": needed.encode()}


def pinned(package: str) -> str:
    """A line of requirements.txt: the version that is installed here, or any where none is."""
    with suppress(PackageNotFoundError):
        return f"{package}=={version(package).partition('+')[0]}"
    return package


def push_as_asked(folder: str | os.PathLike, args: Any) -> str:
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


def _card_for(run: Path, repo_id: str) -> str:
    """The card, its snippet naming the repository: made anew from the run's files, unless it was edited."""
    there = (run / CARD).read_text(encoding="utf-8")
    if not (run / privacy.FACTS).is_file():  # a run of an earlier version, or one on its way
        return there
    from hf_cxr.hub import model_card  # which takes seconds to import, and a dataset does not need it

    edited = model_card.is_edited(run)
    return model_card.with_repository(there, run, repo_id) if edited else model_card.card_text(run, repo_id)


def licence_note(folder: str | os.PathLike, public: bool = True) -> str | None:
    """What to consider before a dataset is pushed, or the weights of a run become public: the licence of the data."""
    path = Path(folder)
    if (path / privacy.PREPARATION).is_file():
        return licences.note_on_a_dataset(path)
    if not public or not (path / privacy.CONFIG).is_file():
        return None
    facts = privacy.facts_of(path)
    return licences.note_on_weights(
        privacy.dataset_of(path), facts.get("preparation", {}), facts.get("continued_from", ())
    )


# --- the way there -----------------------------------------------------------------------------------------------


def send(
    files: Mapping[str, Path | bytes],
    repo_id: str,
    kind: str,
    public: bool = False,
    with_history: bool = False,
    token: str | None = None,
) -> str:
    """Make these files, by their names there, the content of a repository, as `push` does; returns its address.

    Args:
        kind: "model", "dataset" or "space".
    """
    if not (token := token or get_token()):
        raise OSError("no token for the Hub: log in with `hf auth login`, or set HF_TOKEN (it needs write permission)")
    get_session().timeout = PATIENCE
    try:
        return _send(files, repo_id, kind, public, with_history, token)
    except (HTTPError, RuntimeError) as error:
        raise OSError(f"{repo_id}: {_reason(error)}") from error


def _send(
    files: Mapping[str, Path | bytes], repo_id: str, kind: str, public: bool, with_history: bool, token: str
) -> str:
    api = HfApi(token=token)
    # Private first, whatever is asked for: a push that fails has shown nobody anything.
    sdk = "gradio" if kind == "space" else None
    repo = api.create_repo(repo_id, repo_type=kind, private=True, exist_ok=True, space_sdk=sdk)
    name = repo.repo_id
    info: Any = api.repo_info(name, repo_type=kind, timeout=PATIENCE)
    if not public and not info.private:
        raise ValueError(f"{repo_id}: this repository is public already; push with --public, or choose another")
    if CARD in (held := {one.rfilename for one in info.siblings}):
        _tell_of_an_edited_card(api, name, kind)
    if kind == "model" and (there := sorted(held & _endpoint().keys() - files.keys())):
        known = api.get_paths_info(name, there, repo_type=kind, expand=True)
        files = {**files, **{one.path: _endpoint()[one.path] for one in known if _is_push(one.last_commit, kind)}}
    stale = [one for one in sorted(held) if one not in files and privacy.is_ours(one, kind)]
    additions = [CommitOperationAdd(path, file) for path, file in files.items()]
    # Not `upload_folder`: where hf_xet is installed, it makes several commits.
    api.create_commit(
        name,
        operations=[*(CommitOperationDelete(path) for path in stale), *additions],
        commit_message=f"{PUSHED} {kind} with hf-cxr {version('hf-cxr')}",
        repo_type=kind,
        parent_commit=info.sha,  # so that nobody's later commit is overwritten unseen
    )
    if public and info.private:
        # The Hub's first commit and this one, or the same one of an attempt that got no further, show nothing else.
        earlier = _number_of_commits(api, name, kind) - 2
        if earlier > 0 and not with_history:
            raise ValueError(
                f"{repo_id}: pushed, but left private: {earlier} earlier revision{'s' if earlier > 1 else ''} would "
                "become public too; add --with-history if they may, or push to another name"
            )
        api.update_repo_settings(name, repo_type=kind, private=False)
    return str(repo)


def _tell_of_an_edited_card(api: HfApi, name: str, kind: str) -> None:
    """Say so where a card that somebody else wrote on the Hub is about to be replaced."""
    (card,) = api.get_paths_info(name, CARD, repo_type=kind, expand=True)
    if card.last_commit and not _is_push(card.last_commit, kind):
        print(
            f"{name}: {CARD} was last written by somebody else ({card.last_commit.title!r}) and is replaced; that one "
            f"stays in revision {card.last_commit.oid[:8]}",
            file=sys.stderr,
        )


def _is_push(commit: Any, kind: str) -> bool:
    return bool(commit) and commit.title.startswith(f"{PUSHED} {kind}")


def _number_of_commits(api: HfApi, name: str, kind: str) -> int:
    """As far as a page of them goes. `list_repo_commits` would try twenty times where nobody answers."""
    headers = build_hf_headers(token=api.token)
    answer = get_session().get(f"{api.endpoint}/api/{kind}s/{name}/commits/main", headers=headers)
    hf_raise_for_status(answer)
    return len(answer.json())


def _reason(error: BaseException) -> str:
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
