"""The Open-i form of the Indiana collection: one XML file a report, and images as PNG or DICOM, packed or unpacked.

Only the reports are opened here. The collection names no views; `hf_cxr.data.view_labels` decides them later.
CC BY-NC-ND 4.0.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from hf_cxr.data.archives import image_key, members
from hf_cxr.data.collection import INDIANA, Collection
from hf_cxr.data.study import Archived, Radiograph, Study, plain_tags

REPORTS = "NLMCXR_reports.tgz"
FOLDER = "ecgen-radiology"
IMAGES = ("NLMCXR_png.tgz", "NLMCXR_dcm.tgz")
"""Archives of images; the second is asked for what the first does not hold."""
SUFFIXES = (".png", ".dcm", ".dicom", ".jpg", ".jpeg")
"""Of unpacked images; of two files of one image the kind named first is taken."""


def studies(root: str | Path, demand_images: bool = True) -> Iterator[Study]:
    """One study per report, in the order of its number, with every image it lists.

    A report that is not well-formed XML, declares entities, or has no number is a study with a `problem`.

    Args:
        root: Folder with `NLMCXR_reports.tgz` or `ecgen-radiology/*.xml` (or the XML files themselves), and below it
            images in any folder, or `NLMCXR_png.tgz`, or `NLMCXR_dcm.tgz`; an unpacked image goes before a packed
            one, PNG before DICOM.
        demand_images: Raise an error if there is neither an archive nor one file of images.

    Raises:
        FileNotFoundError: If `root`, the reports or (see above) the images are missing.
        ValueError: If two reports have one number, or an archive is broken or unsafe.
    """
    root = _root(root)
    on_disk = _images(root)
    archives = tuple(root / name for name in IMAGES if (root / name).is_file())
    if demand_images and not on_disk and not archives:
        raise FileNotFoundError(f"{root}: no images, neither {' nor '.join(IMAGES)} nor a file *.png or *.dcm")

    files = _report_files(root)
    packed = members(files[0], lambda name: name.endswith(".xml")) if files == [root / REPORTS] else None
    read: dict[str, tuple[str, Study]] = {}
    for name, content in packed or ((path.name, path.read_bytes()) for path in files):
        study = _study(name, content, on_disk, archives, root)
        if study.uid in read:
            raise ValueError(f"{root}: reports {read[study.uid][0]} and {name} are both number {study.uid!r}")
        read[study.uid] = name, study
    for uid in sorted(read, key=lambda uid: (not uid.isdecimal(), len(uid) if uid.isdecimal() else 0, uid)):
        yield read[uid][1]


def collection() -> Collection:
    """The Indiana collection, whose form names no views."""
    limits = "\n- The collection names no views: see `frontal_confidence` and `lateral_confidence`."
    return replace(INDIANA, limits=INDIANA.limits + limits)


def tables(root: str | Path) -> list[Path]:
    """The XML files of the reports, or the archive that holds them."""
    return _report_files(_root(root))


def _root(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    return root


def _images(root: Path) -> dict[str, Path]:
    """`image_key` → file, of every image below `root`."""
    found: list[Path] = []
    seen: set[str] = set()
    for folder, below, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link that leads back
            below.clear()
            continue
        seen.add(real)
        found += (path for name in files if (path := Path(folder, name)).suffix.lower() in SUFFIXES)
    found.sort(key=lambda path: (SUFFIXES.index(path.suffix.lower()), str(path)), reverse=True)
    return {image_key(path.name): path for path in found}  # of one key the last, of the best kind, stays


def _report_files(root: Path) -> list[Path]:
    """Unpacked reports, else the archive."""
    for folder in (root / FOLDER, root / Path(REPORTS).stem / FOLDER, root):
        if files := sorted(folder.glob("*.xml")):
            return files
    if not (root / REPORTS).is_file():
        raise FileNotFoundError(f"{root}: no reports, neither {REPORTS} nor {FOLDER}/*.xml")
    return [root / REPORTS]


def _study(name: str, content: bytes, on_disk: dict[str, Path], archives: tuple[Path, ...], root: Path) -> Study:
    try:
        report = fromstring(content, forbid_dtd=True)
    except DefusedXmlException:
        return Study(uid=name, problem=f"{name} declares a document type or entities, which no report needs")
    except (ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        return Study(uid=name, problem=f"{name} is not well-formed XML ({' '.join(str(error).split())})")
    uid = next((node.get("id") or "" for node in report.iterfind("uId")), "").strip().removeprefix("CXR")
    if not uid:
        return Study(uid=name, problem=f"{name} has no report number (uId)")
    keys = (image_key((image.get("id") or "").strip()) for image in report.iterfind(".//parentImage"))
    return Study(
        uid=uid,
        images=tuple(_radiograph(key, on_disk, archives, root) for key in keys if key),
        impression=_section(report, "IMPRESSION"),
        findings=_section(report, "FINDINGS"),
        indication=_section(report, "INDICATION"),
        comparison=_section(report, "COMPARISON"),
        # "Opacity/lung/upper lobe/right" → "opacity", as in the Kaggle form's Problems.
        tags=plain_tags("".join(node.itertext()).partition("/")[0] for node in report.iterfind(".//MeSH/major")),
        patient=uid,  # the collection has one study of each
    )


def _radiograph(key: str, on_disk: dict[str, Path], archives: tuple[Path, ...], root: Path) -> Radiograph:
    name = f"{key}.png"
    if key in on_disk:
        return Radiograph(on_disk[key], name=on_disk[key].name)
    return Radiograph(Archived(archives[0], key, archives[1:]) if archives else root / name, name=name)


def _section(report: Element, label: str) -> str:
    nodes = (node for node in report.iterfind(".//AbstractText") if node.get("Label") == label)
    return " ".join(filter(None, ("".join(node.itertext()).strip() for node in nodes)))
