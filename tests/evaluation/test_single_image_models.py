"""Published single-image checkpoints, scored: each study's text is that of the stock class on the view the model
was made for, and every figure of honesty stands beside the score."""

from __future__ import annotations

import json

import pytest
import torch
from helpers import run_cxr
from PIL import Image
from single_image import FORMS, published, stock_processor, stock_texts

from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.evaluate import evaluate
from hf_cxr.evaluation.prediction import Writer, mean_canvas, open_canvases, views_shown
from hf_cxr.models.modeling import load_checkpoint


@pytest.fixture(scope="module")
def test_split(phantom_folder):
    return load_prepared(str(phantom_folder))["test"]


@pytest.fixture(scope="module")
def swin(tmp_path_factory):
    return published("swin", tmp_path_factory.mktemp("published") / "swin")


@pytest.fixture(scope="module")
def scored(swin, phantom_folder):
    """The report of it, in a folder of its own."""
    out = swin.with_name("scores")
    return out, evaluate(swin, str(phantom_folder), out=out)


def shown(split) -> list[Image.Image]:
    return [row["frontal"] or row["lateral"] for row in split]


@pytest.mark.parametrize("form", FORMS)
def test_pixels_are_those_of_its_own_image_processor(form, test_split, tmp_path):
    checkpoint = load_checkpoint(published(form, tmp_path / "run"))
    canvases, writer = open_canvases(checkpoint, test_split), Writer(checkpoint)
    own = stock_processor(tmp_path / "run")([image.convert("RGB") for image in shown(test_split)], return_tensors="pt")
    pixels = writer._pixels(map(canvases.canvas, range(len(canvases))))
    assert len(canvases) > 20
    assert torch.equal(pixels, own["pixel_values"])


def test_each_study_is_scored_by_the_text_of_its_one_view(scored, swin, test_split):
    out, _ = scored
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prediction"] for row in rows] == stock_texts(swin, shown(test_split))
    assert len({row["prediction"] for row in rows}) > len(rows) / 3
    views = ["frontal" if row["frontal"] else "lateral" for row in test_split]
    assert [row["views"] for row in rows] == views
    assert set(views) == {"frontal", "lateral"}
    assert views_shown(open_canvases(load_checkpoint(swin), test_split)) == views


def test_every_figure_of_honesty_stands_beside_the_score(scored):
    out, report = scored
    assert {"most_frequent", "random_train", "nearest_encoder", "nearest_pixels"} <= set(report["baselines"])
    assert set(report["probes"]) == {"encoder", "pixels"}
    assert "calibration" in report
    assert report["shuffled"]
    assert report["image_gain"]
    assert report["verdict"]
    assert report["ci95"]["finding_f1_micro"]
    assert list(report["inputs"]) == ["mean_image"]
    assert "; max_new_tokens 15; " in report["signature"]
    assert "; one view of each study" in report["signature"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "shown one view of each study" in page


def test_the_mean_image_is_the_mean_of_what_is_shown(swin, test_split):
    canvases = open_canvases(load_checkpoint(swin), test_split)
    few = type(canvases)(test_split.select(range(3)), canvases.panel_size)
    squares = [torch.tensor(list(image.convert("L").resize((48, 48)).getdata())) for image in shown(test_split)[:3]]
    mean = torch.stack(squares).double().mean(0).round().reshape(48, 48)
    assert (torch.from_numpy(mean_canvas(few).copy()).double() - mean).abs().max() <= 1


def test_compare_sets_it_beside_a_run_of_ours(scored, run_folder):
    done = run_cxr("compare", scored[0], run_folder)
    assert done.returncode == 0, done.stderr
    assert "A: scores, B: run" in done.stdout


def test_the_command_scores_it_and_its_saved_form_the_same(swin, phantom_folder, scored, tmp_path):
    load_checkpoint(swin).save_pretrained(tmp_path / "saved")
    done = run_cxr("evaluate", tmp_path / "saved", phantom_folder, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    report = json.loads((scored[0] / "report.json").read_text(encoding="utf-8"))
    assert told == report
