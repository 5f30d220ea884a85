"""Sections and context in a report: planted models of each kind get the verdict that they earn, and what a real model
is asked with shuffled images and shuffled context is what `generate` writes for them."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import DatasetDict
from helpers import TEXTS, talkative, tiny_checkpoint

from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation import bootstrap, context_use
from hf_cxr.evaluation import evaluate as evaluation
from hf_cxr.evaluation.compare import compare, comparison_table
from hf_cxr.evaluation.prediction import Writer, Written, contexts, open_canvases
from hf_cxr.evaluation.report import page, report_markdown, tables
from hf_cxr.evaluation.report.verdict import verdict
from hf_cxr.inference.pipeline import generate
from hf_cxr.inference.sections import Layout, prompt_ids, split_sections
from hf_cxr.models.modeling import build

NORMAL = "No acute cardiopulmonary abnormality."
SEEN = [NORMAL, "Cardiomegaly.", "Scoliosis.", "Right pneumothorax."]  # by the images alone
TOLD = [NORMAL, "Pulmonary edema.", "Hiatal hernia.", "Left pleural effusion."]  # and these by the question alone
STUDIES = 160
RNG = np.random.default_rng(0)
IMAGE, QUESTION = RNG.integers(4, size=STUDIES), RNG.integers(4, size=STUDIES)
TRUTHS = [f"{SEEN[image]} {TOLD[question]}" for image, question in zip(IMAGE, QUESTION, strict=True)]
MARKS = {"views": "both", "matched": [], "missed": ["scoliosis"], "invented": []}
PLANTED = {
    "parrot": lambda image, prompt: TOLD[prompt[0]] if prompt else NORMAL,
    "image reader": lambda image, prompt: SEEN[IMAGE[image]],
    "reader of both": lambda image, prompt: f"{SEEN[IMAGE[image]]} {TOLD[prompt[0]] if prompt else NORMAL}",
    "constant": lambda image, prompt: "Cardiomegaly.",
    "misled by the images": lambda image, prompt: f"{SEEN[(IMAGE[image] + 1) % 4]} {TOLD[prompt[0]]}",
    "misled by the context": lambda image, prompt: f"{SEEN[IMAGE[image]]} {TOLD[(prompt[0] + 1) % 4]}",
    "misled by the context alone": lambda image, prompt: TOLD[(prompt[0] + 1) % 4],
}


def planted_report(say, context=True, studies=STUDIES):
    """The report of a model that says `say(number of the image, prompt)`, by the real shuffling and scoring."""

    def write(canvas, indices, description="", prompt=lambda index: ()):
        return [Written({"impression": say(canvas(index), prompt(index))}, 0.5, False) for index in indices]

    prompts = [(int(question),) if context else () for question in QUESTION[:studies]]
    writer, canvases = SimpleNamespace(write=write), SimpleNamespace(canvas=lambda index: index)
    shuffled = context_use.write_shuffled(writer, canvases, prompts, 0)
    rows = [
        {"uid": str(i), "impression": TRUTHS[i], "prediction": say(i, prompt), "score": 0.5, **MARKS}
        | {"context": {"indication": f"{prompt[0]}?"} if prompt else {}}
        for i, prompt in enumerate(prompts)
    ]
    texts = context_use.texts_of_section(shuffled, "impression")
    return evaluation.build_report(rows, TRUTHS, TRUTHS, shuffled=texts) | {"context": ["indication"]}, rows


@pytest.mark.parametrize(
    ("name", "images", "context", "told"),
    [
        ("parrot", False, True, ("Does not read the images (+0.00 ", "): it reads the context (+0.")),
        ("image reader", True, False, ("Reads the images: yes (+0.", "; does not read the context (+0.00 ")),
        ("reader of both", True, True, ("Reads the images: yes (+0.", "; reads the context: yes (+0.")),
        ("constant", False, False, ("Does not read the images (+0.00 ", ") nor the context (+0.00 ")),
    ],
)
def test_each_planted_model_gets_the_verdict_that_it_earns(name, images, context, told):
    report, _ = planted_report(PLANTED[name])
    assert (report["reads_images"], report["reads_context"]) == (images, context)
    assert report["verdict"].startswith(told[0])
    assert told[1] in report["verdict"]
    assert (report["image_gain"]["finding_f1_micro"] > 0.05) == images
    assert (report["context_gain"]["finding_f1_micro"] > 0.05) == context
    assert (report["both_gain"]["finding_f1_micro"] > 0.05) == (images or context)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("misled by the images", ("Harmed by the images (-0.", "; reads the context: yes (+0.")),
        ("misled by the context", ("Reads the images: yes (+0.", "; harmed by the context (-0.")),
        ("misled by the context alone", ("Does not read the images (+0.00", "; harmed by the context (-0.")),
    ],
)
def test_a_model_that_is_misled_is_told_by_what(name, told):
    report, _ = planted_report(PLANTED[name])
    assert report["verdict"].startswith(told[0])
    assert told[1] in report["verdict"]
    assert (report["reads_images"], report["reads_context"]) == tuple("yes" in part for part in told)


@pytest.mark.parametrize("what", ["image", "context"])
def test_what_is_read_needs_both_an_interval_above_zero_and_a_small_p(what):
    report, _ = planted_report(PLANTED["reader of both"])
    key, by, told = "reads_images" if what == "image" else "reads_context", "finding_f1_micro", verdict
    assert told(report)[key]
    assert not told(report | {f"{what}_gain_p": {by: 0.02}})[key]
    assert not told(report | {f"{what}_gain_ci95": {by: [-0.01, 0.3]}})[key]
    assert not told(report | {f"{what}_gain_ci95": {by: [0.0, 0.3]}})[key]
    harmed = report | {f"{what}_gain_ci95": {by: [-0.3, -0.1]}}
    assert "armed by the" in told(harmed)["verdict"]
    assert "armed by the" not in told(harmed | {f"{what}_gain_p": {by: 0.02}})["verdict"]
    assert "All radiologists' texts state the same" in told(report | {"permutation_p": None})["verdict"]


def test_the_parrot_passes_the_test_that_permutes_texts_which_is_why_its_verdict_goes_by_another():
    report, _ = planted_report(PLANTED["parrot"])
    assert report["permutation_p"] <= 0.01
    assert report["image_gain_p"]["finding_f1_micro"] == 1
    assert report["image_gain_ci95"]["finding_f1_micro"] == [0, 0]
    assert "images and context count as read by the bootstrap's interval and p ≤ 0.01" in report["signature"]


def test_a_split_without_any_context_is_told_and_so_is_one_study():
    report, _ = planted_report(PLANTED["reader of both"], context=False)
    assert (report["reads_images"], report["reads_context"], report["with_context"]) == (True, None, {})
    assert "no study has a context, so whether it reads that cannot be told" in report["verdict"]
    assert "indication (0 of 160 studies)" in tables.scope(report)
    head, rows = tables.section_cells(report | {"sections": {"impression": report, "report": report}})
    told = dict(zip(head, rows[0], strict=True))
    assert (told["reads the images"], told["reads the context"]) == ("yes", "cannot be told")
    one, rows = planted_report(PLANTED["parrot"], studies=1)
    assert (one["reads_images"], one["reads_context"], one["shuffled_context"], one["both_gain"]) == (
        None,
        None,
        {},
        {},
    )
    assert "Too few studies" in one["verdict"]
    assert page.report_page(one, rows)
    assert report_markdown(one)


def test_page_and_markdown_show_what_images_and_context_are_worth():
    report, rows = planted_report(PLANTED["parrot"])
    html, text = page.report_page(report, rows), report_markdown(report)
    assert "This model does not read the images: it reads the context." in html
    for name in ("image", "context", "both"):
        assert f"{report[f'{name}_gain']['finding_f1_micro']:+.3f}" in html
        assert f"{report[f'{name}_gain']['finding_f1_micro']:+.3f}" in text
    assert "indication (160 of 160 studies)" in html
    assert "given: indication" in html
    assert "model, context shuffled" in text


# --- real models -------------------------------------------------------------------------------------------------


def laid_out(layout):
    """A talkative checkpoint of random weights with a layout."""
    torch.manual_seed(0)
    checkpoint = build("tiny", "tiny", 32, texts=TEXTS, vocab_size=350, max_new_tokens=16, layout=layout)
    return talkative(checkpoint, eyes=2)


@pytest.fixture(scope="module")
def dataset(phantom_folder):
    """Few studies; one of the test split lacks findings, one an indication."""
    train = load_prepared(str(phantom_folder))["train"]

    def poorer(row, index):
        return {"findings": row["findings"] * (index != 3), "indication": row["indication"] * (index != 5)}

    test = train.select(range(100, 116)).map(poorer, with_indices=True, features=train.features)
    return DatasetDict(train=train.select(range(40)), validation=train.select(range(40, 60)), test=test)


@pytest.fixture(scope="module")
def asked(dataset, tmp_path_factory):
    """The report of a model of both sections with the indication as context."""
    out = tmp_path_factory.mktemp("asked")
    checkpoint = laid_out(Layout(("findings", "impression"), ("indication",)))
    report = evaluation.evaluate(checkpoint, dataset, out=out, batch_size=8)
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return report, rows, out, checkpoint


def test_shuffled_context_is_what_generate_writes_for_the_prompt_of_another_study(dataset):
    layout = Layout(context=("indication",))
    checkpoint = laid_out(layout)
    writer, studies = Writer(checkpoint, 8), dataset["test"]
    canvases, prompts = open_canvases(checkpoint, studies), writer.prompts(studies)
    assert [len(ids) > 1 for ids in prompts] == [index != 5 for index in range(16)]
    runs = context_use.write_shuffled(writer, canvases, prompts, 0)
    orders = list(bootstrap.derangements(16, 0, context_use.PERMUTATIONS))

    def said(image, question):
        given = prompt_ids(checkpoint.tokenizer, layout, contexts(studies)[question])
        pixels = writer._pixels([canvases.canvas(image)])
        output = generate(checkpoint.model, pixels, [given], checkpoint.tokenizer)
        return split_sections(checkpoint.tokenizer, layout, output["sequences"][0, 0].tolist())["impression"]

    own = [text.text for text in writer.write(canvases.canvas, range(16), prompt=prompts.__getitem__)]
    assert own != [text.text for text in runs["context"][0]]
    for place in (0, 5, 11):  # the one without an indication among them
        assert own[place] == said(place, place)
        assert [run[place].text for run in runs["context"]] == [said(place, order[place]) for order in orders]
        assert [run[place].text for run in runs["image"]] == [said(order[place], place) for order in orders]


def test_every_section_has_scores_baselines_shuffles_and_intervals_of_its_own(asked, dataset):
    report, _, _, _ = asked
    assert report["target"] == "report"
    assert list(report["sections"]) == ["impression", "findings", "report"]
    for name, part in report["sections"].items():
        for what in ("image", "context", "both"):
            assert set(part[f"{what}_gain"]) == set(part[f"{what}_gain_ci95"]) == set(part[f"{what}_gain_p"])
        assert part["shuffled"]
        assert part["shuffled_context"]
        assert part["shuffled_both"]
        assert part["ci95"]
        assert part["verdict"]
        assert {"without_context", "context_only", "mean_image"} <= set(part["inputs"])
        train = set(evaluation.texts_of(dataset, "train", name))
        assert {part["baselines"]["most_frequent"]["modal_output"]} - {None} <= train
    own = report["sections"]["impression"]
    assert {key: report[key] for key in own} == own
    constants = [part["baselines"]["best_constant"]["bleu1"] for part in report["sections"].values()]
    assert len(set(constants)) == 3
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_studies_without_a_section_are_counted_and_left_out(asked):
    report, rows, _, _ = asked
    assert report["left_out"] == {"test": 1}
    assert report["n"] == len(rows) == 15
    assert report["with_context"] == {"indication": 14}
    assert "Studies left out, as they lack a section that the model writes: test 1." in tables.scope(report)


def test_rows_hold_both_texts_and_the_context(asked, dataset):
    _, rows, _, _ = asked
    kept = [study for index, study in enumerate(dataset["test"]) if index != 3]
    for row, study in zip(rows, kept, strict=True):
        parts = row["sections"]
        assert {name: part["reference"] for name, part in parts.items()} == {
            "findings": study["findings"],
            "impression": study["impression"],
        }
        assert (row["impression"], row["prediction"]) == tuple(
            parts["impression"][k] for k in ("reference", "prediction")
        )
        assert row["context"].get("indication", "") == study["indication"]
        assert all(part["prediction"] for part in parts.values())


def test_the_page_of_sections_is_one_file_and_shows_each_of_them(asked):
    report, rows, out, _ = asked
    html = (out / "report.html").read_text(encoding="utf-8")
    assert html.count("<script") == 1, "that which steps through the studies"
    assert "http://" not in html
    assert "https://" not in html
    for text in (html, (out / "report.md").read_text(encoding="utf-8")):
        for part in report["sections"].values():
            assert f"{part['bleu1']:.3f}" in text
        assert "Scores by section" in text
        assert "Images and context" in text
    worst = rows[page.choose(rows)["worst"][0]]
    assert "radiologist, findings" in html
    assert page.template(page.TEMPLATE).environment.filters["e"](worst["sections"]["findings"]["reference"]) in html


def test_a_model_of_findings_has_its_truths_under_their_own_name_and_compares_with_a_report(asked, dataset, tmp_path):
    report = evaluation.evaluate(laid_out(Layout(("findings",))), dataset, out=tmp_path / "findings", batch_size=8)
    rows = [json.loads(line) for line in (tmp_path / "findings/predictions.jsonl").read_text().splitlines()]
    assert (report["target"], "sections" in report, "shuffled_context" in report) == ("findings", False, False)
    assert all("findings" in row and "impression" not in row for row in rows)
    comparison = compare(str(asked[2]), str(tmp_path / "findings"))
    assert comparison["section"] == "findings"
    both = compare(str(asked[2]), str(asked[2]))
    assert both["section"] == "impression"
    assert list(both["sections"]) == ["impression", "findings"]
    assert "| findings: finding F1 (micro) |" in comparison_table(both)


def test_runs_without_a_common_section_are_not_compared(tmp_path):
    for name in ("findings", "impression"):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"uid": str(i), name: text, "prediction": text}) + "\n" for i, text in enumerate(TEXTS)]
        (tmp_path / name / "predictions.jsonl").write_text("".join(lines))
    with pytest.raises(ValueError, match="no section of both"):
        compare(str(tmp_path / "findings"), str(tmp_path / "impression"))


def test_a_plain_model_is_asked_as_before(dataset):
    torch.manual_seed(0)
    report = evaluation.evaluate(talkative(tiny_checkpoint(), eyes=2), DatasetDict(test=dataset["test"]))
    assert report["target"] == "impression"
    assert not {"sections", "left_out", "context", "context_gain", "reads_context"} & set(report)
    assert set(report["inputs"]) <= {"mean_image", "both_views", "frontal_only", "lateral_only"}
