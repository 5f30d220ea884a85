"""`hf_cxr.inference.labeler` against the human tags of the real reports: what the project promises of it, on the odd
uids."""

import json
import runpy
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "labeler.py"


@pytest.fixture(scope="module")
def scores(iu, tmp_path_factory):
    out = tmp_path_factory.mktemp("labeler") / "scores.json"
    arguments = ["labeler.py", "--reports", str(iu), "--half", "odd", "--samples", "0", "--json", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", arguments)
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return json.loads(out.read_text())


def test_every_report_of_the_collection_is_read(scores):
    assert scores["reports"] == 3955
    assert scores["odd"]["normal"]["n"] > 1900


def test_findings_agree_with_the_human_tags(scores):
    stated = {name: entry["stated"]["f1"] for name, entry in scores["odd"]["findings"].items() if entry["n"] >= 10}
    assert len(stated) == 14 + 14 + 2  # the fourteen of the issue, others with at least ten studies, two averages
    assert stated["micro over the fourteen"] >= 0.85
    assert {name for name, f1 in stated.items() if f1 < 0.7} == set()


def test_possible_findings_are_those_that_the_taggers_saw(scores):
    """Recall where doubt counts as a finding: nothing tagged goes unread."""
    assert scores["odd"]["findings"]["micro over the fourteen"]["or possible"]["recall"] >= 0.95


def test_normal_reports_are_told_from_abnormal_ones(scores):
    assert scores["odd"]["normal"]["accuracy"] >= 0.95


def test_sides_and_heights_agree_with_the_human_tags(scores):
    everything = scores["odd"]["located"]["all"]
    assert everything["side"]["n"] > 700
    assert everything["side"]["agreement"] >= 0.95
    assert everything["side"]["opposite"] <= 0.01 * everything["side"]["n"]
    assert everything["place"]["f1"] >= 0.9
