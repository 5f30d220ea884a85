"""Does a killed training, resumed, end as if it had never been killed?

    python benchmarks/interruptions.py [--kills 20] [--seed 0] [--signal KILL] [--stage reward]

Trains a small model with dropout through both stages on the phantom, once in peace. Then, `--kills` times: the same
training in a process of its own, killed at a random moment (also while it writes a checkpoint, evaluates, or changes
stages), and continued with `--resume`. With `--stage reward` a reward stage follows a short fine-tuning, and all kills
fall into it. Final weights, every logged loss and the report must equal the first run's, bit
for bit. Processes are forked from one that has imported everything, so that kills fall into training, not imports.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: a forked child that inherits a pool of threads waits for ever

import torch
import yaml
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

from hf_cxr.cli import parser as cli
from hf_cxr.data.prepare import prepare
from hf_cxr.models.modeling import train_tokenizer
from hf_cxr.training import run as training  # noqa: F401  (imported here so that the forked processes need not)
from hf_cxr.training.checkpoints import read_progress

RECIPE = {
    "encoder": "tiny",
    "panel_size": 32,
    "max_target_length": 24,
    "findings_pretraining_epochs": 2,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-3,
    "encoder_learning_rate": 2e-4,
    "view_dropout": 0.3,
    "augmentation": 0.5,
    "lr_scheduler_type": "cosine",
    "logging_steps": 3,
    "save_strategy": "steps",
    "save_steps": 4,
    "save_total_limit": 1,
    "eval_strategy": "steps",
    "eval_steps": 4,
    "load_best_model_at_end": True,
    "use_cpu": True,
    "report_to": "none",
    "seed": 3,
}
# What `--stage reward` changes.
REWARDED: dict[str, Any] = {
    "findings_pretraining_epochs": 0,
    "num_train_epochs": 0.5,
    "reward_epochs": 1,
    "reward_samples": 2,
}
REWARDED |= {"reward": ["finding_f1=1", "cider=0.3", "length=0.2"], "reward_kl": 0.05, "reward_learning_rate": 1e-3}


def decoder_with_dropout(folder: Path) -> str:
    """A small GPT-2 in Hub form; its dropout makes every step depend on the random state."""
    tokenizer = train_tokenizer(["No acute cardiopulmonary abnormality. Small right pleural effusion."] * 3, 350)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2)).save_pretrained(folder)
    return str(folder)


def start(words: list[str], log: Path) -> int:
    """Fork a process that runs `hf-cxr WORDS`; returns its id."""
    child = os.fork()
    if child == 0:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os._exit(cli.main(words))
    return child


def wait(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def wait_for(stage: str, run: Path, child: int) -> None:
    """Until the run is in a stage, or past it, or its process has ended."""
    while (read_progress(run) or {}).get("stage") not in (stage, "evaluation", "finished"):
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.01)


def outcome(run: Path) -> tuple[dict[str, torch.Tensor], list[tuple[float, float]]]:
    """Final weights and all logged (step, loss) of a run."""
    log = json.loads((run / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    return load_file(run / "model.safetensors"), [(row["step"], row["loss"]) for row in log if "loss" in row]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--studies", type=int, default=160)
    parser.add_argument("--stage", choices=["reward"])
    parser.add_argument("--signal", default="KILL", choices=["KILL", "INT", "TERM"])
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare("phantom", folder / "dataset", size=32, num_studies=options.studies, seed=0)
        recipe = RECIPE | (REWARDED if options.stage else {})
        recipe |= {"dataset": str(folder / "dataset"), "decoder": decoder_with_dropout(folder / "decoder")}
        (folder / "config.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")

        def words(run: Path) -> list[str]:
            return ["train", str(folder / "config.yaml"), "--output_dir", str(run)]

        child = start(words(folder / "peace"), folder / "peace.log")
        if options.stage:
            wait_for(options.stage, folder / "peace", child)
        started = time.perf_counter()
        if wait(child):
            print((folder / "peace.log").read_text(encoding="utf-8")[-3000:])
            return 1
        seconds = time.perf_counter() - started
        weights, losses = outcome(folder / "peace")
        since = f" since the {options.stage} stage began" if options.stage else ""
        print(f"Uninterrupted: {seconds:.1f} s{since}, {len(losses)} logged losses. Seed {options.seed}.", flush=True)
        failures = 0
        for number in range(options.kills):
            run, log, code = folder / f"run{number}", folder / f"run{number}.log", 0
            progress: dict | None = None
            # Again, where it had ended, or left the stage, before it could be killed.
            while code == 0 or (options.stage and (progress or {}).get("stage") != options.stage):
                shutil.rmtree(run, ignore_errors=True)
                child, moment = start(words(run), log), draw.uniform(0.02, 1.0) * seconds
                if options.stage:
                    wait_for(options.stage, run, child)
                time.sleep(moment)
                os.kill(child, getattr(signal, f"SIG{options.signal}"))
                code, progress = wait(child), read_progress(run)
            held = sorted(str(path.relative_to(run)) for path in run.glob("**/checkpoint-*") if path.is_dir())
            resumed = wait(start([*words(run), "--resume"], log))
            again, losses_again = outcome(run) if resumed == 0 else ({}, [])
            same = weights.keys() == again.keys() and all(torch.equal(weights[key], again[key]) for key in weights)
            same_report = (run / "report.json").read_bytes() == (folder / "peace" / "report.json").read_bytes()
            equal = same and losses == losses_again and same_report
            failures += not equal
            stage = progress["stage"] if progress else "before the start"
            print(
                f"{number + 1:3d}. at {moment:5.2f} s (exit {code}), {stage}, {', '.join(held) or 'nothing saved'}: "
                + ("equal" if equal else f"DIFFERENT (weights equal: {same}, losses equal: {losses == losses_again})"),
                flush=True,
            )
            if not equal:
                print(log.read_text(encoding="utf-8")[-2000:])
    print(f"{options.kills - failures} of {options.kills} resumed runs equal the uninterrupted one, bit for bit.")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
