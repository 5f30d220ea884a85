"""Seconds to score 10,000 studies in full: every metric, baselines, shuffles, intervals, subgroups. No model is run.

python benchmarks/scoring.py [--studies 10000] [--unique]

The texts are phantom impressions, 60 % of them right. With `--unique` no text occurs twice (a number is added), so
that nothing is gained by remembering texts.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from hf_cxr.data.sources import phantom_text
from hf_cxr.evaluation.evaluate import build_report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=10_000)
    parser.add_argument("--unique", action="store_true")
    args = parser.parse_args()
    n, rng = args.studies, np.random.default_rng(0)
    pool = [phantom_text.report(phantom_text.plan(0, index))[0] for index in range(3 * n)]
    if args.unique:
        pool = [f"{text} Examination {index}." for index, text in enumerate(pool)]
    truth, other, train = pool[:n], pool[n : 2 * n], pool[2 * n :]
    said = [right if rng.random() < 0.6 else wrong for right, wrong in zip(truth, other, strict=True)]
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
