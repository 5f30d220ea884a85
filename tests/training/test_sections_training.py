"""Sections and context in training: what is left out, what is refused, what is generated, and resumes."""

import json

import pytest
import torch
from datasets import DatasetDict
from helpers import TINY_RECIPE, run_forked, talkative, write_config
from test_resume import RECIPE, Interrupted, interrupt, losses, same, weights

import hf_cxr
from hf_cxr.config import parse_arguments, resolved_config
from hf_cxr.data.collator import pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.inference.pipeline import generate
from hf_cxr.inference.sections import Layout, layout_of, split_sections
from hf_cxr.models.modeling import build, load_checkpoint
from hf_cxr.training import findings_pretraining
from hf_cxr.training import run as training
from hf_cxr.training.beginning import identity
from hf_cxr.training.checks import asked_of, check_feasible
from hf_cxr.training.run import fine_tune

REPORT = {"target": "report", "context": ["indication"], "context_dropout": 0.3}
LAYOUT = Layout(("findings", "impression"), ("indication",))


def arguments(folder, dataset, *words, **values):
    folder.mkdir(parents=True, exist_ok=True)
    config = TINY_RECIPE | {"dataset": str(dataset), "output_dir": str(folder / "run"), "seed": 1} | values
    return parse_arguments(write_config(folder / "config.yaml", **config), list(words))


@pytest.fixture(scope="module")
def some(phantom_folder) -> DatasetDict:
    """40 training studies, every fourth without findings, and 7 to validate on."""
    dataset = load_prepared(str(phantom_folder))
    silent = (
        dataset["train"].select(range(40)).map(lambda row, i: {} if i % 4 else {"findings": ""}, with_indices=True)
    )
    return DatasetDict(train=silent, validation=dataset["validation"].select(range(7)))


def checkpoint_for(dataset: DatasetDict, layout: Layout = LAYOUT):
    torch.manual_seed(0)
    texts = list(dataset["train"]["impression"]) + list(dataset["train"]["findings"])
    return build("tiny", "tiny", 32, texts=texts, vocab_size=400, max_new_tokens=24, layout=layout)


# --- arguments ---------------------------------------------------------------------------------------------------


def test_target_and_context_are_given_on_the_command_line_and_read_back(phantom_folder, tmp_path):
    words = ["--target", "report", "--context", "indication", "age_sex", "--context_dropout", "0.1"]
    kit, args = arguments(tmp_path, phantom_folder, *words)
    assert (kit.target, kit.context, kit.context_dropout) == ("report", ["indication", "age_sex"], 0.1)
    for chosen in (kit, arguments(tmp_path, phantom_folder)[0]):
        again, _ = parse_arguments(write_config(tmp_path / "resolved.yaml", **resolved_config(chosen, args)))
        assert (again.target, again.context) == (chosen.target, chosen.context)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"context": ["history"]}, "context: 'history' is none of indication, comparison, age_sex"),
        ({"context": ["indication", "indication"]}, "context: 'indication' is named twice"),
        ({"context_dropout": 0.1}, "context_dropout needs a context"),
        ({"context": ["indication"], "context_dropout": 1.5}, "context_dropout is between 0 and 1, not 1.5"),
        ({"context": ["age_sex"]}, "context: age_sex, but the dataset has neither a column 'age' nor 'sex'"),
        ({"context": ["comparison"]}, "context: comparison, but no training study has one"),
    ],
)
def test_a_context_that_cannot_be_given_is_refused(values, told, some, tmp_path):
    kit, args = arguments(tmp_path, "data", **values)
    with pytest.raises(ValueError, match=told) as caught:
        check_feasible(asked_of(some, kit)[0], kit, args)
    assert "\n" not in str(caught.value)


def test_a_target_that_no_study_has_and_a_column_that_is_not_there_are_refused(some, tmp_path):
    kit, args = arguments(tmp_path, "data", target="findings", context=["indication"])
    with pytest.raises(ValueError, match="target: findings, but every training study has no findings"):
        asked_of(DatasetDict(train=some["train"].select([0, 4])), kit)
    with pytest.raises(ValueError, match="context: indication, but the dataset has no column 'indication'"):
        check_feasible(some.remove_columns("indication"), kit, args)


def test_studies_without_the_section_are_left_out_and_counted_in_one_line(some, tmp_path):
    dataset, layout, told = asked_of(some, arguments(tmp_path, "data", target="findings")[0])
    assert told == ["train: 10 of 40 studies have no findings and are left out"]
    assert len(dataset["train"]) == 30
    assert layout == Layout(("findings",))
    assert asked_of(some, arguments(tmp_path, "data")[0])[2] == []


def test_findings_pretraining_reads_the_texts_of_the_target(some, tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(findings_pretraining, "finding_targets", lambda texts, _: read.append(texts) or ([], None))
    packed = pack_dataset(some["validation"], 32)
    for target, layout in (("findings", Layout(("findings",))), ("report", LAYOUT)):
        kit, args = arguments(tmp_path, "data", target=target)
        findings_pretraining.pretrain_on_findings(checkpoint_for(some, layout), packed, kit, args)
    findings = list(packed["findings"])
    assert read == [findings, [f"{a} {b}" for a, b in zip(findings, packed["impression"], strict=True)]]


def test_what_a_run_is_holds_its_texts_and_contexts_but_nothing_new_for_an_impression(some, tmp_path):
    plain, context = (arguments(tmp_path, "data", **values) for values in ({}, {"context": ["indication"]}))
    assert not {"target", "context", "context_dropout", "init_from"} & set(identity(*plain, some, Layout()))
    other = some["train"].map(lambda row: {"indication": row["indication"] + "!"})
    changed = DatasetDict(some | {"train": other})
    assert identity(*plain, some, Layout()) == identity(*plain, changed, Layout())
    asked = Layout(context=("indication",))
    assert identity(*context, some, asked) != identity(*context, changed, asked)


# --- evaluation --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("beams", "batch"), [(1, 4), (2, 4), (1, 1)])
def test_an_evaluation_writes_what_the_pipeline_writes_and_again_from_images_of_others(
    some, tmp_path, monkeypatch, beams, batch
):
    kit, args = arguments(
        tmp_path, "data", **REPORT, max_steps=1, learning_rate=0.0, eval_strategy="steps", eval_steps=1,
        per_device_eval_batch_size=batch, generation_num_beams=beams,
    )  # fmt: skip
    caught = []
    monkeypatch.setattr(
        training.evaluation, "validation_scores", lambda *given: caught.append(given) or {"composite": 0.0}
    )
    dataset, checkpoint = asked_of(some, kit)[0], talkative(checkpoint_for(some), eyes=3)
    packed = {name: pack_dataset(split, 32) for name, split in dataset.items()}
    patients = list("aabbbcd")  # in the order of the collection, as prepared rows are
    packed["validation"] = packed["validation"].map(lambda _, i: {"patient": patients[i]}, with_indices=True)
    shown = fine_tune(checkpoint, packed, kit, args)
    said, truths, _, _, [elsewhere] = caught[-1]
    canvases, model = shown.eval_dataset, checkpoint.model.eval()
    assert truths == list(dataset["validation"]["impression"])
    whole = shown.data_collator([canvases[i] for i in range(len(canvases))])
    prompts = [canvases[i]["prompt"] for i in range(len(canvases))]
    assert len(set(map(len, prompts))) > 1
    places = canvases.others
    assert sorted(places) == list(range(7))
    assert all(patients[place] != patients[other] for place, other in enumerate(places))
    for pixels, texts in ((whole["pixel_values"], said), (whole["pixel_values"][places], elsewhere)):
        for row in range(len(canvases)):
            wrote = generate(model, pixels[row : row + 1], [prompts[row]], checkpoint.tokenizer, num_beams=beams)
            sections = split_sections(checkpoint.tokenizer, LAYOUT, wrote["sequences"][0, 0].tolist())
            assert texts[row] == sections["impression"]
    assert said != elsewhere
    samples = [json.loads(line) for line in (tmp_path / "run/samples/samples.jsonl").read_text().splitlines()]
    assert samples[0]["report"] == f"{dataset['validation']['findings'][0]} {truths[0]}"


def test_an_evaluation_shows_the_images_of_the_same_others_on_any_number_of_processes(phantom_folder, tmp_path):
    told = {}
    for processes in (1, 2):
        (folder := tmp_path / str(processes)).mkdir()
        call = f"evaluate_elsewhere({str(phantom_folder)!r}, {str(folder)!r})"
        done = run_forked(code=f"import distributed_worker; distributed_worker.{call}", processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        told[processes] = json.loads((folder / "elsewhere.json").read_text())
    said, elsewhere = told[1]
    assert len(set(said)) == len(said) == 7
    assert not any(map(str.__eq__, said, elsewhere))
    assert told[2] == told[1]


# --- whole runs --------------------------------------------------------------------------------------------------


def test_a_run_with_context_and_dropout_resumes_bit_for_bit(some, tmp_path, monkeypatch):
    values = (
        RECIPE
        | REPORT
        | {"view_dropout": 0.3, "findings_pretraining_epochs": 0, "save_steps": 2, "eval_steps": 2}
        | {"per_device_train_batch_size": 16}
    )
    monkeypatch.setattr(training, "load_prepared", lambda folder: some)
    seen = []

    class Look(training.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(state.global_step)

    given = {"dataset": "data", "recipe": write_config(tmp_path / "recipe.yaml", **values, dataset="x")}
    monkeypatch.setattr(training.model_card, "dataset_facts", lambda folder: {"preparation": {}})
    monkeypatch.setattr(training.model_card, "write_model_card", lambda *_: None)
    monkeypatch.setattr(training.model_card, "training_facts", lambda *_: {})
    hf_cxr.train(output_dir=tmp_path / "whole", callbacks=[Look()], **given)
    assert seen == [1, 2, 3, 4], "the callback of the caller was told"
    with monkeypatch.context() as patch:
        interrupt(patch, "ImpressionTrainer", 3)
        with pytest.raises(Interrupted):
            hf_cxr.train(output_dir=tmp_path / "killed", **given)
    hf_cxr.train(output_dir=tmp_path / "killed", resume=True, **given)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")
    assert layout_of(load_checkpoint(str(tmp_path / "whole")).model.config) == LAYOUT


def test_a_callback_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="callbacks: 'tell me' is no TrainerCallback"):
        hf_cxr.train("data", tmp_path, callbacks=["tell me"])


def test_a_frozen_encoder_is_trained_with_prompts_from_its_states(some, tmp_path):
    kit, args = arguments(tmp_path, "data", **REPORT, freeze_encoder=True, max_steps=2, logging_steps=1)
    dataset = asked_of(some, kit)[0]
    trainer = fine_tune(checkpoint_for(dataset), {"train": pack_dataset(dataset["train"], 32)}, kit, args)
    item = trainer.train_dataset[0]
    assert set(item) == {"states", "labels", "prompt"}
    first = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    (tmp_path / "open").mkdir()
    kit, args = arguments(tmp_path / "open", "data", **REPORT, max_steps=2, logging_steps=1)
    seen = fine_tune(checkpoint_for(dataset), {"train": pack_dataset(dataset["train"], 32)}, kit, args)
    assert first[0] == pytest.approx(next(e["loss"] for e in seen.state.log_history if "loss" in e), rel=1e-5)
