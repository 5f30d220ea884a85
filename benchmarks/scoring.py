"""Seconds to score 10,000 studies in full: every metric, baselines, shuffles, intervals, subgroups. No model is run.

python benchmarks/scoring.py [--studies 10000] [--unique] [--probes]

The texts are phantom impressions, 60 % of them right. With `--unique` no text occurs twice (a number is added), so
that nothing is gained by remembering texts. With `--probes` only the linear probes are fitted and scored, on as many
training studies and others: CPU seconds of each.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from hf_cxr.data.sources import phantom_text
from hf_cxr.evaluation.evaluate import build_report
from hf_cxr.evaluation.probes import fit_probes, probe_scores, targets
from hf_cxr.metrics import study_statistics

WIDTHS = {"encoder": 2 * 768, "pixels": 2 * 16 * 16}


def probe_seconds(train: list[str], said: list[str], truth: list[str]) -> None:
    """Print the CPU seconds of probes on features that tell of the findings, between noise."""
    rng, patients = np.random.default_rng(0), [i // 2 for i in range(len(train))]
    statistics = study_statistics(said, truth)
    for name, width in WIDTHS.items():
        mixed = rng.normal(size=(targets(train)[0].shape[1], width))
        found = [targets(texts)[0] @ mixed for texts in (train, truth)]
        there, here = [some + 3 * rng.normal(size=some.shape) for some in found]
        started = time.process_time()
        probe = fit_probes(train, patients, {name: (there, here)}, 0)[name]
        fitted = time.process_time()
        f1 = probe_scores(probe, truth, statistics, patients, 0)["finding_f1_micro"]
        scored = time.process_time() - fitted
        print(f"probe on {name}: fitted in {fitted - started:.1f} s, scored in {scored:.1f} s, finding F1 {f1:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--unique", action="store_true")
    parser.add_argument("--probes", action="store_true")
    args = parser.parse_args()
    n, rng = args.studies, np.random.default_rng(0)
    pool = [phantom_text.report(phantom_text.plan(0, index))[0] for index in range(3 * n)]
    if args.unique:
        pool = [f"{text} Examination {index}." for index, text in enumerate(pool)]
    truth, other, train = pool[:n], pool[n : 2 * n], pool[2 * n :]
    said = [right if rng.random() < 0.6 else wrong for right, wrong in zip(truth, other, strict=True)]
    if args.probes:
        probe_seconds(train, said, truth)
        return
    rows = [
        {"uid": str(i), "patient": i // 2, "impression": t, "prediction": p, "views": "both" if i % 3 else "frontal"}
        for i, (t, p) in enumerate(zip(truth, said, strict=True))
    ]
    started = time.perf_counter()
    report = build_report(rows, train, train[: n // 8], nearest={"nearest_pixels": other, "nearest_encoder": other})
    seconds = time.perf_counter() - started
    print(f"{n} studies, {len({*truth, *said})} different texts: {seconds:.1f} s")
    print(report["verdict"])


if __name__ == "__main__":
    main()
