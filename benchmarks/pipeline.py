"""Is a batch answered exactly as its studies one by one, and how much faster? Through the `cxr-impression` pipeline.

python benchmarks/pipeline.py runs/demo runs/demo/dataset [--studies 200] [--rounds 5]

Studies are those of the test split with one view only (up to a quarter), then the first of the others. Rounds of the
batch sizes are interleaved; medians are told. Texts have to be equal, or the exit status is 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch
from transformers import pipeline

import hf_cxr  # noqa: F401  (registers the task)
from hf_cxr.data.prepared import load_prepared

BATCHES = (1, 8, 32)
OPTIONS: dict[str, dict[str, int]] = {"greedy": {}, "4 beams": {"num_beams": 4}}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("dataset")
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    rows = list(load_prepared(args.dataset)["test"].select_columns(["frontal", "lateral"]))
    single = [row for row in rows if None in row.values()][: args.studies // 4]
    studies = single + [row for row in rows if None not in row.values()][: args.studies - len(single)]
    print(f"{len(studies)} studies, {len(single)} of one view, {torch.get_num_threads()} threads")
    pipe = pipeline("cxr-impression", model=args.checkpoint)
    pipe(studies[: BATCHES[-1]], batch_size=BATCHES[-1])
    equal = True
    for name, options in OPTIONS.items():
        seconds: dict[int, list[float]] = {size: [] for size in BATCHES}
        texts, scores = {}, {}
        for _ in range(args.rounds):
            for size in BATCHES:
                started = time.perf_counter()
                answers = pipe(studies, batch_size=size, **options)
                seconds[size].append(time.perf_counter() - started)
                texts[size] = [rows[0]["impression"] for rows in answers]
                scores[size] = [rows[0]["score"] for rows in answers]
        for size in BATCHES:
            rate = len(studies) / statistics.median(seconds[size])
            ratio = statistics.median(alone / own for alone, own in zip(seconds[1], seconds[size], strict=True))
            other = sum(a != b for a, b in zip(texts[1], texts[size], strict=True))
            drift = max(abs(a - b) for a, b in zip(scores[1], scores[size], strict=True))
            equal &= other == 0
            print(
                f"{name}, batch {size}: {rate:.0f} studies/s, {ratio:.2f} × one by one; {other} other texts, ", end=""
            )
            print(f"scores within {drift:.1e}")
    return 0 if equal else 1


if __name__ == "__main__":
    sys.exit(main())
