import json
import re

import pytest
from huggingface_hub import ModelCard, metadata_load

from hf_cxr import card
from hf_cxr.report import score_table


@pytest.fixture
def facts() -> dict:
    return {
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


def test_the_card_of_a_run_holds_its_true_figures_with_the_floors_beside_them(run_folder, phantom_folder):
    report = json.loads((run_folder / "report.json").read_text())
    text = (run_folder / "README.md").read_text()
    assert score_table(report) in text
    assert report["verdict"] in text
    assert json.loads((phantom_folder / "prepare.json").read_text())["splits_sha256"] in text
    assert "floor: the constant of best BLEU-4" in text
    assert "images shuffled" in text
    assert re.search(r"research use only", text, re.IGNORECASE)
    results = ModelCard.load(run_folder / "README.md").data.eval_results
    values = {result.metric_name: result.metric_value for result in results}
    assert values["bleu4"] == pytest.approx(report["bleu4"], abs=1e-4)
    assert values["finding_f1_micro"] == pytest.approx(report["finding_f1_micro"], abs=1e-4)


def test_the_card_metadata_is_what_the_hub_expects(run_folder):
    data = metadata_load(run_folder / "README.md")
    assert data["library_name"] == "transformers"
    assert data["pipeline_tag"] == "image-to-text"
    assert data["license"] == "apache-2.0"
    assert "model-index" in data


def test_a_card_of_a_model_trained_on_the_phantom_says_that_it_knows_no_patients(run_folder, tmp_path, facts):
    assert "Trained on synthetic pictures alone" in (run_folder / "README.md").read_text()
    card.write_model_card(tmp_path, facts | {"dataset": "kaggle"}, None)
    text = (tmp_path / "README.md").read_text()
    assert "synthetic" not in text
    assert "license" not in metadata_load(tmp_path / "README.md"), "the licence of the data has a say"


def test_a_run_without_evaluation_says_so(tmp_path, facts):
    card.write_model_card(tmp_path, facts, None)
    text = (tmp_path / "README.md").read_text()
    assert text.count("Not evaluated") == 2
    assert "finding F1" not in text
    data = metadata_load(tmp_path / "README.md")
    assert "model-index" not in data
    assert data["base_model"] == facts["base_models"]
