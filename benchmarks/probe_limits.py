"""What a linear reading of an encoder allows: for each finding of real radiographs, the AUC of the probe on the
encoder as it came, and the highest value that its precision and recall both reach at any threshold.

    python benchmarks/probe_limits.py --out runs/real --encoder dinov2_small [--folds 1 2 3]

`--out` is that of `real_radiographs.py`, which has made the folds. The threshold is chosen on the test studies
themselves: no model can be expected to reach this, and where it is low no text can be good.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from real_radiographs import embeddings, probes_of

from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.probes import targets
from hf_cxr.inference.labeler import FINDINGS
from hf_cxr.metrics.content import area_under_curve


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--folds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--text", default="impression")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    place, seed = options.out / options.text, options.seed
    datasets = [load_prepared(str(place / f"dataset_{fold}")) for fold in options.folds]
    known = embeddings(datasets, options.encoder, place / "encoder_224.npz")
    probed = [probes_of(dataset, options.encoder, known, seed)["encoder"].probabilities for dataset in datasets]
    said = np.concatenate(probed)
    true = np.concatenate([targets(dataset["test"]["impression"])[0] for dataset in datasets])
    print("| finding | studies | AUC | precision and recall at most |\n|---|---|---|---|")
    for name, chances, truths in zip(FINDINGS, said.T, true.T, strict=False):
        if truths.any():
            auc, most = area_under_curve(chances, truths.astype(int)), reached(chances, truths)
            print(f"| {name} | {truths.sum()} | {auc:.3f} | {most:.2f} |")


def reached(chances: np.ndarray, truths: np.ndarray) -> float:
    """The highest value that precision and recall both reach at one threshold."""
    order = np.argsort(-chances, kind="stable")
    ends = np.append(np.diff(chances[order]) != 0, True)  # equal chances are stated together
    hits, stated = truths[order].cumsum(), np.arange(1, len(order) + 1)
    return float(np.minimum(hits / stated, hits / truths.sum())[ends].max())


if __name__ == "__main__":
    main()
