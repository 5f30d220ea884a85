"""What is known of the checkpoints that a run began from, and what follows for its card and its licence."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
from helpers import TINY_RECIPE, copy_folder, write_config
from huggingface_hub import metadata_load

from hf_cxr.config import parse_arguments
from hf_cxr.data.collection import INDIANA, MIMIC, SYNTHETIC
from hf_cxr.hub import model_card, push
from hf_cxr.hub.ancestors import ancestors, split_otherwise
from hf_cxr.training.run import train

OF_PATIENTS = {"source": "mimic", "collection": asdict(MIMIC), "splits_sha256": "1" * 64, "steps": []}


def told(folder: Path, **facts) -> str:
    """Writes the card.json of a run; returns its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "card.json").write_text(json.dumps({"dataset": "mimic", "preparation": OF_PATIENTS} | facts))
    return str(folder)


def card_of(run: Path, parents: list[dict]) -> str:
    facts = json.loads((run / "card.json").read_text())
    model_card.write_model_card(run, facts | {"continued_from": parents, "from_scratch": False})
    return (run / "README.md").read_text()


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    """A run on the phantom whose texts would be known again."""
    run = copy_folder(run_folder, tmp_path / "mine")
    rows = [json.loads(line) for line in (run / "predictions.jsonl").read_text().splitlines()]
    rows = [row | {"prediction": "Chronic zebra.", "invented": ["pneumothorax"]} for row in rows]
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_ancestors_are_told_to_the_first_without_places_of_this_machine(tmp_path):
    first = told(tmp_path / "first", base_models=["user/vit"])
    second = told(tmp_path / "second", dataset="phantom", continued_from=ancestors([first]))
    (tmp_path / "second" / "checkpoint-5").mkdir()
    (tmp_path / "alien").mkdir()
    found = ancestors([f"{second}/checkpoint-5", str(tmp_path / "alien"), "user/theirs"])
    assert [(one["name"], one["dataset"], one["on_hub"]) for one in found] == [
        ("second", "phantom", False),
        ("first", "mimic", False),
        ("alien", None, False),
        ("user/theirs", None, True),
    ]
    assert found[1]["preparation"] == {key: value for key, value in OF_PATIENTS.items() if key != "steps"}
    assert found[1]["base_models"] == ["user/vit"]
    assert str(tmp_path) not in json.dumps(found)


def test_texts_are_shown_only_where_every_ancestor_is_synthetic(run, tmp_path):
    phantom = json.loads((run / "card.json").read_text())["preparation"]
    synthetic = ancestors([told(tmp_path / "drawn", dataset="phantom", preparation=phantom)])
    text = card_of(run, synthetic)
    assert "zebra" in text
    assert "**Fine-tuned on synthetic images alone**" in text
    assert "It began from `drawn`, which learned from `phantom`." in text
    on_patients = told(tmp_path / "patients")
    later = told(tmp_path / "later", dataset="phantom", preparation=phantom, continued_from=ancestors([on_patients]))
    for start in (on_patients, later, str(tmp_path), "user/theirs"):
        text = card_of(run, ancestors([start]))
        assert "Where it fails" in text
        assert "zebra" not in text, start
        assert "synthetic images alone" not in text
        assert "license" not in metadata_load(run / "README.md")
    assert "It began from [user/theirs](https://huggingface.co/user/theirs), of which hf-cxr does not know" in text
    text = card_of(run, ancestors([on_patients]))
    assert "It began from `patients`, which learned from `mimic`." in text
    assert "licensed APACHE-2.0 and PHYSIONET-CREDENTIALED-1.5.0. Whether" in text


def test_the_licence_of_every_ancestor_is_considered_before_weights_become_public(run, tmp_path):
    assert push.licence_note(run) is None
    card_of(run, ancestors([told(tmp_path / "patients")]))
    note = push.licence_note(run)
    assert "data under physionet-credentialed-1.5.0: whether" in note
    assert "under the agreement of the data" in note
    indiana = {"source": "kaggle", "collection": asdict(INDIANA)}
    card_of(run, ancestors([told(tmp_path / "later", preparation=indiana), str(tmp_path)]))
    assert "data under cc-by-nc-nd-4.0 and of a licence that is not known: whether" in push.licence_note(run)


def test_an_ancestor_of_another_split_of_the_collection_is_told(run, tmp_path):
    own = json.loads((run / "card.json").read_text())["preparation"]
    warning = "which learned from the same collection, split otherwise: it may have seen the test studies"
    same, other = (
        told(tmp_path / sha, preparation=own | {"splits_sha256": sha}) for sha in (own["splits_sha256"], "0")
    )
    assert warning not in card_of(run, ancestors([same]))
    assert f"It began from `0`, {warning}" in card_of(run, ancestors([other]))
    elsewhere = told(tmp_path / "patients")
    assert warning not in card_of(run, ancestors([elsewhere])), "another collection"


def test_tables_of_ones_own_are_one_collection_only_where_they_have_one_name():
    parent = {"name": "theirs", "dataset": "clinic_b", "preparation": {"splits_sha256": "b"}}
    facts = {"dataset": "clinic_a", "preparation": {"splits_sha256": "a"}, "continued_from": [parent]}
    assert split_otherwise(facts) == []
    assert split_otherwise(facts | {"dataset": "clinic_b"}) == ["theirs"]


def test_a_run_records_what_it_was_continued_from_and_warns_at_its_start(run, phantom_folder, tmp_path, capsys):
    facts = json.loads((run / "card.json").read_text())
    facts["preparation"] |= {"splits_sha256": "0" * 64, "collection": asdict(SYNTHETIC)}
    (run / "card.json").write_text(json.dumps(facts | {"base_models": ["user/vit"]}))
    values = TINY_RECIPE | {"max_steps": 1, "panel_size": 48, "init_from": str(run), "dataset": str(phantom_folder)}
    config = write_config(tmp_path / "c.yaml", **values, output_dir=str(tmp_path / "run"))
    train(*parse_arguments(config))
    out, err = capsys.readouterr()
    assert f"init_from {run}: views of 32 × 32 pixels → panels of 48 × 48" in out
    line = "mine: learned from Synthetic chest studies, split otherwise than here: it may have seen the test studies"
    assert err.splitlines().count(line) == 1
    written = json.loads((tmp_path / "run" / "card.json").read_text())
    assert [(one["name"], one["dataset"]) for one in written["continued_from"]] == [("mine", "phantom")]
    assert written["base_models"] == ["user/vit"]
    assert metadata_load(tmp_path / "run" / "README.md")["base_model"] == ["user/vit"]
