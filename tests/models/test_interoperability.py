"""A checkpoint writes the same texts in other ways to run it: static cache, torch.compile, half precision.

Texts have to differ from study to study, or equal texts would prove nothing; the weights are scaled until they do.
"""

from __future__ import annotations

import pytest
import torch
from helpers import STUDIES, bert_checkpoint, noise, radiograph, talkative, tiny_checkpoint
from transformers import AutoModelForImageTextToText, VisionEncoderDecoderModel, pipeline

from hf_cxr.models.modeling import Checkpoint


def texts(model, batch: int, **options) -> list[list[int]]:
    """The tokens of every study up to the end of its text. It may begin with the end token, as GPT-2's do."""
    end = model.generation_config.eos_token_id
    rows = [row for part in noise().split(batch) for row in model.generate(part, **options).tolist()]
    return [row[: row.index(end, 1) + 1] if end in row[1:] else row for row in rows]


@pytest.fixture(scope="module")
def gpt2() -> Checkpoint:
    return talkative(tiny_checkpoint())


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Checkpoint:
    return talkative(bert_checkpoint(tmp_path_factory.mktemp("bert")))


def differ_from_study_to_study(rows: list[list[int]]) -> bool:
    return len(set(map(tuple, rows))) > STUDIES / 2 and len(set(map(len, rows))) > 1


# --- static cache, torch.compile ---------------------------------------------------------------------------------


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("decoder", ["gpt2", "bert"])
def test_a_static_cache_writes_the_same_tokens(decoder, beams, request):
    model = request.getfixturevalue(decoder).model
    for batch in (1, 3):  # three rows, and two in the last
        expected = texts(model, batch, num_beams=beams)
        assert differ_from_study_to_study(expected)
        assert texts(model, batch, num_beams=beams, cache_implementation="static") == expected


@pytest.mark.slow
@pytest.mark.parametrize(("decoder", "graphs", "breaks"), [("gpt2", 2, False), ("bert", 4, True)])
def test_a_compiled_decoder_with_a_static_cache_writes_the_same_tokens(decoder, graphs, breaks, request, monkeypatch):
    """With the real compiler, greedy and by beams: both have eight rows, so both run the same graphs, one for the
    first step and one for the later ones. BERT's have a break, where it reads the length of the past."""
    from torch._dynamo.utils import counters
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("torch.compile needs a C++ compiler, and none is here")
    model = request.getfixturevalue(decoder).model
    ways = [(STUDIES, 1), (STUDIES // 4, 4)]
    expected = [texts(model, batch, num_beams=beams) for batch, beams in ways]
    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(model.decoder, "forward", torch.compile(model.decoder.forward))
    found = [texts(model, batch, num_beams=beams, cache_implementation="static") for batch, beams in ways]
    assert found == expected
    assert all(map(differ_from_study_to_study, expected))
    assert counters["stats"]["unique_graphs"] == graphs
    assert bool(counters["graph_break"]) is breaks


# --- stock classes, half precision -------------------------------------------------------------------------------


def test_weights_are_safetensors_and_stock_classes_load_them(gpt2, tmp_path):
    gpt2.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".safetensors", ".bin", ".pt", ".pkl")] == [
        "model.safetensors"
    ]
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert type(model) is VisionEncoderDecoderModel
    assert texts(model.eval(), STUDIES) == texts(gpt2.model, STUDIES)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_the_pipeline_writes_in_half_precision(options, tmp_path):
    import hf_cxr  # noqa: F401  (registers the task)

    tiny_checkpoint().save_pretrained(tmp_path)
    studies = [{"frontal": radiograph(seed)} for seed in range(3)]
    whole = pipeline("cxr-impression", model=str(tmp_path))(studies, batch_size=3, **options)
    pipe = pipeline("cxr-impression", model=str(tmp_path), dtype=torch.bfloat16)
    assert {part.dtype for part in pipe.model.parameters()} == {torch.bfloat16}
    for [half], [single] in zip(pipe(studies, batch_size=3, **options), whole, strict=True):
        assert half["impression"] == single["impression"]
        assert half["score"] == pytest.approx(single["score"], rel=0.5)  # 13 tokens, 8 bits each
