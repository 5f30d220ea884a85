"""A collection in Spanish: what is learned from its own labels, and what is and is not read from its texts."""

import json

import datasets
import pytest
from forms import padchest
from helpers import TINY_RECIPE, copy_folder, write_config

from hf_cxr.config import parse_arguments
from hf_cxr.data.prepare import prepare
from hf_cxr.explore import explore
from hf_cxr.metrics import SCALARS
from hf_cxr.training.run import train

NOT_READ = "Findings cannot be read from these texts, as the texts do not look English"


@pytest.fixture(scope="module")
def spanish(tmp_path_factory):
    """A tree of PadChest's form, prepared. It has findings and no impressions: they are learned in their place."""
    folder = tmp_path_factory.mktemp("padchest")
    padchest.make(folder, 200)
    options = {"root": folder / padchest.TABLE, "images": folder / "images", "columns": {"impression": "Report"}}
    prepare("table", folder / "data", preset="padchest", size=32, **options)
    return folder / "data"


@pytest.fixture(scope="module")
def run(spanish, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    recipe = TINY_RECIPE | {"dataset": str(spanish), "output_dir": str(folder / "run"), "max_steps": 4}
    recipe |= {"findings_pretraining_epochs": 1, "findings_labels": "tags"}
    train(*parse_arguments(write_config(folder / "config.yaml", **recipe)))
    return folder / "run"


def test_a_spanish_collection_trains_with_its_labels(run):
    assert (run / "findings_encoder").is_dir()
    card = (run / "README.md").read_text(encoding="utf-8")
    assert "language: es\n" in card
    assert "on the collection's own labels" in card
    assert "From one hospital (San Juan de Alicante, Spain)" in card
    assert "licensed PADCHEST-RESEARCH-USE" in card


@pytest.mark.parametrize("file", ["report.md", "report.html", "README.md"])
def test_the_report_says_what_is_and_is_not_read_and_shows_no_figure_of_what_is_not(run, file):
    text = (run / file).read_text(encoding="utf-8")
    assert NOT_READ in text
    assert "What is read of them is their words: BLEU, ROUGE-L, CIDEr, METEOR and exact match." in text
    for name in (
        "| finding F1",
        "<th>finding F1",
        "normal or abnormal",
        "<td>cardiomegaly",
        "| cardiomegaly",
        "oracle: ",
    ):
        assert name not in text


def test_the_numbers_of_the_report_are_those_of_words(run):
    report = json.loads((run / "report.json").read_text())
    assert report["gain_score"] == "cider"
    assert report["oracle"] == {}
    assert report["calibration"] is None
    assert set(SCALARS) <= set(report), "keys that are stable stay"
    assert not report["subgroups"]["finding"]
    assert set(report["subgroups"]["projection"]) == {"PA", "AP"}
    assert report["subgroups"]["projection"]["PA"]["finding_f1_micro"] is None


def test_explore_tells_the_collection_and_shows_studies_by_its_labels(spanish, tmp_path):
    facts = explore(spanish, tmp_path / "page")
    told = {"collection": "PadChest", "licence": "padchest-research-use", "language": "es"}
    assert told.items() <= facts["dataset"].items()
    html = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "PadChest (read as table) · licence padchest-research-use · language es" in html
    names = [row["tag"] for row in facts["tags"]]
    assert sorted(names) == sorted(padchest.LABELS[:3])
    assert [sheet["finding"] for sheet in facts["contact_sheets"]] == [*names, "no label"]
    assert sum(sheet["n"] for sheet in facts["contact_sheets"]) >= facts["n"]["studies"]
    assert "3 labels of its own" in facts["sentences"]["findings"]


def test_without_labels_explore_shows_any_studies(spanish, tmp_path):
    bare = copy_folder(spanish, tmp_path / "bare")
    for path in (bare / "data").iterdir():
        part = datasets.Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache"))
        part.remove_columns(["tags"]).to_parquet(path)
    facts = explore(bare, tmp_path / "page")
    assert [(sheet["finding"], sheet["n"]) for sheet in facts["contact_sheets"]] == [("any", facts["n"]["studies"])]
    assert "labels of its own" not in facts["sentences"]["findings"]
