"""Studies → images sized for training → Parquet files, and the preparation report of all that was left out.

What is kept is decided in `hf_cxr.data.choice`, images are read in `hf_cxr.data.images`; the folder around the files
is made in `hf_cxr.data.prepare`. Parquet is written with pyarrow: `Dataset.from_generator` would write every image to
the disk twice, as Arrow and as Parquet."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import IO, Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from hf_cxr.data import provenance, splits
from hf_cxr.data.checks import check_disk
from hf_cxr.data.choice import ONE_SPLIT, PreparationConfig, choose, patients_known
from hf_cxr.data.images import read_images
from hf_cxr.data.leakage import text_overlap
from hf_cxr.data.schema import CHUNKS, PARQUET, features_of, rows_of
from hf_cxr.data.selection import BOTH, FOUND, READABLE, VIEWS
from hf_cxr.data.study import StoredImage

SHARD_BYTES = 500_000_000  # of images in one Parquet file, as the Hub advises
BATCH = 100  # rows of a row group, and in memory; two images of 384 pixels take about 200 kB

log = logging.getLogger(__name__)


def build(config: PreparationConfig, folder: Path, num_proc: int) -> tuple[dict[str, Any], datasets.DatasetInfo]:
    """Write `data/*.parquet`, `splits.csv`, `images.csv` and `rejects.jsonl` into `folder`, made for them.

    Returns:
        The preparation report; and the columns, with number and size of the rows of each split that has any.
    """
    named = config.named_splits()
    plan, about_views = config.plan(named)
    check_disk(plan.studies, config.size, folder)
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
        rows[choice.split_of_uid[study.uid]] += rows_of(study, patient, images[s], choice.selections[s])
    features = features_of(row for part in rows.values() for row in part)
    written = datasets.SplitDict()
    with store.open("rb") as stream:
        for name, part in rows.items():
            if part:
                written.add(_write_split(part, stream, folder / "data", name, features.arrow_schema))
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
        "placeholders": dict(plan.placeholders),
        "patients_tied_by_an_image": splits.tied_patients(kept, choice.digests),
        **patients_known(kept, choice.split_of_uid),
        "images_sha256": provenance.digest_of(images),
        "text_overlap": text_overlap({name: [row[target] for row in part] for name, part in rows.items()}),
        **about_views,
    }
    if named is not None:
        report["split_file_uids_without_a_study"] = len(set(named) - set(plan.order))
    return report, datasets.DatasetInfo(features=features, splits=written)


def _write_split(
    rows: list[dict[str, Any]], store: IO[bytes], folder: Path, name: str, schema: pa.Schema
) -> datasets.SplitInfo:
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
        with pq.ParquetWriter(file, schema, **PARQUET) as writer:
            for start in range(0, len(shard), BATCH):
                part = shard[start : start + BATCH]
                batch = [row | {view: _stored(row[view], store) for view in VIEWS} for row in part]
                table = pa.Table.from_pylist(batch, schema)
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
