"""How often the decision "frontal or lateral" is right: names, headers and pixels, each alone and together.

python benchmarks/view_labels.py --iu ../shared/data/iu [--frontal ../shared/data/nih_frontal] [--fit]

Names are counted on half of the uids (`--fit` prints the counts that hf_cxr/view_labels.py holds), and everything is
scored on the other half.
"""

from __future__ import annotations

import argparse
import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from hf_cxr.data.archives import image_key
from hf_cxr.data.sources import phantom
from hf_cxr.data.sources.rows import read_rows
from hf_cxr.data.view_labels import decide_views, pixel_evidence
from hf_cxr.data.view_tables import read_view_table
from hf_cxr.inference.views import read_radiograph, shrink

Labelled = dict[str, list[tuple[str, str]]]
"""uid → (name, view) of its images, in the order of names"""

BINS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0001)


def in_fit_half(uid: str) -> bool:
    return hashlib.sha256(f"views:{uid}".encode()).digest()[0] < 128


def read_labels(iu: Path) -> Labelled:
    labels: Labelled = defaultdict(list)
    for row in read_rows(iu / "indiana_projections.csv", ("uid", "filename", "projection")):
        labels[row["uid"]].append((image_key(row["filename"]), row["projection"].lower()))
    return {uid: sorted(images) for uid, images in labels.items()}


def print_fit(labels: Labelled) -> None:
    counts = Counter(
        (name.rpartition("-")[2], view)
        for uid, images in labels.items() if in_fit_half(uid) for name, view in images
    )  # fmt: skip
    blocks = sorted(
        {block for block, _ in counts}, key=lambda block: -counts[block, "frontal"] - counts[block, "lateral"]
    )
    for block in blocks[:16]:
        print(f'    "{block}": ({counts[block, "frontal"]}, {counts[block, "lateral"]}),')


def first_is_frontal(names: list[str], pixels: object = (), hints: object = ()) -> list[tuple[str, float]]:
    return [("frontal" if i == 0 else "lateral", 1.0) for i in range(len(names))]


def score(
    labels: Labelled, decide: Callable, hints: dict[str, str] | None = None
) -> tuple[list[bool], list[bool], list[float]]:
    """Right or not of each study of two images, of each image, and the confidence of each image."""
    studies, images, confidences = [], [], []
    for shown in labels.values():
        names = [name for name, _ in shown]
        decided = decide(names, (), [hints.get(name) for name in names] if hints else ())
        right = [view == truth for (view, _), (_, truth) in zip(decided, shown, strict=True)]
        images += right
        confidences += [confidence for _, confidence in decided]
        if len(shown) == 2:
            studies.append(all(right))
    return studies, images, confidences


def percent(right: list[bool]) -> str:
    return f"{100 * np.mean(right):.1f} % of {len(right):,}"


def names_and_headers(iu: Path) -> None:
    labels = read_labels(iu)
    held_out = {uid: images for uid, images in labels.items() if not in_fit_half(uid)}
    headers = {}
    for row in read_rows(iu / "dicom_headers.csv.gz", ("imageid", "View Position")):
        said = row["View Position"].upper()
        headers[image_key(row["imageid"])] = "" if not said else "frontal" if said in ("PA", "AP") else "lateral"
    for said in ("frontal", "lateral"):
        told = [view == said for shown in labels.values() for name, view in shown if headers.get(name) == said]
        print(f"headers that say {said} are right for {percent(told)}")
    print("| evidence | two-image studies, both right | images |\n|---|---|---|")
    for name, decide, hints in (
        ("first in sorted order is frontal", first_is_frontal, None),
        ("names", decide_views, None),
        ("names and DICOM header", decide_views, headers),
    ):
        studies, images, _ = score(held_out, decide, hints)
        print(f"| {name} | {percent(studies)} | {percent(images)} |")
    rule, names = (score(held_out, decide)[0] for decide in (first_is_frontal, decide_views))
    won, lost = (sum(a and not b for a, b in zip(x, y, strict=True)) for x, y in ((names, rule), (rule, names)))
    # Exact McNemar test: under no difference, which of the two is right where one errs is a toss-up.
    p = 2 * sum(math.comb(won + lost, k) for k in range(min(won, lost) + 1)) / 2 ** (won + lost)
    print(f"\nNames against the rule: {won} studies won, {lost} lost, exact McNemar p = {min(1.0, p):.2g}")
    print("\nBy number of images in the study (names):")
    for number in (1, 2, 3, 4):
        some = {uid: images for uid, images in held_out.items() if len(images) == number}
        if some:
            ours, theirs = (percent(score(some, decide)[1]) for decide in (decide_views, first_is_frontal))
            print(f"  {number}: {ours} images, first-is-frontal {theirs}")
    _, right, sure = score(held_out, decide_views)
    print("\nConfidence against truth (names):")
    for low, high in pairwise(BINS):
        inside = [r for r, c in zip(right, sure, strict=True) if low <= c < high]
        if inside:
            mean = np.mean([c for c in sure if low <= c < high])
            print(f"  {low:.2f} to {min(high, 1):.2f}: said {mean:.3f}, right {percent(inside)}")

    table = {path[0]: said.view for path, said in read_view_table(iu / "nlmcxr_tsne_pa.csv.gz").views.items()}
    decided = {
        name: view
        for images in held_out.values()
        for (name, _), (view, _) in zip(images, decide_views([name for name, _ in images]), strict=True)
    }
    agree = [decided[key] == table[key] for key in sorted(set(table) & set(decided))]
    print(f"\nAgainst nlmcxr_tsne_pa.csv.gz (one image a study): names {percent(agree)}")
    known = {name: view for images in labels.values() for name, view in images if name in table}
    differ = sum(table[name] != view for name, view in known.items())
    print(f"(that table differs from the projections on {differ} of {len(known):,})")


def disturbed(image: Image.Image, rng: np.random.Generator) -> Iterator[tuple[str, Image.Image]]:
    yield "as it is", image
    width, height = image.size
    cut = [int(rng.uniform(0, 0.08) * side) for side in (width, height, width, height)]
    yield "cropped by up to 8 % a side", image.crop((cut[0], cut[1], width - cut[2], height - cut[3]))
    yield "turned by up to 5°", image.rotate(rng.uniform(-5, 5), Image.Resampling.BILINEAR)
    yield "black border of 15 %", ImageOps.expand(image, border=int(0.15 * width), fill=0)
    yield "brightness halved", ImageEnhance.Brightness(image).enhance(0.5)
    yield "inverted", ImageOps.invert(image)


def pixels(images: list[tuple[Image.Image, str]], what: str) -> None:
    rng = np.random.default_rng(0)
    right: dict[str, list[bool]] = defaultdict(list)
    odds: dict[str, list[float]] = defaultdict(list)
    for image, view in images:
        for name, changed in disturbed(image, rng):
            evidence = pixel_evidence(changed)
            right[name].append((evidence > 0) == (view == "frontal"))
            if name == "as it is":
                odds[view].append(evidence)
    print(f"\nPixels alone, {what}:")
    for name, results in right.items():
        print(f"  {name}: {percent(results)}")
    for view, values in odds.items():
        print(f"  log-odds of {view}: {min(values):+.1f} to {max(values):+.1f}, median {np.median(values):+.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iu", type=Path, required=True, help="folder with the Kaggle tables and images")
    parser.add_argument("--frontal", type=Path, help="folder of further frontal images")
    parser.add_argument("--fit", action="store_true", help="print the counts of the fitting half")
    args = parser.parse_args()
    if args.fit:
        print_fit(read_labels(args.iu))
        return
    names_and_headers(args.iu)
    truth = {name: view for images in read_labels(args.iu).values() for name, view in images}
    files = [(path, truth[image_key(path.name)]) for path in sorted((args.iu / "images").glob("*.png"))]
    files += [(path, "frontal") for path in sorted(args.frontal.glob("*.png"))] if args.frontal else []
    pixels([(shrink(read_radiograph(path), 384), view) for path, view in files], "real images")
    drawn = [
        (read_radiograph(radiograph.source), str(radiograph.view))  # type: ignore[arg-type]
        for study in phantom.studies(200, seed=1, size=256) for radiograph in study.images
    ]  # fmt: skip
    pixels(drawn, "phantom (synthetic: it proves little)")


if __name__ == "__main__":
    main()
