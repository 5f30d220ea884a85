import numpy as np
import pytest
import torch
import transformers
from helpers import ROOT, radiograph, tiny_checkpoint
from PIL import Image
from test_encoders import PANEL, SUPPORTED, decoder_folder, encoder_folder, tiny_build

import hf_cxr  # noqa: F401
from hf_cxr.attention import COLOUR, cross_attention, overlay, overlays, text_map, word_maps

TEXT = "Small right pleural effusion."


@pytest.fixture(scope="module")
def checkpoint():
    return tiny_checkpoint()


def pixels(size: int = 32) -> torch.Tensor:
    return torch.randn(1, 3, size, 2 * size, generator=torch.Generator().manual_seed(0))


def sequence_of(tokenizer, text: str = TEXT) -> torch.Tensor:
    return torch.tensor([tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False).input_ids])


@pytest.mark.parametrize("name", ["vit", "deit", "ijepa", "dinov2_registers", "swin", "hiera"])
def test_every_kind_of_encoder_gives_maps_of_the_canvas(name, tmp_path):
    checkpoint = tiny_build(encoder_folder(tmp_path / name, name))
    checkpoint.model.eval()
    maps = cross_attention(checkpoint.model, pixels(PANEL), torch.tensor([1, 5, 6, 7]))
    assert maps.shape[0] == 4
    assert maps.shape[2] == 2 * maps.shape[1]
    assert maps.min() >= 0
    assert maps[0].sum() == 0, "nobody chose the start token"
    total = maps[1:].sum((1, 2))
    bare = name in ("swin", "hiera", "ijepa")  # no class or register token takes a share
    assert torch.allclose(total, torch.ones(3), atol=1e-5) if bare else (total < 1).all()
    assert SUPPORTED[name]


@pytest.mark.parametrize("name", ["bert", "roberta"])
def test_decoders_of_the_bert_kind_give_maps(name, tmp_path):
    checkpoint = tiny_build("tiny", decoder_folder(tmp_path / name, name))
    maps = cross_attention(checkpoint.model.eval(), pixels(PANEL), torch.tensor([1, 5, 6]))
    assert maps.shape[0] == 3
    assert (maps[1:].sum((1, 2)) > 0).all()


def test_a_token_is_chosen_by_what_stands_before_it(checkpoint):
    """Map t may depend on tokens before t alone, and has to depend on token t − 1."""
    model, sequence = checkpoint.model.eval(), sequence_of(checkpoint.tokenizer)
    before = cross_attention(model, pixels(), sequence)
    for changed in range(1, len(sequence) - 1):
        other = sequence.clone()
        other[changed] = (other[changed] + 7) % 300 + 4
        after = cross_attention(model, pixels(), other)
        assert torch.equal(before[: changed + 1], after[: changed + 1])
        assert not torch.allclose(before[changed + 1], after[changed + 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("cell", [(0, 0), (1, 3), (0, 2)])
def test_what_the_decoder_attends_to_lights_up_in_its_place(checkpoint, cell, monkeypatch):
    """The encoder is made to shout at one cell of the grid, and the decoder to listen to loudness."""
    model, row, column = checkpoint.model.eval(), *cell
    usual = model.encoder.forward

    def shout(*args, **kwargs):
        output = usual(*args, **kwargs)
        output.last_hidden_state = torch.zeros_like(output.last_hidden_state)
        output.last_hidden_state[:, 1 + row * 4 + column] = 50.0
        return output

    monkeypatch.setattr(model.encoder, "forward", shout)
    block = model.decoder.transformer.h[-1].crossattention
    width = block.embed_dim
    for part, value in ((block.q_attn.weight, 0.0), (block.q_attn.bias, 1.0)):
        monkeypatch.setattr(part, "data", torch.full_like(part, value))
    keys = block.c_attn.weight.detach().clone()
    keys[:, :width] = 1.0
    monkeypatch.setattr(block.c_attn.weight, "data", keys)
    maps = cross_attention(model, pixels(), sequence_of(checkpoint.tokenizer))
    assert maps.shape[1:] == (2, 4)
    assert (maps[1:, row, column] > 0.9).all()


def test_the_decoder_computes_as_before_afterwards_also_after_an_error(checkpoint):
    model = checkpoint.model.eval()
    usual = model.decoder.config._attn_implementation
    assert usual != "eager"
    cross_attention(model, pixels(), sequence_of(checkpoint.tokenizer))
    assert model.decoder.config._attn_implementation == usual
    with pytest.raises(IndexError):
        cross_attention(model, pixels(), torch.tensor([1, 10**6, 2]))
    assert model.decoder.config._attn_implementation == usual


def test_tokens_become_words_and_special_ones_none(checkpoint):
    tokenizer = checkpoint.tokenizer
    sequence = sequence_of(tokenizer, "Small right pleural effusion, ﬁnæl.")
    sequence = torch.cat([sequence, torch.tensor([tokenizer.eos_token_id, tokenizer.pad_token_id])])
    maps = torch.arange(len(sequence)).float()[:, None, None].expand(-1, 2, 4)
    words = word_maps(tokenizer, sequence, maps)
    assert [word for word, _ in words] == ["Small", "right", "pleural", "effusion,", "ﬁnæl."]
    spans = []
    for word, _ in words:
        spans.append(len(tokenizer(word if not spans else f" {word}", add_special_tokens=False).input_ids))
    ends = 1 + np.cumsum(spans)
    expected = [(end - span + end - 1) / 2 for end, span in zip(ends, spans, strict=True)]
    assert [float(own[0, 0]) for _, own in words] == pytest.approx(expected)
    assert float(text_map(tokenizer, sequence, maps)[0, 0]) == pytest.approx(sum(range(1, ends[-1])) / (ends[-1] - 1))


def test_an_empty_text_has_no_words_and_an_empty_map(checkpoint):
    sequence = torch.tensor([checkpoint.tokenizer.bos_token_id, checkpoint.tokenizer.eos_token_id])
    maps = torch.ones(2, 2, 4)
    assert word_maps(checkpoint.tokenizer, sequence, maps) == []
    assert text_map(checkpoint.tokenizer, sequence, maps).sum() == 0
    views = {"frontal": Image.new("L", (8, 8), 100)}
    drawn = overlays(checkpoint.tokenizer, sequence, maps, views, words=True)
    assert np.asarray(drawn["attention"]["frontal"]).tolist() == np.full((8, 8, 3), 100).tolist()


@pytest.mark.parametrize(("size", "shown"), [((40, 80), True), ((80, 40), False), ((80, 80), True)])
def test_an_overlay_lies_where_the_view_lies_on_its_panel(size, shown):
    """Heat in the middle of the panel's top row; a wide view leaves the panel's top and bottom empty."""
    view, heat = Image.new("L", size, 100), np.zeros((8, 8))
    heat[0, 3:5] = 1.0
    pixels = np.asarray(overlay(view, heat, 1.0)).astype(int)
    assert pixels.shape == (size[1], size[0], 3)
    coloured = abs(pixels - 100).max(2) > 20
    assert coloured.any() == shown
    if shown:
        middle = size[0] // 2
        assert coloured[:5, middle - 5 : middle + 5].all()
        assert not coloured[20:].any()
        assert not coloured[:, : middle - 20].any()
        assert pixels[0, middle, 0] > pixels[0, middle, 2], f"drawn in {COLOUR}"


def test_a_large_view_gives_an_overlay_of_a_handy_size():
    assert overlay(Image.new("L", (2000, 1000)), np.ones((4, 4)), 1.0).size == (512, 256)


def test_each_half_of_a_map_lies_on_its_view_however_faint(checkpoint):
    sequence, maps = sequence_of(checkpoint.tokenizer), torch.zeros(20, 2, 4)
    maps[:, :, 2:] = 0.001
    views = {"frontal": Image.new("L", (8, 8), 100), "lateral": Image.new("L", (8, 8), 100)}
    drawn = overlays(checkpoint.tokenizer, sequence, maps[: len(sequence)], views)["attention"]
    assert np.asarray(drawn["frontal"]).tolist() == np.full((8, 8, 3), 100).tolist()
    assert (np.asarray(drawn["lateral"])[..., 0] > 180).all()


def test_each_text_of_a_study_has_maps_of_its_own(run_folder):
    pipe = transformers.pipeline("cxr-impression", model=str(run_folder))
    inputs = pipe.preprocess({"frontal": radiograph(1)}, keep_views=True)
    outputs = pipe._forward(inputs, return_attention=True, num_beams=3, num_return_sequences=2)
    for place in (0, 1):
        sequence = outputs["sequences"][0, place]
        assert torch.equal(outputs["maps"][0, place], cross_attention(pipe.model, inputs["pixel_values"], sequence))
    assert not torch.equal(outputs["maps"][0, 0], outputs["maps"][0, 1])


def test_the_pipeline_lays_attention_on_the_views_of_each_study(run_folder):
    pipe = transformers.pipeline("cxr-impression", model=str(run_folder))
    studies = [
        {"frontal": radiograph(1), "lateral": radiograph(2, 60, 90)},
        {"frontal": None, "lateral": radiograph(3)},
        {"frontal": radiograph(4)},
    ]
    alone = [pipe(study, return_attention="words", num_beams=2, num_return_sequences=2) for study in studies]
    assert [set(rows[0]["attention"]) for rows in alone] == [{"frontal", "lateral"}, {"lateral"}, {"frontal"}]
    assert alone[0][0]["attention"]["lateral"].size == (90, 60)
    for rows in alone:
        for row in rows:
            assert " ".join(word for word, _ in row["attention_words"]) == " ".join(row["impression"].split())
    for size in (2, 3):
        batched = pipe(studies, return_attention=True, num_beams=2, num_return_sequences=2, batch_size=size)
        for rows, others in zip(alone, batched, strict=True):
            for row, other in zip(rows, others, strict=True):
                assert set(other) == {"impression", "score", "attention"}
                for view, picture in other["attention"].items():
                    assert abs(np.asarray(picture).astype(int) - np.asarray(row["attention"][view])).max() <= 1
    with pytest.raises(ValueError, match="return_attention is True, False or 'words'"):
        pipe(studies[0], return_attention="yes")


def test_a_region_of_the_benchmark_is_where_the_finding_is_drawn(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import attention as benchmark

    from hf_cxr.sources import phantom

    cases = (phantom.plan(0, index) for index in range(2000))
    case = next(case for case in cases if case.tags == ("left pleural effusion",) and len(case.views) == 2)
    mask, covered = benchmark.region_of(f"phantom-0-{case.index:06d}", "pleural effusion", 64)
    assert covered.all()
    frontal = mask[:, :64]
    rows, columns = np.nonzero(frontal)
    assert columns.mean() > 34, "the patient's left is on the right of the picture"
    assert rows.mean() > 34, "an effusion lies at the base"
    nothing, _ = benchmark.region_of(f"phantom-0-{case.index:06d}", "nodule", 64)
    assert not nothing.any()


def test_the_ratio_of_the_benchmark_is_one_for_even_attention(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import attention as benchmark

    region, covered = np.zeros((2, 4)), np.ones((2, 4))
    region[0, 0], covered[:, 2:] = 0.5, 0.0
    sample = benchmark.Sample("u", "nodule", region, covered, np.ones((2, 4)), np.zeros((4, 8), dtype=bool))
    assert sample.ratio(sample.heat) == pytest.approx(1)
    heat = np.zeros((2, 4))
    heat[0, 0] = 1
    assert sample.ratio(heat) == pytest.approx(0.5 / (0.5 / 4))
    assert np.isnan(sample.ratio(heat, slice(2, 4)))
