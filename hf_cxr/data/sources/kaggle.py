"""The Kaggle form of the Indiana collection (raddar/chest-xrays-indiana-university): two CSVs and a folder of PNG.

Only the tables are read here; images are opened by whoever asks for them. CC BY-NC-ND 4.0.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from hf_cxr.data.archives import image_key
from hf_cxr.data.collection import INDIANA, Collection
from hf_cxr.data.sources.rows import Row, read_rows, split_cell
from hf_cxr.data.study import Radiograph, Study, plain_tags
from hf_cxr.inference.views import VIEWS

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
IMAGE_FOLDERS = ("images/images_normalized", "images", "images_normalized", ".")


def studies(root: str | Path, demand_images: bool = True) -> Iterator[Study]:
    """One study per row of `indiana_reports.csv`, in its order, with every image `indiana_projections.csv` lists.

    A study's images come in the order of their file names, each with the view the table gives it. A file is looked
    for under its listed name, then under one that differs in case, suffix or the prefix "CXR" alone
    (`1000_IM-0003-1001.png` for `1000_IM-0003-1001.dcm.png`). A file that is not on disk stays listed, with the path
    it would have in the first usual place: dropping it would claim that the image was never taken.

    After the reports comes one study for each uid that has images and no report, with that as its `problem`. A report
    without a uid is a study called "line 17" with a `problem`.

    Args:
        root: Folder with the two CSVs and the images (in `images/images_normalized`, `images`, `images_normalized`
            or beside the CSVs).
        demand_images: Whether at least one listed image must be on disk; without it the tables alone do.

    Raises:
        FileNotFoundError: If `root` or a CSV is missing, or, where images are demanded, not one is on disk.
        ValueError: If a CSV cannot be read (see `rows`) or lacks a column, lists a uid or an image of a uid twice, or
            lists an image without a uid, a plain file name, or one of the `VIEWS`.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    reports_path, projections_path = tables(root)
    for path in (reports_path, projections_path):
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file (the Kaggle form has {REPORTS} and {PROJECTIONS})")
    reports = read_rows(reports_path, ("uid", "Problems", "indication", "findings", "impression"), ("comparison",))
    listed = _listed(projections_path, read_rows(projections_path, ("uid", "filename", "projection"), ()))
    images = _images(root, listed)
    listed_files = (str(image.source) for found in images.values() for image in found)
    if demand_images and not any(map(os.path.isfile, listed_files)):  # `Path.is_file` raises on too long a name
        places = ", ".join(str(root / folder) for folder in IMAGE_FOLDERS)
        raise FileNotFoundError(f"none of the images {PROJECTIONS} lists is in {places}")

    seen: dict[str, str] = {}
    for row in reports:
        uid = row["uid"] or row.place
        if (before := seen.setdefault(uid, row.place)) != row.place:
            raise ValueError(f"{reports_path}: uid {uid!r} occurs twice ({before} and {row.place})")
        yield Study(
            uid=uid,
            images=images.get(row["uid"], ()),
            impression=row["impression"],
            findings=row["findings"],
            indication=row["indication"],
            comparison=row["comparison"],
            tags=plain_tags(split_cell(row["Problems"])),
            patient=uid,  # the collection has one study of each
            problem="" if row["uid"] else f"no uid in {REPORTS}",
        )
    for uid, found in images.items():
        if uid not in seen:
            yield Study(uid=uid, images=found, problem=f"no report in {REPORTS}")


def collection() -> Collection:
    """The Indiana collection."""
    return INDIANA


def tables(root: str | Path, **options: object) -> list[Path]:
    """The files `studies` reads."""
    return [Path(root, REPORTS), Path(root, PROJECTIONS)]


def _listed(path: Path, rows: list[Row]) -> dict[str, dict[str, str]]:
    """uid → file name → view, as the table lists them."""
    listed: dict[str, dict[str, str]] = {}
    places: dict[tuple[str, str], str] = {}
    for row in rows:
        uid, name, view = row["uid"], row["filename"], row["projection"].lower()
        if not uid:
            raise ValueError(f"{path}, {row.place}: an image without a uid")
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise ValueError(f"{path}, {row.place}: filename is not a plain file name (uid {uid!r})")
        if view not in VIEWS:
            raise ValueError(f"{path}, {row.place}: projection is neither Frontal nor Lateral (uid {uid!r})")
        if (before := places.setdefault((uid, name), row.place)) != row.place:
            raise ValueError(f"{path}: image {name!r} of uid {uid!r} occurs twice ({before} and {row.place})")
        listed.setdefault(uid, {})[name] = view
    return listed


def _images(root: Path, listed: dict[str, dict[str, str]]) -> dict[str, tuple[Radiograph, ...]]:
    """uid → its images, in the order of file names."""
    by_name: dict[str, Path] = {}
    by_key: dict[str, Path] = {}
    for folder in IMAGE_FOLDERS:
        if (root / folder).is_dir():
            with os.scandir(root / folder) as entries:
                files = sorted(entry.name for entry in entries if entry.is_file())
            for name in files:
                by_name.setdefault(name, root / folder / name)
                by_key.setdefault(_key(name), root / folder / name)
    # Two listed files that differ in their suffix alone must not both turn into the one of them that is on disk.
    keys = Counter(map(_key, {name for names in listed.values() for name in names}))

    def find(name: str) -> Path:
        similar = by_key.get(_key(name)) if keys[_key(name)] == 1 else None
        return by_name.get(name) or similar or root / IMAGE_FOLDERS[0] / name

    return {
        uid: tuple(Radiograph(find(name), view, name) for name, view in sorted(names.items()))
        for uid, names in listed.items()
    }


def _key(name: str) -> str:
    return image_key(name).lower()
