"""Studies → images sized for training → Parquet files, and the preparation report of all that was left out.

Records and splits are decided in `hf_cxr.data.splits`, views in `hf_cxr.data.selection`, images are read in
`hf_cxr.data.images`; the folder around the files is made in `hf_cxr.data.prepare`. Parquet is written with pyarrow:
`Dataset.from_generator` would write every image to the disk twice, as Arrow and as Parquet."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from hf_cxr.data import provenance, sources, splits, view_labels
from hf_cxr.data.images import read_images
from hf_cxr.data.leakage import text_overlap
from hf_cxr.data.schema import CHUNKS, FEATURES, PAIR, PARQUET
from hf_cxr.data.selection import BOTH, FOUND, PAIRS, READABLE, REQUIRE, VIEWS, Selection, label_views, select
from hf_cxr.data.study import StoredImage, Study

SHARD_BYTES = 500_000_000  # of images in one Parquet file, as the Hub advises
BATCH = 100  # rows of a row group, and in memory; two images of 384 pixels take about 200 kB
ONE_SPLIT = "sharing no image across splits"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PreparationConfig:
    """What is prepared, and how; the fields are the arguments of `hf_cxr.prepare`."""

    source: str
    options: Mapping[str, Any] = field(default_factory=dict)  # what the source itself takes: `root`, …
    section: str = "impression"
    size: int = 384
    placeholders: str = "drop"
    seed: int = 0
    split_file: str | Path | None = None
    views: str | Path | None = None
    pairs: str = "best"
    require: str = "any"

    def __post_init__(self) -> None:
        for name, choices in (("pairs", PAIRS), ("require", REQUIRE)):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}; got {getattr(self, name)!r}")
        if isinstance(self.size, bool) or not isinstance(self.size, int) or self.size < 8:
            raise ValueError(f"size must be a number of pixels, at least 8; got {self.size!r}")

    def fingerprint(self) -> str:
        """A hash of these settings and of the collection's files: a changed one is prepared anew."""
        listed = sources.studies(self.source, **self.options)
        mark = splits.fingerprint(listed, (self.split_file, self.views))
        return hashlib.sha256(f"{self} {mark}".encode()).hexdigest()[:16]

    def named_splits(self) -> dict[str, str] | None:
        """uid → split, if there is a split file."""
        return None if self.split_file is None else splits.read_split_file(self.split_file)

    def plan(self, named: Container[str] | None) -> tuple[splits.Plan, int]:
        """The records that can be used, with the views of the `views` table put in, and how many images it lacks."""
        listed: Iterable[Study] = sources.studies(self.source, **self.options)
        unnamed = 0
        if self.pairs == "all":
            problem = "its uid ends like that of a further pair"
            listed = (replace(study, problem=problem) if PAIR.search(study.uid) else study for study in listed)
        if self.views is not None:
            listed, unnamed = label_views(listed, view_labels.read_view_table(self.views))
        return splits.plan(listed, self.section, self.placeholders, named), unnamed


@dataclass(frozen=True)
class Choice:
    """What is made of the planned studies."""

    selections: list[Selection]  # of each study of the plan
    kept: list[int]  # indices of the studies that give rows
    digests: dict[str, set[str]]  # uid → digests of the images of that study, for each that could be used
    split_of_uid: dict[str, str]


def choose(
    config: PreparationConfig,
    plan: splits.Plan,
    images: Sequence[Sequence[StoredImage | str]],
    steps: Sequence[str],
    named: Mapping[str, str] | None,
) -> Choice:
    """Choose the rows and the split of each study, and continue the preparation report of `plan` by the `steps`."""
    with_images = zip(plan.studies, images, strict=True)
    selections = [select(study, read, config.pairs, config.require) for study, read in with_images]
    rejects = [
        {"uid": study.uid, "step": selection.step, "reason": selection.reason}
        for study, selection in zip(plan.studies, selections, strict=True)
        if selection.step
    ]
    usable = [s for s, selection in enumerate(selections) if selection.rows]
    digests = {
        plan.studies[s].uid: {image.digest for image in images[s] if isinstance(image, StoredImage) and image.digest}
        for s in usable
    }
    split_of_uid = splits.assign([plan.studies[s] for s in usable], digests, config.seed, named)
    shared = "a study in a later split has the same image"
    rejects += [{"uid": uid, "step": ONE_SPLIT, "reason": shared} for uid, split in split_of_uid.items() if not split]
    splits.add_steps(plan.steps, steps, rejects)
    plan.rejects.extend(rejects)
    plan.rejects.sort(key=lambda reject: plan.order[reject["uid"]])
    kept = [s for s in usable if split_of_uid[plan.studies[s].uid]]
    if plan.steps[-1]["kept"] != len(kept) or len(plan.order) != len(kept) + len(plan.rejects):
        raise RuntimeError(f"not every record is counted: {plan.steps}, {len(kept)} kept, {len(plan.rejects)} not")
    return Choice(selections, kept, digests, split_of_uid)


def build(config: PreparationConfig, folder: Path, num_proc: int) -> tuple[dict[str, Any], datasets.SplitDict]:
    """Write `data/*.parquet`, `splits.csv`, `images.csv` and `rejects.jsonl` into `folder`, made for them.

    Returns:
        The preparation report, and number and size of the rows of each split that has any.
    """
    named = config.named_splits()
    plan, unnamed = config.plan(named)
    (folder / "data").mkdir(parents=True)
    store = folder / "images.bin"
    images = read_images(plan.studies, config.size, store, num_proc)
    steps = [FOUND, READABLE, *([BOTH] if config.require == "both" else []), ONE_SPLIT]
    choice = choose(config, plan, images, steps, named)
    if not choice.kept:
        raise ValueError(splits.nothing_left(len(plan.order), plan.rejects))

    kept = [plan.studies[s] for s in choice.kept]
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in splits.SPLITS}
    patients: dict[str, int] = {}
    for s in choice.kept:
        study = plan.studies[s]
        patient = patients.setdefault(study.patient or study.uid, len(patients))
        rows[choice.split_of_uid[study.uid]] += _rows(study, patient, images[s], choice.selections[s])
    written = datasets.SplitDict()
    with store.open("rb") as stream:
        for name, part in rows.items():
            if part:
                written.add(_write_split(part, stream, folder / "data", name))
    store.unlink()

    with (folder / "splits.csv").open("w", encoding="utf-8", newline="") as manifest:
        writer = csv.writer(manifest, lineterminator="\n")
        writer.writerow(("uid", "split"))
        writer.writerows((row["uid"], name) for name, part in rows.items() for row in part)
    lines = (json.dumps(reject, ensure_ascii=False) + "\n" for reject in plan.rejects)
    (folder / "rejects.jsonl").write_text("".join(lines), encoding="utf-8")
    with_images = zip(plan.studies, images, choice.selections, strict=True)
    unread = ((study, ("",) * len(study.images), None) for study in plan.rejected)
    everything = sorted([*with_images, *unread], key=lambda entry: plan.order[entry[0].uid])
    listing, uses = provenance.list_images(everything, {reject["uid"]: reject["reason"] for reject in plan.rejects})
    (folder / "images.csv").write_text(listing, encoding="utf-8")
    if cells := sum(map(provenance.formula_cells, (listing, (folder / "splits.csv").read_text(encoding="utf-8")))):
        log.warning(
            "%s of splits.csv and images.csv begin with = + - @ or white space, as the collection has them: a "
            "spreadsheet would take them for formulas",
            "1 cell" if cells == 1 else f"{cells:,} cells",
        )
    target = splits.SECTIONS[config.section][0]
    split_names = [choice.split_of_uid[study.uid] for study in kept]
    report: dict[str, Any] = {
        "steps": plan.steps,
        "splits": {name: len(part) for name, part in rows.items()},
        "studies": {name: split_names.count(name) for name in rows},
        "images": uses,
        "patients_tied_by_an_image": splits.tied_patients(kept, choice.digests),
        **patients_known(kept, choice.split_of_uid),
        "images_sha256": provenance.digest_of(images),
        "text_overlap": text_overlap({name: [row[target] for row in part] for name, part in rows.items()}),
    }
    if named is not None:
        report["split_file_uids_without_a_study"] = len(set(named) - set(plan.order))
    if config.views is not None:
        report["images_without_a_view_in_the_table"] = unnamed
    return report, written


def patients_known(kept: Sequence[Study], split_of_uid: Mapping[str, str]) -> dict[str, Any]:
    """What the preparation report says of who is whose."""
    return {
        "studies_without_a_patient": sum(study.patient is None for study in kept),
        "likely_patient_columns": splits.likely_patients(kept, split_of_uid),
    }


def _rows(
    study: Study, patient: int, images: Sequence[StoredImage | str], selection: Selection
) -> Iterator[dict[str, Any]]:
    """Rows of `FEATURES`, each image still in the store.

    The first row keeps the uid of its study; further pairs of images get "uid#2", "uid#3", …
    """
    for number, indices in enumerate(selection.rows, start=1):
        row = {
            "uid": study.uid if number == 1 else f"{study.uid}#{number}",
            "impression": study.impression,
            "findings": study.findings,
            "indication": study.indication,
            "tags": list(study.tags),
            "patient": patient,
        }
        for view, i in zip(VIEWS, indices, strict=True):
            row[view], row[f"{view}_confidence"] = (None, None) if i is None else (images[i], selection.views[i][1])
        yield row


def _write_split(rows: list[dict[str, Any]], store: IO[bytes], folder: Path, name: str) -> datasets.SplitInfo:
    shards: list[list[dict[str, Any]]] = [[]]
    payload = 0
    for row in rows:
        if payload > SHARD_BYTES:
            shards.append([])
            payload = 0
        shards[-1].append(row)
        payload += sum(row[view].length for view in VIEWS if row[view])
    total = 0
    for number, shard in enumerate(shards):
        file = folder / f"{name}-{number:05d}-of-{len(shards):05d}.parquet"
        with pq.ParquetWriter(file, FEATURES.arrow_schema, **PARQUET) as writer:
            for start in range(0, len(shard), BATCH):
                part = shard[start : start + BATCH]
                batch = [row | {view: _stored(row[view], store) for view in VIEWS} for row in part]
                table = pa.Table.from_pylist(batch, FEATURES.arrow_schema)
                writer.write_table(table)
                total += table.nbytes
            writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKS)})
    return datasets.SplitInfo(name=name, num_bytes=total, num_examples=len(rows))


def _stored(image: StoredImage | None, store: IO[bytes]) -> dict[str, Any] | None:
    """An image as `datasets.Image` stores it: 8-bit grey PNG (lossless)."""
    if image is None:
        return None
    store.seek(image.start)
    return {"bytes": store.read(image.length), "path": None}
