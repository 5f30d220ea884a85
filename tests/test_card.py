import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import copy_folder, radiograph, run_cxr
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image

from hf_cxr import card
from hf_cxr.metrics import SCALARS
from hf_cxr.report import REPORT_FILES, score_table

WITHOUT_KIT = "import sys\nsys.modules['hf_cxr'] = None  # as where it is not installed\n"


@pytest.fixture
def facts() -> dict:
    return {
        "folder": "runs/mine",
        "dataset": "phantom",
        "dataset_on_hub": False,
        "account": {},
        "splits": {"train": 8, "test": 2},
        "encoder": "tiny",
        "decoder": "tiny",
        "base_models": ["google/vit-base-patch16-224-in21k", "openai-community/gpt2"],
        "panel_size": 224,
        "warmup_epochs": 0,
        "epochs": 3,
        "max_steps": -1,
        "learning_rate": 1e-4,
        "batch_size": 16,
        "view_dropout": 0.0,
        "seed": 0,
        "minutes": 1.5,
        "recipe": {"learning_rate": 1e-4},
        "resumed": False,
        "trained_epochs": 4.0,
        "trained_steps": 100,
        "best_step": 75,
        "warmed_up": True,
        "device": "CPU",
        "processes": 1,
        "versions": card.library_versions(),
    }


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    """A copy of the run, to be changed."""
    return copy_folder(run_folder, tmp_path / "mine")


def report_of(run: Path) -> dict:
    return json.loads((run / "report.json").read_text())


def assert_well_formed(text: str) -> None:
    """No hole and no seam of the template shows, and every table is whole."""
    assert "{{" not in text
    assert "{%" not in text
    assert not re.search(r"\bNone\b|\bnan\b", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert "\n\n\n" not in text
    lines = text.splitlines()
    for above, line, below in zip(lines, lines[1:], lines[2:], strict=False):
        if re.fullmatch(r"\|( ?-+ ?\|)+", line):
            cells = [re.sub(r"\\\|", "", row).count("|") for row in (above, line, below)]
            assert len(set(cells)) == 1, (above, line, below)


def test_the_card_of_a_run_holds_its_true_figures_with_the_floors_beside_them(run_folder, phantom_folder):
    report = report_of(run_folder)
    text = (run_folder / "README.md").read_text()
    assert_well_formed(text)
    assert score_table(report) in text
    assert report["verdict"] in text
    assert json.loads((phantom_folder / "prepare.json").read_text())["splits_sha256"] in text
    assert "floor: the constant of best BLEU-4" in text
    assert "images shuffled" in text
    assert re.search(r"research use only", text, re.IGNORECASE)
    for name, row in report["per_finding"].items():
        assert f"| {name} | {row['n']} |" in text
    for name, interval in report["ci95"].items():
        if name in card.INTERVALS:
            assert f"{name} {interval[0]:.3f} to {interval[1]:.3f}" in text


def test_the_metadata_is_what_the_hub_expects_with_every_score(run_folder):
    data, report = metadata_load(run_folder / "README.md"), report_of(run_folder)
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-to-text"
    assert data["license"] == "apache-2.0"
    assert {"bleu", "rouge"} <= set(data["metrics"])
    loaded = ModelCard.load(run_folder / "README.md").data
    values = {result.metric_name.split(" (")[0]: result.metric_value for result in loaded.eval_results}
    for name in SCALARS:
        assert values[name] == pytest.approx(report[name], abs=1e-4), name
    assert {result.dataset_split for result in loaded.eval_results} == {"test"}
    again = eval_results_to_model_index(*model_index_to_eval_results(data["model-index"]))
    assert again == data["model-index"]


def test_the_snippet_runs_as_printed_where_the_kit_is_not_installed(run, tmp_path):
    for seed, view in enumerate(("frontal", "lateral")):
        Image.fromarray(radiograph(seed)).save(tmp_path / f"{view}.png")
    facts = json.loads((run / card.FACTS).read_text()) | {"folder": run.name}
    card.write_model_card(run, facts)
    snippets = re.findall(r"```python\n(.*?)```", (run / "README.md").read_text(), re.DOTALL)
    assert snippets
    for snippet in snippets:
        words = [sys.executable, "-c", WITHOUT_KIT + snippet]
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=120)
        assert result.returncode == 0, result.stderr[-2000:]
        assert re.search(r" \d\.\d+(e-\d+)?$", result.stdout.strip()), "the impression and its score are printed"


def test_the_snippet_names_the_repository_that_the_run_is_pushed_to(run_folder):
    assert 'pipeline(model="user/name", trust_remote_code=True)' in card.card_text(run_folder, "user/name")
    assert f'pipeline(model="{run_folder.name}", ' in card.card_text(run_folder), "a place on the machine is not told"


@pytest.mark.parametrize(
    ("given", "told"),
    [("runs/iu", "runs/iu"), ("/home/somebody/iu", "iu"), ("../iu", "iu"), ("~/iu", "iu")],
)
def test_a_folder_is_told_as_it_was_named_unless_that_tells_of_the_machine(given, told):
    assert card._as_told(Path(given)) == told


def test_findings_are_counted_in_whole_numbers_as_the_predictions_have_them(run_folder):
    from hf_cxr.findings import positive_findings

    true = found = stated = 0
    for line in (run_folder / "predictions.jsonl").read_text().splitlines():
        row = json.loads(line)
        truth, said = (positive_findings(row[name]) for name in ("impression", "prediction"))
        true, found, stated = true + len(truth), found + len(truth & said), stated + len(said)
    counts = card.finding_counts(report_of(run_folder))
    assert (counts["true"], counts["found"]) == (true, found)
    assert counts["stated"] <= stated, "findings that no radiologist stated are not in the table of findings"


def test_the_surest_wrong_texts_are_shown_first(run_folder):
    rows = [json.loads(line) for line in (run_folder / "predictions.jsonl").read_text().splitlines()]
    wrong = [row for row in rows if row["missed"] or row["invented"]]
    text = (run_folder / "README.md").read_text()
    shown = text[text.index("### Where it fails") : text.index("Definitions:")].splitlines()[6:]
    scores = [float(line.split("|")[1]) for line in shown if line.startswith("|")]
    assert scores == [round(row["score"], 2) for row in sorted(wrong, key=lambda row: -row["score"])[: len(scores)]]
    assert len(scores) == min(card.FAILURES, len(wrong))


def test_no_report_of_a_patient_is_on_a_card(run):
    texts = {"impression": "Lingular scarring, unlike that of the zebra.", "prediction": "Chronic zebra changes."}
    lines = [json.loads(line) | texts for line in (run / "predictions.jsonl").read_text().splitlines()]
    (run / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    facts = json.loads((run / card.FACTS).read_text())
    card.write_model_card(run, facts | {"dataset": "kaggle"})
    text = (run / "README.md").read_text()
    assert_well_formed(text)
    assert "zebra" not in text
    assert "### Where it fails" in text
    assert "reports of patients are not shown" in text
    assert "Demner-Fushman" in text
    assert "Indiana, USA" in text, "the limits of the data"
    assert "license" not in metadata_load(run / "README.md"), "the licence of the data has a say"
    card.write_model_card(run, facts)
    assert "zebra" in (run / "README.md").read_text(), "the phantom's texts may be shown"


def test_the_figures_are_of_this_report_and_on_the_card(run):
    report = report_of(run)
    (run / "figures" / "old.png").write_bytes(b"of an earlier report")
    card.write_model_card(run)
    named = set(re.findall(r"\]\((figures/[^)]+)\)", (run / "README.md").read_text()))
    assert named == {f"figures/{file.name}" for file in (run / "figures").iterdir()}
    assert {"figures/look.png", "figures/findings.png"} <= named
    assert ("figures/risk.png" in named) == bool(report["calibration"])
    for name in named:
        assert Image.open(run / name).size[0] > 300


def test_a_card_of_a_model_trained_on_the_phantom_says_that_it_knows_no_patients(run_folder, tmp_path, facts):
    assert "Trained on synthetic pictures alone" in (run_folder / "README.md").read_text()
    card.write_model_card(tmp_path, facts | {"dataset": "kaggle"})
    assert "synthetic" not in (tmp_path / "README.md").read_text()


def test_a_run_without_evaluation_says_so(tmp_path, facts):
    card.write_model_card(tmp_path, facts)
    text = (tmp_path / "README.md").read_text()
    assert_well_formed(text)
    assert text.count("Not evaluated") == 2
    assert "finding F1" not in text
    assert not (tmp_path / "figures").exists()
    data = metadata_load(tmp_path / "README.md")
    assert "model-index" not in data
    assert data["base_model"] == facts["base_models"]
    assert "Energy: not measured" in text


def test_a_report_of_two_studies_without_calibration_makes_a_whole_card(tmp_path, facts):
    from hf_cxr.evaluation import build_report
    from hf_cxr.report import write_report

    texts = [("Small right pleural effusion.", "Normal chest."), ("Normal chest.", "Cardiomegaly.")]
    rows = [
        {"uid": str(i), "patient": i, "impression": truth, "prediction": said, "score": 0.5, "views": "both"}
        | {"sequence_probability": 0.5, "matched": [], "missed": ["x"], "invented": []}
        for i, (truth, said) in enumerate(texts)
    ]
    write_report(build_report(rows), rows, tmp_path)
    card.write_model_card(tmp_path, facts)
    text = (tmp_path / "README.md").read_text()
    assert_well_formed(text)
    assert "it is not calibrated" in text
    assert "state 1 findings" in text


@pytest.mark.slow
def test_an_evaluation_into_the_runs_own_folder_writes_its_card_anew(run, phantom_folder):
    result = run_cxr("evaluate", run, phantom_folder, "--split", "validation", "--out", run)
    assert result.returncode == 0, result.stderr
    text = (run / "README.md").read_text()
    assert_well_formed(text)
    assert score_table(report_of(run)) in text
    assert "those on the validation split of `phantom`" in text
    assert {result.dataset_split for result in ModelCard.load(run / "README.md").data.eval_results} == {"validation"}


def test_an_evaluation_on_other_data_is_told_as_such(run, phantom_folder, tmp_path):
    other = copy_folder(phantom_folder, tmp_path / "other")
    account = json.loads((other / "prepare.json").read_text()) | {"splits_sha256": "0" * 64}
    (other / "prepare.json").write_text(json.dumps(account))
    card.write_model_card(run, card.evaluated_on(run, str(other), "test"))
    assert "not the data that this model was trained on" in (run / "README.md").read_text()
    card.write_model_card(run, card.evaluated_on(run, str(phantom_folder), "test"))
    assert "not the data that this model was trained on" not in (run / "README.md").read_text()


def test_a_run_of_an_earlier_version_keeps_its_card_and_one_line_says_why(run, phantom_folder):
    (run / card.FACTS).unlink()
    with pytest.raises(FileNotFoundError, match="the card is left as it was") as error:
        card.evaluated_on(run, str(phantom_folder), "test")
    assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match="trained by an earlier version"):
        card.card_text(run)


def test_a_new_training_leaves_no_card_of_other_weights(run_folder):
    assert {*REPORT_FILES, card.CARD, card.FACTS} <= {file.name for file in run_folder.iterdir()}
