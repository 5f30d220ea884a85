"""PadChest: one CSV with a row an image, 16-bit PNG in numbered zips and folders, Spanish texts, lists of labels."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

from forms.truth import Truth, pixels, write, write_csv

TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"
OPTIONS = ["--root", TABLE, "--images", "images", "--section", "findings"]
LABELS = ("cardiomegaly", "pleural effusion", "pneumonia", "normal")
WORDS = {"PA": ("frontal", "PA"), "L": ("lateral", ""), "AP_horizontal": ("frontal", "AP"), "AP": ("frontal", "AP")}
WORDS |= {"COSTAL": ("neither", ""), "EXCLUDE": ("neither", ""), "": (None, "")}
KINDS = {("PA", "L"): 8, ("AP_horizontal",): 3, ("AP",): 2, ("PA", "L", "COSTAL"): 1, ("",): 1, ("PA", "EXCLUDE"): 1}


def make(folder: Path, number: int, seed: int = 0) -> list[Truth]:
    """`number` studies; every 10th misses its first file, every 12th has a text that pandas calls nan."""
    draw, rows, made = random.Random(seed), [], []
    zips: dict[int, dict[str, bytes]] = {}
    for study in range(number):
        patient = str(839860488694292331637988235681460987 + study // 2)
        uid = str(216840111366964013402131755672012177000000 + study)
        views = draw.choices(list(KINDS), list(KINDS.values()))[0]
        labels = draw.sample(LABELS[:3], draw.randint(0, 2)) or ["normal"]
        text = "nan" if study % 12 == 7 else f"no identific {' . '.join(labels)} . sin cambi {study} ."
        images = []
        for at, word in enumerate(views, start=1):
            name, place = f"{uid}_{at:02d}-{study:03d}-{at:03d}.png", study % 4
            if not (study % 10 == 4 and at == 1):
                if place < 2:
                    zips.setdefault(place, {})[name] = pixels(name, deep=True)
                else:
                    write(folder / "images" / str(place) / name, pixels(name, deep=True))
            rows.append(
                {
                    "": len(rows),
                    "ImageID": name,
                    "ImageDir": place,
                    "StudyDate_DICOM": 20100101 + study % 2 * 10000,
                    "StudyID": uid,
                    "PatientID": patient,
                    "PatientBirth": "1950.0",
                    "PatientSex_DICOM": "FMO"[study % 3],
                    "ViewPosition_DICOM": "POSTEROANTERIOR",
                    "Projection": word,
                    "Pediatric": "No",
                    "Modality_DICOM": "CR",
                    "PhotometricInterpretation_DICOM": "MONOCHROME2",
                    "BitsStored_DICOM": "12.0",
                    "ReportID": 4765777 + study,
                    "Report": text,
                    "MethodLabel": "Physician",
                    "Labels": str([f"{label} " if at == 2 else label for label in labels]),
                    "LabelsLocalizationsBySentence": str([[label, "loc basal"] for label in labels]),
                }
            )
            images.append((name, *WORDS[word]))
        left_out = "with image files found" if study % 10 == 4 else ""
        made.append(
            Truth(
                uid=uid,
                patient=patient,
                texts={"findings": "" if text == "nan" else text},
                images=images,
                tags=tuple(label for label in labels if label != "normal"),
                sex="FMO"[study % 3],
                turn=study % 2,
                left_out="with findings" if text == "nan" else left_out,
            )
        )
    (folder / "images").mkdir(exist_ok=True)
    for place, members in zips.items():
        with zipfile.ZipFile(folder / "images" / f"{place}.zip", "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    write_csv(folder / TABLE, rows)
    return made
