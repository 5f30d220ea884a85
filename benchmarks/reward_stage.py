"""Is the reward stage worth its time? The same seconds of more cross-entropy beside it, from the same checkpoints.

    python benchmarks/reward_stage.py --base runs/demo_0 runs/demo_1 runs/demo_2 --out runs/reward_stage
        [--dataset DATASET ...] [--reward finding_f1=1 ...] [--samples 4] [--kl 0] [--rate 2e-4] [--epochs 1]
        [--opponent-rates 2e-3 2e-4] [--make-demos]

`--base` are finished runs, `--dataset` what they were trained on (one for all, or one each; default: what their config
names). `--make-demos` first makes those that are missing by the demo's recipe, seeded 0, 1, 2 in order. From each base
the reward stage goes on for `--epochs`, and cross-entropy for as many CPU seconds of training steps, once for each of
`--opponent-rates`; the one of highest finding F1 on the validation split is the opponent. What is finished is skipped.

Prints, of each base and of all test studies together: finding F1, image gain and distinct texts of base, reward stage
and opponent, and the paired interval of the reward stage minus the opponent. Writes `OUT/results.json`. Times are CPU
seconds of training steps, the share in rewards that of waiting for them and of their own process.
"""

from __future__ import annotations

import argparse
import functools
import json
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

import hf_cxr
from hf_cxr.cli.demo import demo
from hf_cxr.config import parse_arguments
from hf_cxr.config.kit import read_config
from hf_cxr.data.collator import pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.compare import compare
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.training.reward_pool import RewardPool
from hf_cxr.training.run import fine_tune

CALIBRATED = 12  # steps of cross-entropy that tell what one costs
SHOWN = ("finding_f1_micro", "finding_f1_macro", "cider", "bleu4", "length_ratio", "distinct_outputs", "modal_share")
QUIET: dict[str, Any] = {"log_samples": 0, "save_strategy": "no", "eval_strategy": "no", "disable_tqdm": True}


class Clock(TrainerCallback):
    """CPU seconds of the training steps of this process, and their number."""

    def __init__(self) -> None:
        self.seconds, self.steps, self.began = 0.0, 0, 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.began = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds, self.steps = self.seconds + time.process_time() - self.began, self.steps + 1


def go_on(base: Path, dataset: Path, run: Path, **arguments: Any) -> dict[str, float]:
    """Train from a base, unless it is done; returns what its steps cost."""
    file, clock = run.parent / f"{run.name}.json", Clock()
    if not file.is_file():
        waited, ask = [0.0], RewardPool.ask

        def timed(self, predictions, references):
            answer = ask(self, predictions, references)

            def wait():
                before = time.perf_counter()
                values = answer()
                waited[0] += time.perf_counter() - before
                return values

            return wait

        RewardPool.ask = timed  # type: ignore[method-assign]
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        given = QUIET | {"init_from": str(base), "findings_pretraining_epochs": 0, "restart": True} | arguments
        hf_cxr.train(dataset, run, base / "config.yaml", [clock], **given)
        RewardPool.ask = ask  # type: ignore[method-assign]
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before
        cost = {"steps": clock.steps, "cpu_seconds": clock.seconds, "rewards_cpu_seconds": children}
        run.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(cost | {"rewards_waited_seconds": waited[0]}) + "\n", encoding="utf-8")
    return json.loads(file.read_text(encoding="utf-8"))


@functools.cache
def step_seconds(base: Path, dataset: Path, out: Path) -> float:
    """CPU seconds of a step of cross-entropy."""
    config = out / "calibration.yaml"
    config.write_text((base / "config.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    kit, args = parse_arguments(config, arguments=QUIET | {"output_dir": str(out / "calibration")})
    studies = load_prepared(str(dataset))["train"]
    batch, clock = args.per_device_train_batch_size * args.gradient_accumulation_steps, Clock()
    packed = pack_dataset(studies.select(range(min(len(studies), CALIBRATED * batch))), kit.panel_size)
    args.num_train_epochs, kit.init_from = 1, None
    fine_tune(load_checkpoint(str(base), dtype="float32"), {"train": packed}, kit, args, [clock])
    return clock.seconds / clock.steps


def validated(run: Path) -> float:
    """Finding F1 on the validation split at the end of a run."""
    lines = (run / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(lines[-1])["finding_f1_micro"]


def pool(runs: Sequence[Path], datasets: Sequence[Path], out: Path) -> str:
    """The test studies of several runs as the `predictions.jsonl` of one, for `compare`. A patient of one dataset is
    one patient in all its runs."""
    rows = []
    for number, (run, dataset) in enumerate(zip(runs, datasets, strict=True)):
        for line in (run / "predictions.jsonl").read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            patient = f"{datasets.index(dataset)} {row.get('patient', row['uid'])}"
            rows.append(row | {"uid": f"{number} {row['uid']}", "patient": patient})
    out.mkdir(parents=True, exist_ok=True)
    (out / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(out)


def figures(run: Path) -> dict[str, Any]:
    """What a report says of the texts."""
    report = json.loads((run / "report.json").read_text(encoding="utf-8"))
    gain = {"image_gain": report["image_gain"]["finding_f1_micro"]}
    return {name: report[name] for name in SHOWN} | gain | {"verdict": report["verdict"]}


def show(name: str, row: dict[str, Any]) -> None:
    told = ", ".join(f"{key} {value:.3f}" for key, value in row.items() if isinstance(value, float | int))
    print(f"  {name}: {told}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, nargs="+", required=True)
    parser.add_argument("--dataset", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--reward", nargs="+", default=["finding_f1=1"])
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--kl", type=float, default=0.0)
    parser.add_argument("--rate", type=float, default=2e-4)
    parser.add_argument("--epochs", type=float, default=1.0)
    parser.add_argument("--opponent-rates", type=float, nargs="*", default=[2e-3, 2e-4])
    parser.add_argument("--make-demos", action="store_true")
    options = parser.parse_args()
    for seed, base in enumerate(options.base):
        if options.make_demos and not (base / "report.json").is_file():
            demo(base, seed)
    named = options.dataset or [Path(read_config(base / "config.yaml")["dataset"]) for base in options.base]
    datasets = named * len(options.base) if len(named) == 1 else named
    results: dict[str, Any] = {"options": vars(options)}
    chosen: dict[str, list[Path]] = {"base": list(options.base), "reward": [], "cross-entropy": []}
    for base, dataset in zip(options.base, datasets, strict=True):
        out = options.out / base.name
        out.mkdir(parents=True, exist_ok=True)
        stage = {"reward": options.reward, "reward_samples": options.samples, "reward_kl": options.kl}
        stage |= {"reward_learning_rate": options.rate, "reward_epochs": options.epochs, "num_train_epochs": 0}
        cost = go_on(base, dataset, out / "reward", **stage)
        chosen["reward"].append(out / "reward")
        results[f"{base}: cost"] = {"reward": cost}
        show(f"{base}: reward stage", cost)
        runs = []
        for rate in options.opponent_rates:
            runs.append(out / f"cross_entropy_{rate:g}")
            steps = max(1, round(cost["cpu_seconds"] / step_seconds(base, dataset, out)))
            own = {"max_steps": steps, "learning_rate": rate, "eval_strategy": "steps", "eval_steps": steps}
            results[f"{base}: cost"][f"{rate:g}"] = go_on(base, dataset, runs[-1], predict_with_generate=True, **own)
            show(f"{base}: cross-entropy at {rate:g}", results[f"{base}: cost"][f"{rate:g}"])
        chosen["cross-entropy"] += [max(runs, key=validated)] if runs else []
        for name, some in chosen.items():
            if some:
                results[f"{base}: {name}"] = figures(some[-1] if name != "base" else base)
                show(f"{base}: {name}", results[f"{base}: {name}"])
    together = {name: pool(some, datasets, options.out / f"all_{name}") for name, some in chosen.items() if some}
    for name in ("base", "cross-entropy"):
        if name in together:
            comparison = compare(together[name], together["reward"])
            results[f"reward - {name}"] = comparison["scores"]
            print(f"reward stage minus {name}, {comparison['n']} studies:")
            for score in ("finding_f1_micro", "finding_f1_macro", "cider", "bleu4"):
                part = comparison["scores"][score]
                low, high = part["ci95"]
                print(f"  {score}: {part['difference']:+.4f} (95 % CI {low:+.4f} to {high:+.4f})", flush=True)
    (options.out / "results.json").write_text(json.dumps(results, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
