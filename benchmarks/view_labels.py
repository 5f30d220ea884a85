"""How often the decision "frontal or lateral" is right: names, headers and pixels, each alone and together.

python benchmarks/view_labels.py --iu ../shared/data/iu --nih ../shared/data/nih_real --covid ../shared/data/covid_real

Names are counted on half of the uids (`--fit` prints the counts that hf_cxr/data/view_labels.py holds), and are scored
on the other half. Pixels are fitted by `fit_view_evidence.py`, on none of the images that are scored here.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import view_films as films
from fit_view_evidence import part_of
from PIL import Image, ImageEnhance, ImageOps

from hf_cxr.data.archives import image_key
from hf_cxr.data.sources import phantom
from hf_cxr.data.sources.rows import read_rows
from hf_cxr.data.view_labels import decide_views
from hf_cxr.data.view_tables import read_view_table
from hf_cxr.inference.plausibility import SURE
from hf_cxr.inference.view_evidence import MOST, ViewEvidence, pixel_evidence, view_of_pixels
from hf_cxr.inference.views import VIEWS, read_radiograph, shrink

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
    yield "turned by 10°", image.rotate(rng.choice([-10, 10]), Image.Resampling.BILINEAR)
    yield "black border of 15 %", ImageOps.expand(image, border=int(0.15 * width), fill=0)
    yield "white border of 15 %", ImageOps.expand(image, border=int(0.15 * width), fill=255)
    yield "burnt-in text", films.marked(films.marked(image, rng), rng)
    yield "brightness halved", ImageEnhance.Brightness(image).enhance(0.5)
    yield "inverted", ImageOps.invert(image)


Films = list[tuple[Image.Image, str]]


def wilson(hits: int, of: int) -> str:
    """A share with its 95 % interval (Wilson 1927)."""
    z, share = 1.96, hits / of
    middle, spread = share + z * z / (2 * of), z * math.sqrt(share * (1 - share) / of + z * z / (4 * of * of))
    low, high = ((middle + sign * spread) / (1 + z * z / of) for sign in (-1, 1))
    return f"{hits} of {of} ({100 * low:.1f} to {100 * high:.1f} %)"


def pixels(images: Films, what: str) -> list[tuple[float, bool]]:
    """Prints how often the pixels are right, and returns the log-odds of the view told and whether it is right."""
    rng = np.random.default_rng(0)
    seen: dict[tuple[str, str], list[ViewEvidence]] = defaultdict(list)
    for image, view in images:
        for name, changed in disturbed(image, rng):
            seen[view, name].append(view_of_pixels(changed))
    print(f'\n| {what} | right | "neither" | warned | warned if given as the other view |\n|---|---|---|---|---|')
    told = []
    for (view, name), found in seen.items():
        sign = 1 if view == "frontal" else -1
        right = sum(sign * e.frontal > 0 for e in found)
        neither = sum(e.neither for e in found)
        warned, swapped = (sum(e.neither or way * sign * e.frontal > SURE for e in found) for way in (-1, 1))
        print(f"| {view}, {name} | {wilson(right, len(found))} | {neither} | {warned} | {swapped} |")
        if name == "as it is":
            told += [(abs(e.frontal), sign * e.frontal > 0) for e in found]
    return told


def no_films(images: Films) -> None:
    """Prints how often what is no upright chest film is told."""
    some = [image.resize((films.SIDE, films.SIDE)) for image, _ in images]
    print('\n| no upright chest film | "neither" |\n|---|---|')
    for name, make in films.kinds(lambda rng: some[int(rng.integers(len(some)))]).items():
        rng = np.random.default_rng(1)
        found = [view_of_pixels(make(rng)).neither for _ in range(100)]
        print(f"| {name} | {wilson(sum(found), 100)} |")


def studies_of_two(known: Films, views: str, what: str) -> None:
    """Prints how often both images of a study are right that has these views and nothing but pixels to tell them by:
    two images that follow each other of one view ("ff", "ll"), or each with each ("fl", "lf")."""
    odds = {view[0]: [pixel_evidence(image) for image, shown in known if shown == view] for view in VIEWS}
    first, second = (odds[view] for view in views)
    pairs = pairwise(first) if first is second else product(first, second)
    told = ["".join(view[0] for view, _ in decide_views(["0", "1"], pair)) == views for pair in pairs]
    print(f"| {what} | {views} | {sum(told)} of {len(told)} |")


def calibration(told: list[tuple[float, bool]]) -> None:
    print("\n| log-odds | said | right |\n|---|---|---|")
    for low, high in pairwise((0, 1, 2, 3, MOST, math.inf)):
        inside = [(odds, right) for odds, right in told if low <= odds < high]
        if inside:
            said = np.mean([1 / (1 + math.exp(-odds)) for odds, _ in inside])
            print(f"| {low} to {high} | {said:.3f} | {wilson(sum(right for _, right in inside), len(inside))} |")


def opened(paths: Iterable[tuple[Path, str]]) -> Films:
    return [(shrink(read_radiograph(path), 384), view) for path, view in paths]


def table_of(folder: Path, part: str | None = None) -> Films:
    """The images of a folder's table.csv, or those of the patients of one part of the fit."""
    rows = read_rows(folder / "table.csv", ("patient", "frontal"), ("lateral",))
    kept = (row for row in rows if part in (None, part_of(row["patient"])))
    return opened((folder / row[view], view) for row in kept for view in VIEWS if row[view])


def all_pixels(iu: Path, nih: Path, covid: Path) -> None:
    truth = {name: view for images in read_labels(iu).values() for name, view in images}
    held_out = table_of(nih, "held out")
    covid_films = table_of(covid)
    indiana = opened((path, truth[image_key(path.name)]) for path in sorted((iu / "images").glob("*.png")))
    told = pixels(held_out, "NIH, patients held out")
    told += pixels(covid_films, "COVID-era collections")
    told += pixels(indiana, "Indiana")
    print("\nCalibration on all of these:")
    calibration(told)
    drawn = [(phantom.draw(9, i, view, 256), view) for i in range(200) for view in VIEWS]
    pixels(drawn, "phantom (synthetic: it proves little)")
    print("\n| studies of two images | views | both right |\n|---|---|---|")
    studies_of_two(held_out, "ff", "NIH, patients held out")
    for views in ("ff", "ll", "fl", "lf"):
        studies_of_two(covid_films + indiana, views, "COVID-era collections and Indiana")
    for views in ("ff", "ll", "fl", "lf"):
        studies_of_two(drawn, views, "phantom (synthetic)")
    no_films(held_out + [film for film in drawn if film[1] == "lateral"])
    start = time.process_time()
    for image, _ in held_out:
        view_of_pixels(image)
    print(f"\n{1000 * (time.process_time() - start) / len(held_out):.1f} ms an image of 384 pixels")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--iu", type=Path, required=True, help="folder with the Kaggle tables and images")
    parser.add_argument("--nih", type=Path, required=True, help="folder of frontal films, some of them fitted on")
    parser.add_argument("--covid", type=Path, required=True, help="folder of films of both views")
    parser.add_argument("--fit", action="store_true", help="print the counts of the fitting half")
    args = parser.parse_args()
    if args.fit:
        print_fit(read_labels(args.iu))
        return
    names_and_headers(args.iu)
    all_pixels(args.iu, args.nih, args.covid)


if __name__ == "__main__":
    main()
