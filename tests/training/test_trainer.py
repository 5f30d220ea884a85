"""Parameter groups, evaluations, and options that must not change what is learned."""

import copy
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from helpers import ROOT, TEXTS, TINY_RECIPE, gpt2_folder, tiny_checkpoint, vit_folder, write_config
from packaging.specifiers import SpecifierSet
from packaging.version import Version
from transformers import BertConfig, BertLMHeadModel, BertTokenizer, Seq2SeqTrainer
from transformers import __version__ as transformers_version

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.evaluate import evaluate
from hf_cxr.metrics import SCALARS
from hf_cxr.models.modeling import build
from hf_cxr.training.checkpoints import ResumableTrainer
from hf_cxr.training.findings_pretraining import pretrain_on_findings
from hf_cxr.training.run import fine_tune
from hf_cxr.training.trainer import ImpressionTrainer, part_name


@pytest.fixture(scope="module")
def packed(phantom_folder):
    return pack_dataset(load_prepared(str(phantom_folder))["train"], 32)


def run(checkpoint, packed, tmp_path, **values):
    recipe = TINY_RECIPE | {"dataset": "unused", "output_dir": str(tmp_path / "run"), "logging_steps": 1, "seed": 0}
    recipe |= {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_steps": 5} | values
    kit, args = parse_arguments(write_config(tmp_path / "config.yaml", **recipe))
    return fine_tune(checkpoint, {"train": packed}, kit, args)


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# --- parameter groups --------------------------------------------------------------------------------------------


def test_the_decay_of_the_layers_multiplies_the_rate_of_the_encoder_alone(packed, tmp_path):
    checkpoint = tiny_checkpoint()
    rates = {"encoder_learning_rate": 1e-5, "encoder_layer_decay": 0.5, "lr_scheduler_type": "constant"}
    trainer = run(checkpoint, packed, tmp_path, max_steps=1, **rates)
    names = {parameter: name for name, parameter in checkpoint.model.named_parameters()}
    rate = {names[parameter]: group["lr"] for group in trainer.optimizer.param_groups for parameter in group["params"]}
    encoder = {value for name, value in rate.items() if part_name(name) == "encoder"}
    assert encoder == {1e-5 * 0.5**above for above in range(5)}
    assert {value for name, value in rate.items() if part_name(name) != "encoder"} == {1e-3}


def test_encoder_cross_attention_and_decoder_have_learning_rates_of_their_own(packed, tmp_path):
    encoder, decoder = vit_folder(tmp_path / "vit", image_size=32), gpt2_folder(tmp_path / "gpt2")
    checkpoint = build(encoder, decoder, 32, max_new_tokens=20)
    rates = {"encoder_learning_rate": 1e-5, "cross_attention_learning_rate": 1e-2, "learning_rate": 1e-3}
    trainer = run(checkpoint, packed, tmp_path, max_steps=1, weight_decay=0.1, lr_scheduler_type="constant", **rates)
    names = {parameter: name for name, parameter in checkpoint.model.named_parameters()}
    expected = {"encoder": 1e-5, "cross-attention": 1e-2, "decoder": 1e-3}
    seen = set()
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            part = part_name(names[parameter])
            assert group["lr"] == expected[part], names[parameter]
            seen.add((part, group["weight_decay"] > 0))
    assert seen == {(part, decayed) for part in expected for decayed in (True, False)}
    trained = {parameter for group in trainer.optimizer.param_groups for parameter in group["params"]}
    assert trained == {parameter for parameter in checkpoint.model.parameters() if parameter.requires_grad}


def test_what_is_new_to_a_pretrained_pair_counts_as_cross_attention(tmp_path):
    encoder, decoder = vit_folder(tmp_path / "vit", hidden=48), gpt2_folder(tmp_path / "gpt2")
    names = [name for name, _ in build(encoder, decoder, 64, max_new_tokens=20).model.named_parameters()]
    new = {name for name in names if part_name(name) == "cross-attention"}
    assert {"enc_to_dec_proj.weight", "decoder.transformer.h.0.ln_cross_attn.weight"} <= new
    assert any("h.0.crossattention.c_attn" in name for name in new)
    bert = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=50,
        is_decoder=True, add_cross_attention=True,
    )  # fmt: skip
    bert_names = [f"decoder.{name}" for name, _ in BertLMHeadModel(bert).named_parameters()]
    assert {part_name(name) for name in bert_names} == {"decoder", "cross-attention"}, "not its own `encoder`"


# --- both stages get what they are told to -----------------------------------------------------------------------


def train_stage(stage, packed, tmp_path, **values):
    """A tiny checkpoint after a stage, and the canvases that its encoder has seen in training, as grey levels."""
    checkpoint, seen = tiny_checkpoint(), []

    def look(module, args, kwargs):
        if module.training:
            seen.extend((kwargs["pixel_values"][:, 0] * 0.5 + 0.5).mul(255).round().byte())

    checkpoint.model.encoder.register_forward_pre_hook(look, with_kwargs=True)
    if stage == "impressions":
        run(checkpoint, packed, tmp_path, **values)
    else:
        recipe = TINY_RECIPE | {"dataset": "unused", "output_dir": str(tmp_path / "run"), "seed": 0} | values
        kit, args = parse_arguments(write_config(tmp_path / "config.yaml", **recipe))
        pretrain_on_findings(checkpoint, packed, kit, args)
    return checkpoint, torch.stack(seen)


STAGES = pytest.mark.parametrize("stage", ["findings", "impressions"])
ONE_EPOCH = {"per_device_train_batch_size": 16, "findings_pretraining_epochs": 1, "max_steps": -1}


@STAGES
def test_view_dropout_empties_a_panel_of_what_the_encoder_learns_from(stage, packed, tmp_path):
    pairs = sum(
        all(half.any() for half in np.hsplit(canvas, 2))
        for canvas in map(CanvasDataset(packed, 32).canvas, range(len(packed)))
    )
    for name, share in (("none", 0.0), ("all", 1.0)):
        (tmp_path / name).mkdir()
        _, seen = train_stage(stage, packed, tmp_path / name, view_dropout=share, **ONE_EPOCH)
        assert len(seen) == len(packed)
        both = sum(all(half.any() for half in canvas.chunk(2, dim=1)) for canvas in seen)
        assert both == (0 if share else pairs)


@STAGES
def test_augmentation_changes_what_the_encoder_learns_from(stage, packed, tmp_path):
    plain = {CanvasDataset(packed, 32).canvas(row).tobytes() for row in range(len(packed))}
    for name, strength in (("none", 0.0), ("full", 1.0)):
        (tmp_path / name).mkdir()
        _, seen = train_stage(stage, packed, tmp_path / name, augmentation=strength, **ONE_EPOCH)
        as_they_are = sum(canvas.numpy().tobytes() in plain for canvas in seen)
        assert as_they_are == (0 if strength else len(packed))


def test_the_findings_pretraining_learns_at_its_own_rate_or_else_at_that_of_the_run(packed, tmp_path):
    """One step of plain gradient descent moves every weight by the learning rate times its gradient."""
    before, moved = tiny_checkpoint().model.encoder.state_dict(), {}
    step = {"optim": "sgd", "lr_scheduler_type": "constant", "max_grad_norm": 1e9, "per_device_train_batch_size": 8}
    step |= {"findings_pretraining_epochs": 4 / len(packed), "learning_rate": 0.02}
    for rate in (None, 0.0, 0.01, 0.02, 0.04):
        given = {} if rate is None else {"findings_pretraining_learning_rate": rate}
        (tmp_path / str(rate)).mkdir()
        checkpoint, _ = train_stage("findings", packed, tmp_path / str(rate), **step, **given)
        after = checkpoint.model.encoder.state_dict()
        moved[rate] = torch.cat([(after[name] - value).flatten() for name, value in before.items()])
    assert torch.equal(moved[None], moved[0.02])
    assert not moved[0.0].any()
    assert moved[0.01].norm() > 1e-3
    for rate in (0.02, 0.04):
        assert torch.allclose(moved[rate], moved[0.01] * rate / 0.01, atol=1e-6)


# --- what is told of an evaluation -------------------------------------------------------------------------------


def uncased_bert_folder(folder: Path) -> str:
    """A pretrained BERT in Hub form, with random weights, whose WordPieces are whole words in lower case."""
    words = sorted({word for text in TEXTS for word in re.findall(r"\w+|\W", text.lower()) if word.strip()})
    letters = [f"{mark}{letter}" for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")]
    pieces = list(dict.fromkeys(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters]))
    (folder.parent / "vocab.txt").write_text("\n".join(pieces))
    BertTokenizer(str(folder.parent / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertLMHeadModel(BertConfig(vocab_size=len(pieces), is_decoder=True, **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("decoder", ["tiny", "uncased BERT"])
def test_the_scores_told_while_training_are_those_of_the_final_evaluation(decoder, phantom_folder, tmp_path):
    """Against the radiologists' own words, though targets are cut short or lose their capitals as tokens."""
    dataset = load_prepared(str(phantom_folder))
    truths = list(dataset["validation"]["impression"])
    given = decoder if decoder == "tiny" else uncased_bert_folder(tmp_path / "bert")
    checkpoint = build("tiny", given, 32, texts=TEXTS, vocab_size=350, max_new_tokens=16)
    assert max(len(checkpoint.tokenizer(text).input_ids) for text in truths) > 16
    packed = {name: pack_dataset(dataset[name], 32) for name in ("train", "validation")}
    recipe = TINY_RECIPE | {"dataset": "unused", "output_dir": str(tmp_path / "run"), "learning_rate": 3e-3}
    recipe |= {"max_target_length": 16, "max_steps": 40, "eval_strategy": "steps", "eval_steps": 40, "seed": 0}
    recipe |= {"per_device_eval_batch_size": 8, "log_samples": len(truths)}
    trainer = fine_tune(checkpoint, packed, *parse_arguments(write_config(tmp_path / "c.yaml", **recipe)))
    [entry] = [entry for entry in trainer.state.log_history if "eval_composite" in entry]
    told = {name.removeprefix("eval_"): value for name, value in entry.items()}
    shown = [json.loads(line) for line in (tmp_path / "run" / "samples" / "samples.jsonl").open()]
    report = evaluate(checkpoint, DatasetDict(validation=dataset["validation"]), split="validation", seed=0)
    assert [row["impression"] for row in shown] == truths
    names = [name for name in (*SCALARS, "n", "distinct_outputs", "modal_share") if name in told]
    assert len(names) > 9
    assert told["bleu1"] > 0
    assert {name: told[name] for name in names} == pytest.approx({name: report[name] for name in names})
    gain = (told["image_gain"], told["image_gain_low"], told["image_gain_high"])
    assert gain == (report["image_gain"]["finding_f1_micro"], *report["image_gain_ci95"]["finding_f1_micro"])


def test_evaluating_leaves_the_generation_config_as_it_was(phantom_folder, packed, tmp_path):
    """The stock class fills it with defaults: a `max_length` of 20, which `generate` warns of ever after."""
    validation = pack_dataset(load_prepared(str(phantom_folder))["validation"], 32)
    recipe = TINY_RECIPE | {"dataset": "unused", "output_dir": str(tmp_path / "run"), "max_steps": 1}
    kit, args = parse_arguments(write_config(tmp_path / "c.yaml", **recipe, eval_strategy="steps", eval_steps=1))
    checkpoint = tiny_checkpoint()
    before = checkpoint.model.generation_config.to_diff_dict()
    trainer = fine_tune(checkpoint, {"train": packed, "validation": validation}, kit, args)
    assert any("eval_composite" in entry for entry in trainer.state.log_history)
    assert checkpoint.model.generation_config.to_diff_dict() == before
    assert checkpoint.model.generation_config.max_length is None


# --- what is built on --------------------------------------------------------------------------------------------


def test_transformers_has_an_upper_bound_as_long_as_private_names_of_its_trainer_are_overridden():
    own = {name for kind in (ImpressionTrainer, ResumableTrainer) for name in vars(kind) if re.match("_[a-z]", name)}
    overridden = {name for name in own if hasattr(Seq2SeqTrainer, name)}
    assert "_save_checkpoint" in overridden
    (bounds,) = re.findall(r'^ +"transformers([^"]+)",', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    major, minor = Version(transformers_version).release[:2]
    assert transformers_version in SpecifierSet(bounds)
    assert f"{major}.{minor + 1}" not in SpecifierSet(bounds)


# --- options that must not change what is learned ----------------------------------------------------------------


def test_gradient_checkpointing_gives_the_same_losses_bit_for_bit(packed, tmp_path):
    checkpoint = tiny_checkpoint()
    plain = run(copy.deepcopy(checkpoint), packed, tmp_path)
    saving = run(checkpoint, packed, tmp_path, activation_checkpointing=True)
    assert checkpoint.model.is_gradient_checkpointing
    assert losses(plain) == losses(saving)


def test_bf16_gives_the_same_losses_within_one_percent(packed, tmp_path):
    checkpoint = tiny_checkpoint()
    seen = []
    checkpoint.model.encoder.layers[0].mlp.fc1.register_forward_hook(
        lambda module, inputs, output: seen.append(output.dtype)
    )
    half = run(copy.deepcopy(checkpoint), packed, tmp_path, bf16=True)
    assert set(seen) == {torch.bfloat16}
    full = run(checkpoint, packed, tmp_path)
    assert losses(half) == pytest.approx(losses(full), rel=0.01)
    assert losses(half) != losses(full)


@pytest.mark.slow
def test_compiling_gives_the_same_losses_within_a_ten_thousandth(packed, tmp_path):
    no_dropout = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), 0.0)
    decoder = gpt2_folder(tmp_path / "gpt2", **no_dropout)
    checkpoint = build(vit_folder(tmp_path / "vit", image_size=32), decoder, 32, max_new_tokens=20)
    plain = run(copy.deepcopy(checkpoint), packed, tmp_path, max_steps=3)
    torch._dynamo.utils.counters.clear()
    compiled = run(checkpoint, packed, tmp_path, max_steps=3, torch_compile=True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-4)
    torch._dynamo.reset()


def test_label_smoothing_changes_the_loss_as_its_formula_says(packed, tmp_path):
    logits, labels = torch.randn(1, 4, 9), torch.tensor([[1, 2, 3, -100]])
    from hf_cxr.training.trainer import token_mean_loss

    log = logits.log_softmax(-1)[0, :3]
    expected = -(0.9 * log[range(3), [1, 2, 3]] + 0.1 * log.mean(-1)).mean()
    assert token_mean_loss(0.1)({"logits": logits}, labels).item() == pytest.approx(expected.item(), rel=1e-5)
    smooth = run(tiny_checkpoint(), packed, tmp_path, label_smoothing_factor=0.1, max_steps=1)
    assert losses(smooth) != losses(run(tiny_checkpoint(), packed, tmp_path, max_steps=1))
