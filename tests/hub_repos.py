"""What the small Hub of `hub_server` keeps: repositories, each a list of revisions, each a whole tree of files."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

# What the Hub keeps as a large file outside git, beside all that is binary or big.
LARGE, BIG = (".safetensors", ".parquet", ".bin", ".png"), 10_000_000


class Refused(Exception):
    """An answer other than 200, with the Hub's code for it."""

    def __init__(self, status: int, message: str, code: str | None = None, headers=None, **content: Any) -> None:
        super().__init__(message)
        self.status, self.content = status, content
        self.headers = (headers or {}) | ({"X-Error-Code": code} if code else {})


@dataclass(frozen=True)
class Blob:
    """The content of a file, and how a repository holds it: in git, or as a large file."""

    path: Path
    size: int
    oid: str  # of git
    sha256: str
    lfs: bool

    def as_json(self, path: str) -> dict[str, Any]:
        lfs = {"oid": self.sha256, "sha256": self.sha256, "size": self.size, "pointerSize": 134}
        entry = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        return entry | ({"lfs": lfs} if self.lfs else {})


@dataclass
class Revision:
    oid: str
    title: str
    tree: dict[str, Blob]


@dataclass
class Repo:
    kind: str
    id: str
    private: bool
    history: list[Revision] = field(default_factory=list)
    branches: dict[str, Revision] = field(default_factory=dict)

    def commit(self, branch: str, title: str, tree: dict[str, Blob]) -> Revision:
        """Put a whole new tree at the end of a branch: all of it, or (before this line) nothing of it."""
        seed = f"{self.kind} {self.id} {branch} {len(self.history)} {sorted((p, b.oid) for p, b in tree.items())}"
        revision = Revision(hashlib.sha1(seed.encode()).hexdigest(), title, tree)
        self.history.append(revision)
        self.branches[branch] = revision
        return revision

    def at(self, name: str) -> Revision:
        """The revision that a branch or a commit names."""
        known = {revision.oid: revision for revision in self.history} | self.branches
        if name not in known:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        return known[name]

    def facts(self, name: str) -> dict[str, Any]:
        """What the Hub tells of a repository at a revision."""
        revision = self.at(name)
        siblings = [{"rfilename": path, "size": blob.size} for path, blob in sorted(revision.tree.items())]
        told = {"id": self.id, "modelId": self.id, "author": self.id.split("/")[0], "private": self.private}
        if (card := revision.tree.get("README.md")) and len(parts := card.path.read_text().split("---\n", 2)) == 3:
            told["cardData"] = yaml.safe_load(parts[1])
        return told | {"sha": revision.oid, "gated": False, "disabled": False, "tags": [], "siblings": siblings}

    def last_change(self, name: str, path: str) -> dict[str, Any]:
        """The commit that gave a file, or what lies in a folder, the content that it has at a revision."""
        history = self.history[: self.history.index(self.at(name)) + 1]
        now, last = history[-1].tree.get(path), history[-1]
        for revision in reversed(history):
            if revision.tree.get(path) != now:
                break
            last = revision
        return {"id": last.oid, "title": last.title, "date": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())}

    def log(self, name: str) -> list[dict[str, Any]]:
        """The commits up to a revision, newest first."""
        history = self.history[: self.history.index(self.at(name)) + 1]
        common = {"authors": [], "date": time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime()), "message": ""}
        return [{"id": revision.oid, "title": revision.title} | common for revision in reversed(history)]

    def upload_modes(self, name: str, files: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """How each file has to come, and what the revision holds in its place."""
        tree, modes = self.at(name).tree, []
        for file in files:
            large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
            mode = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
            blob = tree.get(file["path"])
            modes.append(mode | ({"oid": blob.sha256 if blob.lfs else blob.oid} if blob else {}))
        return modes


def changed(tree: dict[str, Blob], changes: list[dict[str, Any]]) -> dict[str, Blob]:
    """A tree after the changes of a commit; those that add a file hold where its content lies."""
    tree = dict(tree)
    for change in changes:
        path = change["value"]["path"].rstrip("/")
        under = {name for name in tree if name == path or name.startswith(f"{path}/")}
        if "blob" not in change:
            if not under:
                raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
            tree = {name: blob for name, blob in tree.items() if name not in under}
        elif change["blob"].is_file():
            tree[path] = blob_of(change["blob"], path)
        else:
            raise Refused(400, f"LFS pointer pointed to a file that does not exist: {path}")
    return tree


def blob_of(path: Path, name: str) -> Blob:
    content = path.read_bytes()
    git = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    large = is_large(name, len(content), content[:512])
    return Blob(path, len(content), git, hashlib.sha256(content).hexdigest(), large)


def is_large(name: str, size: int, sample: bytes) -> bool:
    return size > 0 and (size > BIG or name.endswith(LARGE) or b"\0" in sample)


def entries_under(tree: dict[str, Blob], folder: str, recursive: bool) -> list[dict[str, Any]]:
    """Files and folders in a folder of a tree (and in its folders), as the Hub tells them."""
    prefix = f"{folder.strip('/')}/" if folder else ""
    found: dict[str, dict[str, Any]] = {}
    for path, blob in tree.items():
        if path.startswith(prefix):
            steps = path[len(prefix) :].split("/")
            for depth in range(1, len(steps)):
                name = prefix + "/".join(steps[:depth])
                oid = hashlib.sha1(name.encode()).hexdigest()
                found[name] = {"type": "directory", "path": name, "size": 0, "oid": oid}
            found[path] = blob.as_json(path)
    return [found[name] for name in sorted(found) if recursive or "/" not in name[len(prefix) :]]


def part_of(content: bytes, asked: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, content and headers for a Range header such as "bytes=10-19", "bytes=10-" or "bytes=-10"."""
    match, size = re.fullmatch(r"bytes=(\d*)-(\d*)", asked), len(content)
    if not match:
        return 200, content, {}
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    end = min(int(last) + 1, size) if first and last else size
    if start >= size:
        raise Refused(416, "Range Not Satisfiable", None, {"Content-Range": f"bytes */{size}"})
    return 206, content[start:end], {"Content-Range": f"bytes {start}-{end - 1}/{size}"}
