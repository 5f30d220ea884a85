"""Encoders in the form of RAD-DINO (DINOv2, patches of 14, positions for 518 pixels) and decoders in DistilGPT-2's, on
panels of 392 and 518 pixels. Other types of encoders: `test_encoders.py`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import ROOT, gpt2_folder
from transformers import AutoModel, Dinov2Config, Dinov2Model, GPT2Config, GPT2LMHeadModel, ViTImageProcessorPil

from hf_cxr.config import parse_arguments
from hf_cxr.data.collator import note_on_small_images
from hf_cxr.data.prepare import prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.models.encoders import adapt_encoder
from hf_cxr.models.modeling import build
from hf_cxr.training.run import train

NOTE = "images are stored with 384 pixels and enlarged to panels of 392"


@pytest.fixture(scope="module")
def dinov2_form(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("dinov2") / "encoder"
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    torch.manual_seed(0)
    model = Dinov2Model(Dinov2Config(image_size=518, patch_size=14, **sizes))
    torch.nn.init.normal_(model.embeddings.position_embeddings)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 518, "width": 518}).save_pretrained(folder)
    return str(folder)


@pytest.fixture(params=["random weights", "real weights"])
def encoder(request) -> str:
    if request.param == "random weights":
        return request.getfixturevalue("dinov2_form")
    return str(request.getfixturevalue("shared_data") / "dinov2_small")


@pytest.mark.parametrize("panel_size", [392, 518])
def test_the_grid_of_518_pixels_is_interpolated_to_the_panel_and_tiled(encoder, panel_size):
    square = AutoModel.from_pretrained(encoder, dtype=torch.float32).eval()
    canvas = adapt_encoder(encoder, (panel_size, 2 * panel_size)).eval()
    side = panel_size // 14
    panel = torch.randn(1, 3, panel_size, panel_size)
    with torch.no_grad():
        alone = square.embeddings(panel)[0, 1:].view(side, side, -1)
        both = canvas.embeddings(torch.cat([panel, panel], dim=3))[0, 1:].view(side, 2 * side, -1)
    assert torch.allclose(both[:, :side], alone, atol=1e-3)
    offset = (both[:, side:] - alone).flatten(0, 1)
    assert torch.allclose(offset, offset[:1].expand_as(offset), atol=1e-3), "one offset for the whole lateral panel"


def test_real_weights_and_a_distilgpt2_with_gpt2s_own_tokenizer_learn_on_large_panels(shared_data, tmp_path):
    decoder = tmp_path / "distilgpt2"
    GPT2LMHeadModel(GPT2Config(n_layer=6, n_embd=64, n_head=2)).save_pretrained(decoder)
    for file in ("vocab.json", "merges.txt"):
        shutil.copy(shared_data / "gpt2" / file, decoder / file)
    (decoder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    checkpoint = build(str(shared_data / "dinov2_small"), str(decoder), 392)
    labels = checkpoint.tokenizer(["Small right pleural effusion."], return_tensors="pt").input_ids
    model = checkpoint.model.train()
    pixels = torch.randn(1, 3, 392, 784)
    optimiser = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    losses = []
    for _ in range(2):
        loss = model(pixel_values=pixels, labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
        optimiser.step()
        losses.append(loss.item())
    assert losses[1] < losses[0]


def test_the_recipe_trains_on_panels_of_392_pixels_and_says_that_smaller_images_are_enlarged(
    dinov2_form, tmp_path, capsys
):
    small, large = tmp_path / "small", tmp_path / "large"
    prepare("phantom", small, size=384, num_studies=30, seed=0)
    prepare("phantom", large, size=518, num_studies=30, seed=0)
    for folder, panel_size, noted in ((large, 518, False), (small, 392, True), (small, 378, False)):
        note = note_on_small_images(load_prepared(folder)["train"], panel_size)
        assert (note is not None) == noted
    recipe = ROOT / "configs" / "iu_xray_rad_dino.yaml"
    words = ["--dataset", small, "--output_dir", tmp_path / "run", "--use_cpu", "true", "--max_steps", 2]
    words += ["--encoder", dinov2_form, "--decoder", gpt2_folder(tmp_path / "decoder", n_layer=6)]
    words += ["--findings_pretraining_epochs", 0, "--max_target_length", 24, "--dataloader_num_workers", 0]
    words += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    words += ["--early_stopping_patience", 0, "--bf16", "false", "--global_batch_size", 4]
    words += ["--per_device_train_batch_size", 2]
    kit, args = parse_arguments(recipe, [str(word) for word in words])
    assert kit.panel_size == 392
    assert train(kit, args)["n"] > 0
    assert NOTE in capsys.readouterr().err
    assert json.loads((Path(args.output_dir) / "trainer_state.json").read_text())["global_step"] == 2
