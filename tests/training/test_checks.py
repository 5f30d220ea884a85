"""What cannot end well is refused in one line before any work; what Trainer takes and this kit cannot use, too."""

import dataclasses
import functools
import json
import re

import pytest
import torch
from helpers import TINY_RECIPE, copy_folder, write_config
from transformers import GenerationConfig, Seq2SeqTrainingArguments

from hf_cxr.config import parse_arguments
from hf_cxr.data.prepared import load_prepared
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.training.checkpoints import read_progress
from hf_cxr.training.checks import SELECTABLE, UNUSABLE, check_feasible, step_of
from hf_cxr.training.feature_cache import check_disk_space
from hf_cxr.training.run import train

EVALUATED = {"eval_strategy": "steps", "eval_steps": 2}


def arguments(folder, phantom_folder, **values):
    config = TINY_RECIPE | {"dataset": str(phantom_folder), "output_dir": str(folder / "run")} | values
    return parse_arguments(write_config(folder / "config.yaml", **config))


def refusal(folder, phantom_folder, **values) -> str:
    with pytest.raises((ValueError, OSError)) as error:
        check_feasible(load_prepared(str(phantom_folder)), *arguments(folder, phantom_folder, **values))
    assert "\n" not in str(error.value)
    return str(error.value)


# Another value than the default, for each argument that a run of this kit cannot use.
OTHERS = dict.fromkeys(UNUSABLE, True) | {
    "accelerator_config": {"split_batches": True},
    "eval_do_concat_batches": False,
    "generation_max_length": 5,
    "include_for_metrics": ["loss"],
    "label_names": ["x"],
    "length_column_name": "x",
}


@pytest.mark.parametrize("name", [name for name in UNUSABLE if name != "parallelism_config"])  # no plain value
def test_an_argument_that_would_break_the_run_or_do_nothing_is_refused(phantom_folder, tmp_path, name):
    assert name in {item.name for item in dataclasses.fields(Seq2SeqTrainingArguments)}
    assert refusal(tmp_path, phantom_folder, **{name: OTHERS[name]}) == f"{name} cannot be set here: {UNUSABLE[name]}"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"report_to": "dvclive"}, "report_to: dvclive is not installed; install what is missing, or"),
        ({"report_to": "nobody"}, "nobody is not supported"),
        ({"metric_for_best_model": "accuracy", **EVALUATED}, "'accuracy' is none of composite, loss"),
        (
            {"metric_for_best_model": "composite", "predict_with_generate": False, **EVALUATED},
            "'composite' is none of loss; the others need predict_with_generate: true",
        ),
        ({"greater_is_better": False, **EVALUATED}, "greater_is_better: False would select the worst by composite"),
        ({"save_strategy": "best"}, "save_strategy: best needs an eval_strategy"),
        ({"dataloader_drop_last": True, "per_device_train_batch_size": 500}, "197 training studies are fewer .* 500"),
        ({"dataloader_drop_last": True, **EVALUATED}, "dataloader_drop_last leaves studies out of the evaluations"),
        ({"fp16": True}, "fp16 needs a GPU"),
        ({"label_smoothing_factor": 1.5}, "label_smoothing_factor is between 0 and 1, not 1.5"),
        ({"patch_dropout": 0.5}, "patch_dropout is of a frozen encoder's states: set freeze_encoder: true"),
        ({"decoder_dropout": 1.5}, "decoder_dropout is between 0 and 1, not 1.5"),
        ({"encoder_layer_decay": 0.0}, "encoder_layer_decay is above 0 and at most 1, not 0.0"),
        ({"encoder_layer_decay": 1.1}, "encoder_layer_decay is above 0 and at most 1, not 1.1"),
        (
            {"findings_frozen_epochs": 2, "findings_pretraining_epochs": 2},
            "findings_frozen_epochs: 2, but findings_pretraining_epochs: 2: no encoder would learn",
        ),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length makes batches of like length, which teach"),
        ({"train_sampling_strategy": "batch_rebalance"}, "batch_rebalance makes batches of like length, which teach"),
        ({"per_device_eval_batch_size": 0}, "per_device_eval_batch_size is 1 or more, not 0"),
        ({"weight_decay": float("nan")}, "weight_decay is a finite number, not nan"),
        ({"max_target_length": 0}, "max_target_length is 2 or more, .* not 0"),
        ({"max_target_length": 1}, "max_target_length is 2 or more, .* not 1"),
        ({"max_target_length": 8, "target": "report"}, "max_target_length is 9 or more for target: report, .* not 8"),
        ({"learning_rate": -1.0}, r"optimizer \(.*\) or schedule \(.*\): Invalid learning rate: -1.0"),
        ({"optim": "adamw_bnb_8bit"}, r"optimizer \(adamw_bnb_8bit\) or schedule \(.*bitsandbytes"),
        ({"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"cycles": 2}}, "or schedule .*'cycles'"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"generation_config": "/no/such"}, "generation_config: /no/such cannot be loaded"),
        ({"max_steps": 0}, "the run ends at step 0: nothing to train"),
        ({"num_train_epochs": 0}, "the run ends at step 0: nothing to train"),
        (
            {"eval_delay": 9, "load_best_model_at_end": True, "save_strategy": "epoch", "eval_strategy": "epoch"},
            "eval_delay: 9.* lies behind the end",
        ),
        ({"output_dir": "/proc/1/run"}, "/proc/1/run: cannot be written to"),
    ],
)  # fmt: skip
def test_what_would_fail_later_is_told_at_once(phantom_folder, tmp_path, values, message):
    assert re.search(message, refusal(tmp_path, phantom_folder, **values))
    assert not (tmp_path / "run").exists()


def test_an_evaluation_without_validation_studies_at_the_start_is_refused(phantom_folder, tmp_path):
    dataset = load_prepared(str(phantom_folder))
    del dataset["validation"]
    kit, args = arguments(tmp_path, phantom_folder, eval_on_start=True)
    with pytest.raises(ValueError, match="no validation studies to evaluate on"):
        check_feasible(dataset, kit, args)


def test_a_value_that_no_config_can_hold_is_refused(phantom_folder, tmp_path):
    kit, args = arguments(tmp_path, phantom_folder)
    args.run_name = object()
    with pytest.raises(ValueError, match=r"cannot be written to config\.yaml"):
        check_feasible(load_prepared(str(phantom_folder)), kit, args)


def test_every_metric_that_may_select_is_made_by_an_evaluation(run_folder):
    log = json.loads((run_folder / "trainer_state.json").read_text())["log_history"]
    assert {f"eval_{name}" for name in SELECTABLE} <= {key for entry in log for key in entry}


def test_a_disk_too_small_for_the_weights_is_told(tmp_path):
    check_disk_space(tmp_path, 1, "the weights")
    with pytest.raises(OSError, match=r"the weights need 1000000000.0 GB, there are"):
        check_disk_space(tmp_path, 10**18, "the weights")


def test_a_generation_config_is_that_of_the_checkpoint_with_its_own_tokens(phantom_folder, tmp_path):
    GenerationConfig(num_beams=2, no_repeat_ngram_size=3, eos_token_id=7).save_pretrained(tmp_path / "asked")
    options = {"max_steps": 2, "per_device_train_batch_size": 16, **EVALUATED, "neftune_noise_alpha": 1.0}
    options |= {"generation_config": str(tmp_path / "asked"), "findings_pretraining_epochs": 0.1}
    train(*arguments(tmp_path, phantom_folder, **options))
    checkpoint = load_checkpoint(str(tmp_path / "run"))
    own = checkpoint.model.generation_config
    assert (own.num_beams, own.no_repeat_ngram_size, own.max_new_tokens) == (2, 3, 24)
    assert own.eos_token_id == checkpoint.tokenizer.eos_token_id
    _, args = parse_arguments(tmp_path / "run" / "config.yaml")
    assert str(args.generation_config) == str(tmp_path / "asked")


# --- a checkpoint of another run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_run(phantom_folder, tmp_path_factory):
    """A finished run with a checkpoint at step 3; its tokenizer was trained on other texts."""
    folder = tmp_path_factory.mktemp("other")
    values = {"max_steps": 3, "save_strategy": "steps", "save_steps": 3, "vocab_size": 300, "logging_steps": 2}
    train(*arguments(folder, phantom_folder, **values, per_device_train_batch_size=16))
    return folder / "run"


def start(folder, phantom_folder, checkpoint, **values):
    values = {"per_device_train_batch_size": 16, "resume_from_checkpoint": str(checkpoint), "max_steps": 5} | values
    return arguments(folder, phantom_folder, **values)


def test_the_tokenizer_of_a_checkpoint_comes_with_its_weights(other_run, phantom_folder, tmp_path, capsys):
    train(*start(tmp_path, phantom_folder, other_run / "checkpoint-3", findings_pretraining_epochs=9))
    assert "its encoder needs no findings pretraining" in capsys.readouterr().out
    assert not (tmp_path / "run" / "findings_pretraining").exists()
    tokenizers = [load_checkpoint(str(run)).tokenizer for run in (other_run, tmp_path / "run")]
    assert len(tokenizers[0]) == 300
    assert tokenizers[0].get_vocab() == tokenizers[1].get_vocab()
    log = json.loads((tmp_path / "run" / "trainer_state.json").read_text())["log_history"]
    (mean,) = (entry["train_loss"] for entry in log if "train_loss" in entry)
    (line,) = (entry["loss"] for entry in log if "loss" in entry) if any("loss" in e for e in log) else (mean,)
    assert mean == pytest.approx(line, rel=0.5), "the mean of this run's own two steps"
    assert min(entry["step"] for entry in log) > 3, "the log of the other run is not this one's"


@pytest.mark.parametrize(
    ("given", "values", "message"),
    [
        ("checkpoint-3", {"max_steps": 3}, "checkpoint-3 has 3 steps; the run ends at step 3: nothing to train"),
        ("", {}, "is a finished run; name a checkpoint of it: .*checkpoint-3"),
        ("nothing", {}, "no such checkpoint"),
        ("checkpoint-3", {"panel_size": 64}, "a checkpoint of another model .* name one of the same encoder, decoder"),
        ("checkpoint-3", {"encoder": "mini"}, "a checkpoint of another model"),
    ],
)
def test_a_checkpoint_that_cannot_be_gone_on_from_is_refused_before_any_work(
    other_run, phantom_folder, tmp_path, given, values, message
):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(*start(tmp_path, phantom_folder, other_run / given, findings_pretraining_epochs=1, **values))
    assert not list((tmp_path / "run").glob("findings*"))


@pytest.mark.parametrize("name", ["model.safetensors", "trainer_state.json", "tokenizer_config.json"])
def test_a_checkpoint_that_lacks_a_file_is_told_by_its_name(other_run, phantom_folder, tmp_path, name):
    checkpoint = copy_folder(other_run / "checkpoint-3", tmp_path / "checkpoint-3")
    (checkpoint / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"checkpoint-3 is no whole checkpoint \\({name} is missing\\)"):
        train(*start(tmp_path, phantom_folder, checkpoint))


NO_OBJECTS = ("[]", '"x"', "{", "")
DAMAGED = [(name, text) for name in ("tokenizer_config.json", "trainer_state.json") for text in NO_OBJECTS]
DAMAGED += [("tokenizer.json", text) for text in ("{}", *NO_OBJECTS)] + [("tokenizer_config.json", "{}")]
DAMAGED += [("trainer_state.json", text) for text in ("{}", '{"global_step": "x"}', '{"global_step": 3, "x": 1}')]
DAMAGED += [("progress.json", text) for text in ("{}", *NO_OBJECTS)]


def test_a_damaged_file_of_a_checkpoint_is_one_line(other_run, phantom_folder, tmp_path):
    checkpoint = copy_folder(other_run / "checkpoint-3", tmp_path / "checkpoint-3")
    given = start(tmp_path, phantom_folder, checkpoint)
    for name, text in DAMAGED:
        kept = (checkpoint / name).read_bytes() if (checkpoint / name).exists() else None
        (checkpoint / name).write_text(text, encoding="utf-8")
        use = functools.partial(read_progress, checkpoint) if kept is None else functools.partial(step_of, checkpoint)
        with pytest.raises(ValueError, match=re.escape(str(checkpoint))) as error:
            use()
        assert "\n" not in str(error.value), (name, text)
        (checkpoint / name).write_bytes(kept) if kept is not None else (checkpoint / name).unlink()
    check_feasible(load_prepared(str(phantom_folder)), *given)


def test_a_damaged_state_of_torch_is_one_line_with_its_folder(other_run, phantom_folder, tmp_path):
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        checkpoint = copy_folder(other_run / "checkpoint-3", tmp_path / name / "checkpoint-3")
        (checkpoint / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=re.escape(str(checkpoint))) as error:
            train(*start(tmp_path / name, phantom_folder, checkpoint))
        assert "\n" not in str(error.value)


def test_a_frozen_encoder_of_a_checkpoint_is_the_one_that_is_encoded(other_run, phantom_folder, tmp_path, monkeypatch):
    seen = []

    def spy(checkpoint, *args):
        seen.append({name: value.clone() for name, value in checkpoint.model.encoder.state_dict().items()})
        return encode(checkpoint, *args)

    from hf_cxr.training import run as module

    encode = module.encode_once
    monkeypatch.setattr(module, "encode_once", spy)
    with pytest.raises(ValueError, match="checkpoint-3 trained other parts of the model"):  # it froze no encoder
        train(*start(tmp_path, phantom_folder, other_run / "checkpoint-3", freeze_encoder=True))
    theirs = load_checkpoint(str(other_run / "checkpoint-3")).model.encoder.state_dict()
    assert all(torch.equal(value, seen[0][name]) for name, value in theirs.items())
