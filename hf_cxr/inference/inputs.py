"""What can be given to the pipeline: many studies in whatever form, the views of a study, an image at an address.

A checkpoint brings this file as remote code, so it imports only the standard library, Pillow and what comes with it;
torch and transformers where a pipeline asks for many studies, huggingface_hub for an address. It opens no connection
but to an address that is given as a view.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from PIL import Image

from .sections import CONTEXT, context_of
from .views import VIEWS, UnreadableImage, called, read_radiograph

KEYS = (*VIEWS, *CONTEXT, "age", "sex")  # of a study
# Of one address: patience with a server that sends nothing, and what is read at most, in time and size.
SECONDS, MAX_SECONDS, MAX_BYTES = 30, 300, 256 << 20
FETCH_ERRORS = {
    "OfflineModeIsEnabled": "the environment asks for offline mode (HF_HUB_OFFLINE)",
    "TimeoutException": f"the server did not answer within {SECONDS} s",
    "ConnectError": "the server cannot be reached",
}

# --- many studies --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbered:
    """A study among many, and its place there, so that an error can tell which it is."""

    place: int
    study: Any


class Rows:
    """Many studies that can be picked: the rows of `studies`, or of each row the columns `keys`."""

    def __init__(self, studies, keys: Sequence[str] = ()) -> None:
        self.studies, self.keys = _undecoded(studies, keys), keys

    def __len__(self) -> int:
        return len(self.studies)

    def __iter__(self) -> Iterator[Numbered]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> Numbered:
        try:
            study = self.studies[index]
        except Exception as error:  # told by the pipeline, which may go on with the others
            return Numbered(index, UnreadableImage(f"the dataset does not give it ({_said(error)})"))
        return Numbered(index, {key: self.image(key, study[key]) for key in self.keys} if self.keys else study)

    def image(self, view: str, stored: Any) -> Any:
        """An image that `datasets` alone can open, in an archive or on a file system of its own, as a callable."""
        features = getattr(self.studies, "features", None)
        path = stored.get("path") if isinstance(stored, Mapping) and not stored.get("bytes") else None
        if features and "://" in (path or ""):
            return partial(replace(features[view], decode=True).decode_example, stored)
        return stored


def numbered(inputs, context: Sequence[str] = ()):
    """Many studies as the base class of pipelines takes them, each with its place: a list stays a list, what can be
    picked a dataset, all else that is many a generator. A single study as it is.

    Of the columns of a `datasets.Dataset` the views are taken and, where they are there, those of `context`.

    Raises `ValueError` for a dataset without a view among its columns.
    """
    from torch.utils.data import Dataset, IterableDataset, Subset
    from transformers.pipelines.pt_utils import KeyDataset  # whose package imports the pipeline, which imports this

    if isinstance(inputs, KeyDataset) and inputs.key in VIEWS:
        inputs = Rows(inputs.dataset, [inputs.key])
    elif isinstance(inputs, Dataset) and not hasattr(inputs, "column_names"):
        picked = isinstance(inputs, Sized) and not isinstance(inputs, IterableDataset)
        inputs = Rows(inputs) if picked else iter(inputs)
    studies = many(inputs, context)
    if isinstance(studies, Rows):
        return Subset(studies, range(len(studies)))  # type: ignore[arg-type]
    return inputs if studies is None else studies


def many(inputs, context: Sequence[str] = ()) -> Rows | list[Numbered] | Iterator[Numbered] | None:
    """`numbered` for those who do without torch; `None` for a single study."""
    if hasattr(inputs, "column_names") and hasattr(inputs, "select_columns"):
        inputs = _of_datasets(inputs, context)
    if isinstance(inputs, Rows):
        return inputs
    if isinstance(inputs, list):
        return [Numbered(place, study) for place, study in enumerate(inputs)]
    if isinstance(inputs, Iterator) and not hasattr(inputs, "read"):  # an open file is one image
        return (Numbered(place, study) for place, study in enumerate(inputs))
    return None


def _of_datasets(rows, context: Sequence[str]):
    """A `datasets.Dataset` or stream of one as studies."""
    if isinstance(rows, Mapping):
        raise ValueError(f"a dataset of several splits: choose one of {', '.join(rows)}")
    if rows.column_names is None:  # a stream whose columns show only in its rows
        return _stream(rows, context)
    keys = _keys_among(rows.column_names, context)
    rows = rows.select_columns(keys)
    return Rows(rows, keys) if isinstance(rows, Sized) else _stream(rows, context)


def _undecoded(rows, keys: Sequence[str]):
    """The rows of a `datasets.Dataset` with their images as they are stored, so that a damaged one is an error of
    its study alone. Rows of another kind, or with a format of the user's, as they are."""
    if getattr(rows, "format", {"type": "none"})["type"] is None:
        for key in keys:
            if getattr(rows.features[key], "decode", False):
                rows = rows.cast_column(key, replace(rows.features[key], decode=False))
    return rows


def _stream(rows: Iterable[Mapping[str, Any]], context: Sequence[str]) -> Iterator[dict[str, Any]]:
    for row in rows:
        yield {key: row[key] for key in _keys_among(row, context)}


def _keys_among(columns: Collection[str], context: Sequence[str]) -> list[str]:
    if not set(VIEWS) & set(columns):
        raise ValueError(f"the dataset has neither a column 'frontal' nor 'lateral': {list(columns)}")
    return [key for key in (*VIEWS, *_context_keys(context)) if key in columns]


# --- one study -----------------------------------------------------------------------------------------------------


def read_views(
    study, at_least: int | None, doubts: Callable[[Any, Image.Image, str], list[str]] | None = None
) -> tuple[dict[str, Image.Image], list[str]]:
    """The views that a study has, by name, in grey; and what speaks against their being that.

    Args:
        at_least: pixels that a JPEG keeps on each side, as in `read_radiograph`.
        doubts: `plausibility.doubts`, where they are asked for.

    Raises `ValueError` in one line for what is no study or cannot be read, naming the view.
    """
    views: dict[str, Image.Image] = {}
    warnings: list[str] = []
    for name, source in zip(VIEWS, _views_of(study), strict=True):
        if source is None:
            continue
        where = f"{name}: {_public(source)}" if _is_address(source) else name
        try:
            source = _taken(source)
            views[name] = read_radiograph(source, at_least=at_least)
        except Exception as error:  # a file, a mapping or an array of the user's may raise anything
            known = isinstance(error, (ValueError, TypeError, OSError))
            told = " ".join(str(error).split()) if known else _said(error)
            raise UnreadableImage(f"{where}: {told}") from error
        if doubts:
            warnings += [f"{name}: {doubt}" for doubt in doubts(source, views[name], name)]
    return views, warnings


def _views_of(study) -> tuple[Any, Any]:
    """(frontal, lateral) of a study; what is neither a dict nor a pair is a frontal view alone."""
    if isinstance(study, UnreadableImage):
        raise study
    if isinstance(study, Mapping):
        unknown = sorted(map(str, set(study) - set(KEYS)))
        if not set(VIEWS) <= set(study) and (unknown or not study):  # perhaps a view, misspelt
            raise ValueError(
                f"a study has the keys 'frontal' and 'lateral', not {unknown or 'none at all'}, and perhaps "
                f"{', '.join(map(repr, KEYS[2:-1]))} or {KEYS[-1]!r}; of a row with further columns give both views, "
                "None where there is none"
            )
        try:
            return study.get("frontal"), study.get("lateral")
        except Exception as error:
            raise UnreadableImage(f"a study that cannot be read ({_said(error)})") from error
    if not isinstance(study, (tuple, list)):
        return study, None
    if len(study) == len(VIEWS):
        return study[0], study[1]
    raise ValueError(
        f"a study is a (frontal, lateral) pair, a dict of both or one frontal view, not {len(study)} views"
    )


def context_among(study, context: Sequence[str]) -> dict[str, str]:
    """What a study gives of `context`, as `context_of`. Raises `ValueError` in one line for what is no text or age."""
    if not isinstance(study, Mapping) or not context:
        return {}
    given = {key: study.get(key) for key in _context_keys(context) if not _is_missing(study.get(key))}
    for key, value in given.items():
        if key != "age" and not isinstance(value, str):
            raise ValueError(f"{key}: a text, not {type(value).__name__}")
    try:
        return context_of(given)
    except (TypeError, ValueError):
        raise ValueError(f"age: a number of years, not {str(given['age'])[:20]!r}") from None


def _context_keys(context: Sequence[str]) -> tuple[str, ...]:
    return (*context, *(("age", "sex") if "age_sex" in context else ()))


def _is_missing(value: Any) -> bool:
    return value is None or (isinstance(value, float) and value != value)  # nan, in a row of pandas


def _taken(source):
    """What `read_radiograph` reads of a view: what is at an address, in an open file, behind a callable, or in a
    image of `datasets` that is not decoded; anything else as it is."""
    if isinstance(source, Mapping):
        content = source.get("bytes")
        if content and not isinstance(content, (bytes, bytearray, memoryview)):
            raise UnreadableImage(f"the bytes of an image are {type(content).__name__}")
        source = content or source.get("path")
    if isinstance(source, str):
        if not source.strip():
            raise UnreadableImage("an empty path; a view that a study does not have is None")
        if _is_address(source):
            return _fetched(source.strip())
        if scheme := re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]+)://", source):
            raise UnreadableImage(f"an address of {scheme[1]}; only http and https are fetched")
    elif isinstance(source, os.PathLike):  # some of which have a `read` of their own, for text
        return Path(os.fsdecode(source))
    elif hasattr(source, "read"):
        return _read(source)
    elif callable(source):
        return called(source)
    return source


def _read(stream: Any) -> bytes:
    """What an open file still holds, `MAX_BYTES` at most: a few bytes may unpack to more than there is memory."""
    content = bytearray()
    try:
        while part := stream.read(1 << 20):
            content += part  # which takes no text: its content would be taken for a path
            if len(content) > MAX_BYTES:
                raise UnreadableImage(f"more than {MAX_BYTES >> 20} MB")
    except TypeError:
        raise UnreadableImage("an open file that does not give bytes; open it with 'rb'") from None
    except UnreadableImage:
        raise
    except Exception as error:  # gzip, zipfile and network libraries raise whatever they like
        raise UnreadableImage(f"an open file that cannot be read ({_said(error)})") from error
    return bytes(content)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# --- an address ----------------------------------------------------------------------------------------------------


def _is_address(source) -> bool:
    return isinstance(source, str) and source.strip().lower().startswith(("http://", "https://"))


def _public(address: str) -> str:
    """An address without what may be secret in it: user, password, and the query that signs a link."""
    try:
        parts = urlsplit(address.strip())
    except ValueError:
        return "an address that is none"
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _fetched(address: str) -> bytes:
    from huggingface_hub import get_session

    content, deadline = bytearray(), time.monotonic() + MAX_SECONDS
    try:
        with get_session().stream("GET", address, follow_redirects=True, timeout=SECONDS) as response:
            response.raise_for_status()
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise UnreadableImage(f"more than {MAX_BYTES >> 20} MB")
                if time.monotonic() > deadline:
                    raise UnreadableImage(f"not whole after {MAX_SECONDS} s")
    except Exception as error:
        why = error if isinstance(error, UnreadableImage) else _why(error)
        raise UnreadableImage(f"could not be fetched: {why}") from None
    return bytes(content)


def _why(error: Exception) -> str:
    """An error of the client in our own words: its own may hold the whole address."""
    if status := getattr(getattr(error, "response", None), "status_code", None):
        return f"status {status}"
    kinds = {kind.__name__ for kind in type(error).__mro__}
    return next((told for kind, told in FETCH_ERRORS.items() if kind in kinds), type(error).__name__)
