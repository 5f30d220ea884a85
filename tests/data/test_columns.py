"""The columns of a dataset that hold more of a report than its text: what a collection says, and nothing else."""

import csv
import re
from dataclasses import asdict, replace

import huggingface_hub
import pyarrow.parquet as pq
import pytest
from helpers import told_more

from hf_cxr.data.collection import INDIANA, SYNTHETIC, Collection, collection_of
from hf_cxr.data.dataset_card import COLUMNS
from hf_cxr.data.prepare import prepare
from hf_cxr.data.prepared import load_prepared
from hf_cxr.data.schema import FEATURES
from hf_cxr.data.sources import phantom


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """40 studies whose collection says all that can be said."""
    folder = tmp_path_factory.mktemp("told") / "dataset"
    with told_more():
        prepare("phantom", folder, size=16, num_studies=40)
    return folder


def test_what_the_collection_says_is_in_the_columns_as_published(told):
    rows = [row for split in load_prepared(told).values() for row in split.remove_columns(["lateral"])]
    assert len(rows) == 40
    for row in rows:
        number = int(row["uid"].rpartition("-")[2])
        assert (row["comparison"], row["technique"]) == ("1. Compared to ___", "PA and lateral .")
        assert row["uncertain"] == ["mass"]
        assert (row["age"], row["sex"]) == (20 + number, "FM"[number % 2])
        assert row["projection"] == (("AP", "PA")[number % 2] if row["frontal"] else ""), "that of the frontal view"


def test_age_and_sex_are_columns_only_where_somebody_says_them(told, phantom_folder):
    here, there = (pq.read_schema(next((folder / "data").glob("train*"))).names for folder in (phantom_folder, told))
    assert here == list(FEATURES)
    assert there == [*FEATURES, "age", "sex"]
    for folder, names in ((phantom_folder, here), (told, there)):
        card = huggingface_hub.DatasetCard.load(folder / "README.md")
        assert [one["name"] for one in card.data.dataset_info["features"]] == names
        listed = [name for name in COLUMNS if f"\n| {name} | " in card.text]
        assert listed == [name for name in COLUMNS if name in names]


def test_the_comparison_of_the_indiana_reports_is_read_and_the_placeholders_counted(iu, tmp_path):
    report = prepare("kaggle", tmp_path / "out", root=iu, size=16)
    rows = [row["comparison"] for split in load_prepared(tmp_path / "out").values() for row in split]
    assert "None." in rows
    with (iu / "indiana_reports.csv").open(newline="") as table:
        texts = [
            row[name]
            for row in csv.DictReader(table)
            for name in ("comparison", "indication", "findings", "impression")
        ]
    assert report["placeholders"] == {"XXXX": sum(len(re.findall(r"(?<![A-Za-z])X{3,}", text)) for text in texts)}


def test_a_card_tells_the_collection_its_licence_language_and_placeholders(tmp_path, monkeypatch):
    collection = Collection("Hospital films", "physionet-credentialed-1.5.0", "Sign first.", "es", "- Old.", True)
    monkeypatch.setattr(phantom, "collection", lambda: collection)
    with told_more():
        report = prepare("phantom", tmp_path / "out", size=16, num_studies=20)
    assert report["collection"] == asdict(collection)
    assert collection_of(report) == collection
    assert report["placeholders"] == {"___": 20}
    card = huggingface_hub.DatasetCard.load(tmp_path / "out" / "README.md")
    assert (card.data.license, card.data.license_name) == ("other", collection.licence)
    assert (card.data.language, card.data.pretty_name) == ("es", "Chest radiograph studies (Hospital films)")
    for words in ("# Chest radiograph studies (Hospital films)", "Sign first.", "- Old.", "`es`", "`___` 20"):
        assert words in card.text


def test_the_language_of_a_collection_that_does_not_say_it_is_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(phantom, "collection", Collection)
    prepare("phantom", tmp_path / "out", size=16, num_studies=20)
    card = huggingface_hub.DatasetCard.load(tmp_path / "out" / "README.md")
    assert card.data.language is None
    assert card.data.license == "other"
    assert "not known to hf-cxr" in card.text


def test_a_dataset_of_an_earlier_version_is_known_by_its_source():
    assert [collection_of({"source": source}) for source in ("kaggle", "openi", "r2gen")] == [INDIANA] * 3
    assert collection_of({"source": "phantom"}) == SYNTHETIC
    assert collection_of({"source": "table"}) == collection_of({}) == Collection()
    later = asdict(replace(INDIANA, name="Other")) | {"of_a_later_version": 1}
    assert collection_of({"source": "table", "collection": later}).name == "Other"
