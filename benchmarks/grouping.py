"""What batches of texts of like length do to learning: shares of the gradient, and models trained with and without.

    python benchmarks/grouping.py shares REPORTS.csv [--batch 32] [--seeds 5]
    python benchmarks/grouping.py train DATASET --encoder RUN/findings_encoder [--seeds 0 1] [--out runs/grouping]

`shares`: of the gradient of one epoch under the kit's loss, the mean over the tokens of each global batch, on the
impressions of a Kaggle table of the Indiana collection. Each token is taken to have a gradient of the same length.
`clipped` is what remains where every gradient is clipped to that of the mean batch (batches of long texts have larger
ones). `train`: the demo's recipe on a prepared synthetic collection, from one encoder that has learned its findings.

Orders: `random`; `grouped` (50 global batches are sorted by length together, as in transformers' sampler);
`weighed`, as grouped, each batch's clipped gradient times its tokens over those of the mean batch.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from hf_cxr import metrics
from hf_cxr.config import parse_arguments, recipe
from hf_cxr.data.collator import pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.study import clean_text
from hf_cxr.evaluation.prediction import predict_split
from hf_cxr.inference.labeler import is_normal
from hf_cxr.models.modeling import build, train_tokenizer
from hf_cxr.training import run
from hf_cxr.training.trainer import ImpressionTrainer

TOGETHER = 50  # global batches
ORDERS = ("random", "grouped", "weighed")


def batches(lengths: torch.Tensor, size: int, grouped: bool, seed: int) -> list[torch.Tensor]:
    """The rows of each global batch of an epoch."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(lengths), generator=generator)
    if not grouped:
        return list(order.split(size))
    parts = [part[lengths[part].argsort(stable=True)] for part in order.split(TOGETHER * size)]
    found = [batch for part in parts for batch in part.split(size)]
    full = [batch for batch in found if len(batch) == size]
    mixed = [full[place] for place in torch.randperm(len(full), generator=generator)]
    return mixed + [batch for batch in found if len(batch) < size]


def shares(lengths: torch.Tensor, order: str, size: int, seed: int, clipped: bool = False) -> torch.Tensor:
    """Each study's share of the gradient of an epoch."""
    weights, usual = torch.zeros(len(lengths)), lengths.float().mean() * size
    for batch in batches(lengths, size, order != "random", seed):
        tokens = lengths[batch].sum()
        weight = min(usual, tokens) if clipped else tokens
        weights[batch] = lengths[batch] / (usual * tokens / weight if order == "weighed" else tokens)
    return weights / weights.sum()


def show_shares(reports: Path, size: int, seeds: int) -> None:
    with reports.open(encoding="utf-8", newline="") as file:
        texts = [text for row in csv.DictReader(file) if (text := clean_text(row["impression"]))]
    tokenizer = train_tokenizer(texts, 3000)
    ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
    lengths = torch.tensor([min(128, len(row) + 1) for row in ids])
    normal = torch.tensor([is_normal(text) for text in texts])
    longest = lengths.argsort(descending=True)[: len(lengths) // 10]
    print(f"{len(texts):,} impressions, {normal.float().mean():.2f} of them normal, global batches of {size}")
    print("| order | normal studies | longest tenth | tokens with padding ÷ tokens |\n|---|---|---|---|")
    for order, clipped in [*((order, False) for order in ORDERS), ("weighed", True)]:
        each = [shares(lengths, order, size, seed, clipped) for seed in range(seeds)]
        padded = [
            sum(len(batch) * int(lengths[batch].max()) for batch in batches(lengths, size, order != "random", seed))
            for seed in range(seeds)
        ]
        told = np.mean([[row[normal].sum(), row[longest].sum()] for row in each], axis=0)
        name = f"{order} in the loss, then clipped" if clipped else order
        print(f"| {name} | {told[0]:.2f} | {told[1]:.2f} | {np.mean(padded) / int(lengths.sum()):.1f} |")


class GroupedTrainer(ImpressionTrainer):
    """Trains in batches of like length; with `weighed`, each counts by its tokens."""

    weighed = False

    def _get_train_sampler(self, train_dataset=None):
        return Grouped(torch.tensor([len(ids) for ids in self.train_dataset.labels]), self)

    def get_batch_samples(self, *args, **kwargs):
        samples, self.tokens = super().get_batch_samples(*args, **kwargs)
        return samples, self.tokens

    def create_optimizer(self, *args, **kwargs):
        optimizer = super().create_optimizer(*args, **kwargs)
        usual = np.mean([len(ids) for ids in self.train_dataset.labels]) * self.args.train_batch_size

        def weigh(optimizer, *_) -> None:  # when it is clipped already
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad.mul_(self.tokens / usual)

        if self.weighed:
            optimizer.register_step_pre_hook(weigh)
        return optimizer


class Grouped(torch.utils.data.Sampler[int]):
    def __init__(self, lengths: torch.Tensor, trainer: ImpressionTrainer) -> None:
        self.lengths, self.trainer = lengths, trainer

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        args, epoch = self.trainer.args, int(self.trainer.train_dataset.epoch)
        found = batches(self.lengths, args.train_batch_size, True, (args.seed << 20) + epoch)
        return iter(torch.cat(found).tolist())


def train(dataset: str, encoder: str, seed: int, order: str, out: Path, more: list[str]) -> None:
    words = ["--dataset", dataset, "--encoder", encoder, "--findings_pretraining_epochs", "0", "--seed", str(seed)]
    kit, args = parse_arguments(recipe("demo"), [*words, "--output_dir", str(out / f"{order}-{seed}"), *more])
    data = load_prepared(dataset)
    torch.manual_seed(seed)
    texts = list(data["train"]["impression"])
    longest, dropout = kit.max_target_length, kit.decoder_dropout
    checkpoint = build(
        kit.encoder, kit.decoder, kit.panel_size, texts, kit.vocab_size, longest, decoder_dropout=dropout
    )
    GroupedTrainer.weighed = order == "weighed"
    run.ImpressionTrainer = ImpressionTrainer if order == "random" else GroupedTrainer  # type: ignore[misc]
    run.fine_tune(checkpoint, {"train": pack_dataset(data["train"], kit.panel_size)}, kit, args)
    rows = predict_split(checkpoint, data["test"])
    said, true = ([row[key] for row in rows] for key in ("prediction", "impression"))
    scores = metrics.study_statistics(said, true).scores()
    print(
        f"| {order} | {seed} | {scores['finding_recall_micro']:.3f} | {scores['finding_f1_micro']:.3f} "
        f"| {metrics.diversity(said)['modal_share']:.2f} | {np.mean([is_normal(text) for text in said]):.2f} "
        f"| {np.mean([is_normal(text) for text in true]):.2f} |",
        flush=True,
    )


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("shares", "train"))
    parser.add_argument("data", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--encoder")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--orders", nargs="+", choices=ORDERS, default=ORDERS)
    parser.add_argument("--out", type=Path, default=Path("runs/grouping"))
    options, more = parser.parse_known_args(words)
    if options.what == "shares":
        return show_shares(options.data, options.batch, max(5, *options.seeds))
    print("| order | seed | finding recall | finding F1 | modal share | normal texts | normal in truth |")
    print("|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        for order in options.orders:
            train(str(options.data), options.encoder, seed, order, options.out, more)
    return None


if __name__ == "__main__":
    main()
