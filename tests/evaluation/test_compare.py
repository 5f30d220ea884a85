import json

import pytest
from helpers import run_cxr

from hf_cxr.evaluation.compare import compare, comparison_table

TRUTH = ["No acute disease.", "Cardiomegaly.", "Small left pleural effusion.", "Right pneumothorax."] * 10


def write_run(folder, said, truth=TRUTH, **more):
    folder.mkdir()
    rows = [
        {"uid": f"u{i}", "impression": t, "prediction": s} | {key: values[i] for key, values in more.items()}
        for i, (s, t) in enumerate(zip(said, truth, strict=True))
    ]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    worse = [t if i % 3 else "No acute disease." for i, t in enumerate(TRUTH)]
    return write_run(tmp_path / "worse", worse), write_run(tmp_path / "better", TRUTH)


def test_the_better_run_is_named_with_its_difference_interval_and_probability(runs):
    comparison = compare(*runs)
    row = comparison["scores"]["finding_f1_micro"]
    assert row["b"] == 1
    assert 0 < row["ci95"][0] <= row["difference"] <= row["ci95"][1]
    assert row["probability"] > 0.95
    assert "B is better" in comparison["verdict"]
    assert "A is better" in compare(*reversed(runs))["verdict"]
    assert "| finding F1 (micro) |" in comparison_table(comparison)


def test_two_equal_runs_are_not_told_apart(runs):
    assert "no difference can be told" in compare(runs[1], runs[1])["verdict"]


def test_the_order_of_the_rows_makes_no_difference(runs, tmp_path):
    lines = (tmp_path / "better" / "predictions.jsonl").read_text().splitlines(keepends=True)
    expected = compare(*runs)
    (tmp_path / "better" / "predictions.jsonl").write_text("".join(reversed(lines)))
    assert compare(*runs) == expected


def test_patients_not_studies_are_drawn(tmp_path):
    worse = [t if i % 3 else "No acute disease." for i, t in enumerate(TRUTH)]
    patient = [i // 10 for i in range(40)]
    a, b = write_run(tmp_path / "a", worse, patient=patient), write_run(tmp_path / "b", TRUTH, patient=patient)
    assert compare(a, b)["patients"] == 4


@pytest.mark.parametrize("command", [["--json"], []])
def test_the_command_prints_a_table_or_json(runs, tmp_path, command):
    done = run_cxr("compare", *runs, "--out", tmp_path / "c.json", *command)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "c.json").read_text())["n"] == 40
    if command:
        assert json.loads(done.stdout)["scores"]["bleu4"]["b"] == pytest.approx(1)
    else:
        assert "B is better" in done.stdout


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: text[: text.rindex('{"uid')], "in .* only"),
        (lambda text: text.replace("Cardiomegaly", "Heart big", 1), "different texts"),
        (lambda text: text + text.splitlines()[0], "there twice"),
        (lambda text: text[:-9], "line 40: not a row"),
        (lambda text: text.replace('"prediction"', '"said"'), "line 1: not a row"),
        (lambda text: "", "empty"),
    ],
)
def test_runs_that_cannot_be_compared_are_one_clear_error(runs, tmp_path, spoil, told):
    file = tmp_path / "better" / "predictions.jsonl"
    text = file.read_text().replace('"impression": "Cardiomegaly', '"impression": "Cardiomegaly')
    file.write_text(spoil(text))
    with pytest.raises(ValueError, match=told):
        compare(*runs)


def test_studies_of_one_patient_are_too_few(runs, tmp_path):
    for file in tmp_path.glob("*/predictions.jsonl"):
        rows = [json.dumps(json.loads(line) | {"patient": "1"}) for line in file.read_text().splitlines()]
        file.write_text("\n".join(rows))
    with pytest.raises(ValueError, match="40 studies of one patient are too few"):
        compare(*runs)


def test_a_run_without_predictions_says_how_to_make_them(runs, tmp_path):
    (tmp_path / "unscored").mkdir()
    done = run_cxr("compare", runs[0], tmp_path / "unscored")
    assert done.returncode == 2
    assert "hf-cxr evaluate" in done.stderr
    assert len(done.stderr.splitlines()) == 1
