"""MIMIC-CXR and MIMIC-CXR-JPG as PhysioNet publishes them: a tree of images, the reports, and tables of all images.

Tables and reports are read here, and the tree of images is listed once; no image is opened. Credentialed access only.
"""

from __future__ import annotations

import glob
import logging
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from hf_cxr.data import archives, storage
from hf_cxr.data.collection import MIMIC, Collection
from hf_cxr.data.sources.preset import UNLABELLED, labels_of
from hf_cxr.data.sources.rows import Row, kind_of_name, read_table, text_fault
from hf_cxr.data.sources.sections import sections
from hf_cxr.data.storage import Place
from hf_cxr.data.study import TEXTS, Radiograph, Study, few_words
from hf_cxr.data.view_labels import ViewWord, view_of

log = logging.getLogger(__name__)

REPORTS = "mimic-cxr-reports.zip"
NO_REPORT = "no report"
SUFFIXES = (".jpg", ".jpeg", ".png", ".dcm")
"""Of images; of two files of one image the kind named first is taken."""
LABELS = (
    *(
        "Atelectasis",
        "Cardiomegaly",
        "Consolidation",
        "Edema",
        "Enlarged Cardiomediastinum",
        "Fracture",
        "Lung Lesion",
    ),
    *(
        "Lung Opacity",
        "No Finding",
        "Pleural Effusion",
        "Pleural Other",
        "Pneumonia",
        "Pneumothorax",
        "Support Devices",
    ),
)
"""Columns of the tables of labels, as the labelers CheXpert, NegBio and CheXbert name them: 1 is positive, -1
uncertain, 0 negative, and an empty cell not mentioned."""

_IDS = ("subject_id", "study_id", "dicom_id")
_FOLDERS = re.compile(r"(?:^|/)p(\d+)/s(\d+)/[^/]+$")
_REPORT = re.compile(r"(?:^|/)(?:p(\d+)/)?s(\d+)\.txt$")

Report = tuple[str, str | None, dict[str, str], str]
"""Study, patient where its path says so, sections, and why it cannot be used."""


@dataclass
class _Record:
    """What is known of a study, as it is gathered."""

    patient: str | None = None
    time: str = ""
    images: list[Radiograph] = field(default_factory=list)
    on_disk: bool = False
    texts: dict[str, str] = field(default_factory=dict)
    problem: str = NO_REPORT


def studies(images: Place, reports: Place, root: Place | None = None, labels: Place | None = None) -> Iterator[Study]:
    """One study for each that the metadata, the reports or the tree of images know, called "s50414267" as there; by
    patient, then in order of time.

    `mimic-cxr-*-metadata`, `-split` and `-chexpert` (or `-negbio`), each `.csv` or `.csv.gz`, are read where they are
    found. Views come from `ViewPosition`, the order in time from `StudyDate` and `StudyTime`; without the metadata
    neither is known, and what is on disk is taken for the collection. A study of the metadata without any image on
    disk (a subset was downloaded) has a `problem`.

    Args:
        images: The folder with `files/p10/p10000032/s50414267/*.jpg`, or any folder below or around it; or that of
            the DICOM files. Where the metadata is there, images may lie in any folders, as their names are unique.
        reports: `mimic-cxr-reports.zip`, a folder with `s50414267.txt` in any depth or with that archive, or a table
            with the columns study, impression and findings.
        root: The folder of the tables, if it is neither `images` nor one of the three around it.
        labels: Another table of labels, with the columns study_id and some of `LABELS`.

    Raises:
        FileNotFoundError: If one of these places is missing, or there are no images or no reports in it.
        ValueError: If a table or the archive cannot be read, or a table lacks columns or contradicts itself.
    """
    images = storage.as_place(images)
    found = _found(images, root)
    texts = _reports(storage.as_place(reports))  # first, as it fails soonest
    files = _files(images)
    records: dict[str, _Record] = {}
    if metadata := found.get("metadata"):
        _read_metadata(metadata, images, files, records)
    else:
        log.warning(
            "no mimic-cxr-*-metadata.csv beside the images (--root FOLDER names another place): views are decided by "
            "pixels, and the order of a patient's studies is not known"
        )
    _add_files(images, files, records)
    for uid, patient, said, problem in texts:
        record = records.setdefault(uid, _Record(patient))
        if record.problem != NO_REPORT:
            raise ValueError(f"{reports}: two reports of study {uid}")
        record.texts, record.problem = said, problem
    splits = _read_splits(found["split"]) if "split" in found else {}
    given = storage.as_place(labels) if labels else found.get("chexpert") or found.get("negbio")
    tags = _read_labels(given) if given else {}
    for uid in sorted(records, key=lambda uid: (records[uid].patient or "", records[uid].time, uid)):
        record = records.pop(uid)
        positive, uncertain = tags.get(uid, (UNLABELLED, ()))
        absent = "" if record.on_disk or not record.images else "none of its images is in the folder of images"
        yield Study(
            uid=uid,
            images=tuple(record.images),
            **{name: record.texts.get(name, "") for name in TEXTS},  # type: ignore[arg-type]
            tags=positive,
            uncertain=uncertain,
            time=record.time,
            patient=record.patient,
            split=splits.get(uid),
            problem=absent or record.problem,
        )


def collection() -> Collection:
    """MIMIC-CXR, whose licence forbids sharing it and what is derived from it."""
    labels = "\n- Its labels were read from the reports by a program, and share the errors of that."
    return replace(MIMIC, limits=MIMIC.limits + labels)


def tables(images: Place, reports: Place, root: Place | None = None, labels: Place | None = None) -> list[Place]:
    """The files `studies` reads."""
    found = _found(storage.as_place(images), root)
    given = labels or found.get("chexpert") or found.get("negbio")
    reports = storage.as_place(reports)
    texts: list[Place] = [reports]
    if storage.is_folder(reports):
        texts = [storage.join(reports, name) for name in _report_names(reports)] or [storage.join(reports, REPORTS)]
    named = (found.get("metadata"), found.get("split"), given, *texts)
    return [storage.as_place(path) for path in named if path is not None]


def _found(images: Place, root: Place | None) -> dict[str, Place]:
    """Kind of table → where it is, for those that are in `root`, or in the folder of images or one of three around."""
    if not storage.is_folder(images):
        raise FileNotFoundError(f"{images}: no such folder of images (--images)")
    around = [images]
    while len(around) < 4:
        around.append(storage.parent(around[-1]))
    for folder in [storage.as_place(root)] if root else around:
        listed = [str(path) for path in storage.matches(f"{glob.escape(str(folder))}/mimic-cxr-*.csv*")]
        found: dict[str, Place] = {}
        for kind in ("metadata", "split", "chexpert", "negbio"):
            named = [name for name in listed if re.search(rf"-{kind}\.csv(?:\.gz)?$", name)]
            if len({name.removesuffix(".gz") for name in named}) > 1:
                raise ValueError(f"{folder}: several tables of {kind}; keep one of them there")
            if named:
                found[kind] = storage.as_place(min(named, key=len))
        if found:
            return found
    if root:
        raise FileNotFoundError(f"{root}: no table of MIMIC-CXR-JPG in it (mimic-cxr-2.0.0-metadata.csv.gz, …)")
    return {}


def _files(images: Place) -> dict[str, str]:
    """Name of an image without its suffix → its path below the folder, of all that there are."""
    found: dict[str, str] = {}
    for name in storage.files(images):
        stem, dot, suffix = name[name.rfind("/") + 1 :].rpartition(".")
        if (suffix := dot + suffix.lower()) not in SUFFIXES or not stem:
            continue
        before = found.setdefault(stem, name)
        if before is not name and SUFFIXES.index(suffix) < SUFFIXES.index(PurePosixPath(before).suffix.lower()):
            found[stem] = name
    if not found:
        raise FileNotFoundError(f"{images}: no image in it or below ({', '.join(SUFFIXES)})")
    return found


def _read_metadata(path: Place, images: Place, files: dict[str, str], records: dict[str, _Record]) -> None:
    """Gather the images of the table; takes out of `files` those that are on disk."""
    unknown = Counter[str]()
    for row in read_table(path).rows((*_IDS, "ViewPosition", "StudyDate", "StudyTime"), ()):
        uid, patient, dicom = _uid(path, row), row["subject_id"], row["dicom_id"]
        if not patient or not dicom:
            raise ValueError(f"{path}, {row.place}: an empty subject_id or dicom_id")
        record = records.setdefault(uid, _Record(patient))
        if record.patient != patient:
            raise ValueError(f"{path}, {row.place}: study {uid} is of the patients {record.patient} and {patient}")
        view = view_of(row["ViewPosition"])
        if view.view is None and row["ViewPosition"]:
            unknown[row["ViewPosition"]] += 1
        name = files.pop(dicom, None)
        record.on_disk |= name is not None
        record.images.append(_radiograph(images, name or f"p{patient[:2]}/p{patient}/{uid}/{dicom}.jpg", view))
        if time := _time(row["StudyDate"], row["StudyTime"]):
            record.time = min(record.time or time, time)
    if unknown:
        log.warning("%s: views that hf-cxr does not know are decided by pixels: %s", path, few_words(unknown))


def _add_files(images: Place, files: dict[str, str], records: dict[str, _Record]) -> None:
    """Gather the images on disk that the metadata does not have: their folders name patient and study."""
    stray = []
    for name in sorted(files.values()):
        if not (where := _FOLDERS.search(f"{images}/{name}")):
            stray.append(name)
            continue
        record = records.setdefault(f"s{where[2]}", _Record(where[1]))
        record.images.append(_radiograph(images, name, ViewWord(None)))
        record.on_disk = True
    if stray and not records:
        raise ValueError(f"{images}: {stray[0]} is in no folder pPATIENT/sSTUDY, and there is no table of metadata")
    if stray:
        log.warning("%s images belong to no study and are left out (first: %s)", f"{len(stray):,}", stray[0])


def _radiograph(images: Place, name: str, view: ViewWord) -> Radiograph:
    return Radiograph(f"{images}/{name}", view.view, name[name.rfind("/") + 1 :], view.projection)


def _time(date: str, time: str) -> str:
    """ "20800506 081556.875" of "20800506" and "81556.875": a number, as published, lost its leading zero."""
    whole, _, fraction = time.partition(".")
    return f"{date} {whole:0>6}.{fraction}" if date else ""


def _uid(path: Place, row: Row, column: str = "study_id") -> str:
    number = row[column].removeprefix("s")
    if not number.isdecimal():
        raise ValueError(f"{path}, {row.place}: {column} is not the number of a study, such as 50414267")
    return f"s{number}"


def _reports(reports: Place) -> Iterator[Report]:
    """The reports, one after the other; whether there are any is looked at at once."""
    if storage.is_folder(reports):
        if names := _report_names(reports):
            return _sectioned(_opened(reports, names))
        if not storage.is_file(archive := storage.join(reports, REPORTS)):
            raise FileNotFoundError(f"{reports}: no reports in it (s50414267.txt in any depth, or {REPORTS})")
        reports = archive
    if not storage.is_file(reports):
        raise FileNotFoundError(f"{reports}: no such file or folder of reports (--reports)")
    if kind_of_name(reports):
        return _table_of_sections(reports)
    if storage.is_url(reports):
        raise ValueError(f"{reports}: an archive of reports must be on this machine; copy or unpack it")
    return _sectioned(_unpacked(Path(reports)))


def _report_names(folder: Place) -> list[str]:
    return [name for name in storage.files(folder) if name.endswith(".txt") and _REPORT.search(name)]


def _opened(folder: Place, names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        with storage.open_file(f"{folder}/{name}") as stream:
            yield name, stream.read()


def _unpacked(archive: Path) -> Iterator[tuple[str, bytes]]:
    read = 0
    for name, content in archives.members(archive, lambda name: bool(_REPORT.search(name))):
        read += 1
        yield name, content
    if not read:
        raise ValueError(f"{archive}: no report in it (files/p10/p10000032/s50414267.txt)")


def _sectioned(reports: Iterator[tuple[str, bytes]]) -> Iterator[Report]:
    for name, content in reports:
        where = _REPORT.search(name)
        assert where is not None
        said: dict[str, str] = {}
        try:
            problem = f"its report holds {fault}" if (fault := text_fault(text := content.decode())) else ""
        except UnicodeDecodeError:
            problem = "its report is not UTF-8"
        else:
            said = sections(text)
        yield f"s{where[2]}", where[1], said, problem


def _table_of_sections(path: Place) -> Iterator[Report]:
    table = read_table(path)
    study = next(filter(None, map(table.column, ("study", "study_id"))), "study")
    for row in table.rows((study, "impression", "findings"), TEXTS):
        yield _uid(path, row, study), None, {name: row[name] for name in TEXTS}, ""


def _read_splits(path: Place) -> dict[str, str]:
    """Study → split; all images of a study have the same."""
    splits: dict[str, str] = {}
    for row in read_table(path).rows(("study_id", "split"), ()):
        uid = _uid(path, row)
        if splits.setdefault(uid, row["split"]) != row["split"]:
            raise ValueError(f"{path}, {row.place}: study {uid} is in both {splits[uid]} and {row['split']}")
    return splits


def _read_labels(path: Place) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Study → what a table of labels calls positive, and what uncertain, of those of which it says anything."""
    table = read_table(path)
    columns = [name for name in LABELS if name in table.columns]
    if not columns:
        raise ValueError(f"{table.lacks(LABELS[0])}; a table of labels has some of {', '.join(LABELS)}")
    found: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {}
    for row in table.rows(("study_id", *columns), ()):
        uid = _uid(path, row)
        if uid in found:
            raise ValueError(f"{path}, {row.place}: study {uid} has labels twice")
        found[uid] = labels_of(path, [row], columns)
    return found
