"""Studies per second of the embedded collection on one core, its prevalence, and its contact sheet.

python benchmarks/phantom.py [--size 128] [--num-studies 300] [--contact-sheet docs/phantom_contact_sheet.png]
"""

from __future__ import annotations

import argparse
import textwrap
import time
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw

from hf_cxr.data.sources.phantom import LATERAL_ONLY, TAGS, render, studies
from hf_cxr.data.sources.phantom_text import plan
from hf_cxr.data.study import Study


def studies_per_second(num_studies: int, size: int) -> float:
    """Both views drawn, in one process; the CPU's own time, so that a busy machine does not count."""
    start = time.process_time()
    for study in studies(num_studies, size=size):
        for radiograph in study.images:
            if callable(radiograph.source):
                radiograph.source()
    return num_studies / (time.process_time() - start)


def contact_sheet(path: Path, seed: int = 0, size: int = 200) -> None:
    """Ten studies of `seed`, each with both views and its impression: one normal, then new findings every time."""
    chosen: list[Study] = []
    shown: set[str] = set()
    for study in studies(2000, seed=seed):
        fresh = set(study.tags) - shown
        if len(study.images) == 2 and (len(fresh) >= 2 or not (study.tags or chosen)):
            chosen.append(study)
            shown |= set(study.tags)
        if len(chosen) == 10:
            break
    caption = 44
    sheet = Image.new("L", (2 * (2 * size + 12), 5 * (size + caption)), 255)
    pen = ImageDraw.Draw(sheet)
    for k, study in enumerate(chosen):
        left, top = (k % 2) * (2 * size + 12), (k // 2) * (size + caption)
        case = plan(seed, int(study.uid.rsplit("-", 1)[1]))
        for j, view in enumerate(("frontal", "lateral")):
            sheet.paste(render(case, view, size), (left + j * size, top))
        pen.text((left + 2, top + size + 3), "\n".join(textwrap.wrap(study.impression, 66)[:3]), fill=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.quantize(48).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="pixels per side of a view")
    parser.add_argument("--num-studies", type=int, default=300)
    parser.add_argument("--contact-sheet", type=Path, metavar="PATH", help="write the contact sheet here")
    args = parser.parse_args()
    if args.contact_sheet:
        contact_sheet(args.contact_sheet)
        print(f"wrote {args.contact_sheet}")
    start = time.process_time()
    collection = list(studies(5000))
    print(f"text: {(time.process_time() - start) / 5000 * 1e6:.0f} µs per study")
    print(f"images: {studies_per_second(args.num_studies, args.size):.0f} studies/s at {args.size} px, one core")
    count = Counter(tag for study in collection for tag in study.tags)
    print(f"{'normal':24}{sum(not s.tags for s in collection) / 50:5.1f} %")
    for tag in TAGS:
        print(f"{tag:24}{count[tag] / 50:5.1f} %{'  lateral only' if tag in LATERAL_ONLY else ''}")


if __name__ == "__main__":
    main()
