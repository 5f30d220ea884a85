"""How fast `prepare` reads images of real size, beside Pillow alone on the same files and cores, and its memory.

python benchmarks/preparation.py --folder FOLDER     # makes 100 MB of files once, then measures: minutes

Pillow decodes in full and resizes with its bicubic filter, as most people would. The kit's way is all of `prepare`:
encoding, hashing, and writing Parquet files too. Each runs in a process of its own; imports are not counted. "CPU" is
the time of all processors, which tells the ratio even on a busy machine.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from hf_cxr.inference.decoding import decoder

SIZE = 384
FILM = (2544, 3056)
NOISE = 1.05  # standard deviation of each of four summed grey levels
KINDS = {"JPEG": "jpg", "PNG, 8 bits": "8.png", "PNG, 16 bits": "16.png"}


def write_study(folder: Path, index: int, pixels: int) -> tuple[str, str, str, str]:
    from hf_cxr.data.sources.phantom import draw, plan
    from hf_cxr.data.sources.phantom_text import report

    case = plan(0, index)
    names = [f"{index}_{view}.png" if view in case.views else "" for view in ("frontal", "lateral")]
    for name, view in zip(names, ("frontal", "lateral"), strict=True):
        if name and not (folder / name).is_file():
            draw(0, index, view, pixels).save(folder / name)
    return str(index), *names, report(case)[0]  # type: ignore[return-value]


def write_collection(folder: Path, num_studies: int, pixels: int, cores: int) -> None:
    """Phantom studies as PNG files with a table, as a hospital would export them."""
    folder.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(cores) as pool:
        jobs = [pool.submit(write_study, folder, index, pixels) for index in range(num_studies)]
        rows = [job.result() for job in jobs]
    write_table(folder / "studies.csv", rows)


def write_table(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("uid", "frontal", "lateral", "impression"), *rows])


def write_film(folder: Path, index: int, size: tuple[int, int]) -> None:
    """A synthetic study's frontal view in the kinds of `KINDS`, with as much noise as gives the bytes a pixel of real
    films: 1.6 bits as JPEG (MIMIC-CXR-JPG: 1.9 on average), 3.3 as 8-bit PNG."""
    from hf_cxr.data.sources.phantom import draw

    drawn = draw(0, index, "frontal", 512).resize(size, Image.Resampling.BICUBIC)
    noise = np.random.default_rng(index).standard_normal((size[1] + 1, size[0] + 1), dtype=np.float32)
    noise = noise[1:, 1:] + noise[:-1, 1:] + noise[1:, :-1] + noise[:-1, :-1]
    deep = np.clip(16 * (np.asarray(drawn, np.float32) + NOISE * noise), 0, 4095)
    grey = Image.fromarray(np.rint(deep / 16).clip(0, 255).astype(np.uint8))
    grey.save(folder / f"{index}.jpg", quality=95)
    grey.save(folder / f"{index}.8.png")
    Image.fromarray(deep.astype(np.uint16)).save(folder / f"{index}.16.png")


# Of either: seconds by the clock and of all processors, and peak memory (resident, MB) of the main process and others.
MEASURED = """
import json, resource, sys, time
def both():
    return [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
def used():
    return time.perf_counter(), sum(each.ru_utime + each.ru_stime for each in both())
def tell(before):
    wall, cpu = (after - start for after, start in zip(used(), before))
    print(json.dumps({"wall": wall, "cpu": cpu, "peak": [each.ru_maxrss / 1024 for each in both()]}))
"""
PREPARE = """
import datasets
from hf_cxr.data.prepare import prepare
datasets.disable_progress_bars()
before = used()
prepare("table", sys.argv[4], root=sys.argv[1], size=int(sys.argv[2]), num_proc=int(sys.argv[3]))
tell(before)
"""
PILLOW = """
import csv
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from PIL import Image
table, size = Path(sys.argv[1]), int(sys.argv[2])
def shrunk(name):
    with Image.open(table.parent / name) as image:
        grey = image.convert("L")
    scale = size / max(grey.size)
    return grey.resize((round(grey.width * scale), round(grey.height * scale)), Image.Resampling.BICUBIC).size
names = [row["frontal"] for row in csv.DictReader(table.open(encoding="utf-8"))]
before = used()
with ProcessPoolExecutor(int(sys.argv[3])) as pool:
    list(pool.map(shrunk, names, chunksize=8))
tell(before)
"""


def measure(code: str, table: Path, images: int, cores: int) -> dict[str, Any]:
    """Milliseconds an image, by the clock and of all processors, and the peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", MEASURED + code, str(table), str(SIZE), str(cores), f"{folder}/out"]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    told = json.loads(done.stdout.splitlines()[-1])
    return told | {what: 1000 * told[what] / images for what in ("wall", "cpu")}


def write_list(folder: Path, kind: str, files: int, images: int) -> Path:
    """A table of so many images, the files in turn: many studies without as much disk."""
    table = folder / f"{kind}.{images}.csv"
    rows = [(str(i), f"{i % files}.{kind}", "", f"Finding number {i} is seen.") for i in range(images)]
    write_table(table, rows)
    return table


def row(folder: Path, name: str, args: argparse.Namespace) -> str:
    """A line of the table: one kind of file, `prepare` and Pillow in turn, so that both see the same machine."""
    kind = KINDS[name]
    few, many = (write_list(folder, kind, args.files, times * args.images) for times in (1, 4))
    rounds = [[measure(code, few, args.images, args.cores) for code in (PILLOW, PREPARE)] for _ in range(args.rounds)]
    last = measure(PREPARE, many, 4 * args.images, args.cores)
    cpu = [f"{median(each[i]['cpu'] for each in rounds):.1f}" for i in (0, 1)]
    speeds = [f"{median(pillow[what] / kit[what] for pillow, kit in rounds):.2f}" for what in ("cpu", "wall")]
    peaks = ["{:.0f} + {:.0f}".format(*run["peak"]) for run in (rounds[0][1], last)]
    megabytes = median((folder / f"{i}.{kind}").stat().st_size for i in range(args.files)) / 1e6
    return " | ".join(["", name, f"{megabytes:.1f}", *cpu, *speeds, *peaks, ""]).strip()


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the files are made, or were")
    parser.add_argument("--film", type=int, nargs=2, default=FILM, metavar=("WIDTH", "HEIGHT"))
    parser.add_argument("--files", type=int, default=8, help="of each kind; they are read in turn")
    parser.add_argument("--images", type=int, default=400, help="read in a round; for memory 4 times as many, too")
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(words)
    folder = args.folder / "{}x{}".format(*args.film)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(args.files):
        if not (folder / f"{index}.16.png").is_file():
            write_film(folder, index, tuple(args.film))
    print(decoder())
    print(f"{args.cores} cores, {args.images} images of {args.film[0]} × {args.film[1]}, {args.rounds} rounds")
    print(
        "\n| | MB a file | CPU ms, Pillow | CPU ms, prepare | speed by CPU | by the clock | peak MB | of 4 × as many |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in KINDS:
        print(row(folder, name, args), flush=True)


if __name__ == "__main__":
    main()
