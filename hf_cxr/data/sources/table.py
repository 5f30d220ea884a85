"""The user's own collection, or a published one by its preset: a table with a row per study or per image, and images.

What kinds of files a table may be is for `rows`, what its columns mean for `preset`, where its images lie for
`image_files`. Images are opened by whoever asks for them.
"""

from __future__ import annotations

import functools
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from hf_cxr.data.archives import IMAGE_SUFFIXES
from hf_cxr.data.collection import Collection
from hf_cxr.data.sources.image_files import ImageFiles
from hf_cxr.data.sources.preset import (
    COLUMNS,
    NEEDED,
    UNLABELLED,
    Field,
    Preset,
    bind,
    labels_of,
    names,
    read_preset,
    ways_of,
    years_of,
)
from hf_cxr.data.sources.rows import ImageCell, Row, Table, did_you_mean, read_table, split_cell, table_files
from hf_cxr.data.sources.sections import sections
from hf_cxr.data.storage import Place, as_place, is_folder, is_url, join, parent
from hf_cxr.data.study import TEXTS, Embedded, Radiograph, Study, few_words, in_order_of_time, plain_tags
from hf_cxr.data.view_labels import ViewWord, view_of
from hf_cxr.inference.views import VIEWS

log = logging.getLogger(__name__)

KINDS = {"image": ("image",), "images": ("images",), "frontal": VIEWS}
"""How a table lists its images → our columns of them: one a row, all of a study in a cell, or a cell for each view."""
AGREED = (*TEXTS, "report", "patient", "split", "age", "sex")
"""What the rows of one study say in common."""
MAX_PATH, MAX_NAME = 4096, 255
"""Bytes of a path and of a name in it, on most systems; a longer cell is text in the wrong column."""

# Columns that name the patient, in lower case and without what is no letter.
_PATIENT_COLUMN = re.compile(
    r"(?:deid|anon|pseudo)?(?:patient|subject|person|pat|pt|participant|paciente|patienten)s?"
    r"(?:id|uid|key|no|nr|num|number|code|name|hash|identifier)?|(?:id)?paciente|mrn|pid|emrn|medicalrecord(?:no|number)"
    r"|empi(?:id|anon)?|(?:hospital|nhs)(?:id|no|number)"
)
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")
STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "hf", "memory"}
"""Protocols of addresses that a cell may hold: stores of objects. A web page or `file://` is a mistake more often."""
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O"}
_WHOLE_NUMBER = re.compile(r"(?<![.\d])\d+")


def studies(
    root: str | Path,
    columns: Mapping[str, str] | None = None,
    images: str | Path | None = None,
    encoding: str | None = None,
    preset: str | Path | None = None,
    texts: bool = True,
) -> Iterator[Study]:
    """One study per uid, in the order in which they first occur, and those of a patient in order of `time`, in the
    places that they hold; where the table has no uids, one per row.

    The cells of `image`, or of `images`, or of `frontal` and `lateral`, are paths of image files: absolute, or
    relative to the folder of the table (or to `images`), or addresses in a store of objects (`STORES`). A path may
    lead anywhere with "..", as an absolute one may: the table is the user's own. "\\" in a relative path is read as
    "/". `image_files` says how a path is looked for that is not there as it is written. A cell may hold several paths,
    separated by ";" or "|" (or as a list), or the bytes of images; an empty one means that the study has no such view.
    Of `view` (`views`) every word that `view_of` knows is understood; the view of an image with another, or with none,
    is decided later.

    A table with a column `image` has a row per image: rows of one uid are one study. Their texts, patient and split
    must agree where they are not empty, their tags are put together, and an image that occurs twice counts once.
    Otherwise a row is a study, and a uid that occurs twice is an error, because nobody could say which of the two
    rows a split file or a score means. Tags are separated as paths are, put in lower case, and "normal" is no tag.
    A `report` is cut into its sections (`sections`), of which a column of their own wins.

    A row that cannot be used is a study with a `problem`: no uid (then it is called "line 17" or "row 17"), an
    address such as `file://` or `https://` in place of a path, text in place of a path, an image listed twice.

    Args:
        root: The table, or a folder with exactly one table in it.
        columns: Our name → the name of the column in the table, for those of `COLUMNS` that are called otherwise
            there, or a template of several ("{folder}/{name}.png"). The others are looked for under their own name,
            in any case of letters.
        images: The folder that relative paths start from.
        encoding: Of a text table that is neither UTF-8 nor marked as UTF-16, e.g. "cp1252".
        preset: Name of a shipped preset or path of a YAML file, which says what the columns are; `columns` wins.
        texts: Whether there must be a column of reports; for images alone there need not.

    Raises:
        FileNotFoundError: If the table or the folder `images` is missing.
        ValueError: If the table cannot be read (see `rows`), lacks a column, or gives a uid twice.
    """
    known = read_preset(preset)
    place = _locate(root, known)
    files = table_files(place)
    base = parent(files[0]) if images is None else as_place(images)
    if not is_folder(base):
        raise FileNotFoundError(f"{base}: no such folder of images")
    return of_table(read_table(place, encoding), base, columns, preset, texts)


def of_table(
    table: Table,
    base: Place,
    columns: Mapping[str, str] | None = None,
    preset: str | Path | None = None,
    texts: bool = True,
) -> Iterator[Study]:
    """`studies` of a table that is open already, with relative paths of images from the folder `base`."""
    return _Reader(table, read_preset(preset), base, columns or {}, preset is None, texts).studies()


def collection(root: str | Path | None = None, preset: str | Path | None = None) -> Collection:
    """What the preset knows of it; without one, nothing."""
    return read_preset(preset).collection


def tables(root: str | Path, preset: str | Path | None = None, **options: object) -> list[Place]:
    """The files `studies` reads, with the user's own preset."""
    known = read_preset(preset)
    own = [Path(preset)] if preset is not None and str(preset) not in names() else []
    return [*table_files(_locate(root, known)), *own]


def _locate(root: str | Path, preset: Preset) -> Place:
    place = as_place(root)
    if not is_url(place) and "*" not in str(place) and not Path(place).exists():
        raise FileNotFoundError(f"{place}: no such table or folder")
    return join(place, preset.tables) if preset.tables and is_folder(place) else place


@dataclass
class _Reader:
    """A table whose columns are known, and how its rows become studies."""

    table: Table
    preset: Preset
    base: Place
    given: Mapping[str, str]
    own_names: bool
    """Whether columns are also known by our own names."""
    texts: bool
    fields: dict[str, Field] = field(default_factory=dict)
    kind: str = ""
    unknown: Counter[str] = field(default_factory=Counter)
    """Words for a view that nobody knows → how often they occur."""
    uneven: int = 0
    """Rows with another number of words for views than of images."""

    def __post_init__(self) -> None:
        for name in self.given:
            if name not in COLUMNS:
                raise ValueError(f"columns: {name!r} is none of {', '.join(COLUMNS)}{did_you_mean(name, COLUMNS)}")
        for name in COLUMNS:
            ways = ways_of(name, name) if self.own_names else self.preset.columns.get(name, ())
            if name in self.given:
                ways = ways_of(self.given[name], f"columns, {name}")
            elif self.preset.own and self.texts:
                for way in ways:
                    bind(name, (way,), self.table, needed=True)
            needed = name in self.given or (name in NEEDED and not self.own_names)
            if ways and (bound := bind(name, ways, self.table, needed)):
                self.fields[name] = bound
        self.kind = self._kind()
        if self.texts and not {"impression", "findings", "report"} & set(self.fields):
            raise ValueError(self._lacks("impression", "findings"))
        for name in set(self.fields) & {name for kind in KINDS.values() for name in kind} - set(KINDS[self.kind]):
            del self.fields[name]
        self.files = ImageFiles(self.base)
        used = {column for known in self.fields.values() for column in known.columns}
        self.labels = [found for name in self.preset.labels if (found := self.table.column(name))]
        lacking = [name for name in self.preset.labels if not self.table.column(name)]
        if lacking and self.preset.own and self.texts:
            raise ValueError(f"{self.table.lacks(lacking[0])} (wanted as a label)")
        self.likely = [] if "patient" in self.fields else [n for n in self.table.columns if _may_name_patients(n)]
        self.likely = [name for name in self.likely if name not in used]

    def _kind(self) -> str:
        """One of `KINDS`: what is named by option wins, else what the table has."""
        for among in (self.given, self.fields):
            kinds = [kind for kind, names in KINDS.items() if any(name in among for name in names)]
            if len(kinds) > 1:
                both = " and ".join(repr(self.fields[next(n for n in KINDS[k] if n in among)].name) for k in kinds)
                hint = "is a row an image or a study? name the one that holds the images"
                raise ValueError(f"{self.table.path}: columns {both} are both there: {hint} (--columns image=…)")
            if kinds:
                return kinds[0]
        raise ValueError(self._lacks(*VIEWS) + ", or image=… where a row is an image")

    def _lacks(self, one: str, other: str) -> str:
        line = self.table.lacks(one).replace(f"column {one!r}", f"column {one!r} nor {other!r}", 1)
        return f"{line}; if it is called otherwise there, map it (--columns {one}=…)"

    def studies(self) -> Iterator[Study]:
        if "uid" not in self.fields:
            _warn(f"{self.table.path}: no column uid, so each row is a study of its own, called by its number")
        groups: dict[str, list[Row]] = {}
        rows, number = self._rows(), count(1)
        while rows:  # from the end, so that each row is in memory once
            row = rows.pop()
            uid = self._text(row, "uid") if "uid" in self.fields else f"row {next(number)}"
            before = groups.setdefault(uid or row.place, [])
            before.append(row)
            if self.kind != "image" and len(before) > 1:
                places = f"{before[0].place} and {row.place}"
                hint = "a row is a study: several images of one view go into one cell, separated by ; (or give each "
                hint += "a row, and map its column: --columns image=…)"
                raise ValueError(f"{self.table.path}: uid {uid!r} occurs twice ({places}); {hint}")
        for uid in self._in_order_of_time(groups):
            yield self._study(uid, groups.pop(uid))
        if self.unknown:
            words = "words for a view that are not known, of images whose view is decided"
            _warn(f"{self.table.path}: {words}: {few_words(self.unknown)}")
        if self.uneven:
            said = f"{self.uneven:,} rows have another number of views than of images; the views of these are decided"
            _warn(f"{self.table.path}: {said}")

    def _in_order_of_time(self, groups: Mapping[str, list[Row]]) -> list[str]:
        if not {"patient", "time"} <= set(self.fields):
            return list(groups)
        patients = {uid: "".join(self._said(rows, "patient")[:1]) for uid, rows in groups.items()}
        return in_order_of_time({uid: (patients[uid], self._time(rows)) for uid, rows in groups.items()})

    def _said(self, rows: Iterable[Row], name: str) -> list[str]:
        return [text for row in rows if (text := self._text(row, name))]

    def _time(self, rows: Iterable[Row]) -> str:
        return min(map(_sortable, self._said(rows, "time")), default="")

    def _rows(self) -> list[Row]:
        listed = [name for name in KINDS[self.kind] if name in self.fields]
        texts = [column for name, bound in self.fields.items() if name not in listed for column in bound.columns]
        texts += [c for n in listed if not self.fields[n].plain for c in self.fields[n].columns] + self.labels
        shown = [plain for name in listed if (plain := self.fields[name].plain) and plain not in texts]
        lists = [plain for name in ("view", "views") if name in self.fields and (plain := self.fields[name].plain)]
        try:
            rows = self.table.rows([*texts, *self.likely], (), shown, lists=lists)
        except ValueError:  # a column that nobody asks for may hold anything
            self.likely = []
            rows = self.table.rows(texts, (), shown, lists=lists)
        return rows[::-1]

    def _text(self, row: Row, name: str) -> str:
        text = self.fields[name].read(row) if name in self.fields else ""
        if text.lower() in self.preset.empty:
            return ""
        for mark in self.preset.placeholders if name == "report" or name in TEXTS else ():
            text = text.replace(mark, "XXXX")
        return text

    def _study(self, uid: str, rows: list[Row]) -> Study:
        said = dict.fromkeys(AGREED, "")
        problem = "" if "uid" not in self.fields or self._text(rows[0], "uid") else "no uid"
        for name in filter(self.fields.__contains__, AGREED):
            texts = {text: row.place for row in reversed(rows) if (text := self._text(row, name))}
            said[name] = next(reversed(texts), "")  # of the first row that has any
            if len(texts) > 1 and name not in ("age", "sex"):
                places = " and ".join(list(texts.values())[-2:][::-1])
                problem = problem or f"its rows contradict each other in {self.fields[name].name!r} ({places})"
        tags, uncertain = self._labels(rows)
        images, fault = self._images(rows)
        problem = problem or fault
        likely = tuple((name, rows[0][name]) for name in self.likely if rows[0][name])
        if problem:
            return Study(uid=uid, problem=problem, likely_patient=likely)
        cut = sections(said["report"]) if said["report"] else {}
        return Study(
            uid=uid,
            images=images,
            **{name: said[name] or cut.get(name, "") for name in TEXTS},
            tags=tags,
            uncertain=tuple(tag for tag in uncertain if tag not in tags),
            age=years_of(said["age"]),
            sex=_SEXES.get(said["sex"].lower(), ""),
            time=self._time(rows),
            patient=said["patient"] or None,
            likely_patient=likely,
            split=self.preset.splits.get(said["split"].lower(), said["split"]) or None,
        )

    def _labels(self, rows: Iterable[Row]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        said = (self._said(rows, name) for name in ("tags", "uncertain"))
        tags, uncertain = ([tag for text in texts for tag in split_cell(text)] for texts in said)
        if self.labels:
            positive, unclear = labels_of(self.table.path, rows, self.labels, self.preset.empty)
            if positive != UNLABELLED or not (tags or uncertain):
                tags += positive
            uncertain += unclear
        return plain_tags(tags), plain_tags(uncertain)

    def _images(self, rows: Iterable[Row]) -> tuple[tuple[Radiograph, ...], str]:
        """The images of a study, or why they cannot be told."""
        made: dict[object, Radiograph] = {}
        for row in rows:
            for name, where, cell, word in self._listed(row):
                image, fault = self._radiograph(cell, word, where)
                key = image.source if isinstance(image.source, Embedded) else os.path.normpath(str(image.source))
                before = made.get(key)
                if before is None or (self.kind == "image" and before.view is None):
                    made[key] = image
                elif self.kind != "image" or image.view not in (None, before.view):
                    fault = fault or "an image is listed twice" + (", as two views" if self.kind == "image" else "")
                if fault:
                    return (), fault if fault.startswith("an image") else f"{name}: {fault}"
        return tuple(made.values()), ""

    def _listed(self, row: Row) -> Iterator[tuple[str, str, ImageCell, ViewWord]]:
        """Our column, place, image and view of each image that a row lists."""
        projection = view_of(self._text(row, "projection"))
        for name in KINDS[self.kind]:
            if name not in self.fields:
                continue
            bound = self.fields[name]
            shown = row.images.get(bound.plain or "")
            cells = [*map(ImageCell, split_cell(bound.read(row)))] if shown is None else shown
            words = [ViewWord(name)] * len(cells) if name in VIEWS else self._words(row, len(cells))
            for at, (cell, word) in enumerate(zip(cells, words, strict=True), start=1):
                if word.view is None:
                    word = projection
                elif word.view == "frontal" and not word.projection:
                    word = ViewWord("frontal", projection.projection)
                yield name, f"{name} of {row.place}" + (f" ({at})" if len(cells) > 1 else ""), cell, word

    def _words(self, row: Row, number: int) -> list[ViewWord]:
        """What the row says of the views of its images; nothing where it has a word for some of them only."""
        said = self._text(row, "view" if self.kind == "image" else "views")
        words = split_cell(said, gaps=True) if number > 1 or said[:1] == "[" else [said]
        if self.kind == "image" and len(words) == 1:
            words *= number
        if len(words) != number:
            self.uneven += bool(said and number)
            return [ViewWord(None)] * number
        return [self._word(word) for word in words]

    def _word(self, said: str) -> ViewWord:
        ours = self.preset.views.get(said.lower(), said)
        word = ViewWord("neither") if ours == "neither" else view_of(ours)
        if said and word.view is None and ours == said:
            self.unknown[said] += 1
        return word

    def _radiograph(self, cell: ImageCell, word: ViewWord, where: str) -> tuple[Radiograph, str]:
        """The image that a cell holds or names, and what is wrong with it."""
        name = re.split(r"[/\\]", cell.path)[-1]
        if cell.embedded:
            return Radiograph(cell.embedded, word.view, name or where, word.projection), ""
        if fault := _fault(cell.path):
            return Radiograph(cell.path, word.view, name), fault
        if is_url(cell.path):
            return Radiograph(cell.path, word.view, name, word.projection), ""
        listed = cell.path if cell.path.startswith("/") else cell.path.replace("\\", "/")
        found, fault = self.files.find(listed)
        if found is not None:
            return Radiograph(found, word.view, name, word.projection), ""
        if not fault and " " in listed and not IMAGE_SUFFIXES.search(listed):  # it stays unsaid, as in `_fault`
            fault = "no such image file; is it the text of another column?"
        base = self.base if is_url(self.base) else Path(self.base).resolve()
        folder = str(base).rstrip("/").rpartition("/")[2] or str(base)
        searched = f"{folder} (--images names another folder)"
        return Radiograph(join(self.base, listed), word.view, name, word.projection, searched), fault


@functools.cache
def _warn(line: str) -> None:
    """Once, although a table is read several times."""
    log.warning(line)


def _may_name_patients(column: str) -> bool:
    return bool(_PATIENT_COLUMN.fullmatch(re.sub(r"[^a-z]", "", column.lower())))


def _fault(part: str) -> str:
    """Why a part of a cell is no path; what it says stays unsaid, because it may be text of a report."""
    if (address := _ADDRESS.match(part)) and address[1].lower() not in STORES:
        return "an address (https://, file://) where a path is expected"
    names = re.split(r"[/\\]", part)
    if len(os.fsencode(part)) > MAX_PATH or any(len(os.fsencode(name)) > MAX_NAME for name in names):
        return "too long for a path; is it the text of another column?"
    return "a folder where a file is expected" if not names[-1] or names[-1] in (".", "..") else ""


def _sortable(text: str) -> str:
    """A time that can be compared as text: its whole numbers have as many digits."""
    return _WHOLE_NUMBER.sub(lambda match: match[0].zfill(14), text)
