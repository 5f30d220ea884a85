"""How fast `prepare` reads full-size images, beside Pillow alone on the same files and cores, and its memory.

python benchmarks/preparation.py --folder /tmp/phantom1024     # draws the files once, then measures
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from hf_cxr.inference.views import shrink

SIZE = 384


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


def write_many(folder: Path, times: int) -> Path:
    """A table that lists every study `times` times, under other names: many studies without as much disk."""
    with (folder / "studies.csv").open(encoding="utf-8", newline="") as stream:
        rows = [tuple(row) for row in csv.reader(stream)][1:]
    many = folder / "many.csv"
    write_table(
        many, [(f"{uid}-{k}", frontal, lateral, text) for k in range(times) for uid, frontal, lateral, text in rows]
    )
    return many


def decode_and_resize(path: str) -> tuple[int, int]:
    """What nobody can do without; `resize` as most people call it."""
    return bicubic(decode(path)).size


def decode_and_shrink(path: str) -> tuple[int, int]:
    """The same with the kit's own, cheaper resize."""
    return shrink(decode(path), SIZE).size


def decode(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("L")


def bicubic(grey: Image.Image) -> Image.Image:
    scale = SIZE / max(grey.size)
    return grey.resize((round(grey.width * scale), round(grey.height * scale)), Image.Resampling.BICUBIC)


def pillow_alone(files: list[str], cores: int, work: Callable[[str], object] = decode_and_resize) -> float:
    start = time.perf_counter()
    with ProcessPoolExecutor(cores) as pool:
        list(pool.map(work, files, chunksize=8))
    return time.perf_counter() - start


def print_choices(files: list[str]) -> None:
    """What the cheaper resize costs in fidelity, and what the choice of zlib's strategy gains."""
    images = [decode(path) for path in files]
    errors = [np.square(np.asarray(bicubic(p), float) - np.asarray(shrink(p, SIZE), float)).mean() for p in images]
    print(f"\nresize against bicubic alone, PSNR, least of {len(files)}: {10 * np.log10(255**2 / max(errors)):.1f} dB")
    small = [shrink(image, SIZE) for image in images]
    for name, strategy in (("default", -1), ("run-length", zlib.Z_RLE)):
        start, stored = time.perf_counter(), 0
        for image in small:
            buffer = io.BytesIO()
            image.save(buffer, "PNG", compress_type=strategy)
            stored += buffer.tell()
        each = (time.perf_counter() - start) / len(small)
        print(f"PNG of {SIZE} px, zlib {name}: {1000 * each:.1f} ms, {stored / len(small) / 1000:.1f} kB")


PREPARE = """
import json, resource, sys, time
import datasets
from hf_cxr.data.prepare import prepare
datasets.disable_progress_bars()
start = time.perf_counter()
prepare("table", sys.argv[1], root=sys.argv[2], size=int(sys.argv[3]), num_proc=int(sys.argv[4]))
seconds = time.perf_counter() - start
peak = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"seconds": seconds, "main_mb": peak[0], "reader_mb": peak[1]}))
"""


def kit(table: Path, cores: int) -> dict[str, float]:
    """`prepare` in a process of its own: seconds after imports, and peak memory (resident, MB)."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, "-c", PREPARE, f"{folder}/out", str(table), str(SIZE), str(cores)]
        done = subprocess.run(words, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the files are drawn, or were")
    parser.add_argument("--num-studies", type=int, default=500)
    parser.add_argument("--pixels", type=int, default=1024)
    parser.add_argument("--cores", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--many", type=int, default=10, help="also prepare so many times as many studies, for memory")
    args = parser.parse_args()
    write_collection(args.folder, args.num_studies, args.pixels, args.cores)
    files = sorted(str(path) for path in args.folder.glob("*.png"))
    for path in files:  # into the disk cache, for both
        Path(path).read_bytes()

    bare, cheap, ours = [], [], []
    for _ in range(args.rounds):  # in turn, so that both see the same machine
        bare.append(pillow_alone(files, args.cores))
        cheap.append(pillow_alone(files, args.cores, decode_and_shrink))
        ours.append(kit(args.folder / "studies.csv", args.cores))
    pillow, prepare = median(bare), median(run["seconds"] for run in ours)
    print(
        f"{args.num_studies} studies, {len(files)} PNG of {args.pixels} px, {args.cores} cores, {args.rounds} rounds"
    )
    print(f"Pillow decode + resize  {pillow:6.1f} s  {len(files) / pillow:6.1f} images/s")
    print(f"hf-cxr prepare          {prepare:6.1f} s  {len(files) / prepare:6.1f} images/s")
    print(
        f"prepare / Pillow speed  {pillow / prepare:.2f} ({median(cheap) / prepare:.2f} with the kit's resize in both)"
    )
    print(memory(args.num_studies, ours[0]))
    if args.many > 1:
        many = kit(write_many(args.folder, args.many), args.cores)
        print(memory(args.num_studies * args.many, many))
    print_choices(files[:40])


def memory(studies: int, run: dict[str, float]) -> str:
    return f"peak memory, {studies} studies: {run['main_mb']:.0f} MB + {run['reader_mb']:.0f} MB a reader"


if __name__ == "__main__":
    main()
