"""Does the decoder's attention lie on the finding while it writes the finding's word? On studies of the phantom.

python benchmarks/attention.py runs/demo runs/demo/dataset [--image docs/attention.png]
python benchmarks/attention.py runs/demo runs/demo/dataset --compare    # other readings, on the validation split

The true region of a finding is where the same study, drawn without that finding, differs by `LEAST` grey levels or
more. Taken is every localised finding that the model states with exactly its true sides, with the words of `WORDS`.
Told is the share of the word's attention inside of the region, divided by the region's share of the area that the
study's views cover (chance is 1); and, as controls of habit, the same under the attention of
- all other such studies with this finding, laid on this study's region, and
- those of them with the finding on the same sides.
Intervals: 95 %, bootstrap over studies, one of which is one patient.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources import phantom
from hf_cxr.inference.attention import VIEWS, cross_attention, overlay, word_maps
from hf_cxr.inference.checks import panel_size_of
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.inference.pipeline import generate
from hf_cxr.inference.views import pack_views
from hf_cxr.models.modeling import load_checkpoint

LEAST = 12
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
Reading = Callable[[Any, torch.Tensor, torch.Tensor, list[int]], torch.Tensor]  # of the choice of some tokens


@dataclasses.dataclass
class Sample:
    """One rightly stated finding: its region, the area of the study's views, and its word's attention, on the canvas.

    `region` and `covered` are shares (0 to 1) of each cell of the grid, `heat` is attention; all (rows, 2 × rows).
    """

    uid: str
    finding: str
    tags: frozenset[str]  # the finding with its sides
    text: str
    word: str
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


# --- what is read -------------------------------------------------------------------------------------------------


def last_layer(model, pixels: torch.Tensor, sequence: torch.Tensor, tokens: list[int]) -> torch.Tensor:
    """What the pipeline shows."""
    return cross_attention(model, pixels, sequence)[tokens].mean(0)


def passed(model, pixels: torch.Tensor, sequence: torch.Tensor, tokens: list[int], backward: bool = False):
    """Encoder's and cross-attention of the whole text, lists of (heads, queries, keys), and the image.

    With `backward`, of the mean log probability of `tokens`: what is returned has gradients.
    """
    model.set_attn_implementation("eager")
    pixels = pixels.clone().requires_grad_()
    with torch.enable_grad():
        encoded = model.encoder(pixels, output_attentions=True)
        output = model(
            encoder_outputs=encoded, decoder_input_ids=sequence[None, :-1], output_attentions=True, use_cache=False
        )
        own, cross = encoded.attentions, output.cross_attentions
        if backward:
            for part in (*own, *cross):
                part.retain_grad()
            chosen = output.logits[0].log_softmax(-1)[[t - 1 for t in tokens], sequence[tokens]]
            chosen.mean().backward()
    return own, cross, pixels


def on_grid(weights: torch.Tensor) -> torch.Tensor:
    """Weights over the encoder's tokens as a map; the tokens ahead of the grid are left out."""
    rows = int((len(weights) // 2) ** 0.5)
    return weights[-2 * rows * rows :].reshape(rows, 2 * rows).detach()


def layers(chosen: slice) -> Reading:
    def read(model, pixels, sequence, tokens):
        cross = torch.stack(passed(model, pixels, sequence, tokens)[1][chosen])[:, 0]
        return on_grid(cross[:, :, [t - 1 for t in tokens]].mean((0, 1, 2)))

    return read


def rollout(model, pixels, sequence, tokens):
    """Attention of all layers, followed through the encoder's own (Abnar and Zuidema, ACL 2020)."""
    own, cross, _ = passed(model, pixels, sequence, tokens)
    path = torch.eye(own[0].shape[-1])
    for weights in own:
        path = (0.5 * weights[0].mean(0) + 0.5 * torch.eye(len(path))) @ path
    return on_grid(torch.stack(cross)[:, 0][:, :, [t - 1 for t in tokens]].mean((0, 1, 2)) @ path)


def gradient(through_encoder: bool) -> Reading:
    """Attention × its gradient, the positive part (Chefer, Gur and Wolf, ICCV 2021)."""

    def read(model, pixels, sequence, tokens):
        own, cross, _ = passed(model, pixels, sequence, tokens, backward=True)
        weights = torch.stack([(part.grad * part).clamp(min=0)[0] for part in cross])
        weights = weights[:, :, [t - 1 for t in tokens]].mean((0, 1, 2))
        if through_encoder:
            path = torch.eye(len(weights))
            for part in own:
                path = path + (part.grad * part).clamp(min=0)[0].mean(0) @ path
            weights = weights @ path
        return on_grid(weights)

    return read


def image_gradient(model, pixels, sequence, tokens):
    grid = last_layer(model, pixels, sequence, tokens)
    slope = passed(model, pixels, sequence, tokens, backward=True)[2].grad.abs().sum(1)
    return torch.nn.functional.adaptive_avg_pool2d(slope, (len(grid), 2 * len(grid)))[0]


READINGS: dict[str, Reading] = {
    "last layer": last_layer,
    "first layer": layers(slice(0, 1)),
    "mean of all layers": layers(slice(None)),
    "rollout through the encoder": rollout,
    "attention × gradient": gradient(through_encoder=False),
    "the same through the encoder": gradient(through_encoder=True),
    "gradient on the image": image_gradient,
}


# --- where it lies ------------------------------------------------------------------------------------------------


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


def rightly_stated(tags: list[str], text: str) -> dict[str, frozenset[str]]:
    """The findings of `WORDS` that `text` states on exactly the sides of `tags`, each with its tags."""
    stated, right = positive_findings(text, sided=True), {}
    for name in WORDS:
        true = frozenset(tag for tag in tags if is_of(tag, name))
        if true and true == {tag for tag in stated if is_of(tag, name)}:
            right[name] = true
    return right


def cells(mask: np.ndarray, rows: int) -> np.ndarray:
    """The share of each grid cell that a mask of pixels fills."""
    side = mask.shape[0] // rows
    return mask.reshape(rows, side, 2 * rows, side).mean((1, 3))


def collect(checkpoint, dataset, reading: Reading = last_layer) -> list[Sample]:
    """A sample of every finding of `WORDS` that the model states rightly."""
    size, found = panel_size_of(checkpoint.image_processor), []
    for row in dataset:
        if not any(is_of(tag, name) for tag in row["tags"] for name in WORDS):
            continue
        canvas = pack_views(row["frontal"], row["lateral"], size=size)
        pixels = checkpoint.image_processor(canvas, return_tensors="pt")["pixel_values"]
        sequence = generate(checkpoint.model, pixels)["sequences"][0, 0]
        text = checkpoint.tokenizer.decode(sequence, skip_special_tokens=True).strip()
        right = rightly_stated(row["tags"], text)
        words = word_maps(checkpoint.tokenizer, sequence, torch.eye(len(sequence))) if right else []
        for name, tags in right.items():
            own = [(word, place) for word, place in words if word.strip(".,").lower() in WORDS[name]]
            mask, covered = region_of(row["uid"], name, size)
            if own and mask.any():
                tokens = torch.stack([place for _, place in own]).sum(0).nonzero().flatten().tolist()
                heat = reading(checkpoint.model, pixels, sequence, tokens).numpy()
                rows = len(heat)
                found.append(
                    Sample(
                        row["uid"], name, tags, text, own[0][0], cells(mask, rows), cells(covered, rows), heat, mask
                    )
                )
    return found


# --- figures ------------------------------------------------------------------------------------------------------


def control(sample: Sample, others: list[Sample], panel: slice, same_sides: bool = False) -> float:
    """The mean ratio of other studies' attention, by the same finding's word, on this study's region."""
    ratios = [
        sample.ratio(other.heat, panel)
        for other in others
        if other is not sample
        and (other.covered >= sample.covered).all()
        and (not same_sides or other.tags == sample.tags)
    ]
    return float(np.mean(ratios)) if ratios else np.nan


def told(values: np.ndarray, uids: list[str]) -> str:
    """Mean and 95 % interval; studies are drawn, not words."""
    by_study, rng = defaultdict(list), np.random.default_rng(0)
    for value, uid in zip(values, uids, strict=True):
        if not np.isnan(value):
            by_study[uid].append(value)
    sums = np.array([[sum(own), len(own)] for own in by_study.values()])
    drawn = sums[rng.integers(0, len(sums), (2000, len(sums)))].sum(1)
    low, high = np.percentile(drawn[:, 0] / drawn[:, 1], (2.5, 97.5))
    return f"{sums[:, 0].sum() / sums[:, 1].sum():.2f} [{low:.2f}, {high:.2f}]"


HEAD = [
    "| | n | attention in the region ÷ chance | … of other studies | difference | … to the same sides |",
    "|---|---|---|---|---|---|",
]


def line(title: str, samples: list[Sample], panel: slice = slice(None)) -> str:
    by_finding = defaultdict(list)
    for sample in samples:
        by_finding[sample.finding].append(sample)
    own = np.array([sample.ratio(sample.heat, panel) for sample in samples])
    other, same = (
        np.array([control(sample, by_finding[sample.finding], panel, strict) for sample in samples])
        for strict in (False, True)
    )
    uids = [sample.uid for sample in samples]
    figures = " | ".join(told(values, uids) for values in (own, other, own - other, own - same))
    return f"| {title} | {np.count_nonzero(~np.isnan(own))} | {figures} |"


def table(samples: list[Sample]) -> list[str]:
    rows = len(samples[0].heat)
    lines = [*HEAD, line("all, both views", samples)]
    lines.append(line("all, frontal alone", samples, slice(0, rows)))
    lines.append(line("all, lateral alone", samples, slice(rows, None)))
    for name in WORDS:
        own = [sample for sample in samples if sample.finding == name]
        if len(own) > 1:
            lines.append(line(name, own))
    return lines


# --- image ------------------------------------------------------------------------------------------------------


def image(dataset, samples: list[Sample], number: int = 6) -> Image.Image:
    """Both views of the first `number` samples of different findings, as they are and with overlay and region."""
    by_finding: dict[str, Sample] = {}
    for sample in samples:
        if (sample.covered > 0).all():
            by_finding.setdefault(sample.finding, sample)
    firsts = list(by_finding.values())[:number]
    rows, side, gap, foot = {row["uid"]: row for row in dataset}, 192, 16, 44
    sheet = Image.new("RGB", (4 * side + gap, len(firsts) * (side + foot)), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for place, sample in enumerate(firsts):
        top, half, word = place * (side + foot), len(sample.heat), sample.word.strip(".,").lower()
        for panel, view in enumerate(VIEWS):
            large = rows[sample.uid][view].convert("L").resize((side, side), Image.Resampling.BICUBIC)
            heat = sample.heat[:, panel * half : (panel + 1) * half]
            mask = np.split(sample.mask, 2, axis=1)[panel]
            sheet.paste(large, (panel * side, top))
            sheet.paste(outlined(overlay(large, heat, sample.heat.mean()), mask), ((2 + panel) * side + gap, top))
        ratio = f"{sample.ratio(sample.heat):.1f} times chance inside"
        pen.text((4, top + side + 3), f"“{sample.text}”", fill="black", font=font)
        pen.text((4, top + side + 21), f"{sample.uid}, overlay of “{word}”: {ratio}", fill=(90, 90, 90), font=font)
    return sheet


def outlined(shown: Image.Image, mask: np.ndarray) -> Image.Image:
    """The image with the border of `mask` in blue; gaps of up to four pixels are closed, for the eye alone."""
    closed = Image.fromarray(mask.astype(np.uint8) * 255)
    closed = closed.filter(ImageFilter.MaxFilter(5)).filter(ImageFilter.MinFilter(5))
    large = closed.resize(shown.size, Image.Resampling.BICUBIC).point(lambda value: 255 * (value > 127))
    border = np.asarray(large.filter(ImageFilter.MaxFilter(3))) > np.asarray(large)
    pixels = np.array(shown)
    pixels[border] = (0, 160, 255)
    return Image.fromarray(pixels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("dataset", help="a prepared phantom")
    parser.add_argument("--split", help="default: test; with --compare validation")
    parser.add_argument("--compare", action="store_true", help="print one line for each of several readings")
    parser.add_argument("--image", help="PNG to write")
    args = parser.parse_args()
    split = args.split or ("validation" if args.compare else "test")
    checkpoint, dataset = load_checkpoint(args.checkpoint), load_prepared(args.dataset)[split]
    checkpoint.model.eval().requires_grad_(False)
    if args.compare:
        print(f"{split}\n\n" + "\n".join(HEAD))
        for name, reading in READINGS.items():
            print(line(name, collect(checkpoint, dataset, reading)), flush=True)
        return
    samples = collect(checkpoint, dataset)
    print(f"{split}: {len(samples)} findings of {len({sample.uid for sample in samples})} studies\n")
    print("\n".join(table(samples)))
    if args.image:
        image(dataset, samples).save(args.image, optimize=True)


if __name__ == "__main__":
    main()
