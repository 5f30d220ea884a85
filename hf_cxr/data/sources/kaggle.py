"""The Kaggle form of the Indiana collection (raddar/chest-xrays-indiana-university): two CSVs and a folder of PNG, as
they are or in the zip that Kaggle gives.

Only the tables are read here; images are opened by whoever asks for them. CC BY-NC-ND 4.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from hf_cxr.data import archives, storage
from hf_cxr.data.archives import image_key
from hf_cxr.data.collection import INDIANA, Collection
from hf_cxr.data.sources.rows import Row, only_file, read_rows, split_cell
from hf_cxr.data.storage import Place
from hf_cxr.data.study import Archived, Radiograph, Study, plain_tags
from hf_cxr.inference.views import VIEWS

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
IMAGE_FOLDERS = ("images/images_normalized", "images", "images_normalized", "")


def studies(root: Place, demand_images: bool = True) -> Iterator[Study]:
    """One study per row of `indiana_reports.csv`, in its order, with every image `indiana_projections.csv` lists.

    A study's images come in the order of their file names, each with the view the table gives it. A file is looked
    for under its listed name, then under one that differs in case, suffix or the prefix "CXR" alone
    (`1000_IM-0003-1001.png` for `1000_IM-0003-1001.dcm.png`). A file that is not there stays listed, with the path
    it would have in the first usual place: dropping it would claim that the image was never taken.

    After the reports comes one study for each uid that has images and no report, with that as its `problem`. A report
    without a uid is a study called "line 17" with a `problem`.

    Args:
        root: Folder with the two CSVs and the images (in `images/images_normalized`, `images`, `images_normalized`
            or beside the CSVs), the zip of one, or a folder with that zip.
        demand_images: Whether at least one listed image must be there; without it the tables alone do.

    Raises:
        FileNotFoundError: If `root` or a CSV is missing, or, where images are demanded, not one is there.
        ValueError: If a CSV cannot be read (see `rows`) or lacks a column, lists a uid or an image of a uid twice, or
            lists an image without a uid, a plain file name, or one of the `VIEWS`; if the zip is damaged or unsafe.
    """
    reports_path, projections_path = tables(root)
    for path in (reports_path, projections_path):
        if not storage.is_file(path):
            raise FileNotFoundError(f"{path}: no such file (the Kaggle form has {REPORTS} and {PROJECTIONS})")
    reports = read_rows(reports_path, ("uid", "Problems", "indication", "findings", "impression"), ("comparison",))
    listed = _listed(projections_path, read_rows(projections_path, ("uid", "filename", "projection"), ()))
    places = [storage.join(storage.parent(reports_path), folder) for folder in IMAGE_FOLDERS]
    found = _found(places, {name for names in listed.values() for name in names})
    if demand_images and not found:
        raise FileNotFoundError(f"none of the images {PROJECTIONS} lists is in {', '.join(map(str, places))}")
    images = {
        uid: tuple(
            Radiograph(_source(found.get(name) or storage.join(places[0], name)), view, name)
            for name, view in sorted(names.items())
        )
        for uid, names in listed.items()
    }

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
    for uid, unreported in images.items():
        if uid not in seen:
            yield Study(uid=uid, images=unreported, problem=f"no report in {REPORTS}")


def collection() -> Collection:
    """The Indiana collection."""
    return INDIANA


def tables(root: Place, **options: object) -> list[Place]:
    """The files `studies` reads, perhaps in a zip."""
    folder = _folder(storage.as_place(root))
    return [storage.join(folder, name) for name in (REPORTS, PROJECTIONS)]


def _folder(root: Place) -> Place:
    """Where the CSVs are, perhaps in a zip."""
    if storage.is_folder(root):
        if storage.is_url(root) or any((Path(root) / name).exists() for name in (REPORTS, PROJECTIONS)):
            return root
        root = only_file(Path(root), "archives", (".zip",), f"neither {REPORTS} nor a zip with it")
    elif not storage.is_file(root):
        raise FileNotFoundError(f"{root}: no such folder or zip")
    root = Path(root)
    if root.suffix.lower() != ".zip":
        raise ValueError(f"{root}: neither a folder with {REPORTS} nor the zip that Kaggle gives")
    inside = [PurePosixPath(name).parent for name in archives.names(root) if PurePosixPath(name).name == REPORTS]
    if len(inside) != 1:
        error, number = (ValueError, "more than one") if inside else (FileNotFoundError, "no")
        raise error(f"{root}: {number} {REPORTS} in the zip")
    return root / inside[0]


def _listed(path: Place, rows: list[Row]) -> dict[str, dict[str, str]]:
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


def _found(places: Sequence[Place], listed: set[str]) -> dict[str, Place]:
    """Listed name → file, of those that are there."""
    by_name: dict[str, Place] = {}
    by_key: dict[str, Place] = {}
    for place in places:
        for name in storage.names(place):
            by_name.setdefault(name, storage.join(place, name))
            by_key.setdefault(_key(name), storage.join(place, name))
    # Two listed files that differ in their suffix alone must not both turn into the one of them that is there.
    keys = Counter(map(_key, listed))
    similar = {name: by_key[_key(name)] for name in listed if keys[_key(name)] == 1 and _key(name) in by_key}
    return similar | {name: by_name[name] for name in listed if name in by_name}


def _source(place: Place) -> Place | Archived:
    inside = storage.in_zip(place)
    return Archived(*inside) if inside else place


def _key(name: str) -> str:
    return image_key(name).lower()
