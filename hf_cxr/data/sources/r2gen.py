"""The R2Gen form of the Indiana collection (`iu_xray.zip`): `annotation.json` and `images/<id>/0.png`, `1.png`.

Its reports are findings, not impressions (`--section findings`), and it publishes its own splits. Only the annotation
is read here; images are opened by whoever asks for them. CC BY-NC-ND 4.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from hf_cxr.data import archives
from hf_cxr.data.collection import INDIANA, Collection
from hf_cxr.data.sources.rows import only_file, text_fault
from hf_cxr.data.sources.text_tables import decode, parse_json, read_bytes
from hf_cxr.data.study import Archived, Radiograph, Study

ANNOTATION, IMAGES, INNER = "annotation.json", "images", "iu_xray"
SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""The lists of `annotation.json` → the names of our splits."""

_PATIENT = re.compile(r"(?i:CXR)(\d+)_")


def studies(root: str | Path) -> Iterator[Study]:
    """One study per record of `annotation.json`, in the order of its lists, with their split.

    The report is the `findings`; the images come in the order of `image_path`, however many there are (the published
    file lists two everywhere), with no view: the form does not say which is frontal. "CXR2384_IM-0942" is a study of
    the patient "2384". A record that cannot be used is a study with a `problem`, called "train record 17" if it has
    no id. Images that the annotation does not list (the published zip holds 181) belong to no record.

    Args:
        root: The extracted folder (or the one around `iu_xray/`), the archive, or a folder with one archive in it.
            Images in the archive are found by their whole path, because all are called `0.png` or `1.png`.

    Raises:
        FileNotFoundError: If there is no annotation in any of these places.
        ValueError: If the annotation is malformed, names another split, or gives an id twice; if an archive is
            damaged or unsafe, or a folder holds several archives.
    """
    where, content, image = _open(Path(root))
    annotation = parse_json(decode(content, where), where)
    if not isinstance(annotation, dict) or not annotation:
        raise ValueError(f"{where}: not an object with the lists {', '.join(SPLITS)}")
    for name, records in annotation.items():
        if name not in SPLITS:
            raise ValueError(f"{where}: unknown split {name[:40]!r}; R2Gen has {', '.join(SPLITS)}")
        if not isinstance(records, list):
            raise ValueError(f"{where}: {name} is not a list of records")

    seen: dict[str, str] = {}
    for name, records in annotation.items():
        for number, record in enumerate(records, start=1):
            place = f"{name} record {number}"
            study = _study(record, name, place, image)
            if (before := seen.setdefault(study.uid, place)) != place:
                raise ValueError(f"{where}: id {study.uid!r} occurs twice ({before} and {place})")
            yield study


def collection(root: str | Path) -> Collection:
    """The Indiana collection, in the part that R2Gen chose."""
    limits = "\n- Only the findings section, and the two images that R2Gen chose, in no stated order."
    return replace(INDIANA, limits=INDIANA.limits + limits)


def tables(root: str | Path, **options: object) -> list[Path]:
    """The file `studies` reads: the annotation, or the archive that holds it."""
    return [_locate(Path(root))]


def _study(record: Any, split: str, place: str, image: Callable[[str], Any]) -> Study:
    if not isinstance(record, dict):
        return Study(uid=place, problem="not an object with id, report and image_path")
    uid, report, paths = (record.get(key) for key in ("id", "report", "image_path"))
    if not isinstance(uid, str) or not uid.strip() or text_fault(uid):
        return Study(uid=place, problem="no id")
    uid = uid.strip()
    if not isinstance(report, str):
        return Study(uid=uid, problem="no report text")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return Study(uid=uid, problem="image_path is not a list of paths")
    if not all(_is_inside(path) for path in paths):
        return Study(uid=uid, problem="image_path leads out of the images folder")
    if fault := text_fault("".join((report, *paths))):
        return Study(uid=uid, problem=f"report or image_path holds {fault}")
    if len(set(paths)) < len(paths):
        return Study(uid=uid, problem="image_path lists an image twice")
    if record.get("split", split) != split:
        return Study(uid=uid, problem=f"listed under {split}, but its own split says otherwise")
    patient = _PATIENT.match(uid)
    return Study(
        uid=uid,
        images=tuple(Radiograph(image(path), None, path) for path in paths),
        findings=report.strip(),
        patient=patient[1] if patient else None,
        split=SPLITS[split],
    )


def _is_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not (path.startswith("/") or ".." in parts or "\\" in path or ":" in path)


def _locate(root: Path) -> Path:
    """The annotation on disk, or the archive that should hold it."""
    if not root.exists():
        raise FileNotFoundError(f"{root}: no such file or folder")
    if root.is_file():
        if not archives.is_archive(root) and root.name != ANNOTATION:
            raise ValueError(f"{root}: neither an archive nor {ANNOTATION}")
        return root
    for place in (root / ANNOTATION, root / INNER / ANNOTATION):
        if place.is_file():
            return place
    return only_file(root, "archives", archives.SUFFIXES, f"neither {ANNOTATION} nor an archive with it")


def _open(root: Path) -> tuple[str, bytes, Callable[[str], Path | Archived]]:
    """What to call the annotation in messages, its content, and where a listed image is."""
    source = _locate(root)
    if source.name == ANNOTATION:
        folder = source.parent / IMAGES
        return str(source), read_bytes(source), folder.joinpath
    found = list(archives.members(source, lambda name: PurePosixPath(name).name == ANNOTATION))
    if len(found) != 1:
        error, number = (ValueError, "more than one") if found else (FileNotFoundError, "no")
        raise error(f"{source}: {number} {ANNOTATION} in the archive")
    member, content = found[0]
    inside = PurePosixPath(member).parent / IMAGES
    return f"{source}, {member}", content, lambda path: Archived(source, str(inside / path))
