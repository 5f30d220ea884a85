"""Several gloo processes on the CPU, launched as a user would: the same training however a global batch is cut, every
study evaluated once, hosts, shards. What was not run here is named in docs/scaling.md."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import distributed_worker
import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from helpers import ROOT, TINY_RECIPE, run_forked, write_config
from safetensors.torch import load_file

from hf_cxr.config import parse_arguments
from hf_cxr.training.checkpoints import RECORD
from hf_cxr.training.launch import accelerate_config, check_workers
from hf_cxr.training.run import train

pytestmark = pytest.mark.slow

ACCELERATE = [str(Path(sys.executable).with_name("accelerate")), "launch"]
SETUPS = sorted((ROOT / "configs" / "accelerate").glob("*.yaml"))


def start(command: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )


def finish(*processes: subprocess.Popen) -> str:
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output[-3000:]
    return "".join(outputs)


def free_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return str(listener.getsockname()[1])


# --- the same training, however a global batch is cut -------------------------------------------------------------


@pytest.fixture(scope="module")
def cuts(phantom_folder, tmp_path_factory) -> dict[int, Path]:
    """What tests/distributed_worker.py wrote, by the number of processes."""
    folders = {processes: tmp_path_factory.mktemp(f"processes{processes}") for processes in (1, 2, 3)}
    distributed_worker.main(str(phantom_folder), folders[1])
    for processes in (2, 3):
        words = [str(phantom_folder), str(folders[processes])]
        code = f"import distributed_worker, pathlib; distributed_worker.main({words[0]!r}, pathlib.Path({words[1]!r}))"
        done = run_forked(code=code, processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
    return folders


@pytest.mark.parametrize(("stage", "accumulation"), distributed_worker.CUTS)
@pytest.mark.parametrize("processes", [1, 2, 3])
def test_training_does_not_depend_on_processes_and_accumulation(cuts, processes, stage, accumulation):
    name, reference = f"{stage}-{accumulation}", "smoothed-2" if stage == "smoothed" else f"{stage}-1"
    logs = {n: json.loads((folder / "logs.json").read_text()) for n, folder in cuts.items()}
    assert logs[processes]["processes"] == processes
    one, mine = logs[1][reference], logs[processes][name]
    assert len(one) == len(mine) == 5
    for key in ("loss", "grad_norm"):
        assert mine[0][key] == pytest.approx(one[0][key], rel=1e-4), key
    weights = load_file(cuts[processes] / f"{name}.safetensors")
    expected = load_file(cuts[1] / f"{reference}.safetensors")
    apart = {key: (weights[key] - value).abs().max().item() for key, value in expected.items()}
    assert max(apart.values()) <= 1e-5, max(apart, key=apart.__getitem__)


@pytest.mark.parametrize("processes", [2, 3])
def test_a_split_of_any_size_is_generated_once_whatever_the_processes(cuts, processes):
    expected = json.loads((cuts[1] / "rows-0.json").read_text())
    assert [len({row["uid"] for row in rows}) for rows in expected.values()] == [1, 2, 7]
    for rank in range(processes):
        mine = json.loads((cuts[processes] / f"rows-{rank}.json").read_text())
        for size, rows in expected.items():
            assert [row["uid"] for row in mine[size]] == [row["uid"] for row in rows]
            assert [row["prediction"] for row in mine[size]] == [row["prediction"] for row in rows]


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_an_evaluation_while_training_sets_each_text_beside_its_own_study(cuts, processes):
    expected = json.loads((cuts[1] / "rows-0.json").read_text())["7"]
    shown = [json.loads(line) for line in (cuts[processes] / "evaluated" / "samples" / "samples.jsonl").open()]
    assert len({row["prediction"] for row in expected}) == 7
    for key in ("uid", "impression", "prediction"):
        assert [row[key] for row in shown] == [row[key] for row in expected], key


@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("name", ["findings-1", "findings-4"])
def test_stage_one_is_judged_the_same_by_any_number_of_processes(cuts, processes, name):
    one, several = (json.loads((cuts[n] / name / RECORD).read_text()) for n in (1, processes))
    assert several["validation_studies"] == distributed_worker.JUDGED
    assert len(one["epochs"]) == len(several["epochs"]) == 1
    theirs = several["epochs"][0]["findings"]
    for finding, row in one["epochs"][0]["findings"].items():
        assert theirs[finding] == {**row, "auc": pytest.approx(row["auc"], abs=1e-3)}
    assert len(theirs) > 1


# --- the same run, however it is launched -------------------------------------------------------------------------

WAYS = ("one", "ddp", "hosts", "fsdp")


@pytest.fixture(scope="module")
def runs(phantom_folder, tmp_path_factory) -> dict[str, Path]:
    """Both stages of one recipe, which the kit cuts into batches for: one process; two of `hf-cxr train`; two hosts of
    one process; two that hold half of the model each."""
    folder = tmp_path_factory.mktemp("launched")
    runs = {way: folder / way for way in WAYS}

    def config(way: str, **more) -> str:
        path = write_config(
            folder / f"{way}.yaml",
            **TINY_RECIPE | {"num_train_epochs": 0.45},
            dataset=str(phantom_folder),
            output_dir=str(runs[way]),
            findings_pretraining_epochs=0.2,
            global_batch_size=16,
            per_device_train_batch_size=4,
            logging_steps=1,
            learning_rate=0.1,
            optim="sgd",
            lr_scheduler_type="constant",
            eval_strategy="steps",
            eval_steps=6,
            per_device_eval_batch_size=3,  # 20 validation studies: the last round of batches is padded
            **more,
        )
        return str(path)

    command, script = [str(Path(sys.executable).with_name("hf-cxr")), "train"], str(ROOT / "scripts" / "train.py")
    train(*parse_arguments(config("one")))
    told = finish(start([*command, config("ddp"), "--accelerate_config", "ddp"]))
    assert told.count("Global batch: 16 studies = 4 × 2 device(s) × 2 accumulated\n") == 1
    several = [*ACCELERATE, "--config_file", str(accelerate_config("multi_host")), "--num_processes", "2"]
    several += ["--main_process_ip", "127.0.0.1", "--main_process_port", free_port()]
    host = [[*several, "--machine_rank", str(rank), script, config("hosts")] for rank in (0, 1)]
    finish(*map(start, host))
    sharded = [*ACCELERATE, "--config_file", str(accelerate_config("fsdp2")), "--main_process_port", free_port()]
    first = config("fsdp", eval_on_start=True)  # the first evaluation: see fsdp_on_cpu.py
    finish(start([*sharded, str(ROOT / "tests" / "fsdp_on_cpu.py"), first]))
    return runs


def steps(run: Path, key: str) -> list[float]:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


@pytest.mark.parametrize("way", WAYS[1:])
def test_a_run_is_the_same_however_it_is_launched(runs, way):
    for key, tolerance in (("loss", 1e-4), ("grad_norm", 1e-3)):
        one, several = (steps(runs[name], key) for name in ("one", way))
        assert len(one) == 6
        assert several == pytest.approx(one, rel=tolerance), key
    for key in ("eval_n", "eval_bleu4", "eval_modal_share", "eval_distinct_outputs"):
        one, several = (steps(runs[name], key)[-1:] for name in ("one", way))
        assert len(one) == 1
        assert several == pytest.approx(one, abs=1e-9), key


@pytest.mark.parametrize("way", WAYS[1:])
def test_every_test_study_is_evaluated_exactly_once(runs, way):
    one, several = ([json.loads(line) for line in (runs[name] / "predictions.jsonl").open()] for name in ("one", way))
    assert len({row["uid"] for row in one}) == len(one) == json.loads((runs[way] / "report.json").read_text())["n"]
    assert len(one) % 2 == 1, "an uneven split, or this test proves nothing"
    assert [(row["uid"], row["prediction"]) for row in several] == [(row["uid"], row["prediction"]) for row in one]


@pytest.mark.parametrize("way", WAYS[1:])
def test_probes_are_the_same_however_many_processes_encode(runs, way):
    one, several = (json.loads((runs[name] / "report.json").read_text())["probes"] for name in ("one", way))
    assert several["pixels"] == one["pixels"]
    assert several["encoder"]["normal_auc"] == pytest.approx(one["encoder"]["normal_auc"], abs=0.05)


@pytest.mark.parametrize("way", WAYS[1:])
def test_the_weights_are_saved_whole_and_load_with_stock_classes(runs, way):
    from transformers import VisionEncoderDecoderModel

    one, several = (load_file(runs[name] / "model.safetensors") for name in ("one", way))
    assert one.keys() == several.keys()
    assert max((several[key] - value).abs().max().item() for key, value in one.items()) <= 1e-5
    _, info = VisionEncoderDecoderModel.from_pretrained(runs[way], output_loading_info=True)
    assert not any(info.values())


def test_the_single_process_of_accelerate_on_cpus_becomes_what_was_asked_for(phantom_folder, runs, tmp_path):
    config = runs["ddp"].with_suffix(".yaml")
    options = ["--cpu", "--num_processes", "2", "--mixed_precision", "bf16", "--main_process_port", free_port()]
    out = str(tmp_path / "run")
    stdout = finish(start([*ACCELERATE, *options, "-m", "hf_cxr", "train", str(config), "--output_dir", out]))
    assert stdout.count("\nmodel   ") == 1
    one, two = (steps(run, "loss") for run in (runs["one"], Path(out)))
    assert two == pytest.approx(one, rel=0.05), "two processes, or the batch is another"
    assert two != pytest.approx(one, rel=1e-5), "--mixed_precision was dropped"


def test_workers_that_did_not_find_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="2 processes were started but this one sees 1"):
        check_workers()


# --- launch set-ups -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", SETUPS, ids=lambda file: file.stem)
def test_a_launch_setup_holds_only_what_accelerate_knows(file, tmp_path):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    assert file.read_text().startswith("#"), "a comment on its use"
    load_config_from_file(str(file))  # raises for unknown keys
    options = launch_command_parser().parse_args(["--config_file", str(file), "train.py"])
    known, config = vars(options), yaml.safe_load(file.read_text())
    for section, prefix in (("fsdp_config", "fsdp_"), ("deepspeed_config", "")):
        unknown = [key for key in config.get(section, ()) if f"{prefix}{key.removeprefix(prefix)}" not in known]
        assert not unknown, f"{section}: accelerate takes these and forgets them"
    _validate_launch_command(options)
    assert options.num_processes == config["num_processes"]
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(file.read_text() + "number_of_processes: 2\n")
    with pytest.raises(ValueError, match="unknown keys"):
        load_config_from_file(str(wrong))


def test_launch_setups_are_found_by_name(tmp_path):
    assert [accelerate_config(file.stem) for file in SETUPS] == SETUPS
    assert {file.stem for file in SETUPS} == {"one_gpu", "ddp", "multi_host", "fsdp2", "deepspeed_zero2"}
    with pytest.raises(FileNotFoundError, match="ddp, deepspeed_zero2, fsdp2"):
        accelerate_config(str(tmp_path / "none.yaml"))
