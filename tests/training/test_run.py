import json
import re
import shutil

import pytest
import torch
import yaml
from datasets import DatasetDict
from helpers import TINY_RECIPE, copy_folder, gpt2_folder, tiny_checkpoint, vit_folder, write_config
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModel

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation import calibration
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.hub import push as hub
from hf_cxr.inference.checks import CALIBRATION
from hf_cxr.inference.targets import IGNORED
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.training.findings_pretraining import (
    FindingsModel,
    finding_loss,
    finding_targets,
    pretrain_on_findings,
    tag_targets,
)
from hf_cxr.training.run import check_feasible, fine_tune, train
from hf_cxr.training.trainer import ImpressionTrainer, token_mean_loss

BASE = TINY_RECIPE | {"seed": 1}


def arguments(tmp_path, phantom_folder, **values):
    tmp_path.mkdir(exist_ok=True)
    folder = tmp_path / "run"
    config = {"dataset": str(phantom_folder), "output_dir": str(folder)} | BASE | values
    return parse_arguments(write_config(tmp_path / "config.yaml", **config))


def test_a_run_folder_holds_what_is_promised(run_folder):
    names = {path.name for path in run_folder.iterdir()}
    assert names >= {"config.yaml", "README.md", "report.json", "report.md", "predictions.jsonl", "trainer_state.json"}
    assert names >= {"model.safetensors", "config.json", "generation_config.json", "preprocessor_config.json"}
    assert names >= {"tokenizer.json", "pipeline.py", "views.py", "dicom.py", "labeler.py"}
    assert names >= {"labeler_lexicon.py", "labeler_location.py"}
    assert not {name for name in names if name.endswith((".bin", ".pt", ".pth"))}
    state = json.loads((run_folder / "trainer_state.json").read_text())
    assert any("eval_finding_f1_micro" in entry for entry in state["log_history"])


def test_the_resolved_config_trains_the_same_model_again(run_folder, tmp_path):
    kit, args = parse_arguments(run_folder / "config.yaml", ["--output_dir", str(tmp_path / "again")])
    train(kit, args)
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (run_folder, tmp_path / "again"))
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert (run_folder / "report.json").read_text() == (tmp_path / "again" / "report.json").read_text()


def test_the_warm_up_trains_the_encoder_and_nothing_else(phantom_folder, tmp_path):
    kit, args = arguments(tmp_path, phantom_folder, findings_pretraining_epochs=1)
    checkpoint = tiny_checkpoint()
    before = {name: value.clone() for name, value in checkpoint.model.state_dict().items()}
    packed = pack_dataset(load_prepared(str(phantom_folder))["train"], 32)
    pretrain_on_findings(checkpoint, packed, kit, args)
    after = checkpoint.model.state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any(name.startswith("encoder.layers") or name.startswith("encoder.encoder") for name in changed)
    assert all(name.startswith("encoder.") for name in changed)
    assert before.keys() == after.keys(), "the head is dropped"
    saved = AutoModel.from_pretrained(tmp_path / "run" / "findings_encoder").state_dict()
    assert all(torch.equal(value, after[f"encoder.{name}"]) for name, value in saved.items())
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "findings_encoder")
    assert processor.size == {"height": 32, "width": 64}


def test_options_of_the_second_stage_do_not_break_the_first(phantom_folder, tmp_path):
    options = {"label_smoothing_factor": 0.1, "gradient_checkpointing": True, "eval_on_start": True}
    kit, args = arguments(tmp_path, phantom_folder, findings_pretraining_epochs=0.2, max_steps=1, **options)
    assert train(kit, args)["n"] > 0


def test_a_finished_run_is_replaced_only_when_told_so(run_folder, phantom_folder, tmp_path):
    folder = copy_folder(run_folder, tmp_path / "run")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=r"holds a finished run; name another output_dir or delete it with --restart"):
        train(*arguments(tmp_path, phantom_folder, max_steps=1))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "progress.json").unlink()  # as one that was downloaded
    shutil.rmtree(folder / "findings_encoder", ignore_errors=True)
    with pytest.raises(ValueError, match="holds others' checkpoints; move them away or delete it with --restart"):
        train(*arguments(tmp_path, phantom_folder, max_steps=1))
    with pytest.raises(ValueError, match=r"encoder: .* lies in the output_dir, which is emptied"):
        train(*arguments(tmp_path, phantom_folder, max_steps=1, restart=True, encoder=str(folder)))
    assert (folder / "model.safetensors").exists()


def test_a_restart_that_is_cut_short_leaves_nothing_of_the_old_run_to_push(
    run_folder, phantom_folder, tmp_path, monkeypatch
):
    folder = copy_folder(run_folder, tmp_path / "run")
    monkeypatch.setattr(
        "hf_cxr.training.run.pretrain_on_findings",
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        train(*arguments(tmp_path, phantom_folder, findings_pretraining_epochs=1, restart=True))
    with pytest.raises(FileNotFoundError, match="it has not come to its end"):
        hub.push(folder, "user/name")
    assert not list(folder.glob("*.safetensors"))


def test_texts_that_are_cut_are_told_of_before_any_training(phantom_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        "hf_cxr.training.run.pretrain_on_findings",
        lambda *_: (_ for _ in ()).throw(KeyboardInterrupt),
    )
    with pytest.raises(KeyboardInterrupt):
        train(*arguments(tmp_path, phantom_folder, findings_pretraining_epochs=1, max_target_length=16))
    assert re.search(
        r"^\d+ of 197 training texts are longer than max_target_length \(longest: \d\d tokens\)",
        capsys.readouterr().err,
        re.MULTILINE,
    )


def test_dropout_of_the_decoder_is_that_of_the_run_and_told(phantom_folder, tmp_path):
    kit, args = arguments(tmp_path, phantom_folder, decoder_dropout=0.25, max_steps=1)
    train(kit, args)
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["decoder"]["resid_pdrop"] == 0.25
    assert yaml.safe_load((run / "config.yaml").read_text())["decoder_dropout"] == 0.25
    assert "`decoder_dropout: 0.25`" in (run / "README.md").read_text()


def test_training_again_leaves_no_score_of_the_old_weights(run_folder, phantom_folder, tmp_path):
    folder = copy_folder(run_folder, tmp_path / "run")
    kit, args = arguments(tmp_path, phantom_folder, max_steps=1, restart=True)
    old = (folder / "report.json").read_text()
    report = train(kit, args)
    assert json.loads((folder / "report.json").read_text()) == json.loads(json.dumps(report))
    assert (folder / "report.json").read_text() != old


def test_what_cannot_end_well_is_refused_before_any_time_is_spent(phantom_folder, tmp_path):
    dataset = load_prepared(str(phantom_folder))
    kit, args = arguments(tmp_path, phantom_folder, eval_strategy="epoch")
    with pytest.raises(ValueError, match="no validation studies"):
        check_feasible(DatasetDict(train=dataset["train"]), kit, args)
    with pytest.raises(ValueError, match="no training studies"):
        check_feasible(DatasetDict(test=dataset["test"]), kit, args)


def test_sharded_training_without_a_gpu_is_refused(phantom_folder, tmp_path, monkeypatch):
    kit, args = arguments(tmp_path, phantom_folder)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="FSDP needs GPUs"):
        check_feasible(load_prepared(str(phantom_folder)), kit, args)


def test_a_frozen_encoder_stays_as_it_was(phantom_folder, tmp_path):
    kit, args = arguments(tmp_path, phantom_folder, freeze_encoder=True)
    checkpoint = tiny_checkpoint()
    before = {name: value.clone() for name, value in checkpoint.model.encoder.state_dict().items()}
    packed = {"train": pack_dataset(load_prepared(str(phantom_folder))["train"], 32)}
    fine_tune(checkpoint, packed, kit, args)
    assert all(torch.equal(before[name], value) for name, value in checkpoint.model.encoder.state_dict().items())


def test_warm_up_labels_are_read_from_the_texts_with_their_side_and_doubt():
    texts = ["Right pleural effusion."] * 12 + ["No pleural effusion."] * 3 + ["Possible right pleural effusion."]
    names, targets = finding_targets([*texts, "Scoliosis."])
    assert names == ["right pleural effusion"], "a finding with few positives is left out"
    assert targets[:12].all()
    assert not targets[12:15].any()
    assert targets[15, 0] == IGNORED
    assert targets[16, 0] == 0


def test_given_tags_can_be_learned_in_place_of_text_labels(phantom_folder, tmp_path):
    tags = [["opacity", "cardiomegaly"]] * 12 + [[]] * 3 + [["no indexing"]] * 11 + [["rare"]]
    names, targets = tag_targets(tags)
    assert names == ["cardiomegaly", "opacity"], "neither a rare tag nor the word for none"
    assert targets[:12].all()
    assert not targets[12:15].any(), "no tag: normal"
    assert (targets[15:26] == IGNORED).all(), "nobody tagged these"
    tags += [["edema"]] * 10 + [["unlabelled"], ["unchanged"], ["unchanged", "edema"], None]
    names, targets = tag_targets(tags, [[]] * 12 + [["edema", "rare"], None] + [[]] * (len(tags) - 14))
    assert names == ["cardiomegaly", "edema", "opacity"]
    assert targets[12].tolist() == [0, IGNORED, 0], "an uncertain tag is neither there nor not"
    assert targets[-4:].tolist() == [[IGNORED] * 3, [IGNORED] * 3, [IGNORED, 1, IGNORED], [0, 0, 0]]
    packed = pack_dataset(load_prepared(str(phantom_folder))["train"], 32)
    packed = packed.map(lambda row, index: {"tags": ["even"] if index % 2 == 0 else []}, with_indices=True)
    encoders = []
    for labels in ("text", "tags"):
        kit, args = arguments(
            tmp_path / labels, phantom_folder, findings_pretraining_epochs=0.2, findings_labels=labels
        )
        checkpoint = tiny_checkpoint()
        pretrain_on_findings(checkpoint, packed, kit, args)
        encoders.append(checkpoint.model.encoder.embeddings.patch_embeddings.projection.weight)
    assert not torch.equal(*encoders)


def test_doubtful_findings_do_not_count_in_the_warm_up_loss():
    model = FindingsModel(tiny_checkpoint().model.encoder, 2).eval()
    pixels = torch.zeros(2, 3, 32, 64)
    outputs = model(pixels)
    certain = finding_loss(outputs, torch.tensor([[1.0, 0.0], [1.0, IGNORED]]))
    logits = outputs.logits
    expected = torch.nn.functional.binary_cross_entropy_with_logits(
        logits[:1], torch.tensor([[1.0, 0.0]]), reduction="sum"
    )
    expected += torch.nn.functional.binary_cross_entropy_with_logits(logits[1, :1], torch.tensor([1.0]))
    assert certain.item() == pytest.approx(expected.item() / 3, rel=1e-5)


def first_step(checkpoint, packed, tmp_path, batch, accumulation):
    """Loss and gradient norm of the first optimiser step, and the weights after it."""
    checkpoint.model.load_state_dict(torch.load(tmp_path / "start.pt"))
    kit, args = parse_arguments(
        write_config(
            tmp_path / "config.yaml",
            **BASE | {"dataset": "unused", "output_dir": str(tmp_path / "run")},
            per_device_train_batch_size=batch,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            logging_steps=1,
            optim="sgd",
            learning_rate=0.1,
            lr_scheduler_type="constant",
        )
    )
    trainer = fine_tune(checkpoint, {"train": packed}, kit, args)
    log = trainer.state.log_history[0]
    return log["loss"], log["grad_norm"], checkpoint.model.state_dict()


def test_loss_and_gradient_do_not_depend_on_accumulation_though_target_lengths_differ(phantom_folder, tmp_path):
    checkpoint = tiny_checkpoint()
    for module in checkpoint.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.save(checkpoint.model.state_dict(), tmp_path / "start.pt")
    packed = pack_dataset(load_prepared(str(phantom_folder))["train"], 32)
    whole = first_step(checkpoint, packed, tmp_path, 16, 1)
    weights = {name: value.clone() for name, value in whole[2].items()}
    for batch, accumulation in ((8, 2), (4, 4)):
        loss, norm, after = first_step(checkpoint, packed, tmp_path, batch, accumulation)
        assert loss == pytest.approx(whole[0], rel=1e-4)
        assert norm == pytest.approx(whole[1], rel=1e-4)
        assert all(torch.allclose(weights[name], after[name], atol=1e-5) for name in weights)


def test_the_loss_is_the_mean_over_the_target_tokens_of_the_global_batch():
    logits, labels = torch.randn(2, 5, 7), torch.tensor([[1, 2, IGNORED, IGNORED, IGNORED], [3, 4, 5, 6, 0]])
    loss = token_mean_loss(0.0)({"logits": logits}, labels, num_items_in_batch=torch.tensor(7))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    half = token_mean_loss(0.0)({"logits": logits[:1]}, labels[:1], num_items_in_batch=torch.tensor(7))
    other = token_mean_loss(0.0)({"logits": logits[1:]}, labels[1:], num_items_in_batch=torch.tensor(7))
    assert (half + other).item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_trainer_is_told_that_the_model_does_not_scale_its_loss(phantom_folder, tmp_path):
    checkpoint = tiny_checkpoint()
    _, args = arguments(tmp_path, phantom_folder)
    trainer = ImpressionTrainer(model=checkpoint.model, args=args, processing_class=checkpoint.tokenizer)
    assert trainer.model_accepts_loss_kwargs is False


@pytest.mark.slow
def test_pretrained_parts_train_save_and_reload_bit_equal(phantom_folder, tmp_path):
    encoder, decoder = vit_folder(tmp_path / "vit", image_size=32), gpt2_folder(tmp_path / "gpt2")
    kit, args = arguments(tmp_path, phantom_folder, encoder=encoder, decoder=decoder, max_steps=2)
    train(kit, args)
    from hf_cxr.models.modeling import load_checkpoint

    run = tmp_path / "run"
    load_checkpoint(str(run)).save_pretrained(tmp_path / "again")
    saved, again = (load_file(folder / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert saved.keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in saved.items())
    card = (run / "README.md").read_text()
    assert str(tmp_path) not in card + (run / "config.json").read_text()


def test_a_single_view_study_trains_like_any_other(phantom_folder):
    split = load_prepared(str(phantom_folder))["train"]
    single = split.filter(
        lambda frontal, lateral: frontal is None or lateral is None, input_columns=["frontal", "lateral"]
    )
    assert len(single) >= 3
    checkpoint = tiny_checkpoint()
    tokenizer, model = checkpoint.tokenizer, checkpoint.model
    canvases = CanvasDataset(pack_dataset(single, 32), 32, tokenizer)
    collate = CanvasCollator(checkpoint.image_processor, tokenizer.pad_token_id, tokenizer.bos_token_id)
    loss = model(**collate([canvases[0], canvases[1]])).loss
    loss.backward()
    assert torch.isfinite(loss)


# --- arguments ---------------------------------------------------------------------------------------------------


def test_command_line_overrides_the_file_and_yaml_numbers_are_numbers(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("dataset: d\nlearning_rate: 1e-3\nbf16: false\nnum_train_epochs: 2\n")
    kit, args = parse_arguments(config, ["--num_train_epochs", "5", "--view_dropout=0.25"])
    assert (args.learning_rate, args.num_train_epochs, kit.view_dropout) == (0.001, 5, 0.25)


def test_a_config_survives_being_written_and_read(tmp_path):
    _, args = parse_arguments(write_config(tmp_path / "a.yaml", dataset="d", learning_rate=3e-4, logging_steps=7))
    saved = write_config(tmp_path / "b.yaml", dataset="d", **args.changed())
    _, again = parse_arguments(saved)
    assert yaml.safe_load(saved.read_text())["logging_steps"] == 7
    assert again.to_dict() == args.to_dict()


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("dataset: d\nlearning_rat: 1\n", [], "unknown argument 'learning_rat'; did you mean 'learning_rate'?"),
        ("dataset: d\n", ["--panel-sise", "3"], "did you mean 'panel_size'?"),
        ("dataset: d\npanel_size: big\n", [], "panel_size"),
        ("learning_rate: 1\n", [], "dataset"),
        ("- a\n- b\n", [], "flat mapping"),
        ("dataset: [\n", [], "not YAML"),
        ("dataset: d\n", ["stray"], "'stray' belongs to no argument"),
    ],
)
def test_a_bad_config_is_one_line_that_names_the_place(tmp_path, text, overrides, message):
    config = tmp_path / "c.yaml"
    config.write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml|command line") as error:
        parse_arguments(config, overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_carries_what_its_scores_are_worth(phantom_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "MIN_STUDIES", 10)
    config = write_config(
        tmp_path / "c.yaml",
        **TINY_RECIPE,
        max_steps=2,
        dataset=str(phantom_folder),
        output_dir=str(tmp_path / "run"),
    )
    report = train(*parse_arguments(config))
    curve = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))[CALIBRATION]
    assert curve["n"] == len(load_prepared(str(phantom_folder))["validation"])
    assert report["calibration"]["source"] == "checkpoint"
    checkpoint = load_checkpoint(str(tmp_path / "run"))
    again = evaluation.evaluate(checkpoint, load_prepared(str(phantom_folder)), seed=0)
    assert again["calibration"] == report["calibration"]
