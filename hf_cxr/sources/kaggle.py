"""The Kaggle form of the Indiana collection (raddar/chest-xrays-indiana-university): two CSVs and a folder of PNG.

Only the tables are read here; pictures are opened by whoever asks for them. CC BY-NC-ND 4.0.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path

from hf_cxr.reports import Study

REPORTS, PROJECTIONS = "indiana_reports.csv", "indiana_projections.csv"
IMAGE_FOLDERS = ("images/images_normalized", "images", "images_normalized", ".")


def studies(root: str | Path) -> Iterator[Study]:
    """One study per row of `indiana_reports.csv`, in its order, with or without an impression or an image.

    A view is the first file, in sorted order of names, that `indiana_projections.csv` lists for it and that is on
    disk. If none of a view's files is on disk, its first listed path stays, so that whoever reads it sees that the
    picture is missing: dropping it would claim that the study never had that view.

    Args:
        root: Folder with the two CSVs and the images (in `images/images_normalized`, `images`, `images_normalized`
            or beside the CSVs).

    Raises:
        FileNotFoundError: If `root` or a CSV is missing, or not one listed image is on disk.
        ValueError: If a CSV lacks a column, lists a uid twice, or is not UTF-8.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    reports = _rows(root / REPORTS, ("uid", "Problems", "indication", "findings", "impression"))
    projections = _rows(root / PROJECTIONS, ("uid", "filename", "projection"))

    on_disk: dict[str, Path] = {}
    for folder in reversed(IMAGE_FOLDERS):
        if (root / folder).is_dir():
            on_disk.update((path.name, path) for path in (root / folder).iterdir())
    listed: dict[tuple[str, str], list[str]] = {}
    for row in projections:
        listed.setdefault((row["uid"], row["projection"].lower()), []).append(row["filename"])
    if not any(name in on_disk for names in listed.values() for name in names):
        places = ", ".join(str(root / folder) for folder in IMAGE_FOLDERS)
        raise FileNotFoundError(f"none of the images {PROJECTIONS} lists is in {places}")

    def view(uid: str, projection: str) -> Path | None:
        names = sorted(listed.get((uid, projection), ()))
        found = next((on_disk[name] for name in names if name in on_disk), None)
        return found or (root / IMAGE_FOLDERS[0] / names[0] if names else None)

    seen: set[str] = set()
    for row in reports:
        uid = row["uid"]
        if uid in seen:
            raise ValueError(f"{root / REPORTS}: uid {uid!r} occurs twice")
        seen.add(uid)
        yield Study(
            uid=uid,
            frontal=view(uid, "frontal"),
            lateral=view(uid, "lateral"),
            impression=row["impression"],
            findings=row["findings"],
            indication=row["indication"],
            tags=_tags(row["Problems"]),
        )


def _rows(path: Path, columns: tuple[str, ...]) -> list[Mapping[str, str]]:
    """The named columns of a CSV, as stripped text. Reads with or without a byte-order mark, any line ending."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [name for name in columns if name not in (reader.fieldnames or ())]
            if missing:
                raise ValueError(f"{path}: no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ())}")
            return [{name: (row[name] or "").strip() for name in columns} for row in reader]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file (the Kaggle form has {REPORTS} and {PROJECTIONS})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start})") from None
    except csv.Error as error:
        raise ValueError(f"{path}: {error}") from None


def _tags(problems: str) -> tuple[str, ...]:
    """ "Cardiomegaly;Pulmonary Artery" → ("cardiomegaly", "pulmonary artery"); "normal" is the absence of tags."""
    tags = (part.strip().lower() for part in problems.split(";"))
    return tuple(dict.fromkeys(tag for tag in tags if tag and tag != "normal"))
