"""What baselines reach on the real two-view impressions (Kaggle form of the Indiana collection), as published.

python benchmarks/baselines.py --root ../shared/data/iu [--seeds 5]

70/10/20 by uid, one permutation per seed; every text as published, white space aside. Needs no images.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from hf_cxr import metrics
from hf_cxr.data.sources import kaggle
from hf_cxr.evaluation.baselines import blind_predictions, oracle_predictions

SHOWN = ("bleu1", "bleu2", "bleu3", "bleu4", "rougeL", "cider", "finding_f1_micro", "normal_accuracy", "length_ratio")


def read_impressions(root: Path) -> list[str]:
    """The impressions of the studies with both views, in the order of their uids."""
    studies = [s for s in kaggle.studies(root, demand_images=False) if s.impression.strip()]
    views = ({image.view for image in s.images} for s in studies)
    both = [s for s, shown in zip(studies, views, strict=True) if shown >= {"frontal", "lateral"}]
    return [" ".join(s.impression.split()) for s in sorted(both, key=lambda s: int(s.uid))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder of indiana_reports.csv")
    parser.add_argument("--seeds", type=int, default=5)
    args = parser.parse_args()
    texts = read_impressions(args.root)
    n = len(texts)
    cuts = round(0.7 * n), round(0.8 * n)
    scores: dict[str, list[list[float]]] = {}
    for seed in range(args.seeds):
        shuffled = [texts[i] for i in np.random.default_rng(seed).permutation(n)]
        train, validation, test = shuffled[: cuts[0]], shuffled[cuts[0] : cuts[1]], shuffled[cuts[1] :]
        baselines = blind_predictions(train, validation, len(test), seed)
        baselines["label oracle"] = oracle_predictions(train, test)
        for name, guessed in baselines.items():
            row = metrics.study_statistics(guessed, test).scores()
            scores.setdefault(name, []).append([row[key] for key in SHOWN])
    print(f"{n} studies with both views; mean (and standard deviation) of {args.seeds} splits, seeds from 0\n")
    print("| | " + " | ".join(SHOWN) + " |\n|---" + "|---" * len(SHOWN) + "|")
    for name, rows in scores.items():
        mean, spread = np.mean(rows, axis=0), np.std(rows, axis=0, ddof=min(1, len(rows) - 1))
        print(f"| {name} | " + " | ".join(f"{m:.3f} ({s:.3f})" for m, s in zip(mean, spread, strict=True)) + " |")


if __name__ == "__main__":
    main()
