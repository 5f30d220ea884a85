"""What is kept and what changes of a whole checkpoint that is continued."""

from __future__ import annotations

import pytest
import torch
from helpers import TEXTS, TINY_RECIPE, gpt2_folder, noise, run_cxr, tiny_checkpoint, vit_folder, write_config
from single_image import SIDE, published
from test_encoders import encoder_folder
from transformers import AutoModel, VisionEncoderDecoderModel

from hf_cxr.inference.sections import Layout, layout_of
from hf_cxr.models.encoders import UnsupportedPart
from hf_cxr.models.modeling import build, load_checkpoint
from hf_cxr.models.starting import init_from

REPORT = Layout(("findings", "impression"), ("indication",))


def loss_of(model, tokenizer) -> float:
    labels = tokenizer(TEXTS[:3], padding=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(pixel_values=noise(3), labels=labels).loss.item()


def test_a_run_of_our_own_goes_on_with_the_weights_tokenizer_and_loss_that_were_saved(run_folder):
    saved = VisionEncoderDecoderModel.from_pretrained(run_folder)
    begun, tokenizer = init_from(run_folder, 32), load_checkpoint(run_folder).tokenizer
    weights = begun.model.state_dict()
    assert weights.keys() == saved.state_dict().keys()
    assert all(torch.equal(weights[key], value) for key, value in saved.state_dict().items())
    assert begun.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert begun.tokenizer.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert begun.image_processor.to_dict() == load_checkpoint(run_folder).image_processor.to_dict()
    assert abs(loss_of(begun.model, tokenizer) - loss_of(saved, tokenizer)) < 1e-6
    assert "cxr_calibration" in saved.config.to_dict()
    assert "cxr_calibration" not in begun.model.config.to_dict(), "it was fitted to other weights"


def test_another_panel_size_resizes_the_positions_panel_by_panel_alone(tmp_path):
    tiny_checkpoint().save_pretrained(tmp_path)
    before, begun = load_checkpoint(tmp_path).model.state_dict(), init_from(tmp_path, 64)
    after = begun.model.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"encoder.embeddings.position_embeddings"}
    assert after["encoder.embeddings.position_embeddings"].shape[1] == 1 + 4 * 8
    assert begun.image_processor.size == {"height": 64, "width": 128}


def test_another_layout_adds_its_tokens_and_embeddings_and_keeps_the_others(tmp_path):
    tiny_checkpoint().save_pretrained(tmp_path)
    before, begun = load_checkpoint(tmp_path), init_from(tmp_path, 32, REPORT, 12)
    size = len(before.tokenizer)
    assert begun.tokenizer.convert_tokens_to_ids(REPORT.tokens) == [size, size + 1, size + 2]
    embeddings = begun.model.decoder.get_input_embeddings().weight
    assert len(embeddings) == size + 3 == begun.model.config.decoder.vocab_size
    assert torch.equal(embeddings[:size], before.model.decoder.get_input_embeddings().weight)
    assert layout_of(begun.model.config) == REPORT
    begun.save_pretrained(tmp_path / "again")
    assert len(init_from(tmp_path / "again", 32, REPORT, 12).tokenizer) == size + 3, "added once"
    with pytest.raises(UnsupportedPart, match=r"init_from .*: texts of 250 tokens behind a context of 66 do not fit"):
        init_from(tmp_path, 32, REPORT, 250)


def square(form: str, folder):
    if form != "dinov2":
        return published(form, folder)
    parts = encoder_folder(folder.parent / "encoder", "dinov2", SIDE), gpt2_folder(folder.parent / "gpt2", n_embd=48)
    made = build(*parts, SIDE, max_new_tokens=12)
    model = VisionEncoderDecoderModel(encoder=AutoModel.from_pretrained(parts[0]), decoder=made.model.decoder)
    ids = {"pad_token_id": made.tokenizer.pad_token_id, "eos_token_id": made.tokenizer.eos_token_id}
    model.config.update(ids | {"decoder_start_token_id": made.tokenizer.bos_token_id})
    model.generation_config.update(**ids, decoder_start_token_id=made.tokenizer.bos_token_id, max_length=16)
    model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    made.image_processor.size = {"height": SIDE, "width": SIDE}
    made.image_processor.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("form", ["gpt2", "swin", "bert", "dinov2"])
def test_a_checkpoint_of_one_square_image_is_tiled_trains_and_reports(form, tmp_path, phantom_folder):
    folder = square(form, tmp_path / "square")
    before, begun = load_checkpoint(folder), init_from(folder, SIDE, max_new_tokens=24)
    old, new = before.model.state_dict(), begun.model.state_dict()
    kept = [key for key in old if not key.startswith("encoder.")]
    assert any("enc_to_dec_proj" in key for key in kept) == (form == "dinov2")
    assert all(torch.equal(old[key], new[key]) for key in kept)
    own, now = before.model.generation_config, begun.model.generation_config
    assert own.decoder_start_token_id in (None, now.decoder_start_token_id)
    assert (own.eos_token_id, own.pad_token_id) == (now.eos_token_id, now.pad_token_id)
    assert begun.tokenizer.eos_token_id == now.eos_token_id
    assert begun.tokenizer.get_vocab() == before.tokenizer.get_vocab()
    assert begun.image_processor.image_mean == before.image_processor.image_mean
    if form == "gpt2":
        grid = new["encoder.embeddings.position_embeddings"][0, 1:].reshape(6, 12, -1)
        assert torch.equal(grid[:, :6].flatten(0, 1), old["encoder.embeddings.position_embeddings"][0, 1:])
    config = write_config(
        tmp_path / "config.yaml",
        **{**TINY_RECIPE, "panel_size": SIDE, "max_steps": 2, "init_from": str(folder)},
        dataset=str(phantom_folder),
        output_dir=str(tmp_path / "run"),
        findings_pretraining_epochs=0,
    )
    ran = run_cxr("train", config)
    assert ran.returncode == 0, ran.stderr
    assert f"Continues {folder}: encoder tiny and decoder tiny are ignored" in ran.stdout
    assert (tmp_path / "run" / "report.json").is_file()
    assert "square" in (tmp_path / "run" / "README.md").read_text(encoding="utf-8")


def test_what_cannot_be_continued_is_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        init_from(tmp_path / "nowhere", 32)
    with pytest.raises(ValueError, match="a checkpoint of type 'vit', not 'vision-encoder-decoder'"):
        init_from(vit_folder(tmp_path / "vit"), 32)
    folder = published("gpt2", tmp_path / "square")
    with pytest.raises(UnsupportedPart, match=r"init_from .*: its patch of 8 pixels does not divide the panel of 36"):
        init_from(folder, 36)
    for part in ("encoder", "decoder"):
        parts = {"encoder": "tiny", "decoder": "tiny", part: str(folder)}
        with pytest.raises(UnsupportedPart, match=f"{part} .*: is a whole checkpoint; use --init_from"):
            build(parts["encoder"], parts["decoder"], 32, texts=TEXTS)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        init_from(folder, SIDE)
