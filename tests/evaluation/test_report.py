"""The report in files: what a reader is told is true to the numbers, and nothing is written by halves."""

import json
import re
from html.parser import HTMLParser

import pytest
from helpers import assert_fits_a_phone
from PIL import Image

from hf_cxr.evaluation import calibration
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.evaluation.baselines import BLIND
from hf_cxr.evaluation.report import REPORT_FILES, figures, page, report_markdown, score_table, tables, write_report
from hf_cxr.evaluation.report.page import report_page
from hf_cxr.inference.labeler import positive_findings
from hf_cxr.metrics import SCALARS
from hf_cxr.utils.plots import percent

NORMAL = "No acute cardiopulmonary abnormality."
TRUTH = [NORMAL, "Cardiomegaly.", "Small left pleural effusion. Cardiomegaly.", "Right pneumothorax."] * 15
SAID = [NORMAL, "Cardiomegaly.", "Small right pleural effusion. Cardiomegaly.", NORMAL] * 15
NEVER_CLOSED = {"meta", "link", "img", "br", "path", "use", "input"}


def rows_of(said, truth, **more):
    def one(i):
        there, stated = (positive_findings(text, sided=True) for text in (truth[i], said[i]))
        parts = {"matched": there & stated, "missed": there - stated, "invented": stated - there}
        row = {"uid": f"u{i:03}", "patient": i, "impression": truth[i], "prediction": said[i], "score": 0.5 + i / 1000}
        row |= {"sequence_probability": 0.5, "views": "both" if i % 4 else "frontal"} | more
        return row | {name: sorted(names) for name, names in parts.items()}

    return [one(i) for i in range(len(said))]


def report_of(rows, train=TRUTH, **parts):
    correct = [not row["missed"] and not row["invented"] for row in rows]
    scores = [row["score"] for row in rows]
    curve = calibration.assess([row["sequence_probability"] for row in rows], scores, correct, "checkpoint", 60)
    two = [i for i, row in enumerate(rows) if row["views"] == "both"]
    texts = [rows[i]["prediction"] for i in two]
    inputs = dict.fromkeys(("both_views", "frontal_only", "lateral_only"), (two, texts))
    inputs["mean_image"] = (range(len(rows)), [NORMAL] * len(rows))
    return evaluation.build_report(rows, train, train, **{"calibrated": curve, "inputs": inputs} | parts)


@pytest.fixture(scope="module")
def rows():
    return rows_of(SAID, TRUTH)


@pytest.fixture(scope="module")
def report(rows):
    return report_of(rows)


class Checker(HTMLParser):
    """Every tag that is opened is closed, in order; collects addresses and words."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.words = [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in NEVER_CLOSED:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        if tag not in NEVER_CLOSED:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def words_of(html):
    return " ".join(" ".join(Checker(html).words).split())


def test_the_page_needs_nothing_else_and_is_well_formed(report, rows):
    html = report_page(report, rows, lambda index: (Image.new("L", (60, 50), 90), None))
    checked = Checker(html)
    assert all(address.startswith(("#", "data:")) for address in checked.addresses)
    assert re.findall(r"<script[^>]*>", html) == ["<script>"], "the one that steps through the studies"
    assert "@import" not in html
    images = [address for address in checked.addresses if address.startswith("data:image/jpeg")]
    assert len(images) == 12 + len(rows), "the worst and the best, and those that are stepped through"


def test_the_verdict_stands_on_top_and_research_use_is_said(report, rows):
    html = report_page(report, rows)
    words = words_of(html)
    assert "<title>This model reads the images.</title>" in html
    assert re.search(r"<h1[^>]*>([^<]*)</h1>", html)[1] == "This model reads the images."
    assert report["verdict"] in words
    assert words.rindex("This model reads the images.") < words.index(report["verdict"])
    assert words.index(report["verdict"]) < words.index("Image-shuffle test")
    assert "Research use only, not for diagnosis" in words


@pytest.mark.parametrize(
    ("reads", "told"),
    [
        (True, "This model reads the images."),
        (False, "This model does not read the images."),
        (None, "These studies cannot tell whether the model reads the images."),
    ],
)
def test_the_verdict_in_plain_words_has_no_number(report, reads, told):
    assert page.sentences(report | {"reads_images": reads})["verdict"] == told


def test_every_scalar_has_words_and_every_image_blind_baseline_is_known_as_such(report):
    assert tuple(tables.SCORES) == SCALARS
    beside = report["baselines"] | {"nearest_pixels": {"bleu4": 1.0}}
    best = max(report["baselines"][name]["bleu4"] for name in BLIND)
    assert tables.best_blind(report | {"baselines": beside}, "bleu4")[1] == best


def test_the_summary_counts_findings_and_compares_with_the_best_baseline(report):
    numbers = {"finding_recall_micro": 0.75, "bleu4": 0.0}
    numbers["shuffled"] = report["shuffled"] | {"finding_recall_micro": 0.21}
    said = page.sentences(report | numbers)["summary"]
    assert "Of 100 findings in the radiologists' texts it states 75" in said
    assert "and 21 when it is shown those of other patients" in said
    assert "Its BLEU-4 is below that of the best image-blind baseline." in said
    unread = page.sentences(report | numbers | {"findings_unread": "the texts do not look English"})["summary"]
    assert "do not look English" in unread
    assert "Of 100 findings" not in unread


def test_every_part_of_the_report_is_on_the_page(report, rows):
    words = words_of(report_page(report, rows))
    for name in report["baselines"]:
        assert page.BASELINES[name] in words
    for name in (*report["per_finding"], *report["image_gain"], "oracle", "lateral view alone", "several findings"):
        assert name in words
    for name in ("bleu4", "finding_f1_micro", "rougeL"):
        assert f"{report['shuffled'][name]:.3f}" in words
        assert f"{report['image_gain'][name]:+.3f}" in words
    assert report["signature"] in words


def test_worst_studies_are_the_surest_of_the_most_wrong_and_best_ones_are_not_normal(rows):
    chosen = page.choose(rows)
    assert all(rows[i]["missed"] and rows[i]["invented"] for i in chosen["worst"])
    assert chosen["worst"] == sorted(chosen["worst"], key=lambda i: -rows[i]["score"])
    assert all(rows[i]["matched"] and not rows[i]["missed"] for i in chosen["best"])
    assert page.choose(rows_of([NORMAL], [NORMAL])) == {"worst": [], "best": []}


def test_the_best_study_is_the_one_with_most_findings_matched():
    said = ["Cardiomegaly.", "Cardiomegaly. Scoliosis.", "Scoliosis."]
    assert page.choose(rows_of(said, said))["best"] == [1, 2, 0], "then the surest"


def test_matched_missed_and_invented_are_told_apart_without_colour(report, rows):
    html = report_page(report, rows)
    for kind, sign, name in (
        ("matched", "✓", "cardiomegaly"),
        ("missed", "−", "left pleural effusion"),
        ("invented", "+", "right pleural effusion"),
    ):
        assert re.search(rf'<li class="{kind}"[^>]*>{re.escape(sign)} {name}', html)


def test_texts_are_shown_as_they_are_and_never_become_markup(rows):
    odd = "<b>Cardiomegaly</b> | 5 < 6 & *mild*."
    spoiled = rows_of([odd] * 40, ["Scoliosis."] * 40)
    report = report_of(spoiled, train=[odd] * 3)
    html = report_page(report, spoiled)
    assert "<b>Cardiomegaly" not in html
    assert odd in words_of(html)
    assert {line.count("|") for line in score_table(report).splitlines()} == {8}
    assert f"`{odd}`" in report_markdown(report)


def test_small_subgroups_and_findings_are_marked(report, rows):
    assert report["subgroups"]["findings"]["normal"]["small"]
    assert re.search(r'<tr class="small"><td>normal</td>', report_page(report, rows))
    assert "| normal (few) | 15 |" in report_markdown(report)
    assert "(few)" not in tables.subgroups_table(report)
    assert re.search(r"<tr><td>two views</td>", report_page(report, rows))


def test_a_finding_that_fewer_than_five_studies_have_is_shown_without_an_interval():
    row = {"precision": 1.0, "recall": 1.0, "f1": 1.0, "ci95": [1.0, 1.0]}
    shown = tables.finding_table({"n": 40, "per_finding": {"edema": {"n": 5} | row, "nodule": {"n": 4} | row}})
    assert [line.split(" | ")[5] for line in shown.splitlines()[2:]] == ["1.000 to 1.000", "–"]


@pytest.mark.parametrize("missing", ["calibration", "baselines", "images", "intervals", "everything"])
def test_a_page_without_some_part_says_so_and_does_not_fail(missing, rows):
    if missing == "calibration":
        report = report_of(rows, calibrated=None)
        assert "No calibration" in words_of(report_page(report, rows))
    elif missing == "baselines":
        report = report_of(rows, train=())
        assert "no training split" in words_of(report_page(report, rows))
    elif missing == "images":
        report = report_of(rows)
        assert "<img" not in report_page(report, rows, lambda index: (None, None))
    elif missing == "intervals":
        one = [row | {"patient": 1} for row in rows]
        report = report_of(one)
        assert "Too few studies" in words_of(report_page(report, one))
    else:
        one = [{"uid": "a", "impression": NORMAL, "prediction": ""}]
        report = evaluation.build_report(one)
        assert "Too few studies" in words_of(report_page(report, one))
    report_markdown(report)


def test_sentences_follow_the_numbers(report):
    told = page.sentences(report)
    assert (
        f"from {report['finding_f1_micro']:.3f} to {report['shuffled']['finding_f1_micro']:.3f}"
        in told["image_shuffle"]
    )
    best = max(report["baselines"][name]["bleu4"] for name in BLIND)
    assert f"{best:.3f}" in told["scores"]
    assert "above" in told["scores"]
    assert "below" in page.sentences(report | {"bleu4": 0.0})["scores"]
    assert "level with" in page.sentences(report | {"bleu4": best + 1e-6})["scores"]
    assert "pneumothorax" in told["findings"], "never stated where it is true"
    inputs = {
        name: {"n": 9, "finding_f1_micro": f1}
        for name, f1 in (("both_views", 0.5), ("frontal_only", 0.5), ("lateral_only", 0.3))
    }
    assert "the frontal view alone does as well as both" in page.sentences(report | {"inputs": inputs})["inputs"]
    inputs["both_views"]["finding_f1_micro"] = 0.6
    assert "taking the lateral view away costs 0.100" in page.sentences(report | {"inputs": inputs})["inputs"]


@pytest.mark.parametrize(("real", "blind", "told"), [(0.62, 0.41, "chance alone could"), (0.3, 0.35, "no worse")])
def test_a_gain_that_is_not_proven_is_neither_denied_nor_claimed(report, real, blind, told):
    unproven = {"reads_images": False, "finding_f1_micro": real, "shuffled": {"finding_f1_micro": blind}}
    sentence = page.sentences(report | unproven)["image_shuffle"]
    assert told in sentence
    assert f"{real:.3f}" in sentence
    assert f"{blind:.3f}" in sentence


def test_the_sentence_on_the_image_shuffle_and_the_verdict_name_the_same_p(report):
    assert f"p = {report['permutation_p']:.3f}" in report["verdict"]
    assert f"probability {report['permutation_p']:.3f}." in page.sentences(report)["image_shuffle"]


@pytest.mark.parametrize(
    ("both", "frontal", "lateral", "told"),
    [
        (0.5, 0.5001, 0.3, "frontal view alone does as well as both"),
        (0.5, 0.3, 0.6, "lateral view alone does better than both"),
        (0.6, 0.5, 0.3, "taking the lateral view away costs 0.100"),
        (0.0, 0.0, 0.0, "no finding right"),
    ],
)
def test_what_a_view_is_worth_follows_the_numbers_shown(report, both, frontal, lateral, told):
    f1 = {"both_views": both, "frontal_only": frontal, "lateral_only": lateral}
    inputs = {name: {"n": 1, "finding_f1_micro": value} for name, value in f1.items()}
    sentence = page.sentences(report | {"inputs": inputs})["inputs"]
    assert told in sentence
    assert "1 study with" in sentence
    del inputs["lateral_only"]
    assert "cannot be told" in page.sentences(report | {"inputs": inputs})["inputs"]
    assert "not measured" in page.sentences(report | {"inputs": {}})["inputs"]


@pytest.mark.parametrize(
    ("one", "several", "small", "told"),
    [
        ([0.7, 0.8], [0.4, 0.6], False, "are harder than"),
        ([0.4, 0.6], [0.7, 0.8], False, "are easier than"),
        ([0.7, 0.8], [0.6, 0.75], False, "not clearly harder or easier"),
        ([0.6, 0.75], [0.7, 0.8], False, "not clearly harder or easier"),
        ([0.7, 0.8], [0.4, 0.6], True, "Too few studies"),
    ],
)
def test_kinds_of_studies_are_only_ranked_where_their_intervals_lie_apart(report, one, several, small, told):
    group = {
        name: {"small": small, "finding_f1_micro": sum(ci) / 2, "ci95": {"finding_f1_micro": ci}}
        for name, ci in (("one finding", one), ("several findings", several))
    }
    sentence = page.sentences(report | {"subgroups": {"findings": group}})["subgroups"]
    assert told in sentence
    assert ("Grey" in sentence) is small


def test_what_declining_gains_follows_the_curve(report):
    def told(*points):
        curve = [{"coverage": c, "risk": r, "threshold": 1 - c} for c, r in points]
        return page.sentences(report | {"calibration": report["calibration"] | {"risk_coverage": curve}})["risk"]

    assert "only the 50\N{NO-BREAK SPACE}%" in told((0.2, 0.0), (0.5, 0.1), (1.0, 0.4))
    assert "10\N{NO-BREAK SPACE}% of its texts are wrong in place of 40" in told((0.2, 0.0), (0.5, 0.1), (1.0, 0.4))
    assert "gains nothing" in told((0.5, 0.4), (1.0, 0.4))
    assert "gains nothing" in told((0.5, 0.5), (1.0, 0.4))
    assert "No text is wrong" in told((0.5, 0.0), (1.0, 0.0))
    assert "none to decline" in told((1.0, 0.4))


def test_what_a_finding_is_called_by_count_and_which_are_never_stated(report):
    def told(**recalls):
        rows = {name: {"n": 9 - i, "recall": r} for i, (name, r) in enumerate(recalls.items())}
        return page.sentences(report | {"per_finding": rows})["findings"]

    assert told(nodule=0.0).startswith("1 finding is stated here")
    assert "1 of 2 it never states where it is true (edema)" in told(nodule=0.5, edema=0.0)
    assert "4 of 4 it never states where they are true (first of all a, b, c)" in told(a=0.0, b=0.0, c=0.0, d=0.0)
    assert "each finding at least once" in told(nodule=0.5, edema=0.1)
    assert "of the commonest, nodule (n = 9)" in told(nodule=0.5, edema=0.1)


def test_one_study_is_not_called_studies():
    one = [{"uid": "a", "impression": NORMAL, "prediction": NORMAL}]
    report = evaluation.build_report(one)
    assert "1 study of 1 patient " in words_of(report_page(report, one)) + " "
    assert "1 study. Research use only" in report_markdown(report)


def test_kinds_of_marks_are_read_aloud(report, rows):
    """`hidden` would keep them from screen readers too."""
    html = report_page(report, rows)
    assert '<span class="aloud"> (missed)</span>' in html
    assert "<span hidden" not in html


def test_the_page_fits_a_phone(report, rows):
    assert_fits_a_phone(report_page(report, rows, lambda index: (Image.new("L", (60, 50), 90), None)))


def test_signatures_and_names_without_a_space_are_broken_so_that_a_phone_needs_no_scrolling(report, rows):
    html = report_page(report, rows)
    for words in ("footer p", ".case dt", ".case dd"):
        assert re.search(rf"^{re.escape(words)} {{[^}}]*overflow-wrap: anywhere", html, re.MULTILINE)


def test_real_and_shuffled_scores_are_both_seen_where_they_are_equal(report):
    equal = report | {"shuffled": {name: report[name] for name in figures.GAINS}}
    figure = figures._image_shuffle(equal)
    [axes] = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["right images", "other patients' images"]
    dots, rings = (
        [line for line in axes.lines if line.get_label() == name] for name in axes.get_legend_handles_labels()[1][:2]
    )
    assert len(dots) == len(rings) == len(figures.GAINS)
    for dot, ring in zip(dots, rings, strict=True):
        assert dot.get_xydata().tolist() == ring.get_xydata().tolist()
        assert ring.get_markerfacecolor() == "none"
        assert ring.get_markersize() > dot.get_markersize() + ring.get_markeredgewidth()


@pytest.mark.parametrize("name", ["image_shuffle", "inputs", "findings", "reliability", "risk"])
def test_axes_of_scores_run_from_zero_to_one(report, name):
    [axes] = figures.MAKERS[name](report).axes
    limits = [axes.get_xlim()] + [axes.get_ylim()] * (name in ("reliability", "risk"))
    assert limits == [pytest.approx((-0.02, 1.02))] * len(limits)


def test_thresholds_are_points_of_the_curve(report):
    points = page.thresholds(report)
    assert points[0]["coverage"] == 1
    curve = {point["coverage"]: point for point in report["calibration"]["risk_coverage"]}
    for point in points:
        assert point["risk"] == curve[point["coverage"]]["risk"]
        assert 0 <= curve[point["coverage"]]["threshold"] - point["threshold"] < 0.001, "never rounded up"
    assert page.thresholds(report | {"calibration": None}) == []
    two = [{"coverage": 0.4, "risk": 0.0, "threshold": 0.9}, {"coverage": 1.0, "risk": 0.3, "threshold": 0.2}]
    assert page.thresholds(report | {"calibration": {"risk_coverage": two}}) == two[::-1], "each once"


def test_a_bar_in_a_cell_does_not_end_the_cell():
    assert tables.table(["a"], [["x|y"]]).splitlines()[2] == "| x\\|y |"


def test_nothing_and_everything_read_as_such():
    assert (percent(0), percent(1)) == ("0\N{NO-BREAK SPACE}%", "100\N{NO-BREAK SPACE}%")
    assert (percent(0.0001), percent(0.99999)) == ("< 0.1\N{NO-BREAK SPACE}%", "> 99.9\N{NO-BREAK SPACE}%")


def test_no_figure_is_drawn_of_nothing():
    report = evaluation.build_report(rows_of([NORMAL] * 4, [NORMAL] * 4))
    assert set(figures.draw(report)) == {"image_shuffle"}
    assert "No text of this split states a finding." in page.sentences(report)["findings"]


def test_the_page_of_markdown_tells_what_the_model_was_shown_where_that_was_tried(report):
    assert "## Scores by what the model was shown" in report_markdown(report)
    assert "## Scores by what the model was shown" not in report_markdown(report | {"inputs": {}})


def test_the_score_table_has_the_model_every_baseline_and_the_oracle(report):
    lines = score_table(report).splitlines()
    assert len(lines) == 2 + 1 + 1 + len(report["baselines"]) + 1
    assert lines[2].startswith("| **model** |")
    assert f" {report['finding_f1_micro']:.3f} " in lines[2]


def test_the_folder_gets_all_files_or_keeps_the_old_ones(report, rows, tmp_path, monkeypatch):
    write_report(report, rows, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == set(REPORT_FILES)
    assert json.loads((tmp_path / "report.json").read_text(encoding="utf-8")) == report
    assert len((tmp_path / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == len(rows)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self, content):
        if "html" in self.name:
            raise OSError("no space left on device")
        return plain(self, content)

    plain = type(tmp_path).write_bytes
    monkeypatch.setattr(type(tmp_path), "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_report(report | {"n": 1}, rows, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
