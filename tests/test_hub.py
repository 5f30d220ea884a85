import pytest
from helpers import copy_folder

from hf_cxr import hub


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
