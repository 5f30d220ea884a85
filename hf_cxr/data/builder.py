"""Studies → images sized for training → Parquet files, and the preparation report of all that was left out.

What is kept is decided in `hf_cxr.data.choice`, images are read in `hf_cxr.data.images`; the folder around the files
is made in `hf_cxr.data.prepare`. Parquet is written with pyarrow: `Dataset.from_generator` would write every image to
the disk twice, as Arrow and as Parquet."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from hf_cxr.data import provenance, splits
from hf_cxr.data.checks import check_disk
from hf_cxr.data.choice import ONE_SPLIT, PreparationConfig, choose, patients_known
from hf_cxr.data.images import read_images
from hf_cxr.data.leakage import text_overlap
from hf_cxr.data.scheduler import Workers
from hf_cxr.data.schema import CHUNKS, PARQUET, features_of, rows_of
from hf_cxr.data.selection import BOTH, FOUND, READABLE, VIEWS
from hf_cxr.data.store import DATASET, Store
from hf_cxr.data.study import TEXTS

SHARD_BYTES = 500_000_000  # of images in one Parquet file, as the Hub advises
BATCH = 100  # rows of a row group, and in memory; two images of 384 pixels take about 200 kB

log = logging.getLogger(__name__)


def build(config: PreparationConfig, staging: Path, workers: Workers) -> tuple[dict[str, Any], datasets.DatasetInfo]:
    """Write `data/*.parquet`, `splits.csv`, `images.csv` and `rejects.jsonl` into the folder `DATASET` of `staging`.

    Returns:
        The preparation report; and the columns, with number and size of the rows of each split that has any.
    """
    named = config.named_splits()
    plan, about_views = config.plan(named)
    check_disk(plan.studies, config.size, staging)
    with closing(Store(staging, len(plan.studies))) as store:
        images = read_images(plan.studies, config.size, store, workers)
        steps = [FOUND, READABLE, *([BOTH] if config.require == "both" else []), ONE_SPLIT]
        choice = choose(config, plan, images, steps, named)
        if not choice.kept:
            raise ValueError(splits.nothing_left(len(plan.order), plan.rejects))

        kept = [plan.studies[s] for s in choice.kept]
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in splits.SPLITS}
        order: list[tuple[int, str]] = []
        patients: dict[str, int] = {}
        for s, study in zip(choice.kept, kept, strict=True):
            patient = patients.setdefault(study.patient or study.uid, len(patients))
            made = list(rows_of(study, patient, images[s], choice.selections[s]))
            rows[choice.split_of_uid[study.uid]] += made
            order += [(s, choice.split_of_uid[study.uid])] * len(made)
        folder = staging / DATASET
        (folder / "data").mkdir(parents=True)
        features = features_of(row for part in rows.values() for row in part)
        written = _write(rows, order, store, folder / "data", features.arrow_schema)

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
    sections = {name: sum(bool(getattr(study, name).strip()) for study in kept) for name in TEXTS[:2]}
    target = max(sections, key=sections.__getitem__)
    split_names = [choice.split_of_uid[study.uid] for study in kept]
    report: dict[str, Any] = {
        "steps": plan.steps,
        "splits": {name: len(part) for name, part in rows.items()},
        "studies": {name: split_names.count(name) for name in rows},
        "sections": sections,
        "images": uses,
        "placeholders": dict(plan.placeholders),
        "patients_tied_by_an_image": splits.tied_patients(kept, choice.digests),
        **patients_known(kept, choice.split_of_uid),
        "images_sha256": provenance.digest_of(images),
        "text_overlap": text_overlap({n: [r[target] for r in part if r[target].strip()] for n, part in rows.items()}),
        **about_views,
    }
    if named is not None:
        report["split_file_uids_without_a_study"] = len(set(named) - set(plan.order))
    return report, datasets.DatasetInfo(features=features, splits=written)


def _write(
    rows: Mapping[str, Sequence[dict[str, Any]]],
    order: Iterable[tuple[int, str]],
    store: Store,
    folder: Path,
    schema: pa.Schema,
) -> datasets.SplitDict:
    """Copy images and texts to Parquet, a part of the store after the other, each deleted once it is copied.

    All splits are written side by side: `order` tells whose next row it is, and the index of its study.
    """
    files = {name: _SplitFiles(folder, name, part, schema) for name, part in rows.items() if part}
    turns = {name: iter(part) for name, part in rows.items()}
    part = 0
    for s, name in order:
        if store.part(s) > part:
            part = store.part(s)
            store.drop(part, folder.iterdir(), {name: split.pending() for name, split in files.items()})
        row = next(turns[name])
        stored = {view: row[view] and {"bytes": store.read(s, row[view]), "path": None} for view in VIEWS}
        told = files[name].told
        files[name].add(row | stored)
        if told and not files[name].told:  # what was pending is written
            store.drop(part, folder.iterdir(), {name: files[name].pending()})
    written = datasets.SplitDict()
    for split in files.values():
        written.add(split.info)
    return written


class _SplitFiles:
    """The Parquet files of one split, written row by row."""

    def __init__(self, folder: Path, name: str, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> None:
        sizes, payload = [0], 0
        for row in rows:
            if payload > SHARD_BYTES:
                sizes.append(0)
                payload = 0
            sizes[-1] += 1
            payload += sum(row[view].length for view in VIEWS if row[view])
        names = (f"{name}-{number:05d}-of-{len(sizes):05d}.parquet" for number in range(len(sizes)))
        self.files = [(folder / file, size) for file, size in zip(names, sizes, strict=True)]
        self.schema = schema
        self.info = datasets.SplitInfo(name=name, num_bytes=0, num_examples=len(rows))
        self.waiting: list[dict[str, Any]] = []
        self.told = 0  # of those that wait, how many `pending` told of before
        self.writer: pq.ParquetWriter | None = None
        self.left = 0  # rows that the file which is being written still lacks

    def add(self, row: dict[str, Any]) -> None:
        """Write a row, images as `datasets.Image` stores them: 8-bit grey PNG (lossless)."""
        if self.writer is None:
            file, self.left = self.files.pop(0)
            self.writer = pq.ParquetWriter(file, self.schema, **PARQUET)
        self.waiting.append(row)
        if len(self.waiting) < min(BATCH, self.left):
            return
        table = pa.Table.from_pylist(self.waiting, self.schema)
        self.writer.write_table(table)
        self.info.num_bytes += table.nbytes
        self.left -= len(self.waiting)
        self.waiting, self.told = [], 0
        if not self.left:
            self.writer.add_key_value_metadata({"content_defined_chunking": json.dumps(CHUNKS)})
            self.writer.close()
            self.writer = None

    def pending(self) -> tuple[bool, list[bytes]]:
        """The images of rows that wait to be written, less those told of before, and whether there are such."""
        told, self.told = self.told, len(self.waiting)
        return told > 0, [row[view]["bytes"] for row in self.waiting[told:] for view in VIEWS if row[view]]
