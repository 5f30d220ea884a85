"""The published forms of the Indiana collection, and a table of one's own, filled with studies of the phantom."""

from __future__ import annotations

import csv
import io
import json
import tarfile
import zipfile
from pathlib import Path
from xml.sax.saxutils import escape

import pyarrow as pa
import pyarrow.parquet as pq

from hf_cxr.data.sources import phantom

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{uid}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="FINDINGS">{text}</AbstractText><AbstractText Label="IMPRESSION">{text}</AbstractText>
</Abstract></Article></MedlineCitation><MeSH><major>normal</major></MeSH>{images}</eCitation>"""
BLOCKS = {"frontal": "1001", "lateral": "2001"}  # of Open-i's image names

Drawn = list[tuple[int, str, dict[str, bytes]]]


def draw(number: int, size: int = 96) -> Drawn:
    """(uid, text, {view: PNG}) of studies of the phantom."""
    return [
        (uid, study.impression, {image.view: _png(image.source()) for image in study.images})
        for uid, study in enumerate(phantom.studies(number, size=size), start=1)
    ]


def open_i(folder: Path, drawn: Drawn) -> None:
    """`NLMCXR_reports.tgz` and `NLMCXR_png.tgz`, as the publisher offers them."""
    reports, images = {}, {}
    for uid, text, views in drawn:
        names = {view: f"CXR{uid}_IM-{uid:04d}-{BLOCKS[view]}" for view in views}
        listed = "".join(f'<parentImage id="{name}"/>' for name in names.values())
        reports[f"ecgen-radiology/{uid}.xml"] = REPORT.format(uid=uid, text=escape(text), images=listed).encode()
        images |= {f"{names[view]}.png": content for view, content in views.items()}
    folder.mkdir()
    for name, files in (("NLMCXR_reports.tgz", reports), ("NLMCXR_png.tgz", images)):
        with tarfile.open(folder / name, "w:gz") as archive:
            for path, content in files.items():
                entry = tarfile.TarInfo(path)
                entry.size = len(content)
                archive.addfile(entry, io.BytesIO(content))


def kaggle(folder: Path, drawn: Drawn) -> None:
    """Two tables and `images/images_normalized/`."""
    reports, projections = [], []
    for uid, text, views in drawn:
        row = {"uid": uid, "MeSH": "normal", "Problems": "normal", "image": "PA and lateral", "indication": "Cough."}
        reports.append(row | {"comparison": "None.", "findings": text, "impression": text})
        for view, content in views.items():
            name = f"{uid}_IM-{uid:04d}-{BLOCKS[view]}.dcm.png"
            projections.append({"uid": uid, "filename": name, "projection": view.capitalize()})
            _write(folder / "images" / "images_normalized" / name, content)
    write_table(folder / "indiana_reports.csv", reports)
    write_table(folder / "indiana_projections.csv", projections)


def r2gen(archive: Path, drawn: Drawn) -> None:
    """`iu_xray.zip`: `annotation.json` and two images a study."""
    pairs = [(uid, text, list(views.values())) for uid, text, views in drawn if len(views) == 2]
    splits: dict[str, list] = {"train": [], "val": [], "test": []}
    with zipfile.ZipFile(archive, "w") as file:
        for number, (uid, text, images) in enumerate(pairs):
            name = f"CXR{uid}_IM-{uid:04d}"
            paths = [f"{name}/{place}.png" for place in (0, 1)]
            split = {8: "val", 9: "test"}.get(number % 10, "train")
            splits[split].append({"id": name, "report": text, "image_path": paths, "split": split})
            for path, content in zip(paths, images, strict=True):
                file.writestr(f"iu_xray/images/{path}", content)
        file.writestr("iu_xray/annotation.json", json.dumps(splits))


def own_table(path: Path, drawn: Drawn) -> None:
    """A hospital's export: a CSV with names of its own, and image files beside it."""
    rows = []
    for uid, text, views in drawn:
        row = {"accession": uid, "pa_file": "", "lat_file": "", "conclusion": text, "mrn": f"m{uid}"}
        for column, view in (("pa_file", "frontal"), ("lat_file", "lateral")):
            if view in views:
                row[column] = f"export/{uid}_{view}.png"
                _write(path.parent / row[column], views[view])
        rows.append(row)
    write_table(path, rows)


def on_the_hub(path: Path, drawn: Drawn) -> None:
    """Open-i as people put it on the Hub: Parquet with the bytes of both views."""
    path.parent.mkdir(parents=True)
    rows = [
        {"uid": uid, "impression": text} | {f"img_{view}": views.get(view) for view in ("frontal", "lateral")}
        for uid, text, views in drawn
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_table(path: Path, rows: list[dict]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
