"""MIMIC-CXR-JPG and MIMIC-CXR with studies of our own: names, folders and tables as PhysioNet describes them."""

from __future__ import annotations

import csv
import gzip
import importlib.util
import io
import random
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from forms.layouts import LAYOUTS
from PIL import Image

VIEWS = {  # ViewPosition → view of a row, projection; None: left to the pixels
    "PA": ("frontal", "PA"),
    "AP": ("frontal", "AP"),
    "LATERAL": ("lateral", ""),
    "LL": ("lateral", ""),
    "XTABLE LATERAL": ("lateral", ""),
    "PA LLD": ("neither", ""),
    "AP RLD": ("neither", ""),
    "LAO": ("neither", ""),
    "RAO": ("neither", ""),
    "LPO": ("neither", ""),
    "AP AXIAL": ("neither", ""),
    "SWIMMERS": ("neither", ""),
    "": (None, ""),
}
SETS = (["PA", "LATERAL"], ["AP"], ["PA", "LL"], ["AP", "AP"], ["PA", "LATERAL", "LATERAL"], [""], ["XTABLE LATERAL"])
RARE = (["PA LLD"], ["LAO", "PA"], ["RAO"], ["LPO", "LL"], ["AP AXIAL"], ["SWIMMERS", "AP"], ["AP RLD", "", "LATERAL"])
LABELS = ("Atelectasis", "Cardiomegaly", "Edema", "No Finding", "Pleural Effusion", "Support Devices")
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,StudyDate,StudyTime,"
    "ProcedureCodeSequence_CodeMeaning,ViewCodeSequence_CodeMeaning,PatientOrientationCodeSequence_CodeMeaning"
)
VERSION = "mimic-cxr-2.0.0"
TABLES = ("metadata", "split", "chexpert", "negbio")


@dataclass
class Truth:
    """What the maker knows of one study."""

    uid: str
    patient: str
    time: str
    split: str
    text: str
    sections: dict[str, str]
    images: list[tuple[str, str]] = field(default_factory=list)  # (dicom_id, ViewPosition)
    labels: dict[str, str] = field(default_factory=dict)  # column → cell

    @property
    def tags(self) -> tuple[str, ...]:
        return self._labels("1.0") if any(self.labels.values()) else ("unlabelled",)

    @property
    def uncertain(self) -> tuple[str, ...]:
        return self._labels("-1.0")

    def _labels(self, value: str) -> tuple[str, ...]:
        return tuple(name.lower() for name in LABELS if self.labels[name] == value and name != "No Finding")

    @property
    def folder(self) -> str:
        return f"files/p{self.patient[:2]}/p{self.patient}/{self.uid}"


def make(folder: Path, number: int, seed: int = 0) -> list[Truth]:
    """Both as they are downloaded: `mimic-cxr-jpg/2.0.0/` and `mimic-cxr-reports.zip`."""
    truths = draw(number, seed)
    jpg_tree(folder / "mimic-cxr-jpg" / "2.0.0", truths)
    reports_zip(folder / "mimic-cxr-reports.zip", truths)
    return truths


def draw(number: int = 240, seed: int = 0) -> list[Truth]:
    """Studies in the order that a reader should give them: by patient, then in order of time, which is neither that of
    their numbers nor that of the tables."""
    made: list[Truth] = []
    chance = random.Random(seed)
    numbers = chance.sample(range(50_000_000, 59_999_999), number)
    patient = 10_000_032
    while len(made) < number:
        patient += chance.randrange(1, 90_000)
        split = chance.choice(["train"] * 6 + ["validate", "test"])
        of_patient = min(chance.choice((1, 1, 2, 4)), number - len(made))
        hours = sorted(chance.sample(range(0, 2_400), of_patient))
        for hour in hours:
            n = len(made)
            _, text, sections = LAYOUTS[n % len(LAYOUTS)]
            views = RARE[n // 9 % len(RARE)] if n % 9 == 8 else SETS[n % len(SETS)]
            dicoms = [("-".join(f"{chance.getrandbits(32):08x}" for _ in range(5)), view) for view in views]
            time = (
                f"2180{1 + hour // 240:02d}{1 + hour // 24 % 10:02d} {hour % 24:02d}{chance.randrange(60):02d}07.531"
            )
            values = {label: chance.choice(("1.0", "-1.0", "0.0", "", "")) for label in LABELS}
            made.append(Truth(f"s{numbers[n]}", str(patient), time, split, text, sections, dicoms, values))
    return made


def jpg_tree(folder: Path, truths: list[Truth], zipped: bool = True, tables: tuple[str, ...] = TABLES) -> Path:
    """MIMIC-CXR-JPG: `files/p10/p10000032/s50414267/*.jpg` and the tables beside `files`, gzipped as published."""
    for truth in truths:
        (folder / truth.folder).mkdir(parents=True)
        for dicom, view in truth.images:
            _image(dicom, view).save(folder / truth.folder / f"{dicom}.jpg", quality=90)
    for name, rows in _tables(truths).items():
        if name in tables:
            write(folder / f"{VERSION}-{name}.csv", rows, zipped)
    return folder


def dicom_tree(folder: Path, truths: list[Truth]) -> Path:
    """MIMIC-CXR: the same images as DICOM files around the same JPEG."""
    path = Path(__file__).parents[2] / "benchmarks" / "dicom.py"
    spec = importlib.util.spec_from_file_location("dicom_files", path)
    files = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(files)
    for truth in truths:
        (folder / truth.folder).mkdir(parents=True)
        for dicom, view in truth.images:
            image, buffer = _image(dicom, view), io.BytesIO()
            image.save(buffer, "JPEG", quality=90)
            header = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "ViewPosition": view or None}
            frame = buffer.getvalue() + b"\0" * (len(buffer.getvalue()) % 2)
            content = files.write_dicom(np.asarray(image), "1.2.840.10008.1.2.4.50", frame, **header)
            (folder / truth.folder / f"{dicom}.dcm").write_bytes(content)
    return folder


def reports_zip(path: Path, truths: list[Truth]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for truth in truths:
            archive.writestr(f"{truth.folder}.txt", truth.text)
    return path


def reports_folder(folder: Path, truths: list[Truth]) -> Path:
    for truth in truths:
        (folder / f"{truth.folder}.txt").parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{truth.folder}.txt").write_bytes(truth.text.encode())
    return folder


def sectioned(path: Path, truths: list[Truth]) -> Path:
    """The table that the collection's own program writes."""
    columns = ("impression", "findings", "last_paragraph", "comparison")
    write(path, [("study", *columns), *((t.uid, *(t.sections.get(name, "") for name in columns)) for t in truths)])
    return path


def _tables(truths: list[Truth]) -> dict[str, list[tuple]]:
    ordered = sorted(truths, key=lambda truth: truth.uid)  # not the order in time
    images = [(truth, dicom, view) for truth in ordered for dicom, view in truth.images]
    metadata = [tuple(METADATA.split(","))]
    for truth, dicom, view in images:
        date, time = truth.time.split()
        time = time.lstrip("0")  # a number, as pandas wrote it
        row = (dicom, truth.patient, truth.uid[1:], "CHEST (PA AND LAT)", view, 96, 80, date, time, "", "", "Erect")
        metadata.append(row)
    split = [("dicom_id", "study_id", "subject_id", "split")]
    split += [(dicom, truth.uid[1:], truth.patient, truth.split) for truth, dicom, _ in images]
    labels = [("subject_id", "study_id", *LABELS)]
    for t in ordered:
        labels.append((t.patient, t.uid[1:], *t.labels.values()))
    return {"metadata": metadata, "split": split, "chexpert": labels, "negbio": [labels[0]]}


def write(path: Path, rows: list[tuple], zipped: bool = False) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    content = text.getvalue().encode()
    if zipped:
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(content, mtime=0))
    else:
        path.write_bytes(content)


def _image(dicom: str, view: str) -> Image.Image:
    """80 × 96 pixels, its own for each image; a frontal one is symmetric, as a chest is."""
    rng = np.random.default_rng(int(dicom[:8], 16))
    half = np.kron(rng.integers(40, 200, (12, 5)), np.ones((8, 8)))
    whole = np.concatenate([half, half[:, ::-1] if "LAT" not in view and view != "LL" else half], 1)
    return Image.fromarray(whole.astype(np.uint8))
