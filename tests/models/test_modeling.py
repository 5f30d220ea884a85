import json

import pytest
import torch
from helpers import TEXTS, gpt2_folder, tiny_checkpoint, vit_folder
from safetensors import safe_open
from test_encoders import decoder_folder
from transformers import (
    AutoModel,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    VisionEncoderDecoderModel,
    ViTModel,
)
from transformers.utils import is_torchvision_available, logging

from hf_cxr.inference.checks import panel_size_of
from hf_cxr.models.encoders import adapt_encoder
from hf_cxr.models.modeling import UnsupportedPart, adapt_decoder, build, load_checkpoint, weights_digest


def test_a_saved_checkpoint_reloads_bit_equal_with_stock_classes(tmp_path):
    checkpoint = tiny_checkpoint()
    checkpoint.save_pretrained(tmp_path)
    again = VisionEncoderDecoderModel.from_pretrained(tmp_path)
    ours, theirs = checkpoint.model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert panel_size_of(load_checkpoint(str(tmp_path)).image_processor) == 32


def test_the_decoder_keeps_its_embeddings_tied_and_one_copy_is_saved(tmp_path):
    checkpoint = tiny_checkpoint()
    checkpoint.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        keys = [key for key in file.keys() if key.endswith(("wte.weight", "lm_head.weight"))]  # noqa: SIM118
    assert len(keys) == 1
    decoder = load_checkpoint(str(tmp_path)).model.decoder
    assert decoder.lm_head.weight is decoder.transformer.wte.weight


def test_special_tokens_are_set_everywhere_and_pad_differs_from_eos(tmp_path):
    for decoder in ("tiny", gpt2_folder(tmp_path / "gpt2")):
        checkpoint = build("tiny", decoder, 32, texts=TEXTS, vocab_size=350)
        tokenizer, model = checkpoint.tokenizer, checkpoint.model
        assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
        for config in (model.config, model.generation_config, model.config.decoder):
            assert config.pad_token_id == tokenizer.pad_token_id
            assert config.eos_token_id == tokenizer.eos_token_id
            assert config.bos_token_id == tokenizer.bos_token_id
            assert config.decoder_start_token_id == tokenizer.bos_token_id
        assert model.decoder.get_input_embeddings().num_embeddings >= len(tokenizer)


def test_the_trained_tokenizer_writes_any_text_without_loss():
    tokenizer = tiny_checkpoint().tokenizer
    for text in (*TEXTS[:4], "Überweisung: 5th rib, T12 ≥ 1.2 cm\n(?)"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("panel_size", [64, 96])
def test_a_pretrained_position_grid_is_tiled_once_per_panel(tmp_path, panel_size):
    name = vit_folder(tmp_path / "vit", image_size=64)
    square = ViTModel.from_pretrained(name).embeddings.position_embeddings
    canvas = adapt_encoder(name, (panel_size, 2 * panel_size)).embeddings.position_embeddings
    rows = panel_size // 16
    grid = canvas[0, 1:].reshape(rows, 2 * rows, -1)
    left, right = grid[:, :rows], grid[:, rows:]
    assert torch.equal(canvas[0, 0], square[0, 0]), "the [CLS] position stays"
    if panel_size == 64:
        assert torch.equal(left.flatten(0, 1), square[0, 1:])
    offset = (right - left).flatten(0, 1)
    assert torch.allclose(offset, offset[:1].expand_as(offset), atol=1e-6), "one offset for the whole lateral panel"
    assert 0.005 < offset.std() < 0.05


def test_all_other_weights_of_a_pretrained_encoder_are_kept(tmp_path):
    name = vit_folder(tmp_path / "vit")
    before, after = AutoModel.from_pretrained(name).state_dict(), adapt_encoder(name, (64, 128)).state_dict()
    for key in before:
        assert "position_embeddings" in key or torch.equal(before[key], after[key]), key


def test_a_patch_that_does_not_divide_the_panel_is_one_clear_error(tmp_path):
    with pytest.raises(
        UnsupportedPart, match=r"patch of 16 pixels does not divide the panel of 50; use panel_size 48"
    ):
        build("tiny", "tiny", 50, texts=TEXTS)
    with pytest.raises(UnsupportedPart, match="does not divide"):
        build(vit_folder(tmp_path / "vit"), "tiny", 40, texts=TEXTS)


def test_a_decoder_without_cross_attention_is_one_clear_error(tmp_path):
    config = LlamaConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedPart, match="no cross-attention"):
        adapt_decoder(str(tmp_path))


def test_a_text_encoder_in_place_of_the_image_encoder_is_refused(tmp_path):
    config = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=99
    )
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(UnsupportedPart, match="does not take an image"):
        adapt_encoder(str(tmp_path), (32, 64))


def test_a_text_longer_than_the_decoder_can_hold_is_refused_before_training(tmp_path):
    with pytest.raises(UnsupportedPart, match="do not fit its 64 positions"):
        build("tiny", gpt2_folder(tmp_path / "gpt2", n_positions=64), 32, max_new_tokens=64)


def test_a_damaged_checkpoint_is_one_clear_error(tmp_path):
    tiny_checkpoint().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        load_checkpoint(str(tmp_path))


@pytest.mark.skipif(is_torchvision_available(), reason="shows what happens where torchvision is missing")
def test_without_torchvision_the_pillow_backend_is_chosen_and_not_fallen_back_to(tmp_path, caplog):
    tiny_checkpoint().save_pretrained(tmp_path)
    logging.enable_propagation()
    processor = load_checkpoint(str(tmp_path)).image_processor
    logging.disable_propagation()
    assert processor.backend == "pil"
    assert "torchvision" not in caplog.text


def test_no_path_of_the_machine_is_saved(tmp_path):
    checkpoint = build(vit_folder(tmp_path / "vit"), gpt2_folder(tmp_path / "gpt2"), 64)
    checkpoint.save_pretrained(tmp_path / "run")
    for file in (tmp_path / "run").glob("*.json"):
        assert str(tmp_path) not in json.dumps(json.loads(file.read_text())), file.name


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing"):
        load_checkpoint(str(tmp_path))
    vit_folder(tmp_path)
    with pytest.raises(ValueError, match="type 'vit'"):
        load_checkpoint(str(tmp_path))


@pytest.mark.parametrize("decoder", ["tiny", "gpt2", "bert"])
@pytest.mark.parametrize("asked", [None, 0.0, 0.25])
def test_a_decoder_has_the_dropout_that_is_asked_for(decoder, asked, tmp_path):
    given = decoder if decoder == "tiny" else decoder_folder(tmp_path, decoder)
    model = build("tiny", given, 32, texts=TEXTS, max_new_tokens=20, decoder_dropout=asked).model
    usual = 0.0 if decoder == "tiny" else 0.1
    parts = [part.p for part in model.decoder.modules() if isinstance(part, torch.nn.Dropout)]
    assert set(parts) == {usual if asked is None else asked}
    assert not [part for part in model.encoder.modules() if isinstance(part, torch.nn.Dropout) and part.p]


def test_weights_load_as_their_config_says_or_as_one_asks(tmp_path):
    checkpoint = tiny_checkpoint()
    checkpoint.save_pretrained(tmp_path / "single")
    checkpoint.model.to(torch.bfloat16)
    checkpoint.save_pretrained(tmp_path / "half")
    assert load_checkpoint(tmp_path / "single").model.dtype == torch.float32
    assert load_checkpoint(tmp_path / "half").model.dtype == torch.bfloat16
    assert load_checkpoint(tmp_path / "single", dtype="bfloat16").model.dtype == torch.bfloat16
    assert load_checkpoint(tmp_path / "half", dtype="float32").model.dtype == torch.float32


def test_the_digest_of_weights_is_that_of_their_content(tmp_path):
    assert weights_digest(tmp_path) is None
    assert weights_digest("user/name") is None
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"one")
    digest = weights_digest(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    file.touch()
    assert weights_digest(tmp_path) == digest
    file.write_bytes(b"two")
    assert weights_digest(tmp_path) != digest
