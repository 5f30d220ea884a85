"""Published single-image checkpoints, scored: each study's text is that of the stock class on the view the model
was made for, and every figure of honesty stands beside the score."""

from __future__ import annotations

import json

import pytest
import torch
from datasets import DatasetDict
from helpers import TEXTS, copy_folder, run_cxr, tiny_checkpoint
from PIL import Image
from single_image import FORMS, planted, published, stock_processor, stock_texts

from hf_cxr.cli.parser import main
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.calibration import MIN_STUDIES
from hf_cxr.evaluation.evaluate import evaluate
from hf_cxr.evaluation.prediction import Writer, mean_canvas, open_canvases, views_shown
from hf_cxr.inference.remote_code import add_pipeline_code
from hf_cxr.models.modeling import build, load_checkpoint


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


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A checkpoint that learned a little, and the dataset that it is scored on."""
    folder = tmp_path_factory.mktemp("learned")
    data = planted(folder / "planted")
    return published("gpt2", folder / "theirs", load_prepared(str(data))["train"]), data


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
    assert report["shuffled"]
    assert report["image_gain"]
    assert report["verdict"]
    assert report["ci95"]["finding_f1_micro"]
    assert list(report["inputs"]) == ["mean_image"]
    assert "; max_new_tokens 15; " in report["signature"]
    assert "; one view of each study" in report["signature"]
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "shown the frontal view of each study (the lateral where there is no frontal)" in page


def test_a_model_of_findings_is_scored_by_the_findings(swin, scored, phantom_folder, test_split, tmp_path, capsys):
    words = ["evaluate", str(swin), str(phantom_folder), "--target", "findings", "--max-new-tokens", "7"]
    assert main([*words, "--no-probes", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert (report["target"], scored[1]["target"]) == ("findings", "impression")
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    truth = dict(zip(test_split["uid"], test_split["findings"], strict=True))
    assert [row["findings"] for row in rows] == [truth[row["uid"]] for row in rows]
    assert not any("impression" in row for row in rows)
    assert [row["prediction"] for row in rows] == stock_texts(swin, shown(test_split), max_new_tokens=7)
    assert "; max_new_tokens 7; " in report["signature"]
    constant = report["baselines"]["most_frequent"]["modal_output"]
    assert constant in load_prepared(str(phantom_folder))["train"]["findings"]
    for said in (capsys.readouterr().out, (tmp_path / "report.html").read_text("utf-8")):
        assert "The model writes the findings." in said


def test_a_target_that_a_checkpoint_does_not_write_is_refused(swin, test_split, tmp_path):
    ours, theirs, few = tiny_checkpoint(), load_checkpoint(swin), DatasetDict(test=test_split.select(range(2)))
    one_panel = build("tiny", "tiny", 32, TEXTS, vocab_size=300, panels=1)
    add_pipeline_code(one_panel.model, tmp_path)  # as every finished run has it
    for checkpoint, target, told in (
        (ours, "findings", "target: findings, but this checkpoint says that it writes: impression"),
        (one_panel, "findings", "target: findings, but this checkpoint says that it writes: impression"),
        (theirs, "report", "target: findings or impression, not 'report'"),
    ):
        with pytest.raises(ValueError, match=told):
            evaluate(checkpoint, few, target=target)
    ours.model.config.cxr_layout = {"sections": ["findings"], "context": []}
    with pytest.raises(ValueError, match="target: impression, but this checkpoint says that it writes: findings"):
        evaluate(ours, few, target="impression")


def test_the_nearest_study_by_pixels_sees_a_square_of_its_one_view(swin, test_split):
    checkpoint = load_checkpoint(swin)
    canvases = open_canvases(checkpoint, test_split.select(range(2)))
    small = Writer(checkpoint).embed(canvases)["nearest_pixels"]
    assert small.shape == (2, 16 * 16)


def test_one_that_learned_reads_the_images_and_gets_a_calibration(learned, scored, phantom_folder, capsys):
    theirs, data = learned
    out = theirs.with_name("scores")
    assert main(["evaluate", str(theirs), str(data), "--out", str(out)]) == 0
    report = json.loads((out / "report.json").read_text(encoding="utf-8"))
    assert report["reads_images"]
    # where a square lies is in 16 × 16 pixels, so that a probe tells it as well
    assert report["verdict"].startswith("Uses the images, but states findings no better than a linear probe on 16")
    assert report["image_gain_ci95"]["finding_f1_micro"][0] > 0.4
    calibration = report["calibration"]
    assert (calibration["source"], calibration["n_fit"], calibration["n"]) == ("validation split", 60, 60)
    assert calibration["ece_after"] < calibration["ece_before"]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len({line["score"] for line in lines}) > 5
    said = " ".join(capsys.readouterr().out.split())
    for text in (said, (out / "report.md").read_text("utf-8"), (out / "report.html").read_text("utf-8")):
        assert "Single image: the model is shown the frontal view of each study (the lateral where there is no" in text
        assert "Uses the images, but states findings no better" in text
    assert said.endswith(f"predict {theirs} --frontal IMAGE"), "it would not look at another view"
    assert len(load_prepared(str(phantom_folder))["validation"]) < MIN_STUDIES
    assert scored[1]["calibration"] is None, "too few studies to fit one on"


def test_a_report_in_its_own_folder_makes_no_card_of_a_model_of_others_and_says_why(learned, tmp_path, capsys):
    theirs = copy_folder(learned[0], tmp_path / "theirs")
    (theirs / "README.md").write_text("Their own card.", encoding="utf-8")
    assert main(["evaluate", str(theirs), str(learned[1]), "--out", str(theirs)]) == 0
    assert "so the card is left as it was; the report is written (hf-cxr did not train" in capsys.readouterr().err
    assert (theirs / "README.md").read_text(encoding="utf-8") == "Their own card."
    assert (theirs / "report.html").is_file()


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
