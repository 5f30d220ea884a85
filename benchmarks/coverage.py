"""How often the 95 % interval of a score holds the true score, on simulated data: it should be 95 % of the time.

python benchmarks/coverage.py [--trials 1000] [--studies 300] [--per-patient 1]

A study's truth is drawn from phantom impressions; its text is right with a probability that depends on the patient,
else drawn blindly. The true score is that of 60,000 studies. With more than one study per patient, patients differ,
and the studies of one are alike: the bootstrap has to draw patients.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from hf_cxr import metrics
from hf_cxr.data.sources import studies
from hf_cxr.evaluation.bootstrap import study_intervals

NAMES = ("bleu1", "bleu4", "rougeL", "exact_match", "finding_f1_micro", "finding_f1_macro", "normal_accuracy")
POPULATION = 60_000


def simulate(
    pool: list[str], patients: int, per_patient: int, rng: np.random.Generator
) -> tuple[list[str], list[str], list[int]]:
    """Texts, truths and patients."""
    knows = np.repeat(rng.beta(1.5, 1.0, size=patients), per_patient)
    truth = [pool[i] for i in rng.integers(len(pool), size=len(knows))]
    blind = [pool[i] for i in rng.integers(len(pool), size=len(knows))]
    said = [t if rng.random() < k else b for t, b, k in zip(truth, blind, knows, strict=True)]
    return said, truth, np.repeat(np.arange(patients), per_patient).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--studies", type=int, default=300)
    parser.add_argument("--per-patient", type=int, default=1)
    args = parser.parse_args()
    started = time.perf_counter()
    pool = [study.impression for study in studies("phantom", num_studies=2000, seed=0)]
    rng = np.random.default_rng(0)
    truth = metrics.study_statistics(*simulate(pool, POPULATION, 1, rng)[:2]).scores()
    held = dict.fromkeys(NAMES, 0)
    for _ in range(args.trials):
        said, references, patients = simulate(pool, args.studies // args.per_patient, args.per_patient, rng)
        bounds = study_intervals(metrics.study_statistics(said, references), patients, int(rng.integers(2**31)))
        for name in NAMES:
            held[name] += bounds[name][0] <= truth[name] <= bounds[name][1]
    print(f"{args.trials} trials of {args.studies} studies, {args.per_patient} per patient; seed 0")
    for name in NAMES:
        print(f"{name:20s} true {truth[name]:.3f}  interval holds it in {held[name] / args.trials:.3f}")
    print(f"{time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
