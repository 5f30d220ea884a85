import csv
import json
import re

import pytest
from helpers import radiograph, run_cxr, run_installed, vit_folder, write_config
from PIL import Image

from hf_cxr.cli.commands import COMMANDS
from hf_cxr.cli.parser import main, make_parser
from hf_cxr.cli.terminal import printable
from hf_cxr.evaluation.report import REPORT_FILES


@pytest.fixture
def image(tmp_path) -> str:
    Image.fromarray(radiograph(1)).save(tmp_path / "frontal.png")
    return str(tmp_path / "frontal.png")


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_every_command_has_help_with_an_example(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    assert f"example:\n  hf-cxr {command}" in capsys.readouterr().out


def bad_inputs(tmp_path, phantom_folder, run_folder):
    """Command words → what the one line must say."""
    empty = tmp_path / "empty"
    empty.mkdir()
    config = write_config(tmp_path / "bad.yaml", dataset=str(phantom_folder), learning_rat=1)
    nowhere = write_config(tmp_path / "nowhere.yaml", dataset=str(tmp_path / "none"), output_dir=str(tmp_path / "run"))
    (tmp_path / "truncated.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    Image.fromarray(radiograph(1)).save(tmp_path / "whole.png")
    (tmp_path / "table.csv").write_text("uid,image\n1,a.png\n")
    vit = vit_folder(tmp_path / "vit")
    out = str(tmp_path / "out")
    run = str(run_folder)
    return {
        ("prepare", "kaggle", "--root", str(tmp_path / "none"), "--out", out): "none",
        ("prepare", "kagle", "--root", str(tmp_path), "--out", out): "kaggle",
        ("prepare", "kaggle", "--root", str(tmp_path), "--out", out): "indiana_reports.csv",
        ("prepare", "phantom", "--out", out, "--num-studies", "many"): "--num-studies",
        ("prepare", "phantom"): "--out is missing",
        ("prepare", "phantom", "--out", out, "--size", "4"): "size must be",
        ("prepare", "phantom", "--out", out, "--columns", "frontal"): "expected OURS=YOURS",
        ("prepare", "phantom", "--out", out, "--columns", "frontal=f"): "'columns'",
        ("prepare", "phantom", "--out", out, "--views", str(tmp_path / "no.csv")): "no.csv",
        ("prepare", "openi", "--root", str(tmp_path / "none"), "--out", out): "none",
        ("prepare", "r2gen", "--root", str(tmp_path), "--out", out): "annotation.json",
        ("prepare", "table", "--root", str(tmp_path / "table.csv"), "--out", out): "table.csv",
        ("explore", str(tmp_path), "--out", out): "run hf-cxr prepare",
        ("download", "openi", "--out", out): "--accept-licence",
        ("download", "mimic", "--out", out): "openi",
        ("train", str(config)): "did you mean 'learning_rate'",
        ("train", str(tmp_path / "no.yaml")): "no such config file",
        ("train", str(nowhere)): "no such prepared dataset",
        ("evaluate", vit, str(phantom_folder)): "type 'vit'",
        ("evaluate", str(tmp_path), str(phantom_folder)): "config.json is missing",
        ("evaluate", run, str(tmp_path)): "run hf-cxr prepare",
        ("evaluate", run, str(phantom_folder), "--split", "best"): "no split 'best'",
        ("evaluate", run, str(phantom_folder), "--num-beams", "0"): "'0' is no whole number of 1 or more",
        ("evaluate", run, str(phantom_folder), "--batch-size", "-4"): "'-4' is no whole number of 1 or more",
        ("predict", run): "no image given",
        ("predict", run, "--csv", "a.csv", "--lateral", "l.png"): "--csv or --lateral: not both",
        ("predict", run, "--frontal", str(tmp_path), "--lateral", "l.png"): "one is a folder, the other is not",
        ("predict", run, "--frontal", str(empty)): "empty: no files",
        (
            "predict",
            run,
            "--frontal",
            str(tmp_path / "whole.png"),
            "--max-new-tokens",
            "999",
        ): "decoder writes 1 to",
        ("predict", run, "--frontal", str(tmp_path / "none.png")): "none.png",
        ("predict", run, "--frontal", str(tmp_path / "truncated.png")): "truncated.png",
        ("predict", run, "--csv", str(tmp_path / "table.csv"), "--columns", "frontal=pa"): "no column 'pa'",
        ("push", str(tmp_path), "user/name"): "neither a checkpoint",
    }


def test_bad_input_is_one_clear_line_and_exit_2_and_writes_nothing(tmp_path, phantom_folder, run_folder, capsys):
    cases = bad_inputs(tmp_path, phantom_folder, run_folder)
    capsys.readouterr()
    for words, message in cases.items():
        try:
            status = main(list(words))
        except SystemExit as exit:
            status = exit.code
        err = capsys.readouterr().err.strip()
        assert status == 2, words
        assert message in err, (words, err)
        assert len(err.splitlines()) == 1, (words, err)
        assert not (tmp_path / "out").exists()
        assert not (tmp_path / "run").exists()


def test_a_plan_counts_studies_and_views_without_an_image_and_writes_nothing(iu, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "kaggle", "--root", str(iu), "--plan"]) == 0
    said = capsys.readouterr().out
    assert "3,851" in said
    assert "3,826  (−25)" in said
    assert main(["prepare", "kaggle", "--root", str(iu), "--plan", "--section", "impression"]) == 0
    said = capsys.readouterr().out
    assert "3,820  (−31)" in said
    assert "both: 3,370, frontal only: 290, lateral only: 160" in said
    assert list(tmp_path.iterdir()) == []


def test_prepare_and_explore_through_the_installed_command(tmp_path):
    done = run_installed("prepare", "phantom", "--num-studies", "60", "--size", "48", "--out", tmp_path / "data")
    assert done.returncode == 0, done.stderr
    assert "in the source" in done.stdout
    assert "\nNext: hf-cxr explore " in done.stdout
    done = run_installed("explore", tmp_path / "data", "--out", tmp_path / "page", "--findings", "cardiomegaly")
    assert done.returncode == 0, done.stderr
    assert f"\nNext: open {tmp_path / 'page' / 'index.html'} · hf-cxr train " in done.stdout
    assert (tmp_path / "page" / "index.html").is_file()
    assert (tmp_path / "page" / "explore.json").is_file()


def test_debug_shows_the_traceback(tmp_path):
    result = run_cxr("push", tmp_path, "user/name", "--debug")
    assert "Traceback" in result.stderr


def test_predict_prints_one_impression_and_json_alone_to_stdout(run_folder, image):
    plain = run_cxr("predict", run_folder, "--frontal", image)
    assert plain.returncode == 0, plain.stderr
    assert len(plain.stdout.splitlines()) == 1
    assert re.search(r"\S \(score [01]\.\d\d\)$", plain.stdout.strip())
    row = json.loads(run_cxr("predict", run_folder, "--frontal", image, "--lateral", image, "--json").stdout)
    assert set(row) == {"impression", "score"}


def test_predict_warns_of_an_image_that_cannot_be_a_radiograph(run_folder, tmp_path, capsys):
    Image.new("RGB", (80, 70), (90, 140, 220)).save(tmp_path / "sky.png")
    words = ["predict", str(run_folder), "--frontal", str(tmp_path / "sky.png")]
    assert main(words) == 0
    captured = capsys.readouterr()
    assert "warning: frontal: all pixels have one value" in captured.err
    assert len(captured.out.splitlines()) == 1
    assert main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["warnings"] == ["frontal: all pixels have one value"]


def test_predict_says_that_a_text_was_cut_short(run_folder, image, capsys):
    assert main(["predict", str(run_folder), "--frontal", image, "--max-new-tokens", "1"]) == 0
    assert "warning: the text was cut short" in capsys.readouterr().err
    assert main(["predict", str(run_folder), "--frontal", image]) == 0
    assert "cut short" not in capsys.readouterr().err


def test_predict_goes_on_without_an_indication_that_the_model_does_not_take(run_folder, image, tmp_path, capsys):
    words = ["predict", str(run_folder), "--frontal", image]
    assert main(words) == 0
    plain = capsys.readouterr().out
    assert main([*words, "--indication", "Cough"]) == 0
    captured = capsys.readouterr()
    assert captured.out == plain
    assert "hf-cxr predict: this model does not take an indication; it is not used\n" in captured.err
    assert main(["predict", str(run_folder), "--frontal", str(tmp_path), "--age", "63"]) == 2
    assert "--age is of one study; of many it is a column of --csv" in capsys.readouterr().err


def test_an_empty_impression_is_printed_as_such(run_folder, image, capsys, monkeypatch):
    monkeypatch.setattr("hf_cxr.inference.pipeline.decode", lambda *_: [{"impression": "", "score": 0.1}])
    assert main(["predict", str(run_folder), "--frontal", image]) == 0
    assert capsys.readouterr().out == "(no text) (score 0.10)\n"


def test_predict_of_many_studies_goes_on_after_a_bad_one_and_names_it(run_folder, image, tmp_path, capsys):
    with (tmp_path / "studies.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["uid", "frontal", "lateral"], ["a", "frontal.png", ""], ["b", "no.png", ""]])
    status = main(["predict", str(run_folder), "--csv", str(tmp_path / "studies.csv"), "--json"])
    captured = capsys.readouterr()
    rows = [json.loads(line) for line in captured.out.splitlines()]
    assert status == 2
    assert [row["uid"] for row in rows] == ["a", "b"]
    assert "impression" in rows[0]
    assert "no.png" in rows[1]["error"]
    assert "1 of 2 studies" in captured.err


def test_predict_takes_a_folder_of_each_view(talkative_run, tmp_path, capsys):
    images = {"frontals/a.png": 1, "frontals/deep/1.2.840.png": 2, "laterals/a.dcm.png": 3, "laterals/b.jpg": 4}
    for name, seed in images.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(radiograph(seed)).save(tmp_path / name)
    (tmp_path / "frontals" / ".DS_Store").write_text("")
    expected = {
        "a": ["--frontal", str(tmp_path / "frontals/a.png"), "--lateral", str(tmp_path / "laterals/a.dcm.png")],
        "b": ["--lateral", str(tmp_path / "laterals/b.jpg")],
        "deep/1.2.840": ["--frontal", str(tmp_path / "frontals/deep/1.2.840.png")],
    }
    alone = {}
    for uid, words in expected.items():
        assert main(["predict", str(talkative_run), *words]) == 0
        alone[uid] = re.sub(r"(\(no text\))? \(score .*\)$", "", capsys.readouterr().out.strip())
    assert len(set(alone.values())) == 3
    folders = ["--frontal", str(tmp_path / "frontals"), "--lateral", str(tmp_path / "laterals")]
    for size in ("1", "2", "8"):
        assert main(["predict", str(talkative_run), *folders, "--json", "--batch-size", size]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert {row["uid"]: printable(row["impression"]) for row in rows} == alone
    (tmp_path / "laterals" / "b.dcm").write_text("no image")
    assert main(["predict", str(talkative_run), "--lateral", str(tmp_path / "laterals")]) == 2
    assert "laterals/b.dcm and " in (told := capsys.readouterr().err)
    assert "which of them is the lateral view of b?" in told


def test_predict_of_folders_tells_names_apart_and_loses_nothing(talkative_run, tmp_path, capsys):
    for name in ("f/smith.john.png", "f/smith.jane.png", "f/.cache/c.png", "l/other.png", "f/deep/in.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(radiograph(1)).save(tmp_path / name)
    (tmp_path / "f" / "gone.png").symlink_to(tmp_path / "absent.png")
    (tmp_path / "f" / "linked").symlink_to(tmp_path / "l")
    assert (
        main(["predict", str(talkative_run), "--frontal", str(tmp_path / "f"), "--lateral", str(tmp_path / "l")]) == 2
    )
    told = capsys.readouterr()
    uids = [line.split("\t")[0] for line in told.out.splitlines()]
    assert uids == ["deep/in", "gone", "linked/other", "other", "smith.jane", "smith.john"]
    assert "gone\tnot read: frontal: " in told.out
    assert "no file has the same name in both folders" in told.err
    for lateral in ("f", "f/deep"):
        words = ["--frontal", str(tmp_path / "f"), "--lateral", str(tmp_path / lateral)]
        assert main(["predict", str(talkative_run), *words]) == 2
        assert "one folder lies in the other" in capsys.readouterr().err


def test_evaluate_writes_the_report_and_repeats_exactly(run_folder, phantom_folder, tmp_path, capsys):
    words = ["evaluate", str(run_folder), str(phantom_folder), "--out", str(tmp_path / "e"), "--json", "--seed", "42"]
    assert main(words) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((tmp_path / "e" / "report.json").read_text())
    assert report == json.loads((run_folder / "report.json").read_text()), "the same as at the end of training"
    assert {path.name for path in (tmp_path / "e").iterdir()} == set(REPORT_FILES)


@pytest.mark.slow
def test_a_demo_too_small_for_a_test_split_says_that_nothing_was_evaluated(tmp_path):
    result = run_cxr("demo", "--out", tmp_path / "demo", "--num-studies", "3")
    assert result.returncode == 0, result.stderr[-2000:]
    assert "Not evaluated: the dataset has no test studies." in result.stdout
    assert (tmp_path / "demo" / "README.md").is_file()


@pytest.mark.slow
def test_the_demo_goes_the_whole_way(tmp_path):
    result = run_cxr("demo", "--out", tmp_path / "demo", "--num-studies", "100")
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("truth:") == 3
    assert "\nmodel   " in result.stdout
    assert "images shuffled" in result.stdout
    names = {path.name for path in (tmp_path / "demo").iterdir()}
    assert {"examples.png", "README.md", "report.json", "dataset"} <= names


def test_predict_withholds_what_is_below_the_threshold(run_folder, tmp_path, capsys):
    Image.fromarray(radiograph(1)).save(tmp_path / "f.png")
    words = ["predict", str(run_folder), "--frontal", str(tmp_path / "f.png")]
    assert main([*words, "--abstain-below", "1"]) == 0
    assert capsys.readouterr().out.startswith("abstained (score 0.")
    assert main([*words, "--abstain-below", "1", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["abstained"] is True
    assert "impression" not in row
    assert main([*words, "--abstain-below", "2"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err


def test_evaluate_and_predict_search_and_compute_as_the_checkpoint_says_unless_told_otherwise():
    for words in (["evaluate", "run", "data"], ["predict", "run", "--frontal", "f.png"]):
        options = make_parser().parse_args(words)
        assert (options.num_beams, options.dtype) == (None, None)
        options = make_parser().parse_args([*words, "--num-beams", "4", "--dtype", "bfloat16"])
        assert (options.num_beams, options.dtype) == (4, "bfloat16")
