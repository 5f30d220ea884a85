"""R2Gen's annotation of MIMIC-CXR: a record an image, in lists by split, and `images/p10/p10000032/s50414267/…`."""

from __future__ import annotations

import io
import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image


@dataclass
class Truth:
    """What the maker knows of one study."""

    uid: str
    patient: int
    split: str
    findings: str
    images: int


def make(folder: Path, number: int, seed: int = 0) -> dict[str, Truth]:
    """`number` studies of one to three images; a patient has one to three studies, in one split."""
    rng = random.Random(seed)
    annotation: dict[str, list[dict]] = {"train": [], "val": [], "test": []}
    truth: dict[str, Truth] = {}
    ids = rng.sample(range(50_000_000, 60_000_000), number)  # as published: they say nothing of the order in time
    while len(truth) < number:
        patient = 10_000_032 + 7 * len(truth)
        split = rng.choices(list(annotation), (8, 1, 1))[0]
        for _ in range(min(rng.randint(1, 3), number - len(truth))):
            study = ids[len(truth)]
            ours = {"val": "validation"}.get(split, split)
            known = Truth(f"s{study}", patient, ours, f"The lungs are clear in study {study}.", rng.randint(1, 3))
            truth[known.uid] = known
            for _ in range(known.images):
                dicom = "-".join(f"{rng.getrandbits(32):08x}" for _ in range(5))
                path = f"p{str(patient)[:2]}/p{patient}/s{study}/{dicom}.jpg"
                record = {"id": dicom, "study_id": study, "subject_id": patient, "report": known.findings}
                annotation[split].append(record | {"image_path": [path], "split": split})
                _write(folder / "images" / path, rng.getrandbits(32))
    for records in annotation.values():
        rng.shuffle(records)  # the records of a study do not stand together
    (folder / "annotation.json").write_text(json.dumps(annotation), encoding="utf-8")
    return truth


def _write(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).resize((64, 64)).save(buffer, "JPEG")
    path.write_bytes(buffer.getvalue())
