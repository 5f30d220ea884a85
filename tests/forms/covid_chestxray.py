"""The COVID-19 image data collection: `metadata.csv` with a row an image, of radiographs and of CT, and `images/`."""

from __future__ import annotations

import random
from pathlib import Path

from forms.truth import Truth, pixels, write, write_csv

OPTIONS = ["--root", "metadata.csv", "--section", "findings"]
WORDS = {"PA": ("frontal", "PA"), "AP": ("frontal", "AP"), "AP Supine": ("frontal", "AP"), "L": ("lateral", "")}
WORDS |= {"Axial": ("neither", ""), "Coronal": ("neither", "")}
KINDS = {("PA", "L"): 3, ("AP",): 3, ("AP Supine",): 3, ("PA", "Axial"): 1, ("Coronal",): 1}
HEAD = (
    "patientid offset sex age finding RT_PCR_positive survival intubated intubation_present went_icu in_icu"
    " needed_supplemental_O2 extubated temperature pO2_saturation leukocyte_count neutrophil_count lymphocyte_count"
    " view modality date location folder filename doi url license clinical_notes other_notes"
).split()


def make(folder: Path, number: int, seed: int = 0) -> list[Truth]:
    """`number` studies, three a patient; every 9th has no day, so that each image of it is a study of its own."""
    draw, rows, made = random.Random(seed), [], []
    for study in range(number):
        patient, day = str(study // 3 + 1), "" if study % 9 == 8 else str(study % 3 * 5)
        views = ("AP",) if not day else draw.choices(list(KINDS), list(KINDS.values()))[0]
        note = "" if study % 13 == 6 else f"Opacities in both lower lobes, number {study}."
        images = []
        for at, word in enumerate(views):
            volume = word in ("Axial", "Coronal")
            name = f"paper-{study}-fig{at}.{'nii.gz' if volume else 'jpg' if at else 'png'}"
            if not volume:
                write(folder / "images" / name, pixels(name))
            row = dict.fromkeys(HEAD, "")
            row |= {
                "patientid": patient,
                "offset": day,
                "sex": "M",
                "age": "65",
                "finding": "Pneumonia/Viral/COVID-19",
            }
            row |= {"view": word, "modality": "CT" if volume else "X-ray", "folder": "volumes" if volume else "images"}
            rows.append(row | {"filename": name, "license": "CC BY-NC-SA", "clinical_notes": note})
            images.append((name, *WORDS[word]))
        neither = all(view == "neither" for _, view, _ in images)
        made.append(
            Truth(
                uid=f"{patient}-day{day}" if day else images[0][0],
                patient=patient,
                texts={"findings": note},
                images=images,
                tags=("pneumonia/viral/covid-19",),
                age=65.0,
                sex="M",
                turn=study % 3 if day else -1,
                left_out="with findings" if not note else "neither" if neither else "",
            )
        )
    write_csv(folder / "metadata.csv", rows)
    return made
