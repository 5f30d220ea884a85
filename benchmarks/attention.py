"""Does the decoder's attention lie on the finding while it writes the finding's word? On studies of the phantom.

python benchmarks/attention.py runs/demo runs/demo/dataset [--split test] [--picture docs/attention.png]

The true region of a finding is where the same study, drawn without that finding, differs by `LEAST` grey levels or
more. Taken is every localised finding that the model states rightly, with the words of `WORDS`. Told is the share of
the word's attention inside of the region, divided by
- the region's share of the area that the study's views cover ("chance" is 1), and
- the same share under the attention of other studies with the same finding, laid on this region: what always looking
  at the usual place would give.
Intervals: 95 %, bootstrap over studies.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hf_cxr.attention import VIEWS, cross_attention, overlay, word_maps
from hf_cxr.dataset import load_prepared
from hf_cxr.findings import positive_findings
from hf_cxr.modeling import load_checkpoint, panel_size_of
from hf_cxr.pipeline import generate
from hf_cxr.sources import phantom
from hf_cxr.views import pack_views

LEAST = 12
OTHERS = 10  # studies whose attention is laid on a region
WORDS = {
    "pneumothorax": ("pneumothorax",),
    "consolidation": ("consolidation",),
    "pleural effusion": ("effusion", "effusions"),
    "atelectasis": ("atelectasis",),
    "nodule": ("nodule", "nodules"),
    "granuloma": ("granuloma", "granulomas"),
    "cardiomegaly": ("cardiomegaly", "silhouette", "heart"),
    "hiatal hernia": ("hernia",),
    "pacemaker": ("pacemaker",),
    "compression fracture": ("fracture",),
    "pectus excavatum": ("pectus",),
}


@dataclasses.dataclass
class Sample:
    """One rightly stated finding: its region, the area of the study's views, and its word's attention, on the canvas.

    `region` and `covered` are shares (0 to 1) of each cell of the grid, `heat` is attention; all (rows, 2 × rows).
    """

    uid: str
    finding: str
    region: np.ndarray
    covered: np.ndarray
    heat: np.ndarray
    mask: np.ndarray  # the region in pixels of the canvas

    def ratio(self, heat: np.ndarray, panel: slice = slice(None)) -> float:
        """Share of `heat` inside the region over the region's share of the area; NaN without a region there."""
        region, covered, heat = (part[:, panel] for part in (self.region, self.covered, heat))
        if region.sum() == 0 or (heat * covered).sum() == 0:
            return np.nan
        return float((heat * region).sum() / (heat * covered).sum() / (region.sum() / covered.sum()))


def region_of(uid: str, finding: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Where a finding of a phantom study is seen, and what its views cover; bool, (size, 2 × size)."""
    _, seed, index = uid.split("-")
    case = phantom.plan(int(seed), int(index))
    bare = dataclasses.replace(case, tags=tuple(tag for tag in case.tags if not is_of(tag, finding)))
    seen, covered = np.zeros((2, size, 2 * size), dtype=bool)
    for place, view in enumerate(VIEWS):
        if view in case.views:
            panel = slice(place * size, (place + 1) * size)
            shown, without = (np.asarray(phantom.render(drawn, view, size)).astype(int) for drawn in (case, bare))
            seen[:, panel], covered[:, panel] = abs(shown - without) >= LEAST, True
    return seen, covered


def is_of(tag: str, finding: str) -> bool:
    return tag in (finding, f"right {finding}", f"left {finding}")


def cells(mask: np.ndarray, rows: int) -> np.ndarray:
    """The share of each grid cell that a mask of pixels fills."""
    side = mask.shape[0] // rows
    return mask.reshape(rows, side, 2 * rows, side).mean((1, 3))


def collect(checkpoint, dataset) -> list[Sample]:
    """A sample of every finding of `WORDS` that the model states rightly."""
    size, found = panel_size_of(checkpoint.image_processor), []
    for row in dataset:
        true = [name for name in WORDS if any(is_of(tag, name) for tag in row["tags"])]
        if not true:
            continue
        canvas = pack_views(row["frontal"], row["lateral"], size=size)
        pixels = checkpoint.image_processor(canvas, return_tensors="pt")["pixel_values"]
        sequence = generate(checkpoint.model, pixels)["sequences"][0, 0]
        stated = positive_findings(checkpoint.tokenizer.decode(sequence, skip_special_tokens=True))
        if not stated.intersection(true):
            continue
        words = word_maps(checkpoint.tokenizer, sequence, cross_attention(checkpoint.model, pixels, sequence))
        for name in stated.intersection(true):
            own = [heat.numpy() for word, heat in words if word.strip(".,").lower() in WORDS[name]]
            mask, covered = region_of(row["uid"], name, size)
            if own and mask.any():
                heat = np.mean(own, axis=0)
                rows = len(heat)
                found.append(Sample(row["uid"], name, cells(mask, rows), cells(covered, rows), heat, mask))
    return found


def control(sample: Sample, others: list[Sample], panel: slice, rng: np.random.Generator) -> float:
    """The mean ratio of other studies' attention, by the same finding's word, on this study's region."""
    fit = [other for other in others if other is not sample and (other.covered >= sample.covered).all()]
    chosen = [fit[i] for i in rng.choice(len(fit), min(OTHERS, len(fit)), replace=False)] if fit else []
    return float(np.mean([sample.ratio(other.heat, panel) for other in chosen])) if chosen else np.nan


def told(values: np.ndarray, uids: list[str], rng: np.random.Generator) -> str:
    """Mean and 95 % interval; studies are drawn, not words."""
    by_study = defaultdict(list)
    for value, uid in zip(values, uids, strict=True):
        if not np.isnan(value):
            by_study[uid].append(value)
    sums = np.array([[sum(own), len(own)] for own in by_study.values()])
    drawn = sums[rng.integers(0, len(sums), (2000, len(sums)))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    return f"{sums[:, 0].sum() / sums[:, 1].sum():.2f} [{low:.2f}, {high:.2f}]"


def table(samples: list[Sample]) -> list[str]:
    rng = np.random.default_rng(0)
    by_finding = defaultdict(list)
    for sample in samples:
        by_finding[sample.finding].append(sample)
    rows = samples[0].heat.shape[0]
    panels = {"both": slice(None), "frontal": slice(0, rows), "lateral": slice(rows, None)}
    ratios = {
        name: np.array([[s.ratio(s.heat, panel), control(s, by_finding[s.finding], panel, rng)] for s in samples])
        for name, panel in panels.items()
    }
    lines = ["| | n | attention in the region ÷ chance | … of other studies' attention | difference |"]
    lines += ["|---|---|---|---|---|"]
    parts = [("all, both views", "both", np.ones(len(samples), dtype=bool))]
    parts += [(f"all, {view} alone", view, parts[0][2]) for view in VIEWS]
    parts += [(name, "both", np.array([s.finding == name for s in samples])) for name in WORDS if by_finding[name]]
    for name, panel, chosen in parts:
        own, other = ratios[panel][chosen].T
        uids = [sample.uid for sample, taken in zip(samples, chosen, strict=True) if taken]
        figures = " | ".join(told(values, uids, rng) for values in (own, other, own - other))
        lines.append(f"| {name} | {np.count_nonzero(~np.isnan(own))} | {figures} |")
    return lines


def picture(checkpoint, dataset, samples: list[Sample], number: int = 6) -> Image.Image:
    """Both views of the first `number` samples of different findings: as they are, and with overlay and region."""
    by_finding: dict[str, Sample] = {}
    for sample in samples:
        by_finding.setdefault(sample.finding, sample)
    firsts = list(by_finding.values())[:number]
    rows, side, gap = {row["uid"]: row for row in dataset if row["uid"] in {s.uid for s in firsts}}, 192, 26
    sheet = Image.new("RGB", (4 * side + 24, len(firsts) * (side + gap)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, sample in enumerate(firsts):
        top, half = number * (side + gap), sample.heat.shape[0]
        pen.text((4, top + 5), f"{sample.uid}: “{sample.finding}”", fill="black", font=font)
        for place, view in enumerate(VIEWS):
            original = rows[sample.uid][view]
            if original is None:
                continue
            large = original.convert("L").resize((side, side), Image.Resampling.BICUBIC)
            heat = sample.heat[:, place * half : (place + 1) * half]
            panel = sample.mask[:, place * original.width : (place + 1) * original.width]
            sheet.paste(large, (place * side, top + gap))
            sheet.paste(outlined(overlay(large, heat, sample.heat.max()), panel), ((2 + place) * side + 24, top + gap))
    return sheet


def outlined(shown: Image.Image, mask: np.ndarray) -> Image.Image:
    """The picture with the border of `mask` drawn in blue."""
    large = np.asarray(Image.fromarray(mask).resize(shown.size, Image.Resampling.NEAREST))
    inner = large.copy()
    for axis in (0, 1):
        for step in (-1, 1):
            inner &= np.roll(large, step, axis)
    pixels = np.array(shown)
    pixels[large & ~inner] = (0, 160, 255)
    return Image.fromarray(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("dataset", help="a prepared phantom")
    parser.add_argument("--split", default="test")
    parser.add_argument("--picture", help="PNG to write")
    args = parser.parse_args()
    checkpoint, dataset = load_checkpoint(args.checkpoint), load_prepared(args.dataset)[args.split]
    checkpoint.model.eval()
    samples = collect(checkpoint, dataset)
    print(f"{args.split}: {len(samples)} findings of {len({sample.uid for sample in samples})} studies\n")
    print("\n".join(table(samples)))
    if args.picture:
        picture(checkpoint, dataset, samples).save(args.picture, optimize=True)


if __name__ == "__main__":
    main()
