"""Does the model read the lateral view? Recall of what only the lateral shows, with it and without it.

    python benchmarks/lateral.py runs/demo [--dataset runs/demo/dataset]

Runs over the two-view test studies of a phantom dataset twice: as they are, and with the lateral panel emptied.
"""

import argparse
import json

from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.sources.phantom import FRONTAL_ONLY, LATERAL_ONLY
from hf_cxr.evaluation.prediction import predict_split
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.models.modeling import load_checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder of a model trained on the phantom")
    parser.add_argument("--dataset", help="prepared phantom (default: the run's own, RUN/dataset)")
    options = parser.parse_args()
    checkpoint = load_checkpoint(options.run)
    test = load_prepared(options.dataset or f"{options.run}/dataset")["test"]
    pairs = test.filter(lambda row: row["frontal"] is not None and row["lateral"] is not None)
    emptied = pairs.map(lambda row: {"lateral": None}, features=pairs.features)
    stated = [
        [positive_findings(row["prediction"], sided=True) for row in predict_split(checkpoint, split)]
        for split in (pairs, emptied)
    ]
    table = {}
    print(f"{'finding':24} {'seen in':8} {'n':>4} {'both views':>11} {'no lateral':>11}")
    for where, names in (("lateral", LATERAL_ONLY), ("frontal", FRONTAL_ONLY)):
        for name in sorted(names):
            cases = [index for index, tags in enumerate(pairs["tags"]) if name in tags]
            recalls = [sum(name in found[index] for index in cases) / max(1, len(cases)) for found in stated]
            table[name] = {"seen_in": where, "n": len(cases), "both_views": recalls[0], "no_lateral": recalls[1]}
            print(f"{name:24} {where:8} {len(cases):4d} {recalls[0]:11.3f} {recalls[1]:11.3f}")
    print(json.dumps(table))


if __name__ == "__main__":
    main()
