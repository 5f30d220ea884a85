import json
import re

import pytest
from helpers import run_cxr

from hf_cxr import metrics
from hf_cxr.evaluation import bootstrap
from hf_cxr.evaluation.compare import compare, comparison_table
from hf_cxr.evaluation.compare_several import compare_page, compare_several

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


# --- more than two -----------------------------------------------------------------------------------------------


@pytest.fixture
def three(runs, tmp_path):
    worst = ["No acute disease." for _ in TRUTH]
    return [write_run(tmp_path / "worst", worst), *runs]


def test_of_several_runs_the_best_is_named_with_corrected_differences_of_every_pair(three, runs):
    comparison = compare_several(three)
    assert comparison["runs"] == ["worst", "worse", "better"]
    pairs = {(pair["a"], pair["b"]): pair for pair in comparison["pairs"]}
    assert list(pairs) == [("worst", "worse"), ("worst", "better"), ("worse", "better")]
    assert (
        "better is best (1.000), better than each of the others; worse is better than worst" in comparison["verdict"]
    )
    alone = compare(*runs)["scores"]["finding_f1_micro"]
    assert pairs["worse", "better"]["difference"] == pytest.approx(alone["difference"])
    assert pairs["worse", "better"]["ci95"] == pytest.approx(alone["ci95"], abs=0.03)
    for pair in pairs.values():
        assert pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1]
        assert pair["p"] <= pair["p_holm"] <= 3 * pair["p"]
    for name, run in zip(comparison["runs"], comparison["scores"]["bleu4"], strict=True):
        assert run["ci95"][0] <= run["value"] <= run["ci95"][1], name


def test_runs_that_say_the_same_are_not_told_apart_although_all_else_is(three, tmp_path):
    same = write_run(tmp_path / "same", TRUTH)
    told = compare_several([*three, same])["verdict"]
    assert "better is highest (1.000), not told apart from same, better than worst and worse" in told
    assert "same is better than worst" in told
    same_twice = [write_run(tmp_path / name, TRUTH) for name in ("b", "c")]
    assert "no difference between the 3 runs can be told" in compare_several([same, *same_twice])["verdict"]


def test_all_runs_are_scored_on_the_same_samples_of_patients():
    noise = ["Cardiomegaly." if i % 5 else "No acute disease." for i in range(40)]
    one, other = (metrics.study_statistics(said, TRUTH) for said in (noise, TRUTH))
    samples = bootstrap.run_samples([one, one, other], range(40), 0, 300)["bleu1"]
    assert samples.shape == (300, 3)
    assert (samples[:, 0] == samples[:, 1]).all()
    assert (samples[:, 0] != samples[:, 2]).any()


def test_holm_multiplies_the_smallest_p_by_all_and_keeps_the_order():
    assert bootstrap.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert bootstrap.holm([0.9, 0.8]) == [1.0, 1.0]
    assert bootstrap.holm([0.2]) == [0.2]


def test_with_many_pairs_a_clear_difference_is_still_told(tmp_path):
    """Of 1,000 samples no p-value is below 0.002: times 45 pairs it would tell nothing."""
    folders = [write_run(tmp_path / f"r{i}", TRUTH if i == 9 else ["No acute disease."] * 40) for i in range(10)]
    comparison = compare_several(folders)
    assert "18000 paired bootstrap samples" in comparison["signature"]
    assert "r9 is best" in comparison["verdict"]


def test_runs_in_folders_of_one_name_are_told_apart(tmp_path):
    for parent in ("x", "y"):
        (tmp_path / parent).mkdir()
    folders = [write_run(tmp_path / parent / "run", TRUTH) for parent in ("x", "y")]
    assert compare_several([*folders, write_run(tmp_path / "z", TRUTH)])["runs"] == ["x/run", "y/run", "z"]
    assert [compare(*folders)[key] for key in "ab"] == ["x/run", "y/run"]
    with pytest.raises(ValueError, match="x/run: is given twice"):
        compare_several([*folders, folders[0]])


def test_sections_of_several_runs_are_compared_each(tmp_path):
    def sectioned(name, findings):
        parts = [
            {
                "findings": {"reference": truth, "prediction": said},
                "impression": {"reference": truth, "prediction": truth},
            }
            for truth, said in zip(TRUTH, findings, strict=True)
        ]
        return write_run(tmp_path / name, TRUTH, sections=parts)

    comparison = compare_several([sectioned("a", TRUTH), sectioned("b", TRUTH), sectioned("c", ["Scoliosis."] * 40)])
    assert comparison["section"] == "impression"
    assert "no difference" in comparison["verdict"]
    assert (
        "a is highest (1.000), not told apart from b, better than c" in comparison["sections"]["findings"]["verdict"]
    )
    page = compare_page(comparison)
    assert "<h2>Findings: finding F1" in page
    assert len(set(re.findall(r' id="([^"]*)"', page))) == len(re.findall(r' id="([^"]*)"', page))


def test_the_command_compares_several_runs_and_writes_a_page_that_needs_nothing_else(three, tmp_path):
    done = run_cxr("compare", *three, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines()[:-1])) <= 80
    assert "better is best" in " ".join(done.stdout.split())
    assert done.stdout.splitlines()[-1] == f"Next: open {tmp_path / 'out' / 'compare.html'}"
    comparison = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    html = (tmp_path / "out" / "compare.html").read_text(encoding="utf-8")
    assert comparison["verdict"] in html
    assert not re.search(r"<(script|iframe|object|form|base|img)", html)
    assert all(address.startswith(("data:", "#")) for address in re.findall(r'(?:src|href)="([^"]*)"', html))
    for pair in comparison["pairs"]:
        assert f"<td>{pair['b']} − {pair['a']}</td><td>{pair['difference']:+.3f}</td>" in html
    done = run_cxr("compare", *three, "--json")
    assert json.loads(done.stdout) == comparison


@pytest.mark.parametrize(
    ("out", "told"), [("file", "is a file; name a folder"), ("/proc/1/x", "cannot be written to")]
)
def test_several_runs_are_not_written_where_that_cannot_be(three, tmp_path, out, told):
    (tmp_path / "file").touch()
    done = run_cxr("compare", *three, "--out", tmp_path / out)
    assert done.returncode == 2
    assert told in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_third_run_of_other_studies_is_one_clear_error(three, tmp_path):
    other = write_run(tmp_path / "other", TRUTH[:39], truth=TRUTH[:39])
    done = run_cxr("compare", *three, other)
    assert done.returncode == 2
    assert f"study u39 is in {three[0]} only: compare runs on the same split" in done.stderr


def test_a_text_may_hold_the_line_ends_of_unicode(tmp_path):
    for name in ("a", "b"):
        rows = [
            {"uid": str(i), "patient": i, "impression": "Edema.\u2028Mass.", "prediction": f"{name}\u0085Edema."}
            for i in range(4)
        ]
        (tmp_path / name).mkdir()
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (tmp_path / name / "predictions.jsonl").write_text(lines, encoding="utf-8")
    assert compare(str(tmp_path / "a"), str(tmp_path / "b"))["n"] == 4
