"""Ways to train less than the whole: a frozen encoder whose states are computed once, and low-rank adapters."""

import importlib.util
import json
import os
import shutil

import numpy as np
import pytest
import torch
from helpers import TINY_RECIPE, gpt2_folder, tiny_checkpoint, vit_folder, write_config
from safetensors.torch import load_file
from transformers import VisionEncoderDecoderModel

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import CanvasCollator, CanvasDataset, pack_dataset
from hf_cxr.data.prepared import load_prepared
from hf_cxr.models.lora import adapters
from hf_cxr.models.modeling import build, load_checkpoint
from hf_cxr.training import feature_cache
from hf_cxr.training.feature_cache import encode_once
from hf_cxr.training.run import check_feasible, fine_tune, train

needs_peft = pytest.mark.skipif(not importlib.util.find_spec("peft"), reason="peft is not installed")


@pytest.fixture(scope="module")
def packed(phantom_folder):
    return pack_dataset(load_prepared(str(phantom_folder))["train"], 32)


def arguments(tmp_path, dataset="unused", **values):
    tmp_path.mkdir(exist_ok=True)
    recipe = TINY_RECIPE | {
        "dataset": str(dataset),
        "output_dir": str(tmp_path / "run"),
        "logging_steps": 1,
        "seed": 0,
    }
    recipe |= {"per_device_train_batch_size": 8, "learning_rate": 1e-3, "max_steps": 4} | values
    return parse_arguments(write_config(tmp_path / "config.yaml", **recipe))


def losses(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# --- frozen encoder ----------------------------------------------------------------------------------------------


def test_states_computed_once_give_the_losses_of_encoding_every_time(packed, tmp_path, monkeypatch):
    once = fine_tune(tiny_checkpoint(), {"train": packed}, *arguments(tmp_path / "a", freeze_encoder=True))
    monkeypatch.setattr("hf_cxr.training.run.encode_once", lambda *args: None)
    each = fine_tune(tiny_checkpoint(), {"train": packed}, *arguments(tmp_path / "b", freeze_encoder=True))
    assert losses(once) == pytest.approx(losses(each), rel=1e-5)
    assert once.train_dataset.states is not None


@pytest.mark.parametrize("beams", [1, 2])
def test_a_frozen_encoders_validation_gives_the_scores_of_encoding_every_time(
    phantom_folder, tmp_path, monkeypatch, beams
):
    split = load_prepared(str(phantom_folder))["validation"].select(range(12))
    parts = {"train": pack_dataset(split, 32), "validation": pack_dataset(split, 32)}
    told = []
    for name, once in (("once", encode_once), ("each", lambda *args: None)):
        monkeypatch.setattr("hf_cxr.training.run.encode_once", once)
        options = {"freeze_encoder": True, "eval_strategy": "steps", "eval_steps": 4, "generation_num_beams": beams}
        checkpoint = tiny_checkpoint()
        checkpoint.model.generation_config.num_beams = beams
        trainer = fine_tune(checkpoint, parts, *arguments(tmp_path / name, **options))
        told += [
            {key: row[key] for row in trainer.state.log_history for key in row if key in ("eval_loss", "eval_bleu4")}
        ]
    assert told[0] == pytest.approx(told[1], rel=1e-4)
    assert told[0]


def test_the_frozen_encoder_runs_once_and_not_in_training(packed, tmp_path):
    checkpoint, calls = tiny_checkpoint(), []
    checkpoint.model.encoder.register_forward_hook(
        lambda module, args, kwargs, output: calls.append(1), with_kwargs=True
    )
    kit, args = arguments(tmp_path, freeze_encoder=True, num_train_epochs=3, max_steps=-1)
    fine_tune(checkpoint, {"train": packed}, kit, args)
    assert len(calls) == -(-len(packed) // args.per_device_eval_batch_size)


def test_states_of_other_weights_or_other_canvases_are_never_taken(packed, tmp_path):
    checkpoint, canvases = tiny_checkpoint(), CanvasDataset(packed, 32)
    states = encode_once(checkpoint, canvases, tmp_path, 16)
    assert states.shape[0] == len(packed)
    file = next(tmp_path.glob("*.npy"))
    before = file.stat().st_mtime_ns
    encode_once(checkpoint, canvases, tmp_path, 16)
    assert file.stat().st_mtime_ns == before, "the same: read again"
    half = CanvasDataset(packed.select(range(9)), 32)
    assert len(encode_once(checkpoint, half, tmp_path, 16)) == 9
    with torch.no_grad():
        next(checkpoint.model.encoder.parameters()).add_(1.0)
    assert not np.allclose(encode_once(checkpoint, canvases, tmp_path, 16)[0], states[0])


def test_states_are_those_of_the_encoder(packed, tmp_path):
    checkpoint, canvases = tiny_checkpoint(), CanvasDataset(packed, 32)
    states = encode_once(checkpoint, canvases, tmp_path, 7)
    pixels = CanvasCollator(checkpoint.image_processor)([canvases[3], canvases[11]])["pixel_values"]
    with torch.no_grad():
        expected = checkpoint.model.encoder.eval()(pixel_values=pixels)[0]
    assert torch.allclose(torch.from_numpy(states[[3, 11]]), expected, atol=1e-5)


def test_interrupted_encoding_leaves_no_file(packed, tmp_path, monkeypatch):
    def interrupted(self, index):
        if index == 40:
            raise KeyboardInterrupt
        return canvas(self, index)

    canvas = CanvasDataset.canvas
    monkeypatch.setattr(CanvasDataset, "canvas", interrupted)
    with pytest.raises(KeyboardInterrupt):
        encode_once(tiny_checkpoint(), CanvasDataset(packed, 32), tmp_path / "states", 16)
    assert not list((tmp_path / "states").iterdir())


def test_a_disk_too_small_for_the_states_is_told_beforehand(packed, tmp_path, monkeypatch):
    full = os.statvfs_result((4096, 4096, 0, 0, 2, 0, 0, 0, 0, 255))
    monkeypatch.setattr(feature_cache.os, "statvfs", lambda folder: full)
    with pytest.raises(OSError, match=r"need 0\.0 GB, there are 0\.0"):
        encode_once(tiny_checkpoint(), CanvasDataset(packed, 32), tmp_path, 16)


def test_a_frozen_run_with_warm_up_goes_the_whole_way_and_keeps_the_warm_encoder(phantom_folder, tmp_path):
    kit, args = arguments(
        tmp_path, phantom_folder, freeze_encoder=True, findings_pretraining_epochs=0.5, augmentation=1
    )
    assert train(kit, args)["n"] > 0
    run = tmp_path / "run"
    assert not (run / "encoder_states").exists(), "gigabytes that nobody needs any more"
    model = VisionEncoderDecoderModel.from_pretrained(run)
    warm = type(model.encoder).from_pretrained(run / "findings_encoder").state_dict()
    assert all(torch.equal(value, warm[name]) for name, value in model.encoder.state_dict().items())


# --- adapters ----------------------------------------------------------------------------------------------------


def pretrained_pair(folder):
    return {"encoder": vit_folder(folder / "vit", image_size=32), "decoder": gpt2_folder(folder / "gpt2")}


@needs_peft
def test_adapters_train_few_weights_and_all_that_is_new(tmp_path):
    model = build(**pretrained_pair(tmp_path), panel_size=32, max_new_tokens=20).model
    with adapters(model, 4, 16):
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert any("lora_A" in name for name in trained)
        assert any("lora_A" in name and name.startswith("encoder.") for name in trained)
        rest = {name for name in trained if "lora_" not in name}
        assert all("cross" in name or "position_embeddings" in name for name in rest), rest
        assert "decoder.transformer.h.0.crossattention.c_attn.weight" in rest
        assert not any("crossattention" in name for name in trained if "lora_" in name)
    assert not any("lora" in name for name, _ in model.named_parameters())


@needs_peft
def test_leaving_the_block_merges_what_was_learned(tmp_path):
    model = build(**pretrained_pair(tmp_path), panel_size=32, max_new_tokens=20).model.eval()
    pixels, ids = torch.randn(1, 3, 32, 64), torch.tensor([[1, 5, 7]])
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    before = model(pixel_values=pixels, decoder_input_ids=ids).logits
    with adapters(model, 4, 16):
        assert torch.allclose(model(pixel_values=pixels, decoder_input_ids=ids).logits, before, atol=1e-6)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.normal_(std=0.1)
        learned = model(pixel_values=pixels, decoder_input_ids=ids).logits
    assert not torch.allclose(learned, before, atol=1e-3)
    assert torch.allclose(model(pixel_values=pixels, decoder_input_ids=ids).logits, learned, atol=1e-5)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == flags


@needs_peft
@pytest.mark.parametrize("left", [["checkpoint-2", "checkpoint-4"], []], ids=["in stage two", "between the stages"])
def test_a_lora_run_ends_in_a_stock_checkpoint_and_resumes(phantom_folder, tmp_path, left):
    options = pretrained_pair(tmp_path) | {"lora_rank": 2, "findings_pretraining_epochs": 0.5}
    options |= {"save_strategy": "steps", "save_steps": 2, "max_steps": 5}
    (tmp_path / "whole").mkdir()
    train(*arguments(tmp_path / "whole", phantom_folder, **options))
    run = tmp_path / "whole" / "run"
    stock = VisionEncoderDecoderModel.from_pretrained(run)
    assert not [name for name in load_file(run / "model.safetensors") if "lora" in name or "base_layer" in name]
    assert not [name for name, _ in stock.named_parameters() if "lora" in name]
    with pytest.raises(ValueError, match="its weights are not those of its config"):
        load_checkpoint(str(run / "checkpoint-4"))  # adapters apart, a stock model would hold random numbers
    # As if it had been killed after its second checkpoint, or before its first.
    before = load_file(run / "model.safetensors")
    progress = json.loads((run / "progress.json").read_text())
    (run / "progress.json").write_text(json.dumps(progress | {"stage": "impressions"}))
    for path in run.glob("checkpoint-*"):
        if path.name not in left:
            shutil.rmtree(path)
    (run / "model.safetensors").unlink()
    kit, args = arguments(tmp_path / "whole", phantom_folder, **options)
    kit.resume = True
    train(kit, args)
    after = load_file(run / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_adapters_in_from_scratch_parts_are_refused(phantom_folder, tmp_path):
    kit, args = arguments(tmp_path, phantom_folder, lora_rank=4)
    with pytest.raises(ValueError, match="lora_rank adapts pretrained parts"):
        check_feasible(load_prepared(str(phantom_folder)), kit, args)
