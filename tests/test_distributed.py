"""Two gloo processes on the CPU, launched as a user would: accelerate launch scripts/train.py CONFIG."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, TINY_RECIPE, write_config

pytestmark = pytest.mark.slow


def launch(processes: int, config: Path, *overrides: str) -> str:
    command = [str(Path(sys.executable).with_name("accelerate")), "launch", "--cpu", "--num_processes", str(processes)]
    command += [str(ROOT / "scripts" / "train.py"), str(config), *overrides]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=400, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.fixture(scope="module")
def runs(phantom_folder, tmp_path_factory) -> dict[int, Path]:
    """The same recipe at the same global batch on 1 and 2 processes, with evaluations."""
    folder = tmp_path_factory.mktemp("distributed")
    runs = {processes: folder / f"run{processes}" for processes in (1, 2)}
    for processes, run in runs.items():
        config = write_config(
            folder / f"{processes}.yaml",
            **TINY_RECIPE,
            dataset=str(phantom_folder),
            output_dir=str(run),
            max_steps=3,
            logging_steps=1,
            per_device_train_batch_size=16 // processes,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            eval_strategy="steps",
            eval_steps=3,
            per_device_eval_batch_size=3,  # 20 validation studies: the last round of batches is padded
        )
        launch(processes, config)
    return runs


def steps(run: Path, key: str) -> list[float]:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


def test_loss_and_gradient_norm_are_those_of_one_process_at_the_same_global_batch(runs):
    for key in ("loss", "grad_norm"):
        one, two = (steps(runs[processes], key) for processes in (1, 2))
        assert len(one) == 3
        assert two == pytest.approx(one, rel=1e-4), key


def test_every_test_study_is_evaluated_exactly_once(runs, phantom_folder):
    uids = [[json.loads(line)["uid"] for line in (run / "predictions.jsonl").open()] for run in runs.values()]
    assert uids[0] == uids[1]
    assert len(set(uids[1])) == len(uids[1]) == json.loads((runs[2] / "report.json").read_text())["n"]
    assert len(uids[1]) % 2 == 1, "an uneven split, or this test proves nothing"


def test_evaluation_during_training_counts_every_study_once(runs):
    for key in ("eval_n", "eval_bleu4", "eval_modal_share", "eval_distinct_outputs"):
        one, two = (steps(runs[processes], key) for processes in (1, 2))
        assert len(one) == 1
        assert two == pytest.approx(one, abs=1e-9), key


def test_both_stages_run_on_two_processes_through_the_command_itself(phantom_folder, tmp_path):
    config = write_config(
        tmp_path / "c.yaml",
        **TINY_RECIPE,
        dataset=str(phantom_folder),
        output_dir=str(tmp_path / "run"),
        findings_warmup_epochs=0.2,
        max_steps=2,
    )
    command = [str(Path(sys.executable).with_name("hf-cxr")), "train", str(config), "--num_processes", "2"]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.count("| **model** |") == 1
    assert (tmp_path / "run" / "report.json").is_file()
