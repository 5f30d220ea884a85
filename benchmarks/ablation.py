"""What the findings pretraining and view dropout are worth, at equal total compute, on the phantom.

    python benchmarks/ablation.py [--seeds 0 1 2] [--studies 4000] [--arms pretraining none pairs view_dropout]

Arms, all in the sizes of `configs/demo.yaml`, each trained from scratch on the same studies of each seed:
- `pretraining`: the demo's recipe (findings pretraining of the encoder, then fine-tuning);
- `none`: no findings pretraining; epochs are added until it takes at least as many floating-point operations, and its
  encoder learns at `--encoder-learning-rate` (the demo's small one is meant for an encoder that has been pretrained);
- `pairs`: as `pretraining`, on studies that all have two views (`--require both`): one view alone is new to the model;
- `view_dropout`: as `pairs`, with one panel emptied at random in one study of five.

Prints finding micro-F1 on the test split, mean and standard error over seeds, and what each arm loses on the findings
that the frontal view shows when the lateral panel is emptied. `--out` keeps finished runs for the next call.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.flop_counter import FlopCounterMode

from hf_cxr import metrics
from hf_cxr.config import parse_arguments, recipe
from hf_cxr.data.prepare import prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources.phantom import LATERAL_ONLY
from hf_cxr.evaluation.prediction import predict_split
from hf_cxr.inference.labeler import FINDINGS
from hf_cxr.models.modeling import Checkpoint, build, load_checkpoint
from hf_cxr.training.findings_pretraining import FindingsModel, finding_loss
from hf_cxr.training.run import train

VIEW_DROPOUT = 0.2
TARGET_TOKENS = 24  # about the mean of a padded batch of phantom impressions


def flops_per_study(checkpoint: Checkpoint) -> tuple[float, float]:
    """Floating-point operations of forward and backward for one study: in stage one, and in stage two."""
    size = checkpoint.image_processor.size
    pixels = torch.zeros(2, 3, size["height"], size["width"])
    labels = torch.zeros(2, TARGET_TOKENS, dtype=torch.int64)
    counts = []
    for forward in (
        lambda: finding_loss(FindingsModel(checkpoint.model.encoder, 16)(pixels), torch.zeros(2, 16)),
        lambda: checkpoint.model(pixel_values=pixels, decoder_input_ids=labels, labels=labels).loss,
    ):
        with FlopCounterMode(display=False) as counter:
            forward().backward()
        counts.append(counter.get_total_flops() / 2)
        checkpoint.model.zero_grad()
    return counts[0], counts[1]


def frontal_f1(rows: list[dict[str, Any]]) -> float:
    """Micro-F1 over the findings that the frontal view shows."""
    texts = [row["prediction"] for row in rows], [row["impression"] for row in rows]
    seen = [place for place, name in enumerate(FINDINGS) if name not in LATERAL_ONLY]
    return float(metrics.f1(metrics.finding_statistics(*texts)[:, seen].sum((0, 1))))


def without_lateral(checkpoint: Checkpoint, pairs: Dataset) -> dict[str, float]:
    """Frontal-visible F1 of two-view studies as they are, and with the lateral panel emptied."""
    emptied = pairs.map(lambda row: {"lateral": None}, features=pairs.features)
    both, frontal = (frontal_f1(predict_split(checkpoint, split)) for split in (pairs, emptied))
    return {"both_views": both, "frontal_only": frontal, "loss": both - frontal}


def run_arm(
    arm: str, seed: int, folder: Path, studies: int, encoder_rate: float, epochs: float | None
) -> dict[str, Any]:
    """Train and score one arm, or read the result of an earlier call."""
    require = "both" if arm in ("pairs", "view_dropout") else "any"
    result, dataset = folder / f"{arm}-{seed}.json", folder / f"dataset-{require}-{seed}"
    if result.is_file():
        return json.loads(result.read_text(encoding="utf-8"))
    if not dataset.is_dir():
        prepare("phantom", dataset, size=96, seed=seed, num_studies=studies, num_proc=2, require=require)
    words = ["--dataset", dataset, "--output_dir", folder / f"{arm}-{seed}", "--seed", seed, "--disable_tqdm", "true"]
    words += ["--restart"]
    if arm == "none":
        words += [
            "--findings_pretraining_epochs",
            0,
            "--encoder_learning_rate",
            encoder_rate,
            "--num_train_epochs",
            epochs,
        ]
    if arm == "view_dropout":
        words += ["--view_dropout", VIEW_DROPOUT]
    started = time.perf_counter()
    kit, args = parse_arguments(recipe("demo"), [str(word) for word in words])
    report = train(kit, args)
    assert report is not None
    test = load_prepared(str(dataset))["test"]
    pairs = test.filter(lambda row: row["frontal"] is not None and row["lateral"] is not None)
    row = {
        "arm": arm,
        "seed": seed,
        "epochs": [kit.findings_pretraining_epochs, args.num_train_epochs],
        "encoder_learning_rate": kit.encoder_learning_rate,
        "seconds": time.perf_counter() - started,
        "n": report["n"],
        "finding_f1_micro": report["finding_f1_micro"],
        "shuffled": report["shuffled"]["finding_f1_micro"],
        "distinct_outputs": report["distinct_outputs"],
        "single_view": without_lateral(load_checkpoint(args.output_dir), pairs),
    }
    result.write_text(json.dumps(row, indent=2) + "\n", encoding="utf-8")
    return row


def equal_compute_epochs(seed: int, folder: Path, studies: int) -> float:
    """Epochs of fine-tuning alone that cost at least what the demo's two stages cost; told in full."""
    kit, args = parse_arguments(recipe("demo"), ["--dataset", "none", "--output_dir", str(folder)])
    checkpoint = build(kit.encoder, kit.decoder, kit.panel_size, texts=["No acute abnormality."] * 9, vocab_size=600)
    one, two = flops_per_study(checkpoint)
    epochs = math.ceil(args.num_train_epochs + kit.findings_pretraining_epochs * one / two)
    print(
        f"Operations a study: stage one {one / 1e9:.2f} G, stage two {two / 1e9:.2f} G. "
        f"{kit.findings_pretraining_epochs:g} + {args.num_train_epochs:g} epochs = {epochs} epochs without it."
    )
    return epochs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--studies", type=int, default=4000)
    parser.add_argument("--arms", nargs="+", default=["pretraining", "none", "pairs", "view_dropout"])
    parser.add_argument("--encoder-learning-rate", type=float, default=1.25e-4, help="of the arm without pretraining")
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    epochs = equal_compute_epochs(options.seeds[0], options.out, options.studies)
    rows = [
        run_arm(arm, seed, options.out, options.studies, options.encoder_learning_rate, epochs)
        for seed in options.seeds
        for arm in options.arms
    ]
    print(
        f"\n{'arm':13} {'F1 by seed':20} {'mean':>6} {'s.e.':>6} {'shuffled':>9} "
        f"{'both':>6} {'frontal':>8} {'lost':>6}"
    )
    means = {}
    for arm in options.arms:
        mine = [row for row in rows if row["arm"] == arm]
        scores = [row["finding_f1_micro"] for row in mine]
        error = statistics.stdev(scores) / math.sqrt(len(scores)) if len(scores) > 1 else float("nan")
        means[arm] = statistics.mean(scores), error
        shuffled = statistics.mean(row["shuffled"] for row in mine)
        both, frontal, lost = (
            statistics.mean(row["single_view"][key] for row in mine) for key in ("both_views", "frontal_only", "loss")
        )
        print(
            f"{arm:13} {' '.join(f'{score:.3f}' for score in scores):20} {means[arm][0]:6.3f} {error:6.3f} "
            f"{shuffled:9.3f} {both:6.3f} {frontal:8.3f} {lost:6.3f}"
        )
    if {"pretraining", "none"} <= means.keys():
        gain = means["pretraining"][0] - means["none"][0]
        error = math.hypot(means["pretraining"][1], means["none"][1])
        print(f"Pretraining against none: {gain:+.3f} finding F1, standard error of the difference {error:.3f}.")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
