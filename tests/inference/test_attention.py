import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers
from helpers import ROOT, radiograph, tiny_checkpoint
from PIL import Image
from test_encoders import PANEL, SUPPORTED, decoder_folder, encoder_folder, tiny_build
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

import hf_cxr  # noqa: F401
from hf_cxr.inference.attention import COLOUR, cross_attention, overlay, overlays, text_map, word_maps
from hf_cxr.inference.attention import grid as grid_of

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


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_tokens_of_an_encoder_lie_on_the_map_as_on_the_canvas(name, tmp_path):
    """One place of the canvas is changed: the state that moves most is the one that a map shows there."""
    encoder = tiny_build(encoder_folder(tmp_path / name, name)).model.eval().encoder
    places = [(0, 0), (1, 5), (2, 2), (3, 7)]
    canvases = torch.zeros(1 + len(places), 3, PANEL, 2 * PANEL)
    for canvas, (row, column) in zip(canvases[1:], places, strict=True):
        canvas[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = 3.0
    with torch.inference_mode():
        states = encoder(canvases).last_hidden_state
    rows, before = grid_of(states.shape[1])
    assert rows == 4
    moved = (states[1:] - states[0]).norm(dim=-1)[:, before:]
    assert [divmod(int(place), 2 * rows) for place in moved.argmax(1)] == places


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


def test_passes_of_several_threads_do_not_disturb_each_other(checkpoint, monkeypatch):
    model, sequence = checkpoint.model.eval(), sequence_of(checkpoint.tokenizer)
    alone, usual = cross_attention(model, pixels(), sequence), model.decoder.config._attn_implementation
    forward, start = model.decoder.forward, threading.Barrier(3)

    def slow(*args, **kwargs):
        time.sleep(0.03)
        return forward(*args, **kwargs)

    def one(place: int) -> torch.Tensor:
        start.wait()
        time.sleep(0.01 * place)
        return cross_attention(model, pixels(), sequence)

    monkeypatch.setattr(model.decoder, "forward", slow)
    with ThreadPoolExecutor(3) as pool:
        assert all(torch.allclose(maps, alone, atol=1e-6) for maps in pool.map(one, range(3)))
    assert model.decoder.config._attn_implementation == usual


def test_padding_after_a_text_changes_none_of_its_maps(checkpoint):
    tokenizer = checkpoint.tokenizer
    sequence = torch.cat([sequence_of(tokenizer), torch.tensor([tokenizer.eos_token_id])])
    padded = torch.cat([sequence, torch.tensor([tokenizer.pad_token_id] * 3)])
    maps, more = (cross_attention(checkpoint.model.eval(), pixels(), tokens) for tokens in (sequence, padded))
    assert len(more) == len(padded)
    assert torch.allclose(maps, more[: len(maps)], atol=1e-6)
    assert torch.allclose(text_map(tokenizer, sequence, maps), text_map(tokenizer, padded, more), atol=1e-6)
    words, others = word_maps(tokenizer, sequence, maps), word_maps(tokenizer, padded, more)
    assert [word for word, _ in words] == [word for word, _ in others]
    for (_, own), (_, other) in zip(words, others, strict=True):
        assert torch.allclose(own, other, atol=1e-6)


def tokens_of_words(tokenizer, ids: list[int]) -> list[tuple[str, list[str]]]:
    one_each = torch.eye(len(ids))[:, None]
    return [
        (word, tokenizer.convert_ids_to_tokens([ids[int(place)] for place in own.flatten().nonzero()]))
        for word, own in word_maps(tokenizer, torch.tensor(ids), one_each)
    ]


def test_pieces_of_wordpiece_become_words_as_they_are_read():
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"small patient ' s heart cardio ##mega ##ly . ,".split()]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(cleanup=True)
    marks = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    marks["clean_up_tokenization_spaces"] = True  # as most BERTs on the Hub say
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **marks)
    ids = tokenizer.convert_tokens_to_ids(["[CLS]", *"patient ' s heart , cardio ##mega ##ly .".split(), "[SEP]"])
    assert tokens_of_words(tokenizer, ids) == [
        ("patient's", ["patient", "'", "s"]),
        ("heart,", ["heart", ","]),
        ("cardiomegaly.", ["cardio", "##mega", "##ly", "."]),
    ]


def test_whatever_tokens_are_written_the_words_are_those_of_the_text(tmp_path):
    """Bytes that make no letter, white space, and marks that are left out of the text, in any order."""
    tokenizer = tiny_build("tiny", decoder_folder(tmp_path, "bert")).tokenizer
    draw = np.random.default_rng(0)
    for _ in range(300):
        ids = draw.integers(0, len(tokenizer), draw.integers(1, 14)).tolist()
        words = tokenizer.decode(ids, skip_special_tokens=True).split()
        assert [word for word, _ in tokens_of_words(tokenizer, ids)] == words
    unseen = next(
        token
        for token in range(len(tokenizer))
        if token not in tokenizer.all_special_ids and not tokenizer.decode([token], skip_special_tokens=True)
    )
    assert tokens_of_words(tokenizer, [unseen, *tokenizer.encode("No", add_special_tokens=False)]) == [("No", ["No"])]


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
    """Attention in the middle of the panel's top row; a wide view leaves the panel's top and bottom empty."""
    view, heat = Image.new("L", size, 100), np.zeros((8, 8))
    heat[0, 3:5] = 1.0
    pixels = np.asarray(overlay(view, heat, heat.mean())).astype(int)
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
    assert (np.asarray(drawn["lateral"])[..., 0] > 120).all()


def drawn_on(checkpoint, frontal: list[float], lateral: list[float] | None) -> list[float]:
    """How much redder each quarter of the views is for a text whose attention is that of the cells given."""
    cells = torch.tensor([frontal, lateral or [0.0] * 4]).reshape(2, 2, 2)
    sequence, maps = sequence_of(checkpoint.tokenizer), torch.cat(list(cells), dim=1)[None].expand(20, 2, 4)
    views = {"frontal": Image.new("L", (80, 80), 100)} | (
        {"lateral": Image.new("L", (80, 80), 100)} if lateral else {}
    )
    drawn = overlays(checkpoint.tokenizer, sequence, maps[: len(sequence)], views)["attention"]
    images = [np.asarray(image)[..., 0].astype(float) - 100 for image in drawn.values()]
    return [half.mean() for image in images for row in np.split(image, 2) for half in np.split(row, 2, axis=1)]


def test_a_flat_map_colours_nothing_and_a_peaked_one_its_peak(checkpoint):
    flat = drawn_on(checkpoint, [0.100, 0.101, 0.099, 0.100], [0.1, 0.1, 0.1, 0.1])
    assert max(flat) < 1
    peaked = drawn_on(checkpoint, [0.01, 0.01, 0.01, 0.9], [0.01, 0.01, 0.01, 0.01])
    assert peaked[3] > 60
    assert max(peaked[0], *peaked[4:]) < 5
    assert max(drawn_on(checkpoint, [0.1, 0.1, 0.1, 0.1], None)) < 1, "the empty panel is not counted"


def test_both_views_of_a_text_share_one_scale(checkpoint):
    two, three = drawn_on(checkpoint, [2.0] * 4, [0.0] * 4), drawn_on(checkpoint, [3.0, 3.0, 0.0, 0.0], [2.0, 0, 0, 0])
    assert two[0] == pytest.approx(0.7 * 155 / 3, rel=0.05), (
        "twice uniform attention: a third of the way to four times"
    )
    assert two[4:] == [0] * 4
    assert three[0] > three[4] > 0


def test_each_text_of_a_study_has_maps_of_its_own(run_folder):
    pipe = transformers.pipeline("cxr-impression", model=str(run_folder))
    inputs = pipe.preprocess({"frontal": radiograph(1)}, keep_views=True)
    outputs = pipe._forward(inputs, return_attention=True, num_beams=3, num_return_sequences=2)
    for place in (0, 1):
        sequence = outputs["sequences"][0, place]
        assert torch.equal(outputs["maps"][0, place], cross_attention(pipe.model, inputs["pixel_values"], sequence))
    assert not torch.equal(outputs["maps"][0, 0], outputs["maps"][0, 1])


def test_overlays_run_the_encoder_once_however_many_texts(run_folder):
    pipe, encoded = transformers.pipeline("cxr-impression", model=str(run_folder)), []
    pipe.model.encoder.register_forward_pre_hook(lambda *_: encoded.append(1))
    pipe({"frontal": radiograph(1)}, return_attention="words", num_beams=3, num_return_sequences=3)
    assert len(encoded) == 1


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
                for view, image in other["attention"].items():
                    assert abs(np.asarray(image).astype(int) - np.asarray(row["attention"][view])).max() <= 1
    with pytest.raises(ValueError, match="return_attention is True, False or 'words'"):
        pipe(studies[0], return_attention="yes")


def test_a_region_of_the_benchmark_is_where_the_finding_is_drawn(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import attention as benchmark

    from hf_cxr.data.sources import phantom

    cases = (phantom.plan(0, index) for index in range(2000))
    case = next(case for case in cases if case.tags == ("left pleural effusion",) and len(case.views) == 2)
    mask, covered = benchmark.region_of(f"phantom-0-{case.index:06d}", "pleural effusion", 64)
    assert covered.all()
    frontal = mask[:, :64]
    rows, columns = np.nonzero(frontal)
    assert columns.mean() > 34, "the patient's left is on the right of the image"
    assert rows.mean() > 34, "an effusion lies at the base"
    nothing, _ = benchmark.region_of(f"phantom-0-{case.index:06d}", "nodule", 64)
    assert not nothing.any()


def sample_of(benchmark, region, heat, covered=1.0, tags=("right nodule",), uid="u"):
    mask = np.zeros((4, 8), dtype=bool)
    covered = np.broadcast_to(covered, region.shape)
    return benchmark.Sample(uid, "nodule", frozenset(tags), "", "nodule", region, covered, heat, mask)


def test_the_benchmark_takes_what_is_stated_on_exactly_its_sides(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from attention import rightly_stated

    tags = ["left nodule", "right pleural effusion", "cardiomegaly", "edema"]
    assert rightly_stated(tags, "Left lung nodule. Cardiomegaly. Left pleural effusion.") == {
        "nodule": {"left nodule"},
        "cardiomegaly": {"cardiomegaly"},
    }
    assert rightly_stated(tags, "Bilateral pleural effusions.") == {}
    assert rightly_stated(tags, "No nodule. Pneumothorax.") == {}


def test_the_control_of_the_benchmark_is_the_attention_of_other_studies_alone(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import attention as benchmark

    region, inside, outside = np.zeros((2, 4)), np.zeros((2, 4)), np.zeros((2, 4))
    region[0, 0] = inside[0, 0] = outside[1, 3] = 1.0
    own = sample_of(benchmark, region, outside)
    same, other = sample_of(benchmark, region, inside), sample_of(benchmark, region, outside, tags=("left nodule",))
    whole = slice(None)
    assert own.ratio(own.heat) == 0
    assert benchmark.control(own, [own, same, other], whole) == pytest.approx((8 + 0) / 2)
    assert benchmark.control(own, [own, same, other], whole, same_sides=True) == pytest.approx(8)
    half = sample_of(benchmark, region, inside, covered=[1, 1, 0, 0])
    assert np.isnan(benchmark.control(own, [own, half], whole)), "a study that lacks a view says nothing of it"


def test_the_interval_of_the_benchmark_draws_studies(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from attention import told

    assert told(np.array([0.0, 2.0] * 50 + [np.nan]), ["one"] * 101) == "1.00 [1.00, 1.00]"
    low, high = map(float, told(np.array([0.0, 2.0] * 50), list(map(str, range(100))))[6:-1].split(","))
    assert 0.7 < low < 0.9 < 1.1 < high < 1.3


def test_the_ratio_of_the_benchmark_is_one_for_even_attention(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import attention as benchmark

    region, covered = np.zeros((2, 4)), np.ones((2, 4))
    region[0, 0], covered[:, 2:] = 0.5, 0.0
    sample = sample_of(benchmark, region, np.ones((2, 4)), covered)
    assert sample.ratio(sample.heat) == pytest.approx(1)
    heat = np.zeros((2, 4))
    heat[0, 0] = 1
    assert sample.ratio(heat) == pytest.approx(0.5 / (0.5 / 4))
    assert np.isnan(sample.ratio(heat, slice(2, 4)))
