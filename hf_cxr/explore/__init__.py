"""What a prepared dataset holds: `explore` writes a page, its figures, and the same numbers as JSON.

Counted in `counts`, drawn in `figures`, put in words in `page`; here the dataset is read, once, and the folder is
written, whole or not at all.
"""

from __future__ import annotations

import csv
import difflib
import functools
import hashlib
import io
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datasets import DatasetDict
from datasets.utils import tqdm
from PIL import Image

from hf_cxr import __version__
from hf_cxr.data.collection import collection_of
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.study import TEXTS
from hf_cxr.explore import figures, page
from hf_cxr.explore.counts import VIEWS, Row, count, first_rows, histogram, image_bytes, in_studies
from hf_cxr.inference.labeler import FINDINGS, POSITIVE, is_normal, label
from hf_cxr.inference.views import FORMATS
from hf_cxr.utils.files import check_free, commit, staging_folder

NORMAL = "normal"
SHEETS, TILES = 4, 8
"""Unless told otherwise, contact sheets of so many findings and of normal studies; studies on a sheet."""
WRITTEN = ("explore.json", "figures", "index.html")


def explore(
    dataset: DatasetDict | str | Path,
    out: str | Path,
    *,
    findings: Sequence[str] = (),
    split: str = "all",
    seed: int = 0,
) -> dict[str, Any]:
    """Describe a prepared dataset: `index.html`, `figures/*.png` and `explore.json` in the folder `out`, or nothing.

    Args:
        dataset: A prepared dataset, its folder or its Hub id. A folder also has the preparation report
            (`prepare.json`).
        out: The folder to make. An earlier result there is replaced.
        findings: What to show contact sheets of: names of `hf_cxr.inference.labeler.FINDINGS`, or "normal". Default:
            the most frequent findings and normal studies.
        split: Describe this split only. Duplicates and baselines need the others too and always look at all.
        seed: Seed of the studies shown, of the random baseline and of the intervals. Same input and seed, same bytes.

    Returns:
        The content of `explore.json`.

    Raises:
        FileExistsError: If `out` holds anything but an earlier result.
        FileNotFoundError: If there is no such dataset.
        ValueError: For an empty dataset, studies without text, an unknown finding or split, a broken image.
    """
    out = Path(out).resolve()
    check = functools.partial(check_free, out, "an earlier page of explore", "explore.json", known=WRITTEN)
    check()
    unknown = next((name for name in findings if name not in (*FINDINGS, NORMAL)), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown, (*FINDINGS, NORMAL), 3, 0.4)
        raise ValueError(f"unknown finding {unknown!r}: {', '.join(near) or 'hf_cxr.inference.labeler lists them'}?")
    folder = None if isinstance(dataset, DatasetDict) else Path(dataset)
    name = "dataset" if folder is None else folder.resolve().name if folder.is_dir() else str(dataset)
    loaded = _checked(dataset) if isinstance(dataset, DatasetDict) else load_prepared(dataset)
    if split != "all" and split not in loaded:
        raise ValueError(f"{name}: no split {split!r}; it has {', '.join(map(str, loaded))}")
    rows = in_studies(list(_rows(loaded, name)))
    described = [row for row in rows if split in ("all", row.split)]
    if not described:
        raise ValueError(f"{name}: no studies to explore")
    section = _target(described, name)

    preparation = _preparation(folder)
    facts: dict[str, Any] = {
        "dataset": {"name": name, "section": section, "split": split, "seed": seed, **preparation.pop("from")},
        "hf-cxr": __version__,
    }
    facts |= count(described, rows, section, seed, preparation["unnamed"])
    facts |= {"preparation": preparation, "images": _images(folder, described)}
    facts["contact_sheets"], shown = _choose(described, section, findings, facts, seed)
    facts["sentences"] = page.sentences(facts)
    with staging_folder(out) as bench:
        folder_made = bench / "made"
        drawn = figures.draw(facts, folder_made / "figures")
        images = figures.contact_sheets(facts["contact_sheets"], shown, loaded, folder_made / "figures")
        (folder_made / "index.html").write_text(page.page(facts, drawn, images), encoding="utf-8")
        text = json.dumps(facts, indent=1, ensure_ascii=False)
        (folder_made / "explore.json").write_text(text + "\n", encoding="utf-8")
        commit(folder_made, out, check)
    return facts


# --- reading -----------------------------------------------------------------------------------------------------


def _checked(dataset: DatasetDict) -> DatasetDict:
    for name, split in dataset.items():
        missing = {"uid", *VIEWS, "impression"} - set(split.column_names)
        if missing:
            raise ValueError(f"split {name} has no column {sorted(missing)[0]!r}; run hf-cxr prepare")
    return dataset


def _rows(dataset: DatasetDict, name: str) -> Iterator[Row]:
    """Every row; its images are hashed and measured, not decoded, and forgotten."""
    with tqdm(total=sum(map(len, dataset.values())), desc="Exploring", unit=" studies") as progress:
        for split, part in dataset.items():
            tables = part.with_format("arrow").iter(batch_size=64)
            for index, record in enumerate(record for table in tables for record in table.to_pylist()):
                yield _row(record, str(split), index, name)
                progress.update()


def _target(rows: Sequence[Row], name: str) -> str:
    """The section whose texts are described: the impression, or the findings where more studies have them."""
    counts = {section: sum(bool(row.texts[section].strip()) for row in rows) for section in TEXTS[:2]}
    if not any(counts.values()):
        raise ValueError(f"{name}: no study has an impression or findings")
    return max(counts, key=counts.__getitem__)


def _row(record: Mapping[str, Any], split: str, index: int, name: str) -> Row:
    uid = str(record["uid"])
    sizes, digests, confidences = {}, {}, {}
    for view in VIEWS:
        if record[view] is None:
            continue
        try:
            encoded = image_bytes(record[view])
            with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
                sizes[view] = image.size
        except Exception as error:
            reason = type(error).__name__
            raise ValueError(f"{name}: the {view} image of {uid} ({split}) cannot be read ({reason})") from None
        digests[view] = hashlib.sha256(encoded).hexdigest()
        if record.get(f"{view}_confidence") is not None:
            confidences[view] = float(record[f"{view}_confidence"])
    texts = {section: record.get(section) or "" for section in TEXTS}
    tags = tuple(record.get("tags") or ())
    return Row(split, index, uid, texts, record.get("patient"), sizes, digests, confidences, tags)


def _preparation(folder: Path | None) -> dict[str, Any]:
    """What `prepare.json` says of the way from the collection to the dataset; empty where there is none."""
    if folder is None or not (path := folder / "prepare.json").is_file():
        unknown = {"source": None, "collection": None, "licence": None, "language": None}
        return {"source": None, "steps": [], "unnamed": None, "placeholders": None, "from": unknown}
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        known = collection_of(facts)
        stated = {"collection": known.name, "licence": known.licence, "language": known.language}
        return {
            "source": facts["source"],
            "steps": facts["steps"],
            "unnamed": facts.get("studies_without_a_patient"),
            "placeholders": facts.get("placeholders"),
            "from": {"source": facts["source"], **stated},
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: not a preparation report of hf-cxr prepare ({type(error).__name__}: {error})"
        ) from None


def _images(folder: Path | None, rows: Sequence[Row]) -> dict[str, Any]:
    """How many images the studies have: as published if `images.csv` tells, else as many as the columns hold."""
    studies = {row.study for row in rows}
    if folder is not None and (folder / "images.csv").is_file():
        source = "images.csv"
        with (folder / source).open(encoding="utf-8", newline="") as stream:
            listed = [entry for entry in csv.DictReader(stream) if entry.get("uid") in studies]
        counts = Counter(entry["uid"] for entry in listed)
        use: dict[str, int] = dict(Counter(entry.get("use") or "" for entry in listed).most_common())
    else:
        source = "columns"
        distinct: dict[str, set[str]] = defaultdict(set)
        for row in rows:
            distinct[row.study] |= set(row.digests.values())
        counts, use = Counter({uid: len(images) for uid, images in distinct.items()}), {}
    spread = Counter(counts[uid] for uid in studies)
    return {"from": source, "n": len(studies), "counts": histogram(spread), "use": use}


def _choose(
    rows: Sequence[Row], section: str, wanted: Sequence[str], facts: Mapping[str, Any], seed: int
) -> tuple[list[dict[str, Any]], list[list[Row]]]:
    """For each contact sheet what it is of and the studies on it, drawn at random among those that state it.

    Where findings cannot be read from the texts, the sheets are of the collection's own labels."""
    by_tags = bool(facts["findings_unread"]) and not wanted
    if by_tags:
        names = [row["tag"] for row in facts["tags"][:SHEETS]]
        names.append("no label" if names else "any")
    else:
        stated = [row["finding"] for row in facts["findings"]["rows"][:SHEETS] if row[POSITIVE]]
        names = list(dict.fromkeys(wanted)) or [*stated, NORMAL]

    def fits(row: Row, name: str) -> bool:
        if by_tags:
            return name == "any" or (name in row.tags if row.tags else name == "no label")
        text = row.texts[section]
        if not text.strip():
            return False
        return is_normal(text) if name == NORMAL else label(text).get(name) == POSITIVE

    sheets, shown = [], []
    for name in names:
        fitting = [row for row in first_rows(rows) if fits(row, name)]
        drawn = random.Random(f"{seed}:{name}").sample(fitting, min(TILES, len(fitting)))
        sheets.append({"finding": name, "n": len(fitting), "uids": [row.uid for row in drawn]})
        shown.append(drawn)
    return sheets, shown
