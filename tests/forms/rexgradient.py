"""ReXGradient-160K: an object of objects for each split, with lists of images and of their views, and deep folders."""

from __future__ import annotations

import json
import random
from pathlib import Path

from forms.truth import Truth, pixels, write

OPTIONS = ["--root", "metadata"]
SPLITS = {"test": "test", "train": "train", "valid": "validation"}
WORDS = {"PA": ("frontal", "PA"), "AP": ("frontal", "AP"), "LATERAL": ("lateral", ""), "LL": ("lateral", "")}
WORDS |= {"POSTERO_ANTERIOR": ("frontal", "PA"), "LAO": ("neither", ""), "UNKNOWN": (None, ""), "N/A": (None, "")}
KINDS = {("PA", "LATERAL"): 6, ("AP",): 4, ("PA", "LL", "LAO"): 1, ("UNKNOWN",): 1, ("N/A", "POSTERO_ANTERIOR"): 1}


def make(folder: Path, number: int, seed: int = 0) -> list[Truth]:
    """`number` studies; every 10th misses a file, every 11th has no impression."""
    draw, made = random.Random(seed), []
    tables: dict[str, dict] = {name: {} for name in SPLITS}
    for study in range(number):
        patient, accession = f"GRDN{study // 2:012X}", f"GRDN{study + 7000:012X}"
        split = {4: "valid", 5: "test"}.get(study // 2 % 6, "train")
        series = f"1.2.826.0.1.3680043.8.498.{10**9 + study}"
        views = draw.choices(list(KINDS), list(KINDS.values()))[0]
        texts = {
            "impression": "" if study % 11 == 5 else f"No acute disease, number {study}.",
            "findings": "The lungs are clear.",
            "indication": "Cough.",
            "comparison": "" if study % 3 else "None available.",
        }
        names = [f"{series}.{at}.png" for at in range(len(views))]
        start = f"deid_png/{patient}/{accession}/studies/{series}/series/{series}.9/instances"
        for at, name in enumerate(names):
            if not (study % 10 == 4 and at == 0):
                write(folder / start / name, pixels(name))
        key, days = f"{patient}_{accession}", study % 2 == 1
        tables[split][key] = {
            "PatientID": patient,
            "AccessionNumber": accession,
            "StudyInstanceUid": series,
            "StudyDate": 20200101 + study % 2,
            "PatientSex": "FM"[study % 2],
            "PatientAge": "073D" if days else "062Y",
            "Indication": texts["indication"],
            "Comparison": texts["comparison"] or float("nan"),
            "Findings": texts["findings"],
            "Impression": texts["impression"] or None,
            "ImagePath": [f"../{start}/{name}" for name in names],
            "ImageViewPosition": list(views),
            "ImageShape": [[64, 64]] * len(names),
        }
        missing = study % 10 == 4 and views[0] != "N/A"  # taken for a frontal, of which there is another
        made.append(
            Truth(
                uid=key,
                patient=patient,
                texts=texts,
                images=[(name, *WORDS[word]) for name, word in zip(names, views, strict=True)],
                split=SPLITS[split],
                age=73 / 365.25 if days else 62.0,
                sex="FM"[study % 2],
                turn=study % 2,
                left_out="with impression" if not texts["impression"] else "with image files found" if missing else "",
            )
        )
    for name, studies in tables.items():
        text = json.dumps(studies)
        write(folder / "metadata" / f"{name}_metadata_view_position.json", text.encode())
        write(folder / "metadata" / f"{name}_metadata.json", text.encode())
        write(folder / "metadata" / f"{name}_metadata.csv", b"id,Findings\n")
    return sorted(made, key=lambda truth: truth.split or "")  # as the files are, by name
