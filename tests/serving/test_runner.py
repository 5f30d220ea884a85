"""An exported checkpoint gives the pipeline's answers, without torch."""

import json
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from exports import REPORT, exported_checkpoint
from helpers import ROOT, noise, radiograph
from PIL import Image

from hf_cxr.inference.generation import generate
from hf_cxr.inference.pipeline import ImpressionPipeline
from hf_cxr.inference.sections import PLAIN
from hf_cxr.inference.views import UnreadableImage
from hf_cxr.serving.runner import Runner

KINDS = {"impression": (PLAIN, "gpt2"), "report": (REPORT, "gpt2"), "bert": (PLAIN, "bert")}
STUDIES = [
    {"frontal": radiograph(1), "lateral": radiograph(2)},
    {"lateral": radiograph(3, 300, 40), "indication": "Cough", "age": 63, "sex": "F"},
    {"frontal": b"no image"},
    {"frontal": radiograph(4), "indication": "Pain after a fall " * 9},
]
SETTINGS = [
    {},
    {"num_beams": 4},
    {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 7},
    {"repetition_penalty": 1.7},
    {"no_repeat_ngram_size": 2, "num_beams": 2, "length_penalty": 3.0},
    {"num_beams": 3, "early_stopping": True, "length_penalty": -1.0, "repetition_penalty": 1.3},
    {"num_beams": 3, "early_stopping": "never", "no_repeat_ngram_size": 1},
]


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def exported(request, tmp_path_factory):
    return exported_checkpoint(tmp_path_factory.mktemp("export"), *request.param)


@pytest.fixture(scope="module")
def runner(exported):
    return Runner(exported.folder)


@pytest.fixture(scope="module")
def pipe(exported):
    parts = exported.checkpoint
    return ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_same_tokens_and_probabilities_as_torch(exported, runner, monkeypatch, settings, batch):
    model, tokenizer = exported.checkpoint.model, exported.checkpoint.tokenizer
    first = tokenizer.convert_tokens_to_ids("<findings>")
    asked = [(8, 9, first), (first,), (7, first)] if runner.layout.context else [()] * 3
    options = {
        name: settings[name] for name in ("num_beams", "num_return_sequences", "max_new_tokens") if name in settings
    }
    for name, value in settings.items():
        monkeypatch.setattr(model.generation_config, name, value)
        monkeypatch.setitem(runner.settings, name, value)
    texts = set()
    for start in range(0, 6, batch):
        pixels, prompts = noise()[start : start + batch], [asked[i % 3] for i in range(batch)]
        told = generate(model, pixels, prompts, tokenizer, **options)
        tokens, sums = runner.generate(pixels.numpy(), prompts, **options)
        np.testing.assert_array_equal(told["sequences"][..., 1:].numpy(), tokens)
        scores = np.where(told["truncated"].numpy(), 0, np.exp(sums))
        np.testing.assert_allclose(scores, told["scores"].numpy(), rtol=1e-3, atol=1e-12)
        texts |= {tuple(row) for row in tokens[:, 0].tolist()}
    assert len(texts) > 3, "equal texts would prove nothing"


@pytest.mark.parametrize(
    "options",
    [
        {"return_findings": True},
        {"abstain_below": 0.61, "num_beams": 2, "num_return_sequences": 2},
        {"on_unlikely": "ignore", "max_new_tokens": 3},
    ],
    ids=str,
)
def test_the_answers_are_the_pipelines(pipe, runner, options):
    ours = runner(STUDIES, on_unreadable="skip", batch_size=3, **options)
    theirs = pipe(STUDIES, on_unreadable="skip", batch_size=3, **options)
    for one, other in zip(ours, theirs, strict=True):
        for row, expected in zip(one, other, strict=True):
            assert {**row, "score": None} == {**expected, "score": None}
            assert list(row) == list(expected)
            if "error" not in row:
                assert row["score"] == pytest.approx(expected["score"], rel=1e-3)
    assert any("error" in row for rows in ours for row in rows)


def test_studies_come_in_the_forms_of_the_pipeline(runner):
    study = {"frontal": Image.fromarray(radiograph(1)), "lateral": Image.fromarray(radiograph(2))}
    one = runner(study)
    assert runner(**study) == runner((study["frontal"], study["lateral"])) == one
    assert list(runner(study for _ in range(2))) == [one, one] == runner([study, study], batch_size=2)
    assert runner([]) == []
    assert runner(study["frontal"]) == runner(frontal=study["frontal"])
    rows = datasets.Dataset.from_dict({"uid": ["a"], "frontal": [study["frontal"]], "lateral": [study["lateral"]]})
    assert list(runner(rows.cast_column("frontal", datasets.Image()).cast_column("lateral", datasets.Image()))) == [
        one
    ]
    with pytest.raises(UnreadableImage, match="study 1: frontal"):
        runner([study, {"frontal": b"no image"}])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"do_sample": True}, "no option 'do_sample'"),
        ({"return_attention": True}, "no option 'return_attention'"),
        ({"max_new_tokens": 10_000}, "this decoder writes 1 to"),
        ({"num_beams": 0}, "num_beams is a whole number"),
        ({"num_return_sequences": 2}, "at most num_beams"),
        ({"abstain_below": 2}, "abstain_below is a number"),
        ({"batch_size": 0}, "batch_size is a whole number"),
    ],
    ids=str,
)
def test_options_out_of_bounds_are_told(runner, options, told):
    with pytest.raises((TypeError, ValueError), match=told):
        runner({"frontal": radiograph(1)}, **options)


def test_predict_runs_an_export_without_importing_torch(exported, pipe, tmp_path):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    (tmp_path / "table.csv").write_text("uid,frontal\na,f.png\n")
    views = ["--frontal", str(tmp_path / "f.png")]
    for words in (views, ["--csv", str(tmp_path / "table.csv")]):
        code = f"""
import sys
from hf_cxr.cli.parser import main
status = main(["predict", {str(exported.folder)!r}, *{words!r}, "--json", "--num-beams", "2"])
heavy = [name for name in ("torch", "transformers") if name in sys.modules]
sys.exit(f"imported {{heavy}}" if heavy else status)
"""
        result = subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONPATH": str(ROOT), "PATH": ""}, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr
        answer = json.loads(result.stdout)
        [expected] = pipe({"frontal": str(tmp_path / "f.png")}, num_beams=2)
        assert answer.pop("uid", "a") == "a"
        assert answer.pop("score") == pytest.approx(expected.pop("score"), rel=1e-3)
        assert answer == expected


def test_a_folder_that_is_not_whole_is_one_line(exported, tmp_path):
    with pytest.raises(FileNotFoundError, match="run hf-cxr export"):
        Runner(tmp_path)
    for file in filter(Path.is_file, exported.folder.iterdir()):
        (tmp_path / file.name).write_bytes(file.read_bytes()[: None if file.suffix == ".json" else 100])
    with pytest.raises(ValueError, match="a graph cannot be loaded"):
        Runner(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json: cannot be read"):
        Runner(tmp_path)


def test_a_texts_probability_is_that_of_its_tokens(exported, runner):
    """By the stock class alone, not by the kit's own scores."""
    if runner.layout.context:
        pytest.skip("held to its sections, a text has another distribution")
    tokens, sums = runner.generate(noise().numpy())
    model = exported.checkpoint.model
    start = np.full((len(tokens), 1), model.generation_config.decoder_start_token_id)
    whole = torch.from_numpy(np.concatenate([start, tokens[:, 0]], axis=1))
    with torch.inference_mode():
        logits = model(pixel_values=noise(), decoder_input_ids=whole[:, :-1]).logits.double()
    each = logits.log_softmax(-1).gather(2, whole[:, 1:, None])[..., 0]
    ends = torch.isin(whole[:, 1:], torch.tensor(model.generation_config.eos_token_id))
    np.testing.assert_allclose(sums[:, 0], each.masked_fill(ends.cumsum(1) - ends.long() > 0, 0).sum(1), atol=1e-3)
