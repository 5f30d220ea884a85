"""Published checkpoints of one square image: read as they are, fed through their own image processor, and refused in
one line where the stock class cannot use them. Local folders of the commonest forms stand in for them."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
import torch
import transformers
from helpers import copy_folder, radiograph
from PIL import Image
from single_image import FORMS, SIDE, edit, published, stock_processor, stock_texts
from transformers import (
    BertGenerationDecoder,
    CvtConfig,
    CvtModel,
    RobertaConfig,
    RobertaForCausalLM,
    VisionEncoderDecoderModel,
)

import hf_cxr
from hf_cxr.cli.parser import main
from hf_cxr.data.prepared import load_prepared
from hf_cxr.inference.checks import UnusableCheckpoint, panel_size_of, panels_of
from hf_cxr.models.modeling import load_checkpoint

IMAGES, GENERATION = "preprocessor_config.json", "generation_config.json"


@pytest.fixture(scope="module", params=FORMS)
def folder(request, tmp_path_factory):
    return published(request.param, tmp_path_factory.mktemp("published") / request.param)


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    return published("swin", tmp_path_factory.mktemp("published") / "swin")


@pytest.fixture(scope="module")
def views(phantom_folder):
    """The frontal views of 24 studies, and what else they have."""
    rows = load_prepared(str(phantom_folder))["train"].select(range(60))
    return [row["frontal"] for row in rows if row["frontal"] is not None][:24]


def wide(seed: int) -> Image.Image:
    return Image.fromarray(radiograph(seed, 90, 120))


# --- texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 1}])
def test_a_single_view_gets_the_text_of_the_stock_class_on_its_own_image_processor(folder, views, options):
    images = [*views, wide(1), wide(2)]
    expected = stock_texts(folder, images, **options)
    assert len(set(expected)) > len(images) / 3, "else equal texts prove nothing"
    pipe = transformers.pipeline("cxr-impression", model=str(folder))
    answers = pipe([{"frontal": image} for image in images], batch_size=8, **options)
    assert [row["impression"] for [row] in answers] == expected
    assert [row["impression"] for [row] in hf_cxr.predict(folder, images[-4:], **options)] == expected[-4:]


def test_a_study_shows_its_frontal_view_and_the_lateral_one_where_it_has_no_other(folder):
    front, side = wide(3), wide(4)
    one, other = stock_texts(folder, [front, side])
    assert one != other
    pipe = transformers.pipeline("cxr-impression", model=str(folder))
    studies = [{"frontal": front, "lateral": side}, {"frontal": None, "lateral": side}, (front, side), front]
    assert [row["impression"] for [row] in pipe(studies)] == [one, other, one, one]
    [row] = pipe({"frontal": None, "lateral": None}, on_unreadable="skip")
    assert "at least one view" in row["error"]


def test_a_large_jpeg_is_decoded_in_full_as_its_image_processor_would_get_it(swin, tmp_path):
    path, grey = tmp_path / "f.jpg", np.kron(radiograph(5, 60, 70), np.ones((50, 50), np.uint8))
    Image.fromarray(grey).save(path)
    pipe = transformers.pipeline("cxr-impression", model=str(swin))
    pixels = pipe.preprocess({"frontal": str(path)})["pixel_values"]
    assert torch.equal(
        pixels, stock_processor(swin)(Image.open(path).convert("RGB"), return_tensors="pt").pixel_values
    )


def test_the_processor_gives_one_view_too(folder):
    processor = hf_cxr.ImpressionProcessor(stock_processor(folder), load_checkpoint(folder).tokenizer)
    batch = processor(frontal=[wide(1), None], lateral=[wide(2), wide(3)], return_tensors="pt")
    own = stock_processor(folder)([wide(1).convert("RGB"), wide(3).convert("RGB")], return_tensors="pt")
    assert torch.equal(batch["pixel_values"], own["pixel_values"])


def test_attention_is_laid_on_the_view_as_the_checkpoint_sees_it(folder):
    pipe = transformers.pipeline("cxr-impression", model=str(folder))
    [row] = pipe({"frontal": wide(1), "lateral": wide(2)}, return_attention="words", num_beams=1)
    assert list(row["attention"]) == ["frontal"]
    assert row["attention"]["frontal"].size == (SIDE, SIDE)
    assert bool(row["attention_words"]) == bool(row["impression"])
    seen = stock_processor(folder)(wide(1).convert("RGB"), do_normalize=False, do_rescale=False, return_tensors="np")
    laid, plain = np.asarray(row["attention"]["frontal"]), seen["pixel_values"][0].transpose(1, 2, 0)
    assert (np.abs(laid - plain).max(-1) < 1).any(), "where there is no attention, the view is what it was"
    [row] = pipe({"frontal": None, "lateral": wide(2)}, return_attention=True)
    assert list(row["attention"]) == ["lateral"]


# --- what published checkpoints lack -------------------------------------------------------------------------------


def test_a_length_that_nothing_names_is_the_stock_20_tokens_and_is_told_in_one_line(swin, tmp_path, caplog):
    folder = copy_folder(swin, tmp_path / "run")
    edit(folder / "config.json", max_length=None)
    with caplog.at_level(logging.WARNING):
        told = load_checkpoint(folder).model.generation_config
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("hf_cxr")]
    assert lines == ["nothing says how long a text of this checkpoint may be: 20 tokens"]
    assert told.max_new_tokens == 20
    images = [wide(seed) for seed in range(4)]
    pipe = transformers.pipeline("cxr-impression", model=str(folder))
    assert [row["impression"] for [row] in pipe(images)] == stock_texts(folder, images)


def test_a_length_beyond_the_positions_of_the_decoder_becomes_all_of_them(swin, tmp_path):
    folder = copy_folder(swin, tmp_path / "run")
    edit(folder / "config.json", max_length=512)
    assert load_checkpoint(folder).model.generation_config.max_new_tokens == 63


def test_positions_before_the_first_token_of_a_roberta_decoder_are_not_counted(swin, tmp_path):
    folder = copy_folder(swin, tmp_path / "run")
    own = load_checkpoint(swin).model
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    sizes |= {"vocab_size": 350, "max_position_embeddings": 66, "pad_token_id": 1}  # 64 of them behind the padding's
    decoder = RobertaForCausalLM(RobertaConfig(is_decoder=True, add_cross_attention=True, **sizes))
    VisionEncoderDecoderModel(encoder=own.encoder, decoder=decoder).save_pretrained(folder)
    settings = own.generation_config.to_dict() | {"max_length": 512, "max_new_tokens": None, "pad_token_id": 1}
    (folder / GENERATION).write_text(json.dumps(settings), encoding="utf-8")
    assert load_checkpoint(folder).model.generation_config.max_new_tokens == 63
    assert hf_cxr.predict(folder, wide(1))[0].keys() >= {"impression"}


def test_a_start_token_that_only_the_config_names_is_taken_from_it(swin, tmp_path):
    folder = copy_folder(swin, tmp_path / "run")
    before = load_checkpoint(folder).model.generation_config
    (folder / GENERATION).write_text(json.dumps({"max_length": 16}), encoding="utf-8")
    after = load_checkpoint(folder).model.generation_config
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id", "max_new_tokens"):
        assert getattr(after, name) == getattr(before, name) is not None, name


def test_a_padding_token_that_nothing_names_is_the_end_token(tmp_path):
    folder = published("gpt2", tmp_path / "run")
    texts = stock_texts(folder, [wide(1), wide(2)])
    for name in (GENERATION, "config.json"):
        edit(folder / name, pad_token_id=None)
    assert [row["impression"] for [row] in hf_cxr.predict(folder, [wide(1), wide(2)])] == texts


def test_an_image_processor_may_be_a_part_of_processor_config(swin, tmp_path):
    folder = copy_folder(swin, tmp_path / "run")
    own = json.loads((folder / IMAGES).read_text(encoding="utf-8")) | {"image_processor_type": "ViTImageProcessor"}
    (folder / IMAGES).unlink()
    with pytest.raises(FileNotFoundError, match=r"preprocessor_config\.json is missing"):
        load_checkpoint(folder)
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": own}), encoding="utf-8")
    assert panels_of(load_checkpoint(folder).image_processor) == 1


# --- what cannot work ----------------------------------------------------------------------------------------------


def refused(folder, image=None):
    """The one line of each face: a command, Python and the pipeline."""
    with pytest.raises(UnusableCheckpoint) as error:
        hf_cxr.predict(folder, image or wide(1))
    assert "\n" not in str(error.value)
    with pytest.raises(UnusableCheckpoint) as same:
        transformers.pipeline("cxr-impression", model=str(folder))
    assert str(same.value) == str(error.value)
    return str(error.value).removeprefix(f"{folder}: ")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"size": {"height": 48, "width": 72}}, "neither square nor twice as wide as high"),
        ({"size": {"shortest_edge": 48}}, "does not give an image of 48 × 48 numbers"),
        ({"size": {"height": 10**5, "width": 10**5}}, "a view of 2048 is the most"),
        ({"image_std": [0, 0, 0]}, "does not give an image of 48 × 48 numbers"),
    ],
)
def test_an_image_processor_that_gives_no_square_image_is_refused(swin, tmp_path, options, told):
    folder = copy_folder(swin, tmp_path / "run")
    edit(folder / IMAGES, **options)
    assert told in refused(folder)


def test_an_encoder_for_images_of_another_size_is_refused(tmp_path):
    folder = published("gpt2", tmp_path / "run")
    edit(folder / IMAGES, size={"height": 64, "width": 64})
    assert refused(folder).startswith("its 'vit' encoder does not read such an image (ValueError: ")


@pytest.mark.parametrize("hidden", [None, 32])
def test_an_encoder_that_gives_a_map_and_no_tokens_is_refused_with_the_reason(swin, tmp_path, hidden, capsys):
    """CvT's kind: the stock class cannot even be built, or, of a config that names a hidden size, not attend to it."""
    folder = copy_folder(swin, tmp_path / "run")
    config = CvtConfig(embed_dim=[8, 16, 32], depth=[1, 2, 3], num_heads=[1, 2, 2])
    config.hidden_size = 32
    encoder = CvtModel(config)
    decoder = BertGenerationDecoder(VisionEncoderDecoderModel.from_pretrained(folder).decoder.config)
    VisionEncoderDecoderModel(encoder=encoder, decoder=decoder).save_pretrained(folder)
    (folder / IMAGES).write_text(
        '{"feature_extractor_type": "ConvNextFeatureExtractor", "size": 48}', encoding="utf-8"
    )
    content = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    content["encoder"] |= {"hidden_size": hidden}
    if hidden is None:
        del content["encoder"]["hidden_size"]
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    wide(1).save(tmp_path / "f.png")
    capsys.readouterr()
    assert main(["predict", str(folder), "--frontal", str(tmp_path / "f.png")]) == 2
    told = "its 'cvt' encoder gives a map of features, not the sequence of tokens that the stock class attends to"
    assert capsys.readouterr().err.splitlines()[-1] == f"hf-cxr predict: {folder}: {told}"


def test_weights_that_no_text_depends_on_may_be_absent_and_others_may_not(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = published("gpt2", tmp_path / "run")  # without the encoder's pooler, and with one of another model
    load_checkpoint(folder)
    weights = load_file(folder / "model.safetensors")
    bias = torch.ones(1, 1, 4, 4)
    kept = weights | {
        "decoder.transformer.h.0.attn.bias": bias,
        "decoder.transformer.h.0.attn.masked_bias": bias.clone(),
    }
    for name, change in (("kept", kept), ("decoder.transformer.h.0.attn.c_attn.weight", None)):
        content = change or {key: one for key, one in weights.items() if key != name}
        save_file(content, folder / "model.safetensors", {"format": "pt"})
        if change:
            load_checkpoint(folder)
        else:
            with pytest.raises(UnusableCheckpoint, match=f"1 differ, as {name}"):
                load_checkpoint(folder)


# --- sizes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options", "panels", "size"),
    [
        ("ViT", {"size": 40}, 1, 40),
        ("ViT", {"size": {"height": 40, "width": 80}}, 2, 40),
        ("CLIP", {"size": {"shortest_edge": 44}, "crop_size": 40}, 1, 40),
        ("Donut", {"size": [40, 40]}, 1, 40),
        ("Bit", {"size": {"shortest_edge": 44}, "crop_size": {"height": 40, "width": 40}}, 1, 40),
    ],
)
def test_panels_and_their_size_are_read_from_any_image_processor(kind, options, panels, size):
    processor = getattr(transformers, f"{kind}ImageProcessorPil")(**options)
    assert (panels_of(processor), panel_size_of(processor)) == (panels, size)
    pixels = processor(Image.new("RGB", (60, 50)), return_tensors="np")["pixel_values"]
    assert pixels.shape == (1, 3, size, panels * size)
