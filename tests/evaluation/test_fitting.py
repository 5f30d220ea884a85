"""Minimum risk from a run's config to its texts: thresholds fitted, kept, told in signature and card."""

import json

import pytest
from helpers import TINY_RECIPE, copy_folder, write_config
from transformers import pipeline

from hf_cxr.config import parse_arguments
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.evaluate import evaluate
from hf_cxr.evaluation.fitting import fit_minimum_risk
from hf_cxr.evaluation.prediction import Writer
from hf_cxr.inference.labeler import FINDINGS
from hf_cxr.inference.minimum_risk import RISK, SAMPLES
from hf_cxr.models.modeling import load_checkpoint
from hf_cxr.training.checks import check_feasible
from hf_cxr.training.run import train

REPEATED = {"probes": False}


@pytest.fixture(scope="module")
def dataset(phantom_folder):
    return load_prepared(str(phantom_folder))


def test_a_run_of_decode_mbr_writes_so_wherever_it_is_read(tmp_path, phantom_folder, dataset):
    values = {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run"), "decode": "mbr", "max_steps": 30}
    values |= {"learning_rate": 1e-2, "max_target_length": 24}
    report = train(*parse_arguments(write_config(tmp_path / "config.yaml", **TINY_RECIPE | values)))
    assert f"decode mbr; samples {SAMPLES}" in report["signature"]
    run = tmp_path / "run"
    settings = json.loads((run / "config.json").read_text())[RISK]
    assert settings["thresholds"].keys() == set(FINDINGS)
    assert settings["studies"] == len(dataset["validation"])
    assert f"{SAMPLES} samples" in (run / "README.md").read_text()
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    pipe = pipeline("cxr-impression", model=str(run))
    studies = [{view: study[view] for view in ("frontal", "lateral")} for study in dataset["test"].select(range(4))]
    assert [answer[0]["impression"] for answer in pipe(studies)] == [row["prediction"] for row in rows[:4]]
    searched = evaluate(str(run), dataset, decode="search", **REPEATED)
    assert "mbr" not in searched["signature"]
    again = evaluate(str(run), dataset, **REPEATED)
    assert again["finding_f1_micro"] == report["finding_f1_micro"]


def test_a_finished_run_gets_thresholds_for_one_report_alone(run_folder, dataset, tmp_path):
    report = evaluate(str(run_folder), dataset, decode="mbr", out=tmp_path / "report", **REPEATED)
    assert f"decode mbr; samples {SAMPLES}" in report["signature"]
    assert RISK not in json.loads((run_folder / "config.json").read_text())


def test_a_run_continued_without_it_forgets_its_thresholds(run_folder, phantom_folder, tmp_path):
    parent = copy_folder(run_folder, tmp_path / "parent")
    config = json.loads((parent / "config.json").read_text())
    config[RISK] = {"samples": 2, "thresholds": {}}
    (parent / "config.json").write_text(json.dumps(config))
    values = {"dataset": str(phantom_folder), "output_dir": str(tmp_path / "run"), "init_from": str(parent)}
    train(*parse_arguments(write_config(tmp_path / "config.yaml", **TINY_RECIPE | values | {"max_steps": 1})))
    assert RISK not in json.loads((tmp_path / "run" / "config.json").read_text())


def test_thresholds_are_half_of_the_f1_that_the_samples_let_expect(run_folder, dataset, monkeypatch):
    """Every study believes in one finding by one half, and in no other."""
    writer = Writer(load_checkpoint(str(run_folder)))
    shares = [0.5 * (name == "cardiomegaly") for name in FINDINGS]

    def write(self, canvas, indices, *args):
        return [type("Text", (), {"shares": shares}) for _ in indices]

    monkeypatch.setattr(Writer, "write", write)
    settings = fit_minimum_risk(writer, dataset["validation"])
    expected = 2 * 0.5 / 1.5  # all n are stated: 2 · n/2 / (n + n/2)
    assert settings["thresholds"]["cardiomegaly"] == pytest.approx((expected + expected) / 4, abs=1e-4)
    assert settings["thresholds"]["edema"] == pytest.approx(expected / 4, abs=1e-4)
    assert getattr(writer.model.config, RISK) == settings


def test_without_studies_or_findings_to_read_there_are_no_thresholds(run_folder, dataset, tmp_path):
    writer = Writer(load_checkpoint(str(run_folder)))
    with pytest.raises(ValueError, match="need a validation split"):
        fit_minimum_risk(writer, dataset["validation"].select([]))
    foreign = dataset["validation"].map(lambda row: {"impression": "Sin alteraciones significativas."})
    with pytest.raises(ValueError, match="findings cannot be read"):
        fit_minimum_risk(writer, foreign)
    values = {"dataset": str(tmp_path / "no_validation"), "output_dir": str(tmp_path / "run"), "decode": "mbr"}
    alone = dataset.copy()
    del alone["validation"]
    kit, args = parse_arguments(write_config(tmp_path / "config.yaml", **TINY_RECIPE | values))
    with pytest.raises(ValueError, match="no validation studies to fit thresholds on"):
        check_feasible(alone, kit, args)
