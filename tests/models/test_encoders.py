"""Which of transformers' image encoders and text decoders work on the canvas, tried on tiny random models.

`docs/encoders.md` tells the same to users. Real weights are not downloaded: their form is that of these folders.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from helpers import TEXTS, gpt2_folder, radiograph
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    VisionEncoderDecoderModel,
)

from hf_cxr.data.collator import CanvasCollator
from hf_cxr.inference.views import pack_views
from hf_cxr.models.encoders import adapt_encoder, image_processor
from hf_cxr.models.modeling import Checkpoint, UnsupportedPart, build, image_backend, load_checkpoint

PANEL = 32
FLAT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
STEPPED = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 2]}
BIAS = {"use_relative_position_bias": True, "use_mask_token": True}
# name: (model type, sizes, pixels of one step of its finest grid)
SUPPORTED = {
    "vit": ("vit", FLAT, 8),
    "deit": ("deit", FLAT, 8),
    "vit_msn": ("vit_msn", FLAT, 8),
    "ijepa": ("ijepa", FLAT, 8),
    "beit": ("beit", FLAT | BIAS, 8),
    "beit_shared_bias": ("beit", FLAT | {"use_shared_relative_position_bias": True, "use_mean_pooling": False}, 8),
    "beit_absolute": ("beit", FLAT | {"use_absolute_position_embeddings": True}, 8),
    "data2vec": ("data2vec-vision", FLAT | BIAS, 8),
    "dinov2": ("dinov2", FLAT | {"mlp_ratio": 2}, 8),
    "dinov2_registers": ("dinov2_with_registers", FLAT | {"mlp_ratio": 2}, 8),
    "dinov3": ("dinov3_vit", FLAT | {"num_register_tokens": 2}, 8),
    "swin": ("swin", STEPPED | {"window_size": 4}, 4),
    "swin_absolute": ("swin", STEPPED | {"window_size": 4, "use_absolute_embeddings": True}, 4),
    "swinv2": ("swinv2", STEPPED | {"window_size": 4}, 4),
    "hiera": ("hiera", STEPPED | {"masked_unit_size": [4, 4], "num_query_pool": 1}, 4),
}
SUPPORTED["hiera"][1].update(masked_unit_attention=[True, False])
PREPROCESSORS = {  # as published beside each type: they crop, keep the ratio, or name a class that needs torchvision
    "vit": {"image_processor_type": "ViTImageProcessor", "size": {"height": 224, "width": 224}},
    "deit": {
        "image_processor_type": "DeiTImageProcessor",
        "size": {"height": 256, "width": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    },
    "beit": {
        "feature_extractor_type": "BeitFeatureExtractor",
        "size": 256,
        "do_center_crop": True,
        "crop_size": 224,
        "do_reduce_labels": False,
    },
    "dinov2": {
        "image_processor_type": "BitImageProcessor",
        "size": {"shortest_edge": 256},
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
    },
    "dinov3": {"image_processor_type": "DINOv3ViTImageProcessorFast", "size": {"height": 224, "width": 224}},
}
FAMILY = {"swin": "vit", "vit_msn": "vit", "ijepa": "vit", "data2vec-vision": "beit", "hiera": "dinov2"}
IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "rescale_factor": 1 / 255}


def encoder_folder(folder, name: str, image_size: int = PANEL, **changes) -> str:
    """A pretrained square encoder in Hub form, every weight random, also those that start at zero."""
    kind, sizes, step = SUPPORTED[name]
    both = kind == "hiera"
    sizes = sizes | {"image_size": [image_size] * 2 if both else image_size} | changes
    sizes["patch_stride" if both else "patch_size"] = [step] * 2 if both else step
    if both:
        sizes |= {"patch_size": [7, 7], "patch_padding": [3, 3]}
    torch.manual_seed(0)
    model = AutoModel.from_config(AutoConfig.for_model(kind, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    family = name.split("_")[0]
    preprocessor = PREPROCESSORS.get(family) or PREPROCESSORS[FAMILY.get(kind, "vit")]
    (folder / "preprocessor_config.json").write_text(
        json.dumps(
            {"do_resize": True, "do_rescale": True, "do_normalize": True, "resample": 3} | IMAGENET | preprocessor
        )
    )
    return str(folder)


def tiny_build(encoder: str, decoder: str = "tiny", panel_size: int = PANEL) -> Checkpoint:
    return build(encoder, decoder, panel_size, texts=TEXTS, vocab_size=300, max_new_tokens=6)


def learn(checkpoint: Checkpoint, steps: int = 2) -> None:
    """Plain steps of AdamW on three random studies; every trainable parameter must get a gradient (DDP needs it)."""
    model = checkpoint.model.train()
    optimiser = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-3)
    labels = checkpoint.tokenizer(TEXTS[:3], padding=True, return_tensors="pt").input_ids
    height, width = (checkpoint.image_processor.size[side] for side in ("height", "width"))
    for _ in range(steps):
        loss = model(pixel_values=torch.randn(3, 3, height, width), labels=labels).loss
        optimiser.zero_grad()
        loss.backward()
        unused = [name for name, part in model.named_parameters() if part.requires_grad and part.grad is None]
        assert not unused
        assert torch.isfinite(loss)
        optimiser.step()
    model.eval()


def assert_stock_reload_is_bit_equal(checkpoint: Checkpoint, folder) -> VisionEncoderDecoderModel:
    checkpoint.save_pretrained(folder)
    for file in {*folder.glob("*.json")} - {folder / "processor_config.json"}:  # which AutoProcessor alone reads
        assert "auto_map" not in file.read_text(), "no remote code"
    again = VisionEncoderDecoderModel.from_pretrained(folder).eval()
    ours, theirs = checkpoint.model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    canvas = pack_views(radiograph(1), radiograph(2), size=PANEL)
    pixels = AutoImageProcessor.from_pretrained(folder)(canvas, return_tensors="pt").pixel_values
    ids = again.generate(pixels, num_beams=2)
    assert torch.equal(ids, checkpoint.model.generate(pixels, num_beams=2))
    assert isinstance(AutoTokenizer.from_pretrained(folder).decode(ids[0]), str)
    return again


# --- encoders that work ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SUPPORTED)
def test_an_encoder_is_built_trained_saved_and_loaded_as_a_stock_part(name, tmp_path):
    checkpoint = tiny_build(encoder_folder(tmp_path, name))
    learn(checkpoint)
    assert_stock_reload_is_bit_equal(checkpoint, tmp_path / "run")


@pytest.mark.parametrize("name", SUPPORTED)
def test_gradient_checkpointing_gives_the_same_gradients(name, tmp_path):
    checkpoint = tiny_build(encoder_folder(tmp_path, name, drop_path_rate=0.0))
    labels = checkpoint.tokenizer(TEXTS[:2], padding=True, return_tensors="pt").input_ids
    batch = {"pixel_values": torch.randn(2, 3, PANEL, 2 * PANEL), "labels": labels}
    gradients = []
    for recompute in (False, True):
        model = checkpoint.model.train()
        if recompute:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        model(**batch).loss.backward()
        gradients.append([part.grad.clone() for part in model.parameters() if part.requires_grad])
    assert all(torch.allclose(one, two, atol=1e-5) for one, two in zip(*gradients, strict=True))


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_saved_image_processor_keeps_the_normalisation_and_gives_the_whole_canvas(name, tmp_path):
    image_processor(encoder_folder(tmp_path, name), (PANEL, 2 * PANEL)).save_pretrained(tmp_path / "run")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run", **image_backend())
    canvas = pack_views(radiograph(1), radiograph(2), size=PANEL)
    pixels = processor(canvas, return_tensors="pt").pixel_values
    assert pixels.shape == (1, 3, PANEL, 2 * PANEL)
    grey = torch.from_numpy(np.asarray(canvas)).permute(2, 0, 1)[None] / 255
    mean, std = (torch.tensor(IMAGENET[key]).view(1, 3, 1, 1) for key in ("image_mean", "image_std"))
    assert torch.allclose(pixels, (grey - mean) / std, atol=1e-5)
    collated = CanvasCollator(processor)([{"canvas": np.asarray(canvas)[..., 0]}])["pixel_values"]
    assert torch.allclose(pixels, collated, atol=1e-5)
    assert processor(canvas.resize((90, 45)), return_tensors="pt").pixel_values.shape == pixels.shape


def test_an_encoder_without_normalisation_is_one_clear_error(tmp_path):
    encoder = encoder_folder(tmp_path, "vit")
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor"}')
    with pytest.raises(UnsupportedPart, match="names no image_mean"):
        tiny_build(encoder)


def test_an_encoder_saved_in_half_precision_is_trained_in_single(tmp_path):
    folder = encoder_folder(tmp_path, "vit")
    AutoModel.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    assert {part.dtype for part in tiny_build(folder).model.parameters()} == {torch.float32}


# --- what is carried over ----------------------------------------------------------------------------------------

ABSOLUTE = ["vit", "deit", "vit_msn", "ijepa", "beit_absolute", "dinov2", "dinov2_registers", "swin_absolute", "hiera"]
RELATIVE = ["beit", "beit_shared_bias", "data2vec"]


def embedded(model: torch.nn.Module, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(prefix tokens, grid of tokens with their positions), the grid (rows, columns, dim)"""
    with torch.no_grad():
        tokens = model.eval().embeddings(pixels)
    tokens = (tokens[0] if isinstance(tokens, tuple) else tokens)[0]
    rows = pixels.shape[2] // (8 if model.config.model_type not in ("swin", "hiera") else 4)
    columns = rows * pixels.shape[3] // pixels.shape[2]
    prefix = len(tokens) - rows * columns
    return tokens[:prefix], tokens[prefix:].view(rows, columns, -1)


@pytest.mark.parametrize("name", ABSOLUTE)
def test_each_panel_is_embedded_as_the_square_encoder_embeds_it(name, tmp_path):
    folder = encoder_folder(tmp_path, name)
    square, canvas = AutoModel.from_pretrained(folder), adapt_encoder(folder, (PANEL, 2 * PANEL))
    panel = torch.randn(1, 3, PANEL, PANEL)
    empty = torch.zeros_like(panel)
    prefix, grid = embedded(square, panel)
    prefix_left, left = embedded(canvas, torch.cat([panel, empty], dim=3))
    _, right = embedded(canvas, torch.cat([empty, panel], dim=3))
    assert torch.allclose(prefix, prefix_left, atol=1e-5)
    assert torch.allclose(left[:, : len(grid)], grid, atol=1e-4)
    offset = (right[:, len(grid) :] - grid).flatten(0, 1)
    assert torch.allclose(offset, offset[:1].expand_as(offset), atol=1e-4), "one offset for the whole lateral panel"
    assert 0.005 < offset[0].std() < 0.05


@pytest.mark.parametrize("name", RELATIVE)
def test_within_a_panel_the_relative_bias_is_kept_and_between_panels_it_is_the_nearest_known(name, tmp_path):
    folder = encoder_folder(tmp_path, name)
    side = PANEL // 8
    before, after = AutoModel.from_pretrained(folder), adapt_encoder(folder, (PANEL, 2 * PANEL))
    tables = [
        (module, after.get_submodule(key))
        for key, module in before.named_modules()
        if hasattr(module, "relative_position_bias_table")
    ]
    for one, two in tables:
        with torch.no_grad():
            square = one((side, side))[0]
            wide = two((side, 2 * side))[0]
        assert torch.allclose(wide[:, 0, 0], square[:, 0, 0]), "[CLS] to [CLS]"
        square, wide = square[:, 1:, 1:], wide[:, 1:, 1:]
        square = square.view(-1, side, side, side, side)
        wide = wide.view(-1, side, 2 * side, side, 2 * side)
        for panel in (slice(0, side), slice(side, 2 * side)):
            assert torch.allclose(wide[:, :, panel, :, panel], square, atol=1e-4)
        for column in range(side):
            for other in range(side, 2 * side):
                known = min(other - column, side - 1)
                assert torch.allclose(wide[:, :, column, :, other], square[:, :, 0, :, known], atol=1e-4)
    assert tables


LOCAL = {  # sizes by which no stage looks past a panel
    "swin": {"depths": [1, 1]},
    "swinv2": {"depths": [1, 1]},
    "hiera": {"masked_unit_attention": [True, True]},
}


@pytest.mark.parametrize("name", LOCAL)
def test_where_attention_stays_within_a_panel_its_states_are_those_of_the_square_encoder(name, tmp_path):
    folder = encoder_folder(tmp_path, name, **LOCAL[name])
    square, canvas = AutoModel.from_pretrained(folder), adapt_encoder(folder, (PANEL, 2 * PANEL))
    panel = torch.randn(1, 3, PANEL, PANEL)
    with torch.no_grad():
        alone = square.eval()(panel)[0].view(4, 4, -1)
        both = canvas.eval()(torch.cat([panel, torch.zeros_like(panel)], dim=3))[0].view(4, 8, -1)
    assert torch.allclose(both[:, :4], alone, atol=1e-4)


@pytest.mark.parametrize("name", SUPPORTED)
def test_all_weights_but_the_positions_are_taken_as_they_are(name, tmp_path):
    folder = encoder_folder(
        tmp_path, name, **({"use_mean_pooling": False} if name in (*RELATIVE, "beit_absolute") else {})
    )
    before, after = (
        AutoModel.from_pretrained(folder).state_dict(),
        adapt_encoder(folder, (PANEL, 2 * PANEL)).state_dict(),
    )
    assert before.keys() == after.keys()
    changed = {key.rsplit(".", 1)[-1] for key in before if not torch.equal(before[key], after[key])}
    assert changed == ({"position_embeddings"} if name in ABSOLUTE else set()) | (
        {"relative_position_bias_table"} if name in RELATIVE else set()
    )


def test_the_norm_of_beits_pooled_token_becomes_that_of_every_token(tmp_path):
    folder = encoder_folder(tmp_path, "beit")
    before, after = AutoModel.from_pretrained(folder), adapt_encoder(folder, (PANEL, 2 * PANEL))
    assert torch.equal(before.pooler.layernorm.weight, after.layernorm.weight)


@pytest.mark.parametrize("name", ["dinov2", "dinov2_registers", "beit_absolute"])
def test_a_square_table_that_has_the_canvas_tables_shape_by_chance_is_carried_all_the_same(name, tmp_path):
    folder = encoder_folder(tmp_path, name, image_size=2 * PANEL)
    table = AutoModel.from_pretrained(folder).embeddings.position_embeddings
    canvas = adapt_encoder(folder, (PANEL, 2 * PANEL))
    assert canvas.embeddings.position_embeddings.shape == table.shape
    _, grid = embedded(canvas, torch.zeros(1, 3, PANEL, 2 * PANEL))
    left, right = grid.chunk(2, dim=1)
    offset = (right - left).flatten(0, 1)
    assert torch.allclose(offset, offset[:1].expand_as(offset), atol=1e-4)


@pytest.mark.parametrize("name", SUPPORTED)
def test_a_panel_of_another_size_than_the_pretrained_one(name, tmp_path):
    learn(tiny_build(encoder_folder(tmp_path, name), panel_size=2 * PANEL), steps=1)


@pytest.mark.parametrize("name", SUPPORTED)
def test_an_encoder_made_for_this_canvas_is_loaded_as_it_is(name, tmp_path):
    checkpoint = tiny_build(encoder_folder(tmp_path, name))
    learn(checkpoint, steps=1)
    for part in (checkpoint.model.encoder, checkpoint.image_processor):  # as the findings pretraining saves it
        part.save_pretrained(tmp_path / "findings_encoder")
    again = tiny_build(str(tmp_path / "findings_encoder")).model.encoder
    before, after = checkpoint.model.encoder.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_from_scratch_encoder_of_an_earlier_run_is_loaded_as_it_is(tmp_path):
    before = tiny_build("tiny")
    for part in (before.model.encoder, before.image_processor):
        part.save_pretrained(tmp_path)
    after = adapt_encoder(str(tmp_path), (PANEL, 2 * PANEL)).state_dict()
    assert all(torch.equal(part, after[key]) for key, part in before.model.encoder.state_dict().items())


@pytest.mark.parametrize("name", ABSOLUTE)
def test_an_encoder_made_for_another_canvas_is_resized_panel_by_panel_and_keeps_its_offset(name, tmp_path):
    first = adapt_encoder(encoder_folder(tmp_path, name), (PANEL, 2 * PANEL))
    first.save_pretrained(tmp_path / "first")
    second = adapt_encoder(str(tmp_path / "first"), (2 * PANEL, 4 * PANEL))
    offsets = []
    for model, size in ((first, PANEL), (second, 2 * PANEL)):
        _, grid = embedded(model, torch.zeros(1, 3, size, 2 * size))
        middle = grid.shape[0] // 4  # away from the borders, where Hiera's wide patches see the padding
        left, right = grid.chunk(2, dim=1)
        offsets.append((right - left)[middle:-middle, middle:-middle].flatten(0, 1))
    for offset in offsets:
        assert torch.allclose(offset, offsets[0][:1].expand_as(offset), atol=1e-3)


@pytest.mark.parametrize("name", RELATIVE)
def test_the_relative_bias_of_another_canvas_is_resized(name, tmp_path):
    first = adapt_encoder(encoder_folder(tmp_path, name), (PANEL, 2 * PANEL))
    first.save_pretrained(tmp_path / "first")
    second = adapt_encoder(str(tmp_path / "first"), (2 * PANEL, 4 * PANEL))
    key, one = next((k, m) for k, m in first.named_modules() if hasattr(m, "relative_position_bias_table"))
    with torch.no_grad():
        one, two = one((4, 8))[0], second.get_submodule(key)((8, 16))[0]
    assert torch.allclose(one[:, 1, 1], two[:, 1, 1], atol=1e-4), "the bias of a token to itself stays"
    assert torch.allclose(one[:, 0, 0], two[:, 0, 0])


# --- encoders and sizes that do not ------------------------------------------------------------------------------

UNSUPPORTED = {
    "joins images with text": ["clip", "siglip", "siglip2", "chinese_clip", "altclip", "blip", "metaclip_2", "aimv2"],
    "does not take an image twice as wide as high": [
        *["clip_vision_model", "siglip_vision_model", "siglip2_vision_model", "aimv2_vision_model"],
        *["mlcd_vision_model", "pvt", "levit", "dpt", "sam_vision_model", "pixio", "vivit", "bert"],
    ],
    "gives a map of 4 dimensions": [
        *["convnext", "convnextv2", "resnet", "regnet", "bit", "mobilenet_v2", "mobilevit", "mobilevitv2"],
        *["pvt_v2", "poolformer", "segformer", "cvt", "swiftformer"],
    ],
    "hides a random part of every image": ["vit_mae"],
    "names no hidden_size": ["focalnet", "dinov3_convnext"],
    "has not been checked on the canvas": ["yolos", "donut-swin"],
}


@pytest.mark.parametrize(("reason", "kind"), [(why, kind) for why, kinds in UNSUPPORTED.items() for kind in kinds])
def test_another_encoder_is_one_clear_sentence_that_names_what_to_use_instead(reason, kind, tmp_path):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedPart, match=reason) as error:
        tiny_build(str(tmp_path))
    message = str(error.value)
    assert message.startswith(f"encoder {tmp_path}: a '{kind}' model ")
    assert message.endswith("; use ViT, DeiT, BEiT, DINOv2, DINOv3-ViT, Swin or Hiera")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("name", "panel_size", "message"),
    [
        ("vit", 36, "its patch of 8 pixels does not divide the panel of 36; use panel_size 32 or 40"),
        ("hiera", 36, "its unit of 8 pixels does not divide the panel of 36; use panel_size 32 or 40"),
        ("swin", 24, "its window of 4 patches does not fit the panel of 24 in its last stage; use panel_size 32 or"),
    ],
)
def test_a_panel_size_that_an_encoder_cannot_have_is_one_clear_sentence(name, panel_size, message, tmp_path):
    with pytest.raises(UnsupportedPart, match=message):
        tiny_build(encoder_folder(tmp_path, name), panel_size=panel_size)


@pytest.mark.parametrize("name", ["vit", "dinov2", "beit_absolute"])
def test_a_pretrained_grid_that_is_neither_square_nor_a_canvas_is_refused(name, tmp_path):
    folder = encoder_folder(tmp_path, name, image_size=[32, 48])
    with pytest.raises(UnsupportedPart, match="24 positions are not a square grid"):
        adapt_encoder(folder, (PANEL, 2 * PANEL))


# --- decoders ----------------------------------------------------------------------------------------------------

BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
DECODERS = {
    "gpt2": ("gpt2", {"n_embd": 48, "n_layer": 2, "n_head": 2}),
    "distilgpt2": ("gpt2", {"n_embd": 48, "n_layer": 1, "n_head": 2}),
    "gpt2_medium": ("gpt2", {"n_embd": 64, "n_layer": 4, "n_head": 16}),
    "bert": ("bert", BERT | {"max_position_embeddings": 64}),
    "bert_generation": ("bert-generation", BERT | {"max_position_embeddings": 64}),
    "roberta": ("roberta", BERT | {"max_position_embeddings": 64}),
}


def decoder_folder(folder, name: str) -> str:
    kind, sizes = DECODERS[name]
    if kind == "gpt2":
        return gpt2_folder(folder, **sizes)
    gpt2_folder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>"})
    tokenizer.bos_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    ids = {"pad_token_id": tokenizer.pad_token_id, "bos_token_id": None, "eos_token_id": None}
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), **ids, **sizes)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_is_built_trained_saved_and_loaded_as_a_stock_part(name, tmp_path):
    checkpoint = tiny_build("tiny", decoder_folder(tmp_path, name))
    learn(checkpoint)
    again = assert_stock_reload_is_bit_equal(checkpoint, tmp_path / "run")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run")
    for model in (checkpoint.model, again, load_checkpoint(str(tmp_path / "run")).model):
        decoder = model.decoder
        assert decoder.get_output_embeddings().weight is decoder.get_input_embeddings().weight, "tied"
        for config in (model.config, model.config.decoder, model.generation_config):
            assert config.pad_token_id == tokenizer.pad_token_id != tokenizer.eos_token_id == config.eos_token_id
            assert config.decoder_start_token_id == tokenizer.bos_token_id is not None


def test_a_decoder_saved_in_half_precision_is_trained_in_single(tmp_path):
    folder = decoder_folder(tmp_path / "whole", "gpt2")
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "half")
    assert {part.dtype for part in tiny_build("tiny", str(tmp_path / "half")).model.parameters()} == {torch.float32}


@pytest.mark.parametrize("name", ["llama", "opt", "mistral", "qwen2", "gpt_neo", "bloom", "t5", "distilbert"])
def test_a_decoder_without_cross_attention_is_one_clear_sentence(name, tmp_path):
    AutoConfig.for_model(name).save_pretrained(tmp_path)
    gpt2_folder(tmp_path / "tokenizer")
    AutoTokenizer.from_pretrained(tmp_path / "tokenizer").save_pretrained(tmp_path)
    with pytest.raises(UnsupportedPart, match="no cross-attention, so it cannot attend to the images; use GPT-2") as e:
        tiny_build("tiny", str(tmp_path))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("name", "most"), [("bert", 63), ("roberta", 62)])
def test_the_longest_text_that_fits_is_generated_and_a_longer_one_refused(name, most, tmp_path):
    decoder = decoder_folder(tmp_path, name)
    model = build("tiny", decoder, PANEL, texts=TEXTS, max_new_tokens=most).model
    pixels = torch.zeros(1, 3, PANEL, 2 * PANEL)
    assert model.generate(pixels, min_new_tokens=most).shape == (1, most + 1)
    with pytest.raises(UnsupportedPart, match=f"texts of {most + 1} tokens do not fit its {most + 1} positions"):
        build("tiny", decoder, PANEL, texts=TEXTS, max_new_tokens=most + 1)
