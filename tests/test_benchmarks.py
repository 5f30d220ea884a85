"""The benchmarks run at their tiniest settings and their arithmetic is right; their figures are no test's business."""

import json
from pathlib import Path

import pytest
import torch
from helpers import ROOT, run_forked, write_config

from hf_cxr.data.prepared import load_prepared

PEAK = 71.0  # TFLOP/s


@pytest.fixture
def throughput(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import throughput

    return throughput


@pytest.fixture
def recipes(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import recipes

    return recipes


@pytest.mark.slow
def test_throughput_measures_all_contestants_side_by_side(throughput, tmp_path: Path, capsys):
    out = tmp_path / "demo.json"
    words = "--model demo --studies 4 --image-size 128 --rounds 2 --warm 1 --steps 1 --batch 2 --batches 1 2"
    words += f" --new-tokens 3 --least-seconds 0 --latency-runs 2 --command-runs 0 --out {out}"
    throughput.main(words.split())
    result = json.loads(out.read_text(encoding="utf-8"))
    assert set(result["training"]) == set(throughput.CONTESTANTS)
    assert all(len(rates) == 2 and min(rates) > 0 for rates in result["training"].values())
    assert result["ratios"] == throughput.ratios(result["training"])
    assert {"kit ÷ ceiling", "kit ÷ tutorial"} <= set(result["ratios"])
    assert set(result["generation"]) == {f"batch {n}, {how}" for n in (1, 2) for how in ("greedy", "beam 4")}
    assert all(min(rates) > 0 for rates in result["generation"].values())
    assert len(result["latency_s"]["pipeline"]) == 2
    assert min(result["costs_ms"].values()) > 0
    assert {"cpu", "cores", "threads", "gpu", "python", "torch", "transformers"} <= set(result["machine"])
    assert result["settings"]["workers"] == 0
    printed = capsys.readouterr().out
    throughput.main(["--show", str(out)])
    assert capsys.readouterr().out in printed


def test_ratios_are_taken_round_by_round(throughput):
    """Noise that slows both contestants of a round does not move their ratio."""
    rates = {"a": [10.0, 1.0, 9.0], "b": [20.0, 2.0, 10.0]}
    assert throughput.ratios(rates, [("a", "b")]) == {"a ÷ b": {"median": 0.5, "min": 0.5, "max": 0.9}}


def test_every_recipe_is_counted(recipes, tmp_path: Path):
    result = recipes.main(["--out", str(tmp_path / "recipes.json"), "--peak", str(PEAK)])
    assert json.loads((tmp_path / "recipes.json").read_text(encoding="utf-8")) == result
    assert {row["recipe"] for row in result["recipes"]} == {path.name for path in (ROOT / "configs").glob("*.yaml")}
    for row in result["recipes"]:
        if "needs peft" in row.get("error", ""):
            continue
        assert "error" not in row, row
        assert 0 < row["trained_parameters"] <= row["parameters"]
        assert row["memory_bytes"] == (
            4 * row["parameters"] + 12 * row["trained_parameters"] + row["batch"] * row["activation_bytes"]
        )
        assert bool(row["states_bytes"]) == row["encoder_states_once"]
        expected = row["step_flops"] * recipes.STUDIES / (recipes.UTILISATION * PEAK * 1e12)
        assert row["epoch_seconds"] == pytest.approx(expected)


def test_parameters_of_a_recipe_are_those_of_the_model_that_it_trains(recipes, tmp_path: Path):
    from hf_cxr.models.modeling import build

    texts = ["No acute cardiopulmonary abnormality.", "Small right pleural effusion."] * 5
    model = build("tiny", "tiny", 64, texts, vocab_size=300).model
    config = write_config(
        tmp_path / "c.yaml",
        dataset="x",
        encoder="tiny",
        decoder="tiny",
        panel_size=64,
        vocab_size=model.config.decoder.vocab_size,
    )
    row = recipes.estimate(config)
    assert row["parameters"] == model.num_parameters()
    assert row["trained_parameters"] == model.num_parameters(only_trainable=True)


def test_flops_of_a_dense_model_are_six_a_weight_and_token(recipes, tmp_path: Path):
    """Forward 2, backward 4: what the encoder's weights alone need on its 33 tokens is a tight lower bound."""
    config = write_config(
        tmp_path / "c.yaml", dataset="x", encoder="tiny", decoder="tiny", panel_size=64, findings_pretraining_epochs=1
    )
    row = recipes.estimate(config)
    weights = 4 * (4 * 128 * 128 + 2 * 128 * 256)  # four layers: attention and feed-forward of `tiny`
    assert 6 * weights * 33 < row["findings_pretraining_flops"] < 1.2 * 6 * weights * 33


def test_frozen_encoder_whose_states_are_kept_is_not_counted_in_a_step(recipes, tmp_path: Path):
    common = {"dataset": "x", "encoder": "tiny", "decoder": "tiny", "panel_size": 64}
    whole = recipes.estimate(write_config(tmp_path / "whole.yaml", **common))
    frozen = recipes.estimate(write_config(tmp_path / "frozen.yaml", **common, freeze_encoder=True))
    encoder = frozen["parameters"] - frozen["trained_parameters"]
    pretrained = (
        recipes.estimate(  # view dropout acts in its pretraining; stage two reads the kept states all the same
            write_config(
                tmp_path / "w.yaml", **common, freeze_encoder=True, findings_pretraining_epochs=1, view_dropout=0.1
            )
        )
    )
    assert frozen["parameters"] == whole["parameters"]
    assert frozen["trained_parameters"] < whole["trained_parameters"]
    assert (
        frozen["step_flops"]
        == pretrained["step_flops"]
        <= whole["step_flops"] - pretrained["findings_pretraining_flops"]
    )
    assert frozen["activation_bytes"] == pretrained["activation_bytes"] < whole["activation_bytes"]
    assert frozen["states_bytes"] == 33 * 128 * 4, "tokens × width × 4"
    activations = pretrained["findings_pretraining_memory_bytes"] - 16 * encoder
    assert 0 < activations < pretrained["batch"] * whole["activation_bytes"]
    assert whole["states_bytes"] == frozen["findings_pretraining_memory_bytes"] == 0
    assert frozen["findings_pretraining_flops"] == 0 < pretrained["findings_pretraining_flops"]


def test_unknown_part_is_named_and_the_other_recipes_are_counted(recipes, tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config = write_config(tmp_path / "c.yaml", dataset="x", encoder=str(tmp_path / "no_such_part"), decoder="tiny")
    result = recipes.main([str(config), str(ROOT / "configs" / "demo.yaml")])
    assert "no_such_part" in result["recipes"][0]["error"]
    assert result["recipes"][1]["parameters"] > 0


def test_shares_of_the_gradient_are_those_of_the_loss(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import grouping

    lengths = torch.tensor([3] * 48 + [30] * 16)
    for order, clipped, longest in (
        ("grouped", False, 2 / 8),
        ("weighed", False, 480 / 624),
        ("weighed", True, 2 / 3.85),
    ):
        share = grouping.shares(lengths, order, 8, seed=0, clipped=clipped)
        assert share.sum().item() == pytest.approx(1)
        assert share[48:].sum().item() == pytest.approx(longest, abs=0.01), (order, clipped)
    assert 2 / 8 < grouping.shares(lengths, "random", 8, seed=0)[48:].sum() < 480 / 624


def test_joined_datasets_share_no_patient(monkeypatch, phantom_folder: Path, tmp_path: Path):
    """Each dataset numbers its patients from 0, so that three of them side by side would have the same."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import two_views_real

    joined = load_prepared(two_views_real.join(*[phantom_folder] * 3, tmp_path / "joined", 20, 0))
    train, test = joined["train"], joined["test"]
    assert (len(train), len(set(train["patient"]))) == (40, 40)
    assert len(test) == len(set(test["patient"])) == 238
    assert set(test["patient"]).isdisjoint([*train["patient"], *joined["validation"]["patient"]])


@pytest.mark.slow
def test_a_collection_like_mimic_is_made_once_and_its_plan_measured(monkeypatch, tmp_path: Path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import scale

    (measured,) = scale.main(["--folder", str(tmp_path), "--studies", "40", "--shares", "0.5"])
    assert measured["studies"] == 20
    assert measured["images"] == len(list(tmp_path.glob("20/files/p*/p*/s*/*.jpg"))) > 20
    assert min(measured[name] for name in ("wall_s", "cpu_s", "peak_gb")) > 0


@pytest.mark.slow
def test_the_gpu_benchmark_runs_on_a_cpu_and_writes_one_file(tmp_path: Path):
    """All parts but ONNX's, whose export alone takes 13 seconds; tests/serving holds export and runner."""
    script, out = str(ROOT / "benchmarks" / "gpu.py"), tmp_path / "new" / "gpu.json"
    parts = ["device", "training, bf16", "training, bf16, compiled", "texts, bf16", "training, fp32"]
    parts += ["texts, bf16, static cache, compiled", "training by the kit", "FSDP2 on one device"]
    parts += ["texts beside the CPU's"]
    told = run_forked(script=[script, "--smoke", "--parts", *parts, "--out", str(out)])
    result = json.loads(out.read_text(encoding="utf-8"))
    assert told.returncode == 0, told.stderr[-3000:]
    assert {"device", "date", "seed", "python", "cuda"} < set(result)
    assert {"torch", "transformers", "accelerate"} <= set(result["versions"])
    rows = {name: part["rows"] for name, part in result["parts"].items()}
    assert list(rows) == parts
    training = [row for name in ("training, bf16", "training, bf16, compiled", "training, fp32") for row in rows[name]]
    assert all(row["studies/s"] > 0 < row["TFLOP/s"] and {"MFU", "memory, GB"} < set(row) for row in training)
    assert [row["batch"] for row in rows["texts, bf16"]] == [1, 2]
    assert rows["FSDP2 on one device"][0]["losses apart, at most"] < 1e-4
    texts = rows["texts beside the CPU's"]
    assert [row["same texts"] for row in texts[:2]] == [texts[0]["studies"]] * 2
    shown = run_forked(script=[script, "--show", str(out)])
    assert shown.stdout == told.stdout


def test_a_gpu_part_that_fails_dies_or_hangs_is_told_and_the_others_run(tmp_path: Path):
    code = f"""
import os, sys, time
sys.path.insert(0, {str(ROOT / "benchmarks")!r})
import gpu

def fails(sizes, work):
    raise RuntimeError("out of\\nmemory")

def lacks(sizes, work):
    raise gpu.Unavailable("no provider")

parts = dict(fails=fails, dies=lambda *_: os._exit(3), lacks=lacks, works=lambda *_: [dict(figure=1.5)])
parts |= dict(hangs=lambda *_: time.sleep(60), late=lambda *_: [])
gpu.PARTS = {{name: (part, 9) for name, part in parts.items()}}
sys.exit(gpu.main(["--smoke", "--budget", "8", "--out", {str(tmp_path / "gpu.json")!r}]))
"""
    told = run_forked(code=code)
    assert told.returncode == 1, told.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["parts"]
    assert parts["fails"]["error"] == "RuntimeError: out of memory"
    assert parts["dies"]["error"] == "ended with status 3"
    assert parts["lacks"]["skipped"] == "no provider"
    assert parts["works"]["rows"] == [{"figure": 1.5}]
    assert parts["hangs"]["error"].startswith("stopped")
    assert "0 s were left" in parts["late"]["skipped"]
    assert 3 < sum(part["seconds"] for part in parts.values()) < 30
    assert "FAILED: RuntimeError: out of memory" in told.stdout


def test_the_peak_of_a_gpu_is_that_of_its_longest_known_name(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import gpu

    assert gpu.datasheet("NVIDIA H200").memory == 141
    assert gpu.datasheet("NVIDIA GeForce RTX 4090").peak == 165
    assert gpu.datasheet("NVIDIA A100-SXM4-40GB").peak == 312
    for other in ("Radeon", "NVIDIA L40S", "NVIDIA H100 PCIe"):
        assert gpu.datasheet(other) is None
