"""Every recipe in configs/ trains as it stands, with small parts of the same form in place of the Hub's."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml
from helpers import ROOT, gpt2_folder, vit_folder
from transformers import Dinov2Config, Dinov2Model, SwinConfig, SwinModel, ViTImageProcessorPil

from hf_cxr.config import parse_arguments
from hf_cxr.training.run import train

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))


def swin_folder(folder: Path) -> str:
    """A pretrained square Swin in Hub form, with random weights."""
    config = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4)
    SwinModel(config).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def dinov2_folder(folder: Path) -> str:
    """A DINOv2 in the form of RAD-DINO: patches of 14, a table of positions for 518 pixels."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **sizes)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 518, "width": 518}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_trains_both_its_stages(recipe, phantom_folder, tmp_path):
    values = yaml.safe_load(recipe.read_text())
    if values.get("lora_rank") and not importlib.util.find_spec("peft"):
        pytest.skip("peft is not installed")
    words = ["--dataset", phantom_folder, "--output_dir", tmp_path / "run", "--panel_size", 32, "--use_cpu", "true"]
    words += ["--findings_pretraining_epochs", 1, "--num_train_epochs", 1, "--max_target_length", 24]
    words += ["--dataloader_num_workers", 0]
    if "/" in values["encoder"]:
        makers = {"swin": swin_folder, "dino": dinov2_folder}
        maker = next((make for name, make in makers.items() if name in values["encoder"]), vit_folder)
        options = {"image_size": 32} if maker is vit_folder else {}
        layers = 6 if "distil" in values["decoder"] else 1
        words += ["--encoder", maker(tmp_path / "encoder", **options)]
        words += ["--decoder", gpt2_folder(tmp_path / "decoder", n_layer=layers)]
        words += ["--panel_size", 28] if maker is dinov2_folder else []
    kit, args = parse_arguments(recipe, [str(word) for word in words])
    assert train(kit, args)["n"] > 0
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert state["global_step"] > 0


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_selects_by_the_composite_and_mixes_its_batches(recipe):
    values = yaml.safe_load(recipe.read_text())
    assert "metric_for_best_model" not in values, "the default is the composite"
    if recipe.stem not in ("demo", "small_collection"):
        assert values["load_best_model_at_end"]
        assert values["early_stopping_patience"] > 0
        assert values["view_dropout"] > 0
    assert "train_sampling_strategy" not in values, "batches in random order"
    assert not values.get("augmentation") or values["dataloader_num_workers"] > 0, "it would hold up each step"
    text = recipe.read_text()
    assert text.startswith("#")
    for told in ("batch", "memory", "epoch"):
        assert told in text.lower(), f"the recipe states its {told}"


def test_distilgpt2_learns_five_to_ten_times_as_fast_as_its_encoder_and_images_are_prepared_for_the_panel():
    recipe = ROOT / "configs" / "iu_xray_rad_dino.yaml"
    values = yaml.safe_load(recipe.read_text())
    assert 5 <= values["learning_rate"] / values["encoder_learning_rate"] <= 10
    assert values["cross_attention_learning_rate"] >= values["learning_rate"]
    told = re.search(r"--size (\d+)", recipe.read_text())
    assert told
    assert int(told[1]) >= values["panel_size"]
    assert values["panel_size"] % 14 == 0
