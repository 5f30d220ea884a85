import json
import re

import pytest
from helpers import copy_folder
from huggingface_hub import ModelCard, metadata_load

from hf_cxr import hub
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
        "versions": hub.library_versions(),
    }


def test_the_card_of_a_run_holds_its_true_figures_with_the_floors_beside_them(run_folder, phantom_folder):
    report = json.loads((run_folder / "report.json").read_text())
    card = (run_folder / "README.md").read_text()
    assert score_table(report) in card
    assert report["verdict"] in card
    assert json.loads((phantom_folder / "prepare.json").read_text())["splits_sha256"] in card
    assert "floor: the constant of best BLEU-4" in card
    assert "images shuffled" in card
    assert re.search(r"research use only", card, re.IGNORECASE)
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
    hub.write_model_card(tmp_path, facts | {"dataset": "kaggle"}, None)
    card = (tmp_path / "README.md").read_text()
    assert "synthetic" not in card
    assert "license" not in metadata_load(tmp_path / "README.md"), "the licence of the data has a say"


def test_a_run_without_evaluation_says_so(tmp_path, facts):
    hub.write_model_card(tmp_path, facts, None)
    card = (tmp_path / "README.md").read_text()
    assert card.count("Not evaluated") == 2
    assert "finding F1" not in card
    data = metadata_load(tmp_path / "README.md")
    assert "model-index" not in data
    assert data["base_model"] == facts["base_models"]


def test_a_run_folder_names_no_path_of_the_machine(run_folder, phantom_folder):
    for file in run_folder.iterdir():
        if any(file.match(pattern) for pattern in hub.RUN_FILES) and file.suffix != ".safetensors":
            text = file.read_text(encoding="utf-8")
            assert str(phantom_folder.parent) not in text, file.name
            assert str(run_folder.parent) not in text, file.name


def test_predictions_and_checkpoints_of_the_optimiser_are_not_among_what_is_pushed(run_folder):
    pushed = {file.name for file in run_folder.iterdir() if any(file.match(pattern) for pattern in hub.RUN_FILES)}
    assert {"model.safetensors", "README.md", "report.json", "pipeline.py"} <= pushed
    assert not pushed & {"predictions.jsonl", "trainer_state.json", "training_args.bin", "config.yaml"}


def test_a_public_push_of_a_no_derivatives_dataset_is_refused(phantom_folder, tmp_path):
    folder = copy_folder(phantom_folder, tmp_path / "dataset")
    card = (folder / "README.md").read_text()
    assert "license: apache-2.0" in card
    (folder / "README.md").write_text(card.replace("license: apache-2.0", "license: cc-by-nc-nd-4.0"))
    with pytest.raises(ValueError, match="forbids sharing derivatives"):
        hub.push(folder, "user/name", public=True)
    (folder / "README.md").unlink()
    with pytest.raises(ValueError, match="unknown"):
        hub.push(folder, "user/name", public=True)


def test_a_folder_that_is_neither_run_nor_dataset_is_not_pushed(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither a checkpoint"):
        hub.push(tmp_path, "user/name")
