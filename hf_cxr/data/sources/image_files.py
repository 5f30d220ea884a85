"""Where the images lie that a table lists: each folder is listed once, zips within it are looked into, and a path that
differs from a file's in its suffix alone is that file's. What a table means is for `hf_cxr.data.sources.table`."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Iterable
from pathlib import Path

from hf_cxr.data.archives import IMAGE_SUFFIXES
from hf_cxr.data.storage import Place, files, is_url, join
from hf_cxr.data.study import Archived

log = logging.getLogger(__name__)

MOST_FOLDERS = 64
"""Of a folder with more subfolders than this, none is searched for paths that do not start from it."""

Names = dict[str, tuple[str, ...]]  # file name without its image suffixes → the names that have it


class ImageFiles:
    """The image files below a folder, by the paths that a table lists."""

    def __init__(self, base: Place) -> None:
        self.base = base
        self._folders: dict[str, Names] = {}  # by path from the base
        self._archived: dict[str, Archived] = {}  # "0/a.png", of "a.png" in "0.zip" → where it is
        self._packed: dict[str, Names] = {}  # of these, and of an address
        self._tops: list[str] | None = None
        self._zips: list[str] = []
        self._holders: dict[str, list[str]] = {}

    def find(self, listed: str) -> tuple[Place | Archived | None, str]:
        """Where the image is that a table lists as `listed` (`None`: not there), or why nobody can say.

        It is looked for in its place, then under its path without or with another image suffix, then in the same way
        in each zip of the base and, if it is listed with a folder, below each of its subfolders: "train/1.jpg" is
        found as "PNG/train/1.png". An image that two files could be is neither.
        """
        if self._tops is None:
            self._tops = self._subfolders()
        if found := self._fits("", listed):
            return self._one(listed, found)
        fits = [name for top in self._holding(listed) for name in self._fits(top, listed)]
        return self._one(listed, fits) if fits else (None, "")

    def _one(self, listed: str, fits: list[str]) -> tuple[Place | Archived | None, str]:
        if len(fits) > 1:
            return None, f"{Path(listed).name} could be {' or '.join(fits[:2])}"
        return self._archived.get(fits[0]) or join(self.base, fits[0]), ""

    def _fits(self, top: str, listed: str) -> list[str]:
        folder, slash, name = (f"{top}/{listed}" if top else listed).rpartition("/")
        names = self._names(folder or slash).get(IMAGE_SUFFIXES.sub("", name), ())
        return [f"{folder}{slash}{found}" for found in ((name,) if name in names else names)]

    def _names(self, folder: str) -> Names:
        if folder not in self._folders:
            found: list[str] = []
            if not is_url(self.base):
                try:
                    with os.scandir(join(self.base, folder)) as entries:
                        found = sorted(entry.name for entry in entries if entry.is_file())
                except (OSError, ValueError):  # not there, too long a name, a NUL in it
                    pass
            for name in found:  # unpacked
                self._archived.pop(f"{folder}/{name}", None)
            self._folders[folder] = self._packed.get(folder, {}) | _by_stem(found)
        return self._folders[folder]

    def _holding(self, listed: str) -> list[str]:
        """The subfolders and zips of the base in which such a path may start; a bare name, in zips alone."""
        first, slash, _ = listed.partition("/")
        if not slash:
            return self._zips
        if first not in self._holders:
            tops = [] if first in ("", ".", "..") else self._tops or []
            self._holders[first] = [top for top in tops if self._is_folder(f"{top}/{first}")]
        return self._holders[first]

    def _is_folder(self, folder: str) -> bool:
        packed = any(known == folder or known.startswith(f"{folder}/") for known in self._packed)
        return packed or (not is_url(self.base) and Path(self.base, folder).is_dir())

    def _subfolders(self) -> list[str]:
        """The folders and zips of the base, after what these hold has been put into `_packed`."""
        tops, packed = set[str](), dict[str, list[str]]()
        if is_url(self.base):
            for name in files(self.base):
                packed.setdefault(name.rpartition("/")[0], []).append(name.rpartition("/")[2])
        else:
            for path in sorted(Path(self.base).iterdir()):
                if path.suffix.lower() == ".zip" and path.is_file():
                    self._zips.append(path.stem)
                    for name in _members(path):
                        self._archived[f"{path.stem}/{name}"] = Archived(path, name)
                elif path.is_dir():
                    tops.add(path.name)
        for name in self._archived:
            packed.setdefault(name.rpartition("/")[0], []).append(name.rpartition("/")[2])
        self._packed = {folder: _by_stem(names) for folder, names in packed.items()}
        tops |= {folder.partition("/")[0] for folder in packed if folder}
        return sorted(tops) if len(tops) <= MOST_FOLDERS else []


def _by_stem(names: Iterable[str]) -> Names:
    made: Names = {}
    for name in names:
        stem = IMAGE_SUFFIXES.sub("", name)
        made[stem] = (*made.get(stem, ()), name)
    return made


def _members(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            return [name for name in archive.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        log.warning("%s is not searched for images: %s", path.name, error)
        return []
