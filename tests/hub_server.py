"""A small Hub on 127.0.0.1: enough of its HTTP interface for the real `huggingface_hub` client to push and to pull
models and datasets, with tokens, private repositories and failures on demand. Tests use `HubServer`; by hand:

    python tests/hub_server.py --port 8099 --token hf_test:user [--root FOLDER] [--fail lfs_upload=500]

It prints the two lines to export. `--root` holds repositories to serve, as models/gpt2/… or datasets/user/name/….
It keeps what is pushed until it stops, and trusts whoever can reach it: it is for tests, never for a network.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml
from hub_repos import Refused, Repo, blob_of, changed, entries_under, part_of

# Where a push can be told to fail; any name of a `do_…` below will do.
PUSH_STEPS = (
    "create",
    "info",
    "paths_info",
    "preupload",
    "lfs_batch",
    "lfs_upload",
    "lfs_verify",
    "commit",
    "settings",
)
WRITING = ("preupload", "lfs_batch", "commit", "settings", "branch")
VERBS = "revision|tree|paths-info|preupload|commits|commit|refs|branch|settings|xet-write-token"
REPO = rf"(?P<id>[^/]+(?:/(?!(?:{VERBS}|resolve)(?:/|$))[^/]+)?)"
ROUTES = [
    (r"GET", r"/api/whoami-v2", "whoami"),
    (r"POST", r"/api/repos/create", "create"),
    (r"POST", r"/api/validate-yaml", "validate_yaml"),
    (r"GET", rf"/api/(?P<kind>model|dataset|space)s/{REPO}(?:/revision/(?P<rev>[^/]+))?", "info"),
    (r"GET", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?", "tree"),
    (r"POST", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/paths-info/(?P<rev>[^/]+)", "paths_info"),
    (r"GET", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/commits/(?P<rev>[^/]+)", "commits"),
    (r"GET", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/refs", "refs"),
    (r"POST", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/branch/(?P<rev>[^/]+)", "branch"),
    (r"PUT", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/settings", "settings"),
    (r"GET", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/xet-write-token/(?P<rev>[^/]+)", "xet"),
    (r"POST", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/preupload/(?P<rev>[^/]+)", "preupload"),
    (r"POST", rf"/(?:(?P<kind>dataset|space)s/)?{REPO}\.git/info/lfs/objects/batch", "lfs_batch"),
    (r"PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_upload"),
    (r"POST", r"/lfs/verify", "lfs_verify"),
    (r"POST", rf"/api/(?P<kind>model|dataset|space)s/{REPO}/commit/(?P<rev>[^/]+)", "commit"),
    (r"GET|HEAD", rf"/(?:(?P<kind>dataset|space)s/)?{REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    (r"POST", r"/admin/fail", "admin_fail"),
]


class HubServer(ThreadingHTTPServer):
    """A Hub on 127.0.0.1, from `with` to the end of its block.

    `tokens` maps a token to its user; a user written "name:read" may read only. `root` is a folder with repositories
    to serve. `fail` is a list of the arguments of `fail()`.
    """

    daemon_threads = True
    request_queue_size = 128  # connections that wait to be accepted; beyond the usual 5 they are reset under load
    page = 1000  # entries of a tree in one answer, as on the Hub

    def __init__(self, tokens=None, root=None, fail=(), port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.sent = 0  # bytes of all answers
        self.tokens = {"hf_test": "user"} if tokens is None else dict(tokens)
        self.root = Path(root) if root else None
        self.home = Path(tempfile.mkdtemp(prefix="hub-"))
        self.repos: dict[tuple[str, str], Repo] = {}
        self.lock, self.stopped = threading.RLock(), threading.Event()
        self.failures: list[dict[str, Any]] = []
        self.log: list[tuple[str, str]] = []  # (step, user) of each request
        for failure in fail:
            self.fail(**failure)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def address(self, repo: Repo) -> str:
        return f"{self.endpoint}/{'' if repo.kind == 'model' else f'{repo.kind}s/'}{repo.id}"

    @property
    def env(self) -> dict[str, str]:
        """The environment of a client that knows this Hub alone, as the first user, with nothing cached yet."""
        home = tempfile.mkdtemp(prefix="hf-home-", dir=self.home)
        other = ("HF_HUB_", "HF_TOKEN", "HF_DATASETS_", "HUGGING", "TRANSFORMERS_OFFLINE")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(other)}
        settings = {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}
        token = {"HF_TOKEN": next(iter(self.tokens))} if self.tokens else {}
        return inherited | settings | {"HF_ENDPOINT": self.endpoint, "HF_HOME": home} | token

    def fail(self, step: str, how: str = "500", times: int | None = None, user: str | None = None) -> None:
        """Fail at a step from now on (`times` times, for one `user`): with a status such as "500", "hang" (no answer),
        "drop" (the connection breaks), or "lost" (the work is done, its answer is not sent); "ok" lets one through."""
        if how not in ("hang", "drop", "lost", "ok") and not re.fullmatch("[45][0-9]{2}", how):
            raise ValueError(f"{how!r}: fail with a status, hang, drop or lost")
        if not hasattr(Handler, f"do_{step}"):
            raise ValueError(f"{step!r}: there is no such step; a push has {', '.join(PUSH_STEPS)}")
        self.failures.append({"step": step, "how": how, "left": times, "user": user})

    def heal(self) -> None:
        """No more failures; what hangs is let go."""
        self.failures.clear()
        self.stopped.set()
        self.stopped = threading.Event()

    def revisions(self, repo_id: str, kind: str = "model") -> list[str]:
        """Titles of all commits, oldest first; an empty list where there is no such repository."""
        repo = self.find(kind, repo_id)
        return [revision.title for revision in repo.history] if repo else []

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Content by path at a revision."""
        tree = self.repos[kind, repo_id].at(revision).tree
        return {path: blob.path.read_bytes() for path, blob in sorted(tree.items())}

    def is_private(self, repo_id: str, kind: str = "model") -> bool:
        return self.repos[kind, repo_id].private

    def find(self, kind: str, repo_id: str) -> Repo | None:
        """A repository that was pushed, or that lies in `root`: those are public."""
        with self.lock:
            folder = self.root / f"{kind}s" / repo_id if self.root and ".." not in repo_id.split("/") else None
            if (kind, repo_id) not in self.repos and folder and folder.is_dir():
                repo = self.repos[kind, repo_id] = Repo(kind, repo_id, private=False)
                files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
                tree = {path.relative_to(folder).as_posix(): blob_of(path, path.name) for path in files}
                repo.commit("main", "Files of a folder", tree)
            return self.repos.get((kind, repo_id))

    def store(self, content: bytes) -> Path:
        path = self.home / hashlib.sha256(content).hexdigest()
        partial = path.with_suffix(f".{threading.get_ident()}")  # the same may come twice at once
        partial.write_bytes(content)
        return partial.replace(path)

    def failure_at(self, step: str, user: str) -> str | None:
        with self.lock:
            self.log.append((step, user))
            for failure in self.failures:
                if failure["step"] == step and failure["left"] != 0 and failure["user"] in (None, user):
                    failure["left"] = None if failure["left"] is None else failure["left"] - 1
                    return failure["how"]
        return None

    def __enter__(self) -> HubServer:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.heal()
        self.shutdown()
        self.server_close()
        shutil.rmtree(self.home, ignore_errors=True)

    def handle_error(self, request, client_address) -> None:
        pass  # a client that went away, such as one that was killed


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def handle_request(self) -> None:
        """Find the route, fail if told so, do the work, answer."""
        url = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(url.query).items()}
        matches = ((re.fullmatch(path, url.path), step) for how, path, step in ROUTES if self.command in how)
        match, step = next(((match, step) for match, step in matches if match), (None, "unknown"))
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        user = self.server.tokens.get(token, self.query.get("user", "")).partition(":")[0]  # an upload has no token
        how = self.server.failure_at(step, user)
        if how == "hang":
            self.server.stopped.wait(600)
        if how in ("hang", "drop", "lost"):
            self.close_connection = True
        if how in ("hang", "drop"):
            return
        self.body = self.read_body()
        try:
            if match is None:
                raise Refused(404, f"Not Found: {self.command} {url.path}")
            if how and how.isdigit():
                raise Refused(int(how), f"Told to fail at {step}", None, {"Retry-After": "0"})  # quickly
            answer = self.work(step, {name: value and unquote(value) for name, value in match.groupdict().items()})
        except Refused as refused:
            content = {"error": str(refused)} | refused.content
            answer = (refused.status, content, refused.headers | {"X-Error-Message": str(refused)})
        if how != "lost":
            self.answer(*(answer if isinstance(answer, tuple) else (200, answer, {})))

    def work(self, step: str, names: dict[str, Any]) -> Any:
        """Call the step's method: its answer is JSON content, or (status, content, headers)."""
        method = getattr(self, f"do_{step}")
        if "id" not in names:
            return method(**names)
        kind, repo_id = names.pop("kind") or "model", names.pop("id")
        with self.server.lock:
            return method(self.repo(kind, repo_id, writing=step in WRITING), **names)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            body = b""
            while size := int(self.rfile.readline().split(b";")[0], 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return body
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, status: int, content: Any, headers: dict[str, str]) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        headers = {"Content-Type": "application/json", "Content-Length": str(len(body))} | headers
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.sent += len(body)
            self.wfile.write(body)

    def log_message(self, format: str, *args) -> None:
        pass

    # --- who asks, and for what -----------------------------------------------------------------------------------

    def user(self, needed: bool = False) -> tuple[str, bool]:
        """Name of the user whose token came along ("" without one), and whether it may write."""
        word, _, token = self.headers.get("Authorization", "").partition(" ")
        if word and token not in self.server.tokens:
            raise Refused(401, "Invalid credentials in Authorization header")
        if needed and not word:
            raise Refused(401, "Invalid username or password.")
        name, _, role = self.server.tokens.get(token, "").partition(":")
        return name, bool(name) and role != "read"

    def repo(self, kind: str, repo_id: str, writing: bool) -> Repo:
        name, may_write = self.user()
        repo = self.server.find(kind, repo_id)
        if repo is None or (repo.private and name != repo_id.split("/")[0]):
            # The Hub does not tell a stranger whether a private repository exists.
            status, message = (404, "Repository not found") if name else (401, "Invalid username or password.")
            raise Refused(status, message, "RepoNotFound")
        if writing and not (may_write and name == repo_id.split("/")[0]):
            raise Refused(403 if name else 401, "You don't have the right to write to this repository")
        return repo

    # --- what is asked --------------------------------------------------------------------------------------------

    def do_whoami(self):
        name, may_write = self.user(needed=True)
        role = "write" if may_write else "read"
        return {"type": "user", "name": name, "orgs": [], "auth": {"accessToken": {"role": role}}}

    def do_create(self):
        asked, (name, may_write) = json.loads(self.body), self.user(needed=True)
        owner = asked.get("organization") or name
        if owner != name or not may_write:
            raise Refused(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        kind, repo_id = asked.get("type") or "model", f"{owner}/{asked['name']}"
        repo = Repo(kind, repo_id, private=asked.get("visibility") == "private" or bool(asked.get("private")))
        with self.server.lock:
            if self.server.find(kind, repo_id):
                raise Refused(409, f"You already created this {kind} repo", url=self.server.address(repo))
            self.server.repos[kind, repo_id] = repo
            attributes = self.server.store(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            repo.commit("main", "initial commit", {".gitattributes": blob_of(attributes, ".gitattributes")})
        return {"url": self.server.address(repo), "name": repo_id, "id": repo_id}

    def do_validate_yaml(self):
        parts = json.loads(self.body)["content"].split("---\n", 2)
        try:
            yaml.safe_load(parts[1] if len(parts) == 3 else "")
        except yaml.YAMLError as error:
            raise Refused(400, "Bad metadata", errors=[{"message": str(error)}]) from error
        return {"errors": [], "warnings": []}

    def do_info(self, repo: Repo, rev: str | None):
        return repo.facts(rev or "main")

    def do_tree(self, repo: Repo, rev: str, path: str | None):
        entries = entries_under(repo.at(rev).tree, path or "", self.query.get("recursive", "").lower() == "true")
        if path and not entries:
            raise Refused(404, f"{path} does not exist on {rev!r}", "EntryNotFound")
        start, size = int(self.query.get("cursor", 0)), self.server.page
        headers = {}
        if start + size < len(entries):
            query = urlencode(self.query | {"cursor": start + size})
            headers["Link"] = f'<{self.server.endpoint}{urlsplit(self.path).path}?{query}>; rel="next"'
        return 200, entries[start : start + size], headers

    def do_paths_info(self, repo: Repo, rev: str):
        if "json" in self.headers.get("Content-Type", ""):
            asked = json.loads(self.body)
        else:
            asked = parse_qs(self.body.decode())
        paths, expand = asked.get("paths", []), str(asked.get("expand")).lower() in ("true", "['true']")
        known = {entry["path"]: entry for entry in entries_under(repo.at(rev).tree, "", recursive=True)}
        if expand:
            known = {path: entry | {"lastCommit": repo.last_change(rev, path)} for path, entry in known.items()}
        return [known[path.strip("/")] for path in paths if path.strip("/") in known]

    def do_commits(self, repo: Repo, rev: str):
        return repo.log(rev)

    def do_refs(self, repo: Repo):
        heads = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": at.oid} for name, at in repo.branches.items()
        ]
        return {"branches": heads, "tags": [], "converts": [], "pullRequests": []}

    def do_branch(self, repo: Repo, rev: str):
        if rev in repo.branches:
            raise Refused(409, "Reference already exists")
        repo.branches[rev] = repo.at(json.loads(self.body or b"{}").get("startingPoint") or "main")
        return {}

    def do_settings(self, repo: Repo):
        asked = json.loads(self.body)
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
        return {"private": repo.private}

    def do_xet(self, repo: Repo, rev: str):
        raise Refused(404, "This Hub has no Xet storage: set HF_HUB_DISABLE_XET=1 for large files to go by LFS")

    def do_preupload(self, repo: Repo, rev: str):
        return {"files": repo.upload_modes(rev, json.loads(self.body)["files"])}

    def do_lfs_batch(self, repo: Repo):
        objects, known = [], {blob.sha256 for revision in repo.history for blob in revision.tree.values()}
        for item in json.loads(self.body)["objects"]:
            upload = {"href": f"{self.server.endpoint}/lfs/{item['oid']}?user={self.user()[0]}"}
            verify = {"href": f"{self.server.endpoint}/lfs/verify"}
            objects.append(item | ({} if item["oid"] in known else {"actions": {"upload": upload, "verify": verify}}))
        return {"transfer": "basic", "objects": objects}

    def do_lfs_upload(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise Refused(400, "The content is not what was announced")
        self.server.store(self.body)
        return {}

    def do_lfs_verify(self):
        path = self.server.home / json.loads(self.body)["oid"]
        if not path.is_file() or path.stat().st_size != json.loads(self.body)["size"]:
            raise Refused(404, "Object does not exist on the server")
        return {}

    def do_commit(self, repo: Repo, rev: str):
        header, *changes = (json.loads(line) for line in self.body.splitlines() if line.strip())
        if header["value"].get("parentCommit") not in (None, repo.at(rev).oid):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        for change in changes:
            if change["key"] == "file":
                change["blob"] = self.server.store(base64.b64decode(change["value"]["content"]))
            elif change["key"] == "lfsFile":
                change["blob"] = self.server.home / change["value"]["oid"]
        oid = repo.commit(rev, header["value"]["summary"], changed(repo.at(rev).tree, changes)).oid
        return {"success": True, "commitOid": oid, "commitUrl": f"{self.server.address(repo)}/commit/{oid}"}

    def do_resolve(self, repo: Repo, rev: str, path: str):
        revision = repo.at(rev)
        if path not in revision.tree:
            raise Refused(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": revision.oid})
        blob = revision.tree[path]
        headers = {"X-Repo-Commit": revision.oid, "ETag": f'"{blob.sha256 if blob.lfs else blob.oid}"'}
        headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size)}
        status, content, ranged = part_of(blob.path.read_bytes(), self.headers.get("Range", ""))
        return status, content, headers | ranged

    def do_admin_fail(self):  # what only a test asks
        asked = json.loads(self.body or b"{}")
        self.server.fail(**asked) if asked else self.server.heal()
        return {"failures": self.server.failures}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8099)
    parser.add_argument("--token", action="append", metavar="TOKEN:USER[:read]", help="default hf_test:user")
    parser.add_argument("--root", help="folder with repositories to serve, as models/gpt2/… and datasets/user/name/…")
    parser.add_argument("--fail", action="append", default=[], metavar="STEP=HOW", help=", ".join(PUSH_STEPS))
    options = parser.parse_args()
    tokens = dict(word.partition(":")[::2] for word in options.token or ["hf_test:user"])
    failures = [dict(zip(("step", "how"), word.partition("=")[::2], strict=True)) for word in options.fail]
    try:
        hub = HubServer(tokens, options.root, failures, options.port)
    except (OSError, ValueError) as error:
        parser.error(f"port {options.port}, failures {failures}: {error}")
    with hub:
        print(f"export HF_ENDPOINT={hub.endpoint} HF_HUB_DISABLE_XET=1 HF_HOME={hub.home / 'client'}")
        print(f"export HF_TOKEN={next(iter(tokens))}", flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
