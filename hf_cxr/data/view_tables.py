"""A table of views (`--views`): read, and matched with the images of a collection by the ends of their paths.

What its words say is known in `hf_cxr.data.view_labels`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hf_cxr.data.archives import image_key
from hf_cxr.data.sources.rows import Table, read_table
from hf_cxr.data.study import Archived, Embedded, Radiograph, Study, few_words
from hf_cxr.data.view_labels import ViewWord, view_of

# Names of columns in lower case, without what is no letter or digit; the first of them that a table has is read.
COLUMNS = {
    "image": "image filename file imageid dicomid imageindex imagepath pathtoimage filepath imagename name path",
    "view": "view projection tsneview viewposition imageviewposition viewpositiondicom frontallateral label",
}

PathParts = tuple[str, ...]
"""The `image_key` of an image, then the folders around it, the innermost first."""


@dataclass(frozen=True)
class ViewTable:
    """A table of views that has been read."""

    path: str | Path
    views: Mapping[PathParts, ViewWord]
    unknown: Mapping[str, int]
    """Word that says no view → in how many rows."""

    def unknown_words(self, start: str) -> str:
        """A clause about the words that say no view, after `start`; "" where there are none."""
        number = sum(self.unknown.values())
        return f"{start}words that say no view ({number:,} in all): {few_words(self.unknown)}" if number else ""


def read_view_table(path: str | Path, columns: Mapping[str, str] | None = None) -> ViewTable:
    """A table of image names and views: any that `hf_cxr.data.sources.rows` reads.

    Its columns are those that `columns` names, as in `{"image": "dicom_id", "view": "ViewPosition"}`, else the first
    of `COLUMNS`, in any case, with or without blanks and underscores. An empty view is none.

    Raises:
        ValueError: For a table without such columns, or an image with two different views.
    """
    table = read_table(path)
    if odd := set(columns or {}) - set(COLUMNS):
        raise ValueError(f"view columns: {min(odd)!r} is neither image nor view")
    image, view = (_column(table, ours, (columns or {}).get(ours)) for ours in COLUMNS)
    views: dict[PathParts, ViewWord] = {}
    unknown = Counter[str]()
    for row in table.rows((image, view), ()):
        name, *folders = _parts(row[image])
        place, said = (image_key(name), *folders), view_of(row[view])
        if said.view is None and row[view]:
            unknown[row[view]] += 1
        if said.view is None or not place[0]:
            continue
        before = views.setdefault(place, said)
        if before.view != said.view:
            raise ValueError(f"{path}, {row.place}: image {place[0]!r} is both {before.view} and {said.view}")
        if before != said:
            views[place] = ViewWord(said.view)
    return ViewTable(path, views, dict(unknown.most_common()))


def label_views(studies: Iterable[Study], table: ViewTable) -> tuple[list[Study], int]:
    """The studies with the views that a table names in place of their own, and how many images it does not name.

    An image takes the row with which it shares the longest end of its path, its suffix and a prefix "CXR" aside. The
    end must be that of this image and of this row alone: a row with the path "a/0.png" does not name "b/0.png" where
    there are several images called "0.png".

    Raises:
        ValueError: If the table names no image, or if the whole path in a row is the end of several images' paths or
            of several rows that differ.
    """
    studies = list(studies)
    listed = [[_place_of(radiograph) for radiograph in study.images] for study in studies]
    different = {
        (place, _identity(radiograph))
        for study, found in zip(studies, listed, strict=True)
        for place, radiograph in zip(found, study.images, strict=True)
    }
    places = [place for place, _ in different]
    # Most images have a name of their own; only of the others all ends are looked at, for they are many.
    repeated = {key for paths in (places, table.views) for key, n in Counter(p[0] for p in paths).items() if n > 1}

    def ends(place: PathParts) -> list[PathParts]:
        return [place[:n] for n in range(len(place) if place[0] in repeated else 1, 0, -1)]

    images = Counter(end for place in places for end in ends(place))
    rows: dict[PathParts, set[ViewWord]] = {}
    for place, word in table.views.items():
        for end in ends(place):
            if end in images:
                rows.setdefault(end, set()).add(word)

    def named(place: PathParts) -> ViewWord | None:
        end = next((end for end in ends(place) if end in rows), None)
        if end is None:
            return None
        if images[end] == 1 and len(rows[end]) == 1:
            return next(iter(rows[end]))
        if end in table.views:
            name, what = "/".join(reversed(end)), "images of this collection" if images[end] > 1 else "rows"
            raise ValueError(
                f"{table.path}: {name!r} is the end of the paths of {max(images[end], len(rows[end])):,} {what}; "
                "give the folders too"
            )
        return None

    labelled, known, unnamed = [], 0, 0
    for study, found in zip(studies, listed, strict=True):
        words = [named(place) for place in found]
        unnamed += words.count(None)
        known += len(words) - words.count(None)
        labelled.append(replace(study, images=tuple(map(_labelled, study.images, words))))
    if not known:
        raise ValueError(f"{table.path}: names no view of an image of this collection{table.unknown_words('; ')}")
    return labelled, unnamed


def _place_of(radiograph: Radiograph) -> PathParts:
    """Where an image lies, under the name that its collection has for it."""
    source, label = radiograph.source, _parts(radiograph.label)
    within = source.key if isinstance(source, Archived) else source if isinstance(source, (str, Path)) else ""
    folders = _parts(str(within))[1:]
    return (image_key(label[0]), *(folders if len(folders) > len(label) - 1 else label[1:]))


def _identity(radiograph: Radiograph) -> object:
    """What tells an image apart from another of the same place; two files of it, say PNG and DICOM, are one image."""
    source = radiograph.source
    if isinstance(source, (str, Path)):
        return None
    return source.archive if isinstance(source, Archived) else source if isinstance(source, Embedded) else id(source)


def _labelled(radiograph: Radiograph, word: ViewWord | None) -> Radiograph:
    if word is None:
        return radiograph
    own = radiograph.projection if radiograph.view == word.view else ""
    return replace(radiograph, view=word.view, projection=word.projection or own)


def _parts(path: str) -> list[str]:
    """The name, then the folders around it, the innermost first."""
    *folders, name = path.replace("\\", "/").split("/")
    return [name, *(folder for folder in reversed(folders) if folder not in ("", "."))]


def _column(table: Table, ours: str, given: str | None) -> str:
    """The table's name of a column: the given one, else the first of those that are known."""
    if given:
        if (found := table.column(given)) is None:
            raise ValueError(table.lacks(given))
        return found
    plain: dict[str, list[str]] = {}
    for name in table.columns:
        plain.setdefault(re.sub(r"[\W_]+", "", name.lower()), []).append(name)
    names = next((plain[name] for name in COLUMNS[ours].split() if name in plain), None)
    if names is None:
        raise ValueError(f"{table.lacks(ours)} (or name it: --view-columns {ours}=…)")
    if len(names) > 1:
        both = " and ".join(map(repr, names))
        raise ValueError(f"{table.path}: columns {both} could both be {ours!r}; name one: --view-columns {ours}=…")
    return names[0]
