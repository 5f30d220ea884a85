"""Time and memory of planning a collection of the size of MIMIC-CXR-JPG, and whether both grow with its size alone.

python benchmarks/scale.py --folder FOLDER --shares 0.1 1     # makes the trees once (about 300,000 folders, 2 GB)
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import random
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from hf_cxr.data.sources.mimic import LABELS

STUDIES, PATIENTS = 227_827, 65_379  # of MIMIC-CXR-JPG 2.0.0, with 377,110 images
VIEWS = (["AP"], ["PA", "LATERAL"], ["AP"], ["PA", "LL"], ["AP", "AP"], ["PA", "LATERAL"], ["AP", ""], ["AP", "AP"])
LINKS = 30_000  # of one file, which many file systems limit to 65,000
SENTENCES = (
    "There is no focal consolidation, pleural effusion or pneumothorax.",
    "Compared to the prior study of ___, the left basilar opacity has decreased.",
    "The cardiomediastinal and hilar contours are within normal limits.",
    "A right internal jugular catheter ends in the low SVC, as before.",
    "Mild pulmonary edema persists with small bilateral pleural effusions, left greater than right.",
    "Findings were discussed with Dr. ___ by telephone at 10:15 on ___.",
    "Multiple healed rib fractures on the right are again seen.",
    "The endotracheal tube terminates 4 cm above the carina.",
    "Lung volumes are low, with bibasilar atelectasis.",
    "Median sternotomy wires and mediastinal clips are unchanged in position.",
)
COLUMNS = (
    "dicom_id subject_id study_id PerformedProcedureStepDescription ViewPosition Rows Columns StudyDate StudyTime"
)


def report(chance: random.Random) -> str:
    """About 900 characters, as in the collection."""
    said = [f" {' '.join(chance.sample(SENTENCES, k))}\n" for k in (5, 2)]
    return (
        f"{' ' * 33}FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old, cough // edema?\n"
        " \n TECHNIQUE:  Chest PA and lateral\n \n COMPARISON:  ___\n"
        f" \n FINDINGS: \n \n{said[0]} \n IMPRESSION: \n \n{said[1]}"
    )


def make(folder: Path, number: int) -> None:
    """A tree of `number` studies: every image is a link to one JPEG, and every report has its own text."""
    chance = random.Random(0)
    files = folder / "files"
    files.mkdir(parents=True)
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 128).save(buffer, "JPEG")
    images = 0
    patient, left = 10_000_000, 0
    metadata: list[list[object]] = [[*COLUMNS.split()]]
    split: list[list[object]] = [["dicom_id", "study_id", "subject_id", "split"]]
    labels: list[list[object]] = [["subject_id", "study_id", *LABELS]]
    with zipfile.ZipFile(folder / "mimic-cxr-reports.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for study in chance.sample(range(50_000_000, 60_000_000), number):
            if not left:
                patient += chance.randrange(1, 9_000_000 // PATIENTS)
                left, name = (
                    chance.randrange(1, 2 * STUDIES // PATIENTS),
                    chance.choice(["train"] * 98 + ["validate", "test"]),
                )
            left -= 1
            place = f"p{patient // 1_000_000}/p{patient}/s{study}"
            (files / place).mkdir(parents=True)
            archive.writestr(f"files/{place}.txt", report(chance))
            when = [
                f"2{chance.randrange(110, 200)}{chance.randrange(101, 1229):04d}",
                f"{chance.random() * 240_000:.3f}",
            ]
            for view in chance.choice(VIEWS):
                dicom = "-".join(f"{chance.getrandbits(32):08x}" for _ in range(5))
                if images % LINKS == 0:
                    source = folder / f"one-{images // LINKS}"
                    source.write_bytes(buffer.getvalue())
                os.link(source, files / place / f"{dicom}.jpg")
                images += 1
                metadata.append([dicom, patient, study, "CHEST (PA AND LAT)", view, 2544, 3056, *when])
                split.append([dicom, study, patient, name])
            labels.append([patient, study, *chance.choices(("", "1.0", "0.0", "-1.0"), (8, 2, 1, 1), k=len(LABELS))])
    for kind, rows in (("metadata", metadata), ("split", split), ("chexpert", labels)):
        with gzip.open(folder / f"mimic-cxr-2.0.0-{kind}.csv.gz", "wt", compresslevel=1, newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows(rows)
    (folder / "made").write_text(f"{images}")


def measure(folder: Path) -> Iterator[tuple[str, float]]:
    words = ["prepare", "mimic", "--images", str(folder / "files"), "--reports", str(folder / "mimic-cxr-reports.zip")]
    start = time.perf_counter()
    with Path(os.devnull).open("wb") as nothing:
        child = os.posix_spawn(
            sys.executable,
            [sys.executable, "-m", "hf_cxr", *words, "--plan"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, nothing.fileno(), 1)],
        )
        _, status, usage = os.wait4(child, 0)
    if status:
        raise SystemExit(f"plan of {folder} failed")
    yield "wall_s", time.perf_counter() - start
    yield "cpu_s", usage.ru_utime + usage.ru_stime
    yield "peak_gb", usage.ru_maxrss * 1024 / 1e9


def main(words: list[str] | None = None) -> list[dict[str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--studies", type=int, default=STUDIES)
    options = parser.parse_args(words)
    results = []
    for share in options.shares:
        number = round(options.studies * share)
        folder = options.folder / str(number)
        if not (folder / "made").is_file():
            make(folder, number)
        images = float((folder / "made").read_text())
        results.append({"studies": float(number), "images": images} | dict(measure(folder)))
        print(json.dumps({name: round(value, 2) for name, value in results[-1].items()}), flush=True)
    return results


if __name__ == "__main__":
    main()
