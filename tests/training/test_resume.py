"""An interrupted run goes on as if it had not been; what cannot be continued is refused, and nothing is lost."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY_RECIPE, copy_folder, run_forked, tiny_checkpoint, write_config
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback, TrainerState

from hf_cxr.config import parse_arguments
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.training import findings_pretraining
from hf_cxr.training import run as training
from hf_cxr.training.callbacks import is_exhausted
from hf_cxr.training.checkpoints import WHOLE, checkpoints, only_run_in, read_progress, remove_checkpoints, rotate
from hf_cxr.training.run import train

RECIPE = TINY_RECIPE | {
    "findings_pretraining_epochs": 1,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 32,
    "learning_rate": 1e-3,
    "save_strategy": "steps",
    "save_steps": 5,
    "eval_strategy": "steps",
    "eval_steps": 5,
    "load_best_model_at_end": True,
    "logging_steps": 3,
    "seed": 1,
}


class Interrupted(BaseException):
    """Stands for Ctrl-C: nothing between the training loop and the caller may swallow it."""


def arguments(folder, phantom_folder, *words, **values):
    folder.mkdir(parents=True, exist_ok=True)
    config = RECIPE | {"dataset": str(phantom_folder), "output_dir": str(folder / "run")} | values
    return parse_arguments(write_config(folder / "config.yaml", **config), list(words))


def interrupt(monkeypatch, trainer_name: str, step: int) -> None:
    """Let the next training of this kind be interrupted after `step` steps."""
    module = findings_pretraining if trainer_name == "FindingsTrainer" else training
    kind = getattr(module, trainer_name)

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                raise Interrupted

    class Doomed(kind):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Stop())

    monkeypatch.setattr(module, trainer_name, Doomed)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model.safetensors")


def losses(run: Path) -> list[tuple[int, float]]:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    return [(entry["step"], entry["loss"]) for entry in log if "loss" in entry]


def mean_loss(run: Path) -> float:
    log = json.loads((run / "trainer_state.json").read_text())["log_history"]
    (mean,) = (entry["train_loss"] for entry in log if "train_loss" in entry)
    return mean


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole_run(phantom_folder, tmp_path_factory) -> Path:
    """The uninterrupted run that the others are compared with."""
    folder = tmp_path_factory.mktemp("whole")
    train(*arguments(folder, phantom_folder))
    return folder / "run"


@pytest.fixture
def interrupted_run(phantom_folder, tmp_path, monkeypatch) -> Path:
    """Interrupted in stage two after its first checkpoint."""
    with monkeypatch.context() as patch:
        interrupt(patch, "ImpressionTrainer", 7)
        with pytest.raises(Interrupted):
            train(*arguments(tmp_path, phantom_folder))
    return tmp_path / "run"


def test_a_run_killed_in_a_push_goes_on_from_the_checkpoint_that_was_pushed(
    whole_run, phantom_folder, tmp_path, monkeypatch
):
    def killed(trainer, folder):
        if trainer.state.global_step == 10:
            raise Interrupted

    monkeypatch.setenv("HF_TOKEN", "hf_test")
    monkeypatch.setattr(training.ImpressionTrainer, "_push_from_checkpoint", killed)
    with pytest.raises(Interrupted):
        train(*arguments(tmp_path, phantom_folder, push_to_hub=True, hub_model_id="user/name"))
    assert checkpoints(tmp_path / "run")[-1].name == "checkpoint-10"
    train(*arguments(tmp_path, phantom_folder, "--resume"))
    assert same(weights(whole_run), weights(tmp_path / "run"))
    assert losses(whole_run) == losses(tmp_path / "run")


@pytest.mark.slow
def test_killed_runs_resume_bit_for_bit_whenever_they_are_killed():
    script = str(ROOT / "benchmarks" / "interruptions.py")
    result = run_forked(script=[script, "--kills", "5", "--seed", "1"])
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    stages = set(re.findall(r"\), (\w+), ", result.stdout))
    assert {"findings_pretraining", "impressions"} <= stages, "the seed no longer kills in both stages"


@pytest.mark.parametrize(
    ("trainer_name", "step"), [("FindingsTrainer", 7), ("ImpressionTrainer", 2), ("ImpressionTrainer", 13)]
)
def test_both_stages_resume_with_the_same_weights_and_losses(
    whole_run, phantom_folder, tmp_path, monkeypatch, capsys, trainer_name, step
):
    with monkeypatch.context() as patch:
        interrupt(patch, trainer_name, step)
        with pytest.raises(Interrupted):
            train(*arguments(tmp_path, phantom_folder))
    assert not (tmp_path / "run" / "model.safetensors").exists()
    capsys.readouterr()
    train(*arguments(tmp_path, phantom_folder, "--resume"))
    stage = "stage 1 of 2: encoder" if trainer_name == "FindingsTrainer" else "stage 2 of 2: model"
    shown = re.search(rf"{stage} learns .*: (\d+) of \d+ steps", capsys.readouterr().err)
    assert int(shown[1]) == step // 5 * 5, "its progress begins at the last checkpoint"
    assert same(weights(whole_run), weights(tmp_path / "run"))
    assert losses(whole_run) == losses(tmp_path / "run"), "steps between two lines of the log count across the resume"
    assert mean_loss(whole_run) == mean_loss(tmp_path / "run"), "of all steps, not of those since the resume"
    lines = [loss for _, loss in losses(whole_run)]  # all but the last step or two
    assert mean_loss(whole_run) == pytest.approx(sum(lines) / len(lines), rel=0.1)


def test_a_run_killed_in_its_evaluation_is_evaluated_and_not_trained_again(
    whole_run, phantom_folder, tmp_path, monkeypatch
):
    def interrupted(*args, **kwargs):
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "evaluate", interrupted)
        with pytest.raises(Interrupted):
            train(*arguments(tmp_path, phantom_folder))
    run = tmp_path / "run"
    assert read_progress(run)["stage"] == "evaluation"
    before = (run / "model.safetensors").stat().st_mtime_ns
    train(*arguments(tmp_path, phantom_folder, "--resume"))
    assert (run / "model.safetensors").stat().st_mtime_ns == before
    assert (run / "report.json").read_bytes() == (whole_run / "report.json").read_bytes()


def test_resuming_a_finished_run_gives_its_report_and_changes_nothing(whole_run, phantom_folder):
    files = [path for path in whole_run.rglob("*") if path.is_file() and path.name != ".training.lock"]
    before = {path: path.stat().st_mtime_ns for path in files}
    report = train(*arguments(whole_run.parent, phantom_folder, "--resume"))
    assert report == json.loads((whole_run / "report.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_run_is_not_overwritten_by_accident(interrupted_run, phantom_folder):
    saved = checkpoints(interrupted_run)
    assert saved
    with pytest.raises(ValueError, match=r"--resume or delete it with --restart"):
        train(*arguments(interrupted_run.parent, phantom_folder))
    assert checkpoints(interrupted_run) == saved


def test_restart_begins_anew(interrupted_run, whole_run, phantom_folder):
    (interrupted_run / "checkpoint-999").mkdir()
    (interrupted_run / "checkpoint-999" / WHOLE).touch()
    train(*arguments(interrupted_run.parent, phantom_folder, "--restart"))
    assert same(weights(whole_run), weights(interrupted_run))
    assert not (interrupted_run / "checkpoint-999").exists()


def test_a_resumed_run_needs_the_same_arguments(interrupted_run, phantom_folder, tmp_path):
    with pytest.raises(ValueError, match=r"learning_rate 0\.001 → 0\.002"):
        train(*arguments(tmp_path, phantom_folder, "--resume", learning_rate=2e-3))
    train(*arguments(tmp_path, phantom_folder, "--resume", dataloader_num_workers=1))


def test_a_checkpoint_that_was_being_written_is_not_resumed_from(interrupted_run, whole_run, phantom_folder, tmp_path):
    broken = copy_folder(checkpoints(interrupted_run)[-1], interrupted_run / "checkpoint-6")
    (broken / WHOLE).unlink()
    (broken / "model.safetensors").write_bytes(b"half")
    train(*arguments(tmp_path, phantom_folder, "--resume"))
    assert not broken.exists()
    assert same(weights(whole_run), weights(interrupted_run))


def test_a_checkpoint_with_missing_weights_is_refused_and_not_half_loaded(interrupted_run, phantom_folder, tmp_path):
    file = checkpoints(interrupted_run)[-1] / "model.safetensors"
    kept = {name: value for name, value in load_file(file).items() if "encoder.layers.0" not in name}
    save_file(kept, file, {"format": "pt"})
    with pytest.raises(ValueError, match="a checkpoint of another model"):
        train(*arguments(tmp_path, phantom_folder, "--resume"))


def test_the_best_checkpoint_is_loaded_with_its_encoder(whole_run):
    """transformers' Trainer leaves out what `save_pretrained` wrote under older names: the whole encoder."""
    state = json.loads((whole_run / "trainer_state.json").read_text())
    best = load_checkpoint(state["best_model_checkpoint"]).model.state_dict()
    assert same(best, load_checkpoint(str(whole_run)).model.state_dict())
    scores = {entry["step"]: entry["eval_composite"] for entry in state["log_history"] if "eval_composite" in entry}
    assert scores[state["best_global_step"]] == max(scores.values())
    assert state["best_global_step"] < state["global_step"], "else this shows nothing: the last one is loaded anyway"


def test_older_checkpoints_go_only_when_the_new_one_is_whole(phantom_folder, tmp_path, monkeypatch):
    seen = []

    class Watch(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            seen.append([path.name for path in checkpoints(args.output_dir)])

    class Watched(training.ImpressionTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            self.add_callback(Watch())

        def _save_rng_state(self, output_dir):
            super()._save_rng_state(output_dir)
            assert Path(output_dir) not in checkpoints(self.args.output_dir), "not whole yet"
            assert self.state.global_step == 5 or checkpoints(self.args.output_dir), "the one before is still there"

    monkeypatch.setattr(training, "ImpressionTrainer", Watched)
    options = {"load_best_model_at_end": False, "eval_strategy": "no", "findings_pretraining_epochs": 0}
    train(*arguments(tmp_path, phantom_folder, save_total_limit=1, max_steps=15, **options))
    assert seen == [["checkpoint-5"], ["checkpoint-10"], ["checkpoint-15"]]


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_whole(phantom_folder, tmp_path):
    """The limit on a file's size stands for the disk: the optimizer's state is the first that does not fit."""
    config = tmp_path / "config.yaml"
    arguments(tmp_path, phantom_folder)
    code = (
        "import resource, signal, sys\n"
        "from transformers import Trainer\n"
        "from hf_cxr.cli import parser as cli\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "save = Trainer._save_optimizer_and_scheduler\n"
        "def full(self, folder):\n"
        "    if self.state.global_step > 5:\n"
        "        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "    save(self, folder)\n"
        "Trainer._save_optimizer_and_scheduler = full\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    words = [sys.executable, "-c", code, "train", str(config), "--findings_pretraining_epochs", "0"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert result.returncode == 2
    assert "checkpoint-10: could not be written" in result.stderr.strip().splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert [path.name for path in (tmp_path / "run").glob("checkpoint-*")] == ["checkpoint-5"]
    assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-5"]
    train(*arguments(tmp_path, phantom_folder, "--resume", findings_pretraining_epochs=0))


def test_two_trainings_do_not_share_a_folder(phantom_folder, tmp_path):
    with only_run_in(tmp_path / "run"), pytest.raises(ValueError, match="another training writes to this folder"):
        train(*arguments(tmp_path, phantom_folder))


def history(*values: float) -> TrainerState:
    return TrainerState(log_history=[{"eval_composite": value, "step": step} for step, value in enumerate(values)])


def test_early_stopping_counts_across_a_resume(phantom_folder, tmp_path):
    _, args = arguments(tmp_path, phantom_folder)
    assert not is_exhausted(history(0.1, 0.3, 0.2), args, 2)
    assert is_exhausted(history(0.1, 0.3, 0.2, 0.3), args, 2), "as good is not better"
    assert not is_exhausted(history(0.3, 0.1, 0.4), args, 2)
    assert not is_exhausted(history(0.3, 0.1, 0.1), args, 0), "0: never"


def test_a_run_that_early_stopping_has_ended_is_not_trained_further(phantom_folder, tmp_path, monkeypatch):
    options = {"early_stopping_patience": 1, "num_train_epochs": 30, "learning_rate": 1e-9}
    monkeypatch.setattr(training, "save_run", lambda *args: (_ for _ in ()).throw(Interrupted()))
    with pytest.raises(Interrupted):
        train(*arguments(tmp_path, phantom_folder, **options))
    steps = [path.name for path in checkpoints(tmp_path / "run")]
    assert steps == ["checkpoint-5", "checkpoint-10"], "the second is no better than the first"
    monkeypatch.undo()
    train(*arguments(tmp_path, phantom_folder, "--resume", **options))
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert (state["global_step"], state["best_global_step"]) == (10, 5)
    assert [path.name for path in checkpoints(tmp_path / "run")] == steps
    best = load_checkpoint(str(tmp_path / "run" / "checkpoint-5")).model.state_dict()
    assert same(best, load_checkpoint(str(tmp_path / "run")).model.state_dict())


def test_a_saved_warm_up_encoder_is_an_encoder_for_another_run(whole_run, phantom_folder, tmp_path):
    encoder = copy_folder(whole_run / "findings_encoder", tmp_path / "findings_encoder")
    options = {"encoder": str(encoder), "findings_pretraining_epochs": 0, "freeze_encoder": True, "max_steps": 1}
    train(*arguments(tmp_path, phantom_folder, eval_strategy="no", load_best_model_at_end=False, **options))
    mine = load_checkpoint(str(tmp_path / "run")).model.encoder.state_dict()
    theirs = tiny_checkpoint().model.encoder
    theirs = type(theirs).from_pretrained(whole_run / "findings_encoder").state_dict()
    assert same(mine, theirs)
    shutil.rmtree(tmp_path / "run")


def test_a_run_that_was_moved_goes_on_and_ends_with_its_best(interrupted_run, whole_run, phantom_folder, tmp_path):
    moved = interrupted_run.rename(tmp_path / "elsewhere")
    train(*arguments(tmp_path, phantom_folder, "--resume", "--output_dir", str(moved)))
    assert same(weights(whole_run), weights(moved))


def test_a_run_whose_best_checkpoint_is_gone_is_refused(interrupted_run, phantom_folder, tmp_path):
    last = checkpoints(interrupted_run)[-1]
    state = json.loads((last / "trainer_state.json").read_text())
    (last / "trainer_state.json").write_text(json.dumps(state | {"best_model_checkpoint": "run/checkpoint-1"}))
    with pytest.raises(ValueError, match="the best checkpoint of the run is gone"):
        train(*arguments(tmp_path, phantom_folder, "--resume"))


def test_another_number_of_processes_or_other_studies_are_not_the_same_run(interrupted_run, phantom_folder, tmp_path):
    progress = json.loads((interrupted_run / "progress.json").read_text())
    for name, value in (("processes", 8), ("studies_sha256", "0")):
        config = progress["config"] | {name: value}
        (interrupted_run / "progress.json").write_text(json.dumps(progress | {"config": config}))
        with pytest.raises(ValueError, match=f"cannot resume with other arguments .*{name} {value} → "):
            train(*arguments(tmp_path, phantom_folder, "--resume"))


@pytest.mark.parametrize(("trainer_name", "step"), [("FindingsTrainer", 2), ("ImpressionTrainer", 2)])
def test_a_run_that_was_interrupted_before_its_first_checkpoint_just_starts_again(
    whole_run, phantom_folder, tmp_path, monkeypatch, trainer_name, step
):
    options = {} if trainer_name == "FindingsTrainer" else {"findings_pretraining_epochs": 0}
    options |= {"max_steps": 3, "eval_strategy": "no", "load_best_model_at_end": False}
    with monkeypatch.context() as patch:
        interrupt(patch, trainer_name, step)
        with pytest.raises(Interrupted):
            train(*arguments(tmp_path, phantom_folder, **options))
    (tmp_path / "run" / "findings_pretraining" / "checkpoint-5").mkdir(parents=True)  # was being written
    train(*arguments(tmp_path, phantom_folder, **options))
    assert read_progress(tmp_path / "run")["stage"] == "finished"


def test_a_run_killed_after_its_last_step_is_not_trained_further(phantom_folder, tmp_path, monkeypatch):
    options = {"max_steps": 7, "findings_pretraining_epochs": 0}
    monkeypatch.setattr(training, "save_run", lambda *args: (_ for _ in ()).throw(Interrupted()))
    with pytest.raises(Interrupted):
        train(*arguments(tmp_path, phantom_folder, **options))
    last = checkpoints(tmp_path / "run")[-1]
    monkeypatch.undo()
    train(*arguments(tmp_path, phantom_folder, "--resume", **options))
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert (last.name, state["global_step"]) == ("checkpoint-7", 7)
    best = load_checkpoint(state["best_model_checkpoint"]).model.state_dict()
    assert same(best, load_checkpoint(str(tmp_path / "run")).model.state_dict())


def test_a_checkpoint_without_its_weights_is_told_with_what_to_do(interrupted_run, phantom_folder, tmp_path):
    last = checkpoints(interrupted_run)[-1]
    (last / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError) as error:
        train(*arguments(tmp_path, phantom_folder, "--resume"))
    told = "its weights (model.safetensors) are missing; delete that folder, or begin anew with --restart"
    assert str(error.value) == f"{last}: {told}"


def test_checkpoints_of_others_are_not_deleted_unasked(phantom_folder, tmp_path):
    theirs = tmp_path / "run" / "checkpoint-7"
    theirs.mkdir(parents=True)
    for words in ((), ("--resume",)):
        with pytest.raises(ValueError, match="others' checkpoints"):
            train(*arguments(tmp_path, phantom_folder, *words))
    assert theirs.is_dir()


def test_a_run_does_not_begin_from_what_it_would_delete(whole_run, phantom_folder, tmp_path):
    run = copy_folder(whole_run, tmp_path / "run")
    for name, start in (("encoder", "findings_encoder"), ("resume_from_checkpoint", "checkpoint-10")):
        with pytest.raises(ValueError, match=f"{name}: .* lies in the output_dir"):
            train(*arguments(tmp_path, phantom_folder, "--restart", f"--{name}", str(run / start)))
        assert (run / start).is_dir()


def test_a_checkpoint_of_another_run_is_a_start_when_asked_for(whole_run, phantom_folder, tmp_path):
    start = whole_run / "checkpoint-10"
    words = ["--resume_from_checkpoint", str(start), "--load_best_model_at_end", "false"]
    train(*arguments(tmp_path, phantom_folder, *words, save_total_limit=1))
    steps = [step for step, _ in losses(tmp_path / "run")]
    assert max(steps) > 10
    assert len(checkpoints(tmp_path / "run")) <= 2, "the last and the best"
    assert start.is_dir()


def test_half_a_deleted_checkpoint_does_not_count(interrupted_run, monkeypatch):
    monkeypatch.setattr("hf_cxr.training.checkpoints.shutil.rmtree", lambda path: (_ for _ in ()).throw(Interrupted()))
    found = checkpoints(interrupted_run)
    with pytest.raises(Interrupted):
        remove_checkpoints(interrupted_run)
    assert len(checkpoints(interrupted_run)) == len(found) - 1


@pytest.mark.parametrize(
    ("limit", "best", "left"),
    [(1, None, [30]), (1, "x/checkpoint-10", [10, 30]), (2, None, [20, 30]), (2, "checkpoint-10", [10, 20, 30]),
     (None, None, [10, 20, 30]), (9, None, [10, 20, 30])],
)  # fmt: skip
def test_the_last_and_the_best_checkpoint_always_stay(tmp_path, limit, best, left):
    for step in (10, 20, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / WHOLE).touch()
    rotate(tmp_path, limit, best)
    assert [path.name for path in checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in left]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_steps": 5, "save_steps": 10}, "save_steps equal to eval_steps"),
        ({"metric_for_best_model": "modal_share"}, "'modal_share' is none of composite, loss, image_gain, bleu1"),
        ({"metric_for_best_model": "legacy_bleu4"}, "'legacy_bleu4' is none of"),
        ({"save_only_model": True, "resume": True}, "resume needs save_only_model: false"),
        ({"log_samples": -1}, "log_samples is 0 or more, not -1"),
    ],
)
def test_what_could_not_be_selected_or_resumed_is_refused_at_once(phantom_folder, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(*arguments(tmp_path, phantom_folder, **options))
    assert not (tmp_path / "run").exists()
