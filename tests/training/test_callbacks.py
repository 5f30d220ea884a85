"""What training tells of itself: the composite, the image gain, and the warning when a model stops looking."""

import json
import re
import sys
from types import SimpleNamespace

import pytest
from datasets import DatasetDict
from helpers import TINY_RECIPE, tiny_checkpoint, write_config
from transformers import TrainerControl, TrainerState

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.evaluate import composite, validation_scores
from hf_cxr.training.callbacks import ImageUseCallback, StageProgress, read_lines, warning_of
from hf_cxr.training.run import check_feasible, fine_tune, train

TRUTHS = ["Right pleural effusion.", "Cardiomegaly.", "No acute cardiopulmonary abnormality.", "Scoliosis."] * 10
CONSTANT = ["No acute cardiopulmonary abnormality."] * len(TRUTHS)


def test_the_composite_prefers_a_model_that_looks_to_a_better_sentence():
    # BLEU alone prefers the sentence: the looking model words everything its own way.
    truths = ["No acute cardiopulmonary abnormality."] * 30 + ["Right pleural effusion.", "Cardiomegaly."] * 5
    looking = [
        text.replace("No acute cardiopulmonary abnormality.", "The lungs are clear.")
        .replace("Right pleural effusion.", "There is fluid: right pleural effusion is seen today.")
        .replace("Cardiomegaly.", "The heart shows cardiomegaly.")
        for text in truths
    ]
    constant = ["No acute cardiopulmonary abnormality."] * len(truths)
    ours, theirs = validation_scores(looking, truths), validation_scores(constant, truths)
    assert theirs["bleu4"] > ours["bleu4"]
    assert ours["composite"] > theirs["composite"]


def test_the_composite_is_the_mean_of_its_three_parts():
    assert composite({"finding_f1_micro": 0.6, "image_gain": 0.3, "bleu4": 0.3}) == pytest.approx(0.4)
    assert composite({"finding_f1_micro": 0.6, "image_gain": -0.3, "bleu4": 0.3}) == pytest.approx(0.3)


def test_image_gain_is_that_of_the_report():
    scores = validation_scores(TRUTHS, TRUTHS)
    assert scores["image_gain"] > 0.5
    assert scores["image_gain_low"] > 0
    blind = validation_scores(CONSTANT, TRUTHS)
    assert blind["image_gain"] == 0
    assert blind["image_gain_low"] <= 0


def test_each_epoch_is_told_to_the_dataset(phantom_folder, tmp_path, monkeypatch):
    told, plain = [], CanvasDataset.canvas

    def listening(self, index):
        told.append(int(self.epoch))
        return plain(self, index)

    monkeypatch.setattr(CanvasDataset, "canvas", listening)
    config = write_config(
        tmp_path / "c.yaml",
        **TINY_RECIPE | {"num_train_epochs": 3, "do_eval": False},
        dataset=str(phantom_folder),
        output_dir=str(tmp_path / "run"),
        eval_strategy="no",
    )
    training_only = DatasetDict(train=load_prepared(str(phantom_folder))["train"].select(range(20)))
    monkeypatch.setattr("hf_cxr.training.run.load_prepared", lambda folder: training_only)
    train(*parse_arguments(config))
    assert told[:60] == [0] * 20 + [1] * 20 + [2] * 20


def test_a_log_file_is_told_stage_step_loss_and_time_left(phantom_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hf_cxr.utils.progress.SECONDS", 0)
    recipe = TINY_RECIPE | {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run"), "max_steps": 4}
    recipe |= {"findings_pretraining_epochs": 1, "logging_steps": 1, "eval_strategy": "steps", "eval_steps": 2}
    train(*parse_arguments(write_config(tmp_path / "c.yaml", **recipe, log_samples=0)))
    out, err = capsys.readouterr()
    lines = [line for line in err.replace("\r", "\n").splitlines() if line.startswith(("stage", "evaluation at"))]
    assert re.fullmatch(r"stage 1 of 2: encoder learns findings: 0 of \d+ steps, 00:00 so far, \? left", lines[0])
    assert any(line.startswith("stage 2 of 2: model learns to write: 0 of 4 steps") for line in lines)
    pattern = r"stage 2 of 2: model learns to write: 3 of 4 steps, loss=\d\.\d{3}, \d\d:\d\d so far, \d\d:\d\d left"
    assert any(re.fullmatch(pattern, line) for line in lines)
    assert [line.split(":")[0] for line in lines if "0 of 1 batches" in line] == [
        "evaluation at step 2",
        "evaluation at step 4",
    ]
    assert "{'loss'" not in out + err, "the Trainer's own lines"


@pytest.mark.parametrize("disable_tqdm", [False, True])
def test_a_terminal_gets_a_bar_unless_it_is_told_not_to(phantom_folder, tmp_path, monkeypatch, capsys, disable_tqdm):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    packed = pack_dataset(load_prepared(str(phantom_folder))["train"].select(range(16)), 32)
    recipe = TINY_RECIPE | {"dataset": "unused", "output_dir": str(tmp_path / "run"), "max_steps": 2}
    arguments = parse_arguments(write_config(tmp_path / "c.yaml", **recipe, disable_tqdm=disable_tqdm))
    fine_tune(tiny_checkpoint(), {"train": packed}, *arguments)
    err = capsys.readouterr().err
    assert err.count("stage 1 of 1: model learns to write") >= 2
    assert ("\r" in err, "steps, " in err) == (not disable_tqdm, disable_tqdm)


def test_other_processes_than_the_first_show_no_progress(capsys):
    args = SimpleNamespace(disable_tqdm=False)
    progress, state = StageProgress("stage"), TrainerState(max_steps=2, is_world_process_zero=False)
    for event in ("train_begin", "step_end", "prediction_step", "evaluate", "train_end"):
        getattr(progress, f"on_{event}")(args, state, TrainerControl(), eval_dataloader=[1, 2])
    progress.on_log(args, state, TrainerControl(), logs={"loss": 1.0})
    assert capsys.readouterr().err == ""


def row(step: int, texts: list[str]) -> dict:
    return {"step": step} | validation_scores(texts, TRUTHS)


def test_a_model_that_does_not_look_is_told_so_in_plain_words():
    assert "does not look (yet) at the images" in warning_of(row(1, CONSTANT), False, 0.25)
    assert "has stopped looking at the images" in warning_of(row(1, CONSTANT), True, 0.25)
    assert warning_of(row(1, TRUTHS), True, 0.25) is None


def test_one_sentence_for_nearly_all_is_a_warning_unless_the_radiologists_do_the_same():
    scores = row(1, TRUTHS) | {"modal_share": 0.97}
    assert "says one sentence to 97% of the studies" in warning_of(scores, True, 0.4)
    assert warning_of(scores, True, 0.98) is None


def evaluate(callback, step: int, texts: list[str]) -> None:
    metrics = {f"eval_{name}": value for name, value in validation_scores(texts, TRUTHS).items()}
    state = TrainerState(global_step=step)
    callback.on_evaluate(None, state, TrainerControl(), metrics=metrics)


def test_each_evaluation_is_told_and_written_once_also_after_a_resume(tmp_path, capsys):
    callback = ImageUseCallback(tmp_path, TRUTHS)
    evaluate(callback, 10, TRUTHS)
    assert "step 10: composite" in capsys.readouterr().out
    evaluate(callback, 20, CONSTANT)
    out = capsys.readouterr().out
    assert "1 distinct outputs on 40 studies, the commonest on 100%" in out
    assert "WARNING: the model has stopped looking at the images" in out
    evaluate(ImageUseCallback(tmp_path, TRUTHS), 20, TRUTHS)  # resumed from before step 20
    rows = read_lines(tmp_path / "evaluations.jsonl")
    assert [entry["step"] for entry in rows] == [10, 20]
    assert rows[1]["image_gain"] > 0.5


def test_a_training_run_reports_distinct_outputs_modal_share_and_image_gain(phantom_folder, tmp_path, capsys):
    recipe = TINY_RECIPE | {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run")}
    recipe |= {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-6}
    train(*parse_arguments(write_config(tmp_path / "c.yaml", **recipe)))
    out = capsys.readouterr().out
    patients = len(set(load_prepared(str(phantom_folder))["validation"]["patient"]))
    assert out.count(f"not shown to look (yet) at the images: too few to tell with {patients} patients") == 2
    rows = read_lines(tmp_path / "run" / "evaluations.jsonl")
    assert [entry["step"] for entry in rows] == [2, 4]
    assert rows[0].keys() >= {"distinct_outputs", "modal_share", "image_gain", "composite", "bleu4", "loss"}
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert any("eval_image_gain" in entry for entry in state["log_history"]), "trackers see it as well"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early_stopping_patience": 2}, "early_stopping_patience needs load_best_model_at_end"),
        ({"view_dropout": 1.5}, "view_dropout is between 0 and 1, not 1.5"),
        ({"augmentation": -1}, "augmentation is between 0 and 1, not -1"),
        ({"resume": True, "restart": True}, "resume or restart: not both"),
        ({"freeze_encoder": True, "augmentation": 0.5}, "act in the findings pretraining only, and there is none"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_before_any_time_is_spent(phantom_folder, tmp_path, options, message):
    recipe = TINY_RECIPE | {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run")} | options
    kit, args = parse_arguments(write_config(tmp_path / "c.yaml", **recipe))
    with pytest.raises(ValueError, match=message):
        check_feasible(load_prepared(str(phantom_folder)), kit, args)


def test_the_best_model_is_the_best_in_the_composite_unless_told_otherwise(tmp_path):
    _, args = parse_arguments(write_config(tmp_path / "c.yaml", dataset="d"))
    assert (args.metric_for_best_model, args.greater_is_better) == ("composite", True)
    _, args = parse_arguments(write_config(tmp_path / "c.yaml", dataset="d", metric_for_best_model="loss"))
    assert (args.metric_for_best_model, args.greater_is_better) == ("loss", False)
    _, args = parse_arguments(write_config(tmp_path / "c.yaml", dataset="d", predict_with_generate=False))
    assert args.metric_for_best_model is None


SPANISH = [
    "Sin hallazgos agudos.",
    "Cardiomegalia leve.",
    "Derrame pleural derecho con atelectasia.",
    "Neumonía.",
] * 10


def test_a_model_that_is_right_in_another_language_is_not_warned_of(tmp_path, capsys):
    callback = ImageUseCallback(tmp_path, SPANISH)
    for step, said in ((1, SPANISH), (2, SPANISH[:1] * 40)):
        metrics = {f"eval_{name}": value for name, value in validation_scores(said, SPANISH).items()}
        callback.on_evaluate(None, TrainerState(global_step=step), TrainerControl(), metrics=metrics)
    right, constant = capsys.readouterr().out.split("step 2")
    assert "CIDEr over shuffled images" in right
    assert "WARNING" not in right
    assert "WARNING: the model has stopped looking at the images" in constant
    assert "findings pretraining" not in constant


def test_findings_pretraining_is_skipped_with_one_line_where_findings_cannot_be_read(phantom_folder, tmp_path, capsys):
    dataset = load_prepared(phantom_folder)
    for name, split in dataset.items():
        few = split.select(range(min(20, len(split))))
        few = few.map(lambda row, index: {"impression": SPANISH[index % 4]}, with_indices=True)
        (tmp_path / "spanish" / "data").mkdir(parents=True, exist_ok=True)
        few.to_parquet(tmp_path / "spanish" / "data" / f"{name}-00000-of-00001.parquet")
    recipe = TINY_RECIPE | {"dataset": str(tmp_path / "spanish"), "output_dir": str(tmp_path / "run"), "max_steps": 1}
    train(*parse_arguments(write_config(tmp_path / "c.yaml", **recipe, findings_pretraining_epochs=1)))
    said = [line for line in capsys.readouterr().out.splitlines() if "findings pretraining" in line]
    assert said == [
        "findings pretraining skipped: findings cannot be read from the texts, as the texts do not look English"
    ]
    assert not (tmp_path / "run" / "findings_encoder").exists()
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert "Findings cannot be read from these texts" in card
    assert "Of 100 findings" not in card
    assert "whether the chest is normal" not in card
    assert "language: en" not in card
    assert "finding_f1" not in card.split("---")[1]
