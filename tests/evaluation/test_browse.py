"""The studies that a reader of report.html steps through: which are there, and what filters and keys do."""

import json
import re
import shutil
import subprocess

import pytest
from PIL import Image
from test_report import NORMAL, SAID, TRUTH, report_of, rows_of

from hf_cxr.evaluation.report import browse
from hf_cxr.evaluation.report.page import report_page
from hf_cxr.evaluation.subgroups import with_subgroups

ACTIONS = """
const seen = [], shown = () => [...document.querySelectorAll("#browse .case")].filter((card) => !card.hidden);
const note = (what) => seen.push([what, document.querySelector("#browse output").textContent,
  shown().map((card) => card.querySelector("dt").textContent.match(/u\\d+/)[0]), document.activeElement.className]);
const press = (key, more) => (document.activeElement.closest("#browse") ? document.activeElement
  : document.querySelector("#browse summary"))
  .dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true, ...more }));
const choose = (place, value) => { const field = document.querySelectorAll("#browse select, #browse input")[place];
  field.value = value; field.dispatchEvent(new Event("input", { bubbles: true })); return field; };
document.querySelector("#browse").open = true;
note("start"); press("j"); note("j"); press("ArrowRight"); note("right"); press("k"); note("k");
press("ArrowLeft"); press("k"); note("never before the first"); press("j", { ctrlKey: true }); note("ctrl-j");
choose(0, "missed: right pneumothorax"); note("missed"); choose(1, "findings: one finding"); note("and a subgroup");
choose(2, "0.54"); choose(3, "0.55"); note("and a score"); choose(0, "invented: right pleural effusion"); note("none");
choose(0, "").focus(); press("j"); note("in a field");
document.title = JSON.stringify(seen);
"""


@pytest.fixture(scope="module")
def rows():
    return with_subgroups(rows_of(SAID, TRUTH, projection=""), "impression")


def test_the_wrong_ones_come_first_then_the_least_sure_of_the_right():
    said = [NORMAL, "Cardiomegaly.", NORMAL, "Scoliosis.", NORMAL]
    truth = [NORMAL, "Cardiomegaly.", "Cardiomegaly.", "Cardiomegaly.", NORMAL]
    rows = rows_of(said, truth)
    rows[4]["score"] = 0.1
    assert list(browse.chosen(rows, lambda i: {"image": None, "texts": {}})) == [3, 2, 4, 0, 1]


def test_of_a_large_split_300_are_there_and_the_page_stays_under_5_mb():
    rows = rows_of(SAID * 10, TRUTH * 10)
    noise = Image.effect_noise((224, 224), 90)  # no radiograph makes a larger JPEG
    html = report_page(report_of(rows[:60]), rows, lambda index: (noise, noise))
    assert 4_000_000 < len(html.encode()) < 5_000_000
    there = html.count("data-score=")
    assert 50 < there < 300
    assert f"Browse {there} of 600 studies" in html
    grey = Image.new("L", (60, 50), 90)
    html = report_page(report_of(rows[:60]), rows, lambda index: (grey, None))
    assert html.count("data-score=") == 300
    assert "The other studies are in predictions.jsonl" in html


def test_all_studies_of_a_small_split_are_there_and_without_a_script_they_are_read_one_after_the_other(rows):
    html = report_page(report_of(rows), rows)
    assert f"Browse all {len(rows)} studies" in html
    listed = html[html.index('<details id="browse">') : html.index("</details>", html.index('id="browse"'))]
    assert listed.count('class="case"') == len(rows)
    assert not re.search(r'class="case"[^>]* hidden', listed)
    assert re.search(r'<div class="bar"[^>]* hidden>', listed), "what needs the script is not shown without it"


def test_every_study_carries_its_subgroups_as_the_report_counts_them(rows):
    report, tags = report_of(rows), [browse.tags_of(row) for row in rows]
    for kind in ("findings", "length", "views"):
        for name, row in report["subgroups"][kind].items():
            assert sum(f"{kind}: {name}" in each for each in tags) == row["n"]
    counted = browse.filters(rows)["finding"]
    assert counted["missed"] == {"left pleural effusion": 15, "right pneumothorax": 15}
    assert counted["invented"] == {"right pleural effusion": 15}


def test_filters_and_keys_step_through_the_studies_in_a_browser(rows, tmp_path):
    if not (browser := shutil.which("chromium")):
        pytest.skip("chromium is not installed")
    html = report_page(report_of(rows), rows)
    page = tmp_path / "report.html"
    page.write_text(re.sub(r"<meta http-equiv[^>]*>", "", html) + f"<script>{ACTIONS}</script>", encoding="utf-8")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--dump-dom"]
    try:
        done = subprocess.run([browser, *flags, page.as_uri()], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        pytest.skip("chromium does not start here")
    if not (title := re.search(r"<title>(\[.*?)</title>", done.stdout)):
        assert "<title>" not in done.stdout, "the page opens, its script fails"
        pytest.skip("chromium does not start here")
    order = [rows[i]["uid"] for i in browse.chosen(rows, lambda i: {"image": None, "texts": {}})]
    missed = [uid for uid in order if "right pneumothorax" in rows[int(uid[1:])]["missed"]]
    assert json.loads(title[1].replace("&gt;", ">")) == [
        ["start", "1 of 60", order[:1], ""],
        ["j", "2 of 60", order[1:2], "case"],
        ["right", "3 of 60", order[2:3], "case"],
        ["k", "2 of 60", order[1:2], "case"],
        ["never before the first", "1 of 60", order[:1], "case"],
        ["ctrl-j", "1 of 60", order[:1], "case"],
        ["missed", f"1 of {len(missed)}", missed[:1], ""],
        ["and a subgroup", f"1 of {len(missed)}", missed[:1], ""],
        ["and a score", "1 of 2", ["u043"], ""],
        ["none", "no such study", [], ""],
        ["in a field", "1 of 5", ["u043"], ""],
    ]


def test_a_run_tells_each_studys_subgroups_and_its_page_filters_by_them(run_folder):
    lines = (run_folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    groups = [json.loads(line)["subgroups"] for line in lines]
    html = (run_folder / "report.html").read_text(encoding="utf-8")
    for kind, name in {item for group in groups for item in group.items()}:
        studies = sum(group.get(kind) == name for group in groups)
        assert f'<option value="{kind}: {name}">{name} ({studies})</option>' in html
    assert all({"findings", "length", "views"} <= set(group) for group in groups)
