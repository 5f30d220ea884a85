"""A model trained as by `make demo`, on images shuffled against their texts: its report has to say that it is blind.

python benchmarks/blind.py --out runs/blind [--num-studies 8000]

The test split is left as it is: a model that had learned anything from images would show it there.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from hf_cxr.cli.demo import packaged_config
from hf_cxr.cli.terminal import print_report
from hf_cxr.config import parse_arguments
from hf_cxr.data.prepare import prepare
from hf_cxr.training.run import train

SHUFFLED = ("train", "validation")


def shuffle_texts(dataset: Path, seed: int) -> None:
    """Deal the texts of the training and validation studies anew among their images, in place."""
    rng = np.random.default_rng(seed)
    for file in sorted((dataset / "data").glob("*.parquet")):
        if not file.name.startswith(SHUFFLED):
            continue
        table = pq.read_table(file)
        order = rng.permutation(len(table))
        for name in ("impression", "findings", "tags"):
            table = table.set_column(table.column_names.index(name), table.field(name), table[name].take(order))
        pq.write_table(table, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-studies", type=int, default=8000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    dataset = args.out / "dataset"
    words = ["--dataset", str(dataset), "--output_dir", str(args.out), "--seed", str(args.seed)]
    kit, arguments = parse_arguments(packaged_config("demo.yaml"), words)
    prepare("phantom", dataset, size=kit.panel_size, seed=args.seed, num_studies=args.num_studies, overwrite=True)
    shuffle_texts(dataset, args.seed)
    print_report(train(kit, arguments), str(args.out))


if __name__ == "__main__":
    main()
