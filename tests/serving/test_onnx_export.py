"""`hf-cxr export`: what its folder holds, what it refuses, and what smaller numbers change."""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from exports import CURVE, exported_checkpoint
from helpers import ROOT, copy_folder, noise, run_cxr, tiny_checkpoint

from hf_cxr.inference.checks import CALIBRATION
from hf_cxr.inference.minimum_risk import RISK
from hf_cxr.serving.onnx_export import CannotExport, export_onnx
from hf_cxr.serving.runner import Runner

CROSS = "crossattention.c_attn"  # the weights that make keys and values of the encoder's states


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return exported_checkpoint(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def sizes(plain):
    model = plain.checkpoint.model
    return {name: part.numel() for name, part in model.named_parameters()}


def test_each_weight_is_stored_once_in_one_decoder_and_no_step_runs_the_encoders_side(plain, sizes):
    assert sorted(path.name for path in plain.folder.glob("*.onnx")) == ["decoder.onnx", "encoder.onnx"]
    stored = {path.name: path.stat().st_size for path in plain.folder.glob("*.data")}
    encoders = sum(number for name, number in sizes.items() if "decoder." not in name or CROSS in name)
    numbers = {"encoder.onnx.data": encoders, "decoder.onnx.data": sum(sizes.values()) - encoders}
    for name, size in stored.items():
        assert size < 4 * numbers[name] * 1.1 + 65536, name
    decoder = onnx.load(plain.folder / "decoder.onnx", load_external_data=False)
    assert not any(CROSS in one.name for one in decoder.graph.initializer)


def test_the_folder_tells_versions_opset_and_holds_no_path_of_this_machine(plain):
    facts = json.loads((plain.folder / "export.json").read_text())
    assert (facts["weights"], facts["opset"]) == (
        "float32",
        onnx.load(plain.folder / "decoder.onnx").opset_import[0].version,
    )
    assert {"torch", "transformers", "onnx", "onnxruntime", "hf-cxr"} <= set(facts["made_with"])
    assert json.loads((plain.folder / "config.json").read_text())[CALIBRATION] == CURVE
    assert (plain.folder / "README.md").read_text() == "the card"
    assert (plain.folder / "figures" / "risk.png").read_bytes() == b"a figure"
    for file in filter(Path.is_file, plain.folder.rglob("*")):
        content = file.read_bytes()
        for place in (str(ROOT), sys.prefix, str(plain.run.parent), "site-packages"):
            assert place.encode() not in content, f"{file.name}: {place}"


def test_a_checkpoint_that_chooses_among_samples_writes_greedy_texts_and_says_so(plain, tmp_path, capsys):
    run = copy_folder(plain.run, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {RISK: {"samples": 4, "thresholds": {}}}))
    export_onnx(run, tmp_path / "onnx")
    assert "decode mbr" in capsys.readouterr().err
    assert not {RISK, CALIBRATION} & json.loads((tmp_path / "onnx" / "config.json").read_text()).keys()


@pytest.mark.slow
@pytest.mark.parametrize(("weights", "share"), [("int8", 0.45), ("float16", 0.6)])
def test_smaller_numbers_take_less_room_and_write_about_the_same(plain, tmp_path, weights, share):
    export_onnx(plain.run, tmp_path / "small", weights)
    data = [
        sum(path.stat().st_size for path in folder.glob("*.data")) for folder in (plain.folder, tmp_path / "small")
    ]
    assert data[1] < share * data[0]
    pixels = noise().numpy()
    (tokens, sums), (theirs, _) = Runner(tmp_path / "small").generate(pixels), Runner(plain.folder).generate(pixels)
    length = min(tokens.shape[2], theirs.shape[2])
    assert (tokens[..., :length] == theirs[..., :length])[..., :2].mean() > 0.6, (
        "weights six times too large, yet alike"
    )
    assert np.isfinite(sums).all()
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "small").iterdir() if path.is_file()} == {
        (tmp_path / "small" / "export.json").stat().st_mode & 0o777
    }


@pytest.mark.slow
def test_a_validation_split_sets_how_inputs_are_rounded(plain, phantom_folder, tmp_path):
    facts = export_onnx(plain.run, tmp_path / "small", "int8", calibrate=phantom_folder)
    decoder, encoder = (
        {node.op_type for node in onnx.load(tmp_path / "small" / f"{name}.onnx").graph.node}
        for name in ("decoder", "encoder")
    )
    assert "DynamicQuantizeLinear" not in decoder
    assert "QuantizeLinear" in decoder
    assert "DynamicQuantizeLinear" in encoder, "its ranges differ from image to image"
    assert facts["weights"] == "int8, calibrated"
    assert np.isfinite(Runner(tmp_path / "small").generate(noise().numpy())[1]).all()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"do_sample": True}, "sets do_sample"),
        ({"bad_words_ids": [[3]]}, "sets bad_words_ids"),
        ({"max_new_tokens": None, "max_length": 20}, "no max_new_tokens"),
    ],
)
def test_what_the_runner_would_do_in_another_way_is_refused(tmp_path, settings, told):
    checkpoint = tiny_checkpoint()
    checkpoint.model.generation_config.update(**settings)
    checkpoint.save_pretrained(tmp_path / "run")
    with pytest.raises(CannotExport, match=told):
        export_onnx(tmp_path / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_graphs_that_write_something_else_leave_nothing_behind(plain, tmp_path, monkeypatch):
    def other(model, pixels, *_, **__):
        return {"sequences": torch.zeros(len(pixels), 1, 3, dtype=torch.long), "scores": torch.ones(len(pixels), 1)}

    monkeypatch.setattr("hf_cxr.serving.onnx_export.generate", other)
    with pytest.raises(CannotExport, match="something other than torch"):
        export_onnx(plain.run, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_overwritten(plain, tmp_path):
    (tmp_path / "thesis.txt").write_text("months of work")
    told = run_cxr("export", plain.run, tmp_path)
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "is not an exported checkpoint" in told.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--int8", "--fp16"), "not both"),
        (("--calibrate", "data"), "--calibrate goes with --int8"),
        (("--int8", "--calibrate", "nowhere"), "nowhere"),
    ],
)
def test_options_that_do_not_fit_are_one_line(plain, tmp_path, words, told):
    result = run_cxr("export", plain.run, tmp_path / "out", *words)
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert told in result.stderr


def test_an_export_is_no_checkpoint_to_evaluate_or_to_export_again(plain, tmp_path):
    told = run_cxr("export", plain.folder, tmp_path / "out")
    assert (told.returncode, told.stderr.count("\n")) == (2, 1)
    assert "an exported checkpoint" in told.stderr
