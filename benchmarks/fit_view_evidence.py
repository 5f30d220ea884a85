"""Fits the weights of the view evidence and writes them to hf_cxr/inference/view_weights.py.

python benchmarks/fit_view_evidence.py --nih ../shared/data/nih_real

Real frontal films of 70 % of the patients of the folder (55 % to fit, 15 % to calibrate), drawn chests of both views,
real films that are made into something else, and images of no film. Seeded; six minutes of one core.
`view_labels.py` measures what comes out, on the other patients and on collections that nothing is fitted on.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import view_films as films
from datasets.utils import tqdm
from PIL import Image
from torch import nn
from torch.nn import functional as F

from hf_cxr.data.sources import phantom
from hf_cxr.data.sources.rows import read_rows
from hf_cxr.inference import view_evidence
from hf_cxr.inference.view_evidence import GRID, standard_grid

# Convolutions (side, side, inputs, outputs) of stride 2, then dense layers.
SHAPES = [(5, 5, 1, 12), (3, 3, 12, 24), (3, 3, 24, 40), (3, 3, 40, 48), (768, 32), (32, 2)]
NUMBER, CALIBRATING, EPOCHS, BATCH, RATE = 48_000, 3_000, 8, 128, 2e-3
SMOOTHING = 0.02  # share of wrong targets that the loss expects
PHANTOMS = 3_000


@dataclass
class Examples:
    grids: np.ndarray  # (n, GRID, GRID), int8
    frontal: np.ndarray  # (n,) 1, 0, or NaN where it is not asked
    chest: np.ndarray
    kind: list[str]


def part_of(patient: str) -> str:
    """Which of the patients an image's is: "fit" (55 %), "calibrate" (15 %) or "held out" (30 %)."""
    share = hashlib.sha256(f"view evidence:{patient}".encode()).digest()[0] / 256
    return "fit" if share < 0.55 else "calibrate" if share < 0.70 else "held out"


def real_films(folder: Path, part: str) -> list[Image.Image]:
    rows = read_rows(folder / "table.csv", ("patient", "frontal"))
    return [
        Image.open(folder / row["frontal"]).convert("L").resize((films.SIDE, films.SIDE), Image.Resampling.BOX)
        for row in rows if part_of(row["patient"]) == part
    ]  # fmt: skip


def recipes(real: list[Image.Image], seed: int) -> dict[str, tuple[float, float, float, Callable]]:
    """How each kind of image is made: its share, the targets "frontal" and "chest", and the maker."""
    drawn = {
        view: [phantom.draw(seed, index, view, films.SIDE) for index in range(PHANTOMS)]
        for view in ("frontal", "lateral")
    }

    def one(images: list[Image.Image]) -> Callable[[films.Rng], Image.Image]:
        return lambda rng: images[int(rng.integers(len(images)))]

    def drawing(make: Callable[[films.Rng], Image.Image]) -> Callable[[films.Rng], Image.Image]:
        def made(rng: films.Rng) -> Image.Image:
            image = make(rng)
            if rng.random() < 0.6:
                image = films.textured(image, one(real)(rng), rng)
            box = rng.uniform(0, 0.2, 4) * films.SIDE * (rng.random() < 0.5)
            kept = (box[0], box[1] * 0.7, films.SIDE - box[2], films.SIDE - 0.7 * box[3])
            return films.changed(image.resize(image.size, films.BICUBIC, box=kept), rng, 0.3)

        return made

    upright = [
        one(real),
        one(drawn["frontal"]),
        one(drawn["lateral"]),
    ]  # a sketch on its head may be another's lateral

    def film(rng: films.Rng) -> Image.Image:
        return upright[int(rng.choice(3, p=(0.6, 0.15, 0.25)))](rng)

    def blended(rng: films.Rng) -> Image.Image:
        return Image.blend(one(drawn["lateral"])(rng), films.sketched_lateral(rng), rng.uniform(0.2, 0.8))

    def half(rng: films.Rng) -> Image.Image:
        return films.changed(films.half_film(one(real)(rng), one(real)(rng), rng), rng, 0.12)

    def other(make: Callable[[films.Rng], Image.Image]) -> Callable[[films.Rng], Image.Image]:
        return lambda rng: films.changed(make(rng), rng, 0.12) if rng.random() < 0.5 else make(rng)

    neither = films.kinds(film)
    weight = dict.fromkeys(neither, 0.015) | {"chest upside down": 0.06, "chest on its side": 0.02}
    return {
        "real frontal": (0.28, 1, 1, lambda rng: films.changed(one(real)(rng), rng, 0.12)),
        "phantom frontal": (0.07, 1, 1, drawing(one(drawn["frontal"]))),
        "sketched frontal": (0.07, 1, 1, drawing(films.sketched_frontal)),
        "phantom lateral": (0.13, 0, 1, drawing(one(drawn["lateral"]))),
        "sketched lateral": (0.20, 0, 1, drawing(films.sketched_lateral)),
        "blended lateral": (0.07, 0, 1, drawing(blended)),
        "half of a frontal": (0.06, 0, np.nan, half),
        **{name: (weight[name], np.nan, 0, other(make)) for name, make in neither.items()},
    }


def make_examples(real: list[Image.Image], number: int, seed: int) -> Examples:
    makers = recipes(real, seed)
    shares = np.array([share for share, *_ in makers.values()])
    rng = np.random.default_rng(seed)
    kinds = rng.choice(list(makers), number, p=shares / shares.sum()).tolist()
    grids = np.zeros((number, GRID, GRID), np.int8)
    for i, kind in enumerate(tqdm(kinds, desc="Making images", unit=" images")):
        while (grid := standard_grid(makers[kind][3](rng))) is None:
            pass
        grids[i] = np.rint(127 * grid)
    frontal, chest = (np.array([makers[kind][i] for kind in kinds], np.float32) for i in (1, 2))
    return Examples(grids, frontal, chest, kinds)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for *inputs, outputs in SHAPES:
            self.weights.append(nn.Parameter(torch.randn(*inputs, outputs) * (2 / np.prod(inputs)) ** 0.5))
            self.biases.append(nn.Parameter(torch.zeros(outputs)))

    def forward(self, grids: torch.Tensor) -> torch.Tensor:
        """(n, GRID, GRID) → (n, 2), as `view_evidence.network` does it."""
        states = grids[:, None]
        for weight, bias in zip(self.weights, self.biases, strict=True):
            if weight.ndim == 4:
                states = F.relu(F.conv2d(states, weight.permute(3, 2, 0, 1), bias, 2, weight.shape[0] // 2))
                continue
            if states.ndim == 4:
                states = states.permute(0, 2, 3, 1).flatten(1)
            states = F.dropout(states, 0.3, self.training) @ weight + bias
            states = states if weight.shape[-1] == SHAPES[-1][-1] else F.relu(states)
        return states


def loss_of(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    asked = ~targets.isnan()
    smoothed = targets.nan_to_num() * (1 - 2 * SMOOTHING) + SMOOTHING
    losses = F.binary_cross_entropy_with_logits(outputs, smoothed, reduction="none")
    return (losses * asked).sum() / asked.sum()


def tensors(examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    targets = np.stack([examples.frontal, examples.chest], 1).astype(np.float32)
    return torch.from_numpy(examples.grids), torch.from_numpy(targets)


def fit(examples: Examples, epochs: int = EPOCHS, seed: int = 0) -> Network:
    """The mean of the weights over the last part of the way."""
    torch.manual_seed(seed)
    model = Network()
    grids, targets = tensors(examples)
    steps = epochs * (len(grids) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    mean = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.998))
    with tqdm(total=steps, desc="Fitting", unit=" steps") as progress:
        for _ in range(epochs):
            for batch in torch.randperm(len(grids))[: steps // epochs * BATCH].split(BATCH):
                some = grids[batch].float() / 127
                if torch.rand(()) < 0.5:
                    some = some.flip(2)
                loss = loss_of(model(some), targets[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                mean.update_parameters(model)
                progress.update()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    fitted: Network = mean.module  # type: ignore[assignment]
    return fitted.eval()


@torch.inference_mode()
def outputs_of(model: Network, grids: torch.Tensor) -> torch.Tensor:
    """(n, 2): the mean over an image and its mirror image, as at inference."""
    parts = [some.float() / 127 for some in grids.split(512)]
    return torch.cat([(model(part) + model(part.flip(2))) / 2 for part in parts])


def calibrate(model: Network, examples: Examples) -> list[tuple[float, float]]:
    """Makes the outputs log-odds: a scale and a shift of each (Platt), on images of other patients; both views of a
    drawn or real chest weigh the same."""
    grids, targets = tensors(examples)
    outputs = outputs_of(model, grids).clone()
    found = []
    for i in range(2):
        asked = ~targets[:, i].isnan()
        values, truth = outputs[asked, i], targets[asked, i]
        balance = torch.where(truth > 0, 0.5 / truth.mean(), 0.5 / (1 - truth.mean()))
        scale, shift = torch.ones((), requires_grad=True), torch.zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([scale, shift], max_iter=100)

        def closure(values=values, truth=truth, balance=balance, scale=scale, shift=shift, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.binary_cross_entropy_with_logits(values * scale + shift, truth, balance)
            loss.backward()
            return loss

        optimizer.step(closure)
        found.append((scale.item(), shift.item()))
        with torch.no_grad():
            model.weights[-1][:, i] *= scale
            model.biases[-1][i] = model.biases[-1][i] * scale + shift
    return found


def write(model: Network, path: Path) -> None:
    content = b""
    for weight, bias in zip(model.weights, model.biases, strict=True):
        values = weight.detach().numpy()
        scale = (np.abs(values).reshape(-1, values.shape[-1]).max(0) / 127).astype("<f4")
        content += scale.tobytes() + bias.detach().numpy().astype("<f4").tobytes()
        content += np.rint(values / scale).astype(np.int8).tobytes()
    text = base64.b85encode(content).decode()
    lines = "\n".join(text[i : i + 1000] for i in range(0, len(text), 1000))
    path.write_text(
        '"""The weights of `view_evidence.py`, written by `benchmarks/fit_view_evidence.py`: do not edit."""\n'
        f"\nSHAPES: list[tuple[int, ...]] = {SHAPES}\n"
        f'WEIGHTS = """\n{lines}\n"""\n',
        encoding="utf-8",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nih", type=Path, required=True, help="folder with table.csv and the frontal films")
    parser.add_argument("--out", type=Path, default=Path(view_evidence.__file__).with_name("view_weights.py"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = fit(make_examples(real_films(args.nih, "fit"), NUMBER, seed=0))
    print("scale and shift:", calibrate(model, make_examples(real_films(args.nih, "calibrate"), CALIBRATING, seed=1)))
    write(model, args.out)


if __name__ == "__main__":
    main()
