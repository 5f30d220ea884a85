"""What visitors send: taken from a private folder into memory, and deleted there at once. Whether it is a radiograph
is seen by who reads it."""

from __future__ import annotations

import shutil
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

MOST_BYTES = 64 << 20
"""Of one file. A flat-panel detector for chest radiographs gives about 20 MB uncompressed."""
SECONDS = 60
"""After which an upload is deleted that nobody asked about, or that broke off."""


class Uploads:
    """The uploads in `folder`. The same file, sent by two people, is one on the disk: `count` says how often it came
    (Gradio calls `update` of what it counts in)."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder.resolve(), Counter[str]()
        threading.Thread(target=self._sweep, daemon=True).start()

    def take(self, upload: Any) -> bytes | None:
        """The content of an upload, `{"path": …}`, which is not on the disk afterwards; `None` where there is none.

        Raises `ValueError` for anything else: no other file of this machine is read, and no address.
        """
        if not upload:
            return None
        path = Path(str(upload.get("path"))) if isinstance(upload, Mapping) else Path()
        if path.parent.parent != self.folder or ".." in path.parts or path.is_symlink() or not path.is_file():
            raise ValueError("this file is not here (any more); send the file itself, no path and no address")
        content = path.read_bytes()
        self.count[str(path)] -= 1
        if self.count[str(path)] <= 0:
            self._forget(path.parent)
        return content

    def _forget(self, place: Path) -> None:
        for path in place.glob("*"):
            self.count.pop(str(path), None)
        shutil.rmtree(place, ignore_errors=True) if place.is_dir() else place.unlink(missing_ok=True)

    def _sweep(self) -> None:
        while self.folder.is_dir():
            time.sleep(SECONDS / 4)
            for place in self.folder.glob("*"):
                with suppress(OSError):  # `take` deletes meanwhile
                    if time.time() - max(path.stat().st_mtime for path in (place, *place.glob("*"))) > SECONDS:
                        self._forget(place)
