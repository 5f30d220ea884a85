"""CheXpert Plus: one CSV with a row an image that lists `.jpg`, and PNG in `PNG/PNG/`."""

from __future__ import annotations

import random
from pathlib import Path

from forms.truth import Truth, pixels, write, write_csv

TABLE = "df_chexpert_plus_240401.csv"
OPTIONS = ["--root", TABLE, "--images", "PNG"]
FINDINGS = ("CARDIOMEGALY", "PLEURAL EFFUSION", "ATELECTASIS", "NO ACUTE ABNORMALITY")
KINDS = {  # views of a study → how often
    ("frontal", "lateral"): 6,
    ("frontal",): 5,
    ("lateral",): 1,
    ("frontal", "frontal", "lateral"): 2,
}


def make(folder: Path, number: int, seed: int = 0) -> list[Truth]:
    """`number` studies; every 10th misses a file, every 11th has no impression, every 7th row is there twice."""
    draw, rows, made, turns = random.Random(seed), [], [], {}
    for study in range(number):
        patient = f"patient{40000 + study // 3:05d}"
        turn = turns[patient] = turns.get(patient, 0) + 1
        split = "valid" if study // 3 % 8 == 0 else "train"
        views = draw.choices(list(KINDS), list(KINDS.values()))[0]
        seen, sex, age = draw.choice(FINDINGS), draw.choice(["Male", "Female"]), draw.randint(20, 89)
        texts = {
            "impression": "" if study % 11 == 5 else f"1.  {seen}, NUMBER {study}.",
            "findings": "" if study % 2 else f"PA AND LATERAL VIEWS SHOW {seen}.",
            "indication": f"{age} YEARS OLD WITH COUGH.",
            "comparison": "PRIOR EXAM." if turn > 1 else "",
        }
        images = []
        for at, view in enumerate(views, start=1):
            path = f"{split}/{patient}/study{turn}/view{at}_{view}"
            projection = draw.choice(["AP", "PA"]) if view == "frontal" else ""
            row = {
                "path_to_image": f"{path}.jpg",
                "path_to_dcm": f"{path}.dcm",
                "frontal_lateral": view.capitalize(),
                "ap_pa": projection,
                "deid_patient_id": patient,
                "patient_report_date_order": turn,
                "report": f"NARRATIVE:\n{texts['findings']}\nIMPRESSION:\n{texts['impression']}",
                "section_narrative": "",
                "section_clinical_history": "" if study % 3 else texts["indication"],
                "section_history": texts["indication"] if study % 3 else "",
                "section_comparison": texts["comparison"],
                "section_technique": "",
                "section_procedure_comments": "",
                "section_findings": texts["findings"],
                "section_impression": texts["impression"],
                "section_end_of_impression": "",
                "section_summary": "SUMMARY:1-NO SIGNIFICANT ABNORMALITY",
                "section_accession_number": "",
                "age": f"{age}.0",
                "sex": sex,
                **dict.fromkeys(
                    ("race", "ethnicity", "interpreter_needed", "insurance_type", "recent_bmi"), "Unknown"
                ),
                "deceased": "No",
                "split": split,
            }
            rows += [row] * (2 if len(rows) % 7 == 3 else 1)
            if not (study % 10 == 4 and at == 1):
                write(folder / "PNG" / "PNG" / f"{path}.png", pixels(path))
            images.append((f"view{at}_{view}.jpg", view, projection))
        missing = study % 10 == 4 and views.count(views[0]) == 1
        left_out = "with image files found" if missing else ""
        made.append(
            Truth(
                uid=f"{patient}-study{turn}",
                patient=patient,
                texts=texts,
                images=images,
                split="validation" if split == "valid" else "train",
                age=float(age),
                sex=sex[0],
                turn=turn,
                left_out="with impression" if not texts["impression"] else left_out,
            )
        )
    write_csv(folder / TABLE, rows)
    return made
