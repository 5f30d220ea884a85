"""The text side of a study: the `Study` record and the cleaning of impressions.

Reading a published form of a collection lives in `hf_cxr.sources`; the meaning of a text in `hf_cxr.findings`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Union

if TYPE_CHECKING:
    from PIL.Image import Image

    ViewSource = Union[str, Path, bytes, Image, Callable[[], Image]]


@dataclass(frozen=True)
class Study:
    """One examination of one patient: up to two views and the report's sections, as published.

    Views are not opened here: a path, encoded bytes, a picture, or a picklable callable that returns a picture.
    `None` means that the study has no such view.
    """

    uid: str
    frontal: ViewSource | None = None
    lateral: ViewSource | None = None
    impression: str = ""
    findings: str = ""
    indication: str = ""
    tags: tuple[str, ...] = ()
    patient: str | None = None
    """Whose study it is; studies of one patient never cross splits. `None`: the patient is the uid."""
    split: str | None = None
    """The split the collection itself publishes, if any."""
