"""The annotations of R2Gen, of the Indiana collection (`iu_xray.zip`) and of MIMIC-CXR: `annotation.json`, `images/`.

Their reports are findings, not impressions, and they publish their own splits. Only the annotation is read here;
images are opened by whoever asks for them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from hf_cxr.data import archives, storage
from hf_cxr.data.collection import INDIANA, MIMIC, Collection
from hf_cxr.data.sources.rows import only_file, text_fault
from hf_cxr.data.sources.text_tables import decode, parse_json, read_bytes
from hf_cxr.data.storage import Place
from hf_cxr.data.study import Archived, Radiograph, Study

ANNOTATION, IMAGES, INNER = "annotation.json", "images", ("iu_xray", "mimic_cxr")
SPLITS = {"train": "train", "val": "validation", "test": "test"}
"""The lists of `annotation.json` → the names of our splits."""

_PATIENT = re.compile(r"(?i:CXR)(\d+)_")
_STUDY, _SUBJECT = "study_id", "subject_id"
"""What a record of the MIMIC annotation has, and none of the Indiana one."""

Records = list[tuple[str, Any]]
"""The records of one study, each with the list that it is in."""


def studies(root: str | Path, images: Place | None = None) -> Iterator[Study]:
    """The studies of `annotation.json`, in the order of its lists, with their split.

    The report is the `findings`; the images come in the order of `image_path`, with no view: the form does not say
    which is frontal. Images that the annotation does not list (the published zip holds 181) belong to no record.

    - **Indiana**: a record is a study, with two images in the published file. "CXR2384_IM-0942" is a study of the
      patient "2384".
    - **MIMIC-CXR**: a record is an image, and those with one `study_id` are a study, called "s50414267" as by the
      source `mimic`, of the patient `subject_id`.

    A study whose records cannot be used, or say different things (two reports, two patients, two splits), has a
    `problem`. A record without an id is a study called "train record 17".

    Args:
        root: The extracted folder (or the one around `iu_xray/` or `mimic_cxr/`), the archive, or a folder with one
            archive in it. Images in the archive are found by their whole path, because Indiana's are all called
            `0.png` or `1.png`.
        images: The folder that `image_path` is relative to, if it is not `images` beside the annotation: that with
            `p10/p10000032/…` of MIMIC-CXR-JPG.

    Raises:
        FileNotFoundError: If there is no annotation in any of these places.
        ValueError: If the annotation is malformed, is neither of the two, names another split, or gives an id of
            Indiana twice; if an archive is damaged or unsafe, or a folder holds several archives.
    """
    where, text, image = _open(Path(root), None if images is None else storage.as_place(images))
    annotation = parse_json(text, where)
    if not isinstance(annotation, dict) or not annotation:
        raise ValueError(f"{where}: not an object with the lists {', '.join(SPLITS)}")
    for name, records in annotation.items():
        if name not in SPLITS:
            raise ValueError(f"{where}: unknown split {name[:40]!r}; R2Gen has {', '.join(SPLITS)}")
        if not isinstance(records, list):
            raise ValueError(f"{where}: {name} is not a list of records")

    key = _STUDY if _is_mimic(text) else "id"
    grouped: dict[str, Records] = {}
    places: dict[str, str] = {}
    for name, records in annotation.items():
        for number, record in enumerate(records, start=1):
            place = f"{name} record {number}"
            uid = _identifier(record, key) or place
            if (before := places.setdefault(uid, place)) != place and key == "id":
                raise ValueError(f"{where}: id {uid!r} occurs twice ({before} and {place})")
            grouped.setdefault(uid, []).append((name, record))
    if key == "id" and grouped and not any(map(_PATIENT.match, grouped)):
        raise ValueError(
            f"{where}: neither R2Gen's annotation of the Indiana collection (no id such as CXR2384_IM-0942) nor of "
            f"MIMIC-CXR (no {_STUDY})"
        )
    for uid, found in grouped.items():
        yield _study(uid, found, key, image)


def collection(root: str | Path) -> Collection:
    """The collection that the annotation is of, in the part that R2Gen chose."""
    _, text, _ = _open(Path(root))
    base = MIMIC if _is_mimic(text) else INDIANA
    chosen = "the images" if base is MIMIC else "the two images"
    return replace(
        base, limits=f"{base.limits}\n- Only the findings, and {chosen} that R2Gen chose, in no stated order."
    )


def tables(root: str | Path, **options: object) -> list[Path]:
    """The file `studies` reads: the annotation, or the archive that holds it."""
    return [_locate(Path(root))]


def _is_mimic(text: str) -> bool:
    return f'"{_STUDY}"' in text  # a quote within a report is written \"


def _identifier(record: Any, key: str) -> str:
    """An id as text, a number too; "" where there is none."""
    said = record.get(key) if isinstance(record, dict) else None
    if isinstance(said, float) and said.is_integer():
        said = str(int(said))
    found = said.strip() if isinstance(said, str) and not text_fault(said) else ""
    return f"s{found.removeprefix('s')}" if found and key == _STUDY else found


def _study(uid: str, records: Records, key: str, image: Callable[[str], Place | Archived]) -> Study:
    problem = next(filter(None, (_problem(record, split, key) for split, record in records)), "")
    if problem:
        return Study(uid=uid, problem=problem)
    paths = [path for _, record in records for path in record["image_path"]]
    reports = {" ".join(record["report"].split()): record["report"].strip() for _, record in records}
    indiana = _PATIENT.match(uid)
    patients = {_identifier(record, _SUBJECT) for _, record in records} if key == _STUDY else {indiana and indiana[1]}
    splits = {split for split, _ in records}
    if len(set(paths)) < len(paths):
        problem = "image_path lists an image twice"
    for what, said in (("reports", reports), ("patients (subject_id)", patients), ("splits", splits)):
        if len(said) > 1:
            problem = f"its records have {len(said)} different {what}"
    if problem:
        return Study(uid=uid, problem=problem)
    return Study(
        uid=uid,
        images=tuple(Radiograph(image(path), None, path) for path in paths),
        findings=next(iter(reports.values())),
        patient=patients.pop(),
        split=SPLITS[splits.pop()],
    )


def _problem(record: Any, split: str, key: str) -> str:
    """Why a record cannot be used; "" if it can."""
    if not isinstance(record, dict):
        return "not an object with id, report and image_path"
    for name in (key, _SUBJECT) if key == _STUDY else (key,):
        if not _identifier(record, name):
            return f"no {name}"
    report, paths = record.get("report"), record.get("image_path")
    if not isinstance(report, str):
        return "no report text"
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        return "image_path is not a list of paths"
    if not all(_is_inside(path) for path in paths):
        return "image_path leads out of the images folder"
    if fault := text_fault("".join((report, *paths))):
        return f"report or image_path holds {fault}"
    return "" if record.get("split", split) == split else f"listed under {split}, but its own split says otherwise"


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
    for place in (root / folder / ANNOTATION for folder in ("", *INNER)):
        if place.is_file():
            return place
    return only_file(root, "archives", archives.SUFFIXES, f"neither {ANNOTATION} nor an archive with it")


def _open(root: Path, images: Place | None = None) -> tuple[str, str, Callable[[str], Place | Archived]]:
    """What to call the annotation in messages, its text, and where a listed image is."""
    source = _locate(root)
    if images is not None and not storage.is_folder(images):
        raise FileNotFoundError(f"{images}: no such folder of images (--images)")
    if source.name == ANNOTATION:
        where, content = str(source), read_bytes(source)
        return where, decode(content, where), partial(storage.join, images or source.parent / IMAGES)
    found = list(archives.members(source, lambda name: PurePosixPath(name).name == ANNOTATION))
    if len(found) != 1:
        error, number = (ValueError, "more than one") if found else (FileNotFoundError, "no")
        raise error(f"{source}: {number} {ANNOTATION} in the archive")
    member, content = found[0]
    inside = PurePosixPath(member).parent / IMAGES
    where = f"{source}, {member}"
    packed = partial(storage.join, images) if images else lambda path: Archived(source, str(inside / path))
    return where, decode(content, where), packed
