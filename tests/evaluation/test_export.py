"""Texts of a run in the forms that ReXrank, RadEval, CXRMate and VLM kits read, and ReXrank's own studies answered."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers import ROOT, copy_folder, radiograph, run_forked
from PIL import Image

from hf_cxr.cli.predictions import FORMATS as NAMED
from hf_cxr.data.prepared import load_prepared
from hf_cxr.evaluation.compare import read_predictions
from hf_cxr.evaluation.export import FORMATS, _context, answer_rexrank, export_predictions
from hf_cxr.inference.pipeline import ImpressionPipeline
from hf_cxr.models.modeling import load_checkpoint


@pytest.fixture
def written(run_folder, phantom_folder, tmp_path):
    """The run's rows, and what is in the file of a format."""

    def write(form, run=run_folder):
        out = tmp_path / form
        assert export_predictions(form, run, phantom_folder, out) == len(read_predictions(str(run)))
        return out.read_text(encoding="utf-8")

    return write


@pytest.fixture
def report_run(run_folder, phantom_folder, tmp_path):
    """A folder with the predictions of a model that writes findings and an impression."""
    run, test = tmp_path / "report", load_prepared(phantom_folder)["test"]
    run.mkdir()
    rows = []
    for uid, findings, impression in zip(test["uid"], test["findings"], test["impression"], strict=True):
        parts = {
            "findings": {"reference": findings, "prediction": f"Lungs of {uid}."},
            "impression": {"reference": impression, "prediction": "Normal, as said."},
        }
        rows.append({"uid": uid, "impression": impression, "prediction": "Normal, as said.", "sections": parts})
    (run / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return run


def test_every_format_has_its_source_and_the_command_knows_it():
    assert tuple(FORMATS) == NAMED
    assert all(": " in source for _, source in FORMATS.values())


def test_radeval_gets_references_and_hypotheses_in_one_order(run_folder, written):
    told, rows = json.loads(written("radeval")), read_predictions(str(run_folder)).values()
    assert set(told) == {"references", "hypotheses"}
    assert told["references"] == [row["impression"] for row in rows]
    assert told["hypotheses"] == [row["prediction"] for row in rows]


def test_cxrmate_gets_a_column_for_each_section(report_run, run_folder, written):
    rows = list(csv.DictReader(written("cxrmate", report_run).splitlines()))
    assert list(rows[0]) == ["findings", "impression", "study_id"]
    assert rows[0]["findings"] == f"Lungs of {rows[0]['study_id']}."
    assert rows[0]["impression"] == "Normal, as said."
    alone = next(csv.DictReader(written("cxrmate").splitlines()))
    assert alone["findings"] == ""
    assert alone["impression"] == read_predictions(str(run_folder))[alone["study_id"]]["prediction"]


def test_vision_language_kits_get_a_line_a_study_with_both_texts(report_run, phantom_folder, written):
    rows = [json.loads(line) for line in written("vlm", report_run).splitlines()]
    test = load_prepared(phantom_folder)["test"]
    assert [row["question_id"] for row in rows] == test["uid"][:]
    for row, findings, impression in zip(rows, test["findings"], test["impression"], strict=True):
        assert row["reference"] == f"{findings} {impression}"
        assert row["prediction"] == row["text"] == f"Lungs of {row['question_id']}. Normal, as said."


def test_rexrank_gets_both_sections_of_the_radiologist_and_headed_predictions(report_run, run_folder, written):
    for run in (run_folder, report_run):
        told = json.loads(written("rexrank", run))
        for uid, row in read_predictions(str(run)).items():
            study = told[uid]
            assert study["section_impression"] == row["impression"]
            assert study["report"] == f"Findings: {study['section_findings']} Impression: {row['impression']}"
            assert study["split"] == "test"
            findings = "" if run == run_folder else f"Findings: Lungs of {uid}. "
            assert study["model_prediction"] == f"{findings}Impression: {row['prediction']}"


def test_predictions_of_another_dataset_are_refused_and_nothing_is_written(run_folder, phantom_folder, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    first, *others = (run_folder / "predictions.jsonl").read_text().splitlines()
    for change, told in (
        ({"uid": "u7"}, "study u7 of .* is not in"),
        ({"impression": "Else."}, "has another text in"),
    ):
        changed = json.dumps(json.loads(first) | change)
        (run / "predictions.jsonl").write_text("\n".join([changed, *others]))
        with pytest.raises(ValueError, match=told):
            export_predictions("vlm", run, phantom_folder, tmp_path / "out")
    with pytest.raises(ValueError, match="no format 'else'; there are rexrank, radeval"):
        export_predictions("else", run_folder, phantom_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def rexrank(tmp_path):
    """Three studies in ReXrank's form, with images."""
    folder = tmp_path / "images"
    (folder / "s1").mkdir(parents=True)
    for number in range(4):
        Image.fromarray(radiograph(number)).save(folder / "s1" / f"{number}.png")
    both = {"image_path": ["s1/0.png", "s1/1.png"], "frontal_lateral": ["Lateral", "Frontal"]}
    words = {"image_path": ["/s1/2.png", "/s1/1.png", "/s1/3.png", "/s1/0.png"]}
    words |= {"frontal_lateral": ["postero-anterior", "antero-posterior", "left lateral", "lateral"]}
    studies = {
        "a": both
        | {"key_image_path": "s1/1.png", "section_impression": float("nan"), "context": "Indication: Cough."},
        "b": words | {"key_image_path": "/s1/1.png", "context": "Age:77.0.Gender:F.Indication:nanComparison: None."},
        "c": {"image_path": ["s1/2.png"], "frontal_lateral": ["Frontal"]},
    }
    file = tmp_path / "ReXRank_test.json"
    file.write_text(json.dumps(studies))
    return file, folder


def test_rexranks_studies_are_answered_from_their_frontal_and_lateral_image(talkative_run, rexrank, tmp_path):
    file, folder = rexrank
    assert answer_rexrank(talkative_run, file, tmp_path / "out.json", folder) == 3
    told, given = json.loads((tmp_path / "out.json").read_text()), json.loads(file.read_text())
    assert list(told) == ["a", "b", "c"]
    for name, study in given.items():
        assert {key: told[name][key] for key in study if study[key] == study[key]} == {
            key: study[key] for key in study if study[key] == study[key]
        }
    assert np.isnan(told["a"]["section_impression"])
    parts = load_checkpoint(str(talkative_run))
    pipe = ImpressionPipeline(model=parts.model, tokenizer=parts.tokenizer, image_processor=parts.image_processor)
    images = [str(folder / "s1" / f"{number}.png") for number in range(4)]
    for name, frontal, lateral in (("a", 1, 0), ("b", 1, 3), ("c", 2, None)):
        [answer] = pipe(frontal=images[frontal], lateral=None if lateral is None else images[lateral])
        assert told[name]["model_prediction"] == f"Impression: {answer['impression']}"
    assert len({study["model_prediction"] for study in told.values()}) == 3


def test_their_context_is_read_as_far_as_it_says_something():
    assert _context("Age:50-60.Gender:M.Indication: ___-year-old. Comparison: None.") == {
        "age": 55,
        "sex": "M",
        "indication": "___-year-old.",
        "comparison": "None.",
    }
    assert _context("Age:77.0.Gender:F.Indication:nanComparison: None.") == {
        "age": 77,
        "sex": "F",
        "comparison": "None.",
    }
    assert _context("Indication: cough\nfor 2 weeks") == {"indication": "cough\nfor 2 weeks"}
    assert _context(None) == _context(float("nan")) == {}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[]", "not a JSON file of ReXrank's studies"),
        ("{", "not a JSON file of ReXrank's studies"),
        ('{"a": {"image_path": ["1.png"]}}', "frontal_lateral"),
        (
            '{"a": {"image_path": ["1.png"], "frontal_lateral": ["Oblique"]}}',
            "study a lists no frontal and no lateral",
        ),
    ],
)
def test_what_is_not_rexranks_is_refused_before_a_model_is_loaded(text, told, tmp_path):
    (tmp_path / "in.json").write_text(text)
    with pytest.raises(ValueError, match=told) as error:
        answer_rexrank(tmp_path / "no checkpoint", tmp_path / "in.json", tmp_path / "out.json")
    assert "\n" not in str(error.value)


def test_the_script_beside_a_checkpoint_answers_both_documented_commands(talkative_run, rexrank, tmp_path):
    run = copy_folder(talkative_run, tmp_path / "submission")
    shutil.copy(ROOT / "scripts" / "inference.py", run)
    file, folder = rexrank
    answers = []
    for place, words in (
        ("a.json", [file, tmp_path / "a.json", folder]),
        ("b.json", ["--input_json_file", file, "--save_json_file", tmp_path / "b.json", "--img_root_dir", folder]),
    ):
        done = run_forked(script=[str(run / "inference.py"), *map(str, words)])
        assert done.returncode == 0, done.stderr[-2000:]
        answers.append((tmp_path / place).read_text())
    assert answers[0] == answers[1]
    assert answers[0].count("model_prediction") == 3
    assert run_forked(script=[str(run / "inference.py"), str(file)]).returncode == 2
