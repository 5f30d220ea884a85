"""What is kept and what changes of a whole checkpoint that is continued."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import TEXTS, TINY_RECIPE, gpt2_folder, noise, run_cxr, tiny_checkpoint, vit_folder, write_config
from huggingface_hub import constants
from safetensors.torch import load_file
from single_image import SIDE, edit, published
from test_encoders import encoder_folder
from transformers import AutoModel, CvtConfig, VisionEncoderDecoderModel

from hf_cxr.config import parse_arguments
from hf_cxr.data.prepared import load_prepared
from hf_cxr.inference.checks import UnusableCheckpoint
from hf_cxr.inference.sections import Layout, layout_of
from hf_cxr.models.encoders import UnsupportedPart
from hf_cxr.models.modeling import build, load_checkpoint
from hf_cxr.models.starting import init_from
from hf_cxr.training.beginning import identity, start_or_resume
from hf_cxr.training.checks import check_feasible
from hf_cxr.training.run import train

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
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit(folder / "config.json", encoder=CvtConfig().to_dict())
    with pytest.raises(UnusableCheckpoint, match="its 'cvt' encoder gives a map of features, not the sequence of tok"):
        init_from(folder, SIDE)
    edit(folder / "config.json", encoder=config["encoder"])
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
        init_from(folder, SIDE)


# --- runs that begin from one -------------------------------------------------------------------------------------


@pytest.fixture
def parent(tmp_path) -> Path:
    """It knows other texts than the dataset's."""
    tiny_checkpoint(max_new_tokens=24).save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


def arguments(folder: Path, dataset: Path, parent: Path, **values):
    values = (
        TINY_RECIPE | {"dataset": str(dataset), "output_dir": str(folder / "run"), "init_from": str(parent)} | values
    )
    return parse_arguments(write_config(folder / "config.yaml", **values))


def test_a_run_goes_on_from_another_on_other_studies_through_findings_adapters_and_dropout(
    parent, phantom_folder, tmp_path
):
    options = {"findings_pretraining_epochs": 1, "lora_rank": 2, "decoder_dropout": 0.2, "max_steps": 2}
    train(*arguments(tmp_path, phantom_folder, parent, **options, learning_rate=0.01))
    run, before = load_checkpoint(tmp_path / "run"), load_file(parent / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert after.keys() == before.keys(), "adapters are merged"
    assert run.tokenizer.get_vocab() == load_checkpoint(parent).tokenizer.get_vocab(), "not trained on the new texts"
    assert run.model.config.decoder.attn_pdrop == run.model.config.decoder.resid_pdrop == 0.2
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert any(key.startswith("encoder.") for key in changed)
    assert any(key.startswith("decoder.") for key in changed)
    assert "decoder.transformer.wte.weight" not in changed, "an adapter leaves the embeddings of the parent"
    told = load_file(tmp_path / "run" / "findings_encoder" / "model.safetensors")
    assert any(not torch.equal(before[f"encoder.{key}"], value) for key, value in told.items())
    report = json.loads((tmp_path / "run" / "report.json").read_text(encoding="utf-8"))
    assert report["n"] == len(load_prepared(str(phantom_folder))["test"])


def test_dropout_that_a_config_names_acts_in_the_decoder_that_is_continued(parent):
    plain, dropping = (init_from(parent, 32, decoder_dropout=p).model.train() for p in (None, 0.5))
    ids, pixels = torch.arange(3, 12)[None], noise(1)
    for model, same in ((plain, True), (dropping, False)):
        one, other = (model(pixel_values=pixels, decoder_input_ids=ids).logits for _ in range(2))
        assert torch.equal(one, other) == same


def test_a_run_resumes_from_its_parent_as_it_was_alone(parent, phantom_folder, tmp_path):
    dataset = load_prepared(str(phantom_folder))
    kit, args = arguments(tmp_path, phantom_folder, parent, resume=True)
    kit.resume = False
    begun = identity(kit, args, dataset, Layout())
    assert start_or_resume(kit, args, begun) == "impressions"
    kit.resume = True
    assert start_or_resume(kit, args, identity(kit, args, dataset, Layout())) == "impressions"
    tiny = build("tiny", "tiny", 32, texts=TEXTS, vocab_size=350, max_new_tokens=24)  # other weights
    tiny.save_pretrained(parent)
    with pytest.raises(ValueError, match=r"cannot resume with other arguments \(init_from_sha256 \w+ → \w+"):
        start_or_resume(kit, args, identity(kit, args, dataset, Layout()))


def test_a_run_does_not_resume_with_another_tokenizer_of_its_parent(parent, phantom_folder, tmp_path):
    dataset = load_prepared(str(phantom_folder))
    kit, args = arguments(tmp_path, phantom_folder, parent)
    start_or_resume(kit, args, identity(kit, args, dataset, Layout()))
    kit.resume = True
    tokenizer = json.loads((parent / "tokenizer.json").read_text(encoding="utf-8"))
    edit(parent / "tokenizer.json", model=tokenizer["model"] | {"merges": tokenizer["model"]["merges"][1:]})
    with pytest.raises(ValueError, match=r"other arguments \(init_from_tokenizer_sha256 \w+ → \w+\)"):
        start_or_resume(kit, args, identity(kit, args, dataset, Layout()))


def test_a_run_does_not_resume_where_the_repository_of_its_parent_has_moved(
    parent, phantom_folder, tmp_path, monkeypatch
):
    dataset, hub = load_prepared(str(phantom_folder)), tmp_path / "hub" / "models--user--parent"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub.parent))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for commit in ("a" * 40, "b" * 40):
        shutil.copytree(parent, hub / "snapshots" / commit)
    (hub / "refs").mkdir()
    (hub / "refs" / "main").write_text("a" * 40)
    kit, args = arguments(tmp_path, phantom_folder, "user/parent")
    start_or_resume(kit, args, identity(kit, args, dataset, Layout()))
    kit.resume = True
    assert start_or_resume(kit, args, identity(kit, args, dataset, Layout())) == "impressions"
    (hub / "refs" / "main").write_text("b" * 40)
    with pytest.raises(ValueError, match=r"other arguments \(init_from_commit a{40} → b{40}\)"):
        start_or_resume(kit, args, identity(kit, args, dataset, Layout()))


def test_a_run_that_began_before_targets_and_context_were_arguments_resumes(parent, phantom_folder, tmp_path):
    dataset = load_prepared(str(phantom_folder))
    kit, args = arguments(tmp_path, phantom_folder, parent, init_from=None)
    new = {"init_from", "target", "context", "context_dropout"}
    start_or_resume(kit, args, identity(kit, args, dataset, Layout()))
    begun = json.loads((tmp_path / "run" / "progress.json").read_text(encoding="utf-8"))["config"]
    assert not new & set(begun), "as an earlier version wrote it"
    said = {"init_from": None, "target": "impression", "context": [], "context_dropout": 0.0, "resume": True}
    kit, args = arguments(tmp_path, phantom_folder, parent, **said)
    assert start_or_resume(kit, args, identity(kit, args, dataset, Layout())) == "impressions"
    kit, args = arguments(tmp_path, phantom_folder, parent, **said | {"target": "findings"})
    with pytest.raises(ValueError, match="target not set → findings"):
        start_or_resume(kit, args, identity(kit, args, dataset, Layout(("findings",))))


def test_a_run_begins_from_one_place_that_it_does_not_empty(parent, phantom_folder, tmp_path):
    dataset = load_prepared(str(phantom_folder))
    kit, args = arguments(tmp_path, phantom_folder, parent, resume_from_checkpoint=str(parent))
    with pytest.raises(ValueError, match="init_from or resume_from_checkpoint: a run begins from one of them"):
        check_feasible(dataset, kit, args)
    for inside in ("run", "run/checkpoint-5"):
        shutil.copytree(parent, tmp_path / inside, dirs_exist_ok=True)
        (tmp_path / inside / "complete").touch()
        kit, args = arguments(tmp_path, phantom_folder, tmp_path / inside, restart=True)
        with pytest.raises(ValueError, match=rf"^init_from: \S+{inside} lies in the output_dir, which is emptied"):
            start_or_resume(kit, args, identity(kit, args, dataset, Layout()))
        assert (tmp_path / inside / "model.safetensors").is_file()
